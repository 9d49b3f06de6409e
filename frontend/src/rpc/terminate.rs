//! TerminateWorkflowExecution.

use perdure_proto::{
    Error,
    perdure::node::v1::{TerminateWorkflow, workflow_call},
    temporal::api::workflowservice::v1::{TerminateWorkflowExecutionRequest, TerminateWorkflowExecutionResponse},
};

use crate::{call::Call, validate};

/// What the history says of a termination whose caller gives no reason or name.
const DEFAULT_REASON: &str = "terminated by user via frontend";
const DEFAULT_IDENTITY: &str = "frontend-service";

pub(crate) async fn terminate_workflow_execution(
    call: &Call<'_>,
    mut request: TerminateWorkflowExecutionRequest,
) -> Result<TerminateWorkflowExecutionResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    let limits = call.limits();
    let workflow_id = validate::execution(request.workflow_execution.as_ref(), limits)?.workflow_id.clone();
    validate::links(&request.links, &[])?;
    validate::payloads(request.details.as_ref(), limits)?;
    if request.reason.is_empty() {
        request.reason = DEFAULT_REASON.to_owned();
    }
    if request.identity.is_empty() {
        request.identity = DEFAULT_IDENTITY.to_owned();
    }
    let terminate = TerminateWorkflow { request: Some(request), ..Default::default() };
    call.workflow(namespace.id(), &workflow_id, workflow_call::Command::Terminate(terminate)).await?;
    Ok(TerminateWorkflowExecutionResponse::default())
}
