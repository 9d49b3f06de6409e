//! Nexus operations that no workflow has scheduled: how handlers are asked is as in a workflow, but each is an entity of its
//! own. Pure, as the core of workflows is.
//!
//! The entity ([`Operations`]) is an operation id. It has any number of runs, of which the last may be open; closed ones stay
//! until the end of the namespace's retention.

mod callbacks;
mod describe;
mod entity;
mod run;
mod start;

pub use entity::Operations;
