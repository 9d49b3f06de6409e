//! The entity: all runs of one workflow id. Routes inputs to the run they are about, and makes one record of what
//! an input changed in all of them.

use std::collections::{BTreeMap, BTreeSet};

use perdure_proto::{
    Error,
    perdure::{
        node::v1::{TaskToken, WorkflowReply, task_token, workflow_call::Command, workflow_reply},
        state::v1::{ChainHead, ChainRecord, RunSnapshot},
    },
    temporal::api::{
        enums::v1::{UpdateWorkflowExecutionLifecycleStage as Stage, WorkflowExecutionStatus},
        workflow::v1::WorkflowExecutionInfo,
    },
};
use perdure_types::{ChainKey, PollName, Timestamp};
use prost::Message;

use crate::{
    api::{Answer, CallId, CallKind, Effect, Env, Handled, Outcome, Release, Reply, RunRef, Watch},
    run::Run,
    tracked::Value,
};

/// All runs of one workflow id, as far as they are in memory: the current one always, older ones on demand.
#[derive(Debug)]
pub struct Chain {
    key: ChainKey,
    head: Value<ChainHead>,
    /// Boxed: a node of the map has room for eleven entries, and most chains have one.
    pub(crate) runs: BTreeMap<String, Box<Run>>,
}

/// A record that does not fit what is in memory: the log or the store is damaged.
#[derive(Debug, thiserror::Error)]
#[error("cannot apply record to {chain}: {reason}")]
pub struct ApplyError {
    pub chain: String,
    pub reason: String,
}

/// What a driver needs to know of a run to answer reads.
#[derive(Debug, Clone, PartialEq)]
pub struct RunView {
    pub run_id: String,
    pub next_event_id: i64,
    pub status: WorkflowExecutionStatus,
    pub is_open: bool,
    pub new_execution_run_id: String,
}

/// What the handler of a command gives back: answer and when it may leave.
pub(crate) type Answered = Result<(Answer, Release), Error>;

pub(crate) fn reply(reply: workflow_reply::Reply) -> Answered {
    Ok((Answer::Reply(Box::new(Reply::new(reply))), Release::Durable))
}

pub(crate) fn empty_reply() -> Answered {
    reply(workflow_reply::Reply::Empty(perdure_proto::perdure::node::v1::Empty {}))
}

impl Chain {
    /// A chain that the store knows nothing of.
    pub fn new(key: ChainKey) -> Self {
        Self { key, head: Value::default(), runs: BTreeMap::new() }
    }

    /// A chain from its stored head; its current run is to be inserted next.
    pub fn from_head(key: ChainKey, head: ChainHead) -> Self {
        Self { key, head: Value::new(head), runs: BTreeMap::new() }
    }

    pub fn key(&self) -> &ChainKey {
        &self.key
    }

    pub fn head(&self) -> &ChainHead {
        &self.head
    }

    pub fn insert_run(&mut self, snapshot: RunSnapshot) {
        let run = Run::from_snapshot(self.key.clone(), snapshot);
        self.runs.insert(run.run_id.clone(), Box::new(run));
    }

    pub fn has_run(&self, run_id: &str) -> bool {
        self.runs.contains_key(run_id)
    }

    pub fn run_ids(&self) -> impl Iterator<Item = &str> {
        self.runs.keys().map(String::as_str)
    }

    /// Forgets a run that is closed, not current, and has nothing left to do.
    pub fn unload_closed(&mut self, run_id: &str) {
        let idle = self.runs.get(run_id).is_some_and(|run| !run.is_open() && !run.is_unsettled());
        if idle && self.head.current_run_id != run_id {
            self.runs.remove(run_id);
        }
    }

    pub(crate) fn current(&mut self) -> Option<&mut Run> {
        self.runs.get_mut(&self.head.current_run_id).map(Box::as_mut)
    }

    pub(crate) fn set_current(&mut self, run_id: &str) {
        self.head.edit().current_run_id = run_id.to_owned();
    }

    pub(crate) fn current_run_id(&self) -> &str {
        &self.head.current_run_id
    }

    /// The run that a request names (empty: the current one).
    pub(crate) fn run(&mut self, run_id: &str) -> Result<&mut Run, Error> {
        let workflow_id = self.key.workflow_id.clone();
        if run_id.is_empty() {
            let current = self.head.current_run_id.clone();
            return self
                .runs
                .get_mut(&current)
                .map(Box::as_mut)
                .ok_or_else(|| Error::not_found(format!("workflow not found for ID: {workflow_id}")));
        }
        self.runs.get_mut(run_id).map(Box::as_mut).ok_or_else(|| {
            Error::not_found(format!(
                "workflow execution not found for workflow ID \"{workflow_id}\" and run ID \"{run_id}\""
            ))
        })
    }

