//! Offers that wait for a poll: by priority, then in order of arrival; one offer a task.

use std::collections::{BTreeMap, HashMap};

use perdure_types::Timestamp;

use crate::offer::{Priority, TaskKey, TaskOffer};

/// An offer with its place in the order, which it keeps when it is put back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Queued {
    pub offer: TaskOffer,
    seq: u64,
}

#[derive(Clone, Copy)]
enum Place {
    Ready(Priority, u64),
    Delayed(Timestamp, u64),
}

/// Each offer stands in exactly one of `ready` and `delayed`, and `index` says where.
#[derive(Default)]
pub(crate) struct Backlog {
    ready: BTreeMap<(Priority, u64), TaskOffer>,
    /// Not before this time: their shard could not be reached a moment ago.
    delayed: BTreeMap<(Timestamp, u64), TaskOffer>,
    index: HashMap<TaskKey, Place>,
    counts: [usize; Priority::LEVELS],
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
        let ready = self.ready.range((priority, 0)..=(priority, u64::MAX)).next().map(|(_, offer)| offer.waits_since);
        let delayed = self.delayed.values().filter(|o| o.priority == priority).map(|o| o.waits_since).min();
        ready.into_iter().chain(delayed).min()
    }

    /// Gives an offer a place at the end without keeping it.
    pub fn pass_through(&mut self, offer: TaskOffer) -> Queued {
        self.next_seq += 1;
        Queued { offer, seq: self.next_seq }
    }

    /// Adds an offer. One of the same task takes its place, unless it is older. False if the task was here already.
    pub fn push(&mut self, mut offer: TaskOffer) -> bool {
        let Some(old) = self.remove(&offer.key) else {
            let queued = self.pass_through(offer);
            self.insert_ready(queued);
            return true;
        };
        if old.offer.version() > offer.version() {
            offer = old.offer;
        }
        self.insert_ready(Queued { offer, seq: old.seq });
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
                self.index.insert(queued.offer.key.clone(), Place::Delayed(due, queued.seq));
                self.delayed.insert((due, queued.seq), queued.offer);
            }
        }
    }

    /// Makes ready what is due.
    pub fn promote(&mut self, now: Timestamp) {
        while let Some(entry) = self.delayed.first_entry() {
            let (due, seq) = *entry.key();
            if due > now {
                return;
            }
            let offer = entry.remove();
            self.counts[offer.priority.index()] -= 1;
            self.insert_ready(Queued { offer, seq });
        }
    }

    /// The next ready offer.
    pub fn pop(&mut self) -> Option<Queued> {
        let ((_, seq), offer) = self.ready.pop_first()?;
        self.index.remove(&offer.key);
        self.counts[offer.priority.index()] -= 1;
        Some(Queued { offer, seq })
    }

    /// Everything, in order; the backlog is empty then.
    pub fn drain(&mut self) -> Vec<TaskOffer> {
        self.promote(Timestamp::MAX);
        self.index.clear();
        self.counts = Default::default();
        std::mem::take(&mut self.ready).into_values().collect()
    }

    fn insert_ready(&mut self, queued: Queued) {
        let priority = queued.offer.priority;
        self.counts[priority.index()] += 1;
        self.index.insert(queued.offer.key.clone(), Place::Ready(priority, queued.seq));
        self.ready.insert((priority, queued.seq), queued.offer);
    }

    fn remove(&mut self, key: &TaskKey) -> Option<Queued> {
        let (offer, seq) = match self.index.remove(key)? {
            Place::Ready(priority, seq) => (self.ready.remove(&(priority, seq))?, seq),
            Place::Delayed(due, seq) => (self.delayed.remove(&(due, seq))?, seq),
        };
        self.counts[offer.priority.index()] -= 1;
        Some(Queued { offer, seq })
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
        backlog.promote(Timestamp(9));
        assert_eq!(order(&mut backlog), [offer("b", 1, 0)]);
        assert_eq!((backlog.len(), backlog.next_due()), (1, Some(Timestamp(10))));
        backlog.push(offer("c", 1, 0));
        backlog.promote(Timestamp(10));
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
}
