//! One task queue: offers and queries on one side, polls on the other. Synchronous and without a clock; whoever holds it
//! passes the time.
//!
//! Invariants:
//! - MQ-1: an offer is in the backlog, or in exactly one [`Match`] that is under way, or gone for good by its holder's
//!   word. Whoever gets a match finishes it, or brings its parts back ([`Queue::put_back`], [`Queue::resume`]).
//! - MQ-2: a poll is waiting here, or in exactly one match.
//! - MQ-3: after each call, either no poll waits, or nothing may be handed out before [`Queue::wake_at`].
//!
//! Workers of different versions do not get the same tasks: each version has a *lane*, with its own backlog and polls, and
//! unversioned workers have the first. The routing says which lane a task is in; when it changes, tasks change lanes. Until
//! the routing is known the queue is *held*: it takes offers and polls, and matches none.
//!
//! A queue is one partition. Several of them side by side, with offers spread over them, make a partitioned queue.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use perdure_proto::{
    perdure::node::v1::VersionDirective,
    temporal::api::{
        deployment::v1::WorkerDeploymentVersion as Version, enums::v1::TaskQueueType, taskqueue::v1::PollerInfo,
    },
};
use perdure_types::{Duration, Timestamp};
use uuid::Uuid;

use crate::{
    backlog::{Backlog, Queued},
    fairness::KeyLimits,
    limiter::Limiter,
    offer::{Priority, TaskOffer},
    pollers::{PollerView, Pollers},
    routing::{Asked, Routing},
    stats::Rates,
};

/// Where the tasks for workers of one version are, and their polls.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct LaneId(u32);

/// A poll of one queue, in order of arrival.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct PollId(u64, LaneId);

/// What a poll gets.
#[derive(Debug)]
pub(crate) enum Work {
    Task(Queued),
    Query(Uuid),
}

/// A poll and what it gets. Neither is in the queue any more.
#[derive(Debug)]
pub(crate) struct Match<W> {
    pub poll: PollId,
    pub waiter: W,
    pub work: Work,
    /// Offers left behind.
    pub backlog: usize,
    /// More polls would help: tasks wait longer than they should.
    pub pressed: bool,
}

/// Why a poll leaves the queue without work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Leave {
    TimedOut,
    /// Its client is gone.
    Vanished,
}

/// For which workers a query is.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct QueryRoute {
    pub workflow_id: String,
    pub directive: Option<Box<VersionDirective>>,
}

/// What operators have set for a queue.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct QueueSettings {
    /// In place of what workers ask for.
    pub per_second: Option<f64>,
    /// For each fairness key of weight 1.
    pub per_second_of_key: Option<f64>,
    pub weights: HashMap<String, f32>,
}

/// The backlog and the rates of one priority, or of all.
#[derive(Clone, Copy, Default, Debug, PartialEq)]
pub(crate) struct QueueStats {
    pub backlog: usize,
    pub backlog_age: Duration,
    pub added_per_second: f32,
    pub dispatched_per_second: f32,
    pub rate_limited: bool,
}

impl QueueStats {
    pub fn and(self, other: &Self) -> Self {
        Self {
            backlog: self.backlog + other.backlog,
            backlog_age: self.backlog_age.max(other.backlog_age),
            added_per_second: self.added_per_second + other.added_per_second,
            dispatched_per_second: self.dispatched_per_second + other.dispatched_per_second,
            rate_limited: self.rate_limited || other.rate_limited,
        }
    }
}

/// How long after a task was held back by the rate limit the queue says so.
const RATE_LIMITED_WINDOW: Duration = Duration::from_secs(30);
/// A task that waits longer means that polls are too few, as Temporal has it.
pub(crate) const PRESSED_AFTER: Duration = Duration::from_millis(200);
/// How often a second workers are told so.
const PRESSES_PER_SECOND: f64 = 10.0;

struct Lane<W> {
    /// `None`: unversioned workers.
    version: Option<Version>,
    backlog: Backlog,
    queries: VecDeque<(Uuid, QueryRoute)>,
    waiting: BTreeMap<PollId, W>,
    rates: [Option<Box<Rates>>; Priority::LEVELS],
}

