//! DescribeWorkflowExecution. (W-C)
use perdure_proto::{Error, temporal::api::workflowservice::v1::*};
use crate::{api::Env, chain::{Answered, Chain}};
impl Chain {
    pub(crate) fn describe(&mut self, _c: DescribeWorkflowExecutionRequest, _env: &mut Env) -> Answered { Err(Error::unimplemented("DescribeWorkflowExecution")) }
}
