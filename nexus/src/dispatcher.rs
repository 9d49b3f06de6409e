//! Makes the calls of operations: to the worker or the URL that an endpoint names, and of completions to callers outside.
//! One attempt each; what came of it is the answer, whatever it is.

use std::{sync::Arc, time::Duration};

use http::HeaderMap;
use perdure_cluster::{Cluster, Namespaces};
use perdure_proto::{
    perdure::{
        nexus::v1::{NexusCall, NexusDelivery, NexusReply, nexus_call::Call, nexus_reply},
        state::v1::NexusEndpointRecord,
    },
    temporal::api::{
        enums::v1::NexusHandlerErrorRetryBehavior as Retry,
        failure::v1::{Failure, failure::FailureInfo},
        nexus::v1::{
            CancelOperationResponse, Request, StartOperationResponse, endpoint_target, request,
            start_operation_response::Variant,
        },
    },
};
use perdure_types::{Timestamp, spans};
use tokio::time::Instant;

use crate::{
    addresses::SYSTEM_CALLBACK,
    client::HttpClient,
    completion,
    handler_error::{self, BAD_REQUEST, INTERNAL, NOT_FOUND, UPSTREAM_TIMEOUT, handler_error},
    headers, telemetry,
    worker::{self, Answer, Unanswered},
};

/// Of an attempt for which nobody says how long it may take.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// What an operator may set.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Where handlers outside send completions; `{{.NamespaceName}}` and `{{.NamespaceID}}` stand for the caller's.
    pub callback_url: String,
}

/// Reaches handlers. Cheap to clone.
#[derive(Clone)]
pub struct Dispatcher {
    inner: Arc<Inner>,
}

struct Inner {
    cluster: Cluster,
    namespaces: Arc<Namespaces>,
    client: HttpClient,
    settings: Settings,
    now: Box<dyn Fn() -> Timestamp + Send + Sync>,
}

enum Target {
    Worker { namespace_id: String, task_queue: String },
    External { url: String },
}

/// An answer, or an error, and whether that is the worker's.
type Outcome = Result<Answer, Unanswered>;

impl Dispatcher {
    pub fn new(
        cluster: Cluster,
        namespaces: Arc<Namespaces>,
        settings: Settings,
        now: impl Fn() -> Timestamp + Send + Sync + 'static,
    ) -> Self {
        let client = HttpClient::default();
        Self { inner: Arc::new(Inner { cluster, namespaces, client, settings, now: Box::new(now) }) }
    }

    /// Makes one attempt.
    pub async fn call(&self, mut call: NexusCall) -> NexusReply {
        let outcome = match call.call.take() {
            Some(Call::Request(request)) => self.request(&call, request).await,
            Some(Call::Delivery(delivery)) => self.deliver(&call, &delivery).await,
            None => Err(handler_error(BAD_REQUEST, "the call is empty")),
        };
        let outcome = outcome.unwrap_or_else(|failure| nexus_reply::Outcome::HandlerError(Box::new(failure)));
        NexusReply { outcome: Some(outcome) }
    }

    async fn request(&self, call: &NexusCall, request: Request) -> Result<nexus_reply::Outcome, Failure> {
        let begun = Instant::now();
        let is_start = matches!(request.variant, Some(request::Variant::StartOperation(_)));
        let outcome = self.attempt(call, request).await;
        let method = if is_start { "StartOperation" } else { "CancelOperation" };
        let by_worker = outcome.as_ref().is_err_and(|unanswered| unanswered.by_worker);
        let labels = (method, label(&outcome));
        telemetry::requested(self.namespace_name(call), call.endpoint.clone(), labels, by_worker, begun.elapsed());
        match outcome.map_err(|unanswered| unanswered.failure)? {
            Answer::Started(started) if is_start => Ok(nexus_reply::Outcome::Started(started)),
            Answer::Canceled(done) if !is_start => Ok(nexus_reply::Outcome::Canceled(done)),
            // An answer to something else.
            Answer::Started(_) | Answer::Canceled(_) => Err(handler_error(INTERNAL, "empty outcome")),
        }
    }

    async fn attempt(&self, call: &NexusCall, mut request: Request) -> Outcome {
        let timeout = self.timeout(call).map_err(local)?;
        let target = self.target(call).await.map_err(local)?;
        self.complete_headers(call, &mut request);
        match target {
            Target::Worker { namespace_id, task_queue } => {
                self.prepare_for_worker(call, &mut request);
                worker::dispatch(&self.inner.cluster, &namespace_id, &task_queue, request, timeout).await
            }
            Target::External { url } => self.ask_outside(call, &url, request, timeout).await.map_err(local),
        }
    }

    /// How much time there is.
    fn timeout(&self, call: &NexusCall) -> Result<Duration, Failure> {
        let mut timeout =
            if call.timeout_ns > 0 { perdure_types::Duration(call.timeout_ns).to_std() } else { DEFAULT_TIMEOUT };
        if call.deadline_ns != 0 {
            timeout = timeout.min(Timestamp(call.deadline_ns).since((self.inner.now)()).to_std());
        }
        if timeout.is_zero() { Err(handler_error(UPSTREAM_TIMEOUT, "request timed out")) } else { Ok(timeout) }
    }

