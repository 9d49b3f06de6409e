//! The owner task of a session's log: builds rows of what piled up, appends them, reads the fence, publishes coverage.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures::{
    future::{BoxFuture, OptionFuture},
    stream::{FuturesUnordered, StreamExt},
};
use perdure_persistence::{LogRow, SessionState, Store, StoreError};
use perdure_types::{Seq, SessionId};
use tokio::{sync::Notify, time::Instant};

use super::{
    Log, LogState, RowEnd, Shared,
    coverage::{Coverage, FenceRead},
    session::Backoff,
};
use crate::{config::ShardConfig, telemetry, trace::Append};

/// Between looks whether a store that is not asked for anything is there.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// A row that is not covered yet.
struct SentRow {
    seq: Seq,
    tickets_end: u64,
    /// Shards that have records in it.
    wakes: Vec<Arc<Notify>>,
    /// Of those records that are traced; they end with the row.
    appends: Vec<Append>,
    sent_at: Instant,
}

/// The content of one row to be.
struct Batch {
    bytes: Bytes,
    tickets_end: u64,
    wakes: Vec<Arc<Notify>>,
    appends: Vec<Append>,
}

pub(crate) struct Writer {
    store: Arc<dyn Store>,
    shared: Arc<Shared>,
    config: ShardConfig,
    coverage: Coverage,
    segment: u32,
    segment_bytes: usize,
    segment_rows: u64,
    sent: VecDeque<SentRow>,
    appends: FuturesUnordered<BoxFuture<'static, Appended>>,
    fence: OptionFuture<BoxFuture<'static, FenceRead>>,
    /// Whom the fence read under way answers, and its number (A5).
    fence_readers: Vec<Arc<Notify>>,
    fence_number: u64,
    /// An append has failed: perhaps somebody fenced us, so look (a read without acks covers nothing).
    suspicious: bool,
    /// Something was asked of the store. Since then, or since its latest answer, it owes us one.
    asked: bool,
    heard_at: Instant,
}

enum Appended {
    Done(Seq),
    /// The first failure of a row; its retries go on.
    Struggling(BoxFuture<'static, Appended>),
    Failed(StoreError),
}

impl Writer {
    pub(crate) fn new(log: &Log, store: Arc<dyn Store>, config: ShardConfig) -> Self {
        Self {
            store,
            shared: log.shared.clone(),
            config,
            coverage: Coverage::default(),
            segment: 0,
            segment_bytes: 0,
            segment_rows: 0,
            sent: VecDeque::new(),
            appends: FuturesUnordered::new(),
            fence: None.into(),
            fence_readers: Vec::new(),
            fence_number: 0,
            suspicious: false,
            asked: false,
            heard_at: Instant::now(),
        }
    }

    /// Runs until the session ends. Gives the last covered row when it was closed by [`Log::close`].
    pub(crate) async fn run(mut self) -> Option<Seq> {
        let shared = self.shared.clone();
        loop {
            if shared.state.get() != LogState::Live {
                return None;
            }
            self.send_rows();
            self.send_fence_read();
            if self.is_finished() {
                let last = self.coverage.covered();
                shared.end(LogState::Closed);
                return Some(last);
            }
            let fence_under_way = self.coverage.fence_read_under_way();
            let silent_at = self.silent_at();
            tokio::select! {
                biased;
                Some(answer) = &mut self.fence, if fence_under_way => {
                    if !self.on_fence_read(answer) {
                        return None;
                    }
                }
                Some(appended) = self.appends.next(), if !self.appends.is_empty() => {
                    if !self.on_appended(appended) {
                        return None;
                    }
                }
                () = shared.work.notified() => {}
                () = tokio::time::sleep_until(silent_at.unwrap_or(self.heard_at)), if silent_at.is_some() => {
                    tracing::warn!("the store is silent: calls are refused until it answers");
                    telemetry::store_silent(true);
                    shared.silent.set(true);
                }
            }
        }
    }

    /// When the store counts as silent, if it does not answer until then.
    fn silent_at(&mut self) -> Option<Instant> {
        let asked = !self.appends.is_empty() || self.coverage.fence_read_under_way();
        if asked && !self.asked {
            self.heard_at = Instant::now();
        }
        self.asked = asked;
        (asked && !self.shared.silent.get()).then(|| self.heard_at + self.config.silence)
    }

