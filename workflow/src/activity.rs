//! Activities: scheduling and starting. (W-A)
use perdure_proto::{Error, perdure::node::v1::RecordActivityTaskStarted, temporal::api::command::v1::*};
use crate::{api::Env, chain::{Answered, Chain}, command::{CommandContext, CommandResult}, run::Run};
impl Chain {
    pub(crate) fn record_activity_task_started(&mut self, _c: RecordActivityTaskStarted, _env: &mut Env) -> Answered { Err(Error::unimplemented("activities")) }
}
impl Run {
    pub(crate) fn schedule_activity_command(&mut self, _env: &mut Env, _ctx: &CommandContext, _a: ScheduleActivityTaskCommandAttributes) -> CommandResult { Ok(()) }
    pub(crate) fn request_cancel_activity_command(&mut self, _env: &mut Env, _ctx: &CommandContext, _a: RequestCancelActivityTaskCommandAttributes) -> CommandResult { Ok(()) }
}
