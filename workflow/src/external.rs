//! Signals and cancellation requests to other workflows. (W-B)
use perdure_proto::{Error, perdure::node::v1::*, temporal::api::command::v1::*};
use crate::{api::Env, command::{CommandContext, CommandResult}, run::Run};
impl Run {
    pub(crate) fn signal_external_command(&mut self, _env: &mut Env, _ctx: &CommandContext, _a: SignalExternalWorkflowExecutionCommandAttributes) -> CommandResult { Ok(()) }
    pub(crate) fn cancel_external_command(&mut self, _env: &mut Env, _ctx: &CommandContext, _a: RequestCancelExternalWorkflowExecutionCommandAttributes) -> CommandResult { Ok(()) }
    pub(crate) fn on_external_signal_result(&mut self, _initiated: i64, _result: Result<WorkflowReply, Error>, _env: &mut Env) {}
    pub(crate) fn on_external_cancel_result(&mut self, _initiated: i64, _result: Result<WorkflowReply, Error>, _env: &mut Env) {}
}
