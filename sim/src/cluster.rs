//! A seeded run of a cluster: nodes that join, leave, crash, stand still and suspect each other wrongly, while shards move
//! between them and clients speak to any of them. Membership is simulated: each node has a view of its own, and it may be
//! wrong; the store decides. The same seed gives the same trace.

mod cuts;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use perdure_persistence::simulated::{Faults, Simulated};
use perdure_proto::{
    Code, Error,
    perdure::node::v1::{ShardCall, ShardReply, WorkflowCall, WorkflowReply},
    temporal::api::history::v1::HistoryEvent,
};
use perdure_shard::{EntityCaller, Joining, Peers, Shards};
use perdure_types::{ChainKey, Member, NodeId, Placement, SessionId, ShardId, ShardMap, SlotCount, Timestamp};
use tokio::{sync::watch, task::JoinSet, time::Instant};

use crate::{
    Client, Node, Options, Script,
    simulation::{Chance, Oracle, Plan, Report, Shared, check_list, check_timers, lock, operate},
};

use self::cuts::Cut;
pub use self::cuts::run_cuts;

const SLOTS: u32 = 8;
/// So many after two splits.
const MOST_SLOTS: u32 = 4 * SLOTS;
/// After everything is well, all shards are served within this.
const HEALED_WITHIN: Duration = Duration::from_secs(20);

/// What one node is to the others.
struct Peer {
    shards: Shards,
    view: watch::Sender<Arc<Placement>>,
    draining: bool,
    /// Its store does not answer it, and it says so.
    is_silent: bool,
    /// What is sent to it goes nowhere.
    is_mute: bool,
    /// The others say so.
    is_unreachable: bool,
    /// Whom this node takes for dead though they are not.
    suspects: BTreeSet<NodeId>,
}

impl Peer {
    fn new(shards: Shards, view: watch::Sender<Arc<Placement>>) -> Self {
        Self {
            shards,
            view,
            draining: false,
            is_silent: false,
            is_mute: false,
            is_unreachable: false,
            suspects: BTreeSet::new(),
        }
    }
}

/// The network between the nodes, and what they believe of each other.
#[derive(Default)]
struct Town {
    peers: BTreeMap<NodeId, Peer>,
    dead: BTreeSet<SessionId>,
    chance: u64,
    /// One message in so many is lost; 0: none.
    loss: u64,
    /// How many shards somebody wanted last.
    goal: Option<SlotCount>,
}

#[derive(Clone)]
struct Network(Arc<Mutex<Town>>);

fn slots() -> SlotCount {
    SlotCount::new(SLOTS).expect("a power of two")
}

/// The member with the highest score has the shard: as with a hash ring, one member more or less moves only its share.
fn owner(shard: ShardId, members: &BTreeSet<NodeId>) -> Option<NodeId> {
    let score = |node: &NodeId| {
        let name = node.as_str().bytes().fold(u64::from(shard.0) + 1, |sum, byte| sum * 131 + u64::from(byte));
        Chance(name).below(u64::MAX)
    };
    members.iter().max_by_key(|node| score(node)).cloned()
}

/// Whose place a shard has: while shards are being split, halves have one.
fn slot(shard: ShardId, map: &ShardMap) -> ShardId {
    ShardId(shard.0 % map.slots.unwrap_or(slots()).get())
}

impl Town {
    /// Which shards there are, as far as anybody knows.
    fn map(&self) -> ShardMap {
        let mut map = ShardMap::default();
        for peer in self.peers.values() {
            map.merge(&peer.shards.served().borrow().map);
        }
        map
    }
}

