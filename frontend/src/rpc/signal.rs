//! SignalWorkflowExecution.

use perdure_proto::{
    Error,
    perdure::node::v1::{SignalWorkflow, workflow_call, workflow_reply},
    temporal::api::workflowservice::v1::{SignalWorkflowExecutionRequest, SignalWorkflowExecutionResponse},
};

use crate::{call::Call, validate};

pub(crate) async fn signal_workflow_execution(
    call: &Call<'_>,
    mut request: SignalWorkflowExecutionRequest,
) -> Result<SignalWorkflowExecutionResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    let limits = call.limits();
    let workflow_id = validate::execution(request.workflow_execution.as_ref(), limits)?.workflow_id.clone();
    if request.signal_name.is_empty() {
        return Err(Error::invalid_argument("SignalName is not set on request."));
    }
    if validate::is_too_long(&request.signal_name, limits) {
        return Err(Error::invalid_argument("SignalName length exceeds limit."));
    }
    validate::request_id(&mut request.request_id, limits)?;
    validate::links(&request.links, &[])?;
    validate::payloads(request.input.as_ref(), limits)?;
    let signal = SignalWorkflow { request: Some(request), ..Default::default() };
    match call.workflow(namespace.id(), &workflow_id, workflow_call::Command::Signal(signal)).await? {
        workflow_reply::Reply::Signal(reply) => Ok(reply),
        workflow_reply::Reply::Empty(_) => Ok(SignalWorkflowExecutionResponse::default()),
        _ => Err(call.unexpected_reply()),
    }
}
