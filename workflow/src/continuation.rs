//! Runs that follow a run: continue-as-new, retry, cron. The old run closes and the new one begins in one transition.

use perdure_proto::temporal::api::{
    command::v1::ContinueAsNewWorkflowExecutionCommandAttributes,
    common::v1::{Payloads, WorkflowType},
    enums::v1::{ContinueAsNewInitiator, ContinueAsNewVersioningBehavior, RetryState, WorkflowTaskFailedCause},
    failure::v1::Failure,
    history::v1::{
        WorkflowExecutionContinuedAsNewEventAttributes, WorkflowExecutionStartedEventAttributes,
        history_event::Attributes,
    },
};
use perdure_types::{Duration, Timestamp};
use prost::Message;

use crate::{
    activity_retry::{backoff, check_duration, fill_in_defaults, is_retryable, requested_delay, validate},
    api::Env,
    begin::{
        Beginning, effective_run_timeout, effective_workflow_task_timeout, normal_queue,
        search_attributes_without_nulls, without_nulls,
    },
    command::{BadCommand, CommandContext, CommandResult},
    cron,
    limits::{check_memo_bytes, check_payload_bytes, check_task_queue},
    properties::check_search_attributes,
    run::Run,
};

/// A retry or the next run of a cron schedule, decided but not begun.
#[derive(Debug)]
pub(crate) struct NextRun {
    pub run_id: String,
    pub backoff: Duration,
    pub initiator: ContinueAsNewInitiator,
}

impl Run {
    /// The next run of the cron schedule, if there is one.
    pub(crate) fn next_cron_run(&self, env: &mut Env) -> Option<NextRun> {
        let start = self.start();
        let due = self.start_time() + Duration::from_proto(start.first_workflow_task_backoff.as_ref());
        let backoff = cron::next_backoff(&start.cron_schedule, due, env.now)?;
        Some(NextRun { run_id: env.ids.uuid(), backoff, initiator: ContinueAsNewInitiator::CronSchedule })
    }

    /// What follows a failure: a retry as long as the policy allows, else what the cron schedule says.
    pub(crate) fn next_run_after(&self, env: &mut Env, failure: &Failure) -> (RetryState, Option<NextRun>) {
        match self.retry_backoff(env, failure) {
            Ok(backoff) => {
                let run_id = env.ids.uuid();
                (RetryState::InProgress, Some(NextRun { run_id, backoff, initiator: ContinueAsNewInitiator::Retry }))
            }
            Err(state) => (state, self.next_cron_run(env)),
        }
    }

    fn retry_backoff(&self, env: &Env, failure: &Failure) -> Result<Duration, RetryState> {
        let start = self.start();
        let policy = start.retry_policy.as_ref().ok_or(RetryState::RetryPolicyNotSet)?;
        if !is_retryable(Some(failure), &policy.non_retryable_error_types) {
            return Err(RetryState::NonRetryableFailure);
        }
        let deadline = self.info.execution_deadline_ns;
        let deadline = (deadline != 0).then_some(Timestamp(deadline));
        // Other than an activity, a workflow does not wait longer than its policy says.
        let longest = Duration::from_proto(policy.maximum_interval.as_ref()).or_none();
        let requested = requested_delay(Some(failure)).map(|delay| longest.map_or(delay, |longest| delay.min(longest)));
        backoff(policy, start.attempt.max(1), requested, env.now, deadline)
    }

    /// Begins a retry or a cron run: as this run began, with what it leaves behind.
    pub(crate) fn begin_successor(
        &mut self,
        env: &mut Env,
        next: NextRun,
        last_completion_result: Option<Payloads>,
        failure: Option<Failure>,
    ) {
        let retry = next.initiator == ContinueAsNewInitiator::Retry;
        let start = self.start();
        let mut attributes = WorkflowExecutionStartedEventAttributes {
            attempt: if retry { start.attempt + 1 } else { 1 },
            completion_callbacks: if retry { self.callbacks_for_successor() } else { Vec::new() },
            last_completion_result,
            continued_failure: failure,
            first_workflow_task_backoff: Some(next.backoff.to_proto()),
            workflow_type: start.workflow_type.clone(),
            task_queue: start.task_queue.clone(),
            input: start.input.clone(),
            header: start.header.clone(),
            workflow_run_timeout: start.workflow_run_timeout,
            workflow_task_timeout: start.workflow_task_timeout,
            retry_policy: start.retry_policy.clone(),
            cron_schedule: start.cron_schedule.clone(),
            memo: start.memo.clone(),
            search_attributes: start.search_attributes.clone(),
            priority: start.priority.clone(),
            ..WorkflowExecutionStartedEventAttributes::default()
        };
        attributes.set_initiator(next.initiator);
        self.retry_build_id(&mut attributes);
        self.succeed_with(env, next.run_id, attributes, ContinueAsNewVersioningBehavior::Unspecified);
    }

