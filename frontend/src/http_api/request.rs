//! A request message out of a body, a query string and the variables of a path.

use axum::http::{HeaderMap, header};
use prost_reflect::{DeserializeOptions, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value};
use tonic::Status;

use super::{payloads, routes::Parameters};

/// How the caller wants its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) pretty: bool,
    pub(super) payload_shorthand: bool,
}

impl Options {
    /// By query (`?pretty&noPayloadShorthand`), or by media type (`application/json+pretty+no-payload-shorthand`).
    pub(super) fn of(query: &str, headers: &HeaderMap) -> Self {
        let asked = |name: &str| pairs(query).any(|(key, _)| key == name);
        let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        Self {
            pretty: asked("pretty") || accept.contains("+pretty"),
            payload_shorthand: !asked("noPayloadShorthand") && !accept.contains("+no-payload-shorthand"),
        }
    }

    pub(super) fn content_type(self) -> &'static str {
        match (self.pretty, self.payload_shorthand) {
            (false, true) => "application/json",
            (true, true) => "application/json+pretty",
            (false, false) => "application/json+no-payload-shorthand",
            (true, false) => "application/json+pretty+no-payload-shorthand",
        }
    }
}

fn pairs(query: &str) -> impl Iterator<Item = (std::borrow::Cow<'_, str>, std::borrow::Cow<'_, str>)> {
    form_urlencoded::parse(query.as_bytes())
}

/// The message: first the body, then the query's fields, then the path's, which none of the others can change.
pub(super) fn message(
    descriptor: &MessageDescriptor,
    body: &[u8],
    query: &str,
    parameters: &Parameters,
) -> Result<DynamicMessage, Status> {
    let mut value = if body.iter().all(u8::is_ascii_whitespace) {
        Value::Object(Map::new())
    } else {
        serde_json::from_slice(body).map_err(|error| Status::invalid_argument(format!("invalid JSON: {error}")))?
    };
    if !value.is_object() {
        return Err(Status::invalid_argument("the body must be a JSON object"));
    }
    payloads::expand(descriptor, &mut value);
    for (key, text) in pairs(query) {
        if !matches!(&*key, "pretty" | "noPayloadShorthand") {
            // As the gateway: what is no field of the request is not an error.
            let _ = set(descriptor, &mut value, &key, &text);
        }
    }
    for (field, text) in parameters {
        set(descriptor, &mut value, field, text)?;
    }
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    DynamicMessage::deserialize_with_options(descriptor.clone(), value, &options)
        .map_err(|error| Status::invalid_argument(error.to_string()))
}

/// Puts `text` at a dotted path of field names, as JSON of the field's kind.
fn set(descriptor: &MessageDescriptor, value: &mut Value, path: &str, text: &str) -> Result<(), Status> {
    let unknown = || Status::invalid_argument(format!("{path} is not a field of {}", descriptor.name()));
    let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
    let field =
        descriptor.get_field_by_name(name).or_else(|| descriptor.get_field_by_json_name(name)).ok_or_else(unknown)?;
    let object = value.as_object_mut().ok_or_else(unknown)?;
    // A body may spell the name either way; only one of the two may stay.
    if field.json_name() != field.name()
        && let Some(given) = object.remove(field.name())
    {
        object.insert(field.json_name().to_owned(), given);
    }
    match (rest, field.kind()) {
        (Some(rest), Kind::Message(inner)) if !field.is_list() && !field.is_map() => {
            let slot = object.entry(field.json_name()).or_insert_with(|| Value::Object(Map::new()));
            if !slot.is_object() {
                *slot = Value::Object(Map::new());
            }
            set(&inner, slot, rest, text)
        }
        (None, _) if field.is_list() => {
            let slot = object.entry(field.json_name()).or_insert_with(|| Value::Array(Vec::new()));
            slot.as_array_mut().ok_or_else(unknown)?.push(scalar(&field, text)?);
            Ok(())
        }
        (None, _) => {
            object.insert(field.json_name().to_owned(), scalar(&field, text)?);
            Ok(())
        }
        (Some(_), _) => Err(unknown()),
    }
}

/// JSON accepts numbers, enums, times and bytes as strings; only a bool has no string form.
fn scalar(field: &FieldDescriptor, text: &str) -> Result<Value, Status> {
    if !matches!(field.kind(), Kind::Bool) {
        // Numbers of an enum have to be numbers.
        let number = matches!(field.kind(), Kind::Enum(_)).then(|| text.parse::<i32>().ok()).flatten();
        return Ok(number.map_or_else(|| Value::from(text), Value::from));
    }
    let invalid = |_| Status::invalid_argument(format!("{} must be true or false", field.name()));
    text.parse().map(Value::Bool).map_err(invalid)
}

#[cfg(test)]
mod tests {
    use perdure_proto::TEMPORAL_DESCRIPTORS;
    use prost_reflect::{DescriptorPool, SerializeOptions};
    use serde_json::json;

    use super::*;

    fn built(name: &str, body: &str, query: &str, path: &[(&str, &str)]) -> Result<Value, Status> {
        let pool = DescriptorPool::decode(TEMPORAL_DESCRIPTORS).unwrap();
        let descriptor = pool.get_message_by_name(&format!("temporal.api.workflowservice.v1.{name}")).unwrap();
        let path = path.iter().map(|(field, text)| ((*field).to_owned(), (*text).to_owned())).collect();
        let message = message(&descriptor, body.as_bytes(), query, &path)?;
        Ok(message.serialize_with_options(serde_json::value::Serializer, &SerializeOptions::new()).unwrap())
    }

    #[test]
    fn a_path_wins_over_a_query_and_a_body() {
        let body = r#"{"workflow_id": "from-body", "workflowType": {"name": "T"}, "input": [1, {"a": null}]}"#;
        let value = built("StartWorkflowExecutionRequest", body, "", &[("workflow_id", "from-path")]).unwrap();
        assert_eq!(value["workflowId"], "from-path");
        assert_eq!(value["workflowType"]["name"], "T");
        assert_eq!(value["input"]["payloads"].as_array().unwrap().len(), 2);
    }

    #[test]
    fn a_query_fills_fields_of_any_kind() {
        let query = "execution.runId=r&waitNewEvent=true&maximumPageSize=7&historyEventFilterType=2&pretty&other=1";
        let path = [("namespace", "n"), ("execution.workflow_id", "w")];
        let value = built("GetWorkflowExecutionHistoryRequest", "", query, &path).unwrap();
        let expected = json!({
            "namespace": "n",
            "execution": { "workflowId": "w", "runId": "r" },
            "maximumPageSize": 7,
            "waitNewEvent": true,
            "historyEventFilterType": "HISTORY_EVENT_FILTER_TYPE_CLOSE_EVENT",
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn what_is_not_json_is_an_invalid_argument() {
        for body in ["{", "[]", r#"{"workflowId": {}}"#] {
            let status = built("StartWorkflowExecutionRequest", body, "", &[]).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{body}");
        }
    }
}
