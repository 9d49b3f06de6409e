//! What a shard needs of the rest of the node; the server's wiring implements it.

use async_trait::async_trait;
use perdure_proto::{
    Error,
    perdure::node::v1::{Offer, OfferReply, WorkflowCall, WorkflowReply},
};

/// Where tasks that can be started go: the home of their task queue.
#[async_trait]
pub trait TaskSink: Send + Sync + 'static {
    /// UNAVAILABLE: the offer is made again.
    async fn offer(&self, offer: Offer) -> Result<OfferReply, Error>;
}

/// Reaches the owner of another entity.
#[async_trait]
pub trait EntityCaller: Send + Sync + 'static {
    /// UNAVAILABLE: the call is made again.
    async fn call(&self, call: WorkflowCall) -> Result<WorkflowReply, Error>;
}
