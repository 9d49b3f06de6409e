//! Starting runs: id policies, request dedupe, signal-with-start. (W-B)
use perdure_proto::{Error, perdure::node::v1::StartWorkflow, temporal::api::workflowservice::v1::*};
use crate::{api::Env, chain::{Answered, Chain}};
impl Chain {
    pub(crate) fn start_workflow(&mut self, _c: StartWorkflow, _env: &mut Env) -> Answered { Err(Error::unimplemented("start")) }
    pub(crate) fn signal_with_start(&mut self, _c: SignalWithStartWorkflowExecutionRequest, _env: &mut Env) -> Answered { Err(Error::unimplemented("start")) }
}
