//! Knows whether an answer that hands out a task left this node.
//!
//! A task in an answer that cannot be written any more belongs to a worker that is gone: its owner is told, so that the
//! task is offered again at once and not at its timeout. A guard travels from the handler with the response and is
//! disarmed when the connection has taken the last frame; dropped before that, wherever that may be, it reports.
//! Workflow tasks stay with the [`Connection`] for a while after that.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use perdure_cluster::{Cluster, trace};
use perdure_proto::perdure::node::v1::{TaskToken, task_token};
use perdure_types::TRACE_TARGET;
use prost::Message;
use tonic::{
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::NamedService,
};
use tracing::{Instrument, Span};

use crate::{connection::Connection, metrics};

/// The tasks that the answer of a call hands out.
pub(crate) struct Deliveries {
    cluster: Cluster,
    tokens: Mutex<Vec<Bytes>>,
}

impl Deliveries {
    pub(crate) fn new(cluster: Cluster) -> Self {
        Self { cluster, tokens: Mutex::default() }
    }

    pub(crate) fn add(&self, task_token: &Bytes) {
        if !task_token.is_empty() {
            self.tokens.lock().unwrap_or_else(PoisonError::into_inner).push(task_token.clone());
        }
    }

    /// Puts a guard for the tasks on the response, if there are any.
    pub(crate) fn attach<T>(&mut self, response: &mut tonic::Response<T>) {
        let tokens = std::mem::take(self.tokens.get_mut().unwrap_or_else(PoisonError::into_inner));
        if !tokens.is_empty() {
            let guard = Guard { cluster: self.cluster.clone(), tokens };
            response.extensions_mut().insert(Undelivered(Arc::new(Mutex::new(Some(guard)))));
        }
    }
}

impl Drop for Deliveries {
    /// The handler was dropped between taking a task and answering.
    fn drop(&mut self) {
        let tokens = std::mem::take(self.tokens.get_mut().unwrap_or_else(PoisonError::into_inner));
        if !tokens.is_empty() {
            drop(Guard { cluster: self.cluster.clone(), tokens });
        }
    }
}

/// Extensions must be `Clone`; the guard is not: whoever takes it first has it.
#[derive(Clone)]
struct Undelivered(Arc<Mutex<Option<Guard>>>);

impl Undelivered {
    fn take(&self) -> Option<Guard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

pub(crate) struct Guard {
    cluster: Cluster,
    tokens: Vec<Bytes>,
}

impl Guard {
    /// The answer has been taken for writing: nodes that the tasks came through need not remember them.
    fn handed_on(&self) {
        for token in &self.tokens {
            self.cluster.handed_on(token);
        }
    }

    pub(crate) fn disarm(mut self) {
        self.tokens.clear();
    }

    /// Keeps only workflow tasks: those that may be offered again though a worker may have them.
    fn repeatable(mut self) -> Option<Self> {
        self.tokens.retain(|token| {
            TaskToken::decode(token.clone()).is_ok_and(|token| token.kind() == task_token::Kind::Workflow)
        });
        (!self.tokens.is_empty()).then_some(self)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        for token in std::mem::take(&mut self.tokens) {
            let Some(token) = offered_again(&token) else { continue };
            metrics::task_undelivered();
            // Best effort: the task's own timeout stands behind it.
            self.cluster.undelivered(token);
        }
    }
}

/// `None` for tokens of queries: their callers wait and ask again.
fn offered_again(token: &Bytes) -> Option<TaskToken> {
    let token = TaskToken::decode(token.clone()).ok()?;
    matches!(token.kind(), task_token::Kind::Workflow | task_token::Kind::Activity).then_some(token)
}

/// A gRPC service whose answers are watched until they are written. It also says "too large" as gRPC clients know it.
#[derive(Clone)]
pub struct Guarded<S> {
    inner: S,
}

impl<S> Guarded<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S: NamedService> NamedService for Guarded<S> {
    const NAME: &'static str = S::NAME;
}

impl<S, B> Service<http::Request<B>> for Guarded<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let connection = request.extensions().get::<Arc<Connection>>().cloned();
        let span = span_of(&request);
        let answer = self.inner.call(request);
        Box::pin(async move {
            let mut response = answer.instrument(span).await?;
            rename_too_large(response.headers_mut());
            let Some(guard) = response.extensions_mut().remove::<Undelivered>().and_then(|u| u.take()) else {
                return Ok(response);
            };
            Ok(response.map(|inner| Body::new(GuardedBody { inner, guard: Some(guard), connection })))
        })
    }
}

/// The call in its trace, which is the client's if it has one.
fn span_of<B>(request: &http::Request<B>) -> Span {
    let path = request.uri().path();
    let method = || path.rsplit_once('/').map_or("", |(_, method)| method);
    // Fields are looked at only if somebody wants the span.
    let span =
        tracing::info_span!(target: TRACE_TARGET, "rpc", otel.name = method(), otel.kind = "server", rpc.path = path);
    if span.is_disabled() {
        return span;
    }
    let traceparent = request.headers().get("traceparent").and_then(|value| value.to_str().ok());
    trace::follow(span, traceparent.unwrap_or_default())
}

struct GuardedBody {
    inner: Body,
    guard: Option<Guard>,
    connection: Option<Arc<Connection>>,
}

impl http_body::Body for GuardedBody {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, tonic::Status>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        let taken = match &frame {
            Poll::Ready(None) => true,
            Poll::Ready(Some(Ok(frame))) => frame.is_trailers(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => false,
        };
        if taken && let Some(guard) = self.guard.take() {
            guard.handed_on();
            match (guard.repeatable(), &self.connection) {
                (Some(guard), Some(connection)) => connection.remember(guard),
                (Some(guard), None) => guard.disarm(),
                (None, _) => {}
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.inner.size_hint()
    }
}

/// tonic refuses a request over the limit as OUT_OF_RANGE. Clients look for RESOURCE_EXHAUSTED with this text, to tell
/// it from overload and to not try again.
fn rename_too_large(headers: &mut http::HeaderMap) {
    if headers.get("grpc-status").is_none_or(|s| s != "11") {
        return;
    }
    let Some(status) = tonic::Status::from_header_map(headers) else {
        return;
    };
    let message = status.message();
    if !message.contains("message length too large") {
        return;
    }
    let mut numbers = message.split(|c: char| !c.is_ascii_digit()).filter(|n| !n.is_empty());
    let (found, limit) = (numbers.next().unwrap_or("?"), numbers.next().unwrap_or("?"));
    let renamed =
        tonic::Status::resource_exhausted(format!("grpc: received message larger than max ({found} vs. {limit})"));
    if renamed.add_header(headers).is_err() {
        tracing::debug!("a status that tonic cannot encode");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_large_is_said_as_clients_know_it() {
        let mut headers = tonic::Status::out_of_range(
            "Error, decoded message length too large: found 5000000 bytes, the limit is: 4194304 bytes",
        )
        .into_http::<Body>()
        .headers()
        .clone();
        rename_too_large(&mut headers);
        assert_eq!(headers["grpc-status"], "8");
        let status = tonic::Status::from_header_map(&headers).expect("a status");
        assert_eq!(status.message(), "grpc: received message larger than max (5000000 vs. 4194304)");
    }

    #[test]
    fn other_statuses_stay() {
        let mut headers = tonic::Status::out_of_range("page").into_http::<Body>().headers().clone();
        rename_too_large(&mut headers);
        assert_eq!(headers["grpc-status"], "11");
    }
}
