//! Names of things.

use std::{fmt, sync::Arc};

use uuid::Uuid;

/// The entity that a workflow id names: all runs of it, open and closed. Cheap to clone.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChainKey {
    pub namespace_id: Arc<str>,
    pub workflow_id: Arc<str>,
}

impl ChainKey {
    pub fn new(namespace_id: impl Into<Arc<str>>, workflow_id: impl Into<Arc<str>>) -> Self {
        Self { namespace_id: namespace_id.into(), workflow_id: workflow_id.into() }
    }

    /// The slot (shard) that this entity lives in. Stored data depends on it: the function never changes.
    pub fn shard(&self, slots: SlotCount) -> ShardId {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        hasher.update(self.namespace_id.as_bytes());
        hasher.update(&[0]);
        hasher.update(self.workflow_id.as_bytes());
        // The low bits, so that doubling the count splits each slot in two.
        ShardId((hasher.digest() & u64::from(slots.get() - 1)) as u32)
    }
}

impl fmt::Debug for ChainKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace_id, self.workflow_id)
    }
}

/// A history shard: one slot of the hash of (namespace id, entity id).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ShardId(pub u32);

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

/// How many shards the cluster has: a power of two, fixed in the store when the cluster is created.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SlotCount(u32);

impl SlotCount {
    /// `None` unless `count` is a power of two of at most 65,536.
    pub fn new(count: u32) -> Option<Self> {
        (count.is_power_of_two() && count <= 1 << 16).then_some(Self(count))
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
    fn slot_of_an_entity_never_changes() {
        let slots = SlotCount::new(64).expect("valid");
        assert_eq!(ChainKey::new("n", "w").shard(slots), ShardId(SLOT_OF_N_W));
    }

    const SLOT_OF_N_W: u32 = 56;

    #[test]
    fn slot_count_is_a_power_of_two() {
        assert!(SlotCount::new(0).is_none());
        assert!(SlotCount::new(48).is_none());
        assert!(SlotCount::new(1).is_some());
    }
}
