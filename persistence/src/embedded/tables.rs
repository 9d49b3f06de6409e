//! The tables in redb: their shapes, and the reads.

use std::{collections::BTreeMap, ops::Bound, path::Path, sync::Arc};

use bytes::Bytes;
use perdure_types::{ChainKey, EntityKind, Epoch, Position, Seq, SessionId, ShardId, SlotCount, Timestamp};
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition, WriteTransaction};
use uuid::Uuid;

use super::{
    dir::{DataDirectory, OpenError, refuses_writes, sync_directory},
    log::page_ends,
    visibility,
};
use crate::{
    ClusterSettings, HeadRow, HistoryRow, NamespaceRow, Result, RunRow, SessionRow, SessionState, ShardRow, Source,
    Split, StoreError, Wakeup,
};

/// Cluster id, slots, schema version.
pub(super) const CLUSTER: TableDefinition<(), (&str, u32, u32)> = TableDefinition::new("cluster");
/// Name → id, record, version.
pub(super) const NAMESPACES: TableDefinition<&str, (&str, &[u8], u64)> = TableDefinition::new("namespaces");
pub(super) const SESSIONS: TableDefinition<u128, SessionValue> = TableDefinition::new("sessions");
pub(super) const SHARDS: TableDefinition<u32, ShardValue> = TableDefinition::new("shards");
/// Shards that were split.
pub(super) const SPLITS: TableDefinition<u32, SplitValue> = TableDefinition::new("splits");
/// How many shards there are to be.
pub(super) const GOAL: TableDefinition<(), u32> = TableDefinition::new("goal");
pub(super) const HEADS: TableDefinition<ChainKeyValue, HeadValue> = TableDefinition::new("heads");
pub(super) const RUNS: TableDefinition<RunRowKey, RunValue> = TableDefinition::new("runs");
pub(super) const HISTORY: TableDefinition<HistoryKey, HistoryValue> = TableDefinition::new("history");
/// The value is the stamp.
pub(super) const WAKEUPS: TableDefinition<WakeupKey, i64> = TableDefinition::new("wakeups");

/// Kind of entity, namespace id, workflow id (or what the kind has for it).
pub(super) type ChainKeyValue<'a> = (u8, &'a str, &'a str);
/// Kind of entity, namespace id, workflow id, run id.
pub(super) type RunRowKey<'a> = (u8, &'a str, &'a str, &'a str);
/// Namespace id, workflow id, run id.
pub(super) type RunKey<'a> = (&'a str, &'a str, &'a str);
/// Kind of entity, namespace id, workflow id, run id, first event.
pub(super) type HistoryKey<'a> = (u8, &'a str, &'a str, &'a str, i64);
/// Shard, time, kind of entity, namespace id, workflow id, run id: as [`Wakeup`]s are ordered.
pub(super) type WakeupKey<'a> = (u32, i64, u8, &'a str, &'a str, &'a str);
/// Stamp, applied, head.
pub(super) type HeadValue<'a> = (i64, PositionValue, &'a [u8]);
/// Stamp, applied, wake-up, snapshot.
pub(super) type RunValue<'a> = (i64, PositionValue, Option<i64>, &'a [u8]);
/// Stamp, last event, events.
pub(super) type HistoryValue<'a> = (i64, i64, &'a [u8]);
/// Epoch, seq.
pub(super) type PositionValue = (u64, u64);
/// State, where sealed, base, base segment.
pub(super) type SessionValue = (u8, u64, u64, u32);
/// Owner, epoch, checkpoint, sources as (epoch, session, from, until).
pub(super) type ShardValue = (Option<u128>, u64, PositionValue, Vec<(u64, u128, u64, Option<u64>)>);
/// Slots, epoch, row of the upper half.
pub(super) type SplitValue = (u32, u64, Option<ShardValue>);

pub(super) fn chain_key(chain: &ChainKey) -> ChainKeyValue<'_> {
    (chain.kind as u8, &chain.namespace_id, &chain.workflow_id)
}

pub(super) fn run_row_key<'a>(chain: &'a ChainKey, run_id: &'a str) -> RunRowKey<'a> {
    (chain.kind as u8, &chain.namespace_id, &chain.workflow_id, run_id)
}

pub(super) fn history_key<'a>(chain: &'a ChainKey, run_id: &'a str, first_event_id: i64) -> HistoryKey<'a> {
    (chain.kind as u8, &chain.namespace_id, &chain.workflow_id, run_id, first_event_id)
}

pub(super) fn wakeup_key(shard: ShardId, wakeup: &Wakeup) -> WakeupKey<'_> {
    let Wakeup { at, chain, run_id } = wakeup;
    (shard.0, at.0, chain.kind as u8, &chain.namespace_id, &chain.workflow_id, run_id)
}

