//! Activities: scheduling and starting. What their workers report is in `activity_respond`, their deadlines in
//! `activity_timeout`.
//!
//! While an activity may be retried nothing of its attempts is in the history: its Started event is written together
//! with the event that ends it, and tells of the last attempt.

use perdure_proto::{
    Error,
    perdure::{
        node::v1::{Offer, RecordActivityTaskStarted, TaskKind, TaskToken, task_token, workflow_reply},
        state::v1::ActivityInfo,
    },
    temporal::api::{
        command::v1::{RequestCancelActivityTaskCommandAttributes, ScheduleActivityTaskCommandAttributes},
        common::v1::{Payload, Payloads},
        enums::v1::WorkflowTaskFailedCause as Cause,
        history::v1::{
            ActivityTaskCancelRequestedEventAttributes, ActivityTaskCanceledEventAttributes,
            ActivityTaskScheduledEventAttributes, history_event::Attributes,
        },
        workflowservice::v1::PollActivityTaskQueueResponse,
    },
};
use perdure_types::{Duration, Timestamp};
use prost::Message;

use crate::{
    activity_validation::validate_and_complete,
    api::{Answer, Effect, Env, Release},
    chain::{Answered, Chain, reply},
    command::{BadCommand, CommandContext, CommandResult},
    limits::{check_payload_bytes, check_pending},
    priority,
    rebuild::scheduled_activity,
    run::{Pending, Run},
};

pub(crate) type Activity = Pending<ActivityInfo>;

impl Activity {
    pub(crate) fn scheduled(&self) -> &ActivityTaskScheduledEventAttributes {
        static NONE: std::sync::LazyLock<ActivityTaskScheduledEventAttributes> =
            std::sync::LazyLock::new(ActivityTaskScheduledEventAttributes::default);
        match &self.event.attributes {
            Some(Attributes::ActivityTaskScheduledEventAttributes(scheduled)) => scheduled,
            _ => &NONE,
        }
    }

    /// An attempt is with a worker.
    pub(crate) fn is_started(&self) -> bool {
        self.info.started_time_ns != 0
    }

    /// Waits for a worker, or for the time when it may.
    pub(crate) fn waits(&self) -> bool {
        !self.is_started() && !self.info.paused
    }
}

impl Chain {
    pub(crate) fn record_activity_task_started(&mut self, c: RecordActivityTaskStarted, env: &mut Env) -> Answered {
        let run = self.open_run(&c.run_id)?;
        let Some(activity) = run.activities.get(&c.scheduled_event_id) else {
            return Err(activity_not_found());
        };
        if activity.is_started() {
            // The reply to the same poll was lost on its way.
            return if !c.request_id.is_empty() && activity.info.request_id == c.request_id {
                reply(workflow_reply::Reply::ActivityTask(run.activity_task(activity, env)))
            } else {
                Err(Error::not_found("Activity task already started."))
            };
        }
        let info = &activity.info;
        if info.attempt != c.attempt || info.stamp != c.stamp || info.paused || run.is_paused() {
            return Err(Error::not_found(format!("Activity task with this stamp not found: {}", c.stamp)));
        }
        if run.is_held_by_rule(env, c.scheduled_event_id) {
            let error = Error::not_found("Activity task is paused by a workflow rule.");
            return Ok((Answer::Reject(error), Release::Durable));
        }
        if let Some(moved) = run.admit_activity_worker(&c, env)? {
            return Ok((Answer::Reject(moved), Release::Durable));
        }
        let identity = c.poll.map(|poll| poll.identity).unwrap_or_default();
        let task =
            run.start_activity(c.scheduled_event_id, &identity, c.request_id, env).ok_or_else(activity_not_found)?;
        reply(workflow_reply::Reply::ActivityTask(task))
    }
}

pub(crate) fn activity_not_found() -> Error {
    Error::not_found("invalid activityID or activity already timed out or invoking workflow is completed")
}

impl Run {
    pub(crate) fn schedule_activity_command(
        &mut self,
        env: &mut Env,
        ctx: &CommandContext,
        mut activity: ScheduleActivityTaskCommandAttributes,
    ) -> CommandResult {
        let run_timeout = Duration::from_proto(self.start().workflow_run_timeout.as_ref());
        validate_and_complete(&mut activity, run_timeout, &self.info.task_queue, env.limits)
            .map_err(|message| BadCommand::new(Cause::BadScheduleActivityAttributes, message))?;
        let input_bytes = activity.input.as_ref().map_or(0, Message::encoded_len);
        let message = "ScheduleActivityTaskCommandAttributes.Input exceeds size limit.";
        check_payload_bytes(env, input_bytes, Cause::BadScheduleActivityAttributes, message)?;
        check_pending(
            self.activities.len(),
            env.limits.pending_activities_error,
            "pending activities",
            Cause::PendingActivitiesLimitExceeded,
        )?;
        if self.activity_by_id(&activity.activity_id).is_some() {
            let message = format!(
                "invalid history builder state for action: add-activitytask-scheduled-event, ActivityID: {}",
                activity.activity_id
            );
            return Err(BadCommand::new(Cause::ScheduleActivityDuplicateId, message));
        }
        self.add_activity(env, ctx, activity);
        Ok(())
    }

