//! Limits of a run as a whole, and those that its commands share.

use perdure_proto::temporal::api::{common::v1::Memo, enums::v1::WorkflowTaskFailedCause};
use prost::Message;

use crate::{
    api::Env,
    command::{BadCommand, CommandResult},
    run::Run,
    terminate::SERVER_IDENTITY,
};

impl Run {
    /// Terminates a run that has outgrown its history limits.
    pub(crate) fn enforce_history_limits(&mut self, env: &mut Env) {
        if !self.is_open() || self.deleted {
            return;
        }
        let reason = if self.info.history_size_bytes > env.limits.history_size_error_bytes {
            "Workflow history size exceeds limit."
        } else if self.info.next_event_id - 1 > env.limits.history_count_error {
            "Workflow history count exceeds limit."
        } else {
            return;
        };
        self.terminate_run(env, reason, None, SERVER_IDENTITY, Vec::new());
    }
}

/// Payloads above the limit end the workflow: a retry of the workflow task would bring them again.
pub(crate) fn check_payload_bytes(
    env: &Env,
    size: usize,
    cause: WorkflowTaskFailedCause,
    message: &str,
) -> CommandResult {
    if size as i64 <= env.limits.blob_size_error_bytes {
        Ok(())
    } else {
        Err(BadCommand::terminating(cause, message))
    }
}

pub(crate) fn check_memo_bytes(
    env: &Env,
    memo: Option<&Memo>,
    cause: WorkflowTaskFailedCause,
    message: &str,
) -> CommandResult {
    let size = memo.map_or(0, Message::encoded_len);
    if size as i64 <= env.limits.memo_size_error_bytes {
        Ok(())
    } else {
        Err(BadCommand::terminating(cause, message))
    }
}

/// Room for one more pending entry of a kind.
pub(crate) fn check_pending(pending: usize, limit: i64, what: &str, cause: WorkflowTaskFailedCause) -> CommandResult {
    if (pending as i64) < limit {
        return Ok(());
    }
    let message = format!("the number of {what}, {pending}, has reached the per-workflow limit of {limit}");
    Err(BadCommand::new(cause, message))
}
