//! The knobs of task queues.

use perdure_types::Duration;

/// Limits of the task queues of one node. Defaults are Temporal's where it has the knob.
#[derive(Clone, Debug, PartialEq)]
pub struct MatchingConfig {
    /// Names this node in lists of partitions.
    pub host_name: String,
    /// Longest wait of a poll before it is answered empty.
    pub long_poll: Duration,
    /// For how long after its last poll a worker is believed to serve its sticky queue.
    pub sticky_poller_window: Duration,
    /// For how long a queue's description names a poller.
    pub poller_history: Duration,
    /// After how long without offer and poll an empty queue leaves memory.
    pub queue_idle: Duration,
    /// How long an offer pauses when its shard cannot be reached: at first, doubled each time, and at most.
    pub retry_min: Duration,
    pub retry_max: Duration,
}

impl Default for MatchingConfig {
    fn default() -> Self {
        Self {
            host_name: "127.0.0.1".to_owned(),
            long_poll: Duration::from_secs(60),
            sticky_poller_window: Duration::from_secs(10),
            poller_history: Duration::from_secs(300),
            queue_idle: Duration::from_secs(300),
            retry_min: Duration::from_millis(20),
            retry_max: Duration::from_secs(5),
        }
    }
}

impl MatchingConfig {
    /// The pause after `failures` failures in a row, the current one counted.
    pub(crate) fn backoff(&self, failures: u8) -> Duration {
        let doublings = u32::from(failures.saturating_sub(1)).min(30);
        Duration(self.retry_min.0.saturating_mul(1 << doublings).min(self.retry_max.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_its_cap() {
        let config = MatchingConfig::default();
        let pauses = [0, 1, 2, 3, 20, 255].map(|failures| config.backoff(failures).0 / 1_000_000);
        assert_eq!(pauses, [20, 20, 40, 80, 5_000, 5_000]);
    }
}
