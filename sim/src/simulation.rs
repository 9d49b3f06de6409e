//! A seeded run: clients against nodes that crash, fight over the shards, and write to a store that loses, delays and
//! repeats. What was acknowledged is written down, and looked for at the end. The same seed gives the same trace.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use perdure_persistence::simulated::{Faults, Simulated};
use perdure_proto::{
    Code, Error,
    temporal::api::{
        enums::v1::EventType,
        history::v1::{HistoryEvent, history_event::Attributes},
    },
};
use perdure_types::{Seq, StatusSet, Timestamp};
use tokio::task::JoinSet;

use crate::{
    Client, NAMESPACE_ID, Node, Options, Script,
    invariants::{agree, contiguous_from_one},
};

/// From, to.
const USUAL_LATENCY: (Duration, Duration) = (Duration::from_micros(200), Duration::from_millis(8));

/// How long and how rough a run is.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub steps: usize,
    pub workflows: u64,
    pub faults: Faults,
}

impl Plan {
    /// Every fault now and then.
    pub fn new(seed: u64) -> Self {
        Self { seed, steps: 400, workflows: 12, faults: Faults { latency: USUAL_LATENCY, ..Faults::some() } }
    }

    /// A shorter run, of which many fit into the time that CI has.
    pub fn short(seed: u64) -> Self {
        Self { steps: 120, workflows: 4, ..Self::new(seed) }
    }

    /// Of a cluster ([`crate::cluster`]).
    pub fn cluster(seed: u64) -> Self {
        Self { steps: 250, workflows: 10, ..Self::new(seed) }
    }

    /// Of a cluster over a store that never fails: what is left is what the nodes do to each other.
    pub fn calm_cluster(seed: u64) -> Self {
        Self { faults: Faults { latency: USUAL_LATENCY, ..Faults::none() }, ..Self::cluster(seed) }
    }

    /// So many faults that little gets done.
    pub fn rough(seed: u64) -> Self {
        let latency = (Duration::from_micros(200), Duration::from_millis(30));
        Self { seed, steps: 200, workflows: 4, faults: Faults { latency, ..Faults::many() } }
    }
}

/// What happened, in order, and what is wrong with it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub trace: Vec<String>,
    pub violations: Vec<String>,
    pub acknowledged: usize,
    pub periods: usize,
    /// How much time went by in the simulation.
    pub simulated: Duration,
    /// What went wrong, by kind: in the store, and to the nodes.
    pub faults: BTreeMap<&'static str, u64>,
}

/// SplitMix64: one stream of choices a run.
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

/// What was told to clients. An operation without an answer stays unknown: it may or may not have happened.
#[derive(Debug, Default)]
pub(crate) struct Oracle {
    pub(crate) report: Report,
    pub(crate) runs: BTreeMap<String, String>,
    /// Signals by workflow: acknowledged or not.
    signals: BTreeMap<String, BTreeMap<String, bool>>,
    /// Workflows with a timer that were started.
    pub(crate) sleepers: BTreeSet<String>,
    /// The longest history that was shown of each run.
    shown: BTreeMap<String, Vec<HistoryEvent>>,
}

pub(crate) type Shared = Arc<Mutex<Oracle>>;

pub(crate) fn lock(oracle: &Shared) -> std::sync::MutexGuard<'_, Oracle> {
    oracle.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Oracle {
    pub(crate) fn note(&mut self, line: String) {
        tracing::debug!(line);
        self.report.trace.push(line);
    }

    pub(crate) fn violation(&mut self, line: String) {
        self.report.violations.push(format!("{line} (step {})", self.report.trace.len()));
    }

    pub(crate) fn started(&mut self, id: &str, run: String) {
        self.report.acknowledged += 1;
        if let Some(known) = self.runs.insert(id.to_owned(), run.clone())
            && known != run
        {
            self.violation(format!("{id} was run {known} and is run {run}"));
        }
    }

    /// A history that a client was shown: contiguous, times in order, and a continuation of what was shown before.
    pub(crate) fn read(&mut self, id: &str, events: Vec<HistoryEvent>) {
        if !contiguous_from_one(events.iter().map(|event| event.event_id)) {
            let ids: Vec<i64> = events.iter().map(|event| event.event_id).collect();
            self.violation(format!("{id}: events {ids:?}"));
        }
        let time = |event: &HistoryEvent| Timestamp::from_proto(event.event_time.as_ref());
        if events.windows(2).any(|pair| time(&pair[0]) > time(&pair[1])) {
            self.violation(format!("{id}: event times go back"));
        }
        let shown = self.shown.entry(id.to_owned()).or_default();
        let differs = !agree(shown, &events);
        if shown.len() < events.len() {
            *shown = events;
        }
        if differs {
            self.violation(format!("{id}: what was shown has changed"));
        }
    }

    pub(crate) fn check_end(&mut self, id: &str, events: &[HistoryEvent]) {
        if self.shown.get(id).is_some_and(|shown| shown.len() > events.len()) {
            self.violation(format!("{id}: events that were shown are gone"));
        }
        let mut seen: BTreeMap<String, usize> = BTreeMap::new();
        for event in events {
            if let Some(Attributes::WorkflowExecutionSignaledEventAttributes(signal)) = &event.attributes {
                *seen.entry(signal.signal_name.clone()).or_default() += 1;
            }
        }
        let sent = self.signals.get(id).cloned().unwrap_or_default();
        for (name, acknowledged) in &sent {
            let count = seen.get(name).copied().unwrap_or(0);
            if count > 1 || (*acknowledged && count == 0) {
                self.violation(format!("{id}: signal {name} (acknowledged: {acknowledged}) is there {count} times"));
            }
        }
        let unknown: BTreeSet<&String> = seen.keys().filter(|name| !sent.contains_key(*name)).collect();
        if !unknown.is_empty() {
            self.violation(format!("{id}: signals that nobody sent: {unknown:?}"));
        }
    }
}

