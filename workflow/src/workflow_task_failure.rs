//! Failure and timeouts of workflow tasks. Only the first failure in a row is in the history: the attempts after it are
//! transient, and leave no events until one completes.

#![allow(deprecated, reason = "older workers still send what newer ones replaced, and histories show both")]

use perdure_proto::{
    Error,
    perdure::{
        node::v1::{TaskToken, task_token},
        state::v1::workflow_task_info::Kind,
    },
    temporal::api::{
        enums::v1::{TimeoutType, WorkflowTaskFailedCause as Cause},
        failure::v1::Failure,
        history::v1::{
            WorkflowTaskFailedEventAttributes, WorkflowTaskTimedOutEventAttributes, history_event::Attributes,
        },
        workflowservice::v1::RespondWorkflowTaskFailedRequest,
    },
};
use perdure_types::{Duration, Timestamp};

use crate::{
    activity_retry::{timeout_failure, timeout_name},
    api::Env,
    chain::{Answered, Chain, decode_token, empty_reply},
    command::cause_name,
    pause::keyword_list,
    run::Run,
    terminate::SERVER_IDENTITY,
};

/// The second attempt follows the first at once. The ones after it wait, for ever longer.
const RETRIES_AT_ONCE: i32 = 2;
const FIRST_RETRY_DELAY: Duration = Duration::from_secs(1);

/// Temporal's `system.numConsecutiveWorkflowTaskProblemsToTriggerSearchAttribute`.
const REPORTED_FAILURES: i32 = 5;
/// The system search attribute that tells of them.
const REPORTED_PROBLEMS: &str = "TemporalReportedProblems";

/// Of a sticky task, when its worker did not say.
const STICKY_SCHEDULE_TO_START: Duration = Duration::from_secs(5);

impl Chain {
    pub(crate) fn respond_workflow_task_failed(
        &mut self,
        request: RespondWorkflowTaskFailedRequest,
        env: &mut Env,
    ) -> Answered {
        let token = decode_token(&request.task_token, task_token::Kind::Workflow)?;
        let run = self.open_run(&token.run_id)?;
        run.task_of_token(&token)?;
        let cause = request.cause();
        if cause == Cause::GrpcMessageTooLarge {
            // It would be as large the next time.
            run.terminate_run(env, &cause_name(cause), None, SERVER_IDENTITY, Vec::new());
            return empty_reply();
        }
        run.fail_workflow_task(env, cause, request.failure, &request.identity, &request.binary_checksum);
        let delay = retry_delay(run.info.workflow_task_attempt, env);
        run.reschedule_workflow_task(env, env.now + delay);
        empty_reply()
    }
}

fn retry_delay(attempt: i32, env: &Env) -> Duration {
    if attempt <= RETRIES_AT_ONCE {
        return Duration::ZERO;
    }
    let delay = FIRST_RETRY_DELAY.mul_f64(2f64.powi(attempt - RETRIES_AT_ONCE - 1));
    delay.min(env.limits.workflow_task_retry_max_interval)
}

impl Run {
    /// The started task failed. The next one is still to be scheduled, with [`Run::reschedule_workflow_task`].
    pub(crate) fn fail_workflow_task(
        &mut self,
        env: &Env,
        cause: Cause,
        failure: Option<Failure>,
        identity: &str,
        binary_checksum: &str,
    ) {
        self.make_workflow_task_durable();
        let Some(task) = self.info.edit().workflow_task.take() else {
            return;
        };
        if task.kind() == Kind::Normal {
            self.info.edit().last_workflow_task_failure = failure.clone();
            let attributes = WorkflowTaskFailedEventAttributes {
                scheduled_event_id: task.scheduled_event_id,
                started_event_id: task.started_event_id,
                cause: cause as i32,
                failure,
                identity: identity.to_owned(),
                binary_checksum: binary_checksum.to_owned(),
                ..WorkflowTaskFailedEventAttributes::default()
            };
            self.add_event(env.now, Attributes::WorkflowTaskFailedEventAttributes(attributes));
        }
        self.count_failed_attempt(true);
        self.report_problem("Failed", &cause_name(cause));
    }

    /// Failures in a row that are so many that somebody should look are shown in lists, until a task completes.
    fn report_problem(&mut self, category: &str, cause: &str) {
        if self.info.workflow_task_attempt <= REPORTED_FAILURES {
            return;
        }
        let problems =
            [format!("category=WorkflowTask{category}"), format!("cause=WorkflowTask{category}Cause{cause}")];
        let payload = keyword_list(&problems);
        if self.search_attributes.indexed_fields.get(REPORTED_PROBLEMS) != Some(&payload) {
            self.search_attributes.edit().indexed_fields.insert(REPORTED_PROBLEMS.to_owned(), payload);
        }
    }