const LIVE: u8 = 0;
const FENCED: u8 = 1;
const SEALED: u8 = 2;

pub(super) fn session_value(row: &SessionRow) -> SessionValue {
    let (state, sealed) = match row.state {
        SessionState::Live => (LIVE, 0),
        SessionState::Fenced => (FENCED, 0),
        SessionState::Sealed(at) => (SEALED, at.0),
    };
    (state, sealed, row.base.0, row.base_segment)
}

pub(super) fn session_row((state, sealed, base, base_segment): SessionValue) -> Result<SessionRow> {
    let state = match state {
        LIVE => SessionState::Live,
        FENCED => SessionState::Fenced,
        SEALED => SessionState::Sealed(Seq(sealed)),
        other => return Err(StoreError::Corrupt(format!("a session is in state {other}"))),
    };
    Ok(SessionRow { state, base: Seq(base), base_segment })
}

pub(super) fn shard_value(row: &ShardRow) -> ShardValue {
    let sources = row.sources.iter();
    let sources = sources.map(|(epoch, s)| (epoch.0, s.session.0.as_u128(), s.from.0, s.until.map(|seq| seq.0)));
    (row.owner.map(|id| id.0.as_u128()), row.epoch.0, position_value(row.checkpoint), sources.collect())
}

pub(super) fn shard_row((owner, epoch, checkpoint, sources): ShardValue) -> ShardRow {
    let sources = sources.into_iter().map(|(epoch, session, from, until)| {
        (Epoch(epoch), Source { session: session_id(session), from: Seq(from), until: until.map(Seq) })
    });
    let sources: BTreeMap<_, _> = sources.collect();
    let split = None;
    ShardRow { owner: owner.map(session_id), epoch: Epoch(epoch), checkpoint: position(checkpoint), sources, split }
}

pub(super) fn split_value(split: &Split) -> SplitValue {
    (split.slots.get(), split.epoch.0, split.sibling.as_deref().map(shard_value))
}

pub(super) fn split((slots, epoch, sibling): SplitValue) -> Result<Split> {
    let half = Split { slots: slot_count(slots)?, epoch: Epoch(epoch), sibling: None };
    let sibling = sibling.map(|row| Box::new(ShardRow { split: Some(half.clone()), ..shard_row(row) }));
    Ok(Split { sibling, ..half })
}

pub(super) fn slot_count(slots: u32) -> Result<SlotCount> {
    SlotCount::new(slots).ok_or_else(|| StoreError::Corrupt(format!("the cluster has {slots} slots")))
}

pub(super) fn position_value(position: Position) -> PositionValue {
    (position.epoch.0, position.seq.0)
}

fn position((epoch, seq): PositionValue) -> Position {
    Position { epoch: Epoch(epoch), seq: Seq(seq) }
}

fn session_id(id: u128) -> SessionId {
    SessionId(Uuid::from_u128(id))
}

pub(super) fn namespace_row(name: &str, (id, record, version): (&str, &[u8], u64)) -> NamespaceRow {
    NamespaceRow { id: id.into(), name: name.into(), record: Bytes::copy_from_slice(record), version }
}

pub(super) fn settings((id, slots, schema_version): (&str, u32, u32)) -> Result<ClusterSettings> {
    Ok(ClusterSettings { cluster_id: id.into(), slots: slot_count(slots)?, schema_version })
}

/// Any failure of redb. After one of its disk it takes nothing more until it is opened again.
pub(super) fn failure(error: impl Into<redb::Error>) -> StoreError {
    match error.into() {
        redb::Error::Corrupted(detail) => StoreError::Corrupt(detail),
        redb::Error::Io(error) if refuses_writes(&error) => StoreError::ReadOnly(format!("tables: {error}")),
        error => StoreError::ReadOnly(format!("tables: {error}; restart when the disk is well")),
    }
}

/// Opens the tables, or creates them in a directory that has none.
pub(super) fn open(directory: &DataDirectory, cache_bytes: usize) -> Result<Database, OpenError> {
    let path = directory.tables();
    if path.exists() {
        return caught(directory.path(), || {
            let mut builder = Database::builder();
            builder.set_cache_size(cache_bytes);
            let database = builder.open(&path)?;
            // Finds at once what an opening alone may not read.
            let transaction = database.begin_read().map_err(redb::Error::from)?;
            transaction.open_table(CLUSTER).map_err(redb::Error::from)?;
            if !visibility::exist(&transaction) || transaction.open_table(GOAL).is_err() {
                // Made by a version that kept no list, or split no shards.
                create_tables(&database)?;
            }
            Ok(database)
        });
    }
    if directory.was_created() {
        let detail = format!("{} is missing; bring it back from a backup, or choose a new directory", path.display());
        return Err(OpenError::corrupt(directory.path(), detail));
    }
    // Created under another name, so that a half-made file is never taken for the tables.
    let draft = path.with_extension("new");
    let io = |error: std::io::Error| OpenError::from_io(directory.path(), &error);
    if draft.exists() {
        std::fs::remove_file(&draft).map_err(io)?;
    }
    let database = caught(directory.path(), || {
        let mut builder = Database::builder();
        builder.set_cache_size(cache_bytes);
        let database = builder.create(&draft)?;
        create_tables(&database)?;
        Ok(database)
    })?;
    std::fs::rename(&draft, &path).map_err(io)?;
    sync_directory(directory.path()).map_err(io)?;
    Ok(database)
}

