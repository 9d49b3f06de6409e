//! Failures of Nexus operations and of attempts: how they look, and which attempts are worth repeating.

use perdure_proto::{
    Error,
    temporal::api::{
        enums::v1::{NexusHandlerErrorRetryBehavior, TimeoutType},
        failure::v1::{
            ApplicationFailureInfo, CanceledFailureInfo, Failure, NexusHandlerFailureInfo, NexusOperationFailureInfo,
            ServerFailureInfo, TimeoutFailureInfo, failure::FailureInfo,
        },
    },
};
use perdure_types::{Duration, Timestamp};

use crate::{api::Env, nexus_operation::Operation};

/// Handler errors that say that the request is wrong, by the Nexus specification.
const FINAL_TYPES: [&str; 6] =
    ["BAD_REQUEST", "UNAUTHENTICATED", "UNAUTHORIZED", "NOT_FOUND", "CONFLICT", "NOT_IMPLEMENTED"];

/// Whether the same request may be answered otherwise later.
pub(crate) fn is_retryable(failure: &Failure) -> bool {
    match &failure.failure_info {
        Some(FailureInfo::NexusHandlerFailureInfo(handler)) => match handler.retry_behavior() {
            NexusHandlerErrorRetryBehavior::Retryable => true,
            NexusHandlerErrorRetryBehavior::NonRetryable => false,
            NexusHandlerErrorRetryBehavior::Unspecified => !FINAL_TYPES.contains(&handler.r#type.as_str()),
        },
        Some(FailureInfo::ApplicationFailureInfo(application)) => !application.non_retryable,
        Some(FailureInfo::ServerFailureInfo(server)) => !server.non_retryable,
        _ => true,
    }
}

pub fn is_canceled(failure: &Failure) -> bool {
    matches!(failure.failure_info, Some(FailureInfo::CanceledFailureInfo(_)))
}

/// When to try again, after so many attempts.
pub(crate) fn next_attempt_at(attempts: i32, env: &Env) -> Timestamp {
    env.now + backoff(attempts, env.limits.nexus_retry_initial_interval, env.limits.nexus_retry_max_interval)
}

pub(crate) fn backoff(attempts: i32, initial: Duration, maximum: Duration) -> Duration {
    initial.mul_f64(2f64.powi(attempts.saturating_sub(1).clamp(0, 60))).min(maximum)
}

/// What the workflow sees of an operation that ended badly.
#[allow(deprecated, reason = "older workers read the operation id")]
pub(crate) fn of_operation(operation: &Operation, cause: Failure) -> Failure {
    let scheduled = operation.scheduled();
    let info = NexusOperationFailureInfo {
        scheduled_event_id: operation.info.scheduled_event_id,
        endpoint: scheduled.endpoint.clone(),
        service: scheduled.service.clone(),
        operation: scheduled.operation.clone(),
        operation_id: operation.info.operation_token.clone(),
        operation_token: operation.info.operation_token.clone(),
    };
    Failure {
        message: "nexus operation completed unsuccessfully".to_owned(),
        failure_info: Some(FailureInfo::NexusOperationExecutionFailureInfo(info)),
        cause: Some(Box::new(cause)),
        ..Failure::default()
    }
}

pub fn timed_out(kind: TimeoutType) -> Failure {
    Failure {
        message: "operation timed out".to_owned(),
        failure_info: Some(FailureInfo::TimeoutFailureInfo(TimeoutFailureInfo {
            timeout_type: kind as i32,
            ..TimeoutFailureInfo::default()
        })),
        ..Failure::default()
    }
}

/// Something is wrong with the answer.
pub(crate) fn call_error(message: String, retryable: bool) -> Failure {
    Failure {
        message,
        failure_info: Some(FailureInfo::ApplicationFailureInfo(ApplicationFailureInfo {
            r#type: "CallError".to_owned(),
            non_retryable: !retryable,
            ..ApplicationFailureInfo::default()
        })),
        ..Failure::default()
    }
}

/// As if a handler had said it.
pub(crate) fn internal(message: &str) -> Failure {
    let info = NexusHandlerFailureInfo { r#type: "INTERNAL".to_owned(), ..NexusHandlerFailureInfo::default() };
    Failure {
        message: message.to_owned(),
        failure_info: Some(FailureInfo::NexusHandlerFailureInfo(info)),
        ..Failure::default()
    }
}

pub(crate) fn of_error(error: &Error) -> Failure {
    Failure {
        message: error.message.clone(),
        failure_info: Some(FailureInfo::ServerFailureInfo(ServerFailureInfo { non_retryable: false })),
        ..Failure::default()
    }
}

/// How a workflow's end is told that was canceled.
pub(crate) fn canceled(details: Option<perdure_proto::temporal::api::common::v1::Payloads>) -> Failure {
    Failure {
        message: "operation canceled".to_owned(),
        failure_info: Some(FailureInfo::CanceledFailureInfo(CanceledFailureInfo {
            details,
            ..CanceledFailureInfo::default()
        })),
        ..Failure::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_specification_says_what_is_tried_again() {
        let error = |kind: &str, behavior: NexusHandlerErrorRetryBehavior| Failure {
            failure_info: Some(FailureInfo::NexusHandlerFailureInfo(NexusHandlerFailureInfo {
                r#type: kind.to_owned(),
                retry_behavior: behavior as i32,
            })),
            ..Failure::default()
        };
        use NexusHandlerErrorRetryBehavior as Behavior;
        for (kind, behavior, expect) in [
            ("INTERNAL", Behavior::Unspecified, true),
            ("UPSTREAM_TIMEOUT", Behavior::Unspecified, true),
            ("RESOURCE_EXHAUSTED", Behavior::Unspecified, true),
            ("BAD_REQUEST", Behavior::Unspecified, false),
            ("NOT_FOUND", Behavior::Retryable, true),
            ("INTERNAL", Behavior::NonRetryable, false),
        ] {
            assert_eq!(is_retryable(&error(kind, behavior)), expect, "{kind} {behavior:?}");
        }
    }

    #[test]
    fn attempts_back_off_up_to_an_hour() {
        let (initial, hour) = (Duration::from_secs(1), Duration::from_secs(3600));
        let seconds = |attempts| backoff(attempts, initial, hour).0 / 1_000_000_000;
        assert_eq!([1, 2, 3, 4, 12, 13, 1000].map(seconds), [1, 2, 4, 8, 2048, 3600, 3600]);
    }
}
