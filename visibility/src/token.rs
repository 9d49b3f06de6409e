//! Page tokens: where a list goes on. Clients hand them back as they got them; nonsense is refused, never believed.

use std::{cmp::Reverse, sync::Arc};

use bytes::Bytes;
use perdure_types::{ListPlace, Timestamp};
use prost::Message;

use crate::{order::SortKey, value::Value};

/// How to go on with a list.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Token {
    /// When the first page was read.
    pub begun_at: Timestamp,
    pub after: After,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum After {
    Place(ListPlace),
    Key(SortKey),
}

#[derive(Clone, PartialEq, Message)]
struct Wire {
    #[prost(int64, tag = "1")]
    begun_at_ns: i64,
    #[prost(string, tag = "2")]
    run_id: String,
    #[prost(bool, tag = "3")]
    closed: bool,
    #[prost(int64, tag = "4")]
    at_ns: i64,
    /// Set for a sorted list.
    #[prost(message, repeated, tag = "5")]
    key: Vec<WireValue>,
}

#[derive(Clone, PartialEq, Message)]
struct WireValue {
    #[prost(oneof = "Kind", tags = "1, 2, 3, 4, 5")]
    kind: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum Kind {
    #[prost(int64, tag = "1")]
    Integer(i64),
    #[prost(double, tag = "2")]
    Number(f64),
    #[prost(bool, tag = "3")]
    Bool(bool),
    #[prost(int64, tag = "4")]
    Micros(i64),
    #[prost(string, tag = "5")]
    Text(String),
}

impl Token {
    pub fn encode(&self) -> Bytes {
        let begun_at_ns = self.begun_at.0;
        let wire = match &self.after {
            After::Place(place) => Wire {
                begun_at_ns,
                run_id: place.run_id.to_string(),
                closed: place.closed,
                at_ns: place.at.0.0,
                key: Vec::new(),
            },
            After::Key(key) => Wire {
                begun_at_ns,
                run_id: key.run_id.to_string(),
                key: key.values.iter().map(wire_value).collect(),
                ..Wire::default()
            },
        };
        wire.encode_to_vec().into()
    }

    /// `sorted_by`: how many attributes the query is sorted by.
    pub fn decode(bytes: &[u8], sorted_by: usize) -> Option<Self> {
        let wire = Wire::decode(bytes).ok()?;
        if wire.run_id.is_empty() || wire.key.len() != sorted_by {
            return None;
        }
        let run_id: Arc<str> = wire.run_id.into();
        let after = if sorted_by == 0 {
            After::Place(ListPlace { closed: wire.closed, at: Reverse(Timestamp(wire.at_ns)), run_id })
        } else {
            After::Key(SortKey { values: wire.key.into_iter().map(value).collect(), run_id })
        };
        Some(Self { begun_at: Timestamp(wire.begun_at_ns), after })
    }
}

fn wire_value(value: &Value) -> WireValue {
    let kind = match value {
        Value::Integer(value) => Some(Kind::Integer(*value)),
        Value::Number(value) => Some(Kind::Number(*value)),
        Value::Bool(value) => Some(Kind::Bool(*value)),
        Value::Micros(value) => Some(Kind::Micros(*value)),
        Value::Text(value) => Some(Kind::Text(value.clone())),
        Value::Null | Value::Many(_) => None,
    };
    WireValue { kind }
}

fn value(wire: WireValue) -> Value {
    match wire.kind {
        Some(Kind::Integer(value)) => Value::Integer(value),
        Some(Kind::Number(value)) => Value::Number(value),
        Some(Kind::Bool(value)) => Value::Bool(value),
        Some(Kind::Micros(value)) => Value::Micros(value),
        Some(Kind::Text(value)) => Value::Text(value),
        None => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_they_left() {
        let place = ListPlace { closed: true, at: Reverse(Timestamp(-5)), run_id: "run".into() };
        let token = Token { begun_at: Timestamp(7), after: After::Place(place) };
        assert_eq!(Token::decode(&token.encode(), 0), Some(token.clone()));
        assert_eq!(Token::decode(&token.encode(), 1), None, "of a list in another order");
        let values =
            vec![Value::Null, Value::Text("x".into()), Value::Micros(3), Value::Bool(true), Value::Number(0.5)];
        let token = Token { begun_at: Timestamp(7), after: After::Key(SortKey { values, run_id: "run".into() }) };
        assert_eq!(Token::decode(&token.encode(), 5), Some(token));
    }

    #[test]
    fn nonsense_is_refused() {
        for bytes in [&b"nonsense"[..], b"", b"\0\0\0"] {
            assert_eq!(Token::decode(bytes, 0), None);
        }
    }
}
