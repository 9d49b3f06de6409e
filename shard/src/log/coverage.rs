//! What of a session's log may be acknowledged. Pure: the writer tells what was sent and what came back.
//!
//! A row is *covered* when its insert is acknowledged and a fence read that was sent after that found the session live
//! (A3). Only the contiguous covered prefix counts (A4).

use std::collections::BTreeSet;

use perdure_types::Seq;

/// What a fence read says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FenceRead {
    /// The session row is live: what the read covers is covered.
    Live,
    /// Fenced, sealed or missing: this session stops for good.
    NotLive,
    /// No answer. Covers nothing; read again.
    Unknown,
}

#[derive(Debug, Default)]
pub(crate) struct Coverage {
    issued: Seq,
    /// Contiguous prefix whose inserts are acknowledged.
    acked: Seq,
    acked_beyond: BTreeSet<Seq>,
    covered: Seq,
    /// What the fence read under way will cover.
    fence: Option<Seq>,
    stopped: bool,
}

impl Coverage {
    /// The number of the next row (A2: contiguous). `None` once the session has stopped.
    pub(crate) fn issue(&mut self) -> Option<Seq> {
        if self.stopped {
            return None;
        }
        self.issued = self.issued.next();
        Some(self.issued)
    }

    /// Rows issued beyond the acknowledged prefix (A2's W bounds it).
    pub(crate) fn in_flight(&self) -> u64 {
        self.issued.0 - self.acked.0
    }

    pub(crate) fn acked(&self) -> Seq {
        self.acked
    }

    pub(crate) fn covered(&self) -> Seq {
        self.covered
    }

    /// The store has acknowledged the insert of a row.
    pub(crate) fn on_ack(&mut self, seq: Seq) {
        assert!(seq <= self.issued, "ack of row {} that was never sent", seq.0);
        if seq <= self.acked {
            return;
        }
        self.acked_beyond.insert(seq);
        while self.acked_beyond.remove(&self.acked.next()) {
            self.acked = self.acked.next();
        }
    }

    /// Whether a fence read would cover anything new.
    pub(crate) fn wants_fence_read(&self) -> bool {
        !self.stopped && self.fence.is_none() && self.acked > self.covered
    }

    pub(crate) fn fence_read_under_way(&self) -> bool {
        self.fence.is_some()
    }

    /// A fence read is sent now: it covers what is acknowledged by now and nothing that comes later (A3).
    pub(crate) fn send_fence_read(&mut self) {
        assert!(self.fence.is_none(), "two fence reads in flight");
        self.fence = Some(self.acked);
    }

    /// The fence read is answered. True if the covered prefix grew.
    pub(crate) fn on_fence_read(&mut self, answer: FenceRead) -> bool {
        let Some(covers) = self.fence.take() else { return false };
        match answer {
            FenceRead::Live if !self.stopped => {
                let grew = covers > self.covered;
                self.covered = self.covered.max(covers);
                grew
            }
            FenceRead::NotLive => {
                self.stopped = true;
                false
            }
            FenceRead::Live | FenceRead::Unknown => false,
        }
    }

    /// No more rows: fenced, or the store refuses writes.
    pub(crate) fn stop(&mut self) {
        self.stopped = true;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_fence_read_covers_only_what_was_acknowledged_before_it_was_sent() {
        let mut coverage = Coverage::default();
        let (first, second) = (coverage.issue().expect("live"), coverage.issue().expect("live"));
        coverage.on_ack(first);
        coverage.send_fence_read();
        coverage.on_ack(second);
        assert!(coverage.on_fence_read(FenceRead::Live));
        assert_eq!(coverage.covered(), first);
        assert!(coverage.wants_fence_read());
    }

    #[test]
    fn a_gap_holds_back_what_follows_it() {
        let mut coverage = Coverage::default();
        let (first, second) = (coverage.issue().expect("live"), coverage.issue().expect("live"));
        coverage.on_ack(second);
        assert!(!coverage.wants_fence_read());
        coverage.send_fence_read();
        coverage.on_ack(first);
        assert!(!coverage.on_fence_read(FenceRead::Live));
        assert_eq!(coverage.covered(), Seq::ZERO);
    }

    #[test]
    fn a_fenced_session_covers_nothing_more() {
        let mut coverage = Coverage::default();
        let first = coverage.issue().expect("live");
        coverage.on_ack(first);
        coverage.send_fence_read();
        assert!(!coverage.on_fence_read(FenceRead::NotLive));
        assert!(coverage.issue().is_none());
        assert!(!coverage.wants_fence_read());
        assert_eq!(coverage.covered(), Seq::ZERO);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Issue,
        /// Acknowledge the n-th unacknowledged row.
        Ack(usize),
        Send,
        Answer(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            Just(Step::Issue),
            (0_usize..8).prop_map(Step::Ack),
            Just(Step::Send),
            (0_u8..8).prop_map(Step::Answer),
        ]
    }

    proptest! {
        /// Against a model that keeps every fact by itself: A2, A3, A4.
        #[test]
        fn covered_is_exactly_the_contiguous_inserted_and_fenced_prefix(steps in prop::collection::vec(step(), 0..200)) {
            let mut coverage = Coverage::default();
            let mut issued = 0_u64;
            let mut acked: BTreeSet<u64> = BTreeSet::new();
            let mut covered_rows: BTreeSet<u64> = BTreeSet::new();
            let mut sent_with: Option<BTreeSet<u64>> = None;
            let mut stopped = false;
            for step in steps {
                match step {
                    Step::Issue => {
                        let seq = coverage.issue();
                        prop_assert_eq!(seq.is_none(), stopped);
                        if let Some(seq) = seq {
                            issued += 1;
                            prop_assert_eq!(seq.0, issued);
                        }
                    }
                    Step::Ack(n) => {
                        if let Some(seq) = (1..=issued).filter(|s| !acked.contains(s)).nth(n) {
                            acked.insert(seq);
                            coverage.on_ack(Seq(seq));
                        }
                    }
                    Step::Send if sent_with.is_none() => {
                        coverage.send_fence_read();
                        sent_with = Some(acked.clone());
                    }
                    Step::Send => {}
                    Step::Answer(kind) => {
                        let answer = match kind { 0 => FenceRead::NotLive, 1..=2 => FenceRead::Unknown, _ => FenceRead::Live };
                        coverage.on_fence_read(answer);
                        if let Some(rows) = sent_with.take() {
                            match answer {
                                FenceRead::Live if !stopped => covered_rows.extend(rows),
                                FenceRead::NotLive => stopped = true,
                                FenceRead::Live | FenceRead::Unknown => {}
                            }
                        }
                    }
                }
                let prefix = (1..).take_while(|s| covered_rows.contains(s)).count() as u64;
                // Never more than the rules allow; less only where an out-of-order ack waits for the next fence read.
                prop_assert!(coverage.covered().0 <= prefix);
                let acked_prefix = (1..).take_while(|s| acked.contains(s)).count() as u64;
                prop_assert_eq!(coverage.acked().0, acked_prefix);
                prop_assert_eq!(coverage.in_flight(), issued - acked_prefix);
                if coverage.covered().0 < prefix && !stopped {
                    prop_assert!(coverage.wants_fence_read() || coverage.fence_read_under_way());
                }
            }
        }
    }
}
