//! RespondQueryTaskCompleted: a worker's answer to a query that it got outside of a workflow task.

use perdure_proto::{
    Error,
    perdure::node::v1::{matching_call, task_token::Kind},
    temporal::api::{
        enums::v1::QueryResultType,
        workflowservice::v1::{RespondQueryTaskCompletedRequest, RespondQueryTaskCompletedResponse},
    },
};

use crate::{call::Call, token, validate};

pub(crate) async fn respond_query_task_completed(
    call: &Call<'_>,
    mut request: RespondQueryTaskCompletedRequest,
) -> Result<RespondQueryTaskCompletedResponse, Error> {
    let token = token::decode(&request.task_token, Kind::Query)?;
    call.namespace_of_token(&request.namespace, &token.namespace_id)?;
    if let Err(error) = validate::payloads(request.query_result.as_ref(), call.limits()) {
        // The caller of the query waits: it is told, rather than the worker.
        request.completed_type = QueryResultType::Failed as i32;
        request.query_result = None;
        request.failure = None;
        request.error_message = error.message;
    }
    call.matching(&token.namespace_id, &token.task_queue, matching_call::Command::RespondQuery(request)).await?;
    Ok(RespondQueryTaskCompletedResponse::default())
}
