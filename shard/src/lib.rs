//! Owns shards: fences dead sessions, claims, recovers, handles calls, logs, and releases what became durable.
//!
//! The only write path is the node session's log ([`log`]): a transition is applied in memory at once, its record is
//! group-committed with those of all other shards, and its answer and effects leave when it is covered. The tables are
//! written lazily from what is in memory ([`flush`]). The rules that keep this safe have ids (G1 to M3, ARCHITECTURE.md),
//! named where they are kept.
//!
//! [`Shards`] is the node's handle; [`TaskSink`] and [`EntityCaller`] are what it needs from outside.

mod claim;
mod clock;
mod config;
mod core;
mod driver;
mod entry;
mod fence;
mod flush;
mod history;
mod jobs;
mod kinds;
mod lanes;
mod log;
mod lookahead;
mod moves;
mod node;
mod owner;
mod period;
mod ports;
mod recover;
mod split;
pub mod telemetry;
mod trace;
mod watched;

pub use clock::Clock;
pub use config::ShardConfig;
pub use node::{Setup, Shards, StartError};
pub use owner::Joining;
pub use ports::{EntityCaller, Peers, TaskSink};
