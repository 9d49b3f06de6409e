//! The HTTP API: each RPC also at the paths that its `google.api.http` annotation gives, JSON in and out.
//!
//! Beside them are the paths of Nexus, which is a protocol of its own ([`nexus`]).
//!
//! Nothing else here knows any RPC: paths and messages come from the descriptors, and a call goes through the same gRPC
//! services in this process, with their checks, limits and metrics. Behaviour follows Temporal's HTTP API: payloads in
//! shorthand unless `noPayloadShorthand` is asked for, errors as `google.rpc.Status`, HTTP codes as the gRPC gateway's.

mod nexus;
mod payloads;
mod request;
mod routes;

use std::{future::poll_fn, sync::LazyLock};

use axum::{
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header},
};
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::BodyExt;
use perdure_proto::TEMPORAL_DESCRIPTORS;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor, SerializeOptions};
use serde_json::Value;
use tonic::{Code, Status, service::Routes as Services};
use tower_service::Service;

use self::{request::Options, routes::Routes};
use crate::{Frontend, MAX_REQUEST_BYTES};

/// Name of the client that the gRPC side sees when the caller gives none; Temporal's.
const CLIENT_NAME: &str = "temporal-server-http";

/// What is passed on to the gRPC side as it is.
const FORWARDED: [&str; 6] =
    ["authorization", "authorization-extras", "x-forwarded-for", "client-name", "client-version", "grpc-timeout"];

/// The gateway's prefix of headers that become gRPC metadata.
const METADATA_PREFIX: &str = "grpc-metadata-";

/// The descriptors do not say what they should. A fault of this build.
#[derive(Debug, thiserror::Error)]
#[error("the API's descriptors cannot be used: {0}")]
struct BrokenDescriptors(String);

/// What the descriptors say. It is read when the first request comes: megabytes that most servers never need.
struct Described {
    pool: DescriptorPool,
    routes: Routes,
}

static DESCRIBED: LazyLock<Result<Described, BrokenDescriptors>> = LazyLock::new(|| {
    let pool = DescriptorPool::decode(TEMPORAL_DESCRIPTORS).map_err(|error| BrokenDescriptors(error.to_string()))?;
    Ok(Described { routes: Routes::new(&pool)?, pool })
});

#[derive(Clone)]
struct Api {
    services: Services,
}

/// The HTTP API over `frontend`, to be served on a listener of its own.
pub fn router(frontend: &Frontend) -> axum::Router {
    let services = Services::new(frontend.workflow_service()).add_service(frontend.operator_service()).prepare();
    axum::Router::new().fallback(handle).with_state(Api { services }).merge(nexus::router(frontend))
}

async fn handle(State(api): State<Api>, request: Request<Body>) -> Response<Body> {
    let options = Options::of(request.uri().query().unwrap_or_default(), request.headers());
    match api.call(request, &options).await {
        Ok(value) => respond(StatusCode::OK, &options, &value),
        Err(status) => respond(http_status(status.code()), &options, &api.status_json(&status, &options)),
    }
}

impl Api {
    async fn call(&self, request: Request<Body>, options: &Options) -> Result<Value, Status> {
        let (head, body) = request.into_parts();
        let described = DESCRIBED.as_ref().map_err(|error| Status::internal(error.to_string()))?;
        let (method, parameters) = described.routes.find(&head.method, head.uri.path())?;
        let body = read_body(body).await?;
        let query = head.uri.query().unwrap_or_default();
        let has_body = !matches!(head.method, Method::GET | Method::DELETE);
        let message = request::message(&method.input(), if has_body { &body } else { b"" }, query, &parameters)?;
        let answer = self.grpc(&method, &head.headers, &message).await?;
        let answer = DynamicMessage::decode(method.output(), answer)
            .map_err(|error| Status::internal(format!("the answer cannot be read: {error}")))?;
        json(&answer, options)
    }

