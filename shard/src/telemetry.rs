//! Metrics of this crate, each behind a function.

use std::time::Duration;

/// Describes all metrics, for exporters.
pub fn describe() {
    use metrics::Unit::{Bytes, Count, Seconds};
    metrics::describe_histogram!("perdure_log_commit_seconds", Seconds, "From a log row's first send to its coverage");
    metrics::describe_histogram!("perdure_log_row_records", Count, "Transitions in one log row");
    metrics::describe_counter!("perdure_log_bytes_total", Bytes, "Log written");
    metrics::describe_counter!("perdure_log_retries_total", Count, "Appends that had to be repeated");
    metrics::describe_gauge!("perdure_log_uncovered_rows", Count, "Log rows sent and not yet covered");
    metrics::describe_gauge!("perdure_cache_bytes", Bytes, "Executions in memory");
    metrics::describe_counter!("perdure_chains_loaded_total", Count, "Executions read from the store on demand");
    metrics::describe_counter!("perdure_chains_evicted_total", Count, "Clean executions dropped from memory");
    metrics::describe_counter!("perdure_flush_bytes_total", Bytes, "Rows written to the tables");
    metrics::describe_histogram!("perdure_flush_seconds", Seconds, "Duration of one flush of all shards");
    metrics::describe_counter!("perdure_recovery_records_total", Count, "Log records replayed");
    metrics::describe_counter!("perdure_shard_panics_total", Count, "Shards that had to be loaded again after a bug");
    metrics::describe_counter!("perdure_sessions_fenced_total", Count, "Own sessions that were fenced by somebody");
}

pub(crate) fn row_covered(latency: Duration) {
    metrics::histogram!("perdure_log_commit_seconds").record(latency.as_secs_f64());
}

pub(crate) fn row_sent(records: usize, bytes: usize, uncovered: usize) {
    metrics::histogram!("perdure_log_row_records").record(records as f64);
    metrics::counter!("perdure_log_bytes_total").increment(bytes as u64);
    metrics::gauge!("perdure_log_uncovered_rows").set(uncovered as f64);
}

pub(crate) fn append_retried() {
    metrics::counter!("perdure_log_retries_total").increment(1);
}

pub(crate) fn cache(bytes: usize) {
    metrics::gauge!("perdure_cache_bytes").set(bytes as f64);
}

pub(crate) fn chain_loaded() {
    metrics::counter!("perdure_chains_loaded_total").increment(1);
}

pub(crate) fn chain_evicted() {
    metrics::counter!("perdure_chains_evicted_total").increment(1);
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
