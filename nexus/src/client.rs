//! Nexus over HTTP, from the caller's side: operations of handlers outside, and completions for callers outside.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use perdure_proto::temporal::api::{
    enums::v1::NexusHandlerErrorRetryBehavior as Retry,
    failure::v1::{ApplicationFailureInfo, CanceledFailureInfo, Failure, failure::FailureInfo},
    nexus::v1::{
        CancelOperationRequest, Link, StartOperationRequest, StartOperationResponse,
        start_operation_response::{Async, Sync, Variant},
    },
};
use perdure_types::spans;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;

use crate::{
    content::{self, Content},
    failure::{Kind, NexusFailure},
    handler_error::{self, BAD_REQUEST, INTERNAL, UNAVAILABLE, UPSTREAM_TIMEOUT},
    headers,
};

/// Largest body of an answer.
const MAX_BODY_BYTES: usize = 4 << 20;
const USER_AGENT: &str = "temporalio/server";
const JSON: &str = "application/json";
/// The status of an answer that says how the operation has failed.
const OPERATION_UNSUCCESSFUL: StatusCode = StatusCode::FAILED_DEPENDENCY;
/// What may stand in a segment of a path as it is.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

type Answer = Response<Bytes>;

/// Makes requests. Cheap to clone.
#[derive(Clone)]
pub struct HttpClient {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Default for HttpClient {
    fn default() -> Self {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the default protocol versions are those of the default provider")
            .with_root_certificates(system_roots())
            .with_no_client_auth();
        let connector = HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().build();
        Self { client: Client::builder(TokioExecutor::new()).build(connector) }
    }
}

/// The authorities that this machine trusts; none at all: no https.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

impl HttpClient {
    /// Starts an operation. `Err`: a handler's error, or why there was no answer.
    pub async fn start(
        &self,
        base: &str,
        request: &StartOperationRequest,
        header: &HeaderMap,
        timeout: Duration,
    ) -> Result<StartOperationResponse, Failure> {
        let query = Some(&request.callback).filter(|callback| !callback.is_empty());
        let uri = operation_uri(base, &[&request.service, &request.operation], query)?;
        let content = Content::of(request.payload.as_ref());
        let mut sent = header.clone();
        headers::set(&mut sent, headers::REQUEST_ID, &request.request_id);
        for (name, value) in &content.headers {
            headers::set(&mut sent, &format!("{}{name}", headers::CONTENT_PREFIX), value);
        }
        for (name, value) in &request.callback_header {
            headers::set(&mut sent, &format!("{}{name}", headers::CALLBACK_PREFIX), value);
        }
        headers::set_links(&mut sent, &request.links);
        let answer = self.post(uri, sent, content.body, timeout).await?;
        start_answer(&answer)
    }

    /// Asks for an operation to be canceled.
    pub async fn cancel(
        &self,
        base: &str,
        request: &CancelOperationRequest,
        header: &HeaderMap,
        timeout: Duration,
    ) -> Result<(), Failure> {
        let uri = operation_uri(base, &[&request.service, &request.operation, "cancel"], None)?;
        let mut sent = header.clone();
        headers::set(&mut sent, headers::OPERATION_TOKEN, &request.operation_token);
        let answer = self.post(uri, sent, Bytes::new(), timeout).await?;
        if answer.status() == StatusCode::ACCEPTED { Ok(()) } else { Err(error_of(&answer)) }
    }

    /// Delivers a completion.
    pub async fn complete(&self, url: &str, header: HeaderMap, body: Bytes, timeout: Duration) -> Result<(), Failure> {
        let uri = url.parse().map_err(|error| invalid_url(url, &error))?;
        let answer = self.post(uri, header, body, timeout).await?;
        if answer.status().is_success() { Ok(()) } else { Err(error_of(&answer)) }
    }

