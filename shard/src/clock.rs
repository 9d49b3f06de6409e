//! The one place where time comes from.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::SystemTime,
};

use perdure_types::{Duration, Timestamp};
use tokio::time::Instant;

/// Tells the time, and never tells an earlier one than before: event times do not go back (within one node).
#[derive(Debug)]
pub struct Clock {
    source: Source,
    latest: AtomicI64,
}

#[derive(Debug)]
enum Source {
    System,
    /// The runtime's clock, from a given start: follows its paused time in tests.
    Runtime {
        start: Timestamp,
        origin: Instant,
        /// By how much it was set, nanoseconds.
        jumped: AtomicI64,
    },
}

impl Clock {
    pub fn system() -> Self {
        Self { source: Source::System, latest: AtomicI64::new(0) }
    }

    /// For tests with paused time: `start` is now.
    pub fn runtime(start: Timestamp) -> Self {
        let source = Source::Runtime { start, origin: Instant::now(), jumped: AtomicI64::new(0) };
        Self { source, latest: AtomicI64::new(0) }
    }

    /// For tests: somebody sets the clock. The system's is not ours to set.
    pub fn jump(&self, by: Duration) {
        if let Source::Runtime { jumped, .. } = &self.source {
            jumped.fetch_add(by.0, Ordering::Relaxed);
        }
    }

    #[allow(clippy::disallowed_methods, reason = "the one place where the wall clock enters")]
    pub fn now(&self) -> Timestamp {
        let read = match &self.source {
            Source::System => {
                let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX)
            }
            Source::Runtime { start, origin, jumped } => {
                let elapsed = i64::try_from(origin.elapsed().as_nanos()).unwrap_or(i64::MAX);
                start.0.saturating_add(elapsed).saturating_add(jumped.load(Ordering::Relaxed))
            }
        };
        Timestamp(self.latest.fetch_max(read, Ordering::Relaxed).max(read))
    }
}
