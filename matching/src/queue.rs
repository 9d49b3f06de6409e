//! One task queue: offers and queries on one side, polls on the other. Synchronous and without a clock; whoever holds it
//! passes the time.
//!
//! Invariants:
//! - MQ-1: an offer is in the backlog, or in exactly one [`Match`] that is under way, or gone for good by its holder's
//!   word. Whoever gets a match finishes it, or brings its parts back ([`Queue::put_back`], [`Queue::resume`]).
//! - MQ-2: a poll is waiting here, or in exactly one match.
//! - MQ-3: after each call, either no poll waits, or nothing may be handed out before [`Queue::wake_at`].
//!
//! A queue is one partition. Several of them side by side, with offers spread over them, make a partitioned queue.

use std::collections::{BTreeMap, VecDeque};

use perdure_proto::temporal::api::taskqueue::v1::PollerInfo;
use perdure_types::{Duration, Timestamp};
use uuid::Uuid;

use crate::{
    backlog::{Backlog, Queued},
    limiter::Limiter,
    offer::{Priority, TaskOffer},
    pollers::{PollerView, Pollers},
    stats::Rates,
};

/// A poll of one queue, in order of arrival.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct PollId(u64);

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
}

/// Why a poll leaves the queue without work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Leave {
    TimedOut,
    /// Its client is gone.
    Vanished,
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

/// How long after a task was held back by the rate limit the queue says so.
const RATE_LIMITED_WINDOW: Duration = Duration::from_secs(30);

pub(crate) struct Queue<W> {
    backlog: Backlog,
    queries: VecDeque<Uuid>,
    waiting: BTreeMap<PollId, W>,
    last_poll_id: u64,
    /// When a poll last came, or left other than by vanishing.
    poller_seen: Option<Timestamp>,
    last_use: Timestamp,
    pollers: Pollers,
    limiter: Limiter,
    rate_limited_at: Option<Timestamp>,
    rates: [Option<Box<Rates>>; Priority::LEVELS],
}

impl<W> Queue<W> {
    pub fn new(now: Timestamp) -> Self {
        Self {
            backlog: Backlog::default(),
            queries: VecDeque::new(),
            waiting: BTreeMap::new(),
            last_poll_id: 0,
            poller_seen: None,
            last_use: now,
            pollers: Pollers::default(),
            limiter: Limiter::default(),
            rate_limited_at: None,
            rates: Default::default(),
        }
    }

    pub fn backlog_len(&self) -> usize {
        self.backlog.len()
    }

    fn rates(&mut self, now: Timestamp, priority: Priority) -> &mut Rates {
        self.rates[priority.index()].get_or_insert_with(|| Box::new(Rates::new(now)))
    }

    /// A task can be started. It goes to the longest-waiting poll, or waits.
    pub fn offer(&mut self, now: Timestamp, offer: TaskOffer) -> Option<Match<W>> {
        self.last_use = now;
        let priority = offer.priority;
        if self.backlog.is_empty() && self.queries.is_empty() && !self.waiting.is_empty() && self.limiter.take(now) {
            self.rates(now, priority).added(now);
            let queued = self.backlog.pass_through(offer);
            self.rates(now, priority).dispatched(now);
            return self.hand_over(now, Work::Task(queued));
        }
        if self.backlog.push(offer) {
            self.rates(now, priority).added(now);
        }
        self.next(now)
    }

    /// A matched task could not be started now; `due` says when to try again. Call [`Queue::next`] or
    /// [`Queue::resume`] after it.
    pub fn put_back(&mut self, now: Timestamp, queued: Queued, due: Option<Timestamp>) {
        self.rates(now, queued.offer.priority).returned(now);
        self.limiter.refund();
        self.backlog.put_back(queued, due);
    }

    /// A matched task turned out to need no start: it did not count against the rate limit.
    pub fn obsolete(&mut self) {
        self.limiter.refund();
    }

    /// A query waits for a poll. Queries go first: somebody waits for the answer.
    pub fn query(&mut self, now: Timestamp, id: Uuid) -> Option<Match<W>> {
        self.last_use = now;
        self.queries.push_back(id);
        self.next(now)
    }

    pub fn remove_query(&mut self, id: Uuid) {
        self.queries.retain(|query| *query != id);
    }

    /// What a worker says about itself in a poll, whether it gets to wait or not.
    pub fn poller_seen(&mut self, now: Timestamp, view: &PollerView) {
        self.pollers.seen(now, view);
        if let Some(rate) = view.rate_per_second {
            self.limiter.set_rate(now, rate);
        }
    }

    /// A new poll. The match that it makes possible is nearly always its own.
    pub fn poll(&mut self, now: Timestamp, waiter: W) -> (PollId, Option<Match<W>>) {
        self.last_poll_id += 1;
        let poll = PollId(self.last_poll_id);
        (poll, self.resume(now, poll, waiter))
    }

