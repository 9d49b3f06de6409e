//! GetWorkflowExecutionHistory and GetWorkflowExecutionHistoryReverse.
//!
//! The owner pages, and ends a long poll by itself after the server's limit. Here a client with a shorter deadline gets
//! its empty page before it gives up, with a token that goes on where the poll stood.

use std::time::Duration;

use bytes::Bytes;
use perdure_proto::{
    Error,
    perdure::node::v1::{HistoryToken, workflow_call, workflow_reply},
    temporal::api::{
        common::v1::WorkflowExecution,
        enums::v1::HistoryEventFilterType,
        history::v1::History,
        workflowservice::v1::{
            DescribeWorkflowExecutionRequest, GetWorkflowExecutionHistoryRequest, GetWorkflowExecutionHistoryResponse,
            GetWorkflowExecutionHistoryReverseRequest, GetWorkflowExecutionHistoryReverseResponse,
        },
    },
};
use perdure_types::Limits;
use prost::Message;

use crate::{call::Call, validate};

/// For finding out which run a poll waited for.
const LONGEST_LOOK_UP: Duration = Duration::from_millis(300);

pub(crate) async fn get_workflow_execution_history(
    call: &Call<'_>,
    mut request: GetWorkflowExecutionHistoryRequest,
) -> Result<GetWorkflowExecutionHistoryResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    let execution = validate::execution(request.execution.as_ref(), call.limits())?.clone();
    validate_token(&request.next_page_token)?;
    request.maximum_page_size = page_size(request.maximum_page_size, call.limits());
    if request.history_event_filter_type == HistoryEventFilterType::Unspecified as i32 {
        request.history_event_filter_type = HistoryEventFilterType::AllEvent as i32;
    }
    let waits = request.wait_new_event;
    let token = request.next_page_token.clone();
    let name = request.namespace.clone();
    let read = call.workflow(namespace.id(), &execution.workflow_id, workflow_call::Command::GetHistory(request));
    let reply = if waits {
        match call.owner_news(read).await {
            Some(reply) => reply?,
            None => {
                return Ok(nothing_new(continuation(call, namespace.id(), name, execution, token).await));
            }
        }
    } else {
        read.await?
    };
    match reply {
        workflow_reply::Reply::GetHistory(page) => Ok(page),
        _ => Err(call.unexpected_reply()),
    }
}

pub(crate) async fn get_workflow_execution_history_reverse(
    call: &Call<'_>,
    mut request: GetWorkflowExecutionHistoryReverseRequest,
) -> Result<GetWorkflowExecutionHistoryReverseResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    let workflow_id = validate::execution(request.execution.as_ref(), call.limits())?.workflow_id.clone();
    validate_token(&request.next_page_token)?;
    request.maximum_page_size = page_size(request.maximum_page_size, call.limits());
    match call.workflow(namespace.id(), &workflow_id, workflow_call::Command::GetHistoryReverse(request)).await? {
        workflow_reply::Reply::GetHistoryReverse(page) => Ok(page),
        _ => Err(call.unexpected_reply()),
    }
}

/// Events per page: what the client asks for, within the server's limit.
fn page_size(asked: i32, limits: &Limits) -> i32 {
    let largest = i32::try_from(limits.history_page_events).unwrap_or(i32::MAX);
    if asked <= 0 { largest } else { asked.min(largest) }
}

fn validate_token(token: &Bytes) -> Result<(), Error> {
    let valid = match HistoryToken::decode(token.clone()) {
        Ok(token) => {
            (token.run_id.is_empty() || validate::is_uuid(&token.run_id))
                && token.next_event_id >= 0
                && token.until_event_id >= 0
        }
        Err(_) => false,
    };
    if valid { Ok(()) } else { Err(Error::invalid_argument("Invalid NextPageToken.")) }
}

fn nothing_new(token: Bytes) -> GetWorkflowExecutionHistoryResponse {
    GetWorkflowExecutionHistoryResponse {
        history: Some(History::default()),
        next_page_token: token,
        ..Default::default()
    }
}

/// The token of a poll that ends here with nothing: the one it came with, or else one that waits on from the beginning
/// of the run that is current now.
async fn continuation(
    call: &Call<'_>,
    namespace_id: &str,
    namespace: String,
    execution: WorkflowExecution,
    token: Bytes,
) -> Bytes {
    if !token.is_empty() {
        return token;
    }
    let mut run_id = execution.run_id.clone();
    if run_id.is_empty() {
        let workflow_id = execution.workflow_id.clone();
        let request = DescribeWorkflowExecutionRequest { namespace, execution: Some(execution) };
        let look_up = call.workflow(namespace_id, &workflow_id, workflow_call::Command::Describe(request));
        let until = tokio::time::Instant::now() + LONGEST_LOOK_UP;
        if let Some(Ok(workflow_reply::Reply::Describe(found))) = call.before(until, look_up).await {
            run_id = found.workflow_execution_info.and_then(|i| i.execution).map(|e| e.run_id).unwrap_or_default();
        }
    }
    let token = HistoryToken { run_id, next_event_id: 1, wait_new_event: true, ..Default::default() };
    token.encode_to_vec().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_bounded() {
        let limits = Limits { history_page_events: 256, ..Limits::default() };
        assert_eq!(page_size(0, &limits), 256);
        assert_eq!(page_size(-5, &limits), 256);
        assert_eq!(page_size(10, &limits), 10);
        assert_eq!(page_size(100_000, &limits), 256);
    }

    #[test]
    fn a_token_of_nonsense_is_refused() {
        let good = HistoryToken { run_id: String::new(), next_event_id: 5, ..Default::default() };
        assert!(validate_token(&Bytes::new()).is_ok());
        assert!(validate_token(&good.encode_to_vec().into()).is_ok());
        assert!(validate_token(&Bytes::from_static(b"not a token")).is_err());
        let negative = HistoryToken { next_event_id: -5, ..good.clone() };
        assert!(validate_token(&negative.encode_to_vec().into()).is_err());
        let no_run = HistoryToken { run_id: "x".into(), ..good };
        assert!(validate_token(&no_run.encode_to_vec().into()).is_err());
    }
}
