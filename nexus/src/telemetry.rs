//! Metrics of requests to handlers, under the names and labels that Temporal's dashboards use.

use std::time::Duration;

use metrics::{Unit, counter, describe_counter, describe_histogram, histogram};

const REQUESTS: &str = "nexus_outbound_requests";
const LATENCY: &str = "nexus_outbound_latency";
const CALLBACKS: &str = "callback_outbound_requests";
const CALLBACK_LATENCY: &str = "callback_outbound_latency";

/// Registers the descriptions; call once after the recorder is installed.
pub fn describe() {
    describe_counter!(REQUESTS, Unit::Count, "Requests to Nexus handlers");
    describe_histogram!(LATENCY, Unit::Seconds, "Time until they were answered");
    describe_counter!(CALLBACKS, Unit::Count, "Completions delivered to URLs outside");
    describe_histogram!(CALLBACK_LATENCY, Unit::Seconds, "Time until they were answered");
}

/// One request to a handler. `endpoint` is one that an operator has made.
pub(crate) fn requested(
    namespace: String,
    endpoint: String,
    (method, outcome): (&'static str, String),
    by_worker: bool,
    took: Duration,
) {
    let source = if by_worker { "worker" } else { "_unknown_" };
    let labels = [
        ("service_name", "history".to_owned()),
        ("namespace", namespace),
        ("destination", endpoint),
        ("method", method.to_owned()),
        ("outcome", outcome),
        ("failure_source", source.to_owned()),
    ];
    counter!(REQUESTS, &labels).increment(1);
    histogram!(LATENCY, &labels).record(took.as_secs_f64());
}

/// One delivery. Its address is no label: clients choose it.
pub(crate) fn delivered(namespace: String, outcome: String, took: Duration) {
    let labels = [("service_name", "history".to_owned()), ("namespace", namespace), ("outcome", outcome)];
    counter!(CALLBACKS, &labels).increment(1);
    histogram!(CALLBACK_LATENCY, &labels).record(took.as_secs_f64());
}