    /// A matched poll waits again, in its old place.
    pub fn resume(&mut self, now: Timestamp, poll: PollId, waiter: W) -> Option<Match<W>> {
        self.last_use = now;
        self.poller_seen = Some(now);
        if self.waiting.is_empty() {
            return match self.next_work(now) {
                Some(work) => Some(Match { poll, waiter, work, backlog: self.backlog.len() }),
                None => {
                    self.waiting.insert(poll, waiter);
                    None
                }
            };
        }
        self.waiting.insert(poll, waiter);
        self.next(now)
    }

    /// Takes a poll out; `None` if it is matched already.
    pub fn leave(&mut self, now: Timestamp, poll: PollId, why: Leave) -> Option<W> {
        let waiter = self.waiting.remove(&poll);
        match why {
            Leave::TimedOut => self.poller_seen = Some(now),
            // The last poll of a worker that died: nobody should count on this queue.
            Leave::Vanished if self.waiting.is_empty() => self.poller_seen = None,
            Leave::Vanished => {}
        }
        waiter
    }

    /// The next match that is possible now. Call until `None` after waiting for [`Queue::wake_at`].
    pub fn next(&mut self, now: Timestamp) -> Option<Match<W>> {
        if self.waiting.is_empty() {
            return None;
        }
        let work = self.next_work(now)?;
        self.hand_over(now, work)
    }

    fn hand_over(&mut self, now: Timestamp, work: Work) -> Option<Match<W>> {
        let (poll, waiter) = self.waiting.pop_first()?;
        self.poller_seen = Some(now);
        Some(Match { poll, waiter, work, backlog: self.backlog.len() })
    }

    fn next_work(&mut self, now: Timestamp) -> Option<Work> {
        if let Some(query) = self.queries.pop_front() {
            return Some(Work::Query(query));
        }
        self.backlog.promote(now);
        if !self.backlog.has_ready() {
            return None;
        }
        if !self.limiter.take(now) {
            self.rate_limited_at = Some(now);
            return None;
        }
        let queued = self.backlog.pop()?;
        self.rates(now, queued.offer.priority).dispatched(now);
        Some(Work::Task(queued))
    }

    /// When to call [`Queue::next`], because time alone makes a match possible.
    pub fn wake_at(&self) -> Option<Timestamp> {
        if self.waiting.is_empty() {
            return None;
        }
        let token = if self.backlog.has_ready() { self.limiter.next_at() } else { None };
        token.into_iter().chain(self.backlog.next_due()).min()
    }

    /// True if a poll waits, or one was here within `window`.
    pub fn has_recent_poller(&self, now: Timestamp, window: Duration) -> bool {
        !self.waiting.is_empty() || self.poller_seen.is_some_and(|seen| now.since(seen) <= window)
    }

    /// Takes out the waiting polls that `chosen` picks.
    pub fn take_polls(&mut self, mut chosen: impl FnMut(&W) -> bool) -> Vec<W> {
        self.waiting.extract_if(.., |_, waiter| chosen(waiter)).map(|(_, waiter)| waiter).collect()
    }

    /// Takes out the queries that wait for a poll.
    pub fn take_queries(&mut self) -> VecDeque<Uuid> {
        std::mem::take(&mut self.queries)
    }

    /// A worker said goodbye.
    pub fn forget_poller(&mut self, identity: &str) {
        self.pollers.forget(identity);
    }

    /// The only worker of this queue said goodbye: gives out what waited for it.
    pub fn abandon(&mut self) -> (Vec<W>, Vec<TaskOffer>, VecDeque<Uuid>) {
        self.poller_seen = None;
        self.pollers.forget_all();
        (self.take_polls(|_| true), self.backlog.drain(), self.take_queries())
    }

    pub fn pollers(&self, now: Timestamp, window: Duration) -> Vec<PollerInfo> {
        self.pollers.recent(now, window)
    }

    pub fn rate_limit(&self) -> Option<f64> {
        self.limiter.rate()
    }

    /// Statistics of each priority that is in use.
    pub fn stats(&mut self, now: Timestamp) -> Vec<(Priority, QueueStats)> {
        let limited = self.rate_limited_at.is_some_and(|at| now.since(at) <= RATE_LIMITED_WINDOW);
        let mut stats = Vec::new();
        for priority in Priority::all() {
            let Some(rates) = &mut self.rates[priority.index()] else {
                continue;
            };
            let (added_per_second, dispatched_per_second) = rates.per_second(now);
            let waits_since = self.backlog.head_waits_since(priority);
            stats.push((
                priority,
                QueueStats {
                    backlog: self.backlog.count(priority),
                    backlog_age: waits_since.map_or(Duration::ZERO, |since| now.since(since)),
                    added_per_second,
                    dispatched_per_second,
                    rate_limited: limited,
                },
            ));
        }
        stats
    }

    /// Forgets what is too old to be told.
    pub fn expire(&mut self, earliest: Timestamp) {
        self.pollers.expire(earliest);
    }

    /// True if nothing is here and nobody came for `idle`.
    pub fn is_idle(&self, now: Timestamp, idle: Duration) -> bool {
        self.waiting.is_empty()
            && self.backlog.is_empty()
            && self.queries.is_empty()
            && now.since(self.last_use.max(self.poller_seen.unwrap_or_default())) >= idle
    }
}

#[cfg(test)]
mod tests;
