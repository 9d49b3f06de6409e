//! Links as Nexus has them (a URL and a type) and as Temporal's events have them. Only links that stand for something of
//! Temporal's can be told apart; others are left out, as they help nobody.

use std::collections::BTreeMap;

use crate::temporal::api::{
    common::v1::{Link, link},
    enums::v1::EventType,
    nexus::v1,
};

const WORKFLOW_EVENT: &str = "temporal.api.common.v1.Link.WorkflowEvent";
const WORKFLOW: &str = "temporal.api.common.v1.Link.Workflow";
const NEXUS_OPERATION: &str = "temporal.api.common.v1.Link.NexusOperation";
const ACTIVITY: &str = "temporal.api.common.v1.Link.Activity";

const EVENT_REFERENCE: &str = "EventReference";
const REQUEST_ID_REFERENCE: &str = "RequestIdReference";

/// A link of Temporal's, as Nexus requests carry it.
pub fn to_nexus(link: &Link) -> Option<v1::Link> {
    let (kind, path, query) = match link.variant.as_ref()? {
        link::Variant::WorkflowEvent(to) => {
            let path = path(&["namespaces", &to.namespace, "workflows", &to.workflow_id, &to.run_id, "history"]);
            (WORKFLOW_EVENT, path, reference_query(to.reference.as_ref()))
        }
        link::Variant::Workflow(to) => {
            let path = path(&["namespaces", &to.namespace, "workflows", &to.workflow_id, &to.run_id]);
            (WORKFLOW, path, query(&[("reason", &to.reason)]))
        }
        link::Variant::NexusOperation(to) => {
            let path =
                path(&["namespaces", &to.namespace, "nexus-operations", &to.operation_id, &to.run_id, "details"]);
            (NEXUS_OPERATION, path, String::new())
        }
        link::Variant::Activity(to) => {
            let path = path(&["namespaces", &to.namespace, "activities", &to.activity_id, &to.run_id, "details"]);
            (ACTIVITY, path, String::new())
        }
        link::Variant::BatchJob(_) | link::Variant::Callback(_) => return None,
    };
    let url = if query.is_empty() { format!("temporal://{path}") } else { format!("temporal://{path}?{query}") };
    Some(v1::Link { url, r#type: kind.to_owned() })
}

/// The link of Temporal's that a link from Nexus is.
pub fn from_nexus(link: &v1::Link) -> Option<Link> {
    let rest = link.url.strip_prefix("temporal://")?;
    // Some write an empty host as none.
    let rest = rest.strip_prefix('/')?;
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let parts: Vec<String> = path.split('/').map(unescape).collect::<Option<_>>()?;
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    if parts.iter().any(|part| part.is_empty()) {
        return None;
    }
    let variant = match (link.r#type.as_str(), parts.as_slice()) {
        (WORKFLOW_EVENT, ["namespaces", namespace, "workflows", workflow_id, run_id, "history"]) => {
            link::Variant::WorkflowEvent(link::WorkflowEvent {
                namespace: (*namespace).to_owned(),
                workflow_id: (*workflow_id).to_owned(),
                run_id: (*run_id).to_owned(),
                reference: Some(reference(query)?),
            })
        }
        (WORKFLOW, ["namespaces", namespace, "workflows", workflow_id, run_id]) => {
            link::Variant::Workflow(link::Workflow {
                namespace: (*namespace).to_owned(),
                workflow_id: (*workflow_id).to_owned(),
                run_id: (*run_id).to_owned(),
                reason: values(query)?.remove("reason").unwrap_or_default(),
            })
        }
        (NEXUS_OPERATION, ["namespaces", namespace, "nexus-operations", operation_id, run_id, "details"]) => {
            link::Variant::NexusOperation(link::NexusOperation {
                namespace: (*namespace).to_owned(),
                operation_id: (*operation_id).to_owned(),
                run_id: (*run_id).to_owned(),
            })
        }
        (ACTIVITY, ["namespaces", namespace, "activities", activity_id, run_id, "details"]) => {
            link::Variant::Activity(link::Activity {
                namespace: (*namespace).to_owned(),
                activity_id: (*activity_id).to_owned(),
                run_id: (*run_id).to_owned(),
            })
        }
        _ => return None,
    };
    Some(Link { variant: Some(variant) })
}

fn reference_query(reference: Option<&link::workflow_event::Reference>) -> String {
    use link::workflow_event::Reference;
    match reference {
        None => String::new(),
        Some(Reference::EventRef(event)) => {
            let id = if event.event_id > 0 { event.event_id.to_string() } else { String::new() };
            let kind = event_type_name(event.event_type());
            query(&[("eventID", &id), ("eventType", &kind), ("referenceType", EVENT_REFERENCE)])
        }
        Some(Reference::RequestIdRef(request)) => {
            let kind = event_type_name(request.event_type());
            query(&[("eventType", &kind), ("referenceType", REQUEST_ID_REFERENCE), ("requestID", &request.request_id)])
        }
    }
}

fn reference(query: &str) -> Option<link::workflow_event::Reference> {
    use link::workflow_event::{EventReference, Reference, RequestIdReference};
    let mut values = values(query)?;
    let event_type = event_type_of(&values.remove("eventType").unwrap_or_default())? as i32;
    match values.remove("referenceType")?.as_str() {
        EVENT_REFERENCE => {
            let id = values.remove("eventID").unwrap_or_default();
            let event_id = if id.is_empty() { 0 } else { id.parse().ok()? };
            Some(Reference::EventRef(EventReference { event_id, event_type }))
        }
        REQUEST_ID_REFERENCE => {
            let request_id = values.remove("requestID").unwrap_or_default();
            Some(Reference::RequestIdRef(RequestIdReference { request_id, event_type }))
        }
        _ => None,
    }
}

/// `EVENT_TYPE_NEXUS_OPERATION_SCHEDULED` → `NexusOperationScheduled`.
fn event_type_name(kind: EventType) -> String {
    let words = kind.as_str_name().trim_start_matches("EVENT_TYPE_").split('_');
    words
        .map(|word| {
            let (first, rest) = word.split_at(word.len().min(1));
            first.to_owned() + &rest.to_lowercase()
        })
        .collect()
}

/// In either form.
fn event_type_of(name: &str) -> Option<EventType> {
    EventType::from_str_name(name).or_else(|| {
        let mut constant = "EVENT_TYPE".to_owned();
        for c in name.chars() {
            if c.is_ascii_uppercase() {
                constant.push('_');
            }
            constant.push(c.to_ascii_uppercase());
        }
        EventType::from_str_name(&constant)
    })
}

/// An absolute path behind an empty host.
fn path(parts: &[&str]) -> String {
    parts.iter().map(|part| format!("/{}", escape(part))).collect()
}

/// Leaves out what is empty.
fn query(values: &[(&str, &str)]) -> String {
    let pairs = values.iter().filter(|(_, value)| !value.is_empty());
    pairs.map(|(key, value)| format!("{key}={}", escape(value))).collect::<Vec<_>>().join("&")
}

fn values(query: &str) -> Option<BTreeMap<String, String>> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((unescape(key)?, unescape(&value.replace('+', " "))?))
        })
        .collect()
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => escaped.push(char::from(byte)),
            byte => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use link::workflow_event::{EventReference, Reference, RequestIdReference};

    use super::*;

    fn event_link(workflow_id: &str, reference: Reference) -> Link {
        let to = link::WorkflowEvent {
            namespace: "ns".into(),
            workflow_id: workflow_id.into(),
            run_id: "run".into(),
            reference: Some(reference),
        };
        Link { variant: Some(link::Variant::WorkflowEvent(to)) }
    }

    #[test]
    fn links_to_events_have_temporals_urls() {
        let event_type = EventType::NexusOperationScheduled as i32;
        let link = event_link("a/b c", Reference::EventRef(EventReference { event_id: 5, event_type }));
        let nexus = to_nexus(&link).unwrap();
        assert_eq!(
            nexus.url,
            "temporal:///namespaces/ns/workflows/a%2Fb%20c/run/history?eventID=5&eventType=NexusOperationScheduled\
             &referenceType=EventReference"
        );
        assert_eq!(nexus.r#type, "temporal.api.common.v1.Link.WorkflowEvent");
        assert_eq!(from_nexus(&nexus), Some(link));
    }

    #[test]
    fn all_kinds_come_back() {
        let event_type = EventType::WorkflowExecutionOptionsUpdated as i32;
        let request = RequestIdReference { request_id: "r&=".into(), event_type };
        let operation = link::NexusOperation { namespace: "n".into(), operation_id: "ö".into(), run_id: "r".into() };
        for link in [
            event_link("w", Reference::RequestIdRef(request)),
            Link { variant: Some(link::Variant::NexusOperation(operation)) },
        ] {
            assert_eq!(from_nexus(&to_nexus(&link).unwrap()), Some(link));
        }
    }

    #[test]
    fn what_is_nothing_of_temporals_is_left_out() {
        let link = |url: &str, kind: &str| v1::Link { url: url.into(), r#type: kind.into() };
        for (url, kind) in [
            ("https://example.com/a", WORKFLOW_EVENT),
            (
                "temporal:///namespaces/n/workflows/w/r/history?referenceType=EventReference&eventType=Nonsense",
                WORKFLOW_EVENT,
            ),
            ("temporal:///namespaces/n/workflows/w//history?referenceType=EventReference", WORKFLOW_EVENT),
            ("temporal:///namespaces/n/workflows/%zz/r/history", WORKFLOW_EVENT),
            ("temporal:///namespaces/n/workflows/w/r/history", "other"),
        ] {
            assert_eq!(from_nexus(&link(url, kind)), None, "{url}");
        }
    }
}
