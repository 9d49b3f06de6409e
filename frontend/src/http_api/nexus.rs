//! Nexus over HTTP: requests from outside to the handlers of this cluster, and completions of operations that handlers
//! outside have done for callers in this cluster.

#![allow(clippy::result_large_err, reason = "an error is an answer, and there is one a request")]

use std::{collections::HashMap, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Path, RawQuery, State},
    http::{HeaderMap, Method, Request, Response, StatusCode, header},
    routing::any,
};
use bytes::Bytes;
use http_body_util::BodyExt;
use perdure_cluster::Namespace;
use perdure_nexus::{
    Unreadable,
    content::Content,
    failure::NexusFailure,
    handler_error::{self, BAD_REQUEST, NOT_FOUND, handler_error},
    headers, read_completion,
    worker::{self, Answer, Unanswered},
};
use perdure_proto::{
    Code,
    perdure::{
        nexus::v1::{NexusCompletion, nexus_completion::Outcome},
        node::v1::{WorkflowCall, workflow_call},
    },
    temporal::api::{
        enums::v1::{NamespaceState, NexusHandlerErrorRetryBehavior as Retry},
        failure::v1::{Failure, failure::FailureInfo},
        nexus::v1::{
            self as nexus, CancelOperationRequest, Link, StartOperationRequest, StartOperationResponse,
            endpoint_target, request, start_operation_response::Variant,
        },
    },
};
use perdure_types::spans;
use prost::Message;
use tokio::time::Instant;

use crate::{Frontend, metrics};

/// Largest body of a request.
const MAX_BODY_BYTES: usize = 2 << 20;
/// Longest time that a request waits for a worker.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Where a request goes.
struct Target {
    namespace: Arc<Namespace>,
    task_queue: String,
    /// Empty if the path names the task queue.
    endpoint: String,
}

/// The routes of Nexus.
pub(super) fn router(frontend: &Frontend) -> Router {
    let by_endpoint = "/nexus/endpoints/{endpoint}/services/{service}/{operation}";
    let by_queue = "/namespaces/{namespace}/task-queues/{task_queue}/nexus-services/{service}/{operation}";
    let mut router = Router::new()
        .route("/nexus/callback", any(complete))
        .route("/namespaces/{namespace}/nexus/callback", any(complete));
    for base in [by_endpoint, by_queue] {
        router = router
            .route(base, any(start))
            .route(&format!("{base}/cancel"), any(cancel))
            // Where older callers put the token.
            .route(&format!("{base}/{{token}}/cancel"), any(cancel));
    }
    router.with_state(frontend.clone())
}

type Parameters = HashMap<String, String>;

async fn start(
    State(frontend): State<Frontend>,
    Path(parameters): Path<Parameters>,
    RawQuery(query): RawQuery,
    request: Request<Body>,
) -> Response<Body> {
    let begun = Instant::now();
    let knows_failures = knows_failures(request.headers());
    let (labels, answer) = answer(&frontend, &parameters, request, |head, body| {
        let query = query.as_deref().unwrap_or_default();
        start_request(&frontend, &parameters, query, head, body)
    })
    .await;
    metrics::nexus_request(labels, "StartNexusOperation", outcome(&answer), begun.elapsed());
    match answer {
        Ok(Answer::Started(started)) => started_response(started, knows_failures),
        Ok(Answer::Canceled(_)) => error_response(&empty_outcome(), knows_failures),
        Err(unanswered) => error_response(&unanswered, knows_failures),
    }
}

async fn cancel(
    State(frontend): State<Frontend>,
    Path(parameters): Path<Parameters>,
    RawQuery(query): RawQuery,
    request: Request<Body>,
) -> Response<Body> {
    let begun = Instant::now();
    let knows_failures = knows_failures(request.headers());
    let (labels, answer) = answer(&frontend, &parameters, request, |head, _| {
        cancel_request(&parameters, query.as_deref().unwrap_or_default(), head)
    })
    .await;
    metrics::nexus_request(labels, "CancelNexusOperation", outcome(&answer), begun.elapsed());
    match answer {
        Ok(Answer::Canceled(_)) => response(StatusCode::ACCEPTED, HeaderMap::new(), Bytes::new()),
        Ok(Answer::Started(_)) => error_response(&empty_outcome(), knows_failures),
        Err(unanswered) => error_response(&unanswered, knows_failures),
    }
}

fn knows_failures(headers: &HeaderMap) -> bool {
    headers::get(headers, headers::FAILURE_SUPPORT) == "true"
}

fn refused(error_type: &str, message: impl Into<String>) -> Unanswered {
    Unanswered { failure: handler_error(error_type, message), by_worker: false }
}

fn empty_outcome() -> Unanswered {
    Unanswered { failure: handler_error(handler_error::INTERNAL, "empty outcome"), by_worker: true }
}

