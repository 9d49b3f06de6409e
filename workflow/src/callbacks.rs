//! Completion callbacks: who is told how a chain of runs ends. They are attached by a start, or by a later one that finds
//! the run open; a run that continues hands them on, and so does one that is reset. Once nothing follows, each is
//! delivered, again until somebody takes it or says that it is of no use.
//!
//! A callback to [`SYSTEM_URL`] goes to the entity that its token names, as a call; others go out as HTTP requests.

use perdure_proto::{
    Error, links, nexus_token,
    perdure::{
        nexus::v1::{
            CallbackToken, NexusCall, NexusCompletion, NexusDelivery, nexus_call, nexus_completion, nexus_reply,
        },
        node::v1::{WorkflowCall, WorkflowReply, workflow_call::Command, workflow_reply},
        state::v1::CallbackInfo,
    },
    temporal::api::{
        common::v1::{Callback, Link, Payloads, callback},
        enums::v1::{CallbackState as State, EventType, RetryState},
        failure::v1::{Failure, TerminatedFailureInfo, TimeoutFailureInfo, failure::FailureInfo},
        history::v1::history_event::Attributes,
        workflow::v1::{self as described, callback_info},
    },
};
use perdure_types::Timestamp;

use crate::{
    api::{CallKind, Effect, Env},
    external_calls::is_settled,
    links::{request_link, started_link_to},
    nexus::REQUEST_TIMEOUT,
    nexus_failure::{self as failure, backoff},
    rebuild::time_of,
    run::Run,
};

/// The address of what this cluster itself does.
pub(crate) const SYSTEM_URL: &str = "temporal://system";

const OPERATION_TOKEN_HEADER: &str = "nexus-operation-token";

impl Run {
    /// Why so many more callbacks cannot be attached.
    pub(crate) fn check_callbacks(&self, more: usize, env: &Env) -> Result<(), Error> {
        let (limit, attached) = (env.limits.callbacks_per_workflow, self.callbacks.len());
        if more == 0 || (attached + more) as i64 <= limit {
            return Ok(());
        }
        Err(Error::failed_precondition(format!(
            "cannot attach more than {limit} callbacks to a workflow ({attached} callbacks already attached)"
        )))
    }

    pub(crate) fn attach_callbacks(&mut self, request_id: &str, callbacks: &[Callback], time: Timestamp) {
        for callback in callbacks {
            let number = self.callbacks.keys().next_back().map_or(1, |last| last + 1);
            let info = CallbackInfo {
                number,
                callback: Some(callback.clone()),
                registration_time_ns: time.as_nanos(),
                state: State::Standby as i32,
                request_id: request_id.to_owned(),
                ..CallbackInfo::default()
            };
            self.callbacks.insert(number, info);
        }
    }

    /// Those that the first event brings.
    pub(crate) fn attach_first_callbacks(&mut self, request_id: &str) {
        let started = self.started.clone();
        if let Some(Attributes::WorkflowExecutionStartedEventAttributes(start)) = &started.attributes {
            self.attach_callbacks(request_id, &start.completion_callbacks, time_of(&started));
        }
    }

    /// For a run that continues this one.
    pub(crate) fn callbacks_for_successor(&self) -> Vec<Callback> {
        self.callbacks.values().filter_map(|info| info.callback.clone()).collect()
    }

    /// The run has closed: if no other one follows in its place, everybody is told.
    pub(crate) fn call_back(&mut self, env: &Env) {
        let is_end = self.close_event.as_ref().is_some_and(|event| event.attributes.as_ref().is_some_and(is_end));
        // A run that is reset goes on in another one.
        if self.callbacks.is_empty() || !is_end || !self.info.reset_run_id.is_empty() {
            return;
        }
        let namespace = self.target(env, "").namespace;
        let numbers: Vec<i64> = self.callbacks.keys().copied().collect();
        for number in numbers {
            let Some(info) = self.callbacks.get_mut(&number).filter(|info| info.state() == State::Standby) else {
                continue;
            };
            info.set_state(State::Scheduled);
            info.namespace.clone_from(&namespace);
            if self.callbacks.get(&number).and_then(|info| self.callback_call(info)).is_none() {
                let cause = failure::call_error("invalid callback token".to_owned(), false);
                self.callback_attempt_over(number, State::Failed, Some(cause), env);
                continue;
            }
            self.emit_callback(number);
        }
    }

