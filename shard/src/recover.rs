//! Reads what shards have to replay (C2), and makes of it the chains that differ from their stored rows.

use std::collections::{BTreeMap, BTreeSet};

use perdure_persistence::{LogRow, Store, StoreError};
use perdure_proto::perdure::{
    log::v1::{Batch, record::Entity},
    state::v1::ChainRecord,
};
use perdure_types::{ChainKey, Epoch, Position, Seq, SessionId, ShardId};
use prost::Message;

use crate::{
    claim::{Claim, Sealed, to_replay},
    log::scan,
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
                let wanted = Wanted { shard: claim.shard, epoch: *epoch, from, until };
                by_session.entry(source.session).or_default().push(wanted);
            }
        }
    }
    for (session, wanted) in by_session {
        read_log(store, session, sessions, ahead, &wanted, &mut results).await?;
    }
    for replay in results.values_mut().flatten() {
        replay.sort_by_key(|(position, _)| *position);
        telemetry::replayed(replay.len());
    }
    Ok(results)
}

async fn read_log(
    store: &dyn Store,
    session: SessionId,
    sessions: &Sealed,
    ahead: &ReadAhead,
    wanted: &[Wanted],
    results: &mut BTreeMap<ShardId, Result<Replay, RecoverError>>,
) -> Result<(), StoreError> {
    let Some(row) = sessions.get(&session) else {
        return Ok(());
    };
    let until = wanted.iter().map(|w| w.until).max().unwrap_or_default();
    let by_tag: BTreeMap<(u32, u64), &Wanted> = wanted.iter().map(|w| ((w.shard.0, w.epoch.0), w)).collect();
    let mut visit = |row: LogRow| {
        let batch = Batch::decode(row.batch)
            .map_err(|e| StoreError::Corrupt(format!("row {} of the log of session {session}: {e}", row.seq.0)))?;
        for record in batch.records {
            let Some(wanted) = by_tag.get(&(record.shard_id, record.epoch)) else {
                continue;
            };
            let position = Position { epoch: wanted.epoch, seq: row.seq };
            if let (true, Some(Entity::Chain(chain)), Some(Ok(replay))) =
                (row.seq >= wanted.from && row.seq <= wanted.until, record.entity, results.get_mut(&wanted.shard))
            {
                replay.push((position, chain));
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
    if last < until {
        let missing = last.next();
        for w in wanted.iter().filter(|w| w.until >= missing) {
            let error = RecoverError::MissingRow { session, seq: missing.0, end: w.until.0 };
            results.insert(w.shard, Err(error));
        }
    }
    Ok(())
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
