//! Completions as they travel over HTTP: how an operation ended that was started asynchronously.

use bytes::Bytes;
use chrono::{DateTime, NaiveDateTime, SecondsFormat};
use http::{HeaderMap, header};
use perdure_proto::{
    nexus_token,
    perdure::nexus::v1::{NexusCompletion, NexusDelivery, nexus_completion::Outcome},
    temporal::api::failure::v1::failure::FailureInfo,
};

use crate::{
    client::{ended, failure_body},
    content::{Content, is_json},
    failure::{Kind, NexusFailure},
    headers,
};

/// Of HTTP headers.
const HTTP_DATE: &str = "%a, %d %b %Y %H:%M:%S GMT";

/// Headers and body of a delivery.
pub(crate) fn request(delivery: &NexusDelivery) -> (HeaderMap, Bytes) {
    let completion = delivery.completion.clone().unwrap_or_default();
    let mut sent = HeaderMap::new();
    let (state, body) = match &completion.outcome {
        Some(Outcome::Failure(failure)) => {
            let body = failure_body(&NexusFailure::from_temporal(failure), &mut sent);
            let canceled = matches!(failure.failure_info, Some(FailureInfo::CanceledFailureInfo(_)));
            (if canceled { "canceled" } else { "failed" }, body)
        }
        outcome => {
            let payload = match outcome {
                Some(Outcome::Result(payload)) => Some(payload),
                _ => None,
            };
            let content = Content::of(payload);
            for (name, value) in &content.headers {
                headers::set(&mut sent, &format!("{}{name}", headers::CONTENT_PREFIX), value);
            }
            ("succeeded", content.body)
        }
    };
    headers::set(&mut sent, headers::OPERATION_STATE, state);
    if !delivery.request_id.is_empty() {
        headers::set(&mut sent, headers::REQUEST_ID, &delivery.request_id);
    }
    if !completion.operation_token.is_empty() {
        headers::set(&mut sent, headers::OPERATION_TOKEN, &completion.operation_token);
    }
    if completion.start_time_ns != 0 {
        let start = DateTime::from_timestamp_nanos(completion.start_time_ns).format(HTTP_DATE).to_string();
        headers::set(&mut sent, headers::OPERATION_START_TIME, &start);
    }
    if completion.close_time_ns != 0 {
        let close = DateTime::from_timestamp_nanos(completion.close_time_ns);
        let close = close.to_rfc3339_opts(SecondsFormat::AutoSi, true);
        headers::set(&mut sent, headers::OPERATION_CLOSE_TIME, &close);
    }
    headers::set_links(&mut sent, &completion.links);
    // Last: what the caller asked for stands.
    for (name, value) in &delivery.header {
        headers::set(&mut sent, name, value);
    }
    (sent, body)
}

/// What is wrong with a completion that has come.
#[derive(Debug, PartialEq)]
pub struct Unreadable(pub String);

/// Reads a completion, with the token that it brings back.
pub fn read_completion(sent: &HeaderMap, body: Bytes) -> Result<NexusCompletion, Unreadable> {
    let refuse = |problem: &str| Unreadable(problem.to_owned());
    let start = headers::get(sent, headers::OPERATION_START_TIME);
    let start_time_ns = time(start, |text| NaiveDateTime::parse_from_str(text, HTTP_DATE).ok()?.and_utc().into())
        .ok_or_else(|| refuse("failed to parse operation start time header"))?;
    let close = headers::get(sent, headers::OPERATION_CLOSE_TIME);
    let close_time_ns = time(close, |text| DateTime::parse_from_rfc3339(text).ok().map(|time| time.to_utc()))
        .ok_or_else(|| refuse("failed to parse operation close time header"))?;
    let links = headers::links(sent).ok_or_else(|| refuse("failed to decode links from request headers"))?;
    let outcome = match headers::get(sent, headers::OPERATION_STATE) {
        "succeeded" => {
            let content = Content { headers: headers::stripped(sent, headers::CONTENT_PREFIX).collect(), body };
            Outcome::Result(content.into_payload().ok_or_else(|| refuse("invalid result content"))?)
        }
        state @ ("failed" | "canceled") => Outcome::Failure(Box::new(failure(sent, &body, state == "canceled")?)),
        state => return Err(Unreadable(format!("invalid request operation state: {state:?}"))),
    };
    let token = nexus_token::decode(headers::get(sent, nexus_token::HEADER));
    Ok(NexusCompletion {
        token: Some(token.ok_or_else(|| refuse("invalid callback token"))?),
        operation_token: headers::get(sent, headers::OPERATION_TOKEN).to_owned(),
        start_time_ns,
        close_time_ns,
        links,
        outcome: Some(outcome),
    })
}

