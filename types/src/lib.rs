//! The vocabulary: ids, positions in the log, time, limits. No IO, no dependencies on other crates of this workspace.

mod config;
mod ids;
pub mod nexus;
mod placement;
mod poll;
mod position;
pub mod spans;
mod time;
mod visibility;

/// The spans of calls that are traced have this target, and nothing else has.
pub const TRACE_TARGET: &str = "perdure::trace";

pub use config::{ConfigError, Limits, edit_distance};
pub use ids::{ChainKey, EntityKind, SessionId, ShardId, SlotCount, slot_hash};
pub use placement::{Layout, Member, NodeId, Placement, QueueFilter, Served, ShardMap, UNNAMED_SESSION_GRACE};
pub use poll::PollName;
pub use position::{Epoch, Position, Seq};
pub use time::{Duration, Timestamp};
pub use visibility::{
    Hidden, IdMatch, ListPlace, ListedRun, Status, StatusSet, TimeRange, VisibilityCount, VisibilityIndex,
    VisibilityQuery, VisibilityRow,
};
