//! The node session's log: one per node incarnation, group-committed over all its shards.
//!
//! Shards [`ShardLog::submit`] encoded records and get a *ticket*: tickets are numbered in the order in which the log
//! will hold the records. The writer task ([`writer`]) makes rows of what has piled up, appends them, and publishes how
//! many tickets are covered ([`coverage`]). Nobody may see what a record did before its ticket is covered (A4).
//! The mapping from tickets to rows is kept until the rows are truncated, since stamps need it.

pub(crate) mod coverage;
pub(crate) mod scan;
pub(crate) mod session;
pub(crate) mod writer;

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use perdure_persistence::StoreError;
use perdure_types::{Seq, SessionId};
use tokio::sync::Notify;

use crate::{trace::Append, watched::Watched};

/// Who waits for longer than this makes sure that the store is there.
const LONG_WAIT: Duration = Duration::from_secs(2);
/// And makes sure again; they may be many.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Number of a submitted record: order in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ticket(pub u64);

impl Ticket {
    /// How many tickets must be covered for this one to be.
    pub(crate) fn count(self) -> u64 {
        self.0 + 1
    }
}

/// Whether the session goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LogState {
    Live,
    /// Somebody fenced this session (A3): all state is dropped, a new session begins.
    Fenced,
    /// The store takes no more writes, or is damaged: serving ends.
    Failed(StoreError),
    /// Sealed by ourselves: a graceful stop.
    Closed,
}

/// A row in the index of rows not yet truncated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct RowEnd {
    seq: Seq,
    segment: u32,
    /// Tickets below this are in this row or before.
    tickets_end: u64,
}

struct Item {
    record: Bytes,
    wake: Arc<Notify>,
    append: Append,
}

#[derive(Default)]
struct Queue {
    items: VecDeque<Item>,
    bytes: usize,
    next_ticket: u64,
    /// Fence reads sent so far; readers wait for one with a higher number (A5).
    fence_reads_sent: u64,
    fence_waiters: Vec<Arc<Notify>>,
    rows: VecDeque<RowEnd>,
    /// Tickets that begin a row: see [`ShardLog::cut`].
    cuts: VecDeque<u64>,
    /// Somebody wonders whether the store is there: a fence read tells.
    probe: bool,
    closed: bool,
}

pub(crate) struct Shared {
    session: SessionId,
    queue: Mutex<Queue>,
    /// The writer has something to do.
    work: Notify,
    queued_bytes: AtomicU64,
    covered_tickets: AtomicU64,
    /// How long the row that was covered last took.
    commit_latency_ns: AtomicU64,
    /// The latest fence read that found the session live.
    fence_reads_live: AtomicU64,
    state: Watched<LogState>,
    covered: Watched<u64>,
    /// The store has not answered for long: [`ShardConfig::silence`](crate::ShardConfig).
    silent: Watched<bool>,
    /// Log submitted since the last flush began.
    unflushed_bytes: AtomicU64,
    /// Set with the first record after a flush began.
    dirty: AtomicBool,
    dirty_notify: Notify,
    /// Something changed that the list of runs shows.
    unlisted: AtomicBool,
    unlisted_notify: Notify,
    flush_now: Notify,
    flush_log_bytes: u64,
    queue_limit_bytes: u64,
}

/// The node's side of the log.
#[derive(Clone)]
pub(crate) struct Log {
    shared: Arc<Shared>,
}

impl Log {
    pub(crate) fn new(session: SessionId, flush_log_bytes: u64, queue_limit_bytes: usize) -> Self {
        let shared = Shared {
            session,
            queue: Mutex::default(),
            work: Notify::new(),
            queued_bytes: AtomicU64::new(0),
            covered_tickets: AtomicU64::new(0),
            commit_latency_ns: AtomicU64::new(0),
            fence_reads_live: AtomicU64::new(0),
            state: Watched::new(LogState::Live),
            covered: Watched::new(0),
            silent: Watched::new(false),
            unflushed_bytes: AtomicU64::new(0),
            dirty: AtomicBool::new(false),
            dirty_notify: Notify::new(),
            unlisted: AtomicBool::new(false),
            unlisted_notify: Notify::new(),
            flush_now: Notify::new(),
            flush_log_bytes,
            queue_limit_bytes: queue_limit_bytes as u64,
        };
        Self { shared: Arc::new(shared) }
    }

    pub(crate) fn session(&self) -> SessionId {
        self.shared.session
    }

    /// A handle for one shard; `wake` is notified when something of the shard is covered.
    pub(crate) fn for_shard(&self, wake: Arc<Notify>) -> ShardLog {
        ShardLog { shared: self.shared.clone(), wake }
    }

    pub(crate) fn is_live(&self) -> bool {
        self.shared.state.get() == LogState::Live
    }

    /// Waits for the end of the session, and says what it was.
    pub(crate) async fn ended(&self) -> LogState {
        self.shared.state.wait_for(|state| *state != LogState::Live).await
    }

    /// The next ticket: all records submitted so far have smaller ones.
    pub(crate) fn next_ticket(&self) -> u64 {
        self.shared.queue().next_ticket
    }

