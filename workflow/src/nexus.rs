//! Nexus operations that a workflow has scheduled: attempts to start one until the handler takes it, then waiting for its
//! completion, unless it ended at once. Exactly one event tells the end.
//!
//! An attempt is a call to the dispatcher, made again from the state if it is lost: the request id makes that harmless.
//! What requests and attempts are is in `nexus_operation`; requests to cancel are in `nexus_cancel`.

use perdure_proto::{
    Code, Error,
    perdure::{
        nexus::v1::{CallbackToken, NexusCompletion, nexus_completion},
        node::v1::WorkflowReply,
        state::v1::NexusOperationInfo,
    },
    temporal::api::{
        common::v1::{Link, Payload, link},
        enums::v1::{EventType, TimeoutType},
        failure::v1::Failure,
        history::v1::{
            HistoryEvent, NexusOperationCanceledEventAttributes, NexusOperationCompletedEventAttributes,
            NexusOperationFailedEventAttributes, NexusOperationStartedEventAttributes,
            NexusOperationTimedOutEventAttributes, history_event::Attributes,
        },
        nexus::v1 as nexus,
    },
};
use prost::Message;

use crate::{
    api::{CallKind, Effect, Env},
    chain::{Answered, Chain, empty_reply},
    nexus_failure as failure,
    nexus_operation::{Operation, StartOutcome, common_links},
    rebuild::time_of,
    run::{Pending, Run},
};

impl Chain {
    /// From a handler: how an operation ended that had started, or that has and the caller has not heard of it.
    pub(crate) fn nexus_completion(&mut self, command: &NexusCompletion, env: &mut Env) -> Answered {
        let token = command.token.clone().unwrap_or_default();
        let named = self.open_run(&token.run_id).and_then(|run| run.complete_nexus_operation(&token, command, env));
        match named {
            // The run was reset since.
            Err(error)
                if error.grpc_code() == Code::NotFound && !token.run_id.is_empty() && !token.request_id.is_empty() =>
            {
                self.open_run("")?.complete_nexus_operation(&token, command, env)?;
            }
            named => named?,
        }
        empty_reply()
    }
}

impl Run {
    /// The attempt to start an operation.
    pub(crate) fn start_nexus_call(&self, operation: &Operation) -> Effect {
        let call = operation.start_call(&self.key, &self.run_id, &self.scheduled_link(operation));
        self.call_effect(CallKind::StartNexusOperation, operation.info.scheduled_event_id, call)
    }

    fn scheduled_link(&self, operation: &Operation) -> Link {
        let reference = link::workflow_event::Reference::EventRef(link::workflow_event::EventReference {
            event_id: operation.info.scheduled_event_id,
            event_type: EventType::NexusOperationScheduled as i32,
        });
        let event = link::WorkflowEvent {
            namespace: operation.info.namespace.clone(),
            workflow_id: self.key.workflow_id.to_string(),
            run_id: self.run_id.clone(),
            reference: Some(reference),
        };
        Link { variant: Some(link::Variant::WorkflowEvent(event)) }
    }

    /// Calls about operations without a result.
    pub(crate) fn nexus_calls(&self) -> Vec<Effect> {
        let starts = self.nexus_operations.values().filter(|operation| operation.is_being_started());
        let starts = starts.map(|operation| self.start_nexus_call(operation));
        starts.chain(self.nexus_operations.values().filter_map(|operation| self.cancel_nexus_call(operation))).collect()
    }

    pub(crate) fn on_nexus_start_result(&mut self, id: i64, result: Result<WorkflowReply, Error>, env: &mut Env) {
        if !self.is_open() || !self.nexus_operations.get(&id).is_some_and(Operation::is_being_started) {
            return;
        }
        match StartOutcome::of(result, env.limits) {
            StartOutcome::Started { token, links } => {
                self.record_nexus_started(id, &token, &links, env);
                self.ensure_workflow_task(env);
            }
            StartOutcome::Completed { result, links } => self.complete_nexus_result(id, result, &links, env),
            StartOutcome::Ended(cause) => self.end_nexus_operation_badly(id, cause, env),
            StartOutcome::Again(cause) => {
                if let Some(operation) = self.nexus_operations.get_mut(&id) {
                    operation.record_failed_attempt(cause, env);
                }
            }
        }
    }