    fn emit_callback(&mut self, number: i64) {
        let call = self.callbacks.get(&number).and_then(|info| self.callback_call(info));
        self.effects.extend(call);
    }

    /// Calls without a result.
    pub(crate) fn callback_calls(&self) -> Vec<Effect> {
        self.callbacks.values().filter_map(|info| self.callback_call(info)).collect()
    }

    fn callback_call(&self, info: &CallbackInfo) -> Option<Effect> {
        if info.state() != State::Scheduled {
            return None;
        }
        let Some(callback::Variant::Nexus(callback)) = info.callback.as_ref()?.variant.as_ref() else {
            return None;
        };
        let header = |name: &str| {
            callback.header.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
        };
        let mut completion = self.completion(info)?;
        completion.operation_token = header(OPERATION_TOKEN_HEADER).unwrap_or_default().to_owned();
        let call = if callback.url == SYSTEM_URL {
            let token = nexus_token::decode(header(nexus_token::HEADER)?)?;
            to_caller(token, completion)
        } else {
            let delivery = NexusDelivery {
                url: callback.url.clone(),
                header: callback.header.clone(),
                completion: Some(completion),
                request_id: info.request_id.clone(),
            };
            self.to_dispatcher(NexusCall {
                namespace_id: self.key.namespace_id.to_string(),
                timeout_ns: REQUEST_TIMEOUT.0,
                call: Some(nexus_call::Call::Delivery(delivery)),
                ..NexusCall::default()
            })
        };
        Some(self.call_effect(CallKind::Callback, info.number, call))
    }

    /// How this run ended. Third parties may hear of it: reasons are left out.
    fn completion(&self, info: &CallbackInfo) -> Option<NexusCompletion> {
        use nexus_completion::Outcome;
        let close = self.close_event.as_ref()?;
        let outcome = match close.attributes.as_ref()? {
            Attributes::WorkflowExecutionCompletedEventAttributes(a) => {
                Some(Outcome::Result(first_payload(a.result.as_ref())))
            }
            Attributes::WorkflowExecutionFailedEventAttributes(a) => {
                Some(Outcome::Failure(Box::new(a.failure.clone().unwrap_or_default())))
            }
            Attributes::WorkflowExecutionCanceledEventAttributes(a) => {
                Some(Outcome::Failure(Box::new(failure::canceled(a.details.clone()))))
            }
            Attributes::WorkflowExecutionTerminatedEventAttributes(_) => Some(Outcome::Failure(Box::new(Failure {
                message: "operation terminated".to_owned(),
                failure_info: Some(FailureInfo::TerminatedFailureInfo(TerminatedFailureInfo::default())),
                ..Failure::default()
            }))),
            Attributes::WorkflowExecutionTimedOutEventAttributes(_) => Some(Outcome::Failure(Box::new(Failure {
                message: "operation exceeded internal timeout".to_owned(),
                failure_info: Some(FailureInfo::TimeoutFailureInfo(TimeoutFailureInfo::default())),
                ..Failure::default()
            }))),
            _ => return None,
        };
        Some(NexusCompletion {
            start_time_ns: self.start_time().as_nanos(),
            close_time_ns: self.info.close_time_ns,
            links: links::to_nexus(&self.attached_by(info)).into_iter().collect(),
            outcome,
            ..NexusCompletion::default()
        })
    }

    /// A link to the event that has attached the callback.
    fn attached_by(&self, info: &CallbackInfo) -> Link {
        let options_updated = EventType::WorkflowExecutionOptionsUpdated;
        let request = self.request_ids.get(&info.request_id);
        if request.is_some_and(|request| request.event_type == options_updated as i32) {
            let workflow_id = &self.key.workflow_id;
            return request_link(&info.namespace, workflow_id, &self.run_id, &info.request_id, options_updated);
        }
        started_link_to(&info.namespace, &self.key.workflow_id, &self.run_id)
    }

    pub(crate) fn on_callback_result(&mut self, number: i64, result: Result<WorkflowReply, Error>, env: &Env) {
        if self.callbacks.get(&number).is_none_or(|info| info.state() != State::Scheduled) {
            return;
        }
        use nexus_reply::Outcome;
        let final_error = is_settled(&result);
        let (state, cause) = match result {
            Ok(WorkflowReply { reply: Some(workflow_reply::Reply::Nexus(reply)) }) => match reply.outcome {
                Some(Outcome::Delivered(_)) => (State::Succeeded, None),
                Some(Outcome::HandlerError(error)) if failure::is_retryable(&error) => {
                    (State::BackingOff, Some(*error))
                }
                Some(Outcome::HandlerError(error)) => (State::Failed, Some(*error)),
                _ => (State::BackingOff, Some(failure::internal("empty outcome"))),
            },
            Ok(_) => (State::Succeeded, None),
            Err(error) if final_error => (State::Failed, Some(failure::call_error(error.message, false))),
            Err(error) => (State::BackingOff, Some(failure::of_error(&error))),
        };
        self.callback_attempt_over(number, state, cause, env);
    }

