//! One task for each owned shard: the only place where a shard waits.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures::{
    future::BoxFuture,
    stream::{self, StreamExt},
};
use perdure_proto::{Error, perdure::node::v1::workflow_call::Command};
use perdure_types::{ChainKey, PollName, QueueFilter, SlotCount, Timestamp};
use perdure_workflow::IdSource;
use tokio::{
    sync::{Notify, mpsc, oneshot},
    time::Instant,
};

use crate::{
    claim::Claim,
    clock::Clock,
    core::{Core, NodeContext, Slice, restore},
    entry::ReplyTo,
    jobs::{Event, Jobs, Outside},
    lanes::Lanes,
    log::Log,
    recover::{self, RecoverError, Replay},
    split,
    trace::Caller,
    watched::Watched,
};

/// Where a shard stands on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ownership {
    /// Claimed; its log is being read.
    Acquiring,
    /// Its chains are being rebuilt.
    Recovering,
    Serving,
    /// Takes nothing new; it is about to have another owner (C3).
    Releasing,
    /// The session was fenced or has ended: the state was dropped.
    Fenced,
    /// Not served: damaged, or stopped.
    Stopped,
}

impl Ownership {
    /// As operators see it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Acquiring => "acquiring",
            Self::Recovering => "recovering",
            Self::Serving => "serving",
            Self::Releasing => "releasing",
            Self::Fenced => "fenced",
            Self::Stopped => "stopped",
        }
    }
}

/// A call for a chain of the shard.
pub(crate) struct Call {
    pub chain: ChainKey,
    pub command: Box<Command>,
    pub reply: ReplyTo,
    pub caller: Caller,
}

/// What operators see of a shard's work.
pub(crate) struct Load {
    /// Entities in memory.
    pub entities: usize,
    /// Calls that are not begun.
    pub waiting: usize,
    /// Answers and effects that wait for the log.
    pub uncommitted: usize,
    /// Smoothed.
    pub commit_latency_ns: u64,
}

/// The same as its task notes it.
#[derive(Default)]
struct Meters {
    entities: AtomicUsize,
    uncommitted: AtomicUsize,
    commit_latency_ns: AtomicU64,
}

impl Meters {
    /// A row with records of the shard was covered.
    fn covered(&self, latency_ns: u64) {
        let before = self.commit_latency_ns.load(Ordering::Relaxed);
        let smoothed = if before == 0 { latency_ns } else { (before * 7 + latency_ns) / 8 };
        self.commit_latency_ns.store(smoothed, Ordering::Relaxed);
    }
}

/// How the rest of the node reaches a shard's task.
#[derive(Clone)]
pub(crate) struct ShardHandle {
    pub calls: mpsc::Sender<Call>,
    events: mpsc::Sender<Event>,
    ownership: Arc<Watched<Ownership>>,
    /// Something has changed since the last flush took it.
    dirty: Arc<AtomicBool>,
    meters: Arc<Meters>,
    claim: Arc<Mutex<Claim>>,
    pub log: Log,
    /// How many shards there were at the beginning.
    first: SlotCount,
}

impl ShardHandle {
    pub(crate) fn ownership(&self) -> Ownership {
        self.ownership.get()
    }

    /// Waits until the shard serves; false if it will not.
    pub(crate) async fn serving(&self) -> bool {
        let settled = |now: &Ownership| !matches!(now, Ownership::Acquiring | Ownership::Recovering);
        self.ownership.wait_for(settled).await == Ownership::Serving
    }

