//! The entity: its state, how inputs reach it, and how far it has come.

use std::collections::BTreeSet;

use bytes::Bytes;
use perdure_proto::{
    Error,
    perdure::{
        node::v1::{
            BatchCommand, BatchReply, WorkflowReply, batch_command, batch_reply, workflow_call::Command, workflow_reply,
        },
        state::v1::BatchJob,
    },
    temporal::api::{
        common::v1::WorkflowExecution,
        enums::v1::BatchOperationState,
        workflow::v1::WorkflowExecutionInfo,
        workflowservice::v1::{
            ListWorkflowExecutionsResponse, StartBatchOperationRequest, StartBatchOperationResponse,
            StopBatchOperationRequest, StopBatchOperationResponse,
        },
    },
};
use perdure_types::{ChainKey, Duration, Timestamp};
use perdure_workflow::{Answer, CallId, Change, Effect, Env, Release, Reply, Single};
use prost::Message;

use crate::calls::{LIST, OPERATE, is_done};

/// Calls under way at the same time.
const MAX_UNDER_WAY: usize = 20;
/// Temporal's default.
const OPERATIONS_PER_SECOND: f64 = 50.0;

/// How long a job that is over can be looked at.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// One batch operation. Without a request it does not exist.
#[derive(Debug)]
pub struct Job {
    pub(crate) key: ChainKey,
    pub(crate) state: BatchJob,
    /// Indexes into the page whose call has no result so far. In memory only: [`Single::resume`] makes all calls again.
    under_way: BTreeSet<u32>,
    listing: bool,
    /// The next call must not be made before. In memory only.
    next_call: Timestamp,
    changed: Changed,
}

#[derive(Debug, Default)]
struct Changed {
    any: bool,
    request: bool,
    page: bool,
    done: Vec<u32>,
}

impl Job {
    pub(crate) fn request(&self) -> &StartBatchOperationRequest {
        static NONE: std::sync::LazyLock<StartBatchOperationRequest> =
            std::sync::LazyLock::new(StartBatchOperationRequest::default);
        self.state.request.as_ref().unwrap_or(&NONE)
    }

    fn exists(&self) -> bool {
        self.state.request.is_some()
    }

    pub(crate) fn is_running(&self) -> bool {
        phase(&self.state) == BatchOperationState::Running
    }

    fn start(&mut self, request: StartBatchOperationRequest, env: &Env) -> Result<(), Error> {
        if self.exists() {
            let message = format!("Batch operation already exists. JobId: {}", self.key.workflow_id);
            return Err(Error::workflow_already_started(message, "", "", ""));
        }
        let named = crate::calls::named_executions(&request);
        self.state = BatchJob {
            identity: crate::describe::identity_of(&request),
            start_time_ns: env.now.as_nanos(),
            state: BatchOperationState::Running as i32,
            total_count: named.len() as i64,
            listed: !named.is_empty(),
            page_number: i64::from(!named.is_empty()),
            page: named,
            request: Some(request),
            ..BatchJob::default()
        };
        self.changed = Changed { any: true, request: true, page: true, done: Vec::new() };
        Ok(())
    }

    fn stop(&mut self, request: StopBatchOperationRequest, env: &Env) -> Result<(), Error> {
        if !self.is_running() {
            return Err(Error::not_found("workflow execution already completed"));
        }
        self.state.stop_reason = request.reason;
        self.state.stop_identity = request.identity;
        self.end(BatchOperationState::Failed, env);
        Ok(())
    }

    fn end(&mut self, state: BatchOperationState, env: &Env) {
        self.state.state = state as i32;
        self.state.close_time_ns = env.now.as_nanos();
        self.state.page.clear();
        self.state.done.clear();
        self.under_way.clear();
        self.listing = false;
        self.changed.any = true;
        self.changed.page = true;
    }

