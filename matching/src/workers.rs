//! The last heartbeat of each worker, in memory only: a worker that lives sends the next one within a minute.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
};

use perdure_proto::temporal::api::worker::v1::WorkerHeartbeat;

/// Workers that are remembered; the one not heard of for the longest time makes room.
const MOST_WORKERS: usize = 10_000;

/// Remembers workers. Bounded in number; each heartbeat is bounded by the size of a request.
#[derive(Default)]
pub(crate) struct WorkerRegistry {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By namespace id and instance key; with the turn at which it was last heard of.
    workers: HashMap<(String, String), (u64, WorkerHeartbeat)>,
    by_turn: BTreeMap<u64, (String, String)>,
    next_turn: u64,
}

impl WorkerRegistry {
    pub(crate) fn record(&self, namespace_id: &str, heartbeats: Vec<WorkerHeartbeat>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for heartbeat in heartbeats {
            state.record(namespace_id, heartbeat);
        }
    }

    /// The workers of a namespace, by instance key.
    pub(crate) fn of_namespace(&self, namespace_id: &str) -> Vec<WorkerHeartbeat> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found: Vec<_> =
            state.workers.iter().filter(|((n, _), _)| n == namespace_id).map(|(_, (_, h))| h.clone()).collect();
        found.sort_by(|a, b| a.worker_instance_key.cmp(&b.worker_instance_key));
        found
    }
}

impl State {
    fn record(&mut self, namespace_id: &str, heartbeat: WorkerHeartbeat) {
        let key = (namespace_id.to_owned(), heartbeat.worker_instance_key.clone());
        let turn = self.next_turn;
        self.next_turn += 1;
        self.by_turn.insert(turn, key.clone());
        if let Some((previous, _)) = self.workers.insert(key, (turn, heartbeat)) {
            self.by_turn.remove(&previous);
        }
        if self.workers.len() > MOST_WORKERS
            && let Some((_, oldest)) = self.by_turn.pop_first()
        {
            self.workers.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heartbeat(key: &str, identity: &str) -> WorkerHeartbeat {
        WorkerHeartbeat { worker_instance_key: key.into(), worker_identity: identity.into(), ..Default::default() }
    }

    #[test]
    fn the_last_one_counts() {
        let registry = WorkerRegistry::default();
        registry.record("n", vec![heartbeat("a", "old"), heartbeat("b", "")]);
        registry.record("n", vec![heartbeat("a", "new")]);
        registry.record("other", vec![heartbeat("c", "")]);
        assert_eq!(registry.of_namespace("n"), vec![heartbeat("a", "new"), heartbeat("b", "")]);
    }

    #[test]
    fn the_oldest_makes_room() {
        let registry = WorkerRegistry::default();
        registry.record("n", (0..MOST_WORKERS).map(|i| heartbeat(&i.to_string(), "")).collect());
        registry.record("n", vec![heartbeat("0", ""), heartbeat("one more", "")]);
        let left = registry.of_namespace("n");
        assert_eq!(left.len(), MOST_WORKERS);
        assert!(left.iter().any(|w| w.worker_instance_key == "0"));
        assert!(!left.iter().any(|w| w.worker_instance_key == "1"));
    }
}
