//! What membership tells the owner of shards, and what the owner tells back. Both are hints: who may commit is decided by
//! the sessions in the store (rules F1 to C4), so a wrong or late value costs time and never safety.

use std::{collections::BTreeMap, collections::BTreeSet, fmt, sync::Arc};

use crate::{Epoch, SessionId, ShardId, SlotCount};

/// A member of the cluster: one incarnation of a node's process. A restarted node is a new member.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub Arc<str>);

impl NodeId {
    pub fn new(id: impl Into<Arc<str>>) -> Self {
        Self(id.into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {}", self.0)
    }
}

/// A live member, as the others know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// `host:port` of its node-to-node calls.
    pub address: String,
    /// Rises with each start of a node: milliseconds since the epoch, about.
    pub generation: u64,
    /// Under which it commits now. A fenced node begins a new one without becoming a new member.
    pub session: Option<SessionId>,
    /// It is leaving: it is to own nothing.
    pub draining: bool,
    /// Its store does not answer it. It is to own nothing, and what it owns may be taken from it.
    pub silent: bool,
    /// Other members cannot call it. The same.
    pub unreachable: bool,
}

impl Member {
    /// It is alive, and of no use.
    pub fn is_away(&self) -> bool {
        self.silent || self.unreachable
    }

    /// It can own shards.
    pub fn is_able(&self) -> bool {
        !self.draining && !self.is_away()
    }
}

/// Who should own what, as this node sees the cluster. Each change is a new value with a higher version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Rises with each change that this node sees. Says nothing to other nodes.
    pub version: u64,
    pub me: NodeId,
    /// Who should own each slot. While shards are being split the halves have one slot still. Empty until the membership has settled for the first time, and while this node believes
    /// that it is cut off from the others: then this node must claim nothing.
    pub owners: Arc<[NodeId]>,
    /// The live members, this node and draining ones too.
    pub members: BTreeMap<NodeId, Member>,
    /// Sessions of members that failed or were replaced: fence them. Kept for some time only.
    pub dead: BTreeSet<SessionId>,
}

impl Placement {
    /// A node that is the whole cluster.
    pub fn alone(me: NodeId, slots: SlotCount) -> Self {
        let member = Member {
            address: String::new(),
            generation: 0,
            session: None,
            draining: false,
            silent: false,
            unreachable: false,
        };
        Self {
            version: 1,
            owners: slots.shards().map(|_| me.clone()).collect(),
            members: BTreeMap::from([(me.clone(), member)]),
            dead: BTreeSet::new(),
            me,
        }
    }

    /// Who should own the shard; `None` if that is not known.
    pub fn owner(&self, shard: ShardId) -> Option<&NodeId> {
        let slot = (shard.0 as usize).checked_rem(self.owners.len())?;
        self.owners.get(slot)
    }

    /// The shards that this node should own, but for halves of shards that have one slot still.
    pub fn wanted(&self) -> impl Iterator<Item = ShardId> + '_ {
        let mine = |(slot, owner): (usize, &NodeId)| (*owner == self.me).then_some(ShardId(slot as u32));
        self.owners.iter().enumerate().filter_map(mine)
    }

    /// The live member that commits under the session, as far as is known here. `None` is not yet a reason to fence it: a
    /// member begins a session before the others hear of it. Fence what is in `dead` at once, and what nobody names after
    /// [`UNNAMED_SESSION_GRACE`].
    pub fn member_of(&self, session: SessionId) -> Option<&NodeId> {
        self.members.iter().find(|(_, member)| member.session == Some(session)).map(|(node, _)| node)
    }
}

/// For how long a session that no live member names may be one that has just begun.
pub const UNNAMED_SESSION_GRACE: std::time::Duration = std::time::Duration::from_secs(3);

/// What this node serves: the owner of shards publishes it at each change, the others route by it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Served {
    /// `None` while there is none: at the start, and after a fence.
    pub session: Option<SessionId>,
    /// Shards in service. One that is being recovered or handed over is not among them.
    pub shards: BTreeMap<ShardId, Epoch>,
    /// Which shards there are, as far as this node has seen.
    pub map: ShardMap,
}

/// Which shards there are. Shards are split, and never merged: what was true once stays true.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardMap {
    /// All shards of so many are there. None: not known.
    pub slots: Option<SlotCount>,
    /// Those with higher numbers that are there, too.
    pub more: Arc<BTreeSet<ShardId>>,
}