    /// Begins the following run with what all kinds of continuation inherit.
    fn succeed_with(
        &mut self,
        env: &mut Env,
        run_id: String,
        mut attributes: WorkflowExecutionStartedEventAttributes,
        versioning: ContinueAsNewVersioningBehavior,
    ) {
        let start = self.start();
        attributes.first_execution_run_id = start.first_execution_run_id.clone();
        attributes.continued_execution_run_id = self.run_id.clone();
        attributes.workflow_execution_timeout = start.workflow_execution_timeout;
        attributes.workflow_execution_expiration_time = Timestamp(self.info.execution_deadline_ns).to_proto();
        attributes.prev_auto_reset_points = self.reset_points_for_successor();
        attributes.parent_workflow_namespace = start.parent_workflow_namespace.clone();
        attributes.parent_workflow_namespace_id = start.parent_workflow_namespace_id.clone();
        attributes.parent_workflow_execution = start.parent_workflow_execution.clone();
        attributes.parent_initiated_event_id = start.parent_initiated_event_id;
        attributes.parent_initiated_event_version = start.parent_initiated_event_version;
        attributes.root_workflow_execution = start.root_workflow_execution.clone();
        self.bequeath_version(&mut attributes, versioning);
        let beginning = Beginning {
            attributes,
            links: self.started.links.clone(),
            user_metadata: None,
            request_id: env.ids.uuid(),
        };
        let mut successor = Self::begin(self.key.clone(), run_id, env.now, beginning);
        successor.info.edit().schedule.clone_from(&self.info.schedule);
        successor.schedule_first_workflow_task(env);
        self.successor = Some(Box::new(successor));
    }

    #[allow(deprecated, reason = "older workers say that they want their build id to be inherited")]
    pub(crate) fn continue_as_new_command(
        &mut self,
        env: &mut Env,
        ctx: &CommandContext,
        mut command: ContinueAsNewWorkflowExecutionCommandAttributes,
    ) -> CommandResult {
        self.complete_continue_as_new(env, &mut command)?;
        if !self.is_open() {
            return Ok(());
        }
        let run_id = env.ids.uuid();
        // The event says what the command did.
        let event = continued_event(&command, run_id.clone(), ctx.completed_event_id);
        let versioning = command.initial_versioning_behavior();
        if command.initiator() == ContinueAsNewInitiator::Unspecified {
            command.set_initiator(ContinueAsNewInitiator::Workflow);
        }
        self.close(env, ctx.event(Attributes::WorkflowExecutionContinuedAsNewEventAttributes(Box::new(event))));

        let start = self.start();
        let retry = command.initiator() == ContinueAsNewInitiator::Retry;
        let mut attributes = WorkflowExecutionStartedEventAttributes {
            attempt: if retry { start.attempt + 1 } else { 1 },
            initiator: command.initiator,
            completion_callbacks: self.callbacks_for_successor(),
            last_completion_result: command.last_completion_result,
            continued_failure: command.failure,
            first_workflow_task_backoff: command.backoff_start_interval,
            workflow_type: command.workflow_type,
            task_queue: command.task_queue,
            input: command.input,
            header: command.header,
            workflow_run_timeout: command.workflow_run_timeout,
            workflow_task_timeout: command.workflow_task_timeout,
            retry_policy: command.retry_policy,
            cron_schedule: command.cron_schedule,
            memo: command.memo,
            search_attributes: command.search_attributes,
            priority: self.info.priority.clone(),
            ..WorkflowExecutionStartedEventAttributes::default()
        };
        if command.inherit_build_id {
            self.bequeath_build_id(&mut attributes);
        }
        self.succeed_with(env, run_id, attributes, versioning);
        Ok(())
    }

