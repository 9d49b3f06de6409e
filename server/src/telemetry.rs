//! Logs and metrics of the process.

use std::{io::IsTerminal, net::SocketAddr};

use metrics_exporter_prometheus::PrometheusBuilder;
use tracing_subscriber::{EnvFilter, fmt};

use crate::{
    cli::{LogFormat, LogLevel},
    exit::Failure,
};

/// Sends log lines to standard error. The libraries below speak up from `warn` on.
pub fn init_logs(level: LogLevel, format: LogFormat) {
    let filter = match level {
        LogLevel::Debug => "debug,h2=info,hyper=info,scylla=info,tonic=info,tower=info",
        LogLevel::Info => "info,h2=warn,hyper=warn,scylla=error,tonic=warn,tower=warn",
        LogLevel::Warn => "warn,scylla=error",
        LogLevel::Error => "error",
        LogLevel::Never => "off",
    };
    let builder = fmt().with_env_filter(EnvFilter::new(filter)).with_writer(std::io::stderr).with_target(false);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().flatten_event(true).init(),
    }
}

/// Serves `/metrics` (Prometheus) on `address`; gives the address that it is served on.
pub fn serve_metrics(address: SocketAddr) -> Result<SocketAddr, Failure> {
    // Bound here first to learn the port when the system chooses it.
    let port_taken = |error| Failure::new(Failure::PORT_TAKEN, format!("cannot serve metrics on {address}: {error}"));
    let bound = std::net::TcpListener::bind(address).and_then(|listener| listener.local_addr()).map_err(port_taken)?;
    PrometheusBuilder::new()
        .with_http_listener(bound)
        .install()
        .map_err(|error| Failure::new(Failure::OTHER, format!("cannot serve metrics on {bound}: {error}")))?;
    perdure_frontend::describe_metrics();
    perdure_persistence::cassandra::describe_metrics();
    Ok(bound)
}
