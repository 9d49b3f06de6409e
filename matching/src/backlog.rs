//! Offers that wait for a poll: by priority, then fairly by key, then in order of arrival; one offer a task.
//!
//! Fairness: each offer gets a *pass* when it comes, one stride above the last one of its key but never below what has been
//! handed out already; the lowest pass goes first. A key with weight 2 has strides half as long, so it goes twice as often.
//! Offers without a key share one.

use std::collections::{BTreeMap, HashMap};

use perdure_types::Timestamp;

use crate::{
    fairness::{KeyLimits, Passes},
    offer::{Priority, TaskKey, TaskOffer},
};

/// An offer with its place in the order, which it keeps when it is put back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Queued {
    pub offer: TaskOffer,
    pass: u64,
    seq: u64,
    /// The limit of its fairness key has let it through.
    admitted: bool,
}

#[derive(Clone, Copy)]
enum Place {
    Ready(Priority, u64, u64),
    Delayed(Timestamp, u64),
}

/// Each offer stands in exactly one of `ready` and `delayed`, and `index` says where.
#[derive(Default)]
pub(crate) struct Backlog {
    ready: BTreeMap<(Priority, u64, u64), Queued>,
    /// Not before this time: their shard could not be reached a moment ago, or their fairness key has had its share.
    delayed: BTreeMap<(Timestamp, u64), Queued>,
    index: HashMap<TaskKey, Place>,
    counts: [usize; Priority::LEVELS],
    passes: [Passes; Priority::LEVELS],
    next_seq: u64,
}

impl Backlog {
    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub fn count(&self, priority: Priority) -> usize {
        self.counts[priority.index()]
    }

    /// When the next delayed offer becomes ready.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.delayed.first_key_value().map(|((due, _), _)| *due)
    }

    /// Since when the offer waits that is next of `priority`.
    pub fn head_waits_since(&self, priority: Priority) -> Option<Timestamp> {
        let all = (priority, 0, 0)..=(priority, u64::MAX, u64::MAX);
        let ready = self.ready.range(all).next().map(|(_, queued)| queued.offer.waits_since);
        let delayed = self.delayed.values().filter(|q| q.offer.priority == priority).map(|q| q.offer.waits_since).min();
        ready.into_iter().chain(delayed).min()
    }

    /// Gives an offer a place at the end without keeping it.
    pub fn pass_through(&mut self, offer: TaskOffer) -> Queued {
        self.next_seq += 1;
        let pass = self.passes[offer.priority.index()].next(offer.fairness_key(), offer.weight());
        Queued { offer, pass, seq: self.next_seq, admitted: false }
    }

    /// Adds an offer. One of the same task takes its place, unless it is older. False if the task was here already.
    pub fn push(&mut self, mut offer: TaskOffer) -> bool {
        let Some(old) = self.remove(&offer.key) else {
            let queued = self.pass_through(offer);
            self.insert_ready(queued);
            return true;
        };
        if old.offer.version() > offer.version() {
            offer = old.offer.clone();
        }
        self.insert_ready(Queued { offer, ..old });
        false
    }

    /// Returns an offer to its old place, at once or at `due`. A newer one of the same task wins.
    pub fn put_back(&mut self, queued: Queued, due: Option<Timestamp>) {
        if self.index.contains_key(&queued.offer.key) {
            self.push(queued.offer);
            return;
        }
        match due {
            None => self.insert_ready(queued),
            Some(due) => {
                self.counts[queued.offer.priority.index()] += 1;
                self.insert_delayed(queued, due);
            }
        }
    }

    fn insert_delayed(&mut self, queued: Queued, due: Timestamp) {
        self.index.insert(queued.offer.key.clone(), Place::Delayed(due, queued.seq));
        self.delayed.insert((due, queued.seq), queued);
    }

    /// Makes ready what is due, and holds back what its fairness key's limit does not let through yet.
    pub fn promote(&mut self, now: Timestamp, limits: &mut KeyLimits) {
        while let Some(entry) = self.delayed.first_entry() {
            let (due, _) = *entry.key();
            if due > now {
                break;
            }
            let queued = entry.remove();
            self.counts[queued.offer.priority.index()] -= 1;
            self.insert_ready(queued);
        }
        if !limits.is_set() {
            return;
        }
        while let Some(mut entry) = self.ready.first_entry() {
            if entry.get().admitted {
                return;
            }
            entry.get_mut().admitted = true;
            let offer = &entry.get().offer;
            match limits.admit(now, offer.fairness_key(), offer.weight()) {
                None => return,
                Some(due) => {
                    let queued = entry.remove();
                    self.insert_delayed(queued, due);
                }
            }
        }
    }

    /// The next ready offer.
    pub fn pop(&mut self) -> Option<Queued> {
        let (_, queued) = self.ready.pop_first()?;
        let level = queued.offer.priority.index();
        self.index.remove(&queued.offer.key);
        self.counts[level] -= 1;
        self.passes[level].handed_out(queued.pass);
        Some(queued)
    }

    /// Everything, in order; the backlog is empty then.
    pub fn drain(&mut self) -> Vec<TaskOffer> {
        self.index.clear();
        self.counts = Default::default();
        let mut all = std::mem::take(&mut self.ready);
        let delayed = std::mem::take(&mut self.delayed).into_values();
        all.extend(delayed.map(|queued| ((queued.offer.priority, queued.pass, queued.seq), queued)));
        all.into_values().map(|queued| queued.offer).collect()
    }

    fn insert_ready(&mut self, queued: Queued) {
        let priority = queued.offer.priority;
        self.counts[priority.index()] += 1;
        self.index.insert(queued.offer.key.clone(), Place::Ready(priority, queued.pass, queued.seq));
        self.ready.insert((priority, queued.pass, queued.seq), queued);
    }

    fn remove(&mut self, key: &TaskKey) -> Option<Queued> {
        let queued = match self.index.remove(key)? {
            Place::Ready(priority, pass, seq) => self.ready.remove(&(priority, pass, seq))?,
            Place::Delayed(due, seq) => self.delayed.remove(&(due, seq))?,
        };
        self.counts[queued.offer.priority.index()] -= 1;
        Some(queued)
    }
}

