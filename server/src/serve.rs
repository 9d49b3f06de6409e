//! Serves a store until the process is asked to stop: the part that all ways to run a server share.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use perdure_console::Console;
use perdure_frontend::Frontend;
use perdure_persistence::Store;
use tokio::{net::TcpListener, sync::watch};

use crate::{
    exit::Failure,
    grpc,
    node::{Node, Plan, store_failure},
    node_service::wall_clock,
    signals::Signals,
    telemetry::Metrics,
};

/// Temporal's ports of the gRPC and the HTTP API.
pub const GRPC_PORT: u16 = 7233;
const HTTP_PORT: u16 = 7243;

/// How long a stopping server waits for calls under way.
const DRAIN: Duration = Duration::from_secs(5);

/// The ports of the process, taken.
pub struct Endpoints {
    listener: TcpListener,
    address: SocketAddr,
    http_listener: TcpListener,
    http: SocketAddr,
    metrics: Metrics,
    metrics_address: SocketAddr,
    console: Option<(TcpListener, SocketAddr)>,
}

/// Where to listen. Port 0: the system chooses.
pub struct Ports {
    pub ip: IpAddr,
    pub grpc: u16,
    /// Not given: 7243 beside the default gRPC port, chosen by the system beside others.
    pub http: Option<u16>,
    pub metrics: u16,
    /// None: it is not served.
    pub console: Option<SocketAddr>,
}

impl Endpoints {
    /// Before the store is opened: a second server usually fails on both, and the port says it best.
    pub async fn bind(ports: Ports) -> Result<Self, Failure> {
        let Ports { ip, grpc, http, metrics, console } = ports;
        let (listener, address) = listen(SocketAddr::new(ip, grpc), "--port").await?;
        let http = http.unwrap_or(if grpc == GRPC_PORT { HTTP_PORT } else { 0 });
        let (http_listener, http) = listen(SocketAddr::new(ip, http), "--http-port").await?;
        let console = match console {
            Some(address) => Some(listen(address, "--ui-port or --console-port").await?),
            None => None,
        };
        let port = metrics;
        let metrics = Metrics::install()?;
        let metrics_address = metrics.serve(SocketAddr::new(ip, port)).await?;
        Ok(Self { listener, address, http_listener, http, metrics, metrics_address, console })
    }
}

/// Takes a port; with the address that the system chose when 0 was asked for.
async fn listen(address: SocketAddr, flag: &str) -> Result<(TcpListener, SocketAddr), Failure> {
    let listener = TcpListener::bind(address).await.map_err(|error| port_failure(address, &error, flag))?;
    let address = listener.local_addr().unwrap_or(address);
    Ok((listener, address))
}

/// Runs until Ctrl-C or SIGTERM. `data` says in the log where the data is.
pub async fn serve(endpoints: Endpoints, store: Arc<dyn Store>, plan: Plan, data: &str) -> Result<(), Failure> {
    let Endpoints { listener, address, http_listener, http, metrics, metrics_address, console } = endpoints;
    let node = Node::start(store, plan, address.to_string(), http).await?;
    node.measure(&metrics);

    let (stop, stopped) = watch::channel(false);
    let http_server = http_api(http_listener, &node.frontend, stopped.clone());
    if let Some((listener, address)) = console {
        serve_console(listener, address, &node, stopped.clone());
    }
    let (health, server) = grpc::serve(listener, &node.frontend, stopped)?;
    let server = tokio::spawn(async move { tokio::join!(server, http_server) });
    // From here on: while it starts, a signal ends it at once, which is safe.
    let mut signals = Signals::listen()
        .map_err(|error| Failure::new(Failure::OTHER, format!("cannot listen for signals: {error}")))?;
    health.set_serving(true).await;
    tracing::info!(%address, %http, metrics = %metrics_address, data, "perdure is ready");

    let outcome = tokio::select! {
        () = signals.received() => Ok(()),
        () = node.drain_asked() => Ok(()),
        error = node.shards.ended() => Err(store_failure(&error)),
    };
    tracing::info!("draining");
    let drained = async {
        health.set_serving(false).await;
        node.draining.send_replace(true);
        node.hand_over().await;
        node.matching.drain();
        stop.send_replace(true);
        health.end_watches().await;
        if tokio::time::timeout(DRAIN, server).await.is_err() {
            tracing::info!("calls still under way are cut off");
        }
        node.shards.stop().await;
        if let Some(joined) = node.joined {
            joined.leave().await;
        }
    };
    tokio::select! {
        () = drained => tracing::info!("stopped"),
        () = signals.received() => tracing::warn!("asked again: stopped at once, the next start replays the log"),
    }
    outcome
}

fn port_failure(address: SocketAddr, error: &std::io::Error, flag: &str) -> Failure {
    let code = if error.kind() == std::io::ErrorKind::AddrInUse { Failure::PORT_TAKEN } else { Failure::OTHER };
    Failure::new(code, format!("cannot listen on {address}: {error}; choose another with {flag} or --ip"))
}

/// Serves the console until `shutdown` turns true. Nobody waits for its pages.
fn serve_console(listener: TcpListener, address: SocketAddr, node: &Node, mut shutdown: watch::Receiver<bool>) {
    let console = Console {
        frontend: node.frontend.clone(),
        admin: node.admin.clone(),
        clock: wall_clock,
        on_loopback: address.ip().is_loopback(),
    };
    tracing::info!("the console is at http://{address}");
    let router = perdure_console::router(console);
    tokio::spawn(async move {
        tokio::select! {
            served = axum::serve(listener, router).into_future() => drop(served),
            _ = shutdown.wait_for(|stop| *stop) => {}
        }
    });
}

/// The future serves the HTTP API until `shutdown` turns true and until the calls under way have been answered.
fn http_api(
    listener: TcpListener,
    frontend: &Frontend,
    mut shutdown: watch::Receiver<bool>,
) -> impl Future<Output = std::io::Result<()>> + Send + use<> {
    let router = perdure_frontend::http_router(frontend);
    let stopped = async move {
        // A dropped sender is a shutdown too.
        let _ = shutdown.wait_for(|stop| *stop).await;
    };
    axum::serve(listener, router).with_graceful_shutdown(stopped).into_future()
}
