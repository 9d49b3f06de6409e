//! What the worker of an attempt reports.

use perdure_proto::{
    Error,
    perdure::node::v1::{
        ActivityRef, RespondActivityTask, RespondActivityTaskReply, TaskToken,
        respond_activity_task::{Canceled, Failed, Heartbeat, Outcome},
    },
    temporal::api::{
        activity::v1::{ActivityExecutionOutcome, activity_execution_outcome::Value},
        enums::v1::{ActivityExecutionStatus as Status, RetryState},
        failure::v1::{CanceledFailureInfo, Failure, failure::FailureInfo},
    },
};
use perdure_types::Timestamp;
use perdure_workflow::{Env, Release, attempts::delivery};

use crate::run::{Run, TASK, task_not_found};

impl Run {
    pub(crate) fn respond(
        &mut self,
        command: RespondActivityTask,
        env: &Env,
    ) -> Result<(RespondActivityTaskReply, Release), Error> {
        let outcome = command.outcome.ok_or_else(|| Error::invalid_argument("Outcome is not set on request."))?;
        // Without a worker it may be completed by its id: whoever does stands for the worker.
        let may_be_waiting = matches!(outcome, Outcome::Completed(_));
        self.check_speaker(&command.activity.unwrap_or_default(), may_be_waiting)?;
        match outcome {
            Outcome::Completed(completed) => {
                let info = self.edit();
                if info.started_time_ns == 0 {
                    info.started_time_ns = env.now.as_nanos();
                    info.last_started_time_ns = info.started_time_ns;
                }
                info.last_identity.clone_from(&command.identity);
                let result = completed.result.unwrap_or_default();
                let outcome = ActivityExecutionOutcome { value: Some(Value::Result(result)), ..Default::default() };
                self.close(Status::Completed, outcome, env);
            }
            Outcome::Failed(failed) => self.attempt_failed(failed, command.identity, env),
            Outcome::Canceled(canceled) => self.canceled_by_worker(canceled, env)?,
            Outcome::Heartbeat(heartbeat) => return Ok((self.heartbeat(heartbeat, env), Release::Now)),
        }
        Ok((RespondActivityTaskReply::default(), Release::Durable))
    }

    /// Whether the one who speaks has the attempt.
    fn check_speaker(&self, activity: &ActivityRef, may_be_waiting: bool) -> Result<(), Error> {
        if !self.is_open() {
            return Err(task_not_found());
        }
        if activity.scheduled_event_id == 0 {
            return if self.is_started() || may_be_waiting { Ok(()) } else { Err(task_not_found()) };
        }
        let info = self.info();
        let stale_delivery = activity.started_event_id != 0 && activity.started_event_id != delivery(info);
        // An attempt that was reset while it ran still answers with its old number.
        let same_attempt = info.attempt == activity.attempt || info.reset;
        if activity.scheduled_event_id != TASK || !self.is_started() || !same_attempt || stale_delivery {
            return Err(task_not_found());
        }
        Ok(())
    }

    fn attempt_failed(&mut self, failed: Failed, identity: String, env: &Env) {
        if let Some(details) = failed.last_heartbeat_details {
            self.note_heartbeat(Some(details), env.now);
        }
        self.edit().last_identity = identity;
        // A failure that says nothing is still one: who polls for the outcome must see it.
        let failure = failed.failure.unwrap_or_else(|| Failure {
            message: "activity task failed without failure details".to_owned(),
            ..Failure::default()
        });
        if let Err(retry_state) = self.retry(&failure, env) {
            self.edit().last_failure = Some(failure.clone());
            self.close_with_failure(Status::Failed, failure, retry_state, env);
        }
    }

    fn canceled_by_worker(&mut self, canceled: Canceled, env: &Env) -> Result<(), Error> {
        if !self.info().cancel_requested {
            return Err(Error::invalid_argument(
                "unable to mark activity as canceled without activity being request canceled first",
            ));
        }
        self.end_canceled(canceled.details, env);
        Ok(())
    }

    pub(crate) fn end_canceled(
        &mut self,
        details: Option<perdure_proto::temporal::api::common::v1::Payloads>,
        env: &Env,
    ) {
        let info = CanceledFailureInfo { details, identity: self.state.cancel_identity.clone() };
        let failure = Failure {
            message: "Activity canceled".to_owned(),
            failure_info: Some(FailureInfo::CanceledFailureInfo(info)),
            ..Failure::default()
        };
        self.close_with_failure(Status::Canceled, failure, RetryState::Unspecified, env);
    }

    fn heartbeat(&mut self, heartbeat: Heartbeat, env: &Env) -> RespondActivityTaskReply {
        self.note_heartbeat(heartbeat.details, env.now);
        let info = self.info();
        RespondActivityTaskReply {
            cancel_requested: info.cancel_requested,
            activity_paused: info.paused,
            activity_reset: info.reset,
        }
    }

    fn note_heartbeat(&mut self, details: Option<perdure_proto::temporal::api::common::v1::Payloads>, now: Timestamp) {
        let info = self.edit();
        info.heartbeat_details = details;
        info.last_heartbeat_time_ns = now.as_nanos();
        self.state.heartbeat_count += 1;
    }

    /// Nobody got the task that was started. It waits again, as if it had never been.
    pub(crate) fn undelivered(&mut self, token: &TaskToken, env: &Env) -> Result<(), Error> {
        let info = self.info();
        let same = (info.attempt == token.attempt || info.reset)
            && info.started_time_ns == token.started_time_ns
            && token.started_event_id == delivery(info);
        if !self.is_open() || !self.is_started() || !same {
            return Err(task_not_found());
        }
        if info.cancel_requested {
            self.end_canceled(None, env);
            return Ok(());
        }
        let at = Timestamp(info.scheduled_time_ns);
        self.give_back();
        self.edit().reset = false;
        self.schedule_again(at, env.now);
        Ok(())
    }
}
