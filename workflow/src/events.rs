//! Writing history: ids, times, and the buffer of events that arrive while a workflow task is started.

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use perdure_proto::{
    perdure::state::v1::{WorkflowTaskInfo, workflow_task_info::Kind},
    temporal::api::{
        enums::v1::EventType,
        history::v1::{HistoryEvent, history_event::Attributes},
    },
};
use perdure_types::Timestamp;
use prost::Message;

use crate::run::Run;

impl Run {
    /// Writes an event now. Only for events that may stand where they are written: those of a workflow task's
    /// completion, workflow task events, and closing events.
    pub(crate) fn add_event(&mut self, now: Timestamp, attributes: Attributes) -> i64 {
        self.add_prepared(now, HistoryEvent { attributes: Some(attributes), ..HistoryEvent::default() })
    }

    /// As [`Run::add_event`], for an event with links, user metadata or a worker-may-ignore flag set.
    pub(crate) fn add_prepared(&mut self, now: Timestamp, mut event: HistoryEvent) -> i64 {
        let info = self.info.edit();
        let time = now.max(Timestamp(info.last_event_time_ns));
        event.event_id = info.next_event_id;
        event.event_time = time.to_proto();
        event.event_type = event.attributes.as_ref().map_or(EventType::Unspecified, event_type) as i32;
        event.task_id = event.event_id;
        info.next_event_id += 1;
        info.last_event_time_ns = time.as_nanos();
        let id = event.event_id;
        let encoded = Bytes::from(event.encode_to_vec());
        info.history_size_bytes += encoded.len() as i64;
        self.push_new_event(event, encoded);
        id
    }

    pub(crate) fn push_new_event(&mut self, event: HistoryEvent, encoded: Bytes) -> Arc<HistoryEvent> {
        let event = Arc::new(if is_kept(event.event_type()) { compact(event, &encoded) } else { event });
        if event.event_id == 1 {
            self.started = event.clone();
        }
        self.new_events.push(NewEvent { event: event.clone(), encoded });
        event
    }

    /// The event written last by the transition under way.
    pub(crate) fn last_new_event(&self) -> Option<Arc<HistoryEvent>> {
        self.new_events.last().map(|new| new.event.clone())
    }

    /// Writes an event that came from outside: at once, or into the buffer while a workflow task is started.
    /// The id is `None` for a buffered event.
    pub(crate) fn add_external(&mut self, now: Timestamp, attributes: Attributes) -> Option<i64> {
        self.add_external_prepared(now, HistoryEvent { attributes: Some(attributes), ..HistoryEvent::default() })
    }

    /// Buffers an event although no workflow task is started: it is caused by a completion under way, and comes after
    /// the events of all of its commands.
    pub(crate) fn buffer_event(&mut self, now: Timestamp, attributes: Attributes) {
        let event = HistoryEvent { attributes: Some(attributes), ..HistoryEvent::default() };
        self.push_buffered(now, event);
    }

    fn push_buffered(&mut self, now: Timestamp, mut event: HistoryEvent) {
        event.event_time = now.to_proto();
        event.event_type = event.attributes.as_ref().map_or(EventType::Unspecified, event_type) as i32;
        self.info.edit().history_size_bytes += event.encoded_len() as i64;
        self.buffered.edit().push(Arc::new(event));
    }

    pub(crate) fn add_external_prepared(&mut self, now: Timestamp, event: HistoryEvent) -> Option<i64> {
        self.make_workflow_task_durable();
        if !self.workflow_task_is_started() {
            return Some(self.add_prepared(now, event));
        }
        self.push_buffered(now, event);
        None
    }

    /// Gives the buffered events their ids. Call when the started workflow task has ended and its own events are written.
    /// Closing events of activities and children get the ids of their Started events, which may have been buffered too.
    /// Returns whether there were any.
    pub(crate) fn flush_buffered(&mut self, now: Timestamp) -> bool {
        if self.buffered.is_empty() {
            return false;
        }
        let mut buffered = std::mem::take(self.buffered.edit());
        // What ended comes after what else happened: a worker sees a signal before the result that came with it.
        buffered.sort_by_key(|event| event.attributes.as_ref().is_some_and(is_end));
        let mut started_ids = BTreeMap::new();
        for event in buffered {
            let mut event = Arc::unwrap_or_clone(event);
            // Counted when it was buffered.
            self.info.edit().history_size_bytes -= event.encoded_len() as i64;
            if let Some(attributes) = &mut event.attributes {
                patch_started_id(attributes, &started_ids);
            }
            let initiating = event.attributes.as_ref().and_then(initiating_id);
            let request_id = event.attributes.as_ref().and_then(request_id).map(str::to_owned);
            let id = self.add_prepared(now, event);
            if let Some(initiating) = initiating {
                started_ids.insert(initiating, id);
                if let Some(child) = self.children.get_mut(&initiating) {
                    child.info.started_event_id = id;
                }
            }
            if let Some(request) = request_id.and_then(|request| self.request_ids.get_mut(&request)) {
                request.event_id = id;
            }
        }
        true
    }

