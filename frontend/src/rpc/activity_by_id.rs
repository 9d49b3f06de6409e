//! RecordActivityTaskHeartbeatById and RespondActivityTask{Completed,Failed,Canceled}ById: by workflow and activity id.

use perdure_proto::{
    Error,
    temporal::api::workflowservice::v1::{
        RecordActivityTaskHeartbeatByIdRequest, RecordActivityTaskHeartbeatByIdResponse,
        RespondActivityTaskCanceledByIdRequest, RespondActivityTaskCanceledByIdResponse,
        RespondActivityTaskCompletedByIdRequest, RespondActivityTaskCompletedByIdResponse,
        RespondActivityTaskFailedByIdRequest, RespondActivityTaskFailedByIdResponse,
    },
};

use crate::{
    call::Call,
    rpc::activity::{Speaker, validate_failure},
};

pub(crate) async fn record_activity_task_heartbeat_by_id(
    call: &Call<'_>,
    r: RecordActivityTaskHeartbeatByIdRequest,
) -> Result<RecordActivityTaskHeartbeatByIdResponse, Error> {
    let speaker = Speaker::by_id(call, &r.namespace, r.workflow_id, r.run_id, r.activity_id, r.identity)?;
    let reply = speaker.heartbeat(call, r.details).await?;
    Ok(RecordActivityTaskHeartbeatByIdResponse {
        cancel_requested: reply.cancel_requested,
        activity_paused: reply.activity_paused,
        activity_reset: reply.activity_reset,
    })
}

pub(crate) async fn respond_activity_task_completed_by_id(
    call: &Call<'_>,
    r: RespondActivityTaskCompletedByIdRequest,
) -> Result<RespondActivityTaskCompletedByIdResponse, Error> {
    let speaker = Speaker::by_id(call, &r.namespace, r.workflow_id, r.run_id, r.activity_id, r.identity)?;
    speaker.completed(call, r.result).await?;
    Ok(RespondActivityTaskCompletedByIdResponse::default())
}

pub(crate) async fn respond_activity_task_failed_by_id(
    call: &Call<'_>,
    r: RespondActivityTaskFailedByIdRequest,
) -> Result<RespondActivityTaskFailedByIdResponse, Error> {
    let speaker = Speaker::by_id(call, &r.namespace, r.workflow_id, r.run_id, r.activity_id, r.identity)?;
    validate_failure(r.failure.as_ref(), false)?;
    let failures = speaker.failed(call, r.failure, r.last_heartbeat_details).await?;
    Ok(RespondActivityTaskFailedByIdResponse { failures })
}

pub(crate) async fn respond_activity_task_canceled_by_id(
    call: &Call<'_>,
    r: RespondActivityTaskCanceledByIdRequest,
) -> Result<RespondActivityTaskCanceledByIdResponse, Error> {
    let speaker = Speaker::by_id(call, &r.namespace, r.workflow_id, r.run_id, r.activity_id, r.identity)?;
    speaker.canceled(call, r.details).await?;
    Ok(RespondActivityTaskCanceledByIdResponse::default())
}
