//! Placement: a consistent-hash ring of members decides who should own each shard and be home to each task queue.
//!
//! It is a function of the members alone, so nodes that agree on the members agree on all of it. Members are placed by name,
//! not by incarnation: a restarted node gets back what it had.

use std::{collections::BTreeMap, sync::Arc};

use hashring::HashRing;
use perdure_types::{NodeId, ShardId, SlotCount};

/// Points of each member on the ring: enough that shares differ by little.
const POINTS_PER_MEMBER: u32 = 64;

/// Choices of a shard before the ring stops looking for a member with room.
const CHOICES: u32 = 64;

#[derive(Hash)]
struct Point<'a> {
    name: &'a str,
    index: u32,
}

/// An immutable view of the members.
#[derive(Clone, Default)]
pub struct Ring {
    /// By name.
    members: Vec<NodeId>,
    ring: HashRing<Placed>,
}

/// A point of a member, hashed by its name.
#[derive(Clone)]
struct Placed {
    member: usize,
    name: Arc<str>,
    index: u32,
}

impl std::hash::Hash for Placed {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        Point { name: &self.name, index: self.index }.hash(state);
    }
}

impl Ring {
    /// Of members by name.
    pub fn new(members: impl IntoIterator<Item = (Arc<str>, NodeId)>) -> Self {
        let members: BTreeMap<Arc<str>, NodeId> = members.into_iter().collect();
        let mut ring = HashRing::new();
        let point = |(member, name): (usize, &Arc<str>)| {
            let name = name.clone();
            (0..POINTS_PER_MEMBER).map(move |index| Placed { member, name: name.clone(), index })
        };
        ring.batch_add(members.keys().enumerate().flat_map(point).collect());
        Self { members: members.into_values().collect(), ring }
    }

    pub fn members(&self) -> &[NodeId] {
        &self.members
    }

    /// Who should own each shard, by slot; empty on an empty ring. No member gets much more than its share.
    pub fn owners(&self, slots: SlotCount) -> Arc<[NodeId]> {
        let count = self.members.len();
        if count == 0 {
            return Arc::new([]);
        }
        let share = (slots.get() as usize).div_ceil(count);
        let most = share + share / 8;
        let mut loads = vec![0; count];
        let mut choose = |shard: ShardId| {
            let mut choices = (0..CHOICES).filter_map(|choice| self.ring.get(&("shard", shard.0, choice)));
            let chosen = choices.find(|point| loads[point.member] < most).map(|point| point.member);
            // By chance no choice had room: the first member with the least.
            let member = chosen.or_else(|| (0..count).min_by_key(|member| loads[*member])).unwrap_or(0);
            loads[member] += 1;
            self.members[member].clone()
        };
        slots.shards().map(&mut choose).collect()
    }

    /// The home of a task queue; `None` on an empty ring. Queues of one name have one home, whatever their type.
    pub fn home(&self, namespace_id: &str, task_queue: &str) -> Option<&NodeId> {
        self.ring.get(&("queue", namespace_id, task_queue)).map(|point| &self.members[point.member])
    }
}

impl PartialEq for Ring {
    fn eq(&self, other: &Self) -> bool {
        self.members == other.members
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(names: &[usize], generation: u32) -> Ring {
        Ring::new(
            names
                .iter()
                .map(|i| (format!("10.0.0.{i}:7234").into(), NodeId::new(format!("10.0.0.{i}:7234@{generation}")))),
        )
    }

    fn slots(count: u32) -> SlotCount {
        SlotCount::new(count).expect("valid")
    }

    fn loads(ring: &Ring, count: u32) -> Vec<usize> {
        let owners = ring.owners(slots(count));
        ring.members().iter().map(|member| owners.iter().filter(|owner| *owner == member).count()).collect()
    }

    #[test]
    fn one_member_owns_all_and_none_owns_nothing() {
        assert_eq!(loads(&ring(&[1], 0), 64), [64]);
        assert!(Ring::default().owners(slots(64)).is_empty());
        assert_eq!(Ring::default().home("n", "q"), None);
    }

    #[test]
    fn no_member_has_much_more_than_its_share() {
        for (count, members) in [(64, 2), (64, 3), (64, 5), (1024, 10), (8, 12)] {
            let names: Vec<usize> = (0..members).collect();
            let loads = loads(&ring(&names, 0), count);
            let share = (count as usize).div_ceil(members);
            assert!(loads.iter().all(|load| *load <= share + share / 8), "{count} over {members}: {loads:?}");
            assert_eq!(loads.iter().sum::<usize>(), count as usize);
        }
    }

    #[test]
    fn a_new_member_moves_little_more_than_what_it_gets() {
        let (before, after) = (ring(&[1, 2, 3], 0), ring(&[1, 2, 3, 4], 0));
        let (before, after) = (before.owners(slots(1024)), after.owners(slots(1024)));
        let newcomer = NodeId::new("10.0.0.4:7234@0");
        let gained = after.iter().filter(|owner| **owner == newcomer).count();
        let moved = before.iter().zip(after.iter()).filter(|(a, b)| a != b).count();
        assert!((128..=288).contains(&gained), "{gained} gained");
        assert!(moved < 2 * gained, "{moved} moved for {gained}");
    }

    #[test]
    fn a_restarted_node_gets_back_what_it_had() {
        let before = ring(&[1, 2, 3], 0).owners(slots(64));
        let after = ring(&[1, 2, 3], 1).owners(slots(64));
        let name = |node: &NodeId| node.as_str().split('@').next().map(str::to_owned);
        assert!(before.iter().zip(after.iter()).all(|(a, b)| a != b && name(a) == name(b)));
    }

    #[test]
    fn the_order_of_members_does_not_matter() {
        assert_eq!(ring(&[1, 2, 3], 0).owners(slots(64)), ring(&[3, 1, 2], 0).owners(slots(64)));
        let (a, b) = (ring(&[1, 2, 3], 0), ring(&[3, 1, 2], 0));
        assert!((0..100).all(|i| a.home("n", &format!("q{i}")) == b.home("n", &format!("q{i}"))));
    }
}