/// Sends the request that `make` makes to its worker. Also the names of the namespace and the endpoint, as far as known.
async fn answer(
    frontend: &Frontend,
    parameters: &Parameters,
    request: Request<Body>,
    make: impl FnOnce(&HeaderMap, Bytes) -> Result<nexus::Request, Unanswered>,
) -> (Option<(Arc<str>, String)>, Result<Answer, Unanswered>) {
    let target = match target(frontend, parameters).await {
        Ok(target) => target,
        Err(unanswered) => return (None, Err(unanswered)),
    };
    let labels = Some((Arc::from(target.namespace.name()), target.endpoint.clone()));
    let answer = async {
        if request.method() != Method::POST {
            let message = format!("invalid request method: expected POST, got {:?}", request.method().as_str());
            return Err(refused(BAD_REQUEST, message));
        }
        let (head, body) = request.into_parts();
        let knows_failures = knows_failures(&head.headers);
        let timeout = match headers::get(&head.headers, headers::REQUEST_TIMEOUT) {
            "" => LONGEST_WAIT,
            text => {
                let timeout = spans::parse(text);
                timeout.ok_or_else(|| refused(BAD_REQUEST, "invalid request timeout header"))?.min(LONGEST_WAIT)
            }
        };
        let body = read(body).await.map_err(|()| refused(BAD_REQUEST, "invalid input"))?;
        let mut made = make(&head.headers, body)?;
        made.endpoint = target.endpoint;
        made.scheduled_time = frontend.rows().ok().and_then(|rows| rows.now().to_proto());
        // Workers say it in the way that the caller understands.
        made.capabilities = Some(request::Capabilities { temporal_failure_responses: knows_failures });
        worker::dispatch(frontend.cluster(), target.namespace.id(), &target.task_queue, made, timeout).await
    };
    (labels, answer.await)
}

async fn read(body: Body) -> Result<Bytes, ()> {
    let limited = http_body_util::Limited::new(body, MAX_BODY_BYTES);
    limited.collect().await.map(http_body_util::Collected::to_bytes).map_err(drop)
}

fn parameter<'a>(parameters: &'a Parameters, name: &str) -> &'a str {
    parameters.get(name).map_or("", String::as_str)
}

async fn target(frontend: &Frontend, parameters: &Parameters) -> Result<Target, Unanswered> {
    let namespaces = frontend.namespaces();
    let Some(id) = parameters.get("endpoint") else {
        let name = parameter(parameters, "namespace");
        let missing = || refused(NOT_FOUND, format!("namespace not found: {name:?}"));
        let namespace = usable(namespaces.by_name(name).ok_or_else(missing)?)?;
        let task_queue = parameter(parameters, "task_queue").to_owned();
        return Ok(Target { namespace, task_queue, endpoint: String::new() });
    };
    let mut found = namespaces.nexus_endpoint_by_id(id);
    if found.is_none() && namespaces.refresh().await.is_ok() {
        // Another node may have made it a moment ago.
        found = namespaces.nexus_endpoint_by_id(id);
    }
    let retried = |message: &str, retry| Unanswered {
        failure: handler_error::with_retry(NOT_FOUND, message, retry),
        by_worker: false,
    };
    let record = found.ok_or_else(|| retried("nexus endpoint not found", Retry::NonRetryable))?;
    let spec = record.endpoint.and_then(|endpoint| endpoint.spec).unwrap_or_default();
    // Not to addresses outside: whoever reaches this server must not reach through it.
    let Some(endpoint_target::Variant::Worker(worker)) = spec.target.and_then(|target| target.variant) else {
        return Err(refused(BAD_REQUEST, "invalid endpoint target"));
    };
    let namespace = namespaces.by_id(&record.namespace_id);
    let namespace = namespace.ok_or_else(|| retried("invalid endpoint target", Retry::Retryable))?;
    Ok(Target { namespace: usable(namespace)?, task_queue: worker.task_queue, endpoint: spec.name })
}

fn usable(namespace: Arc<Namespace>) -> Result<Arc<Namespace>, Unanswered> {
    let state = NamespaceState::try_from(namespace.record.state).unwrap_or_default();
    if matches!(state, NamespaceState::Registered | NamespaceState::Deprecated) {
        return Ok(namespace);
    }
    Err(refused(BAD_REQUEST, "bad request"))
}

