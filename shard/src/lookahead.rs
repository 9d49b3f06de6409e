//! The wake-ups of one shard that come next. Pure.
//!
//! The store holds one row for each run that has something to do; in memory is only a window of the earliest, of bounded
//! size, so that a sleeping execution costs a row and nothing else. Invariant (SH-1): every stored wake-up below the
//! horizon that was not yet taken is in the window (or its chain is loaded, and its timers are known by that).

use std::collections::{BTreeMap, BTreeSet};

use perdure_persistence::Wakeup;
use perdure_types::{ChainKey, Timestamp};

#[derive(Debug)]
pub(crate) struct Lookahead {
    window: BTreeSet<Wakeup>,
    /// Chains without a row of the same time: they cannot be read again, so they are never dropped.
    pinned: BTreeSet<(Timestamp, ChainKey)>,
    pinned_at: BTreeMap<ChainKey, Timestamp>,
    /// Rows up to and including this one were read; `None`: nothing was read.
    horizon: Option<Wakeup>,
    /// The window reaches to the end of the table.
    complete: bool,
    capacity: usize,
    reading: bool,
    /// Rows beyond the horizon that were written while a page was being read: the page may lack them.
    written_meanwhile: Vec<Wakeup>,
    /// The page under way is to be thrown away: the table is read from its beginning.
    restarting: bool,
}

impl Lookahead {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            window: BTreeSet::new(),
            pinned: BTreeSet::new(),
            pinned_at: BTreeMap::new(),
            horizon: None,
            complete: false,
            capacity: capacity.max(2),
            reading: false,
            written_meanwhile: Vec::new(),
            restarting: false,
        }
    }

    /// Reads the table from its beginning again: also what was taken and not changed since.
    pub(crate) fn restart(&mut self) {
        self.window.clear();
        self.horizon = None;
        self.complete = false;
        self.restarting = self.reading;
    }

    fn is_within(&self, wakeup: &Wakeup) -> bool {
        self.complete || self.horizon.as_ref().is_some_and(|horizon| wakeup <= horizon)
    }

    /// A row stands in the store, and its chain is not in memory (any more).
    pub(crate) fn insert(&mut self, wakeup: Wakeup) {
        if !self.is_within(&wakeup) {
            if self.reading {
                self.written_meanwhile.push(wakeup);
            }
            return;
        }
        self.window.insert(wakeup);
        while self.window.len() > 2 * self.capacity {
            self.window.pop_last();
            self.complete = false;
            self.horizon = self.window.last().cloned();
        }
    }

    /// The chain is not in memory and has to be loaded at a time that no row says.
    pub(crate) fn pin(&mut self, chain: ChainKey, at: Timestamp) {
        self.unpin(&chain);
        self.pinned.insert((at, chain.clone()));
        self.pinned_at.insert(chain, at);
    }

    /// The chain is in memory again.
    pub(crate) fn unpin(&mut self, chain: &ChainKey) {
        if let Some(at) = self.pinned_at.remove(chain) {
            self.pinned.remove(&(at, chain.clone()));
        }
    }

    /// The read that is to be made now: rows after the first, at most the second.
    pub(crate) fn start_read(&mut self) -> Option<(Option<Wakeup>, usize)> {
        if self.reading || self.complete || !self.window.is_empty() {
            return None;
        }
        self.reading = true;
        Some((self.horizon.clone(), self.capacity))
    }

    /// The rows that the read gave.
    pub(crate) fn finish_read(&mut self, rows: Vec<Wakeup>) {
        self.reading = false;
        if std::mem::take(&mut self.restarting) {
            self.written_meanwhile.clear();
            return;
        }
        self.complete = rows.len() < self.capacity;
        if let Some(last) = rows.last() {
            self.horizon = Some(last.clone());
        }
        self.window.extend(rows);
        for wakeup in std::mem::take(&mut self.written_meanwhile) {
            self.insert(wakeup);
        }
    }

    /// The read failed: it is to be made again.
    pub(crate) fn fail_read(&mut self) {
        self.reading = false;
        self.restarting = false;
        // Whatever was written meanwhile is beyond the horizon and will be read.
        self.written_meanwhile.clear();
    }

    pub(crate) fn next(&self) -> Option<Timestamp> {
        let window = self.window.first().map(|wakeup| wakeup.at);
        let pinned = self.pinned.first().map(|(at, _)| *at);
        match (window, pinned) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Takes what is due. A chain that was pinned comes without a run.
    pub(crate) fn take_due(&mut self, now: Timestamp) -> Vec<Wakeup> {
        let mut due = Vec::new();
        while self.window.first().is_some_and(|wakeup| wakeup.at <= now) {
            due.extend(self.window.pop_first());
        }
        while let Some((at, chain)) = self.pinned.first().filter(|(at, _)| *at <= now).cloned() {
            self.unpin(&chain);
            due.push(Wakeup { at, chain, run_id: "".into() });
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wakeup(at: i64) -> Wakeup {
        Wakeup { at: Timestamp(at), chain: ChainKey::new("n", "w"), run_id: "r".into() }
    }

    proptest! {
        /// Rows that are inserted at any time all come due, once, however small the window is.
        #[test]
        fn every_row_comes_due(steps in prop::collection::vec((0_i64..100, any::<bool>()), 1..200)) {
            let mut table: BTreeSet<Wakeup> = BTreeSet::new();
            let mut lookahead = Lookahead::new(3);
            let mut page: Option<Vec<Wakeup>> = None;
            let mut taken = BTreeSet::new();
            let mut now = 0;
            for (i, (step, read)) in steps.iter().enumerate() {
                if let Some(rows) = page.take() {
                    lookahead.finish_read(rows);
                }
                if let Some((after, limit)) = lookahead.start_read() {
                    let rows = table.iter().filter(|w| after.as_ref().is_none_or(|a| *w > a)).take(limit).cloned();
                    page = Some(rows.collect());
                    if *read {
                        lookahead.finish_read(page.take().unwrap_or_default());
                    }
                }
                // Unique times; never in the past, as with the chains that are evicted.
                let row = wakeup((now + step) * 1000 + i as i64);
                table.insert(row.clone());
                lookahead.insert(row);
                now += 1;
                taken.extend(lookahead.take_due(Timestamp(now * 1000)));
            }
            for _ in 0..1000 {
                if let Some(rows) = page.take() {
                    lookahead.finish_read(rows);
                }
                if let Some((after, limit)) = lookahead.start_read() {
                    page = Some(table.iter().filter(|w| after.as_ref().is_none_or(|a| *w > a)).take(limit).cloned().collect());
                }
                taken.extend(lookahead.take_due(Timestamp::MAX));
            }
            prop_assert_eq!(taken, table);
        }
    }
}