    /// Makes the calls that may be made now.
    fn advance(&mut self, incarnation: &str, env: &Env) -> Vec<Effect> {
        let mut effects = Vec::new();
        if !self.is_running() {
            return effects;
        }
        for index in self.open_indexes() {
            if self.under_way.len() >= MAX_UNDER_WAY || self.next_call > env.now {
                break;
            }
            if self.under_way.insert(index) {
                effects.extend(self.operation_call(index, incarnation));
                self.next_call = self.next_call.max(env.now - Duration::from_secs(1)) + self.interval();
            }
        }
        if self.state.done.len() == self.state.page.len() {
            if self.state.listed {
                self.end(BatchOperationState::Completed, env);
            } else if !std::mem::replace(&mut self.listing, true) {
                effects.push(self.list_call(incarnation));
            }
        }
        effects
    }

    /// Of the page: what is neither done nor under way.
    fn open_indexes(&self) -> Vec<u32> {
        let done: BTreeSet<u32> = self.state.done.iter().copied().collect();
        (0..self.state.page.len() as u32).filter(|i| !done.contains(i) && !self.under_way.contains(i)).collect()
    }

    fn interval(&self) -> Duration {
        let wanted = f64::from(self.request().max_operations_per_second);
        let rate = if wanted > 0.0 { wanted } else { OPERATIONS_PER_SECOND };
        Duration((1e9 / rate) as i64)
    }

    fn take_page(&mut self, response: ListWorkflowExecutionsResponse) {
        let found: Vec<WorkflowExecution> = response.executions.into_iter().filter_map(|info| info.execution).collect();
        self.state.total_count += found.len() as i64;
        self.state.listed = response.next_page_token.is_empty();
        self.state.next_page_token = response.next_page_token;
        self.state.page = found;
        self.state.page_number += 1;
        self.state.done.clear();
        self.changed.any = true;
        self.changed.page = true;
    }

    fn operated(&mut self, index: u32, result: &Result<WorkflowReply, Error>) {
        self.under_way.remove(&index);
        if !self.is_running() || self.state.done.contains(&index) {
            return;
        }
        match result {
            Ok(_) => self.state.complete_count += 1,
            Err(error) if is_done(error) => self.state.complete_count += 1,
            Err(error) => {
                tracing::debug!(batch_id = %self.key.workflow_id, %error, "operation failed");
                self.state.failure_count += 1;
            }
        }
        self.state.done.push(index);
        self.changed.any = true;
        self.changed.done.push(index);
    }

    /// Ends a transition.
    fn commit(&mut self, answer: Answer, effects: Vec<Effect>) -> Change {
        let Changed { any, request, page, done } = std::mem::take(&mut self.changed);
        let record = any.then(|| {
            let record = BatchJob {
                request: self.state.request.clone().filter(|_| request),
                page: if page { self.state.page.clone() } else { Vec::new() },
                done,
                page_number: self.state.page_number,
                next_page_token: self.state.next_page_token.clone(),
                identity: self.state.identity.clone(),
                stop_reason: self.state.stop_reason.clone(),
                stop_identity: self.state.stop_identity.clone(),
                ..counters(&self.state)
            };
            record.encode_to_vec().into()
        });
        Change { record, deleted: false, effects, answer, release: Release::Durable }
    }
}

pub(crate) fn phase(state: &BatchJob) -> BatchOperationState {
    BatchOperationState::try_from(state.state).unwrap_or_default()
}

fn counters(state: &BatchJob) -> BatchJob {
    BatchJob {
        state: state.state,
        start_time_ns: state.start_time_ns,
        close_time_ns: state.close_time_ns,
        total_count: state.total_count,
        complete_count: state.complete_count,
        failure_count: state.failure_count,
        listed: state.listed,
        ..BatchJob::default()
    }
}

impl Single for Job {
    fn new(key: ChainKey) -> Self {
        Self {
            key,
            state: BatchJob::default(),
            under_way: BTreeSet::new(),
            listing: false,
            next_call: Timestamp::ZERO,
            changed: Changed::default(),
        }
    }

    fn restore(&mut self, snapshot: Bytes) -> Result<(), prost::DecodeError> {
        self.state = BatchJob::decode(snapshot)?;
        Ok(())
    }

