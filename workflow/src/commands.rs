//! The commands of a completion: which there are, in which order they may come, and who carries them out.

use perdure_proto::{
    Error,
    temporal::api::{
        command::v1::{Command, command::Attributes as A},
        enums::v1::{CommandType, WorkflowTaskFailedCause as Cause},
    },
};

use crate::{
    api::Env,
    command::{BadCommand, CommandContext, short_name},
    run::Run,
    update_messages::Messages,
};

/// What a command left to do when all are done.
#[derive(Debug, Default)]
pub(crate) struct Done {
    /// The worker asked to run this activity itself.
    pub eager_activity: Option<i64>,
}

/// A closing command is the last one. Anything else is a broken worker: nothing happens then, not even a failed task.
pub(crate) fn check_sequence(commands: &[Command]) -> Result<(), Error> {
    for (index, command) in commands.iter().enumerate() {
        let known = CommandType::try_from(command.command_type).ok().filter(|kind| *kind != CommandType::Unspecified);
        let Some(kind) = known else {
            return Err(Error::invalid_argument(format!("unknown command type: {}", command.command_type)));
        };
        if closes(kind) && index + 1 != commands.len() {
            let names: Vec<String> = commands.iter().map(|c| type_name(c.command_type())).collect();
            return Err(Error::invalid_argument(format!(
                "invalid command sequence: [{}], command {} must be the last command.",
                names.join(", "),
                type_name(kind)
            )));
        }
    }
    Ok(())
}

fn closes(kind: CommandType) -> bool {
    matches!(
        kind,
        CommandType::CompleteWorkflowExecution
            | CommandType::FailWorkflowExecution
            | CommandType::CancelWorkflowExecution
            | CommandType::ContinueAsNewWorkflowExecution
    )
}

/// `COMMAND_TYPE_START_TIMER` → `StartTimer`.
fn type_name(kind: CommandType) -> String {
    short_name(kind.as_str_name(), "COMMAND_TYPE_")
}

impl Run {
    /// Carries out one command.
    pub(crate) fn command(
        &mut self,
        env: &mut Env,
        ctx: &CommandContext,
        command: Command,
        may_close: bool,
        messages: &mut Messages,
    ) -> Result<Done, BadCommand> {
        let kind = command.command_type();
        if closes(kind) && !may_close {
            return Err(BadCommand::new(Cause::UnhandledCommand, ""));
        }
        let mut done = Done::default();
        // The attributes must be those of the command's type.
        match (kind, command.attributes) {
            (CommandType::ScheduleActivityTask, Some(A::ScheduleActivityTaskCommandAttributes(a))) => {
                let eager = self.is_eager(env, a.request_eager_execution);
                self.schedule_activity_command(env, ctx, a)?;
                done.eager_activity = eager.then(|| self.info.next_event_id - 1);
            }
            (CommandType::RequestCancelActivityTask, Some(A::RequestCancelActivityTaskCommandAttributes(a))) => {
                self.request_cancel_activity_command(env, ctx, a)?;
            }
            (CommandType::StartTimer, Some(A::StartTimerCommandAttributes(a))) => {
                self.start_timer_command(env, ctx, a)?;
            }
            (CommandType::CancelTimer, Some(A::CancelTimerCommandAttributes(a))) => {
                self.cancel_timer_command(env, ctx, a)?;
            }
            (CommandType::CompleteWorkflowExecution, Some(A::CompleteWorkflowExecutionCommandAttributes(a))) => {
                self.complete_workflow_command(env, ctx, a)?;
            }
            (CommandType::FailWorkflowExecution, Some(A::FailWorkflowExecutionCommandAttributes(a))) => {
                self.fail_workflow_command(env, ctx, a)?;
            }
            (CommandType::CancelWorkflowExecution, Some(A::CancelWorkflowExecutionCommandAttributes(a))) => {
                self.cancel_workflow_command(env, ctx, a)?;
            }
            (
                CommandType::ContinueAsNewWorkflowExecution,
                Some(A::ContinueAsNewWorkflowExecutionCommandAttributes(a)),
            ) => self.continue_as_new_command(env, ctx, a)?,
            (CommandType::StartChildWorkflowExecution, Some(A::StartChildWorkflowExecutionCommandAttributes(a))) => {
                self.start_child_command(env, ctx, a)?;
            }
            (
                CommandType::SignalExternalWorkflowExecution,
                Some(A::SignalExternalWorkflowExecutionCommandAttributes(a)),
            ) => self.signal_external_command(env, ctx, a)?,
            (
                CommandType::RequestCancelExternalWorkflowExecution,
                Some(A::RequestCancelExternalWorkflowExecutionCommandAttributes(a)),
            ) => self.cancel_external_command(env, ctx, a)?,
            (CommandType::RecordMarker, Some(A::RecordMarkerCommandAttributes(a))) => {
                self.record_marker_command(env, ctx, a)?;
            }
            (
                CommandType::UpsertWorkflowSearchAttributes,
                Some(A::UpsertWorkflowSearchAttributesCommandAttributes(a)),
            ) => self.upsert_search_attributes_command(env, ctx, a)?,
            (CommandType::ModifyWorkflowProperties, Some(A::ModifyWorkflowPropertiesCommandAttributes(a))) => {
                self.modify_properties_command(env, ctx, a)?;
            }
            (CommandType::ProtocolMessage, Some(A::ProtocolMessageCommandAttributes(a))) => {
                self.protocol_message_command(env, ctx, messages, a)?;
            }
            (CommandType::ScheduleNexusOperation, Some(A::ScheduleNexusOperationCommandAttributes(a))) => {
                self.schedule_nexus_operation_command(env, ctx, a)?;
            }
            (CommandType::RequestCancelNexusOperation, Some(A::RequestCancelNexusOperationCommandAttributes(a))) => {
                self.cancel_nexus_operation_command(env, ctx, &a)?;
            }
            (kind, _) => return Err(attributes_missing(kind)),
        }
        Ok(done)
    }
}

