//! Metrics of the API, under the names that Temporal's dashboards use.

use std::{sync::Arc, time::Duration};

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use perdure_proto::{Code, Error};

const REQUESTS: &str = "service_requests";
const LATENCY: &str = "service_latency";
const PENDING: &str = "service_pending_requests";
const ERRORS: &str = "service_errors_with_type";
const UNDELIVERED: &str = "frontend_tasks_undelivered";
const COUNTED_BY_ROWS: &str = "visibility_counts_scanned";

/// Label of a call that named no namespace, or none that exists.
const NO_NAMESPACE: &str = "_unknown_";

/// Registers the descriptions; call once after the recorder is installed.
pub fn describe() {
    describe_counter!(REQUESTS, "API calls received, by operation and namespace");
    describe_histogram!(LATENCY, Unit::Seconds, "Time to answer an API call, long polls included");
    describe_gauge!(PENDING, "API calls that are being handled");
    describe_counter!(ERRORS, "API calls answered with an error, by its type");
    describe_counter!(UNDELIVERED, "Started tasks whose worker had gone before they were written to it");
    describe_counter!(COUNTED_BY_ROWS, "Counts of runs that no kept count answers, so that their rows were read");
}

fn label(namespace: Option<Arc<str>>) -> metrics::SharedString {
    namespace.map_or_else(|| metrics::SharedString::const_str(NO_NAMESPACE), metrics::SharedString::from)
}

pub(crate) fn call_begun(operation: &'static str) {
    gauge!(PENDING, "operation" => operation).increment(1);
}

pub(crate) fn call_ended(operation: &'static str, namespace: Option<Arc<str>>, took: Duration) {
    let namespace = label(namespace);
    gauge!(PENDING, "operation" => operation).decrement(1);
    counter!(REQUESTS, "operation" => operation, "namespace" => namespace.clone()).increment(1);
    histogram!(LATENCY, "operation" => operation, "namespace" => namespace).record(took);
}

pub(crate) fn call_failed(operation: &'static str, namespace: Option<Arc<str>>, error: &Error) {
    counter!(ERRORS, "operation" => operation, "namespace" => label(namespace), "error_type" => error_type(error))
        .increment(1);
}

pub(crate) fn count_scanned(namespace: &str) {
    counter!(COUNTED_BY_ROWS, "namespace" => namespace.to_owned()).increment(1);
}

pub(crate) fn task_undelivered() {
    counter!(UNDELIVERED).increment(1);
}

/// Temporal's name of the error's class.
fn error_type(error: &Error) -> &'static str {
    let detail = error.detail.as_ref().map_or("", |d| d.type_url.rsplit('.').next().unwrap_or(""));
    match detail {
        "NamespaceNotFoundFailure" => return "serviceerror_NamespaceNotFound",
        "NamespaceAlreadyExistsFailure" => return "serviceerror_NamespaceAlreadyExists",
        "NamespaceInvalidStateFailure" => return "serviceerror_NamespaceInvalidState",
        "WorkflowExecutionAlreadyStartedFailure" => return "serviceerror_WorkflowExecutionAlreadyStarted",
        "CancellationAlreadyRequestedFailure" => return "serviceerror_CancellationAlreadyRequested",
        "QueryFailedFailure" => return "serviceerror_QueryFailed",
        "WorkflowNotReadyFailure" => return "serviceerror_WorkflowNotReady",
        "MultiOperationExecutionFailure" => return "serviceerror_MultiOperationExecution",
        _ => {}
    }
    match error.grpc_code() {
        Code::InvalidArgument => "serviceerror_InvalidArgument",
        Code::NotFound => "serviceerror_NotFound",
        Code::AlreadyExists => "serviceerror_AlreadyExists",
        Code::ResourceExhausted => "serviceerror_ResourceExhausted",
        Code::FailedPrecondition => "serviceerror_FailedPrecondition",
        Code::PermissionDenied => "serviceerror_PermissionDenied",
        Code::Unavailable => "serviceerror_Unavailable",
        Code::Unimplemented => "serviceerror_Unimplemented",
        Code::DeadlineExceeded => "serviceerror_DeadlineExceeded",
        Code::Cancelled => "serviceerror_Canceled",
        Code::Aborted => "serviceerror_Aborted",
        Code::DataLoss => "serviceerror_DataLoss",
        Code::Ok | Code::Unknown | Code::OutOfRange | Code::Unauthenticated | Code::Internal => "serviceerror_Internal",
    }
}
