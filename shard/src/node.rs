//! The shards of a node: routes calls to them, keeps them served, stops them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, Weak},
    time::Duration,
};

use perdure_persistence::{Cas, Store, StoreError};
use perdure_proto::{
    Error,
    perdure::node::v1::{
        ShardCall, ShardReply, ShardStatus, ShardStatuses, WorkflowCall, WorkflowReply, shard_call, shard_reply,
    },
    temporal::api::enums::v1::{ResourceExhaustedCause, ResourceExhaustedScope},
};
use perdure_types::{ChainKey, Layout, NodeId, PollName, QueueFilter, Served, ShardId, SlotCount};
use perdure_workflow::{IdSource, NamespaceView};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};
use tracing::{Instrument, Span};

use crate::{
    claim::Claim,
    clock::Clock,
    config::ShardConfig,
    driver::{Call, Ownership, ShardHandle, ended, moving},
    flush::Registry,
    log::{Log, LogState, session::Backoff},
    owner::{Hints, Joining},
    period::{Event, Period, seed},
    ports::{EntityCaller, TaskSink},
    split,
    trace::{self, Caller},
    watched::Watched,
};

/// What serving needs.
pub struct Setup {
    pub store: Arc<dyn Store>,
    /// How many shards the cluster began with.
    pub slots: SlotCount,
    pub config: ShardConfig,
    pub clock: Arc<Clock>,
    pub namespaces: Arc<dyn NamespaceView>,
    pub tasks: Arc<dyn TaskSink>,
    pub entities: Arc<dyn EntityCaller>,
}

/// Why serving could not begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("already started")]
    AlreadyStarted,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The node's shards. Cheap to clone. Serves nothing until [`Shards::start`]; so it can be wired to others first.
#[derive(Clone)]
pub struct Shards {
    inner: Arc<Inner>,
}

struct Inner {
    /// Shards of the period under way; none while there is none.
    routes: RwLock<Option<Registry>>,
    supervisor: Mutex<Option<Supervisor>>,
    ended: Watched<Option<StoreError>>,
    served: watch::Sender<Served>,
    /// Who has got the shards that were given away.
    hints: Hints,
    asks: Mutex<Option<mpsc::Sender<Ask>>>,
    /// How many shards there are to be, as far as this node knows.
    goal: watch::Sender<Option<SlotCount>>,
    /// Held by what serves, and gone with it: else the store would outlive a crash.
    setup: OnceLock<Weak<Setup>>,
}

/// What another node asks about a shard.
type Ask = (ShardCall, oneshot::Sender<Result<ShardReply, Error>>);

