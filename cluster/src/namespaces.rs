//! The namespace registry, cached on every node.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
    time,
};

use async_trait::async_trait;
use perdure_proto::{
    Error,
    perdure::state::v1::{NamespaceRecord, NexusEndpointRecord},
    temporal::api::nexus::v1::EndpointSpec,
};
use perdure_types::Duration;
use tokio::{
    sync::{Mutex, watch},
    time::timeout,
};

use crate::membership::Membership;

/// The system's own namespace, which Temporal has for its own workflows; tools expect to find it. Its record holds what
/// belongs to the whole cluster.
pub const SYSTEM_NAMESPACE: &str = "temporal-system";

/// The registry is read again after so long even if nobody tells of a change.
const READ_AGAIN: time::Duration = time::Duration::from_secs(10);

/// One namespace as this node knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Namespace {
    pub record: NamespaceRecord,
    /// For conditional updates.
    pub version: u64,
}

impl Namespace {
    pub fn id(&self) -> &str {
        &self.record.id
    }

    pub fn name(&self) -> &str {
        &self.record.name
    }

    pub fn retention(&self) -> Duration {
        Duration(self.record.retention_ns)
    }
}

/// Where the registry is kept; implemented over the store by the server's wiring.
#[async_trait]
pub trait NamespaceStore: Send + Sync + 'static {
    async fn list(&self) -> Result<Vec<Namespace>, Error>;
    /// Creates (`expected` none) or replaces a namespace if its version is still `expected`. False: someone was faster.
    async fn put(&self, expected: Option<u64>, namespace: Namespace) -> Result<bool, Error>;
}

/// The cached registry.
pub struct Namespaces {
    store: Arc<dyn NamespaceStore>,
    by_name: RwLock<BTreeMap<String, Arc<Namespace>>>,
    /// Names that nobody has any more: their rows can be taken over.
    released: RwLock<BTreeMap<String, Arc<Namespace>>>,
    /// One read at a time: what was read before a change never replaces what was read after it.
    reading: Mutex<()>,
    /// Changes made through this node.
    changes: watch::Sender<u64>,
}

impl Namespaces {
    /// Loads the registry.
    pub async fn load(store: Arc<dyn NamespaceStore>) -> Result<Self, Error> {
        let namespaces = Self {
            store,
            by_name: RwLock::default(),
            released: RwLock::default(),
            reading: Mutex::new(()),
            changes: watch::Sender::new(0),
        };
        namespaces.refresh().await?;
        Ok(namespaces)
    }

    /// Reads the registry again.
    pub async fn refresh(&self) -> Result<(), Error> {
        let _reading = self.reading.lock().await;
        let read = self.store.list().await?.into_iter().map(|n| (n.name().to_owned(), Arc::new(n)));
        let (released, fresh) = read.partition(|(_, namespace)| namespace.record.released);
        *self.by_name.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        *self.released.write().unwrap_or_else(PoisonError::into_inner) = released;
        Ok(())
    }

    /// Follows what other nodes change, and tells them what this one changes; for as long as the registry is in use.
    pub fn follow(self: &Arc<Self>, membership: Membership) {
        let mut own = self.changes.subscribe();
        let teller = membership.clone();
        tokio::spawn(async move {
            while own.changed().await.is_ok() {
                teller.registry_changed().await;
            }
        });
        let registry = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut news = membership.registry_news();
            loop {
                let _ = timeout(READ_AGAIN, news.changed()).await;
                let Some(registry) = registry.upgrade() else { return };
                if let Err(error) = registry.refresh().await {
                    tracing::warn!(%error, "namespaces cannot be read again");
                }
            }
        });
    }

    pub fn by_name(&self, name: &str) -> Option<Arc<Namespace>> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    pub fn by_id(&self, id: &str) -> Option<Arc<Namespace>> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner).values().find(|n| n.id() == id).cloned()
    }

    /// All namespaces, by name.
    pub fn all(&self) -> Vec<Arc<Namespace>> {
        self.by_name.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The Nexus endpoint of that id.
    pub fn nexus_endpoint_by_id(&self, id: &str) -> Option<NexusEndpointRecord> {
        self.nexus_endpoint(|record| record.endpoint.as_ref().is_some_and(|endpoint| endpoint.id == id))
    }

    pub fn nexus_endpoint_by_name(&self, name: &str) -> Option<NexusEndpointRecord> {
        let named = |spec: &EndpointSpec| spec.name == name;
        self.nexus_endpoint(|record| record.endpoint.as_ref().and_then(|e| e.spec.as_ref()).is_some_and(named))
    }

    fn nexus_endpoint(&self, chosen: impl Fn(&NexusEndpointRecord) -> bool) -> Option<NexusEndpointRecord> {
        let system = self.by_name(SYSTEM_NAMESPACE)?;
        system.record.nexus_endpoints.iter().find(|record| chosen(record)).cloned()
    }

    /// Creates a namespace; `false` if the name is taken.
    pub async fn create(&self, record: NamespaceRecord) -> Result<bool, Error> {
        let mut created = self.store.put(None, Namespace { record: record.clone(), version: 1 }).await?;
        if !created {
            self.refresh().await?;
            let released = self.released.read().unwrap_or_else(PoisonError::into_inner).get(&record.name).cloned();
            if let Some(row) = released {
                let version = row.version + 1;
                created = self.store.put(Some(row.version), Namespace { record, version }).await?;
            }
        }
        self.refresh().await?;
        self.changes.send_modify(|changes| *changes += 1);
        Ok(created)
    }

    /// Replaces a namespace's record if nobody else changed it since `current` was read.
    pub async fn update(&self, current: &Namespace, record: NamespaceRecord) -> Result<bool, Error> {
        let next = Namespace { record, version: current.version + 1 };
        let updated = self.store.put(Some(current.version), next).await?;
        self.refresh().await?;
        self.changes.send_modify(|changes| *changes += 1);
        Ok(updated)
    }

    /// Takes its name from a namespace that is being deleted and gives it the one that its record says. Each step can be
    /// repeated: whoever finds it half done does it again. The namespace as it is then.
    pub async fn rename_deleted(&self, namespace: &Namespace) -> Result<Option<Arc<Namespace>>, Error> {
        let new_name = namespace.record.deleted_name.clone();
        if namespace.name() != new_name {
            let renamed = NamespaceRecord { name: new_name.clone(), ..namespace.record.clone() };
            self.create(renamed).await?;
            self.release(namespace).await?;
        }
        Ok(self.by_name(&new_name))
    }

    /// Nobody has this name any more.
    pub async fn release(&self, namespace: &Namespace) -> Result<bool, Error> {
        let record = NamespaceRecord {
            id: namespace.id().to_owned(),
            name: namespace.name().to_owned(),
            state: namespace.record.state,
            released: true,
            ..NamespaceRecord::default()
        };
        self.update(namespace, record).await
    }
}
