//! What a flush takes: encoded rows of what changed, a slice at a time, and what it gives back when they are written.

use std::sync::Arc;

use bytes::BytesMut;
use perdure_persistence::{HeadRow, HistoryRow, Listing, RunRow, TableWrite, Wakeup};
use perdure_proto::perdure::state::v1::ChainHead;
use perdure_types::{ChainKey, Position, Timestamp};
use prost::Message;

use super::Core;
use crate::{
    entry::{Applied, Entry, RunMeta},
    lanes::Lanes,
};

/// A history row is closed when it holds this much.
const HISTORY_ROW_BYTES: usize = 1 << 20;

/// A row to write, once what it reflects is covered and its position known (M1).
#[derive(Debug)]
pub(crate) struct PendingWrite {
    pub applied: Applied,
    /// Positions inside are still zero.
    pub write: TableWrite,
}

/// What was taken of one chain: tells the shard, after the write, what is clean now.
#[derive(Debug)]
pub(crate) struct FlushNote {
    key: ChainKey,
    head_version: Option<u64>,
    runs: Vec<RunNote>,
    deleted: Vec<Arc<str>>,
}

#[derive(Debug)]
struct RunNote {
    run_id: String,
    version: u64,
    last_event_id: i64,
    wake_at: Option<Timestamp>,
}

/// What was taken of one chain for the list of runs.
#[derive(Debug)]
pub(crate) struct ListNote {
    key: ChainKey,
    /// With their versions, and what the list shows of them.
    runs: Vec<(String, u64, Option<Listing>)>,
    deleted: Vec<Arc<str>>,
}

/// A part of what changed in a shard.
#[derive(Debug, Default)]
pub(crate) struct Slice {
    pub writes: Vec<PendingWrite>,
    pub notes: Vec<FlushNote>,
    pub list_notes: Vec<ListNote>,
    /// So many tickets must be covered before any of it is written (M1).
    pub after: u64,
    pub bytes: usize,
    /// There is more to take.
    pub more: bool,
}

impl Core {
    /// Takes rows of about `max_bytes`. `begin`: a new flush, of everything that has changed by now.
    pub(crate) fn gather(&mut self, begin: bool, max_bytes: usize, now: Timestamp) -> Slice {
        self.now = self.now.max(now);
        if begin {
            self.dirty_flag.store(false, std::sync::atomic::Ordering::SeqCst);
            let dirty = std::mem::take(&mut self.dirty);
            self.gathering.extend(dirty);
        }
        // Snapshots of now reflect whole log rows, so that replay can skip by row.
        self.log.cut();
        let mut slice = Slice::default();
        for wakeup in std::mem::take(&mut self.orphans) {
            for shard in self.lanes.all() {
                let write = TableWrite::DeleteWakeup { shard, wakeup: wakeup.clone() };
                slice.push(Applied::At(Position::ZERO), write, 64);
            }
        }
        while slice.bytes < max_bytes {
            let Some(key) = self.gathering.pop_front() else {
                return slice;
            };
            if let Some(entry) = self.chains.get_mut(&key) {
                entry.listed_dirty = false;
                slice.after = slice.after.max(entry.after);
                // Before the snapshots: recovery writes these again only for runs whose snapshots lag behind.
                gather_listing(&mut slice, &key, entry, self.now);
                gather_chain(&mut slice, &self.lanes, &key, entry);
            }
        }
        slice.more = !self.gathering.is_empty();
        slice
    }

    /// Takes rows for the list of runs only, of about `max_bytes`.
    pub(crate) fn gather_listings(&mut self, max_bytes: usize, now: Timestamp) -> Slice {
        self.now = self.now.max(now);
        self.log.cut();
        let mut slice = Slice::default();
        while slice.bytes < max_bytes {
            let Some(key) = self.unlisted.pop_front() else {
                return slice;
            };
            if let Some(entry) = self.chains.get_mut(&key) {
                entry.queued_unlisted = false;
                slice.after = slice.after.max(entry.after);
                gather_listing(&mut slice, &key, entry, self.now);
            }
        }
        slice.more = !self.unlisted.is_empty();
        slice
    }