impl Network {
    fn town(&self) -> MutexGuard<'_, Town> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shards_of(&self, node: &NodeId) -> Option<Shards> {
        self.town().peers.get(node).filter(|peer| !peer.is_mute).map(|peer| peer.shards.clone())
    }

    /// One or the other.
    fn anybody(&self) -> Option<NodeId> {
        let mut town = self.town();
        town.chance = town.chance.wrapping_add(1);
        let count = town.peers.len().max(1) as u64;
        let index = Chance(town.chance).below(count) as usize;
        town.peers.keys().nth(index).cloned()
    }

    fn is_lost(&self) -> bool {
        let mut town = self.town();
        let loss = town.loss;
        town.chance = town.chance.wrapping_add(1);
        loss > 0 && Chance(town.chance).below(loss) == 0
    }

    /// Tells every node what it is to believe now.
    fn gossip(&self) {
        let town = self.town();
        let count = town.map().slots.unwrap_or(slots());
        for (me, peer) in &town.peers {
            let believed = |node: &NodeId| node == me || !peer.suspects.contains(node);
            let seen = town.peers.iter().filter(|(node, _)| believed(node));
            let may_be_silent = town.peers.values().any(|peer| !peer.draining && !peer.is_silent);
            let member = |peer: &Peer| Member {
                address: String::new(),
                generation: 0,
                session: peer.shards.served().borrow().session,
                draining: peer.draining,
                silent: peer.is_silent && may_be_silent,
                unreachable: peer.is_unreachable,
            };
            let members: BTreeMap<NodeId, Member> = seen.map(|(node, peer)| (node.clone(), member(peer))).collect();
            let able: BTreeSet<NodeId> =
                members.iter().filter(|(_, member)| member.is_able()).map(|(node, _)| node.clone()).collect();
            let owners: Vec<NodeId> = count.shards().filter_map(|shard| owner(shard, &able)).collect();
            let suspected = peer.suspects.iter().filter_map(|node| town.peers.get(node));
            let wrongly = suspected.filter_map(|peer| peer.shards.served().borrow().session);
            let dead = town.dead.iter().copied().chain(wrongly).collect();
            peer.view.send_if_modified(|view| {
                let new = Placement { version: view.version, me: me.clone(), owners: owners.into(), members, dead };
                let is_new = **view != new;
                if is_new {
                    *view = Arc::new(Placement { version: view.version + 1, ..new });
                }
                is_new
            });
        }
    }

    /// Who serves the shard, as far as anybody knows; else who should.
    fn target(&self, shard: ShardId) -> Option<NodeId> {
        let town = self.town();
        let is_away = |peer: &Peer| peer.is_silent || peer.is_unreachable;
        let here = town.peers.iter().filter(|(_, peer)| !is_away(peer));
        let serving = here.clone().filter_map(|(node, peer)| {
            let epoch = peer.shards.served().borrow().shards.get(&shard).copied();
            epoch.map(|epoch| (epoch, node.clone()))
        });
        let able = here.filter(|(_, peer)| !peer.draining).map(|(node, _)| node.clone()).collect();
        serving.max().map(|(_, node)| node).or_else(|| owner(slot(shard, &town.map()), &able))
    }
}

#[async_trait]
impl EntityCaller for Network {
    async fn call(&self, call: WorkflowCall) -> Result<WorkflowReply, Error> {
        let key = ChainKey::numbered(call.kind, call.namespace_id.as_str(), call.workflow_id.as_str());
        let key = key.ok_or_else(|| Error::invalid_argument("an entity of an unknown kind"))?;
        let mut pause = Duration::from_millis(5);
        let mut hinted: Option<NodeId> = None;
        let until = Instant::now() + Duration::from_secs(5);
        while Instant::now() < until {
            // Now and then by what was known long ago, and to who had the shard then.
            let is_old = self.is_lost();
            let map = if is_old { ShardMap::default() } else { self.town().map() };
            let shard = map.shard_of(key.slot_hash(), slots());
            let node = if self.is_lost() { self.anybody() } else { hinted.take().or_else(|| self.target(shard)) };
            if let Some(shards) = node.and_then(|node| self.shards_of(&node)) {
                let result = shards.call(shard, &call).await;
                match result.as_ref().err().and_then(Error::as_not_owner) {
                    None => return result,
                    Some(hint) => hinted = (!hint.owner.is_empty()).then(|| NodeId::new(hint.owner)),
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(100));
        }
        Err(Error::unavailable("the shard of this workflow is moving, try again"))
    }
}

#[async_trait]
impl Peers for Network {
    async fn shard(&self, node: &NodeId, call: ShardCall) -> Result<ShardReply, Error> {
        let lost = || Error::unavailable("the message was lost");
        let shards = self.shards_of(node).filter(|_| !self.is_lost()).ok_or_else(lost)?;
        tokio::time::sleep(Duration::from_millis(1)).await;
        let reply = shards.shard(call).await;
        if self.is_lost() { Err(lost()) } else { reply }
    }
}

struct Running {
    id: NodeId,
    node: Node,
    store: Simulated,
}

struct World {
    plan: Plan,
    store: Simulated,
    chance: Chance,
    oracle: Shared,
    network: Network,
    nodes: Vec<Running>,
    drains: JoinSet<()>,
    started: u64,
    began: Instant,
}

impl World {
    fn new(plan: Plan) -> Self {
        let town = Town { chance: plan.seed << 8, loss: 12, ..Town::default() };
        Self {
            store: Simulated::new(plan.seed, plan.faults.clone()),
            chance: Chance(plan.seed ^ 0xc1a5),
            oracle: Shared::default(),
            network: Network(Arc::new(Mutex::new(town))),
            nodes: Vec::new(),
            drains: JoinSet::new(),
            started: 0,
            began: Instant::now(),
            plan,
        }
    }

