//! Checkpointing: writes what changed in all shards to the tables, then moves the base of the log.
//!
//! One task for the node, asleep while nothing is dirty. A round takes a ticket as its cut, asks each dirty shard for
//! rows (in slices, so that no shard is held up), waits until what they reflect is covered (M1), writes them, and then
//! everything below the cut is materialized: the session's base moves there (M3), and whole segments below go.
//! The base bounds replay for all shards that this session owns, so a shard's own row is rewritten only when sources
//! from before its claim can be dropped (M2).

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use futures::{
    future::BoxFuture,
    stream::{self, StreamExt},
};
use perdure_persistence::{Cas, SessionRow, StampedWrite, Store, StoreError, TableWrite};
use perdure_types::{Epoch, Position, Seq, ShardId};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use crate::{
    claim::{self, Claim},
    config::ShardConfig,
    core::{PendingWrite, Slice},
    driver::{Ownership, ShardHandle},
    entry::Applied,
    log::{
        Log,
        session::{cas_session, persist},
    },
    telemetry,
};

/// Bytes that a shard encodes in one turn of its loop.
const SLICE_BYTES: usize = 256 << 10;

/// Bytes of one write to the store.
const WRITE_BYTES: usize = 4 << 20;

/// Shortest time between two rounds that memory or log size ask for.
const SHORTEST_GAP: Duration = Duration::from_millis(50);

/// The shards of this node, by id.
pub(crate) type Registry = Arc<RwLock<BTreeMap<ShardId, ShardHandle>>>;

/// A request for a round now.
pub(crate) struct FlushRequest {
    /// One shard, which is about to move and does not wait for the others; `None`: all of them.
    pub shard: Option<ShardId>,
    pub done: oneshot::Sender<Flushed>,
}

/// What a round has brought to the tables.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flushed {
    /// All shards of the node were served, and nothing that had changed before is missing.
    pub complete: bool,
    /// Rows of the log up to here are materialized, for these shards.
    pub materialized: Seq,
    pub shards: BTreeSet<ShardId>,
}

/// Rows of the own log that others still need, by shard (M3): handed over, with an open source.
pub(crate) type Lent = Arc<Mutex<BTreeMap<(ShardId, Epoch), Loan>>>;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Loan {
    pub from: Seq,
    /// The shard's row has been decided: from then on it says for how long.
    pub decided: bool,
}

pub(crate) struct Flusher {
    store: Arc<dyn Store>,
    log: Log,
    registry: Registry,
    config: ShardConfig,
    session_row: Arc<std::sync::Mutex<SessionRow>>,
    requests: mpsc::Receiver<FlushRequest>,
    lent: Lent,
    /// When what is dirty is to be in the tables. Rounds for single shards do not put it off.
    due: Option<Instant>,
}

/// Why a round ended early.
enum Stop {
    /// The session has ended.
    Session,
    Store(StoreError),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Flusher {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        log: Log,
        registry: Registry,
        config: ShardConfig,
        session_row: Arc<std::sync::Mutex<SessionRow>>,
        requests: mpsc::Receiver<FlushRequest>,
        lent: Lent,
    ) -> Self {
        Self { store, log, registry, config, session_row, requests, lent, due: None }
    }

    /// Runs until the session ends.
    pub(crate) async fn run(mut self) {
        if let Err(error) = claim::delete_unneeded(&*self.store, self.log.session()).await {
            tracing::warn!(%error, "old sessions are not cleaned up");
        }
        while self.log.is_live() {
            let flushed = match self.wait().await {
                Ok(wanted) => self.serve(wanted).await,
                Err(stop) => Err(stop),
            };
            match flushed {
                Ok(()) => {}
                Err(Stop::Session) => return,
                Err(Stop::Store(error)) => {
                    tracing::error!(%error, "the tables cannot be written, serving ends");
                    self.log.fail(error);
                    return;
                }
            }
            tokio::time::sleep(SHORTEST_GAP).await;
        }
    }