    async fn target(&self, call: &NexusCall) -> Result<Target, Failure> {
        let namespaces = &self.inner.namespaces;
        // One that was made anew under the name is as good.
        let find = || {
            let by_id = namespaces.nexus_endpoint_by_id(&call.endpoint_id);
            by_id.or_else(|| namespaces.nexus_endpoint_by_name(&call.endpoint))
        };
        let mut found = find();
        if found.is_none() {
            // Another node may have made it a moment ago.
            namespaces.refresh().await.map_err(|error| handler_error::from_error(&error))?;
            found = find();
        }
        let NexusEndpointRecord { endpoint, namespace_id } =
            found.ok_or_else(|| handler_error(NOT_FOUND, "endpoint not registered"))?;
        let variant = endpoint.and_then(|endpoint| endpoint.spec?.target?.variant);
        let invalid = || handler_error::with_retry(NOT_FOUND, "invalid endpoint target", Retry::Retryable);
        match variant.ok_or_else(invalid)? {
            endpoint_target::Variant::Worker(worker) => {
                namespaces.by_id(&namespace_id).ok_or_else(invalid)?;
                Ok(Target::Worker { namespace_id, task_queue: worker.task_queue })
            }
            endpoint_target::Variant::External(external) => Ok(Target::External { url: external.url }),
        }
    }

    /// Names in lower case, and how long the operation may take.
    fn complete_headers(&self, call: &NexusCall, request: &mut Request) {
        let lower = std::mem::take(&mut request.header).into_iter().map(|(name, value)| (name.to_lowercase(), value));
        request.header = lower.collect();
        let close = (call.close_deadline_ns != 0).then(|| Timestamp(call.close_deadline_ns).since((self.inner.now)()));
        let run = (call.start_to_close_ns != 0).then_some(perdure_types::Duration(call.start_to_close_ns));
        if matches!(request.variant, Some(request::Variant::StartOperation(_)))
            && let Some(operation) = close.into_iter().chain(run).min()
        {
            let timeout = spans::format(operation.to_std());
            request.header.entry(headers::OPERATION_TIMEOUT.to_owned()).or_insert(timeout);
        }
    }

    fn prepare_for_worker(&self, call: &NexusCall, request: &mut Request) {
        request.scheduled_time = (self.inner.now)().to_proto();
        request.endpoint.clone_from(&call.endpoint);
        request.capabilities = Some(request::Capabilities { temporal_failure_responses: true });
        if let Some(request::Variant::StartOperation(start)) = &mut request.variant {
            start.callback = SYSTEM_CALLBACK.to_owned();
            let lower = std::mem::take(&mut start.callback_header).into_iter();
            start.callback_header = lower.map(|(name, value)| (name.to_lowercase(), value)).collect();
        }
    }

    async fn ask_outside(
        &self,
        call: &NexusCall,
        url: &str,
        request: Request,
        timeout: Duration,
    ) -> Result<Answer, Failure> {
        let mut header = HeaderMap::new();
        request.header.iter().for_each(|(name, value)| headers::set(&mut header, name, value));
        headers::set(&mut header, headers::FAILURE_SUPPORT, "true");
        match request.variant {
            Some(request::Variant::StartOperation(mut start)) => {
                start.callback = self.callback_url(call);
                let started = self.inner.client.start(url, &start, &header, timeout).await?;
                Ok(Answer::Started(started))
            }
            Some(request::Variant::CancelOperation(cancel)) => {
                self.inner.client.cancel(url, &cancel, &header, timeout).await?;
                Ok(Answer::Canceled(CancelOperationResponse {}))
            }
            None => Err(handler_error(BAD_REQUEST, "the request is empty")),
        }
    }

    fn callback_url(&self, call: &NexusCall) -> String {
        let template = &self.inner.settings.callback_url;
        template
            .replace("{{.NamespaceName}}", &self.namespace_name(call))
            .replace("{{.NamespaceID}}", &call.namespace_id)
    }

    async fn deliver(&self, call: &NexusCall, delivery: &NexusDelivery) -> Result<nexus_reply::Outcome, Failure> {
        let begun = Instant::now();
        let timeout = self.timeout(call)?;
        let (header, body) = completion::request(delivery);
        let delivered = self.inner.client.complete(&delivery.url, header, body, timeout).await;
        let outcome = delivered.as_ref().err().map_or_else(|| "success".to_owned(), error_label);
        telemetry::delivered(self.namespace_name(call), outcome, begun.elapsed());
        delivered.map(|()| nexus_reply::Outcome::Delivered(nexus_reply::Delivered {}))
    }

    fn namespace_name(&self, call: &NexusCall) -> String {
        let namespace = self.inner.namespaces.by_id(&call.namespace_id);
        namespace.map_or_else(|| "_unknown_".to_owned(), |namespace| namespace.name().to_owned())
    }
}

fn local(failure: Failure) -> Unanswered {
    Unanswered { failure, by_worker: false }
}

/// As Temporal's metrics name it.
fn label(outcome: &Outcome) -> String {
    match outcome {
        Ok(Answer::Started(StartOperationResponse { variant: Some(Variant::AsyncSuccess(_)) })) => "pending".to_owned(),
        Ok(Answer::Started(StartOperationResponse { variant: Some(Variant::Failure(failure)) })) => {
            let canceled = matches!(failure.failure_info, Some(FailureInfo::CanceledFailureInfo(_)));
            format!("operation-unsuccessful:{}", if canceled { "canceled" } else { "failed" })
        }
        Ok(Answer::Started(_) | Answer::Canceled(_)) => "successful".to_owned(),
        Err(unanswered) => error_label(&unanswered.failure),
    }
}

/// Handlers choose their types of errors: those that are not the protocol's share a label.
fn error_label(failure: &Failure) -> String {
    let error_type = handler_error::error_type(failure).unwrap_or_default();
    let known = handler_error::is_known(error_type);
    format!("handler-error:{}", if known { error_type } else { "_unknown_" })
}
