//! Who is alive, who owns which shard, and how to reach them. Delivers a call to its owner: here, or one hop away.
//!
//! With one member every call is local; the placement is the same ring that many members will share.

mod admin;
mod alone;
mod calls;
mod lost_polls;
mod membership;
mod namespaces;
mod ports;
mod ring;
mod route;
pub mod trace;
mod watch;

pub use alone::Alone;
pub use membership::{JoinError, MemberRow, MemberTable, Membership, MembershipConfig, Settle, local_address_to};
pub use namespaces::{Namespace, NamespaceStore, Namespaces, SYSTEM_NAMESPACE};
pub use ports::{LocalMatching, LocalShards, Member, NodeId, Placement, QueueFilter, Served};
pub use ring::Ring;
pub use route::Cluster;