    fn heard(&mut self) {
        self.heard_at = Instant::now();
        if self.shared.silent.get() {
            tracing::info!("the store answers again");
            telemetry::store_silent(false);
            self.shared.silent.set(false);
        }
    }

    fn is_finished(&self) -> bool {
        let queue = self.shared.queue();
        queue.closed && queue.items.is_empty() && self.sent.is_empty() && !self.coverage.fence_read_under_way()
    }

    /// A2: at most W rows beyond the acknowledged prefix; while one is under way, small amounts wait to become more.
    fn send_rows(&mut self) {
        while self.coverage.in_flight() < self.config.rows_in_flight {
            let least = if self.coverage.in_flight() == 0 { 1 } else { self.config.eager_row_bytes };
            let Some(Batch { bytes: batch, tickets_end, wakes, appends }) = self.take_batch(least) else {
                return;
            };
            let Some(seq) = self.coverage.issue() else { return };
            self.roll_segment();
            self.segment_bytes += batch.len();
            self.segment_rows += 1;
            let record_count = tickets_end - self.sent.back().map_or(self.published_end(), |row| row.tickets_end);
            self.shared.queue().rows.push_back(RowEnd { seq, segment: self.segment, tickets_end });
            appends.iter().for_each(|append| append.sent(seq.0, record_count));
            self.sent.push_back(SentRow { seq, tickets_end, wakes, appends, sent_at: Instant::now() });
            telemetry::row_sent(record_count as usize, batch.len(), self.sent.len());
            let row = LogRow { segment: self.segment, seq, acknowledged: self.coverage.acked(), batch };
            self.appends.push(append(self.store.clone(), self.shared.session, row));
        }
    }

    fn published_end(&self) -> u64 {
        self.shared.covered_tickets.load(Ordering::Relaxed)
    }

    /// Takes what fits into one row, if at least `least` bytes wait.
    fn take_batch(&self, least: usize) -> Option<Batch> {
        let mut queue = self.shared.queue();
        if queue.items.is_empty() || (queue.bytes < least && !queue.closed) {
            return None;
        }
        let first = queue.next_ticket - queue.items.len() as u64;
        while queue.cuts.front().is_some_and(|cut| *cut <= first) {
            queue.cuts.pop_front();
        }
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some(item) = queue.items.front() {
            let is_full = bytes + item.record.len() > self.config.row_bytes;
            let is_cut = queue.cuts.front() == Some(&(first + taken.len() as u64));
            if !taken.is_empty() && (is_full || is_cut) {
                break;
            }
            bytes += item.record.len();
            taken.extend(queue.items.pop_front());
        }
        queue.bytes -= bytes;
        self.shared.queued_bytes.store(queue.bytes as u64, Ordering::Relaxed);
        let tickets_end = queue.next_ticket - queue.items.len() as u64;
        drop(queue);
        let mut wakes: Vec<Arc<Notify>> = Vec::new();
        let mut batch = BytesMut::with_capacity(bytes);
        let mut appends = Vec::new();
        for item in taken {
            if item.append.is_traced() {
                appends.push(item.append);
            }
            batch.extend_from_slice(&item.record);
            if !wakes.iter().any(|wake| Arc::ptr_eq(wake, &item.wake)) {
                wakes.push(item.wake);
            }
        }
        Some(Batch { bytes: batch.freeze(), tickets_end, wakes, appends })
    }

    fn roll_segment(&mut self) {
        if self.segment_bytes >= self.config.segment_bytes || self.segment_rows >= self.config.segment_rows {
            self.segment += 1;
            self.segment_bytes = 0;
            self.segment_rows = 0;
        }
    }

    /// A3: one fence read at a time, sent when it would cover rows or when readers wait (A5).
    fn send_fence_read(&mut self) {
        if self.coverage.fence_read_under_way() {
            return;
        }
        let mut queue = self.shared.queue();
        // Not for everybody who wonders: they may be many.
        let probe = std::mem::take(&mut queue.probe) && self.heard_at.elapsed() >= PROBE_INTERVAL;
        if !self.coverage.wants_fence_read() && queue.fence_waiters.is_empty() && !self.suspicious && !probe {
            return;
        }
        queue.fence_reads_sent += 1;
        telemetry::fence_read();
        self.fence_number = queue.fence_reads_sent;
        self.fence_readers.append(&mut queue.fence_waiters);
        drop(queue);
        self.suspicious = false;
        self.coverage.send_fence_read();
        self.fence = Some(read_fence(self.store.clone(), self.shared.session)).into();
    }

