use std::collections::{BTreeMap, BTreeSet};

use perdure_proto::perdure::node::v1::Offer;
use proptest::prelude::*;

use super::*;

const SECOND: i64 = 1_000_000_000;

fn offer(now: Timestamp, run: u32) -> TaskOffer {
    TaskOffer::new(Offer { run_id: run.to_string(), workflow_id: run.to_string(), ..Default::default() }, now)
}

fn run(queued: &Queued) -> u32 {
    queued.offer.workflow_id().parse().expect("the run's number")
}

fn task(matched: Option<Match<u32>>) -> (u32, u32) {
    let matched = matched.expect("a match");
    let Work::Task(queued) = &matched.work else { panic!("a task, not {matched:?}") };
    (matched.waiter, run(queued))
}

fn view(rate_per_second: Option<f64>) -> PollerView<'static> {
    PollerView { identity: "worker", rate_per_second, capabilities: None, deployment: None }
}

#[test]
fn an_offer_goes_to_the_longest_waiting_poll() {
    let now = Timestamp(SECOND);
    let mut queue = Queue::new(now);
    assert!(queue.poll(now, 1).1.is_none());
    assert!(queue.poll(now, 2).1.is_none());
    assert_eq!(task(queue.offer(now, offer(now, 10))), (1, 10));
    assert_eq!(task(queue.offer(now, offer(now, 11))), (2, 11));
    assert!(queue.offer(now, offer(now, 12)).is_none());
    assert_eq!(task(queue.poll(now, 3).1), (3, 12));
}

#[test]
fn a_resumed_poll_keeps_its_place() {
    let now = Timestamp(SECOND);
    let mut queue = Queue::new(now);
    queue.poll(now, 1);
    queue.poll(now, 2);
    let first = queue.offer(now, offer(now, 10)).expect("a poll waits");
    assert!(queue.resume(now, first.poll, first.waiter).is_none());
    assert_eq!(task(queue.offer(now, offer(now, 11))), (1, 11));
}

#[test]
fn a_poll_that_left_gets_nothing() {
    let now = Timestamp(SECOND);
    let mut queue = Queue::new(now);
    let (poll, _) = queue.poll(now, 1);
    assert_eq!(queue.leave(now, poll, Leave::TimedOut), Some(1));
    assert!(queue.offer(now, offer(now, 10)).is_none());
    assert_eq!(queue.backlog_len(), 1);
    assert_eq!(queue.leave(now, poll, Leave::TimedOut), None);
}

#[test]
fn queries_go_before_tasks() {
    let now = Timestamp(SECOND);
    let mut queue = Queue::new(now);
    let id = Uuid::from_u128(7);
    queue.offer(now, offer(now, 10));
    queue.query(now, id, QueryRoute::default());
    let matched = queue.poll(now, 1).1.expect("a query waits");
    assert!(matches!(matched.work, Work::Query(query) if query == id));
    assert_eq!(matched.backlog, 1);
}

#[test]
fn recent_pollers() {
    let window = Duration::from_secs(10);
    let at = |seconds| Timestamp(seconds * SECOND);
    let mut queue = Queue::new(at(0));
    assert!(!queue.has_recent_poller(at(0), window));
    let (poll, _) = queue.poll(at(1), 1);
    assert!(queue.has_recent_poller(at(100), window), "a poll waits");
    queue.leave(at(100), poll, Leave::TimedOut);
    assert!(queue.has_recent_poller(at(110), window));
    assert!(!queue.has_recent_poller(at(111), window));
    let (poll, _) = queue.poll(at(120), 1);
    queue.leave(at(120), poll, Leave::Vanished);
    assert!(!queue.has_recent_poller(at(120), window), "its worker died");
}

#[test]
fn an_unreachable_shard_does_not_hold_up_the_others() {
    let now = Timestamp(SECOND);
    let due = Timestamp(2 * SECOND);
    let mut queue = Queue::new(now);
    queue.offer(now, offer(now, 10));
    queue.offer(now, offer(now, 11));
    let matched = queue.poll(now, 1).1.expect("two tasks wait");
    let Work::Task(queued) = matched.work else { panic!("a task") };
    queue.put_back(now, queued, Some(due));
    assert_eq!(task(queue.resume(now, matched.poll, matched.waiter)), (1, 11));
    assert_eq!(queue.wake_at(), None, "nobody waits");
    queue.poll(now, 2);
    assert_eq!(queue.wake_at(), Some(due));
    assert!(queue.next(now).is_none());
    assert_eq!(task(queue.next(due)), (2, 10));
}

