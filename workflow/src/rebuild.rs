//! A run made from events that another one has written: how a reset begins. What the live path keeps as state is derived
//! here from the history alone, so each kind of event that leaves state behind must be known here.

use std::sync::Arc;

use bytes::Bytes;
use perdure_proto::{
    perdure::state::v1::{
        ActivityInfo, ChildInfo, ExternalCancelInfo, ExternalSignalInfo, PauseInfo, TimerInfo, UpdateInfo,
        WorkflowOptions, WorkflowTaskInfo, workflow_task_info::Kind,
    },
    temporal::api::{
        enums::v1::{EventType, TaskQueueKind, WorkflowExecutionStatus},
        history::v1::{
            ActivityTaskScheduledEventAttributes, HistoryEvent, WorkflowExecutionOptionsUpdatedEventAttributes,
            WorkflowExecutionUpdateAcceptedEventAttributes, WorkflowTaskScheduledEventAttributes,
            history_event::Attributes,
        },
    },
};
use perdure_types::{ChainKey, Duration, Timestamp};

use crate::{
    api::Env,
    properties::merge,
    run::{Pending, Run},
};

impl Run {
    /// A run whose history begins with these events of `base`.
    pub(crate) fn rebuilt(key: ChainKey, run_id: String, events: Vec<HistoryEvent>, base: &Run, env: &mut Env) -> Self {
        let mut run = Self::empty(key, run_id);
        for event in events {
            let event = run.copy_event(event);
            run.follow(&event, base, env);
        }
        run.remember_request(base.start_request_id().to_owned(), EventType::WorkflowExecutionStarted, Some(1));
        if !run.is_plain() {
            run.show_version();
        }
        run
    }

    /// The state that follows from an event. Of events that do not end with a run: those are copied, too, when a run
    /// is reset to a point behind them.
    pub(crate) fn follow(&mut self, event: &Arc<HistoryEvent>, base: &Run, env: &mut Env) {
        let Some(attributes) = &event.attributes else { return };
        match attributes {
            Attributes::WorkflowExecutionStartedEventAttributes(_) => {
                self.begin_from_started_event();
                self.attach_first_callbacks(base.start_request_id());
            }
            Attributes::WorkflowExecutionSignaledEventAttributes(signal) => {
                self.info.edit().signal_count += 1;
                if !self.request_ids.contains_key(&signal.request_id) {
                    let id = signal.request_id.clone();
                    self.remember_request(id, EventType::WorkflowExecutionSignaled, Some(event.event_id));
                }
            }
            Attributes::WorkflowExecutionCancelRequestedEventAttributes(_) => self.info.edit().cancel_requested = true,
            Attributes::WorkflowExecutionOptionsUpdatedEventAttributes(a) => {
                self.follow_options(event.event_id, a);
                self.attach_callbacks(&a.attached_request_id, &a.attached_completion_callbacks, time_of(event));
                self.take_attachments(&a.workflow_update_options, event.event_id, time_of(event));
            }
            Attributes::UpsertWorkflowSearchAttributesEventAttributes(a) => {
                if let Some(changes) = &a.search_attributes {
                    merge(&mut self.search_attributes.edit().indexed_fields, &changes.indexed_fields);
                }
            }
            Attributes::WorkflowPropertiesModifiedEventAttributes(a) => {
                if let Some(changes) = &a.upserted_memo {
                    merge(&mut self.memo.edit().fields, &changes.fields);
                }
            }
            Attributes::WorkflowExecutionPausedEventAttributes(a) => {
                let info = self.info.edit();
                info.set_status(WorkflowExecutionStatus::Paused);
                info.pause = Some(Box::new(PauseInfo {
                    time_ns: time_of(event).as_nanos(),
                    identity: a.identity.clone(),
                    reason: a.reason.clone(),
                    request_id: a.request_id.clone(),
                    ..PauseInfo::default()
                }));
            }
            Attributes::WorkflowExecutionUnpausedEventAttributes(_) => {
                let info = self.info.edit();
                info.set_status(WorkflowExecutionStatus::Running);
                info.pause = None;
            }
            Attributes::TimerStartedEventAttributes(a) => {
                let fire = time_of(event) + Duration::from_proto(a.start_to_fire_timeout.as_ref());
                let timer = TimerInfo {
                    timer_id: a.timer_id.clone(),
                    started_event_id: event.event_id,
                    fire_time_ns: fire.as_nanos(),
                };
                self.timers.insert(a.timer_id.clone(), timer);
            }
            Attributes::TimerFiredEventAttributes(a) => drop(self.timers.remove(&a.timer_id)),
            Attributes::TimerCanceledEventAttributes(a) => drop(self.timers.remove(&a.timer_id)),
            other => {
                self.follow_workflow_task(event, other);
                self.follow_activity(event, other);
                self.follow_child(event, other, base);
                self.follow_external(event, other, base, env);
                self.follow_update(event, other);
                self.follow_nexus(event, other, env);
            }
        }
    }

