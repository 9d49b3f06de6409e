//! One run: attempts to start the operation until its handler has it, then its end; requests to cancel it.

use perdure_proto::{
    Error,
    perdure::{
        nexus::v1::{NexusCompletion, nexus_completion::Outcome},
        node::v1::{WorkflowCall, WorkflowReply},
        state::v1::{NexusCancelInfo, NexusOperationInfo, NexusOperationState},
    },
    temporal::api::{
        common::v1::{Link, Payload, link},
        enums::v1::NexusOperationExecutionStatus as Status,
        failure::v1::{Failure, TerminatedFailureInfo, failure::FailureInfo},
        history::v1::NexusOperationScheduledEventAttributes,
        workflowservice::v1::{
            RequestCancelNexusOperationExecutionRequest, StartNexusOperationExecutionRequest,
            TerminateNexusOperationExecutionRequest,
        },
    },
};
use perdure_types::{ChainKey, Duration, Timestamp};
use perdure_workflow::{
    CallId, CallKind, Callbacks, Effect, Env,
    nexus_operations::{CancelOutcome, Operation, StartOutcome, common_links, is_canceled, timed_out},
};
use prost::Message;

/// The one operation that a run has is known by this number.
const OPERATION: i64 = 1;

#[derive(Debug, Clone)]
pub struct Run {
    pub(crate) key: ChainKey,
    pub(crate) run_id: String,
    /// All but the attempts.
    pub(crate) state: NexusOperationState,
    pub(crate) operation: Operation,
    /// What the transition under way has to do outside.
    pub(crate) effects: Vec<Effect>,
}

/// How it ends.
pub(crate) enum End {
    Completed(Option<Payload>),
    Failed(Failure),
    Canceled(Failure),
    TimedOut(Failure),
    Terminated(Failure),
}

impl Run {
    pub(crate) fn new(key: ChainKey, run_id: String, mut state: NexusOperationState) -> Self {
        let known = state.info.take();
        let info = NexusOperationInfo { scheduled_event_id: OPERATION, ..known.unwrap_or_default() };
        let operation = Operation::new(scheduled(&state), Timestamp(state.start_time_ns), info);
        Self { key, run_id, state, operation, effects: Vec::new() }
    }

    /// With the attempts.
    pub(crate) fn full_state(&self) -> NexusOperationState {
        NexusOperationState { info: Some(self.operation.info.clone()), ..self.state.clone() }
    }

    pub(crate) fn request(&self) -> &StartNexusOperationExecutionRequest {
        static NONE: std::sync::LazyLock<StartNexusOperationExecutionRequest> =
            std::sync::LazyLock::new(StartNexusOperationExecutionRequest::default);
        self.state.request.as_ref().unwrap_or(&NONE)
    }

    pub(crate) fn status(&self) -> Status {
        self.state.status()
    }

    pub(crate) fn is_open(&self) -> bool {
        self.status() == Status::Running
    }

    pub(crate) fn link(&self) -> Link {
        let to = link::NexusOperation {
            namespace: self.request().namespace.clone(),
            operation_id: self.key.workflow_id.to_string(),
            run_id: self.run_id.clone(),
        };
        Link { variant: Some(link::Variant::NexusOperation(to)) }
    }

    // ---- Calls -------------------------------------------------------------------------------------------------

    fn call_effect(&self, kind: CallKind, call: WorkflowCall) -> Effect {
        Effect::Call { id: CallId { run_id: self.run_id.clone(), kind, event_id: OPERATION }, call: Box::new(call) }
    }

    fn start_call(&self) -> Effect {
        let call = self.operation.start_call(&self.key, &self.run_id, &self.link());
        self.call_effect(CallKind::StartNexusOperation, call)
    }

    fn cancel_call(&self) -> Option<Effect> {
        Some(self.call_effect(CallKind::CancelNexusOperation, self.operation.cancel_call(&self.key)?))
    }

    /// Makes the first attempt.
    pub(crate) fn begin(&mut self) {
        let call = self.start_call();
        self.effects.push(call);
    }

    /// Calls without a result.
    pub(crate) fn outstanding_calls(&self) -> Vec<Effect> {
        if !self.is_open() {
            return self.callback_calls();
        }
        let start = self.operation.is_being_started().then(|| self.start_call());
        start.into_iter().chain(self.cancel_call()).collect()
    }

