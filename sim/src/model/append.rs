//! One session's log on three replicas: its writer, and two others that end it.
//!
//! Replicas hold the session's row and log rows. What was sent to them may arrive at any time, in any order, at any of
//! them, or never. Quorum reads hear two replicas one after the other. Reads of the session's row repair what they heard
//! before they return (G1); reads of the log do not, which is weaker than Cassandra. Serial reads see what is decided, and
//! repair nothing, which is weaker, too.
//!
//! Bounds: rows of the log, one or two fencers; everything else is unbounded.

mod steps;

use stateright::{Model, Property};

use crate::invariants::acknowledged_below_end;

const REPLICAS: usize = 3;
const MAX_FENCERS: usize = 2;
const MAX_ROWS: usize = 3;
const QUORUM: u8 = 2;
/// Who reads: the writer, then the fencers.
const WRITER: usize = 0;

/// A rule kept wrongly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Broken {
    /// G1: the fence read asks one replica.
    G1FenceReadAtOne,
    /// G1: an append counts when one replica has it.
    G1AppendAtOne,
    /// G1: reads return before what they saw is on a quorum.
    G1NoReadRepair,
    /// G2: a retry of an append sends something else.
    G2RetryDiffers,
    /// G3: a conditional write whose outcome is unknown is taken for done.
    G3UnknownTakenForDone,
    /// G4: a session without a row passes as live.
    G4MissingIsLive,
    /// G4: the row is proposed again under the same id while the first proposal may still be under way.
    G4CreatedTwice,
    /// A1: a restarted process goes on with the session it had.
    A1RestartKeepsSession,
    /// A2: a row's number is left out.
    A2NumberSkipped,
    /// A2: more rows in flight than a fencer writes again.
    A2TooManyInFlight,
    /// A3: a fence read covers what was acknowledged when it is answered.
    A3CoversLateAcks,
    /// A3: what a fence read finds is not looked at.
    A3FencedGoesOn,
    /// A4: rows behind a gap are acknowledged.
    A4GapAcknowledged,
    /// A4: rows are acknowledged without a fence read.
    A4Uncovered,
    /// F1: the scan starts before a read has shown the fence.
    F1ScanBeforeSeen,
    /// F2: rows that may lack a quorum are counted, and not written again.
    F2NotWrittenAgain,
    /// F2: the scan asks one replica.
    F2ScanAtOne,
    /// F3: a fencer uses the end it found, not the one decided.
    F3OwnEnd,
    /// F3: a second seal replaces the first.
    F3LastSealWins,
}

/// The model and its bounds.
#[derive(Debug, Clone)]
pub struct Append {
    /// Rows that the writer issues, at most 3.
    pub rows: u8,
    /// Rows in flight (A2's W), and rows that fencers write again.
    pub window: u8,
    /// Others that end the session, at most 2.
    pub fencers: usize,
    pub broken: Option<Broken>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Row {
    Missing,
    Live,
    Fenced,
    Sealed(u8),
}

/// A decided value with its ballot: the later one wins on a replica.
type Versioned = (u8, Row);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Replica {
    session: Versioned,
    /// Content of each log row, 0: none.
    log: [u8; MAX_ROWS],
    /// Whose read under way it has answered.
    heard_by: [bool; 1 + MAX_FENCERS],
}

/// A quorum read under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Heard {
    replies: u8,
    session: Versioned,
    /// Log rows, one bit each.
    log: u8,
}

