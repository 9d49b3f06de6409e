//! Requests to handlers that are workers of a task queue: through the queue's home.

use std::time::Duration;

use perdure_cluster::Cluster;
use perdure_proto::{
    Error,
    perdure::{
        nexus::v1::{NexusOutcome, NexusTaskCall, nexus_outcome, nexus_task_call, nexus_task_reply},
        node::v1::{MatchingCall, matching_call, matching_reply},
    },
    temporal::api::{
        enums::v1::NexusHandlerErrorRetryBehavior as Retry,
        failure::v1::Failure,
        nexus::v1::{
            CancelOperationResponse, Request, StartOperationResponse, response, start_operation_response::Variant,
        },
    },
};

use crate::{
    client::ended,
    failure::NexusFailure,
    handler_error::{self, INTERNAL, UPSTREAM_TIMEOUT, handler_error},
};

/// What a handler has answered.
#[derive(Debug, PartialEq)]
#[allow(clippy::large_enum_variant)] // There is one a request, and mostly the large one.
pub enum Answer {
    Started(StartOperationResponse),
    Canceled(CancelOperationResponse),
}

/// Why there is no answer.
#[derive(Debug, PartialEq)]
pub struct Unanswered {
    /// A handler's error.
    pub failure: Failure,
    /// The worker's own, or its silence; else it was not asked.
    pub by_worker: bool,
}

/// Hands a request to a worker of the queue, and waits for its answer.
pub async fn dispatch(
    cluster: &Cluster,
    namespace_id: &str,
    task_queue: &str,
    request: Request,
    timeout: Duration,
) -> Result<Answer, Unanswered> {
    let command = NexusTaskCall { command: Some(nexus_task_call::Command::Dispatch(request)) };
    let call = MatchingCall {
        namespace_id: namespace_id.to_owned(),
        task_queue: task_queue.to_owned(),
        // 0 says "no limit".
        timeout_ns: i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX).max(1),
        command: Some(matching_call::Command::Nexus(Box::new(command))),
        ..MatchingCall::default()
    };
    // The home answers before the time is over; this is for one that has vanished.
    let reply = match tokio::time::timeout(timeout, cluster.matching(call)).await {
        Ok(reply) => reply.map_err(|error| not_asked(&error))?,
        Err(_) => return Err(unanswered(handler_error(UPSTREAM_TIMEOUT, "upstream timeout"))),
    };
    let outcome = match reply.reply {
        Some(matching_reply::Reply::Nexus(reply)) => match reply.reply {
            Some(nexus_task_reply::Reply::Outcome(outcome)) => outcome,
            Some(nexus_task_reply::Reply::Task(_)) | None => NexusOutcome::default(),
        },
        _ => return Err(not_asked(&Error::internal("a task queue answered with something else"))),
    };
    answer_of(outcome).map_err(unanswered)
}

fn not_asked(error: &Error) -> Unanswered {
    tracing::warn!(%error, "a Nexus request did not reach its task queue");
    Unanswered { failure: handler_error::from_error(error), by_worker: false }
}

fn unanswered(failure: Failure) -> Unanswered {
    Unanswered { failure, by_worker: true }
}

fn answer_of(outcome: NexusOutcome) -> Result<Answer, Failure> {
    use nexus_outcome::Outcome;
    match outcome.outcome {
        Some(Outcome::Response(response)) => match response.variant {
            Some(response::Variant::StartOperation(start)) => normal(start).map(Answer::Started),
            Some(response::Variant::CancelOperation(done)) => Ok(Answer::Canceled(done)),
            None => Err(empty()),
        },
        Some(Outcome::Failure(failure)) => Err(failure),
        Some(Outcome::Error(error)) => Err(handler_error::from_older(&error)),
        Some(Outcome::TimedOut(_)) => Err(handler_error(UPSTREAM_TIMEOUT, "upstream timeout")),
        None => Err(empty()),
    }
}

fn empty() -> Failure {
    handler_error(INTERNAL, "empty outcome")
}

/// What older SDKs say, as newer ones do.
#[allow(deprecated)]
fn normal(mut start: StartOperationResponse) -> Result<StartOperationResponse, Failure> {
    match &mut start.variant {
        Some(Variant::AsyncSuccess(started)) => {
            if started.operation_token.is_empty() {
                started.operation_token.clone_from(&started.operation_id);
            }
        }
        Some(Variant::OperationError(error)) => {
            let canceled = error.operation_state == "canceled";
            let failure = error.failure.as_ref().map(NexusFailure::from).unwrap_or_default();
            let malformed = |error| handler_error::with_retry(INTERNAL, format!("{error}"), Retry::Retryable);
            start.variant = Some(Variant::Failure(ended(failure, canceled).map_err(malformed)?));
        }
        Some(Variant::SyncSuccess(_) | Variant::Failure(_)) => {}
        None => return Err(empty()),
    }
    Ok(start)
}

#[cfg(test)]
mod tests {
    use perdure_proto::temporal::api::{
        failure::v1::failure::FailureInfo,
        nexus::v1::{self, HandlerError, Response, UnsuccessfulOperationError, start_operation_response::Async},
    };

    use super::*;

    fn started(variant: Option<Variant>) -> NexusOutcome {
        let start = StartOperationResponse { variant };
        let response = Response { variant: Some(response::Variant::StartOperation(start)) };
        NexusOutcome { outcome: Some(nexus_outcome::Outcome::Response(response)) }
    }

    fn error_of(outcome: NexusOutcome) -> (String, String) {
        let failure = answer_of(outcome).expect_err("an error");
        (handler_error::error_type(&failure).unwrap_or_default().to_owned(), failure.message)
    }

    #[test]
    #[allow(deprecated)]
    fn older_answers_are_read_as_newer_ones() {
        let old = Async { operation_id: "t".into(), ..Default::default() };
        let answer = answer_of(started(Some(Variant::AsyncSuccess(old)))).unwrap();
        let Answer::Started(StartOperationResponse { variant: Some(Variant::AsyncSuccess(new)) }) = answer else {
            panic!("{answer:?}")
        };
        assert_eq!(new.operation_token, "t");
        let failure = Some(v1::Failure { message: "no".into(), ..Default::default() });
        let old = UnsuccessfulOperationError { operation_state: "canceled".into(), failure };
        let answer = answer_of(started(Some(Variant::OperationError(old)))).unwrap();
        let Answer::Started(StartOperationResponse { variant: Some(Variant::Failure(new)) }) = answer else {
            panic!("{answer:?}")
        };
        assert!(matches!(new.failure_info, Some(FailureInfo::CanceledFailureInfo(_))));
        let error = HandlerError { error_type: "BAD_REQUEST".into(), ..Default::default() };
        let outcome = NexusOutcome { outcome: Some(nexus_outcome::Outcome::Error(error)) };
        assert_eq!(error_of(outcome).0, "BAD_REQUEST");
    }

    #[test]
    fn no_answer_is_an_error() {
        let pair = |kind: &str, message: &str| (kind.to_owned(), message.to_owned());
        assert_eq!(error_of(NexusOutcome::default()), pair(INTERNAL, "empty outcome"));
        assert_eq!(error_of(started(None)), pair(INTERNAL, "empty outcome"));
        let late = NexusOutcome { outcome: Some(nexus_outcome::Outcome::TimedOut(true)) };
        assert_eq!(error_of(late), pair(UPSTREAM_TIMEOUT, "upstream timeout"));
    }
}
