//! `perdure server` and `perdure schema`: on Cassandra.

use std::sync::Arc;

use perdure_persistence::cassandra::{self, CassandraConfig, CassandraStore, ConnectError};

use crate::{
    config::ServerConfig,
    exit::Failure,
    node::Plan,
    serve::{Endpoints, serve},
};

/// Runs until Ctrl-C or SIGTERM.
pub async fn run(config: ServerConfig) -> Result<(), Failure> {
    let endpoints = Endpoints::bind(config.ip, config.port, config.metrics_port).await?;
    let store = CassandraStore::connect(config.cassandra.clone()).await.map_err(|error| connect_failure(&error))?;
    let plan = Plan { limits: config.limits, namespaces: config.namespace, store_name: "cassandra" };
    let data = format!("keyspace {} on {}", config.cassandra.keyspace, config.cassandra.seeds.join(", "));
    serve(endpoints, Arc::new(store), plan, &data).await
}

/// Creates or migrates the schema, as a server that starts does.
pub async fn apply_schema(config: &CassandraConfig) -> Result<(), Failure> {
    cassandra::apply_schema(config).await.map_err(|error| connect_failure(&error))?;
    println!("keyspace {} has the schema of this release", config.keyspace);
    Ok(())
}

fn connect_failure(error: &ConnectError) -> Failure {
    let code = match error {
        ConnectError::Config(_) | ConnectError::Tls(_) => Failure::USAGE,
        ConnectError::Unreachable { .. } | ConnectError::Schema { .. } => Failure::STORE_UNAVAILABLE,
        ConnectError::Credentials(_) | ConnectError::Unsafe { .. } => Failure::STORE_REFUSED,
        ConnectError::NewerSchema { .. } => Failure::DATA_NEWER,
    };
    Failure::new(code, error.to_string())
}
