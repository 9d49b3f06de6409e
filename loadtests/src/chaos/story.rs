//! What the server says happened: the second half of what the checker reads. A run's history, cut down to what is checked.

use perdure_proto::temporal::api::history::v1::HistoryEvent;
use perdure_proto::temporal::api::history::v1::history_event::Attributes;
use perdure_proto::temporal::api::update::v1::outcome::Value;

use super::script;

/// One run and its history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    pub workflow_id: String,
    pub run_id: String,
    pub events: Vec<Event>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    pub id: i64,
    pub time_ns: i64,
    pub kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    Started {
        continued_from: Option<String>,
        first_run: String,
    },
    Signaled {
        number: Option<u64>,
    },
    UpdateAccepted {
        update_id: String,
    },
    UpdateCompleted {
        update_id: String,
        result: Option<u64>,
    },
    ActivityScheduled {
        activity_id: String,
    },
    /// How an activity ended; a result if it completed.
    ActivityClosed {
        scheduled: i64,
        result: Option<u64>,
    },
    TimerStarted {
        timer_id: String,
        after_ns: i64,
    },
    TimerFired {
        started: i64,
    },
    Closed {
        next_run: Option<String>,
    },
    Other,
}

impl Run {
    pub fn is_open(&self) -> bool {
        !self.events.iter().any(|event| matches!(event.kind, Kind::Closed { .. }))
    }

    pub fn continued_from(&self) -> Option<&str> {
        match &self.events.first()?.kind {
            Kind::Started { continued_from, .. } => continued_from.as_deref(),
            _ => None,
        }
    }
}

pub fn read(event: &HistoryEvent) -> Event {
    let time_ns = event.event_time.as_ref().map_or(0, |time| time.seconds * 1_000_000_000 + i64::from(time.nanos));
    Event { id: event.event_id, time_ns, kind: event.attributes.as_ref().map_or(Kind::Other, kind) }
}

fn kind(attributes: &Attributes) -> Kind {
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let closed = |scheduled| Kind::ActivityClosed { scheduled, result: None };
    match attributes {
        Attributes::WorkflowExecutionStartedEventAttributes(started) => Kind::Started {
            continued_from: some(&started.continued_execution_run_id),
            first_run: started.first_execution_run_id.clone(),
        },
        Attributes::WorkflowExecutionSignaledEventAttributes(signaled) => {
            Kind::Signaled { number: script::number(signaled.input.as_ref()) }
        }
        Attributes::WorkflowExecutionUpdateAcceptedEventAttributes(accepted) => {
            Kind::UpdateAccepted { update_id: accepted.protocol_instance_id.clone() }
        }
        Attributes::WorkflowExecutionUpdateCompletedEventAttributes(completed) => {
            let update_id = completed.meta.as_ref().map_or_else(String::new, |meta| meta.update_id.clone());
            let value = completed.outcome.as_ref().and_then(|outcome| outcome.value.as_ref());
            let result = match value {
                Some(Value::Success(payloads)) => script::number(Some(payloads)),
                Some(Value::Failure(_)) | None => None,
            };
            Kind::UpdateCompleted { update_id, result }
        }
        Attributes::ActivityTaskScheduledEventAttributes(scheduled) => {
            Kind::ActivityScheduled { activity_id: scheduled.activity_id.clone() }
        }
        Attributes::ActivityTaskCompletedEventAttributes(completed) => {
            let result = script::activity_result(completed.result.as_ref()).map(|(_, result)| result);
            Kind::ActivityClosed { scheduled: completed.scheduled_event_id, result }
        }
        Attributes::ActivityTaskFailedEventAttributes(failed) => closed(failed.scheduled_event_id),
        Attributes::ActivityTaskTimedOutEventAttributes(timed_out) => closed(timed_out.scheduled_event_id),
        Attributes::ActivityTaskCanceledEventAttributes(canceled) => closed(canceled.scheduled_event_id),
        Attributes::TimerStartedEventAttributes(started) => {
            let after = started.start_to_fire_timeout.as_ref();
            let after_ns = after.map_or(0, |after| after.seconds * 1_000_000_000 + i64::from(after.nanos));
            Kind::TimerStarted { timer_id: started.timer_id.clone(), after_ns }
        }
        Attributes::TimerFiredEventAttributes(fired) => Kind::TimerFired { started: fired.started_event_id },
        Attributes::WorkflowExecutionContinuedAsNewEventAttributes(continued) => {
            Kind::Closed { next_run: some(&continued.new_execution_run_id) }
        }
        Attributes::WorkflowExecutionCompletedEventAttributes(_)
        | Attributes::WorkflowExecutionFailedEventAttributes(_)
        | Attributes::WorkflowExecutionTimedOutEventAttributes(_)
        | Attributes::WorkflowExecutionCanceledEventAttributes(_)
        | Attributes::WorkflowExecutionTerminatedEventAttributes(_) => Kind::Closed { next_run: None },
        _ => Kind::Other,
    }
}
