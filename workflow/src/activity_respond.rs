//! Activities: what their workers report, and how they end.

use std::collections::BTreeSet;

use perdure_proto::{
    Error,
    perdure::node::v1::{
        ActivityRef, RespondActivityTask, RespondActivityTaskReply, TaskToken, TaskUndelivered,
        respond_activity_task::{Canceled, Completed, Failed, Heartbeat, Outcome},
        task_token, workflow_reply,
    },
    temporal::api::{
        common::v1::WorkerVersionStamp,
        history::v1::{
            ActivityTaskCanceledEventAttributes, ActivityTaskCompletedEventAttributes,
            ActivityTaskFailedEventAttributes, ActivityTaskStartedEventAttributes, history_event::Attributes,
        },
    },
};
use perdure_types::{PollName, Timestamp};

use crate::{
    activity::{activity_not_found, delivery},
    api::{Answer, Env, Release, Reply},
    chain::{Answered, Chain, empty_reply},
    run::Run,
};

impl Chain {
    pub(crate) fn respond_activity_task(&mut self, c: RespondActivityTask, env: &mut Env) -> Answered {
        let activity = c.activity.unwrap_or_default();
        let outcome = c.outcome.ok_or_else(|| Error::invalid_argument("Outcome is not set on request."))?;
        let run = self.open_run(&activity.run_id)?;
        let may_be_waiting = matches!(outcome, Outcome::Completed(_));
        let id = run.find_activity(&activity, may_be_waiting)?;
        let mut release = Release::Durable;
        let mut answer = RespondActivityTaskReply::default();
        match outcome {
            Outcome::Completed(completed) => run.activity_completed(env, id, completed, &c.identity, c.worker_version),
            Outcome::Failed(failed) => run.activity_failed(env, id, failed, &c.identity, c.worker_version),
            Outcome::Canceled(canceled) => run.activity_canceled(env, id, canceled, &c.identity)?,
            Outcome::Heartbeat(heartbeat) => {
                answer = run.activity_heartbeat(env, id, heartbeat, &c.identity);
                release = Release::Now;
            }
        }
        let reply = Reply::new(workflow_reply::Reply::RespondActivityTask(answer));
        Ok((Answer::Reply(Box::new(reply)), release))
    }

    /// Nobody got the task that was started. It waits again, as if it had never been.
    pub(crate) fn task_undelivered(&mut self, c: TaskUndelivered, env: &mut Env) -> Answered {
        let token = c.token.unwrap_or_default();
        let run = self.open_run(&token.run_id)?;
        match token.kind() {
            task_token::Kind::Workflow => run.workflow_task_undelivered(env, &token)?,
            task_token::Kind::Activity => run.activity_task_undelivered(env, &token)?,
            task_token::Kind::Query | task_token::Kind::Nexus | task_token::Kind::Unspecified => {}
        }
        empty_reply()
    }
}

impl Run {
    /// The pending activity that a worker speaks of.
    fn find_activity(&self, activity: &ActivityRef, may_be_waiting: bool) -> Result<i64, Error> {
        if activity.scheduled_event_id != 0 {
            let Some(pending) = self.activities.get(&activity.scheduled_event_id) else {
                return Err(activity_not_found());
            };
            let stale_delivery = activity.started_event_id != 0 && activity.started_event_id != delivery(&pending.info);
            // An attempt that was reset while it ran still answers with its old number.
            let same_attempt = pending.info.attempt == activity.attempt || pending.info.reset;
            if !pending.is_started() || !same_attempt || stale_delivery {
                return Err(activity_not_found());
            }
            return Ok(activity.scheduled_event_id);
        }
        if activity.activity_id.is_empty() {
            return Err(Error::invalid_argument("activityID cannot be empty"));
        }
        let pending = self.activity_by_id(&activity.activity_id).ok_or_else(|| {
            Error::not_found(format!(
                "cannot find pending activity with ActivityID {}, check workflow execution history for more details",
                activity.activity_id
            ))
        })?;
        if !pending.is_started() && !may_be_waiting {
            return Err(activity_not_found());
        }
        Ok(pending.info.scheduled_event_id)
    }

    fn activity_completed(
        &mut self,
        env: &Env,
        id: i64,
        completed: Completed,
        identity: &str,
        version: Option<WorkerVersionStamp>,
    ) {
        if let Some(activity) = self.activities.get_mut(&id).filter(|activity| activity.info.started_time_ns == 0) {
            // Completed by id before a worker had it: the completer stands for the worker.
            activity.info.started_time_ns = env.now.as_nanos();
            activity.info.request_id.clear();
            activity.info.identity = identity.to_owned();
        }
        let started_event_id = self.add_activity_started(id, version);
        let attributes = Attributes::ActivityTaskCompletedEventAttributes(ActivityTaskCompletedEventAttributes {
            result: completed.result,
            scheduled_event_id: id,
            started_event_id,
            identity: identity.to_owned(),
            ..ActivityTaskCompletedEventAttributes::default()
        });
        self.end_activity(env, id, attributes);
    }

