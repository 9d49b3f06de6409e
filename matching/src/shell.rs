//! What turns the synchronous queues into a service: the clock, the one way to step a queue, wake-ups, and the sweep.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicBool, Ordering},
};

use perdure_types::{Duration, Timestamp};
use tokio::runtime::Handle;

use crate::{
    MatchingConfig, TaskStarter,
    ambient::Clock,
    depart::Departures,
    follow::Families,
    nexus::NexusRequests,
    offer::TaskOffer,
    poll::Waiter,
    query::Queries,
    queue::{Match, Queue},
    registry::{QueueCell, QueueKind, Registry},
    shutdown::StoppedWorkers,
    telemetry::Telemetry,
};

/// How often queues are looked through for what is too old.
const SWEEP: Duration = Duration::from_secs(60);

/// State and services behind [`crate::Matching`].
pub(crate) struct Shell {
    pub starter: Arc<dyn TaskStarter>,
    pub config: MatchingConfig,
    pub registry: Registry,
    pub queries: Queries,
    pub nexus: NexusRequests,
    pub stopped_workers: StoppedWorkers,
    pub telemetry: Telemetry,
    pub departures: Departures,
    pub families: Families,
    draining: AtomicBool,
    clock: Clock,
    runtime: Handle,
}

impl Shell {
    pub fn start(starter: Arc<dyn TaskStarter>, config: MatchingConfig) -> Arc<Self> {
        let shell = Arc::new(Self {
            starter,
            config,
            registry: Registry::new(),
            queries: Queries::default(),
            nexus: NexusRequests::default(),
            stopped_workers: StoppedWorkers::default(),
            telemetry: Telemetry::new(),
            departures: Departures::default(),
            families: Families::default(),
            draining: AtomicBool::new(false),
            clock: Clock::new(),
            runtime: Handle::current(),
        });
        shell.spawn(sweep_until_dropped(Arc::downgrade(&shell)));
        shell
    }

    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Also from where no runtime is entered, such as a destructor.
    pub fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(future);
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// One step of one queue; afterwards a wake-up is set if the queue needs one. The caller dispatches the match.
    pub fn step<R>(
        self: &Arc<Self>,
        cell: &Arc<QueueCell>,
        step: impl FnOnce(&mut Queue<Box<Waiter>>, Timestamp) -> R,
    ) -> R {
        let now = self.now();
        let mut core = cell.lock();
        let before = core.queue.backlog_len();
        let result = step(&mut core.queue, now);
        let after = core.queue.backlog_len();
        let wake_at = core.queue.wake_at().filter(|at| core.armed.is_none_or(|armed| *at < armed));
        if wake_at.is_some() {
            core.armed = wake_at;
        }
        drop(core);
        cell.meters.backlog_changed(before, after);
        if let Some(at) = wake_at {
            self.spawn(Arc::clone(self).wake(Arc::clone(cell), at));
        }
        result
    }

    /// Sleeps, then hands out what time alone has made possible. A later step may have set an earlier wake-up: then this
    /// one finds nothing to do.
    async fn wake(self: Arc<Self>, cell: Arc<QueueCell>, at: Timestamp) {
        tokio::time::sleep_until(self.clock.instant(at)).await;
        {
            let mut core = cell.lock();
            if core.armed == Some(at) {
                core.armed = None;
            }
        }
        while let Some(matched) = self.step(&cell, |queue, now| queue.next(now)) {
            self.dispatch_in_background(&cell, matched);
        }
    }

    /// Starts a matched task, or a query, away from the caller: neither an offer nor a poll that is dropped cancels it.
    pub fn dispatch_in_background(self: &Arc<Self>, cell: &Arc<QueueCell>, matched: Match<Box<Waiter>>) {
        self.spawn(Arc::clone(self).dispatch(Arc::clone(cell), matched));
    }

    /// The cell of a queue, which is made if need be.
    pub fn cell(&self, namespace_id: &str, kind: QueueKind, name: &str) -> Arc<QueueCell> {
        let meters = |name: &Arc<str>| {
            let namespace = self.starter.namespace_name(namespace_id);
            self.telemetry.queue(namespace, kind, name)
        };
        self.registry.get_or_create(self.now(), namespace_id, kind, name, meters)
    }

    /// Brings up to date what is not counted as it happens.
    pub fn measure(&self) {
        let (cells, now) = (self.registry.all(), self.now());
        self.telemetry.queues(cells.len());
        for cell in cells {
            let age = cell.lock().queue.backlog_age(now);
            cell.meters.backlog_age(age);
        }
    }

    /// False: a sticky queue that no worker serves.
    pub fn offer(
        self: &Arc<Self>,
        namespace_id: &str,
        kind: QueueKind,
        name: &str,
        offer: impl FnOnce(Timestamp) -> TaskOffer,
    ) -> bool {
        let sticky = kind == QueueKind::Sticky;
        let cell = if sticky {
            self.registry.get(namespace_id, kind, name)
        } else {
            Some(self.queue(namespace_id, kind, name))
        };
        let window = self.config.sticky_poller_window;
        let offered = cell.and_then(|cell| {
            let (served, matched) = self.step(&cell, |queue, now| {
                let served = queue.has_recent_poller(now, window);
                if sticky && !served {
                    return None;
                }
                let offer = offer(now);
                let known = cell.family().filter(|_| sticky).and_then(|family| family.known(kind.task_type()));
                let may_stick = known.is_none_or(|k| k.routing.may_stick(offer.workflow_id(), offer.directive()));
                // A sticky queue has one worker: its version is known, and the shard looks at it.
                let offer = if sticky { offer.without_version() } else { offer };
                may_stick.then(|| (served, queue.offer(now, offer)))
            })?;
            cell.meters.added(served);
            Some((cell, matched))
        });
        let Some((cell, matched)) = offered else {
            self.telemetry.offer_refused();
            return false;
        };
        if let Some(matched) = matched {
            cell.meters.matched_at_once();
            self.dispatch_in_background(&cell, matched);
        }
        true
    }

    /// Answers all polls empty, from now on, and tells queries to go elsewhere.
    pub fn drain(self: &Arc<Self>) {
        // The flag first: a poll that misses it is in its queue before the loop comes there.
        self.draining.store(true, Ordering::SeqCst);
        for cell in self.registry.all() {
            let polls = self.step(&cell, |queue, _| queue.take_polls(|_| true));
            polls.into_iter().for_each(Waiter::answer_empty);
        }
        let error = perdure_proto::Error::unavailable("This node is shutting down.");
        self.queries.fail_all(&error);
        self.nexus.fail_all(&error);
    }
}

async fn sweep_until_dropped(shell: Weak<Shell>) {
    let mut tick = tokio::time::interval(SWEEP.to_std());
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let Some(shell) = shell.upgrade() else { return };
        let now = shell.now();
        shell.forget_departed(now);
        shell.registry.sweep(now, shell.config.queue_idle, shell.config.poller_history);
        shell.families.sweep();
        shell.stopped_workers.expire(now);
    }
}