    /// Checks the command, and fills in from this run what it leaves open.
    fn complete_continue_as_new(
        &self,
        env: &Env,
        command: &mut ContinueAsNewWorkflowExecutionCommandAttributes,
    ) -> CommandResult {
        const COMMAND: &str = "ContinueAsNewWorkflowExecutionCommand";
        let start = self.start();
        let limit = env.limits.max_id_length;
        let given = command.workflow_type.take().map(|t| t.name).filter(|name| !name.is_empty());
        let workflow_type =
            given.unwrap_or_else(|| start.workflow_type.as_ref().map(|t| t.name.clone()).unwrap_or_default());
        let length = workflow_type.len();
        if length as i64 > limit {
            return Err(bad(format!(
                "WorkflowType on {COMMAND} exceeds length limit. WorkflowType={workflow_type} Length={length} Limit={limit}"
            )));
        }
        let given = command.task_queue.take().map(|queue| queue.name).filter(|name| !name.is_empty());
        let task_queue = given.unwrap_or_else(|| self.info.task_queue.clone());
        let place = format!("WorkflowType={workflow_type} TaskQueue={task_queue}");
        check_task_queue(&task_queue, limit)
            .map_err(|e| bad(format!("error validating {COMMAND} TaskQueue: {e}. {place}")))?;
        check_search_attributes(env, &self.key.namespace_id, command.search_attributes.as_ref())?;
        command.workflow_type = Some(WorkflowType { name: workflow_type });
        command.task_queue = Some(normal_queue(task_queue));

        for (field, name) in [
            (&mut command.workflow_run_timeout, "WorkflowRunTimeout"),
            (&mut command.workflow_task_timeout, "WorkflowTaskTimeout"),
            (&mut command.backoff_start_interval, "BackoffStartInterval"),
        ] {
            check_duration(field).map_err(|e| bad(format!("Invalid {name} on {COMMAND}: {e}. {place}")))?;
        }
        let or = |field: &Option<prost_types::Duration>, before: &Option<prost_types::Duration>| {
            Duration::from_proto(field.as_ref()).or_none().unwrap_or(Duration::from_proto(before.as_ref()))
        };
        let run = or(&command.workflow_run_timeout, &start.workflow_run_timeout);
        let run = effective_run_timeout(run, Duration::from_proto(start.workflow_execution_timeout.as_ref()));
        let task = or(&command.workflow_task_timeout, &start.workflow_task_timeout);
        command.workflow_run_timeout = Some(run.to_proto());
        command.workflow_task_timeout = Some(effective_workflow_task_timeout(task, run, env.limits).to_proto());

        if let Some(policy) = &mut command.retry_policy {
            fill_in_defaults(policy, env.limits);
            validate(policy).map_err(|e| bad(format!("invalid WorkflowRetryPolicy on {COMMAND}: {e}. {place}")))?;
        }
        cron::validate(&command.cron_schedule, env.now)
            .map_err(|e| bad(format!("invalid CronSchedule on {COMMAND}: {}. {place}", e.message)))?;
        let size = command.input.as_ref().map_or(0, Message::encoded_len);
        let message = "ContinueAsNewWorkflowExecutionCommandAttributes. Input exceeds size limit.";
        check_payload_bytes(env, size, CAUSE, message)?;
        let message = "ContinueAsNewWorkflowExecutionCommandAttributes. Memo exceeds size limit.";
        check_memo_bytes(env, command.memo.as_ref(), CAUSE, message)
    }
}

const CAUSE: WorkflowTaskFailedCause = WorkflowTaskFailedCause::BadContinueAsNewAttributes;

fn bad(message: String) -> BadCommand {
    BadCommand::new(CAUSE, message)
}

#[allow(deprecated)]
fn continued_event(
    command: &ContinueAsNewWorkflowExecutionCommandAttributes,
    new_execution_run_id: String,
    workflow_task_completed_event_id: i64,
) -> WorkflowExecutionContinuedAsNewEventAttributes {
    WorkflowExecutionContinuedAsNewEventAttributes {
        new_execution_run_id,
        workflow_type: command.workflow_type.clone(),
        task_queue: command.task_queue.clone(),
        input: command.input.clone(),
        workflow_run_timeout: command.workflow_run_timeout,
        workflow_task_timeout: command.workflow_task_timeout,
        workflow_task_completed_event_id,
        backoff_start_interval: command.backoff_start_interval,
        initiator: command.initiator,
        failure: command.failure.clone(),
        last_completion_result: command.last_completion_result.clone(),
        header: command.header.clone(),
        memo: command.memo.clone().and_then(without_nulls),
        search_attributes: command.search_attributes.clone().and_then(search_attributes_without_nulls),
        inherit_build_id: command.inherit_build_id,
        initial_versioning_behavior: command.initial_versioning_behavior,
    }
}