    fn activity_failed(
        &mut self,
        env: &Env,
        id: i64,
        failed: Failed,
        identity: &str,
        version: Option<WorkerVersionStamp>,
    ) {
        if let (Some(activity), Some(details)) = (self.activities.get_mut(&id), failed.last_heartbeat_details) {
            activity.info.heartbeat_details = Some(details);
            activity.info.last_heartbeat_time_ns = env.now.as_nanos();
        }
        let retry_state = match self.retry_activity(env, id, failed.failure.as_ref()) {
            Ok(()) => return,
            Err(retry_state) => retry_state,
        };
        let started_event_id = self.add_activity_started(id, version);
        let attributes = Attributes::ActivityTaskFailedEventAttributes(ActivityTaskFailedEventAttributes {
            failure: failed.failure,
            scheduled_event_id: id,
            started_event_id,
            identity: identity.to_owned(),
            retry_state: retry_state as i32,
            ..ActivityTaskFailedEventAttributes::default()
        });
        self.end_activity(env, id, attributes);
    }

    fn activity_canceled(&mut self, env: &Env, id: i64, canceled: Canceled, identity: &str) -> Result<(), Error> {
        let Some(info) = self.activities.get(&id).map(|activity| &activity.info) else {
            return Err(activity_not_found());
        };
        if !info.cancel_requested {
            return Err(Error::invalid_argument(
                "unable to mark activity as canceled without activity being request canceled first",
            ));
        }
        let latest_cancel_requested_event_id = info.cancel_requested_event_id;
        let started_event_id = self.add_activity_started(id, None);
        let attributes = Attributes::ActivityTaskCanceledEventAttributes(ActivityTaskCanceledEventAttributes {
            details: canceled.details,
            latest_cancel_requested_event_id,
            scheduled_event_id: id,
            started_event_id,
            identity: identity.to_owned(),
            ..ActivityTaskCanceledEventAttributes::default()
        });
        self.end_activity(env, id, attributes);
        Ok(())
    }

    fn activity_heartbeat(
        &mut self,
        env: &Env,
        id: i64,
        heartbeat: Heartbeat,
        identity: &str,
    ) -> RespondActivityTaskReply {
        let Some(activity) = self.activities.get_mut(&id) else {
            return RespondActivityTaskReply::default();
        };
        let info = &mut activity.info;
        info.heartbeat_details = heartbeat.details;
        info.last_heartbeat_time_ns = env.now.as_nanos();
        if !identity.is_empty() {
            info.last_identity = identity.to_owned();
        }
        RespondActivityTaskReply {
            cancel_requested: info.cancel_requested,
            activity_paused: info.paused,
            activity_reset: info.reset,
        }
    }

    /// Tasks that were started for one of these polls, and have not ended since.
    pub(crate) fn started_for(&self, polls: &BTreeSet<PollName>) -> Vec<TaskToken> {
        let is_for = |request_id: &str| PollName::of_request(request_id).is_some_and(|poll| polls.contains(&poll));
        let activities = self.activities.values().filter(|_| self.is_open()).map(|activity| &activity.info);
        let activities = activities.filter(|info| info.started_time_ns != 0 && is_for(&info.request_id));
        let workflow_task = self.workflow_task().filter(|task| task.started_event_id != 0 && is_for(&task.request_id));
        let tokens = activities.map(|info| self.activity_token(info));
        tokens.chain(workflow_task.map(|task| self.workflow_task_token(task))).collect()
    }

    fn activity_task_undelivered(&mut self, env: &Env, token: &TaskToken) -> Result<(), Error> {
        let id = token.scheduled_event_id;
        let Some(activity) = self.activities.get(&id) else {
            return Err(activity_not_found());
        };
        let same = (activity.info.attempt == token.attempt || activity.info.reset)
            && activity.info.started_time_ns == token.started_time_ns
            && token.started_event_id == delivery(&activity.info);
        if !activity.is_started() || !same {
            return Err(activity_not_found());
        }
        if activity.info.cancel_requested {
            let canceled = self.canceled_before_start(id, "");
            self.end_activity(env, id, canceled);
            return Ok(());
        }
        if let Some(activity) = self.activities.get_mut(&id) {
            let info = &mut activity.info;
            info.started_time_ns = 0;
            info.request_id.clear();
            info.identity.clear();
            info.eager = false;
            info.reset = false;
            info.stamp += 1;
        }
        self.offer_activity_when_due(id, env.now);
        Ok(())
    }

    #[allow(deprecated, reason = "older workers still send their version")]
    /// Writes the Started event of the attempt that has ended. 0 if it has been buffered.
    pub(crate) fn add_activity_started(&mut self, id: i64, worker_version: Option<WorkerVersionStamp>) -> i64 {
        let Some(info) = self.activities.get(&id).map(|activity| &activity.info) else {
            return 0;
        };
        if info.started_time_ns == 0 {
            return 0;
        }
        let started = Timestamp(info.started_time_ns);
        let attributes = Attributes::ActivityTaskStartedEventAttributes(ActivityTaskStartedEventAttributes {
            scheduled_event_id: id,
            identity: info.identity.clone(),
            request_id: info.request_id.clone(),
            attempt: info.attempt,
            last_failure: info.last_failure.clone(),
            worker_version,
            ..ActivityTaskStartedEventAttributes::default()
        });
        self.add_external(started, attributes).unwrap_or(0)
    }

    /// Writes the event that ends an activity, and has the workflow look at it.
    pub(crate) fn end_activity(&mut self, env: &Env, id: i64, attributes: Attributes) {
        let ended = self.activities.remove(&id);
        if ended.is_some_and(|activity| activity.info.paused) {
            self.show_what_is_paused();
        }
        self.add_external(env.now, attributes);
        self.ensure_workflow_task(env);
    }
}
