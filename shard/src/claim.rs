//! Takes shards over (C1), and says what their new owner has to replay.

use std::collections::BTreeMap;

use perdure_persistence::{Cas, SessionRow, SessionState, ShardRow, Source, Store, StoreError};
use perdure_types::{Epoch, Position, Seq, SessionId, ShardId};

use crate::log::session::{cas_shard, persist};

/// A shard that this session owns.
#[derive(Debug, Clone)]
pub(crate) struct Claim {
    pub shard: ShardId,
    pub row: ShardRow,
}

impl Claim {
    pub(crate) fn epoch(&self) -> Epoch {
        self.row.epoch
    }

    /// The stamp of rows that this owner writes without having appended anything for them: newer than all earlier
    /// owners' rows, older than its own first record.
    pub(crate) fn floor(&self) -> Position {
        let from = self.row.sources.get(&self.row.epoch).map_or(Seq(1), |source| source.from);
        Position { epoch: self.row.epoch, seq: Seq(from.0.saturating_sub(1)) }
    }
}

/// What came of an attempt to claim a shard.
pub(crate) enum Claimed {
    Ours(Claim),
    /// A session that owns it, or that holds records of it, is not known to be sealed.
    Unknown(SessionId),
}

/// Sessions that shards still name as sources, and where their logs end.
pub(crate) type Sealed = BTreeMap<SessionId, SessionRow>;

/// What of a source is not materialized yet: first and last row, `None` if nothing.
///
/// The base of a session bounds it, too: a row below it is needed by no shard (M3).
pub(crate) fn to_replay(
    epoch: Epoch,
    source: &Source,
    checkpoint: Position,
    session: &SessionRow,
) -> Option<(Seq, Seq)> {
    let end = match (source.until, session.state) {
        (Some(until), _) => until,
        (None, SessionState::Sealed(end)) => end,
        // Not sealed: the source is this owner's own and open, and holds nothing yet.
        (None, SessionState::Live | SessionState::Fenced) => return None,
    };
    if checkpoint.epoch > epoch {
        return None;
    }
    let after_checkpoint = if checkpoint.epoch == epoch { checkpoint.seq.next() } else { Seq(1) };
    let start = source.from.max(after_checkpoint).max(session.base);
    (start <= end).then_some((start, end))
}

/// Claims a shard for `session`. `next` is the first log row that can hold a record of it.
///
/// `own_end`: when `session` owns the shard already (it was stopped by a bug), its last covered row: the old epoch's source
/// is closed there, and the epoch goes up (C3's last sentence).
pub(crate) async fn claim(
    store: &dyn Store,
    shard: ShardId,
    session: SessionId,
    next: Seq,
    sealed: &Sealed,
    own_end: Option<Seq>,
) -> Result<Claimed, StoreError> {
    loop {
        let seen = persist("read shard", || store.read_shard_serial(shard)).await?;
        let mut row = seen.clone().unwrap_or_default();
        // What a source holds that was closed by a hand-over is covered, whatever becomes of its session (C3).
        let open = row.sources.values().filter(|source| source.until.is_none());
        let involved = row.owner.into_iter().chain(open.map(|source| source.session));
        let is_sealed = |id: &SessionId| sealed.get(id).is_some_and(|row| matches!(row.state, SessionState::Sealed(_)));
        let is_known = |id: &SessionId| is_sealed(id) || (*id == session && own_end.is_some());
        if let Some(unknown) = involved.into_iter().find(|id| !is_known(id)) {
            return Ok(Claimed::Unknown(unknown));
        }
        if let (Some(end), Some(source)) = (own_end, row.sources.get_mut(&row.epoch))
            && source.session == session
        {
            source.until = Some(end);
        }
        let checkpoint = row.checkpoint;
        row.sources.retain(|epoch, source| match sealed.get(&source.session) {
            Some(session) => to_replay(*epoch, source, checkpoint, session).is_some(),
            // Of this session itself, or closed.
            None => true,
        });
        row.owner = Some(session);
        row.epoch = Epoch(row.epoch.0 + 1);
        row.sources.insert(row.epoch, Source { session, from: next, until: None });
        if cas_shard(store, shard, seen, row.clone()).await? == Cas::Applied {
            return Ok(Claimed::Ours(Claim { shard, row }));
        }
    }
}

/// M2: what was replayed is materialized, so the older sources are dropped. The new row; `None` if the shard is not ours.
pub(crate) async fn checkpoint(store: &dyn Store, claim: &Claim, covered: Seq) -> Result<Option<ShardRow>, StoreError> {
    let position = Position { epoch: claim.row.epoch, seq: covered };
    if position <= claim.row.checkpoint && claim.row.sources.len() <= 1 {
        return Ok(Some(claim.row.clone()));
    }
    let mut row = claim.row.clone();
    row.checkpoint = position.max(row.checkpoint);
    row.sources.retain(|epoch, _| *epoch == claim.row.epoch);
    match cas_shard(store, claim.shard, Some(claim.row.clone()), row.clone()).await? {
        Cas::Applied => Ok(Some(row)),
        Cas::Rejected(_) => Ok(None),
    }
}

/// Deletes sealed sessions that no shard names any more: their segments, then their row (G4: nothing of them can be in
/// flight that anybody would read; a missing row reads as not live).
pub(crate) async fn delete_unneeded(store: &dyn Store, own: SessionId) -> Result<(), StoreError> {
    // Sessions first (M3): what no shard names after its seal will never be needed. The other way round, a session could
    // begin, serve and be sealed between the two, and its log be deleted before anybody has replayed it.
    let sessions = persist("list sessions", || store.list_sessions()).await?;
    let shards = persist("list shards", || store.list_shards()).await?;
    let needed = |id: SessionId| {
        shards.iter().any(|(_, row)| row.owner == Some(id) || row.sources.values().any(|source| source.session == id))
    };
    for (id, row) in sessions {
        let SessionState::Sealed(end) = row.state else { continue };
        if id == own || needed(id) {
            continue;
        }
        // Segments are not listed anywhere: they follow each other until one has no rows up to the end.
        let mut segment = row.base_segment;
        let mut next = row.base;
        loop {
            let rows = persist("read log", || store.read_log(id, segment, next, 1)).await?;
            persist("delete log segment", || store.delete_segment(id, segment)).await?;
            segment += 1;
            if rows.is_empty() && segment > row.base_segment + 1 || next > end {
                break;
            }
            next = rows.last().map_or(next, |row| row.seq.next());
        }
        persist("delete session", || store.delete_session(id, row.clone())).await.ok();
        tracing::debug!(session = %id, "deleted a session's log");
    }
    Ok(())
}
