//! What the handlers of a workflow task's commands share.

use perdure_proto::temporal::api::{
    enums::v1::WorkflowTaskFailedCause,
    history::v1::{HistoryEvent, history_event::Attributes},
    sdk::v1::{EventGroupMarker, UserMetadata},
};

/// Where a command stands: the completion that brought it, and what to attach to its event.
#[derive(Debug, Clone, Default)]
pub(crate) struct CommandContext {
    pub completed_event_id: i64,
    pub user_metadata: Option<UserMetadata>,
    pub event_group_markers: Vec<EventGroupMarker>,
    pub identity: String,
}

impl CommandContext {
    /// The event that the command becomes.
    pub fn event(&self, attributes: Attributes) -> HistoryEvent {
        HistoryEvent {
            attributes: Some(attributes),
            user_metadata: self.user_metadata.clone(),
            event_group_markers: self.event_group_markers.clone(),
            ..HistoryEvent::default()
        }
    }
}

/// A command that cannot be carried out: it fails the workflow task, and only if it is too big the workflow.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BadCommand {
    pub cause: WorkflowTaskFailedCause,
    pub message: String,
    /// No retry can help: the workflow is terminated.
    pub terminates: bool,
}

impl BadCommand {
    pub fn new(cause: WorkflowTaskFailedCause, message: impl Into<String>) -> Self {
        Self { cause, message: message.into(), terminates: false }
    }

    /// For payloads above the limit.
    pub fn terminating(cause: WorkflowTaskFailedCause, message: impl Into<String>) -> Self {
        Self { cause, message: message.into(), terminates: true }
    }

    /// What the worker, the event and the termination's reason say.
    pub fn text(&self) -> String {
        let cause = cause_name(self.cause);
        if self.message.is_empty() { cause } else { format!("{cause}: {}", self.message) }
    }
}

/// `WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND` → `UnhandledCommand`.
pub(crate) fn cause_name(cause: WorkflowTaskFailedCause) -> String {
    short_name(cause.as_str_name(), "WORKFLOW_TASK_FAILED_CAUSE_")
}

/// An enum value as messages write it: in one word, without what all of them begin with.
pub(crate) fn short_name(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix)
        .unwrap_or(name)
        .split('_')
        .map(|word| word[..1].to_owned() + &word[1..].to_lowercase())
        .collect()
}

pub(crate) type CommandResult = Result<(), BadCommand>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_names_the_cause() {
        let check = |bad: BadCommand, expect: &str| assert_eq!(bad.text(), expect);
        check(BadCommand::new(WorkflowTaskFailedCause::UnhandledCommand, ""), "UnhandledCommand");
        check(
            BadCommand::new(WorkflowTaskFailedCause::BadStartTimerAttributes, "TimerId is not set"),
            "BadStartTimerAttributes: TimerId is not set",
        );
    }
}
