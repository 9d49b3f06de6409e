//! Appending, covering, fencing, claiming, recovering, handing over, reading.

use super::{
    Broken, Shards,
    split::{divide_promise, half_of},
    state::{Action, Life, Memory, Own, Owned, Position, Proposal, Read, Record, Shard, Source, State},
};
use crate::invariants::continues;

impl Shards {
    pub(super) fn ownership_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let mut add = |own| actions.push(Action::Ownership(own));
        (0..state.proposals.len()).filter(|n| self.can_decide(state, *n)).for_each(|n| add(Own::Decide(n)));
        for x in 0..self.sessions {
            let session = &state.sessions[x];
            let rows = session.log.len() as u8;
            let fenced_goes_on = self.is(Broken::C4FirstAnswersUnfenced) && x > 0 && session.life != Life::Live;
            if fenced_goes_on && session.covered == 0 && rows > 0 {
                add(Own::Cover(x, rows));
            }
            match session.life {
                Life::Live => {
                    (session.covered + 1..=rows).for_each(|row| add(Own::Cover(x, row)));
                    add(Own::Fence(x));
                }
                Life::Fenced => (session.covered..=rows).for_each(|end| add(Own::Seal(x, end))),
                Life::Sealed(end) if self.rot && session.rotten.is_none() => {
                    (session.base..=end).for_each(|row| add(Own::Rot(x, row)));
                }
                Life::Sealed(_) | Life::Gone => {}
            }
            for shard in 0..self.shards {
                self.shard_actions(state, x, shard, &mut add);
            }
        }
        if let Some(read) = &state.read {
            if !read.fenced {
                add(Own::FenceRead);
            }
            add(Own::Answer);
        }
    }

    fn can_decide(&self, state: &State, n: usize) -> bool {
        let proposal = &state.proposals[n];
        let holds = state.shards[proposal.shard] == proposal.expected;
        let anyway = if proposal.is_checkpoint { Broken::M2Unconditional } else { Broken::C1Unconditional };
        holds || self.is(anyway)
    }

    fn shard_actions(&self, state: &State, x: usize, shard: usize, add: &mut impl FnMut(Own)) {
        let row = &state.shards[shard];
        match &state.sessions[x].memory[shard] {
            Memory::Nothing => {
                if row.owner == Some(x) {
                    if row.epoch > state.sessions[x].known[shard] {
                        add(Own::Adopt(x, shard));
                    }
                } else if row.epoch < self.epochs && self.may_claim(state, x, row) {
                    add(Own::Claim(x, shard));
                }
            }
            Memory::Claiming { .. } => add(Own::Learn(x, shard)),
            Memory::Recovering { row } if row.split.as_ref().is_some_and(|split| split.sibling.is_some()) => {
                add(Own::Bear(x, shard));
            }
            Memory::Recovering { .. } => add(Own::ReadSources(x, shard)),
            Memory::Loading { .. } => add(Own::Load(x, shard)),
            Memory::Serving(owned) => {
                if state.records < self.records
                    && self.halves(shard, &owned.row).contains(&self.next_half(state, shard))
                {
                    add(Own::Append(x, shard));
                }
                let may_split = self.split && shard == 0 && owned.row.split.is_none();
                if (self.hand_over || may_split) && row.epoch < self.epochs {
                    add(Own::Stop(x, shard));
                }
                self.read_actions(state, x, shard, add);
            }
            Memory::Stopped(owned) => {
                let session = &state.sessions[x];
                let own = row.owner == Some(x) && row.epoch == owned.row.epoch;
                let is_over = own && (self.is(Broken::C3NotCovered) || covers(session.covered, owned));
                if is_over && self.split && shard == 0 && row.split.is_none() {
                    add(Own::Split(x, shard));
                    if self.is(Broken::S1UpperHalfFirst) && state.shards[1].is_missing() {
                        add(Own::BearEarly(x, shard));
                    }
                }
                if is_over && self.hand_over {
                    (0..self.sessions).filter(|y| *y != x).for_each(|y| add(Own::HandOver(x, shard, y)));
                }
            }
            Memory::HandingOver { owned, .. } => {
                if self.is(Broken::A5OutsideServingPeriod) {
                    self.read_actions(state, x, shard, add);
                }
                add(Own::Learn(x, shard));
                // Still its own, as far as it can see: it wants the shard back.
                if row.owner == Some(x) && row.epoch == owned.row.epoch {
                    add(if self.is(Broken::G3UnknownTakenForFailed) {
                        Own::Resume(x, shard)
                    } else {
                        Own::Raise(x, shard)
                    });
                }
                if self.is(Broken::C3NotStopped) && state.records < self.records {
                    add(Own::Append(x, shard));
                }
            }
            Memory::Raising { .. } => add(Own::Learn(x, shard)),
            Memory::Halted => {}
        }
    }

    fn read_actions(&self, state: &State, x: usize, shard: usize, add: &mut impl FnMut(Own)) {
        if self.reads && state.read.is_none() && !state.read_done {
            add(Own::Read(x, shard));
        }
    }

    /// C1: owner and open sources are sealed. A session without a row counts as sealed at nothing: it was deleted when no
    /// shard named it, so a claim that names it was decided after its fence, and never served (C4).
    fn may_claim(&self, state: &State, x: usize, row: &Shard) -> bool {
        let ended = |session: usize| match state.sessions[session].life {
            Life::Sealed(_) | Life::Gone => true,
            Life::Fenced => self.is(Broken::C1OwnerNotSealed),
            Life::Live => false,
        };
        let open = row.sources.iter().filter(|source| source.until.is_none());
        let is_there = !row.is_missing() || self.is(Broken::S2MissingIsClaimed);
        is_there
            && row.owner != Some(x)
            && row.owner.is_none_or(ended)
            && open.into_iter().all(|source| ended(source.session))
    }

    /// First and last row of a source that may still have to be replayed.
    fn to_replay(&self, state: &State, source: &Source, checkpoint: Position) -> Option<(u8, u8)> {
        let session = &state.sessions[source.session];
        let end = match (source.until, session.life) {
            (Some(until), _) => until,
            (None, Life::Sealed(end)) => end,
            (None, Life::Live | Life::Fenced | Life::Gone) => return None,
        };
        if checkpoint.0 > source.epoch {
            return None;
        }
        let after = if checkpoint.0 == source.epoch { checkpoint.1 + 1 } else { 1 };
        let base = if self.is(Broken::M3BaseIgnored) { 1 } else { session.base };
        let start = source.from.max(after).max(base);
        (start <= end).then_some((start, end))
    }

    fn claimed_row(&self, state: &State, x: usize, shard: usize) -> Shard {
        let mut row = state.shards[shard].clone();
        let checkpoint = row.checkpoint;
        row.sources.retain(|source| self.to_replay(state, source, checkpoint).is_some());
        row.owner = Some(x);
        if self.is(Broken::C1SameEpoch) {
            let epoch = row.epoch;
            row.sources.retain(|source| source.epoch != epoch);
        } else {
            row.epoch += 1;
        }
        row.sources.push(Source { epoch: row.epoch, session: x, from: state.sessions[x].next_seq(), until: None });
        row
    }

    pub(super) fn own(&self, state: &mut State, action: Own) -> Option<()> {
        match action {
            Own::Append(x, shard) => append(state, x, shard)?,
            Own::Split(x, shard) => self.split(state, x, shard)?,
            Own::Bear(x, shard) => self.bear(state, x, shard)?,
            Own::BearEarly(x, shard) => self.bear_early(state, x, shard)?,
            Own::Cover(x, row) => cover(state, x, row),
            Own::Fence(x) => state.sessions[x].life = Life::Fenced,
            Own::Seal(x, end) => state.sessions[x].life = Life::Sealed(end),
            Own::Rot(x, row) => state.sessions[x].rotten = Some(row),
            Own::Claim(x, shard) => {
                let (expected, new) = (state.shards[shard].clone(), self.claimed_row(state, x, shard));
                state.sessions[x].memory[shard] = Memory::Claiming { expected: expected.clone(), new: new.clone() };
                state.propose(Proposal { shard, expected, new, is_checkpoint: false });
            }
            Own::Decide(n) => {
                let proposal = state.proposals.remove(n);
                if proposal.new.split.is_some() && proposal.shard == 0 && state.shards[0].split.is_none() {
                    divide_promise(state);
                }
                state.shards[proposal.shard] = proposal.new;
            }
            Own::Learn(x, shard) => self.learn(state, x, shard)?,
            Own::Adopt(x, shard) => {
                let row = state.shards[shard].clone();
                state.sessions[x].known[shard] = row.epoch;
                state.sessions[x].memory[shard] = Memory::Recovering { row };
            }
            Own::ReadSources(x, shard) => self.read_sources(state, x, shard)?,
            Own::Load(x, shard) => self.load(state, x, shard)?,
            Own::Stop(x, shard) => {
                let memory = &mut state.sessions[x].memory[shard];
                let Memory::Serving(owned) = memory.clone() else { return None };
                *memory = Memory::Stopped(owned);
                if !self.is(Broken::A5OutsideServingPeriod) {
                    drop_read(state, x, shard);
                }
            }
            Own::HandOver(x, shard, y) => self.hand_over(state, x, shard, y)?,
            Own::Raise(x, shard) => self.raise(state, x, shard)?,
            // The broken variant.
            Own::Resume(x, shard) => {
                let memory = &mut state.sessions[x].memory[shard];
                let Memory::HandingOver { owned, .. } = memory.clone() else { return None };
                *memory = Memory::Serving(owned);
            }
            Own::Read(x, shard) => {
                let expected = state.promised[shard].clone();
                state.read = Some(Read { session: x, shard, expected, fenced: false });
                state.read_done = true;
            }
            Own::FenceRead => fence_read(state)?,
            Own::Answer => self.answer(state)?,
        }
        Some(())
    }

    fn learn(&self, state: &mut State, x: usize, shard: usize) -> Option<()> {
        let row = state.shards[shard].clone();
        let session = &mut state.sessions[x];
        let memory = &mut session.memory[shard];
        let is_mine = |owned: &Owned| row.owner == Some(x) && row.epoch == owned.row.epoch;
        *memory = match memory.clone() {
            Memory::Claiming { new, .. } if row == new => {
                session.known[shard] = row.epoch;
                Memory::Recovering { row }
            }
            // G3: the row as it was proves nothing.
            Memory::Claiming { expected, .. } if row == expected => return None,
            Memory::Claiming { .. } => Memory::Nothing,
            Memory::Raising { owned, new, .. } if row == new => {
                session.known[shard] = row.epoch;
                // Sources of before are dropped after a flush of this epoch only (M2).
                let flushed = owned.flushed.filter(|_| self.is(Broken::M2FlushOfOldEpoch));
                Memory::Serving(Owned { row, flushed, ..owned })
            }
            Memory::HandingOver { expected, .. } | Memory::Raising { expected, .. } if row == expected => return None,
            // Its own checkpoint came first, so the condition is false for ever: once more.
            Memory::HandingOver { owned, .. } if is_mine(&owned) => Memory::Stopped(Owned { row, ..owned }),
            Memory::Raising { owned, .. } if is_mine(&owned) => {
                Memory::HandingOver { owned: Owned { row: row.clone(), ..owned }, expected: row }
            }
            // Handed over.
            Memory::HandingOver { .. } | Memory::Raising { .. } => Memory::Nothing,
            Memory::Nothing | Memory::Recovering { .. } | Memory::Loading { .. } => return None,
            Memory::Serving(_) | Memory::Stopped(_) | Memory::Halted => return None,
        };
        Some(())
    }

    /// C2.
    fn read_sources(&self, state: &mut State, x: usize, shard: usize) -> Option<()> {
        let Memory::Recovering { row } = state.sessions[x].memory[shard].clone() else { return None };
        let mut replay: Vec<(Position, u8)> = Vec::new();
        let mut missing = false;
        let older: Vec<&Source> = row.sources.iter().filter(|source| source.epoch < row.epoch).collect();
        let skipped = if self.is(Broken::C2LastSourceOnly) { older.len().saturating_sub(1) } else { 0 };
        for source in older.into_iter().skip(skipped) {
            let Some((start, end)) = self.to_replay(state, source, row.checkpoint) else { continue };
            let session = &state.sessions[source.session];
            // A row that is not covered need not be on a quorum before a seal has made sure of it.
            let readable = match session.life {
                Life::Sealed(end) => end,
                Life::Live | Life::Fenced => session.covered,
                Life::Gone => 0,
            };
            for seq in start..=end {
                if seq > readable || seq < session.deleted_below || session.rotten == Some(seq) {
                    missing = true;
                    break;
                }
                let record = &session.log[usize::from(seq) - 1];
                let tagged = self.is_tagged(record, shard, source.epoch, &row);
                if tagged || self.is(Broken::C2AnyTag) {
                    replay.push(((source.epoch, seq), record.id));
                }
            }
        }
        let is_owner = state.shards[shard].owner == Some(x) && state.shards[shard].epoch == row.epoch;
        if missing && is_owner && state.sessions[x].life == Life::Live {
            state.wrong.missing = true;
        }
        state.sessions[x].memory[shard] =
            if missing && !self.is(Broken::C2MissingIsEnd) { Memory::Halted } else { Memory::Loading { row, replay } };
        Some(())
    }

    fn load(&self, state: &mut State, x: usize, shard: usize) -> Option<()> {
        let Memory::Loading { row, replay } = state.sessions[x].memory[shard].clone() else { return None };
        let halves = self.halves(shard, &row);
        let replayed = [0, 1].map(|n| {
            let (mut all, mut latest) = (Vec::new(), (0, 0));
            for half in halves.clone() {
                let stored = state.tables[half][n].clone();
                let (mut ids, mut last) = (stored.state, stored.applied);
                for (position, id) in replay.iter().filter(|(_, id)| halves.len() == 1 || half_of(*id) == half) {
                    // M1: what the row reflects is skipped.
                    if *position > stored.applied || self.is(Broken::M1NoSkip) {
                        ids.push(*id);
                        last = *position;
                    }
                }
                all.extend(ids);
                latest = latest.max(last);
            }
            if halves.len() > 1 {
                // One state of two entities: in the order in which it came to be.
                all.sort_unstable();
            }
            (all, latest)
        });
        let is_owner = state.shards[shard].owner == Some(x) && state.shards[shard].epoch == row.epoch;
        let [(ids, last), (other, _)] = replayed;
        if is_owner && state.sessions[x].life == Life::Live && ids != other {
            state.wrong.torn = true;
        }
        state.sessions[x].memory[shard] = Memory::serving(row, ids, last, None);
        Some(())
    }

    /// C3.
    fn hand_over(&self, state: &mut State, x: usize, shard: usize, y: usize) -> Option<()> {
        let Memory::Stopped(owned) = state.sessions[x].memory[shard].clone() else { return None };
        let expected = state.shards[shard].clone();
        let mut new = self.closed(state, x, &expected);
        new.owner = Some(y);
        new.sources.push(Source { epoch: new.epoch, session: y, from: state.sessions[y].next_seq(), until: None });
        state.sessions[x].memory[shard] = Memory::HandingOver { owned, expected: expected.clone() };
        state.propose(Proposal { shard, expected, new, is_checkpoint: false });
        Some(())
    }

    /// The row with the next epoch, and the own source closed.
    pub(super) fn closed(&self, state: &State, x: usize, current: &Shard) -> Shard {
        let mut new = current.clone();
        let end =
            if self.is(Broken::C3NotCovered) { state.sessions[x].next_seq() - 1 } else { state.sessions[x].covered };
        for source in new.sources.iter_mut().filter(|source| source.epoch == current.epoch) {
            source.until = Some(end);
        }
        new.epoch += 1;
        new
    }

    /// C3's last sentence: a new epoch makes the condition of the old proposal false.
    fn raise(&self, state: &mut State, x: usize, shard: usize) -> Option<()> {
        let Memory::HandingOver { owned, .. } = state.sessions[x].memory[shard].clone() else { return None };
        let expected = state.shards[shard].clone();
        let mut new = self.closed(state, x, &expected);
        new.sources.push(Source { epoch: new.epoch, session: x, from: state.sessions[x].next_seq(), until: None });
        let memory = Memory::Raising { owned, expected: expected.clone(), new: new.clone() };
        state.sessions[x].memory[shard] = memory;
        state.propose(Proposal { shard, expected, new, is_checkpoint: false });
        Some(())
    }

    /// A5: from covered state, after a fence read.
    fn answer(&self, state: &mut State) -> Option<()> {
        let read = state.read.clone()?;
        let old = self.is(Broken::A5OldFenceRead) && state.was_live & (1 << read.session) != 0;
        if !read.fenced && !old && !self.is(Broken::A5NoFenceRead) {
            return None;
        }
        let session = &state.sessions[read.session];
        let owned = match &session.memory[read.shard] {
            Memory::Serving(owned) => owned,
            Memory::Stopped(owned) | Memory::HandingOver { owned, .. } if self.is(Broken::A5OutsideServingPeriod) => {
                owned
            }
            _ => return None,
        };
        let uncovered = session.log[usize::from(session.covered)..]
            .iter()
            .filter(|record| record.shard == read.shard && record.epoch == owned.row.epoch)
            .count();
        let shown = &owned.state[..owned.state.len() - uncovered];
        state.wrong.stale |= !continues(&read.expected, shown);
        state.read = None;
        Some(())
    }
}