    /// Something has changed since the last flush took it.
    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::SeqCst)
    }

    /// What it has to do.
    pub(crate) fn load(&self) -> Load {
        Load {
            entities: self.meters.entities.load(Ordering::Relaxed),
            waiting: self.calls.max_capacity() - self.calls.capacity(),
            uncommitted: self.meters.uncommitted.load(Ordering::Relaxed),
            commit_latency_ns: self.meters.commit_latency_ns.load(Ordering::Relaxed),
        }
    }

    /// Whether the entity lives in this shard: not in another one, nor in the other half of one that was split.
    pub(crate) fn holds(&self, chain: &ChainKey) -> bool {
        let claim = self.claim.lock().unwrap_or_else(PoisonError::into_inner);
        chain.shard(split::slots_of(&claim.row, self.first)) == claim.shard
    }

    pub(crate) fn claim(&self) -> Claim {
        self.claim.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_claim_row(&self, row: perdure_persistence::ShardRow) {
        self.claim.lock().unwrap_or_else(PoisonError::into_inner).row = row;
    }

    /// Rows for a flush; `None` if the shard has ended.
    pub(crate) async fn gather(&self, begin: bool, max_bytes: usize) -> Option<Slice> {
        let (slice, taken) = oneshot::channel();
        self.events.send(Event::Gather { begin, max_bytes, slice }).await.ok()?;
        taken.await.ok()
    }

    /// Rows for the list of runs; `None` if the shard has ended.
    pub(crate) async fn gather_listings(&self, max_bytes: usize) -> Option<Slice> {
        let (slice, taken) = oneshot::channel();
        self.events.send(Event::GatherListings { max_bytes, slice }).await.ok()?;
        taken.await.ok()
    }

    pub(crate) async fn listed(&self, notes: Vec<crate::core::ListNote>) {
        let _ = self.events.send(Event::Listed(notes)).await;
    }

    pub(crate) async fn flushed(&self, notes: Vec<crate::core::FlushNote>) {
        let _ = self.events.send(Event::Flushed(notes)).await;
    }

    /// C3: stops the shard: it refuses what it has not begun, and appends nothing more once this returns. False: it was not
    /// serving.
    pub(crate) async fn release(&self) -> bool {
        let mut was_serving = false;
        self.ownership.update(|ownership| {
            was_serving = *ownership == Ownership::Serving;
            if was_serving {
                *ownership = Ownership::Releasing;
            }
            was_serving
        });
        let (quiet, done) = oneshot::channel();
        if was_serving && self.events.send(Event::Release(quiet)).await.is_ok() {
            let _ = done.await;
        }
        was_serving
    }

    /// The task of a released shard ends.
    pub(crate) async fn end(&self) {
        let _ = self.events.send(Event::End).await;
    }

    /// Offers again what waits for a worker in these task queues.
    pub(crate) async fn offer_again(&self, moved: QueueFilter) {
        let _ = self.events.send(Event::OfferAgain(moved)).await;
    }

    /// Offers again what was started for polls that get no answer. A shard that is being recovered does it afterwards.
    pub(crate) async fn polls_lost(&self, polls: Arc<BTreeSet<PollName>>) {
        let _ = self.events.send(Event::PollsLost(polls)).await;
    }

    /// Returns when the shard has answered all it was asked, or has ended.
    pub(crate) async fn quiesce(&self) {
        let (quiet, done) = oneshot::channel();
        if self.events.send(Event::Quiesce(quiet)).await.is_ok() {
            let _ = done.await;
        }
    }
}

/// Longest sleep: a clock that was set forward is noticed by then.
const LONGEST_SLEEP: Duration = Duration::from_secs(600);

/// Chains that recovery reads at once, a shard.
const RESTORED_AT_ONCE: usize = 16;

/// Calls taken in one turn of the loop.
const CALLS_A_TURN: usize = 64;

pub(crate) struct ShardTask {
    core: Core,
    jobs: Jobs,
    calls: mpsc::Receiver<Call>,
    events: mpsc::Receiver<Event>,
    wake: Arc<Notify>,
    meters: Arc<Meters>,
    /// Tickets that were covered when the latency was noted last.
    covered: u64,
    log: Log,
    clock: Arc<Clock>,
    ownership: Arc<Watched<Ownership>>,
    outside: Outside,
    quiet: Option<oneshot::Sender<()>>,
    quiescing: bool,
    /// Handed over: takes no calls any more.
    releasing: bool,
    /// Its new owner has it.
    given: bool,
}

