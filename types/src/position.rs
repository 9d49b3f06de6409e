//! Positions in a session's log, and the stamp that orders materialized rows.

/// Number of a log row in its session's log: contiguous from 1 across segments (rule A2).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Seq(pub u64);

impl Seq {
    pub const ZERO: Self = Self(0);

    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Ownership epoch of a shard: raised by one at each claim.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Epoch(pub u64);

/// Where a record of a shard stands: the epoch it was decided under, and the log row that holds it. Ordered as the
/// shard's history is: a later epoch is later, whatever the row.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Default)]
pub struct Position {
    pub epoch: Epoch,
    pub seq: Seq,
}

const SEQ_BITS: u32 = 40;

impl Position {
    pub const ZERO: Self = Self { epoch: Epoch(0), seq: Seq(0) };

    /// The write timestamp of a row that reflects everything up to this position (rule M1). Larger is newer.
    ///
    /// # Panics
    /// When the seq passes 2^40 or the epoch 2^23: neither happens in the life of a cluster, and going on would
    /// let an old owner's row win.
    pub fn stamp(self) -> i64 {
        assert!(self.seq.0 < 1 << SEQ_BITS, "log seq {} overflows a stamp", self.seq.0);
        assert!(self.epoch.0 < 1 << 23, "shard epoch {} overflows a stamp", self.epoch.0);
        (self.epoch.0 << SEQ_BITS | self.seq.0) as i64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_order_as_positions() {
        let at = |epoch, seq| Position { epoch: Epoch(epoch), seq: Seq(seq) };
        assert!(at(1, 5).stamp() < at(1, 6).stamp());
        assert!(at(1, (1 << 40) - 1).stamp() < at(2, 1).stamp());
    }
}
