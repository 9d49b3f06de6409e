//! Requests to cancel Nexus operations: sent once the operation has started, again until the handler has taken them. What
//! becomes of the operation is the handler's to decide, and is told as the operation's end.

use std::sync::Arc;

use perdure_proto::{
    Error,
    perdure::{
        nexus::v1::{NexusCall, nexus_reply::Outcome},
        node::v1::WorkflowReply,
        state::v1::NexusCancelInfo,
    },
    temporal::api::{
        enums::v1::NexusOperationCancellationState as State,
        failure::v1::Failure,
        history::v1::{
            HistoryEvent, NexusOperationCancelRequestCompletedEventAttributes,
            NexusOperationCancelRequestFailedEventAttributes, history_event::Attributes,
        },
        nexus::v1::{CancelOperationRequest, request},
    },
};
use perdure_types::Timestamp;

use crate::{
    api::{CallKind, Effect, Env},
    nexus::{Operation, attempt_outcome},
    nexus_failure::{self as failure, next_attempt_at},
    rebuild::time_of,
    run::Run,
};

impl Operation {
    fn cancel_is_under_way(&self) -> bool {
        self.info.cancel.as_ref().is_some_and(|cancel| cancel.state() == State::Scheduled)
    }

    pub(crate) fn next_cancel_attempt(&self) -> Option<Timestamp> {
        let cancel = self.info.cancel.as_ref().filter(|cancel| cancel.state() == State::BackingOff)?;
        Some(Timestamp(cancel.next_attempt_ns))
    }
}

impl Run {
    /// Sends a request that waits until the operation has started.
    pub(crate) fn send_nexus_cancel(&mut self, id: i64, now: Timestamp) {
        let Some(operation) = self.nexus_operations.get_mut(&id).filter(|operation| operation.has_started()) else {
            return;
        };
        let Some(cancel) = operation.info.cancel.as_mut().filter(|cancel| cancel.state() == State::Unspecified) else {
            return;
        };
        cancel.set_state(State::Scheduled);
        cancel.requested_time_ns = now.as_nanos();
        self.emit_nexus_cancel(id);
    }

    fn emit_nexus_cancel(&mut self, id: i64) {
        let call = self.nexus_operations.get(&id).and_then(|operation| self.cancel_nexus_call(operation));
        self.effects.extend(call);
    }

    /// The call, if one is under way.
    #[allow(deprecated, reason = "older handlers read the operation id")]
    pub(crate) fn cancel_nexus_call(&self, operation: &Operation) -> Option<Effect> {
        if !operation.cancel_is_under_way() {
            return None;
        }
        let scheduled = operation.scheduled();
        let cancel = CancelOperationRequest {
            service: scheduled.service.clone(),
            operation: scheduled.operation.clone(),
            operation_id: operation.info.operation_token.clone(),
            operation_token: operation.info.operation_token.clone(),
        };
        let deadline = [operation.started_deadline(), operation.close_deadline()].into_iter().flatten().min();
        let call = NexusCall {
            deadline_ns: deadline.map_or(0, Timestamp::as_nanos),
            ..self.nexus_call(operation, request::Variant::CancelOperation(cancel))
        };
        let id = operation.info.scheduled_event_id;
        Some(self.call_effect(CallKind::CancelNexusOperation, id, self.to_dispatcher(call)))
    }

    pub(crate) fn on_nexus_cancel_result(&mut self, id: i64, result: Result<WorkflowReply, Error>, env: &mut Env) {
        if !self.is_open() || !self.nexus_operations.get(&id).is_some_and(Operation::cancel_is_under_way) {
            return;
        }
        match attempt_outcome(result) {
            Ok(Outcome::Canceled(_)) => self.nexus_cancel_sent(id, env),
            Ok(Outcome::HandlerError(error)) if !failure::is_retryable(&error) => {
                self.nexus_cancel_refused(id, *error, env);
            }
            Ok(Outcome::HandlerError(error)) => self.nexus_cancel_attempt_failed(id, *error, env),
            Ok(Outcome::Started(_) | Outcome::Delivered(_)) => {
                self.nexus_cancel_attempt_failed(id, failure::internal("empty outcome"), env);
            }
            Err(error) => self.nexus_cancel_attempt_failed(id, *error, env),
        }
    }

