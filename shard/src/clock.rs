//! The one place where time comes from.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::SystemTime,
};

use perdure_types::Timestamp;
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
    },
}

impl Clock {
    pub fn system() -> Self {
        Self { source: Source::System, latest: AtomicI64::new(0) }
    }

    /// For tests with paused time: `start` is now.
    pub fn runtime(start: Timestamp) -> Self {
        Self { source: Source::Runtime { start, origin: Instant::now() }, latest: AtomicI64::new(0) }
    }

    #[allow(clippy::disallowed_methods, reason = "the one place where the wall clock enters")]
    pub fn now(&self) -> Timestamp {
        let read = match &self.source {
            Source::System => {
                let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX)
            }
            Source::Runtime { start, origin } => {
                let elapsed = i64::try_from(origin.elapsed().as_nanos()).unwrap_or(i64::MAX);
                start.0.saturating_add(elapsed)
            }
        };
        Timestamp(self.latest.fetch_max(read, Ordering::Relaxed).max(read))
    }
}