impl<W> Lane<W> {
    fn new(version: Option<Version>) -> Self {
        Self {
            version,
            backlog: Backlog::default(),
            queries: VecDeque::new(),
            waiting: BTreeMap::new(),
            rates: Default::default(),
        }
    }

    fn rates(&mut self, now: Timestamp, priority: Priority) -> &mut Rates {
        self.rates[priority.index()].get_or_insert_with(|| Box::new(Rates::new(now)))
    }

    fn stats(&mut self, now: Timestamp, priority: Priority, rate_limited: bool) -> Option<QueueStats> {
        let (added_per_second, dispatched_per_second) = self.rates[priority.index()].as_mut()?.per_second(now);
        let waits_since = self.backlog.head_waits_since(priority);
        Some(QueueStats {
            backlog: self.backlog.count(priority),
            backlog_age: waits_since.map_or(Duration::ZERO, |since| now.since(since)),
            added_per_second,
            dispatched_per_second,
            rate_limited,
        })
    }
}

pub(crate) struct Queue<W> {
    kind: TaskQueueType,
    /// The first one is that of unversioned workers. None ever goes: versions are few.
    lanes: Vec<Lane<W>>,
    routing: Arc<Routing>,
    held: bool,
    last_poll_id: u64,
    /// When a poll last came, or left other than by vanishing.
    poller_seen: Option<Timestamp>,
    last_use: Timestamp,
    pollers: Pollers,
    limiter: Limiter,
    /// What the latest poll asked for.
    asked_per_second: Option<f64>,
    settings: Arc<QueueSettings>,
    key_limits: KeyLimits,
    rate_limited_at: Option<Timestamp>,
    presses: Limiter,
}

impl<W> Queue<W> {
    #[cfg(test)]
    pub fn new(now: Timestamp) -> Self {
        Self::of(now, TaskQueueType::Workflow)
    }

    pub fn of(now: Timestamp, kind: TaskQueueType) -> Self {
        let mut presses = Limiter::default();
        presses.set_rate(now, PRESSES_PER_SECOND);
        Self {
            kind,
            lanes: vec![Lane::new(None)],
            routing: Arc::default(),
            held: false,
            last_poll_id: 0,
            poller_seen: None,
            last_use: now,
            pollers: Pollers::default(),
            limiter: Limiter::default(),
            asked_per_second: None,
            settings: Arc::default(),
            key_limits: KeyLimits::default(),
            rate_limited_at: None,
            presses,
        }
    }

    /// Matches nothing until [`Queue::set_routing`].
    pub fn hold(&mut self) {
        self.held = true;
    }

    pub fn backlog_len(&self) -> usize {
        self.lanes.iter().map(|lane| lane.backlog.len()).sum()
    }

    /// How long the offer has waited that has waited longest.
    pub fn backlog_age(&self, now: Timestamp) -> Duration {
        let of_lane = |lane: &Lane<W>| Priority::all().filter_map(|p| lane.backlog.head_waits_since(p)).min();
        self.lanes.iter().filter_map(of_lane).min().map_or(Duration::ZERO, |since| now.since(since))
    }

    // ---- Lanes -------------------------------------------------------------------------------------------------

    /// The lane of a version.
    pub fn lane_of(&mut self, version: Option<&Version>) -> LaneId {
        let index = self.lanes.iter().position(|lane| lane.version.as_ref() == version).unwrap_or_else(|| {
            self.lanes.push(Lane::new(version.cloned()));
            self.lanes.len() - 1
        });
        LaneId(u32::try_from(index).unwrap_or_default())
    }

    fn lane(&mut self, id: LaneId) -> &mut Lane<W> {
        // Ids come from `lane_of`, and lanes stay.
        &mut self.lanes[id.0 as usize]
    }

    fn route(&mut self, workflow_id: &str, directive: Option<&VersionDirective>) -> LaneId {
        if directive.is_none() && self.routing.is_plain() {
            return LaneId::default();
        }
        let asked = Asked { workflow_id, directive, place: None };
        let (version, _) = self.routing.route(self.kind, asked);
        self.lane_of(version.as_ref())
    }