/// One client call; gives up after a while, as clients do.
pub(crate) async fn operate(client: Client, oracle: Shared, kind: u64, workflow: u64, number: usize) {
    let id = format!("w{workflow}");
    let patience = Duration::from_secs(3);
    let line = match kind {
        0 => {
            let id = format!("t{workflow}");
            let result = tokio::time::timeout(patience, client.start(&id, "sleep")).await;
            if let Ok(Ok(run)) = &result {
                let mut oracle = lock(&oracle);
                oracle.started(&id, run.clone());
                oracle.sleepers.insert(id.clone());
            }
            format!("{number} start {id}: {}", outcome(result.map(|r| r.map(|_| ()))))
        }
        1..=2 => {
            let result = tokio::time::timeout(patience, client.start(&id, "forever")).await;
            if let Ok(Ok(run)) = &result {
                lock(&oracle).started(&id, run.clone());
            }
            format!("{number} start {id}: {}", outcome(result.map(|r| r.map(|_| ()))))
        }
        3..=7 => {
            let name = format!("s{number}");
            lock(&oracle).signals.entry(id.clone()).or_default().insert(name.clone(), false);
            let result = tokio::time::timeout(patience, client.signal(&id, &name, &name)).await;
            if let Ok(Ok(())) = &result {
                let mut oracle = lock(&oracle);
                oracle.report.acknowledged += 1;
                oracle.signals.entry(id.clone()).or_default().insert(name, true);
            }
            format!("{number} signal {id}: {}", outcome(result))
        }
        _ => {
            let result = tokio::time::timeout(patience, client.history(&id, "", 5)).await;
            let mut count = 0;
            if let Ok(Ok(events)) = &result {
                count = events.len();
                lock(&oracle).read(&id, events.clone());
            }
            format!("{number} history {id}: {} {count} events", outcome(result.map(|r| r.map(|_| ()))))
        }
    };
    lock(&oracle).note(line);
}

fn outcome(result: Result<Result<(), Error>, tokio::time::error::Elapsed>) -> String {
    match result {
        Ok(Ok(())) => "ok".to_owned(),
        Ok(Err(error)) => format!("{:?}", error.grpc_code()),
        Err(_) => "no answer".to_owned(),
    }
}

/// A node, and its connection to the store.
struct Running {
    node: Node,
    store: Simulated,
}

struct World {
    plan: Plan,
    store: Simulated,
    chance: Chance,
    oracle: Shared,
    /// The last one started is the one that clients speak to most of the time.
    nodes: Vec<Running>,
    periods: u64,
    began: tokio::time::Instant,
}

