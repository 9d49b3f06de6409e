//! The thread behind [`super::Membership`]: it owns gossip and the view, and publishes what follows from them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use perdure_types::{NodeId, Placement, Served, SessionId, ShardMap};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use super::{JoinError, LinkNews, MemberState, MembershipConfig, Routes, gossip::Gossip, table::Listed, view::View};
use crate::ring::Ring;

/// What membership is told.
pub(crate) enum Command {
    Served(Served),
    Drain,
    Leave(oneshot::Sender<()>),
    Crash,
    RegistryChanged,
    Link(NodeId, LinkNews),
    StoreSilent(bool),
    Listed(Vec<Listed>),
}

/// For how long a refused connection stands for a death. By then gossip knows; if gossip still hears the node, it is
/// alive and merely out of reach.
const REFUSED_COUNTS: Duration = Duration::from_secs(8);
/// How long a goodbye may take to spread.
const GOODBYE: Duration = Duration::from_millis(300);

pub(crate) struct Started {
    pub routes: watch::Receiver<Routes>,
    pub placement: watch::Receiver<Arc<Placement>>,
}

/// Starts the thread; returns when gossip listens.
pub(crate) async fn start(
    config: &MembershipConfig,
    node: NodeId,
    name: Arc<str>,
    generation: u64,
    commands: mpsc::Receiver<Command>,
) -> Result<Started, JoinError> {
    let me = MemberState {
        node,
        name,
        generation,
        address: config.advertise,
        session: None,
        served: Arc::default(),
        draining: false,
        left: false,
        silent: false,
        unreached: Arc::default(),
        registry: 0,
        frontend_address: config.frontend_address.clone(),
        version: config.version.clone(),
        started_ns: (config.clock)(),
    };
    let (ready, started) = oneshot::channel();
    let failed = |reason: String| JoinError::Gossip { address: config.listen, reason };
    let config_of_thread = config.clone();
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        match runtime {
            Ok(runtime) => runtime.block_on(run(config_of_thread, me, commands, ready)),
            Err(error) => {
                let _ =
                    ready.send(Err(JoinError::Gossip { address: config_of_thread.listen, reason: error.to_string() }));
            }
        }
    };
    let spawned = std::thread::Builder::new().name("perdure-gossip".to_owned()).spawn(run);
    spawned.map_err(|error| failed(error.to_string()))?;
    started.await.unwrap_or_else(|_| Err(failed("the gossip thread has ended".to_owned())))
}

