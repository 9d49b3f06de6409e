//! Owners of shards over several sessions' logs: who replays what, when it may be dropped, and who may answer.
//!
//! A session's log is a list of rows, each one record here. What [`super::append`] proves is taken for granted: only a
//! live session covers rows; a seal is at or above what was covered; all rows up to it can be read. So a fence is one step, and
//! so is a seal at any allowed end. Conditional writes on a shard's or a session's row are proposals in a register, and
//! may be decided late (G3). Writes to the tables arrive late, or more than once.
//!
//! A shard's state is the list of its records' numbers; a record remembers the state that it made. So "nothing lost,
//! nothing twice, one order" is: each state continues what was promised.
//!
//! A shard may be split in two (S1 to S3): shard 0 into itself and shard 1, which has no row before. Records with odd numbers
//! belong to the upper half, and the rows of the tables to either half from the beginning on: no row moves.
//!
//! Bounds: sessions, shards, records, flushes, claims (epochs). The model starts with session 0 as the owner of all shards.

mod cleaner;
mod flush;
mod ownership;
mod split;
mod state;

use stateright::{Model, Property};

pub use state::{Action, State};
use state::{Life, Memory, Session, Shard, Source};

use crate::invariants::continues;

/// A rule kept wrongly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Broken {
    /// G3: an unknown hand-over is taken for failed, and the shard served on.
    G3UnknownTakenForFailed,
    /// G4: the row of a session is deleted while a shard names it.
    G4DeletedWhileNamed,
    /// A5: reads answer without a fence read.
    A5NoFenceRead,
    /// A5: a fence read that was sent before the read arrived is used.
    A5OldFenceRead,
    /// A5: reads are answered while the shard is stopped for a hand-over.
    A5OutsideServingPeriod,
    /// C1: a shard is claimed when its owner is fenced and not sealed.
    C1OwnerNotSealed,
    /// C1: a claim does not raise the epoch.
    C1SameEpoch,
    /// C1: a claim does not say under which condition it holds.
    C1Unconditional,
    /// C2: only the last source is replayed.
    C2LastSourceOnly,
    /// C2: records are replayed whatever their tag.
    C2AnyTag,
    /// C2: a missing row is taken for the end.
    C2MissingIsEnd,
    /// C3: handed over before the last record is covered.
    C3NotCovered,
    /// C3: the shard is served while it is handed over.
    C3NotStopped,
    /// C4: the first answers of a claim need no fence read.
    C4FirstAnswersUnfenced,
    /// M1: rows of the tables are stamped by arrival.
    M1DefaultTimestamp,
    /// M1: rows are written before what they reflect is covered.
    M1Uncovered,
    /// M1: replay does not skip what the snapshot reflects.
    M1NoSkip,
    /// M2: sources are dropped before the flush is acknowledged.
    M2BeforeFlush,
    /// M2: a flush of before the epoch was raised lets sources go.
    M2FlushOfOldEpoch,
    /// M2: a late checkpoint of an old owner replaces the row.
    M2Unconditional,
    /// M3: rows are deleted before the base is known to be committed, and recovery reads from the committed one.
    M3BaseNotKnown,
    /// M3: the base counts the first shard only.
    M3OneShardCounted,
    /// M3: the base does not count shards that were handed over.
    M3HandedOverNotCounted,
    /// M3: recovery does not look at the base.
    M3BaseIgnored,
    /// M3: the cleaner lists shards first, and sessions after.
    M3ShardsListedFirst,
    /// S1: the upper half's row is written before the shard is closed.
    S1UpperHalfFirst,
    /// S2: an upper half without a row is claimed.
    S2MissingIsClaimed,
    /// S3: a half takes all that its parent logged.
    S3AnyHash,
    /// S3: a half takes nothing that its parent logged.
    S3OwnNumberOnly,
}

