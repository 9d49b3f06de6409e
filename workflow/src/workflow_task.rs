//! Scheduling and starting workflow tasks. Their completion is in `completion`, failure and timeouts in
//! `workflow_task_failure`.

use std::sync::Arc;

use perdure_proto::{
    Error,
    perdure::{
        node::v1::{
            Offer, RecordWorkflowTaskStarted, StickyQueueUnavailable, TaskKind, TaskToken, task_token, workflow_reply,
        },
        state::v1::{WorkflowTaskInfo, workflow_task_info::Kind},
    },
    temporal::api::{
        common::v1::{WorkerVersionStamp, WorkflowExecution},
        deployment::v1::WorkerDeploymentVersion,
        enums::v1::{SuggestContinueAsNewReason, TaskQueueKind},
        history::v1::{
            HistoryEvent, WorkflowTaskScheduledEventAttributes, WorkflowTaskStartedEventAttributes,
            history_event::Attributes,
        },
        taskqueue::v1::TaskQueue,
        workflowservice::v1::PollWorkflowTaskQueueResponse,
    },
    versions,
};
use perdure_types::{Duration, Timestamp};
use prost::Message;

use crate::{
    api::{Effect, Env, HistoryFill, Release, Reply},
    run::Run,
};

impl Run {
    /// Makes sure that a workflow task will look at what has just happened. Nothing to do while one is pending, except
    /// that a speculative one becomes real; nothing either before the first task is due (backoff, start delay).
    pub(crate) fn ensure_workflow_task(&mut self, env: &Env) {
        if !self.is_open() || self.is_paused() {
            return;
        }
        if self.workflow_task().is_some() {
            self.make_workflow_task_durable();
            return;
        }
        // Later clocks may lag behind the one that the run was started by.
        let is_first = self.info.last_completed_workflow_task_started_id == 0;
        if is_first && self.info.first_workflow_task_due_ns > env.now.as_nanos() {
            return;
        }
        self.schedule_workflow_task(env, env.now);
    }

    /// Schedules a normal or (after failures) transient workflow task, to be offered not before `not_before`. A paused
    /// run gets its next one when it goes on.
    pub(crate) fn schedule_workflow_task(&mut self, env: &Env, not_before: Timestamp) {
        if self.is_paused() {
            return;
        }
        let attempt = self.info.workflow_task_attempt.max(1);
        let kind = if attempt > 1 { Kind::Transient } else { Kind::Normal };
        self.create_workflow_task(env, kind, not_before);
        self.offer_workflow_task_when_due(env.now);
    }

    /// Schedules a task for updates only: it leaves no trace if it changes nothing.
    pub(crate) fn schedule_speculative_workflow_task(&mut self, env: &Env) {
        let transient = self.info.workflow_task_attempt > 1;
        self.create_workflow_task(env, if transient { Kind::Transient } else { Kind::Speculative }, env.now);
        self.offer_workflow_task_when_due(env.now);
    }

    /// Schedules a task and gives it to the worker that is here already. It is never offered.
    pub(crate) fn schedule_started_workflow_task(&mut self, env: &Env, speculative: bool, identity: &str) {
        let kind = if speculative { Kind::Speculative } else { Kind::Normal };
        self.create_workflow_task(env, kind, env.now);
        self.start_workflow_task(env, identity, "request-from-RespondWorkflowTaskCompleted");
    }

    pub(crate) fn offer_workflow_task_when_due(&mut self, now: Timestamp) {
        let not_before = Timestamp(self.workflow_task().map_or(0, |task| task.not_before_ns));
        if not_before <= now {
            self.offer_workflow_task();
        } else {
            self.delayed.workflow_task = Some(not_before);
        }
    }

    fn create_workflow_task(&mut self, env: &Env, kind: Kind, not_before: Timestamp) {
        let attempt = self.info.workflow_task_attempt.max(1);
        // Retries go to the normal queue: the sticky worker may be what failed.
        if kind == Kind::Transient {
            self.info.edit().sticky = None;
        }
        let (task_queue, sticky) = match &self.info.sticky {
            Some(sticky) => (sticky.task_queue.clone(), true),
            None => (self.info.task_queue.clone(), false),
        };
        let now = env.now.as_nanos();
        let task = WorkflowTaskInfo {
            kind: kind as i32,
            scheduled_event_id: self.info.next_event_id,
            attempt,
            scheduled_time_ns: now,
            original_scheduled_time_ns: now,
            task_queue,
            sticky,
            start_to_close_ns: self.info.workflow_task_timeout_ns + retry_slack(attempt, env).0,
            not_before_ns: not_before.as_nanos(),
            ..WorkflowTaskInfo::default()
        };
        if kind == Kind::Normal {
            self.add_event(env.now, scheduled_attributes(&task, &self.info.task_queue));
        }
        self.info.edit().workflow_task = Some(task);
    }

