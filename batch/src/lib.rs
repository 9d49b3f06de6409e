//! Batch operations: one thing done to many executions, which a query finds or a list names. Pure, as the core of workflows
//! is.
//!
//! A job is an entity of its own ([`Job`]). It reads the list page by page, and makes a call for each execution of a page,
//! a few at a time and no more a second than it was told. What is done of a page is recorded, so a new owner goes on with
//! the rest; a call that was made twice does no harm, for it carries the same request id.
//!
//! Invariant (BA-1): every execution of every page is counted once, as done or as failed.

mod calls;
mod describe;
mod job;

pub use job::Job;
