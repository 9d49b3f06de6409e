//! The frame of entities whose id names any number of runs, of which the last may be open; closed ones stay until the end
//! of the namespace's retention. Activities and Nexus operations that no workflow has scheduled are such: a run of theirs
//! has no history, its whole state is one row.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use bytes::Bytes;
use perdure_proto::{
    Error,
    perdure::{
        node::v1::{TaskToken, WorkflowReply, workflow_call::Command, workflow_reply},
        state::v1::{ChainHead, ChainRecord, RunDelta},
    },
    temporal::api::workflow::v1::WorkflowExecutionInfo,
};
use perdure_types::{ChainKey, PollName, Timestamp};
use prost::DecodeError;

use crate::{
    api::{Answer, CallId, Effect, Env, ExecutionWait, Handled, Outcome, Release, Reply, Watch},
    chain::{ApplyError, RunView},
    entity::{Entity, foreign_command},
};

/// One run.
pub trait Execution: Clone + fmt::Debug + Send {
    /// From its stored snapshot.
    fn restore(key: &ChainKey, run_id: &str, snapshot: Bytes) -> Result<Self, DecodeError>;
    fn snapshot(&self) -> Bytes;
    /// The transition under way is over: what to log of it, if anything has changed.
    fn commit(&mut self, before: Option<&Self>) -> Option<Bytes>;
    /// Replays what [`Execution::commit`] said.
    fn apply(key: &ChainKey, run_id: &str, before: Option<Self>, change: Bytes) -> Result<Self, DecodeError>;

    fn run_id(&self) -> &str;
    fn is_open(&self) -> bool;
    /// What the transition under way has to do outside.
    fn effects(&mut self) -> &mut Vec<Effect>;
    /// No such run.
    fn not_found(key: &ChainKey, run_id: &str) -> Error;

    /// Works on a copy of the run that the command is about, so that a refusal changes nothing (WF-3).
    fn handle(all: &Executions<Self>, command: Command, env: &mut Env) -> Result<Step<Self>, Error>;
    fn on_timer(&mut self, env: &Env);
    fn on_call_result(&mut self, _id: &CallId, _result: Result<WorkflowReply, Error>, _env: &Env) {}
    /// When there is something to do; `None`: it waits to be called.
    fn next_timer(&self) -> Option<Timestamp>;
    /// When a new owner has to load it.
    fn wake_at(&self) -> Option<Timestamp>;
    /// It has been kept long enough.
    fn is_over(&self, now: Timestamp) -> bool;
    /// Effects that may not have been carried out, from state.
    fn resume(&self) -> Vec<Effect>;
    /// Its task, if it was started for one of these polls.
    fn started_for(&self, _polls: &BTreeSet<PollName>) -> Option<TaskToken> {
        None
    }

    /// What somebody waits for, if it is there.
    fn check(&self, wait: &ExecutionWait) -> Option<Reply>;
    /// For a caller who has waited long enough.
    fn nothing_yet(wait: &ExecutionWait) -> Reply;
    fn listing(&self) -> WorkflowExecutionInfo;
    fn weight_bytes(&self) -> usize;
}

/// What a run is after a command, and what its caller gets.
#[derive(Debug)]
pub struct Step<R> {
    pub run: R,
    pub answer: Answer,
    pub release: Release,
}

impl<R: Execution> Step<R> {
    pub fn answered(run: R, answer: Answer) -> Self {
        Self { run, answer, release: Release::Durable }
    }

    pub fn replied(run: R, reply: workflow_reply::Reply) -> Self {
        Self::answered(run, Answer::Reply(Box::new(Reply::new(reply))))
    }

    /// It is done, and there is nothing to say.
    pub fn done(run: R) -> Self {
        Self::replied(run, workflow_reply::Reply::Empty(Default::default()))
    }

    /// Once it is there.
    pub fn awaited(run: R, wait: ExecutionWait) -> Self {
        let answer = match run.check(&wait) {
            Some(reply) => Answer::Reply(Box::new(reply)),
            None => Answer::Watch(Watch::Execution { run_id: run.run_id().to_owned(), wait }),
        };
        Self::answered(run, answer)
    }
}

/// All runs of one id that are in memory.
#[derive(Debug)]
pub struct Executions<R> {
    key: ChainKey,
    head: ChainHead,
    runs: BTreeMap<String, R>,
}

impl<R: Execution> Executions<R> {
    /// From the stored head; the runs are to be inserted next.
    pub fn from_head(key: ChainKey, head: ChainHead) -> Self {
        Self { key, head, runs: BTreeMap::new() }
    }

    pub fn key(&self) -> &ChainKey {
        &self.key
    }

    /// The last run, open or closed.
    pub fn current(&self) -> Option<&R> {
        self.runs.get(&self.head.current_run_id)
    }

    /// A copy of the run that a request names (empty: the last one), to be changed.
    pub fn run(&self, run_id: &str) -> Result<R, Error> {
        let named = if run_id.is_empty() { &self.head.current_run_id } else { run_id };
        self.runs.get(named).cloned().ok_or_else(|| R::not_found(&self.key, run_id))
    }

    /// Puts a changed run in its place: the record of the difference, and what is to be done.
    fn commit(&mut self, mut run: R, runs: &mut Vec<RunDelta>, effects: &mut Vec<Effect>) -> Option<ChainHead> {
        effects.append(run.effects());
        let run_id = run.run_id().to_owned();
        let before = self.runs.get(&run_id);
        let is_new = before.is_none();
        let mut head = None;
        if let Some(change) = run.commit(before) {
            runs.push(RunDelta { run_id: run_id.clone(), change, ..RunDelta::default() });
            if is_new {
                self.head = ChainHead { current_run_id: run_id.clone(), ..ChainHead::default() };
                head = Some(self.head.clone());
            }
        }
        self.runs.insert(run_id, run);
        head
    }