    /// One round, which answers all that asked before it began. `wanted`: who asked; `None`: a round of all shards is due.
    async fn serve(&mut self, wanted: Option<FlushRequest>) -> Result<(), Stop> {
        let mut whole = wanted.is_none();
        let mut requests: Vec<FlushRequest> = wanted.into_iter().collect();
        while let Ok(request) = self.requests.try_recv() {
            requests.push(request);
        }
        whole |= requests.iter().any(|request| request.shard.is_none());
        let flushed = if whole {
            self.due = None;
            self.round().await?
        } else {
            let asked: BTreeSet<ShardId> = requests.iter().filter_map(|request| request.shard).collect();
            self.round_of(&asked).await?
        };
        for request in requests {
            let _ = request.done.send(flushed.clone());
        }
        Ok(())
    }

    /// Returns when a round is due: asked for, or something has been dirty for long enough. Meanwhile it keeps the list
    /// of runs up to date.
    async fn wait(&mut self) -> Result<Option<FlushRequest>, Stop> {
        let log = self.log.clone();
        let ended = log.ended();
        tokio::pin!(ended);
        tokio::select! {
            biased;
            _ = &mut ended => return Ok(None),
            Some(request) = self.requests.recv() => return Ok(Some(request)),
            () = self.log.dirty() => {}
        }
        let interval = self.config.flush_interval;
        let due = tokio::time::sleep_until(*self.due.get_or_insert_with(|| Instant::now() + interval));
        tokio::pin!(due);
        loop {
            let list_due = async {
                log.unlisted().await;
                tokio::time::sleep(self.config.list_interval).await;
            };
            tokio::select! {
                biased;
                _ = &mut ended => return Ok(None),
                () = self.log.flush_wanted() => return Ok(None),
                () = &mut due => return Ok(None),
                Some(request) = self.requests.recv() => return Ok(Some(request)),
                () = list_due => {}
            }
            self.bring_list_up_to_date().await?;
        }
    }

    /// Writes what lists of runs have to show, and nothing else.
    async fn bring_list_up_to_date(&self) -> Result<(), Stop> {
        self.log.begin_listing();
        let mut batch = Batch::default();
        for shard in self.shards() {
            while shard.ownership() == Ownership::Serving {
                let Some(slice) = shard.gather_listings(SLICE_BYTES).await else { break };
                let more = slice.more;
                batch.add(shard.clone(), slice);
                if batch.bytes >= WRITE_BYTES {
                    self.write(std::mem::take(&mut batch)).await?;
                }
                if !more {
                    break;
                }
            }
        }
        self.write(batch).await
    }

