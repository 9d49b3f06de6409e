//! Which chains stay in memory: all that are dirty or waited for, and the most recently used of the rest.

use std::sync::atomic::Ordering;

use perdure_persistence::Wakeup;
use perdure_proto::perdure::state::v1::ChainHead;
use perdure_types::ChainKey;

use super::Core;
use crate::telemetry;

/// Chains looked at in one go for one to evict.
const LOOKS: usize = 64;

impl Core {
    /// The chain was used or changed: weigh it, and make room if that is too much.
    pub(super) fn touch(&mut self, key: &ChainKey) {
        let covered = self.log.covered_tickets();
        let Some(entry) = self.chains.get_mut(key) else { return };
        let is_blank = entry.runs.is_empty()
            && entry.chain.as_ref().is_some_and(|chain| *chain.head() == ChainHead::default())
            && entry.is_evictable(covered);
        if is_blank {
            self.remove(key);
            return;
        }
        self.uses += 1;
        entry.last_use = self.uses;
        let (before, after) = (entry.weight_bytes, entry.weigh());
        entry.weight_bytes = after;
        self.lru.push_back((key.clone(), self.uses));
        self.weight_bytes = self.weight_bytes + after - before;
        let node = &self.node.cache_bytes;
        let total = node.fetch_add(after, Ordering::Relaxed) + after;
        node.fetch_sub(before, Ordering::Relaxed);
        telemetry::cache(total - before);
        if self.lru.len() > 4 * self.chains.len() + 64 {
            let chains = &self.chains;
            self.lru.retain(|(key, used)| chains.get(key).is_some_and(|entry| entry.last_use == *used));
        }
        self.make_room();
    }

    /// Evicts while the node holds too much and this shard more than its share.
    fn make_room(&mut self) {
        let budget = self.node.config.cache_bytes;
        let share = budget / self.node.shard_count.load(Ordering::Relaxed).max(1);
        let covered = self.log.covered_tickets();
        let mut busy = Vec::new();
        while self.weight_bytes > share && self.node.cache_bytes.load(Ordering::Relaxed) > budget {
            if busy.len() >= LOOKS {
                break;
            }
            let Some((key, used)) = self.lru.pop_front() else { break };
            let Some(entry) = self.chains.get_mut(&key).filter(|entry| entry.last_use == used) else {
                continue;
            };
            entry.watchers.retain(|watcher| !watcher.reply.is_closed());
            // What is due would be forgotten: the rows that would tell of it are taken.
            let is_due = entry.chain.as_ref().and_then(|chain| chain.next_timer()).is_some_and(|at| at <= self.now);
            if entry.is_evictable(covered) && !is_due {
                self.evict(&key);
            } else {
                busy.push((key, used));
            }
        }
        // Nothing but what is dirty: what a flush writes can go.
        if busy.len() >= LOOKS || (self.lru.is_empty() && !busy.is_empty()) {
            self.log.want_flush();
        }
        for chain in busy.into_iter().rev() {
            self.lru.push_front(chain);
        }
    }

    /// Drops a clean chain; what it has to do later is left with the wake-ups.
    fn evict(&mut self, key: &ChainKey) {
        let Some(entry) = self.chains.get(key) else { return };
        let next_timer = entry.chain.as_ref().and_then(|chain| chain.next_timer());
        let rows: Vec<Wakeup> = entry
            .runs
            .iter()
            .filter_map(|(run_id, run)| {
                run.stored_wake.map(|at| Wakeup { at, chain: key.clone(), run_id: run_id.as_str().into() })
            })
            .collect();
        if let Some(at) = next_timer.filter(|at| rows.iter().all(|row| row.at != *at)) {
            // The rows tell of something else that was there before, such as a task that waits for a worker.
            self.lookahead.pin(key.clone(), at);
        }
        for row in rows.into_iter().filter(|row| row.at > self.now) {
            self.lookahead.insert(row);
        }
        self.remove(key);
        telemetry::chain_evicted();
    }

    pub(super) fn remove(&mut self, key: &ChainKey) {
        if let Some(entry) = self.chains.remove(key) {
            self.timers.cancel(entry.timer_at);
            self.weight_bytes -= entry.weight_bytes;
            self.node.cache_bytes.fetch_sub(entry.weight_bytes, Ordering::Relaxed);
        }
    }

    /// Closed runs that are not current leave memory as soon as they are clean: only the current run is kept for speed.
    pub(super) fn unload_closed_runs(&mut self, key: &ChainKey) {
        let covered = self.log.covered_tickets();
        let Some(entry) = self.chains.get_mut(key) else { return };
        if entry.runs.len() < 2 || entry.held > 0 || !entry.watchers.is_empty() || entry.after > covered {
            return;
        }
        let Some(chain) = entry.chain.as_mut() else { return };
        let clean: Vec<String> = entry.runs.iter().filter(|(_, run)| !run.dirty).map(|(id, _)| id.clone()).collect();
        for run_id in clean {
            if entry.calls.iter().any(|call| call.run_id == run_id) {
                continue;
            }
            chain.unload_closed(&run_id);
            if chain.has_run(&run_id) {
                continue;
            }
            if let Some(at) = entry.runs.remove(&run_id).and_then(|run| run.stored_wake)
                && at > self.now
            {
                self.lookahead.insert(Wakeup { at, chain: key.clone(), run_id: run_id.as_str().into() });
            }
        }
    }
}
