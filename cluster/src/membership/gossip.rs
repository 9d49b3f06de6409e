//! Gossip by chitchat: what it is told of this node, and what it tells of the others.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use chitchat::{
    Chitchat, ChitchatConfig, ChitchatHandle, ChitchatId, FailureDetectorConfig, NodeState, ProtocolVersion,
    spawn_chitchat, transport::UdpTransport,
};
use perdure_types::{NodeId, Served};
use tokio::sync::watch;

use super::{JoinError, MemberState, MembershipConfig, served};

/// Intervals that the failure detector averages. As many weigh the configured floor, which makes it half of the mean.
const SAMPLES: usize = 5;
/// A longer silence is no interval.
const LONGEST_INTERVAL: Duration = Duration::from_secs(3);
/// For how long a dead member is looked for.
const DEAD_REMEMBERED: Duration = Duration::from_secs(600);

const NODE: &str = "node";
const ADDRESS: &str = "address";
const DRAINING: &str = "draining";
const LEFT: &str = "left";
const SILENT: &str = "silent";
const UNREACHED: &str = "unreached";
const REGISTRY: &str = "registry";
const FRONTEND: &str = "frontend";
const VERSION: &str = "version";
const STARTED: &str = "started";

pub(crate) struct Gossip {
    handle: ChitchatHandle,
    pub live: watch::Receiver<BTreeMap<ChitchatId, NodeState>>,
    told: Served,
}

impl Gossip {
    pub(crate) async fn start(config: &MembershipConfig, me: &MemberState) -> Result<Self, JoinError> {
        let id = ChitchatId::new(me.name.clone(), me.generation, config.advertise);
        let chitchat = ChitchatConfig {
            chitchat_id: id,
            cluster_id: config.cluster_id.clone(),
            gossip_interval: config.gossip_interval,
            listen_addr: config.listen,
            // Seeds change; they are greeted one by one, see `greet`.
            seed_nodes: Vec::new(),
            failure_detector_config: FailureDetectorConfig {
                phi_threshold: config.silence,
                sampling_window_size: SAMPLES,
                max_interval: LONGEST_INTERVAL,
                initial_interval: config.interval_floor,
                dead_node_grace_period: DEAD_REMEMBERED,
            },
            marked_for_deletion_grace_period: DEAD_REMEMBERED,
            catchup_callback: None,
            extra_liveness_predicate: None,
            protocol_version: ProtocolVersion::V0,
        };
        let values = vec![
            (NODE.to_owned(), me.node.to_string()),
            (ADDRESS.to_owned(), me.address.to_string()),
            (FRONTEND.to_owned(), me.frontend_address.clone()),
            (VERSION.to_owned(), me.version.clone()),
            (STARTED.to_owned(), me.started_ns.to_string()),
        ];
        let handle = spawn_chitchat(chitchat, values, &UdpTransport).await;
        let handle =
            handle.map_err(|error| JoinError::Gossip { address: config.listen, reason: format!("{error:#}") })?;
        let live = handle.with_chitchat(|chitchat| chitchat.live_nodes_watcher()).await;
        Ok(Self { handle, live, told: Served::default() })
    }

    async fn set(&self, key: &str, value: &str) {
        self.handle.with_chitchat(|chitchat| chitchat.self_node_state().set(key, value)).await;
    }

    pub(crate) async fn tell_served(&mut self, served: &Served) {
        let values = served::encode(&self.told, served);
        self.told = served.clone();
        let set = |chitchat: &mut Chitchat| {
            for (key, value) in &values {
                chitchat.self_node_state().set(key, value);
            }
        };
        self.handle.with_chitchat(set).await;
    }

    pub(crate) async fn tell_draining(&self) {
        self.set(DRAINING, "1").await;
    }

    pub(crate) async fn tell_silent(&self, silent: bool) {
        self.set(SILENT, if silent { "1" } else { "" }).await;
    }

    pub(crate) async fn tell_unreached(&self, nodes: &BTreeSet<NodeId>) {
        let nodes: Vec<&str> = nodes.iter().map(NodeId::as_str).collect();
        self.set(UNREACHED, &nodes.join("\n")).await;
    }

    pub(crate) async fn tell_registry(&self, changes: u64) {
        self.set(REGISTRY, &changes.to_string()).await;
    }

    pub(crate) async fn tell_left(&self) {
        self.set(LEFT, "1").await;
        // Not at the next round: the process is about to end.
        self.spread();
    }

    /// Tells the others at once what has changed.
    pub(crate) fn spread(&self) {
        let others: Vec<SocketAddr> = self.live.borrow().keys().map(|id| id.gossip_advertise_addr).collect();
        for address in others {
            self.greet(address);
        }
    }

    /// Gossips with whoever is there.
    pub(crate) fn greet(&self, address: SocketAddr) {
        if address != self.handle.chitchat_id().gossip_advertise_addr {
            // An error says that gossip has ended, which its own loop has logged.
            let _ = self.handle.gossip(address);
        }
    }

    pub(crate) fn abort(&self) {
        self.handle.abort();
    }

    /// The others that are alive.
    pub(crate) fn others(&mut self) -> Vec<MemberState> {
        let live = self.live.borrow_and_update();
        live.iter()
            .filter(|(id, _)| *id != self.handle.chitchat_id())
            .filter_map(|(id, state)| read(id, state))
            .collect()
    }
}

/// `None`: only its heartbeat has come so far.
fn read(id: &ChitchatId, state: &NodeState) -> Option<MemberState> {
    let served = served::decode(state.key_values());
    let text = |key| state.get(key).unwrap_or_default().to_owned();
    Some(MemberState {
        node: NodeId::new(state.get(NODE)?),
        name: id.node_id.clone(),
        generation: id.generation_id,
        address: state.get(ADDRESS)?.parse().ok()?,
        session: served.session,
        served: Arc::new(served),
        draining: state.get(DRAINING).is_some(),
        left: state.get(LEFT).is_some(),
        silent: state.get(SILENT).is_some_and(|silent| !silent.is_empty()),
        unreached: Arc::new(text(UNREACHED).lines().map(NodeId::new).collect()),
        registry: state.get(REGISTRY).and_then(|changes| changes.parse().ok()).unwrap_or(0),
        frontend_address: text(FRONTEND),
        version: text(VERSION),
        started_ns: state.get(STARTED).and_then(|time| time.parse().ok()).unwrap_or(0),
    })
}