    fn shards(&self) -> Vec<ShardHandle> {
        self.registry.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// One flush of all shards. The base stays while a shard is not serving.
    async fn round(&self) -> Result<Flushed, Stop> {
        // In this order: what is submitted from here on is for the next round.
        self.log.begin_flush();
        self.log.begin_listing();
        let cut = self.log.next_ticket();
        let shards = self.shards();
        let written = self.flush(&shards).await?;
        let complete = written.len() == shards.len();
        let materialized = self.materialized(cut);
        if complete {
            self.move_base(cut, &shards).await?;
        }
        Ok(Flushed { complete, materialized, shards: written })
    }

    /// A flush of some shards: it says nothing about the others, so the base stays, and what is dirty stays due.
    async fn round_of(&self, asked: &BTreeSet<ShardId>) -> Result<Flushed, Stop> {
        let cut = self.log.next_ticket();
        let shards: Vec<ShardHandle> =
            self.shards().into_iter().filter(|shard| asked.contains(&shard.claim().shard)).collect();
        let written = self.flush(&shards).await?;
        Ok(Flushed { complete: false, materialized: self.materialized(cut), shards: written })
    }

    /// The last row in front of the first that a record from the cut on can be in.
    fn materialized(&self, cut: u64) -> Seq {
        self.log.base_for(cut).map_or(Seq::ZERO, |(seq, _)| Seq(seq.0 - 1))
    }

    /// Writes all that has changed in these shards. Gives those that were serving, to the end.
    async fn flush(&self, shards: &[ShardHandle]) -> Result<BTreeSet<ShardId>, Stop> {
        let started = Instant::now();
        let mut written = BTreeSet::new();
        let mut bytes = 0;
        let mut batch = Batch::default();
        for shard in shards {
            if shard.ownership() != Ownership::Serving {
                continue;
            }
            let mut begin = true;
            loop {
                if begin && !shard.is_dirty() {
                    written.insert(shard.claim().shard);
                    break;
                }
                let Some(slice) = shard.gather(begin, SLICE_BYTES).await else { break };
                begin = false;
                let more = slice.more;
                bytes += slice.bytes;
                batch.add(shard.clone(), slice);
                if batch.bytes >= WRITE_BYTES {
                    self.write(std::mem::take(&mut batch)).await?;
                }
                if !more {
                    written.insert(shard.claim().shard);
                    break;
                }
            }
        }
        self.write(batch).await?;
        telemetry::flushed(bytes, started.elapsed());
        tracing::debug!(
            bytes,
            elapsed_ms = started.elapsed().as_millis() as u64,
            shards = shards.len(),
            left_out = shards.len() - written.len(),
            "flushed"
        );
        Ok(written)
    }

    /// Writes rows once all that they reflect is covered (M1).
    async fn write(&self, batch: Batch) -> Result<(), Stop> {
        if batch.slices.is_empty() {
            return Ok(());
        }
        self.log.wait_covered(batch.after).await.map_err(|_| Stop::Session)?;
        let mut events = Vec::new();
        let mut states = Vec::new();
        let mut notes = Vec::new();
        for (shard, slice) in batch.slices {
            let claim = shard.claim();
            for write in slice.writes {
                let comes_first = matches!(
                    write.write,
                    TableWrite::PutHistory { .. }
                        | TableWrite::PutVisibility { .. }
                        | TableWrite::DeleteVisibility { .. }
                );
                let rows = if comes_first { &mut events } else { &mut states };
                rows.push(self.stamp(&claim, write));
            }
            notes.push((shard, slice.notes, slice.list_notes));
        }
        // A snapshot that is there says that the events before it are, and that lists show it: recovery does not write
        // them again, so that the rows of a history do not overlap.
        for writes in [events, states] {
            if !writes.is_empty() {
                persist("write tables", || self.store.write(writes.clone())).await?;
            }
        }
        for (shard, notes, list_notes) in notes {
            if !list_notes.is_empty() {
                shard.listed(list_notes).await;
            }
            if !notes.is_empty() {
                shard.flushed(notes).await;
            }
        }
        Ok(())
    }

    /// Fills in the position that a row reflects, and the stamp: own epoch, own position (M1).
    fn stamp(&self, claim: &Claim, pending: PendingWrite) -> StampedWrite {
        let applied = match pending.applied {
            Applied::At(position) => position,
            Applied::Ticket(ticket) => {
                let row = self.log.row_of(ticket).map(|(seq, _)| seq);
                // Rows are forgotten only below a base, and a dirty run's records are above it.
                let seq = row.expect("a covered ticket above the base has a row");
                Position { epoch: claim.epoch(), seq }
            }
        };
        let mut write = pending.write;
        match &mut write {
            TableWrite::PutHead { row, .. } => row.applied = applied,
            TableWrite::PutRun { row, .. } => row.applied = applied,
            TableWrite::DeleteHead { .. }
            | TableWrite::PutHistory { .. }
            | TableWrite::DeleteRun { .. }
            | TableWrite::PutWakeup { .. }
            | TableWrite::DeleteWakeup { .. }
            | TableWrite::PutVisibility { .. }
            | TableWrite::DeleteVisibility { .. } => {}
        }
        StampedWrite { stamp: applied.max(claim.floor()), write }
    }

    /// Everything below the cut is in the tables: old sources and old segments are not needed any more.
    async fn move_base(&self, cut: u64, shards: &[ShardHandle]) -> Result<(), Stop> {
        let base = self.log.base_for(cut);
        let materialized = self.materialized(cut);
        let stale: Vec<&ShardHandle> = shards.iter().filter(|shard| shard.claim().row.sources.len() > 1).collect();
        if !stale.is_empty() {
            self.drop_sources(&stale, materialized).await?;
        }
        let Some((seq, segment)) = base else { return Ok(()) };
        let (seq, segment) = match self.lent_from().await? {
            Some(lent) if lent < seq => (lent, self.log.segment_of(lent)),
            _ => (seq, segment),
        };
        let current = self.session_row();
        if seq <= current.base {
            return Ok(());
        }
        let moved = SessionRow { base: seq, base_segment: segment, ..current.clone() };
        let session = self.log.session();
        if let Cas::Rejected(_) = cas_session(&*self.store, session, Some(current.clone()), moved.clone()).await? {
            // Fenced: the writer finds out by its next fence read.
            return Ok(());
        }
        *self.session_row.lock().unwrap_or_else(PoisonError::into_inner) = moved;
        self.log.forget_below(seq);
        for old in current.base_segment..segment {
            persist("delete log segment", || self.store.delete_segment(session, old)).await?;
        }
        Ok(())
    }

    /// M3: the first row that the new owner of a shard of ours may still have to replay.
    async fn lent_from(&self) -> Result<Option<Seq>, StoreError> {
        if self.lent.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
            return Ok(None);
        }
        // What is decided after this was lent after this.
        let decided: Vec<(ShardId, Epoch)> = {
            let lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
            lent.iter().filter(|(_, loan)| loan.decided).map(|(key, _)| *key).collect()
        };
        let rows: BTreeMap<ShardId, perdure_persistence::ShardRow> =
            persist("list shards", || self.store.list_shards()).await?.into_iter().collect();
        let session = self.log.session();
        let is_needed = |(shard, epoch): &(ShardId, Epoch)| {
            rows.get(shard).and_then(|row| row.sources.get(epoch)).is_some_and(|source| source.session == session)
        };
        let mut lent = self.lent.lock().unwrap_or_else(PoisonError::into_inner);
        for key in decided.into_iter().filter(|key| !is_needed(key)) {
            lent.remove(&key);
        }
        Ok(lent.values().map(|loan| loan.from).min())
    }

