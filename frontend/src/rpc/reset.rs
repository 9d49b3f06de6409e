//! ResetWorkflowExecution.

use perdure_proto::{
    Error,
    perdure::node::v1::{ResetWorkflow, workflow_call, workflow_reply},
    temporal::api::workflowservice::v1::{ResetWorkflowExecutionRequest, ResetWorkflowExecutionResponse},
};

use crate::{call::Call, validate};

pub(crate) async fn reset_workflow_execution(
    call: &Call<'_>,
    request: ResetWorkflowExecutionRequest,
) -> Result<ResetWorkflowExecutionResponse, Error> {
    if request.request_id.is_empty() {
        return Err(Error::invalid_argument("RequestId is not set on request."));
    }
    if validate::is_too_long(&request.request_id, call.limits()) {
        return Err(Error::invalid_argument("RequestId length exceeds limit."));
    }
    let namespace = call.namespace(&request.namespace)?;
    let workflow_id = validate::execution(request.workflow_execution.as_ref(), call.limits())?.workflow_id.clone();
    let reset = ResetWorkflow { request: Some(request), ..ResetWorkflow::default() };
    match call.workflow(namespace.id(), &workflow_id, workflow_call::Command::Reset(Box::new(reset))).await? {
        workflow_reply::Reply::Reset(reply) => Ok(reply),
        _ => Err(call.unexpected_reply()),
    }
}
