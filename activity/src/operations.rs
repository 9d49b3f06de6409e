//! What clients and operators do to a run: cancel, terminate, pause, unpause, reset, change its options.

use perdure_proto::{
    Error,
    perdure::{
        node::v1::{
            ActivityOperation,
            activity_operation::{Operation, Pause, Reset, Unpause, UpdateOptions},
        },
        state::v1::PauseInfo,
    },
    temporal::api::{
        activity::v1::ActivityOptions,
        command::v1::ScheduleActivityTaskCommandAttributes,
        common::v1::{Payload, Payloads},
        enums::v1::{ActivityExecutionStatus as Status, RetryState},
        failure::v1::{Failure, TerminatedFailureInfo, failure::FailureInfo},
        workflowservice::v1::{RequestCancelActivityExecutionRequest, TerminateActivityExecutionRequest},
    },
};
use perdure_types::{Duration, Timestamp};
use perdure_workflow::{
    Env,
    attempts::{backoff, merge, validate_and_complete},
};

use crate::{run::Run, start::options_of};

impl Run {
    pub(crate) fn request_cancel(
        &mut self,
        request: RequestCancelActivityExecutionRequest,
        env: &Env,
    ) -> Result<(), Error> {
        // First, for the repetition of a request may come after the end that it brought about.
        if !request.request_id.is_empty() && self.state.cancel_request_id == request.request_id {
            return Ok(());
        }
        self.check_open()?;
        if self.info().cancel_requested {
            return Err(Error::failed_precondition(format!(
                "cancellation already requested with request ID {}",
                self.state.cancel_request_id
            )));
        }
        self.state.cancel_request_id = request.request_id;
        self.state.cancel_reason.clone_from(&request.reason);
        self.state.cancel_identity = request.identity;
        let info = self.edit();
        info.cancel_requested = true;
        // A reset that waits for the end of the attempt has no next attempt to begin.
        info.reset_heartbeats = false;
        if !self.is_started() {
            let data = format!("\"{}\"", request.reason.replace('\\', "\\\\").replace('"', "\\\""));
            let mut reason = Payload { data: data.into(), ..Payload::default() };
            reason.metadata.insert("encoding".to_owned(), b"json/plain".as_slice().into());
            self.end_canceled(Some(Payloads { payloads: vec![reason] }), env);
        }
        Ok(())
    }

    pub(crate) fn terminate(&mut self, request: TerminateActivityExecutionRequest, env: &Env) -> Result<(), Error> {
        if self.status() == Status::Terminated {
            let before = &self.state.terminate_request_id;
            if *before == request.request_id {
                return Ok(());
            }
            return Err(Error::failed_precondition(format!("already terminated with request ID {before}")));
        }
        self.check_open()?;
        self.state.terminate_request_id = request.request_id;
        let failure = Failure {
            message: request.reason,
            failure_info: Some(FailureInfo::TerminatedFailureInfo(TerminatedFailureInfo {
                identity: request.identity,
            })),
            ..Failure::default()
        };
        self.close_with_failure(Status::Terminated, failure, RetryState::Unspecified, env);
        Ok(())
    }

    pub(crate) fn operate(&mut self, command: ActivityOperation, env: &mut Env) -> Result<ActivityOptions, Error> {
        let operation = command.operation.ok_or_else(|| Error::invalid_argument("Operation is not set on request."))?;
        self.check_open()?;
        match &operation {
            Operation::Pause(pause) => self.pause(pause, &command.identity, env)?,
            Operation::Unpause(unpause) => self.unpause(unpause, env)?,
            Operation::Reset(reset) => self.reset(reset, env)?,
            Operation::UpdateOptions(update) => self.update_options(update, env)?,
        }
        Ok(self.options().clone())
    }

    fn check_open(&self) -> Result<(), Error> {
        if self.is_open() {
            return Ok(());
        }
        Err(Error::failed_precondition(format!("activity is in terminal state {}", self.status().as_str_name())))
    }

    fn pause(&mut self, pause: &Pause, identity: &str, env: &Env) -> Result<(), Error> {
        let info = self.info();
        let before = info.pause.as_ref().map_or("", |pause| pause.request_id.as_str());
        if !pause.request_id.is_empty() && before == pause.request_id {
            return Ok(());
        }
        if info.paused || info.cancel_requested || info.reset {
            return Err(Error::failed_precondition("activity is in non-pausable state"));
        }
        let started = self.is_started();
        let info = self.edit();
        info.paused = true;
        info.pause = Some(Box::new(PauseInfo {
            time_ns: env.now.as_nanos(),
            identity: identity.to_owned(),
            reason: pause.reason.clone(),
            request_id: pause.request_id.clone(),
            ..PauseInfo::default()
        }));
        if !started {
            info.stamp += 1;
            self.offered = false;
            self.state.status = Status::Paused as i32;
        }
        Ok(())
    }

    fn end_pause(&mut self) {
        // What the pause was stays, so that a late repetition of its request does nothing.
        self.edit().paused = false;
        self.state.status = Status::Running as i32;
    }

