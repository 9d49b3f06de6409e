//! Requests to the store, under the names and labels that Temporal's dashboards use.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, PoisonError, RwLock},
    time::{Duration, Instant},
};

use metrics::{Counter, Histogram, Label, Unit, counter, describe_counter, describe_histogram, histogram};

use crate::Result;

const REQUESTS: &str = "persistence_requests";
const ERRORS: &str = "persistence_errors";
const LATENCY: &str = "persistence_latency";

/// Describes the metrics, for exporters.
pub fn describe() {
    describe_counter!(REQUESTS, "Requests to the store");
    describe_counter!(ERRORS, "Requests to the store that failed, or whose outcome is unknown");
    describe_histogram!(LATENCY, Unit::Seconds, "Duration of a request to the store");
}

struct Operation {
    requests: Counter,
    errors: Counter,
    latency: Histogram,
}

static OPERATIONS: LazyLock<RwLock<HashMap<&'static str, Arc<Operation>>>> = LazyLock::new(RwLock::default);

fn operation(name: &'static str) -> Arc<Operation> {
    if let Some(found) = OPERATIONS.read().unwrap_or_else(PoisonError::into_inner).get(name) {
        return Arc::clone(found);
    }
    let labels = vec![Label::from_static_parts("service_name", "history"), Label::from_static_parts("operation", name)];
    let made = Operation {
        requests: counter!(REQUESTS, labels.clone()),
        errors: counter!(ERRORS, labels.clone()),
        latency: histogram!(LATENCY, labels),
    };
    // There from the first request on, so that a rate of errors can be told from no data.
    made.errors.increment(0);
    let mut operations = OPERATIONS.write().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(operations.entry(name).or_insert_with(|| Arc::new(made)))
}

/// A request was answered.
pub(crate) fn answered(name: &'static str, elapsed: Duration, is_ok: bool) {
    let operation = operation(name);
    operation.requests.increment(1);
    operation.latency.record(elapsed.as_secs_f64());
    if !is_ok {
        operation.errors.increment(1);
    }
}

/// Carries out a request, and counts it.
pub(crate) async fn timed<T>(name: &'static str, request: impl Future<Output = Result<T>>) -> Result<T> {
    let started = Instant::now();
    let result = request.await;
    answered(name, started.elapsed(), result.is_ok());
    result
}