const NOTHING_HEARD: Heard = Heard { replies: 0, session: (0, Row::Missing), log: 0 };

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Writer {
    running: bool,
    stopped: bool,
    restarted: bool,
    content: u8,
    /// Contents that were sent of each row, one bit each.
    sent: [u8; MAX_ROWS],
    /// The acknowledged prefix when a row was sent: its header.
    header: [u8; MAX_ROWS],
    issued: u8,
    acked: u8,
    /// What the fence read under way covers, and what it has heard.
    fence: Option<(u8, Heard)>,
    covered: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Fencer {
    Looking,
    Seeing(Heard),
    Scanning(Heard),
    WritingAgain { end: u8, above: u8 },
    Sealing { end: u8 },
    Knows(u8),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct State {
    replicas: [Replica; REPLICAS],
    decided: Versioned,
    creations_proposed: u8,
    creations_under_way: u8,
    fence_under_way: bool,
    /// Seals under way, one bit an end.
    seals_under_way: u8,
    writer: Writer,
    fencers: [Fencer; MAX_FENCERS],
    /// Content of what clients were told is done, 0: nothing.
    shown: [u8; MAX_ROWS],
    /// The end that was decided first.
    end: Option<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    ProposeSession,
    DecideSession,
    Begin,
    Restart,
    Issue,
    SendOther(u8),
    /// A row arrives at a replica.
    Arrive(usize, u8, u8),
    /// The last decided session row arrives at a replica.
    Commit(usize),
    Ack(u8),
    SendFenceRead,
    LoseFenceRead,
    FenceReply(usize),
    DecideFence,
    Look(usize),
    TakeForDone(usize),
    SeeReply(usize, usize),
    ScanReply(usize, usize),
    WrittenAgain(usize),
    DecideSeal(u8),
    LearnSeal(usize),
    DeleteSession,
}

impl Append {
    fn is(&self, broken: Broken) -> bool {
        self.broken == Some(broken)
    }

    fn holders(state: &State, row: u8) -> u8 {
        state.replicas.iter().filter(|replica| replica.log[usize::from(row)] != 0).count() as u8
    }
}

impl Model for Append {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let replica = Replica { session: (0, Row::Missing), log: [0; MAX_ROWS], heard_by: [false; 1 + MAX_FENCERS] };
        let writer = Writer {
            running: false,
            stopped: false,
            restarted: false,
            content: 1,
            sent: [0; MAX_ROWS],
            header: [0; MAX_ROWS],
            issued: 0,
            acked: 0,
            fence: None,
            covered: 0,
        };
        vec![State {
            replicas: [replica; REPLICAS],
            decided: (0, Row::Missing),
            creations_proposed: 0,
            creations_under_way: 0,
            fence_under_way: false,
            seals_under_way: 0,
            writer,
            fencers: [Fencer::Looking; MAX_FENCERS],
            shown: [0; MAX_ROWS],
            end: None,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.store_actions(state, actions);
        self.writer_actions(state, actions);
        for fencer in 0..self.fencers {
            self.fencer_actions(state, fencer, actions);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        self.step(&mut state, action)?;
        // Symmetry: fencers are interchangeable, and so are replicas.
        if self.fencers == MAX_FENCERS && state.fencers[0] > state.fencers[1] {
            state.fencers.swap(0, 1);
            for replica in &mut state.replicas {
                replica.heard_by.swap(1, 2);
            }
        }
        state.replicas.sort_unstable();
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing beyond the end was acknowledged", |_, state: &State| {
                let shown = state.shown.iter().rposition(|content| *content != 0).map_or(0, |row| row + 1);
                state.end.is_none_or(|end| acknowledged_below_end(shown as u64, end.into()))
            }),
            Property::always("rows up to the end are on a quorum", |_, state: &State| {
                (0..state.end.unwrap_or(0)).all(|row| Self::holders(state, row) >= QUORUM)
            }),
            Property::always("everyone knows the same end", |_, state: &State| {
                state.fencers.iter().all(|fencer| match fencer {
                    Fencer::Knows(end) => state.end == Some(*end),
                    Fencer::Looking | Fencer::Seeing(_) | Fencer::Scanning(_) => true,
                    Fencer::WritingAgain { .. } | Fencer::Sealing { .. } => true,
                })
            }),
            Property::always("what was acknowledged is what is stored", |_, state: &State| {
                (0..MAX_ROWS)
                    .filter(|row| state.shown[*row] != 0)
                    .all(|row| state.replicas.iter().all(|replica| [0, state.shown[row]].contains(&replica.log[row])))
            }),
            Property::sometimes(
                "all rows are acknowledged, and the session sealed after them",
                |model: &Self, state: &State| {
                    state.end == Some(model.rows) && state.shown[usize::from(model.rows) - 1] != 0
                },
            ),
            Property::sometimes("a row that nobody acknowledged is kept", |_, state: &State| {
                state.end.is_some_and(|end| end > 0 && state.shown[0] == 0)
            }),
        ]
    }
}