    /// Whether a new activity goes to the worker that schedules it. Not past the namespace's rules: those look at offers.
    pub(crate) fn is_eager(&self, env: &Env, is_requested: bool) -> bool {
        is_requested
            && env.limits.activity_eager_execution
            && !self.is_paused()
            && env.namespaces.rules(&self.key.namespace_id).is_empty()
    }

    #[allow(deprecated, reason = "older workers say where their activities go")]
    fn add_activity(&mut self, env: &Env, ctx: &CommandContext, activity: ScheduleActivityTaskCommandAttributes) {
        let eager = self.is_eager(env, activity.request_eager_execution);
        let event = ctx.event(Attributes::ActivityTaskScheduledEventAttributes(ActivityTaskScheduledEventAttributes {
            activity_id: activity.activity_id,
            activity_type: activity.activity_type,
            task_queue: activity.task_queue,
            header: activity.header,
            input: activity.input,
            schedule_to_close_timeout: activity.schedule_to_close_timeout,
            schedule_to_start_timeout: activity.schedule_to_start_timeout,
            start_to_close_timeout: activity.start_to_close_timeout,
            heartbeat_timeout: activity.heartbeat_timeout,
            workflow_task_completed_event_id: ctx.completed_event_id,
            retry_policy: activity.retry_policy,
            priority: activity.priority,
            use_workflow_build_id: activity.use_workflow_build_id,
        }));
        let id = self.add_prepared(env.now, event);
        let Some(event) = self.last_new_event() else {
            return;
        };
        let Some(Attributes::ActivityTaskScheduledEventAttributes(scheduled)) = &event.attributes else {
            return;
        };
        let info = ActivityInfo { eager, ..scheduled_activity(&event, scheduled) };
        self.activities.insert(id, Pending { info, event });
        if !eager {
            self.offer_activity_when_due(id, env.now);
        }
    }

    pub(crate) fn request_cancel_activity_command(
        &mut self,
        env: &mut Env,
        ctx: &CommandContext,
        a: RequestCancelActivityTaskCommandAttributes,
    ) -> CommandResult {
        let bad = |message: String| BadCommand::new(Cause::BadRequestCancelActivityAttributes, message);
        if a.scheduled_event_id <= 0 {
            return Err(bad("ScheduledEventId is not set on RequestCancelActivityTaskCommand.".to_owned()));
        }
        let id = a.scheduled_event_id;
        let started = match self.activities.get(&id) {
            Some(activity) if !activity.info.cancel_requested => Some(activity.is_started()),
            // Its end waits in the buffer: the worker could not know.
            None if self
                .buffered
                .iter()
                .any(|event| event.attributes.as_ref().is_some_and(|e| ends_activity(e, id))) =>
            {
                None
            }
            Some(_) | None => {
                let action = "invalid history builder state for action: add-activitytask-cancel-requested-event";
                return Err(bad(format!("{action}, ScheduledEventID: {id}")));
            }
        };
        let event = ctx.event(Attributes::ActivityTaskCancelRequestedEventAttributes(
            ActivityTaskCancelRequestedEventAttributes {
                scheduled_event_id: id,
                workflow_task_completed_event_id: ctx.completed_event_id,
            },
        ));
        let event_id = self.add_prepared(env.now, event);
        if let Some(activity) = self.activities.get_mut(&id) {
            activity.info.cancel_requested = true;
            activity.info.cancel_requested_event_id = event_id;
        }
        if started == Some(false) {
            let canceled = self.canceled_before_start(id, &ctx.identity);
            self.activities.remove(&id);
            self.buffer_event(env.now, canceled);
        }
        Ok(())
    }

