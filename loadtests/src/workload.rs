//! The workflows: what a workflow task means, as a function from its events and messages to commands.
//!
//! A run's progress is a few counts, which follow from its events. A worker keeps them between the tasks of a sticky queue;
//! a task with the full history makes them anew.

use bytes::Bytes;
use clap::ValueEnum;
use perdure_proto::temporal::api::command::v1::command::Attributes as CommandAttributes;
use perdure_proto::temporal::api::command::v1::{
    Command, CompleteWorkflowExecutionCommandAttributes, ProtocolMessageCommandAttributes,
    ScheduleActivityTaskCommandAttributes, StartChildWorkflowExecutionCommandAttributes, StartTimerCommandAttributes,
};
use perdure_proto::temporal::api::common::v1::{ActivityType, Payload, Payloads, WorkflowType};
use perdure_proto::temporal::api::enums::v1::CommandType;
use perdure_proto::temporal::api::history::v1::HistoryEvent;
use perdure_proto::temporal::api::history::v1::history_event::Attributes as EventAttributes;
use perdure_proto::temporal::api::protocol::v1::{Message, message::SequencingId};
use perdure_proto::temporal::api::taskqueue::v1::TaskQueue;
use perdure_proto::temporal::api::update::v1::{Acceptance, Outcome, Request, Response, outcome};
use perdure_proto::temporal::api::workflowservice::v1::PollWorkflowTaskQueueResponse;
use prost::Message as _;
use prost_types::{Any, Duration};

/// More than any activity here takes.
const ACTIVITY_TIMEOUT_SECONDS: i64 = 60;
const SLEEP: Duration = Duration { seconds: 30 * 24 * 3600, nanos: 0 };
const SHORT_TIMER: Duration = Duration { seconds: 0, nanos: 10_000_000 };
const BIG_PAYLOAD_BYTES: usize = 64 << 10;
/// Children, signals or updates of one workflow that has such.
pub const FAN: u32 = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// One activity, then the end
    OneActivity,
    /// Ten activities, each after the one before
    TenSequential,
    /// Five children at once, which end at their first task
    FanOutChildren,
    /// Five signals from a client, one after the other
    Signals,
    /// Five updates from a client, one after the other, each waited for
    Updates,
    /// Five timers of ten milliseconds, each after the one before
    Timers,
    /// One activity with 64 KiB to and from it
    BigPayloads,
    /// One after the other of those above
    Mixed,
    /// What a parent of `FanOutChildren` starts
    #[value(skip)]
    Child,
    /// One timer of thirty days: never closes, hence not a workload of `run`
    #[value(skip)]
    Sleeper,
}

/// What `Mixed` is made of.
const MIX: [Workload; 7] = [
    Workload::OneActivity,
    Workload::TenSequential,
    Workload::FanOutChildren,
    Workload::Signals,
    Workload::Updates,
    Workload::Timers,
    Workload::BigPayloads,
];

/// How far a run has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Activities, timers and children that were begun, and that have ended.
    begun: u32,
    ended: u32,
    /// Signals and updates.
    messages: u32,
}

/// What a worker answers.
#[derive(Default)]
pub struct Decision {
    pub commands: Vec<Command>,
    pub messages: Vec<Message>,
    /// The run closes with it.
    pub closes: bool,
}

/// What the commands need to know.
pub struct Settings {
    pub task_queue: String,
    pub eager_activities: bool,
}

impl Workload {
    /// Also the workflow type.
    pub fn name(self) -> &'static str {
        match self {
            Self::OneActivity => "one-activity",
            Self::TenSequential => "ten-sequential",
            Self::FanOutChildren => "fan-out-children",
            Self::Signals => "signals",
            Self::Updates => "updates",
            Self::Timers => "timers",
            Self::BigPayloads => "big-payloads",
            Self::Mixed => "mixed",
            Self::Child => "child",
            Self::Sleeper => "sleeper",
        }
    }

    /// Which workload workflow number `number` is of.
    pub fn of_number(self, number: u64) -> Self {
        match self {
            Self::Mixed => MIX[(number % MIX.len() as u64) as usize],
            other => other,
        }
    }

    fn of_type(name: &str) -> Option<Self> {
        MIX.into_iter().chain([Self::Child, Self::Sleeper]).find(|workload| workload.name() == name)
    }
}