    /// Before anything else is written on top of a speculative workflow task it becomes a normal one, at the ids that
    /// were promised for its events.
    pub(crate) fn make_workflow_task_durable(&mut self) {
        let Some(task) = self.workflow_task().filter(|task| task.kind() == Kind::Speculative).cloned() else {
            return;
        };
        self.write_workflow_task_events(&task);
        if let Some(task) = &mut self.info.edit().workflow_task {
            task.set_kind(Kind::Normal);
        }
    }

    pub(crate) fn workflow_task(&self) -> Option<&WorkflowTaskInfo> {
        self.info.workflow_task.as_ref()
    }

    pub(crate) fn workflow_task_is_started(&self) -> bool {
        self.workflow_task().is_some_and(|task| task.started_event_id != 0)
    }
}

/// An event of the transition under way. It is encoded once: for the log, the history and its size.
#[derive(Debug, Clone)]
pub(crate) struct NewEvent {
    pub event: Arc<HistoryEvent>,
    pub encoded: Bytes,
}

/// Encodes events as a `History`, whose encodings concatenate.
pub(crate) fn encode_history(events: &[NewEvent]) -> Vec<u8> {
    const KEY_AND_LENGTH_BYTES: usize = 6;
    let size = events.iter().map(|e| e.encoded.len() + KEY_AND_LENGTH_BYTES).sum();
    let mut history = Vec::with_capacity(size);
    for event in events {
        prost::encoding::bytes::encode(1, &event.encoded, &mut history);
    }
    history
}

/// Events that stay in memory with the run.
fn is_kept(event_type: EventType) -> bool {
    use EventType as T;
    matches!(
        event_type,
        T::WorkflowExecutionStarted
            | T::ActivityTaskScheduled
            | T::StartChildWorkflowExecutionInitiated
            | T::SignalExternalWorkflowExecutionInitiated
            | T::RequestCancelExternalWorkflowExecutionInitiated
            | T::NexusOperationScheduled
            | T::WorkflowExecutionCompleted
            | T::WorkflowExecutionFailed
            | T::WorkflowExecutionCanceled
            | T::WorkflowExecutionTimedOut
            | T::WorkflowExecutionTerminated
            | T::WorkflowExecutionContinuedAsNew
    )
}

/// The same event with payloads of its own. As it came, its payloads are slices of a network buffer many times their
/// size, which they would hold in memory for as long as the run is.
fn compact(event: HistoryEvent, encoded: &Bytes) -> HistoryEvent {
    HistoryEvent::decode(encoded.clone()).unwrap_or(event)
}

/// The Started event's id for closing events whose Started event was buffered with them (it is 0 until then).
fn patch_started_id(attributes: &mut Attributes, started: &BTreeMap<i64, i64>) {
    use Attributes as A;
    let (initiating, slot) = match attributes {
        A::ActivityTaskCompletedEventAttributes(a) => (a.scheduled_event_id, &mut a.started_event_id),
        A::ActivityTaskFailedEventAttributes(a) => (a.scheduled_event_id, &mut a.started_event_id),
        A::ActivityTaskTimedOutEventAttributes(a) => (a.scheduled_event_id, &mut a.started_event_id),
        A::ActivityTaskCanceledEventAttributes(a) => (a.scheduled_event_id, &mut a.started_event_id),
        A::ChildWorkflowExecutionCompletedEventAttributes(a) => (a.initiated_event_id, &mut a.started_event_id),
        A::ChildWorkflowExecutionFailedEventAttributes(a) => (a.initiated_event_id, &mut a.started_event_id),
        A::ChildWorkflowExecutionCanceledEventAttributes(a) => (a.initiated_event_id, &mut a.started_event_id),
        A::ChildWorkflowExecutionTimedOutEventAttributes(a) => (a.initiated_event_id, &mut a.started_event_id),
        A::ChildWorkflowExecutionTerminatedEventAttributes(a) => (a.initiated_event_id, &mut a.started_event_id),
        _ => return,
    };
    if *slot <= 0
        && let Some(id) = started.get(&initiating)
    {
        *slot = *id;
    }
}