    async fn post(&self, uri: Uri, mut sent: HeaderMap, body: Bytes, timeout: Duration) -> Result<Answer, Failure> {
        headers::set(&mut sent, header::USER_AGENT.as_str(), USER_AGENT);
        headers::set(&mut sent, headers::REQUEST_TIMEOUT, &spans::format(timeout));
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = uri;
        *request.headers_mut() = sent;
        let exchange = async {
            let unreachable = |error: &dyn std::error::Error| {
                handler_error::handler_error(UNAVAILABLE, format!("request failed: {}", with_sources(error)))
            };
            let response = self.client.request(request).await.map_err(|error| unreachable(&error))?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_BODY_BYTES).collect().await.map_err(|error| {
                if error.is::<http_body_util::LengthLimitError>() {
                    return handler_error::with_retry(INTERNAL, "http: response body too large", Retry::NonRetryable);
                }
                unreachable(&*error)
            })?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        let late = |_| handler_error::handler_error(UPSTREAM_TIMEOUT, "request timed out");
        tokio::time::timeout(timeout, exchange).await.map_err(late)?
    }
}

fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

fn invalid_url(url: &str, error: &dyn std::fmt::Display) -> Failure {
    handler_error::handler_error(BAD_REQUEST, format!("invalid URL {url:?}: {error}"))
}

/// `base/segment/…?callback=…`, whatever query the base has.
fn operation_uri(base: &str, segments: &[&str], callback: Option<&String>) -> Result<Uri, Failure> {
    let (path, query) = base.split_once('?').unwrap_or((base, ""));
    let mut text = path.trim_end_matches('/').to_owned();
    for segment in segments {
        text.push('/');
        text.extend(utf8_percent_encode(segment, SEGMENT));
    }
    let mut queries: Vec<String> = Some(query.to_owned()).filter(|query| !query.is_empty()).into_iter().collect();
    if let Some(callback) = callback {
        queries.push(form_urlencoded::Serializer::new(String::new()).append_pair("callback", callback).finish());
    }
    if !queries.is_empty() {
        text.push('?');
        text.push_str(&queries.join("&"));
    }
    text.parse().map_err(|error| invalid_url(&text, &error))
}

fn start_answer(answer: &Answer) -> Result<StartOperationResponse, Failure> {
    let Some(links) = headers::links(answer.headers()) else {
        return Err(unexpected("invalid links header", answer));
    };
    let variant = match answer.status() {
        StatusCode::OK => {
            let content = Content {
                headers: headers::stripped(answer.headers(), headers::CONTENT_PREFIX).collect(),
                body: answer.body().clone(),
            };
            let payload = content.into_payload().ok_or_else(|| unexpected("invalid payload in response", answer))?;
            Variant::SyncSuccess(Sync { payload: Some(payload), links })
        }
        StatusCode::CREATED => Variant::AsyncSuccess(started(answer, links)?),
        OPERATION_UNSUCCESSFUL => Variant::Failure(unsuccessful(answer)?),
        _ => return Err(error_of(answer)),
    };
    Ok(StartOperationResponse { variant: Some(variant) })
}

#[allow(deprecated)]
fn started(answer: &Answer, links: Vec<Link>) -> Result<Async, Failure> {
    let info: Value = json(answer).ok_or_else(|| unexpected("invalid operation info in response", answer))?;
    let text = |key: &str| info.get(key).and_then(Value::as_str).unwrap_or_default();
    if text("state") != "running" {
        return Err(unexpected(&format!("invalid operation state in response info: {:?}", text("state")), answer));
    }
    // Older handlers call it an id.
    let token = Some(text("token")).filter(|token| !token.is_empty()).unwrap_or(text("id"));
    if token.is_empty() {
        return Err(unexpected("empty operation token in response", answer));
    }
    Ok(Async { operation_id: token.to_owned(), operation_token: token.to_owned(), links })
}

/// What has failed. It is a cancellation if the handler says so, however it says it.
fn unsuccessful(answer: &Answer) -> Result<Failure, Failure> {
    let failure: NexusFailure = json(answer).ok_or_else(|| unexpected("invalid failure in response", answer))?;
    let canceled = match failure.kind() {
        Kind::OperationError { canceled } => canceled,
        Kind::HandlerError | Kind::Other => match headers::get(answer.headers(), headers::OPERATION_STATE) {
            "canceled" => true,
            "failed" => false,
            other => return Err(unexpected(&format!("invalid operation state header: {other:?}"), answer)),
        },
    };
    let malformed = |error| unexpected(&format!("invalid failure in response: {error}"), answer);
    ended(failure, canceled).map_err(malformed)
}

/// The failure of an operation that has failed or was canceled.
pub(crate) fn ended(failure: NexusFailure, canceled: bool) -> Result<Failure, crate::failure::Malformed> {
    let mut failure = failure.unwrapped().to_temporal()?;
    if failure.failure_info.is_none() && !canceled {
        // SDKs know what to do with failures that say what they are.
        let info = ApplicationFailureInfo { r#type: "NexusFailure".to_owned(), ..ApplicationFailureInfo::default() };
        failure.failure_info = Some(FailureInfo::ApplicationFailureInfo(info));
    }
    let says_so = matches!(failure.failure_info, Some(FailureInfo::CanceledFailureInfo(_)));
    if says_so == canceled {
        return Ok(failure);
    }
    if canceled {
        let info = Some(FailureInfo::CanceledFailureInfo(CanceledFailureInfo::default()));
        let message = failure.message.clone();
        return Ok(Failure { message, failure_info: info, cause: Some(Box::new(failure)), ..Failure::default() });
    }
    // It failed because something in it was canceled.
    let info =
        ApplicationFailureInfo { r#type: "OperationError".to_owned(), non_retryable: true, ..Default::default() };
    let info = Some(FailureInfo::ApplicationFailureInfo(info));
    let message = failure.message.clone();
    Ok(Failure { message, failure_info: info, cause: Some(Box::new(failure)), ..Failure::default() })
}

fn json<T: serde::de::DeserializeOwned>(answer: &Answer) -> Option<T> {
    let content_type = headers::get(answer.headers(), header::CONTENT_TYPE.as_str());
    if !content::is_json(content_type) {
        return None;
    }
    serde_json::from_slice(answer.body()).ok()
}

/// An answer that the protocol does not have. It may be a better one next time.
fn unexpected(problem: &str, answer: &Answer) -> Failure {
    let said = json::<NexusFailure>(answer).map(|failure| failure.message).filter(|message| !message.is_empty());
    let message = said.map_or_else(|| problem.to_owned(), |said| format!("{problem}: {said}"));
    handler_error::with_retry(INTERNAL, message, Retry::Retryable)
}

/// The error that an answer with an error's status says.
fn error_of(answer: &Answer) -> Failure {
    let said = json::<NexusFailure>(answer);
    if let Some(failure) = &said
        && failure.kind() == Kind::HandlerError
        && let Ok(failure) = failure.to_temporal()
    {
        return failure;
    }
    let Some(error_type) = handler_error::type_of(answer.status()) else {
        return unexpected(&format!("unexpected response status: \"{}\"", answer.status()), answer);
    };
    let retry = match headers::get(answer.headers(), headers::RETRYABLE).to_lowercase().as_str() {
        "true" => Retry::Retryable,
        "false" => Retry::NonRetryable,
        _ => Retry::Unspecified,
    };
    let cause = said.and_then(|failure| failure.to_temporal().ok());
    let message = cause.as_ref().map_or_else(String::new, |cause| cause.message.clone());
    Failure { cause: cause.map(Box::new), ..handler_error::with_retry(error_type, message, retry) }
}

/// The body and content type of a failure.
pub(crate) fn failure_body(failure: &NexusFailure, sent: &mut HeaderMap) -> Bytes {
    headers::set(sent, header::CONTENT_TYPE.as_str(), JSON);
    serde_json::to_vec(failure).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_operations() {
        let check = |base: &str, callback: Option<&str>, expect: &str| {
            let callback = callback.map(str::to_owned);
            let uri = operation_uri(base, &["my service", "a/b"], callback.as_ref()).expect("an address");
            assert_eq!(uri.to_string(), expect);
        };
        check("http://h:1/x/", None, "http://h:1/x/my%20service/a%2Fb");
        check(
            "http://h?k=v",
            Some("http://c/?a=b"),
            "http://h/my%20service/a%2Fb?k=v&callback=http%3A%2F%2Fc%2F%3Fa%3Db",
        );
        assert!(operation_uri("http://[", &["a"], None).is_err());
    }

    fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut answer = Response::new(Bytes::copy_from_slice(body.as_bytes()));
        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
        headers.iter().for_each(|(name, value)| headers::set(answer.headers_mut(), name, value));
        answer
    }

    #[test]
    fn answers_to_a_start() {
        let json = ("content-type", JSON);
        let sync = start_answer(&answer(200, &[json, ("nexus-link", "<a>; type=b")], "1")).unwrap();
        assert!(matches!(sync.variant, Some(Variant::SyncSuccess(sync)) if sync.links.len() == 1));
        let started = start_answer(&answer(201, &[json], r#"{"token":"t","state":"running"}"#)).unwrap();
        assert!(matches!(started.variant, Some(Variant::AsyncSuccess(started)) if started.operation_token == "t"));
        let canceled = [json, (headers::OPERATION_STATE, "canceled")];
        let failed = start_answer(&answer(424, &canceled, r#"{"message":"no"}"#)).unwrap();
        let Some(Variant::Failure(failure)) = failed.variant else { panic!("{failed:?}") };
        assert_eq!(failure.message, "no");
        assert!(matches!(failure.failure_info, Some(FailureInfo::CanceledFailureInfo(_))));
    }

    #[track_caller]
    fn check_error(answer: Answer, expect: (&str, Retry, &str)) {
        let failure = start_answer(&answer).expect_err("an error");
        let Some(FailureInfo::NexusHandlerFailureInfo(info)) = &failure.failure_info else { panic!("{failure:?}") };
        assert_eq!((info.r#type.as_str(), info.retry_behavior(), failure.message.as_str()), expect);
    }

    #[test]
    fn errors_of_handlers() {
        let json = ("content-type", JSON);
        check_error(answer(404, &[json], r#"{"message":"no"}"#), ("NOT_FOUND", Retry::Unspecified, "no"));
        let final_one = [json, (headers::RETRYABLE, "false")];
        check_error(answer(503, &final_one, "{}"), ("UNAVAILABLE", Retry::NonRetryable, ""));
        check_error(answer(520, &[], ""), ("UPSTREAM_TIMEOUT", Retry::Unspecified, ""));
        let own = r#"{"message":"m","metadata":{"type":"nexus.HandlerError"},"details":{"type":"CONFLICT"}}"#;
        check_error(answer(500, &[json], own), ("CONFLICT", Retry::Unspecified, "m"));
        let teapot = "unexpected response status: \"418 I'm a teapot\": x";
        check_error(answer(418, &[json], r#"{"message":"x"}"#), ("INTERNAL", Retry::Retryable, teapot));
        check_error(answer(201, &[], "{}"), ("INTERNAL", Retry::Retryable, "invalid operation info in response"));
    }
}
