//! Values of search attributes: out of payloads, and compared with each other.

use std::{cmp::Ordering, collections::HashMap, sync::Arc};

use chrono::DateTime;
use perdure_proto::temporal::api::common::v1::Payload;
use serde_json::Value as Json;

use crate::attributes::{Kind, kind_name};

/// A value as filters compare it. Times are in microseconds, which is as fine as Temporal's SQL stores are: what a
/// client rounded still matches.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Integer(i64),
    Number(f64),
    Bool(bool),
    Micros(i64),
    Text(String),
    Many(Vec<Value>),
}

impl Value {
    pub fn micros(nanos: i64) -> Self {
        Self::Micros(nanos.div_euclid(1000))
    }

    /// `None`: they cannot be compared.
    pub fn compare(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Integer(a), Self::Integer(b)) | (Self::Micros(a), Self::Micros(b)) => Some(a.cmp(b)),
            (Self::Integer(a), Self::Number(b)) => (*a as f64).partial_cmp(b),
            (Self::Number(a), Self::Integer(b)) => a.partial_cmp(&(*b as f64)),
            (Self::Number(a), Self::Number(b)) => a.partial_cmp(b),
            (Self::Bool(a), Self::Bool(b)) => Some(a.cmp(b)),
            (Self::Text(a), Self::Text(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }

    /// The value, or each of several.
    pub fn each(&self) -> &[Value] {
        match self {
            Self::Null => &[],
            Self::Many(values) => values,
            one => std::slice::from_ref(one),
        }
    }
}

/// Nanoseconds since the epoch of a date and time as RFC 3339 has it.
pub(crate) fn parse_time(text: &str) -> Option<i64> {
    // The library also takes a space there.
    let strict = text.as_bytes().get(10) == Some(&b'T');
    let time = DateTime::parse_from_rfc3339(text).ok().filter(|_| strict)?;
    let seconds = time.timestamp();
    Some(seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(time.timestamp_subsec_nanos())))
}

fn json(payload: &Payload) -> Option<Json> {
    match payload.metadata.get("encoding").map(|encoding| &encoding[..]) {
        Some(b"binary/null") => Some(Json::Null),
        Some(b"json/plain") => serde_json::from_slice(&payload.data).ok(),
        _ => None,
    }
}

fn scalar(json: &Json, kind: Kind) -> Option<Value> {
    match (kind, json) {
        (Kind::Keyword | Kind::Text | Kind::KeywordList, Json::String(text)) => Some(Value::Text(text.clone())),
        (Kind::Datetime, Json::String(text)) => parse_time(text).map(Value::micros),
        (Kind::Bool, Json::Bool(value)) => Some(Value::Bool(*value)),
        (Kind::Int, Json::Number(number)) => number.as_i64().map(Value::Integer),
        (Kind::Double, Json::Number(number)) => number.as_f64().map(Value::Number),
        _ => None,
    }
}

/// The value that a payload holds for an attribute of this kind; `None` if it holds none. Kinds of one value take a list
/// too, as Temporal does.
pub(crate) fn decode(payload: &Payload, kind: Kind) -> Option<Value> {
    match json(payload)? {
        Json::Null => Some(Value::Null),
        Json::Array(items) if items.is_empty() => Some(Value::Null),
        Json::Array(items) => items.iter().map(|item| scalar(item, kind)).collect::<Option<_>>().map(Value::Many),
        _ if kind == Kind::KeywordList => None,
        one => scalar(&one, kind),
    }
}

/// A payload does not hold what its attribute asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidValue {
    pub kind: &'static str,
    /// What it holds, for a message.
    pub value: String,
}

/// Whether a client may set an attribute of this kind to this. A null takes the attribute away.
pub fn check_value(payload: &Payload, kind: Kind) -> Result<(), InvalidValue> {
    if decode(payload, kind).is_some() {
        return Ok(());
    }
    let value = json(payload).map_or_else(|| "value from an unknown encoding".to_owned(), |json| show(&json));
    Err(InvalidValue { kind: kind_name(kind), value })
}

