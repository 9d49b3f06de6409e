//! Writing to the tables, checkpoints, the base of a session, truncation.

use super::{
    Broken, Shards,
    ownership::covers,
    split::half_of,
    state::{Action, FlushStep, Life, Memory, Owned, Position, Proposal, Session, State, Write},
};

impl Shards {
    pub(super) fn flush_actions(&self, state: &State, actions: &mut Vec<Action>) {
        let mut add = |step| actions.push(Action::Flush(step));
        (0..state.writes.len()).for_each(|n| add(FlushStep::Arrive(n)));
        for (x, session) in state.sessions.iter().enumerate() {
            for (shard, memory) in session.memory.iter().enumerate() {
                let Memory::Serving(owned) = memory else { continue };
                let covered = covers(session.covered, owned) || self.is(Broken::M1Uncovered);
                if state.flushes < self.flushes && covered && stamp(owned) > flushed(owned) {
                    add(FlushStep::Write(x, shard));
                }
                let written = self.is_written(state, shard, owned) || self.is(Broken::M2BeforeFlush);
                if written && owned.row.sources.len() > 1 && owned.flushed.is_some() {
                    add(FlushStep::Checkpoint(x, shard));
                }
            }
            if !self.truncate {
                continue;
            }
            match session.base_proposed {
                None if self.base_of(state, session, x) > session.base => add(FlushStep::ProposeBase(x)),
                None => {}
                Some((_, base)) => {
                    if session.life == Life::Live && session.base < base {
                        add(FlushStep::DecideBase(x));
                    }
                    if session.base == base || self.is(Broken::M3BaseNotKnown) {
                        add(FlushStep::Truncate(x));
                    }
                }
            }
        }
    }

    /// The first row of a session's log that somebody needs.
    fn base_of(&self, state: &State, session: &Session, x: usize) -> u8 {
        let mut base = session.covered + 1;
        for (shard, memory) in session.memory.iter().enumerate() {
            if shard > 0 && self.is(Broken::M3OneShardCounted) {
                continue;
            }
            let first_needed = match memory {
                Memory::Serving(owned) | Memory::Stopped(owned) => match owned.flushed {
                    Some((_, up_to)) if self.is_written(state, shard, owned) => up_to + 1,
                    // Nothing of it is in the tables under this claim.
                    _ => 1,
                },
                // A claim that is not known has no record in this log.
                Memory::Nothing | Memory::Claiming { .. } => session.next_seq(),
                Memory::Recovering { .. } | Memory::Loading { .. } | Memory::Halted => 1,
                Memory::HandingOver { .. } | Memory::Raising { .. } => 1,
            };
            base = base.min(first_needed);
        }
        // Shards that it handed over, and those that it has claimed again without knowing.
        let unknown = |memory: &Memory| matches!(memory, Memory::Nothing | Memory::Claiming { .. });
        if !self.is(Broken::M3HandedOverNotCounted) {
            let shards = state.shards.iter().zip(&session.memory).filter(|(_, memory)| unknown(memory));
            let sources = shards.flat_map(|(shard, _)| &shard.sources).filter(|source| source.session == x);
            base = base.min(sources.map(|source| source.from).min().unwrap_or(u8::MAX));
        }
        base
    }

    /// The last flush is in the tables.
    fn is_written(&self, state: &State, shard: usize, owned: &Owned) -> bool {
        let stamped = |stamp| move |half: usize| state.tables[half].iter().all(|row| row.stamp >= stamp);
        owned.flushed.is_some_and(|(stamp, _)| self.halves(shard, &owned.row).all(stamped(stamp)))
    }

    pub(super) fn flush(&self, state: &mut State, step: FlushStep) -> Option<()> {
        match step {
            FlushStep::Write(x, shard) => {
                let covered = state.sessions[x].covered;
                let Memory::Serving(owned) = &mut state.sessions[x].memory[shard] else { return None };
                let stamp = stamp(owned);
                owned.flushed = Some((stamp, covered));
                let (applied, all) = (owned.last, owned.state.clone());
                let halves = self.halves(shard, &owned.row);
                state.flushes += 1;
                for half in halves.clone() {
                    let rows: Vec<u8> =
                        all.iter().copied().filter(|id| halves.len() == 1 || half_of(*id) == half).collect();
                    for row in 0..2 {
                        state.writes.push(Write { shard: half, row, stamp, applied, state: rows.clone() });
                    }
                }
                state.writes.sort();
            }
            FlushStep::Arrive(n) => {
                let write = state.writes.remove(n);
                let row = &mut state.tables[write.shard][write.row];
                if write.stamp > row.stamp || self.is(Broken::M1DefaultTimestamp) {
                    (row.stamp, row.applied, row.state) = (write.stamp, write.applied, write.state);
                }
            }
            FlushStep::Checkpoint(x, shard) => self.checkpoint(state, x, shard)?,
            FlushStep::ProposeBase(x) => {
                let base = self.base_of(state, &state.sessions[x], x);
                let session = &mut state.sessions[x];
                session.base_proposed = Some((session.base, base));
            }
            FlushStep::DecideBase(x) => {
                let session = &mut state.sessions[x];
                session.base = session.base_proposed?.1;
            }
            FlushStep::Truncate(x) => {
                let session = &mut state.sessions[x];
                session.deleted_below = session.deleted_below.max(session.base_proposed?.1);
                if session.base == session.base_proposed?.1 {
                    session.base_proposed = None;
                }
            }
        }
        Some(())
    }

    /// M2: the owner proposes to drop old sources, and finds out at once or from its next look at the row.
    fn checkpoint(&self, state: &mut State, x: usize, shard: usize) -> Option<()> {
        let current = state.shards[shard].clone();
        let Memory::Serving(owned) = &mut state.sessions[x].memory[shard] else { return None };
        let mut new = owned.row.clone();
        new.sources.retain(|source| source.epoch == owned.row.epoch);
        new.checkpoint = new.checkpoint.max((owned.row.epoch, owned.flushed?.1));
        if current == new {
            // Decided.
            owned.row = new;
            return Some(());
        }
        let proposal = Proposal { shard, expected: owned.row.clone(), new, is_checkpoint: true };
        if state.proposals.contains(&proposal) || current != proposal.expected {
            return None;
        }
        state.propose(proposal);
        Some(())
    }
}

/// The first part of a stamp is the own epoch, so that it is newer than every earlier owner's (M1).
fn stamp(owned: &Owned) -> Position {
    let from = owned.row.sources.iter().find(|source| source.epoch == owned.row.epoch).map_or(1, |source| source.from);
    owned.last.max((owned.row.epoch, from - 1))
}

fn flushed(owned: &Owned) -> Position {
    owned.flushed.map_or((0, 0), |(stamp, _)| stamp)
}
