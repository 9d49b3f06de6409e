//! Metrics of the API, under the names and labels that Temporal's dashboards use.
//!
//! The handles of one operation in one namespace are looked up once, so that a call costs one look into a map. Namespaces
//! are labels only when they exist.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, PoisonError, RwLock},
    time::Duration,
};

use metrics::{
    Counter, Gauge, Histogram, Label, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};
use perdure_proto::{Code, Error};

const REQUESTS: &str = "service_requests";
const LATENCY: &str = "service_latency";
const PENDING: &str = "service_pending_requests";
const ERRORS: &str = "service_errors";
const ERRORS_BY_TYPE: &str = "service_error_with_type";
/// Temporal counts these apart as well.
const KINDS: [(&str, &str, &str); 6] = [
    ("serviceerror_InvalidArgument", "service_errors_invalid_argument", "API calls with an argument that is refused"),
    ("serviceerror_NotFound", "service_errors_entity_not_found", "API calls on what does not exist"),
    (
        "serviceerror_WorkflowExecutionAlreadyStarted",
        "service_errors_execution_already_started",
        "Starts of workflow ids that have a run already",
    ),
    ("serviceerror_ResourceExhausted", "service_errors_resource_exhausted", "API calls refused by a limit"),
    ("serviceerror_DeadlineExceeded", "service_errors_context_timeout", "API calls that took longer than they may"),
    ("serviceerror_PermissionDenied", "service_errors_unauthorized", "API calls that the caller may not make"),
];
const UNDELIVERED: &str = "perdure_frontend_tasks_undelivered_total";
const NEXUS_REQUESTS: &str = "nexus_requests";
const NEXUS_LATENCY: &str = "nexus_latency";
const NEXUS_COMPLETIONS: &str = "nexus_completion_requests";
const NEXUS_COMPLETION_LATENCY: &str = "nexus_completion_latency";
const COUNTED_BY_ROWS: &str = "perdure_visibility_counts_scanned_total";

/// Label of a call that named no namespace, or none that exists.
const NO_NAMESPACE: &str = "_unknown_";
/// Temporal's name of the part that serves the API.
const SERVICE: &str = "frontend";

/// Registers the descriptions, and what starts at zero; call once after the recorder is installed.
pub fn describe() {
    describe_counter!(REQUESTS, "API calls received");
    describe_histogram!(LATENCY, Unit::Seconds, "Time to answer an API call, long polls included");
    describe_gauge!(PENDING, "API calls that are being handled");
    describe_counter!(ERRORS, "API calls that failed by a fault of the server");
    describe_counter!(ERRORS_BY_TYPE, "API calls answered with an error, by its type");
    for (_, name, help) in KINDS {
        describe_counter!(name, help);
    }
    describe_counter!(UNDELIVERED, "Started tasks whose worker had gone before they were written to it");
    describe_counter!(COUNTED_BY_ROWS, "Counts of runs that no kept count answers, so that their rows were read");
    describe_counter!(NEXUS_REQUESTS, "Nexus requests over HTTP");
    describe_histogram!(NEXUS_LATENCY, Unit::Seconds, "Time until they were answered");
    describe_counter!(NEXUS_COMPLETIONS, "Completions of Nexus operations over HTTP");
    describe_histogram!(NEXUS_COMPLETION_LATENCY, Unit::Seconds, "Time until they were answered");
    counter!(UNDELIVERED).increment(0);
}

/// What is counted of one operation in one namespace.
struct CallMetrics {
    requests: Counter,
    latency: Histogram,
}

/// What is counted of one operation.
struct Operation {
    pending: Gauge,
    by_namespace: HashMap<Arc<str>, Arc<CallMetrics>>,
}

impl Operation {
    fn new(operation: &'static str) -> Self {
        let pending = gauge!(PENDING, "service_name" => SERVICE, "operation" => operation);
        Self { pending, by_namespace: HashMap::new() }
    }
}

static CALLS: LazyLock<RwLock<HashMap<&'static str, Operation>>> = LazyLock::new(RwLock::default);

fn labels(operation: &'static str, namespace: &Arc<str>) -> Vec<Label> {
    vec![
        Label::from_static_parts("service_name", SERVICE),
        Label::from_static_parts("operation", operation),
        Label::new("namespace", Arc::clone(namespace)),
    ]
}