fn show(json: &Json) -> String {
    match json {
        Json::String(text) => text.clone(),
        Json::Array(items) => format!("[{}]", items.iter().map(show).collect::<Vec<_>>().join(" ")),
        Json::Null => "<nil>".to_owned(),
        other => other.to_string(),
    }
}

/// Longest value that can be found by the keyword index.
pub(crate) const LONGEST_KEYWORD_BYTES: usize = 255;

/// The values by which a run can be found: every text among its search attributes, whatever its kind, since the kind is
/// known to the namespace only.
pub fn keywords_of(fields: &HashMap<String, Payload>) -> Vec<(Arc<str>, Arc<str>)> {
    let mut keywords = Vec::new();
    for (name, payload) in fields {
        let found = match json(payload) {
            Some(Json::String(text)) => vec![text],
            Some(Json::Array(items)) => items.into_iter().filter_map(|item| item.as_str().map(str::to_owned)).collect(),
            _ => Vec::new(),
        };
        let short = found.into_iter().filter(|value| value.len() <= LONGEST_KEYWORD_BYTES);
        keywords.extend(short.map(|value| (Arc::from(name.as_str()), Arc::from(value))));
    }
    keywords.sort();
    keywords.dedup();
    keywords
}

/// Words as a full-text index takes them: letters and digits, in lower case.
pub(crate) fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(json: &str) -> Payload {
        Payload {
            metadata: [("encoding".to_owned(), b"json/plain".to_vec().into())].into(),
            data: json.as_bytes().to_vec().into(),
            ..Default::default()
        }
    }

    #[test]
    fn values_have_the_kind_of_their_attribute() {
        let check = |json: &str, kind, valid: bool| {
            assert_eq!(check_value(&payload(json), kind).is_ok(), valid, "{json} as {kind:?}");
        };
        check("\"x\"", Kind::Keyword, true);
        check("5", Kind::Keyword, false);
        check("5", Kind::Int, true);
        check("5.5", Kind::Int, false);
        check("5.5", Kind::Double, true);
        check("5", Kind::Double, true);
        check("true", Kind::Bool, true);
        check("\"true\"", Kind::Bool, false);
        check("\"2026-01-02T03:04:05.678Z\"", Kind::Datetime, true);
        check("\"2026-01-02\"", Kind::Datetime, false);
        check("[\"a\",\"b\"]", Kind::KeywordList, true);
        check("\"a\"", Kind::KeywordList, false);
        check("[1]", Kind::KeywordList, false);
        check("null", Kind::Int, true);
        check("[]", Kind::Int, true);
        check("[1,2]", Kind::Int, true);
        check("{", Kind::Text, false);
    }

    #[test]
    fn refusals_show_the_value() {
        let refused = check_value(&payload("[\"a\",1]"), Kind::Int).expect_err("no int");
        assert_eq!(refused, InvalidValue { kind: "Int", value: "[a 1]".into() });
    }

    #[test]
    fn keywords_are_texts() {
        let fields = [("A", "\"x\""), ("B", "[\"y\",\"y\",\"z\"]"), ("C", "5")];
        let fields = fields.iter().map(|(name, json)| ((*name).to_owned(), payload(json))).collect();
        let found = keywords_of(&fields);
        let found: Vec<_> = found.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(found, [("A", "x"), ("B", "y"), ("B", "z")]);
    }

    #[test]
    fn times_are_strict() {
        assert_eq!(parse_time("1970-01-01T00:00:01.5Z"), Some(1_500_000_000));
        assert_eq!(parse_time("1970-01-01T01:00:00+01:00"), Some(0));
        assert_eq!(parse_time("1970-01-01 00:00:01Z"), None);
        assert_eq!(parse_time("1970-01-01T00:00:01"), None);
    }
}
