//! DeleteNamespace: the namespace loses its name at once, so that the name can be used again; all that is in it is deleted in
//! the background, by the server.

use perdure_cluster::SYSTEM_NAMESPACE;
use perdure_proto::{
    Error,
    perdure::state::v1::NamespaceRecord,
    temporal::api::{
        enums::v1::NamespaceState,
        operatorservice::v1::{DeleteNamespaceRequest, DeleteNamespaceResponse},
    },
};
use perdure_types::{Duration, Timestamp};

use crate::{call::Call, rpc::nexus_endpoint, validate};

/// How often a change is tried again when others change the same namespace.
const MOST_ATTEMPTS: usize = 10;
/// Characters of the id that tell deleted namespaces of the same name apart.
const SUFFIX: usize = 5;

pub(crate) async fn delete_namespace(
    call: &Call<'_>,
    mut request: DeleteNamespaceRequest,
) -> Result<DeleteNamespaceResponse, Error> {
    let (name, id) = (request.namespace.as_str(), request.namespace_id.as_str());
    match (name.is_empty(), id.is_empty()) {
        (true, true) => return Err(crate::call::namespace_not_set()),
        (false, false) => {
            return Err(Error::invalid_argument("Only one of namespace name or Id should be set on request."));
        }
        _ => validate::namespace_name(name, call.limits())?,
    }
    validate::duration(request.namespace_delete_delay.as_mut())
        .map_err(|problem| Error::invalid_argument(format!("invalid NamespaceDeleteDelay: {problem}")))?;
    let delay = Duration::from_proto(request.namespace_delete_delay.as_ref());
    let registry = call.frontend().namespaces();
    registry.refresh().await?;
    for _ in 0..MOST_ATTEMPTS {
        let found = if id.is_empty() { registry.by_name(name) } else { registry.by_id(id) };
        let found = found.ok_or_else(|| Error::namespace_not_found(if id.is_empty() { name } else { id }))?;
        if found.name() == SYSTEM_NAMESPACE {
            return Err(Error::failed_precondition("unable to delete system namespace"));
        }
        if let Some(endpoint) = nexus_endpoint::with_target(registry, found.id()) {
            return Err(Error::failed_precondition(format!(
                "cannot delete a namespace that is a target of a Nexus endpoint {endpoint}"
            )));
        }
        let begun = !found.record.deleted_name.is_empty();
        if begun || registry.update(&found, doomed(&found.record, call.frontend().rows()?.now() + delay)).await? {
            let found = registry.by_id(found.id()).unwrap_or(found);
            registry.rename_deleted(&found).await?;
            let deleted_namespace = found.record.deleted_name.clone();
            tracing::info!(namespace = found.name(), namespace_id = found.id(), deleted_namespace, "namespace deleted");
            return Ok(DeleteNamespaceResponse { deleted_namespace });
        }
    }
    Err(Error::unavailable("the namespace is being changed by others"))
}

fn doomed(record: &NamespaceRecord, not_before: Timestamp) -> NamespaceRecord {
    let suffix: String = record.id.chars().take(SUFFIX).collect();
    NamespaceRecord {
        state: NamespaceState::Deleted as i32,
        deleted_name: format!("{}-deleted-{suffix}", record.name),
        delete_not_before_ns: not_before.as_nanos(),
        ..record.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_freed() {
        let record =
            NamespaceRecord { id: "12345678-9".into(), name: "orders".into(), retention_ns: 7, ..Default::default() };
        let doomed = doomed(&record, Timestamp(3));
        assert_eq!(doomed.deleted_name, "orders-deleted-12345");
        assert_eq!((doomed.name.as_str(), doomed.retention_ns, doomed.delete_not_before_ns), ("orders", 7, 3));
        assert_eq!(doomed.state, NamespaceState::Deleted as i32);
    }
}
