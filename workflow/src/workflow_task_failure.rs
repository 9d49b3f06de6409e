//! Failure and timeouts of workflow tasks. (W-A)
use perdure_proto::{Error, temporal::api::workflowservice::v1::*};
use crate::{api::Env, chain::{Answered, Chain}};
impl Chain {
    pub(crate) fn respond_workflow_task_failed(&mut self, _c: RespondWorkflowTaskFailedRequest, _env: &mut Env) -> Answered { Err(Error::unimplemented("workflow tasks")) }
}