impl ShardTask {
    pub(crate) fn new(
        claim: Claim,
        log: &Log,
        node: Arc<NodeContext>,
        outside: Outside,
        clock: Arc<Clock>,
        ids: IdSource,
    ) -> (Self, ShardHandle) {
        let wake = Arc::new(Notify::new());
        let dirty = Arc::new(AtomicBool::new(false));
        let meters = Arc::new(Meters::default());
        let (call_sender, calls) = mpsc::channel(node.config.mailbox_calls.max(1));
        let (event_sender, events) = mpsc::channel(1024);
        let ownership = Arc::new(Watched::new(Ownership::Acquiring));
        let lanes = Lanes::of(claim.shard, &claim.row, node.first);
        let jobs = Jobs::new(lanes, outside.clone(), event_sender.clone(), node.config.calls_in_flight);
        let handle = ShardHandle {
            calls: call_sender,
            events: event_sender,
            ownership: ownership.clone(),
            dirty: dirty.clone(),
            meters: meters.clone(),
            claim: Arc::new(Mutex::new(claim.clone())),
            log: log.clone(),
            first: node.first,
        };
        let core = Core::new(claim, log.for_shard(wake.clone()), node, ids, dirty, clock.now());
        let log = log.clone();
        let task = Self {
            core,
            jobs,
            calls,
            events,
            wake,
            meters,
            covered: 0,
            log,
            clock,
            ownership,
            outside,
            quiet: None,
            quiescing: false,
            releasing: false,
            given: false,
        };
        (task, handle)
    }

    /// Recovers, then serves until the session ends.
    pub(crate) async fn run(mut self, replay: Result<Replay, RecoverError>) {
        self.ownership.set(Ownership::Recovering);
        let shard_id = self.core.shard().0;
        let recovered = match replay {
            Ok(replay) => self.recover(replay).await,
            Err(error) => Err(error),
        };
        if let Err(error) = recovered {
            // C2: never served with a hole in it.
            tracing::error!(shard_id, %error, "shard cannot be recovered and is not served");
            self.ownership.set(Ownership::Stopped);
            return;
        }
        self.ownership.set(Ownership::Serving);
        self.serve().await;
        self.ownership.set(if self.given { Ownership::Stopped } else { Ownership::Fenced });
        self.refuse_calls();
        self.core.fail_all(&ended());
    }

    async fn recover(&mut self, replay: Replay) -> Result<(), RecoverError> {
        let store = &*self.outside.store;
        let mut chains: Vec<BoxFuture<'_, Result<_, RecoverError>>> = Vec::new();
        for (key, chain) in recover::by_chain(replay)? {
            chains.push(Box::pin(async move {
                let entry = restore(store, &key, chain).await?;
                Ok((key, entry))
            }));
        }
        let mut restored = stream::iter(chains).buffered(RESTORED_AT_ONCE);
        while let Some(chain) = restored.next().await {
            let (key, entry) = chain?;
            self.core.recovered(key, entry);
            self.log.mark_dirty();
        }
        Ok(())
    }

    /// What was not begun can be done elsewhere.
    fn refuse_calls(&mut self) {
        self.calls.close();
        while let Ok(call) = self.calls.try_recv() {
            let _ = call.reply.send(Err(moving()));
        }
    }

    async fn serve(&mut self) {
        let log = self.log.clone();
        let ended = log.ended();
        tokio::pin!(ended);
        let wake = self.wake.clone();
        let sleep = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(sleep);
        let mut sleeping_until: Option<Timestamp> = None;
        loop {
            self.step();
            if self.given || self.core.has_ended() || !self.log.is_live() {
                return;
            }
            let deadline = self.core.next_deadline().filter(|_| !self.quiescing);
            if deadline != sleeping_until {
                sleeping_until = deadline;
                if let Some(at) = deadline {
                    let delay = at.since(self.clock.now()).to_std().min(LONGEST_SLEEP);
                    sleep.as_mut().reset(Instant::now() + delay);
                }
            }
            let (congested, busy) = (self.core.is_congested(), !self.jobs.is_empty());
            tokio::select! {
                biased;
                _ = &mut ended => return,
                () = wake.notified() => self.on_covered(),
                event = self.events.recv() => match event {
                    Some(event) => self.on_event(event),
                    None => return,
                },
                () = self.jobs.reap(), if busy => {}
                () = &mut sleep, if deadline.is_some() => sleeping_until = None,
                call = self.calls.recv(), if !congested && !self.releasing => match call {
                    Some(call) => self.take_calls(call),
                    // Nobody routes to this shard any more.
                    None => return,
                },
                () = tokio::time::sleep(Duration::from_millis(1)), if congested => {}
            }
        }
    }