/// What follows from a workflow task.
pub fn decide(task: &PollWorkflowTaskQueueResponse, progress: &mut Progress, settings: &Settings) -> Decision {
    let events = task.history.as_ref().map_or(&[][..], |history| &history.events);
    progress.apply(events);
    let kind = task.workflow_type.as_ref().and_then(|kind| Workload::of_type(&kind.name));
    let mut decision = Decision::default();
    match kind {
        Some(Workload::OneActivity) => decision.go_on(1, *progress, |step| activity(step, 0, settings)),
        Some(Workload::TenSequential) => decision.go_on(10, *progress, |step| activity(step, 0, settings)),
        Some(Workload::BigPayloads) => {
            decision.go_on(1, *progress, |step| activity(step, BIG_PAYLOAD_BYTES, settings));
        }
        Some(Workload::Timers) => decision.go_on(5, *progress, |step| timer(step, SHORT_TIMER)),
        Some(Workload::Sleeper) => decision.go_on(1, *progress, |step| timer(step, SLEEP)),
        Some(Workload::FanOutChildren) if progress.begun == 0 => {
            let parent = task.workflow_execution.as_ref().map_or("", |execution| &execution.workflow_id);
            decision.commands.extend((1..=FAN).map(|number| child(parent, number, settings)));
        }
        Some(Workload::FanOutChildren) => decision.close_if(progress.ended >= FAN),
        Some(Workload::Signals) => decision.close_if(progress.messages >= FAN),
        Some(Workload::Updates) => {
            decision.answer_updates(&task.messages);
            decision.close_if(progress.messages + task.messages.len() as u32 >= FAN);
        }
        Some(Workload::Child) => decision.close_if(true),
        Some(Workload::Mixed) | None => {}
    }
    decision
}

impl Progress {
    fn apply(&mut self, events: &[HistoryEvent]) {
        for event in events {
            match &event.attributes {
                Some(EventAttributes::WorkflowExecutionStartedEventAttributes(_)) => *self = Self::default(),
                Some(
                    EventAttributes::ActivityTaskScheduledEventAttributes(_)
                    | EventAttributes::TimerStartedEventAttributes(_)
                    | EventAttributes::StartChildWorkflowExecutionInitiatedEventAttributes(_),
                ) => self.begun += 1,
                Some(
                    EventAttributes::ActivityTaskCompletedEventAttributes(_)
                    | EventAttributes::TimerFiredEventAttributes(_)
                    | EventAttributes::ChildWorkflowExecutionCompletedEventAttributes(_),
                ) => self.ended += 1,
                Some(
                    EventAttributes::WorkflowExecutionSignaledEventAttributes(_)
                    | EventAttributes::WorkflowExecutionUpdateCompletedEventAttributes(_),
                ) => self.messages += 1,
                _ => {}
            }
        }
    }
}

impl Decision {
    /// The next of `steps` things in a row, or the end.
    fn go_on(&mut self, steps: u32, progress: Progress, make: impl Fn(u32) -> Command) {
        if progress.begun <= progress.ended && progress.ended < steps {
            self.commands.push(make(progress.ended + 1));
        }
        self.close_if(progress.ended >= steps);
    }

    fn close_if(&mut self, closes: bool) {
        if closes {
            self.closes = true;
            self.commands.push(complete_workflow());
        }
    }

