//! What the model remembers.

/// Epoch and row of a log.
pub(super) type Position = (u8, u8);

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Source {
    pub epoch: u8,
    pub session: usize,
    pub from: u8,
    pub until: Option<u8>,
}

/// A row of `shards`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Shard {
    pub owner: Option<usize>,
    pub epoch: u8,
    pub checkpoint: Position,
    pub sources: Vec<Source>,
    pub split: Option<Split>,
}

/// This shard is a half.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Split {
    /// The last one of the shard that was split.
    pub epoch: u8,
    /// The row of the upper half, while it may be missing.
    pub sibling: Option<Box<Shard>>,
}

impl Shard {
    /// Stands for no row.
    pub fn missing() -> Self {
        Self { owner: None, epoch: 0, checkpoint: (0, 0), sources: Vec::new(), split: None }
    }

    pub fn is_missing(&self) -> bool {
        self.epoch == 0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Life {
    Live,
    Fenced,
    Sealed(u8),
    /// The row is deleted.
    Gone,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Record {
    pub shard: usize,
    pub epoch: u8,
    pub id: u8,
    /// The shard's state with it.
    pub state: Vec<u8>,
}

/// What an owner holds of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Owned {
    /// The shard's row as the owner left it.
    pub row: Shard,
    pub state: Vec<u8>,
    /// Position of the last record in `state`.
    pub last: Position,
    /// The flush under way or done: its stamp, and how much of the own log it reflects.
    pub flushed: Option<(Position, u8)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Memory {
    /// Not this session's, as far as it knows.
    Nothing,
    /// A claim was proposed.
    Claiming {
        expected: Shard,
        new: Shard,
    },
    /// The claim is known.
    Recovering {
        row: Shard,
    },
    /// The sources are read.
    Loading {
        row: Shard,
        replay: Vec<(Position, u8)>,
    },
    Serving(Owned),
    /// No more records: about to be handed over.
    Stopped(Owned),
    /// A hand-over was proposed.
    HandingOver {
        owned: Owned,
        expected: Shard,
    },
    /// The own epoch is being raised after a hand-over that was not decided.
    Raising {
        owned: Owned,
        expected: Shard,
        new: Shard,
    },
    /// A row is missing: stopped loudly (C2).
    Halted,
}

impl Memory {
    pub fn serving(row: Shard, state: Vec<u8>, last: Position, flushed: Option<(Position, u8)>) -> Self {
        Self::Serving(Owned { row, state, last, flushed })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Session {
    pub life: Life,
    pub base: u8,
    /// A base that was proposed, and the one that it replaces.
    pub base_proposed: Option<(u8, u8)>,
    pub log: Vec<Record>,
    pub covered: u8,
    /// Rows below this are deleted.
    pub deleted_below: u8,
    pub rotten: Option<u8>,
    pub memory: Vec<Memory>,
    /// The highest epoch of each shard that this session knows to have owned.
    pub known: Vec<u8>,
}

impl Session {
    pub fn new(shards: usize) -> Self {
        Self {
            life: Life::Live,
            base: 1,
            base_proposed: None,
            log: Vec::new(),
            covered: 0,
            deleted_below: 1,
            rotten: None,
            memory: vec![Memory::Nothing; shards],
            known: vec![0; shards],
        }
    }

    pub fn next_seq(&self) -> u8 {
        self.log.len() as u8 + 1
    }
}

/// A conditional write on a shard's row.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Proposal {
    pub shard: usize,
    pub expected: Shard,
    pub new: Shard,
    pub is_checkpoint: bool,
}

/// A materialized row: there are two a shard, written apart (a snapshot and a history, say).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(super) struct TableRow {
    pub stamp: Position,
    pub applied: Position,
    pub state: Vec<u8>,
}

/// A write to the tables that may still arrive.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Write {
    pub shard: usize,
    pub row: usize,
    pub stamp: Position,
    pub applied: Position,
    pub state: Vec<u8>,
}

/// A client's read under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Read {
    pub session: usize,
    pub shard: usize,
    /// What was promised when it arrived.
    pub expected: Vec<u8>,
    /// A fence read that was sent after it arrived found the session live.
    pub fenced: bool,
}

/// What went wrong, once and for all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Wrong {
    pub lost: bool,
    pub torn: bool,
    pub missing: bool,
    pub stale: bool,
}

