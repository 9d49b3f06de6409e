//! `perdure dev`: every role in one process, on the embedded store.

use std::{net::SocketAddr, sync::Arc};

use perdure_persistence::embedded::{Config, Embedded, OpenError};
use perdure_shard::ShardConfig;

use crate::{
    admin_port::AdminPort,
    cli::DevArgs,
    exit::Failure,
    node::{Plan, Reached},
    serve::{Endpoints, GRPC_PORT, Ports, serve},
};

/// Callbacks may go anywhere from a server that is one's own, as from Temporal's.
const ANY_ADDRESS: &str = r#"[{"Pattern":"*","AllowInsecure":true}]"#;
/// What SDKs and tools use when they are told nothing.
const DEFAULT_NAMESPACE: &str = "default";
/// Where `temporal server start-dev` has its UI.
const CONSOLE_PORT: u16 = 8233;

/// Runs until Ctrl-C or SIGTERM.
pub async fn run(args: DevArgs) -> Result<(), Failure> {
    let mut limits = args.limits().map_err(|error| Failure::new(Failure::USAGE, error.to_string()))?;
    if limits.callback_addresses.is_empty() {
        ANY_ADDRESS.clone_into(&mut limits.callback_addresses);
    }
    let endpoints = Endpoints::bind(Ports {
        ip: args.ip,
        grpc: args.port,
        http: args.http_port,
        metrics: args.metrics_port,
        console: console_address(&args),
    })
    .await?;
    let admin = AdminPort::bind(args.admin_port, args.port == GRPC_PORT).await?;
    let store = Arc::new(open(&args)?);
    let namespaces = std::iter::once(DEFAULT_NAMESPACE.to_owned()).chain(args.namespace.iter().cloned()).collect();
    let shards = ShardConfig { limits, ..ShardConfig::default() };
    let plan = Plan {
        reached: Reached::Alone(admin),
        shards,
        namespaces,
        search_attributes: args.search_attribute.clone(),
        store_name: "embedded",
    };
    serve(endpoints, store, plan, &data_name(&args)).await
}

fn console_address(args: &DevArgs) -> Option<SocketAddr> {
    let port = args.ui_port.unwrap_or(if args.port == GRPC_PORT { CONSOLE_PORT } else { 0 });
    (!args.headless).then(|| SocketAddr::new(args.ui_ip.unwrap_or(args.ip), port))
}

fn open(args: &DevArgs) -> Result<Embedded, Failure> {
    let opened = if args.ephemeral { Embedded::ephemeral() } else { Embedded::open(&Config::new(&args.db_filename)) };
    opened.map_err(|error| open_failure(&error))
}

fn open_failure(error: &OpenError) -> Failure {
    let code = match error {
        OpenError::Locked { .. } => Failure::DATA_LOCKED,
        OpenError::NewerFormat { .. } => Failure::DATA_NEWER,
        OpenError::Corrupt { .. } => Failure::DATA_CORRUPT,
        OpenError::ReadOnly { .. } | OpenError::DiskFull { .. } => Failure::DATA_NOT_WRITABLE,
        OpenError::NotAStore { .. } | OpenError::Io { .. } => Failure::OTHER,
    };
    Failure::new(code, error.to_string())
}

fn data_name(args: &DevArgs) -> String {
    if args.ephemeral { "in a temporary directory".to_owned() } else { args.db_filename.display().to_string() }
}