impl World {
    fn options(&mut self) -> Options {
        self.periods += 1;
        let script = Script { sleep: Duration::from_secs(20), ..Script::default() };
        let mut options = Options { script, ..Options::default() };
        options.config.seed = Some(self.plan.seed << 16 | self.periods);
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

    fn seconds(&mut self, most: u64) -> Duration {
        Duration::from_millis(self.chance.below(most * 1000))
    }

    async fn start_node(&mut self) {
        let options = self.options();
        let period = self.periods;
        let store = self.store.for_node();
        match Node::start(Arc::new(store.clone()), options).await {
            Ok(node) => {
                self.nodes.push(Running { node, store });
                lock(&self.oracle).note(format!("node {period} started"));
            }
            Err(error) => lock(&self.oracle).violation(format!("node {period} does not start: {error}")),
        }
    }

    fn any_node(&mut self) -> usize {
        self.chance.below(self.nodes.len() as u64) as usize
    }

    async fn crash_node(&mut self) {
        let index = self.any_node();
        self.nodes.remove(index).node.crash().await;
        self.happened("crash");
        if self.nodes.is_empty() {
            self.start_node().await;
        }
    }

    /// A node stands still, longer than anybody waits for it: nothing that it sends arrives, and no answer reaches it.
    /// Then it goes on as if nothing had been.
    fn pause_node(&mut self) {
        let (index, time) = (self.any_node(), self.seconds(90));
        let store = self.nodes[index].store.clone();
        store.pause();
        self.happened("pause");
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            store.resume();
        });
    }

    /// A node reaches one replica less, or two: then it can do nothing.
    fn cut_node(&mut self) {
        let (index, time) = (self.any_node(), self.seconds(30));
        let (first, more) = (self.chance.below(3) as usize, self.chance.below(2) as usize);
        let store = self.nodes[index].store.clone();
        store.cut_off(&[first, (first + more) % 3]);
        self.happened("partition");
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            store.cut_off(&[]);
        });
    }

    /// A replica is down for a while, or two of them.
    fn take_down_replicas(&mut self) {
        let time = self.seconds(20);
        let (first, more) = (self.chance.below(3) as usize, self.chance.below(4) / 3);
        let store = self.store.clone();
        store.take_down(&[first, (first + more as usize) % 3]);
        self.happened("replica down");
        tokio::spawn(async move {
            tokio::time::sleep(time).await;
            store.take_down(&[]);
        });
    }

    /// Up to a minute forwards or back.
    fn set_clock(&mut self) {
        let (index, by) = (self.any_node(), self.chance.below(120) as i64 - 60);
        self.nodes[index].node.jump_clock(perdure_types::Duration::from_secs(by));
        self.happened("clock set");
    }

    async fn slow_store(&mut self) {
        let faults = self.plan.faults.clone();
        let slow = (Duration::from_millis(500), Duration::from_secs(3));
        self.store.set_faults(Faults { latency: slow, ..faults.clone() });
        tokio::time::sleep(self.seconds(2)).await;
        self.store.set_faults(faults);
        self.happened("slow store");
    }

    /// What happens around the clients.
    async fn disturb(&mut self) {
        match self.chance.below(60) {
            0 | 1 => self.crash_node().await,
            // A second node thinks the first one dead: each fences the other until one of them crashes.
            2 | 3 if self.nodes.len() < 3 => {
                self.happened("false suspicion");
                self.start_node().await;
            }
            4 => {
                self.store.drop_in_flight();
                self.happened("messages dropped");
            }
            5 => {
                self.store.deliver_all();
                self.happened("messages delivered");
            }
            6 => self.slow_store().await,
            7 => tokio::time::sleep(self.seconds(20)).await,
            8 => self.pause_node(),
            // The others notice, and take over.
            9 if self.nodes.len() < 3 => {
                self.pause_node();
                self.start_node().await;
            }
            10 => self.cut_node(),
            11 => self.take_down_replicas(),
            12 => self.set_clock(),
            _ => tokio::time::sleep(Duration::from_millis(self.chance.below(30))).await,
        }
    }
}

/// Runs a plan. Needs a runtime of one thread with paused time.
pub async fn run(plan: Plan) -> Report {
    let store = Simulated::new(plan.seed, plan.faults.clone());
    let mut world = World {
        store,
        chance: Chance(plan.seed ^ 0x5eed),
        oracle: Shared::default(),
        nodes: Vec::new(),
        periods: 0,
        began: tokio::time::Instant::now(),
        plan,
    };
    world.start_node().await;
    let mut operations = JoinSet::new();
    for number in 0..world.plan.steps {
        let newest = world.nodes.len().saturating_sub(1) as u64;
        let index = if world.chance.below(4) == 0 { world.chance.below(newest + 1) } else { newest };
        let (kind, workflow) = (world.chance.below(10), world.chance.below(world.plan.workflows));
        if let Some(running) = world.nodes.get(index as usize) {
            operations.spawn(operate(running.node.client(), world.oracle.clone(), kind, workflow, number));
        }
        world.disturb().await;
    }
    operations.join_all().await;
    heal_and_check(&mut world).await;
    let mut report = std::mem::take(&mut lock(&world.oracle).report);
    report.faults.extend(world.store.faults());
    report.simulated = world.began.elapsed();
    report.periods = world.periods as usize;
    report
}

