//! Activities: what their workers report. (W-A)
use perdure_proto::{Error, perdure::node::v1::{RespondActivityTask, TaskUndelivered}};
use crate::{api::Env, chain::{Answered, Chain}};
impl Chain {
    pub(crate) fn respond_activity_task(&mut self, _c: RespondActivityTask, _env: &mut Env) -> Answered { Err(Error::unimplemented("activities")) }
    pub(crate) fn task_undelivered(&mut self, _c: TaskUndelivered, _env: &mut Env) -> Answered { Err(Error::unimplemented("activities")) }
}