struct Supervisor {
    stop: mpsc::Sender<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Default for Shards {
    fn default() -> Self {
        Self::new()
    }
}

impl Shards {
    pub fn new() -> Self {
        let inner = Inner {
            routes: RwLock::default(),
            supervisor: Mutex::default(),
            ended: Watched::new(None),
            served: watch::channel(Served::default()).0,
            hints: Hints::default(),
            asks: Mutex::default(),
            goal: watch::channel(None).0,
            setup: OnceLock::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Begins to serve as a node alone: returns when all shards that can be served are.
    pub async fn start(&self, setup: Setup) -> Result<(), StartError> {
        self.begin(setup, None).await
    }

    /// Begins to serve as a member of a cluster: the placement says which shards. Returns when
    /// there is a session; the shards come one by one ([`Shards::served`]).
    pub async fn join(&self, setup: Setup, joining: Joining) -> Result<(), StartError> {
        self.begin(setup, Some(joining)).await
    }

    async fn begin(&self, setup: Setup, joining: Option<Joining>) -> Result<(), StartError> {
        if self.supervisor().is_some() {
            return Err(StartError::AlreadyStarted);
        }
        let setup = Arc::new(setup);
        let seed = setup.config.seed.unwrap_or_else(random_seed);
        let mut ids = IdSource::new(seed);
        let joining = joining.map(|joining| (joining, self.inner.hints.clone()));
        let _ = self.inner.setup.set(Arc::downgrade(&setup));
        let goal = self.inner.goal.clone();
        let period = Period::start(setup.clone(), next_ids(&mut ids), joining.clone(), goal).await?;
        self.inner.route(Some(&period));
        let (stop, stops) = mpsc::channel(1);
        let (ask, asks) = mpsc::channel(64);
        *self.inner.asks.lock().unwrap_or_else(PoisonError::into_inner) = Some(ask);
        let supervised = Supervised { inner: self.inner.clone(), setup, joining, ids, stops, asks };
        let task = tokio::spawn(supervised.run(period));
        *self.supervisor() = Some(Supervisor { stop, task });
        Ok(())
    }

    /// Handles a call on a shard of this node. Dropping the future gives up the wait, not the effect.
    pub async fn call(&self, shard: ShardId, call: &WorkflowCall) -> Result<WorkflowReply, Error> {
        let span = trace::at_shard(shard.0);
        let (answer, log) = self.enter(shard, call, &span)?;
        match log.unless_silent(answer).instrument(span).await {
            Some(answer) => answer.unwrap_or_else(|_| Err(ended())),
            None => Err(Error::store_silent()),
        }
    }

    /// Puts a call into its shard's mailbox.
    fn enter(&self, shard: ShardId, call: &WorkflowCall, span: &Span) -> Result<(Answer, Log), Error> {
        let Some(command) = &call.command else {
            return Err(Error::invalid_argument("the call has no command"));
        };
        let chain = ChainKey::numbered(call.kind, call.namespace_id.as_str(), call.workflow_id.as_str())
            .ok_or_else(|| Error::unimplemented("entity of an unknown kind"))?;
        let handle = self.inner.holder(shard, &chain).ok_or_else(|| self.inner.elsewhere(shard))?;
        if handle.ownership() != Ownership::Serving {
            return Err(moving());
        }
        if handle.log.is_silent() {
            return Err(Error::store_silent());
        }
        let (reply, answer) = oneshot::channel();
        // The caller keeps the call: it may have to make it again.
        let command = Box::new(command.clone());
        match handle.calls.try_send(Call { chain, command, reply, caller: Caller::of(span.clone()) }) {
            Ok(()) => Ok((answer, handle.log.clone())),
            Err(mpsc::error::TrySendError::Full(_)) => Err(Error::resource_exhausted(
                "too many calls wait for this workflow's shard",
                ResourceExhaustedCause::SystemOverloaded,
                ResourceExhaustedScope::System,
            )),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(moving()),
        }
    }

    /// What this node serves, for others to route by.
    pub fn served(&self) -> watch::Receiver<Served> {
        self.inner.served.subscribe()
    }

    /// Answers what another node asks about a shard.
    pub async fn shard(&self, call: ShardCall) -> Result<ShardReply, Error> {
        if let Some(shard_call::Command::Describe(_)) = &call.command {
            let status = self.inner.status(ShardId(call.shard));
            return Ok(ShardReply { reply: Some(shard_reply::Reply::Status(status)) });
        }
        if let Some(shard_call::Command::DescribeAll(_)) = &call.command {
            let shards = self.inner.all().iter().map(status_of).collect();
            return Ok(ShardReply { reply: Some(shard_reply::Reply::Statuses(ShardStatuses { shards })) });
        }
        if let Some(shard_call::Command::LostPolls(lost)) = &call.command {
            let polls = lost.polls.iter().copied().filter_map(PollName::from_number).collect();
            self.polls_lost(Arc::new(polls)).await;
            return Ok(ShardReply { reply: None });
        }
        let asks = self.inner.asks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (reply, answer) = oneshot::channel();
        let asks = asks.ok_or_else(moving)?;
        asks.send((call, reply)).await.map_err(|_| moving())?;
        answer.await.unwrap_or_else(|_| Err(ended()))
    }

    /// How far the shards are split, by the store.
    pub async fn layout(&self) -> Result<Layout, Error> {
        let setup = self.inner.setup()?;
        let unavailable = |error: StoreError| Error::unavailable(error.to_string());
        let rows = setup.store.list_shards().await.map_err(unavailable)?.into_iter().collect();
        let goal = setup.store.read_goal().await.map_err(unavailable)?;
        let map = split::map_of(&rows, setup.slots);
        let goal = goal.max(map.slots).unwrap_or(setup.slots);
        let shards = rows.iter().map(|(shard, row)| (*shard, split::slots_of(row, setup.slots))).collect();
        Ok(Layout { map, shards, goal })
    }

    /// Wants so many shards, by default twice as many as there are. Their owners split them from here on, wherever they
    /// are: this node and others may end at any time.
    pub async fn split(&self, wanted: Option<SlotCount>) -> Result<Layout, Error> {
        let setup = self.inner.setup()?;
        loop {
            let mut layout = self.layout().await?;
            let slots = layout.map.slots.unwrap_or(setup.slots);
            let under_way = layout.goal > slots;
            let wanted = match wanted.or_else(|| if under_way { Some(layout.goal) } else { slots.doubled() }) {
                Some(wanted) if wanted > slots || under_way && wanted == layout.goal => wanted,
                _ => return Err(Error::failed_precondition(format!("there are {} shards already", slots.get()))),
            };
            if wanted > layout.goal {
                let unavailable = |error: StoreError| Error::unavailable(error.to_string());
                let stored = setup.store.read_goal().await.map_err(unavailable)?;
                match setup.store.cas_goal(stored, wanted).await.map_err(unavailable)? {
                    Cas::Applied => layout.goal = wanted,
                    Cas::Rejected(_) => continue,
                }
            }
            if wanted < layout.goal {
                let goal = layout.goal.get();
                return Err(Error::failed_precondition(format!("shards are being split into {goal}")));
            }
            self.inner.goal.send_replace(Some(layout.goal));
            return Ok(layout);
        }
    }

    /// Offers again what waits for a worker in task queues that have got another home.
    pub async fn offer_again(&self, moved: QueueFilter) {
        for shard in self.inner.all() {
            shard.offer_again(moved.clone()).await;
        }
    }

    /// Offers again what was started for polls that get no answer.
    async fn polls_lost(&self, polls: Arc<BTreeSet<PollName>>) {
        for shard in self.inner.all() {
            shard.polls_lost(polls.clone()).await;
        }
    }

    /// Waits until the others have taken all shards, which they do when they see this node drain; then stops. After
    /// `patience` what is left is sealed with the session, and claimed by the others from there.
    pub async fn drain(&self, patience: Duration) {
        let mut served = self.served();
        let emptied = served.wait_for(|served| served.shards.is_empty());
        if tokio::time::timeout(patience, emptied).await.is_err() {
            tracing::warn!("not all shards were taken by others");
        }
        self.stop().await;
    }

    /// Stops in good order: no more calls, everything answered and written, the log sealed.
    pub async fn stop(&self) {
        let supervisor = self.supervisor().take();
        let Some(Supervisor { stop, task }) = supervisor else {
            return;
        };
        let (done, stopped) = oneshot::channel();
        if stop.send(done).await.is_ok() {
            let _ = stopped.await;
        }
        let _ = task.await;
    }

    /// Ends as a crash would: nothing is finished, nothing is written.
    pub async fn crash(&self) {
        self.inner.route(None);
        let supervisor = self.supervisor().take();
        if let Some(Supervisor { task, .. }) = supervisor {
            task.abort();
            let _ = task.await;
        }
    }

    /// Returns, with the reason, when serving has ended for good though nobody asked: the store refuses writes, or is
    /// damaged.
    pub async fn ended(&self) -> StoreError {
        let ended = self.inner.ended.wait_for(Option::is_some).await;
        ended.unwrap_or_else(|| StoreError::Unavailable("the node is gone".to_owned()))
    }

    fn supervisor(&self) -> std::sync::MutexGuard<'_, Option<Supervisor>> {
        self.inner.supervisor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn setup(&self) -> Result<Arc<Setup>, Error> {
        self.setup.get().and_then(Weak::upgrade).ok_or_else(moving)
    }

    fn route(&self, period: Option<&Period>) {
        *self.routes.write().unwrap_or_else(PoisonError::into_inner) = period.map(|period| period.registry.clone());
        self.publish(period);
    }

    fn publish(&self, period: Option<&Period>) {
        let now = period.map_or_else(Served::default, Period::served);
        self.served.send_if_modified(|served| {
            let is_new = *served != now;
            *served = now;
            is_new
        });
    }

    /// The shard is not here.
    fn elsewhere(&self, shard: ShardId) -> Error {
        let hints = self.hints.lock().unwrap_or_else(PoisonError::into_inner);
        Error::not_owner(hints.get(&shard).map(NodeId::as_str))
    }

    fn all(&self) -> Vec<ShardHandle> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        let Some(shards) = routes.as_deref() else { return Vec::new() };
        shards.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn status(&self, shard: ShardId) -> ShardStatus {
        match self.shard(shard) {
            Some(handle) => status_of(&handle),
            None => ShardStatus { shard: shard.0, ..ShardStatus::default() },
        }
    }

    /// The shard of this node that an entity lives in: that one, or what became of it.
    fn holder(&self, shard: ShardId, chain: &ChainKey) -> Option<ShardHandle> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        let shards = routes.as_deref()?.read().unwrap_or_else(PoisonError::into_inner);
        let holds = |shard: &ShardId| shards.get(shard).filter(|handle| handle.holds(chain)).cloned();
        holds(&shard).or_else(|| {
            let sizes = std::iter::successors(SlotCount::new(1), |slots| slots.doubled());
            let numbers: BTreeSet<ShardId> = sizes.map(|slots| chain.shard(slots)).collect();
            numbers.iter().rev().find_map(holds)
        })
    }

    fn shard(&self, shard: ShardId) -> Option<ShardHandle> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        let shards: &RwLock<BTreeMap<ShardId, ShardHandle>> = routes.as_deref()?;
        shards.read().unwrap_or_else(PoisonError::into_inner).get(&shard).cloned()
    }
}

fn status_of(handle: &ShardHandle) -> ShardStatus {
    let Claim { shard, row, .. } = handle.claim();
    let load = handle.load();
    ShardStatus {
        shard: shard.0,
        ownership: handle.ownership().name().to_owned(),
        epoch: row.epoch.0,
        session: row.owner.map(|session| session.to_string()).unwrap_or_default(),
        checkpoint_epoch: row.checkpoint.epoch.0,
        checkpoint_seq: row.checkpoint.seq.0,
        loaded: load.entities as u64,
        dirty: handle.is_dirty(),
        slots: row.split.as_ref().map_or(0, |split| split.slots.get()),
        commit_latency_ns: load.commit_latency_ns,
        waiting: load.waiting as u64,
        uncommitted: load.uncommitted as u64,
    }
}

#[allow(clippy::disallowed_methods, reason = "where the system's randomness enters, if no seed is given")]
fn random_seed() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}