/// Whether all that the owner did is covered.
pub(super) fn covers(covered: u8, owned: &Owned) -> bool {
    owned.last.0 < owned.row.epoch || owned.last.1 <= covered
}

fn append(state: &mut State, x: usize, shard: usize) -> Option<()> {
    let id = state.records + 1;
    let session = &mut state.sessions[x];
    let seq = session.next_seq();
    let (Memory::Serving(owned) | Memory::HandingOver { owned, .. }) = &mut session.memory[shard] else {
        return None;
    };
    owned.state.push(id);
    owned.last = (owned.row.epoch, seq);
    session.log.push(Record { shard, epoch: owned.row.epoch, id, state: owned.state.clone() });
    state.records = id;
    Some(())
}

/// The fence read found the session live: its prefix is acknowledged to clients.
fn cover(state: &mut State, x: usize, row: u8) {
    let session = &mut state.sessions[x];
    for record in &session.log[usize::from(session.covered)..usize::from(row)] {
        let promised = &mut state.promised[record.shard];
        state.wrong.lost |= !continues(promised, &record.state);
        promised.clone_from(&record.state);
    }
    session.covered = row;
    state.was_live |= 1 << x;
}

/// A fence read for the read under way.
fn fence_read(state: &mut State) -> Option<()> {
    let read = state.read.as_mut()?;
    if state.sessions[read.session].life == Life::Live {
        read.fenced = true;
        state.was_live |= 1 << read.session;
    } else {
        // The session stops: the read fails.
        state.read = None;
    }
    Some(())
}

/// Readers of a shard that is not served any more are sent away.
fn drop_read(state: &mut State, x: usize, shard: usize) {
    if state.read.as_ref().is_some_and(|read| read.session == x && read.shard == shard) {
        state.read = None;
    }
}
