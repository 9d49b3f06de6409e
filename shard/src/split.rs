//! Splitting shards in two, each under its owner, one after the other.
//!
//! There are two rows to write, and no conditional write covers both. **S1**: one conditional write on the row of the shard
//! decides. It is a hand-over (C3) to this very session: the shard is stopped and all of it covered, its source is closed,
//! the epoch goes up. The row keeps its number, is the lower half from then on, and carries the row of the upper half.
//! **S2**: the upper half's row is created from there, whoever does it with the same content, on the condition that there
//! is none; when it is known to be there the lower half's row lets go of it. A shard is born in no other way: one that the
//! cluster did not begin with, and that has no row, is nobody's to claim.
//!
//! Why in this order. A row of the upper half that came first would have to follow all that happens to the shard until
//! the shard is closed: a claim by another session adds a source, and a half that was written before does not name it. A
//! late decision of such a creation would bring back that old row. This way round nothing can come late: until the first
//! write is decided, any change of the shard's row makes its condition false for ever (as for C3); the second has one
//! content, and once it is decided its condition is false for ever, since rows of shards are never deleted. Whoever owns
//! the lower half sees what is left to do, so that it does not matter who dies when.
//!
//! **S3**: records of before bear the number of the shard that was split. A half replays those whose entities hash to it, and
//! both halves' stamps are newer than all of that shard's, since the epoch goes on in both.
//!
//! Who wants shards to be split writes into the store how many there are to be (the goal); every owner compares.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use perdure_persistence::{Cas, SessionRow, ShardRow, Source, Split, Store, StoreError};
use perdure_types::{Epoch, Seq, SessionId, ShardId, ShardMap, SlotCount};
use tokio::time::Instant;

use crate::{
    claim::{Claim, Sealed},
    driver::ShardHandle,
    flush::Loan,
    log::session::{cas_shard, persist},
    moves::{Ground, Taken, closed, flush_before, lent_from, lock},
    recover::ReadAhead,
    telemetry,
};

/// Between two splits of a node: so many times as long as the last one took. So few calls meet one that their slowest
/// hundredth does not.
const REST: u32 = 4;
const SHORTEST_REST: Duration = Duration::from_millis(50);
const LONGEST_REST: Duration = Duration::from_secs(2);
/// Before another attempt, when nothing came of one.
const AFTER_FAILURE: Duration = Duration::from_millis(500);

/// What came of splitting a shard.
pub(crate) enum Halved {
    /// The shards that are ours now: both halves, mostly.
    Into(Vec<Taken>),
    /// It was not begun.
    Skipped,
    /// It is not ours (any more).
    Lost,
    /// Ours, and stopped: it is to be taken up again.
    Kept(StoreError),
}

/// Decides when the next shard is split.
#[derive(Debug)]
pub(crate) struct Pace {
    running: bool,
    began: Instant,
    next: Instant,
}

impl Pace {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self { running: false, began: now, next: now }
    }

    pub(crate) fn begin(&mut self) {
        self.running = true;
        self.began = Instant::now();
    }

    /// Both halves serve.
    pub(crate) fn done(&mut self) {
        self.running = false;
        self.next = Instant::now() + (self.began.elapsed() * REST).clamp(SHORTEST_REST, LONGEST_REST);
    }

    /// There may be something to do.
    pub(crate) fn hurry(&mut self) {
        self.next = self.next.min(Instant::now() + SHORTEST_REST);
    }

    /// There is nothing to do now.
    pub(crate) fn rest(&mut self) {
        self.next = Instant::now() + LONGEST_REST;
    }

    pub(crate) fn failed(&mut self) {
        self.running = false;
        self.next = Instant::now() + AFTER_FAILURE;
    }

    /// When to look for a shard to split; none while one is being split.
    pub(crate) fn next(&self) -> Option<Instant> {
        (!self.running).then_some(self.next)
    }
}

/// Of how many shards of its size one is.
pub(crate) fn slots_of(row: &ShardRow, first: SlotCount) -> SlotCount {
    row.split.as_ref().map_or(first, |split| split.slots)
}

/// All shards that there are, by their rows.
pub(crate) fn map_of(rows: &BTreeMap<ShardId, ShardRow>, first: SlotCount) -> ShardMap {
    ShardMap::new(first, &rows.iter().map(|(shard, row)| (*shard, slots_of(row, first))).collect())
}

/// All shards that there are; those that may be missing are made (S2).
pub(crate) async fn all(store: &dyn Store, first: SlotCount) -> Result<BTreeSet<ShardId>, StoreError> {
    let mut shards: BTreeSet<ShardId> = first.shards().collect();
    for (shard, row) in persist("list shards", || store.list_shards()).await? {
        shards.insert(shard);
        if let Some(Split { slots, sibling: Some(sibling), .. }) = row.split {
            let upper = ShardId(shard.0 + slots.get() / 2);
            cas_shard(store, upper, None, *sibling).await?;
            shards.insert(upper);
        }
    }
    Ok(shards)
}