    /// The first row that can hold a record submitted from now on: for a claim's source (C1).
    pub(crate) fn next_seq(&self) -> Seq {
        self.shared.queue().rows.back().map_or(Seq(1), |row| row.seq.next())
    }

    /// Waits until so many tickets are covered. `Err`: the session has ended.
    pub(crate) async fn wait_covered(&self, tickets: u64) -> Result<(), LogState> {
        tokio::select! {
            biased;
            _ = self.shared.covered.wait_for(|covered| *covered >= tickets) => Ok(()),
            state = self.ended() => Err(state),
        }
    }

    /// How many tickets are covered, and how long the last row of them took.
    pub(crate) fn last_covered(&self) -> (u64, u64) {
        let covered = self.shared.covered_tickets.load(Ordering::Acquire);
        (covered, self.shared.commit_latency_ns.load(Ordering::Relaxed))
    }

    pub(crate) fn is_silent(&self) -> bool {
        self.shared.silent.get()
    }

    /// `work`, which depends on the store; `None` when the store falls silent meanwhile. What was asked for may be done yet.
    pub(crate) async fn unless_silent<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let silence = async {
            let silent = self.shared.silent.wait_for(|silent| *silent);
            tokio::pin!(silent);
            let mut pause = LONG_WAIT;
            while tokio::time::timeout(pause, &mut silent).await.is_err() {
                // It may be that nothing is asked of the store but what waits for an answer that never comes.
                self.shared.queue().probe = true;
                self.shared.work.notify_one();
                pause = (pause * 2).min(LONGEST_WAIT);
            }
        };
        tokio::select! {
            biased;
            done = work => Some(done),
            () = silence => None,
        }
    }

    /// The row that holds a covered ticket, and its segment.
    pub(crate) fn row_of(&self, ticket: Ticket) -> Option<(Seq, u32)> {
        let queue = self.shared.queue();
        let index = queue.rows.partition_point(|row| row.tickets_end <= ticket.0);
        queue.rows.get(index).map(|row| (row.seq, row.segment))
    }

    /// The first row that a record with this ticket or a later one can be in, and a segment at or before it. Only exact
    /// for rows already built; that is enough, since an unbuilt row comes after them.
    pub(crate) fn base_for(&self, ticket: u64) -> Option<(Seq, u32)> {
        let queue = self.shared.queue();
        let index = queue.rows.partition_point(|row| row.tickets_end <= ticket);
        match queue.rows.get(index) {
            Some(row) => Some((row.seq, row.segment)),
            None => queue.rows.back().map(|row| (row.seq.next(), row.segment)),
        }
    }

    /// The last row that can hold a record submitted by now, once all of them are covered.
    pub(crate) async fn end_covered(&self) -> Result<Seq, LogState> {
        let tickets = self.next_ticket();
        self.wait_covered(tickets).await?;
        let last = tickets.checked_sub(1).and_then(|ticket| self.row_of(Ticket(ticket)));
        Ok(last.map_or(Seq::ZERO, |(seq, _)| seq))
    }

    /// A segment at or before that of a row that is not truncated.
    pub(crate) fn segment_of(&self, seq: Seq) -> u32 {
        let queue = self.shared.queue();
        let row = queue.rows.iter().find(|row| row.seq >= seq).or(queue.rows.back());
        row.map_or(0, |row| row.segment)
    }

    /// Forgets rows below a base that is known to be committed. The last row stays: the next seq follows from it.
    pub(crate) fn forget_below(&self, base: Seq) {
        let mut queue = self.shared.queue();
        while queue.rows.len() > 1 && queue.rows.front().is_some_and(|row| row.seq < base) {
            queue.rows.pop_front();
        }
    }

    /// A flush begins: what is submitted from now on is for the next one.
    pub(crate) fn begin_flush(&self) {
        self.shared.unflushed_bytes.store(0, Ordering::Relaxed);
        self.shared.dirty.store(false, Ordering::SeqCst);
    }

    /// Returns when something was submitted since the last [`Log::begin_flush`].
    pub(crate) async fn dirty(&self) {
        while !self.shared.dirty.load(Ordering::SeqCst) {
            self.shared.dirty_notify.notified().await;
        }
    }

    /// The list is about to be brought up to date: what changes from now on is for the next time.
    pub(crate) fn begin_listing(&self) {
        self.shared.unlisted.store(false, Ordering::SeqCst);
    }

    /// Returns when the list lags behind.
    pub(crate) async fn unlisted(&self) {
        while !self.shared.unlisted.load(Ordering::SeqCst) {
            self.shared.unlisted_notify.notified().await;
        }
    }

    pub(crate) async fn flush_wanted(&self) {
        self.shared.flush_now.notified().await;
    }

    /// Something has to be written to the tables though no record was submitted: a recovered shard.
    pub(crate) fn mark_dirty(&self) {
        self.shared.mark_dirty();
    }

    /// The store cannot be written: the session ends.
    pub(crate) fn fail(&self, error: StoreError) {
        self.shared.end(LogState::Failed(error));
        self.shared.work.notify_one();
    }

    /// There are signs that this session was fenced: the writer looks, though nothing waits for that (C4).
    pub(crate) fn look_at_fence(&self) {
        let mut queue = self.shared.queue();
        if !queue.closed {
            queue.fence_waiters.push(Arc::new(Notify::new()));
        }
        drop(queue);
        self.shared.work.notify_one();
    }

    /// No more records and fence reads; the writer ends when all that was submitted is covered.
    pub(crate) fn close(&self) {
        self.shared.queue().closed = true;
        self.shared.work.notify_one();
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mark_dirty(&self) {
        if !self.dirty.swap(true, Ordering::SeqCst) {
            self.dirty_notify.notify_one();
        }
    }

    /// Ends the session, and tells everybody who waits for coverage. Only the first end counts.
    fn end(&self, state: LogState) {
        let waiting: Vec<Arc<Notify>> = {
            let mut queue = self.queue();
            queue.closed = true;
            queue.bytes = 0;
            let waiters = std::mem::take(&mut queue.fence_waiters);
            queue.items.drain(..).map(|item| item.wake).chain(waiters).collect()
        };
        self.state.update(|current| {
            let is_live = *current == LogState::Live;
            if is_live {
                *current = state;
            }
            is_live
        });
        for wake in waiting {
            wake.notify_one();
        }
    }
}

