//! The entity: the runs of one activity id, and how inputs reach them.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use perdure_proto::{
    Error,
    perdure::{
        node::v1::{
            ActivityCommand, TaskToken, WorkflowReply, activity_command, workflow_call::Command, workflow_reply,
        },
        state::v1::{ActivityState, ChainHead, ChainRecord, RunDelta},
    },
    temporal::api::{workflow::v1::WorkflowExecutionInfo, workflowservice::v1::TerminateActivityExecutionRequest},
};
use perdure_types::{ChainKey, PollName, Timestamp};
use perdure_workflow::{
    Answer, ApplyError, CallId, Effect, Entity, Env, Handled, Outcome, Release, Reply, RunView, Watch, foreign_command,
};
use prost::Message;

use crate::{
    describe,
    run::Run,
    start::{self, Started},
};

/// All runs of one activity id that are in memory.
#[derive(Debug)]
pub struct Activities {
    key: ChainKey,
    head: ChainHead,
    runs: BTreeMap<String, Run>,
}

/// What a run is after an input, and what its caller gets.
struct Step {
    run: Option<Run>,
    answer: Answer,
    release: Release,
}

impl Activities {
    /// From the stored head; the runs are to be inserted next.
    pub fn from_head(key: ChainKey, head: ChainHead) -> Self {
        Self { key, head, runs: BTreeMap::new() }
    }

    /// A copy of the run that a request names (empty: the last one), to be changed.
    fn run(&self, run_id: &str) -> Result<Run, Error> {
        let named = if run_id.is_empty() { &self.head.current_run_id } else { run_id };
        self.runs.get(named).cloned().ok_or_else(|| {
            let id = &self.key.workflow_id;
            Error::not_found(if run_id.is_empty() {
                format!("activity execution not found for ID: {id}")
            } else {
                format!("activity execution not found for activity ID \"{id}\" and run ID \"{run_id}\"")
            })
        })
    }

    fn step(&self, command: Command, env: &mut Env) -> Result<Step, Error> {
        let empty = |run: Run| Step {
            run: Some(run),
            answer: Answer::Reply(Box::new(Reply::new(workflow_reply::Reply::Empty(Default::default())))),
            release: Release::Durable,
        };
        let with = |run: Run, reply: workflow_reply::Reply| Step {
            answer: Answer::Reply(Box::new(Reply::new(reply))),
            ..empty(run)
        };
        Ok(match command {
            Command::Activity(command) => return self.own(*command, env),
            Command::RecordActivityTaskStarted(c) => {
                let mut run = self.run(&c.run_id)?;
                let task = run.take(c, env)?;
                with(run, workflow_reply::Reply::ActivityTask(task))
            }
            Command::RespondActivityTask(c) => {
                let mut run = self.run(c.activity.as_ref().map_or("", |activity| &activity.run_id))?;
                let (reply, release) = run.respond(c, env)?;
                Step { release, ..with(run, workflow_reply::Reply::RespondActivityTask(reply)) }
            }
            Command::TaskUndelivered(c) => {
                let token = c.token.unwrap_or_default();
                let mut run = self.run(&token.run_id)?;
                run.undelivered(&token, env)?;
                empty(run)
            }
            Command::ActivityOperation(c) => {
                let mut run = self.run(&c.run_id)?;
                let options = run.operate(*c, env)?;
                with(run, workflow_reply::Reply::ActivityOptions(Box::new(options)))
            }
            _ => return Err(foreign_command()),
        })
    }

    fn own(&self, command: ActivityCommand, env: &mut Env) -> Result<Step, Error> {
        use activity_command::Command as C;
        let command = command.command.ok_or_else(|| Error::invalid_argument("the call has no command"))?;
        let mut answer = Answer::Reply(Box::new(Reply::new(workflow_reply::Reply::Empty(Default::default()))));
        let run = match command {
            C::Start(request) => {
                let mut current = self.runs.get(&self.head.current_run_id).cloned();
                let (run, started) = match start::start(&self.key, current.as_mut(), request, env)? {
                    Started::New(run) => (Some(*run), true),
                    Started::Existing(same) => (current, same),
                };
                answer = match &run {
                    Some(run) => Answer::Reply(Box::new(start::reply(run, started))),
                    None => return Err(Error::internal("a start without a run")),
                };
                run
            }
            C::Describe(request) => {
                let run = self.run(&request.run_id)?;
                answer = run.describe(request, env.now)?;
                Some(run)
            }
            C::Poll(request) => {
                let run = self.run(&request.run_id)?;
                answer = run.poll();
                Some(run)
            }
            C::RequestCancel(request) => {
                let mut run = self.run(&request.run_id)?;
                run.request_cancel(request, env)?;
                Some(run)
            }
            C::Terminate(request) => {
                let mut run = self.run(&request.run_id)?;
                run.terminate(request, env)?;
                Some(run)
            }
            C::Delete(request) => {
                let mut run = self.run(&request.run_id)?;
                if run.is_open() {
                    // Those who wait for its outcome hear of it.
                    let reason = "Delete activity execution".to_owned();
                    run.terminate(TerminateActivityExecutionRequest { reason, ..Default::default() }, env)?;
                }
                run.state.retention_deadline_ns = run.state.retention_deadline_ns.min(env.now.as_nanos());
                Some(run)
            }
        };
        Ok(Step { run, answer, release: Release::Durable })
    }

