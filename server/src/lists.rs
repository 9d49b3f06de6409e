//! The rows of lists, out of the store.

use std::sync::Arc;

use async_trait::async_trait;
use perdure_persistence::{Store, StoreError};
use perdure_proto::Error;
use perdure_shard::Clock;
use perdure_types::{IdMatch, ListedRun, Timestamp, VisibilityCount, VisibilityQuery};
use perdure_visibility::Rows;

/// The store, as lists see it.
pub struct ListedRows {
    store: Arc<dyn Store>,
    clock: Arc<Clock>,
}

impl ListedRows {
    pub fn new(store: Arc<dyn Store>, clock: Arc<Clock>) -> Self {
        Self { store, clock }
    }
}

fn unavailable(error: StoreError) -> Error {
    tracing::warn!(%error, "the list of runs cannot be read");
    Error::unavailable(format!("the list of runs: {error}"))
}

#[async_trait]
impl Rows for ListedRows {
    async fn list(&self, query: &VisibilityQuery) -> Result<Vec<ListedRun>, Error> {
        self.store.list_visibility(query).await.map_err(unavailable)
    }

    async fn find(&self, list_id: &str, ids: &IdMatch, limit: usize) -> Result<Vec<ListedRun>, Error> {
        self.store.find_visibility(list_id, ids, limit).await.map_err(unavailable)
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    async fn counts(&self, list_id: &str) -> Result<Vec<VisibilityCount>, Error> {
        self.store.count_visibility(list_id).await.map_err(unavailable)
    }
}
