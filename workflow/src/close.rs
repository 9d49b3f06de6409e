//! Closing a run: by its commands, by timeouts. (W-B)
use perdure_proto::temporal::api::command::v1::*;
use crate::{api::Env, command::{CommandContext, CommandResult}, run::Run};
impl Run {
    pub(crate) fn complete_workflow_command(&mut self, _env: &mut Env, _ctx: &CommandContext, _a: CompleteWorkflowExecutionCommandAttributes) -> CommandResult { Ok(()) }
    pub(crate) fn fail_workflow_command(&mut self, _env: &mut Env, _ctx: &CommandContext, _a: FailWorkflowExecutionCommandAttributes) -> CommandResult { Ok(()) }
    pub(crate) fn cancel_workflow_command(&mut self, _env: &mut Env, _ctx: &CommandContext, _a: CancelWorkflowExecutionCommandAttributes) -> CommandResult { Ok(()) }
    /// The run (or execution) deadline has passed: WorkflowExecutionTimedOut, or its retry.
    pub(crate) fn time_out(&mut self, _env: &mut Env) {}
}
