//! UpdateWorkflowExecutionOptions.

use perdure_proto::{
    Error,
    perdure::node::v1::{workflow_call, workflow_reply},
    temporal::api::workflowservice::v1::{
        DescribeWorkflowExecutionRequest, UpdateWorkflowExecutionOptionsRequest, UpdateWorkflowExecutionOptionsResponse,
    },
    versions,
};

use crate::{call::Call, validate, versioning};

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
    if let Some(over) = &options.versioning_override {
        versions::check_override(over, call.limits().max_id_length).map_err(Error::invalid_argument)?;
        let task_queue = task_queue_of(call, namespace.id(), &request).await?;
        versioning::check_override(call, &namespace, Some(over), &task_queue).await?;
    }
    let command = workflow_call::Command::UpdateOptions(Box::new(request));
    match call.workflow(namespace.id(), &workflow_id, command).await? {
        workflow_reply::Reply::UpdateOptions(reply) => Ok(*reply),
        _ => Err(call.unexpected_reply()),
    }
}

/// Of the workflow whose options change.
async fn task_queue_of(
    call: &Call<'_>,
    namespace_id: &str,
    request: &UpdateWorkflowExecutionOptionsRequest,
) -> Result<String, Error> {
    let execution = request.workflow_execution.clone();
    let workflow_id = execution.as_ref().map(|execution| execution.workflow_id.clone()).unwrap_or_default();
    let describe = DescribeWorkflowExecutionRequest { namespace: request.namespace.clone(), execution };
    match call.workflow(namespace_id, &workflow_id, workflow_call::Command::Describe(describe)).await? {
        workflow_reply::Reply::Describe(reply) => {
            Ok(reply.workflow_execution_info.map(|info| info.task_queue).unwrap_or_default())
        }
        _ => Err(call.unexpected_reply()),
    }
}
