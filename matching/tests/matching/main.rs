//! Task queues through their one entrance, over a shard in memory.

#![allow(clippy::unwrap_used)] // Helpers too: clippy knows only test functions as tests.

mod common;
mod departures;
mod nexus;
mod operations;
mod tasks;
