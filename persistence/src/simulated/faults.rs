//! What may go wrong, how often, and the seeded source of chance.

use std::{collections::BTreeMap, time::Duration};

use super::Op;

/// Probabilities of each fault (0 to 1), each drawn from the store's seed. What callers see follows from these and from
/// quorums: a write that reached one replica of three is a time-out that may surface, and so on.
#[derive(Debug, Clone, PartialEq)]
pub struct Faults {
    /// A write never reaches one replica.
    pub replica_write_lost: f64,
    /// A write reaches one replica late: after 1 to [`Faults::late_ops`] further operations.
    pub replica_write_late: f64,
    /// A write reaches one replica now, and once more late.
    pub replica_write_duplicated: f64,
    /// A write reaches one replica, whose ack is lost.
    pub replica_ack_lost: f64,
    /// A plain or serial read times out. It may have repaired replicas by then.
    pub read_lost: f64,
    /// A conditional write finds no quorum before it proposes anything: `Unavailable`, no effect.
    pub lwt_refused: f64,
    /// A conditional write is `Indeterminate`, and its proposal dies.
    pub lwt_lost: f64,
    /// A conditional write is `Indeterminate`, and is decided late, if its condition holds then.
    pub lwt_late: f64,
    /// A conditional write is decided at once, and its reply lost: `Indeterminate`.
    pub lwt_reply_lost: f64,
    /// What "late" is, in operations of anyone on this store. Messages know no other clock. One of 16 is 32 times later:
    /// when everybody has long forgotten it.
    pub late_ops: u64,
    /// Each operation takes between these two, half of it before it takes effect and half after.
    pub latency: (Duration, Duration),
}

impl Faults {
    pub const fn none() -> Self {
        Self {
            replica_write_lost: 0.0,
            replica_write_late: 0.0,
            replica_write_duplicated: 0.0,
            replica_ack_lost: 0.0,
            read_lost: 0.0,
            lwt_refused: 0.0,
            lwt_lost: 0.0,
            lwt_late: 0.0,
            lwt_reply_lost: 0.0,
            late_ops: 1,
            latency: (Duration::ZERO, Duration::ZERO),
        }
    }

    /// Each fault now and then: what a protocol must live with for hours.
    pub const fn some() -> Self {
        Self {
            replica_write_lost: 0.02,
            replica_write_late: 0.1,
            replica_write_duplicated: 0.05,
            replica_ack_lost: 0.02,
            read_lost: 0.02,
            lwt_refused: 0.03,
            lwt_lost: 0.03,
            lwt_late: 0.03,
            lwt_reply_lost: 0.03,
            late_ops: 50,
            latency: (Duration::ZERO, Duration::ZERO),
        }
    }

    /// More goes wrong than right.
    pub const fn many() -> Self {
        Self {
            replica_write_lost: 0.15,
            replica_write_late: 0.3,
            replica_write_duplicated: 0.2,
            replica_ack_lost: 0.1,
            read_lost: 0.15,
            lwt_refused: 0.1,
            lwt_lost: 0.15,
            lwt_late: 0.15,
            lwt_reply_lost: 0.15,
            late_ops: 100,
            latency: (Duration::ZERO, Duration::ZERO),
        }
    }
}

/// A fault asked for by a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// `Unavailable`, no effect.
    Refused,
    /// Takes effect; the caller is told `Unavailable` (or `Indeterminate`, for a conditional write).
    ReplyLost,
    /// `ReadOnly`, no effect.
    DiskFull,
}

/// Faults asked for, by the operation that they wait for.
#[derive(Debug, Default)]
pub(super) struct Injected(BTreeMap<Op, (Failure, usize)>);

impl Injected {
    pub fn set(&mut self, op: Op, failure: Failure, times: usize) {
        self.0.insert(op, (failure, times));
    }

    pub fn take(&mut self, op: Op) -> Option<Failure> {
        let (failure, times) = self.0.get_mut(&op)?;
        *times = times.checked_sub(1)?;
        Some(*failure)
    }
}

/// SplitMix64: small, and the same for ever, so that a seed that once failed stays a test.
#[derive(Debug, Clone)]
pub(super) struct Chance(pub u64);

impl Chance {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// True with this probability. Draws nothing for 0, so that a store without faults is fast.
    pub fn of(&mut self, probability: f64) -> bool {
        probability > 0.0 && ((self.next() >> 11) as f64) / ((1u64 << 53) as f64) < probability
    }

    /// From 0 up to but not including `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub fn between(&mut self, (low, high): (Duration, Duration)) -> Duration {
        let span = u64::try_from(high.saturating_sub(low).as_nanos()).unwrap_or(u64::MAX);
        if span == 0 { low } else { low + Duration::from_nanos(self.below(span)) }
    }
}