fn label(namespace: Option<Arc<str>>) -> Arc<str> {
    namespace.unwrap_or_else(|| NO_NAMESPACE.into())
}

fn pending(operation: &'static str, change: impl FnOnce(&Gauge)) {
    let known = CALLS.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = known.get(operation) {
        return change(&found.pending);
    }
    drop(known);
    let mut known = CALLS.write().unwrap_or_else(PoisonError::into_inner);
    change(&known.entry(operation).or_insert_with(|| Operation::new(operation)).pending);
}

fn calls(operation: &'static str, namespace: &str) -> Arc<CallMetrics> {
    let known = CALLS.read().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = known.get(operation).and_then(|of| of.by_namespace.get(namespace)) {
        return Arc::clone(found);
    }
    drop(known);
    let namespace = Arc::from(namespace);
    let labels = labels(operation, &namespace);
    // There from the first call on, so that a rate of errors can be told from no data.
    counter!(ERRORS, labels.clone()).increment(0);
    let made =
        Arc::new(CallMetrics { requests: counter!(REQUESTS, labels.clone()), latency: histogram!(LATENCY, labels) });
    let mut known = CALLS.write().unwrap_or_else(PoisonError::into_inner);
    let operation = known.entry(operation).or_insert_with(|| Operation::new(operation));
    Arc::clone(operation.by_namespace.entry(namespace).or_insert(made))
}

pub(crate) fn call_begun(operation: &'static str) {
    pending(operation, |pending| pending.increment(1));
}

pub(crate) fn call_ended(operation: &'static str, namespace: Option<&str>, took: Duration) {
    pending(operation, |pending| pending.decrement(1));
    let call = calls(operation, namespace.unwrap_or(NO_NAMESPACE));
    call.requests.increment(1);
    call.latency.record(took);
}

pub(crate) fn call_failed(operation: &'static str, namespace: Option<Arc<str>>, error: &Error) {
    let mut labels = labels(operation, &label(namespace));
    if matches!(error.grpc_code(), Code::Internal | Code::DataLoss | Code::Unknown | Code::Unavailable) {
        counter!(ERRORS, labels.clone()).increment(1);
    }
    let error_type = error_type(error);
    if let Some((_, name, _)) = KINDS.iter().find(|(of, _, _)| *of == error_type) {
        counter!(*name, labels.clone()).increment(1);
    }
    labels.push(Label::from_static_parts("error_type", error_type));
    counter!(ERRORS_BY_TYPE, labels).increment(1);
}

pub(crate) fn count_scanned(namespace: &str) {
    counter!(COUNTED_BY_ROWS, "namespace" => namespace.to_owned()).increment(1);
}

pub(crate) fn task_undelivered() {
    counter!(UNDELIVERED).increment(1);
}

/// A Nexus request. `target`: names of the namespace and of the endpoint, as far as there are any.
pub(crate) fn nexus_request(target: Option<(Arc<str>, String)>, method: &'static str, outcome: String, took: Duration) {
    let (namespace, endpoint) = target.map_or((None, String::new()), |(namespace, name)| (Some(namespace), name));
    let labels = vec![
        Label::from_static_parts("service_name", SERVICE),
        Label::new("namespace", label(namespace)),
        Label::new("nexus_endpoint", if endpoint.is_empty() { NO_NAMESPACE.to_owned() } else { endpoint }),
        Label::from_static_parts("method", method),
        Label::new("outcome", outcome),
    ];
    counter!(NEXUS_REQUESTS, labels.clone()).increment(1);
    histogram!(NEXUS_LATENCY, labels).record(took);
}

/// A completion of a Nexus operation.
pub(crate) fn nexus_completion(namespace: Option<Arc<str>>, outcome: String, took: Duration) {
    let labels = vec![
        Label::from_static_parts("service_name", SERVICE),
        Label::new("namespace", label(namespace)),
        Label::new("outcome", outcome),
    ];
    counter!(NEXUS_COMPLETIONS, labels.clone()).increment(1);
    histogram!(NEXUS_COMPLETION_LATENCY, labels).record(took);
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
