//! Requests to cancel Nexus operations: sent once the operation has started, again until the handler has taken them. What
//! becomes of the operation is the handler's to decide, and is told as the operation's end.

use std::sync::Arc;

use perdure_proto::{
    Error,
    perdure::{node::v1::WorkflowReply, state::v1::NexusCancelInfo},
    temporal::api::{
        enums::v1::NexusOperationCancellationState as State,
        failure::v1::Failure,
        history::v1::{
            HistoryEvent, NexusOperationCancelRequestCompletedEventAttributes,
            NexusOperationCancelRequestFailedEventAttributes, history_event::Attributes,
        },
    },
};
use perdure_types::Timestamp;

use crate::{
    api::{CallKind, Effect, Env},
    nexus_operation::{CancelOutcome, Operation},
    rebuild::time_of,
    run::Run,
};

impl Run {
    /// Sends a request that waits until the operation has started.
    pub(crate) fn send_nexus_cancel(&mut self, id: i64, now: Timestamp) {
        let waits = |operation: &Operation| {
            operation.has_started() && operation.info.cancel.as_ref().is_some_and(|c| c.state() == State::Unspecified)
        };
        if self.nexus_operations.get(&id).is_some_and(waits) {
            self.nexus_operations.get_mut(&id).map(|operation| operation.begin_cancel(now));
            self.emit_nexus_cancel(id);
        }
    }

    fn emit_nexus_cancel(&mut self, id: i64) {
        let call = self.nexus_operations.get(&id).and_then(|operation| self.cancel_nexus_call(operation));
        self.effects.extend(call);
    }

    /// The call, if one is under way.
    pub(crate) fn cancel_nexus_call(&self, operation: &Operation) -> Option<Effect> {
        let call = operation.cancel_call(&self.key)?;
        Some(self.call_effect(CallKind::CancelNexusOperation, operation.info.scheduled_event_id, call))
    }

    pub(crate) fn on_nexus_cancel_result(&mut self, id: i64, result: Result<WorkflowReply, Error>, env: &mut Env) {
        if !self.is_open() || !self.nexus_operations.get(&id).is_some_and(Operation::cancel_is_under_way) {
            return;
        }
        let outcome = CancelOutcome::of(result);
        let Some(operation) = self.nexus_operations.get_mut(&id) else { return };
        operation.end_cancel_attempt(&outcome, env);
        let requested_event_id = operation.info.cancel.as_ref().map_or(0, |cancel| cancel.requested_event_id);
        match outcome {
            CancelOutcome::Sent => self.nexus_cancel_sent(id, requested_event_id, env),
            CancelOutcome::Refused(cause) => self.nexus_cancel_refused(id, requested_event_id, cause, env),
            CancelOutcome::Again(_) => {}
        }
    }

    fn nexus_cancel_sent(&mut self, id: i64, requested_event_id: i64, env: &mut Env) {
        let attributes = NexusOperationCancelRequestCompletedEventAttributes {
            requested_event_id,
            scheduled_event_id: id,
            ..NexusOperationCancelRequestCompletedEventAttributes::default()
        };
        self.record_cancel_end(Attributes::NexusOperationCancelRequestCompletedEventAttributes(attributes), env);
    }

    fn nexus_cancel_refused(&mut self, id: i64, requested_event_id: i64, failure: Failure, env: &mut Env) {
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

    pub(crate) fn nexus_cancel_due(&mut self, id: i64, env: &Env) {
        let due = |operation: &Operation| operation.next_cancel_attempt().is_some_and(|at| at <= env.now);
        if self.nexus_operations.get(&id).is_some_and(due) {
            self.nexus_operations.get_mut(&id).map(|operation| operation.retry_cancel_if_due(env.now));
            self.emit_nexus_cancel(id);
        }
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