/// Tables in a file that is never synced.
pub(super) fn open_unsynced(directory: &DataDirectory, cache_bytes: usize) -> Result<Database, OpenError> {
    caught(directory.path(), || {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(directory.tables())
            .map_err(redb::Error::Io)?;
        let backend = Unsynced(redb::backends::FileBackend::new(file)?);
        let mut builder = Database::builder();
        builder.set_cache_size(cache_bytes);
        let database = builder.create_with_backend(backend)?;
        create_tables(&database)?;
        Ok(database)
    })
}

/// Opening a file that something else has damaged may panic inside redb.
fn caught(directory: &Path, open: impl FnOnce() -> Result<Database, redb::Error>) -> Result<Database, OpenError> {
    let corrupt = |detail: String| OpenError::corrupt(directory, format!("tables.redb: {detail}"));
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(open)) {
        Ok(Ok(database)) => Ok(database),
        Ok(Err(redb::Error::Io(error))) => Err(OpenError::from_io(directory, &error)),
        Ok(Err(redb::Error::DatabaseAlreadyOpen)) => {
            Err(OpenError::Locked { directory: directory.to_owned(), pid: None })
        }
        Ok(Err(error)) => Err(corrupt(error.to_string())),
        Err(_) => Err(corrupt("unreadable".into())),
    }
}

fn create_tables(database: &Database) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    touch_tables(&transaction)?;
    transaction.commit()?;
    Ok(())
}

fn touch_tables(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    transaction.open_table(CLUSTER)?;
    transaction.open_table(NAMESPACES)?;
    transaction.open_table(SESSIONS)?;
    transaction.open_table(SHARDS)?;
    transaction.open_table(SPLITS)?;
    transaction.open_table(GOAL)?;
    transaction.open_table(HEADS)?;
    transaction.open_table(RUNS)?;
    transaction.open_table(HISTORY)?;
    transaction.open_table(WAKEUPS)?;
    visibility::touch(transaction)
}

/// A file that is not worth a sync: nobody opens it again.
#[derive(Debug)]
struct Unsynced(redb::backends::FileBackend);

impl StorageBackend for Unsynced {
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.0.write(offset, data)
    }
}

/// A shard's row, from its two tables.
pub(super) fn stored_shard(
    shards: &impl ReadableTable<u32, ShardValue>,
    splits: &impl ReadableTable<u32, SplitValue>,
    id: ShardId,
) -> Result<Option<ShardRow>> {
    let Some(row) = shards.get(id.0).map_err(failure)?.map(|value| shard_row(value.value())) else { return Ok(None) };
    let split = splits.get(id.0).map_err(failure)?.map(|value| split(value.value())).transpose()?;
    Ok(Some(ShardRow { split, ..row }))
}

/// Reads. Each is one snapshot; point reads are quick enough for an async thread.
#[derive(Debug, Clone)]
pub(super) struct Reader(pub Arc<Database>);

impl Reader {
    pub fn begin(&self) -> Result<redb::ReadTransaction> {
        self.0.begin_read().map_err(failure)
    }

    pub fn namespaces(&self) -> Result<Vec<NamespaceRow>> {
        let table = self.begin()?.open_table(NAMESPACES).map_err(failure)?;
        let rows = table.iter().map_err(failure)?;
        rows.map(|row| row.map(|(name, value)| namespace_row(name.value(), value.value())).map_err(failure)).collect()
    }

    pub fn session(&self, id: SessionId) -> Result<Option<SessionRow>> {
        let table = self.begin()?.open_table(SESSIONS).map_err(failure)?;
        table.get(id.0.as_u128()).map_err(failure)?.map(|value| session_row(value.value())).transpose()
    }

    pub fn sessions(&self) -> Result<Vec<(SessionId, SessionRow)>> {
        let table = self.begin()?.open_table(SESSIONS).map_err(failure)?;
        let rows = table.iter().map_err(failure)?;
        rows.map(|row| {
            let (id, value) = row.map_err(failure)?;
            Ok((session_id(id.value()), session_row(value.value())?))
        })
        .collect()
    }