    /// As [`Chain::run`], for what only an open run can take.
    pub(crate) fn open_run(&mut self, run_id: &str) -> Result<&mut Run, Error> {
        let run = self.run(run_id)?;
        if run.is_open() { Ok(run) } else { Err(Error::not_found("workflow execution already completed")) }
    }

    /// The run that a command is about, for the driver to load.
    pub fn run_ref(command: &Command) -> RunRef {
        let execution = |e: &Option<perdure_proto::temporal::api::common::v1::WorkflowExecution>| {
            e.as_ref().map(|e| e.run_id.clone()).unwrap_or_default()
        };
        let token = |bytes: &[u8]| TaskToken::decode(bytes).map(|t| t.run_id).unwrap_or_default();
        let run_id = match command {
            Command::Start(_) | Command::SignalWithStart(_) | Command::MultiOperation(_) => String::new(),
            Command::Signal(c) => c.request.as_ref().map(|r| execution(&r.workflow_execution)).unwrap_or_default(),
            Command::RequestCancel(c) => {
                c.request.as_ref().map(|r| execution(&r.workflow_execution)).unwrap_or_default()
            }
            Command::Terminate(c) => c.request.as_ref().map(|r| execution(&r.workflow_execution)).unwrap_or_default(),
            Command::RecordWorkflowTaskStarted(c) => c.run_id.clone(),
            Command::RespondWorkflowTaskCompleted(c) => token(&c.task_token),
            Command::RespondWorkflowTaskFailed(c) => token(&c.task_token),
            Command::RecordActivityTaskStarted(c) => c.run_id.clone(),
            Command::RespondActivityTask(c) => c.activity.as_ref().map(|a| a.run_id.clone()).unwrap_or_default(),
            Command::TaskUndelivered(c) => c.token.as_ref().map(|t| t.run_id.clone()).unwrap_or_default(),
            Command::StickyQueueUnavailable(c) => c.run_id.clone(),
            Command::Query(c) => execution(&c.execution),
            Command::Update(c) => execution(&c.workflow_execution),
            Command::PollUpdate(c) => {
                c.update_ref.as_ref().map(|r| execution(&r.workflow_execution)).unwrap_or_default()
            }
            Command::Describe(c) => execution(&c.execution),
            Command::GetHistory(c) => execution(&c.execution),
            Command::GetHistoryReverse(c) => execution(&c.execution),
            Command::ResetSticky(c) => execution(&c.execution),
            Command::ChildClosed(c) => c.run_id.clone(),
            Command::GetQueryTask(c) => c.run_id.clone(),
            Command::Delete(c) => execution(&c.workflow_execution),
            Command::Reset(c) => c.request.as_ref().map(|r| execution(&r.workflow_execution)).unwrap_or_default(),
            Command::ActivityOperation(c) => c.run_id.clone(),
            Command::Pause(c) => c.run_id.clone(),
            Command::Unpause(c) => c.run_id.clone(),
            Command::UpdateOptions(c) => execution(&c.workflow_execution),
            Command::Activity(c) => crate::entity::activity_run(c),
            Command::NexusOperation(c) => crate::entity::nexus_operation_run(c),
            Command::TriggerRule(c) => c.run_id.clone(),
            Command::Schedule(_)
            | Command::Batch(_)
            | Command::List(_)
            | Command::Deployment(_)
            | Command::TaskQueue(_)
            | Command::Nexus(_) => String::new(),
            Command::NexusCompletion(c) => c.token.as_ref().map(|token| token.run_id.clone()).unwrap_or_default(),
        };
        if run_id.is_empty() { RunRef::Current } else { RunRef::Run(run_id) }
    }

    /// Decides what a command does. On error nothing has changed (WF-3).
    pub fn handle(&mut self, command: Command, env: &mut Env) -> Result<Handled, Error> {
        let answered = self.dispatch(command, env);
        match answered {
            Ok((answer, release)) => Ok(self.finish(answer, release, env)),
            Err(error) => {
                self.roll_back();
                Err(error)
            }
        }
    }

