//! The namespace registry, cached on every node.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use async_trait::async_trait;
use perdure_proto::{Error, perdure::state::v1::NamespaceRecord};
use perdure_types::Duration;

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
}

impl Namespaces {
    /// Loads the registry.
    pub async fn load(store: Arc<dyn NamespaceStore>) -> Result<Self, Error> {
        let namespaces = Self { store, by_name: RwLock::default() };
        namespaces.refresh().await?;
        Ok(namespaces)
    }

    /// Reads the registry again.
    pub async fn refresh(&self) -> Result<(), Error> {
        let fresh = self.store.list().await?.into_iter().map(|n| (n.name().to_owned(), Arc::new(n))).collect();
        *self.by_name.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
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

    /// Creates a namespace; `false` if the name is taken.
    pub async fn create(&self, record: NamespaceRecord) -> Result<bool, Error> {
        let created = self.store.put(None, Namespace { record, version: 1 }).await?;
        self.refresh().await?;
        Ok(created)
    }

    /// Replaces a namespace's record if nobody else changed it since `current` was read.
    pub async fn update(&self, current: &Namespace, record: NamespaceRecord) -> Result<bool, Error> {
        let next = Namespace { record, version: current.version + 1 };
        let updated = self.store.put(Some(current.version), next).await?;
        self.refresh().await?;
        Ok(updated)
    }
}
