//! What a shard can host: the interface of every kind of entity, and the frame of the small ones.
//!
//! An entity is a state machine with an id. A shard keeps it as one *head*, which says what is current, and *runs*, each
//! a row with a wake-up of its own. A chain of workflow runs ([`Chain`]) is the main kind. Most others have one run at
//! a time: they implement [`Single`], and [`SingleEntity`] makes an entity of that. Each incarnation (an id that was
//! deleted can be used again) is a run with an id of its own, so that a late deletion never takes away what came after.

use std::{collections::BTreeSet, fmt};

use bytes::Bytes;
use perdure_proto::{
    Error,
    perdure::{
        nexus::v1::{OperationCommand, operation_command},
        node::v1::{ActivityCommand, TaskToken, WorkflowReply, activity_command, workflow_call::Command},
        state::v1::{ChainHead, ChainRecord, RunDelta, RunSnapshot},
    },
    temporal::api::workflow::v1::WorkflowExecutionInfo,
};
use perdure_types::{ChainKey, PollName, Timestamp};
use prost::Message;

use crate::{
    api::{Answer, CallId, Effect, Env, Handled, Outcome, Release, Watch},
    chain::{ApplyError, Chain, RunView},
};

/// A state machine that a shard hosts. For what the methods mean see those of [`Chain`].
pub trait Entity: fmt::Debug + Send {
    fn head(&self) -> &ChainHead;
    /// Takes a run's stored snapshot.
    fn insert_run(&mut self, run_id: &str, snapshot: Bytes) -> Result<(), prost::DecodeError>;
    fn has_run(&self, run_id: &str) -> bool;
    fn unload_closed(&mut self, run_id: &str);
    /// On error nothing has changed (WF-3).
    fn handle(&mut self, command: Command, env: &mut Env) -> Result<Handled, Error>;
    fn on_timer(&mut self, env: &mut Env) -> Handled;
    fn on_call_result(&mut self, id: &CallId, result: Result<WorkflowReply, Error>, env: &mut Env) -> Handled;
    /// Replays one log record: the state is then as on the live path (WF-1).
    fn apply(&mut self, record: &ChainRecord) -> Result<(), ApplyError>;
    fn next_timer(&self) -> Option<Timestamp>;
    fn resume(&self) -> Vec<Effect>;
    /// Tasks that were started for one of these polls, and have not ended since.
    fn started_for(&self, _polls: &BTreeSet<PollName>) -> Vec<TaskToken> {
        Vec::new()
    }
    fn check(&mut self, watch: &Watch) -> Option<Outcome>;
    fn give_up(&mut self, watch: &Watch) -> Option<Outcome>;
    /// Of workflows only: their histories can be read.
    fn run_view(&self, run_id: &str) -> Option<RunView>;
    fn snapshot(&self, run_id: &str) -> Option<Bytes>;
    fn wake_at(&self, run_id: &str) -> Option<Timestamp>;
    /// What lists show of a run; `None`: it is in no list.
    fn listing(&self, _run_id: &str) -> Option<WorkflowExecutionInfo> {
        None
    }
    fn weight_bytes(&self) -> usize;
}

impl Entity for Chain {
    fn head(&self) -> &ChainHead {
        Chain::head(self)
    }

    fn insert_run(&mut self, _run_id: &str, snapshot: Bytes) -> Result<(), prost::DecodeError> {
        Chain::insert_run(self, RunSnapshot::decode(snapshot)?);
        Ok(())
    }

    fn has_run(&self, run_id: &str) -> bool {
        Chain::has_run(self, run_id)
    }

    fn unload_closed(&mut self, run_id: &str) {
        Chain::unload_closed(self, run_id);
    }

    fn handle(&mut self, command: Command, env: &mut Env) -> Result<Handled, Error> {
        Chain::handle(self, command, env)
    }

    fn on_timer(&mut self, env: &mut Env) -> Handled {
        Chain::on_timer(self, env)
    }

    fn on_call_result(&mut self, id: &CallId, result: Result<WorkflowReply, Error>, env: &mut Env) -> Handled {
        Chain::on_call_result(self, id, result, env)
    }

    fn apply(&mut self, record: &ChainRecord) -> Result<(), ApplyError> {
        Chain::apply(self, record)
    }

    fn next_timer(&self) -> Option<Timestamp> {
        Chain::next_timer(self)
    }

    fn resume(&self) -> Vec<Effect> {
        Chain::resume(self)
    }

    fn started_for(&self, polls: &BTreeSet<PollName>) -> Vec<TaskToken> {
        Chain::started_for(self, polls)
    }

    fn check(&mut self, watch: &Watch) -> Option<Outcome> {
        Chain::check(self, watch)
    }

    fn give_up(&mut self, watch: &Watch) -> Option<Outcome> {
        Chain::give_up(self, watch)
    }

