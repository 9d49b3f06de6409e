//! What a failure of Cassandra means to the caller.

use scylla::errors::{DbError, ExecutionError, RequestAttemptError};

use crate::StoreError;

/// Of a plain statement. All of ours are idempotent: a failure that may pass is worth a repeat, whatever it did.
pub(super) fn plain(error: ExecutionError) -> StoreError {
    if is_permanent(&error) {
        StoreError::ReadOnly(error.to_string())
    } else {
        StoreError::Unavailable(error.to_string())
    }
}

/// Of a conditional write (G3). Even "not enough replicas" may come from its commit, after the decision: so any failure
/// leaves the outcome unknown, but one of the statement itself.
pub(super) fn conditional(error: ExecutionError) -> StoreError {
    if is_permanent(&error) {
        StoreError::ReadOnly(error.to_string())
    } else {
        StoreError::Indeterminate(error.to_string())
    }
}

/// Repeating would meet the same: the statement, the schema or our rights are wrong. An operator has to act.
fn is_permanent(error: &ExecutionError) -> bool {
    let ExecutionError::LastAttemptError(RequestAttemptError::DbError(error, message)) = error else {
        return matches!(error, ExecutionError::BadQuery(_));
    };
    match error {
        // A node that has just joined may not know the tables yet.
        DbError::Invalid | DbError::ConfigError => !names_a_missing_table(message),
        DbError::SyntaxError | DbError::Unauthorized | DbError::ProtocolError => true,
        _ => false,
    }
}

fn names_a_missing_table(message: &str) -> bool {
    let message = message.to_ascii_lowercase();
    ["unconfigured table", "does not exist", "doesn't exist", "unknown keyspace", "unknown table"]
        .iter()
        .any(|part| message.contains(part))
}

/// A stored row that does not read as it was written.
pub(super) fn corrupt(what: &str, error: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupt(format!("{what}: {error}"))
}
