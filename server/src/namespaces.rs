//! The namespace registry over the store, and the namespaces that every server has.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use perdure_cluster::{Namespace, NamespaceStore, Namespaces, SYSTEM_NAMESPACE};
use perdure_persistence::{Cas, NamespaceRow, Store, StoreError};
use perdure_proto::{
    Error,
    perdure::state::v1::NamespaceRecord,
    temporal::api::{
        common::v1::SearchAttributes,
        enums::v1::NamespaceState,
        rules::v1::{WorkflowRule, WorkflowRuleSpec},
        workflow::v1::WorkflowExecutionInfo,
    },
};
use perdure_types::Duration;
use perdure_visibility::{Attributes, Kind, Refusal, field_of, free_field};
use perdure_workflow::{NamespaceInfo, NamespaceView};
use prost::Message;

/// Retention of namespaces that the server creates itself.
const DEFAULT_RETENTION: Duration = Duration::from_secs(72 * 3600);

/// Keeps the registry in a [`Store`].
pub struct StoredNamespaces {
    store: Arc<dyn Store>,
    first_failure: Arc<OnceLock<StoreError>>,
}

impl StoredNamespaces {
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, first_failure: Arc::default() }
    }

    /// What the store said when something failed for the first time. A client hears less of it.
    pub fn first_failure(&self) -> Arc<OnceLock<StoreError>> {
        self.first_failure.clone()
    }

    fn unavailable(&self, error: StoreError) -> Error {
        tracing::warn!(%error, "namespace registry");
        let unavailable = Error::unavailable(format!("namespace registry: {error}"));
        // Only the first counts.
        let _ = self.first_failure.set(error);
        unavailable
    }
}

#[async_trait]
impl NamespaceStore for StoredNamespaces {
    async fn list(&self) -> Result<Vec<Namespace>, Error> {
        let rows = patiently(|| self.store.list_namespaces()).await.map_err(|error| self.unavailable(error))?;
        rows.into_iter()
            .map(|row| {
                let record = NamespaceRecord::decode(row.record)
                    .map_err(|error| Error::internal(format!("namespace {} does not decode: {error}", row.name)))?;
                Ok(Namespace { record, version: row.version })
            })
            .collect()
    }

    async fn put(&self, expected: Option<u64>, namespace: Namespace) -> Result<bool, Error> {
        let row = NamespaceRow {
            id: namespace.id().to_owned(),
            name: namespace.name().to_owned(),
            record: namespace.record.encode_to_vec().into(),
            version: namespace.version,
        };
        // The same again settles an unknown outcome (G3).
        let put = patiently(|| self.store.cas_namespace(expected, row.clone())).await;
        match put.map_err(|error| self.unavailable(error))? {
            Cas::Applied => Ok(true),
            Cas::Rejected(found) => Ok(found.as_ref() == Some(&row)),
        }
    }
}

/// Repeats what may be done twice while the store gives no clear answer: when all servers start at once on a busy store,
/// some of them do not get one at first.
pub async fn patiently<T, F>(mut operation: impl FnMut() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut pause = std::time::Duration::from_millis(100);
    for _ in 0..4 {
        match operation().await {
            Err(error @ (StoreError::Unavailable(_) | StoreError::Indeterminate(_))) => {
                tracing::warn!(%error, "no clear answer of the store, asking again");
            }
            settled => return settled,
        }
        tokio::time::sleep(pause).await;
        pause *= 3;
    }
    operation().await
}

/// Creates the namespaces that are not there yet.
pub async fn ensure_namespaces(namespaces: &Namespaces, names: &[String]) -> Result<(), Error> {
    let wanted = std::iter::once(SYSTEM_NAMESPACE).chain(names.iter().map(String::as_str));
    for name in wanted {
        if namespaces.by_name(name).is_none() {
            let record = NamespaceRecord {
                id: uuid::Uuid::new_v4().to_string(),
                name: name.to_owned(),
                state: NamespaceState::Registered as i32,
                retention_ns: DEFAULT_RETENTION.0,
                ..NamespaceRecord::default()
            };
            namespaces.create(record).await?;
        }
    }
    Ok(())
}

/// Gives the namespaces the search attributes that they do not have yet.
pub async fn ensure_search_attributes(
    namespaces: &Namespaces,
    names: &[String],
    wanted: &[(String, Kind)],
) -> Result<(), Error> {
    for namespace in names.iter().filter_map(|name| namespaces.by_name(name)) {
        let mut record = namespace.record.clone();
        let aliases = &mut record.custom_search_attribute_aliases;
        for (name, kind) in wanted {
            if field_of(aliases, name).is_none()
                && let Some(field) = free_field(aliases, *kind)
            {
                aliases.insert(field, name.clone());
            }
        }
        // Whoever was faster did the same, or an operator decided otherwise.
        if record != namespace.record && !namespaces.update(&namespace, record).await? {
            tracing::warn!(namespace = namespace.name(), "search attributes were changed by others meanwhile");
        }
    }
    Ok(())
}

/// The registry as the workflow core sees it.
pub struct NamespaceRegistry(pub Arc<Namespaces>);

fn info(namespace: Arc<Namespace>) -> NamespaceInfo {
    NamespaceInfo { id: namespace.id().into(), name: namespace.name().into(), retention: namespace.retention() }
}

impl NamespaceView for NamespaceRegistry {
    fn by_name(&self, name: &str) -> Option<NamespaceInfo> {
        self.0.by_name(name).map(info)
    }

    fn by_id(&self, id: &str) -> Option<NamespaceInfo> {
        self.0.by_id(id).map(info)
    }

    fn check_search_attributes(&self, namespace_id: &str, given: &SearchAttributes) -> Result<(), String> {
        let Some(namespace) = self.0.by_id(namespace_id) else { return Ok(()) };
        let attributes = Attributes::from_aliases(&namespace.record.custom_search_attribute_aliases);
        perdure_visibility::check(given, &attributes, namespace.name()).map_err(Refusal::into_message)
    }

    fn nexus_endpoint(&self, name: &str) -> Option<String> {
        Some(self.0.nexus_endpoint_by_name(name)?.endpoint?.id)
    }

    fn rules(&self, namespace_id: &str) -> Vec<WorkflowRule> {
        self.0.by_id(namespace_id).map(|namespace| namespace.record.workflow_rules.clone()).unwrap_or_default()
    }

    fn rule_matches(
        &self,
        rule: &WorkflowRuleSpec,
        run: &WorkflowExecutionInfo,
        activity: &SearchAttributes,
    ) -> Result<bool, String> {
        perdure_visibility::rule_matches(rule, run, activity)
    }
}
