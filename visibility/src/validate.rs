//! Which search attributes a client or a workflow may set.

use perdure_proto::temporal::api::common::v1::SearchAttributes;
use prost::Message;

use crate::{
    attributes::{Attributes, may_be_set},
    value::check_value,
};

const MOST_KEYS: usize = 100;
const LARGEST_VALUE_BYTES: usize = 2 << 10;
const LARGEST_TOTAL_BYTES: usize = 40 << 10;

/// Why search attributes are refused, in Temporal's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The namespace has no attribute of that name; it may have got it a moment ago.
    Unknown(String),
    Invalid(String),
}

impl Refusal {
    pub fn into_message(self) -> String {
        match self {
            Self::Unknown(message) | Self::Invalid(message) => message,
        }
    }
}

/// Checks names, values and sizes of attributes that are to be set in a namespace.
pub fn check(given: &SearchAttributes, attributes: &Attributes, namespace: &str) -> Result<(), Refusal> {
    // In the order of their names: the same request always gets the same answer.
    let mut names: Vec<&String> = given.indexed_fields.keys().collect();
    names.sort();
    for name in &names {
        if attributes.kind(name).is_none() {
            return Err(Refusal::Unknown(format!(
                "Namespace {namespace} has no mapping defined for search attribute {name}"
            )));
        }
    }
    let count = names.len();
    if count > MOST_KEYS {
        return Err(Refusal::Invalid(format!("number of search attributes {count} exceeds limit {MOST_KEYS}")));
    }
    for name in &names {
        if may_be_set(name) == Some(false) {
            return Err(Refusal::Invalid(format!("{name} attribute can't be set in SearchAttributes")));
        }
        let (Some(payload), Some(kind)) = (given.indexed_fields.get(*name), attributes.kind(name)) else { continue };
        check_value(payload, kind).map_err(|invalid| {
            let (kind, value) = (invalid.kind, invalid.value);
            Refusal::Invalid(format!("invalid value for search attribute {name} of type {kind}: {value}"))
        })?;
    }
    for name in names {
        let bytes = given.indexed_fields.get(name).map_or(0, |payload| payload.data.len());
        if bytes > LARGEST_VALUE_BYTES {
            return Err(Refusal::Invalid(format!(
                "search attribute {name} value size {bytes} exceeds size limit {LARGEST_VALUE_BYTES}"
            )));
        }
    }
    let bytes = given.encoded_len();
    if bytes > LARGEST_TOTAL_BYTES {
        return Err(Refusal::Invalid(format!(
            "total size of search attributes {bytes} exceeds size limit {LARGEST_TOTAL_BYTES}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use perdure_proto::temporal::api::common::v1::Payload;

    use super::*;

    fn refused(fields: &[(&str, &str)]) -> Result<(), String> {
        let field = |(name, json): &(&str, &str)| {
            let metadata = [("encoding".to_owned(), b"json/plain".to_vec().into())].into();
            let data = json.as_bytes().to_vec().into();
            ((*name).to_owned(), Payload { metadata, data, ..Default::default() })
        };
        let given = SearchAttributes { indexed_fields: fields.iter().map(field).collect() };
        let aliases = [("Keyword01".to_owned(), "Customer".to_owned()), ("Int01".to_owned(), "Size".to_owned())];
        check(&given, &Attributes::from_aliases(&aliases.into()), "default").map_err(Refusal::into_message)
    }

    #[test]
    fn rules() {
        let check = |fields: &[(&str, &str)], expect: Result<(), &str>| {
            assert_eq!(refused(fields), expect.map_err(str::to_owned), "{fields:?}");
        };
        check(&[], Ok(()));
        check(&[("Customer", "\"c\""), ("BuildIds", "[\"b\"]"), ("Size", "null")], Ok(()));
        check(&[("WorkflowId", "\"w\"")], Err("WorkflowId attribute can't be set in SearchAttributes"));
        check(
            &[("TemporalWorkerDeployment", "\"w\"")],
            Err("TemporalWorkerDeployment attribute can't be set in SearchAttributes"),
        );
        check(&[("Nope", "1")], Err("Namespace default has no mapping defined for search attribute Nope"));
        check(
            &[("Keyword01", "\"c\"")],
            Err("Namespace default has no mapping defined for search attribute Keyword01"),
        );
        check(&[("Size", "\"x\"")], Err("invalid value for search attribute Size of type Int: x"));
        let long = format!("\"{}\"", "x".repeat(2047));
        check(&[("Customer", long.as_str())], Err("search attribute Customer value size 2049 exceeds size limit 2048"));
    }
}
