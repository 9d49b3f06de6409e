//! DeleteWorkflowExecution.

use perdure_proto::{
    Error,
    perdure::node::v1::workflow_call,
    temporal::api::workflowservice::v1::{DeleteWorkflowExecutionRequest, DeleteWorkflowExecutionResponse},
};

use crate::{call::Call, validate};

pub(crate) async fn delete_workflow_execution(
    call: &Call<'_>,
    request: DeleteWorkflowExecutionRequest,
) -> Result<DeleteWorkflowExecutionResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    let workflow_id = validate::execution(request.workflow_execution.as_ref(), call.limits())?.workflow_id.clone();
    call.workflow(namespace.id(), &workflow_id, workflow_call::Command::Delete(request)).await?;
    Ok(DeleteWorkflowExecutionResponse::default())
}