    pub(crate) fn on_call_result(&mut self, id: &CallId, result: Result<WorkflowReply, Error>, env: &Env) {
        match id.kind {
            CallKind::StartNexusOperation if self.is_open() && self.operation.is_being_started() => {
                self.on_start_result(StartOutcome::of(result, env.limits), env);
            }
            CallKind::CancelNexusOperation if self.is_open() && self.operation.cancel_call(&self.key).is_some() => {
                self.operation.end_cancel_attempt(&CancelOutcome::of(result), env);
            }
            CallKind::Callback => Callbacks::on_result(&mut self.state.callbacks, id.event_id, result, env),
            _ => {}
        }
    }

    fn on_start_result(&mut self, outcome: StartOutcome, env: &Env) {
        match outcome {
            StartOutcome::Started { token, links } => {
                self.state.links.extend(common_links(&links));
                self.started(&token, env);
            }
            StartOutcome::Completed { result, links } => {
                self.state.links.extend(common_links(&links));
                self.attempt_over(None, env);
                self.close(End::Completed(result), env);
            }
            StartOutcome::Ended(cause) => {
                self.attempt_over(Some(cause.clone()), env);
                self.end_badly(cause, env);
            }
            StartOutcome::Again(cause) => self.operation.record_failed_attempt(cause, env),
        }
    }

    /// The attempt that is over was the last one.
    fn attempt_over(&mut self, failure: Option<Failure>, env: &Env) {
        let info = &mut self.operation.info;
        info.attempt += 1;
        info.last_attempt_complete_ns = env.now.as_nanos();
        info.last_attempt_failure = failure.map(Box::new);
    }

    fn started(&mut self, operation_token: &str, env: &Env) {
        self.operation.record_start(operation_token, env);
        if self.operation.begin_cancel(env.now) {
            self.effects.extend(self.cancel_call());
        }
    }

    /// From the handler: how the operation ended that had started, or that has and nobody here has heard of it.
    pub(crate) fn complete(&mut self, completion: NexusCompletion, env: &Env) -> Result<(), Error> {
        let token = completion.token.unwrap_or_default();
        let other = !token.request_id.is_empty() && token.request_id != self.state.handler_request_id;
        if other || !self.is_open() {
            return Err(Error::not_found("operation not found"));
        }
        let size = match &completion.outcome {
            Some(Outcome::Result(result)) => result.encoded_len(),
            Some(Outcome::Failure(cause)) => cause.encoded_len(),
            None => 0,
        };
        if size as i64 > env.limits.blob_size_error_bytes {
            return Err(Error::invalid_argument("result exceeds size limit"));
        }
        if !self.operation.has_started() {
            // It was faster than the answer to the request that started it.
            self.state.links.extend(common_links(&completion.links));
            self.operation.record_start(&completion.operation_token, env);
        }
        match completion.outcome {
            Some(Outcome::Failure(cause)) => self.end_badly(*cause, env),
            Some(Outcome::Result(result)) => self.close(End::Completed(Some(result)), env),
            None => self.close(End::Completed(None), env),
        }
        Ok(())
    }

    // ---- Time --------------------------------------------------------------------------------------------------

    /// When there is something to do; `None`: it waits to be called.
    pub(crate) fn next_timer(&self) -> Option<Timestamp> {
        if self.is_open() {
            return self.operation.next_due();
        }
        [self.retention_end(), Callbacks::next_attempt(&self.state.callbacks)].into_iter().flatten().min()
    }

    /// When a new owner has to load it: at once if a call is outstanding.
    pub(crate) fn wake_at(&self) -> Option<Timestamp> {
        if self.outstanding_calls().is_empty() { self.next_timer() } else { Some(Timestamp(self.state.start_time_ns)) }
    }

    /// When a closed run may be deleted. Not while somebody is told of its end.
    pub(crate) fn retention_end(&self) -> Option<Timestamp> {
        let kept = self.is_open() || Callbacks::are_under_way(&self.state.callbacks);
        (!kept).then_some(Timestamp(self.state.retention_deadline_ns))
    }

