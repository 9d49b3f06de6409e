//! One run: its attempts, their deadlines, and how it ends. What workers report is in `respond`.

use perdure_proto::Error;
use perdure_proto::{
    perdure::{
        node::v1::{Offer, RecordActivityTaskStarted, TaskKind, TaskToken, task_token},
        state::v1::{ActivityInfo, ActivityState, EntityKind as Kind},
    },
    temporal::api::{
        activity::v1::{ActivityExecutionOutcome, ActivityOptions, activity_execution_outcome::Value},
        enums::v1::{ActivityExecutionStatus as Status, RetryState, TimeoutType},
        failure::v1::{Failure, failure::FailureInfo},
        workflowservice::v1::{PollActivityTaskQueueResponse, StartActivityExecutionRequest},
    },
};
use perdure_types::{ChainKey, Duration, Timestamp};
use perdure_workflow::{
    Callbacks, Effect, Env,
    attempts::{backoff, bounded, deadline, delivery, is_retryable, requested_delay, timeout_failure, timeout_name},
};
use prost::Message;

/// The one task that a run has is known to task queues and workers by this number.
pub(crate) const TASK: i64 = 1;

#[derive(Debug, Clone)]
pub struct Run {
    pub(crate) key: ChainKey,
    pub(crate) run_id: String,
    pub(crate) state: ActivityState,
    /// The attempt that waits has been offered. In memory only.
    pub(crate) offered: bool,
    /// What the transition under way has to do outside.
    pub(crate) effects: Vec<Effect>,
}

impl Run {
    pub(crate) fn new(key: ChainKey, run_id: String, state: ActivityState) -> Self {
        Self { key, run_id, state, offered: false, effects: Vec::new() }
    }

    pub(crate) fn request(&self) -> &StartActivityExecutionRequest {
        static NONE: std::sync::LazyLock<StartActivityExecutionRequest> =
            std::sync::LazyLock::new(StartActivityExecutionRequest::default);
        self.state.request.as_ref().unwrap_or(&NONE)
    }

    pub(crate) fn info(&self) -> &ActivityInfo {
        static NONE: std::sync::LazyLock<ActivityInfo> = std::sync::LazyLock::new(ActivityInfo::default);
        self.state.info.as_ref().unwrap_or(&NONE)
    }

    pub(crate) fn edit(&mut self) -> &mut ActivityInfo {
        self.state.info.get_or_insert_default()
    }

    /// As they are now.
    pub(crate) fn options(&self) -> &ActivityOptions {
        static NONE: std::sync::LazyLock<ActivityOptions> = std::sync::LazyLock::new(ActivityOptions::default);
        self.info().options.as_deref().unwrap_or(&NONE)
    }

