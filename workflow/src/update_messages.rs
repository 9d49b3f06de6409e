//! What a worker says about updates: the messages of a workflow task's completion, and the events that they become.

use std::collections::BTreeMap;

use perdure_proto::temporal::api::{
    command::v1::ProtocolMessageCommandAttributes,
    enums::v1::{EventType, WorkflowTaskFailedCause as Cause},
    history::v1::{
        HistoryEvent, WorkflowExecutionUpdateAcceptedEventAttributes, WorkflowExecutionUpdateCompletedEventAttributes,
        history_event::Attributes,
    },
    protocol::v1::Message,
    update::v1::{Acceptance, Rejection, Response},
};
use prost::Message as _;

use crate::{
    api::Env,
    command::{BadCommand, CommandContext, CommandResult},
    run::Run,
    update_callbacks::links_of,
};

/// The messages of one completion, taken one by one by its commands.
#[derive(Debug, Default)]
pub(crate) struct Messages {
    /// In the order of the request.
    by_index: BTreeMap<usize, Message>,
}

enum Body {
    Acceptance(Acceptance),
    Rejection(Rejection),
    Response(Response),
}

impl Messages {
    pub fn new(messages: Vec<Message>) -> Self {
        Self { by_index: messages.into_iter().enumerate().collect() }
    }

    /// Nothing but rejections: a speculative workflow task with these and no commands leaves no trace.
    pub fn only_rejections(&self) -> bool {
        self.by_index.values().all(|m| m.body.as_ref().is_some_and(|b| b.type_url.ends_with(".Rejection")))
    }

    fn take(&mut self, id: &str) -> Option<Message> {
        let index = self.by_index.iter().find(|(_, m)| m.id == id).map(|(index, _)| *index)?;
        self.by_index.remove(&index)
    }
}

fn bad(message: impl Into<String>) -> BadCommand {
    BadCommand::new(Cause::BadUpdateWorkflowExecutionMessage, message)
}

fn body_of(message: &Message) -> Result<Body, BadCommand> {
    let any = message.body.as_ref().ok_or_else(|| bad(format!("message {:?} has no body", message.id)))?;
    let bytes = any.value.as_slice();
    let kind = any.type_url.rsplit('/').next().unwrap_or_default();
    match kind {
        "temporal.api.update.v1.Acceptance" => Acceptance::decode(bytes).map(Body::Acceptance),
        "temporal.api.update.v1.Rejection" => Rejection::decode(bytes).map(Body::Rejection),
        "temporal.api.update.v1.Response" => Response::decode(bytes).map(Body::Response),
        other => return Err(bad(format!("message {:?} has an unknown body {other:?}", message.id))),
    }
    .map_err(|error| bad(format!("message {:?} does not decode: {error}", message.id)))
}

impl Run {
    /// A ProtocolMessage command: the place in the order of commands at which its message takes effect.
    pub(crate) fn protocol_message_command(
        &mut self,
        env: &mut Env,
        ctx: &CommandContext,
        messages: &mut Messages,
        attributes: ProtocolMessageCommandAttributes,
    ) -> CommandResult {
        let message = messages.take(&attributes.message_id).ok_or_else(|| {
            bad(format!("ProtocolMessageCommand referenced absent message ID {}", attributes.message_id))
        })?;
        self.handle_message(env, ctx, message)
    }

    /// Messages without a command (rejections), after all commands.
    pub(crate) fn remaining_messages(
        &mut self,
        env: &mut Env,
        ctx: &CommandContext,
        messages: Messages,
    ) -> CommandResult {
        messages.by_index.into_values().try_for_each(|message| self.handle_message(env, ctx, message))
    }

    fn handle_message(&mut self, env: &mut Env, ctx: &CommandContext, message: Message) -> CommandResult {
        let update_id = message.protocol_instance_id.clone();
        match body_of(&message)? {
            Body::Acceptance(acceptance) => self.accept_update(env, &update_id, acceptance),
            Body::Rejection(rejection) => {
                self.reject_update(&update_id, rejection.failure.unwrap_or_default(), env);
                Ok(())
            }
            Body::Response(response) => self.complete_update(env, ctx, &update_id, response),
        }
    }

    fn accept_update(&mut self, env: &Env, update_id: &str, acceptance: Acceptance) -> CommandResult {
        let admitted = self.updates.get(update_id).map(|update| (update.accepted_event_id, update.name.clone()));
        let (name, request, attachments) = match admitted {
            // The event that admitted it has the request.
            Some((0, name)) => (name, None, Vec::new()),
            Some(_) => return Err(bad(format!("update {update_id:?} was accepted before"))),
            None => {
                // After a change of owner the request is known from the acceptance only.
                let known = acceptance.accepted_request.map(|request| (request, Vec::new()));
                let known = self.admitted.edit().take(update_id).or(known);
                let (request, attachments) = known.ok_or_else(|| bad(format!("update {update_id:?} not found")))?;
                let name = request.input.as_ref().map(|input| input.name.clone()).unwrap_or_default();
                (name, Some(request), attachments)
            }
        };
        let attributes = WorkflowExecutionUpdateAcceptedEventAttributes {
            protocol_instance_id: update_id.to_owned(),
            accepted_request_message_id: acceptance.accepted_request_message_id,
            accepted_request_sequencing_event_id: acceptance.accepted_request_sequencing_event_id,
            accepted_request: request.clone(),
        };
        let mut links = request.as_ref().map(|request| request.links.clone()).unwrap_or_default();
        links.extend(request.as_ref().map(|request| links_of(&request.completion_callbacks)).unwrap_or_default());
        let attributes = Some(Attributes::WorkflowExecutionUpdateAcceptedEventAttributes(attributes));
        let event_id = self.add_prepared(env.now, HistoryEvent { links, attributes, ..HistoryEvent::default() });
        self.record_accepted_update(update_id, name, event_id);
        if let Some(request) = &request {
            let event = (EventType::WorkflowExecutionUpdateAccepted, event_id);
            self.take_update_request(update_id, request, event, env.now);
        }
        self.add_attachments(attachments, env);
        Ok(())
    }

    fn complete_update(
        &mut self,
        env: &Env,
        _ctx: &CommandContext,
        update_id: &str,
        response: Response,
    ) -> CommandResult {
        let accepted = self.updates.get(update_id).map(|u| u.accepted_event_id).filter(|id| *id != 0);
        let Some(accepted_event_id) = accepted else {
            return Err(bad(format!("update {update_id:?} was completed without being accepted")));
        };
        if self.updates.get(update_id).is_some_and(|u| u.completed_event_id != 0) {
            return Err(bad(format!("update {update_id:?} was completed before")));
        }
        let attributes = WorkflowExecutionUpdateCompletedEventAttributes {
            meta: response.meta,
            accepted_event_id,
            outcome: response.outcome.clone(),
        };
        let event_id = self.add_event(env.now, Attributes::WorkflowExecutionUpdateCompletedEventAttributes(attributes));
        if let Some(update) = self.updates.get_mut(&update_id.to_owned()) {
            update.completed_event_id = event_id;
            update.outcome = response.outcome;
        }
        self.call_back_about_update(update_id, env);
        Ok(())
    }
}
