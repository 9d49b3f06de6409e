//! RegisterNamespace, UpdateNamespace and DeprecateNamespace.

use std::{collections::HashMap, sync::Arc};

use perdure_cluster::Namespace;
use perdure_proto::{
    Error,
    perdure::state::v1::NamespaceRecord,
    temporal::api::{
        enums::v1::NamespaceState,
        workflowservice::v1::{
            DeprecateNamespaceRequest, DeprecateNamespaceResponse, RegisterNamespaceRequest, RegisterNamespaceResponse,
            UpdateNamespaceRequest, UpdateNamespaceResponse,
        },
    },
};
use perdure_types::Duration;

use crate::{
    call::Call,
    ids::new_id,
    rpc::namespace_read::{config_of, info_of, replication_of},
    validate,
};

/// Zero would read as "for ever".
const SHORTEST_RETENTION: Duration = Duration::from_secs(3_600);
/// How often a change is tried again when others change the same namespace.
const MOST_ATTEMPTS: usize = 10;

pub(crate) async fn register_namespace(
    call: &Call<'_>,
    request: RegisterNamespaceRequest,
) -> Result<RegisterNamespaceResponse, Error> {
    if request.namespace.is_empty() {
        return Err(crate::call::namespace_not_set());
    }
    validate::namespace_name(&request.namespace, call.limits())?;
    if request.is_global_namespace {
        return Err(Error::invalid_argument("Cannot register global namespace when not enabled"));
    }
    let retention_ns = retention(request.workflow_execution_retention_period)?.0;
    let record = NamespaceRecord {
        id: new_id(),
        name: request.namespace,
        state: NamespaceState::Registered as i32,
        description: request.description,
        owner_email: request.owner_email,
        data: request.data,
        retention_ns,
        ..Default::default()
    };
    let (id, name) = (record.id.clone(), record.name.clone());
    if !call.frontend().namespaces().create(record).await? {
        return Err(Error::namespace_already_exists(format!("Namespace {name:?} already exists")));
    }
    tracing::info!(namespace = name, namespace_id = id, "namespace registered");
    Ok(RegisterNamespaceResponse::default())
}

pub(crate) async fn update_namespace(
    call: &Call<'_>,
    request: UpdateNamespaceRequest,
) -> Result<UpdateNamespaceResponse, Error> {
    let record = change(call, &request.namespace, |record| apply(record, &request)).await?;
    Ok(UpdateNamespaceResponse {
        namespace_info: Some(info_of(&record, call.limits())),
        config: Some(config_of(&record)),
        replication_config: Some(replication_of(call.frontend().info())),
        ..Default::default()
    })
}

pub(crate) async fn deprecate_namespace(
    call: &Call<'_>,
    request: DeprecateNamespaceRequest,
) -> Result<DeprecateNamespaceResponse, Error> {
    change(call, &request.namespace, |record| {
        record.state = NamespaceState::Deprecated as i32;
        Ok(())
    })
    .await?;
    Ok(DeprecateNamespaceResponse::default())
}

/// Changes a namespace as it is stored now; starts anew when someone else was faster.
pub(crate) async fn change(
    call: &Call<'_>,
    name: &str,
    apply: impl Fn(&mut NamespaceRecord) -> Result<(), Error>,
) -> Result<NamespaceRecord, Error> {
    let registry = call.frontend().namespaces();
    registry.refresh().await?;
    for _ in 0..MOST_ATTEMPTS {
        let current: Arc<Namespace> = call.namespace_now(name)?;
        let mut record = current.record.clone();
        apply(&mut record)?;
        if record == current.record || registry.update(&current, record.clone()).await? {
            tracing::info!(namespace = name, namespace_id = record.id, "namespace changed");
            return Ok(record);
        }
    }
    Err(Error::unavailable("the namespace is being changed by others"))
}

