//! The workflow of a chaos run, as a function from a workflow task to commands.
//!
//! It goes through numbered steps, one after the other: activities, and now and then a timer. After so many steps it
//! continues as a new run, after the last it completes. The number of a step is the id of its activity or timer, and the
//! activity's result repeats it, so that a decision needs the events since the last workflow task only. Updates are
//! accepted and answered with their own argument.

use perdure_proto::temporal::api::command::v1::command::Attributes;
use perdure_proto::temporal::api::command::v1::{
    Command, CompleteWorkflowExecutionCommandAttributes, ContinueAsNewWorkflowExecutionCommandAttributes,
    ProtocolMessageCommandAttributes, ScheduleActivityTaskCommandAttributes, StartTimerCommandAttributes,
};
use perdure_proto::temporal::api::common::v1::{ActivityType, Payload, Payloads, WorkflowType};
use perdure_proto::temporal::api::enums::v1::CommandType;
use perdure_proto::temporal::api::history::v1::history_event::Attributes as EventAttributes;
use perdure_proto::temporal::api::protocol::v1::{Message, message::SequencingId};
use perdure_proto::temporal::api::taskqueue::v1::TaskQueue;
use perdure_proto::temporal::api::update::v1::{Acceptance, Meta, Outcome, Request, Response, outcome};
use perdure_proto::temporal::api::workflowservice::v1::PollWorkflowTaskQueueResponse;
use prost::Message as _;
use prost_types::{Any, Duration};

/// Every fifth step is a timer.
const TIMER_EVERY: u64 = 5;
pub const TIMER: std::time::Duration = std::time::Duration::from_millis(300);
const TYPES: &str = "type.googleapis.com/temporal.api.update.v1.";

#[derive(Clone, Debug)]
pub struct Script {
    pub task_queue: String,
    pub workflow_type: String,
    pub steps: u64,
    pub steps_per_run: u64,
    /// An activity whose answer is lost is tried again after this.
    pub activity_timeout_seconds: i64,
}

/// What to answer to a workflow task.
#[derive(Default)]
pub struct Decision {
    pub commands: Vec<Command>,
    pub messages: Vec<Message>,
    /// The step that it starts; none if it only answers updates, or if there is no further step.
    pub step: Option<Step>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Activity,
    Timer,
    /// A new run begins.
    NewRun,
}

pub fn is_timer(step: u64) -> bool {
    step % TIMER_EVERY == TIMER_EVERY - 1
}

impl Script {
    pub fn decide(&self, task: &PollWorkflowTaskQueueResponse) -> Decision {
        let mut decision = Decision::default();
        for message in &task.messages {
            answer_update(message, &mut decision);
        }
        let events = task.history.as_ref().map_or(&[][..], |history| &history.events);
        let mut next = None;
        for event in events.iter().filter(|event| event.event_id > task.previous_started_event_id) {
            match &event.attributes {
                Some(EventAttributes::WorkflowExecutionStartedEventAttributes(started)) => {
                    next = Some((number(started.input.as_ref()).unwrap_or(0), true));
                }
                Some(EventAttributes::ActivityTaskCompletedEventAttributes(completed)) => {
                    next = activity_result(completed.result.as_ref()).map(|(step, _)| (step + 1, false));
                }
                Some(EventAttributes::TimerFiredEventAttributes(fired)) => {
                    next = fired.timer_id.parse::<u64>().ok().map(|step| (step + 1, false));
                }
                _ => {}
            }
        }
        if let Some((step, is_first)) = next {
            let (command, step) = self.begin(step, is_first);
            decision.commands.push(command);
            decision.step = step;
        }
        decision
    }

