//! Callback tokens as handlers get them, in the header [`HEADER`], and bring them back: Temporal's envelope.

use base64::{Engine, engine::general_purpose::URL_SAFE};
use prost::Message;
use serde_json::{Value, json};

use crate::perdure::nexus::v1::CallbackToken;

/// The header that a token travels in. Names of headers are compared without regard to case.
pub const HEADER: &str = "Temporal-Callback-Token";

const VERSION: u64 = 1;

/// The text of a token.
pub fn encode(token: &CallbackToken) -> String {
    json!({ "v": VERSION, "d": URL_SAFE.encode(token.encode_to_vec()) }).to_string()
}

/// The token of a text; `None` if it is none of ours, or names no operation.
pub fn decode(text: &str) -> Option<CallbackToken> {
    let envelope: Value = serde_json::from_str(text).ok()?;
    if envelope.get("v")?.as_u64()? != VERSION {
        return None;
    }
    let bytes = URL_SAFE.decode(envelope.get("d")?.as_str()?).ok()?;
    let token = CallbackToken::decode(bytes.as_slice()).ok()?;
    (!token.namespace_id.is_empty() && !token.workflow_id.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_comes_back_as_it_went() {
        let token = CallbackToken {
            namespace_id: "n".into(),
            workflow_id: "w/1 ü".into(),
            run_id: "r".into(),
            scheduled_event_id: 5,
            request_id: "q".into(),
            entity_kind: 1,
        };
        assert_eq!(decode(&encode(&token)), Some(token));
    }

    #[test]
    fn what_is_no_token() {
        for text in ["", "{}", "x", r#"{"v":2,"d":""}"#, r#"{"v":1,"d":"%"}"#, r#"{"v":1,"d":""}"#, r#"{"v":1}"#] {
            assert_eq!(decode(text), None, "{text:?}");
        }
    }
}