/// A serving shard's access to the log. Who has lost the shard has lost this, and cannot append.
#[derive(Clone)]
pub(crate) struct ShardLog {
    shared: Arc<Shared>,
    wake: Arc<Notify>,
}

/// The session has ended: nothing can be submitted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ended;

impl ShardLog {
    /// Queues a framed record (see [`frame`]). Never waits.
    pub(crate) fn submit(&self, record: Bytes) -> Result<Ticket, Ended> {
        let bytes = record.len();
        // Before the ticket is taken: a flusher that sees the ticket must see the mark, too.
        self.shared.mark_dirty();
        let append = Append::begin(bytes);
        let ticket = {
            let mut queue = self.shared.queue();
            if queue.closed {
                return Err(Ended);
            }
            let ticket = Ticket(queue.next_ticket);
            queue.next_ticket += 1;
            queue.bytes += bytes;
            queue.items.push_back(Item { record, wake: self.wake.clone(), append });
            self.shared.queued_bytes.store(queue.bytes as u64, Ordering::Relaxed);
            ticket
        };
        self.shared.work.notify_one();
        let before = self.shared.unflushed_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let limit = self.shared.flush_log_bytes;
        if before < limit && before + bytes as u64 >= limit {
            self.shared.flush_now.notify_one();
        }
        Ok(ticket)
    }

    /// The list lags behind.
    pub(crate) fn mark_unlisted(&self) {
        if !self.shared.unlisted.swap(true, Ordering::SeqCst) {
            self.shared.unlisted_notify.notify_one();
        }
    }

    /// Records submitted so far and later ones will not share a row. So a snapshot taken now reflects *all* records of
    /// the row of its last one, and replay can skip by row (M1).
    pub(crate) fn cut(&self) {
        let mut queue = self.shared.queue();
        let next = queue.next_ticket;
        if !queue.items.is_empty() && queue.cuts.back() != Some(&next) {
            queue.cuts.push_back(next);
        }
    }

    /// The number of a fence read that will be sent after this call (A5). Shared by all that wait when it is sent.
    pub(crate) fn fence_read(&self) -> u64 {
        let number = {
            let mut queue = self.shared.queue();
            if !queue.closed && !queue.fence_waiters.iter().any(|wake| Arc::ptr_eq(wake, &self.wake)) {
                queue.fence_waiters.push(self.wake.clone());
            }
            queue.fence_reads_sent + 1
        };
        self.shared.work.notify_one();
        number
    }

    pub(crate) fn covered_tickets(&self) -> u64 {
        self.shared.covered_tickets.load(Ordering::Acquire)
    }

    pub(crate) fn fence_reads_live(&self) -> u64 {
        self.shared.fence_reads_live.load(Ordering::Acquire)
    }

    /// So much waits for the log that no new calls should be taken.
    pub(crate) fn is_congested(&self) -> bool {
        self.shared.queued_bytes.load(Ordering::Relaxed) > self.shared.queue_limit_bytes
    }

    /// Dirty state fills the cache: flush soon.
    pub(crate) fn want_flush(&self) {
        self.shared.mark_dirty();
        self.shared.flush_now.notify_one();
    }
}

/// A record as it stands in a row: an element of `perdure.log.v1.Batch.records`, so that a row is a concatenation.
pub(crate) fn frame(record: &perdure_proto::perdure::log::v1::Record) -> Bytes {
    use prost::{
        Message,
        encoding::{WireType, encode_key, encode_varint},
    };
    let length = record.encoded_len();
    let mut framed = bytes::BytesMut::with_capacity(length + 8);
    encode_key(1, WireType::LengthDelimited, &mut framed);
    encode_varint(length as u64, &mut framed);
    record.encode_raw(&mut framed);
    framed.freeze()
}
