//! What a shard needs of the rest of the node; the server's wiring implements it.

use async_trait::async_trait;
use perdure_proto::{
    Error,
    perdure::node::v1::{Offer, OfferReply, ShardCall, ShardReply, WorkflowCall, WorkflowReply},
};
use perdure_types::NodeId;

/// Where tasks that can be started go: the home of their task queue.
#[async_trait]
pub trait TaskSink: Send + Sync + 'static {
    /// UNAVAILABLE: the offer is made again.
    async fn offer(&self, offer: Offer) -> Result<OfferReply, Error>;
}

/// Reaches the owners of shards on other nodes.
#[async_trait]
pub trait Peers: Send + Sync + 'static {
    /// Asks that node about a shard. An error says nothing about what was done: the shard's row does.
    async fn shard(&self, node: &NodeId, call: ShardCall) -> Result<ShardReply, Error>;
}

/// A node alone has none.
pub(crate) struct NoPeers;

#[async_trait]
impl Peers for NoPeers {
    async fn shard(&self, _node: &NodeId, _call: ShardCall) -> Result<ShardReply, Error> {
        Err(Error::not_owner(None))
    }
}

/// Reaches the owner of another entity.
#[async_trait]
pub trait EntityCaller: Send + Sync + 'static {
    /// UNAVAILABLE: the call is made again.
    async fn call(&self, call: WorkflowCall) -> Result<WorkflowReply, Error>;
}