/// Whether the shard is to be split, and can be. Not while it needs records of before its own last split: a half knows by
/// the epoch which number its records bear (S3), and remembers one split.
pub(crate) fn may_split(row: &ShardRow, first: SlotCount, goal: SlotCount) -> bool {
    slots_of(row, first) < goal
        && row
            .split
            .as_ref()
            .is_none_or(|split| split.sibling.is_none() && row.sources.keys().all(|epoch| *epoch > split.epoch))
}

/// S1, S2: splits a shard of this session that is in service.
pub(crate) async fn split(ground: Ground, shard: ShardId, handle: ShardHandle, goal: SlotCount) -> Halved {
    let flushed = flush_before(&ground, shard).await;
    if !may_split(&handle.claim().row, ground.first, goal) {
        return Halved::Skipped;
    }
    let stopped = Instant::now();
    if !handle.release().await {
        return Halved::Skipped;
    }
    let halved = split_stopped(&ground, shard, flushed, goal).await;
    telemetry::split(stopped.elapsed());
    halved
}

async fn split_stopped(ground: &Ground, shard: ShardId, flushed: Option<Seq>, goal: SlotCount) -> Halved {
    let session = ground.log.session();
    // Everything that was decided under this epoch is covered, and nothing more will be appended for it.
    let Ok(end) = ground.log.end_covered().await else { return Halved::Lost };
    loop {
        let seen = match persist("read shard", || ground.store.read_shard_serial(shard)).await {
            Ok(seen) => seen,
            Err(error) => return Halved::Kept(error),
        };
        let Some(old) = seen.clone().filter(|row| row.owner == Some(session)) else { return Halved::Lost };
        let slots = slots_of(&old, ground.first);
        let Some(doubled) = slots.doubled().filter(|_| may_split(&old, ground.first, goal)) else {
            return Halved::Kept(StoreError::Unavailable("the shard is not to be split now".to_owned()));
        };
        let lower = lower_half(&ground.own_row(), &old, flushed, end, (session, ground.log.next_seq()), doubled);
        // M3: the upper half's replay begins here, and this session's base must not pass it before that half's row says so.
        if lower.sources.contains_key(&old.epoch) {
            let from = lent_from(&ground.own_row(), &lower, old.epoch);
            lock(&ground.lent).insert((shard.upper_half(slots), old.epoch), Loan { from, decided: false });
        }
        match cas_shard(&*ground.store, shard, seen, lower.clone()).await {
            Ok(Cas::Applied) => {
                tracing::info!(shard_id = shard.0, slots = doubled.get(), "split");
                return taken(ground, shard, lower).await.unwrap_or_else(Halved::Kept);
            }
            // Our own checkpoint came first: that row's condition is false for ever. Look again.
            Ok(Cas::Rejected(Some(now))) if now.owner == Some(session) && now.epoch == old.epoch => {}
            Ok(Cas::Rejected(_)) => return Halved::Lost,
            // Not known: the loan stays.
            Err(error) => return Halved::Kept(error),
        }
    }
}

/// Both halves, with what they have to replay.
async fn taken(ground: &Ground, shard: ShardId, lower: ShardRow) -> Result<Halved, StoreError> {
    let Some(Born { lower: row, upper }) = bear(ground, shard, lower).await? else { return Ok(Halved::Lost) };
    let mut claims = vec![Claim { shard, row }];
    claims.extend(upper.map(|(shard, row)| Claim { shard, row }));
    Ok(Halved::Into(ground.replays(claims, Sealed::new(), &ReadAhead::new()).await?))
}

/// The row of a shard that becomes the lower half of it; it carries the upper half's row.
fn lower_half(
    own: &SessionRow,
    old: &ShardRow,
    flushed: Option<Seq>,
    end: Seq,
    (session, next): (SessionId, Seq),
    doubled: SlotCount,
) -> ShardRow {
    let mut row = closed(own, old, flushed, end);
    row.owner = Some(session);
    row.epoch = Epoch(old.epoch.0 + 1);
    row.sources.insert(row.epoch, Source { session, from: next, until: None });
    let half = Split { slots: doubled, epoch: old.epoch, sibling: None };
    let upper = ShardRow { split: Some(half.clone()), ..row.clone() };
    row.split = Some(Split { sibling: Some(Box::new(upper)), ..half });
    row
}