/// How far the cleaner is; sessions as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Cleaner {
    Idle,
    /// Sealed sessions, in the right order; named ones, in the wrong one.
    Listed(u8),
    Deletes(u8),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    pub(super) shards: Vec<Shard>,
    pub(super) sessions: Vec<Session>,
    pub(super) proposals: Vec<Proposal>,
    pub(super) tables: Vec<[TableRow; 2]>,
    pub(super) writes: Vec<Write>,
    pub(super) records: u8,
    pub(super) flushes: u8,
    pub(super) promised: Vec<Vec<u8>>,
    pub(super) read: Option<Read>,
    pub(super) read_done: bool,
    /// A fence read found the session live at some time (for a broken variant).
    pub(super) was_live: u8,
    pub(super) cleaner: Cleaner,
    pub(super) wrong: Wrong,
}

impl State {
    pub(super) fn new(shards: Vec<Shard>, sessions: Vec<Session>) -> Self {
        Self {
            tables: vec![[TableRow::default(), TableRow::default()]; shards.len()],
            promised: vec![Vec::new(); shards.len()],
            shards,
            sessions,
            proposals: Vec::new(),
            writes: Vec::new(),
            records: 0,
            flushes: 0,
            read: None,
            read_done: false,
            was_live: 0,
            cleaner: Cleaner::Idle,
            wrong: Wrong::default(),
        }
    }

    pub(super) fn propose(&mut self, proposal: Proposal) {
        if let Err(at) = self.proposals.binary_search(&proposal) {
            self.proposals.insert(at, proposal);
        }
    }

    /// States that live sessions serve, by shard.
    pub(super) fn serving_live(&self) -> impl Iterator<Item = (usize, &Vec<u8>)> {
        let live = self.sessions.iter().filter(|session| session.life == Life::Live);
        live.flat_map(|session| {
            session.memory.iter().enumerate().filter_map(|(shard, memory)| match memory {
                Memory::Serving(owned) => Some((shard, &owned.state)),
                _ => None,
            })
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Ownership(Own),
    Flush(FlushStep),
    Clean(CleanStep),
}

/// Session, then shard, where both are named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Own {
    Append(usize, usize),
    /// S1.
    Split(usize, usize),
    /// S2: the upper half's row is proposed, or let go of.
    Bear(usize, usize),
    /// The broken variant.
    BearEarly(usize, usize),
    /// A fence read covers the log up to a row.
    Cover(usize, u8),
    Fence(usize),
    Seal(usize, u8),
    Claim(usize, usize),
    /// The n-th proposal is decided.
    Decide(usize),
    /// A serial read of the shard's row by a session that proposed something.
    Learn(usize, usize),
    /// A shard names a session without its knowing.
    Adopt(usize, usize),
    ReadSources(usize, usize),
    Load(usize, usize),
    Stop(usize, usize),
    /// From, shard, to.
    HandOver(usize, usize, usize),
    Raise(usize, usize),
    /// A broken variant goes on as if nothing had been proposed.
    Resume(usize, usize),
    Read(usize, usize),
    FenceRead,
    Answer,
    Rot(usize, u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlushStep {
    Write(usize, usize),
    /// The n-th write arrives.
    Arrive(usize),
    Checkpoint(usize, usize),
    ProposeBase(usize),
    DecideBase(usize),
    /// The base is known: rows below it go.
    Truncate(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CleanStep {
    First,
    Second,
    Delete(usize),
}