    fn dispatch(&mut self, command: Command, env: &mut Env) -> Answered {
        match command {
            Command::Start(c) => self.start_workflow(*c, env),
            Command::SignalWithStart(c) => self.signal_with_start(*c, env),
            Command::MultiOperation(c) => self.multi_operation(c, env),
            Command::Signal(c) => self.signal(c, env),
            Command::RequestCancel(c) => self.request_cancel(c, env),
            Command::Terminate(c) => self.terminate(c, env),
            Command::RecordWorkflowTaskStarted(c) => {
                let (reply, release) = self.open_run(&c.run_id)?.record_workflow_task_started(env, &c)?;
                Ok((Answer::Reply(Box::new(reply)), release))
            }
            Command::RespondWorkflowTaskCompleted(c) => self.respond_workflow_task_completed(c, env),
            Command::RespondWorkflowTaskFailed(c) => self.respond_workflow_task_failed(c, env),
            Command::RecordActivityTaskStarted(c) => self.record_activity_task_started(c, env),
            Command::RespondActivityTask(c) => self.respond_activity_task(c, env),
            Command::TaskUndelivered(c) => self.task_undelivered(c, env),
            Command::StickyQueueUnavailable(c) => {
                self.open_run(&c.run_id)?.sticky_queue_unavailable(&c);
                empty_reply()
            }
            Command::ResetSticky(c) => {
                let run_id = c.execution.map(|e| e.run_id).unwrap_or_default();
                self.open_run(&run_id)?.move_to_normal_queue();
                empty_reply()
            }
            Command::Query(c) => self.query(c, env),
            Command::GetQueryTask(c) => self.get_query_task(c, env),
            Command::Update(c) => self.update(c, env),
            Command::PollUpdate(c) => self.poll_update(c, env),
            Command::Describe(c) => self.describe(c, env),
            Command::ChildClosed(c) => self.child_closed(*c, env),
            Command::Delete(c) => self.delete(c, env),
            Command::Reset(c) => self.reset(*c, env),
            Command::ActivityOperation(c) => self.activity_operation(*c, env),
            Command::Pause(c) => self.pause(c, env),
            Command::Unpause(c) => self.unpause(c, env),
            Command::UpdateOptions(c) => self.update_options(*c, env),
            Command::TriggerRule(c) => self.trigger_rule(*c, env),
            Command::Schedule(_)
            | Command::Batch(_)
            | Command::List(_)
            | Command::Activity(_)
            | Command::NexusOperation(_)
            | Command::Deployment(_)
            | Command::TaskQueue(_)
            | Command::Nexus(_) => Err(crate::entity::foreign_command()),
            Command::NexusCompletion(c) => self.nexus_completion(&c, env),
            Command::GetHistory(_) | Command::GetHistoryReverse(_) => {
                Err(Error::internal("history is read by the shard"))
            }
        }
    }

    /// Does everything that is due.
    pub fn on_timer(&mut self, env: &mut Env) -> Handled {
        for run in self.runs.values_mut() {
            run.on_timer(env);
        }
        self.finish(Answer::default(), Release::Durable, env)
    }

    /// Takes the result of an [`Effect::Call`].
    pub fn on_call_result(&mut self, id: &CallId, result: Result<WorkflowReply, Error>, env: &mut Env) -> Handled {
        if let Some(run) = self.runs.get_mut(&id.run_id) {
            match id.kind {
                CallKind::StartChild => run.on_child_start_result(id.event_id, result, env),
                CallKind::SignalExternal => run.on_external_signal_result(id.event_id, result, env),
                CallKind::CancelExternal => run.on_external_cancel_result(id.event_id, result, env),
                CallKind::NotifyParent => run.on_parent_notified(result),
                CallKind::ParentClosePolicy => run.on_close_policy_result(id.event_id, result),
                CallKind::StartNexusOperation => run.on_nexus_start_result(id.event_id, result, env),
                CallKind::CancelNexusOperation => run.on_nexus_cancel_result(id.event_id, result, env),
                CallKind::Callback => run.on_callback_result(id.event_id, result, env),
                CallKind::Other(_) => {}
            }
        }
        self.finish(Answer::default(), Release::Durable, env)
    }

    /// Makes a record and effects of what the input did. A run that continues as another hands it over here; a run that
    /// outgrew its limits is terminated here, whatever the input was.
    fn finish(&mut self, answer: Answer, release: Release, env: &mut Env) -> Handled {
        let mut effects = Vec::new();
        let mut deltas = Vec::new();
        let mut successors = Vec::new();
        for run in self.runs.values_mut() {
            run.enforce_limits(env);
            deltas.extend(run.commit());
            effects.append(&mut run.effects);
            if let Some(mut successor) = run.successor.take() {
                deltas.extend(successor.commit());
                effects.append(&mut successor.effects);
                successors.push(successor);
            }
        }
        for successor in successors {
            self.set_current(&successor.run_id);
            self.runs.insert(successor.run_id.clone(), successor);
        }
        if self.current().is_some_and(|run| run.deleted) {
            self.set_current("");
        }
        self.runs.retain(|_, run| !run.deleted);
        self.note_unsettled();
        let head = self.head.commit();
        let record = (head.is_some() || !deltas.is_empty()).then(|| ChainRecord {
            namespace_id: self.key.namespace_id.to_string(),
            workflow_id: self.key.workflow_id.to_string(),
            head,
            runs: deltas,
            kind: self.key.kind.number(),
        });
        Handled { record, effects, answer, release }
    }