    fn begin(&self, step: u64, is_first: bool) -> (Command, Option<Step>) {
        if step >= self.steps {
            let attributes = CompleteWorkflowExecutionCommandAttributes { result: Some(payloads(&step.to_string())) };
            let attributes = Attributes::CompleteWorkflowExecutionCommandAttributes(attributes);
            return (command(CommandType::CompleteWorkflowExecution, attributes), None);
        }
        if !is_first && step.is_multiple_of(self.steps_per_run) {
            return (self.continue_as_new(step), Some(Step::NewRun));
        }
        if is_timer(step) {
            let attributes = StartTimerCommandAttributes {
                timer_id: step.to_string(),
                start_to_fire_timeout: Duration::try_from(TIMER).ok(),
            };
            let attributes = Attributes::StartTimerCommandAttributes(attributes);
            return (command(CommandType::StartTimer, attributes), Some(Step::Timer));
        }
        let attributes = ScheduleActivityTaskCommandAttributes {
            activity_id: step.to_string(),
            activity_type: Some(ActivityType { name: "step".to_owned() }),
            task_queue: Some(self.queue()),
            start_to_close_timeout: Some(Duration { seconds: self.activity_timeout_seconds, nanos: 0 }),
            ..Default::default()
        };
        let attributes = Attributes::ScheduleActivityTaskCommandAttributes(attributes);
        (command(CommandType::ScheduleActivityTask, attributes), Some(Step::Activity))
    }

    fn continue_as_new(&self, step: u64) -> Command {
        let attributes = ContinueAsNewWorkflowExecutionCommandAttributes {
            workflow_type: Some(WorkflowType { name: self.workflow_type.clone() }),
            task_queue: Some(self.queue()),
            input: Some(payloads(&step.to_string())),
            workflow_task_timeout: Some(Duration { seconds: 10, nanos: 0 }),
            ..Default::default()
        };
        let attributes = Attributes::ContinueAsNewWorkflowExecutionCommandAttributes(attributes);
        command(CommandType::ContinueAsNewWorkflowExecution, attributes)
    }

    fn queue(&self) -> TaskQueue {
        TaskQueue { name: self.task_queue.clone(), ..Default::default() }
    }
}

/// Accepts an update, and completes it at once with its argument.
fn answer_update(message: &Message, decision: &mut Decision) {
    let Some(request) = message.body.as_ref().and_then(|body| Request::decode(&body.value[..]).ok()) else { return };
    let update_id = message.protocol_instance_id.clone();
    let sequencing = match message.sequencing_id {
        Some(SequencingId::EventId(event_id)) => event_id,
        Some(SequencingId::CommandIndex(_)) | None => 0,
    };
    let argument = request.input.as_ref().and_then(|input| input.args.clone()).unwrap_or_default();
    let accepted = Acceptance {
        accepted_request_message_id: message.id.clone(),
        accepted_request_sequencing_event_id: sequencing,
        accepted_request: Some(request.clone()),
    };
    let completed = Response {
        meta: Some(Meta { update_id: update_id.clone(), ..request.meta.unwrap_or_default() }),
        outcome: Some(Outcome { value: Some(outcome::Value::Success(argument)) }),
    };
    let bodies = [("Acceptance", accepted.encode_to_vec()), ("Response", completed.encode_to_vec())];
    for (name, value) in bodies {
        let id = format!("{update_id}/{name}");
        let attributes = ProtocolMessageCommandAttributes { message_id: id.clone() };
        let attributes = Attributes::ProtocolMessageCommandAttributes(attributes);
        decision.commands.push(command(CommandType::ProtocolMessage, attributes));
        decision.messages.push(Message {
            id,
            protocol_instance_id: update_id.clone(),
            body: Some(Any { type_url: format!("{TYPES}{name}"), value }),
            sequencing_id: None,
        });
    }
}

fn command(command_type: CommandType, attributes: Attributes) -> Command {
    Command { command_type: command_type as i32, attributes: Some(attributes), ..Default::default() }
}

/// One payload of plain text.
pub fn payloads(text: &str) -> Payloads {
    let metadata = [("encoding".to_owned(), "binary/plain".into())].into_iter().collect();
    Payloads { payloads: vec![Payload { metadata, data: text.to_owned().into(), ..Default::default() }] }
}

fn text(payloads: Option<&Payloads>) -> Option<&str> {
    std::str::from_utf8(&payloads?.payloads.first()?.data).ok()
}

pub fn number(payloads: Option<&Payloads>) -> Option<u64> {
    text(payloads)?.parse().ok()
}

/// The step, and the number of the result.
pub fn activity_result(payloads: Option<&Payloads>) -> Option<(u64, u64)> {
    let (step, result) = text(payloads)?.split_once(' ')?;
    Some((step.parse().ok()?, result.parse().ok()?))
}