    /// One unary call, framed as gRPC does, on the services of this process.
    async fn grpc(
        &self,
        method: &MethodDescriptor,
        headers: &HeaderMap,
        message: &DynamicMessage,
    ) -> Result<Bytes, Status> {
        let mut frame = BytesMut::with_capacity(5 + message.encoded_len());
        frame.put_u8(0);
        frame.put_u32(
            u32::try_from(message.encoded_len()).map_err(|_| Status::resource_exhausted("request too large"))?,
        );
        message.encode(&mut frame).map_err(|error| Status::internal(error.to_string()))?;
        let mut request = Request::new(tonic::body::Body::new(http_body_util::Full::new(frame.freeze())));
        *request.method_mut() = Method::POST;
        let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
        *request.uri_mut() = path.parse().map_err(|_| Status::internal("the method has no path"))?;
        *request.headers_mut() = metadata(headers);
        let mut services = self.services.clone();
        let Ok(()) = poll_fn(|context| Service::<Request<tonic::body::Body>>::poll_ready(&mut services, context)).await;
        let Ok(response) = services.call(request).await;
        if let Some(status) = Status::from_header_map(response.headers())
            && status.code() != Code::Ok
        {
            return Err(status);
        }
        let collected = response.into_body().collect().await?;
        if let Some(status) = collected.trailers().and_then(Status::from_header_map)
            && status.code() != Code::Ok
        {
            return Err(status);
        }
        let mut answer = collected.to_bytes();
        // One message follows its flag and length; no compression was offered.
        if answer.len() < 5 {
            return Err(Status::internal("the answer is empty"));
        }
        Ok(answer.split_off(5))
    }

    /// `google.rpc.Status`, with the details that came along.
    fn status_json(&self, status: &Status, options: &Options) -> Value {
        let plain = || serde_json::json!({ "code": status.code() as i32, "message": status.message() });
        if status.details().is_empty() {
            return plain();
        }
        let status_descriptor =
            DESCRIBED.as_ref().ok().and_then(|known| known.pool.get_message_by_name("google.rpc.Status"));
        status_descriptor
            .and_then(|descriptor| DynamicMessage::decode(descriptor, Bytes::copy_from_slice(status.details())).ok())
            .and_then(|message| json(&message, options).ok())
            .unwrap_or_else(plain)
    }
}

async fn read_body(body: Body) -> Result<Bytes, Status> {
    let limited = http_body_util::Limited::new(body, MAX_REQUEST_BYTES);
    let collected = limited.collect().await.map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok(collected.to_bytes())
}

fn metadata(headers: &HeaderMap) -> HeaderMap {
    let mut metadata = HeaderMap::new();
    metadata.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    metadata.insert("te", HeaderValue::from_static("trailers"));
    metadata.insert("client-name", HeaderValue::from_static(CLIENT_NAME));
    metadata.insert("client-version", HeaderValue::from_static(crate::COMPATIBLE_SERVER_VERSION));
    for (name, value) in headers {
        if FORWARDED.contains(&name.as_str()) {
            metadata.insert(name, value.clone());
        } else if let Some(Ok(name)) = name.as_str().strip_prefix(METADATA_PREFIX).map(HeaderName::try_from) {
            metadata.append(name, value.clone());
        }
    }
    metadata
}

fn json(message: &DynamicMessage, options: &Options) -> Result<Value, Status> {
    let mut value = message
        .serialize_with_options(serde_json::value::Serializer, &SerializeOptions::new())
        .map_err(|error| Status::internal(format!("the answer cannot be written as JSON: {error}")))?;
    if options.payload_shorthand {
        payloads::shorten(&prost_reflect::ReflectMessage::descriptor(message), &mut value);
    }
    Ok(value)
}

fn respond(status: StatusCode, options: &Options, value: &Value) -> Response<Body> {
    let text = if options.pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    let mut response = Response::new(Body::from(text.unwrap_or_default()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(options.content_type()));
    response
}

/// The gRPC gateway's table.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
