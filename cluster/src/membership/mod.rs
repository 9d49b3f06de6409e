//! Who is in the cluster, by gossip: who is alive, which session it commits under, which shards it serves.
//!
//! All of it is a hint. Who may commit is decided by the sessions in the store, so a wrong view costs time, never safety. A
//! node's identity is its name (the same after a restart) and its generation (another one each time).
//!
//! [`view`] decides who gets which place; the thread behind [`Membership`] feeds it with gossip ([`gossip`]), with the table
//! of members ([`table`]), and with what node-to-node calls notice. The thread is its own, so that a busy node is not taken
//! for a dead one.

mod actor;
mod away;
mod beats;
mod gossip;
mod served;
pub(crate) mod table;
mod view;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use perdure_types::{NodeId, Placement, Served, SessionId, ShardId, ShardMap, SlotCount};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::transport::ClientTlsConfig;

use self::actor::Command;
pub use self::{
    table::{MemberRow, MemberTable},
    view::Settle,
};
use crate::ring::Ring;

/// How to be a member.
#[derive(Clone)]
pub struct MembershipConfig {
    pub cluster_id: String,
    pub slots: SlotCount,
    /// The same after a restart; the advertised address if not given.
    pub name: Option<String>,
    /// Gossip (UDP) listens here.
    pub listen: SocketAddr,
    /// Where others reach gossip (UDP) and node-to-node calls (TCP).
    pub advertise: SocketAddr,
    /// Shown to operators.
    pub frontend_address: String,
    pub version: String,
    pub settle: Settle,
    pub gossip_interval: Duration,
    /// Silence for so many mean intervals is a failure. The mean never falls below half of `interval_floor`, so the shortest
    /// silence that counts is `silence × interval_floor / 2`.
    pub silence: f64,
    pub interval_floor: Duration,
    pub table_interval: Duration,
    /// A store that answers nothing for so long is silent: this node gives up its place until it is heard again.
    pub store_silence: Duration,
    /// A member that is heard and cannot be called for so long loses its place.
    pub unreached_after: Duration,
    /// Wall clock, nanoseconds since the epoch.
    pub clock: fn() -> i64,
    /// How this node shows itself to others, and knows them, when it calls them.
    pub tls: Option<ClientTlsConfig>,
}

impl MembershipConfig {
    pub fn new(cluster_id: impl Into<String>, slots: SlotCount, advertise: SocketAddr, clock: fn() -> i64) -> Self {
        Self {
            cluster_id: cluster_id.into(),
            slots,
            name: None,
            listen: advertise,
            advertise,
            frontend_address: String::new(),
            version: String::new(),
            settle: Settle::default(),
            gossip_interval: Duration::from_millis(200),
            silence: 7.0,
            interval_floor: Duration::from_millis(400),
            table_interval: Duration::from_secs(1),
            store_silence: Duration::from_secs(6),
            unreached_after: Duration::from_millis(2500),
            clock,
            tls: None,
        }
    }
}

/// What a member says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemberState {
    pub node: NodeId,
    pub name: Arc<str>,
    pub generation: u64,
    pub address: SocketAddr,
    pub session: Option<SessionId>,
    pub served: Arc<Served>,
    pub draining: bool,
    /// It said goodbye.
    pub left: bool,
    /// Its store does not answer it.
    pub silent: bool,
    /// Members that it hears and cannot call.
    pub unreached: Arc<BTreeSet<NodeId>>,
    /// Changes of the namespace registry that it has made.
    pub registry: u64,
    pub frontend_address: String,
    pub version: String,
    pub started_ns: i64,
}

/// Everything that calls are routed by; immutable, and replaced at each change.
#[derive(Clone)]
pub(crate) struct Routes {
    pub placement: Arc<Placement>,
    pub ring: Arc<Ring>,
    /// Which shards there are, by what members say.
    pub map: ShardMap,
    /// Who serves each shard, by what they say.
    pub serving: Arc<[Option<NodeId>]>,
    pub members: Arc<[MemberState]>,
}

impl Routes {
    pub(crate) fn new(map: ShardMap, placement: Arc<Placement>, ring: Arc<Ring>, members: Vec<MemberState>) -> Self {
        let served = members.iter().filter_map(|member| member.served.shards.last_key_value());
        let count = served.map(|(shard, _)| shard.0 as usize + 1).max().unwrap_or(0);
        let mut serving = vec![None; count];
        // Who is away serves nobody, whatever it says.
        let is_here = |member: &&MemberState| placement.members.get(&member.node).is_none_or(|known| !known.is_away());
        for member in members.iter().filter(is_here) {
            for (shard, epoch) in &member.served.shards {
                if let Some(slot) = serving.get_mut(shard.0 as usize)
                    && slot.as_ref().is_none_or(|(_, other)| other < epoch)
                {
                    *slot = Some((member.node.clone(), *epoch));
                }
            }
        }
        let serving = serving.into_iter().map(|slot| slot.map(|(node, _)| node)).collect();
        Self { placement, ring, map, serving, members: members.into() }
    }

    pub(crate) fn me(&self) -> &NodeId {
        &self.placement.me
    }

    /// Where a call to the shard goes: to who serves it, else to who should.
    pub(crate) fn target(&self, shard: ShardId) -> Option<&NodeId> {
        let serving = self.serving.get(shard.0 as usize).and_then(Option::as_ref);
        serving.or_else(|| self.placement.owner(shard))
    }
}

/// What came of an attempt to call a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkNews {
    /// Nothing listens any more at its address, or another incarnation does: its process has ended.
    Ended,
    /// The connection broke, or none can be made.
    Down,
    Up,
}

