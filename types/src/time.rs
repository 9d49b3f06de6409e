//! Time as a value: nanoseconds since the Unix epoch. Pure code gets it as an argument and never asks a clock.

use std::ops::{Add, Sub};

const NANOS: i64 = 1_000_000_000;

/// A point in time, nanoseconds since the Unix epoch. Arithmetic saturates: a timer of "for ever" is at [`Timestamp::MAX`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Timestamp(pub i64);

/// A span of time in nanoseconds, never negative when it comes from outside.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Duration(pub i64);

impl Timestamp {
    pub const ZERO: Self = Self(0);
    pub const MAX: Self = Self(i64::MAX);

    pub fn as_nanos(self) -> i64 {
        self.0
    }

    /// Time since `earlier`, zero if it is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration(self.0.saturating_sub(earlier.0).max(0))
    }

    /// For messages; [`Timestamp::ZERO`] stands for "not set" and gives `None`.
    pub fn to_proto(self) -> Option<prost_types::Timestamp> {
        (self.0 != 0).then(|| prost_types::Timestamp {
            seconds: self.0.div_euclid(NANOS),
            nanos: self.0.rem_euclid(NANOS) as i32,
        })
    }

    pub fn from_proto(time: Option<&prost_types::Timestamp>) -> Self {
        time.map_or(Self::ZERO, |t| Self(t.seconds.saturating_mul(NANOS).saturating_add(i64::from(t.nanos))))
    }
}

impl Duration {
    pub const ZERO: Self = Self(0);

    pub const fn from_millis(millis: i64) -> Self {
        Self(millis.saturating_mul(1_000_000))
    }

    pub const fn from_secs(secs: i64) -> Self {
        Self(secs.saturating_mul(NANOS))
    }

    pub fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// `None` for zero: the API's "not set".
    pub fn or_none(self) -> Option<Self> {
        (self.0 != 0).then_some(self)
    }

    /// For messages; zero is written as an explicit zero duration.
    pub fn to_proto(self) -> prost_types::Duration {
        prost_types::Duration { seconds: self.0 / NANOS, nanos: (self.0 % NANOS) as i32 }
    }

    /// Unset is zero; too long saturates; negative stays negative for validation to refuse.
    pub fn from_proto(duration: Option<&prost_types::Duration>) -> Self {
        duration.map_or(Self::ZERO, |d| Self(d.seconds.saturating_mul(NANOS).saturating_add(i64::from(d.nanos))))
    }

    /// Scaled by a retry policy's backoff coefficient, saturating.
    pub fn mul_f64(self, factor: f64) -> Self {
        let product = self.0 as f64 * factor;
        if product >= i64::MAX as f64 { Self(i64::MAX) } else { Self(product as i64) }
    }

    /// Too long saturates.
    pub fn from_std(duration: std::time::Duration) -> Self {
        Self(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
    }

    /// For timers of the runtime.
    pub fn to_std(self) -> std::time::Duration {
        std::time::Duration::from_nanos(self.0.max(0) as u64)
    }
}

impl Add<Duration> for Timestamp {
    type Output = Timestamp;
    fn add(self, duration: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(duration.0))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Timestamp;
    fn sub(self, duration: Duration) -> Timestamp {
        Timestamp(self.0.saturating_sub(duration.0))
    }
}

impl Add for Duration {
    type Output = Duration;
    fn add(self, other: Duration) -> Duration {
        Duration(self.0.saturating_add(other.0))
    }
}