    fn session_row(&self) -> SessionRow {
        self.session_row.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// M2 for shards that still name logs from before their claim.
    async fn drop_sources(&self, shards: &[&ShardHandle], materialized: Seq) -> Result<(), Stop> {
        let mut checkpoints: Vec<BoxFuture<'static, Result<(), StoreError>>> = Vec::new();
        for shard in shards {
            checkpoints.push(Box::pin(drop_sources(self.store.clone(), (*shard).clone(), materialized)));
        }
        let mut results = stream::iter(checkpoints).buffer_unordered(64);
        while let Some(result) = results.next().await {
            result?;
        }
        claim::delete_unneeded(&*self.store, self.log.session()).await?;
        Ok(())
    }
}

async fn drop_sources(store: Arc<dyn Store>, shard: ShardHandle, materialized: Seq) -> Result<(), StoreError> {
    let claim = shard.claim();
    match claim::checkpoint(&*store, &claim, materialized).await? {
        Some(row) => shard.set_claim_row(row),
        None => tracing::warn!(shard_id = claim.shard.0, "the shard's row is not as this owner left it"),
    }
    Ok(())
}

/// Slices of several shards that are written together.
#[derive(Default)]
struct Batch {
    slices: Vec<(ShardHandle, Slice)>,
    bytes: usize,
    after: u64,
}

impl Batch {
    fn add(&mut self, shard: ShardHandle, slice: Slice) {
        self.bytes += slice.bytes;
        self.after = self.after.max(slice.after);
        self.slices.push((shard, slice));
    }
}
