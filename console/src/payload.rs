//! Payloads, as far as they can be read without their codec.

use perdure_proto::temporal::api::{
    common::v1::{Payload, Payloads},
    failure::v1::Failure,
};

/// Shown of one payload.
const MOST_CHARS: usize = 2_000;
const MOST_PAYLOADS: usize = 8;
const MOST_CAUSES: usize = 8;

pub fn all(payloads: Option<&Payloads>) -> Option<String> {
    let payloads = &payloads?.payloads;
    if payloads.is_empty() {
        return None;
    }
    let mut text: Vec<String> = payloads.iter().take(MOST_PAYLOADS).map(one).collect();
    if payloads.len() > MOST_PAYLOADS {
        text.push(format!("… and {} more", payloads.len() - MOST_PAYLOADS));
    }
    Some(text.join("\n"))
}

pub fn one(payload: &Payload) -> String {
    let encoding = payload.metadata.get("encoding").map_or_else(Default::default, |name| String::from_utf8_lossy(name));
    match encoding.as_ref() {
        "binary/null" => "null".to_owned(),
        "json/plain" | "json/protobuf" => {
            let parsed = serde_json::from_slice::<serde_json::Value>(&payload.data).ok();
            let pretty = parsed.and_then(|value| serde_json::to_string_pretty(&value).ok());
            shortened(&pretty.unwrap_or_else(|| String::from_utf8_lossy(&payload.data).into_owned()))
        }
        "" => format!("{} bytes", payload.data.len()),
        other => format!("{} bytes, {other}", payload.data.len()),
    }
}

/// What failed, and because of what.
pub fn failure(failure: &Failure) -> String {
    let mut text = failure.message.clone();
    let mut cause = failure.cause.as_deref();
    for _ in 0..MOST_CAUSES {
        let Some(inner) = cause else { break };
        text.push_str("\ncaused by: ");
        text.push_str(&inner.message);
        cause = inner.cause.as_deref();
    }
    shortened(&text)
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(MOST_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(encoding: &str, data: &[u8]) -> Payload {
        let metadata = [("encoding".to_owned(), encoding.to_owned().into_bytes().into())].into();
        Payload { metadata, data: data.to_vec().into(), ..Payload::default() }
    }

    #[test]
    fn what_can_be_read_is_and_the_rest_is_described() {
        assert_eq!(one(&payload("json/plain", b"\"a\"")), "\"a\"");
        assert_eq!(one(&payload("json/plain", b"{broken \xff")), "{broken \u{fffd}");
        assert_eq!(one(&payload("binary/null", b"")), "null");
        assert_eq!(one(&payload("binary/encrypted", &[0; 9])), "9 bytes, binary/encrypted");
        let long = "é".repeat(5_000);
        assert_eq!(one(&payload("json/plain", long.as_bytes())).chars().count(), MOST_CHARS + 1);
    }
}
