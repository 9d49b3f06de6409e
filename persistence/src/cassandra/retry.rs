//! When the driver may send a request again by itself: hardly ever.
//!
//! Who retries has to know what a failure means: plain idempotent writes are repeated by the caller with the same bytes
//! (G2), conditional writes are settled first (G3). So the driver only tries another node where the first has certainly not
//! answered and a repeat is harmless. It never changes a consistency level (G1), and never takes a failed write for done.

use scylla::{
    errors::{DbError, RequestAttemptError},
    policies::retry::{RequestInfo, RetryDecision, RetryPolicy, RetrySession},
};

#[derive(Debug)]
pub(super) struct Careful;

struct Session {
    retried: bool,
}

impl RetryPolicy for Careful {
    fn new_session(&self) -> Box<dyn RetrySession> {
        Box::new(Session { retried: false })
    }
}

impl RetrySession for Session {
    fn decide_should_retry(&mut self, request: RequestInfo) -> RetryDecision {
        let elsewhere = match request.error {
            // Refused before anything was done, even for an LWT.
            RequestAttemptError::DbError(DbError::IsBootstrapping, _) | RequestAttemptError::UnableToAllocStreamId => {
                true
            }
            // The node has gone: whether it did anything is not known.
            RequestAttemptError::BrokenConnectionError(_) => request.is_idempotent,
            _ => false,
        };
        if elsewhere && !std::mem::replace(&mut self.retried, true) {
            // `None`: at the same consistency.
            RetryDecision::RetryNextTarget(None)
        } else {
            RetryDecision::DontRetry
        }
    }

    fn reset(&mut self) {
        self.retried = false;
    }
}