fn failure(
    sent: &HeaderMap,
    body: &[u8],
    canceled: bool,
) -> Result<perdure_proto::temporal::api::failure::v1::Failure, Unreadable> {
    let content_type = headers::get(sent, header::CONTENT_TYPE.as_str());
    if !is_json(content_type) {
        return Err(Unreadable(format!("invalid request content type: {content_type:?}")));
    }
    let malformed = || Unreadable("failed to decode Failure from request body".to_owned());
    let failure: NexusFailure = serde_json::from_slice(body).map_err(|_| malformed())?;
    let canceled = match failure.kind() {
        Kind::OperationError { canceled } => canceled,
        Kind::HandlerError | Kind::Other => canceled,
    };
    ended(failure, canceled).map_err(|_| malformed())
}

/// No header is no time.
fn time(text: &str, read: impl Fn(&str) -> Option<DateTime<chrono::Utc>>) -> Option<i64> {
    if text.is_empty() { Some(0) } else { read(text)?.timestamp_nanos_opt() }
}

#[cfg(test)]
mod tests {
    use perdure_proto::{
        perdure::nexus::v1::CallbackToken,
        temporal::api::{
            common::v1::Payload,
            failure::v1::{ApplicationFailureInfo, CanceledFailureInfo, Failure},
            nexus::v1::Link,
        },
    };

    use super::*;

    fn token() -> CallbackToken {
        CallbackToken { namespace_id: "n".into(), workflow_id: "w".into(), ..Default::default() }
    }

    fn delivery(outcome: Outcome) -> NexusDelivery {
        let completion = NexusCompletion {
            operation_token: "t".into(),
            start_time_ns: 1_700_000_001_000_000_000,
            close_time_ns: 1_700_000_002_123_000_000,
            links: vec![Link { url: "temporal:///a".into(), r#type: "b.C".into() }],
            outcome: Some(outcome),
            token: None,
        };
        NexusDelivery {
            header: [(nexus_token::HEADER.to_owned(), nexus_token::encode(&token()))].into(),
            completion: Some(completion),
            ..Default::default()
        }
    }

    #[track_caller]
    fn there_and_back(outcome: Outcome) {
        let sent = delivery(outcome);
        let (headers, body) = request(&sent);
        let read = read_completion(&headers, body);
        assert_eq!(read, Ok(NexusCompletion { token: Some(token()), ..sent.completion.unwrap() }));
    }

    #[test]
    fn completions_come_back_as_they_went() {
        let metadata = [("encoding".to_owned(), b"json/plain".as_slice().into())].into();
        there_and_back(Outcome::Result(Payload { metadata, data: "1".into(), ..Default::default() }));
        let canceled = FailureInfo::CanceledFailureInfo(CanceledFailureInfo::default());
        let failure = Failure { message: "c".into(), failure_info: Some(canceled), ..Default::default() };
        there_and_back(Outcome::Failure(Box::new(failure)));
        let info = FailureInfo::ApplicationFailureInfo(ApplicationFailureInfo::default());
        let failure = Failure { message: "f".into(), failure_info: Some(info), ..Default::default() };
        there_and_back(Outcome::Failure(Box::new(failure)));
    }

    #[test]
    fn what_is_refused() {
        let (good, body) = request(&delivery(Outcome::Failure(Box::default())));
        let check = |name: &str, value: &str, expect: &str| {
            let mut headers = good.clone();
            headers::set(&mut headers, name, value);
            assert_eq!(read_completion(&headers, body.clone()), Err(Unreadable(expect.to_owned())));
        };
        check(headers::OPERATION_STATE, "running", "invalid request operation state: \"running\"");
        check(headers::OPERATION_START_TIME, "x", "failed to parse operation start time header");
        check(headers::OPERATION_CLOSE_TIME, "x", "failed to parse operation close time header");
        check(headers::LINK, "x", "failed to decode links from request headers");
        check(nexus_token::HEADER, "x", "invalid callback token");
        check("content-type", "text/plain", "invalid request content type: \"text/plain\"");
    }
}