    /// Emits the offer of the scheduled workflow task.
    pub(crate) fn offer_workflow_task(&mut self) {
        if let Some(offer) = self.workflow_task_offer() {
            self.effects.push(Effect::Offer(offer));
        }
    }

    pub(crate) fn workflow_task_offer(&self) -> Option<Offer> {
        let task = self.workflow_task().filter(|task| task.started_event_id == 0)?;
        Some(Offer {
            kind: TaskKind::Workflow as i32,
            namespace_id: self.key.namespace_id.to_string(),
            task_queue: task.task_queue.clone(),
            sticky: task.sticky,
            normal_task_queue: self.info.task_queue.clone(),
            workflow_id: self.key.workflow_id.to_string(),
            run_id: self.run_id.clone(),
            scheduled_event_id: task.scheduled_event_id,
            attempt: task.attempt,
            stamp: task.stamp,
            scheduled_time_ns: task.scheduled_time_ns,
            priority: self.info.priority.clone(),
            directive: self.version_directive(),
            unassigned: self.is_unassigned(),
            ..Offer::default()
        })
    }

    /// Writes Scheduled (and Started, if it is) of a task that had none so far. The ids are the ones promised.
    /// So are the times: workflow code has seen them.
    pub(crate) fn write_workflow_task_events(&mut self, task: &WorkflowTaskInfo) {
        let queue = self.info.task_queue.clone();
        let times = [task.scheduled_time_ns, task.started_time_ns];
        for (attributes, time) in task_events(task, &queue).zip(times) {
            self.add_event(Timestamp(time), attributes);
        }
    }

    /// A worker's poll starts the scheduled task.
    pub(crate) fn record_workflow_task_started(
        &mut self,
        env: &mut Env,
        request: &RecordWorkflowTaskStarted,
    ) -> Result<(Reply, Release), Error> {
        let stale = || Error::not_found("Workflow task not found.");
        let Some(task) = self.workflow_task().filter(|_| self.is_open()) else {
            return Err(stale());
        };
        if task.started_event_id != 0 {
            // The reply to the same poll was lost on its way.
            return if !request.request_id.is_empty() && task.request_id == request.request_id {
                Ok((self.workflow_task_reply(env), Release::Prior))
            } else {
                Err(stale())
            };
        }
        // A transient task that was offered before further events came keeps its identity by attempt.
        if task.attempt != request.attempt
            || task.stamp != request.stamp
            || (task.kind() == Kind::Normal && task.scheduled_event_id != request.scheduled_event_id)
        {
            return Err(stale());
        }
        let speculative = task.kind() == Kind::Speculative;
        let poll = request.poll.clone().unwrap_or_default();
        let worker = versions::of_worker(poll.deployment_options.as_ref());
        if self.refuses_worker(worker.as_ref()) {
            return Err(stale());
        }
        let target = Some((request.target_version.clone(), request.target_revision));
        self.start_task_with(env, &poll.identity, &request.request_id, (target, Self::stamp_of(&poll)));
        // A speculative task leaves no trace: what its completion says of the worker is enough.
        if !speculative {
            self.note_worker(request, worker);
            self.note_assigned(request);
        }
        Ok((self.workflow_task_reply(env), Release::Prior))
    }

    /// Starts the scheduled task. Also used for tasks that start where they are scheduled (eager, heartbeats).
    pub(crate) fn start_workflow_task(&mut self, env: &Env, identity: &str, request_id: &str) {
        self.start_task_with(env, identity, request_id, (None, None));
    }