    fn into_report(self) -> Report {
        let mut report = std::mem::take(&mut lock(&self.oracle).report);
        report.faults.extend(self.store.faults());
        report.simulated = self.began.elapsed();
        report.periods = self.started as usize;
        report
    }

    fn options(&mut self) -> Options {
        let script = Script { sleep: Duration::from_secs(20), ..Script::default() };
        let mut options = Options { slots: SLOTS, script, ..Options::default() };
        options.config.seed = Some(self.plan.seed << 16 | self.started);
        options.config.flush_interval = Duration::from_millis(300);
        options.config.segment_bytes = 4 << 10;
        options.config.cache_bytes = 64 << 10;
        options.config.wakeups_ahead = 4;
        options.start = Timestamp(options.start.0 + self.began.elapsed().as_nanos() as i64);
        options
    }

    fn happened(&self, kind: &'static str) {
        let mut oracle = lock(&self.oracle);
        oracle.note(kind.to_owned());
        *oracle.report.faults.entry(kind).or_default() += 1;
    }

    async fn join(&mut self) {
        self.started += 1;
        let id = NodeId::new(format!("n{}", self.started));
        let (options, store) = (self.options(), self.store.for_node());
        let nobody = Placement { owners: Arc::default(), ..Placement::alone(id.clone(), slots()) };
        let (view, placement) = watch::channel(Arc::new(nobody));
        let joining = Joining { placement, peers: Arc::new(self.network.clone()) };
        match Node::join(Arc::new(store.clone()), options, joining, Arc::new(self.network.clone())).await {
            Ok(node) => {
                let peer = Peer::new(node.shards().clone(), view);
                self.network.town().peers.insert(id.clone(), peer);
                self.nodes.push(Running { id, node, store });
                self.happened("join");
            }
            Err(error) => lock(&self.oracle).violation(format!("{id} does not start: {error}")),
        }
    }

    fn any(&mut self) -> usize {
        self.chance.below(self.nodes.len() as u64) as usize
    }

    /// The node is gone. Its session is known to be dead at once, or only because nobody names it any more.
    fn forget(&mut self, id: &NodeId) {
        let told = self.chance.below(4) > 0;
        let mut town = self.network.town();
        let peer = town.peers.remove(id);
        let session = peer.and_then(|peer| peer.shards.served().borrow().session);
        if told {
            town.dead.extend(session);
        }
    }

    async fn crash(&mut self) {
        let index = self.any();
        let Running { id, node, .. } = self.nodes.remove(index);
        self.forget(&id);
        node.crash().await;
        self.happened("crash");
        if self.nodes.is_empty() {
            self.join().await;
        }
    }

    fn drain(&mut self) {
        let index = self.any();
        let Running { id, node, .. } = self.nodes.remove(index);
        if let Some(peer) = self.network.town().peers.get_mut(&id) {
            peer.draining = true;
        }
        self.happened("drain");
        let (network, oracle) = (self.network.clone(), self.oracle.clone());
        self.drains.spawn(async move {
            node.drain(Duration::from_secs(5)).await;
            network.town().peers.remove(&id);
            lock(&oracle).note(format!("{id} has left"));
        });
    }

