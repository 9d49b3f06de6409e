//! Child workflows, seen from the parent. (W-B)
use perdure_proto::{Error, perdure::node::v1::*, temporal::api::command::v1::*};
use crate::{api::Env, chain::{Answered, Chain}, command::{CommandContext, CommandResult}, run::Run};
impl Chain {
    pub(crate) fn child_closed(&mut self, _c: ChildWorkflowClosed, _env: &mut Env) -> Answered { Err(Error::unimplemented("children")) }
}
impl Run {
    pub(crate) fn start_child_command(&mut self, _env: &mut Env, _ctx: &CommandContext, _a: StartChildWorkflowExecutionCommandAttributes) -> CommandResult { Ok(()) }
    pub(crate) fn on_child_start_result(&mut self, _initiated: i64, _result: Result<WorkflowReply, Error>, _env: &mut Env) {}
    pub(crate) fn on_parent_notified(&mut self, _result: Result<WorkflowReply, Error>) {}
    pub(crate) fn on_close_policy_result(&mut self, _initiated: i64, _result: Result<WorkflowReply, Error>) {}
}