/// Does the event end an activity, a child or a Nexus operation?
fn is_end(attributes: &Attributes) -> bool {
    use Attributes as A;
    matches!(
        attributes,
        A::ActivityTaskCompletedEventAttributes(_)
            | A::ActivityTaskFailedEventAttributes(_)
            | A::ActivityTaskTimedOutEventAttributes(_)
            | A::ActivityTaskCanceledEventAttributes(_)
            | A::ChildWorkflowExecutionCompletedEventAttributes(_)
            | A::ChildWorkflowExecutionFailedEventAttributes(_)
            | A::ChildWorkflowExecutionCanceledEventAttributes(_)
            | A::ChildWorkflowExecutionTimedOutEventAttributes(_)
            | A::ChildWorkflowExecutionTerminatedEventAttributes(_)
            | A::NexusOperationCompletedEventAttributes(_)
            | A::NexusOperationFailedEventAttributes(_)
            | A::NexusOperationCanceledEventAttributes(_)
            | A::NexusOperationTimedOutEventAttributes(_)
    )
}

/// Of Started events: what they started.
fn initiating_id(attributes: &Attributes) -> Option<i64> {
    match attributes {
        Attributes::ActivityTaskStartedEventAttributes(a) => Some(a.scheduled_event_id),
        Attributes::ChildWorkflowExecutionStartedEventAttributes(a) => Some(a.initiated_event_id),
        _ => None,
    }
}

/// Of events that record a client's request: its id.
fn request_id(attributes: &Attributes) -> Option<&str> {
    match attributes {
        Attributes::WorkflowExecutionSignaledEventAttributes(a) => Some(&a.request_id),
        // An update's attachment is an event of its own.
        Attributes::WorkflowExecutionOptionsUpdatedEventAttributes(a) => {
            Some(a.workflow_update_options.first().map_or(&a.attached_request_id, |update| &update.attached_request_id))
        }
        _ => None,
    }
    .map(String::as_str)
    .filter(|id| !id.is_empty())
}

