//! Our commit path: the store that the server uses, driven as its log writer does.
//!
//! Updates that pile up share a row; up to four rows are under way; a fence read of the session's own row, sent after an
//! insert was acknowledged, covers it, and what is covered is durable. Segments roll and old ones are deleted, since that
//! belongs to the cost.

use std::{collections::VecDeque, sync::Arc};

use anyhow::{Context, Result, anyhow};
use bytes::{Bytes, BytesMut};
use futures::{
    future::{BoxFuture, OptionFuture},
    stream::{FuturesUnordered, StreamExt},
};
use perdure_persistence::{
    Cas, LogRow, SessionRow, SessionState, Store,
    cassandra::{CassandraConfig, CassandraStore},
};
use perdure_types::{Seq, SessionId};
use tokio::sync::{mpsc, oneshot};

use super::Path;

/// As the server's defaults.
const ROWS_IN_FLIGHT: u64 = 4;
const EAGER_ROW_BYTES: usize = 64 << 10;
const ROW_BYTES: usize = 1 << 20;
const SEGMENT_BYTES: usize = 16 << 20;
const SEGMENT_ROWS: u64 = 65_536;

struct Update {
    bytes: Bytes,
    durable: oneshot::Sender<()>,
}

pub struct Ours {
    store: Arc<CassandraStore>,
    updates: mpsc::Sender<Update>,
}

impl Ours {
    pub async fn start(config: CassandraConfig) -> Result<Self> {
        let store = Arc::new(CassandraStore::connect(config).await?);
        let session = SessionId(session_id());
        let row = SessionRow { state: SessionState::Live, base: Seq(1), base_segment: 0 };
        let created = store.cas_session(session, None, row).await?;
        anyhow::ensure!(created == Cas::Applied, "the session exists already");
        let (updates, queue) = mpsc::channel(4096);
        let writer = Writer {
            store: store.clone(),
            session,
            queue,
            pending: VecDeque::new(),
            pending_bytes: 0,
            issued: 0,
            acked: 0,
            covered: 0,
            sent: VecDeque::new(),
            segment: 0,
            segment_bytes: 0,
            segment_rows: 0,
        };
        tokio::spawn(async move {
            if let Err(error) = writer.run().await {
                eprintln!("the log ended: {error:#}");
            }
        });
        Ok(Self { store, updates })
    }
}

/// One session a run of this program; the keyspace is new.
fn session_id() -> uuid::Uuid {
    uuid::Uuid::from_u128(u128::from(std::process::id()) << 64 | 1)
}

#[async_trait::async_trait]
impl Path for Ours {
    fn name(&self) -> &'static str {
        "fenced log"
    }

    async fn update(&self, _worker: usize, update: Bytes) -> Result<()> {
        let (durable, wait) = oneshot::channel();
        self.updates.send(Update { bytes: update, durable }).await.map_err(|_| anyhow!("the log has ended"))?;
        wait.await.context("the log has ended")
    }

    fn statements(&self) -> u64 {
        self.store.statement_counts().into_iter().map(|(_, count)| count).sum()
    }
}

struct Sent {
    seq: u64,
    acked: bool,
    durable: Vec<oneshot::Sender<()>>,
}

struct Writer {
    store: Arc<CassandraStore>,
    session: SessionId,
    queue: mpsc::Receiver<Update>,
    pending: VecDeque<Update>,
    pending_bytes: usize,
    issued: u64,
    /// Contiguous prefixes.
    acked: u64,
    covered: u64,
    sent: VecDeque<Sent>,
    segment: u32,
    segment_bytes: usize,
    segment_rows: u64,
}

impl Writer {
    async fn run(mut self) -> Result<()> {
        let mut appends: FuturesUnordered<BoxFuture<'static, Result<u64>>> = FuturesUnordered::new();
        let mut fence: OptionFuture<BoxFuture<'static, Result<u64>>> = None.into();
        let mut fencing = false;
        loop {
            self.send_rows(&mut appends);
            if !fencing && self.acked > self.covered {
                fence = Some(read_fence(self.store.clone(), self.session, self.acked)).into();
                fencing = true;
            }
            tokio::select! {
                biased;
                Some(covered) = &mut fence, if fencing => {
                    fencing = false;
                    fence = None.into();
                    self.cover(covered?);
                }
                Some(seq) = appends.next(), if !appends.is_empty() => self.on_ack(seq?),
                update = self.queue.recv() => {
                    let Some(update) = update else { return Ok(()) };
                    self.pend(update);
                    while let Ok(update) = self.queue.try_recv() {
                        self.pend(update);
                    }
                }
            }
        }
    }

    fn pend(&mut self, update: Update) {
        self.pending_bytes += update.bytes.len();
        self.pending.push_back(update);
    }

    fn send_rows(&mut self, appends: &mut FuturesUnordered<BoxFuture<'static, Result<u64>>>) {
        while self.issued - self.acked < ROWS_IN_FLIGHT && !self.pending.is_empty() {
            if self.issued > self.acked && self.pending_bytes < EAGER_ROW_BYTES {
                return;
            }
            let (mut batch, mut durable) = (BytesMut::new(), Vec::new());
            while let Some(update) = self.pending.front() {
                if !durable.is_empty() && batch.len() + update.bytes.len() > ROW_BYTES {
                    break;
                }
                batch.extend_from_slice(&update.bytes);
                durable.extend(self.pending.pop_front().map(|update| update.durable));
            }
            self.pending_bytes -= batch.len();
            self.issued += 1;
            if self.segment_bytes >= SEGMENT_BYTES || self.segment_rows >= SEGMENT_ROWS {
                self.roll_segment();
            }
            self.segment_bytes += batch.len();
            self.segment_rows += 1;
            let (seq, acknowledged) = (Seq(self.issued), Seq(self.acked));
            let row = LogRow { segment: self.segment, seq, acknowledged, batch: batch.freeze() };
            self.sent.push_back(Sent { seq: self.issued, acked: false, durable });
            let (store, session) = (self.store.clone(), self.session);
            appends.push(Box::pin(async move {
                let seq = row.seq.0;
                store.append(session, row).await?;
                Ok(seq)
            }));
        }
    }

    /// A flush would have made the one before the last unneeded.
    fn roll_segment(&mut self) {
        self.segment += 1;
        (self.segment_bytes, self.segment_rows) = (0, 0);
        if let Some(old) = self.segment.checked_sub(2) {
            let (store, session) = (self.store.clone(), self.session);
            tokio::spawn(async move { store.delete_segment(session, old).await });
        }
    }

    fn on_ack(&mut self, seq: u64) {
        for row in self.sent.iter_mut().filter(|row| row.seq == seq) {
            row.acked = true;
        }
        self.acked = self.sent.iter().take_while(|row| row.acked).last().map_or(self.acked, |row| row.seq);
    }

    fn cover(&mut self, covered: u64) {
        self.covered = covered;
        while self.sent.front().is_some_and(|row| row.seq <= covered) {
            for durable in self.sent.pop_front().into_iter().flat_map(|row| row.durable) {
                let _ = durable.send(());
            }
        }
    }
}

fn read_fence(store: Arc<CassandraStore>, session: SessionId, acked: u64) -> BoxFuture<'static, Result<u64>> {
    Box::pin(async move {
        let row = store.read_session(session).await?;
        anyhow::ensure!(row.is_some_and(|row| row.state == SessionState::Live), "fenced");
        Ok(acked)
    })
}