    fn lane_of_offer(&mut self, offer: &TaskOffer) -> LaneId {
        if offer.directive().is_none() && self.routing.is_plain() {
            return LaneId::default();
        }
        let (version, _) = self.routing.route(self.kind, offer.asked());
        self.lane_of(version.as_ref())
    }

    /// What the queue follows from now on. Call [`Queue::next`] until `None` after it.
    pub fn set_routing(&mut self, now: Timestamp, routing: Arc<Routing>, settings: Arc<QueueSettings>) {
        let same = *routing == *self.routing && settings == self.settings;
        if !std::mem::take(&mut self.held) && same {
            return;
        }
        self.routing = routing;
        self.settings = settings;
        self.key_limits.set(self.settings.per_second_of_key, self.settings.weights.clone());
        self.set_rate(now);
        let mut offers = Vec::new();
        let mut queries = Vec::new();
        for lane in &mut self.lanes {
            offers.extend(lane.backlog.drain());
            queries.extend(std::mem::take(&mut lane.queries));
        }
        for offer in offers {
            let lane = self.lane_of_offer(&offer);
            let offer = self.weighted(offer);
            self.lane(lane).backlog.push(offer);
        }
        for (id, route) in queries {
            let lane = self.route(&route.workflow_id, route.directive.as_deref());
            self.lane(lane).queries.push_back((id, route));
        }
    }

    fn weighted(&self, mut offer: TaskOffer) -> TaskOffer {
        if self.key_limits.has_weights()
            && let Some(weight) = self.key_limits.weight_of(offer.fairness_key())
        {
            offer.set_weight(weight);
        }
        offer
    }

    // ---- Offers and queries ------------------------------------------------------------------------------------

    /// A task can be started. It goes to the longest-waiting poll, or waits.
    pub fn offer(&mut self, now: Timestamp, offer: TaskOffer) -> Option<Match<W>> {
        self.last_use = now;
        let id = self.lane_of_offer(&offer);
        let offer = self.weighted(offer);
        let priority = offer.priority;
        let at_once = !self.held && !self.key_limits.is_set();
        let lane = self.lane(id);
        if at_once
            && lane.backlog.is_empty()
            && lane.queries.is_empty()
            && !lane.waiting.is_empty()
            && self.limiter.take(now)
        {
            let lane = self.lane(id);
            lane.rates(now, priority).added(now);
            let queued = lane.backlog.pass_through(offer);
            lane.rates(now, priority).dispatched(now);
            return self.hand_over(now, id, Work::Task(queued), false);
        }
        let lane = self.lane(id);
        if lane.backlog.push(offer) {
            lane.rates(now, priority).added(now);
        }
        self.next(now)
    }

    /// A matched task could not be started now; `due` says when to try again. Call [`Queue::next`] or
    /// [`Queue::resume`] after it.
    pub fn put_back(&mut self, now: Timestamp, queued: Queued, due: Option<Timestamp>) {
        let id = self.lane_of_offer(&queued.offer);
        self.limiter.refund();
        let lane = self.lane(id);
        lane.rates(now, queued.offer.priority).returned(now);
        lane.backlog.put_back(queued, due);
    }

    /// A matched task turned out to need no start: it did not count against the rate limit.
    pub fn obsolete(&mut self) {
        self.limiter.refund();
    }

    /// A query waits for a poll. Queries go first: somebody waits for the answer.
    pub fn query(&mut self, now: Timestamp, id: Uuid, route: QueryRoute) -> Option<Match<W>> {
        self.last_use = now;
        let lane = self.route(&route.workflow_id, route.directive.as_deref());
        self.lane(lane).queries.push_back((id, route));
        self.next(now)
    }

    pub fn remove_query(&mut self, id: Uuid) {
        for lane in &mut self.lanes {
            lane.queries.retain(|(query, _)| *query != id);
        }
    }

    // ---- Polls -------------------------------------------------------------------------------------------------

    /// What a worker says about itself in a poll, whether it gets to wait or not.
    pub fn poller_seen(&mut self, now: Timestamp, view: &PollerView) {
        self.pollers.seen(now, view);
        if view.rate_per_second.is_some() {
            self.asked_per_second = view.rate_per_second;
            self.set_rate(now);
        }
    }

