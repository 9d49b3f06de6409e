//! Metrics of this crate, each behind a function.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use perdure_proto::temporal::api::enums::v1::WorkflowExecutionStatus as Status;

/// Describes all metrics, for exporters.
pub fn describe() {
    use metrics::Unit::{Bytes, Count, Seconds};
    metrics::describe_histogram!("perdure_log_commit_seconds", Seconds, "From a log row's first send to its coverage");
    metrics::describe_histogram!("perdure_log_row_records", Count, "Transitions in one log row");
    metrics::describe_counter!("perdure_log_bytes_total", Bytes, "Log written");
    metrics::describe_counter!("perdure_log_retries_total", Count, "Appends that had to be repeated");
    metrics::describe_gauge!("perdure_log_uncovered_rows", Count, "Log rows sent and not yet covered");
    metrics::describe_gauge!("perdure_store_silent", Count, "1 while the store does not answer, and calls are refused");
    metrics::describe_gauge!("perdure_cache_bytes", Bytes, "Executions in memory");
    metrics::describe_counter!("perdure_chains_loaded_total", Count, "Executions read from the store on demand");
    metrics::describe_counter!("perdure_chains_evicted_total", Count, "Clean executions dropped from memory");
    metrics::describe_counter!("perdure_flush_bytes_total", Bytes, "Rows written to the tables");
    metrics::describe_histogram!("perdure_flush_seconds", Seconds, "Duration of one flush of all shards");
    metrics::describe_counter!("perdure_recovery_records_total", Count, "Log records replayed");
    metrics::describe_counter!("perdure_shard_panics_total", Count, "Shards that had to be loaded again after a bug");
    metrics::describe_counter!("perdure_fences_total", Count, "Sessions of others that this node fenced");
    metrics::describe_counter!("perdure_shard_claims_total", Count, "Shards claimed from nobody or a sealed session");
    metrics::describe_histogram!(
        "perdure_take_over_seconds",
        Seconds,
        "From a decision to claim shards to their service"
    );
    metrics::describe_histogram!(
        "perdure_hand_over_pause_seconds",
        Seconds,
        "From a shard's stop to its new owner's row"
    );
    metrics::describe_histogram!(
        "perdure_shard_split_pause_seconds",
        Seconds,
        "From a shard's stop to the rows of its halves"
    );
    metrics::describe_histogram!(
        "perdure_shard_pull_seconds",
        Seconds,
        "From asking an owner for a shard to reading its log"
    );
    metrics::describe_counter!("perdure_sessions_fenced_total", Count, "Own sessions that were fenced by somebody");
    metrics::describe_counter!("perdure_fence_reads_total", Count, "Reads of the own session's row");
    for (name, help) in CLOSES {
        metrics::describe_counter!(name, help);
    }
    metrics::describe_histogram!(LASTED, Seconds, "From a run's start to its close");
    // What may never happen starts at zero: an alert on its rate must see the first time.
    for name in [
        "perdure_log_retries_total",
        "perdure_flush_bytes_total",
        "perdure_shard_panics_total",
        "perdure_fences_total",
        "perdure_shard_claims_total",
        "perdure_sessions_fenced_total",
        "perdure_recovery_records_total",
        "perdure_chains_loaded_total",
        "perdure_chains_evicted_total",
    ] {
        metrics::counter!(name).increment(0);
    }
    store_silent(false);
    for name in [
        "perdure_log_commit_seconds",
        "perdure_log_row_records",
        "perdure_flush_seconds",
        "perdure_take_over_seconds",
        "perdure_hand_over_pause_seconds",
        "perdure_shard_pull_seconds",
        "perdure_shard_split_pause_seconds",
    ] {
        drop(metrics::histogram!(name));
    }
    for (name, _) in CLOSES {
        metrics::counter!(name, "operation" => COMPLETION, "service_name" => "history", "namespace" => "_unknown_")
            .increment(0);
    }
}

/// By status; the names are Temporal's.
const CLOSES: [(&str, &str); 6] = [
    ("workflow_success", "Runs that completed"),
    ("workflow_failed", "Runs that failed"),
    ("workflow_cancel", "Runs that were cancelled"),
    ("workflow_terminate", "Runs that were terminated"),
    ("workflow_continued_as_new", "Runs that continued as new"),
    ("workflow_timeout", "Runs that timed out"),
];
const LASTED: &str = "workflow_schedule_to_close_latency";
/// What Temporal's dashboards select these by.
const COMPLETION: &str = "CompletionStats";

