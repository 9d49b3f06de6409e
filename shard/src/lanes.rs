//! Where the wake-ups of a shard's executions are stored: its lanes.
//!
//! A shard writes to its own lane only. When it is split (S1) its rows stay where they are: each half has a lane of its own
//! from then on, and the lanes of all whom it descends from are *inherited*: both halves read them, each takes the rows of
//! its own executions (S3), and nobody puts anything there any more. A row that is due or changed goes from there, so
//! inherited lanes run dry by themselves.

use perdure_persistence::{ShardRow, Store, StoreError, Wakeup};
use perdure_types::{ChainKey, Epoch, ShardId, SlotCount, Timestamp};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Lanes {
    pub own: ShardId,
    pub inherited: Vec<ShardId>,
    shard: ShardId,
    /// Of how many shards this is one; none: inherits nothing.
    slots: Option<SlotCount>,
    /// What is stored of a run whose row reflects nothing later may lie in an inherited lane.
    inherited_until: Epoch,
}

impl Lanes {
    /// `first`: how many shards the cluster began with.
    pub(crate) fn of(shard: ShardId, row: &ShardRow, first: SlotCount) -> Self {
        let Some(split) = &row.split else {
            let (slots, inherited_until) = (None, Epoch::default());
            return Self { own: shard, inherited: Vec::new(), shard, slots, inherited_until };
        };
        let ancestors = std::iter::successors(Some(first), |slots| slots.doubled());
        let ancestors = ancestors.take_while(|slots| *slots < split.slots);
        let inherited = ancestors.map(|slots| lane(ShardId(shard.0 & (slots.get() - 1)), slots, first)).collect();
        Self {
            own: lane(shard, split.slots, first),
            inherited,
            shard,
            slots: Some(split.slots),
            inherited_until: split.epoch,
        }
    }

    /// Whether the wake-up of a run, whose stored row reflects records up to that epoch, may lie in an inherited lane.
    pub(crate) fn may_inherit(&self, stored: Option<Epoch>) -> bool {
        !self.inherited.is_empty() && stored.is_some_and(|epoch| epoch <= self.inherited_until)
    }

    /// Own and inherited.
    pub(crate) fn all(&self) -> impl Iterator<Item = ShardId> + '_ {
        std::iter::once(self.own).chain(self.inherited.iter().copied())
    }

    fn is_own(&self, chain: &ChainKey) -> bool {
        self.slots.is_none_or(|slots| chain.shard(slots) == self.shard)
    }

    /// The earliest wake-ups after that one, at most so many: fewer only if there are no more.
    pub(crate) async fn read(
        &self,
        store: &dyn Store,
        after: Option<&Wakeup>,
        limit: usize,
    ) -> Result<Vec<Wakeup>, StoreError> {
        let mut found = store.read_wakeups(self.own, after, Timestamp::MAX, limit).await?;
        for lane in &self.inherited {
            let (mut after, mut taken) = (after.cloned(), 0);
            loop {
                let page = store.read_wakeups(*lane, after.as_ref(), Timestamp::MAX, limit).await?;
                let is_end = page.len() < limit;
                after = page.last().cloned().or(after);
                let before = found.len();
                found.extend(page.into_iter().filter(|wakeup| self.is_own(&wakeup.chain)));
                taken += found.len() - before;
                if is_end || taken >= limit {
                    break;
                }
            }
        }
        if !self.inherited.is_empty() {
            found.sort();
            found.dedup();
            found.truncate(limit);
        }
        Ok(found)
    }
}

/// The number of a lane: the shard's, of those that the cluster began with. All others have numbers beyond these, each its
/// own, for `slots` is a power of two and larger than `shard`.
fn lane(shard: ShardId, slots: SlotCount, first: SlotCount) -> ShardId {
    if slots == first { shard } else { ShardId(slots.get() + shard.0) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use perdure_persistence::{Split, StampedWrite, TableWrite, simulated::Simulated};
    use perdure_types::Position;

    use super::*;

    fn slots(count: u32) -> SlotCount {
        SlotCount::new(count).expect("a power of two")
    }

    fn lanes(shard: u32, of: u32) -> Lanes {
        let split = (of > 4).then(|| Split { slots: slots(of), epoch: Epoch(3), sibling: None });
        Lanes::of(ShardId(shard), &ShardRow { split, ..ShardRow::default() }, slots(4))
    }

    #[test]
    fn every_shard_has_a_lane_of_its_own() {
        assert_eq!(lanes(3, 4).all().collect::<Vec<_>>(), [ShardId(3)]);
        assert_eq!(lanes(3, 8).all().collect::<Vec<_>>(), [ShardId(11), ShardId(3)]);
        assert_eq!(lanes(15, 16).all().collect::<Vec<_>>(), [ShardId(31), ShardId(3), ShardId(15)]);
        let all: Vec<u32> =
            [4, 8, 16, 32].iter().flat_map(|of| (0..*of).map(|shard| lanes(shard, *of).own.0)).collect();
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len());
    }

    #[test]
    fn what_was_stored_after_a_split_is_in_the_own_lane() {
        assert!(lanes(3, 8).may_inherit(Some(Epoch(3))));
        assert!(!lanes(3, 8).may_inherit(Some(Epoch(4))));
        assert!(!lanes(3, 8).may_inherit(None));
        assert!(!lanes(3, 4).may_inherit(Some(Epoch(0))));
    }

    /// Each half gets its own rows of all lanes, in order, page by page, and no others.
    #[tokio::test(start_paused = true)]
    async fn halves_share_what_they_inherit() {
        let store = Simulated::reliable();
        let wakeup =
            |n: i64| Wakeup { at: Timestamp(n % 17), chain: ChainKey::new("n", format!("w{n}")), run_id: "r".into() };
        let (lower, upper) = (lanes(1, 8), lanes(5, 8));
        let mut writes = Vec::new();
        for wakeup in (0..200).map(wakeup).filter(|wakeup| wakeup.chain.shard(slots(4)) == ShardId(1)) {
            writes.push((ShardId(1), wakeup));
        }
        for lanes in [&lower, &upper] {
            for wakeup in (200..400).map(wakeup).filter(|wakeup| wakeup.chain.shard(slots(8)) == lanes.shard) {
                writes.push((lanes.own, wakeup));
            }
        }
        for (shard, wakeup) in writes {
            let write = StampedWrite { stamp: Position::ZERO, write: TableWrite::PutWakeup { shard, wakeup } };
            store.write(vec![write]).await.expect("written");
        }
        for lanes in [lower, upper] {
            let expected: BTreeSet<Wakeup> =
                (0..400).map(wakeup).filter(|wakeup| wakeup.chain.shard(slots(8)) == lanes.shard).collect();
            let mut found: Vec<Wakeup> = Vec::new();
            loop {
                let page = lanes.read(&store, found.last(), 7).await.expect("read");
                let is_end = page.len() < 7;
                found.extend(page);
                if is_end {
                    break;
                }
            }
            assert!(expected.len() > 30);
            assert_eq!(found, expected.into_iter().collect::<Vec<_>>());
        }
    }
}