/// Why a node could not become a member.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("the table of members cannot be read: {0}")]
    Table(perdure_proto::Error),
    #[error("cannot gossip at {address}: {reason}")]
    Gossip { address: SocketAddr, reason: String },
}

/// This node's membership. Cheap to clone.
#[derive(Clone)]
pub struct Membership {
    inner: Arc<Inner>,
}

struct Inner {
    me: NodeId,
    config: MembershipConfig,
    commands: mpsc::Sender<Command>,
    routes: watch::Receiver<Routes>,
    placement: watch::Receiver<Arc<Placement>>,
}

impl Inner {
    /// Under which this node commits now.
    fn own_session(&self) -> Option<SessionId> {
        self.placement.borrow().members.get(&self.me).and_then(|member| member.session)
    }
}

impl Membership {
    /// Begins to gossip. The placement stays empty until this node has had a look around.
    pub async fn join(config: MembershipConfig, table: Arc<dyn MemberTable>) -> Result<Self, JoinError> {
        let rows = table.list().await.map_err(JoinError::Table)?;
        let name: Arc<str> = config.name.clone().unwrap_or_else(|| config.advertise.to_string()).into();
        let now_ms = u64::try_from((config.clock)() / 1_000_000).unwrap_or(0);
        let generation = table::next_generation(now_ms, &name, &rows);
        let me = NodeId::new(format!("{name}@{generation:x}"));
        let (commands, receiver) = mpsc::channel(256);
        let actor = actor::start(&config, me.clone(), name.clone(), generation, receiver).await?;
        let inner = Inner { me, config, commands, routes: actor.routes, placement: actor.placement };
        let membership = Self { inner: Arc::new(inner) };
        tokio::spawn(beats::watch_table(Arc::downgrade(&membership.inner), table, name, generation));
        tracing::info!(node = %membership.inner.me, cluster = membership.inner.config.cluster_id, "joined");
        Ok(membership)
    }

    pub fn me(&self) -> &NodeId {
        &self.inner.me
    }

    pub fn config(&self) -> &MembershipConfig {
        &self.inner.config
    }

    /// Who should own what, at each change.
    pub fn placement(&self) -> watch::Receiver<Arc<Placement>> {
        self.inner.placement.clone()
    }

    /// Returns when this node has had its look around.
    pub async fn settled(&self) {
        let _ = self.inner.placement.clone().wait_for(|placement| !placement.owners.is_empty()).await;
    }

    /// Returns when nobody is there to take the shards of this node; at once, mostly, when all nodes are stopped together.
    pub async fn successors_gone(&self) {
        let me = self.me();
        let nobody =
            |placement: &Arc<Placement>| !placement.members.iter().any(|(node, member)| node != me && member.is_able());
        let _ = self.inner.placement.clone().wait_for(nobody).await;
    }

    pub(crate) fn routes(&self) -> watch::Receiver<Routes> {
        self.inner.routes.clone()
    }

    /// Tells the others what this node serves, at each change.
    pub fn tell_served(&self, mut served: watch::Receiver<Served>) {
        let commands = self.inner.commands.clone();
        tokio::spawn(async move {
            loop {
                let now = served.borrow_and_update().clone();
                if commands.send(Command::Served(now)).await.is_err() || served.changed().await.is_err() {
                    return;
                }
            }
        });
    }

    /// This node is to own nothing from now on.
    pub async fn drain(&self) {
        let _ = self.inner.commands.send(Command::Drain).await;
    }

    /// Says goodbye. To be called when this node serves nothing any more.
    pub async fn leave(&self) {
        let (done, left) = oneshot::channel();
        if self.inner.commands.send(Command::Leave(done)).await.is_ok() {
            let _ = left.await;
        }
    }

    /// Ends as a crash would: the others hear nothing any more.
    pub async fn crash(&self) {
        let _ = self.inner.commands.send(Command::Crash).await;
    }

    /// The namespace registry was changed through this node.
    pub async fn registry_changed(&self) {
        let _ = self.inner.commands.send(Command::RegistryChanged).await;
    }

    /// What calls to that member notice.
    pub(crate) async fn link_news(&self, node: NodeId, news: LinkNews) {
        let _ = self.inner.commands.send(Command::Link(node, news)).await;
    }

    /// News of the namespace registry from now on.
    pub(crate) fn registry_news(&self) -> RegistryNews {
        let mut routes = self.inner.routes.clone();
        let seen = registry_changes(&routes.borrow_and_update());
        RegistryNews { routes, seen }
    }
}

/// Tells when the namespace registry may have changed at another node.
pub(crate) struct RegistryNews {
    routes: watch::Receiver<Routes>,
    seen: u64,
}

impl RegistryNews {
    pub(crate) async fn changed(&mut self) {
        let seen = self.seen;
        let changed = self.routes.wait_for(|routes| registry_changes(routes) != seen).await;
        match changed.map(|routes| registry_changes(&routes)) {
            Ok(now) => self.seen = now,
            Err(_) => std::future::pending().await,
        }
    }
}

/// Differs when another node has changed the registry, and when members come or go: they may have changed it unheard.
fn registry_changes(routes: &Routes) -> u64 {
    let others = routes.members.iter().filter(|member| member.node != *routes.me());
    others.map(|member| member.registry.wrapping_add(member.generation)).fold(0, u64::wrapping_add)
}

/// The local address from which `remote` is reached: what others on a plain network can reach this node by.
pub fn local_address_to(remote: SocketAddr) -> std::io::Result<IpAddr> {
    let any: IpAddr = if remote.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let socket = std::net::UdpSocket::bind((any, 0))?;
    // Sends nothing: it only makes the system choose a route.
    socket.connect(remote)?;
    Ok(socket.local_addr()?.ip())
}
