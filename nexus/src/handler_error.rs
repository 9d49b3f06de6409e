//! Errors of handlers: their types, the HTTP statuses that stand for them, and as failures of Temporal's.

use http::StatusCode;
use perdure_proto::{
    Code, Error,
    temporal::api::{
        enums::v1::NexusHandlerErrorRetryBehavior as Retry,
        failure::v1::{Failure, NexusHandlerFailureInfo, failure::FailureInfo},
        nexus::v1::HandlerError,
    },
};

use crate::failure::NexusFailure;

pub const BAD_REQUEST: &str = "BAD_REQUEST";
pub const CONFLICT: &str = "CONFLICT";
pub const INTERNAL: &str = "INTERNAL";
pub const NOT_FOUND: &str = "NOT_FOUND";
pub const NOT_IMPLEMENTED: &str = "NOT_IMPLEMENTED";
pub const REQUEST_TIMEOUT: &str = "REQUEST_TIMEOUT";
pub const RESOURCE_EXHAUSTED: &str = "RESOURCE_EXHAUSTED";
pub const UNAUTHENTICATED: &str = "UNAUTHENTICATED";
pub const UNAUTHORIZED: &str = "UNAUTHORIZED";
pub const UNAVAILABLE: &str = "UNAVAILABLE";
pub const UPSTREAM_TIMEOUT: &str = "UPSTREAM_TIMEOUT";

const STATUSES: [(&str, u16); 11] = [
    (BAD_REQUEST, 400),
    (UNAUTHENTICATED, 401),
    (UNAUTHORIZED, 403),
    (NOT_FOUND, 404),
    (REQUEST_TIMEOUT, 408),
    (CONFLICT, 409),
    (RESOURCE_EXHAUSTED, 429),
    (INTERNAL, 500),
    (NOT_IMPLEMENTED, 501),
    (UNAVAILABLE, 503),
    (UPSTREAM_TIMEOUT, 520),
];

/// The status that stands for an error of this type.
pub fn status_of(error_type: &str) -> StatusCode {
    let found = STATUSES.iter().find(|(name, _)| *name == error_type);
    found.and_then(|(_, status)| StatusCode::from_u16(*status).ok()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// The type of the error that a status stands for.
pub fn type_of(status: StatusCode) -> Option<&'static str> {
    STATUSES.iter().find(|(_, known)| *known == status.as_u16()).map(|(name, _)| *name)
}

/// Whether a type is one of the protocol's.
pub fn is_known(error_type: &str) -> bool {
    STATUSES.iter().any(|(name, _)| *name == error_type)
}

/// An error of this type, as a failure.
pub fn handler_error(error_type: &str, message: impl Into<String>) -> Failure {
    with_retry(error_type, message, Retry::Unspecified)
}

/// The same, saying whether to try again.
pub fn with_retry(error_type: &str, message: impl Into<String>, retry: Retry) -> Failure {
    let info = NexusHandlerFailureInfo { r#type: error_type.to_owned(), retry_behavior: retry as i32 };
    Failure {
        message: message.into(),
        failure_info: Some(FailureInfo::NexusHandlerFailureInfo(info)),
        ..Failure::default()
    }
}

/// What an older SDK has said.
pub fn from_older(error: &HandlerError) -> Failure {
    let retry = Retry::try_from(error.retry_behavior).unwrap_or_default();
    let cause = error.failure.as_ref().map(|failure| NexusFailure::from(failure).to_temporal().unwrap_or_default());
    Failure { cause: cause.map(Box::new), ..with_retry(&error.error_type, "", retry) }
}

/// What to say when a call inside the cluster has failed. The message is for outsiders.
pub fn from_error(error: &Error) -> Failure {
    let (error_type, message) = match error.grpc_code() {
        Code::AlreadyExists | Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
            (BAD_REQUEST, "bad request")
        }
        Code::Aborted | Code::Unavailable => (UNAVAILABLE, "service unavailable"),
        Code::Cancelled => (INTERNAL, "canceled"),
        Code::Unauthenticated => (UNAUTHENTICATED, "authentication failed"),
        Code::PermissionDenied => (UNAUTHORIZED, "permission denied"),
        Code::NotFound => (NOT_FOUND, "not found"),
        Code::ResourceExhausted => (RESOURCE_EXHAUSTED, "resource exhausted"),
        Code::Unimplemented => (NOT_IMPLEMENTED, "not implemented"),
        Code::DeadlineExceeded => (UPSTREAM_TIMEOUT, "request timeout"),
        Code::Ok | Code::Unknown | Code::Internal | Code::DataLoss => (INTERNAL, "internal error"),
    };
    handler_error(error_type, message)
}

/// The type of a handler's error.
pub fn error_type(failure: &Failure) -> Option<&str> {
    match &failure.failure_info {
        Some(FailureInfo::NexusHandlerFailureInfo(info)) => Some(&info.r#type),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_and_statuses_stand_for_each_other() {
        for (name, _) in STATUSES {
            assert_eq!(type_of(status_of(name)), Some(name));
        }
        assert_eq!(status_of("NEW"), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(type_of(StatusCode::IM_A_TEAPOT), None);
    }
}
