//! The process as an operator sees it: how it refuses to start, what it serves, how it stops, and what a full disk does.

#![allow(clippy::unwrap_used)] // Tests may unwrap.
#![cfg(unix)]

mod admin;
mod cassandra;
#[path = "../common/mod.rs"]
mod common;
mod disk_full;
mod endpoints;
mod filesystem;
mod refusals;
mod retention;
mod stopping;
mod traces;
