//! Shards over a simulated store, with workers and clients around them: what end-to-end tests of the commit protocol
//! and the seeded simulation are made of.
//!
//! [`Node`] is one node without a network: its shards, and a worker that does whatever is offered. [`Client`] speaks to
//! it as the frontend does. [`simulation`] drives both from a seed, with crashes and a faulty store, and checks what came
//! of it against what was acknowledged. [`model`] is the commit protocol for a model checker.

mod client;
pub mod cluster;
pub mod invariants;
pub mod model;
mod node;
pub mod simulation;
mod worker;

pub use client::{Client, history_of};
pub use node::{NAMESPACE, NAMESPACE_ID, Node, Options};
pub use worker::Script;
