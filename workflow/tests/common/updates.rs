//! Updates, as clients send them and workers answer them.

use perdure_proto::{
    Error,
    perdure::node::v1::workflow_call,
    temporal::api::{
        command::v1::{Command, ProtocolMessageCommandAttributes, command::Attributes},
        common::v1::WorkflowExecution,
        enums::v1::CommandType,
        protocol::v1::Message,
        update::v1::{Acceptance, Input, Meta, Outcome, Rejection, Request, Response, outcome::Value},
        workflowservice::v1::{RespondWorkflowTaskCompletedRequest, UpdateWorkflowExecutionRequest},
    },
};
use perdure_workflow::Answer;

use super::{NAMESPACE, TestChain, WORKFLOW_ID, WorkflowTask, application_failure, completion, payloads};

fn request(update_id: &str) -> Request {
    Request {
        meta: Some(Meta { update_id: update_id.to_owned(), ..Meta::default() }),
        input: Some(Input { name: "approve".to_owned(), ..Input::default() }),
        ..Request::default()
    }
}

pub fn try_update(chain: &mut TestChain, update_id: &str) -> Result<Answer, Error> {
    chain.try_handle(workflow_call::Command::Update(UpdateWorkflowExecutionRequest {
        namespace: NAMESPACE.to_owned(),
        workflow_execution: Some(WorkflowExecution {
            workflow_id: WORKFLOW_ID.to_owned(),
            ..WorkflowExecution::default()
        }),
        request: Some(request(update_id)),
        ..UpdateWorkflowExecutionRequest::default()
    }))
}

pub fn update(chain: &mut TestChain, update_id: &str) {
    let answer = try_update(chain, update_id).expect("admitted");
    assert!(matches!(answer, Answer::Watch(_)));
}

fn message<M: prost::Message>(sent: &Message, name: &str, body: &M) -> Message {
    Message {
        id: format!("{name}-{}", sent.protocol_instance_id),
        protocol_instance_id: sent.protocol_instance_id.clone(),
        body: Some(prost_types::Any {
            type_url: format!("type.googleapis.com/temporal.api.update.v1.{name}"),
            value: body.encode_to_vec(),
        }),
        ..Message::default()
    }
}

/// The worker's validator refuses the update that came as this message.
pub fn rejection(sent: &Message) -> Message {
    let body = Rejection {
        rejected_request_message_id: sent.id.clone(),
        rejected_request: Some(request(&sent.protocol_instance_id)),
        failure: Some(application_failure("No")),
        ..Rejection::default()
    };
    message(sent, "Rejection", &body)
}

/// The worker accepts it: a message, and the command that says where it stands.
pub fn acceptance(task: &WorkflowTask, sent: &Message) -> (Message, Command) {
    let body = Acceptance {
        accepted_request: Some(request(&sent.protocol_instance_id)),
        accepted_request_sequencing_event_id: task.response.started_event_id - 1,
        accepted_request_message_id: sent.id.clone(),
    };
    let message = message(sent, "Acceptance", &body);
    let command = protocol_message(&message);
    (message, command)
}

fn protocol_message(message: &Message) -> Command {
    let attributes = ProtocolMessageCommandAttributes { message_id: message.id.clone() };
    Command {
        command_type: CommandType::ProtocolMessage as i32,
        attributes: Some(Attributes::ProtocolMessageCommandAttributes(attributes)),
        ..Command::default()
    }
}

pub fn success() -> Outcome {
    Outcome { value: Some(Value::Success(payloads("done"))) }
}

/// The worker completes an update that it has accepted.
pub fn response(update_id: &str) -> (Message, Command) {
    let sent = Message { protocol_instance_id: update_id.to_owned(), ..Message::default() };
    let body = Response { meta: request(update_id).meta, outcome: Some(success()) };
    let message = message(&sent, "Response", &body);
    let command = protocol_message(&message);
    (message, command)
}

/// Rejects all updates that came with the task.
pub fn rejecting(task: &WorkflowTask) -> RespondWorkflowTaskCompletedRequest {
    RespondWorkflowTaskCompletedRequest {
        messages: task.response.messages.iter().map(rejection).collect(),
        ..completion(task, vec![])
    }
}

/// Accepts all updates that came with the task, then does `more`.
pub fn accepting(task: &WorkflowTask, more: Vec<Command>) -> RespondWorkflowTaskCompletedRequest {
    let sent = task.response.messages.iter();
    let (messages, mut commands): (Vec<_>, Vec<_>) = sent.map(|sent| acceptance(task, sent)).unzip();
    commands.extend(more);
    RespondWorkflowTaskCompletedRequest { messages, ..completion(task, commands) }
}

/// A run that waits: history ends with WorkflowTaskCompleted, event 4.
pub fn waiting() -> TestChain {
    let mut chain = TestChain::started();
    chain.work(vec![]);
    chain
}