    /// A task has completed.
    pub(crate) fn no_more_problems(&mut self) {
        if self.search_attributes.indexed_fields.contains_key(REPORTED_PROBLEMS) {
            self.search_attributes.edit().indexed_fields.remove(REPORTED_PROBLEMS);
        }
    }

    /// The task timed out, and the next one is scheduled.
    pub(crate) fn time_out_workflow_task(&mut self, env: &Env, kind: TimeoutType) {
        self.make_workflow_task_durable();
        let Some(task) = self.info.edit().workflow_task.take() else {
            return;
        };
        if task.kind() == Kind::Normal {
            self.info.edit().last_workflow_task_failure = Some(timeout_failure("workflow task timeout", kind));
            let attributes = WorkflowTaskTimedOutEventAttributes {
                scheduled_event_id: task.scheduled_event_id,
                started_event_id: task.started_event_id,
                timeout_type: kind as i32,
            };
            self.add_event(env.now, Attributes::WorkflowTaskTimedOutEventAttributes(attributes));
        }
        self.count_failed_attempt(kind != TimeoutType::ScheduleToStart);
        self.report_problem("TimedOut", timeout_name(kind));
        self.reschedule_workflow_task(env, env.now);
    }

    /// On a sticky queue the worker's cache may be to blame: the next task goes out with the whole history, as a first one.
    fn count_failed_attempt(&mut self, counts: bool) {
        let info = self.info.edit();
        let sticky = info.sticky.take().is_some();
        info.workflow_task_attempt =
            if counts && !sticky { info.workflow_task_attempt.max(1).saturating_add(1) } else { 1 };
        self.updates_not_answered();
    }

    /// Schedules the task after a failed one. Events that waited for its end make it an ordinary first attempt.
    pub(crate) fn reschedule_workflow_task(&mut self, env: &Env, not_before: Timestamp) {
        if self.flush_buffered(env.now) {
            self.info.edit().workflow_task_attempt = 1;
            self.schedule_workflow_task(env, env.now);
        } else {
            self.schedule_workflow_task(env, not_before);
        }
    }

    /// The worker that got the started task is gone.
    pub(crate) fn workflow_task_undelivered(&mut self, env: &Env, token: &TaskToken) -> Result<(), Error> {
        let task = self.task_of_token(token)?;
        if task.kind() == Kind::Normal {
            self.time_out_workflow_task(env, TimeoutType::StartToClose);
            return Ok(());
        }
        // Nothing is written of its start, so it has not been started.
        let normal_queue = self.info.task_queue.clone();
        let info = self.info.edit();
        info.sticky = None;
        if let Some(task) = &mut info.workflow_task {
            task.started_event_id = 0;
            task.started_time_ns = 0;
            task.request_id.clear();
            task.identity.clear();
            task.sticky = false;
            task.task_queue = normal_queue;
        }
        self.updates_not_answered();
        if self.buffered.is_empty() {
            self.offer_workflow_task();
        } else {
            self.info.edit().workflow_task = None;
            self.reschedule_workflow_task(env, env.now);
        }
        Ok(())
    }

    /// The deadline of the pending task: of its start if it is on a sticky queue, of its end if it is started.
    pub(crate) fn workflow_task_deadline(&self) -> Option<(Timestamp, TimeoutType)> {
        let task = self.workflow_task()?;
        if task.started_event_id != 0 {
            let deadline = Timestamp(task.started_time_ns) + Duration(task.start_to_close_ns);
            return Some((deadline, TimeoutType::StartToClose));
        }
        if !task.sticky {
            return None;
        }
        let given = self.info.sticky.as_ref().and_then(|sticky| Duration(sticky.schedule_to_start_ns).or_none());
        let deadline = Timestamp(task.scheduled_time_ns) + given.unwrap_or(STICKY_SCHEDULE_TO_START);
        Some((deadline, TimeoutType::ScheduleToStart))
    }

    pub(crate) fn workflow_task_deadline_passed(&mut self, env: &Env) {
        let Some((_, kind)) = self.workflow_task_deadline().filter(|(deadline, _)| *deadline <= env.now) else {
            return;
        };
        let speculative = self.workflow_task().is_some_and(|task| task.kind() == Kind::Speculative);
        if speculative && kind == TimeoutType::ScheduleToStart {
            // It may still leave no trace.
            self.move_to_normal_queue();
        } else {
            self.time_out_workflow_task(env, kind);
        }
    }
}