    fn set_rate(&mut self, now: Timestamp) {
        match self.settings.per_second.or(self.asked_per_second) {
            Some(rate) => self.limiter.set_rate(now, rate),
            None => self.limiter.clear(),
        }
    }

    /// A new poll of an unversioned worker.
    #[cfg(test)]
    pub fn poll(&mut self, now: Timestamp, waiter: W) -> (PollId, Option<Match<W>>) {
        self.poll_lane(now, LaneId::default(), waiter)
    }

    /// A new poll. The match that it makes possible is nearly always its own.
    pub fn poll_lane(&mut self, now: Timestamp, lane: LaneId, waiter: W) -> (PollId, Option<Match<W>>) {
        self.last_poll_id += 1;
        let poll = PollId(self.last_poll_id, lane);
        (poll, self.resume(now, poll, waiter))
    }

    /// A matched poll waits again, in its old place.
    pub fn resume(&mut self, now: Timestamp, poll: PollId, waiter: W) -> Option<Match<W>> {
        self.last_use = now;
        self.poller_seen = Some(now);
        if self.lane(poll.1).waiting.is_empty() {
            return match self.next_work(now, poll.1) {
                Some((work, pressed)) => Some(Match { poll, waiter, work, backlog: self.backlog_len(), pressed }),
                None => {
                    self.lane(poll.1).waiting.insert(poll, waiter);
                    None
                }
            };
        }
        self.lane(poll.1).waiting.insert(poll, waiter);
        self.next(now)
    }

    /// Takes a poll out; `None` if it is matched already.
    pub fn leave(&mut self, now: Timestamp, poll: PollId, why: Leave) -> Option<W> {
        let waiter = self.lane(poll.1).waiting.remove(&poll);
        match why {
            Leave::TimedOut => self.poller_seen = Some(now),
            // The last poll of a worker that died: nobody should count on this queue.
            Leave::Vanished if !self.has_polls() => self.poller_seen = None,
            Leave::Vanished => {}
        }
        waiter
    }

    fn has_polls(&self) -> bool {
        self.lanes.iter().any(|lane| !lane.waiting.is_empty())
    }

    // ---- Matches -----------------------------------------------------------------------------------------------

    /// The next match that is possible now. Call until `None` after waiting for [`Queue::wake_at`].
    pub fn next(&mut self, now: Timestamp) -> Option<Match<W>> {
        for index in 0..self.lanes.len() {
            let id = LaneId(u32::try_from(index).unwrap_or_default());
            if self.lane(id).waiting.is_empty() {
                continue;
            }
            if let Some((work, pressed)) = self.next_work(now, id) {
                return self.hand_over(now, id, work, pressed);
            }
        }
        None
    }

    fn hand_over(&mut self, now: Timestamp, lane: LaneId, work: Work, pressed: bool) -> Option<Match<W>> {
        let (poll, waiter) = self.lane(lane).waiting.pop_first()?;
        self.poller_seen = Some(now);
        Some(Match { poll, waiter, work, backlog: self.backlog_len(), pressed })
    }

    /// And whether it has waited too long.
    fn next_work(&mut self, now: Timestamp, id: LaneId) -> Option<(Work, bool)> {
        if self.held {
            return None;
        }
        let lane = &mut self.lanes[id.0 as usize];
        if let Some((query, _)) = lane.queries.pop_front() {
            return Some((Work::Query(query), false));
        }
        lane.backlog.promote(now, &mut self.key_limits);
        if !lane.backlog.has_ready() {
            return None;
        }
        if !self.limiter.take(now) {
            self.rate_limited_at = Some(now);
            return None;
        }
        let queued = lane.backlog.pop()?;
        lane.rates(now, queued.offer.priority).dispatched(now);
        let late = now.since(queued.offer.waits_since) > PRESSED_AFTER;
        let pressed = late && !lane.backlog.is_empty() && self.presses.take(now);
        Some((Work::Task(queued), pressed))
    }