/// The halves of a shard whose rows are both there.
pub(crate) struct Born {
    pub lower: ShardRow,
    /// As it was created, if nobody has changed it.
    pub upper: Option<(ShardId, ShardRow)>,
}

/// S2: sees to it that the upper half's row is there, and lets go of it. `row`: the shard's, whose owner this session is.
/// `None`: it is not any more.
pub(crate) async fn bear(ground: &Ground, shard: ShardId, row: ShardRow) -> Result<Option<Born>, StoreError> {
    let Some(split) = row.split.clone() else { return Ok(Some(Born { lower: row, upper: None })) };
    let Some(sibling) = split.sibling else { return Ok(Some(Born { lower: row, upper: None })) };
    let upper = ShardId(shard.0 + split.slots.get() / 2);
    let created = cas_shard(&*ground.store, upper, None, (*sibling).clone()).await?;
    if let Some(loan) = lock(&ground.lent).get_mut(&(upper, split.epoch)) {
        loan.decided = true;
    }
    let mut lower = row.clone();
    lower.split = Some(Split { slots: split.slots, epoch: split.epoch, sibling: None });
    if cas_shard(&*ground.store, shard, Some(row), lower.clone()).await? != Cas::Applied {
        return Ok(None);
    }
    let is_ours = created == Cas::Applied && sibling.owner == Some(ground.log.session());
    Ok(Some(Born { lower, upper: is_ours.then_some((upper, *sibling)) }))
}

#[cfg(test)]
mod tests {
    use perdure_persistence::SessionState;
    use perdure_types::Position;
    use uuid::Uuid;

    use super::*;

    fn session(number: u128) -> SessionId {
        SessionId(Uuid::from_u128(number))
    }

    fn slots(count: u32) -> SlotCount {
        SlotCount::new(count).expect("a power of two")
    }

    fn old() -> ShardRow {
        let source = |number, from, until: Option<u64>| Source {
            session: session(number),
            from: Seq(from),
            until: until.map(Seq),
        };
        ShardRow {
            owner: Some(session(1)),
            epoch: Epoch(4),
            checkpoint: Position { epoch: Epoch(3), seq: Seq(5) },
            sources: [(Epoch(3), source(2, 1, Some(9))), (Epoch(4), source(1, 3, None))].into(),
            split: None,
        }
    }

    #[test]
    fn halves_have_the_same_sources_and_a_new_epoch() {
        let own = SessionRow { state: SessionState::Live, base: Seq(1), base_segment: 0 };
        let lower = lower_half(&own, &old(), None, Seq(20), (session(1), Seq(23)), slots(128));
        let split = lower.split.clone().expect("split");
        let upper = *split.sibling.expect("carried");
        assert_eq!((split.slots, split.epoch, lower.epoch), (slots(128), Epoch(4), Epoch(5)));
        assert_eq!((lower.epoch, lower.checkpoint, &lower.sources), (upper.epoch, upper.checkpoint, &upper.sources));
        assert_eq!(lower.sources.keys().map(|epoch| epoch.0).collect::<Vec<_>>(), [3, 4, 5]);
        assert_eq!(lower.sources[&Epoch(4)].until, Some(Seq(20)));
        assert_eq!((lower.sources[&Epoch(5)].from, lower.sources[&Epoch(5)].until), (Seq(23), None));
        assert_eq!(upper.split, Some(Split { slots: slots(128), epoch: Epoch(4), sibling: None }));
    }

    #[test]
    fn what_is_in_the_tables_is_no_source_of_a_half() {
        let own = SessionRow { state: SessionState::Live, base: Seq(1), base_segment: 0 };
        let lower = lower_half(&own, &old(), Some(Seq(20)), Seq(20), (session(1), Seq(23)), slots(128));
        assert_eq!(lower.checkpoint, Position { epoch: Epoch(4), seq: Seq(20) });
        assert_eq!(lower.sources.keys().map(|epoch| epoch.0).collect::<Vec<_>>(), [5]);
    }

    #[test]
    fn one_split_at_a_time() {
        assert!(may_split(&old(), slots(64), slots(128)));
        assert!(!may_split(&old(), slots(64), slots(64)));
        let own = SessionRow { state: SessionState::Live, base: Seq(1), base_segment: 0 };
        let mut lower = lower_half(&own, &old(), None, Seq(20), (session(1), Seq(23)), slots(128));
        assert!(!may_split(&lower, slots(64), slots(256)), "the upper half may be missing");
        lower.split.as_mut().expect("split").sibling = None;
        assert!(!may_split(&lower, slots(64), slots(256)), "it needs records of its parent");
        lower.sources.retain(|epoch, _| *epoch == Epoch(5));
        assert!(may_split(&lower, slots(64), slots(256)));
    }
}