pub(crate) fn run_closed(status: Status, namespace: Option<Arc<str>>, lasted: perdure_types::Duration) {
    let name = match status {
        Status::Completed => "workflow_success",
        Status::Failed => "workflow_failed",
        Status::Canceled => "workflow_cancel",
        Status::Terminated => "workflow_terminate",
        Status::ContinuedAsNew => "workflow_continued_as_new",
        Status::TimedOut => "workflow_timeout",
        Status::Unspecified | Status::Running | Status::Paused => return,
    };
    let namespace = namespace.unwrap_or_else(|| "_unknown_".into());
    let labels = vec![
        metrics::Label::from_static_parts("service_name", "history"),
        metrics::Label::from_static_parts("operation", COMPLETION),
        metrics::Label::new("namespace", namespace),
    ];
    metrics::counter!(name, labels.clone()).increment(1);
    metrics::histogram!(LASTED, labels).record(lasted.to_std().as_secs_f64());
}

/// What is counted with each row of the log or each chain: looked up once.
struct Hot {
    fence_reads: metrics::Counter,
    commit: metrics::Histogram,
    row_records: metrics::Histogram,
    log_bytes: metrics::Counter,
    uncovered: metrics::Gauge,
    chains_loaded: metrics::Counter,
    chains_evicted: metrics::Counter,
    cache_bytes: metrics::Gauge,
}

static HOT: LazyLock<Hot> = LazyLock::new(|| Hot {
    fence_reads: metrics::counter!("perdure_fence_reads_total"),
    commit: metrics::histogram!("perdure_log_commit_seconds"),
    row_records: metrics::histogram!("perdure_log_row_records"),
    log_bytes: metrics::counter!("perdure_log_bytes_total"),
    uncovered: metrics::gauge!("perdure_log_uncovered_rows"),
    chains_loaded: metrics::counter!("perdure_chains_loaded_total"),
    chains_evicted: metrics::counter!("perdure_chains_evicted_total"),
    cache_bytes: metrics::gauge!("perdure_cache_bytes"),
});

pub(crate) fn fence_read() {
    HOT.fence_reads.increment(1);
}

pub(crate) fn store_silent(is_silent: bool) {
    metrics::gauge!("perdure_store_silent").set(f64::from(u8::from(is_silent)));
}

pub(crate) fn row_covered(latency: Duration) {
    HOT.commit.record(latency.as_secs_f64());
}

pub(crate) fn row_sent(records: usize, bytes: usize, uncovered: usize) {
    HOT.row_records.record(records as f64);
    HOT.log_bytes.increment(bytes as u64);
    HOT.uncovered.set(uncovered as f64);
}

pub(crate) fn append_retried() {
    metrics::counter!("perdure_log_retries_total").increment(1);
}

pub(crate) fn cache(bytes: usize) {
    HOT.cache_bytes.set(bytes as f64);
}

pub(crate) fn chain_loaded() {
    HOT.chains_loaded.increment(1);
}

pub(crate) fn chain_evicted() {
    HOT.chains_evicted.increment(1);
}

pub(crate) fn flushed(bytes: usize, duration: Duration) {
    metrics::counter!("perdure_flush_bytes_total").increment(bytes as u64);
    metrics::histogram!("perdure_flush_seconds").record(duration.as_secs_f64());
}

pub(crate) fn replayed(records: usize) {
    metrics::counter!("perdure_recovery_records_total").increment(records as u64);
}

pub(crate) fn shard_panicked() {
    metrics::counter!("perdure_shard_panics_total").increment(1);
}

pub(crate) fn session_fenced() {
    metrics::counter!("perdure_sessions_fenced_total").increment(1);
}

pub(crate) fn fenced_another() {
    metrics::counter!("perdure_fences_total").increment(1);
}

pub(crate) fn claimed(shards: usize) {
    metrics::counter!("perdure_shard_claims_total").increment(shards as u64);
}

pub(crate) fn taken_over(duration: Duration) {
    metrics::histogram!("perdure_take_over_seconds").record(duration.as_secs_f64());
}

pub(crate) fn handed_over(pause: Duration) {
    metrics::histogram!("perdure_hand_over_pause_seconds").record(pause.as_secs_f64());
}

pub(crate) fn split(pause: Duration) {
    metrics::histogram!("perdure_shard_split_pause_seconds").record(pause.as_secs_f64());
}

pub(crate) fn pulled(duration: Duration) {
    metrics::histogram!("perdure_shard_pull_seconds").record(duration.as_secs_f64());
}
