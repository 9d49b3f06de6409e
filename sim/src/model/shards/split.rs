//! Shards split in two under their owners (S1 to S3).

use std::ops::Range;

use super::{
    Broken, Shards,
    state::{Memory, Proposal, Record, Shard, Source, Split, State},
};

/// The half that a record belongs to.
pub(super) fn half_of(id: u8) -> usize {
    usize::from(id % 2)
}

/// What was promised of the shard is promised of its halves from now on.
pub(super) fn divide_promise(state: &mut State) {
    let (upper, lower) = state.promised[0].iter().partition(|id| half_of(**id) == 1);
    (state.promised[0], state.promised[1]) = (lower, upper);
}

impl Shards {
    /// The rows of the tables that a shard has.
    pub(super) fn halves(&self, shard: usize, row: &Shard) -> Range<usize> {
        if self.split && shard == 0 && row.split.is_none() { 0..2 } else { shard..shard + 1 }
    }

    /// Where the next record belongs, to a shard that is asked.
    pub(super) fn next_half(&self, state: &State, shard: usize) -> usize {
        if self.split { half_of(state.records + 1) } else { shard }
    }

    /// S3: records of before a split bear the number of the shard that was split, and each half takes its own.
    pub(super) fn is_tagged(&self, record: &Record, shard: usize, epoch: u8, row: &Shard) -> bool {
        let is_before = row.split.as_ref().is_some_and(|split| epoch <= split.epoch);
        let number = if is_before && !self.is(Broken::S3OwnNumberOnly) { 0 } else { shard };
        let is_own = !is_before || self.is(Broken::S3AnyHash) || half_of(record.id) == shard;
        record.shard == number && record.epoch == epoch && is_own
    }

    /// The row of the lower half, with that of the upper one.
    fn halved(&self, state: &State, x: usize, current: &Shard) -> Shard {
        let mut new = self.closed(state, x, current);
        new.owner = Some(x);
        new.sources.push(Source { epoch: new.epoch, session: x, from: state.sessions[x].next_seq(), until: None });
        let upper = Shard { split: Some(Split { epoch: current.epoch, sibling: None }), ..new.clone() };
        new.split = Some(Split { epoch: current.epoch, sibling: Some(Box::new(upper)) });
        new
    }

    /// S1: as a hand-over to itself.
    pub(super) fn split(&self, state: &mut State, x: usize, shard: usize) -> Option<()> {
        let Memory::Stopped(owned) = state.sessions[x].memory[shard].clone() else { return None };
        let expected = state.shards[shard].clone();
        let new = self.halved(state, x, &expected);
        state.sessions[x].memory[shard] = Memory::HandingOver { owned, expected: expected.clone() };
        state.propose(Proposal { shard, expected, new, is_checkpoint: false });
        Some(())
    }

    /// S2: first the upper half's row, then, when it is there, the lower one's without it.
    pub(super) fn bear(&self, state: &mut State, x: usize, shard: usize) -> Option<()> {
        let Memory::Recovering { row } = state.sessions[x].memory[shard].clone() else { return None };
        let split = row.split.clone()?;
        let proposal = if state.shards[1].is_missing() {
            Proposal { shard: 1, expected: Shard::missing(), new: *split.sibling?, is_checkpoint: false }
        } else {
            let new = Shard { split: Some(Split { sibling: None, ..split }), ..row.clone() };
            if state.shards[shard] == new {
                state.sessions[x].memory[shard] = Memory::Recovering { row: new };
                return Some(());
            }
            Proposal { shard, expected: row, new, is_checkpoint: false }
        };
        let is_new = !state.proposals.contains(&proposal) && state.shards[proposal.shard] == proposal.expected;
        is_new.then(|| state.propose(proposal))
    }

    /// The broken variant: from the row as it is before the shard is closed.
    pub(super) fn bear_early(&self, state: &mut State, x: usize, shard: usize) -> Option<()> {
        let new = *self.halved(state, x, &state.shards[shard]).split?.sibling?;
        let proposal = Proposal { shard: 1, expected: Shard::missing(), new, is_checkpoint: false };
        (!state.proposals.contains(&proposal)).then(|| state.propose(proposal))
    }
}

impl State {
    pub(super) fn halves_are_served(&self) -> bool {
        let serves = |half| self.serving_live().any(|(shard, _)| shard == half);
        self.shards[0].split.is_some() && serves(0) && serves(1)
    }
}