    fn run_view(&self, run_id: &str) -> Option<RunView> {
        Chain::run_view(self, run_id)
    }

    fn snapshot(&self, run_id: &str) -> Option<Bytes> {
        Some(Chain::snapshot(self, run_id)?.encode_to_vec().into())
    }

    fn wake_at(&self, run_id: &str) -> Option<Timestamp> {
        Chain::wake_at(self, run_id)
    }

    fn listing(&self, run_id: &str) -> Option<WorkflowExecutionInfo> {
        Chain::listing(self, run_id)
    }

    fn weight_bytes(&self) -> usize {
        Chain::weight_bytes(self)
    }
}

/// A kind of entity that has one run at a time, whose whole state is one row.
pub trait Single: fmt::Debug + Send + Sized {
    /// The state before it is created: nothing but its key.
    fn new(key: ChainKey) -> Self;
    /// Takes the stored snapshot.
    fn restore(&mut self, snapshot: Bytes) -> Result<(), prost::DecodeError>;
    fn snapshot(&self) -> Bytes;
    /// Replays what [`Change::record`] said.
    fn apply(&mut self, change: Bytes) -> Result<(), prost::DecodeError>;

    /// `incarnation`: the run that this input belongs to, or begins if it creates the entity. On error nothing may have
    /// changed (WF-3).
    fn handle(&mut self, command: Command, incarnation: &str, env: &mut Env) -> Result<Change, Error>;
    /// Something may be due; only called while it exists.
    fn on_timer(&mut self, incarnation: &str, env: &mut Env) -> Change;
    /// The result of a call of this incarnation.
    fn on_call_result(&mut self, id: &CallId, result: Result<WorkflowReply, Error>, env: &mut Env) -> Change;

    /// The earliest time at which [`Single::on_timer`] has something to do.
    fn next_timer(&self) -> Option<Timestamp>;
    /// When a new owner must load it: the same, or the past if calls are outstanding. `None`: it waits to be called.
    fn wake_at(&self) -> Option<Timestamp>;
    /// Everything outstanding, derived from state. The run of call ids is the incarnation.
    fn resume(&self, incarnation: &str) -> Vec<Effect>;
    fn check(&mut self, _watch: &Watch) -> Option<Outcome> {
        None
    }
    /// What a caller gets who has waited as long as the server lets it.
    fn give_up(&mut self, _watch: &Watch) -> Option<Outcome> {
        None
    }
    /// What lists show of it; `None`: it is in no list. Its close time says whether it is closed.
    fn listing(&self, _incarnation: &str) -> Option<WorkflowExecutionInfo> {
        None
    }
    fn weight_bytes(&self) -> usize;
}

/// What one input did to a [`Single`].
#[derive(Debug, Default)]
pub struct Change {
    /// What to log, for [`Single::apply`]; `None` when nothing durable changed.
    pub record: Option<Bytes>,
    /// It is gone; `record` is not needed then. The frame forgets the state.
    pub deleted: bool,
    pub effects: Vec<Effect>,
    pub answer: Answer,
    pub release: Release,
}

/// The frame of a [`Single`]: keeps its head, its key and its incarnations.
#[derive(Debug)]
pub struct SingleEntity<T> {
    key: ChainKey,
    head: ChainHead,
    /// Exists if the head names a run and that run is loaded or created.
    state: T,
    present: bool,
}

impl<T: Single> SingleEntity<T> {
    pub fn new(key: ChainKey) -> Self {
        Self::from_head(key, ChainHead::default())
    }

    /// From its stored head; its run is to be inserted next.
    pub fn from_head(key: ChainKey, head: ChainHead) -> Self {
        Self { state: T::new(key.clone()), key, head, present: false }
    }

    pub fn state(&self) -> &T {
        &self.state
    }

    fn finish(&mut self, incarnation: String, change: Change) -> Handled {
        let Change { record, deleted, effects, answer, release } = change;
        let mut head = None;
        let mut runs = Vec::new();
        if deleted {
            self.state = T::new(self.key.clone());
            if std::mem::replace(&mut self.present, false) {
                self.head = ChainHead::default();
                head = Some(self.head.clone());
                runs.push(RunDelta { run_id: incarnation, deleted: true, ..RunDelta::default() });
            }
        } else if let Some(change) = record {
            if !std::mem::replace(&mut self.present, true) {
                self.head = ChainHead { current_run_id: incarnation.clone(), ..ChainHead::default() };
                head = Some(self.head.clone());
            }
            runs.push(RunDelta { run_id: incarnation, change, ..RunDelta::default() });
        }
        let record = (!runs.is_empty()).then(|| ChainRecord {
            namespace_id: self.key.namespace_id.to_string(),
            workflow_id: self.key.workflow_id.to_string(),
            head,
            runs,
            kind: self.key.kind.number(),
        });
        Handled { record, effects, answer, release }
    }