    fn follow_workflow_task(&mut self, event: &HistoryEvent, attributes: &Attributes) {
        match attributes {
            Attributes::WorkflowTaskScheduledEventAttributes(a) => {
                self.info.edit().workflow_task = Some(scheduled_task(event, a));
            }
            Attributes::WorkflowTaskStartedEventAttributes(a) => {
                if let Some(task) = &mut self.info.edit().workflow_task {
                    task.started_event_id = event.event_id;
                    task.started_time_ns = time_of(event).as_nanos();
                    task.request_id = a.request_id.clone();
                    task.identity = a.identity.clone();
                    task.history_size_bytes = a.history_size_bytes;
                    task.suggest_continue_as_new = a.suggest_continue_as_new;
                    task.suggest_continue_as_new_reasons = a.suggest_continue_as_new_reasons.clone();
                }
            }
            Attributes::WorkflowTaskCompletedEventAttributes(a) => {
                let info = self.info.edit();
                info.workflow_task = None;
                info.last_completed_workflow_task_started_id = a.started_event_id;
                self.follow_completion(a);
                self.note_reset_point(event.event_id, time_of(event), a);
            }
            Attributes::WorkflowTaskFailedEventAttributes(_) | Attributes::WorkflowTaskTimedOutEventAttributes(_) => {
                self.info.edit().workflow_task = None;
            }
            _ => {}
        }
    }

    fn follow_activity(&mut self, event: &Arc<HistoryEvent>, attributes: &Attributes) {
        match attributes {
            Attributes::ActivityTaskScheduledEventAttributes(a) => {
                let info = scheduled_activity(event, a);
                self.activities.insert(event.event_id, Pending { info, event: event.clone() });
            }
            Attributes::ActivityTaskStartedEventAttributes(a) => {
                if let Some(activity) = self.activities.get_mut(&a.scheduled_event_id) {
                    let info = &mut activity.info;
                    info.started_time_ns = time_of(event).as_nanos();
                    info.last_started_time_ns = info.started_time_ns;
                    info.attempt = a.attempt;
                    info.identity = a.identity.clone();
                    info.request_id = a.request_id.clone();
                    info.last_failure = a.last_failure.clone();
                }
            }
            Attributes::ActivityTaskCancelRequestedEventAttributes(a) => {
                if let Some(activity) = self.activities.get_mut(&a.scheduled_event_id) {
                    activity.info.cancel_requested = true;
                    activity.info.cancel_requested_event_id = event.event_id;
                }
            }
            Attributes::ActivityTaskCompletedEventAttributes(a) => drop(self.activities.remove(&a.scheduled_event_id)),
            Attributes::ActivityTaskFailedEventAttributes(a) => drop(self.activities.remove(&a.scheduled_event_id)),
            Attributes::ActivityTaskTimedOutEventAttributes(a) => drop(self.activities.remove(&a.scheduled_event_id)),
            Attributes::ActivityTaskCanceledEventAttributes(a) => drop(self.activities.remove(&a.scheduled_event_id)),
            _ => {}
        }
    }