#[test]
fn the_rate_limit_holds_tasks_back_until_it_is_time() {
    let now = Timestamp(SECOND);
    let mut queue = Queue::new(now);
    for i in 0..4 {
        queue.offer(now, offer(now, i));
    }
    queue.poller_seen(now, &view(Some(2.0)));
    let matches = (0..4).filter(|i| queue.poll(now, *i).1.is_some()).count();
    assert_eq!(matches, 2);
    let at = queue.wake_at().expect("polls and tasks wait");
    assert!(queue.next(now).is_none());
    assert_eq!(task(queue.next(at)), (2, 2));
    assert!(queue.stats(at)[0].1.rate_limited);
}

#[test]
fn a_goodbye_gives_everything_out() {
    let now = Timestamp(SECOND);
    let mut queue = Queue::new(now);
    let (poll, _) = queue.poll(now, 1);
    queue.leave(now, poll, Leave::TimedOut);
    queue.offer(now, offer(now, 10));
    let (polls, offers, queries) = queue.abandon();
    assert_eq!((polls.len(), offers.len(), queries.len()), (0, 1, 0));
    assert!(!queue.has_recent_poller(now, Duration::from_secs(10)));
    assert!(queue.is_idle(Timestamp(2 * SECOND), Duration(SECOND)));
}

#[test]
fn stats_tell_what_waits_and_what_went() {
    let now = Timestamp(SECOND);
    let later = Timestamp(4 * SECOND);
    let mut queue = Queue::new(now);
    queue.offer(now, offer(now, 1));
    queue.offer(now, offer(now, 2));
    queue.poll(later, 1);
    let [(priority, stats)] = queue.stats(later)[..] else { panic!("one priority is in use") };
    assert_eq!((priority.key(), stats.backlog, stats.backlog_age), (3, 1, Duration::from_secs(3)));
    assert!(stats.added_per_second > stats.dispatched_per_second && stats.dispatched_per_second > 0.0);
}

/// What the world does to a queue.
#[derive(Clone, Debug)]
enum Action {
    Offer(u32),
    Poll(Option<f64>),
    Leave(usize, bool),
    /// A match under way ends well, as obsolete, or with an unreachable shard.
    Deliver(usize),
    Obsolete(usize, bool),
    Unreachable(usize, bool),
    Pass(i64),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        4 => (0..30u32).prop_map(Action::Offer),
        4 => prop_oneof![4 => Just(None), 1 => Just(Some(3.0)), 1 => Just(Some(1e6))].prop_map(Action::Poll),
        1 => (0..8usize, any::<bool>()).prop_map(|(i, vanished)| Action::Leave(i, vanished)),
        3 => (0..8usize).prop_map(Action::Deliver),
        1 => (0..8usize, any::<bool>()).prop_map(|(i, gone)| Action::Obsolete(i, gone)),
        2 => (0..8usize, any::<bool>()).prop_map(|(i, gone)| Action::Unreachable(i, gone)),
        2 => (1..SECOND).prop_map(Action::Pass),
    ]
}

/// The queue, and what must be true of it: tasks that were offered and not ended are in the queue or in a match; polls
/// that came and did not end are waiting or in a match.
struct World {
    queue: Queue<u32>,
    now: Timestamp,
    under_way: Vec<Match<u32>>,
    /// How many copies of each task are owed: one in the backlog, and any under way.
    backlogged: BTreeSet<u32>,
    waiting: BTreeMap<u32, PollId>,
    polls: u32,
}

impl World {
    fn matched(&mut self, matched: Option<Match<u32>>) {
        let Some(matched) = matched else { return };
        self.waiting.remove(&matched.waiter).expect("a poll is in one match at most");
        let Work::Task(queued) = &matched.work else { panic!("no query was made") };
        assert!(self.backlogged.remove(&run(queued)), "an offer is handed out once");
        self.under_way.push(matched);
    }

