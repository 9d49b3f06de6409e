//! User timers. (W-A)
use perdure_proto::temporal::api::command::v1::*;
use crate::{api::Env, command::{CommandContext, CommandResult}, run::Run};
impl Run {
    pub(crate) fn start_timer_command(&mut self, _env: &mut Env, _ctx: &CommandContext, _a: StartTimerCommandAttributes) -> CommandResult { Ok(()) }
    pub(crate) fn cancel_timer_command(&mut self, _env: &mut Env, _ctx: &CommandContext, _a: CancelTimerCommandAttributes) -> CommandResult { Ok(()) }
}
