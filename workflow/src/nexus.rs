//! Nexus operations that a workflow has scheduled: attempts to start one until the handler takes it, then waiting for its
//! completion, unless it ended at once. Exactly one event tells the end.
//!
//! An attempt is a call to the dispatcher, made again from the state if it is lost: the request id makes that harmless.
//! Requests to cancel are in `nexus_cancel`.

use std::collections::HashMap;

use perdure_proto::{
    Code, Error, links, nexus_token,
    perdure::{
        nexus::v1::{CallbackToken, NexusCall, NexusCompletion, nexus_call, nexus_completion, nexus_reply::Outcome},
        node::v1::{WorkflowCall, WorkflowReply, workflow_call::Command, workflow_reply},
        state::v1::NexusOperationInfo,
    },
    temporal::api::{
        common::v1::{Link, Payload, link},
        enums::v1::{EventType, TimeoutType},
        failure::v1::Failure,
        history::v1::{
            HistoryEvent, NexusOperationCanceledEventAttributes, NexusOperationCompletedEventAttributes,
            NexusOperationFailedEventAttributes, NexusOperationScheduledEventAttributes,
            NexusOperationStartedEventAttributes, NexusOperationTimedOutEventAttributes, history_event::Attributes,
        },
        nexus::v1::{self as nexus, Request, StartOperationRequest, request, start_operation_response::Variant},
    },
};
use perdure_types::{Duration, EntityKind, Timestamp};
use prost::Message;

use crate::{
    api::{CallKind, Effect, Env},
    chain::{Answered, Chain, empty_reply},
    nexus_failure::{self as failure, next_attempt_at},
    rebuild::time_of,
    run::{Pending, Run},
};

pub(crate) type Operation = Pending<NexusOperationInfo>;

/// How long one attempt may take.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

impl Operation {
    pub(crate) fn scheduled(&self) -> &NexusOperationScheduledEventAttributes {
        static NONE: std::sync::LazyLock<NexusOperationScheduledEventAttributes> =
            std::sync::LazyLock::new(NexusOperationScheduledEventAttributes::default);
        match &self.event.attributes {
            Some(Attributes::NexusOperationScheduledEventAttributes(scheduled)) => scheduled,
            _ => &NONE,
        }
    }

    pub(crate) fn has_started(&self) -> bool {
        self.info.started_time_ns != 0
    }

    fn is_being_started(&self) -> bool {
        !self.has_started() && self.info.next_attempt_ns == 0
    }

    /// When the operation must have ended, in every case.
    pub(crate) fn close_deadline(&self) -> Option<Timestamp> {
        let timeout = Duration::from_proto(self.scheduled().schedule_to_close_timeout.as_ref()).or_none()?;
        Some(time_of(&self.event) + timeout)
    }

    fn start_deadline(&self) -> Option<Timestamp> {
        let timeout = Duration::from_proto(self.scheduled().schedule_to_start_timeout.as_ref()).or_none()?;
        Some(time_of(&self.event) + timeout)
    }

    pub(crate) fn started_deadline(&self) -> Option<Timestamp> {
        let timeout = Duration::from_proto(self.scheduled().start_to_close_timeout.as_ref()).or_none()?;
        self.has_started().then(|| Timestamp(self.info.started_time_ns) + timeout)
    }

    /// The timeout that comes first.
    fn deadline(&self) -> Option<(Timestamp, TimeoutType)> {
        let start = self.start_deadline().filter(|_| !self.has_started());
        let deadlines = [
            start.map(|at| (at, TimeoutType::ScheduleToStart)),
            self.started_deadline().map(|at| (at, TimeoutType::StartToClose)),
            self.close_deadline().map(|at| (at, TimeoutType::ScheduleToClose)),
        ];
        deadlines.into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// When the next attempt is due, of an operation that backs off.
    fn next_attempt(&self) -> Option<Timestamp> {
        (!self.has_started() && self.info.next_attempt_ns != 0).then_some(Timestamp(self.info.next_attempt_ns))
    }

    /// Earliest time at which something is to be done for it.
    pub(crate) fn next_due(&self) -> Option<Timestamp> {
        let deadline = self.deadline().map(|(at, _)| at);
        [deadline, self.next_attempt(), self.next_cancel_attempt()].into_iter().flatten().min()
    }
}

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
    pub(crate) fn start_nexus_call(&self, operation: &Operation) -> Option<Effect> {
        let scheduled = operation.scheduled();
        let id = operation.info.scheduled_event_id;
        let token = CallbackToken {
            namespace_id: self.key.namespace_id.to_string(),
            workflow_id: self.key.workflow_id.to_string(),
            run_id: self.run_id.clone(),
            scheduled_event_id: id,
            request_id: scheduled.request_id.clone(),
            entity_kind: EntityKind::Workflow.number(),
        };
        let start = StartOperationRequest {
            service: scheduled.service.clone(),
            operation: scheduled.operation.clone(),
            request_id: scheduled.request_id.clone(),
            payload: scheduled.input.clone(),
            callback_header: HashMap::from([(nexus_token::HEADER.to_owned(), nexus_token::encode(&token))]),
            links: links::to_nexus(&self.scheduled_link(operation)).into_iter().collect(),
            ..StartOperationRequest::default()
        };
        let start_deadline = [operation.start_deadline(), operation.close_deadline()].into_iter().flatten().min();
        let call = NexusCall {
            deadline_ns: start_deadline.map_or(0, Timestamp::as_nanos),
            close_deadline_ns: operation.close_deadline().map_or(0, Timestamp::as_nanos),
            start_to_close_ns: Duration::from_proto(scheduled.start_to_close_timeout.as_ref()).0,
            ..self.nexus_call(operation, request::Variant::StartOperation(start))
        };
        Some(self.call_effect(CallKind::StartNexusOperation, id, self.to_dispatcher(call)))
    }