/// The type that goes with the attributes.
pub(crate) fn event_type(attributes: &Attributes) -> EventType {
    use Attributes as A;
    match attributes {
        A::WorkflowExecutionStartedEventAttributes(_) => EventType::WorkflowExecutionStarted,
        A::WorkflowExecutionCompletedEventAttributes(_) => EventType::WorkflowExecutionCompleted,
        A::WorkflowExecutionFailedEventAttributes(_) => EventType::WorkflowExecutionFailed,
        A::WorkflowExecutionTimedOutEventAttributes(_) => EventType::WorkflowExecutionTimedOut,
        A::WorkflowTaskScheduledEventAttributes(_) => EventType::WorkflowTaskScheduled,
        A::WorkflowTaskStartedEventAttributes(_) => EventType::WorkflowTaskStarted,
        A::WorkflowTaskCompletedEventAttributes(_) => EventType::WorkflowTaskCompleted,
        A::WorkflowTaskTimedOutEventAttributes(_) => EventType::WorkflowTaskTimedOut,
        A::WorkflowTaskFailedEventAttributes(_) => EventType::WorkflowTaskFailed,
        A::ActivityTaskScheduledEventAttributes(_) => EventType::ActivityTaskScheduled,
        A::ActivityTaskStartedEventAttributes(_) => EventType::ActivityTaskStarted,
        A::ActivityTaskCompletedEventAttributes(_) => EventType::ActivityTaskCompleted,
        A::ActivityTaskFailedEventAttributes(_) => EventType::ActivityTaskFailed,
        A::ActivityTaskTimedOutEventAttributes(_) => EventType::ActivityTaskTimedOut,
        A::TimerStartedEventAttributes(_) => EventType::TimerStarted,
        A::TimerFiredEventAttributes(_) => EventType::TimerFired,
        A::ActivityTaskCancelRequestedEventAttributes(_) => EventType::ActivityTaskCancelRequested,
        A::ActivityTaskCanceledEventAttributes(_) => EventType::ActivityTaskCanceled,
        A::TimerCanceledEventAttributes(_) => EventType::TimerCanceled,
        A::MarkerRecordedEventAttributes(_) => EventType::MarkerRecorded,
        A::WorkflowExecutionSignaledEventAttributes(_) => EventType::WorkflowExecutionSignaled,
        A::WorkflowExecutionTerminatedEventAttributes(_) => EventType::WorkflowExecutionTerminated,
        A::WorkflowExecutionCancelRequestedEventAttributes(_) => EventType::WorkflowExecutionCancelRequested,
        A::WorkflowExecutionCanceledEventAttributes(_) => EventType::WorkflowExecutionCanceled,
        A::RequestCancelExternalWorkflowExecutionInitiatedEventAttributes(_) => {
            EventType::RequestCancelExternalWorkflowExecutionInitiated
        }
        A::RequestCancelExternalWorkflowExecutionFailedEventAttributes(_) => {
            EventType::RequestCancelExternalWorkflowExecutionFailed
        }
        A::ExternalWorkflowExecutionCancelRequestedEventAttributes(_) => {
            EventType::ExternalWorkflowExecutionCancelRequested
        }
        A::WorkflowExecutionContinuedAsNewEventAttributes(_) => EventType::WorkflowExecutionContinuedAsNew,
        A::StartChildWorkflowExecutionInitiatedEventAttributes(_) => EventType::StartChildWorkflowExecutionInitiated,
        A::StartChildWorkflowExecutionFailedEventAttributes(_) => EventType::StartChildWorkflowExecutionFailed,
        A::ChildWorkflowExecutionStartedEventAttributes(_) => EventType::ChildWorkflowExecutionStarted,
        A::ChildWorkflowExecutionCompletedEventAttributes(_) => EventType::ChildWorkflowExecutionCompleted,
        A::ChildWorkflowExecutionFailedEventAttributes(_) => EventType::ChildWorkflowExecutionFailed,
        A::ChildWorkflowExecutionCanceledEventAttributes(_) => EventType::ChildWorkflowExecutionCanceled,
        A::ChildWorkflowExecutionTimedOutEventAttributes(_) => EventType::ChildWorkflowExecutionTimedOut,
        A::ChildWorkflowExecutionTerminatedEventAttributes(_) => EventType::ChildWorkflowExecutionTerminated,
        A::SignalExternalWorkflowExecutionInitiatedEventAttributes(_) => {
            EventType::SignalExternalWorkflowExecutionInitiated
        }
        A::SignalExternalWorkflowExecutionFailedEventAttributes(_) => EventType::SignalExternalWorkflowExecutionFailed,
        A::ExternalWorkflowExecutionSignaledEventAttributes(_) => EventType::ExternalWorkflowExecutionSignaled,
        A::UpsertWorkflowSearchAttributesEventAttributes(_) => EventType::UpsertWorkflowSearchAttributes,
        A::WorkflowExecutionUpdateAcceptedEventAttributes(_) => EventType::WorkflowExecutionUpdateAccepted,
        A::WorkflowExecutionUpdateRejectedEventAttributes(_) => EventType::WorkflowExecutionUpdateRejected,
        A::WorkflowExecutionUpdateCompletedEventAttributes(_) => EventType::WorkflowExecutionUpdateCompleted,
        A::WorkflowPropertiesModifiedExternallyEventAttributes(_) => EventType::WorkflowPropertiesModifiedExternally,
        A::ActivityPropertiesModifiedExternallyEventAttributes(_) => EventType::ActivityPropertiesModifiedExternally,
        A::WorkflowPropertiesModifiedEventAttributes(_) => EventType::WorkflowPropertiesModified,
        A::WorkflowExecutionUpdateAdmittedEventAttributes(_) => EventType::WorkflowExecutionUpdateAdmitted,
        A::NexusOperationScheduledEventAttributes(_) => EventType::NexusOperationScheduled,
        A::NexusOperationStartedEventAttributes(_) => EventType::NexusOperationStarted,
        A::NexusOperationCompletedEventAttributes(_) => EventType::NexusOperationCompleted,
        A::NexusOperationFailedEventAttributes(_) => EventType::NexusOperationFailed,
        A::NexusOperationCanceledEventAttributes(_) => EventType::NexusOperationCanceled,
        A::NexusOperationTimedOutEventAttributes(_) => EventType::NexusOperationTimedOut,
        A::NexusOperationCancelRequestedEventAttributes(_) => EventType::NexusOperationCancelRequested,
        A::WorkflowExecutionOptionsUpdatedEventAttributes(_) => EventType::WorkflowExecutionOptionsUpdated,
        A::NexusOperationCancelRequestCompletedEventAttributes(_) => EventType::NexusOperationCancelRequestCompleted,
        A::NexusOperationCancelRequestFailedEventAttributes(_) => EventType::NexusOperationCancelRequestFailed,
        A::WorkflowExecutionPausedEventAttributes(_) => EventType::WorkflowExecutionPaused,
        A::WorkflowExecutionUnpausedEventAttributes(_) => EventType::WorkflowExecutionUnpaused,
        A::WorkflowExecutionTimeSkippingTransitionedEventAttributes(_) => {
            EventType::WorkflowExecutionTimeSkippingTransitioned
        }
    }
}
