//! Temporal's public gRPC API: `WorkflowService` and `OperatorService`.
//!
//! A call is validated, its namespace resolved, and then forwarded to the entity or task queue that it concerns;
//! [`service`] is the table of all RPCs, `rpc/` has a file for each or for a tight family of them.
//!
//! Owns: what a request may look like, who waits how long, and the translation of errors into gRPC statuses. Does not
//! own any state. Nothing that a client sends makes it panic.

mod call;
mod connection;
mod deadline;
mod delivery;
mod http_api;
mod ids;
mod metrics;
mod repeat;
mod rpc;
mod search_attributes;
mod service;
mod token;
mod validate;
mod versioning;

use std::sync::Arc;

use perdure_cluster::{Cluster, Namespaces};
use perdure_proto::{
    Error,
    temporal::api::{
        operatorservice::v1::operator_service_server::OperatorServiceServer,
        workflowservice::v1::workflow_service_server::WorkflowServiceServer,
    },
};
use perdure_types::Limits;
use perdure_visibility::Rows;
use tokio::sync::watch;
use tonic::codec::CompressionEncoding;

pub use connection::Connection;
pub use delivery::Guarded;
pub use http_api::router as http_router;
pub use metrics::describe as describe_metrics;
pub use service::{OPERATOR_IMPLEMENTED, OPERATOR_UNIMPLEMENTED, WORKFLOW_IMPLEMENTED, WORKFLOW_UNIMPLEMENTED};
pub use token::seal as seal_task_token;

/// Largest request in bytes. gRPC's own default, which Temporal keeps and clients count on.
pub const MAX_REQUEST_BYTES: usize = 4 << 20;

/// The Temporal server version whose behaviour clients may expect. SDKs, CLI and UI show it and compare it with minimums.
pub const COMPATIBLE_SERVER_VERSION: &str = "1.31.0";

/// What the API tells about the cluster.
#[derive(Clone, Debug)]
pub struct ClusterInfo {
    pub cluster_id: String,
    pub cluster_name: String,
    pub server_version: String,
    /// Of this node, for clients.
    pub address: String,
    pub shard_count: u32,
    pub persistence_store: String,
    pub visibility_store: String,
}

impl Default for ClusterInfo {
    fn default() -> Self {
        Self {
            cluster_id: String::new(),
            // The name of Temporal's only cluster when there is no replication; tools compare with it.
            cluster_name: "active".to_owned(),
            server_version: COMPATIBLE_SERVER_VERSION.to_owned(),
            address: String::new(),
            shard_count: 1,
            persistence_store: "perdure".to_owned(),
            visibility_store: String::new(),
        }
    }
}

/// The public API. Cheap to clone.
#[derive(Clone)]
pub struct Frontend {
    inner: Arc<Inner>,
}

struct Inner {
    cluster: Cluster,
    namespaces: Arc<Namespaces>,
    limits: Arc<Limits>,
    info: ClusterInfo,
    /// True from the moment when this node starts to shut down.
    draining: watch::Receiver<bool>,
    /// Where lists come from; set by the wiring.
    rows: Option<Arc<dyn Rows>>,
}

impl Frontend {
    pub fn new(
        cluster: Cluster,
        namespaces: Arc<Namespaces>,
        limits: Arc<Limits>,
        info: ClusterInfo,
        draining: watch::Receiver<bool>,
    ) -> Self {
        Self { inner: Arc::new(Inner { cluster, namespaces, limits, info, draining, rows: None }) }
    }

    /// With lists of runs; to be called before the frontend is cloned.
    pub fn with_lists(mut self, rows: Arc<dyn Rows>) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.inner) {
            inner.rows = Some(rows);
        }
        self
    }

    /// The service to add to a gRPC server.
    pub fn workflow_service(&self) -> Guarded<WorkflowServiceServer<Self>> {
        Guarded::new(
            WorkflowServiceServer::new(self.clone())
                .max_decoding_message_size(MAX_REQUEST_BYTES)
                .accept_compressed(CompressionEncoding::Gzip)
                .accept_compressed(CompressionEncoding::Zstd),
        )
    }

    /// The operator's service, to add to a gRPC server.
    pub fn operator_service(&self) -> Guarded<OperatorServiceServer<Self>> {
        Guarded::new(
            OperatorServiceServer::new(self.clone())
                .max_decoding_message_size(MAX_REQUEST_BYTES)
                .accept_compressed(CompressionEncoding::Gzip)
                .accept_compressed(CompressionEncoding::Zstd),
        )
    }

    pub(crate) fn cluster(&self) -> &Cluster {
        &self.inner.cluster
    }

    pub(crate) fn namespaces(&self) -> &Namespaces {
        &self.inner.namespaces
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    pub(crate) fn info(&self) -> &ClusterInfo {
        &self.inner.info
    }

    pub(crate) fn rows(&self) -> Result<Arc<dyn Rows>, Error> {
        self.inner.rows.clone().ok_or_else(|| Error::unavailable("this node keeps no lists"))
    }

    pub(crate) fn draining(&self) -> watch::Receiver<bool> {
        self.inner.draining.clone()
    }

    pub(crate) fn is_draining(&self) -> bool {
        *self.inner.draining.borrow()
    }
}
