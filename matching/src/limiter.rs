//! A token bucket: how many tasks a queue may hand out a second.

use perdure_types::{Duration, Timestamp};

const NANOS_PER_SECOND: f64 = 1e9;

/// No limit until a worker sets one.
#[derive(Default)]
pub(crate) struct Limiter {
    bucket: Option<Bucket>,
}

struct Bucket {
    per_second: f64,
    tokens: f64,
    filled_at: Timestamp,
}

impl Bucket {
    /// A second's worth at once, but never less than one task.
    fn capacity(per_second: f64) -> f64 {
        per_second.ceil().max(1.0)
    }

    fn refill(&mut self, now: Timestamp) {
        let elapsed = now.since(self.filled_at).0 as f64 / NANOS_PER_SECOND;
        self.tokens = (self.tokens + elapsed * self.per_second).min(Self::capacity(self.per_second));
        self.filled_at = self.filled_at.max(now);
    }
}

impl Limiter {
    /// The rate that the latest poll asked for. 0 stops the queue; nonsense is ignored.
    pub fn set_rate(&mut self, now: Timestamp, per_second: f64) {
        if !(per_second >= 0.0 && per_second.is_finite()) {
            return;
        }
        match &mut self.bucket {
            Some(bucket) if bucket.per_second == per_second => {}
            Some(bucket) => {
                bucket.refill(now);
                bucket.per_second = per_second;
                bucket.tokens = bucket.tokens.min(Bucket::capacity(per_second));
            }
            None => {
                let tokens = if per_second > 0.0 { Bucket::capacity(per_second) } else { 0.0 };
                self.bucket = Some(Bucket { per_second, tokens, filled_at: now });
            }
        }
    }

    /// There is no limit any more.
    pub fn clear(&mut self) {
        self.bucket = None;
    }

    pub fn rate(&self) -> Option<f64> {
        self.bucket.as_ref().map(|bucket| bucket.per_second)
    }

    /// Takes a token, if there is one.
    pub fn take(&mut self, now: Timestamp) -> bool {
        let Some(bucket) = &mut self.bucket else { return true };
        bucket.refill(now);
        let allowed = bucket.per_second > 0.0 && bucket.tokens >= 1.0;
        if allowed {
            bucket.tokens -= 1.0;
        }
        allowed
    }

    /// Gives back the token of a task that was not handed out after all.
    pub fn refund(&mut self) {
        if let Some(bucket) = &mut self.bucket {
            bucket.tokens = (bucket.tokens + 1.0).min(Bucket::capacity(bucket.per_second));
        }
    }

    /// When there will be a token; `None`: never at this rate.
    pub fn next_at(&self) -> Option<Timestamp> {
        let Some(bucket) = &self.bucket else {
            return Some(Timestamp::ZERO);
        };
        if bucket.per_second <= 0.0 {
            return None;
        }
        let missing = (1.0 - bucket.tokens).max(0.0);
        // A microsecond late rather than a rounding error early.
        let wait = missing / bucket.per_second * NANOS_PER_SECOND + 1_000.0;
        Some(Timestamp(bucket.filled_at.0.saturating_add(Duration(wait as i64).0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(limiter: &mut Limiter, now: Timestamp) -> usize {
        (0..1000).take_while(|_| limiter.take(now)).count()
    }

    #[test]
    fn a_second_at_once_then_the_rate() {
        let mut limiter = Limiter::default();
        assert_eq!(taken(&mut limiter, Timestamp(0)), 1000);
        limiter.set_rate(Timestamp(0), 10.0);
        assert_eq!(taken(&mut limiter, Timestamp(0)), 10);
        let next = limiter.next_at().expect("positive rate");
        assert!(!limiter.take(Timestamp(next.0 - 1_000_000)));
        assert!(limiter.take(next));
        assert_eq!(taken(&mut limiter, Timestamp(next.0 + 500_000_000)), 5);
    }

    #[test]
    fn zero_stops_and_nonsense_is_ignored() {
        let mut limiter = Limiter::default();
        limiter.set_rate(Timestamp(0), f64::NAN);
        limiter.set_rate(Timestamp(0), -1.0);
        assert!(limiter.take(Timestamp(0)));
        limiter.set_rate(Timestamp(0), 0.0);
        assert!(!limiter.take(Timestamp(0)));
        assert_eq!(limiter.next_at(), None);
        limiter.set_rate(Timestamp(0), 0.5);
        assert!(limiter.take(limiter.next_at().expect("positive rate")));
    }
}
