//! Chance that a number repeats: the same seed does the same damage, as far as processes allow.

use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::time::Duration;

/// splitmix64
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A seed that nobody chose; small enough to be typed again.
    pub fn any_seed() -> u64 {
        RandomState::new().hash_one(std::process::id()) % 1_000_000
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    pub fn time(&mut self, range: Range<Duration>) -> Duration {
        let span = range.end.saturating_sub(range.start);
        range.start + span.mul_f64((self.next() >> 11) as f64 / (1_u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_in_its_range_and_repeats() {
        let rolled = |seed| {
            let mut dice = Dice::new(seed);
            (0..100)
                .map(|_| (dice.below(6), dice.time(Duration::from_secs(1)..Duration::from_secs(3))))
                .collect::<Vec<_>>()
        };
        assert_eq!(rolled(7), rolled(7));
        assert_ne!(rolled(7), rolled(8));
        assert!(rolled(7).iter().all(|(n, time)| *n < 6 && (1.0..3.0).contains(&time.as_secs_f64())));
    }
}