    fn is_current(&self, run_id: &str) -> bool {
        self.present && self.head.current_run_id == run_id
    }
}

impl<T: Single> Entity for SingleEntity<T> {
    fn head(&self) -> &ChainHead {
        &self.head
    }

    fn insert_run(&mut self, run_id: &str, snapshot: Bytes) -> Result<(), prost::DecodeError> {
        if self.head.current_run_id == run_id {
            self.state.restore(snapshot)?;
            self.present = true;
        }
        Ok(())
    }

    fn has_run(&self, run_id: &str) -> bool {
        self.is_current(run_id)
    }

    fn unload_closed(&mut self, _run_id: &str) {}

    fn handle(&mut self, command: Command, env: &mut Env) -> Result<Handled, Error> {
        let incarnation = if self.present { self.head.current_run_id.clone() } else { env.ids.uuid() };
        let change = self.state.handle(command, &incarnation, env)?;
        Ok(self.finish(incarnation, change))
    }

    fn on_timer(&mut self, env: &mut Env) -> Handled {
        if !self.present {
            return Handled::default();
        }
        let incarnation = self.head.current_run_id.clone();
        let change = self.state.on_timer(&incarnation, env);
        self.finish(incarnation, change)
    }

    fn on_call_result(&mut self, id: &CallId, result: Result<WorkflowReply, Error>, env: &mut Env) -> Handled {
        if !self.is_current(&id.run_id) {
            return Handled::default();
        }
        let change = self.state.on_call_result(id, result, env);
        self.finish(id.run_id.clone(), change)
    }

    fn apply(&mut self, record: &ChainRecord) -> Result<(), ApplyError> {
        // The head first: it says which run the state is of.
        if let Some(head) = &record.head {
            if head.current_run_id != self.head.current_run_id {
                self.state = T::new(self.key.clone());
                self.present = false;
            }
            self.head = head.clone();
        }
        for delta in record.runs.iter().filter(|delta| !delta.deleted) {
            if delta.run_id != self.head.current_run_id {
                continue;
            }
            self.present = true;
            self.state
                .apply(delta.change.clone())
                .map_err(|error| ApplyError { chain: format!("{:?}", self.key), reason: error.to_string() })?;
        }
        Ok(())
    }

    fn next_timer(&self) -> Option<Timestamp> {
        if self.present { self.state.next_timer() } else { None }
    }

    fn resume(&self) -> Vec<Effect> {
        if self.present { self.state.resume(&self.head.current_run_id) } else { Vec::new() }
    }

    fn check(&mut self, watch: &Watch) -> Option<Outcome> {
        self.state.check(watch)
    }

    fn give_up(&mut self, watch: &Watch) -> Option<Outcome> {
        self.state.give_up(watch)
    }

    fn run_view(&self, _run_id: &str) -> Option<RunView> {
        None
    }

    fn snapshot(&self, run_id: &str) -> Option<Bytes> {
        self.is_current(run_id).then(|| self.state.snapshot())
    }

    fn wake_at(&self, run_id: &str) -> Option<Timestamp> {
        if self.is_current(run_id) { self.state.wake_at() } else { None }
    }

    fn listing(&self, run_id: &str) -> Option<WorkflowExecutionInfo> {
        if self.is_current(run_id) { self.state.listing(run_id) } else { None }
    }

    fn weight_bytes(&self) -> usize {
        256 + self.state.weight_bytes()
    }
}

/// The run that a command to a standalone activity names; empty: the current one.
pub(crate) fn activity_run(command: &ActivityCommand) -> String {
    match &command.command {
        Some(activity_command::Command::Describe(c)) => c.run_id.clone(),
        Some(activity_command::Command::Poll(c)) => c.run_id.clone(),
        Some(activity_command::Command::RequestCancel(c)) => c.run_id.clone(),
        Some(activity_command::Command::Terminate(c)) => c.run_id.clone(),
        Some(activity_command::Command::Delete(c)) => c.run_id.clone(),
        Some(activity_command::Command::Start(_)) | None => String::new(),
    }
}

/// The same of a Nexus operation that no workflow has scheduled.
pub(crate) fn nexus_operation_run(command: &OperationCommand) -> String {
    match &command.command {
        Some(operation_command::Command::Describe(c)) => c.run_id.clone(),
        Some(operation_command::Command::Poll(c)) => c.run_id.clone(),
        Some(operation_command::Command::RequestCancel(c)) => c.run_id.clone(),
        Some(operation_command::Command::Terminate(c)) => c.run_id.clone(),
        Some(operation_command::Command::Delete(c)) => c.run_id.clone(),
        Some(operation_command::Command::Start(_)) | None => String::new(),
    }
}

/// What an entity says to a command of another kind.
pub fn foreign_command() -> Error {
    Error::internal("the command is not one of this kind of entity")
}
