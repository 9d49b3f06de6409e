//! When something is due: timers of loaded chains, wake-ups of those that are not, ends of long polls.

use std::{collections::BTreeMap, sync::Arc};

use perdure_persistence::Wakeup;
use perdure_types::{ChainKey, Duration, Timestamp};

use super::Core;
use crate::entry::{Pending, ReplyTo, TimerPlace, Waiting, Watcher};

/// How long a chain waits that says something is due and then does nothing: a bug, which must not become a busy loop.
const IDLE_TIMER_DELAY: Duration = Duration::from_secs(1);

/// Most chains handled in one go: the shard's loop turns in between.
const BATCH: usize = 64;

#[derive(Debug)]
enum Timer {
    Chain(ChainKey),
    Watch(ChainKey, u64),
}

/// A queue of deadlines. A chain in memory has one place at most, and loses it when it leaves; that its timer no longer
/// holds is found out when it comes due.
#[derive(Debug, Default)]
pub(super) struct Timers {
    queue: BTreeMap<TimerPlace, Timer>,
    added: u64,
}

impl Timers {
    fn add(&mut self, at: Timestamp, timer: Timer) -> TimerPlace {
        self.added += 1;
        let place = (at, self.added);
        self.queue.insert(place, timer);
        place
    }

    /// Gives up a chain's place: timers of months would pile up for chains that come and go.
    pub(super) fn cancel(&mut self, place: Option<TimerPlace>) {
        if let Some(place) = place {
            self.queue.remove(&place);
        }
    }

    pub(super) fn add_watch(&mut self, at: Timestamp, chain: ChainKey, id: u64) {
        self.add(at, Timer::Watch(chain, id));
    }

    fn next(&self) -> Option<Timestamp> {
        self.queue.first_key_value().map(|((at, _), _)| *at)
    }

    fn take_due(&mut self, now: Timestamp) -> Option<(TimerPlace, Timer)> {
        let first = self.queue.first_entry().filter(|entry| entry.key().0 <= now)?;
        Some(first.remove_entry())
    }
}

impl Core {
    /// When [`Core::on_timer`] has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        match (self.timers.next(), self.lookahead.next()) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Does what is due, up to a bound.
    pub(crate) fn on_timer(&mut self, now: Timestamp) {
        self.now = self.now.max(now);
        for Wakeup { at, chain, run_id } in self.lookahead.take_due(self.now) {
            self.enqueue(chain, Pending::Wake { run_id, at });
        }
        for _ in 0..BATCH {
            let Some((place, timer)) = self.timers.take_due(self.now) else {
                return;
            };
            match timer {
                Timer::Chain(key) => self.chain_due(&key, place),
                Timer::Watch(key, id) => self.watch_due(&key, id),
            }
        }
    }

    fn chain_due(&mut self, key: &ChainKey, place: TimerPlace) {
        let Some(entry) = self.chains.get_mut(key).filter(|entry| entry.timer_at == Some(place)) else {
            return;
        };
        entry.timer_at = None;
        let next = entry.chain.as_ref().and_then(|chain| chain.next_timer());
        if next.is_none_or(|next| next > self.now) {
            // What was due then has happened or is off: the usual end of a timeout.
            self.retime(key);
            return;
        }
        self.fire_timers(key);
        let stuck = self
            .chains
            .get(key)
            .and_then(|entry| entry.chain.as_ref())
            .and_then(|chain| chain.next_timer())
            .is_some_and(|next| next <= self.now);
        if stuck {
            tracing::error!(chain = ?key, "a timer is due and does nothing");
            let again = self.now + IDLE_TIMER_DELAY;
            if let Some(entry) = self.chains.get_mut(key) {
                self.timers.cancel(entry.timer_at);
                entry.timer_at = Some(self.timers.add(again, Timer::Chain(key.clone())));
            }
            return;
        }
        self.drain(key);
    }

    /// A long poll has lasted long enough.
    fn watch_due(&mut self, key: &ChainKey, id: u64) {
        let Some(entry) = self.chains.get_mut(key) else { return };
        let Some(index) = entry.watchers.iter().position(|watcher| watcher.id == id) else {
            return;
        };
        let watcher = entry.watchers.swap_remove(index);
        self.end_watch(key, watcher);
        self.touch(key);
    }

    /// Answers a long poll as one that has lasted long enough. Gives the reply back if there is no such answer.
    pub(super) fn end_watch(&mut self, key: &ChainKey, watcher: Watcher) -> Option<ReplyTo> {
        match watcher.watch {
            Waiting::History(watch) => {
                let _ = watcher.reply.send(Ok(watch.time_out()));
            }
            Waiting::Core(watch) => {
                let chain = self.chains.get_mut(key).and_then(|entry| entry.chain.as_mut());
                let Some(outcome) = chain.and_then(|chain| chain.give_up(&watch)) else {
                    return Some(watcher.reply);
                };
                let (after, fence) = self.read_barrier(key);
                self.hold_reply(key, after, fence, watcher.reply, outcome.map(Box::new));
            }
        }
        None
    }

    /// Puts the chain where its next timer says.
    pub(super) fn retime(&mut self, key: &ChainKey) {
        let Some(entry) = self.chains.get_mut(key) else { return };
        let Some(next) = entry.chain.as_ref().and_then(|chain| chain.next_timer()) else {
            return;
        };
        // A place that is too early is found out when it comes due.
        if entry.timer_at.is_none_or(|(at, _)| next < at) {
            self.timers.cancel(entry.timer_at);
            entry.timer_at = Some(self.timers.add(next, Timer::Chain(key.clone())));
        }
    }

    /// A wake-up row came due, and its chain is loaded.
    pub(super) fn woken(&mut self, key: &ChainKey, run_id: &Arc<str>, at: Timestamp) {
        if run_id.is_empty() {
            return;
        }
        let Some(entry) = self.chains.get(key) else { return };
        // Rows that are written twice over may be left behind by a crash; whoever finds one removes it.
        let is_orphan = match entry.runs.get(&**run_id) {
            Some(run) => !run.dirty && run.stored_wake != Some(at),
            None => !entry.is_deleted(run_id),
        };
        if is_orphan {
            self.orphans.push(Wakeup { at, chain: key.clone(), run_id: run_id.clone() });
            self.dirty_flag.store(true, std::sync::atomic::Ordering::SeqCst);
            self.log.want_flush();
        }
    }

    /// Rows of the wake-up table.
    pub(crate) fn wakeups_read(&mut self, rows: Option<Vec<Wakeup>>, now: Timestamp) {
        self.now = self.now.max(now);
        match rows {
            Some(rows) => self.lookahead.finish_read(rows),
            None => self.lookahead.fail_read(),
        }
    }
}