    fn complete_nexus_result(&mut self, id: i64, result: Option<Payload>, links: &[nexus::Link], env: &mut Env) {
        self.end_nexus_operation(id, links, env, |operation| {
            Attributes::NexusOperationCompletedEventAttributes(NexusOperationCompletedEventAttributes {
                scheduled_event_id: id,
                result,
                request_id: operation.scheduled().request_id.clone(),
            })
        });
    }

    /// It has failed, or was canceled: the failure says which.
    fn end_nexus_operation_badly(&mut self, id: i64, cause: Failure, env: &mut Env) {
        if !failure::is_canceled(&cause) {
            self.fail_nexus_operation(id, cause, env);
            return;
        }
        self.end_nexus_operation(id, &[], env, |operation| {
            Attributes::NexusOperationCanceledEventAttributes(NexusOperationCanceledEventAttributes {
                scheduled_event_id: id,
                failure: Some(failure::of_operation(operation, cause)),
                request_id: operation.scheduled().request_id.clone(),
            })
        });
    }

    fn fail_nexus_operation(&mut self, id: i64, cause: Failure, env: &mut Env) {
        self.end_nexus_operation(id, &[], env, |operation| {
            Attributes::NexusOperationFailedEventAttributes(NexusOperationFailedEventAttributes {
                scheduled_event_id: id,
                failure: Some(failure::of_operation(operation, cause)),
                request_id: operation.scheduled().request_id.clone(),
            })
        });
    }

    fn time_out_nexus_operation(&mut self, id: i64, kind: TimeoutType, env: &mut Env) {
        self.end_nexus_operation(id, &[], env, |operation| {
            Attributes::NexusOperationTimedOutEventAttributes(NexusOperationTimedOutEventAttributes {
                scheduled_event_id: id,
                failure: Some(failure::of_operation(operation, failure::timed_out(kind))),
                request_id: operation.scheduled().request_id.clone(),
            })
        });
    }

    fn end_nexus_operation(
        &mut self,
        id: i64,
        links: &[nexus::Link],
        env: &mut Env,
        attributes: impl FnOnce(&Operation) -> Attributes,
    ) {
        let Some(operation) = self.nexus_operations.remove(&id) else {
            return;
        };
        let event = HistoryEvent {
            links: common_links(links),
            attributes: Some(attributes(&operation)),
            ..HistoryEvent::default()
        };
        self.add_external_prepared(env.now, event);
        self.ensure_workflow_task(env);
    }

    #[allow(deprecated, reason = "older workers read the operation id")]
    fn record_nexus_started(&mut self, id: i64, operation_token: &str, links: &[nexus::Link], env: &Env) {
        let Some(operation) = self.nexus_operations.get_mut(&id) else {
            return;
        };
        operation.record_start(operation_token, env);
        let attributes = NexusOperationStartedEventAttributes {
            scheduled_event_id: id,
            operation_id: operation_token.to_owned(),
            operation_token: operation_token.to_owned(),
            request_id: operation.scheduled().request_id.clone(),
        };
        let event = HistoryEvent {
            links: common_links(links),
            attributes: Some(Attributes::NexusOperationStartedEventAttributes(attributes)),
            ..HistoryEvent::default()
        };
        self.add_external_prepared(env.now, event);
        self.send_nexus_cancel(id, env.now);
    }

