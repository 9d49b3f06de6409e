//! Payloads in shorthand: the JSON that a payload holds, in place of its base64. Rules as in Temporal's API library.
//!
//! A value is walked along with its descriptor, for JSON alone does not tell where a payload stands.

use base64::{Engine, engine::general_purpose::STANDARD};
use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};

const PAYLOAD: &str = "temporal.api.common.v1.Payload";
const PAYLOADS: &str = "temporal.api.common.v1.Payloads";
/// In the JSON of a protobuf payload, names the message.
const MESSAGE_TYPE: &str = "_protoMessageType";

/// Rewrites every payload of `value`, a message of this kind, into shorthand where there is one.
pub(super) fn shorten(descriptor: &MessageDescriptor, value: &mut Value) {
    match descriptor.full_name() {
        PAYLOAD => {
            if let Some(short) = short(value) {
                *value = short;
            }
        }
        PAYLOADS => {
            let payloads = value.get_mut("payloads").map(Value::take).unwrap_or_else(|| json!([]));
            let Value::Array(mut payloads) = payloads else { return };
            for payload in &mut payloads {
                if let Some(short) = short(payload) {
                    *payload = short;
                }
            }
            *value = Value::Array(payloads);
        }
        _ => walk(descriptor, value, shorten),
    }
}

/// The reverse: what stands where a payload belongs becomes one.
pub(super) fn expand(descriptor: &MessageDescriptor, value: &mut Value) {
    match descriptor.full_name() {
        PAYLOAD => *value = long(value.take()),
        PAYLOADS => {
            if let Value::Array(payloads) = value {
                let payloads: Vec<Value> = payloads.drain(..).map(long).collect();
                *value = json!({ "payloads": payloads });
            }
        }
        _ => walk(descriptor, value, expand),
    }
}

fn walk(descriptor: &MessageDescriptor, value: &mut Value, visit: fn(&MessageDescriptor, &mut Value)) {
    let Value::Object(object) = value else { return };
    for (name, value) in object {
        let field = descriptor.get_field_by_json_name(name).or_else(|| descriptor.get_field_by_name(name));
        if let Some(field) = field {
            walk_field(&field, value, visit);
        }
    }
}

fn walk_field(field: &FieldDescriptor, value: &mut Value, visit: fn(&MessageDescriptor, &mut Value)) {
    let Kind::Message(inner) = field.kind() else { return };
    match value {
        Value::Object(entries) if field.is_map() => {
            if let Kind::Message(inner) = inner.map_entry_value_field().kind() {
                entries.values_mut().for_each(|value| visit(&inner, value));
            }
        }
        Value::Array(items) if field.is_list() => items.iter_mut().for_each(|value| visit(&inner, value)),
        // A field of type Payload may be null: that is a payload too. Of other messages null means absent.
        value => visit(&inner, value),
    }
}

/// `None`: only the long form says all that this payload holds.
fn short(payload: &Value) -> Option<Value> {
    let decode = |value: &Value| STANDARD.decode(value.as_str()?).ok();
    let metadata = payload.get("metadata")?.as_object()?;
    let encoding = decode(metadata.get("encoding")?)?;
    let data = || decode(payload.get("data")?);
    match (&encoding[..], metadata.len()) {
        // Null is read as such a payload, but not written: a field that is null would be as if absent.
        (b"binary/null", 1) => None,
        (b"json/plain", 1) => {
            let value: Value = serde_json::from_slice(&data()?).ok()?;
            // What would be read back as something else stays long.
            let ambiguous = value.get(MESSAGE_TYPE).is_some() || is_long(&value) || value.is_null();
            (!ambiguous).then_some(value)
        }
        (b"json/protobuf", 2) => {
            let message_type = String::from_utf8(decode(metadata.get("messageType")?)?).ok()?;
            let mut object: Map<String, Value> = serde_json::from_slice(&data()?).ok()?;
            object.insert(MESSAGE_TYPE.to_owned(), Value::from(message_type)).is_none().then_some(Value::Object(object))
        }
        _ => None,
    }
}

/// Is it a payload as protobuf's own JSON writes it?
fn is_long(value: &Value) -> bool {
    value.as_object().is_some_and(|object| {
        let of_payload = |key: &String| matches!(key.as_str(), "metadata" | "data" | "externalPayloads");
        object.get("metadata").is_some_and(Value::is_object) && object.keys().all(of_payload)
    })
}

fn long(value: Value) -> Value {
    let payload = |metadata: &[(&str, &str)], data: Option<&Value>| {
        let metadata: Map<String, Value> =
            metadata.iter().map(|(key, text)| ((*key).to_owned(), Value::from(STANDARD.encode(text)))).collect();
        let mut payload = json!({ "metadata": metadata });
        if let (Some(data), Some(object)) = (data, payload.as_object_mut()) {
            object.insert("data".to_owned(), Value::from(STANDARD.encode(data.to_string())));
        }
        payload
    };
    match value {
        Value::Null => payload(&[("encoding", "binary/null")], None),
        value if is_long(&value) => value,
        Value::Object(mut object) => match object.remove(MESSAGE_TYPE) {
            Some(Value::String(name)) => {
                payload(&[("encoding", "json/protobuf"), ("messageType", &name)], Some(&Value::Object(object)))
            }
            _ => payload(&[("encoding", "json/plain")], Some(&Value::Object(object))),
        },
        value => payload(&[("encoding", "json/plain")], Some(&value)),
    }
}

#[cfg(test)]
mod tests {
    use perdure_proto::TEMPORAL_DESCRIPTORS;
    use prost_reflect::DescriptorPool;

    use super::*;

    #[track_caller]
    fn round_trip(short: &Value) {
        let pool = DescriptorPool::decode(TEMPORAL_DESCRIPTORS).unwrap();
        let descriptor =
            pool.get_message_by_name("temporal.api.workflowservice.v1.StartWorkflowExecutionRequest").unwrap();
        let message = json!({ "input": [short], "memo": { "fields": { "k": short } } });
        let mut value = message.clone();
        expand(&descriptor, &mut value);
        assert!(is_long(&value["memo"]["fields"]["k"]), "{value}");
        assert!(is_long(&value["input"]["payloads"][0]), "{value}");
        shorten(&descriptor, &mut value);
        assert_eq!(value, message);
    }

    #[test]
    fn shorthand_is_read_back_as_it_was_written() {
        for value in [json!(1), json!("text"), json!([1, null]), json!({"a": {"b": 1.5}})] {
            round_trip(&value);
        }
        round_trip(&json!({ "_protoMessageType": "some.Message", "field": 1 }));
    }

    #[test]
    fn null_is_read_as_the_payload_of_nothing() {
        let null = long(Value::Null);
        assert_eq!(null, json!({ "metadata": { "encoding": STANDARD.encode("binary/null") } }));
        round_trip(&null);
    }

    #[test]
    fn what_shorthand_cannot_say_stays_long() {
        let other = json!({ "metadata": { "encoding": STANDARD.encode("binary/plain") }, "data": "AAEC" });
        round_trip(&other);
        let more = json!({
            "metadata": { "encoding": STANDARD.encode("json/plain"), "key": STANDARD.encode("1") },
            "data": STANDARD.encode("1"),
        });
        round_trip(&more);
        let looks_long = json!({ "metadata": {} });
        let plain = long(Value::from(1));
        assert!(
            short(&json!({ "metadata": plain["metadata"], "data": STANDARD.encode(looks_long.to_string()) })).is_none()
        );
    }
}