    pub fn goal(&self) -> Result<Option<SlotCount>> {
        let table = self.begin()?.open_table(GOAL).map_err(failure)?;
        table.get(()).map_err(failure)?.map(|slots| slot_count(slots.value())).transpose()
    }

    pub fn shard(&self, id: ShardId) -> Result<Option<ShardRow>> {
        let transaction = self.begin()?;
        let table = transaction.open_table(SHARDS).map_err(failure)?;
        let splits = transaction.open_table(SPLITS).map_err(failure)?;
        stored_shard(&table, &splits, id)
    }

    pub fn shards(&self) -> Result<Vec<(ShardId, ShardRow)>> {
        let transaction = self.begin()?;
        let table = transaction.open_table(SHARDS).map_err(failure)?;
        let splits = transaction.open_table(SPLITS).map_err(failure)?;
        let mut found = Vec::new();
        for row in table.iter().map_err(failure)? {
            let id = ShardId(row.map_err(failure)?.0.value());
            found.extend(stored_shard(&table, &splits, id)?.map(|row| (id, row)));
        }
        Ok(found)
    }

    pub fn head(&self, chain: &ChainKey) -> Result<Option<HeadRow>> {
        let table = self.begin()?.open_table(HEADS).map_err(failure)?;
        let row = table.get(chain_key(chain)).map_err(failure)?;
        Ok(row.map(|row| {
            let (_, applied, head) = row.value();
            HeadRow { head: Bytes::copy_from_slice(head), applied: position(applied) }
        }))
    }

    pub fn run(&self, chain: &ChainKey, run_id: &str) -> Result<Option<RunRow>> {
        let table = self.begin()?.open_table(RUNS).map_err(failure)?;
        let row = table.get(run_row_key(chain, run_id)).map_err(failure)?;
        Ok(row.map(|row| {
            let (_, applied, wake_at, snapshot) = row.value();
            RunRow {
                snapshot: Bytes::copy_from_slice(snapshot),
                applied: position(applied),
                wake_at: wake_at.map(Timestamp),
            }
        }))
    }

    pub fn history(
        &self,
        chain: &ChainKey,
        run_id: &str,
        (from, until): (i64, i64),
        max_bytes: usize,
        reverse: bool,
    ) -> Result<Vec<HistoryRow>> {
        let table = self.begin()?.open_table(HISTORY).map_err(failure)?;
        let key = |event| history_key(chain, run_id, event);
        // The row that holds `from` may begin before it.
        let mut before = table.range(key(i64::MIN)..=key(from)).map_err(failure)?;
        let first = match before.next_back() {
            Some(row) => row.map_err(failure)?.0.value().4,
            None => from,
        };
        if first > until {
            return Ok(Vec::new());
        }
        let mut range = table.range(key(first)..=key(until)).map_err(failure)?;
        let (mut rows, mut total) = (Vec::new(), 0);
        while let Some(row) = if reverse { range.next_back() } else { range.next() } {
            let (key, value) = row.map_err(failure)?;
            let (_, last_event_id, events) = value.value();
            if last_event_id < from {
                continue;
            }
            if page_ends(&mut total, events.len(), rows.len(), max_bytes) {
                break;
            }
            let events = Bytes::copy_from_slice(events);
            rows.push(HistoryRow { first_event_id: key.value().4, last_event_id, events });
        }
        Ok(rows)
    }

    pub fn wakeups(
        &self,
        shard: ShardId,
        after: Option<&Wakeup>,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<Wakeup>> {
        let table = self.begin()?.open_table(WAKEUPS).map_err(failure)?;
        let from = match after {
            Some(w) => Bound::Excluded(wakeup_key(shard, w)),
            None => Bound::Included((shard.0, i64::MIN, 0, "", "", "")),
        };
        let mut wakeups = Vec::new();
        for row in table.range::<WakeupKey>((from, Bound::Unbounded)).map_err(failure)? {
            let (key, _) = row.map_err(failure)?;
            let (row_shard, at, kind, namespace_id, workflow_id, run_id) = key.value();
            if row_shard != shard.0 || at > until.0 || wakeups.len() >= limit {
                break;
            }
            let kind = EntityKind::from_number(i32::from(kind))
                .ok_or_else(|| StoreError::Corrupt(format!("a wake-up is of an entity of kind {kind}")))?;
            let chain = ChainKey::of(kind, namespace_id, workflow_id);
            wakeups.push(Wakeup { at: Timestamp(at), chain, run_id: run_id.into() });
        }
        Ok(wakeups)
    }
}
