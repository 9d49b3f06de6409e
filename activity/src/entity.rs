//! The entity: the runs of one activity id, and how inputs reach them.

use std::collections::BTreeSet;

use bytes::Bytes;
use perdure_proto::{
    Error,
    perdure::{
        node::v1::{
            ActivityCommand, TaskToken, WorkflowReply, activity_command, workflow_call::Command, workflow_reply,
        },
        state::v1::ActivityState,
    },
    temporal::api::{workflow::v1::WorkflowExecutionInfo, workflowservice::v1::TerminateActivityExecutionRequest},
};
use perdure_types::{ChainKey, PollName, Timestamp};
use perdure_workflow::{
    CallId, CallKind, Callbacks, Effect, Env, Execution, ExecutionWait, Executions, Reply, Step, foreign_command,
};
use prost::{DecodeError, Message};

use crate::{
    describe,
    run::Run,
    start::{self, Started},
};

/// All runs of one activity id that are in memory.
pub type Activities = Executions<Run>;

fn own(all: &Activities, command: ActivityCommand, env: &mut Env) -> Result<Step<Run>, Error> {
    use activity_command::Command as C;
    let command = command.command.ok_or_else(|| Error::invalid_argument("the call has no command"))?;
    Ok(match command {
        C::Start(request) => {
            let (run, started) = match start::start(all.key(), all.current().cloned(), request, env)? {
                Started::New(run) => (run, true),
                Started::Existing(run, same) => (run, same),
            };
            let reply = start::reply(&run, started);
            Step::replied(*run, reply)
        }
        C::Describe(request) => all.run(&request.run_id)?.describe(request, env.now)?,
        C::Poll(request) => Step::awaited(all.run(&request.run_id)?, ExecutionWait::Closed),
        C::RequestCancel(request) => {
            let mut run = all.run(&request.run_id)?;
            run.request_cancel(request, env)?;
            Step::done(run)
        }
        C::Terminate(request) => {
            let mut run = all.run(&request.run_id)?;
            run.terminate(request, env)?;
            Step::done(run)
        }
        C::Delete(request) => {
            let mut run = all.run(&request.run_id)?;
            if run.is_open() {
                // Those who wait for its outcome hear of it.
                let reason = "Delete activity execution".to_owned();
                run.terminate(TerminateActivityExecutionRequest { reason, ..Default::default() }, env)?;
            }
            run.state.retention_deadline_ns = run.state.retention_deadline_ns.min(env.now.as_nanos());
            Step::done(run)
        }
    })
}

impl Execution for Run {
    fn restore(key: &ChainKey, run_id: &str, snapshot: Bytes) -> Result<Self, DecodeError> {
        Ok(Self::new(key.clone(), run_id.to_owned(), ActivityState::decode(snapshot)?))
    }

    fn snapshot(&self) -> Bytes {
        self.state.encode_to_vec().into()
    }

    fn commit(&mut self, before: Option<&Self>) -> Option<Bytes> {
        if before.is_some_and(|before| before.state == self.state) {
            return None;
        }
        self.state.transition_count += 1;
        let mut change = self.state.clone();
        if before.is_some_and(|before| before.state.request == self.state.request) {
            change.request = None;
        }
        Some(change.encode_to_vec().into())
    }

    fn apply(key: &ChainKey, run_id: &str, before: Option<Self>, change: Bytes) -> Result<Self, DecodeError> {
        let mut state = ActivityState::decode(change)?;
        if state.request.is_none() {
            state.request = before.and_then(|run| run.state.request);
        }
        Ok(Self::new(key.clone(), run_id.to_owned(), state))
    }

    fn run_id(&self) -> &str {
        &self.run_id
    }

    fn is_open(&self) -> bool {
        Self::is_open(self)
    }

    fn effects(&mut self) -> &mut Vec<Effect> {
        &mut self.effects
    }

    fn not_found(key: &ChainKey, run_id: &str) -> Error {
        let id = &key.workflow_id;
        Error::not_found(if run_id.is_empty() {
            format!("activity execution not found for ID: {id}")
        } else {
            format!("activity execution not found for activity ID \"{id}\" and run ID \"{run_id}\"")
        })
    }

    fn handle(all: &Activities, command: Command, env: &mut Env) -> Result<Step<Self>, Error> {
        Ok(match command {
            Command::Activity(command) => own(all, *command, env)?,
            Command::RecordActivityTaskStarted(c) => {
                let mut run = all.run(&c.run_id)?;
                let task = run.take(c, env)?;
                Step::replied(run, workflow_reply::Reply::ActivityTask(task))
            }
            Command::RespondActivityTask(c) => {
                let mut run = all.run(c.activity.as_ref().map_or("", |activity| &activity.run_id))?;
                let (reply, release) = run.respond(c, env)?;
                Step { release, ..Step::replied(run, workflow_reply::Reply::RespondActivityTask(reply)) }
            }
            Command::TaskUndelivered(c) => {
                let token = c.token.unwrap_or_default();
                let mut run = all.run(&token.run_id)?;
                run.undelivered(&token, env)?;
                Step::done(run)
            }
            Command::ActivityOperation(c) => {
                let mut run = all.run(&c.run_id)?;
                let options = run.operate(*c, env)?;
                Step::replied(run, workflow_reply::Reply::ActivityOptions(Box::new(options)))
            }
            _ => return Err(foreign_command()),
        })
    }

    fn on_timer(&mut self, env: &Env) {
        Self::on_timer(self, env);
    }

    fn on_call_result(&mut self, id: &CallId, result: Result<WorkflowReply, Error>, env: &Env) {
        if id.kind == CallKind::Callback {
            Callbacks::on_result(&mut self.state.callbacks, id.event_id, result, env);
        }
    }

    fn next_timer(&self) -> Option<Timestamp> {
        Self::next_timer(self)
    }

    fn wake_at(&self) -> Option<Timestamp> {
        Self::wake_at(self)
    }

    fn is_over(&self, now: Timestamp) -> bool {
        self.retention_end().is_some_and(|end| end <= now)
    }

    fn resume(&self) -> Vec<Effect> {
        let mut effects = self.callback_calls();
        // A task that was offered and is not taken; others are offered when their time has come.
        if self.waits() && self.offered {
            effects.push(Effect::Offer(self.offer()));
        }
        effects
    }

    fn started_for(&self, polls: &BTreeSet<PollName>) -> Option<TaskToken> {
        let poll = PollName::of_request(&self.info().request_id);
        let is_for = self.is_open() && self.is_started() && poll.is_some_and(|poll| polls.contains(&poll));
        is_for.then(|| self.token())
    }

    fn check(&self, wait: &ExecutionWait) -> Option<Reply> {
        Self::check(self, wait)
    }

    fn nothing_yet(wait: &ExecutionWait) -> Reply {
        describe::nothing_yet(wait)
    }

    fn listing(&self) -> WorkflowExecutionInfo {
        self.list_row()
    }

    fn weight_bytes(&self) -> usize {
        1024 + 2 * self.state.encoded_len()
    }
}
