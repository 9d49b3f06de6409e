//! What the shard keeps in memory for one chain: the pure state, and what of it is not yet in the tables.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use perdure_persistence::Listing;
use perdure_proto::{
    Error,
    perdure::{
        node::v1::{WorkflowReply, workflow_call::Command},
        state::v1::{ChainRecord, RunDelta},
    },
};
use perdure_types::{Position, Timestamp};
use perdure_workflow::{CallId, Entity, Watch};
use tokio::sync::oneshot;

use crate::{history::HistoryWatch, log::Ticket, trace::Caller};

/// A place in the shard's queue of timers: the time, and a number that tells equal times apart.
pub(crate) type TimerPlace = (Timestamp, u64);

/// Where the answer of a call goes.
pub(crate) type ReplyTo = oneshot::Sender<Result<WorkflowReply, Error>>;

/// The last record that some state reflects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Applied {
    /// From an earlier time: known by its place in the log.
    At(Position),
    /// Submitted by this owner: the place is known once its row is built.
    Ticket(Ticket),
}

/// Consecutive events of a run that are not known to be in the store.
#[derive(Debug, Clone)]
pub(crate) struct TailBatch {
    pub first: i64,
    /// Inclusive.
    pub last: i64,
    /// Encoded `History`.
    pub events: Bytes,
}

/// A run, as far as the tables lag behind.
#[derive(Debug)]
pub(crate) struct RunMeta {
    pub applied: Applied,
    pub tail: VecDeque<TailBatch>,
    pub dirty: bool,
    /// Raised by each change: a flush that finds it changed leaves the run dirty.
    pub version: u64,
    /// The row that the store holds reflects records up to here; `None`: it holds none.
    pub stored_applied: Option<Position>,
    /// The wake-up row that the store holds.
    pub stored_wake: Option<Timestamp>,
    /// That it does is certain: not after a crash in the middle of a flush.
    pub wake_certain: bool,
    /// Written under this owner: the wake-up row is in the shard's own lane.
    pub wake_is_here: bool,
    /// The list of runs shows it as it was, or not at all.
    pub unlisted: bool,
    /// Everything that the list may show of it, by writes under way, too. What was listed last is also what the stored
    /// snapshot says, since that is written later: so a run that is loaded brings it along, and a replay adds what
    /// came after.
    pub listed: Vec<Listing>,
    /// A WorkflowExecutionStatus: lists show when it changes.
    pub status: i32,
}

impl RunMeta {
    /// A run that was read from the store.
    pub(crate) fn stored(applied: Position, stored_wake: Option<Timestamp>) -> Self {
        Self { stored_applied: Some(applied), stored_wake, ..Self::new(Applied::At(applied)) }
    }

    fn new(applied: Applied) -> Self {
        Self {
            applied,
            tail: VecDeque::new(),
            dirty: false,
            version: 0,
            stored_applied: None,
            stored_wake: None,
            wake_certain: true,
            wake_is_here: false,
            unlisted: false,
            listed: Vec::new(),
            status: 0,
        }
    }

    /// The list may show this from now on.
    pub(crate) fn may_be_listed(&mut self, listing: Listing) {
        if !self.listed.contains(&listing) {
            self.listed.push(listing);
        }
    }

    /// Finds out whether the list has to show something new.
    fn note_listing(&mut self, delta: &RunDelta) {
        let status = delta.info.as_ref().map_or(self.status, |info| info.status);
        let is_new = status != self.status || !delta.change.is_empty();
        self.unlisted |= is_new || delta.memo.is_some() || delta.search_attributes.is_some();
        self.status = status;
    }

    /// Appends a record's events to the tail.
    pub(crate) fn push_events(&mut self, delta: &RunDelta) {
        if delta.first_event_id > 0 && !delta.events.is_empty() {
            let next_event_id = delta.info.as_ref().map_or(delta.first_event_id + 1, |info| info.next_event_id);
            let batch =
                TailBatch { first: delta.first_event_id, last: next_event_id - 1, events: delta.events.clone() };
            self.tail.push_back(batch);
        }
    }

    /// The store has all events up to this one.
    pub(crate) fn trim_tail(&mut self, last_event_id: i64) {
        while self.tail.front().is_some_and(|batch| batch.last <= last_event_id) {
            self.tail.pop_front();
        }
    }

    pub(crate) fn tail_bytes(&self) -> usize {
        self.tail.iter().map(|batch| batch.events.len() + 64).sum()
    }
}