    /// False: the session has ended.
    fn on_fence_read(&mut self, answer: FenceRead) -> bool {
        self.fence = None.into();
        let grew = self.coverage.on_fence_read(answer);
        match answer {
            FenceRead::Live => {
                self.heard();
                self.shared.fence_reads_live.store(self.fence_number, Ordering::Release);
                if grew {
                    self.publish();
                }
                for reader in self.fence_readers.drain(..) {
                    reader.notify_one();
                }
                true
            }
            // The readers stay in line for the next one.
            FenceRead::Unknown => {
                self.shared.queue().fence_waiters.append(&mut self.fence_readers);
                self.suspicious = true;
                true
            }
            FenceRead::NotLive => {
                tracing::error!(session = %self.shared.session, "this session was fenced by another node");
                telemetry::session_fenced();
                self.end(LogState::Fenced);
                false
            }
        }
    }

    fn publish(&mut self) {
        let covered = self.coverage.covered();
        let mut wakes: Vec<Arc<Notify>> = Vec::new();
        let mut end = None;
        while self.sent.front().is_some_and(|row| row.seq <= covered) {
            let Some(row) = self.sent.pop_front() else { break };
            let latency = row.sent_at.elapsed();
            telemetry::row_covered(latency);
            let latency_ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
            self.shared.commit_latency_ns.store(latency_ns, Ordering::Relaxed);
            end = Some(row.tickets_end);
            drop(row.appends);
            wakes.extend(row.wakes);
        }
        if let Some(end) = end {
            self.shared.covered_tickets.store(end, Ordering::Release);
            self.shared.covered.set(end);
        }
        for wake in wakes {
            wake.notify_one();
        }
    }

    /// False: the session has ended.
    fn on_appended(&mut self, appended: Appended) -> bool {
        match appended {
            Appended::Done(seq) => {
                self.heard();
                self.coverage.on_ack(seq);
                true
            }
            Appended::Struggling(retries) => {
                self.suspicious = true;
                self.appends.push(retries);
                true
            }
            Appended::Failed(error) => {
                tracing::error!(session = %self.shared.session, %error, "the log cannot be written, serving ends");
                self.end(LogState::Failed(error));
                false
            }
        }
    }

    fn end(&mut self, state: LogState) {
        self.coverage.stop();
        self.shared.end(state);
        let waiting = self.sent.drain(..).flat_map(|row| row.wakes).chain(self.fence_readers.drain(..));
        for wake in waiting {
            wake.notify_one();
        }
    }
}

/// Inserts a row; repeated attempts send the same bytes (G2).
fn append(store: Arc<dyn Store>, session: SessionId, row: LogRow) -> BoxFuture<'static, Appended> {
    Box::pin(async move {
        match store.append(session, row.clone()).await {
            Ok(()) => Appended::Done(row.seq),
            Err(StoreError::Unavailable(_) | StoreError::Indeterminate(_)) => {
                Appended::Struggling(Box::pin(append_again(store, session, row)))
            }
            Err(error) => Appended::Failed(error),
        }
    })
}

async fn append_again(store: Arc<dyn Store>, session: SessionId, row: LogRow) -> Appended {
    let mut backoff = Backoff::new();
    loop {
        telemetry::append_retried();
        backoff.wait().await;
        match store.append(session, row.clone()).await {
            Ok(()) => return Appended::Done(row.seq),
            Err(StoreError::Unavailable(reason) | StoreError::Indeterminate(reason)) => {
                tracing::warn!(seq = row.seq.0, reason, "append failed, trying again");
            }
            Err(error) => return Appended::Failed(error),
        }
    }
}

/// Waits a little after a failed read: the next one is sent as soon as this is answered.
fn read_fence(store: Arc<dyn Store>, session: SessionId) -> BoxFuture<'static, FenceRead> {
    Box::pin(async move {
        match store.read_session(session).await {
            Ok(Some(row)) if row.state == SessionState::Live => FenceRead::Live,
            // A missing row reads as not live (G4).
            Ok(_) => FenceRead::NotLive,
            Err(error) => {
                tracing::warn!(%error, "fence read failed, trying again");
                tokio::time::sleep(Duration::from_millis(20)).await;
                FenceRead::Unknown
            }
        }
    })
}
