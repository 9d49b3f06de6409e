//! The command that starts a child workflow.

use perdure_proto::{
    perdure::state::v1::ChildInfo,
    temporal::api::{
        command::v1::StartChildWorkflowExecutionCommandAttributes,
        enums::v1::{
            ParentClosePolicy, StartChildWorkflowExecutionFailedCause, WorkflowIdReusePolicy,
            WorkflowTaskFailedCause as Cause,
        },
        history::v1::{StartChildWorkflowExecutionInitiatedEventAttributes, history_event::Attributes},
    },
};
use perdure_types::Duration;
use prost::Message;

use crate::{
    activity_retry::{check_duration, fill_in_defaults, validate},
    api::Env,
    begin::{
        effective_run_timeout, effective_workflow_task_timeout, normal_queue, search_attributes_without_nulls,
        without_nulls,
    },
    child::child_not_started,
    command::{BadCommand, CommandContext, CommandResult},
    cron,
    limits::{check_memo_bytes, check_payload_bytes, check_pending, check_task_queue},
    priority,
    properties::check_search_attributes,
    run::{Pending, Run},
};

const CAUSE: Cause = Cause::BadStartChildExecutionAttributes;
const COMMAND: &str = "StartChildWorkflowExecutionCommand";

impl Run {
    pub(crate) fn start_child_command(
        &mut self,
        env: &mut Env,
        ctx: &CommandContext,
        mut command: StartChildWorkflowExecutionCommandAttributes,
    ) -> CommandResult {
        #[allow(deprecated)]
        let target = self.target(env, &command.namespace);
        self.complete_start_child(env, &target.namespace, &mut command)?;
        let size = command.input.as_ref().map_or(0, Message::encoded_len);
        check_payload_bytes(
            env,
            size,
            CAUSE,
            "StartChildWorkflowExecutionCommandAttributes. Input exceeds size limit.",
        )?;
        let message = "StartChildWorkflowExecutionCommandAttributes.Memo exceeds size limit.";
        check_memo_bytes(env, command.memo.as_ref(), CAUSE, message)?;
        check_pending(
            self.children.len(),
            env.limits.pending_child_executions_error,
            "pending child workflow executions",
            Cause::PendingChildWorkflowsLimitExceeded,
        )?;

        let exists = !target.namespace_id.is_empty();
        if exists {
            check_search_attributes(env, &target.namespace_id, command.search_attributes.as_ref())?;
        }
        let initiated = initiated_event(command, target.namespace, target.namespace_id, ctx.completed_event_id);
        let attributes = Attributes::StartChildWorkflowExecutionInitiatedEventAttributes(Box::new(initiated.clone()));
        let id = self.add_prepared(env.now, ctx.event(attributes));
        if !exists {
            let cause = StartChildWorkflowExecutionFailedCause::NamespaceNotFound;
            self.buffer_event(env.now, child_not_started(id, &initiated, cause));
            return Ok(());
        }
        let Some(event) = self.last_new_event() else {
            return Ok(());
        };
        let info =
            ChildInfo { initiated_event_id: id, request_id: format!("{}:{id}", self.run_id), ..ChildInfo::default() };
        let child = Pending { info, event };
        self.effects.extend(self.start_child_call(&child));
        self.children.insert(id, child);
        Ok(())
    }

