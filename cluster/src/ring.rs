//! Placement: a consistent-hash ring of members decides who should own each shard and be home to each task queue.

use hashring::HashRing;
use perdure_types::{ShardId, SlotCount};

/// A member of the cluster. A restarted node is a new member: the id names one incarnation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemberId(pub String);

/// Points of each member on the ring: enough that shares differ by little.
const POINTS_PER_MEMBER: u32 = 64;

#[derive(Hash)]
struct Point {
    member: MemberId,
    index: u32,
}

impl Clone for Point {
    fn clone(&self) -> Self {
        Self { member: self.member.clone(), index: self.index }
    }
}

/// An immutable view of the members.
#[derive(Clone)]
pub struct Ring {
    ring: HashRing<Point>,
}

impl Ring {
    pub fn new(members: impl IntoIterator<Item = MemberId>) -> Self {
        let mut ring = HashRing::new();
        for member in members {
            for index in 0..POINTS_PER_MEMBER {
                ring.add(Point { member: member.clone(), index });
            }
        }
        Self { ring }
    }

    /// Who should own `shard`; `None` on an empty ring.
    pub fn owner(&self, shard: ShardId) -> Option<&MemberId> {
        self.ring.get(&("shard", shard.0)).map(|point| &point.member)
    }

    /// The shards that `member` should own.
    pub fn shards_of(&self, member: &MemberId, slots: SlotCount) -> Vec<ShardId> {
        slots.shards().filter(|shard| self.owner(*shard) == Some(member)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(count: usize) -> Vec<MemberId> {
        (0..count).map(|i| MemberId(format!("node-{i}"))).collect()
    }

    #[test]
    fn one_member_owns_all() {
        let slots = SlotCount::new(64).expect("valid");
        let ring = Ring::new(members(1));
        assert_eq!(ring.shards_of(&members(1)[0], slots).len(), 64);
    }

    #[test]
    fn a_new_member_only_takes_over_never_reshuffles() {
        let slots = SlotCount::new(1024).expect("valid");
        let (before, after) = (Ring::new(members(3)), Ring::new(members(4)));
        let newcomer = &members(4)[3];
        let mut moved = 0;
        for shard in slots.shards() {
            if before.owner(shard) != after.owner(shard) {
                assert_eq!(after.owner(shard), Some(newcomer));
                moved += 1;
            }
        }
        assert!((100..500).contains(&moved), "{moved} of 1024 shards moved");
    }
}
