//! The cluster port: gossip (UDP), calls of other nodes and of operators (gRPC).
//!
//! It is a port of its own, not the clients': who reaches it is trusted as a node of the cluster, so that firewalls have to
//! tell the two apart; it has other limits; and while a node drains it stays open after the clients' port has closed.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use perdure_cluster::{Cluster, JoinError, MemberRow, MemberTable, Membership, MembershipConfig, local_address_to};
use perdure_persistence::{ClusterSettings, Store};
use perdure_proto::Error;
use tokio::{
    net::{TcpListener, lookup_host},
    sync::{Notify, watch},
    task::JoinHandle,
};
use tonic::transport::{Server, server::TcpIncoming};

use crate::{cluster_tls::Credentials, config::ClusterConfig, exit::Failure};

/// As on the calling side: a large answer on one stream does not stop the others.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// A node that vanished without closing its connection is noticed after these.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long calls of other nodes under way may take when this one ends.
const LAST_CALLS: Duration = Duration::from_millis(500);

/// How to be reached by other nodes.
pub struct ClusterPort {
    listener: TcpListener,
    listen: SocketAddr,
    advertise: SocketAddr,
    name: Option<String>,
    tls: Option<Credentials>,
}

impl ClusterPort {
    /// Takes the port. Without an address it is the one from which one of `store_addresses` is reached: that is how other
    /// nodes, which reach the store too, reach this one on a plain network.
    pub async fn bind(config: ClusterConfig, store_addresses: &[String]) -> Result<Self, Failure> {
        let ClusterConfig { port, ip, advertise, name, tls } = config;
        let tls = tls.map(|tls| tls.read()).transpose()?;
        let ip = match ip {
            Some(ip) => ip,
            None => towards(store_addresses).await?,
        };
        let address = SocketAddr::new(ip, port);
        let listener = TcpListener::bind(address).await.map_err(|error| port_failure(address, &error))?;
        let listen = listener.local_addr().map_err(|error| port_failure(address, &error))?;
        let reachable = match advertise {
            Some(ip) => ip,
            None if ip.is_unspecified() => towards(store_addresses).await?,
            None => ip,
        };
        Ok(Self { listener, listen, advertise: SocketAddr::new(reachable, listen.port()), name, tls })
    }
}

fn port_failure(address: SocketAddr, error: &std::io::Error) -> Failure {
    let code = if error.kind() == std::io::ErrorKind::AddrInUse { Failure::PORT_TAKEN } else { Failure::OTHER };
    let hint = "choose another with --cluster-port or --cluster-ip";
    Failure::new(code, format!("cannot listen on {address} for other nodes: {error}; {hint}"))
}

async fn towards(addresses: &[String]) -> Result<IpAddr, Failure> {
    for address in addresses {
        if let Ok(found) = lookup_host(address).await {
            for remote in found {
                if let Ok(ip) = local_address_to(remote) {
                    return Ok(ip);
                }
            }
        }
    }
    let message = "cannot tell by which address other nodes reach this one; give it with --cluster-ip";
    Err(Failure::new(Failure::USAGE, message))
}

/// Becomes a member. Nothing is served to other nodes before [`serve`].
pub async fn join(
    port: &ClusterPort,
    settings: &ClusterSettings,
    store: Arc<dyn Store>,
    frontend_address: String,
) -> Result<Membership, Failure> {
    let config = MembershipConfig {
        name: port.name.clone(),
        listen: port.listen,
        frontend_address,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        tls: port.tls.as_ref().map(|tls| tls.client.clone()),
        ..MembershipConfig::new(settings.cluster_id.clone(), settings.slots, port.advertise, wall_clock)
    };
    Membership::join(config, Arc::new(StoredMembers(store))).await.map_err(|error| {
        let code = match error {
            JoinError::Table(_) => Failure::STORE_UNAVAILABLE,
            JoinError::Gossip { .. } => Failure::PORT_TAKEN,
        };
        Failure::new(code, error.to_string())
    })
}

pub fn wall_clock() -> i64 {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX)
}

/// This node as a member of its cluster.
pub struct Joined {
    pub membership: Membership,
    /// An operator wants this node to drain and end.
    pub drain_asked: Arc<Notify>,
    stop: watch::Sender<bool>,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
}

/// Serves the cluster port.
pub fn serve(port: ClusterPort, membership: Membership, cluster: &Cluster) -> Result<Joined, Failure> {
    let drain_asked = Arc::new(Notify::new());
    let (stop, mut stopped) = watch::channel(false);
    let incoming = TcpIncoming::from(port.listener).with_nodelay(Some(true));
    let has_tls = port.tls.is_some();
    let builder = match port.tls {
        None => Server::builder(),
        Some(tls) => Server::builder()
            .tls_config(tls.server)
            .map_err(|error| Failure::new(Failure::USAGE, format!("TLS between nodes: {error}")))?,
    };
    let router = builder
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_optional_service(cluster.node_service())
        .add_optional_service(cluster.admin_service(drain_asked.clone()));
    let stopped = async move {
        // A dropped sender is a stop too.
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    let server = tokio::spawn(router.serve_with_incoming_shutdown(incoming, stopped));
    tracing::info!(listen = %port.listen, advertise = %port.advertise, tls = has_tls, "cluster port");
    Ok(Joined { membership, drain_asked, stop, server })
}

impl Joined {
    /// Says goodbye and closes the port.
    pub async fn leave(self) {
        self.membership.leave().await;
        self.stop.send_replace(true);
        // Links of other nodes stay open until they hear of it.
        let _ = tokio::time::timeout(LAST_CALLS, self.server).await;
    }
}

/// The table of members in a [`Store`].
struct StoredMembers(Arc<dyn Store>);

fn unavailable(error: impl std::fmt::Display) -> Error {
    Error::unavailable(format!("table of members: {error}"))
}

#[async_trait]
impl MemberTable for StoredMembers {
    async fn put(&self, row: MemberRow, ttl: Duration) -> Result<(), Error> {
        let MemberRow { node, name, address, generation, beat, session } = row;
        let row = perdure_persistence::MemberRow { node, name, address, generation, beat, session };
        self.0.put_member(row, ttl).await.map_err(unavailable)
    }

    async fn list(&self) -> Result<Vec<MemberRow>, Error> {
        let rows = self.0.list_members().await.map_err(unavailable)?;
        let row = |row: perdure_persistence::MemberRow| MemberRow {
            node: row.node,
            name: row.name,
            address: row.address,
            generation: row.generation,
            beat: row.beat,
            session: row.session,
        };
        Ok(rows.into_iter().map(row).collect())
    }

    async fn delete(&self, node: &str) -> Result<(), Error> {
        self.0.delete_member(node).await.map_err(unavailable)
    }
}
