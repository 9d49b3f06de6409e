//! DescribeWorkflowExecution.

use perdure_proto::{
    Error,
    perdure::node::v1::{workflow_call, workflow_reply},
    temporal::api::workflowservice::v1::{DescribeWorkflowExecutionRequest, DescribeWorkflowExecutionResponse},
};

use crate::{call::Call, validate};

pub(crate) async fn describe_workflow_execution(
    call: &Call<'_>,
    request: DescribeWorkflowExecutionRequest,
) -> Result<DescribeWorkflowExecutionResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    let workflow_id = validate::execution(request.execution.as_ref(), call.limits())?.workflow_id.clone();
    match call.workflow(namespace.id(), &workflow_id, workflow_call::Command::Describe(request)).await? {
        workflow_reply::Reply::Describe(reply) => Ok(*reply),
        _ => Err(call.unexpected_reply()),
    }
}