    /// Puts a changed run in its place: the record of the difference, and what is to be done.
    fn commit(&mut self, mut run: Run, runs: &mut Vec<RunDelta>, effects: &mut Vec<Effect>) -> Option<ChainHead> {
        effects.append(&mut run.effects);
        let before = self.runs.get(&run.run_id);
        let is_new = before.is_none();
        let mut head = None;
        if before.is_none_or(|before| before.state != run.state) {
            run.state.transition_count += 1;
            let same_request = before.is_some_and(|before| before.state.request == run.state.request);
            let mut change = run.state.clone();
            if same_request {
                change.request = None;
            }
            let change = change.encode_to_vec().into();
            runs.push(RunDelta { run_id: run.run_id.clone(), change, ..RunDelta::default() });
            if is_new {
                self.head = ChainHead { current_run_id: run.run_id.clone(), ..ChainHead::default() };
                head = Some(self.head.clone());
            }
        }
        self.runs.insert(run.run_id.clone(), run);
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

impl Entity for Activities {
    fn head(&self) -> &ChainHead {
        &self.head
    }

    fn insert_run(&mut self, run_id: &str, snapshot: Bytes) -> Result<(), prost::DecodeError> {
        let run = Run::new(self.key.clone(), run_id.to_owned(), ActivityState::decode(snapshot)?);
        self.runs.insert(run_id.to_owned(), run);
        Ok(())
    }

    fn has_run(&self, run_id: &str) -> bool {
        self.runs.contains_key(run_id)
    }

    fn unload_closed(&mut self, run_id: &str) {
        if run_id != self.head.current_run_id && self.runs.get(run_id).is_some_and(|run| !run.is_open()) {
            self.runs.remove(run_id);
        }
    }

    fn handle(&mut self, command: Command, env: &mut Env) -> Result<Handled, Error> {
        // The step works on a copy, so that a refusal changes nothing (WF-3).
        let Step { run, answer, release } = self.step(command, env)?;
        let (mut runs, mut effects) = (Vec::new(), Vec::new());
        let head = run.and_then(|run| self.commit(run, &mut runs, &mut effects));
        Ok(Handled { record: self.record(head, runs), effects, answer, release })
    }

    fn on_timer(&mut self, env: &mut Env) -> Handled {
        let (mut runs, mut effects, mut head) = (Vec::new(), Vec::new(), None);
        let due: Vec<Run> =
            self.runs.values().filter(|run| run.next_timer().is_some_and(|at| at <= env.now)).cloned().collect();
        for mut run in due {
            if run.is_open() {
                run.on_timer(env);
                head = self.commit(run, &mut runs, &mut effects).or(head);
            } else {
                head = self.forget(&run.run_id, &mut runs).or(head);
            }
        }
        Handled { record: self.record(head, runs), effects, ..Handled::default() }
    }

    fn on_call_result(&mut self, _id: &CallId, _result: Result<WorkflowReply, Error>, _env: &mut Env) -> Handled {
        Handled::default()
    }

    fn apply(&mut self, record: &ChainRecord) -> Result<(), ApplyError> {
        if let Some(head) = &record.head {
            self.head = head.clone();
        }
        for delta in &record.runs {
            if delta.deleted {
                self.runs.remove(&delta.run_id);
                continue;
            }
            let mut state = ActivityState::decode(delta.change.clone())
                .map_err(|error| ApplyError { chain: format!("{:?}", self.key), reason: error.to_string() })?;
            if state.request.is_none() {
                state.request = self.runs.remove(&delta.run_id).and_then(|run| run.state.request);
            }
            let run = Run::new(self.key.clone(), delta.run_id.clone(), state);
            self.runs.insert(delta.run_id.clone(), run);
        }
        Ok(())
    }

    fn next_timer(&self) -> Option<Timestamp> {
        self.runs.values().filter_map(Run::next_timer).min()
    }

    /// Tasks that were offered and are not taken; others are offered when their time has come.
    fn resume(&self) -> Vec<Effect> {
        let waiting = self.runs.values().filter(|run| run.waits() && run.offered);
        waiting.map(|run| Effect::Offer(run.offer())).collect()
    }

    fn started_for(&self, polls: &BTreeSet<PollName>) -> Vec<TaskToken> {
        let is_for = |run: &&Run| {
            let poll = PollName::of_request(&run.info().request_id);
            run.is_open() && run.is_started() && poll.is_some_and(|poll| polls.contains(&poll))
        };
        self.runs.values().filter(is_for).map(Run::token).collect()
    }

    fn check(&mut self, watch: &Watch) -> Option<Outcome> {
        let Watch::Activity { run_id, wait } = watch else { return None };
        match self.runs.get(run_id) {
            Some(run) => run.check(wait).map(Ok),
            None => Some(Err(self.run(run_id).err().unwrap_or_else(foreign_command))),
        }
    }

    fn give_up(&mut self, watch: &Watch) -> Option<Outcome> {
        match watch {
            Watch::Activity { wait, .. } => Some(Ok(describe::nothing_yet(wait))),
            _ => None,
        }
    }

    fn run_view(&self, _run_id: &str) -> Option<RunView> {
        None
    }

    fn snapshot(&self, run_id: &str) -> Option<Bytes> {
        Some(self.runs.get(run_id)?.state.encode_to_vec().into())
    }

    fn wake_at(&self, run_id: &str) -> Option<Timestamp> {
        self.runs.get(run_id)?.wake_at()
    }

    fn listing(&self, run_id: &str) -> Option<WorkflowExecutionInfo> {
        Some(self.runs.get(run_id)?.list_row())
    }

    fn weight_bytes(&self) -> usize {
        256 + self.runs.values().map(|run| 1024 + 2 * run.state.encoded_len()).sum::<usize>()
    }
}
