//! What an event of a history says, in a line and in full.

use perdure_proto::temporal::api::{
    enums::v1::EventType,
    failure::v1::Failure,
    history::v1::{HistoryEvent, history_event::Attributes as A},
    update::v1::outcome::Value,
};

use crate::{format, payload};

/// Whether an event is about something that went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Plain,
    Good,
    Bad,
}

/// An event, as the list of events shows it.
pub struct Line {
    pub name: String,
    /// What it is about: a type, a name, an id.
    pub about: String,
    /// Name and text, perhaps of several lines.
    pub details: Vec<(&'static str, String)>,
    pub tone: Tone,
}

/// "EVENT_TYPE_ACTIVITY_TASK_SCHEDULED" as "Activity task scheduled".
fn name_of(event: &HistoryEvent) -> String {
    let name = format::plain(event.event_type().as_str_name(), "EVENT_TYPE_");
    let mut letters = name.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

pub fn line(event: &HistoryEvent) -> Line {
    let about = about(event).unwrap_or_default();
    Line { name: name_of(event), about, details: details(event), tone: tone(event.event_type()) }
}

fn tone(kind: EventType) -> Tone {
    use EventType as T;
    match kind {
        T::WorkflowExecutionCompleted | T::ActivityTaskCompleted | T::ChildWorkflowExecutionCompleted => Tone::Good,
        T::NexusOperationCompleted | T::WorkflowExecutionUpdateCompleted => Tone::Good,
        T::WorkflowExecutionFailed
        | T::WorkflowExecutionTimedOut
        | T::WorkflowExecutionTerminated
        | T::WorkflowTaskFailed
        | T::WorkflowTaskTimedOut
        | T::ActivityTaskFailed
        | T::ActivityTaskTimedOut
        | T::StartChildWorkflowExecutionFailed
        | T::ChildWorkflowExecutionFailed
        | T::ChildWorkflowExecutionTimedOut
        | T::ChildWorkflowExecutionTerminated
        | T::SignalExternalWorkflowExecutionFailed
        | T::RequestCancelExternalWorkflowExecutionFailed
        | T::NexusOperationFailed
        | T::NexusOperationTimedOut => Tone::Bad,
        _ => Tone::Plain,
    }
}

fn about(event: &HistoryEvent) -> Option<String> {
    Some(match event.attributes.as_ref()? {
        A::WorkflowExecutionStartedEventAttributes(a) => a.workflow_type.as_ref()?.name.clone(),
        A::WorkflowTaskScheduledEventAttributes(a) => a.task_queue.as_ref()?.name.clone(),
        A::WorkflowTaskStartedEventAttributes(a) => a.identity.clone(),
        A::WorkflowTaskCompletedEventAttributes(a) => a.identity.clone(),
        A::WorkflowTaskFailedEventAttributes(a) => a.failure.as_ref()?.message.clone(),
        A::ActivityTaskScheduledEventAttributes(a) => a.activity_type.as_ref()?.name.clone(),
        A::ActivityTaskStartedEventAttributes(a) => format!("attempt {}, {}", a.attempt, a.identity),
        A::ActivityTaskCompletedEventAttributes(a) => a.identity.clone(),
        A::ActivityTaskFailedEventAttributes(a) => a.failure.as_ref()?.message.clone(),
        A::ActivityTaskTimedOutEventAttributes(a) => a.failure.as_ref()?.message.clone(),
        A::TimerStartedEventAttributes(a) => {
            let length = a.start_to_fire_timeout.as_ref();
            let ns = perdure_types::Duration::from_proto(length).0;
            format!("{}, {}", a.timer_id, format::span(ns))
        }
        A::TimerFiredEventAttributes(a) => a.timer_id.clone(),
        A::TimerCanceledEventAttributes(a) => a.timer_id.clone(),
        A::MarkerRecordedEventAttributes(a) => a.marker_name.clone(),
        A::WorkflowExecutionSignaledEventAttributes(a) => a.signal_name.clone(),
        A::WorkflowExecutionTerminatedEventAttributes(a) => a.reason.clone(),
        A::WorkflowExecutionCancelRequestedEventAttributes(a) => a.cause.clone(),
        A::WorkflowExecutionFailedEventAttributes(a) => a.failure.as_ref()?.message.clone(),
        A::WorkflowExecutionContinuedAsNewEventAttributes(a) => a.new_execution_run_id.clone(),
        A::StartChildWorkflowExecutionInitiatedEventAttributes(a) => {
            format!("{}, {}", a.workflow_type.as_ref()?.name, a.workflow_id)
        }
        A::ChildWorkflowExecutionStartedEventAttributes(a) => a.workflow_execution.as_ref()?.workflow_id.clone(),
        A::ChildWorkflowExecutionCompletedEventAttributes(a) => a.workflow_execution.as_ref()?.workflow_id.clone(),
        A::ChildWorkflowExecutionFailedEventAttributes(a) => a.failure.as_ref()?.message.clone(),
        A::SignalExternalWorkflowExecutionInitiatedEventAttributes(a) => a.signal_name.clone(),
        A::WorkflowExecutionUpdateAcceptedEventAttributes(a) => {
            a.accepted_request.as_ref()?.input.as_ref()?.name.clone()
        }
        A::NexusOperationScheduledEventAttributes(a) => format!("{}, {}.{}", a.endpoint, a.service, a.operation),
        A::NexusOperationFailedEventAttributes(a) => a.failure.as_ref()?.message.clone(),
        _ => return None,
    })
}

fn details(event: &HistoryEvent) -> Vec<(&'static str, String)> {
    let mut details = Vec::new();
    let mut add =
        |name, text: Option<String>| details.extend(text.filter(|text| !text.is_empty()).map(|text| (name, text)));
    let failed = |failure: Option<&Failure>| failure.map(payload::failure);
    match event.attributes.as_ref() {
        Some(A::WorkflowExecutionStartedEventAttributes(a)) => add("Input", payload::all(a.input.as_ref())),
        Some(A::WorkflowExecutionCompletedEventAttributes(a)) => add("Result", payload::all(a.result.as_ref())),
        Some(A::WorkflowExecutionFailedEventAttributes(a)) => add("Failure", failed(a.failure.as_ref())),
        Some(A::WorkflowExecutionCanceledEventAttributes(a)) => add("Details", payload::all(a.details.as_ref())),
        Some(A::WorkflowExecutionTerminatedEventAttributes(a)) => {
            add("By", Some(a.identity.clone()));
            add("Details", payload::all(a.details.as_ref()));
        }
        Some(A::WorkflowExecutionContinuedAsNewEventAttributes(a)) => add("Input", payload::all(a.input.as_ref())),
        Some(A::WorkflowTaskFailedEventAttributes(a)) => add("Failure", failed(a.failure.as_ref())),
        Some(A::ActivityTaskScheduledEventAttributes(a)) => {
            add("Activity id", Some(a.activity_id.clone()));
            add("Task queue", a.task_queue.as_ref().map(|queue| queue.name.clone()));
            add("Input", payload::all(a.input.as_ref()));
        }
        Some(A::ActivityTaskStartedEventAttributes(a)) => add("Last failure", failed(a.last_failure.as_ref())),
        Some(A::ActivityTaskCompletedEventAttributes(a)) => add("Result", payload::all(a.result.as_ref())),
        Some(A::ActivityTaskFailedEventAttributes(a)) => add("Failure", failed(a.failure.as_ref())),
        Some(A::ActivityTaskTimedOutEventAttributes(a)) => add("Failure", failed(a.failure.as_ref())),
        Some(A::ActivityTaskCanceledEventAttributes(a)) => add("Details", payload::all(a.details.as_ref())),
        Some(A::WorkflowExecutionSignaledEventAttributes(a)) => {
            add("By", Some(a.identity.clone()));
            add("Input", payload::all(a.input.as_ref()));
        }
        Some(A::StartChildWorkflowExecutionInitiatedEventAttributes(a)) => add("Input", payload::all(a.input.as_ref())),
        Some(A::ChildWorkflowExecutionCompletedEventAttributes(a)) => add("Result", payload::all(a.result.as_ref())),
        Some(A::ChildWorkflowExecutionFailedEventAttributes(a)) => add("Failure", failed(a.failure.as_ref())),
        Some(A::WorkflowExecutionUpdateAcceptedEventAttributes(a)) => {
            let input = a.accepted_request.as_ref().and_then(|request| request.input.as_ref());
            add("Input", input.and_then(|input| payload::all(input.args.as_ref())));
        }
        Some(A::WorkflowExecutionUpdateCompletedEventAttributes(a)) => {
            match a.outcome.as_ref().and_then(|outcome| outcome.value.as_ref()) {
                Some(Value::Success(result)) => add("Result", payload::all(Some(result))),
                Some(Value::Failure(failure)) => add("Failure", failed(Some(failure))),
                None => {}
            }
        }
        Some(A::NexusOperationScheduledEventAttributes(a)) => add("Input", a.input.as_ref().map(payload::one)),
        Some(A::NexusOperationCompletedEventAttributes(a)) => add("Result", a.result.as_ref().map(payload::one)),
        Some(A::NexusOperationFailedEventAttributes(a)) => add("Failure", failed(a.failure.as_ref())),
        _ => {}
    }
    details
}

#[cfg(test)]
mod tests {
    use perdure_proto::temporal::api::history::v1::ActivityTaskFailedEventAttributes;

    use super::*;

    #[test]
    fn an_event_says_what_it_is_and_what_went_wrong() {
        let cause = Failure { message: "no money".into(), ..Failure::default() };
        let failure = Failure { message: "charge".into(), cause: Some(Box::new(cause)), ..Failure::default() };
        let failed = ActivityTaskFailedEventAttributes { failure: Some(failure), ..Default::default() };
        let event = HistoryEvent {
            event_type: EventType::ActivityTaskFailed as i32,
            attributes: Some(A::ActivityTaskFailedEventAttributes(failed)),
            ..HistoryEvent::default()
        };
        let line = line(&event);
        assert_eq!((line.name.as_str(), line.about.as_str(), line.tone), ("Activity task failed", "charge", Tone::Bad));
        assert_eq!(line.details, [("Failure", "charge\ncaused by: no money".to_owned())]);
    }

    #[test]
    fn an_event_of_an_unknown_kind_is_shown_too() {
        let line = line(&HistoryEvent { event_type: 9_999, ..HistoryEvent::default() });
        assert_eq!((line.name.as_str(), line.about.as_str()), ("Unspecified", ""));
    }
}