/// A run that is gone, while the tables still have it.
#[derive(Debug)]
pub(crate) struct DeletedRun {
    pub run_id: Arc<str>,
    pub applied: Applied,
    pub stored_wake: Option<Timestamp>,
    /// The list may still show it.
    pub unlisted: bool,
    pub listed: Vec<Listing>,
}

/// A caller that waits for something to become true.
#[derive(Debug)]
pub(crate) struct Watcher {
    pub id: u64,
    pub reply: ReplyTo,
    pub watch: Waiting,
}

#[derive(Debug)]
pub(crate) enum Waiting {
    Core(Watch),
    History(HistoryWatch),
}

/// An input that waits for the chain, or a run of it, to be loaded.
#[derive(Debug)]
pub(crate) enum Pending {
    Call {
        command: Box<Command>,
        reply: Option<ReplyTo>,
        caller: Caller,
    },
    /// A wake-up row came due.
    Wake {
        run_id: Arc<str>,
        at: Timestamp,
    },
}

#[derive(Debug, Default)]
pub(crate) struct Entry {
    /// `None` until the head is read.
    pub chain: Option<Box<dyn Entity>>,
    pub queue: VecDeque<Pending>,
    pub loading: bool,
    /// Runs that were looked for and are not in the store.
    pub absent: BTreeSet<String>,
    pub runs: BTreeMap<String, RunMeta>,
    pub deleted: Vec<DeletedRun>,
    pub head_applied: Option<Applied>,
    /// The head row that the store holds reflects records up to here.
    pub stored_head: Option<Position>,
    pub head_dirty: bool,
    pub head_version: u64,
    /// So many tickets must be covered for all of the chain's state to be.
    pub after: u64,
    pub watchers: Vec<Watcher>,
    /// Calls to other entities under way.
    pub calls: BTreeSet<CallId>,
    /// Answers and effects that are held back.
    pub held: usize,
    /// Outstanding effects were derived from state since the chain was loaded.
    pub resumed: bool,
    /// The chain's one place in the queue of timers.
    pub timer_at: Option<TimerPlace>,
    /// In the list of what the next flush takes.
    pub listed_dirty: bool,
    /// In the queue of those that the list of runs shows as they were.
    pub queued_unlisted: bool,
    pub weight_bytes: usize,
    pub last_use: u64,
}

impl Entry {
    /// Notes what a record changed; the chain has applied it already.
    pub(crate) fn note(&mut self, record: &ChainRecord, applied: Applied) {
        if record.head.is_some() {
            self.head_applied = Some(applied);
            self.head_dirty = true;
            self.head_version += 1;
        }
        for delta in &record.runs {
            if delta.deleted {
                let (stored_wake, listed) =
                    self.runs.remove(&delta.run_id).map_or_else(Default::default, |run| (run.stored_wake, run.listed));
                let run_id = delta.run_id.as_str().into();
                self.deleted.push(DeletedRun { run_id, applied, stored_wake, unlisted: true, listed });
                continue;
            }
            self.absent.remove(&delta.run_id);
            let run = self.runs.entry(delta.run_id.clone()).or_insert_with(|| RunMeta::new(applied));
            run.applied = applied;
            run.dirty = true;
            run.version += 1;
            run.note_listing(delta);
            run.push_events(delta);
        }
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.head_dirty || !self.deleted.is_empty() || self.runs.values().any(|run| run.dirty)
    }

    /// Whether the list of runs lags behind.
    pub(crate) fn is_unlisted(&self) -> bool {
        self.runs.values().any(|run| run.unlisted) || self.deleted.iter().any(|run| run.unlisted)
    }

    pub(crate) fn is_deleted(&self, run_id: &str) -> bool {
        self.deleted.iter().any(|run| &*run.run_id == run_id)
    }

    /// Nothing would be lost if the chain were dropped from memory.
    pub(crate) fn is_evictable(&self, covered_tickets: u64) -> bool {
        !self.loading
            && self.queue.is_empty()
            && self.watchers.is_empty()
            && self.calls.is_empty()
            && self.held == 0
            && self.after <= covered_tickets
            && !self.is_dirty()
    }

    pub(crate) fn weigh(&self) -> usize {
        let chain = self.chain.as_ref().map_or(0, |chain| chain.weight_bytes());
        256 + chain + self.runs.values().map(|run| 128 + run.tail_bytes()).sum::<usize>()
    }
}