    pub(crate) fn follow_child(&mut self, event: &Arc<HistoryEvent>, attributes: &Attributes, base: &Run) {
        use Attributes as A;
        let ended = match attributes {
            A::StartChildWorkflowExecutionInitiatedEventAttributes(_) => {
                let id = event.event_id;
                // The same request as the one that is perhaps under way: it finds the child that it has started.
                let request_id = match base.children.get(&id) {
                    Some(child) => child.info.request_id.clone(),
                    None => format!("{}:{id}", base.run_id),
                };
                let info = ChildInfo { initiated_event_id: id, request_id, ..ChildInfo::default() };
                self.children.insert(id, Pending { info, event: event.clone() });
                return;
            }
            A::ChildWorkflowExecutionStartedEventAttributes(a) => {
                if let Some(child) = self.children.get_mut(&a.initiated_event_id) {
                    child.info.started_event_id = event.event_id;
                    child.info.run_id = a.workflow_execution.as_ref().map(|e| e.run_id.clone()).unwrap_or_default();
                }
                return;
            }
            A::StartChildWorkflowExecutionFailedEventAttributes(a) => a.initiated_event_id,
            A::ChildWorkflowExecutionCompletedEventAttributes(a) => a.initiated_event_id,
            A::ChildWorkflowExecutionFailedEventAttributes(a) => a.initiated_event_id,
            A::ChildWorkflowExecutionCanceledEventAttributes(a) => a.initiated_event_id,
            A::ChildWorkflowExecutionTimedOutEventAttributes(a) => a.initiated_event_id,
            A::ChildWorkflowExecutionTerminatedEventAttributes(a) => a.initiated_event_id,
            _ => return,
        };
        self.children.remove(&ended);
    }

    fn follow_external(&mut self, event: &Arc<HistoryEvent>, attributes: &Attributes, base: &Run, env: &mut Env) {
        use Attributes as A;
        let id = event.event_id;
        match attributes {
            A::SignalExternalWorkflowExecutionInitiatedEventAttributes(_) => {
                let before = base.external_signals.get(&id).map(|pending| pending.info.request_id.clone());
                let request_id = before.unwrap_or_else(|| env.ids.uuid());
                let info = ExternalSignalInfo { initiated_event_id: id, request_id, ..Default::default() };
                self.external_signals.insert(id, Pending { info, event: event.clone() });
            }
            A::RequestCancelExternalWorkflowExecutionInitiatedEventAttributes(_) => {
                let before = base.external_cancels.get(&id).map(|pending| pending.info.request_id.clone());
                let request_id = before.unwrap_or_else(|| env.ids.uuid());
                let info = ExternalCancelInfo { initiated_event_id: id, request_id, ..Default::default() };
                self.external_cancels.insert(id, Pending { info, event: event.clone() });
            }
            A::SignalExternalWorkflowExecutionFailedEventAttributes(a) => {
                self.external_signals.remove(&a.initiated_event_id);
            }
            A::ExternalWorkflowExecutionSignaledEventAttributes(a) => {
                self.external_signals.remove(&a.initiated_event_id);
            }
            A::RequestCancelExternalWorkflowExecutionFailedEventAttributes(a) => {
                self.external_cancels.remove(&a.initiated_event_id);
            }
            A::ExternalWorkflowExecutionCancelRequestedEventAttributes(a) => {
                self.external_cancels.remove(&a.initiated_event_id);
            }
            _ => {}
        }
    }

    pub(crate) fn follow_update(&mut self, event: &HistoryEvent, attributes: &Attributes) {
        match attributes {
            Attributes::WorkflowExecutionUpdateAdmittedEventAttributes(a) => {
                let request = a.request.as_ref();
                let update_id = request.and_then(|r| r.meta.as_ref()).map(|m| m.update_id.clone()).unwrap_or_default();
                let name = request.and_then(|r| r.input.as_ref()).map(|i| i.name.clone()).unwrap_or_default();
                let info = UpdateInfo {
                    update_id: update_id.clone(),
                    name,
                    admitted_event_id: event.event_id,
                    ..UpdateInfo::default()
                };
                self.updates.insert(update_id.clone(), info);
                if let Some(request) = request {
                    let event_type = EventType::WorkflowExecutionUpdateAdmitted;
                    self.take_update_request(&update_id, request, (event_type, event.event_id), time_of(event));
                }
            }
            Attributes::WorkflowExecutionUpdateAcceptedEventAttributes(a) => {
                let name = match self.updates.get(&a.protocol_instance_id) {
                    Some(admitted) => admitted.name.clone(),
                    None => update_name(a),
                };
                self.record_accepted_update(&a.protocol_instance_id, name, event.event_id);
                if let Some(request) = &a.accepted_request {
                    let event_type = EventType::WorkflowExecutionUpdateAccepted;
                    let event_of = (event_type, event.event_id);
                    self.take_update_request(&a.protocol_instance_id, request, event_of, time_of(event));
                }
            }
            Attributes::WorkflowExecutionUpdateCompletedEventAttributes(a) => {
                let update_id = a.meta.as_ref().map(|meta| meta.update_id.clone()).unwrap_or_default();
                if let Some(update) = self.updates.get_mut(&update_id) {
                    update.completed_event_id = event.event_id;
                    update.outcome = a.outcome.clone();
                }
                self.follow_update_end(&update_id);
            }
            _ => {}
        }
    }

