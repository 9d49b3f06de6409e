//! What this crate needs of the parts of the node above it, and the values that it exchanges with the owner of shards.
//!
//! The owner of shards gets a `watch::Receiver<Arc<Placement>>` (see [`crate::Membership::placement`]) and gives a
//! `watch::Receiver<Served>`, which is gossiped so that others route by it. It reaches other owners with
//! [`crate::Cluster::shard`], and is reached by them through [`LocalShards::shard`].

use async_trait::async_trait;
use perdure_proto::{
    Error,
    perdure::node::v1::{MatchingCall, MatchingReply, ShardCall, ShardReply, WorkflowCall, WorkflowReply},
};
use perdure_types::{Layout, ShardId, SlotCount};
pub use perdure_types::{Member, NodeId, Placement, QueueFilter, Served};

/// The shards that this node owns.
#[async_trait]
pub trait LocalShards: Send + Sync + 'static {
    /// Handles the call on `shard`, or on the half of it that the entity is in. [`Error::not_owner`] when this node does not
    /// serve it now and has done nothing: the call goes elsewhere, or waits for the shard. Dropping the future gives up the wait, not the effect.
    async fn call(&self, shard: ShardId, call: &WorkflowCall) -> Result<WorkflowReply, Error>;

    /// Handles what another owner of shards asks (hand-over, status).
    async fn shard(&self, call: ShardCall) -> Result<ShardReply, Error> {
        Err(Error::unimplemented(&format!("calls about shard {}", call.shard)))
    }

    /// How far the shards of the cluster are split, by the store.
    async fn layout(&self) -> Result<Layout, Error> {
        Err(Error::unimplemented("a layout of shards"))
    }

    /// Wants so many shards, by default twice as many as there are: their owners split them from here on.
    async fn split(&self, _goal: Option<SlotCount>) -> Result<Layout, Error> {
        Err(Error::unimplemented("splitting shards"))
    }

    /// Task queues have got another home: all tasks that wait to be started in queues that `moved` names are offered
    /// again.
    fn offer_again(&self, _moved: QueueFilter) {}
}

/// The task queues whose home this node is.
#[async_trait]
pub trait LocalMatching: Send + Sync + 'static {
    /// Dropping the future of a poll takes the poll back.
    async fn call(&self, call: MatchingCall) -> Result<MatchingReply, Error>;

    /// From now on this node is not the home of the queues that `departed` names, but of all others: polls and queries
    /// that wait in them are answered with [`Error::not_owner`]. Their offers may stay: those who made them make them
    /// again at the new home, and a duplicate is harmless.
    fn depart(&self, _departed: QueueFilter) {}
}