    /// Accepts and completes each update, in this same answer.
    fn answer_updates(&mut self, requests: &[Message]) {
        for message in requests {
            let request: Option<Request> = message.body.as_ref().and_then(|body| Request::decode(&*body.value).ok());
            let Some(request) = request else { continue };
            let sequencing = match message.sequencing_id {
                Some(SequencingId::EventId(event_id)) => event_id,
                Some(SequencingId::CommandIndex(_)) | None => 0,
            };
            let meta = request.meta.clone();
            let acceptance = Acceptance {
                accepted_request_message_id: message.id.clone(),
                accepted_request_sequencing_event_id: sequencing,
                accepted_request: Some(request),
            };
            let success = Outcome { value: Some(outcome::Value::Success(Payloads::default())) };
            let response = Response { meta, outcome: Some(success) };
            self.send(message, "accept", pack("temporal.api.update.v1.Acceptance", &acceptance));
            self.send(message, "complete", pack("temporal.api.update.v1.Response", &response));
        }
    }

    /// A message, and the command that says when it takes effect.
    fn send(&mut self, to: &Message, what: &str, body: Any) {
        let id = format!("{}/{what}", to.id);
        let attributes = ProtocolMessageCommandAttributes { message_id: id.clone() };
        self.commands.push(Command {
            command_type: CommandType::ProtocolMessage as i32,
            attributes: Some(CommandAttributes::ProtocolMessageCommandAttributes(attributes)),
            ..Default::default()
        });
        self.messages.push(Message {
            id,
            protocol_instance_id: to.protocol_instance_id.clone(),
            body: Some(body),
            ..Default::default()
        });
    }
}

fn pack(name: &str, message: &impl prost::Message) -> Any {
    Any { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() }
}

/// Nothing, or one payload of so many bytes.
pub fn payloads(bytes: usize) -> Option<Payloads> {
    let payload = Payload { data: Bytes::from(vec![0x5a; bytes]), ..Default::default() };
    (bytes > 0).then(|| Payloads { payloads: vec![payload] })
}

/// An activity's id is its number. It answers with as much as it is given.
fn activity(step: u32, payload_bytes: usize, settings: &Settings) -> Command {
    let attributes = ScheduleActivityTaskCommandAttributes {
        activity_id: step.to_string(),
        activity_type: Some(ActivityType { name: "step".to_owned() }),
        task_queue: Some(TaskQueue { name: settings.task_queue.clone(), ..Default::default() }),
        start_to_close_timeout: Some(Duration { seconds: ACTIVITY_TIMEOUT_SECONDS, nanos: 0 }),
        input: payloads(payload_bytes),
        request_eager_execution: settings.eager_activities,
        ..Default::default()
    };
    Command {
        command_type: CommandType::ScheduleActivityTask as i32,
        attributes: Some(CommandAttributes::ScheduleActivityTaskCommandAttributes(attributes)),
        ..Default::default()
    }
}

fn timer(step: u32, duration: Duration) -> Command {
    let attributes = StartTimerCommandAttributes { timer_id: step.to_string(), start_to_fire_timeout: Some(duration) };
    Command {
        command_type: CommandType::StartTimer as i32,
        attributes: Some(CommandAttributes::StartTimerCommandAttributes(attributes)),
        ..Default::default()
    }
}

fn child(parent: &str, number: u32, settings: &Settings) -> Command {
    let attributes = StartChildWorkflowExecutionCommandAttributes {
        workflow_id: format!("{parent}-child-{number}"),
        workflow_type: Some(WorkflowType { name: Workload::Child.name().to_owned() }),
        task_queue: Some(TaskQueue { name: settings.task_queue.clone(), ..Default::default() }),
        ..Default::default()
    };
    Command {
        command_type: CommandType::StartChildWorkflowExecution as i32,
        attributes: Some(CommandAttributes::StartChildWorkflowExecutionCommandAttributes(attributes)),
        ..Default::default()
    }
}