    /// When to call [`Queue::next`], because time alone makes a match possible.
    pub fn wake_at(&self) -> Option<Timestamp> {
        if self.held {
            return None;
        }
        let lanes = self.lanes.iter().filter(|lane| !lane.waiting.is_empty());
        let wakes = lanes.flat_map(|lane| {
            let token = if lane.backlog.has_ready() { self.limiter.next_at() } else { None };
            token.into_iter().chain(lane.backlog.next_due())
        });
        wakes.filter(|at| *at < Timestamp::MAX).min()
    }

    /// True if a poll waits, or one was here within `window`.
    pub fn has_recent_poller(&self, now: Timestamp, window: Duration) -> bool {
        self.has_polls() || self.poller_seen.is_some_and(|seen| now.since(seen) <= window)
    }

    /// Takes out the waiting polls that `chosen` picks.
    pub fn take_polls(&mut self, mut chosen: impl FnMut(&W) -> bool) -> Vec<W> {
        let mut taken = Vec::new();
        for lane in &mut self.lanes {
            taken.extend(lane.waiting.extract_if(.., |_, waiter| chosen(waiter)).map(|(_, waiter)| waiter));
        }
        taken
    }

    /// Takes out the queries that wait for a poll.
    pub fn take_queries(&mut self) -> VecDeque<Uuid> {
        self.lanes.iter_mut().flat_map(|lane| std::mem::take(&mut lane.queries)).map(|(id, _)| id).collect()
    }

    /// A worker said goodbye.
    pub fn forget_poller(&mut self, identity: &str) {
        self.pollers.forget(identity);
    }

    /// The only worker of this queue said goodbye: gives out what waited for it.
    pub fn abandon(&mut self) -> (Vec<W>, Vec<TaskOffer>, VecDeque<Uuid>) {
        self.poller_seen = None;
        self.pollers.forget_all();
        let offers = self.lanes.iter_mut().flat_map(|lane| lane.backlog.drain()).collect();
        (self.take_polls(|_| true), offers, self.take_queries())
    }

    // ---- Shown -------------------------------------------------------------------------------------------------

    pub fn pollers(&self, now: Timestamp, window: Duration) -> Vec<PollerInfo> {
        self.pollers.recent(now, window)
    }

    /// And whether an operator has set it.
    pub fn rate_limit(&self) -> Option<(f64, bool)> {
        self.limiter.rate().map(|rate| (rate, self.settings.per_second.is_some()))
    }

    /// Statistics of each priority that is in use.
    pub fn stats(&mut self, now: Timestamp) -> Vec<(Priority, QueueStats)> {
        self.stats_where(now, |_| true)
    }

    /// The same for tasks of one version.
    pub fn stats_of(&mut self, now: Timestamp, version: Option<&Version>) -> Vec<(Priority, QueueStats)> {
        self.stats_where(now, |lane| lane == version)
    }

    fn stats_where(
        &mut self,
        now: Timestamp,
        chosen: impl Fn(Option<&Version>) -> bool,
    ) -> Vec<(Priority, QueueStats)> {
        let limited = self.rate_limited_at.is_some_and(|at| now.since(at) <= RATE_LIMITED_WINDOW);
        let mut stats = Vec::new();
        for priority in Priority::all() {
            let lanes = self.lanes.iter_mut().filter(|lane| chosen(lane.version.as_ref()));
            let sum = lanes.filter_map(|lane| lane.stats(now, priority, limited)).reduce(|sum, one| sum.and(&one));
            stats.extend(sum.map(|sum| (priority, sum)));
        }
        stats
    }

    /// Forgets what is too old to be told.
    pub fn expire(&mut self, earliest: Timestamp) {
        self.pollers.expire(earliest);
    }

    /// True if nothing is here and nobody came for `idle`.
    pub fn is_idle(&self, now: Timestamp, idle: Duration) -> bool {
        let empty = |lane: &Lane<W>| lane.waiting.is_empty() && lane.backlog.is_empty() && lane.queries.is_empty();
        self.lanes.iter().all(empty) && now.since(self.last_use.max(self.poller_seen.unwrap_or_default())) >= idle
    }
}

#[cfg(test)]
mod tests;
