//! Nexus: how operations reach their handlers, and how callers hear of their end.
//!
//! A handler is a worker of a task queue, reached through its home, or a URL outside, reached over HTTP. [`Dispatcher`] makes
//! one attempt and says what came of it; whoever wants the operation done decides whether to try again. The rest is the
//! protocol: failures, payloads and links as both sides write them.
//!
//! Not here: operations as such (they are part of their workflow), the HTTP server (it is the frontend's).

#![allow(clippy::result_large_err, reason = "a failure is as much an answer as a success, and there is one a request")]

mod addresses;
mod client;
mod completion;
pub mod content;
mod dispatcher;
pub mod failure;
pub mod handler_error;
pub mod headers;
mod telemetry;
pub mod worker;

pub use addresses::AddressRules;
pub use completion::{Unreadable, read_completion};
pub use dispatcher::{Dispatcher, Settings};
pub use telemetry::describe as describe_metrics;