    fn callback_attempt_over(&mut self, number: i64, state: State, cause: Option<Failure>, env: &Env) {
        let Some(info) = self.callbacks.get_mut(&number) else {
            return;
        };
        info.attempt += 1;
        info.last_attempt_complete_ns = env.now.as_nanos();
        info.last_attempt_failure = cause;
        info.set_state(state);
        let delay =
            backoff(info.attempt, env.limits.callback_retry_initial_interval, env.limits.callback_retry_max_interval);
        info.next_attempt_ns = if state == State::BackingOff { (env.now + delay).as_nanos() } else { 0 };
    }

    /// When the next attempt of one that backs off is due.
    pub(crate) fn next_callback_attempt(&self) -> Option<Timestamp> {
        let backing_off = self.callbacks.values().filter(|info| info.state() == State::BackingOff);
        backing_off.map(|info| Timestamp(info.next_attempt_ns)).min()
    }

    pub(crate) fn callbacks_due(&mut self, now: Timestamp) {
        let due = |info: &&CallbackInfo| info.state() == State::BackingOff && info.next_attempt_ns <= now.as_nanos();
        let numbers: Vec<i64> = self.callbacks.values().filter(due).map(|info| info.number).collect();
        for number in numbers {
            if let Some(info) = self.callbacks.get_mut(&number) {
                info.set_state(State::Scheduled);
                info.next_attempt_ns = 0;
                self.emit_callback(number);
            }
        }
    }

    /// Is somebody being told right now?
    pub(crate) fn is_calling_back(&self) -> bool {
        self.callbacks.values().any(|info| info.state() == State::Scheduled)
    }

    pub(crate) fn has_callbacks_to_make(&self) -> bool {
        self.is_calling_back() || self.next_callback_attempt().is_some()
    }

    pub(crate) fn described_callbacks(&self) -> Vec<described::CallbackInfo> {
        self.callbacks.values().map(described_callback).collect()
    }
}

fn described_callback(info: &CallbackInfo) -> described::CallbackInfo {
    let trigger = callback_info::Trigger {
        variant: Some(callback_info::trigger::Variant::WorkflowClosed(callback_info::WorkflowClosed {})),
    };
    described::CallbackInfo {
        callback: info.callback.clone(),
        trigger: Some(trigger),
        registration_time: Timestamp(info.registration_time_ns).to_proto(),
        state: info.state,
        attempt: info.attempt,
        last_attempt_complete_time: Timestamp(info.last_attempt_complete_ns).to_proto(),
        last_attempt_failure: info.last_attempt_failure.clone(),
        next_attempt_schedule_time: Timestamp(info.next_attempt_ns).to_proto(),
        request_id: info.request_id.clone(),
        ..described::CallbackInfo::default()
    }
}

fn to_caller(token: CallbackToken, mut completion: NexusCompletion) -> WorkflowCall {
    let (namespace_id, workflow_id) = (token.namespace_id.clone(), token.workflow_id.clone());
    let kind = token.entity_kind;
    completion.token = Some(token);
    let command = Some(Command::NexusCompletion(Box::new(completion)));
    WorkflowCall { namespace_id, workflow_id, kind, command }
}

/// An operation has one result: that is what SDKs let workflows return.
fn first_payload(result: Option<&Payloads>) -> perdure_proto::temporal::api::common::v1::Payload {
    result.and_then(|payloads| payloads.payloads.first()).cloned().unwrap_or_default()
}

/// Does the closing event end more than the run? A retry and the next of a continued run have the callbacks of this one.
fn is_end(attributes: &Attributes) -> bool {
    match attributes {
        Attributes::WorkflowExecutionContinuedAsNewEventAttributes(_) => false,
        Attributes::WorkflowExecutionFailedEventAttributes(a) => a.retry_state() != RetryState::InProgress,
        Attributes::WorkflowExecutionTimedOutEventAttributes(a) => a.retry_state() != RetryState::InProgress,
        _ => true,
    }
}
