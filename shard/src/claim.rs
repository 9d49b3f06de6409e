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
    let needed = |id: SessionId| shards.iter().any(|(_, row)| row.names(id));
    for (id, row) in sessions {
        if !matches!(row.state, SessionState::Sealed(_)) || id == own || needed(id) {
            continue;
        }
        // The last one first: a cleaner that ends on its way leaves the segments that its successor finds.
        for segment in segments_of(store, id, row.base_segment).await?.rev() {
            persist("delete log segment", || store.delete_segment(id, segment)).await?;
        }
        persist("delete session", || store.delete_session(id, row.clone())).await.ok();
        tracing::debug!(session = %id, "deleted a session's log");
    }
    Ok(())
}

/// The segments that a session may have left. They are listed nowhere, and follow each other; the base may be in the one
/// after its segment, so one empty segment is passed over.
async fn segments_of(
    store: &dyn Store,
    id: SessionId,
    first: u32,
) -> Result<std::ops::RangeInclusive<u32>, StoreError> {
    let (mut segment, mut last) = (first, first);
    while segment <= last + 1 {
        let rows = persist("read log", || store.read_log(id, segment, Seq::ZERO, 1)).await?;
        if !rows.is_empty() {
            last = segment;
        }
        segment += 1;
    }
    Ok(first..=last)
}

#[cfg(test)]
mod tests {
    use perdure_persistence::{
        LogRow,
        simulated::{Failure, Faults, Op, Simulated},
    };
    use uuid::Uuid;

    use super::*;

    /// A cleaner that ends in the middle leaves what the next one finds.
    #[tokio::test(start_paused = true)]
    async fn cleaning_goes_on_where_it_was_left() {
        let store = Simulated::reliable();
        let id = |number| SessionId(Uuid::from_u128(number));
        let sealed = SessionRow { state: SessionState::Sealed(Seq(50)), base: Seq(7), base_segment: 1 };
        store.cas_session(id(1), None, sealed).await.expect("created");
        for seq in 7..=50 {
            let batch = bytes::Bytes::from_static(b"row");
            let row = LogRow { segment: seq / 5, seq: Seq(seq.into()), acknowledged: Seq(0), batch };
            store.append(id(1), row).await.expect("appends");
        }
        let left = async || {
            let mut left = Vec::new();
            for segment in 0..=12 {
                let rows = store.read_log(id(1), segment, Seq::ZERO, usize::MAX).await.expect("reads");
                left.extend((!rows.is_empty()).then_some(segment));
            }
            left
        };
        let moment = std::time::Duration::from_millis(2);
        store.set_faults(Faults { latency: (moment, moment), ..Faults::none() });
        for crash_after in [2, 4] {
            let cleaning = delete_unneeded(&store, id(2));
            tokio::pin!(cleaning);
            let before = store.count(Op::DeleteSegment);
            let some_deleted = async {
                while store.count(Op::DeleteSegment) < before + crash_after {
                    tokio::time::sleep(moment / 4).await;
                }
            };
            tokio::select! {
                biased;
                () = some_deleted => {}
                done = &mut cleaning => panic!("cleaned up at once: {done:?}"),
            }
            let left = left().await;
            assert!(!left.is_empty() && left.len() < 10, "{left:?}");
        }
        // Nothing is deleted that cannot be.
        store.inject(Op::DeleteSegment, Failure::Refused, 2);
        delete_unneeded(&store, id(2)).await.expect("cleans up");
        assert_eq!(left().await, Vec::<u32>::new());
        assert_eq!(store.list_sessions().await, Ok(Vec::new()));
    }
}