    /// Queues a chain for [`Core::gather_listings`].
    pub(super) fn note_unlisted(&mut self, key: &ChainKey, entry: &mut Entry) {
        if !std::mem::replace(&mut entry.queued_unlisted, true) {
            self.unlisted.push_back(key.clone());
            self.log.mark_unlisted();
        }
    }

    /// The list of runs shows what the notes say.
    pub(crate) fn listed(&mut self, notes: Vec<ListNote>) {
        for note in notes {
            let Some(entry) = self.chains.get_mut(&note.key) else { continue };
            for (run_id, version, listing) in note.runs {
                let Some(run) = entry.runs.get_mut(&run_id) else { continue };
                run.unlisted &= run.version != version;
                // Its write has taken away all others; one of them that comes late has an older stamp.
                run.listed = listing.into_iter().collect();
            }
            for run in entry.deleted.iter_mut().filter(|run| note.deleted.contains(&run.run_id)) {
                run.unlisted = false;
            }
        }
    }

    /// Rows that [`Core::gather`] gave are written.
    pub(crate) fn flushed(&mut self, notes: Vec<FlushNote>, now: Timestamp) {
        self.now = self.now.max(now);
        for note in notes {
            let key = note.key.clone();
            if let Some(entry) = self.chains.get_mut(&key) {
                take_note(entry, note);
            }
            self.unload_closed_runs(&key);
            self.touch(&key);
        }
    }
}

impl Slice {
    fn push(&mut self, applied: Applied, write: TableWrite, bytes: usize) {
        self.bytes += bytes;
        self.writes.push(PendingWrite { applied, write });
    }
}

/// Rows of the list of runs, for what it does not show as it is.
fn gather_listing(slice: &mut Slice, key: &ChainKey, entry: &mut Entry, now: Timestamp) {
    let mut note = ListNote { key: key.clone(), runs: Vec::new(), deleted: Vec::new() };
    let Some(chain) = &entry.chain else { return };
    for (run_id, run) in entry.runs.iter_mut().filter(|(_, run)| run.unlisted) {
        let Some(info) = chain.listing(run_id) else {
            note.runs.push((run_id.clone(), run.version, None));
            continue;
        };
        let row = Box::new(perdure_visibility::row_of(&info, now));
        let bytes = row.info.len();
        let listing = Listing::of(&row);
        let before = run.listed.iter().filter(|old| **old != listing).cloned().collect();
        run.may_be_listed(listing.clone());
        note.runs.push((run_id.clone(), run.version, Some(listing)));
        let write = TableWrite::PutVisibility { chain: key.clone(), run_id: run_id.as_str().into(), row, before };
        slice.push(run.applied, write, bytes + 256);
    }
    for run in entry.deleted.iter().filter(|run| run.unlisted) {
        let before = run.listed.clone();
        let write = TableWrite::DeleteVisibility { chain: key.clone(), run_id: run.run_id.clone(), before };
        slice.push(run.applied, write, 128);
        note.deleted.push(run.run_id.clone());
    }
    if !note.runs.is_empty() || !note.deleted.is_empty() {
        slice.list_notes.push(note);
    }
}

