//! RespondWorkflowTaskCompleted and RespondWorkflowTaskFailed.

use perdure_proto::{
    Error,
    perdure::node::v1::{task_token::Kind, workflow_call, workflow_reply},
    temporal::api::workflowservice::v1::{
        RespondWorkflowTaskCompletedRequest, RespondWorkflowTaskCompletedResponse, RespondWorkflowTaskFailedRequest,
        RespondWorkflowTaskFailedResponse,
    },
};

use crate::{call::Call, rpc::activity::shortened, token, validate};

pub(crate) async fn respond_workflow_task_completed(
    call: &Call<'_>,
    request: RespondWorkflowTaskCompletedRequest,
) -> Result<RespondWorkflowTaskCompletedResponse, Error> {
    let token = token::decode(&request.task_token, Kind::Workflow)?;
    call.namespace_of_token(&request.namespace, &token.namespace_id)?;
    validate::identity(&request.identity, call.limits())?;
    let command = workflow_call::Command::RespondWorkflowTaskCompleted(request);
    match call.workflow(&token.namespace_id, &token.workflow_id, command).await? {
        workflow_reply::Reply::RespondWorkflowTaskCompleted(mut reply) => {
            if let Some(task) = &mut reply.workflow_task {
                call.hands_out(&mut task.task_token);
            }
            for task in &mut reply.activity_tasks {
                call.hands_out(&mut task.task_token);
            }
            Ok(reply)
        }
        _ => Err(call.unexpected_reply()),
    }
}

pub(crate) async fn respond_workflow_task_failed(
    call: &Call<'_>,
    mut request: RespondWorkflowTaskFailedRequest,
) -> Result<RespondWorkflowTaskFailedResponse, Error> {
    let token = token::decode(&request.task_token, Kind::Workflow)?;
    call.namespace_of_token(&request.namespace, &token.namespace_id)?;
    validate::identity(&request.identity, call.limits())?;
    if let Some(short) = shortened(request.failure.as_ref(), call.limits()) {
        request.failure = Some(short);
    }
    let command = workflow_call::Command::RespondWorkflowTaskFailed(request);
    call.workflow(&token.namespace_id, &token.workflow_id, command).await?;
    Ok(RespondWorkflowTaskFailedResponse::default())
}
