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
    metrics::describe_gauge!("perdure_shards_owned", Count, "Shards that this node serves");
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
        "perdure_shard_pull_seconds",
        Seconds,
        "From asking an owner for a shard to reading its log"
    );
    metrics::describe_counter!("perdure_sessions_fenced_total", Count, "Own sessions that were fenced by somebody");
}

pub(crate) fn store_silent(is_silent: bool) {
    metrics::gauge!("perdure_store_silent").set(f64::from(u8::from(is_silent)));
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

pub(crate) fn fenced_another() {
    metrics::counter!("perdure_fences_total").increment(1);
}

pub(crate) fn claimed(shards: usize) {
    metrics::counter!("perdure_shard_claims_total").increment(shards as u64);
}

pub(crate) fn owned(shards: usize) {
    metrics::gauge!("perdure_shards_owned").set(shards as f64);
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