    pub(crate) fn follow_options(&mut self, event_id: i64, a: &WorkflowExecutionOptionsUpdatedEventAttributes) {
        let id = a.attached_request_id.clone();
        self.remember_request(id, EventType::WorkflowExecutionOptionsUpdated, Some(event_id));
        let info = self.info.edit();
        if a.priority.is_some() {
            info.priority = a.priority.clone();
        }
        if a.unset_versioning_override {
            info.options = Some(Box::default());
        } else if a.versioning_override.is_some() {
            info.options = Some(Box::new(WorkflowOptions { versioning_override: a.versioning_override.clone() }));
        }
    }

    /// Writes an event of another run as it stands there.
    fn copy_event(&mut self, event: HistoryEvent) -> Arc<HistoryEvent> {
        use prost::Message;
        let encoded = Bytes::from(event.encode_to_vec());
        let info = self.info.edit();
        info.next_event_id = event.event_id + 1;
        info.last_event_time_ns = info.last_event_time_ns.max(time_of(&event).as_nanos());
        info.history_size_bytes += encoded.len() as i64;
        self.push_new_event(event, encoded)
    }
}

pub(crate) fn time_of(event: &HistoryEvent) -> Timestamp {
    Timestamp::from_proto(event.event_time.as_ref())
}

fn scheduled_task(event: &HistoryEvent, a: &WorkflowTaskScheduledEventAttributes) -> WorkflowTaskInfo {
    let time_ns = time_of(event).as_nanos();
    let queue = a.task_queue.clone().unwrap_or_default();
    WorkflowTaskInfo {
        kind: Kind::Normal as i32,
        scheduled_event_id: event.event_id,
        attempt: 1,
        scheduled_time_ns: time_ns,
        original_scheduled_time_ns: time_ns,
        sticky: queue.kind == TaskQueueKind::Sticky as i32,
        task_queue: queue.name,
        start_to_close_ns: Duration::from_proto(a.start_to_close_timeout.as_ref()).0,
        ..WorkflowTaskInfo::default()
    }
}

/// A pending activity as it is when it has just been scheduled.
pub(crate) fn scheduled_activity(event: &HistoryEvent, a: &ActivityTaskScheduledEventAttributes) -> ActivityInfo {
    let nanos = |duration: &Option<prost_types::Duration>| Duration::from_proto(duration.as_ref()).0;
    let scheduled = time_of(event);
    let schedule_to_close = Duration(nanos(&a.schedule_to_close_timeout));
    ActivityInfo {
        scheduled_event_id: event.event_id,
        activity_id: a.activity_id.clone(),
        attempt: 1,
        scheduled_time_ns: scheduled.as_nanos(),
        first_scheduled_time_ns: scheduled.as_nanos(),
        schedule_to_start_ns: nanos(&a.schedule_to_start_timeout),
        start_to_close_ns: nanos(&a.start_to_close_timeout),
        heartbeat_ns: nanos(&a.heartbeat_timeout),
        expiration_time_ns: schedule_to_close.or_none().map_or(0, |timeout| (scheduled + timeout).as_nanos()),
        ..ActivityInfo::default()
    }
}

fn update_name(a: &WorkflowExecutionUpdateAcceptedEventAttributes) -> String {
    let input = a.accepted_request.as_ref().and_then(|request| request.input.as_ref());
    input.map(|input| input.name.clone()).unwrap_or_default()
}