    /// The end of an activity that no worker has.
    pub(crate) fn canceled_before_start(&self, id: i64, identity: &str) -> Attributes {
        let requested = self.activities.get(&id).map_or(0, |activity| activity.info.cancel_requested_event_id);
        let mut details = Payload { data: br#""ACTIVITY_ID_NOT_STARTED""#.as_slice().into(), ..Payload::default() };
        details.metadata.insert("encoding".to_owned(), b"json/plain".as_slice().into());
        Attributes::ActivityTaskCanceledEventAttributes(ActivityTaskCanceledEventAttributes {
            details: Some(Payloads { payloads: vec![details] }),
            latest_cancel_requested_event_id: requested,
            scheduled_event_id: id,
            identity: identity.to_owned(),
            ..ActivityTaskCanceledEventAttributes::default()
        })
    }

    pub(crate) fn activity_by_id(&self, activity_id: &str) -> Option<&Activity> {
        self.activities.values().find(|activity| activity.info.activity_id == activity_id)
    }

    /// Hands the activity to a worker.
    pub(crate) fn start_activity(
        &mut self,
        id: i64,
        identity: &str,
        request_id: String,
        env: &Env,
    ) -> Option<PollActivityTaskQueueResponse> {
        let info = &mut self.activities.get_mut(&id)?.info;
        info.started_time_ns = env.now.as_nanos().max(info.scheduled_time_ns);
        info.last_started_time_ns = info.started_time_ns;
        info.request_id = request_id;
        info.identity = identity.to_owned();
        let activity = self.activities.get(&id)?;
        Some(self.activity_task(activity, env))
    }

    /// What the worker gets.
    fn activity_task(&self, activity: &Activity, env: &Env) -> PollActivityTaskQueueResponse {
        let (info, scheduled, options) = (&activity.info, activity.scheduled(), activity.options());
        let namespace = env.namespaces.by_id(&self.key.namespace_id).map(|n| n.name.to_string()).unwrap_or_default();
        PollActivityTaskQueueResponse {
            task_token: self.activity_token(info).encode_to_vec().into(),
            workflow_namespace: namespace,
            workflow_type: self.start().workflow_type.clone(),
            workflow_execution: Some(self.execution()),
            activity_type: scheduled.activity_type.clone(),
            activity_id: info.activity_id.clone(),
            header: scheduled.header.clone(),
            input: scheduled.input.clone(),
            heartbeat_details: info.heartbeat_details.clone(),
            scheduled_time: Timestamp(info.first_scheduled_time_ns).to_proto(),
            current_attempt_scheduled_time: Timestamp(info.scheduled_time_ns).to_proto(),
            started_time: Timestamp(info.started_time_ns).to_proto(),
            attempt: info.attempt,
            schedule_to_close_timeout: options.schedule_to_close_timeout,
            start_to_close_timeout: options.start_to_close_timeout,
            heartbeat_timeout: options.heartbeat_timeout,
            retry_policy: options.retry_policy,
            priority: priority::merged(self.info.priority.as_ref(), options.priority.as_ref()),
            ..PollActivityTaskQueueResponse::default()
        }
    }

    /// Of the workflow, if the activity is on another one: routing looks at both.
    fn queue_if_other(&self, task_queue: &str) -> String {
        if task_queue == self.info.task_queue { String::new() } else { self.info.task_queue.clone() }
    }

    pub(crate) fn activity_token(&self, info: &ActivityInfo) -> TaskToken {
        TaskToken {
            kind: task_token::Kind::Activity as i32,
            namespace_id: self.key.namespace_id.to_string(),
            workflow_id: self.key.workflow_id.to_string(),
            run_id: self.run_id.clone(),
            scheduled_event_id: info.scheduled_event_id,
            started_event_id: delivery(info),
            attempt: info.attempt,
            activity_id: info.activity_id.clone(),
            started_time_ns: info.started_time_ns,
            ..TaskToken::default()
        }
    }

    /// Offers the waiting activity, now or when its backoff is over.
    pub(crate) fn offer_activity_when_due(&mut self, id: i64, now: Timestamp) {
        let Some(activity) = self.activities.get(&id).filter(|activity| activity.waits() && !self.is_paused()) else {
            return;
        };
        if activity.info.scheduled_time_ns > now.as_nanos() {
            self.delayed.activities.insert((Timestamp(activity.info.scheduled_time_ns), id));
        } else {
            let offer = self.activity_offer(activity);
            self.effects.push(Effect::Offer(offer));
        }
    }

    pub(crate) fn activity_offer(&self, activity: &Activity) -> Offer {
        let info = &activity.info;
        let (directive, unassigned) = self.activity_directive(activity);
        Offer {
            kind: TaskKind::Activity as i32,
            namespace_id: self.key.namespace_id.to_string(),
            task_queue: activity.task_queue().to_owned(),
            workflow_id: self.key.workflow_id.to_string(),
            run_id: self.run_id.clone(),
            scheduled_event_id: info.scheduled_event_id,
            attempt: info.attempt,
            stamp: info.stamp,
            scheduled_time_ns: info.scheduled_time_ns,
            priority: priority::merged(self.info.priority.as_ref(), activity.priority()),
            directive,
            unassigned,
            normal_task_queue: self.queue_if_other(activity.task_queue()),
            ..Offer::default()
        }
    }
}

/// Tells deliveries of one attempt apart: a worker that is believed gone may answer after all. In tokens, where 0 means
/// that the answer came by activity id.
pub fn delivery(info: &ActivityInfo) -> i64 {
    i64::from(info.stamp) + 1
}

fn ends_activity(attributes: &Attributes, id: i64) -> bool {
    match attributes {
        Attributes::ActivityTaskCompletedEventAttributes(a) => a.scheduled_event_id == id,
        Attributes::ActivityTaskFailedEventAttributes(a) => a.scheduled_event_id == id,
        Attributes::ActivityTaskTimedOutEventAttributes(a) => a.scheduled_event_id == id,
        Attributes::ActivityTaskCanceledEventAttributes(a) => a.scheduled_event_id == id,
        _ => false,
    }
}