    /// `target`: where tasks of this run would go if it were not pinned, and since which revision of the routing. `stamp`: of
    /// the worker, if it uses an older form of versioning.
    fn start_task_with(
        &mut self,
        env: &Env,
        identity: &str,
        request_id: &str,
        (target, stamp): (Option<(Option<WorkerDeploymentVersion>, i64)>, Option<WorkerVersionStamp>),
    ) {
        let Some(mut task) = self.workflow_task().cloned() else {
            return;
        };
        // Events came after a retry was scheduled: the retry is an ordinary task now, with a Scheduled event after them.
        if task.kind() == Kind::Transient && task.scheduled_event_id != self.info.next_event_id {
            task.set_kind(Kind::Normal);
            task.attempt = 1;
            task.scheduled_event_id = self.info.next_event_id;
            self.info.edit().workflow_task_attempt = 1;
            let attributes = scheduled_attributes(&task, &self.info.task_queue);
            self.add_event(env.now, attributes);
        }
        task.started_time_ns = env.now.as_nanos();
        task.request_id = request_id.to_owned();
        task.identity = identity.to_owned();
        task.worker_version = stamp;
        task.history_size_bytes = self.info.history_size_bytes;
        task.suggest_continue_as_new_reasons = self.continue_as_new_reasons(env);
        task.suggest_continue_as_new = !task.suggest_continue_as_new_reasons.is_empty();
        task.target_version_changed = !self.is_plain() && self.notice_target(target);
        task.started_event_id = task.scheduled_event_id + 1;
        if task.kind() == Kind::Normal {
            task.started_event_id = self.add_event(env.now, started_attributes(&task));
        }
        self.info.edit().workflow_task = Some(task);
        // It may have been scheduled by this very transition.
        self.effects
            .retain(|effect| !matches!(effect, Effect::Offer(offer) if offer.kind == TaskKind::Workflow as i32));
    }

    fn continue_as_new_reasons(&self, env: &Env) -> Vec<i32> {
        let limits = env.limits;
        let mut reasons = Vec::new();
        if self.info.history_size_bytes >= limits.history_size_suggest_continue_as_new_bytes {
            reasons.push(SuggestContinueAsNewReason::HistorySizeTooLarge as i32);
        }
        if self.info.next_event_id >= limits.history_count_suggest_continue_as_new {
            reasons.push(SuggestContinueAsNewReason::TooManyHistoryEvents as i32);
        }
        if self.info.update_count * 100 >= limits.updates_total * limits.updates_suggest_continue_as_new_percent {
            reasons.push(SuggestContinueAsNewReason::TooManyUpdates as i32);
        }
        reasons
    }

    /// What the worker gets for the started task. The driver adds the history.
    pub(crate) fn workflow_task_reply(&mut self, env: &Env) -> Reply {
        let Some(task) = self.workflow_task().cloned() else {
            return Reply::default();
        };
        let from_event_id = if task.sticky { self.info.last_completed_workflow_task_started_id + 1 } else { 1 };
        let transient = task.kind() != Kind::Normal;
        let mut extra = Vec::new();
        if transient {
            let written = self.info.last_event_time_ns;
            let times = [task.scheduled_time_ns.max(written), task.started_time_ns.max(written)];
            let ids = [task.scheduled_event_id, task.started_event_id];
            for ((attributes, time), id) in task_events(&task, &self.info.task_queue).zip(times).zip(ids) {
                extra.push(Arc::new(HistoryEvent {
                    event_id: id,
                    event_time: Timestamp(time).to_proto(),
                    event_type: crate::events::event_type(&attributes) as i32,
                    task_id: id,
                    attributes: Some(attributes),
                    ..HistoryEvent::default()
                }));
            }
        }
        let response = PollWorkflowTaskQueueResponse {
            task_token: self.workflow_task_token(&task).encode_to_vec().into(),
            workflow_execution: Some(self.execution()),
            workflow_type: self.start().workflow_type.clone(),
            previous_started_event_id: self.info.last_completed_workflow_task_started_id,
            started_event_id: task.started_event_id,
            attempt: task.attempt,
            workflow_execution_task_queue: Some(TaskQueue {
                name: self.info.task_queue.clone(),
                kind: TaskQueueKind::Normal as i32,
                ..TaskQueue::default()
            }),
            scheduled_time: Timestamp(task.scheduled_time_ns).to_proto(),
            started_time: Timestamp(task.started_time_ns).to_proto(),
            queries: self.queries.take_for_workflow_task(),
            messages: self.update_messages(env, &task),
            ..PollWorkflowTaskQueueResponse::default()
        };
        let history = HistoryFill {
            run_id: self.run_id.clone(),
            from_event_id,
            until_event_id: if transient { task.scheduled_event_id } else { task.started_event_id + 1 },
            extra,
        };
        let mut reply = Reply::new(workflow_reply::Reply::WorkflowTask(response));
        reply.history = Some(history);
        reply
    }

