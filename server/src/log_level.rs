//! `perdure log-level`: what a running server logs, asked and changed without a restart.
//!
//! It is served beside the metrics, to the machine itself only: whoever can log in there may change it.

use std::{net::SocketAddr, time::Duration};

use axum::{
    Router,
    extract::{ConnectInfo, Path},
    http::StatusCode,
    routing::{get, put},
};
use clap::{Args, ValueEnum};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{cli::LogLevel, exit::Failure, telemetry};

const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, Args)]
pub struct LogLevelArgs {
    /// The level from now on; not given: say which it is
    level: Option<LogLevel>,
    /// Where the server serves /metrics, on this machine
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9090", env = "PERDURE_METRICS_ADDRESS")]
    address: String,
}

fn name(level: LogLevel) -> String {
    level.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

/// To be served with the address of who asks.
pub fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let show = async |ConnectInfo(from): ConnectInfo<SocketAddr>| {
        allowed(from)?;
        Ok::<_, (StatusCode, String)>(format!("{}\n", name(telemetry::log_level())))
    };
    let change = async |ConnectInfo(from): ConnectInfo<SocketAddr>, Path(level): Path<String>| {
        allowed(from)?;
        let level = LogLevel::from_str(&level, true).map_err(|reason| (StatusCode::BAD_REQUEST, reason))?;
        telemetry::set_log_level(level).map_err(|reason| (StatusCode::INTERNAL_SERVER_ERROR, reason))?;
        Ok::<_, (StatusCode, String)>(format!("{}\n", name(level)))
    };
    Router::new().route("/log-level", get(show)).route("/log-level/{level}", put(change))
}

fn allowed(from: SocketAddr) -> Result<(), (StatusCode, String)> {
    if from.ip().to_canonical().is_loopback() {
        return Ok(());
    }
    Err((StatusCode::FORBIDDEN, "only this machine itself may ask\n".to_owned()))
}

/// Prints the level that is in force then.
pub async fn run(args: LogLevelArgs) -> Result<(), Failure> {
    let failed = |reason: String| Failure::new(Failure::OTHER, format!("{}: {reason}", args.address));
    let request = match args.level {
        None => "GET /log-level".to_owned(),
        Some(level) => format!("PUT /log-level/{}", name(level)),
    };
    let answer = tokio::time::timeout(TIMEOUT, exchange(&args.address, &request)).await;
    let answer = answer
        .map_err(|_| failed("no answer".to_owned()))?
        .map_err(|error| failed(format!("{error}; name the metrics port with --address")))?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer.as_str(), ""));
    if !head.contains(" 200 ") {
        return Err(failed(body.trim().to_owned()));
    }
    print!("{body}");
    Ok(())
}

async fn exchange(address: &str, request: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let text = format!("{request} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    stream.write_all(text.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
