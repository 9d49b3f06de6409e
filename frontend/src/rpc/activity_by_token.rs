//! RecordActivityTaskHeartbeat and RespondActivityTask{Completed,Failed,Canceled}: by task token.

use perdure_proto::{
    Error,
    temporal::api::workflowservice::v1::{
        RecordActivityTaskHeartbeatRequest, RecordActivityTaskHeartbeatResponse, RespondActivityTaskCanceledRequest,
        RespondActivityTaskCanceledResponse, RespondActivityTaskCompletedRequest, RespondActivityTaskCompletedResponse,
        RespondActivityTaskFailedRequest, RespondActivityTaskFailedResponse,
    },
};

use crate::{
    call::Call,
    rpc::activity::{Speaker, validate_failure},
};

pub(crate) async fn record_activity_task_heartbeat(
    call: &Call<'_>,
    request: RecordActivityTaskHeartbeatRequest,
) -> Result<RecordActivityTaskHeartbeatResponse, Error> {
    let speaker = Speaker::by_token(call, &request.task_token, &request.namespace, request.identity, None)?;
    let reply = speaker.heartbeat(call, request.details).await?;
    Ok(RecordActivityTaskHeartbeatResponse {
        cancel_requested: reply.cancel_requested,
        activity_paused: reply.activity_paused,
        activity_reset: reply.activity_reset,
    })
}

#[allow(deprecated)]
pub(crate) async fn respond_activity_task_completed(
    call: &Call<'_>,
    request: RespondActivityTaskCompletedRequest,
) -> Result<RespondActivityTaskCompletedResponse, Error> {
    let RespondActivityTaskCompletedRequest { task_token, result, identity, namespace, worker_version, .. } = request;
    Speaker::by_token(call, &task_token, &namespace, identity, worker_version)?.completed(call, result).await?;
    Ok(RespondActivityTaskCompletedResponse::default())
}

#[allow(deprecated)]
pub(crate) async fn respond_activity_task_failed(
    call: &Call<'_>,
    request: RespondActivityTaskFailedRequest,
) -> Result<RespondActivityTaskFailedResponse, Error> {
    let RespondActivityTaskFailedRequest {
        task_token,
        failure,
        identity,
        namespace,
        last_heartbeat_details,
        worker_version,
        ..
    } = request;
    let speaker = Speaker::by_token(call, &task_token, &namespace, identity, worker_version)?;
    validate_failure(failure.as_ref(), true)?;
    let failures = speaker.failed(call, failure, last_heartbeat_details).await?;
    Ok(RespondActivityTaskFailedResponse { failures })
}

#[allow(deprecated)]
pub(crate) async fn respond_activity_task_canceled(
    call: &Call<'_>,
    request: RespondActivityTaskCanceledRequest,
) -> Result<RespondActivityTaskCanceledResponse, Error> {
    let RespondActivityTaskCanceledRequest { task_token, details, identity, namespace, worker_version, .. } = request;
    Speaker::by_token(call, &task_token, &namespace, identity, worker_version)?.canceled(call, details).await?;
    Ok(RespondActivityTaskCanceledResponse::default())
}