fn apply(record: &mut NamespaceRecord, request: &UpdateNamespaceRequest) -> Result<(), Error> {
    if request.promote_namespace || request.replication_config.as_ref().is_some_and(|r| r.clusters.len() > 1) {
        return Err(Error::invalid_argument(format!(
            "global namespace is not enabled on this cluster, cannot update global namespace or promote local \
             namespace: {}",
            request.namespace
        )));
    }
    if let Some(info) = &request.update_info {
        if !info.description.is_empty() {
            info.description.clone_into(&mut record.description);
        }
        if !info.owner_email.is_empty() {
            info.owner_email.clone_into(&mut record.owner_email);
        }
        record.data.extend(info.data.clone());
        if info.state != NamespaceState::Unspecified as i32 && info.state != record.state {
            state_change(record.state, info.state)?;
            record.state = info.state;
        }
    }
    if let Some(config) = &request.config {
        if config.workflow_execution_retention_ttl.is_some() {
            record.retention_ns = retention(config.workflow_execution_retention_ttl)?.0;
        }
        aliases(&mut record.custom_search_attribute_aliases, &config.custom_search_attribute_aliases)?;
    }
    Ok(())
}

fn retention(retention: Option<prost_types::Duration>) -> Result<Duration, Error> {
    let refused = || Error::invalid_argument("A valid retention period is not set on request.");
    let mut retention = retention.ok_or_else(refused)?;
    validate::duration(Some(&mut retention)).map_err(|_| refused())?;
    let retention = Duration::from_proto(Some(&retention));
    if retention < SHORTEST_RETENTION { Err(refused()) } else { Ok(retention) }
}

fn state_change(old: i32, new: i32) -> Result<(), Error> {
    let [old, new] = [old, new].map(|s| NamespaceState::try_from(s).unwrap_or_default());
    use NamespaceState::{Deleted, Deprecated, Registered};
    match (old, new) {
        (Registered, Deprecated | Deleted) | (Deprecated, Deleted) => Ok(()),
        _ => Err(Error::invalid_argument("Invalid namespace state update.")),
    }
}

/// Field to alias; an empty alias removes the field's.
fn aliases(current: &mut HashMap<String, String>, changes: &HashMap<String, String>) -> Result<(), Error> {
    for (field, alias) in changes {
        if alias.is_empty() {
            current.remove(field);
        } else if current.values().any(|taken| taken == alias) {
            // As it is wanted already.
        } else if current.contains_key(field) {
            return Err(Error::invalid_argument("Custom search attribute field name already allocated."));
        } else {
            current.insert(field.clone(), alias.clone());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use perdure_proto::temporal::api::namespace::v1::{NamespaceConfig, UpdateNamespaceInfo};

    use super::*;

    fn seconds(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }

    #[test]
    fn retention_is_an_hour_at_least() {
        assert_eq!(retention(seconds(86_400)), Ok(Duration::from_secs(86_400)));
        for bad in [None, seconds(0), seconds(-1), seconds(3_599)] {
            let error = retention(bad).expect_err("refused");
            assert_eq!(error.message, "A valid retention period is not set on request.");
        }
    }

    #[test]
    fn states_only_go_down() {
        use NamespaceState::{Deleted, Deprecated, Registered};
        let check = |old: NamespaceState, new: NamespaceState, ok: bool| {
            assert_eq!(state_change(old as i32, new as i32).is_ok(), ok, "{old:?} {new:?}");
        };
        check(Registered, Deprecated, true);
        check(Registered, Deleted, true);
        check(Deprecated, Deleted, true);
        check(Deprecated, Registered, false);
        check(Deleted, Registered, false);
    }

    #[test]
    fn what_is_not_named_stays() {
        let mut record = NamespaceRecord {
            state: NamespaceState::Registered as i32,
            description: "old".into(),
            owner_email: "a@example.com".into(),
            data: HashMap::from([("k".into(), "v".into())]),
            retention_ns: 7,
            ..Default::default()
        };
        let request = UpdateNamespaceRequest {
            update_info: Some(UpdateNamespaceInfo {
                description: "new".into(),
                data: HashMap::from([("l".into(), "w".into())]),
                ..Default::default()
            }),
            config: Some(NamespaceConfig::default()),
            ..Default::default()
        };
        apply(&mut record, &request).expect("valid");
        assert_eq!(record.description, "new");
        assert_eq!(record.owner_email, "a@example.com");
        assert_eq!(record.data.len(), 2);
        assert_eq!(record.retention_ns, 7);
    }
}