    /// What follows from what has happened, and is due.
    fn step(&mut self) {
        let now = self.clock.now();
        self.meters.entities.store(self.core.loaded_count(), Ordering::Relaxed);
        self.meters.uncommitted.store(self.core.uncommitted_count(), Ordering::Relaxed);
        if !self.quiescing && self.core.next_deadline().is_some_and(|at| at <= now) {
            self.core.on_timer(now);
        }
        for output in self.core.take_outputs(!self.quiescing && !self.jobs.are_many()) {
            self.jobs.start(output);
        }
        if self.quiescing
            && self.core.is_quiet()
            && (!self.releasing || self.jobs.reads_are_done())
            && let Some(quiet) = self.quiet.take()
        {
            let _ = quiet.send(());
        }
    }

    /// The log has covered records of the shard, or a fence read was answered.
    fn on_covered(&mut self) {
        let (covered, latency_ns) = self.log.last_covered();
        if covered != std::mem::replace(&mut self.covered, covered) {
            self.meters.covered(latency_ns);
        }
        self.core.on_covered(self.clock.now());
    }

    fn take_calls(&mut self, first: Call) {
        let now = self.clock.now();
        let mut next = Some(first);
        for _ in 0..CALLS_A_TURN {
            let Some(call) = next.take() else {
                return;
            };
            self.core.call(call, now);
            next = self.calls.try_recv().ok();
        }
        if let Some(call) = next {
            self.core.call(call, now);
        }
    }

    fn on_event(&mut self, event: Event) {
        let now = self.clock.now();
        match event {
            Event::Loaded(job, result) => self.core.loaded(job, result, now),
            Event::HistoriesRead(key, result) => self.core.histories_read(&key, result, now),
            Event::WakeupsRead(rows) => self.core.wakeups_read(rows, now),
            Event::CallResult { chain, id, result } => {
                if !self.quiescing {
                    self.core.call_result(&chain, &id, *result, now);
                }
            }
            Event::OfferRefused(offer) => {
                if !self.quiescing {
                    self.core.offer_refused(*offer, now);
                }
            }
            Event::Gather { begin, max_bytes, slice } => {
                let _ = slice.send(self.core.gather(begin, max_bytes, now));
            }
            Event::GatherListings { max_bytes, slice } => {
                let _ = slice.send(self.core.gather_listings(max_bytes, now));
            }
            Event::Listed(notes) => self.core.listed(notes),
            Event::Flushed(notes) => self.core.flushed(notes, now),
            Event::Quiesce(quiet) => self.quiesce(quiet),
            Event::Release(quiet) => {
                self.releasing = true;
                self.refuse_calls();
                self.quiesce(quiet);
            }
            Event::End => self.given = true,
            Event::OfferAgain(moved) => {
                if !self.quiescing {
                    self.core.offer_again(&moved);
                }
            }
            Event::PollsLost(polls) => {
                if !self.quiescing {
                    self.core.polls_lost(&polls, now);
                }
            }
        }
    }
}

impl ShardTask {
    fn quiesce(&mut self, quiet: oneshot::Sender<()>) {
        self.quiescing = true;
        self.quiet = Some(quiet);
        self.jobs.stop_effects();
        // What they wait for can be asked of the next owner.
        self.core.dismiss_watchers(&moving());
    }
}

impl Drop for ShardTask {
    /// Also when the task panics: what it had is not in the tables, so the base of the log must not move.
    fn drop(&mut self) {
        self.ownership.update(|ownership| {
            let ended_early = !matches!(ownership, Ownership::Fenced | Ownership::Stopped);
            if ended_early {
                *ownership = Ownership::Stopped;
            }
            ended_early
        });
    }
}

/// What callers hear whose call was not begun: whoever owns the shard next can have it.
pub(crate) fn moving() -> Error {
    Error::not_owner(None)
}

/// What callers hear when a shard's serving ends under them.
pub(crate) fn ended() -> Error {
    Error::in_doubt("the shard of this workflow is moving, try again")
}
