//! One Nexus operation, whoever wants it done: when something is due for it, the requests to its handler, and what becomes
//! of them. Workflows have them, and there are operations that no workflow has scheduled.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use perdure_proto::{
    Error, links, nexus_token,
    perdure::{
        nexus::v1::{CallbackToken, NexusCall, nexus_call, nexus_reply::Outcome},
        node::v1::{WorkflowCall, WorkflowReply, workflow_call::Command, workflow_reply},
        state::v1::NexusOperationInfo,
    },
    temporal::api::{
        common::v1::{Link, Payload},
        enums::v1::{NexusOperationCancellationState as CancelState, PendingNexusOperationState as State, TimeoutType},
        failure::v1::Failure,
        history::v1::{HistoryEvent, NexusOperationScheduledEventAttributes, history_event::Attributes},
        nexus::v1::{
            self as nexus, CancelOperationRequest, Request, StartOperationRequest, request,
            start_operation_response::Variant,
        },
    },
};
use perdure_types::{ChainKey, Duration, Limits, Timestamp};
use prost::Message;

use crate::{
    api::Env,
    nexus_failure::{self as failure, next_attempt_at},
    rebuild::time_of,
    run::Pending,
};

pub type Operation = Pending<NexusOperationInfo>;

/// How long one attempt may take.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

impl Operation {
    pub fn new(scheduled: NexusOperationScheduledEventAttributes, at: Timestamp, info: NexusOperationInfo) -> Self {
        let event = HistoryEvent {
            event_id: info.scheduled_event_id,
            event_time: at.to_proto(),
            attributes: Some(Attributes::NexusOperationScheduledEventAttributes(scheduled)),
            ..HistoryEvent::default()
        };
        Self { info, event: Arc::new(event) }
    }

    pub fn scheduled(&self) -> &NexusOperationScheduledEventAttributes {
        static NONE: LazyLock<NexusOperationScheduledEventAttributes> =
            LazyLock::new(NexusOperationScheduledEventAttributes::default);
        match &self.event.attributes {
            Some(Attributes::NexusOperationScheduledEventAttributes(scheduled)) => scheduled,
            _ => &NONE,
        }
    }

    pub fn has_started(&self) -> bool {
        self.info.started_time_ns != 0
    }

    pub fn is_being_started(&self) -> bool {
        !self.has_started() && self.info.next_attempt_ns == 0
    }

    pub fn state(&self) -> State {
        match (self.has_started(), self.info.next_attempt_ns) {
            (true, _) => State::Started,
            (false, 0) => State::Scheduled,
            (false, _) => State::BackingOff,
        }
    }

    // ---- Time --------------------------------------------------------------------------------------------------

    /// When the operation must have ended, in every case.
    pub fn close_deadline(&self) -> Option<Timestamp> {
        let timeout = Duration::from_proto(self.scheduled().schedule_to_close_timeout.as_ref()).or_none()?;
        Some(time_of(&self.event) + timeout)
    }

    fn start_deadline(&self) -> Option<Timestamp> {
        let timeout = Duration::from_proto(self.scheduled().schedule_to_start_timeout.as_ref()).or_none()?;
        Some(time_of(&self.event) + timeout)
    }

    fn started_deadline(&self) -> Option<Timestamp> {
        let timeout = Duration::from_proto(self.scheduled().start_to_close_timeout.as_ref()).or_none()?;
        self.has_started().then(|| Timestamp(self.info.started_time_ns) + timeout)
    }

