//! Limits of a run as a whole, and those that its commands share.

use perdure_proto::temporal::api::{
    common::v1::Memo,
    enums::v1::WorkflowTaskFailedCause::{self, ForceCloseCommand},
};
use prost::Message;

use crate::{
    api::Env,
    command::{BadCommand, CommandResult},
    run::Run,
    terminate::SERVER_IDENTITY,
};

impl Run {
    /// What no input may exceed, whatever it was.
    pub(crate) fn enforce_limits(&mut self, env: &mut Env) {
        if self.is_open() && !self.deleted {
            self.enforce_buffer_limits(env);
            self.enforce_history_limits(env);
        }
    }

    /// Ends the started workflow task that too many events wait for: each of them would be written with every transition
    /// until it ends.
    fn enforce_buffer_limits(&mut self, env: &Env) {
        let changed = self.buffered.before().is_some();
        let bytes = || self.buffered.iter().map(|event| event.encoded_len()).sum::<usize>();
        let too_many = self.buffered.len() as i64 > env.limits.buffered_events;
        if changed && (too_many || bytes() as i64 > env.limits.buffered_events_bytes) {
            self.fail_workflow_task(env, ForceCloseCommand, None, SERVER_IDENTITY, "");
            self.reschedule_workflow_task(env, env.now);
        }
    }

    /// Terminates a run that has outgrown its history limits.
    fn enforce_history_limits(&mut self, env: &mut Env) {
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
    if size as i64 <= env.limits.blob_size_error_bytes { Ok(()) } else { Err(BadCommand::terminating(cause, message)) }
}

pub(crate) fn check_memo_bytes(
    env: &Env,
    memo: Option<&Memo>,
    cause: WorkflowTaskFailedCause,
    message: &str,
) -> CommandResult {
    let size = memo.map_or(0, Message::encoded_len);
    if size as i64 <= env.limits.memo_size_error_bytes { Ok(()) } else { Err(BadCommand::terminating(cause, message)) }
}

/// Room for one more pending entry of a kind.
pub(crate) fn check_pending(pending: usize, limit: i64, what: &str, cause: WorkflowTaskFailedCause) -> CommandResult {
    if (pending as i64) < limit {
        return Ok(());
    }
    let message = format!("the number of {what}, {pending}, has reached the per-workflow limit of {limit}");
    Err(BadCommand::new(cause, message))
}

/// Task queues that a workflow may not ask for.
pub(crate) fn check_task_queue(name: &str, limit: i64) -> Result<(), &'static str> {
    if name.is_empty() {
        Err("missing task queue name")
    } else if name.len() as i64 > limit {
        Err("taskQueue length exceeds limit")
    } else if name.starts_with("/_sys/") {
        Err("task queue name cannot start with reserved prefix /_sys/")
    } else {
        Ok(())
    }
}
