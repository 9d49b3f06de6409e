//! Updates: the message protocol on workflow tasks. (W-C)
use perdure_proto::{Error, perdure::state::v1::WorkflowTaskInfo, temporal::api::{command::v1::*, protocol::v1::Message, workflowservice::v1::*}};
use crate::{api::{Env, Outcome, UpdateWatch}, chain::{Answered, Chain}, command::{CommandContext, CommandResult}, run::Run};
/// Updates that no event speaks of yet.
#[derive(Debug, Clone, Default)]
pub(crate) struct AdmittedUpdates {}
/// The messages of one completion, taken one by one by its commands.
#[derive(Debug, Default)]
pub(crate) struct Messages {}
impl Messages {
    pub fn new(_messages: Vec<Message>) -> Self { Self {} }
}
impl Chain {
    pub(crate) fn update(&mut self, _c: UpdateWorkflowExecutionRequest, _env: &mut Env) -> Answered { Err(Error::unimplemented("UpdateWorkflowExecution")) }
    pub(crate) fn poll_update(&mut self, _c: PollWorkflowExecutionUpdateRequest, _env: &mut Env) -> Answered { Err(Error::unimplemented("PollWorkflowExecutionUpdate")) }
    pub(crate) fn check_update(&mut self, _run_id: &str, _update_id: &str, _stage: i32, _kind: &UpdateWatch) -> Option<Outcome> { None }
}
impl Run {
    /// Messages to deliver with the started workflow task.
    pub(crate) fn update_messages(&mut self, _env: &Env, _task: &WorkflowTaskInfo) -> Vec<Message> { Vec::new() }
    /// Does a workflow task have to be scheduled for updates that wait?
    pub(crate) fn has_undelivered_updates(&self) -> bool { false }
    /// A ProtocolMessage command: the place in the order of commands at which its message takes effect.
    pub(crate) fn protocol_message_command(&mut self, _env: &mut Env, _ctx: &CommandContext, _messages: &mut Messages, _a: ProtocolMessageCommandAttributes) -> CommandResult { Ok(()) }
    /// Messages without a command (rejections), after all commands.
    pub(crate) fn remaining_messages(&mut self, _env: &mut Env, _ctx: &CommandContext, _messages: Messages) -> CommandResult { Ok(()) }
    /// The started workflow task ended without answering (failed, timed out): deliver its updates again.
    pub(crate) fn updates_not_answered(&mut self) {}
    /// A completed workflow task did not answer updates that it was sent: old SDKs; reject them.
    pub(crate) fn reject_unprocessed_updates(&mut self) {}
    /// The run closes: what waits is told so.
    pub(crate) fn updates_on_close(&mut self) {}
}
