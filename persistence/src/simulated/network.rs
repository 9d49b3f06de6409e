//! Coordinator, replicas and the messages between them. Synchronous: an operation is one call, and time is the count of
//! operations.
//!
//! Plain writes go to every replica, each with a fate of its own, and are acknowledged by a quorum. Reads ask a random
//! quorum, merge, and write the merged rows back to those asked (blocking read repair) before they return.
//!
//! Conditional writes are decided in one linearizable register (what Paxos over the replicas amounts to), and then
//! committed to the replicas as plain writes. So a plain read may miss a decided change for a while; a serial read may
//! not. A proposal whose coordinator is still at it is decided later, if its condition holds then (G3).

use std::collections::BTreeMap;

use super::{
    Op,
    faults::{Chance, Failure, Faults, Injected},
    replica::{Cell, LwtKey, LwtRow, Mutation, Replica, Scope},
};
use crate::{Cas, MemberRow, Result, StoreError};

/// What a conditional write asks of the row before it replaces it.
#[derive(Debug, Clone)]
pub(super) enum Condition {
    Is(Option<LwtRow>),
    NamespaceVersionIs(Option<u64>),
}

impl Condition {
    fn holds(&self, row: Option<&LwtRow>) -> bool {
        match self {
            Self::Is(expected) => expected.as_ref() == row,
            Self::NamespaceVersionIs(expected) => {
                let version = match row {
                    Some(LwtRow::Namespace(namespace)) => Some(namespace.version),
                    _ => None,
                };
                *expected == version
            }
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Lwt {
    pub key: LwtKey,
    pub condition: Condition,
    pub new: Option<LwtRow>,
}

#[derive(Debug)]
enum Message {
    Replicate { replica: usize, mutation: Mutation },
    Decide(Lwt),
}

#[derive(Debug)]
pub(super) struct Network {
    replicas: Vec<Replica>,
    /// The linearizable register of each row under conditional writes.
    decided: Replica,
    last_ballot: i64,
    /// Messages under way, by the operation count at which they arrive.
    in_flight: BTreeMap<(u64, u64), Message>,
    sent: u64,
    operations: u64,
    counts: BTreeMap<Op, u64>,
    chance: Chance,
    /// Hints of no consequence: never lost, never expired.
    pub members: BTreeMap<String, MemberRow>,
    pub faults: Faults,
    pub injected: Injected,
    /// Faults so far, by kind.
    happened: BTreeMap<&'static str, u64>,
    /// Replicas that are down, and those that the caller of this operation cannot reach: one bit each.
    pub down: u8,
    pub cut: u8,
}

impl Network {
    pub fn new(replicas: usize, seed: u64, faults: Faults) -> Self {
        Self {
            replicas: vec![Replica::default(); replicas],
            decided: Replica::default(),
            last_ballot: 0,
            in_flight: BTreeMap::new(),
            sent: 0,
            operations: 0,
            counts: BTreeMap::new(),
            chance: Chance(seed),
            members: BTreeMap::new(),
            faults,
            injected: Injected::default(),
            happened: BTreeMap::new(),
            down: 0,
            cut: 0,
        }
    }

    /// Faults so far, by kind.
    pub fn happened(&self) -> &BTreeMap<&'static str, u64> {
        &self.happened
    }

    fn note(&mut self, kind: &'static str) {
        *self.happened.entry(kind).or_default() += 1;
    }

    /// Whether this fault happens now.
    fn hit(&mut self, kind: &'static str, probability: f64) -> bool {
        let happens = self.chance.of(probability);
        if happens {
            self.note(kind);
        }
        happens
    }

    fn is_reachable(&self, replica: usize) -> bool {
        (self.down | self.cut) & (1 << replica) == 0
    }

    fn has_quorum(&self) -> bool {
        (0..self.replicas.len()).filter(|replica| self.is_reachable(*replica)).count() >= self.quorum()
    }

    pub fn count(&self, op: Op) -> u64 {
        self.counts.get(&op).copied().unwrap_or(0)
    }

    pub fn latency(&mut self) -> std::time::Duration {
        self.chance.between(self.faults.latency)
    }

    pub fn drop_in_flight(&mut self) {
        self.in_flight.clear();
    }

    pub fn deliver_all(&mut self) {
        while let Some((_, message)) = self.in_flight.pop_first() {
            self.deliver(message);
        }
    }

    fn quorum(&self) -> usize {
        self.replicas.len() / 2 + 1
    }

    /// Counts the operation, lets what is due arrive, and says what a test wants to go wrong with it.
    fn begin(&mut self, op: Op) -> Result<Option<Failure>> {
        self.operations += 1;
        *self.counts.entry(op).or_default() += 1;
        tracing::trace!(number = self.operations, ?op, chance = self.chance.0, "operation");
        // What is under way was sent by somebody else.
        let cut = std::mem::take(&mut self.cut);
        while let Some(entry) = self.in_flight.first_entry() {
            if entry.key().0 > self.operations {
                break;
            }
            let message = entry.remove();
            self.deliver(message);
        }
        self.cut = cut;
        match self.injected.take(op) {
            Some(Failure::Refused) => Err(StoreError::Unavailable("no quorum of replicas is up".into())),
            Some(Failure::DiskFull) => Err(StoreError::ReadOnly("no space left on device".into())),
            failure => Ok(failure),
        }
    }

    fn send_late(&mut self, message: Message) {
        let much_later = if self.chance.below(16) == 0 { 32 } else { 1 };
        let due = self.operations + 1 + self.chance.below(self.faults.late_ops * much_later);
        self.sent += 1;
        self.in_flight.insert((due, self.sent), message);
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Replicate { replica, mutation } => {
                if self.is_reachable(replica) {
                    self.replicas[replica].apply(mutation);
                }
            }
            Message::Decide(lwt) => {
                if let Ok(committed) = self.decide(&lwt) {
                    self.replicate(committed);
                }
            }
        }
    }

    /// Sends a mutation to every replica; the number of acks that came back.
    fn replicate(&mut self, mutation: Mutation) -> usize {
        let mut acks = 0;
        for replica in 0..self.replicas.len() {
            if !self.is_reachable(replica) {
                // Perhaps a hint brings it later.
                if self.hit("write hinted", 0.5) {
                    self.send_late(Message::Replicate { replica, mutation: mutation.clone() });
                }
                continue;
            }
            if self.hit("replica write lost", self.faults.replica_write_lost) {
                continue;
            }
            if self.hit("replica write late", self.faults.replica_write_late) {
                self.send_late(Message::Replicate { replica, mutation: mutation.clone() });
                continue;
            }
            if self.hit("replica write repeated", self.faults.replica_write_duplicated) {
                self.send_late(Message::Replicate { replica, mutation: mutation.clone() });
            }
            self.replicas[replica].apply(mutation.clone());
            acks += usize::from(!self.hit("replica ack lost", self.faults.replica_ack_lost));
        }
        acks
    }

    /// A plain write at QUORUM. Mutations are independent of each other: some may land and others not.
    pub fn write(&mut self, op: Op, mutations: Vec<Mutation>) -> Result<()> {
        let failure = self.begin(op)?;
        self.check_same_content(&mutations)?;
        let mut fewest = usize::MAX;
        for mutation in mutations {
            fewest = fewest.min(self.replicate(mutation));
        }
        if fewest < self.quorum() {
            self.note("write on a minority");
            return Err(StoreError::Unavailable(format!("timed out: {fewest} of {} acks", self.quorum())));
        }
        match failure {
            None => Ok(()),
            Some(_) => Err(StoreError::Unavailable("timed out: the reply was lost".into())),
        }
    }

    /// (session, seq) has one content for ever (G2). A caller that breaks this is found here, not on Cassandra.
    fn check_same_content(&self, mutations: &[Mutation]) -> Result<()> {
        for mutation in mutations {
            let Mutation::LogRow(session, row) = mutation else {
                continue;
            };
            for replica in &self.replicas {
                if replica.log_row(*session, row.segment, row.seq).is_some_and(|stored| stored.batch != row.batch) {
                    return Err(StoreError::Corrupt(format!("row {} of {session:?} has two contents", row.seq.0)));
                }
            }
        }
        Ok(())
    }

    /// A plain read at QUORUM, with blocking read repair.
    pub fn read<T>(&mut self, scope: &Scope, query: impl Fn(&Replica) -> T) -> Result<T> {
        if self.begin(Op::Read)?.is_some() {
            return Err(StoreError::Unavailable("read timed out".into()));
        }
        if !self.has_quorum() {
            return Err(no_quorum());
        }
        if self.replicas.len() == 1 {
            return if self.hit("read lost", self.faults.read_lost) {
                Err(read_lost())
            } else {
                Ok(query(&self.replicas[0]))
            };
        }
        let asked = self.random_quorum();
        let mut merged = Replica::default();
        for &replica in &asked {
            for mutation in self.replicas[replica].extract(scope) {
                merged.apply(mutation);
            }
        }
        for &replica in &asked {
            if self.hit("read lost", self.faults.read_lost) {
                return Err(read_lost());
            }
            for mutation in merged.extract(scope) {
                self.replicas[replica].apply(mutation);
            }
        }
        Ok(query(&merged))
    }

    fn random_quorum(&mut self) -> Vec<usize> {
        let mut replicas: Vec<usize> = (0..self.replicas.len()).filter(|replica| self.is_reachable(*replica)).collect();
        while replicas.len() > self.quorum() {
            let out = self.chance.below(replicas.len() as u64) as usize;
            replicas.remove(out);
        }
        replicas
    }

    /// A read at SERIAL: sees every decided change, and brings a quorum up to date before it returns.
    pub fn read_serial(&mut self, key: &LwtKey) -> Result<Option<LwtRow>> {
        if self.begin(Op::SerialRead)?.is_some() || self.hit("serial read lost", self.faults.read_lost) {
            return Err(read_lost());
        }
        if !self.has_quorum() {
            return Err(no_quorum());
        }
        self.settle(key);
        Ok(self.decided.lwt(key))
    }

    /// Brings the last decided value of a row to a quorum: the prepare phase does so before anything else.
    fn settle(&mut self, key: &LwtKey) {
        let decided = self.decided.extract(&Scope::Lwt(key.clone()));
        for replica in self.random_quorum() {
            for mutation in decided.clone() {
                self.replicas[replica].apply(mutation);
            }
        }
    }

    /// Decides a proposal: what to commit to the replicas, or the row that stood in its way.
    fn decide(&mut self, lwt: &Lwt) -> Result<Mutation, Option<LwtRow>> {
        let current = self.decided.lwt(&lwt.key);
        if !lwt.condition.holds(current.as_ref()) {
            return Err(current);
        }
        self.last_ballot += 1;
        let commit = Mutation::Lwt(lwt.key.clone(), Cell { stamp: self.last_ballot, value: lwt.new.clone() });
        self.decided.apply(commit.clone());
        Ok(commit)
    }

    /// A conditional write at SERIAL, committed at QUORUM.
    pub fn cas(&mut self, lwt: Lwt) -> Result<Cas<LwtRow>> {
        let failure = self.begin(Op::Cas)?;
        if !self.has_quorum() {
            return Err(no_quorum());
        }
        if self.hit("conditional write refused", self.faults.lwt_refused) {
            return Err(StoreError::Unavailable("no quorum to prepare".into()));
        }
        if self.hit("conditional write lost", self.faults.lwt_lost) {
            return Err(StoreError::Indeterminate("timed out while proposing".into()));
        }
        if self.hit("conditional write late", self.faults.lwt_late) {
            self.send_late(Message::Decide(lwt));
            return Err(StoreError::Indeterminate("timed out while proposing".into()));
        }
        self.settle(&lwt.key);
        let outcome = match self.decide(&lwt) {
            Err(current) => Cas::Rejected(current),
            Ok(commit) => {
                if self.replicate(commit) < self.quorum() {
                    return Err(StoreError::Indeterminate("timed out while committing".into()));
                }
                Cas::Applied
            }
        };
        if failure.is_some() || self.hit("conditional write's reply lost", self.faults.lwt_reply_lost) {
            return Err(StoreError::Indeterminate("the reply was lost".into()));
        }
        Ok(outcome)
    }
}

fn no_quorum() -> StoreError {
    StoreError::Unavailable("no quorum of replicas can be reached".into())
}

fn read_lost() -> StoreError {
    StoreError::Unavailable("read timed out".into())
}
