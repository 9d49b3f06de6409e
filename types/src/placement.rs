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
}

/// Who should own what, as this node sees the cluster. Each change is a new value with a higher version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Rises with each change that this node sees. Says nothing to other nodes.
    pub version: u64,
    pub me: NodeId,
    /// Who should own each slot. Empty until the membership has settled for the first time, and while this node believes
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
        let member = Member { address: String::new(), generation: 0, session: None, draining: false };
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
        self.owners.get(shard.0 as usize)
    }

    /// The shards that this node should own.
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
}

/// Names task queues by namespace id and name.
pub type QueueFilter = Arc<dyn Fn(&str, &str) -> bool + Send + Sync>;