fn start_request(
    frontend: &Frontend,
    parameters: &Parameters,
    query: &str,
    head: &HeaderMap,
    body: Bytes,
) -> Result<nexus::Request, Unanswered> {
    let links = headers::links(head);
    let links = links.ok_or_else(|| refused(BAD_REQUEST, format!("invalid {:?} header", headers::LINK)))?;
    let content = Content { headers: headers::stripped(head, headers::CONTENT_PREFIX).collect(), body };
    let payload = content.into_payload().ok_or_else(|| refused(BAD_REQUEST, "invalid input"))?;
    if is_too_large(payload.encoded_len(), frontend) {
        return Err(refused(BAD_REQUEST, "input exceeds size limit"));
    }
    let start = StartOperationRequest {
        service: parameter(parameters, "service").to_owned(),
        operation: parameter(parameters, "operation").to_owned(),
        request_id: headers::get(head, headers::REQUEST_ID).to_owned(),
        callback: query_value(query, "callback"),
        payload: Some(payload),
        callback_header: headers::stripped(head, headers::CALLBACK_PREFIX).collect(),
        links,
    };
    Ok(nexus::Request {
        header: headers::plain(head, &[headers::CONTENT_PREFIX, headers::CALLBACK_PREFIX]),
        variant: Some(request::Variant::StartOperation(start)),
        ..nexus::Request::default()
    })
}

fn is_too_large(bytes: usize, frontend: &Frontend) -> bool {
    i64::try_from(bytes).map_or(true, |bytes| bytes > frontend.limits().blob_size_error_bytes)
}

fn query_value(query: &str, name: &str) -> String {
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned()).unwrap_or_default()
}

#[allow(deprecated, reason = "older SDKs look for the id")]
fn cancel_request(parameters: &Parameters, query: &str, head: &HeaderMap) -> Result<nexus::Request, Unanswered> {
    let candidates = [
        headers::get(head, headers::OPERATION_TOKEN).to_owned(),
        query_value(query, "token"),
        parameter(parameters, "token").to_owned(),
    ];
    let token = candidates.into_iter().find(|token| !token.is_empty());
    let token = token.ok_or_else(|| refused(BAD_REQUEST, "missing operation token"))?;
    let cancel = CancelOperationRequest {
        service: parameter(parameters, "service").to_owned(),
        operation: parameter(parameters, "operation").to_owned(),
        operation_id: token.clone(),
        operation_token: token,
    };
    Ok(nexus::Request {
        header: headers::plain(head, &[headers::OPERATION_TOKEN]),
        variant: Some(request::Variant::CancelOperation(cancel)),
        ..nexus::Request::default()
    })
}

// ---- Answers -----------------------------------------------------------------------------------------------------------

fn started_response(started: StartOperationResponse, knows_failures: bool) -> Response<Body> {
    let mut head = HeaderMap::new();
    let with_links = |head: &mut HeaderMap, links: &[Link]| headers::set_links(head, links);
    match started.variant {
        Some(Variant::SyncSuccess(sync)) => {
            with_links(&mut head, &sync.links);
            let content = Content::of(sync.payload.as_ref());
            for (name, value) in &content.headers {
                headers::set(&mut head, &format!("{}{name}", headers::CONTENT_PREFIX), value);
            }
            response(StatusCode::OK, head, content.body)
        }
        Some(Variant::AsyncSuccess(started)) => {
            with_links(&mut head, &started.links);
            let info = serde_json::json!({ "token": started.operation_token, "state": "running" });
            json_response(StatusCode::CREATED, head, &info)
        }
        Some(Variant::Failure(failure)) => {
            let canceled = matches!(failure.failure_info, Some(FailureInfo::CanceledFailureInfo(_)));
            headers::set(&mut head, headers::OPERATION_STATE, if canceled { "canceled" } else { "failed" });
            headers::set(&mut head, headers::FAILURE_SOURCE, headers::SOURCE_WORKER);
            let failure = NexusFailure::from_temporal(&failure);
            let body = if knows_failures { NexusFailure::operation_error(canceled, failure) } else { failure };
            json_response(StatusCode::FAILED_DEPENDENCY, head, &body)
        }
        // What older SDKs say is a failure by now.
        _ => error_response(&empty_outcome(), knows_failures),
    }
}

fn error_response(unanswered: &Unanswered, knows_failures: bool) -> Response<Body> {
    let Unanswered { failure, by_worker } = unanswered;
    let mut head = HeaderMap::new();
    if *by_worker {
        headers::set(&mut head, headers::FAILURE_SOURCE, headers::SOURCE_WORKER);
    }
    if let Some(FailureInfo::NexusHandlerFailureInfo(info)) = &failure.failure_info {
        match info.retry_behavior() {
            Retry::Retryable => headers::set(&mut head, headers::RETRYABLE, "true"),
            Retry::NonRetryable => headers::set(&mut head, headers::RETRYABLE, "false"),
            Retry::Unspecified => {}
        }
    }
    let status = handler_error::status_of(handler_error::error_type(failure).unwrap_or_default());
    let mut body = NexusFailure::from_temporal(failure);
    if !knows_failures && let Some(cause) = body.cause.take() {
        body = *cause;
    }
    json_response(status, head, &body)
}