    fn complete_nexus_operation(
        &mut self,
        token: &CallbackToken,
        command: &NexusCompletion,
        env: &mut Env,
    ) -> Result<(), Error> {
        let unknown = || Error::not_found("operation not found");
        let id = token.scheduled_event_id;
        let operation = self.nexus_operations.get(&id).ok_or_else(unknown)?;
        if !token.request_id.is_empty() && operation.scheduled().request_id != token.request_id {
            return Err(unknown());
        }
        let outcome = command.outcome.clone();
        let size = match &outcome {
            Some(nexus_completion::Outcome::Result(result)) => result.encoded_len(),
            Some(nexus_completion::Outcome::Failure(cause)) => cause.encoded_len(),
            None => 0,
        };
        if size as i64 > env.limits.blob_size_error_bytes {
            return Err(Error::invalid_argument("result exceeds size limit"));
        }
        if !operation.has_started() {
            // It was faster than the answer to the request that started it.
            self.record_nexus_started(id, &command.operation_token, &command.links, env);
        }
        match outcome {
            Some(nexus_completion::Outcome::Failure(cause)) => self.end_nexus_operation_badly(id, *cause, env),
            Some(nexus_completion::Outcome::Result(result)) => self.complete_nexus_result(id, Some(result), &[], env),
            None => self.complete_nexus_result(id, None, &[], env),
        }
        Ok(())
    }

    /// Something is due for the operation.
    pub(crate) fn nexus_operation_due(&mut self, id: i64, env: &mut Env) {
        let Some(operation) = self.nexus_operations.get(&id) else {
            return;
        };
        if let Some((_, kind)) = operation.deadline().filter(|(at, _)| *at <= env.now) {
            self.time_out_nexus_operation(id, kind, env);
            return;
        }
        if operation.next_attempt().is_some_and(|at| at <= env.now) {
            self.nexus_operations.get_mut(&id).map(|operation| operation.retry_if_due(env.now));
            let call = self.nexus_operations.get(&id).map(|operation| self.start_nexus_call(operation));
            self.effects.extend(call);
        }
        self.nexus_cancel_due(id, env);
    }

    /// The state that follows from an event of a copied history.
    pub(crate) fn follow_nexus(&mut self, event: &std::sync::Arc<HistoryEvent>, attributes: &Attributes, env: &Env) {
        match attributes {
            Attributes::NexusOperationScheduledEventAttributes(_) => {
                let id = event.event_id;
                let namespace = self.target(env, "").namespace;
                let info = NexusOperationInfo { scheduled_event_id: id, namespace, ..NexusOperationInfo::default() };
                self.nexus_operations.insert(id, Pending { info, event: event.clone() });
            }
            Attributes::NexusOperationStartedEventAttributes(a) => {
                if let Some(operation) = self.nexus_operations.get_mut(&a.scheduled_event_id) {
                    operation.info.attempt += 1;
                    operation.info.next_attempt_ns = 0;
                    operation.info.started_time_ns = time_of(event).as_nanos();
                    operation.info.operation_token = a.operation_token.clone();
                    self.follow_cancel_start(a.scheduled_event_id);
                }
            }
            other => match ended_operation(other) {
                Some((id, _)) => drop(self.nexus_operations.remove(&id)),
                None => self.follow_nexus_cancel(event, other),
            },
        }
    }
}

/// Of events that end an operation: its Scheduled event, and its request.
pub(crate) fn ended_operation(attributes: &Attributes) -> Option<(i64, &str)> {
    use Attributes as A;
    match attributes {
        A::NexusOperationCompletedEventAttributes(a) => Some((a.scheduled_event_id, &a.request_id)),
        A::NexusOperationFailedEventAttributes(a) => Some((a.scheduled_event_id, &a.request_id)),
        A::NexusOperationCanceledEventAttributes(a) => Some((a.scheduled_event_id, &a.request_id)),
        A::NexusOperationTimedOutEventAttributes(a) => Some((a.scheduled_event_id, &a.request_id)),
        _ => None,
    }
}