    fn snapshot(&self) -> Bytes {
        self.state.encode_to_vec().into()
    }

    fn apply(&mut self, change: Bytes) -> Result<(), prost::DecodeError> {
        let mut state = BatchJob::decode(change)?;
        if state.request.is_none() {
            state.request = self.state.request.take();
        }
        let ended = phase(&state) != BatchOperationState::Running;
        if state.page_number == self.state.page_number && !ended {
            state.page = std::mem::take(&mut self.state.page);
            let mut done = std::mem::take(&mut self.state.done);
            done.append(&mut state.done);
            state.done = done;
        } else if ended {
            state.done.clear();
        }
        self.state = state;
        Ok(())
    }

    fn handle(&mut self, command: Command, incarnation: &str, env: &mut Env) -> Result<Change, Error> {
        use batch_command::Command as C;
        let Command::Batch(command) = command else {
            return Err(perdure_workflow::foreign_command());
        };
        let BatchCommand { command: Some(command) } = *command else {
            return Err(Error::invalid_argument("the call has no command"));
        };
        if !self.exists() && !matches!(command, C::Start(_)) {
            return Err(Error::not_found(format!("batch operation not found: {}", self.key.workflow_id)));
        }
        let reply = match command {
            C::Start(request) => {
                self.start(request, env)?;
                batch_reply::Reply::Start(StartBatchOperationResponse::default())
            }
            C::Stop(request) => {
                self.stop(request, env)?;
                batch_reply::Reply::Stop(StopBatchOperationResponse::default())
            }
            C::Describe(_) => batch_reply::Reply::Describe(self.describe()),
        };
        let effects = self.advance(incarnation, env);
        let reply = Box::new(BatchReply { reply: Some(reply) });
        let answer = Answer::Reply(Box::new(Reply::new(workflow_reply::Reply::Batch(reply))));
        Ok(self.commit(answer, effects))
    }

    fn on_timer(&mut self, incarnation: &str, env: &mut Env) -> Change {
        if !self.is_running() && Timestamp(self.state.close_time_ns) + KEPT <= env.now {
            return Change { deleted: true, ..Change::default() };
        }
        let effects = self.advance(incarnation, env);
        self.commit(Answer::default(), effects)
    }

    fn on_call_result(&mut self, id: &CallId, result: Result<WorkflowReply, Error>, env: &mut Env) -> Change {
        if id.kind == LIST {
            self.listing = false;
            match result.map(|reply| reply.reply) {
                Ok(Some(workflow_reply::Reply::List(response))) if self.is_running() => self.take_page(response),
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(batch_id = %self.key.workflow_id, %error, "the list of a batch operation failed");
                    if self.is_running() {
                        self.state.stop_reason = error.message;
                        self.end(BatchOperationState::Failed, env);
                    }
                }
            }
        } else if id.kind == OPERATE
            && let Some(index) = self.index_of(id.event_id)
        {
            self.operated(index, &result);
        }
        let effects = self.advance(&id.run_id, env);
        self.commit(Answer::default(), effects)
    }

    fn next_timer(&self) -> Option<Timestamp> {
        if !self.is_running() {
            return Some(Timestamp(self.state.close_time_ns) + KEPT);
        }
        let page_is_done = self.state.done.len() == self.state.page.len();
        let more = self.under_way.len() < MAX_UNDER_WAY && !self.open_indexes().is_empty();
        (more || (page_is_done && !self.listing)).then_some(self.next_call)
    }

    fn wake_at(&self) -> Option<Timestamp> {
        if self.is_running() { Some(Timestamp(self.state.start_time_ns)) } else { self.next_timer() }
    }

    /// Nothing: what is open begins with the first timer of the new owner, at its pace.
    fn resume(&self, _incarnation: &str) -> Vec<Effect> {
        Vec::new()
    }

    fn listing(&self, incarnation: &str) -> Option<WorkflowExecutionInfo> {
        self.list_row(incarnation)
    }

    fn weight_bytes(&self) -> usize {
        1024 + 2 * self.state.encoded_len()
    }
}
