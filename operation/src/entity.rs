//! The entity: the runs of one operation id, and how inputs reach them.

use bytes::Bytes;
use perdure_proto::{
    Error,
    perdure::{
        nexus::v1::{OperationCommand, operation_command},
        node::v1::{WorkflowReply, workflow_call::Command},
        state::v1::NexusOperationState,
    },
    temporal::api::{
        enums::v1::NexusOperationWaitStage as Stage, workflow::v1::WorkflowExecutionInfo,
        workflowservice::v1::TerminateNexusOperationExecutionRequest,
    },
};
use perdure_types::{ChainKey, Timestamp};
use perdure_workflow::{CallId, Effect, Env, Execution, ExecutionWait, Executions, Reply, Step, foreign_command};
use prost::{DecodeError, Message};

use crate::{describe, run::Run, start};

/// All runs of one operation id that are in memory.
pub type Operations = Executions<Run>;

fn own(all: &Operations, command: OperationCommand, env: &mut Env) -> Result<Step<Run>, Error> {
    use operation_command::Command as C;
    let command = command.command.ok_or_else(|| Error::invalid_argument("the call has no command"))?;
    Ok(match command {
        C::Start(command) => {
            let (run, started) = start::start(all.key(), all.current().cloned(), command, env)?;
            let reply = start::reply(&run, started);
            Step::replied(run, reply)
        }
        C::Describe(request) => all.run(&request.run_id)?.describe(request, env.now)?,
        C::Poll(request) => {
            let started = request.wait_stage() == Stage::Started;
            let wait = if started { ExecutionWait::Started } else { ExecutionWait::Closed };
            Step::awaited(all.run(&request.run_id)?, wait)
        }
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
                let reason = "Delete nexus operation execution".to_owned();
                run.terminate(TerminateNexusOperationExecutionRequest { reason, ..Default::default() }, env)?;
            }
            run.state.retention_deadline_ns = run.state.retention_deadline_ns.min(env.now.as_nanos());
            Step::done(run)
        }
    })
}

impl Execution for Run {
    fn restore(key: &ChainKey, run_id: &str, snapshot: Bytes) -> Result<Self, DecodeError> {
        Ok(Self::new(key.clone(), run_id.to_owned(), NexusOperationState::decode(snapshot)?))
    }

    fn snapshot(&self) -> Bytes {
        self.full_state().encode_to_vec().into()
    }

    fn commit(&mut self, before: Option<&Self>) -> Option<Bytes> {
        if before.is_some_and(|before| before.state == self.state && before.operation.info == self.operation.info) {
            return None;
        }
        self.state.transition_count += 1;
        let mut change = self.full_state();
        if before.is_some() {
            change.request = None;
        }
        Some(change.encode_to_vec().into())
    }

    fn apply(key: &ChainKey, run_id: &str, before: Option<Self>, change: Bytes) -> Result<Self, DecodeError> {
        let mut state = NexusOperationState::decode(change)?;
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
            format!("nexus operation execution not found for ID: {id}")
        } else {
            format!("nexus operation execution not found for operation ID \"{id}\" and run ID \"{run_id}\"")
        })
    }

    fn handle(all: &Operations, command: Command, env: &mut Env) -> Result<Step<Self>, Error> {
        match command {
            Command::NexusOperation(command) => own(all, *command, env),
            Command::NexusCompletion(completion) => {
                let mut run = all.run(completion.token.as_ref().map_or("", |token| &token.run_id))?;
                run.complete(*completion, env)?;
                Ok(Step::done(run))
            }
            _ => Err(foreign_command()),
        }
    }

    fn on_timer(&mut self, env: &Env) {
        Self::on_timer(self, env);
    }

    fn on_call_result(&mut self, id: &CallId, result: Result<WorkflowReply, Error>, env: &Env) {
        Self::on_call_result(self, id, result, env);
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
        self.outstanding_calls()
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
        1024 + 3 * self.state.encoded_len() + 2 * self.operation.info.encoded_len()
    }
}
