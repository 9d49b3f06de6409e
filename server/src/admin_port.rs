//! Where `perdure admin` reaches a node that is the whole cluster. Members of a cluster answer on their cluster port.
//!
//! On this machine only: who reaches it is trusted.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use perdure_cluster::{Alone, Cluster};
use tokio::{net::TcpListener, sync::Notify};
use tonic::transport::{Server, server::TcpIncoming};

use crate::exit::Failure;

/// Where `perdure admin` asks when it is told nothing.
const DEFAULT_PORT: u16 = 7234;

pub struct AdminPort {
    listener: TcpListener,
    address: SocketAddr,
}

impl AdminPort {
    /// Takes the port. Not given: the usual one beside the usual gRPC port, else one that the system chooses.
    pub async fn bind(port: Option<u16>, is_usual_server: bool) -> Result<Self, Failure> {
        let port = port.unwrap_or(if is_usual_server { DEFAULT_PORT } else { 0 });
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let failed = |error: std::io::Error| {
            let code = if error.kind() == std::io::ErrorKind::AddrInUse { Failure::PORT_TAKEN } else { Failure::OTHER };
            let message =
                format!("cannot listen on {address} for operators: {error}; choose another with --admin-port");
            Failure::new(code, message)
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().unwrap_or(address);
        Ok(Self { listener, address })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until the process ends. What is given is told when an operator wants that.
    pub fn serve(self, cluster: &Cluster, node: Alone) -> Arc<Notify> {
        let drain = Arc::new(Notify::new());
        tracing::info!(address = %self.address, "admin port");
        let router = Server::builder().add_service(cluster.admin_service_alone(node, drain.clone()));
        let incoming = TcpIncoming::from(self.listener).with_nodelay(Some(true));
        tokio::spawn(router.serve_with_incoming(incoming));
        drain
    }
}
