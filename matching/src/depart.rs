//! A queue gets another home: who waits in it here goes there.
//!
//! Offers stay for a while. Those who made them make them again at the new home; but if this node was told wrongly, and is
//! told so a moment later, nobody makes them again here.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
};

use perdure_proto::Error;
use perdure_types::{Duration, QueueFilter, Timestamp};

use crate::{poll::Waiter, registry::QueueCell, shell::Shell};

/// For how long the offers of a departed queue are kept.
const OFFERS_KEPT: Duration = Duration::from_secs(60);

/// Which queues have another home.
#[derive(Default)]
pub(crate) struct Departures {
    departed: RwLock<Option<QueueFilter>>,
    /// Departed queues that hold offers, by identity, and since when that is known.
    since: Mutex<HashMap<usize, Timestamp>>,
}

impl Shell {
    pub fn has_departed(&self, namespace_id: &str, task_queue: &str) -> bool {
        let departed = self.departures.departed.read().unwrap_or_else(PoisonError::into_inner);
        departed.as_ref().is_some_and(|departed| departed(namespace_id, task_queue))
    }

    pub fn depart(self: &Arc<Self>, departed: QueueFilter) {
        // First: a poll that misses it is in its queue before the loop comes there.
        *self.departures.departed.write().unwrap_or_else(PoisonError::into_inner) = Some(departed);
        for cell in self.departed_cells() {
            let (polls, _) = self.step(&cell, |queue, _| (queue.take_polls(|_| true), queue.take_queries()));
            polls.into_iter().for_each(Waiter::answer_departed);
        }
        let has_departed = |namespace_id: &str, queue: &str| self.has_departed(namespace_id, queue);
        self.queries.fail(&Error::not_owner(None), has_departed);
        self.nexus.fail(&Error::not_owner(None), has_departed);
    }

    fn departed_cells(&self) -> Vec<Arc<QueueCell>> {
        let has_departed = |cell: &Arc<QueueCell>| self.has_departed(&cell.key.namespace_id, &cell.key.name);
        self.registry.all().into_iter().filter(has_departed).collect()
    }

    /// Drops the offers of queues that departed some time ago.
    pub fn forget_departed(self: &Arc<Self>, now: Timestamp) {
        let mut since = self.departures.since.lock().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::take(&mut *since);
        for cell in self.departed_cells() {
            // A queue that holds offers is never swept, so its place in memory names it.
            let identity = Arc::as_ptr(&cell) as usize;
            let first = before.get(&identity).copied().unwrap_or(now);
            if now.since(first) >= OFFERS_KEPT {
                self.step(&cell, |queue, _| drop(queue.abandon()));
            } else if cell.lock().queue.backlog_len() > 0 {
                since.insert(identity, first);
            }
        }
    }
}