/// The model and its bounds.
#[derive(Debug, Clone)]
pub struct Shards {
    pub sessions: usize,
    pub shards: usize,
    /// Records in all logs together.
    pub records: u8,
    /// Flushes together.
    pub flushes: u8,
    /// Highest epoch of a shard.
    pub epochs: u8,
    /// Live owners hand shards over (C3).
    pub hand_over: bool,
    /// Shard 0 is split. There are two shards then, of which the second has no row at first.
    pub split: bool,
    /// The base moves (M3).
    pub truncate: bool,
    /// Sessions that nobody needs are deleted.
    pub clean: bool,
    /// A client reads.
    pub reads: bool,
    /// One row of a log rots: beyond what the protocol promises to survive, but not silently.
    pub rot: bool,
    pub broken: Option<Broken>,
}

impl Default for Shards {
    fn default() -> Self {
        Self {
            sessions: 3,
            shards: 1,
            records: 2,
            flushes: 0,
            epochs: 3,
            hand_over: false,
            split: false,
            truncate: false,
            clean: false,
            reads: false,
            rot: false,
            broken: None,
        }
    }
}

impl Shards {
    pub(crate) fn is(&self, broken: Broken) -> bool {
        self.broken == Some(broken)
    }
}

impl Model for Shards {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let shard = Shard {
            owner: Some(0),
            epoch: 1,
            checkpoint: (0, 0),
            sources: vec![Source { epoch: 1, session: 0, from: 1, until: None }],
            split: None,
        };
        let mut sessions = vec![Session::new(self.shards); self.sessions];
        sessions[0].known = vec![1; self.shards];
        for memory in &mut sessions[0].memory {
            *memory = Memory::serving(shard.clone(), Vec::new(), (0, 0), None);
        }
        let mut shards = vec![shard; self.shards];
        if self.split {
            shards[1] = Shard::missing();
            (sessions[0].known[1], sessions[0].memory[1]) = (0, Memory::Nothing);
        }
        vec![State::new(shards, sessions)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.ownership_actions(state, actions);
        self.flush_actions(state, actions);
        self.cleaner_actions(state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        self.step(&mut state, action)?;
        self.forget(&mut state);
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("what was promised is continued", |_, state: &State| !state.wrong.lost),
            Property::always("a live owner has all that was promised", |_, state: &State| {
                state.serving_live().all(|(shard, memory)| continues(&state.promised[shard], memory))
            }),
            Property::always("rows of the tables agree", |_, state: &State| !state.wrong.torn),
            Property::always("no needed row is missing", |model: &Self, state: &State| {
                model.rot || !state.wrong.missing
            }),
            Property::always("no read is stale", |_, state: &State| !state.wrong.stale),
            Property::sometimes("promises outlive two owners", |model: &Self, state: &State| {
                !model.is_chain() || state.serving_live().any(|(shard, _)| state.shards[shard].epoch == model.epochs)
            }),
            Property::sometimes("all records are promised", |model: &Self, state: &State| {
                state.promised.iter().map(Vec::len).sum::<usize>() == usize::from(model.records)
            }),
            Property::sometimes("both halves are served", |model: &Self, state: &State| {
                !model.split || state.halves_are_served()
            }),
            Property::sometimes("sessions end and are forgotten", |model: &Self, state: &State| {
                !model.clean || state.sessions.iter().any(|session| session.life == Life::Gone)
            }),
        ]
    }
}

impl Shards {
    fn is_chain(&self) -> bool {
        self.sessions >= usize::from(self.epochs) && !self.rot
    }

    fn step(&self, state: &mut State, action: Action) -> Option<()> {
        match action {
            Action::Ownership(action) => self.own(state, action),
            Action::Flush(action) => self.flush(state, action),
            Action::Clean(action) => self.clean(state, action),
        }
    }

    /// Forgets proposals that can never be decided any more, and table writes that can never win: rows only move on, so
    /// a condition that is past stays so.
    fn forget(&self, state: &mut State) {
        let keep_all = self.is(Broken::C1Unconditional) || self.is(Broken::M2Unconditional);
        if !keep_all {
            let State { proposals, shards, .. } = state;
            proposals.retain(|proposal| shards[proposal.shard] == proposal.expected);
        }
        if !self.is(Broken::M1DefaultTimestamp) {
            let State { writes, tables, .. } = state;
            writes.retain(|write| tables[write.shard][write.row].stamp < write.stamp);
        }
    }
}
