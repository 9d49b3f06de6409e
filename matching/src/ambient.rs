//! Where time and new ids enter this crate; all else is handed them.

use std::time::{SystemTime, UNIX_EPOCH};

use perdure_types::{PollName, Timestamp};
use tokio::time::Instant;
use uuid::Uuid;

/// Of a start or a query. Nothing that is replayed depends on it.
#[allow(clippy::disallowed_methods)] // The one place in this crate.
pub(crate) fn new_id() -> Uuid {
    Uuid::new_v4()
}

/// Of a start for a poll: unlike that of any other start, and if the poll has a name, so that the start tells it.
pub(crate) fn request_id(poll: Option<PollName>) -> String {
    let unique = new_id();
    poll.map_or(unique, |poll| poll.request_id(unique.as_u64_pair().1)).to_string()
}

/// Wall-clock time that never goes back: the wall clock once, and the monotonic clock from there.
pub(crate) struct Clock {
    started: Instant,
    started_wall: Timestamp,
}

impl Clock {
    #[allow(clippy::disallowed_methods)] // The one place in this crate.
    pub fn new() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall = i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX);
        Self { started: Instant::now(), started_wall: Timestamp(wall) }
    }

    pub fn now(&self) -> Timestamp {
        let elapsed = i64::try_from(self.started.elapsed().as_nanos()).unwrap_or(i64::MAX);
        Timestamp(self.started_wall.0.saturating_add(elapsed))
    }

    pub fn instant(&self, at: Timestamp) -> Instant {
        self.started + at.since(self.started_wall).to_std()
    }
}