fn complete_workflow() -> Command {
    let attributes = CompleteWorkflowExecutionCommandAttributes::default();
    Command {
        command_type: CommandType::CompleteWorkflowExecution as i32,
        attributes: Some(CommandAttributes::CompleteWorkflowExecutionCommandAttributes(attributes)),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use perdure_proto::temporal::api::history::v1::{
        ActivityTaskCompletedEventAttributes, ActivityTaskScheduledEventAttributes, History,
    };
    use perdure_proto::temporal::api::update::v1::Meta;

    use super::*;

    fn event(attributes: EventAttributes) -> HistoryEvent {
        HistoryEvent { attributes: Some(attributes), ..Default::default() }
    }

    fn started() -> HistoryEvent {
        event(EventAttributes::WorkflowExecutionStartedEventAttributes(Box::default()))
    }

    fn scheduled() -> HistoryEvent {
        event(EventAttributes::ActivityTaskScheduledEventAttributes(ActivityTaskScheduledEventAttributes::default()))
    }

    fn completed() -> HistoryEvent {
        event(EventAttributes::ActivityTaskCompletedEventAttributes(ActivityTaskCompletedEventAttributes::default()))
    }

    fn task(workload: Workload, events: &[HistoryEvent]) -> PollWorkflowTaskQueueResponse {
        PollWorkflowTaskQueueResponse {
            workflow_type: Some(WorkflowType { name: workload.name().to_owned() }),
            history: Some(History::new(events.to_vec())),
            ..Default::default()
        }
    }

    /// The activities that are scheduled; 0 for the workflow's completion.
    fn decision(workload: Workload, events: &[HistoryEvent], progress: &mut Progress) -> Vec<u32> {
        let settings = Settings { task_queue: "queue".to_owned(), eager_activities: false };
        let read = |command: Command| match command.attributes {
            Some(CommandAttributes::ScheduleActivityTaskCommandAttributes(attributes)) => {
                attributes.activity_id.parse().unwrap()
            }
            Some(CommandAttributes::CompleteWorkflowExecutionCommandAttributes(_)) => 0,
            other => panic!("{other:?}"),
        };
        decide(&task(workload, events), progress, &settings).commands.into_iter().map(read).collect()
    }

    #[test]
    fn decides_alike_from_a_full_and_from_a_sticky_history() {
        let full = [started(), scheduled(), completed(), scheduled(), completed()];
        assert_eq!(decision(Workload::TenSequential, &full, &mut Progress::default()), [3]);
        let mut progress = Progress { begun: 7, ended: 7, messages: 0 };
        assert_eq!(decision(Workload::TenSequential, &full, &mut progress), [3], "the full history counts");
        let mut progress = Progress::default();
        assert_eq!(decision(Workload::TenSequential, &full[..3], &mut progress), [2]);
        assert_eq!(decision(Workload::TenSequential, &full[3..], &mut progress), [3]);
    }

    #[test]
    fn begins_waits_and_ends() {
        let progress = || Progress::default();
        assert_eq!(decision(Workload::OneActivity, &[started()], &mut progress()), [1]);
        assert!(decision(Workload::OneActivity, &[started(), scheduled()], &mut progress()).is_empty());
        assert_eq!(decision(Workload::OneActivity, &[started(), scheduled(), completed()], &mut progress()), [0]);
        assert_eq!(decision(Workload::Child, &[started()], &mut progress()), [0]);
        assert!(decision(Workload::Signals, &[started()], &mut progress()).is_empty());
    }

    #[test]
    fn answers_each_update_and_ends_after_the_last() {
        let meta = Meta { update_id: "u".to_owned(), ..Default::default() };
        let request = Request { meta: Some(meta), ..Default::default() };
        let message = Message {
            id: "u/request".to_owned(),
            protocol_instance_id: "u".to_owned(),
            body: Some(pack("temporal.api.update.v1.Request", &request)),
            sequencing_id: Some(SequencingId::EventId(4)),
        };
        let settings = Settings { task_queue: "queue".to_owned(), eager_activities: false };
        let task = PollWorkflowTaskQueueResponse { messages: vec![message], ..task(Workload::Updates, &[]) };
        let mut progress = Progress { messages: FAN - 1, ..Progress::default() };
        let decision = decide(&task, &mut progress, &settings);
        assert_eq!((decision.messages.len(), decision.commands.len()), (2, 3));
        assert!(decision.closes && decision.messages.iter().all(|message| message.protocol_instance_id == "u"));
    }
}