    /// A node takes another one for dead, and fences it.
    fn suspect(&mut self) {
        let (a, b) = (self.any(), self.any());
        let (a, b) = (self.nodes[a].id.clone(), self.nodes[b].id.clone());
        if a == b {
            return;
        }
        if let Some(peer) = self.network.town().peers.get_mut(&a) {
            peer.suspects.insert(b);
        }
        self.happened("false suspicion");
        let (network, time) = (self.network.clone(), Duration::from_millis(self.chance.below(8000)));
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            if let Some(peer) = network.town().peers.get_mut(&a) {
                peer.suspects.clear();
            }
        });
    }

    /// A node stands still; the others take it for dead after a while, or never.
    fn pause(&mut self) {
        let index = self.any();
        let (id, store) = (self.nodes[index].id.clone(), self.nodes[index].store.clone());
        let time = Duration::from_millis(self.chance.below(60_000));
        store.pause();
        self.happened("pause");
        let network = self.network.clone();
        tokio::spawn(async move {
            let noticed = Duration::from_secs(2);
            tokio::time::sleep(time.min(noticed)).await;
            if time > noticed {
                mark(&network, &id, true);
                tokio::time::sleep(time - noticed).await;
            }
            store.resume();
            mark(&network, &id, false);
        });
    }

    /// An operator wants more shards. A fault of the store is an answer too: perhaps they are wanted now.
    async fn split(&mut self) {
        let index = self.any();
        let shards = self.nodes[index].node.shards().clone();
        let wanted = self.network.town().goal.unwrap_or(slots()).doubled().filter(|count| count.get() <= MOST_SLOTS);
        if let Some(wanted) = wanted
            && let Ok(Ok(layout)) = tokio::time::timeout(Duration::from_secs(1), shards.split(Some(wanted))).await
        {
            self.network.town().goal = Some(layout.goal);
            self.happened("split");
        }
    }

    async fn disturb(&mut self) {
        match self.chance.below(60) {
            0 | 1 => self.crash().await,
            2..=4 if self.nodes.len() < 4 => self.join().await,
            5 | 6 if self.nodes.len() > 1 => self.drain(),
            7 => self.suspect(),
            8 => self.pause(),
            9 => self.store.drop_in_flight(),
            10 => self.store.deliver_all(),
            11 => tokio::time::sleep(Duration::from_millis(self.chance.below(8000))).await,
            12 | 13 => self.split().await,
            14 if self.nodes.len() > 1 => {
                let cut = if self.chance.below(2) == 0 { Cut::FromStore } else { Cut::FromCalls };
                let (index, time) = (self.any(), Duration::from_millis(self.chance.below(9000)));
                self.cut(index, cut, time);
            }
            _ => tokio::time::sleep(Duration::from_millis(self.chance.below(60))).await,
        }
        if self.chance.below(3) > 0 {
            self.network.gossip();
        }
    }
}

/// All others take the node for dead, or do not.
fn mark(network: &Network, id: &NodeId, dead: bool) {
    for (_, peer) in network.town().peers.iter_mut().filter(|(node, _)| *node != id) {
        if dead {
            peer.suspects.insert(id.clone());
        } else {
            peer.suspects.remove(id);
        }
    }
}

/// Runs a plan. Needs a runtime of one thread with paused time.
pub async fn run(plan: Plan) -> Report {
    let mut world = World::new(plan);
    for _ in 0..1 + world.chance.below(3) {
        world.join().await;
    }
    world.network.gossip();
    let mut operations = JoinSet::new();
    for number in 0..world.plan.steps {
        let index = world.any();
        let (kind, workflow) = (world.chance.below(10), world.chance.below(world.plan.workflows));
        if let Some(running) = world.nodes.get(index) {
            operations.spawn(operate(running.node.client(), world.oracle.clone(), kind, workflow, number));
        }
        world.disturb().await;
    }
    operations.join_all().await;
    heal(&mut world).await;
    let client = world.nodes.first().map(|running| running.node.client());
    if let Some(client) = client {
        check(&world, &client).await;
    }
    leave(&mut world).await;
    world.into_report()
}