    /// What all requests about an operation have in common.
    pub(crate) fn nexus_call(&self, operation: &Operation, variant: request::Variant) -> NexusCall {
        let scheduled = operation.scheduled();
        let request = Request { header: scheduled.nexus_header.clone(), variant: Some(variant), ..Request::default() };
        NexusCall {
            namespace_id: self.key.namespace_id.to_string(),
            endpoint_id: scheduled.endpoint_id.clone(),
            endpoint: scheduled.endpoint.clone(),
            timeout_ns: REQUEST_TIMEOUT.0,
            call: Some(nexus_call::Call::Request(request)),
            ..NexusCall::default()
        }
    }

    pub(crate) fn to_dispatcher(&self, call: NexusCall) -> WorkflowCall {
        WorkflowCall {
            namespace_id: self.key.namespace_id.to_string(),
            workflow_id: self.key.workflow_id.to_string(),
            command: Some(Command::Nexus(Box::new(call))),
            ..WorkflowCall::default()
        }
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
        let starts = starts.filter_map(|operation| self.start_nexus_call(operation));
        starts.chain(self.nexus_operations.values().filter_map(|operation| self.cancel_nexus_call(operation))).collect()
    }

    pub(crate) fn on_nexus_start_result(&mut self, id: i64, result: Result<WorkflowReply, Error>, env: &mut Env) {
        if !self.is_open() || !self.nexus_operations.get(&id).is_some_and(Operation::is_being_started) {
            return;
        }
        match attempt_outcome(result) {
            Ok(Outcome::Started(response)) => match response.variant {
                Some(Variant::SyncSuccess(sync)) => self.nexus_sync_success(id, sync.payload, &sync.links, env),
                Some(Variant::AsyncSuccess(started)) => {
                    let limit = env.limits.nexus_operation_token_length;
                    let length = started.operation_token.len();
                    if length as i64 > limit {
                        let message =
                            format!("invalid operation token: length exceeds allowed limit ({length}/{limit})");
                        self.fail_nexus_operation(id, failure::call_error(message, false), env);
                    } else {
                        self.record_nexus_started(id, &started.operation_token, &started.links, env);
                        self.ensure_workflow_task(env);
                    }
                }
                Some(Variant::Failure(cause)) => self.end_nexus_operation_badly(id, cause, env),
                _ => self.nexus_attempt_failed(id, failure::internal("empty outcome"), env),
            },
            Ok(Outcome::HandlerError(error)) if failure::is_retryable(&error) => {
                self.nexus_attempt_failed(id, *error, env);
            }
            Ok(Outcome::HandlerError(error)) => self.fail_nexus_operation(id, *error, env),
            Ok(Outcome::Canceled(_) | Outcome::Delivered(_)) => {
                self.nexus_attempt_failed(id, failure::internal("empty outcome"), env);
            }
            Err(error) => self.nexus_attempt_failed(id, *error, env),
        }
    }

    fn nexus_sync_success(&mut self, id: i64, result: Option<Payload>, links: &[nexus::Link], env: &mut Env) {
        let size = result.as_ref().map_or(0, Message::encoded_len);
        if size as i64 > env.limits.blob_size_error_bytes {
            let cause = failure::call_error("http: response body too large".to_owned(), false);
            self.fail_nexus_operation(id, cause, env);
            return;
        }
        self.complete_nexus_result(id, result, links, env);
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
            links: events_links(links),
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
        let info = &mut operation.info;
        info.attempt += 1;
        info.last_attempt_complete_ns = env.now.as_nanos();
        info.last_attempt_failure = None;
        info.next_attempt_ns = 0;
        info.started_time_ns = env.now.as_nanos();
        info.operation_token = operation_token.to_owned();
        let attributes = NexusOperationStartedEventAttributes {
            scheduled_event_id: id,
            operation_id: operation_token.to_owned(),
            operation_token: operation_token.to_owned(),
            request_id: operation.scheduled().request_id.clone(),
        };
        let event = HistoryEvent {
            links: events_links(links),
            attributes: Some(Attributes::NexusOperationStartedEventAttributes(attributes)),
            ..HistoryEvent::default()
        };
        self.add_external_prepared(env.now, event);
        self.send_nexus_cancel(id, env.now);
    }

    fn nexus_attempt_failed(&mut self, id: i64, cause: Failure, env: &Env) {
        let Some(operation) = self.nexus_operations.get_mut(&id) else {
            return;
        };
        let info = &mut operation.info;
        info.attempt += 1;
        info.last_attempt_complete_ns = env.now.as_nanos();
        info.last_attempt_failure = Some(Box::new(cause));
        info.next_attempt_ns = next_attempt_at(info.attempt, env).as_nanos();
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
        if operation.next_attempt().is_some_and(|at| at <= env.now)
            && let Some(operation) = self.nexus_operations.get_mut(&id)
        {
            operation.info.next_attempt_ns = 0;
            let call = self.nexus_operations.get(&id).and_then(|operation| self.start_nexus_call(operation));
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

/// What the dispatcher says; the error is a failed attempt.
pub(crate) fn attempt_outcome(result: Result<WorkflowReply, Error>) -> Result<Outcome, Box<Failure>> {
    match result {
        Ok(WorkflowReply { reply: Some(workflow_reply::Reply::Nexus(reply)) }) => {
            reply.outcome.ok_or_else(|| Box::new(failure::internal("empty outcome")))
        }
        Ok(_) => Err(Box::new(failure::internal("empty outcome"))),
        Err(error) => Err(Box::new(failure::of_error(&error))),
    }
}

fn events_links(links: &[nexus::Link]) -> Vec<Link> {
    links.iter().filter_map(links::from_nexus).collect()
}
