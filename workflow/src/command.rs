//! What the handlers of a workflow task's commands share.

use perdure_proto::temporal::api::{enums::v1::WorkflowTaskFailedCause, sdk::v1::UserMetadata};

/// Where a command stands: the completion that brought it, and what to attach to its event.
#[derive(Debug, Clone, Default)]
pub(crate) struct CommandContext {
    pub completed_event_id: i64,
    pub user_metadata: Option<UserMetadata>,
    pub identity: String,
}

/// A command that cannot be carried out: it fails the workflow task, never the workflow.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BadCommand {
    pub cause: WorkflowTaskFailedCause,
    pub message: String,
}

impl BadCommand {
    pub fn new(cause: WorkflowTaskFailedCause, message: impl Into<String>) -> Self {
        Self { cause, message: message.into() }
    }
}

pub(crate) type CommandResult = Result<(), BadCommand>;
