//! `perdure server` and `perdure schema`: on Cassandra.

use std::sync::Arc;

use perdure_persistence::cassandra::{self, CassandraConfig, CassandraStore, ConnectError};

use crate::{
    config::ServerConfig,
    exit::Failure,
    node::{Plan, Reached},
    node_service::ClusterPort,
    serve::{Endpoints, Ports, serve},
};

/// Runs until Ctrl-C or SIGTERM.
pub async fn run(config: ServerConfig) -> Result<(), Failure> {
    let endpoints = Endpoints::bind(Ports {
        ip: config.ip,
        grpc: config.port,
        http: config.http_port,
        metrics: config.metrics_port,
        console: config.console.address(),
    })
    .await?;
    let cluster = ClusterPort::bind(config.cluster.clone(), &config.cassandra.addresses()).await?;
    let store = CassandraStore::connect(config.cassandra.clone()).await.map_err(|error| connect_failure(&error))?;
    let plan = Plan {
        reached: Reached::AsMember(cluster),
        shards: config.shard_config(),
        namespaces: config.namespace,
        search_attributes: Vec::new(),
        store_name: "cassandra",
    };
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