    pub(crate) fn workflow_task_token(&self, task: &WorkflowTaskInfo) -> TaskToken {
        TaskToken {
            kind: task_token::Kind::Workflow as i32,
            namespace_id: self.key.namespace_id.to_string(),
            workflow_id: self.key.workflow_id.to_string(),
            run_id: self.run_id.clone(),
            scheduled_event_id: task.scheduled_event_id,
            started_event_id: task.started_event_id,
            attempt: task.attempt,
            started_time_ns: task.started_time_ns,
            ..TaskToken::default()
        }
    }

    pub(crate) fn execution(&self) -> WorkflowExecution {
        WorkflowExecution { workflow_id: self.key.workflow_id.to_string(), run_id: self.run_id.clone() }
    }

    /// The sticky queue has nobody polling: the scheduled task goes to the normal queue, with full history.
    pub(crate) fn sticky_queue_unavailable(&mut self, request: &StickyQueueUnavailable) {
        let stale = self.workflow_task().is_none_or(|task| {
            !task.sticky
                || task.started_event_id != 0
                || task.scheduled_event_id != request.scheduled_event_id
                || task.attempt != request.attempt
        });
        if !stale {
            self.move_to_normal_queue();
        }
    }

    /// Forgets stickiness; a scheduled sticky task is offered again on the normal queue.
    pub(crate) fn move_to_normal_queue(&mut self) {
        let normal = self.info.task_queue.clone();
        let info = self.info.edit();
        info.sticky = None;
        if let Some(task) = info.workflow_task.as_mut().filter(|task| task.sticky && task.started_event_id == 0) {
            task.sticky = false;
            task.task_queue = normal;
            self.offer_workflow_task();
        }
    }
}

/// Tasks that keep failing get ever more time, so that workers that let them time out retry ever more slowly.
fn retry_slack(attempt: i32, env: &Env) -> Duration {
    const AT_ONCE: i32 = 3;
    const FIRST: Duration = Duration::from_secs(5);
    if attempt <= AT_ONCE {
        return Duration::ZERO;
    }
    FIRST.mul_f64(2f64.powi(attempt - AT_ONCE - 1)).min(env.limits.workflow_task_retry_max_interval)
}

/// Scheduled, and Started if the task is.
pub(crate) fn task_events(task: &WorkflowTaskInfo, normal_queue: &str) -> impl Iterator<Item = Attributes> + use<> {
    let started = (task.started_event_id != 0).then(|| started_attributes(task));
    std::iter::once(scheduled_attributes(task, normal_queue)).chain(started)
}

fn scheduled_attributes(task: &WorkflowTaskInfo, normal_queue: &str) -> Attributes {
    let queue = if task.sticky {
        TaskQueue {
            name: task.task_queue.clone(),
            kind: TaskQueueKind::Sticky as i32,
            normal_name: normal_queue.to_owned(),
        }
    } else {
        TaskQueue { name: task.task_queue.clone(), kind: TaskQueueKind::Normal as i32, ..TaskQueue::default() }
    };
    Attributes::WorkflowTaskScheduledEventAttributes(WorkflowTaskScheduledEventAttributes {
        task_queue: Some(queue),
        start_to_close_timeout: Some(Duration(task.start_to_close_ns).to_proto()),
        attempt: task.attempt,
    })
}

#[allow(deprecated, reason = "histories show what older workers say of themselves")]
fn started_attributes(task: &WorkflowTaskInfo) -> Attributes {
    Attributes::WorkflowTaskStartedEventAttributes(WorkflowTaskStartedEventAttributes {
        scheduled_event_id: task.scheduled_event_id,
        identity: task.identity.clone(),
        request_id: task.request_id.clone(),
        suggest_continue_as_new: task.suggest_continue_as_new,
        suggest_continue_as_new_reasons: task.suggest_continue_as_new_reasons.clone(),
        history_size_bytes: task.history_size_bytes,
        target_worker_deployment_version_changed: task.target_version_changed,
        worker_version: task.worker_version.clone(),
        ..WorkflowTaskStartedEventAttributes::default()
    })
}
