//! Activities that no workflow has scheduled: the worker's part is as in a workflow, but each is an entity of its own. Pure,
//! as the core of workflows is.
//!
//! The entity ([`Activities`]) is an activity id. It has any number of runs, of which the last may be open; closed ones stay
//! until the end of the namespace's retention.

mod callbacks;
mod describe;
mod entity;
mod operations;
mod respond;
mod run;
mod start;

pub use entity::Activities;
