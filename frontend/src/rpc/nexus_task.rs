//! RespondNexusTaskCompleted and RespondNexusTaskFailed: what a worker says to a Nexus request. It goes to the home of the
//! task queue, where the sender of the request waits.

use bytes::Bytes;
use perdure_proto::{
    Error,
    perdure::{
        nexus::v1::{NexusOutcome, NexusTaskCall, NexusTaskResponse, nexus_outcome::Outcome, nexus_task_call},
        node::v1::{TaskToken, matching_call, task_token::Kind},
    },
    temporal::api::{
        failure::v1::failure::FailureInfo,
        nexus::v1::{response, start_operation_response},
        workflowservice::v1::{
            RespondNexusTaskCompletedRequest, RespondNexusTaskCompletedResponse, RespondNexusTaskFailedRequest,
            RespondNexusTaskFailedResponse,
        },
    },
};
use serde_json::Value;

use crate::{call::Call, token};

#[allow(deprecated, reason = "older SDKs answer so")]
pub(crate) async fn respond_nexus_task_completed(
    call: &Call<'_>,
    request: RespondNexusTaskCompletedRequest,
) -> Result<RespondNexusTaskCompletedResponse, Error> {
    let task = task(call, &request.namespace, &request.task_token)?;
    let variant = request.response.as_ref().and_then(|response| response.variant.as_ref());
    if let Some(response::Variant::StartOperation(start)) = variant {
        match &start.variant {
            Some(start_operation_response::Variant::AsyncSuccess(started)) => {
                let token = [&started.operation_token, &started.operation_id].into_iter().find(|id| !id.is_empty());
                check_operation_token(token.map_or("", String::as_str), call.limits().nexus_operation_token_length)?;
            }
            Some(start_operation_response::Variant::OperationError(error)) => {
                check_details(error.failure.as_ref().map(|failure| &failure.details))?;
            }
            _ => {}
        }
    }
    respond(call, task, request.response.map(Outcome::Response)).await?;
    Ok(RespondNexusTaskCompletedResponse::default())
}

#[allow(deprecated, reason = "older SDKs answer so")]
pub(crate) async fn respond_nexus_task_failed(
    call: &Call<'_>,
    request: RespondNexusTaskFailedRequest,
) -> Result<RespondNexusTaskFailedResponse, Error> {
    let task = task(call, &request.namespace, &request.task_token)?;
    let is_handler_error = |info: &FailureInfo| matches!(info, FailureInfo::NexusHandlerFailureInfo(_));
    let outcome = match (request.error, request.failure) {
        (None, None) => return Err(Error::invalid_argument("request must contain error or failure")),
        (_, Some(failure)) if !failure.failure_info.as_ref().is_some_and(is_handler_error) => {
            let message = "request Failure must contain error or failure with NexusHandlerFailureInfo";
            return Err(Error::invalid_argument(message));
        }
        (Some(error), _) => {
            check_details(error.failure.as_ref().map(|failure| &failure.details))?;
            Outcome::Error(error)
        }
        (None, Some(failure)) => Outcome::Failure(failure),
    };
    respond(call, task, Some(outcome)).await?;
    Ok(RespondNexusTaskFailedResponse::default())
}

fn task(call: &Call<'_>, namespace: &str, task_token: &Bytes) -> Result<TaskToken, Error> {
    let token = token::decode(task_token, Kind::Nexus)?;
    call.namespace_of_token(namespace, &token.namespace_id)?;
    Ok(token)
}

async fn respond(call: &Call<'_>, task: TaskToken, outcome: Option<Outcome>) -> Result<(), Error> {
    let response = NexusTaskResponse { task_id: task.query_id, outcome: Some(NexusOutcome { outcome }) };
    let command = NexusTaskCall { command: Some(nexus_task_call::Command::Respond(response)) };
    let command = matching_call::Command::Nexus(Box::new(command));
    call.matching(&task.namespace_id, &task.task_queue, command).await.map(drop)
}

fn check_operation_token(token: &str, longest: i64) -> Result<(), Error> {
    if token.is_empty() {
        return Err(Error::invalid_argument("missing operation token in response"));
    }
    if i64::try_from(token.len()).is_ok_and(|length| length <= longest) {
        return Ok(());
    }
    let length = token.len();
    Err(Error::invalid_argument(format!("operation token length exceeds allowed limit ({length}/{longest})")))
}

fn check_details(details: Option<&Bytes>) -> Result<(), Error> {
    let is_json = |details: &Bytes| serde_json::from_slice::<Value>(details).is_ok();
    if details.is_none_or(|details| details.is_empty() || is_json(details)) {
        return Ok(());
    }
    Err(Error::invalid_argument("failure details must be JSON serializable"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operation_tokens_are_there_and_not_too_long() {
        let check = |token: &str, ok: bool| assert_eq!(check_operation_token(token, 4).is_ok(), ok, "{token}");
        check("", false);
        check("abcd", true);
        check("abcde", false);
    }

    #[test]
    fn details_are_json() {
        assert!(check_details(None).is_ok());
        assert!(check_details(Some(&Bytes::new())).is_ok());
        assert!(check_details(Some(&Bytes::from_static(b"{\"a\":1}"))).is_ok());
        assert!(check_details(Some(&Bytes::from_static(b"a"))).is_err());
    }
}