    /// Ends an attempt. Gives the number of the event that requested the cancellation.
    fn end_cancel_attempt(&mut self, id: i64, state: State, failure: Option<Failure>, env: &Env) -> i64 {
        let Some(cancel) = self.nexus_operations.get_mut(&id).and_then(|operation| operation.info.cancel.as_mut())
        else {
            return 0;
        };
        cancel.attempt += 1;
        cancel.last_attempt_complete_ns = env.now.as_nanos();
        cancel.last_attempt_failure = failure;
        cancel.set_state(state);
        cancel.next_attempt_ns =
            if state == State::BackingOff { next_attempt_at(cancel.attempt, env).as_nanos() } else { 0 };
        cancel.requested_event_id
    }

    fn nexus_cancel_sent(&mut self, id: i64, env: &mut Env) {
        let requested_event_id = self.end_cancel_attempt(id, State::Succeeded, None, env);
        let attributes = NexusOperationCancelRequestCompletedEventAttributes {
            requested_event_id,
            scheduled_event_id: id,
            ..NexusOperationCancelRequestCompletedEventAttributes::default()
        };
        self.record_cancel_end(Attributes::NexusOperationCancelRequestCompletedEventAttributes(attributes), env);
    }

    fn nexus_cancel_refused(&mut self, id: i64, failure: Failure, env: &mut Env) {
        let requested_event_id = self.end_cancel_attempt(id, State::Failed, Some(failure.clone()), env);
        let attributes = NexusOperationCancelRequestFailedEventAttributes {
            requested_event_id,
            failure: Some(failure),
            scheduled_event_id: id,
            ..NexusOperationCancelRequestFailedEventAttributes::default()
        };
        self.record_cancel_end(Attributes::NexusOperationCancelRequestFailedEventAttributes(attributes), env);
    }

    /// Older workers do not know these events.
    fn record_cancel_end(&mut self, attributes: Attributes, env: &mut Env) {
        let event = HistoryEvent { worker_may_ignore: true, attributes: Some(attributes), ..HistoryEvent::default() };
        self.add_external_prepared(env.now, event);
        self.ensure_workflow_task(env);
    }

    fn nexus_cancel_attempt_failed(&mut self, id: i64, failure: Failure, env: &Env) {
        self.end_cancel_attempt(id, State::BackingOff, Some(failure), env);
    }

    pub(crate) fn nexus_cancel_due(&mut self, id: i64, env: &Env) {
        let due = |operation: &&mut Operation| operation.next_cancel_attempt().is_some_and(|at| at <= env.now);
        let Some(operation) = self.nexus_operations.get_mut(&id).filter(due) else {
            return;
        };
        if let Some(cancel) = &mut operation.info.cancel {
            cancel.set_state(State::Scheduled);
            cancel.next_attempt_ns = 0;
        }
        self.emit_nexus_cancel(id);
    }

    /// In a copied history the operation has started: what waited for it is to be sent.
    pub(crate) fn follow_cancel_start(&mut self, id: i64) {
        if let Some(operation) = self.nexus_operations.get_mut(&id)
            && let Some(cancel) = operation.info.cancel.as_mut().filter(|cancel| cancel.state() == State::Unspecified)
        {
            cancel.set_state(State::Scheduled);
            cancel.requested_time_ns = operation.info.started_time_ns;
        }
    }

    pub(crate) fn follow_nexus_cancel(&mut self, event: &Arc<HistoryEvent>, attributes: &Attributes) {
        let (id, state) = match attributes {
            Attributes::NexusOperationCancelRequestedEventAttributes(a) => {
                let Some(operation) = self.nexus_operations.get_mut(&a.scheduled_event_id) else {
                    return;
                };
                let cancel = NexusCancelInfo { requested_event_id: event.event_id, ..NexusCancelInfo::default() };
                let has_started = operation.has_started();
                let cancel = operation.info.cancel.insert(Box::new(cancel));
                if has_started {
                    cancel.set_state(State::Scheduled);
                    cancel.requested_time_ns = time_of(event).as_nanos();
                }
                return;
            }
            Attributes::NexusOperationCancelRequestCompletedEventAttributes(a) => {
                (a.scheduled_event_id, State::Succeeded)
            }
            Attributes::NexusOperationCancelRequestFailedEventAttributes(a) => (a.scheduled_event_id, State::Failed),
            _ => return,
        };
        if let Some(cancel) = self.nexus_operations.get_mut(&id).and_then(|o| o.info.cancel.as_mut()) {
            cancel.attempt += 1;
            cancel.set_state(state);
        }
    }
}