fn gather_chain(slice: &mut Slice, lanes: &Lanes, key: &ChainKey, entry: &mut Entry) {
    let mut note = FlushNote { key: key.clone(), head_version: None, runs: Vec::new(), deleted: Vec::new() };
    let Some(chain) = &entry.chain else { return };
    for (run_id, run) in entry.runs.iter().filter(|(_, run)| run.dirty) {
        let Some(snapshot) = chain.snapshot(run_id) else {
            continue;
        };
        let id: Arc<str> = run_id.as_str().into();
        for row in history_rows(run) {
            let bytes = row.events.len();
            let write = TableWrite::PutHistory { chain: key.clone(), run_id: id.clone(), row };
            slice.push(run.applied, write, bytes + 128);
        }
        let wake_at = chain.wake_at(run_id);
        let wakeup = |at| Wakeup { at, chain: key.clone(), run_id: id.clone() };
        // It moves from an inherited lane to our own, though its time may be the same.
        let stored = run.stored_applied.map(|position| position.epoch);
        let is_inherited = !run.wake_is_here && lanes.may_inherit(stored);
        for shard in lanes.inherited.iter().copied().filter(|_| is_inherited) {
            if let Some(at) = run.stored_wake {
                slice.push(run.applied, TableWrite::DeleteWakeup { shard, wakeup: wakeup(at) }, 128);
            }
        }
        if let Some(at) = run.stored_wake.filter(|at| Some(*at) != wake_at) {
            slice.push(run.applied, TableWrite::DeleteWakeup { shard: lanes.own, wakeup: wakeup(at) }, 128);
        }
        if let Some(at) = wake_at.filter(|at| Some(*at) != run.stored_wake || !run.wake_certain || is_inherited) {
            slice.push(run.applied, TableWrite::PutWakeup { shard: lanes.own, wakeup: wakeup(at) }, 128);
        }
        let bytes = snapshot.len();
        let row = RunRow { snapshot, applied: Position::ZERO, wake_at };
        slice.push(run.applied, TableWrite::PutRun { chain: key.clone(), run_id: id, row }, bytes + 256);
        let last_event_id = run.tail.back().map_or(0, |batch| batch.last);
        note.runs.push(RunNote { run_id: run_id.clone(), version: run.version, last_event_id, wake_at });
    }
    for run in &entry.deleted {
        if let Some(at) = run.stored_wake {
            for shard in lanes.all() {
                let wakeup = Wakeup { at, chain: key.clone(), run_id: run.run_id.clone() };
                slice.push(run.applied, TableWrite::DeleteWakeup { shard, wakeup }, 128);
            }
        }
        let write = TableWrite::DeleteRun { chain: key.clone(), run_id: run.run_id.clone() };
        slice.push(run.applied, write, 128);
        note.deleted.push(run.run_id.clone());
    }
    if entry.head_dirty {
        let applied = entry.head_applied.unwrap_or(Applied::At(Position::ZERO));
        // A head without any run left to name goes; one that names unsettled runs is what finds them.
        let write = if *chain.head() == ChainHead::default() {
            TableWrite::DeleteHead { chain: key.clone() }
        } else {
            let head = chain.head().encode_to_vec().into();
            TableWrite::PutHead { chain: key.clone(), row: HeadRow { head, applied: Position::ZERO } }
        };
        slice.push(applied, write, 256);
        note.head_version = Some(entry.head_version);
    }
    slice.notes.push(note);
}

/// The unflushed events of a run as rows of bounded size.
fn history_rows(run: &RunMeta) -> Vec<HistoryRow> {
    let mut rows: Vec<HistoryRow> = Vec::new();
    let mut open: Option<(i64, i64, BytesMut)> = None;
    let close = |open: Option<(i64, i64, BytesMut)>, rows: &mut Vec<HistoryRow>| {
        rows.extend(open.map(|(first_event_id, last_event_id, events)| HistoryRow {
            first_event_id,
            last_event_id,
            events: events.freeze(),
        }));
    };
    for batch in &run.tail {
        match &mut open {
            // Encodings of consecutive batches concatenate.
            Some((_, last, events)) if events.len() + batch.events.len() <= HISTORY_ROW_BYTES => {
                *last = batch.last;
                events.extend_from_slice(&batch.events);
            }
            _ => {
                close(open.take(), &mut rows);
                open = Some((batch.first, batch.last, BytesMut::from(&batch.events[..])));
            }
        }
    }
    close(open, &mut rows);
    rows
}

fn take_note(entry: &mut Entry, note: FlushNote) {
    if note.head_version == Some(entry.head_version) {
        entry.head_dirty = false;
    }
    for flushed in note.runs {
        let Some(run) = entry.runs.get_mut(&flushed.run_id) else {
            // Deleted meanwhile: the wake-up row that was just written has to go, too.
            if let Some(run) = entry.deleted.iter_mut().find(|run| *run.run_id == *flushed.run_id) {
                run.stored_wake = flushed.wake_at;
            }
            continue;
        };
        run.stored_wake = flushed.wake_at;
        run.wake_certain = true;
        run.wake_is_here = true;
        run.trim_tail(flushed.last_event_id);
        if run.version == flushed.version {
            run.dirty = false;
        }
    }
    entry.deleted.retain(|run| !note.deleted.contains(&run.run_id));
}
