//! The gRPC endpoint: Temporal's services, health and reflection.

use std::time::Duration;

use perdure_frontend::Frontend;
use perdure_proto::{TEMPORAL_DESCRIPTORS, temporal::api::workflowservice::v1::workflow_service_server};
use tokio::{net::TcpListener, sync::watch};
use tokio_stream::StreamExt;
use tonic::{
    codec::CompressionEncoding,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::{connection::Tracked, exit::Failure};

/// Clients ping every 30 s; a peer that answers none of ours for so long is gone, and its long polls with it.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(15);

/// Tells load balancers and clients whether to send calls here.
pub struct Health(HealthReporter);

impl Health {
    pub async fn set_serving(&self, serving: bool) {
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in ["", workflow_service_server::SERVICE_NAME] {
            self.0.set_service_status(service, status).await;
        }
    }

    /// Ends the streams of those who watch; they have seen the last status. A drain would wait for them else.
    pub async fn end_watches(&self) {
        for service in ["", workflow_service_server::SERVICE_NAME] {
            let mut reporter = self.0.clone();
            reporter.clear_service_status(service).await;
        }
    }
}

/// Makes the endpoint: the future serves until `shutdown` turns true and until the calls under way have been answered.
pub fn serve(
    listener: TcpListener,
    frontend: &Frontend,
    shutdown: watch::Receiver<bool>,
) -> Result<(Health, impl Future<Output = Result<(), tonic::transport::Error>> + Send + use<>), Failure> {
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(TEMPORAL_DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let broken = |error| Failure::new(Failure::OTHER, format!("cannot serve reflection: {error}"));
    let router = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_service(frontend.workflow_service())
        .add_service(frontend.operator_service())
        .add_service(
            health_service.accept_compressed(CompressionEncoding::Gzip).accept_compressed(CompressionEncoding::Zstd),
        )
        .add_service(reflection().build_v1().map_err(broken)?)
        .add_service(reflection().build_v1alpha().map_err(broken)?);
    let shutdown = async move {
        let mut shutdown = shutdown;
        // A dropped sender is a shutdown too.
        let _ = shutdown.wait_for(|stop| *stop).await;
    };
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true)).map(|stream| stream.map(Tracked::new));
    Ok((Health(reporter), router.serve_with_incoming_shutdown(incoming, shutdown)))
}