    fn unpause(&mut self, unpause: &Unpause, env: &mut Env) -> Result<(), Error> {
        if !self.info().paused {
            return Err(Error::failed_precondition("activity is in non-unpausable state"));
        }
        self.end_pause();
        let started = self.is_started();
        let info = self.edit();
        if unpause.reset_attempts {
            info.attempt = 1;
            info.reset = started;
        }
        if unpause.reset_heartbeat {
            info.heartbeat_details = None;
            info.last_heartbeat_time_ns = 0;
        }
        if !started {
            self.schedule_again(env.now + Duration(env.ids.below(unpause.jitter_ns)), env.now);
        }
        Ok(())
    }

    fn reset(&mut self, reset: &Reset, env: &mut Env) -> Result<(), Error> {
        let info = self.info();
        if info.cancel_requested || info.reset {
            let what = if info.reset { "reset" } else { "cancellation" };
            return Err(Error::failed_precondition(format!("cannot reset an activity with a pending {what}")));
        }
        if reset.restore_original_options {
            self.set_options(options_of(&self.request().clone()));
        }
        if self.info().paused && !reset.keep_paused {
            self.end_pause();
        }
        if self.is_started() {
            let info = self.edit();
            info.reset = true;
            info.reset_heartbeats |= reset.reset_heartbeat;
            return Ok(());
        }
        let info = self.edit();
        info.attempt = 1;
        info.current_retry_interval_ns = 0;
        if reset.reset_heartbeat {
            info.heartbeat_details = None;
            info.last_heartbeat_time_ns = 0;
        }
        if info.paused {
            info.stamp += 1;
            return Ok(());
        }
        let at = (env.now + Duration(env.ids.below(reset.jitter_ns))).max(self.execution_time());
        self.schedule_again(at, env.now);
        Ok(())
    }

    fn update_options(&mut self, update: &UpdateOptions, env: &Env) -> Result<(), Error> {
        let info = self.info();
        if info.cancel_requested || info.reset {
            return Err(Error::failed_precondition("Cannot update options for activity in this state"));
        }
        let paths = update.update_mask.as_ref().map(|mask| mask.paths.as_slice()).unwrap_or_default();
        let before_first = info.attempt == 1 && info.last_started_time_ns == 0;
        let mut options = if update.restore_original {
            if update.options.is_some() || !paths.is_empty() {
                return Err(Error::invalid_argument("RestoreOriginal cannot be combined with other options."));
            }
            options_of(self.request())
        } else {
            let wanted = update
                .options
                .as_ref()
                .ok_or_else(|| Error::invalid_argument("ActivityOptions are not set on request."))?;
            if paths.is_empty() {
                return Err(Error::invalid_argument("UpdateMask is not set on request."));
            }
            let mut options = self.options().clone();
            merge(&mut options, wanted, paths)?;
            if paths.iter().any(|path| path == "start_delay" || path == "startDelay") {
                if !before_first {
                    return Err(Error::failed_precondition(
                        "cannot update start_delay: the first activity attempt has already been dispatched",
                    ));
                }
                options.start_delay = wanted.start_delay;
            }
            options
        };
        self.complete(&mut options, env)?;
        self.set_options(options);
        if self.is_started() {
            return Ok(());
        }
        let at = if before_first { self.execution_time() } else { self.retry_time(env) };
        if self.info().paused {
            self.edit().scheduled_time_ns = at.as_nanos();
        } else {
            self.schedule_again(at, env.now);
        }
        Ok(())
    }

    /// When the attempt that waits begins by the retry policy as it is now.
    fn retry_time(&self, env: &Env) -> Timestamp {
        let (info, mut policy) = (self.info(), self.options().retry_policy.clone().unwrap_or_default());
        policy.maximum_attempts = 0;
        match backoff(&policy, info.attempt - 1, None, env.now, None) {
            Ok(interval) if info.attempt > 1 => Timestamp(info.last_attempt_complete_time_ns) + interval,
            _ => Timestamp(info.scheduled_time_ns),
        }
    }

    /// Checks options as those of a start, and makes them complete.
    fn complete(&self, options: &mut ActivityOptions, env: &Env) -> Result<(), Error> {
        let mut attributes = ScheduleActivityTaskCommandAttributes {
            activity_id: self.key.workflow_id.to_string(),
            activity_type: self.request().activity_type.clone(),
            task_queue: options.task_queue.clone(),
            schedule_to_close_timeout: options.schedule_to_close_timeout,
            schedule_to_start_timeout: options.schedule_to_start_timeout,
            start_to_close_timeout: options.start_to_close_timeout,
            heartbeat_timeout: options.heartbeat_timeout,
            retry_policy: options.retry_policy.clone(),
            priority: options.priority.clone(),
            ..ScheduleActivityTaskCommandAttributes::default()
        };
        validate_and_complete(&mut attributes, Duration::ZERO, "", env.limits).map_err(Error::invalid_argument)?;
        options.schedule_to_close_timeout = attributes.schedule_to_close_timeout;
        options.schedule_to_start_timeout = attributes.schedule_to_start_timeout;
        options.start_to_close_timeout = attributes.start_to_close_timeout;
        options.heartbeat_timeout = attributes.heartbeat_timeout;
        options.retry_policy = attributes.retry_policy;
        Ok(())
    }
}
