//! Payloads as bodies of requests, and back. What a header can say of a payload is said so, so that handlers that know
//! nothing of Temporal can read it.

use std::collections::BTreeMap;

use bytes::Bytes;
use perdure_proto::temporal::api::common::v1::Payload;
use prost::Message;

/// Of a payload that came from elsewhere, with headers that Temporal's encodings do not cover.
const UNKNOWN: &str = "unknown/nexus-content";
const ENCODING: &str = "encoding";
const MESSAGE_TYPE: &str = "messageType";
const TEMPORAL_PAYLOAD: &str = "application/x-temporal-payload";

/// A body, and its headers without their prefix `content-`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Content {
    pub headers: BTreeMap<String, String>,
    pub body: Bytes,
}

fn text<'a>(payload: &'a Payload, key: &str) -> &'a str {
    payload.metadata.get(key).and_then(|value| std::str::from_utf8(value).ok()).unwrap_or_default()
}

impl Content {
    fn typed(content_type: &str, body: Bytes) -> Self {
        Self { headers: [("type".to_owned(), content_type.to_owned())].into(), body }
    }

    /// No payload is an empty body.
    pub fn of(payload: Option<&Payload>) -> Self {
        let Some(payload) = payload else { return Self::default() };
        let as_it_is = || Self::typed(TEMPORAL_PAYLOAD, payload.encode_to_vec().into());
        let body = payload.data.clone();
        let message_type = text(payload, MESSAGE_TYPE);
        let has = |count: usize| payload.metadata.len() == count && payload.external_payloads.is_empty();
        match text(payload, ENCODING) {
            UNKNOWN => {
                let others = payload.metadata.iter().filter(|(key, _)| *key != ENCODING);
                let headers = others.map(|(key, value)| (key.clone(), String::from_utf8_lossy(value).into_owned()));
                Self { headers: headers.collect(), body }
            }
            "json/protobuf" if has(2) && !message_type.is_empty() => {
                let content_type = format!("application/json; format=protobuf; message-type={message_type:?}");
                Self::typed(&content_type, body)
            }
            "binary/protobuf" if has(2) && !message_type.is_empty() => {
                Self::typed(&format!("application/x-protobuf; message-type={message_type:?}"), body)
            }
            "json/plain" if has(1) => Self::typed("application/json", body),
            "binary/plain" if has(1) => Self::typed("application/octet-stream", body),
            "binary/null" if has(1) => Self { body, ..Self::default() },
            _ => as_it_is(),
        }
    }

    /// `None`: a body that is not what its type says.
    pub fn into_payload(mut self) -> Option<Payload> {
        // The body is decoded already, and has the length that it has.
        self.headers.remove("encoding");
        self.headers.remove("length");
        let content_type = self.headers.get("type").cloned().unwrap_or_default();
        if self.headers.is_empty() && self.body.is_empty() {
            return Some(encoded("binary/null", &[], self.body));
        }
        if self.headers.len() > 1 || content_type.is_empty() {
            return Some(self.unknown());
        }
        let Some((media_type, parameters)) = media_type(&content_type) else { return Some(self.unknown()) };
        let message_type = parameters.get("message-type").filter(|name| !name.is_empty());
        let is_protobuf = parameters.get("format").is_some_and(|format| format == "protobuf");
        match (media_type.as_str(), parameters.len(), message_type) {
            (TEMPORAL_PAYLOAD, _, _) => Payload::decode(self.body).ok(),
            ("application/json", 0, _) => Some(encoded("json/plain", &[], self.body)),
            ("application/json", 2, Some(name)) if is_protobuf => {
                Some(encoded("json/protobuf", &[(MESSAGE_TYPE, name)], self.body))
            }
            ("application/x-protobuf", 1, Some(name)) => {
                Some(encoded("binary/protobuf", &[(MESSAGE_TYPE, name)], self.body))
            }
            ("application/octet-stream", 0, _) => Some(encoded("binary/plain", &[], self.body)),
            _ => Some(self.unknown()),
        }
    }

    fn unknown(self) -> Payload {
        let headers: Vec<_> = self.headers.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        encoded(UNKNOWN, &headers, self.body)
    }
}

fn encoded(encoding: &str, more: &[(&str, &str)], data: Bytes) -> Payload {
    let metadata = more.iter().copied().chain([(ENCODING, encoding)]);
    let metadata = metadata.map(|(key, value)| (key.to_owned(), Bytes::copy_from_slice(value.as_bytes())));
    Payload { metadata: metadata.collect(), data, ..Payload::default() }
}

/// `type/subtype; key=value; key="value"`.
fn media_type(text: &str) -> Option<(String, BTreeMap<String, String>)> {
    let mut parts = text.split(';');
    let media_type = parts.next()?.trim().to_lowercase();
    let mut parameters = BTreeMap::new();
    for part in parts {
        let (key, value) = part.trim().split_once('=')?;
        let value = value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value);
        parameters.insert(key.to_lowercase(), value.to_owned());
    }
    (!media_type.is_empty()).then_some((media_type, parameters))
}

/// Whether a content type is JSON, whatever its parameters.
pub fn is_json(content_type: &str) -> bool {
    media_type(content_type).is_some_and(|(media_type, _)| media_type == "application/json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn there_and_back(encoding: &str, more: &[(&str, &str)], content_type: Option<&str>) {
        let payload = encoded(encoding, more, "data".into());
        let content = Content::of(Some(&payload));
        assert_eq!(content.headers.get("type").map(String::as_str), content_type);
        assert_eq!(content.into_payload(), Some(payload));
    }

    #[test]
    fn payloads_come_back_as_they_went() {
        there_and_back("json/plain", &[], Some("application/json"));
        there_and_back("binary/plain", &[], Some("application/octet-stream"));
        let protobuf = [(MESSAGE_TYPE, "a.b.C")];
        there_and_back("json/protobuf", &protobuf, Some(r#"application/json; format=protobuf; message-type="a.b.C""#));
        there_and_back("binary/protobuf", &protobuf, Some(r#"application/x-protobuf; message-type="a.b.C""#));
        there_and_back("json/encrypted", &[("key", "1")], Some(TEMPORAL_PAYLOAD));
        there_and_back("json/plain", &[("key", "1")], Some(TEMPORAL_PAYLOAD));
        there_and_back(UNKNOWN, &[("type", "text/plain"), ("language", "de")], Some("text/plain"));
    }

    #[test]
    fn nothing_is_null() {
        let null = Content::of(None).into_payload().expect("a payload");
        assert_eq!(null, encoded("binary/null", &[], Bytes::new()));
        assert_eq!(Content::of(Some(&null)), Content::default());
    }

    #[test]
    fn a_body_that_is_no_payload_is_refused() {
        assert_eq!(Content::typed(TEMPORAL_PAYLOAD, "\u{7f}".into()).into_payload(), None);
    }

    #[test]
    fn other_parameters_make_it_unknown() {
        let payload = Content::typed("application/json; charset=utf-8", "1".into()).into_payload().expect("a payload");
        assert_eq!(text(&payload, ENCODING), UNKNOWN);
        assert!(is_json("Application/JSON; charset=utf-8") && !is_json("text/json") && !is_json(""));
    }
}