    fn forget(&mut self, run_id: &str, runs: &mut Vec<RunDelta>) -> Option<ChainHead> {
        self.runs.remove(run_id);
        runs.push(RunDelta { run_id: run_id.to_owned(), deleted: true, ..RunDelta::default() });
        (self.head.current_run_id == run_id).then(|| {
            self.head = ChainHead::default();
            self.head.clone()
        })
    }

    fn record(&self, head: Option<ChainHead>, runs: Vec<RunDelta>) -> Option<ChainRecord> {
        (!runs.is_empty()).then(|| ChainRecord {
            namespace_id: self.key.namespace_id.to_string(),
            workflow_id: self.key.workflow_id.to_string(),
            head,
            runs,
            kind: self.key.kind.number(),
        })
    }
}

impl<R: Execution> Entity for Executions<R> {
    fn head(&self) -> &ChainHead {
        &self.head
    }

    fn insert_run(&mut self, run_id: &str, snapshot: Bytes) -> Result<(), DecodeError> {
        let run = R::restore(&self.key, run_id, snapshot)?;
        self.runs.insert(run_id.to_owned(), run);
        Ok(())
    }

    fn has_run(&self, run_id: &str) -> bool {
        self.runs.contains_key(run_id)
    }

    fn unload_closed(&mut self, run_id: &str) {
        let at_rest = |run: &R| !run.is_open() && run.resume().is_empty();
        if run_id != self.head.current_run_id && self.runs.get(run_id).is_some_and(at_rest) {
            self.runs.remove(run_id);
        }
    }

    fn handle(&mut self, command: Command, env: &mut Env) -> Result<Handled, Error> {
        let Step { run, answer, release } = R::handle(self, command, env)?;
        let (mut runs, mut effects) = (Vec::new(), Vec::new());
        let head = self.commit(run, &mut runs, &mut effects);
        Ok(Handled { record: self.record(head, runs), effects, answer, release })
    }

    fn on_timer(&mut self, env: &mut Env) -> Handled {
        let (mut runs, mut effects, mut head) = (Vec::new(), Vec::new(), None);
        let is_due = |run: &&R| run.next_timer().is_some_and(|at| at <= env.now);
        let due: Vec<R> = self.runs.values().filter(is_due).cloned().collect();
        for mut run in due {
            if run.is_over(env.now) {
                head = self.forget(run.run_id(), &mut runs).or(head);
            } else {
                run.on_timer(env);
                head = self.commit(run, &mut runs, &mut effects).or(head);
            }
        }
        Handled { record: self.record(head, runs), effects, ..Handled::default() }
    }

    fn on_call_result(&mut self, id: &CallId, result: Result<WorkflowReply, Error>, env: &mut Env) -> Handled {
        let Some(mut run) = self.runs.get(&id.run_id).cloned() else { return Handled::default() };
        run.on_call_result(id, result, env);
        let (mut runs, mut effects) = (Vec::new(), Vec::new());
        let head = self.commit(run, &mut runs, &mut effects);
        Handled { record: self.record(head, runs), effects, ..Handled::default() }
    }

    fn apply(&mut self, record: &ChainRecord) -> Result<(), ApplyError> {
        if let Some(head) = &record.head {
            self.head = head.clone();
        }
        for delta in &record.runs {
            let before = self.runs.remove(&delta.run_id);
            if !delta.deleted {
                let run = R::apply(&self.key, &delta.run_id, before, delta.change.clone())
                    .map_err(|error| ApplyError { chain: format!("{:?}", self.key), reason: error.to_string() })?;
                self.runs.insert(delta.run_id.clone(), run);
            }
        }
        Ok(())
    }

    fn next_timer(&self) -> Option<Timestamp> {
        self.runs.values().filter_map(R::next_timer).min()
    }

    fn resume(&self) -> Vec<Effect> {
        self.runs.values().flat_map(R::resume).collect()
    }

    fn started_for(&self, polls: &BTreeSet<PollName>) -> Vec<TaskToken> {
        self.runs.values().filter_map(|run| run.started_for(polls)).collect()
    }

    fn check(&mut self, watch: &Watch) -> Option<Outcome> {
        let Watch::Execution { run_id, wait } = watch else { return None };
        match self.runs.get(run_id) {
            Some(run) => run.check(wait).map(Ok),
            None => Some(Err(self.run(run_id).err().unwrap_or_else(foreign_command))),
        }
    }

    fn give_up(&mut self, watch: &Watch) -> Option<Outcome> {
        match watch {
            Watch::Execution { wait, .. } => Some(Ok(R::nothing_yet(wait))),
            _ => None,
        }
    }

    fn run_view(&self, _run_id: &str) -> Option<RunView> {
        None
    }

    fn snapshot(&self, run_id: &str) -> Option<Bytes> {
        Some(self.runs.get(run_id)?.snapshot())
    }

    fn wake_at(&self, run_id: &str) -> Option<Timestamp> {
        self.runs.get(run_id)?.wake_at()
    }

    fn listing(&self, run_id: &str) -> Option<WorkflowExecutionInfo> {
        Some(self.runs.get(run_id)?.listing())
    }

    fn weight_bytes(&self) -> usize {
        256 + self.runs.values().map(R::weight_bytes).sum::<usize>()
    }
}