    pub(crate) fn on_timer(&mut self, env: &Env) {
        if !self.is_open() {
            self.call_back_when_due(env.now);
            return;
        }
        if let Some((_, kind)) = self.operation.deadline().filter(|(at, _)| *at <= env.now) {
            self.close(End::TimedOut(timed_out(kind)), env);
            return;
        }
        if self.operation.retry_if_due(env.now) {
            self.begin();
        }
        if self.operation.retry_cancel_if_due(env.now) {
            self.effects.extend(self.cancel_call());
        }
    }

    // ---- What clients do ---------------------------------------------------------------------------------------

    pub(crate) fn request_cancel(
        &mut self,
        request: RequestCancelNexusOperationExecutionRequest,
        env: &Env,
    ) -> Result<(), Error> {
        // First, for the repetition of a request may come after the end that it brought about.
        if self.operation.info.cancel.is_some() && self.state.cancel_request_id == request.request_id {
            return Ok(());
        }
        self.check_open()?;
        if self.operation.info.cancel.is_some() {
            return Err(Error::failed_precondition(format!(
                "cancellation already requested with request ID {}",
                self.state.cancel_request_id
            )));
        }
        self.state.cancel_request_id = request.request_id;
        self.state.cancel_reason = request.reason;
        self.state.cancel_identity = request.identity;
        self.state.cancel_time_ns = env.now.as_nanos();
        self.operation.info.cancel = Some(Box::new(NexusCancelInfo::default()));
        // Without a token there is nothing to cancel yet.
        if self.operation.begin_cancel(env.now) {
            self.effects.extend(self.cancel_call());
        }
        Ok(())
    }

    pub(crate) fn terminate(
        &mut self,
        request: TerminateNexusOperationExecutionRequest,
        env: &Env,
    ) -> Result<(), Error> {
        if self.status() == Status::Terminated {
            let before = &self.state.terminate_request_id;
            if *before == request.request_id {
                return Ok(());
            }
            return Err(Error::failed_precondition(format!("already terminated with request ID {before}")));
        }
        self.check_open()?;
        self.state.terminate_request_id = request.request_id;
        let info = TerminatedFailureInfo { identity: request.identity };
        let failure = Failure {
            message: request.reason,
            failure_info: Some(FailureInfo::TerminatedFailureInfo(info)),
            ..Failure::default()
        };
        self.close(End::Terminated(failure), env);
        Ok(())
    }

    fn check_open(&self) -> Result<(), Error> {
        if self.is_open() { Ok(()) } else { Err(Error::failed_precondition("operation already completed")) }
    }

    // ---- The end -----------------------------------------------------------------------------------------------

    /// It has failed, or was canceled: the failure says which.
    fn end_badly(&mut self, cause: Failure, env: &Env) {
        let end = if is_canceled(&cause) { End::Canceled(cause) } else { End::Failed(cause) };
        self.close(end, env);
    }

    pub(crate) fn close(&mut self, end: End, env: &Env) {
        let (status, result, failure) = match end {
            End::Completed(result) => (Status::Completed, result, None),
            End::Failed(failure) => (Status::Failed, None, Some(failure)),
            End::Canceled(failure) => (Status::Canceled, None, Some(failure)),
            End::TimedOut(failure) => (Status::TimedOut, None, Some(failure)),
            End::Terminated(failure) => (Status::Terminated, None, Some(failure)),
        };
        let retention = env.namespaces.by_id(&self.key.namespace_id).map_or(Duration::ZERO, |n| n.retention);
        self.operation.info.next_attempt_ns = 0;
        let state = &mut self.state;
        state.status = status as i32;
        state.result = result;
        state.failure = failure;
        state.close_time_ns = env.now.as_nanos();
        state.retention_deadline_ns = (env.now + retention).as_nanos();
        self.call_back(env);
    }
}

/// As a workflow would have scheduled it.
fn scheduled(state: &NexusOperationState) -> NexusOperationScheduledEventAttributes {
    let request = state.request.clone().unwrap_or_default();
    NexusOperationScheduledEventAttributes {
        endpoint: request.endpoint,
        endpoint_id: state.endpoint_id.clone(),
        service: request.service,
        operation: request.operation,
        input: request.input,
        schedule_to_close_timeout: request.schedule_to_close_timeout,
        schedule_to_start_timeout: request.schedule_to_start_timeout,
        start_to_close_timeout: request.start_to_close_timeout,
        nexus_header: request.nexus_header,
        request_id: state.handler_request_id.clone(),
        ..NexusOperationScheduledEventAttributes::default()
    }
}
