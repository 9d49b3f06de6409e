//! Shares of fairness keys: in which order their tasks go, and how fast at most.

use std::collections::HashMap;

use perdure_types::Timestamp;

/// How far apart two offers of a key of weight 1 are.
const STRIDE: f64 = 1_048_576.0;
/// Keys remembered without need; beyond that those go that have no claim any more.
const MANY_KEYS: usize = 1_000;
const NANOS_PER_SECOND: f64 = 1e9;
const WEIGHTS: std::ops::RangeInclusive<f32> = 0.001..=1000.0;

/// A weight that makes sense: an unset one is 1.
pub(crate) fn weight(weight: f32) -> f32 {
    if weight > 0.0 && weight.is_finite() { weight.clamp(*WEIGHTS.start(), *WEIGHTS.end()) } else { 1.0 }
}

/// The order of one priority.
#[derive(Debug, Default)]
pub(crate) struct Passes {
    /// Of what was handed out last.
    current: u64,
    /// Of the last offer of each key.
    last: HashMap<Box<str>, u64>,
    last_without_key: u64,
}

impl Passes {
    /// The pass of a new offer.
    pub fn next(&mut self, key: &str, weight: f32) -> u64 {
        let stride = (STRIDE / f64::from(weight)) as u64;
        if key.is_empty() {
            self.last_without_key = self.last_without_key.max(self.current) + stride.max(1);
            return self.last_without_key;
        }
        let known = self.last.get(key).copied().unwrap_or_default();
        let pass = known.max(self.current) + stride.max(1);
        if let Some(last) = self.last.get_mut(key) {
            *last = pass;
        } else {
            if self.last.len() >= MANY_KEYS {
                self.last.retain(|_, last| *last > self.current);
            }
            self.last.insert(key.into(), pass);
        }
        pass
    }

    pub fn handed_out(&mut self, pass: u64) {
        self.current = self.current.max(pass);
    }
}

/// A rate for each key, times its weight.
#[derive(Debug, Default)]
pub(crate) struct KeyLimits {
    per_second: Option<f64>,
    weights: HashMap<String, f32>,
    /// When the key has its next turn.
    next: HashMap<Box<str>, Timestamp>,
}

impl KeyLimits {
    pub fn set(&mut self, per_second: Option<f64>, weights: HashMap<String, f32>) {
        if self.per_second != per_second {
            self.next.clear();
        }
        self.per_second = per_second;
        self.weights = weights;
    }

    pub fn is_set(&self) -> bool {
        self.per_second.is_some()
    }

    /// What operators have set for the key.
    pub fn weight_of(&self, key: &str) -> Option<f32> {
        self.weights.get(key).copied()
    }

    pub fn has_weights(&self) -> bool {
        !self.weights.is_empty()
    }

    /// Takes a turn of the key. `Some`: not before then.
    pub fn admit(&mut self, now: Timestamp, key: &str, weight: f32) -> Option<Timestamp> {
        let per_second = self.per_second? * f64::from(weight);
        if per_second <= 0.0 {
            return Some(Timestamp::MAX);
        }
        // A second's worth may go at once, but never less than one task.
        let interval = NANOS_PER_SECOND / per_second;
        let burst = (interval * (per_second.ceil() - 1.0).max(0.0)) as i64;
        if self.next.len() >= MANY_KEYS && !self.next.contains_key(key) {
            self.next.retain(|_, at| *at > now);
        }
        let earliest = Timestamp(now.0.saturating_sub(burst));
        let next = self.next.entry(key.into()).or_insert(earliest);
        let turn = (*next).max(earliest);
        *next = Timestamp(turn.0.saturating_add(interval as i64));
        (turn > now).then_some(turn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_at_once_then_the_rate() {
        let mut limits = KeyLimits::default();
        limits.set(Some(10.0), HashMap::new());
        let now = Timestamp(1_000_000_000_000);
        let held: Vec<bool> = (0..12).map(|_| limits.admit(now, "a", 1.0).is_some()).collect();
        assert_eq!(held.iter().filter(|held| !**held).count(), 10, "{held:?}");
        assert!(limits.admit(now, "b", 1.0).is_none());
    }

    #[test]
    fn memory_is_bounded() {
        let mut passes = Passes::default();
        for i in 0..3 * MANY_KEYS {
            let pass = passes.next(&i.to_string(), 1.0);
            passes.handed_out(pass);
        }
        assert!(passes.last.len() <= MANY_KEYS + 1);
    }
}
