//! Delivery of calls.

use std::sync::Arc;

use perdure_proto::{
    Error,
    perdure::node::v1::{MatchingCall, MatchingReply, WorkflowCall, WorkflowReply},
};
use perdure_types::{ChainKey, SlotCount};

use crate::ports::{LocalMatching, LocalShards};

/// Reaches the owner of every entity and the home of every task queue. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    slots: SlotCount,
    shards: Arc<dyn LocalShards>,
    matching: Arc<dyn LocalMatching>,
}

impl Cluster {
    pub fn new(slots: SlotCount, shards: Arc<dyn LocalShards>, matching: Arc<dyn LocalMatching>) -> Self {
        Self { slots, shards, matching }
    }

    /// Calls the entity that `call` names.
    pub async fn workflow(&self, call: WorkflowCall) -> Result<WorkflowReply, Error> {
        let key = ChainKey::numbered(call.kind, call.namespace_id.as_str(), call.workflow_id.as_str());
        let shard = key.ok_or_else(|| Error::unimplemented("entity of an unknown kind"))?.shard(self.slots);
        self.shards.call(shard, call).await
    }

    /// Calls the home of the task queue that `call` names.
    pub async fn matching(&self, call: MatchingCall) -> Result<MatchingReply, Error> {
        self.matching.call(call).await
    }
}