#[cfg(test)]
mod tests {
    use perdure_proto::{perdure::node::v1::Offer, temporal::api::common::v1};

    use super::*;

    fn offer(run_id: &str, attempt: i32, priority_key: i32) -> TaskOffer {
        let priority = Some(v1::Priority { priority_key, ..Default::default() });
        TaskOffer::new(Offer { run_id: run_id.into(), attempt, priority, ..Default::default() }, Timestamp(1))
    }

    fn order(backlog: &mut Backlog) -> Vec<TaskOffer> {
        std::iter::from_fn(|| backlog.pop()).map(|queued| queued.offer).collect()
    }

    #[test]
    fn priority_then_arrival() {
        let mut backlog = Backlog::default();
        let offers = [offer("a", 1, 0), offer("b", 1, 5), offer("c", 1, 1), offer("d", 1, 3)];
        for o in &offers {
            assert!(backlog.push(o.clone()));
        }
        let [a, b, c, d] = offers;
        assert_eq!(order(&mut backlog), [c, a, d, b]);
        assert_eq!((backlog.len(), backlog.counts), (0, [0; 5]));
    }

    #[test]
    fn the_newest_offer_of_a_task_takes_the_place_of_the_first() {
        let mut backlog = Backlog::default();
        backlog.push(offer("a", 1, 0));
        backlog.push(offer("b", 1, 0));
        assert!(!backlog.push(offer("a", 3, 0)));
        assert!(!backlog.push(offer("a", 2, 0)));
        assert_eq!(order(&mut backlog), [offer("a", 3, 0), offer("b", 1, 0)]);
    }

    #[test]
    fn put_back_keeps_its_place_and_waits_until_due() {
        let mut backlog = Backlog::default();
        backlog.push(offer("a", 1, 0));
        backlog.push(offer("b", 1, 0));
        let first = backlog.pop().expect("two offers");
        backlog.put_back(first, Some(Timestamp(10)));
        backlog.promote(Timestamp(9), &mut KeyLimits::default());
        assert_eq!(order(&mut backlog), [offer("b", 1, 0)]);
        assert_eq!((backlog.len(), backlog.next_due()), (1, Some(Timestamp(10))));
        backlog.push(offer("c", 1, 0));
        backlog.promote(Timestamp(10), &mut KeyLimits::default());
        assert_eq!(order(&mut backlog), [offer("a", 1, 0), offer("c", 1, 0)]);
    }

    #[test]
    fn put_back_never_hides_a_newer_offer() {
        let mut backlog = Backlog::default();
        backlog.push(offer("a", 1, 0));
        let first = backlog.pop().expect("one offer");
        backlog.push(offer("a", 2, 0));
        backlog.put_back(first, Some(Timestamp(10)));
        assert_eq!(order(&mut backlog), [offer("a", 2, 0)]);
    }

    fn keyed(run_id: &str, fairness_key: &str, fairness_weight: f32) -> TaskOffer {
        let priority = v1::Priority { fairness_key: fairness_key.into(), fairness_weight, ..Default::default() };
        let offer = Offer { run_id: run_id.into(), priority: Some(priority), ..Default::default() };
        TaskOffer::new(offer, Timestamp(1))
    }

    fn keys(backlog: &mut Backlog) -> String {
        order(backlog).iter().map(|offer| offer.fairness_key().to_owned()).collect()
    }

    #[test]
    fn a_key_with_few_offers_does_not_wait_for_one_with_many() {
        let mut backlog = Backlog::default();
        for i in 0..6 {
            backlog.push(keyed(&format!("a{i}"), "a", 1.0));
        }
        for i in 0..3 {
            backlog.push(keyed(&format!("b{i}"), "b", 1.0));
        }
        assert_eq!(keys(&mut backlog), "abababaaa");
    }

    #[test]
    fn a_heavy_key_goes_more_often() {
        let mut backlog = Backlog::default();
        for i in 0..6 {
            backlog.push(keyed(&format!("a{i}"), "a", 2.0));
            backlog.push(keyed(&format!("b{i}"), "b", 1.0));
        }
        let first: String = keys(&mut backlog).chars().take(6).collect();
        assert_eq!(first.matches('a').count(), 4, "{first}");
    }

    #[test]
    fn a_limit_of_keys_holds_back_only_its_own() {
        let mut backlog = Backlog::default();
        let mut limits = KeyLimits::default();
        limits.set(Some(1.0), HashMap::new());
        for (i, key) in ["a", "a", "a", "b"].into_iter().enumerate() {
            backlog.push(keyed(&i.to_string(), key, 1.0));
        }
        let mut at = |seconds: i64| {
            let mut out = String::new();
            loop {
                backlog.promote(Timestamp(seconds * 1_000_000_000), &mut limits);
                match backlog.pop() {
                    Some(queued) => out.push_str(queued.offer.fairness_key()),
                    None => return out,
                }
            }
        };
        assert_eq!(at(10), "ab");
        assert_eq!(at(11), "a");
        assert_eq!(at(12), "a");
    }
}
