//! Runs that follow a run: continue-as-new, retry, cron. (W-B)
use perdure_proto::temporal::api::command::v1::*;
use crate::{api::Env, command::{CommandContext, CommandResult}, run::Run};
impl Run {
    pub(crate) fn continue_as_new_command(&mut self, _env: &mut Env, _ctx: &CommandContext, _a: ContinueAsNewWorkflowExecutionCommandAttributes) -> CommandResult { Ok(()) }
}