async fn run(
    config: MembershipConfig,
    me: MemberState,
    commands: mpsc::Receiver<Command>,
    ready: oneshot::Sender<Result<Started, JoinError>>,
) {
    let gossip = match Gossip::start(&config, &me).await {
        Ok(gossip) => gossip,
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let view = View::new(me.node.clone(), config.slots, config.settle, Instant::now());
    let (map, ring) = (ShardMap::default(), Arc::new(Ring::default()));
    let routes = Routes::new(map.clone(), view.placement().clone(), ring, vec![me.clone()]);
    let (placement, watch_placement) = watch::channel(view.placement().clone());
    let (routes, watch_routes) = watch::channel(routes);
    if ready.send(Ok(Started { routes: watch_routes, placement: watch_placement })).is_err() {
        return;
    }
    let actor = Actor {
        config,
        me,
        gossip,
        view,
        map,
        routes,
        placement,
        listed: None,
        refused: BTreeMap::new(),
        down: BTreeMap::new(),
    };
    actor.run(commands).await;
}

struct Actor {
    config: MembershipConfig,
    me: MemberState,
    gossip: Gossip,
    view: View,
    /// All that was ever told of the shards that there are.
    map: ShardMap,
    routes: watch::Sender<Routes>,
    placement: watch::Sender<Arc<Placement>>,
    /// What the table said last.
    listed: Option<Vec<Listed>>,
    refused: BTreeMap<NodeId, Instant>,
    /// Members to which there is no link, and since when.
    down: BTreeMap<NodeId, Instant>,
}

impl Actor {
    async fn run(mut self, mut commands: mpsc::Receiver<Command>) {
        loop {
            self.tell_unreached().await;
            self.look();
            let next = self.next_change();
            tokio::select! {
                command = commands.recv() => match command {
                    Some(Command::Leave(done)) => {
                        self.gossip.tell_left().await;
                        tokio::time::sleep(GOODBYE).await;
                        self.gossip.abort();
                        let _ = done.send(());
                        return;
                    }
                    Some(Command::Crash) | None => {
                        self.gossip.abort();
                        return;
                    }
                    Some(command) => self.obey(command).await,
                },
                changed = self.gossip.live.changed() => if changed.is_err() {
                    tracing::error!("gossip has ended");
                    return;
                },
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Served(served) => {
                self.gossip.tell_served(&served).await;
                self.me.session = served.session;
                self.me.served = Arc::new(served);
                self.gossip.spread();
            }
            Command::Drain => {
                self.me.draining = true;
                self.gossip.tell_draining().await;
                self.gossip.spread();
            }
            Command::RegistryChanged => {
                self.me.registry += 1;
                self.gossip.tell_registry(self.me.registry).await;
                self.gossip.spread();
            }
            Command::Link(node, LinkNews::Ended) => {
                self.down.remove(&node);
                self.refused.entry(node).or_insert_with(Instant::now);
            }
            Command::Link(node, LinkNews::Down) => {
                self.down.entry(node).or_insert_with(Instant::now);
            }
            Command::Link(node, LinkNews::Up) => {
                self.down.remove(&node);
            }
            Command::StoreSilent(silent) => {
                self.me.silent = silent;
                self.gossip.tell_silent(silent).await;
                self.gossip.spread();
            }
            Command::Listed(listed) => {
                let live = self.gossip.live.borrow().clone();
                for other in &listed {
                    let heard =
                        live.keys().any(|id| *id.node_id == *other.name && id.generation_id >= other.generation);
                    if !heard {
                        self.gossip.greet(other.address);
                    }
                }
                self.listed = Some(listed);
            }
            Command::Leave(_) | Command::Crash => {}
        }
    }

    /// Tells the others whom this node hears and cannot call.
    async fn tell_unreached(&mut self) {
        let now = Instant::now();
        let heard = self.gossip.others();
        self.down.retain(|node, _| heard.iter().any(|other| other.node == *node));
        let is_unreached = |other: &&MemberState| {
            self.down.get(&other.node).is_some_and(|since| now >= *since + self.config.unreached_after)
        };
        let unreached: BTreeSet<NodeId> = heard.iter().filter(is_unreached).map(|other| other.node.clone()).collect();
        if unreached != *self.me.unreached {
            tracing::warn!(?unreached, "members that are heard and cannot be called");
            self.gossip.tell_unreached(&unreached).await;
            self.me.unreached = Arc::new(unreached);
            self.gossip.spread();
        }
    }

    /// Takes in what is known now, and publishes what follows.
    fn look(&mut self) {
        let now = Instant::now();
        let heard = self.gossip.others();
        self.refused.retain(|node, _| heard.iter().any(|other| other.node == *node));
        let is_refused = |node: &NodeId| self.refused.get(node).is_some_and(|since| now < *since + REFUSED_COUNTS);
        let mut live: Vec<MemberState> = heard.into_iter().filter(|other| !is_refused(&other.node)).collect();
        live.push(self.me.clone());
        self.view.replaced(now, self.replaced(&live));
        let complete = self.listed.as_ref().is_some_and(|listed| self.unheard(listed, &live).is_empty());
        let cut_off = self.is_cut_off(&live);
        self.view.observe(now, live.clone(), complete, cut_off);
        let placement = self.view.placement().clone();
        self.learn_shards(&live);
        let members = live.into_iter().filter(|member| placement.members.contains_key(&member.node)).collect();
        let routes = Routes::new(self.map.clone(), placement.clone(), self.view.ring().clone(), members);
        self.routes.send_if_modified(|current| {
            let changed = *current.placement != *routes.placement
                || current.members != routes.members
                || current.map != routes.map;
            if changed {
                *current = routes;
            }
            changed
        });
        self.placement.send_if_modified(|current| {
            let changed = current.version != placement.version;
            if changed {
                *current = placement;
            }
            changed
        });
    }

    /// Takes in which shards there are: by what members say, and since they serve them.
    fn learn_shards(&mut self, live: &[MemberState]) {
        for member in live {
            self.map.merge(&member.served.map);
            let slots = self.map.slots.unwrap_or(self.config.slots);
            let more = member.served.shards.keys().copied().filter(|shard| shard.0 >= slots.get()).collect();
            self.map.merge(&ShardMap { slots: None, more: Arc::new(more) });
        }
    }

    /// Nodes of the table that gossip does not hear, and that no newer incarnation replaces.
    fn unheard<'a>(&self, listed: &'a [Listed], live: &[MemberState]) -> Vec<&'a Listed> {
        let replaced = |other: &Listed| {
            live.iter().any(|member| *member.name == *other.name && member.generation >= other.generation)
        };
        listed.iter().filter(|other| !replaced(other)).collect()
    }

    /// Sessions of incarnations that a newer one has replaced, by the table: a node that was killed and started again is the
    /// only one that knows who it was.
    fn replaced(&self, live: &[MemberState]) -> Vec<SessionId> {
        let is_replaced = |other: &&Listed| {
            live.iter().any(|member| *member.name == *other.name && member.generation > other.generation)
        };
        self.listed.iter().flatten().filter(is_replaced).filter_map(|other| other.session).collect()
    }

    /// True if more nodes show signs of life in the table only than by gossip. Of two equal halves, the one with the
    /// first name stays.
    fn is_cut_off(&self, live: &[MemberState]) -> bool {
        let Some(listed) = &self.listed else { return false };
        let refused = |other: &Listed| {
            self.refused.keys().any(|node| node.as_str() == format!("{}@{:x}", other.name, other.generation))
        };
        let silent = self.unheard(listed, live).into_iter().filter(|other| other.fresh && !refused(other));
        let silent: Vec<&str> = silent.map(|other| other.name.as_str()).collect();
        let first_of_live = live.iter().map(|member| &*member.name).min();
        let first_is_silent = silent.iter().copied().min() < first_of_live;
        silent.len() > live.len() || (silent.len() == live.len() && first_is_silent)
    }

    fn next_change(&self) -> Instant {
        let now = Instant::now();
        let refused = self.refused.values().map(|since| *since + REFUSED_COUNTS).filter(|at| *at > now);
        let unreached = self.down.values().map(|since| *since + self.config.unreached_after).filter(|at| *at > now);
        let idle = now + Duration::from_secs(60);
        refused.chain(unreached).chain(self.view.next_change(now)).fold(idle, Instant::min)
    }
}
