//! Names of things.

use std::{fmt, sync::Arc};

use uuid::Uuid;

/// What an entity is. Ids of different kinds don't meet: a schedule may be named as a workflow is.
///
/// The numbers are those of the messages (`perdure.state.v1.EntityKind`) and of stored rows.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
#[repr(u8)]
pub enum EntityKind {
    /// A chain: all runs of a workflow id.
    #[default]
    Workflow = 0,
    Schedule = 1,
    Batch = 2,
    /// An activity that no workflow has scheduled.
    Activity = 3,
    Deployment = 4,
    /// What a task queue has to remember: its id is the queue's name.
    TaskQueue = 5,
    /// A Nexus operation that no workflow has scheduled.
    NexusOperation = 6,
}

impl EntityKind {
    const ALL: [Self; 7] = [
        Self::Workflow,
        Self::Schedule,
        Self::Batch,
        Self::Activity,
        Self::Deployment,
        Self::TaskQueue,
        Self::NexusOperation,
    ];

    /// `None` for a kind that this version does not know.
    pub fn from_number(number: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }

    pub fn number(self) -> i32 {
        i32::from(self as u8)
    }
}

/// Names an entity; most are chains, that is all runs of one workflow id, open and closed. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChainKey {
    // The order of the fields is the order of rows in the stores.
    pub kind: EntityKind,
    pub namespace_id: Arc<str>,
    /// For other kinds: their own id.
    pub workflow_id: Arc<str>,
}

impl ChainKey {
    pub fn new(namespace_id: impl Into<Arc<str>>, workflow_id: impl Into<Arc<str>>) -> Self {
        Self::of(EntityKind::Workflow, namespace_id, workflow_id)
    }

    pub fn of(kind: EntityKind, namespace_id: impl Into<Arc<str>>, id: impl Into<Arc<str>>) -> Self {
        Self { kind, namespace_id: namespace_id.into(), workflow_id: id.into() }
    }

    /// From the number of a kind, as messages have it; `None` if this version does not know the kind.
    pub fn numbered(kind: i32, namespace_id: impl Into<Arc<str>>, id: impl Into<Arc<str>>) -> Option<Self> {
        EntityKind::from_number(kind).map(|kind| Self::of(kind, namespace_id, id))
    }

    /// The list that its runs are in: one for each kind and namespace.
    pub fn list_id(&self) -> Arc<str> {
        match self.kind {
            EntityKind::Workflow => self.namespace_id.clone(),
            other => format!("{}/{}", other as u8, self.namespace_id).into(),
        }
    }

    /// The slot (shard) that this entity lives in. Stored data depends on it: the function never changes.
    pub fn shard(&self, slots: SlotCount) -> ShardId {
        // The low bits, so that doubling the count splits each slot in two.
        ShardId(self.slot_hash() & (slots.get() - 1))
    }

    /// As many bits of the hash as the highest count of slots needs.
    pub fn slot_hash(&self) -> u32 {
        slot_hash(self.kind, &self.namespace_id, &self.workflow_id)
    }
}

/// [`ChainKey::slot_hash`] of an entity whose key is not made yet.
pub fn slot_hash(kind: EntityKind, namespace_id: &str, id: &str) -> u32 {
    let mut hashed = Vec::with_capacity(namespace_id.len() + id.len() + 3);
    hashed.extend_from_slice(namespace_id.as_bytes());
    hashed.push(0);
    hashed.extend_from_slice(id.as_bytes());
    if kind != EntityKind::Workflow {
        hashed.extend_from_slice(&[0, kind as u8]);
    }
    (xxhash_rust::xxh3::xxh3_64(&hashed) & u64::from(SlotCount::MOST - 1)) as u32
}

impl fmt::Debug for ChainKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.kind != EntityKind::Workflow {
            write!(f, "{:?} ", self.kind)?;
        }
        write!(f, "{}/{}", self.namespace_id, self.workflow_id)
    }
}

/// A history shard: one slot of the hash of (namespace id, entity id).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u32);

impl ShardId {
    /// Of which one this is a half, if there are `slots` of its size.
    pub fn parent(self, slots: SlotCount) -> Self {
        Self(self.0 & (slots.get() / 2 - 1))
    }

    /// The upper half of this one, if there are `slots` of its size. The lower half keeps the number.
    pub fn upper_half(self, slots: SlotCount) -> Self {
        Self(self.0 + slots.get())
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "shard {}", self.0)
    }
}

/// How many shards a cluster has: a power of two. In the store is how many it began with, and each shard's row says of how
/// many it is one now.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SlotCount(u32);

impl SlotCount {
    const MOST: u32 = 1 << 16;

    /// `None` unless `count` is a power of two of at most 65,536.
    pub fn new(count: u32) -> Option<Self> {
        (count.is_power_of_two() && count <= Self::MOST).then_some(Self(count))
    }

    /// `None` if there cannot be so many.
    pub fn doubled(self) -> Option<Self> {
        Self::new(self.0 * 2)
    }

    pub fn get(self) -> u32 {
        self.0
    }

    pub fn shards(self) -> impl Iterator<Item = ShardId> {
        (0..self.0).map(ShardId)
    }
}

/// One incarnation of a node process: the writer of one log. A restarted node is a new session.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub Uuid);

impl SessionId {
    pub fn parse(text: &str) -> Option<Self> {
        Uuid::parse_str(text).ok().map(Self)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "session {}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubling_splits_each_slot_in_two() {
        let (few, many) = (SlotCount::new(64).expect("valid"), SlotCount::new(128).expect("valid"));
        for i in 0..1000 {
            let key = ChainKey::new("namespace", format!("workflow-{i}"));
            assert_eq!(key.shard(many).0 % 64, key.shard(few).0);
        }
    }

    #[test]
    fn halves_know_their_parent() {
        let (few, many) = (SlotCount::new(64).expect("valid"), SlotCount::new(128).expect("valid"));
        assert_eq!(few.doubled(), Some(many));
        assert_eq!(ShardId(5).upper_half(few), ShardId(69));
        assert_eq!((ShardId(5).parent(many), ShardId(69).parent(many)), (ShardId(5), ShardId(5)));
        assert_eq!(SlotCount::new(1 << 16).and_then(SlotCount::doubled), None);
    }

    #[test]
    fn slot_of_an_entity_never_changes() {
        let slots = SlotCount::new(64).expect("valid");
        assert_eq!(ChainKey::new("n", "w").shard(slots), ShardId(SLOT_OF_N_W));
    }

    const SLOT_OF_N_W: u32 = 56;

    #[test]
    fn kinds_are_told_apart() {
        let (chain, schedule) = (ChainKey::new("n", "w"), ChainKey::of(EntityKind::Schedule, "n", "w"));
        assert_ne!(chain, schedule);
        let slots = SlotCount::new(1 << 16).expect("valid");
        assert_ne!(chain.shard(slots), schedule.shard(slots));
        for kind in EntityKind::ALL {
            assert_eq!(EntityKind::from_number(kind.number()), Some(kind));
        }
        assert_eq!(EntityKind::from_number(99), None);
    }

    #[test]
    fn slot_count_is_a_power_of_two() {
        assert!(SlotCount::new(0).is_none());
        assert!(SlotCount::new(48).is_none());
        assert!(SlotCount::new(1).is_some());
    }
}
