//! ResetStickyTaskQueue.

use perdure_proto::{
    Error,
    perdure::node::v1::workflow_call,
    temporal::api::workflowservice::v1::{ResetStickyTaskQueueRequest, ResetStickyTaskQueueResponse},
};

use crate::{call::Call, validate};

pub(crate) async fn reset_sticky_task_queue(
    call: &Call<'_>,
    request: ResetStickyTaskQueueRequest,
) -> Result<ResetStickyTaskQueueResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    let workflow_id = validate::execution(request.execution.as_ref(), call.limits())?.workflow_id.clone();
    call.workflow(namespace.id(), &workflow_id, workflow_call::Command::ResetSticky(request)).await?;
    Ok(ResetStickyTaskQueueResponse::default())
}