fn json_response(status: StatusCode, mut head: HeaderMap, body: &impl serde::Serialize) -> Response<Body> {
    headers::set(&mut head, header::CONTENT_TYPE.as_str(), "application/json");
    response(status, head, serde_json::to_vec(body).unwrap_or_default().into())
}

fn response(status: StatusCode, head: HeaderMap, body: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    *response.headers_mut() = head;
    response
}

/// As Temporal's metrics name it.
fn outcome(answer: &Result<Answer, Unanswered>) -> String {
    match answer {
        Ok(Answer::Started(started)) => match &started.variant {
            Some(Variant::SyncSuccess(_)) => "sync_success".to_owned(),
            Some(Variant::AsyncSuccess(_)) => "async_success".to_owned(),
            _ => "operation_error".to_owned(),
        },
        Ok(Answer::Canceled(_)) => "success".to_owned(),
        Err(unanswered) => error_outcome(&unanswered.failure),
    }
}

/// Workers choose their types of errors: those that are not the protocol's share a label.
fn error_outcome(failure: &Failure) -> String {
    let error_type = handler_error::error_type(failure).unwrap_or_default();
    format!("handler_error:{}", if handler_error::is_known(error_type) { error_type } else { "_unknown_" })
}

// ---- Completions -------------------------------------------------------------------------------------------------------

async fn complete(
    State(frontend): State<Frontend>,
    Path(parameters): Path<Parameters>,
    request: Request<Body>,
) -> Response<Body> {
    let begun = Instant::now();
    let knows_failures = knows_failures(request.headers());
    let completed = match completion(&frontend, &parameters, request).await {
        Ok((namespace, completion)) => (Some(namespace), hand_over(&frontend, completion).await),
        Err(unanswered) => (None, Err(unanswered)),
    };
    let (namespace, outcome) = completed;
    let label =
        outcome.as_ref().map_or_else(|unanswered| error_outcome(&unanswered.failure), |()| "success".to_owned());
    metrics::nexus_completion(namespace.map(|namespace| namespace.name().into()), label, begun.elapsed());
    match outcome {
        Ok(()) => response(StatusCode::OK, HeaderMap::new(), Bytes::new()),
        Err(unanswered) => error_response(&unanswered, knows_failures),
    }
}

/// Reads and checks a completion. Its token says whose it is; a namespace in the path must agree.
async fn completion(
    frontend: &Frontend,
    parameters: &Parameters,
    request: Request<Body>,
) -> Result<(Arc<Namespace>, NexusCompletion), Unanswered> {
    let (head, body) = request.into_parts();
    let body = read(body).await.map_err(|()| refused(BAD_REQUEST, "failed to read the request body"))?;
    let completion =
        read_completion(&head.headers, body).map_err(|Unreadable(problem)| refused(BAD_REQUEST, problem))?;
    let id = completion.token.as_ref().map_or("", |token| &token.namespace_id);
    let namespace = frontend.namespaces().by_id(id);
    let namespace = usable(namespace.ok_or_else(|| refused(NOT_FOUND, format!("namespace {id:?} not found")))?)?;
    if parameters.get("namespace").is_some_and(|name| name != namespace.name()) {
        return Err(refused(BAD_REQUEST, "invalid callback token"));
    }
    let (length, longest) = (completion.operation_token.len(), frontend.limits().nexus_operation_token_length);
    if i64::try_from(length).map_or(true, |length| length > longest) {
        let message = format!("operation token length exceeds allowed limit ({length}/{longest})");
        return Err(refused(BAD_REQUEST, message));
    }
    if let Some(Outcome::Result(payload)) = &completion.outcome
        && is_too_large(payload.encoded_len(), frontend)
    {
        return Err(refused(BAD_REQUEST, "result exceeds size limit"));
    }
    Ok((namespace, completion))
}

/// To the entity that waits for it.
async fn hand_over(frontend: &Frontend, completion: NexusCompletion) -> Result<(), Unanswered> {
    let token = completion.token.clone().unwrap_or_default();
    let call = WorkflowCall {
        namespace_id: token.namespace_id,
        workflow_id: token.workflow_id,
        kind: token.entity_kind,
        command: Some(workflow_call::Command::NexusCompletion(Box::new(completion))),
    };
    let error = match frontend.cluster().workflow(&call).await {
        Ok(_) => return Ok(()),
        Err(error) => error,
    };
    tracing::debug!(%error, "a Nexus completion was not taken");
    let failure = match error.grpc_code() {
        Code::NotFound => handler_error(NOT_FOUND, error.message),
        _ => handler_error::from_error(&error),
    };
    Err(Unanswered { failure, by_worker: false })
}
