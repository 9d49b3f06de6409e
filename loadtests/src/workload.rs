//! The workflows: what a workflow task's history means, as a pure function from events to commands.
//!
//! A decision needs no memory of earlier tasks: what has to be known about the past is in the ids of the commands, and the
//! events since the last task are always there. So a sticky task and a task with the full history are decided alike, and
//! the driver keeps nothing for a run.

use std::collections::HashMap;

use clap::ValueEnum;
use perdure_proto::temporal::api::command::v1::command::Attributes as CommandAttributes;
use perdure_proto::temporal::api::command::v1::{
    Command, CompleteWorkflowExecutionCommandAttributes, ScheduleActivityTaskCommandAttributes,
    StartTimerCommandAttributes,
};
use perdure_proto::temporal::api::common::v1::ActivityType;
use perdure_proto::temporal::api::enums::v1::CommandType;
use perdure_proto::temporal::api::history::v1::HistoryEvent;
use perdure_proto::temporal::api::history::v1::history_event::Attributes as EventAttributes;
use perdure_proto::temporal::api::taskqueue::v1::TaskQueue;
use prost_types::Duration;

/// More than any activity here takes.
const ACTIVITY_TIMEOUT_SECONDS: i64 = 60;
const SLEEP_SECONDS: i64 = 30 * 24 * 3600;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// One activity, then the end
    OneActivity,
    /// Ten activities, each after the one before
    TenSequential,
    /// One timer of thirty days: never closes, hence not a workload of `run`
    #[value(skip)]
    Sleeper,
}

impl Workload {
    pub fn name(self) -> &'static str {
        match self {
            Self::OneActivity => "one-activity",
            Self::TenSequential => "ten-sequential",
            Self::Sleeper => "sleeper",
        }
    }

    /// The commands that follow from a workflow task's events.
    pub fn decide(self, events: &[HistoryEvent], settings: &Settings) -> Vec<Command> {
        let steps = match self {
            Self::OneActivity => 1,
            Self::TenSequential => 10,
            Self::Sleeper => return vec![sleep()],
        };
        sequential(steps, events, settings)
    }
}

/// What the commands need to know.
pub struct Settings {
    pub task_queue: String,
    pub eager_activities: bool,
}

/// `steps` activities in a row. An activity's id is its number.
fn sequential(steps: u32, events: &[HistoryEvent], settings: &Settings) -> Vec<Command> {
    let mut scheduled = HashMap::new();
    let mut next = None;
    for event in events {
        match &event.attributes {
            Some(EventAttributes::WorkflowExecutionStartedEventAttributes(_)) => next = Some(1),
            Some(EventAttributes::ActivityTaskScheduledEventAttributes(activity)) => {
                scheduled.insert(event.event_id, activity.activity_id.parse::<u32>().unwrap_or(steps));
                next = None;
            }
            Some(EventAttributes::ActivityTaskCompletedEventAttributes(completed)) => {
                next = scheduled.get(&completed.scheduled_event_id).map(|step| step + 1);
            }
            _ => {}
        }
    }
    match next {
        Some(step) if step <= steps => vec![schedule_activity(step, settings)],
        Some(_) => vec![complete_workflow()],
        None => Vec::new(),
    }
}

fn schedule_activity(step: u32, settings: &Settings) -> Command {
    let attributes = ScheduleActivityTaskCommandAttributes {
        activity_id: step.to_string(),
        activity_type: Some(ActivityType { name: "step".to_owned() }),
        task_queue: Some(TaskQueue { name: settings.task_queue.clone(), ..Default::default() }),
        start_to_close_timeout: Some(Duration { seconds: ACTIVITY_TIMEOUT_SECONDS, nanos: 0 }),
        request_eager_execution: settings.eager_activities,
        ..Default::default()
    };
    Command {
        command_type: CommandType::ScheduleActivityTask as i32,
        attributes: Some(CommandAttributes::ScheduleActivityTaskCommandAttributes(attributes)),
        ..Default::default()
    }
}

fn sleep() -> Command {
    let attributes = StartTimerCommandAttributes {
        timer_id: "1".to_owned(),
        start_to_fire_timeout: Some(Duration { seconds: SLEEP_SECONDS, nanos: 0 }),
    };
    Command {
        command_type: CommandType::StartTimer as i32,
        attributes: Some(CommandAttributes::StartTimerCommandAttributes(attributes)),
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
        ActivityTaskCompletedEventAttributes, ActivityTaskScheduledEventAttributes,
    };

    use super::*;

    fn event(event_id: i64, attributes: EventAttributes) -> HistoryEvent {
        HistoryEvent { event_id, attributes: Some(attributes), ..Default::default() }
    }

    fn started() -> HistoryEvent {
        event(1, EventAttributes::WorkflowExecutionStartedEventAttributes(Box::default()))
    }

    fn scheduled(event_id: i64, step: u32) -> HistoryEvent {
        let attributes = ActivityTaskScheduledEventAttributes { activity_id: step.to_string(), ..Default::default() };
        event(event_id, EventAttributes::ActivityTaskScheduledEventAttributes(attributes))
    }

    fn completed(event_id: i64, scheduled_event_id: i64) -> HistoryEvent {
        let attributes = ActivityTaskCompletedEventAttributes { scheduled_event_id, ..Default::default() };
        event(event_id, EventAttributes::ActivityTaskCompletedEventAttributes(attributes))
    }

    /// The step that is scheduled next; 0 for the workflow's completion.
    fn decision(workload: Workload, events: &[HistoryEvent]) -> Option<u32> {
        let settings = Settings { task_queue: "queue".to_owned(), eager_activities: false };
        let commands = workload.decide(events, &settings);
        assert!(commands.len() <= 1);
        commands.into_iter().find_map(|command| match command.attributes {
            Some(CommandAttributes::ScheduleActivityTaskCommandAttributes(attributes)) => {
                attributes.activity_id.parse().ok()
            }
            Some(CommandAttributes::CompleteWorkflowExecutionCommandAttributes(_)) => Some(0),
            _ => None,
        })
    }

    #[test]
    fn decides_alike_from_a_full_and_from_a_sticky_history() {
        let full = [started(), scheduled(5, 1), completed(7, 5), scheduled(11, 2), completed(13, 11)];
        for events in [&full[..], &full[3..]] {
            assert_eq!(decision(Workload::TenSequential, events), Some(3));
        }
    }

    #[test]
    fn begins_waits_and_ends() {
        assert_eq!(decision(Workload::OneActivity, &[started()]), Some(1));
        assert_eq!(decision(Workload::OneActivity, &[started(), scheduled(5, 1)]), None);
        assert_eq!(decision(Workload::OneActivity, &[scheduled(5, 1), completed(7, 5)]), Some(0));
        assert_eq!(decision(Workload::TenSequential, &[scheduled(59, 10), completed(61, 59)]), Some(0));
    }
}
