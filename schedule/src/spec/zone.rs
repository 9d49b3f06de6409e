//! Time zones: by IANA name, or from the content of a TZif file.

use chrono::{DateTime, Offset, TimeZone};
use chrono_tz::Tz;

/// Local time of a place. All that calendars need is the offset at an instant.
#[derive(Debug, Clone)]
pub(crate) enum Zone {
    Named(Tz),
    Given(tz::TimeZone),
}

impl Zone {
    /// `data` has precedence. `None`: no such zone, or no such data.
    pub fn find(name: &str, data: &[u8]) -> Option<Self> {
        if !data.is_empty() {
            return tz::TimeZone::from_tz_data(data).ok().map(Self::Given);
        }
        if name.is_empty() {
            return Some(Self::Named(Tz::UTC));
        }
        name.parse().ok().map(Self::Named)
    }

    /// Seconds that local time is ahead of UTC.
    pub fn offset_at(&self, utc_seconds: i64) -> i64 {
        match self {
            Self::Named(zone) => DateTime::from_timestamp(utc_seconds, 0)
                .map_or(0, |utc| zone.offset_from_utc_datetime(&utc.naive_utc()).fix().local_minus_utc().into()),
            Self::Given(zone) => zone.find_local_time_type(utc_seconds).map_or(0, |local| local.ut_offset().into()),
        }
    }

    /// From `start` on: how long the offset stays as it is, at most until `end`.
    pub fn constant_until(&self, start: i64, end: i64) -> i64 {
        let offset = self.offset_at(start);
        if start >= end || self.offset_at(end - 1) == offset {
            return end;
        }
        let (mut same, mut other) = (start, end - 1);
        while other - same > 1 {
            let middle = same + (other - same) / 2;
            if self.offset_at(middle) == offset {
                same = middle;
            } else {
                other = middle;
            }
        }
        other
    }
}
