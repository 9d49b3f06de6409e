//! Nexus operations, and what handlers say.

use perdure_proto::{
    Error,
    perdure::{
        nexus::v1::{
            CallbackToken, NexusCall, NexusCompletion, NexusReply, nexus_call, nexus_completion, nexus_reply::Outcome,
        },
        node::v1::{WorkflowReply, workflow_call, workflow_reply},
    },
    temporal::api::{
        command::v1::{
            Command, RequestCancelNexusOperationCommandAttributes, ScheduleNexusOperationCommandAttributes,
            command::Attributes,
        },
        common::v1::Payload,
        enums::v1::CommandType,
        failure::v1::{CanceledFailureInfo, Failure, NexusHandlerFailureInfo, failure::FailureInfo},
        nexus::v1::{
            CancelOperationRequest, CancelOperationResponse, StartOperationRequest, StartOperationResponse, request,
            start_operation_response::{Async, Sync, Variant},
        },
    },
};
use perdure_types::Duration;
use perdure_workflow::{CallId, CallKind};

use super::TestChain;

pub const ENDPOINT: &str = "endpoint";

pub fn schedule() -> Command {
    schedule_with(|_| {})
}

pub fn schedule_with(change: impl FnOnce(&mut ScheduleNexusOperationCommandAttributes)) -> Command {
    let mut attributes = ScheduleNexusOperationCommandAttributes {
        endpoint: ENDPOINT.to_owned(),
        service: "service".to_owned(),
        operation: "operation".to_owned(),
        input: Some(payload("input")),
        ..ScheduleNexusOperationCommandAttributes::default()
    };
    change(&mut attributes);
    Command {
        command_type: CommandType::ScheduleNexusOperation as i32,
        attributes: Some(Attributes::ScheduleNexusOperationCommandAttributes(attributes)),
        ..Command::default()
    }
}

pub fn cancel(scheduled_event_id: i64) -> Command {
    let attributes = RequestCancelNexusOperationCommandAttributes { scheduled_event_id };
    Command {
        command_type: CommandType::RequestCancelNexusOperation as i32,
        attributes: Some(Attributes::RequestCancelNexusOperationCommandAttributes(attributes)),
        ..Command::default()
    }
}

pub fn payload(text: &str) -> Payload {
    Payload { data: text.to_owned().into(), ..Payload::default() }
}

pub fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(Duration::from_secs(seconds).to_proto())
}

pub fn sync(text: &str) -> Outcome {
    started(Variant::SyncSuccess(Sync { payload: Some(payload(text)), ..Sync::default() }))
}

pub fn asynchronous(token: &str) -> Outcome {
    started(Variant::AsyncSuccess(Async { operation_token: token.to_owned(), ..Async::default() }))
}

pub fn operation_failed(message: &str) -> Outcome {
    started(Variant::Failure(failure(message)))
}

pub fn started(variant: Variant) -> Outcome {
    Outcome::Started(StartOperationResponse { variant: Some(variant) })
}

pub fn cancel_taken() -> Outcome {
    Outcome::Canceled(CancelOperationResponse::default())
}

pub fn handler_error(kind: &str) -> Outcome {
    Outcome::HandlerError(Box::new(Failure {
        message: "handler error".to_owned(),
        failure_info: Some(FailureInfo::NexusHandlerFailureInfo(NexusHandlerFailureInfo {
            r#type: kind.to_owned(),
            ..NexusHandlerFailureInfo::default()
        })),
        ..Failure::default()
    }))
}

pub fn failure(message: &str) -> Failure {
    Failure { message: message.to_owned(), ..super::application_failure("Type") }
}

pub fn canceled() -> Failure {
    Failure {
        message: "canceled".to_owned(),
        failure_info: Some(FailureInfo::CanceledFailureInfo(CanceledFailureInfo::default())),
        ..Failure::default()
    }
}

pub fn reply(outcome: Outcome) -> WorkflowReply {
    WorkflowReply { reply: Some(workflow_reply::Reply::Nexus(Box::new(NexusReply { outcome: Some(outcome) }))) }
}

/// What a completion says of the operation that a request was to start.
pub fn ended(token: CallbackToken, outcome: nexus_completion::Outcome) -> NexusCompletion {
    NexusCompletion {
        token: Some(token),
        operation_token: "token".to_owned(),
        outcome: Some(outcome),
        ..NexusCompletion::default()
    }
}

pub fn start_of(call: &NexusCall) -> &StartOperationRequest {
    match &call.call {
        Some(nexus_call::Call::Request(request)) => match &request.variant {
            Some(request::Variant::StartOperation(start)) => start,
            other => panic!("no start: {other:?}"),
        },
        other => panic!("no request: {other:?}"),
    }
}

pub fn cancel_of(call: &NexusCall) -> &CancelOperationRequest {
    match &call.call {
        Some(nexus_call::Call::Request(request)) => match &request.variant {
            Some(request::Variant::CancelOperation(cancel)) => cancel,
            other => panic!("no cancel: {other:?}"),
        },
        other => panic!("no request: {other:?}"),
    }
}

/// The token that the handler of a request sends its completion with.
pub fn token_of(call: &NexusCall) -> CallbackToken {
    let header = &start_of(call).callback_header;
    let (_, text) =
        header.iter().find(|(name, _)| name.eq_ignore_ascii_case(perdure_proto::nexus_token::HEADER)).expect("a token");
    perdure_proto::nexus_token::decode(text).expect("of ours")
}

impl TestChain {
    /// Takes the oldest call of a kind to the dispatcher.
    pub fn take_nexus_call(&mut self, kind: CallKind) -> (CallId, NexusCall) {
        let index = self.calls.iter().position(|(id, _)| id.kind == kind);
        let (id, call) = self.calls.remove(index.expect("a call of this kind"));
        match call.command {
            Some(workflow_call::Command::Nexus(call)) => (id, *call),
            other => panic!("not for the dispatcher: {other:?}"),
        }
    }

    /// Answers the attempt under way; gives the call.
    pub fn answer_nexus(&mut self, kind: CallKind, outcome: Outcome) -> NexusCall {
        let (id, call) = self.take_nexus_call(kind);
        self.on_call_result(&id, Ok(reply(outcome)));
        call
    }

    pub fn answer_start(&mut self, outcome: Outcome) -> NexusCall {
        self.answer_nexus(CallKind::StartNexusOperation, outcome)
    }

    pub fn try_nexus_completion(&mut self, completion: NexusCompletion) -> Result<(), Error> {
        self.try_call(workflow_call::Command::NexusCompletion(Box::new(completion))).map(drop)
    }
}