    fn take(&mut self, index: usize) -> Option<(Match<u32>, Queued)> {
        if index >= self.under_way.len() {
            return None;
        }
        let mut matched = self.under_way.swap_remove(index);
        let work = std::mem::replace(&mut matched.work, Work::Query(Uuid::nil()));
        let Work::Task(queued) = work else { panic!("no query was made") };
        Some((matched, queued))
    }

    /// The poll of an ended match waits again, unless its client went away.
    fn go_on(&mut self, matched: Match<u32>, gone: bool) {
        let next = if gone {
            self.queue.next(self.now)
        } else {
            self.waiting.insert(matched.waiter, matched.poll);
            self.queue.resume(self.now, matched.poll, matched.waiter)
        };
        self.matched(next);
    }

    fn act(&mut self, action: Action) {
        let now = self.now;
        match action {
            Action::Offer(run) => {
                self.backlogged.insert(run);
                let matched = self.queue.offer(now, offer(now, run));
                self.matched(matched);
            }
            Action::Poll(rate) => {
                self.polls += 1;
                self.queue.poller_seen(now, &view(rate));
                let (id, matched) = self.queue.poll(now, self.polls);
                self.waiting.insert(self.polls, id);
                self.matched(matched);
            }
            Action::Leave(index, vanished) => {
                let Some((poll, id)) = self.waiting.iter().nth(index).map(|(p, id)| (*p, *id)) else {
                    return;
                };
                let why = if vanished { Leave::Vanished } else { Leave::TimedOut };
                assert_eq!(self.queue.leave(now, id, why), Some(poll));
                self.waiting.remove(&poll);
            }
            Action::Deliver(index) => drop(self.take(index)),
            Action::Obsolete(index, gone) => {
                let Some((matched, _)) = self.take(index) else { return };
                self.queue.obsolete();
                self.go_on(matched, gone);
            }
            Action::Unreachable(index, gone) => {
                let Some((matched, queued)) = self.take(index) else {
                    return;
                };
                self.backlogged.insert(run(&queued));
                self.queue.put_back(now, queued, (!gone).then_some(Timestamp(now.0 + SECOND / 3)));
                self.go_on(matched, gone);
            }
            Action::Pass(nanos) => {
                self.now = Timestamp(now.0 + nanos);
                while let Some(matched) = self.queue.next(self.now) {
                    self.matched(Some(matched));
                }
            }
        }
    }

    fn check(&mut self) {
        assert_eq!(self.queue.backlog_len(), self.backlogged.len());
        let polls: usize = self.queue.lanes.iter().map(|lane| lane.waiting.len()).sum();
        assert_eq!(polls, self.waiting.len());
        // MQ-3, but for tokens that came back: those the wake-up finds.
        if !self.waiting.is_empty() && !self.backlogged.is_empty() {
            assert!(self.queue.wake_at().is_some(), "polls and tasks wait, and nobody will wake them");
        }
    }

    /// Everything that was offered can still be had.
    fn drain(&mut self) {
        while let Some((matched, queued)) = self.take(0) {
            self.backlogged.insert(run(&queued));
            self.queue.put_back(self.now, queued, None);
            self.go_on(matched, true);
        }
        for _ in 0..10_000 {
            if self.backlogged.is_empty() {
                return;
            }
            self.act(Action::Poll(None));
            self.act(Action::Pass(SECOND));
            self.under_way.clear();
        }
        panic!("lost: {:?}", self.backlogged);
    }
}

proptest! {
    #[test]
    fn no_offer_is_lost_or_handed_out_twice(actions in prop::collection::vec(action(), 1..200)) {
        let now = Timestamp(SECOND);
        let mut world = World {
            queue: Queue::new(now),
            now,
            under_way: Vec::new(),
            backlogged: BTreeSet::new(),
            waiting: BTreeMap::new(),
            polls: 0,
        };
        for action in actions {
            world.act(action);
            world.check();
        }
        world.drain();
        prop_assert_eq!(world.queue.backlog_len(), 0);
    }
}
