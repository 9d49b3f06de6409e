//! Serves a store until the process is asked to stop: the part that all ways to run a server share.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use perdure_persistence::Store;
use tokio::{net::TcpListener, sync::watch};

use crate::{
    exit::Failure,
    grpc,
    node::{Node, Plan, store_failure},
    signals::Signals,
    telemetry,
};

/// How long a stopping server waits for calls under way.
const DRAIN: Duration = Duration::from_secs(5);

/// The ports of the process, taken.
pub struct Endpoints {
    listener: TcpListener,
    address: SocketAddr,
    metrics: SocketAddr,
}

impl Endpoints {
    /// Before the store is opened: a second server usually fails on both, and the port says it best.
    pub async fn bind(ip: IpAddr, port: u16, metrics_port: u16) -> Result<Self, Failure> {
        let address = SocketAddr::new(ip, port);
        let listener = TcpListener::bind(address).await.map_err(|error| port_failure(address, &error))?;
        // The system chose it when 0 was asked for.
        let address = listener.local_addr().unwrap_or(address);
        let metrics = telemetry::serve_metrics(SocketAddr::new(ip, metrics_port))?;
        Ok(Self { listener, address, metrics })
    }
}

/// Runs until Ctrl-C or SIGTERM. `data` says in the log where the data is.
pub async fn serve(endpoints: Endpoints, store: Arc<dyn Store>, plan: Plan, data: &str) -> Result<(), Failure> {
    let Endpoints { listener, address, metrics } = endpoints;
    let node = Node::start(store, plan, address.to_string()).await?;

    let (stop, stopped) = watch::channel(false);
    let (health, server) = grpc::serve(listener, &node.frontend, stopped)?;
    let server = tokio::spawn(server);
    // From here on: while it starts, a signal ends it at once, which is safe.
    let mut signals = Signals::listen()
        .map_err(|error| Failure::new(Failure::OTHER, format!("cannot listen for signals: {error}")))?;
    health.set_serving(true).await;
    tracing::info!(%address, %metrics, data, "perdure is ready");

    let outcome = tokio::select! {
        () = signals.received() => Ok(()),
        error = node.shards.ended() => Err(store_failure(&error)),
    };
    tracing::info!("draining");
    let drained = async {
        health.set_serving(false).await;
        node.draining.send_replace(true);
        node.matching.drain();
        stop.send_replace(true);
        health.end_watches().await;
        if tokio::time::timeout(DRAIN, server).await.is_err() {
            tracing::info!("calls still under way are cut off");
        }
        node.shards.stop().await;
    };
    tokio::select! {
        () = drained => tracing::info!("stopped"),
        () = signals.received() => tracing::warn!("asked again: stopped at once, the next start replays the log"),
    }
    outcome
}

fn port_failure(address: SocketAddr, error: &std::io::Error) -> Failure {
    let code = if error.kind() == std::io::ErrorKind::AddrInUse { Failure::PORT_TAKEN } else { Failure::OTHER };
    Failure::new(code, format!("cannot listen on {address}: {error}; choose another with --port or --ip"))
}
