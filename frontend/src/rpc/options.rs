//! UpdateWorkflowExecutionOptions.

use perdure_proto::{
    Error,
    perdure::node::v1::{workflow_call, workflow_reply},
    temporal::api::workflowservice::v1::{
        UpdateWorkflowExecutionOptionsRequest, UpdateWorkflowExecutionOptionsResponse,
    },
};

use crate::{call::Call, validate};

pub(crate) async fn update_workflow_execution_options(
    call: &Call<'_>,
    request: UpdateWorkflowExecutionOptionsRequest,
) -> Result<UpdateWorkflowExecutionOptionsResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    let workflow_id = validate::execution(request.workflow_execution.as_ref(), call.limits())?.workflow_id.clone();
    if request.update_mask.is_none() {
        return Err(Error::invalid_argument("UpdateMask is required"));
    }
    let Some(options) = &request.workflow_execution_options else {
        return Err(Error::invalid_argument("WorkflowExecutionOptions is required"));
    };
    validate::priority(options.priority.as_ref())?;
    if options.time_skipping_config.is_some() {
        return Err(Error::unimplemented("time skipping"));
    }
    let command = workflow_call::Command::UpdateOptions(Box::new(request));
    match call.workflow(namespace.id(), &workflow_id, command).await? {
        workflow_reply::Reply::UpdateOptions(reply) => Ok(*reply),
        _ => Err(call.unexpected_reply()),
    }
}
