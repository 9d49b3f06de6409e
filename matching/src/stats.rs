//! How many tasks came and went in the last 30 seconds.

use perdure_types::Timestamp;

const BUCKET_NS: i64 = 2_000_000_000;
const BUCKETS: usize = 15;
const WINDOW_NS: i64 = BUCKET_NS * BUCKETS as i64;

/// A ring of counters over the window.
struct Window {
    /// Number of the newest bucket since the epoch.
    newest: i64,
    counts: [u32; BUCKETS],
}

impl Window {
    fn advance(&mut self, now: Timestamp) -> usize {
        let bucket = now.0.div_euclid(BUCKET_NS);
        for passed in (self.newest + 1..=bucket).take(BUCKETS) {
            self.counts[slot(passed)] = 0;
        }
        // `take` stops early only when all buckets are cleared anyway.
        if bucket - self.newest > BUCKETS as i64 {
            self.counts = [0; BUCKETS];
        }
        self.newest = self.newest.max(bucket);
        slot(self.newest)
    }
}

fn slot(bucket: i64) -> usize {
    bucket.rem_euclid(BUCKETS as i64) as usize
}

/// Arrivals and departures of one priority of a queue.
pub(crate) struct Rates {
    since: Timestamp,
    added: Window,
    dispatched: Window,
}

impl Rates {
    pub fn new(now: Timestamp) -> Self {
        let window = || Window { newest: now.0.div_euclid(BUCKET_NS), counts: [0; BUCKETS] };
        Self { since: now, added: window(), dispatched: window() }
    }

    pub fn added(&mut self, now: Timestamp) {
        let slot = self.added.advance(now);
        self.added.counts[slot] = self.added.counts[slot].saturating_add(1);
    }

    pub fn dispatched(&mut self, now: Timestamp) {
        let slot = self.dispatched.advance(now);
        self.dispatched.counts[slot] = self.dispatched.counts[slot].saturating_add(1);
    }

    /// A dispatched task came back.
    pub fn returned(&mut self, now: Timestamp) {
        let slot = self.dispatched.advance(now);
        self.dispatched.counts[slot] = self.dispatched.counts[slot].saturating_sub(1);
    }

    /// Tasks a second that came, and that went.
    pub fn per_second(&mut self, now: Timestamp) -> (f32, f32) {
        self.added.advance(now);
        self.dispatched.advance(now);
        // A young queue is not averaged over time in which it did not exist.
        let seconds = (now.since(self.since).0.clamp(1_000_000_000, WINDOW_NS) as f64 / 1e9) as f32;
        let sum = |window: &Window| window.counts.iter().map(|n| u64::from(*n)).sum::<u64>() as f32;
        (sum(&self.added) / seconds, sum(&self.dispatched) / seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn counts_leave_the_window() {
        let start = 1_000 * SECOND;
        let mut rates = Rates::new(Timestamp(start));
        for i in 0..60 {
            rates.added(Timestamp(start + i * SECOND));
        }
        let (added, dispatched) = rates.per_second(Timestamp(start + 59 * SECOND));
        assert!((0.9..=1.1).contains(&added), "{added}");
        assert_eq!(dispatched, 0.0);
        assert_eq!(rates.per_second(Timestamp(start + 95 * SECOND)), (0.0, 0.0));
        rates.added(Timestamp(start + 100_000 * SECOND));
        let (added, _) = rates.per_second(Timestamp(start + 100_000 * SECOND));
        assert!((0.03..0.04).contains(&added), "{added}");
    }

    #[test]
    fn a_young_queue_is_not_diluted() {
        let mut rates = Rates::new(Timestamp(0));
        for _ in 0..20 {
            rates.dispatched(Timestamp(0));
        }
        rates.returned(Timestamp(0));
        assert_eq!(rates.per_second(Timestamp(2 * SECOND)).1, 9.5);
    }
}