    /// Keeps the head true to the runs.
    fn note_unsettled(&mut self) {
        if self.runs.len() < 2 && self.head.unsettled_run_ids.is_empty() {
            return;
        }
        let past = self.runs.values().filter(|run| *run.run_id != self.head.current_run_id);
        let unsettled: Vec<String> = past.filter(|run| run.is_unsettled()).map(|run| run.run_id.clone()).collect();
        if unsettled != self.head.unsettled_run_ids {
            self.head.edit().unsettled_run_ids = unsettled;
        }
    }

    fn roll_back(&mut self) {
        self.head.roll_back();
        for run in self.runs.values_mut() {
            run.roll_back();
        }
        // Runs that the refused input had begun.
        self.runs.retain(|_, run| run.info.next_event_id > 1);
    }

    /// Replays one log record.
    pub fn apply(&mut self, record: &ChainRecord) -> Result<(), ApplyError> {
        for delta in &record.runs {
            if delta.deleted {
                self.runs.remove(&delta.run_id);
                continue;
            }
            let run = self
                .runs
                .entry(delta.run_id.clone())
                .or_insert_with(|| Box::new(Run::empty(self.key.clone(), delta.run_id.clone())));
            if delta.first_event_id != 0 && delta.first_event_id != run.info.next_event_id {
                return Err(ApplyError {
                    chain: format!("{:?}", self.key),
                    reason: format!(
                        "events of run {} continue at {}, expected {}",
                        delta.run_id, delta.first_event_id, run.info.next_event_id
                    ),
                });
            }
            run.apply(delta).map_err(|e| ApplyError { chain: format!("{:?}", self.key), reason: e.to_string() })?;
        }
        if let Some(head) = &record.head {
            self.head.restore(head.clone());
        }
        Ok(())
    }

    /// The earliest time at which [`Chain::on_timer`] has something to do.
    pub fn next_timer(&self) -> Option<Timestamp> {
        self.runs.values().filter_map(|run| run.next_timer()).min()
    }

    /// Everything outstanding, derived from state: to be emitted when the chain has been loaded.
    pub fn resume(&self) -> Vec<Effect> {
        self.runs.values().flat_map(|run| run.resume()).collect()
    }

    /// Tasks that were started for one of these polls, and have not ended since.
    pub fn started_for(&self, polls: &BTreeSet<PollName>) -> Vec<TaskToken> {
        self.runs.values().flat_map(|run| run.started_for(polls)).collect()
    }

    /// Whether a watch is satisfied now; [`Watch::History`] is the driver's to answer.
    pub fn check(&mut self, watch: &Watch) -> Option<Outcome> {
        match watch {
            Watch::History { .. } | Watch::Execution { .. } | Watch::Revision { .. } => None,
            Watch::Update { run_id, update_id, stage, kind } => self.check_update(run_id, update_id, *stage, kind),
            Watch::Query { run_id, query_id } => self.runs.get_mut(run_id)?.check_query(*query_id),
        }
    }

    /// What a caller gets who has waited as long as the server lets it. `None` if only its own deadline ends the wait.
    pub fn give_up(&mut self, watch: &Watch) -> Option<Outcome> {
        match watch {
            Watch::History { .. } | Watch::Query { .. } | Watch::Execution { .. } | Watch::Revision { .. } => None,
            Watch::Update { run_id, update_id, kind, .. } => {
                self.check_update(run_id, update_id, Stage::Unspecified as i32, kind)
            }
        }
    }

    pub fn run_view(&self, run_id: &str) -> Option<RunView> {
        let run = self.runs.get(run_id)?;
        Some(RunView {
            run_id: run.run_id.clone(),
            next_event_id: run.info.next_event_id,
            status: run.status(),
            is_open: run.is_open(),
            new_execution_run_id: run.info.new_execution_run_id.clone(),
        })
    }

    pub fn snapshot(&self, run_id: &str) -> Option<RunSnapshot> {
        self.runs.get(run_id).map(|run| run.snapshot())
    }

    /// When a new owner must load this run: `None` if it has nothing to do until somebody calls.
    pub fn wake_at(&self, run_id: &str) -> Option<Timestamp> {
        self.runs.get(run_id)?.wake_at()
    }

    /// What lists show of a run.
    pub fn listing(&self, run_id: &str) -> Option<WorkflowExecutionInfo> {
        Some(self.runs.get(run_id)?.execution_info())
    }

    /// Roughly the heap that this chain holds.
    pub fn weight_bytes(&self) -> usize {
        256 + self.runs.values().map(|run| run.weight_bytes()).sum::<usize>()
    }
}

/// Decodes a worker's token and checks its kind.
pub(crate) fn decode_token(bytes: &[u8], kind: task_token::Kind) -> Result<TaskToken, Error> {
    TaskToken::decode(bytes)
        .ok()
        .filter(|token| token.kind() == kind)
        .ok_or_else(|| Error::invalid_argument("Error deserializing task token."))
}
