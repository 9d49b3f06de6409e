//! The beginning of a run: its first event and the state that follows from it, however the run came about (client,
//! parent, continue-as-new, retry, cron).

use perdure_proto::{
    perdure::state::v1::RequestIdInfo,
    temporal::api::{
        common::v1::{Link, Memo, Payload, SearchAttributes},
        enums::v1::{EventType, TaskQueueKind, WorkflowExecutionStatus},
        history::v1::{HistoryEvent, WorkflowExecutionStartedEventAttributes, history_event::Attributes},
        sdk::v1::UserMetadata,
        taskqueue::v1::TaskQueue,
    },
};
use perdure_types::{ChainKey, Duration, Limits, Timestamp};

use crate::{api::Env, run::Run};

/// Everything that event 1 says, and the request that caused it.
#[derive(Debug, Default)]
pub(crate) struct Beginning {
    pub attributes: WorkflowExecutionStartedEventAttributes,
    pub links: Vec<Link>,
    pub user_metadata: Option<UserMetadata>,
    pub request_id: String,
}

impl Run {
    /// A new run with its first event. The first workflow task is still to be scheduled.
    pub(crate) fn begin(key: ChainKey, run_id: String, now: Timestamp, beginning: Beginning) -> Self {
        let Beginning { mut attributes, links, user_metadata, request_id } = beginning;
        attributes.original_execution_run_id = run_id.clone();
        if attributes.first_execution_run_id.is_empty() {
            attributes.first_execution_run_id = run_id.clone();
        }
        attributes.workflow_id = key.workflow_id.to_string();
        attributes.memo = attributes.memo.and_then(without_nulls);
        attributes.search_attributes = attributes.search_attributes.and_then(search_attributes_without_nulls);

        let mut run = Self::empty(key, run_id);
        run.add_prepared(
            now,
            HistoryEvent {
                links,
                user_metadata,
                attributes: Some(Attributes::WorkflowExecutionStartedEventAttributes(Box::new(attributes))),
                ..HistoryEvent::default()
            },
        );
        run.begin_from_started_event();
        run.attach_first_callbacks(&request_id);
        run.remember_request(request_id, EventType::WorkflowExecutionStarted, Some(1));
        run
    }

    /// What follows from the first event, which has been freed of the request's buffers.
    pub(crate) fn begin_from_started_event(&mut self) {
        let started = self.started.clone();
        let Some(Attributes::WorkflowExecutionStartedEventAttributes(attributes)) = &started.attributes else {
            return;
        };
        let start_time = Timestamp::from_proto(started.event_time.as_ref());
        let backoff = Duration::from_proto(attributes.first_workflow_task_backoff.as_ref());
        let execution_deadline = Timestamp::from_proto(attributes.workflow_execution_expiration_time.as_ref());
        let info = self.info.edit();
        info.set_status(WorkflowExecutionStatus::Running);
        info.task_queue = attributes.task_queue.as_ref().map(|queue| queue.name.clone()).unwrap_or_default();
        info.workflow_task_timeout_ns = Duration::from_proto(attributes.workflow_task_timeout.as_ref()).0;
        info.first_workflow_task_due_ns = (start_time + backoff).as_nanos();
        info.execution_deadline_ns = execution_deadline.as_nanos();
        info.run_deadline_ns = run_deadline(attributes, start_time, backoff, execution_deadline).as_nanos();
        info.priority = attributes.priority.clone();
        if let Some(memo) = attributes.memo.clone() {
            *self.memo.edit() = memo;
        }
        if let Some(search_attributes) = attributes.search_attributes.clone() {
            *self.search_attributes.edit() = search_attributes;
        }
        if let Some(points) = attributes.prev_auto_reset_points.clone() {
            *self.reset_points.edit() = points;
        }
        self.begin_versioning(attributes);
    }

    /// Schedules the first workflow task, unless it is to come later.
    pub(crate) fn schedule_first_workflow_task(&mut self, env: &Env) {
        if self.info.first_workflow_task_due_ns <= env.now.as_nanos() {
            self.schedule_workflow_task(env, env.now);
        }
    }

    /// The run has acted on this request; `None` for an event that waits in the buffer for its id.
    pub(crate) fn remember_request(&mut self, request_id: String, event_type: EventType, event_id: Option<i64>) {
        if request_id.is_empty() {
            return;
        }
        let info = RequestIdInfo {
            request_id: request_id.clone(),
            event_type: event_type as i32,
            event_id: event_id.unwrap_or_default(),
        };
        self.request_ids.insert(request_id, info);
    }

    /// The request that started this run.
    pub(crate) fn start_request_id(&self) -> &str {
        self.request_ids
            .values()
            .find(|info| info.event_type == EventType::WorkflowExecutionStarted as i32)
            .map_or("", |info| info.request_id.as_str())
    }

    pub(crate) fn first_execution_run_id(&self) -> &str {
        &self.start().first_execution_run_id
    }
}

/// The run timeout counts from the first workflow task on; it ends with the execution's at the latest.
fn run_deadline(
    attributes: &WorkflowExecutionStartedEventAttributes,
    now: Timestamp,
    backoff: Duration,
    execution_deadline: Timestamp,
) -> Timestamp {
    let run_timeout = Duration::from_proto(attributes.workflow_run_timeout.as_ref());
    if run_timeout.is_zero() {
        return execution_deadline;
    }
    let deadline = now + backoff + run_timeout;
    if execution_deadline == Timestamp::ZERO { deadline } else { deadline.min(execution_deadline) }
}

/// No run lives longer than its execution.
pub(crate) fn effective_run_timeout(run: Duration, execution: Duration) -> Duration {
    match (run.or_none(), execution.or_none()) {
        (Some(run), Some(execution)) => run.min(execution),
        (run, execution) => run.or(execution).unwrap_or_default(),
    }
}

/// Defaulted, capped, and no longer than the run.
pub(crate) fn effective_workflow_task_timeout(task: Duration, run: Duration, limits: &Limits) -> Duration {
    let task = task.or_none().unwrap_or(limits.default_workflow_task_timeout).min(limits.max_workflow_task_timeout);
    if run.is_zero() { task } else { task.min(run) }
}

pub(crate) fn normal_queue(name: impl Into<String>) -> TaskQueue {
    TaskQueue { name: name.into(), kind: TaskQueueKind::Normal as i32, ..TaskQueue::default() }
}

/// A field set to null removes nothing at a start: it is left out.
pub(crate) fn without_nulls(mut memo: Memo) -> Option<Memo> {
    memo.fields.retain(|_, payload| !is_null(payload));
    (!memo.fields.is_empty()).then_some(memo)
}

pub(crate) fn search_attributes_without_nulls(mut attributes: SearchAttributes) -> Option<SearchAttributes> {
    attributes.indexed_fields.retain(|_, payload| !is_null(payload));
    (!attributes.indexed_fields.is_empty()).then_some(attributes)
}

/// As Temporal tells it, whatever the encoding: no data, null, or an empty list.
pub(crate) fn is_null(payload: &Payload) -> bool {
    matches!(&*payload.data, b"" | b"null" | b"[]")
}