fn next_ids(ids: &mut IdSource) -> IdSource {
    IdSource::new(seed(ids))
}

/// Where a shard's answer to a call comes.
type Answer = oneshot::Receiver<Result<WorkflowReply, Error>>;

enum Happened {
    Stop(Option<oneshot::Sender<()>>),
    Ended(LogState),
    Asked(Ask),
    Event(Event),
}

/// Keeps the node serving: one period after the other.
struct Supervised {
    inner: Arc<Inner>,
    setup: Arc<Setup>,
    joining: Option<(Joining, Hints)>,
    ids: IdSource,
    stops: mpsc::Receiver<oneshot::Sender<()>>,
    asks: mpsc::Receiver<Ask>,
}

impl Supervised {
    async fn run(mut self, mut period: Period) {
        loop {
            let log = period.log.clone();
            let happened = tokio::select! {
                biased;
                stop = self.stops.recv() => Happened::Stop(stop),
                ended = log.ended() => Happened::Ended(ended),
                Some(ask) = self.asks.recv() => Happened::Asked(ask),
                event = period.next() => Happened::Event(event),
            };
            match happened {
                Happened::Stop(done) => return self.stop(period, done).await,
                Happened::Ended(LogState::Failed(error)) => {
                    self.inner.route(None);
                    self.inner.ended.set(Some(error));
                    return;
                }
                // A3, C4: nothing of the old period is left when the next one begins.
                Happened::Ended(LogState::Live | LogState::Fenced | LogState::Closed) => {
                    self.inner.route(None);
                    drop(period);
                    period = self.begin_again().await;
                    self.inner.route(Some(&period));
                }
                Happened::Asked((call, reply)) => period.asked(&call, reply),
                Happened::Event(Event::Moved(done)) => {
                    period.moved(done);
                    self.inner.publish(Some(&period));
                }
                Happened::Event(Event::Halved) => self.inner.publish(Some(&period)),
                Happened::Event(Event::Panicked(shard)) => {
                    self.inner.publish(Some(&period));
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    if let Err(error) = period.reload(shard).await {
                        tracing::error!(shard_id = shard.0, %error, "the shard cannot be loaded again");
                    }
                }
            }
        }
    }

    async fn stop(self, period: Period, done: Option<oneshot::Sender<()>>) {
        self.inner.route(None);
        if let Err(error) = period.stop().await {
            tracing::error!(%error, "the session could not be sealed; the next start replays its log");
        }
        if let Some(done) = done {
            let _ = done.send(());
        }
    }

    async fn begin_again(&mut self) -> Period {
        let mut backoff = Backoff::new();
        loop {
            let goal = self.inner.goal.clone();
            match Period::start(self.setup.clone(), next_ids(&mut self.ids), self.joining.clone(), goal).await {
                Ok(period) => return period,
                Err(error) => tracing::error!(%error, "serving cannot begin again, trying once more"),
            }
            backoff.wait().await;
        }
    }
}