/// Everything is well again: one node serves, and what was acknowledged is there.
async fn heal_and_check(world: &mut World) {
    for running in world.nodes.drain(..) {
        running.node.crash().await;
    }
    world.store.set_faults(Faults::none());
    world.store.take_down(&[]);
    world.store.deliver_all();
    world.start_node().await;
    let Some(Running { node, .. }) = world.nodes.pop() else { return };
    let client = node.client();
    // Workflow tasks of workers that are gone time out; what was buffered meanwhile becomes history. Clocks that were ahead
    // have left deadlines far in the future.
    tokio::time::sleep(Duration::from_secs(1800)).await;
    let runs = lock(&world.oracle).runs.clone();
    for (id, run) in &runs {
        match client.history(id, run, 0).await {
            Ok(events) => {
                let mut oracle = lock(&world.oracle);
                oracle.check_end(id, &events);
                oracle.read(id, events);
            }
            Err(error) => lock(&world.oracle).violation(format!("{id} was started and is not there: {error}")),
        }
    }
    check_timers(&world.oracle, &client).await;
    for workflow in 0..world.plan.workflows {
        let id = format!("w{workflow}");
        match client.start(&id, "forever").await {
            Ok(run) => lock(&world.oracle).started(&id, run),
            Err(error) => lock(&world.oracle).violation(format!("{id} cannot be started: {error}")),
        }
        // Nobody was told of a start: then there may be a run that nobody knew.
        let result = client.signal(&id, "last", "last").await;
        if result.as_ref().is_err_and(|error| error.grpc_code() != Code::NotFound) {
            lock(&world.oracle).violation(format!("{id} takes no signal: {result:?}"));
        }
    }
    check_list(&world.store, &world.oracle, &client).await;
    node.stop().await;
    check_tables(world).await;
}

/// The list of runs shows each run once, as it is: nothing that an owner of before wrote late is left.
pub(crate) async fn check_list(store: &Simulated, oracle: &Shared, client: &Client) {
    use perdure_persistence::{Hidden, Store, TimeRange, VisibilityIndex, VisibilityQuery};
    tokio::time::sleep(Duration::from_secs(5)).await;
    let query = VisibilityQuery {
        list_id: NAMESPACE_ID.into(),
        index: VisibilityIndex::Status { workflow_type: None, statuses: StatusSet::ALL, hidden: Hidden::With },
        open: TimeRange::ALL,
        closed: TimeRange::ALL,
        after: None,
        limit: usize::MAX,
    };
    let mut seen = BTreeSet::new();
    for run in store.list_visibility(&query).await.unwrap_or_default() {
        let status = client.status(&run.workflow_id, &run.run_id).await.map(|status| status as i32);
        let mut oracle = lock(oracle);
        if status != Ok(i32::from(run.row.status)) {
            let shown = run.row.status;
            oracle.violation(format!("{} {} is listed as {shown}, and is {status:?}", run.workflow_id, run.run_id));
        }
        if !seen.insert(run.run_id.clone()) {
            oracle.violation(format!("{} {} is listed twice", run.workflow_id, run.run_id));
        }
    }
    let runs = lock(oracle).runs.clone();
    for (id, run) in runs.iter().filter(|(_, run)| !seen.contains(&***run)) {
        lock(oracle).violation(format!("{id} {run} is not listed"));
    }
}

/// No timer is lost, and none fires twice.
pub(crate) async fn check_timers(oracle: &Shared, client: &Client) {
    let sleepers = lock(oracle).sleepers.clone();
    for id in sleepers {
        let events = client.history(&id, "", 0).await.unwrap_or_default();
        let fired = events.iter().filter(|event| event.event_type() == EventType::TimerFired).count();
        let last = events.last().map(HistoryEvent::event_type);
        if fired != 1 || last != Some(EventType::WorkflowExecutionCompleted) {
            let kinds: Vec<EventType> = events.iter().map(HistoryEvent::event_type).collect();
            lock(oracle).violation(format!("{id}: its timer fired {fired} times: {kinds:?}"));
        }
    }
}

/// After a stop in good order, the log is empty and the tables say everything.
async fn check_tables(world: &World) {
    use perdure_persistence::{SessionState, Store};
    let sessions = world.store.list_sessions().await.unwrap_or_default();
    let shards = world.store.list_shards().await.unwrap_or_default();
    let mut oracle = lock(&world.oracle);
    for (id, row) in &sessions {
        let needed = shards.iter().any(|(_, shard)| shard.sources.values().any(|source| source.session == *id));
        let end = if let SessionState::Sealed(end) = row.state { end } else { Seq::ZERO };
        if needed && row.base <= end {
            oracle.violation(format!("session {id} was stopped and has rows to replay: {row:?}"));
        }
    }
}
