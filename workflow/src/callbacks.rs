//! The completion callbacks of a run: who is told how a chain of runs ends, or an update. Those of the chain are attached by
//! a start, or by a later one that finds the run open; a run that continues hands them on, and so does one that is reset.
//! Those of an update come with it, and wait for its end or the run's, whatever comes first.
//!
//! What becomes of each is in `callback`.

use perdure_proto::{
    Error, links,
    perdure::{
        nexus::v1::{NexusCompletion, nexus_completion::Outcome},
        node::v1::WorkflowReply,
        state::v1::CallbackInfo,
    },
    temporal::api::{
        common::v1::{Callback, Link, Payloads},
        enums::v1::{CallbackState as State, EventType, RetryState},
        failure::v1::{Failure, TerminatedFailureInfo, TimeoutFailureInfo, failure::FailureInfo},
        history::v1::history_event::Attributes,
        update::v1::outcome::Value,
        workflow::v1::{self as described, callback_info},
    },
};
use perdure_types::Timestamp;

use crate::{
    api::{CallKind, Effect, Env},
    callback,
    links::{request_link, started_link_to},
    nexus_failure as failure,
    rebuild::time_of,
    run::Run,
    update::closed_before_completed,
};

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
        self.attach_callbacks_of("", request_id, callbacks, time);
    }

    /// To an update. A request does that once, however often it is made.
    pub(crate) fn attach_update_callbacks(
        &mut self,
        update_id: &str,
        request_id: &str,
        callbacks: &[Callback],
        time: Timestamp,
    ) {
        let same = |info: &CallbackInfo| info.update_id == update_id && info.request_id == request_id;
        if !self.callbacks.values().any(same) {
            self.attach_callbacks_of(update_id, request_id, callbacks, time);
        }
    }

    fn attach_callbacks_of(&mut self, update_id: &str, request_id: &str, callbacks: &[Callback], time: Timestamp) {
        for callback in callbacks {
            let number = self.callbacks.keys().next_back().map_or(1, |last| last + 1);
            let update_id = update_id.to_owned();
            let info = CallbackInfo { update_id, ..callback::attached(number, request_id, callback, time) };
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
        let of_chain = self.callbacks.values().filter(|info| info.update_id.is_empty());
        of_chain.filter_map(|info| info.callback.clone()).collect()
    }

    /// The run has closed: if no other one follows in its place, everybody is told. Updates do not go on in a run that
    /// continues this one.
    pub(crate) fn call_back(&mut self, env: &Env) {
        let is_end = self.close_event.as_ref().is_some_and(|event| event.attributes.as_ref().is_some_and(is_end));
        // A run that is reset goes on in another one.
        if self.callbacks.is_empty() || !self.info.reset_run_id.is_empty() {
            return;
        }
        self.release_callbacks(|info| is_end || !info.update_id.is_empty(), env);
    }

    /// An update has ended.
    pub(crate) fn call_back_about_update(&mut self, update_id: &str, env: &Env) {
        if self.callbacks.values().any(|info| info.update_id == update_id) {
            self.release_callbacks(|info| info.update_id == update_id, env);
        }
    }

    fn release_callbacks(&mut self, concerns: impl Fn(&CallbackInfo) -> bool, env: &Env) {
        let namespace = self.target(env, "").namespace;
        let waiting = self.callbacks.values().filter(|info| info.state() == State::Standby && concerns(info));
        let numbers: Vec<i64> = waiting.map(|info| info.number).collect();
        for number in numbers {
            let Some(info) = self.callbacks.get_mut(&number) else { continue };
            info.set_state(State::Scheduled);
            info.namespace.clone_from(&namespace);
            info.due_time_ns = env.now.as_nanos();
            match self.callbacks.get(&number).and_then(|info| self.callback_call(info)) {
                Some(call) => self.effects.push(call),
                None => drop(self.callbacks.get_mut(&number).map(|info| callback::give_up(info, env))),
            }
        }
    }

    /// In a copied history the update has ended: those that wait for it have been told.
    pub(crate) fn follow_update_end(&mut self, update_id: &str) {
        let waiting = self.callbacks.values().filter(|info| info.update_id == update_id);
        let numbers: Vec<i64> = waiting.map(|info| info.number).collect();
        for number in numbers {
            if let Some(info) = self.callbacks.get_mut(&number) {
                info.set_state(State::Succeeded)
            }
        }
    }

    /// Calls without a result.
    pub(crate) fn callback_calls(&self) -> Vec<Effect> {
        self.callbacks.values().filter_map(|info| self.callback_call(info)).collect()
    }

    fn callback_call(&self, info: &CallbackInfo) -> Option<Effect> {
        if info.state() != State::Scheduled {
            return None;
        }
        let completion = if info.update_id.is_empty() { self.completion(info)? } else { self.update_completion(info)? };
        let call = callback::call(info, &self.key, completion)?;
        Some(self.call_effect(CallKind::Callback, info.number, call))
    }

    /// How the update ended.
    fn update_completion(&self, info: &CallbackInfo) -> Option<NexusCompletion> {
        let known = self.updates.get(&info.update_id).and_then(|update| update.outcome.as_ref()?.value.clone());
        let outcome = match known {
            Some(Value::Success(result)) => Outcome::Result(first_payload(Some(&result))),
            Some(Value::Failure(cause)) => Outcome::Failure(Box::new(cause)),
            None => Outcome::Failure(Box::new(closed_before_completed())),
        };
        Some(NexusCompletion {
            start_time_ns: self.start_time().as_nanos(),
            close_time_ns: info.due_time_ns,
            links: links::to_nexus(&self.attached_by(info)).into_iter().collect(),
            outcome: Some(outcome),
            ..NexusCompletion::default()
        })
    }

    /// How this run ended. Third parties may hear of it: reasons are left out.
    fn completion(&self, info: &CallbackInfo) -> Option<NexusCompletion> {
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
        let known = self.request_ids.get(&info.request_id).map(|request| request.event_type);
        let (namespace, workflow_id) = (&info.namespace, &self.key.workflow_id);
        let link = |event_type| request_link(namespace, workflow_id, &self.run_id, &info.request_id, event_type);
        match known.and_then(|number| EventType::try_from(number).ok()) {
            Some(event_type) if !info.update_id.is_empty() => link(event_type),
            Some(EventType::WorkflowExecutionOptionsUpdated) => link(EventType::WorkflowExecutionOptionsUpdated),
            _ => started_link_to(namespace, workflow_id, &self.run_id),
        }
    }

    pub(crate) fn on_callback_result(&mut self, number: i64, result: Result<WorkflowReply, Error>, env: &Env) {
        if self.callbacks.get(&number).is_some_and(|info| info.state() == State::Scheduled)
            && let Some(info) = self.callbacks.get_mut(&number)
        {
            callback::on_result(info, result, env);
        }
    }

    /// When the next attempt of one that backs off is due.
    pub(crate) fn next_callback_attempt(&self) -> Option<Timestamp> {
        let backing_off = self.callbacks.values().filter(|info| info.state() == State::BackingOff);
        backing_off.map(|info| Timestamp(info.next_attempt_ns)).min()
    }

    pub(crate) fn callbacks_due(&mut self, now: Timestamp) {
        let due = self.callbacks.values().filter(|info| callback::is_due(info, now));
        let numbers: Vec<i64> = due.map(|info| info.number).collect();
        for number in numbers {
            self.callbacks.get_mut(&number).map(callback::try_again);
            let call = self.callbacks.get(&number).and_then(|info| self.callback_call(info));
            self.effects.extend(call);
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
    use callback_info::trigger::Variant;
    let update_id = info.update_id.clone();
    let variant = if update_id.is_empty() {
        Variant::WorkflowClosed(callback_info::WorkflowClosed {})
    } else {
        Variant::UpdateWorkflowExecutionCompleted(callback_info::UpdateWorkflowExecutionCompleted { update_id })
    };
    let common = callback::described(info);
    described::CallbackInfo {
        trigger: Some(callback_info::Trigger { variant: Some(variant) }),
        callback: common.callback,
        registration_time: common.registration_time,
        state: common.state,
        attempt: common.attempt,
        last_attempt_complete_time: common.last_attempt_complete_time,
        last_attempt_failure: common.last_attempt_failure,
        next_attempt_schedule_time: common.next_attempt_schedule_time,
        blocked_reason: common.blocked_reason,
        request_id: common.request_id,
    }
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