impl ShardMap {
    /// From the shards that there are, and of how many of its size each is one. `first`: how many there were at the beginning,
    /// whether they are among `shards` or not.
    pub fn new(first: SlotCount, shards: &BTreeMap<ShardId, SlotCount>) -> Self {
        let are_all_there =
            |slots: &SlotCount| slots.shards().all(|shard| shards.get(&shard).is_some_and(|of| of >= slots));
        let sizes = std::iter::successors(Some(first), |slots| slots.doubled());
        let slots = sizes.skip(1).take_while(are_all_there).last().unwrap_or(first);
        let more = shards.keys().copied().filter(|shard| shard.0 >= slots.get()).collect();
        Self { slots: Some(slots), more: Arc::new(more) }
    }

    /// The shard of an entity with this hash, as far as is known: it may have been split. `first` as for [`ShardMap::new`].
    pub fn shard_of(&self, slot_hash: u32, first: SlotCount) -> ShardId {
        let slots = self.slots.unwrap_or(first);
        let most = self.more.last().map_or(1, |shard| shard.0 + 1).next_power_of_two();
        let mut size = most;
        while size > slots.get() {
            let shard = ShardId(slot_hash & (size - 1));
            // With a lower number it is that of a larger shard, too.
            if shard.0 >= size / 2 && self.more.contains(&shard) {
                return shard;
            }
            size /= 2;
        }
        ShardId(slot_hash & (slots.get() - 1))
    }

    /// What either of two knows.
    pub fn merge(&mut self, other: &Self) {
        self.slots = self.slots.max(other.slots);
        if !other.more.is_subset(&self.more) {
            Arc::make_mut(&mut self.more).extend(other.more.iter().copied());
        }
        if let (Some(slots), Some(first)) = (self.slots, self.more.first())
            && first.0 < slots.get()
        {
            Arc::make_mut(&mut self.more).retain(|shard| shard.0 >= slots.get());
        }
    }
}

/// How far the shards of a cluster are split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    pub map: ShardMap,
    /// All shards that there are, and of how many of its size each is one.
    pub shards: BTreeMap<ShardId, SlotCount>,
    /// How many there are to be.
    pub goal: SlotCount,
}

/// Names task queues by namespace id and name.
pub type QueueFilter = Arc<dyn Fn(&str, &str) -> bool + Send + Sync>;

#[cfg(test)]
mod tests {
    use super::*;

    fn slots(count: u32) -> SlotCount {
        SlotCount::new(count).expect("a power of two")
    }

    fn map(shards: &[(u32, u32)]) -> ShardMap {
        ShardMap::new(slots(2), &shards.iter().map(|(shard, of)| (ShardId(*shard), slots(*of))).collect())
    }

    #[test]
    fn an_entity_is_in_the_smallest_shard_that_there_is() {
        let shards_of = |map: &ShardMap| (0..8).map(|hash| map.shard_of(hash, slots(2)).0).collect::<Vec<_>>();
        assert_eq!(shards_of(&ShardMap::default()), [0, 1, 0, 1, 0, 1, 0, 1]);
        assert_eq!(shards_of(&map(&[(0, 2), (1, 2)])), [0, 1, 0, 1, 0, 1, 0, 1]);
        assert_eq!(shards_of(&map(&[(0, 4), (1, 2), (2, 4)])), [0, 1, 2, 1, 0, 1, 2, 1]);
        assert_eq!(shards_of(&map(&[(0, 4), (1, 2), (2, 8), (6, 8)])), [0, 1, 2, 1, 0, 1, 6, 1]);
        assert_eq!(shards_of(&map(&[(0, 4), (1, 4), (2, 4), (3, 4)])), [0, 1, 2, 3, 0, 1, 2, 3]);
    }

    #[test]
    fn so_many_are_there_as_are_all_there() {
        assert_eq!(map(&[]).slots, Some(slots(2)));
        assert_eq!(map(&[(0, 4), (1, 4), (2, 4)]).slots, Some(slots(2)));
        let all = map(&[(0, 8), (1, 4), (2, 4), (3, 4), (4, 8)]);
        assert_eq!((all.slots, all.more.len()), (Some(slots(4)), 1));
    }

    #[test]
    fn knowledge_adds_up() {
        let mut known = map(&[(0, 4), (1, 2), (2, 4)]);
        known.merge(&map(&[(0, 2), (1, 4), (3, 4)]));
        assert_eq!(*known.more, BTreeSet::from([ShardId(2), ShardId(3)]));
        known.merge(&map(&[(0, 4), (1, 4), (2, 4), (3, 4)]));
        assert_eq!(known, map(&[(0, 4), (1, 4), (2, 4), (3, 4)]));
        known.merge(&ShardMap::default());
        assert_eq!(known.slots, Some(slots(4)));
    }
}