    /// The timeout that comes first.
    pub fn deadline(&self) -> Option<(Timestamp, TimeoutType)> {
        let start = self.start_deadline().filter(|_| !self.has_started());
        let deadlines = [
            start.map(|at| (at, TimeoutType::ScheduleToStart)),
            self.started_deadline().map(|at| (at, TimeoutType::StartToClose)),
            self.close_deadline().map(|at| (at, TimeoutType::ScheduleToClose)),
        ];
        deadlines.into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// When the next attempt is due, of an operation that backs off.
    pub fn next_attempt(&self) -> Option<Timestamp> {
        (!self.has_started() && self.info.next_attempt_ns != 0).then_some(Timestamp(self.info.next_attempt_ns))
    }

    /// Earliest time at which something is to be done for it.
    pub fn next_due(&self) -> Option<Timestamp> {
        let deadline = self.deadline().map(|(at, _)| at);
        [deadline, self.next_attempt(), self.next_cancel_attempt()].into_iter().flatten().min()
    }

    // ---- Its start ---------------------------------------------------------------------------------------------

    /// An attempt to start it. `link`: to what wants it done.
    pub fn start_call(&self, key: &ChainKey, run_id: &str, link: &Link) -> WorkflowCall {
        let scheduled = self.scheduled();
        let token = CallbackToken {
            namespace_id: key.namespace_id.to_string(),
            workflow_id: key.workflow_id.to_string(),
            run_id: run_id.to_owned(),
            scheduled_event_id: self.info.scheduled_event_id,
            request_id: scheduled.request_id.clone(),
            entity_kind: key.kind.number(),
        };
        let start = StartOperationRequest {
            service: scheduled.service.clone(),
            operation: scheduled.operation.clone(),
            request_id: scheduled.request_id.clone(),
            payload: scheduled.input.clone(),
            callback_header: HashMap::from([(nexus_token::HEADER.to_owned(), nexus_token::encode(&token))]),
            links: links::to_nexus(link).into_iter().collect(),
            ..StartOperationRequest::default()
        };
        let start_deadline = [self.start_deadline(), self.close_deadline()].into_iter().flatten().min();
        let call = NexusCall {
            deadline_ns: start_deadline.map_or(0, Timestamp::as_nanos),
            close_deadline_ns: self.close_deadline().map_or(0, Timestamp::as_nanos),
            start_to_close_ns: Duration::from_proto(scheduled.start_to_close_timeout.as_ref()).0,
            ..self.call(key, request::Variant::StartOperation(start))
        };
        to_dispatcher(key, call)
    }

    /// What all requests about an operation have in common.
    fn call(&self, key: &ChainKey, variant: request::Variant) -> NexusCall {
        let scheduled = self.scheduled();
        let request = Request { header: scheduled.nexus_header.clone(), variant: Some(variant), ..Request::default() };
        NexusCall {
            namespace_id: key.namespace_id.to_string(),
            endpoint_id: scheduled.endpoint_id.clone(),
            endpoint: scheduled.endpoint.clone(),
            timeout_ns: REQUEST_TIMEOUT.0,
            call: Some(nexus_call::Call::Request(request)),
            ..NexusCall::default()
        }
    }

    /// The handler has it.
    pub fn record_start(&mut self, operation_token: &str, env: &Env) {
        let info = &mut self.info;
        info.attempt += 1;
        info.last_attempt_complete_ns = env.now.as_nanos();
        info.last_attempt_failure = None;
        info.next_attempt_ns = 0;
        info.started_time_ns = env.now.as_nanos();
        info.operation_token = operation_token.to_owned();
    }

    /// There will be another attempt.
    pub fn record_failed_attempt(&mut self, cause: Failure, env: &Env) {
        let info = &mut self.info;
        info.attempt += 1;
        info.last_attempt_complete_ns = env.now.as_nanos();
        info.last_attempt_failure = Some(Box::new(cause));
        info.next_attempt_ns = next_attempt_at(info.attempt, env).as_nanos();
    }

    /// Ends the backoff if it is time for that: then [`Self::start_call`] is to be made.
    pub fn retry_if_due(&mut self, now: Timestamp) -> bool {
        let due = self.next_attempt().is_some_and(|at| at <= now);
        if due {
            self.info.next_attempt_ns = 0;
        }
        due
    }

    // ---- Its cancellation --------------------------------------------------------------------------------------

    pub(crate) fn cancel_is_under_way(&self) -> bool {
        self.info.cancel.as_ref().is_some_and(|cancel| cancel.state() == CancelState::Scheduled)
    }

    pub(crate) fn next_cancel_attempt(&self) -> Option<Timestamp> {
        let cancel = self.info.cancel.as_ref().filter(|cancel| cancel.state() == CancelState::BackingOff)?;
        Some(Timestamp(cancel.next_attempt_ns))
    }

    /// Whether a request that waited until the operation has started is to be sent now, by [`Self::cancel_call`].
    pub fn begin_cancel(&mut self, now: Timestamp) -> bool {
        let started = self.has_started();
        let waiting = self.info.cancel.as_mut().filter(|cancel| started && cancel.state() == CancelState::Unspecified);
        let Some(cancel) = waiting else { return false };
        cancel.set_state(CancelState::Scheduled);
        cancel.requested_time_ns = now.as_nanos();
        true
    }

    /// The same for one that backs off.
    pub fn retry_cancel_if_due(&mut self, now: Timestamp) -> bool {
        let due = self.next_cancel_attempt().is_some_and(|at| at <= now);
        if let Some(cancel) = self.info.cancel.as_mut().filter(|_| due) {
            cancel.set_state(CancelState::Scheduled);
            cancel.next_attempt_ns = 0;
        }
        due
    }

    /// The call, if one is under way.
    #[allow(deprecated, reason = "older handlers read the operation id")]
    pub fn cancel_call(&self, key: &ChainKey) -> Option<WorkflowCall> {
        if !self.cancel_is_under_way() {
            return None;
        }
        let scheduled = self.scheduled();
        let cancel = CancelOperationRequest {
            service: scheduled.service.clone(),
            operation: scheduled.operation.clone(),
            operation_id: self.info.operation_token.clone(),
            operation_token: self.info.operation_token.clone(),
        };
        let deadline = [self.started_deadline(), self.close_deadline()].into_iter().flatten().min();
        let call = NexusCall {
            deadline_ns: deadline.map_or(0, Timestamp::as_nanos),
            ..self.call(key, request::Variant::CancelOperation(cancel))
        };
        Some(to_dispatcher(key, call))
    }

    /// Ends an attempt to cancel it.
    pub fn end_cancel_attempt(&mut self, outcome: &CancelOutcome, env: &Env) {
        let Some(cancel) = self.info.cancel.as_mut() else { return };
        let (state, failure) = match outcome {
            CancelOutcome::Sent => (CancelState::Succeeded, None),
            CancelOutcome::Refused(cause) => (CancelState::Failed, Some(cause.clone())),
            CancelOutcome::Again(cause) => (CancelState::BackingOff, Some(cause.clone())),
        };
        cancel.attempt += 1;
        cancel.last_attempt_complete_ns = env.now.as_nanos();
        cancel.last_attempt_failure = failure;
        cancel.set_state(state);
        cancel.next_attempt_ns =
            if state == CancelState::BackingOff { next_attempt_at(cancel.attempt, env).as_nanos() } else { 0 };
    }
}

/// What became of an attempt to start an operation.
#[derive(Debug, PartialEq)]
pub enum StartOutcome {
    Started {
        token: String,
        links: Vec<nexus::Link>,
    },
    Completed {
        result: Option<Payload>,
        links: Vec<nexus::Link>,
    },
    /// It has failed or was canceled, which the failure says, or no attempt can succeed.
    Ended(Failure),
    /// Another attempt may do better.
    Again(Failure),
}

impl StartOutcome {
    pub fn of(result: Result<WorkflowReply, Error>, limits: &Limits) -> Self {
        match attempt_outcome(result) {
            Ok(Outcome::Started(response)) => match response.variant {
                Some(Variant::SyncSuccess(sync)) => {
                    let size = sync.payload.as_ref().map_or(0, Message::encoded_len);
                    if size as i64 > limits.blob_size_error_bytes {
                        return Self::Ended(failure::call_error("http: response body too large".to_owned(), false));
                    }
                    Self::Completed { result: sync.payload, links: sync.links }
                }
                Some(Variant::AsyncSuccess(started)) => {
                    let (length, limit) = (started.operation_token.len(), limits.nexus_operation_token_length);
                    if length as i64 > limit {
                        let message =
                            format!("invalid operation token: length exceeds allowed limit ({length}/{limit})");
                        return Self::Ended(failure::call_error(message, false));
                    }
                    Self::Started { token: started.operation_token, links: started.links }
                }
                Some(Variant::Failure(cause)) => Self::Ended(cause),
                _ => Self::Again(failure::internal("empty outcome")),
            },
            Ok(Outcome::HandlerError(error)) if failure::is_retryable(&error) => Self::Again(*error),
            Ok(Outcome::HandlerError(error)) => Self::Ended(*error),
            Ok(Outcome::Canceled(_) | Outcome::Delivered(_)) => Self::Again(failure::internal("empty outcome")),
            Err(error) => Self::Again(*error),
        }
    }
}

/// What became of an attempt to have an operation canceled.
#[derive(Debug, PartialEq)]
pub enum CancelOutcome {
    /// What comes of it is the handler's to decide.
    Sent,
    Refused(Failure),
    Again(Failure),
}

impl CancelOutcome {
    pub fn of(result: Result<WorkflowReply, Error>) -> Self {
        match attempt_outcome(result) {
            Ok(Outcome::Canceled(_)) => Self::Sent,
            Ok(Outcome::HandlerError(error)) if failure::is_retryable(&error) => Self::Again(*error),
            Ok(Outcome::HandlerError(error)) => Self::Refused(*error),
            Ok(Outcome::Started(_) | Outcome::Delivered(_)) => Self::Again(failure::internal("empty outcome")),
            Err(error) => Self::Again(*error),
        }
    }
}

/// What the dispatcher says; the error is a failed attempt.
fn attempt_outcome(result: Result<WorkflowReply, Error>) -> Result<Outcome, Box<Failure>> {
    match result {
        Ok(WorkflowReply { reply: Some(workflow_reply::Reply::Nexus(reply)) }) => {
            reply.outcome.ok_or_else(|| Box::new(failure::internal("empty outcome")))
        }
        Ok(_) => Err(Box::new(failure::internal("empty outcome"))),
        Err(error) => Err(Box::new(failure::of_error(&error))),
    }
}

/// A call that no entity takes, but the node's dispatcher.
pub(crate) fn to_dispatcher(key: &ChainKey, call: NexusCall) -> WorkflowCall {
    WorkflowCall {
        namespace_id: key.namespace_id.to_string(),
        workflow_id: key.workflow_id.to_string(),
        kind: key.kind.number(),
        command: Some(Command::Nexus(Box::new(call))),
    }
}

/// As events show them.
pub fn common_links(links: &[nexus::Link]) -> Vec<Link> {
    links.iter().filter_map(links::from_nexus).collect()
}
