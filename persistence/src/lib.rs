//! The durable log and tables behind one small trait, [`Store`].
//!
//! A store offers *primitives*: conditional writes (LWTs) on sessions and shards, plain inserts into session logs, and
//! stamped writes of materialized rows. The commit protocol (ARCHITECTURE.md, rules G1 to M3) is built from these in the
//! `shard` crate, once, for every store. So a store may be as weak as Cassandra is: a plain write that timed out may
//! surface later, a conditional write may have an unknown outcome that is decided later (G3).
//!
//! Implementations: [`embedded`] (one machine, one fsync'd log), [`simulated`] (tests: delays, losses, unknown outcomes).
//! [`conformance`] is the one suite that each of them passes.

pub mod cassandra;
pub mod conformance;
pub mod embedded;
pub mod simulated;
mod store;
mod telemetry;
mod visibility;

pub use perdure_types::{
    Hidden, IdMatch, ListPlace, ListedRun, Status, StatusSet, TimeRange, VisibilityCount, VisibilityIndex,
    VisibilityQuery, VisibilityRow,
};
pub use store::*;
pub use telemetry::describe as describe_metrics;
pub use visibility::{Listing, PlainRows};
