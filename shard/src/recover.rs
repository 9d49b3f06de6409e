//! Reads what shards have to replay (C2), and makes of it the chains that differ from their stored rows.

use std::collections::{BTreeMap, BTreeSet};

use perdure_persistence::{LogRow, SessionRow, Store, StoreError};
use perdure_proto::perdure::{
    log::v1::{Batch, record::Entity},
    state::v1::ChainRecord,
};
use perdure_types::{ChainKey, Epoch, Position, Seq, SessionId, ShardId, SlotCount};
use prost::Message;

use crate::{
    claim::{Claim, Sealed, to_replay},
    log::{scan, session::persist},
    telemetry,
};

/// Records of one shard in the order in which they were decided.
pub(crate) type Replay = Vec<(Position, ChainRecord)>;

/// Rows of logs that were read already, in order.
pub(crate) type ReadAhead = BTreeMap<SessionId, Vec<LogRow>>;

/// Why a shard cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecoverError {
    #[error(transparent)]
    Store(#[from] StoreError),
    /// C2: never taken for the end of the log.
    #[error("row {seq} of the log of session {session} is missing below its end {end}")]
    MissingRow { session: SessionId, seq: u64, end: u64 },
    #[error("session {0} is gone while its log is needed")]
    MissingSession(SessionId),
    #[error("an entity of kind {0}, which this version does not know")]
    UnknownKind(i32),
    #[error(transparent)]
    Apply(#[from] perdure_workflow::ApplyError),
    #[error("stored {what} of {chain:?} does not decode: {reason}")]
    Decode { what: &'static str, chain: ChainKey, reason: String },
}

/// A stretch of a session's log that a shard needs.
struct Wanted {
    shard: ShardId,
    /// The number that its records bear (S3).
    tag: ShardId,
    /// Of how many shards it is one, if it was split.
    slots: Option<SlotCount>,
    epoch: Epoch,
    from: Seq,
    until: Seq,
}

/// Reads the sources of all claimed shards, each log once. A shard whose sources are damaged gets an error of its own.
pub(crate) async fn read_sources(
    store: &dyn Store,
    claims: &[Claim],
    sessions: &Sealed,
    ahead: &ReadAhead,
) -> Result<BTreeMap<ShardId, Result<Replay, RecoverError>>, StoreError> {
    let mut results: BTreeMap<ShardId, Result<Replay, RecoverError>> = BTreeMap::new();
    let mut by_session: BTreeMap<SessionId, Vec<Wanted>> = BTreeMap::new();
    for claim in claims {
        results.insert(claim.shard, Ok(Replay::new()));
        for (epoch, source) in claim.row.sources.iter().filter(|(epoch, _)| **epoch < claim.row.epoch) {
            let Some(session) = sessions.get(&source.session) else {
                results.insert(claim.shard, Err(RecoverError::MissingSession(source.session)));
                continue;
            };
            if let Some((from, until)) = to_replay(*epoch, source, claim.row.checkpoint, session) {
                let (tag, slots) = tag_of(claim, *epoch);
                let wanted = Wanted { shard: claim.shard, tag, slots, epoch: *epoch, from, until };
                by_session.entry(source.session).or_default().push(wanted);
            }
        }
    }
    for (session, wanted) in by_session {
        let Some(row) = sessions.get(&session) else { continue };
        read_session(store, session, row.clone(), ahead, wanted, &mut results).await?;
    }
    for replay in results.values_mut().flatten() {
        replay.sort_by_key(|(position, _)| *position);
        telemetry::replayed(replay.len());
    }
    Ok(results)
}

/// Reads what is wanted of one session's log.
///
/// A live owner may have moved its base since its row was read: it looks at what is lent before it moves the base, and a
/// hand-over may be decided in between. All shards that it served then were written to the tables up to the new base (M3), the
/// one that was handed over, too: so that is where replay begins. Any other missing row is fatal (C2).
async fn read_session(
    store: &dyn Store,
    session: SessionId,
    mut row: SessionRow,
    ahead: &ReadAhead,
    mut wanted: Vec<Wanted>,
    results: &mut BTreeMap<ShardId, Result<Replay, RecoverError>>,
) -> Result<(), StoreError> {
    while !wanted.is_empty() {
        let (last, found) = read_log(store, session, &row, ahead, &wanted).await?;
        let missing = last.next();
        if wanted.iter().any(|w| w.until >= missing) {
            let now = persist("read session", || store.read_session(session)).await?;
            if let Some(now) = now.filter(|now| now.base > missing) {
                tracing::info!(%session, row = missing.0, base = now.base.0, "the base of the log has moved meanwhile");
                for w in &mut wanted {
                    w.from = w.from.max(now.base);
                }
                wanted.retain(|w| w.from <= w.until);
                row = now;
                continue;
            }
        }
        for (shard, records) in found {
            if let Some(Ok(replay)) = results.get_mut(&shard) {
                replay.extend(records);
            }
        }
        for w in wanted.iter().filter(|w| w.until >= missing) {
            let error = RecoverError::MissingRow { session, seq: missing.0, end: w.until.0 };
            results.insert(w.shard, Err(error));
        }
        return Ok(());
    }
    Ok(())
}

/// The records that are wanted, by shard, and the last row before the first that is missing.
/// S3: the number that records of a shard bear in the logs, and of how many shards it is one, if it was split.
fn tag_of(claim: &Claim, epoch: Epoch) -> (ShardId, Option<SlotCount>) {
    match &claim.row.split {
        Some(split) if epoch <= split.epoch => (claim.shard.parent(split.slots), Some(split.slots)),
        Some(split) => (claim.shard, Some(split.slots)),
        None => (claim.shard, None),
    }
}

impl Wanted {
    /// S3: of what its parent logged a half takes what hashes to it.
    fn is_own(&self, record: &ChainRecord) -> bool {
        let Some(slots) = self.slots else { return true };
        let key = ChainKey::numbered(record.kind, record.namespace_id.as_str(), record.workflow_id.as_str());
        // One of an unknown kind stops the shard, wherever it belongs.
        key.is_none_or(|key| key.shard(slots) == self.shard)
    }
}

async fn read_log(
    store: &dyn Store,
    session: SessionId,
    row: &SessionRow,
    ahead: &ReadAhead,
    wanted: &[Wanted],
) -> Result<(Seq, BTreeMap<ShardId, Replay>), StoreError> {
    let mut found: BTreeMap<ShardId, Replay> = BTreeMap::new();
    let until = wanted.iter().map(|w| w.until).max().unwrap_or_default();
    let mut by_tag: BTreeMap<(u32, u64), Vec<&Wanted>> = BTreeMap::new();
    for wanted in wanted {
        by_tag.entry((wanted.tag.0, wanted.epoch.0)).or_default().push(wanted);
    }
    let mut visit = |row: LogRow| {
        let batch = Batch::decode(row.batch)
            .map_err(|e| StoreError::Corrupt(format!("row {} of the log of session {session}: {e}", row.seq.0)))?;
        for record in batch.records {
            let Some(candidates) = by_tag.get(&(record.shard_id, record.epoch)) else {
                continue;
            };
            let Some(Entity::Chain(chain)) = record.entity else { continue };
            let takes = |w: &&&Wanted| row.seq >= w.from && row.seq <= w.until && w.is_own(&chain);
            // Of two halves one.
            if let Some(wanted) = candidates.iter().find(takes) {
                let position = Position { epoch: wanted.epoch, seq: row.seq };
                found.entry(wanted.shard).or_default().push((position, chain));
            }
        }
        Ok(())
    };
    let from = wanted.iter().map(|w| w.from).min().unwrap_or(row.base);
    let mut last = Seq(from.0.saturating_sub(1));
    for row in ahead.get(&session).into_iter().flatten() {
        if row.seq == last.next() && row.seq <= until {
            last = row.seq;
            visit(row.clone())?;
        }
    }
    let start = scan::Start { session, segment: row.base_segment, seq: last.next() };
    let last = scan::contiguous(store, start, Some(until), visit).await?;
    Ok((last, found))
}

/// All records of one chain, in order, and the runs among them that are deleted in the end.
#[derive(Default)]
pub(crate) struct ChainReplay {
    pub records: Vec<(Position, ChainRecord)>,
    pub deleted: BTreeMap<String, Position>,
}

/// Sorts a shard's records by chain.
pub(crate) fn by_chain(replay: Replay) -> Result<BTreeMap<ChainKey, ChainReplay>, RecoverError> {
    let mut chains: BTreeMap<ChainKey, ChainReplay> = BTreeMap::new();
    for (position, record) in replay {
        let key = ChainKey::numbered(record.kind, record.namespace_id.as_str(), record.workflow_id.as_str());
        let key = key.ok_or(RecoverError::UnknownKind(record.kind))?;
        let chain = chains.entry(key).or_default();
        for run in record.runs.iter().filter(|run| run.deleted) {
            chain.deleted.insert(run.run_id.clone(), position);
        }
        chain.records.push((position, record));
    }
    Ok(chains)
}

impl ChainReplay {
    /// The runs that survive: their rows have to be read before the records are applied.
    pub(crate) fn surviving_runs(&self) -> BTreeSet<&str> {
        let runs = self.records.iter().flat_map(|(_, record)| &record.runs).map(|run| run.run_id.as_str());
        runs.filter(|run| !self.deleted.contains_key(*run)).collect()
    }
}

#[cfg(test)]
mod tests {
    use perdure_persistence::{Cas, SessionState, ShardRow, Source, simulated::Simulated};
    use perdure_proto::perdure::log::v1::Record;
    use uuid::Uuid;

    use super::*;

    const SHARD: ShardId = ShardId(3);

    fn base(seq: u64, segment: u32) -> SessionRow {
        SessionRow { state: SessionState::Live, base: Seq(seq), base_segment: segment }
    }

    fn row(seq: u64) -> LogRow {
        let chain = ChainRecord { workflow_id: seq.to_string(), ..ChainRecord::default() };
        let record = Record { shard_id: SHARD.0, epoch: 1, entity: Some(Entity::Chain(chain)) };
        let batch = Batch { records: vec![record] }.encode_to_vec().into();
        LogRow { segment: (seq as u32 - 1) / 3, seq: Seq(seq), acknowledged: Seq(0), batch }
    }

    /// The shard was handed over at row 6, by the live session with this log: segment 0 has rows 1 to 3, segment 1 the rest.
    /// Its owner has deleted segment 0, and `moved` is the row that it has now.
    async fn read_after(moved: &SessionRow) -> Result<Vec<u64>, RecoverError> {
        let store = Simulated::reliable();
        let id = SessionId(Uuid::from_u128(1));
        assert_eq!(store.cas_session(id, None, base(1, 0)).await, Ok(Cas::Applied));
        for seq in 1..=6 {
            store.append(id, row(seq)).await.expect("appends");
        }
        // The new owner has read this, and is about to read the log.
        let seen = Sealed::from([(id, base(1, 0))]);
        store.cas_session(id, Some(base(1, 0)), moved.clone()).await.expect("moves");
        store.delete_segment(id, 0).await.expect("deletes");
        let theirs = Source { session: id, from: Seq(1), until: Some(Seq(6)) };
        let ours = Source { session: SessionId(Uuid::from_u128(2)), from: Seq(1), until: None };
        let sources = BTreeMap::from([(Epoch(1), theirs), (Epoch(2), ours)]);
        let claim = Claim { shard: SHARD, row: ShardRow { epoch: Epoch(2), sources, ..ShardRow::default() } };
        let mut read = read_sources(&store, &[claim], &seen, &ReadAhead::new()).await?;
        let replay = read.remove(&SHARD).expect("an answer")?;
        Ok(replay.into_iter().map(|(position, _)| position.seq.0).collect())
    }

    #[tokio::test(start_paused = true)]
    async fn a_base_that_has_moved_meanwhile_is_where_replay_begins() {
        assert_eq!(read_after(&base(4, 1)).await.expect("reads"), [4, 5, 6]);
        // All of it is in the tables.
        assert!(read_after(&base(7, 2)).await.expect("reads").is_empty());
    }

    /// C2: never taken for the end of the log, or its beginning.
    #[tokio::test(start_paused = true)]
    async fn a_row_that_is_missing_above_the_base_is_told() {
        let error = read_after(&base(2, 0)).await.expect_err("row 1 is below the base, row 2 is missing");
        assert!(matches!(error, RecoverError::MissingRow { seq: 1 | 2, .. }), "{error}");
        assert!(read_after(&base(1, 0)).await.is_err());
    }
}