/// Everybody sees everybody, nothing is lost: every shard is served soon, by whom the placement names.
async fn heal(world: &mut World) {
    world.store.set_faults(Faults::none());
    world.store.deliver_all();
    for running in &world.nodes {
        running.store.resume();
    }
    // Suspicions under way end by themselves. News go on meanwhile: a session that nobody hears of for a minute is ended
    // as forgotten, and its node would notice at its next call only.
    for _ in 0..70 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        world.network.gossip();
    }
    while world.drains.join_next().await.is_some() {}
    world.network.town().loss = 0;
    let healed = Instant::now();
    loop {
        world.network.gossip();
        let homeless = homeless(&world.network);
        if homeless.is_empty() {
            break;
        }
        if healed.elapsed() > HEALED_WITHIN {
            lock(&world.oracle).violation(format!("shards are not where they should be: {homeless:?}"));
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let line = format!("healed after {} ms", healed.elapsed().as_millis());
    lock(&world.oracle).note(line);
}

/// Shards that are not served by whom the placement names.
fn homeless(network: &Network) -> Vec<ShardId> {
    let town = network.town();
    let able: BTreeSet<NodeId> = town.peers.keys().cloned().collect();
    let map = town.map();
    let is_home = |shard: &ShardId| {
        let home = owner(slot(*shard, &map), &able).and_then(|node| town.peers.get(&node));
        home.is_some_and(|peer| peer.shards.served().borrow().shards.contains_key(shard))
    };
    let all = map.slots.unwrap_or(slots()).shards().chain(map.more.iter().copied());
    let mut homeless: Vec<ShardId> = all.filter(|shard| !is_home(shard)).collect();
    // A split that was begun is to be finished.
    if map.slots < town.goal {
        homeless.extend(map.more.iter().copied().chain([ShardId(u32::MAX)]));
    }
    homeless
}

/// A node that was fenced while nothing went on learns of it from the first call, whose caller has to try again.
async fn patient_history(world: &World, client: &Client, id: &str, run: &str) -> Result<Vec<HistoryEvent>, Error> {
    let began = Instant::now();
    loop {
        match client.history(id, run, 0).await {
            Err(error) if error.grpc_code() == Code::Unavailable && began.elapsed() < HEALED_WITHIN => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                world.network.gossip();
            }
            result => return result,
        }
    }
}

async fn check(world: &World, client: &Client) {
    // Workflow tasks of workers that are gone time out; what was buffered meanwhile becomes history.
    // News go on: a node that was fenced a moment ago has a session that the others have to hear of.
    for _ in 0..300 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        world.network.gossip();
    }
    let runs = lock(&world.oracle).runs.clone();
    for (id, run) in &runs {
        match patient_history(world, client, id, run).await {
            Ok(events) => {
                let mut oracle: MutexGuard<'_, Oracle> = lock(&world.oracle);
                oracle.check_end(id, &events);
                oracle.read(id, events);
            }
            Err(error) => lock(&world.oracle).violation(format!("{id} was started and is not there: {error}")),
        }
    }
    check_timers(&world.oracle, client).await;
    check_list(&world.store, &world.oracle, client).await;
}

/// One node after the other drains; the last one seals itself. Nothing is left of anybody.
async fn leave(world: &mut World) {
    use perdure_persistence::{SessionState, Store};
    while !world.nodes.is_empty() {
        let alone = world.nodes.len() == 1;
        world.drain();
        while !alone && !world.drains.is_empty() {
            world.network.gossip();
            tokio::time::sleep(Duration::from_millis(50)).await;
            while world.drains.try_join_next().is_some() {}
        }
    }
    while world.drains.join_next().await.is_some() {}
    for (id, row) in world.store.list_sessions().await.unwrap_or_default() {
        if !matches!(row.state, SessionState::Sealed(_)) {
            lock(&world.oracle).violation(format!("session {id} was not ended: {row:?}"));
        }
    }
}