fn attributes_missing(kind: CommandType) -> BadCommand {
    let cause = match kind {
        CommandType::ScheduleActivityTask => Cause::BadScheduleActivityAttributes,
        CommandType::RequestCancelActivityTask => Cause::BadRequestCancelActivityAttributes,
        CommandType::StartTimer => Cause::BadStartTimerAttributes,
        CommandType::CancelTimer => Cause::BadCancelTimerAttributes,
        CommandType::CompleteWorkflowExecution => Cause::BadCompleteWorkflowExecutionAttributes,
        CommandType::FailWorkflowExecution => Cause::BadFailWorkflowExecutionAttributes,
        CommandType::CancelWorkflowExecution => Cause::BadCancelWorkflowExecutionAttributes,
        CommandType::ContinueAsNewWorkflowExecution => Cause::BadContinueAsNewAttributes,
        CommandType::StartChildWorkflowExecution => Cause::BadStartChildExecutionAttributes,
        CommandType::SignalExternalWorkflowExecution => Cause::BadSignalWorkflowExecutionAttributes,
        CommandType::RequestCancelExternalWorkflowExecution => {
            Cause::BadRequestCancelExternalWorkflowExecutionAttributes
        }
        CommandType::RecordMarker => Cause::BadRecordMarkerAttributes,
        CommandType::UpsertWorkflowSearchAttributes => Cause::BadSearchAttributes,
        CommandType::ModifyWorkflowProperties => Cause::BadModifyWorkflowPropertiesAttributes,
        CommandType::ProtocolMessage => Cause::BadUpdateWorkflowExecutionMessage,
        CommandType::ScheduleNexusOperation => Cause::BadScheduleNexusOperationAttributes,
        CommandType::RequestCancelNexusOperation => Cause::BadRequestCancelNexusOperationAttributes,
        CommandType::Unspecified => Cause::UnhandledCommand,
    };
    let name = type_name(kind);
    BadCommand::new(cause, format!("{name}CommandAttributes is not set on {name}Command."))
}
