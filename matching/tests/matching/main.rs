//! Task queues through their one entrance, over a shard in memory.

mod common;
mod operations;
mod tasks;
