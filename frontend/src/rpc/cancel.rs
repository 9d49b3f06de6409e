//! RequestCancelWorkflowExecution.

use perdure_proto::{
    Error,
    perdure::node::v1::{RequestCancelWorkflow, workflow_call},
    temporal::api::workflowservice::v1::{
        RequestCancelWorkflowExecutionRequest, RequestCancelWorkflowExecutionResponse,
    },
};

use crate::{call::Call, validate};

pub(crate) async fn request_cancel_workflow_execution(
    call: &Call<'_>,
    mut request: RequestCancelWorkflowExecutionRequest,
) -> Result<RequestCancelWorkflowExecutionResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    let workflow_id = validate::execution(request.workflow_execution.as_ref(), call.limits())?.workflow_id.clone();
    validate::request_id(&mut request.request_id, call.limits())?;
    validate::links(&request.links, &[])?;
    let cancel = RequestCancelWorkflow { request: Some(request), ..Default::default() };
    call.workflow(namespace.id(), &workflow_id, workflow_call::Command::RequestCancel(cancel)).await?;
    Ok(RequestCancelWorkflowExecutionResponse::default())
}