    pub(crate) fn status(&self) -> Status {
        self.state.status()
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self.status(), Status::Running | Status::Paused)
    }

    /// An attempt is with a worker.
    pub(crate) fn is_started(&self) -> bool {
        self.info().started_time_ns != 0
    }

    /// Waits for a worker, or for the time when it may.
    pub(crate) fn waits(&self) -> bool {
        self.is_open() && !self.is_started() && !self.info().paused
    }

    pub(crate) fn start_time(&self) -> Timestamp {
        Timestamp(self.state.start_time_ns)
    }

    /// When the first attempt could begin: later than the start if it was to wait.
    pub(crate) fn execution_time(&self) -> Timestamp {
        self.start_time() + Duration::from_proto(self.options().start_delay.as_ref())
    }

    // ---- Attempts ----------------------------------------------------------------------------------------------

    /// Takes over options: those of the start, or others.
    pub(crate) fn set_options(&mut self, options: ActivityOptions) {
        let nanos = |timeout: &Option<prost_types::Duration>| Duration::from_proto(timeout.as_ref()).0;
        let timeouts = [
            nanos(&options.schedule_to_start_timeout),
            nanos(&options.start_to_close_timeout),
            nanos(&options.heartbeat_timeout),
        ];
        let schedule_to_close = Duration(nanos(&options.schedule_to_close_timeout));
        self.edit().options = Some(Box::new(options));
        let execution_time = self.execution_time();
        let info = self.edit();
        [info.schedule_to_start_ns, info.start_to_close_ns, info.heartbeat_ns] = timeouts;
        info.expiration_time_ns =
            schedule_to_close.or_none().map_or(0, |timeout| (execution_time + timeout).as_nanos());
    }

    /// Another time for the attempt that waits; offers that were made before are stale.
    pub(crate) fn schedule_again(&mut self, at: Timestamp, now: Timestamp) {
        let info = self.edit();
        info.stamp += 1;
        info.scheduled_time_ns = at.as_nanos();
        self.offered = false;
        self.offer_if_due(now);
    }

    pub(crate) fn offer_if_due(&mut self, now: Timestamp) {
        if self.waits() && !self.offered && self.info().scheduled_time_ns <= now.as_nanos() {
            self.offered = true;
            self.effects.push(Effect::Offer(self.offer()));
        }
    }

    pub(crate) fn offer(&self) -> Offer {
        let (info, options) = (self.info(), self.options());
        Offer {
            kind: TaskKind::Activity as i32,
            namespace_id: self.key.namespace_id.to_string(),
            task_queue: options.task_queue.as_ref().map(|queue| queue.name.clone()).unwrap_or_default(),
            workflow_id: self.key.workflow_id.to_string(),
            run_id: self.run_id.clone(),
            scheduled_event_id: TASK,
            attempt: info.attempt,
            stamp: info.stamp,
            scheduled_time_ns: info.scheduled_time_ns,
            priority: options.priority.clone(),
            entity_kind: Kind::Activity as i32,
            ..Offer::default()
        }
    }

    /// A worker takes the attempt that waits.
    pub(crate) fn take(
        &mut self,
        c: RecordActivityTaskStarted,
        env: &Env,
    ) -> Result<PollActivityTaskQueueResponse, Error> {
        if !self.is_open() {
            return Err(task_not_found());
        }
        if self.is_started() {
            // The reply to the same poll was lost on its way.
            return if !c.request_id.is_empty() && self.info().request_id == c.request_id {
                Ok(self.task(env))
            } else {
                Err(Error::not_found("Activity task already started."))
            };
        }
        let info = self.info();
        if info.attempt != c.attempt || info.stamp != c.stamp || info.paused {
            return Err(Error::not_found(format!("Activity task with this stamp not found: {}", c.stamp)));
        }
        let info = self.edit();
        info.started_time_ns = env.now.as_nanos().max(info.scheduled_time_ns);
        info.last_started_time_ns = info.started_time_ns;
        info.request_id = c.request_id;
        info.identity = c.poll.map(|poll| poll.identity).unwrap_or_default();
        info.last_identity.clone_from(&info.identity);
        self.offered = false;
        Ok(self.task(env))
    }

    /// Of the attempt that is with a worker.
    pub(crate) fn token(&self) -> TaskToken {
        let info = self.info();
        TaskToken {
            kind: task_token::Kind::Activity as i32,
            namespace_id: self.key.namespace_id.to_string(),
            workflow_id: self.key.workflow_id.to_string(),
            run_id: self.run_id.clone(),
            scheduled_event_id: TASK,
            started_event_id: delivery(info),
            attempt: info.attempt,
            activity_id: self.key.workflow_id.to_string(),
            started_time_ns: info.started_time_ns,
            entity_kind: Kind::Activity as i32,
            ..TaskToken::default()
        }
    }

    /// What the worker gets.
    fn task(&self, env: &Env) -> PollActivityTaskQueueResponse {
        let (info, request, options) = (self.info(), self.request(), self.options());
        let namespace = env.namespaces.by_id(&self.key.namespace_id).map(|n| n.name.to_string()).unwrap_or_default();
        PollActivityTaskQueueResponse {
            task_token: self.token().encode_to_vec().into(),
            workflow_namespace: namespace,
            activity_type: request.activity_type.clone(),
            activity_id: self.key.workflow_id.to_string(),
            activity_run_id: self.run_id.clone(),
            header: request.header.clone(),
            input: request.input.clone(),
            heartbeat_details: info.heartbeat_details.clone(),
            scheduled_time: Timestamp(info.first_scheduled_time_ns).to_proto(),
            current_attempt_scheduled_time: Timestamp(info.scheduled_time_ns).to_proto(),
            started_time: Timestamp(info.started_time_ns).to_proto(),
            attempt: info.attempt,
            schedule_to_close_timeout: options.schedule_to_close_timeout,
            start_to_close_timeout: options.start_to_close_timeout,
            heartbeat_timeout: options.heartbeat_timeout,
            retry_policy: options.retry_policy.clone(),
            priority: options.priority.clone(),
            ..PollActivityTaskQueueResponse::default()
        }
    }

    /// Begins the next attempt, after its backoff; or says why there is none.
    pub(crate) fn retry(&mut self, failure: &Failure, env: &Env) -> Result<(), RetryState> {
        let info = self.info();
        if info.cancel_requested {
            return Err(RetryState::CancelRequested);
        }
        if is_schedule_timeout(failure) {
            return Err(RetryState::Timeout);
        }
        let policy = self.options().retry_policy.clone().unwrap_or_default();
        if !is_retryable(Some(failure), &policy.non_retryable_error_types) {
            return Err(RetryState::NonRetryableFailure);
        }
        let interval = if info.paused || info.reset {
            // Whatever the policy says: somebody has said when the next attempt begins.
            Duration::ZERO
        } else {
            let expiration = (info.expiration_time_ns != 0).then_some(Timestamp(info.expiration_time_ns));
            backoff(&policy, info.attempt, requested_delay(Some(failure)), env.now, expiration)?
        };
        let info = self.edit();
        info.attempt = if std::mem::take(&mut info.reset) { 1 } else { info.attempt + 1 };
        info.current_retry_interval_ns = interval.0;
        info.last_failure = Some(bounded(failure.clone()));
        info.last_attempt_complete_time_ns = env.now.as_nanos();
        if std::mem::take(&mut info.reset_heartbeats) {
            info.heartbeat_details = None;
            info.last_heartbeat_time_ns = 0;
        }
        self.give_back();
        self.schedule_again(env.now + interval, env.now);
        Ok(())
    }

    /// No worker has the attempt any more.
    pub(crate) fn give_back(&mut self) {
        let info = self.edit();
        info.started_time_ns = 0;
        info.request_id.clear();
        info.identity.clear();
        if info.paused && self.status() == Status::Running {
            self.state.status = Status::Paused as i32;
        }
    }

    // ---- Time --------------------------------------------------------------------------------------------------

    /// The next deadline of the run, and which one it is. Nobody can take one that is paused, so that is not waited for.
    fn deadline(&self) -> Option<(Timestamp, TimeoutType)> {
        if !self.is_open() {
            return None;
        }
        let info = self.info();
        if info.paused && !self.is_started() {
            let closing = Timestamp(info.expiration_time_ns);
            return (info.expiration_time_ns != 0).then_some((closing, TimeoutType::ScheduleToClose));
        }
        deadline(info)
    }

    /// When there is something to do; `None`: it waits to be called.
    pub(crate) fn next_timer(&self) -> Option<Timestamp> {
        if !self.is_open() {
            let callback = Callbacks::next_attempt(&self.state.callbacks);
            return [self.retention_end(), callback].into_iter().flatten().min();
        }
        let offer = (self.waits() && !self.offered).then(|| Timestamp(self.info().scheduled_time_ns));
        let deadline = self.deadline().map(|(at, _)| at);
        offer.into_iter().chain(deadline).min()
    }

    /// When a new owner has to load it.
    pub(crate) fn wake_at(&self) -> Option<Timestamp> {
        if Callbacks::are_under_way(&self.state.callbacks) {
            return Some(Timestamp(self.state.close_time_ns));
        }
        let offer = self.waits().then(|| Timestamp(self.info().scheduled_time_ns));
        offer.into_iter().chain(self.next_timer()).min()
    }

    /// When a closed run may be deleted. Not while somebody is told of its end.
    pub(crate) fn retention_end(&self) -> Option<Timestamp> {
        let kept = self.is_open() || Callbacks::are_under_way(&self.state.callbacks);
        (!kept).then_some(Timestamp(self.state.retention_deadline_ns))
    }

    pub(crate) fn on_timer(&mut self, env: &Env) {
        if !self.is_open() {
            self.call_back_when_due(env.now);
            return;
        }
        if let Some((_, kind)) = self.deadline().filter(|(at, _)| *at <= env.now) {
            self.time_out(kind, env);
        }
        self.offer_if_due(env.now);
    }

    fn time_out(&mut self, kind: TimeoutType, env: &Env) {
        let mut failure = timeout_failure(format!("activity {} timeout", timeout_name(kind)), kind);
        let Err(retry_state) = self.retry(&failure, env) else { return };
        if retry_state == RetryState::Timeout && kind != TimeoutType::ScheduleToStart {
            failure = timeout_failure(
                "Not enough time to schedule next retry before activity ScheduleToClose timeout, giving up retrying",
                TimeoutType::ScheduleToClose,
            );
        }
        let info = self.info();
        if let Some(FailureInfo::TimeoutFailureInfo(timeout)) = &mut failure.failure_info {
            timeout.last_heartbeat_details = info.heartbeat_details.clone();
        }
        failure.cause = info.last_failure.clone().map(Box::new);
        self.close_with_failure(Status::TimedOut, failure, retry_state, env);
    }

    // ---- The end -----------------------------------------------------------------------------------------------

    pub(crate) fn close_with_failure(&mut self, status: Status, failure: Failure, retry_state: RetryState, env: &Env) {
        let outcome =
            ActivityExecutionOutcome { value: Some(Value::Failure(failure)), retry_state: retry_state as i32 };
        self.close(status, outcome, env);
    }

    pub(crate) fn close(&mut self, status: Status, outcome: ActivityExecutionOutcome, env: &Env) {
        if self.is_started() {
            self.edit().last_attempt_complete_time_ns = env.now.as_nanos();
        }
        self.give_back();
        let retention = env.namespaces.by_id(&self.key.namespace_id).map_or(Duration::ZERO, |n| n.retention);
        self.state.status = status as i32;
        self.state.outcome = Some(outcome);
        self.state.close_time_ns = env.now.as_nanos();
        self.state.retention_deadline_ns = (env.now + retention).as_nanos();
        self.call_back(env);
    }
}

fn is_schedule_timeout(failure: &Failure) -> bool {
    match &failure.failure_info {
        Some(FailureInfo::TimeoutFailureInfo(timeout)) => {
            matches!(timeout.timeout_type(), TimeoutType::ScheduleToStart | TimeoutType::ScheduleToClose)
        }
        _ => false,
    }
}

pub(crate) fn task_not_found() -> Error {
    Error::not_found("activity task not found")
}
