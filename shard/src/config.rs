//! The knobs of a node's shards.

use std::time::Duration;

use perdure_types::Limits;

/// How a node keeps its log, its cache and its tables. The defaults suit a small machine.
#[derive(Debug, Clone, PartialEq)]
pub struct ShardConfig {
    pub limits: Limits,
    /// A log row is closed when it holds this much; a larger record gets a row of its own.
    pub row_bytes: usize,
    /// Rows under way beyond the acknowledged prefix (rule A2's W).
    pub rows_in_flight: u64,
    /// While rows are under way, another is sent only when this much has piled up: the gain is the batch.
    pub eager_row_bytes: usize,
    /// A new log segment begins after this much, or so many rows.
    pub segment_bytes: usize,
    pub segment_rows: u64,
    /// Longest time that a change waits to be written to the tables.
    pub flush_interval: Duration,
    /// Longest time that a change which lists of runs show waits to be written there.
    pub list_interval: Duration,
    /// Log written since the last flush that makes the next one due at once.
    pub flush_log_bytes: u64,
    /// Executions in memory, over all shards of the node, bytes.
    pub cache_bytes: usize,
    /// A store that owes an answer for so long is silent: calls are refused, in place of making their callers wait.
    pub silence: Duration,
    /// Calls that wait for one shard; more are refused.
    pub mailbox_calls: usize,
    /// Records that wait for the log, bytes; above this, shards take no new calls.
    pub log_queue_bytes: usize,
    /// Wake-ups known ahead of time, rows a shard.
    pub wakeups_ahead: usize,
    /// Calls to other entities under way, a shard.
    pub calls_in_flight: usize,
    /// Where ids come from; `None`: from the system's randomness.
    pub seed: Option<u64>,
}

impl Default for ShardConfig {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            row_bytes: 1 << 20,
            rows_in_flight: 4,
            eager_row_bytes: 64 << 10,
            segment_bytes: 16 << 20,
            segment_rows: 65_536,
            flush_interval: Duration::from_secs(5),
            list_interval: Duration::from_millis(400),
            flush_log_bytes: 8 << 20,
            cache_bytes: 64 << 20,
            silence: Duration::from_secs(5),
            mailbox_calls: 4096,
            log_queue_bytes: 16 << 20,
            wakeups_ahead: 256,
            calls_in_flight: 256,
            seed: None,
        }
    }
}