    /// Checks the command, and fills in from the parent what it leaves open.
    fn complete_start_child(
        &self,
        env: &Env,
        namespace: &str,
        command: &mut StartChildWorkflowExecutionCommandAttributes,
    ) -> CommandResult {
        let limit = env.limits.max_id_length;
        let workflow_id = command.workflow_id.clone();
        let workflow_type = command.workflow_type.as_ref().map(|t| t.name.clone()).unwrap_or_default();
        let missing = |name: &str, place: String| {
            let message = format!("Required field {name} is not set on {COMMAND}. {place} Namespace={namespace}");
            Err(BadCommand::new(CAUSE, message))
        };
        if workflow_id.is_empty() {
            return missing("WorkflowId", format!("WorkflowType={workflow_type}"));
        }
        if workflow_type.is_empty() {
            return missing("WorkflowType", format!("WorkflowId={workflow_id}"));
        }
        let place = format!("WorkflowId={workflow_id} WorkflowType={workflow_type} Namespace={namespace}");
        let bad = |message: String| BadCommand::new(CAUSE, format!("{message} {place}"));
        for (name, value) in [("WorkflowId", &workflow_id), ("WorkflowType", &workflow_type)] {
            let length = value.len();
            if length as i64 > limit {
                return Err(bad(format!("{name} on {COMMAND} exceeds length limit. Length={length} Limit={limit}")));
            }
        }
        if namespace.len() as i64 > limit {
            let length = namespace.len();
            return Err(bad(format!("Namespace on {COMMAND} exceeds length limit. Length={length} Limit={limit}")));
        }
        for (field, name) in [
            (&mut command.workflow_execution_timeout, "WorkflowExecutionTimeout"),
            (&mut command.workflow_run_timeout, "WorkflowRunTimeout"),
            (&mut command.workflow_task_timeout, "WorkflowTaskTimeout"),
        ] {
            check_duration(field).map_err(|e| bad(format!("Invalid {name} on {COMMAND}: {e}.")))?;
        }
        if let Some(policy) = &mut command.retry_policy {
            fill_in_defaults(policy, env.limits);
            validate(policy).map_err(|e| bad(format!("invalid WorkflowRetryPolicy on {COMMAND}: {e}.")))?;
        }
        cron::validate(&command.cron_schedule, env.now)
            .map_err(|e| bad(format!("invalid CronSchedule on {COMMAND}: {}.", e.message)))?;
        priority::check(command.priority.as_ref()).map_err(|e| BadCommand::new(CAUSE, e))?;
        let given = command.task_queue.take().map(|queue| queue.name).filter(|name| !name.is_empty());
        let task_queue = given.unwrap_or_else(|| self.info.task_queue.clone());
        check_task_queue(&task_queue, limit)
            .map_err(|e| bad(format!("invalid TaskQueue on {COMMAND}: {e}. TaskQueue={task_queue}")))?;
        command.task_queue = Some(normal_queue(task_queue));
        complete_timeouts(env, command);
        if command.parent_close_policy() == ParentClosePolicy::Unspecified {
            command.set_parent_close_policy(ParentClosePolicy::Terminate);
        }
        if command.workflow_id_reuse_policy() == WorkflowIdReusePolicy::Unspecified {
            command.set_workflow_id_reuse_policy(WorkflowIdReusePolicy::AllowDuplicate);
        }
        Ok(())
    }
}

fn complete_timeouts(env: &Env, command: &mut StartChildWorkflowExecutionCommandAttributes) {
    let of = |field: &Option<prost_types::Duration>| Duration::from_proto(field.as_ref());
    let run = effective_run_timeout(of(&command.workflow_run_timeout), of(&command.workflow_execution_timeout));
    let task = effective_workflow_task_timeout(of(&command.workflow_task_timeout), run, env.limits);
    command.workflow_run_timeout = Some(run.to_proto());
    command.workflow_task_timeout = Some(task.to_proto());
}

#[allow(deprecated)]
fn initiated_event(
    command: StartChildWorkflowExecutionCommandAttributes,
    namespace: String,
    namespace_id: String,
    workflow_task_completed_event_id: i64,
) -> StartChildWorkflowExecutionInitiatedEventAttributes {
    StartChildWorkflowExecutionInitiatedEventAttributes {
        namespace,
        namespace_id,
        workflow_id: command.workflow_id,
        workflow_type: command.workflow_type,
        task_queue: command.task_queue,
        input: command.input,
        workflow_execution_timeout: command.workflow_execution_timeout,
        workflow_run_timeout: command.workflow_run_timeout,
        workflow_task_timeout: command.workflow_task_timeout,
        parent_close_policy: command.parent_close_policy,
        control: command.control,
        workflow_task_completed_event_id,
        workflow_id_reuse_policy: command.workflow_id_reuse_policy,
        retry_policy: command.retry_policy,
        cron_schedule: command.cron_schedule,
        header: command.header,
        memo: command.memo.and_then(without_nulls),
        search_attributes: command.search_attributes.and_then(search_attributes_without_nulls),
        inherit_build_id: command.inherit_build_id,
        priority: command.priority,
        versioning_override: command.versioning_override,
        ..StartChildWorkflowExecutionInitiatedEventAttributes::default()
    }
}
