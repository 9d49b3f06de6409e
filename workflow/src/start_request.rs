//! What a request to start a workflow comes to: defaults, checks, and the beginning of the run.

use perdure_proto::{
    Error,
    perdure::node::v1::ParentInfo,
    temporal::api::{
        enums::v1::{ContinueAsNewInitiator, WorkflowIdConflictPolicy, WorkflowIdReusePolicy},
        history::v1::WorkflowExecutionStartedEventAttributes,
        workflowservice::v1::StartWorkflowExecutionRequest,
    },
};
use perdure_types::{Duration, Timestamp};
use prost::Message;

use crate::{
    activity_retry::{check_duration, fill_in_defaults, validate as validate_retry_policy},
    api::Env,
    begin::{Beginning, effective_run_timeout, effective_workflow_task_timeout, normal_queue},
    cron,
    versioning::inherit_from_parent,
};

/// Applies defaults and refuses what cannot be started.
pub(crate) fn prepare(
    request: &mut StartWorkflowExecutionRequest,
    default_conflict_policy: WorkflowIdConflictPolicy,
    env: &Env,
) -> Result<(), Error> {
    set_id_policies(request, default_conflict_policy);
    if let Some(policy) = &mut request.retry_policy {
        fill_in_defaults(policy, env.limits);
        validate_retry_policy(policy).map_err(Error::invalid_argument)?;
    }
    cron::validate(&request.cron_schedule, env.now)?;
    let duration = |field: &mut Option<prost_types::Duration>, name: &str| {
        check_duration(field).map_err(|e| Error::invalid_argument(format!("invalid {name}: {e}")))?;
        Ok::<_, Error>(Duration::from_proto(field.as_ref()))
    };
    let execution = duration(&mut request.workflow_execution_timeout, "WorkflowExecutionTimeout")?;
    let run = duration(&mut request.workflow_run_timeout, "WorkflowRunTimeout")?;
    let task = duration(&mut request.workflow_task_timeout, "WorkflowTaskTimeout")?;
    duration(&mut request.workflow_start_delay, "WorkflowStartDelay")?;
    let run = effective_run_timeout(run, execution);
    override_timeout(&mut request.workflow_run_timeout, run);
    override_timeout(&mut request.workflow_task_timeout, effective_workflow_task_timeout(task, run, env.limits));
    let size = |message: Option<usize>| message.unwrap_or_default() as i64;
    if size(request.input.as_ref().map(Message::encoded_len)) > env.limits.blob_size_error_bytes {
        return Err(Error::invalid_argument("Blob data size exceeds limit."));
    }
    if size(request.memo.as_ref().map(Message::encoded_len)) > env.limits.memo_size_error_bytes {
        return Err(Error::invalid_argument("Memo size exceeds limit."));
    }
    Ok(())
}

#[allow(deprecated)]
fn set_id_policies(request: &mut StartWorkflowExecutionRequest, default: WorkflowIdConflictPolicy) {
    // The older way to say it.
    if request.workflow_id_reuse_policy() == WorkflowIdReusePolicy::TerminateIfRunning {
        request.set_workflow_id_conflict_policy(WorkflowIdConflictPolicy::TerminateExisting);
        request.set_workflow_id_reuse_policy(WorkflowIdReusePolicy::AllowDuplicate);
    }
    if request.workflow_id_conflict_policy() == WorkflowIdConflictPolicy::Unspecified {
        request.set_workflow_id_conflict_policy(default);
    }
    if request.workflow_id_reuse_policy() == WorkflowIdReusePolicy::Unspecified {
        request.set_workflow_id_reuse_policy(WorkflowIdReusePolicy::AllowDuplicate);
    }
}

/// A timeout that is right stays as it came, set to zero or not set.
fn override_timeout(field: &mut Option<prost_types::Duration>, effective: Duration) {
    if Duration::from_proto(field.as_ref()) != effective {
        *field = Some(effective.to_proto());
    }
}

pub(crate) fn beginning(request: StartWorkflowExecutionRequest, parent: Option<ParentInfo>, env: &Env) -> Beginning {
    let delay = Duration::from_proto(request.workflow_start_delay.as_ref());
    let backoff = if delay.is_zero() { cron::first_backoff(&request.cron_schedule, env.now) } else { delay };
    let execution_timeout = Duration::from_proto(request.workflow_execution_timeout.as_ref());
    let initiator = if request.cron_schedule.is_empty() {
        ContinueAsNewInitiator::Unspecified
    } else {
        ContinueAsNewInitiator::CronSchedule
    };
    let mut attributes = WorkflowExecutionStartedEventAttributes {
        workflow_type: request.workflow_type,
        task_queue: request.task_queue.map(|queue| normal_queue(queue.name)),
        input: request.input,
        workflow_execution_timeout: request.workflow_execution_timeout,
        workflow_run_timeout: request.workflow_run_timeout,
        workflow_task_timeout: request.workflow_task_timeout,
        initiator: initiator as i32,
        continued_failure: request.continued_failure,
        last_completion_result: request.last_completion_result,
        identity: request.identity,
        retry_policy: request.retry_policy,
        attempt: 1,
        workflow_execution_expiration_time: execution_timeout
            .or_none()
            .and_then(|timeout| to_millis(env.now + timeout).to_proto()),
        cron_schedule: request.cron_schedule,
        first_workflow_task_backoff: Some(backoff.to_proto()),
        memo: request.memo,
        search_attributes: request.search_attributes,
        header: request.header,
        completion_callbacks: request.completion_callbacks,
        versioning_override: request.versioning_override,
        priority: request.priority,
        eager_execution_accepted: request.request_eager_execution
            && env.limits.eager_workflow_start
            && backoff.is_zero()
            && parent.is_none(),
        ..WorkflowExecutionStartedEventAttributes::default()
    };
    if let Some(parent) = parent {
        inherit_from_parent(&mut attributes, &parent);
        let name = env.namespaces.by_id(&parent.namespace_id).map(|n| n.name.to_string());
        attributes.parent_workflow_namespace = name.unwrap_or(parent.namespace_name);
        attributes.parent_workflow_namespace_id = parent.namespace_id;
        attributes.parent_workflow_execution = parent.execution;
        attributes.parent_initiated_event_id = parent.initiated_event_id;
        attributes.root_workflow_execution = parent.root_execution;
    }
    Beginning { attributes, links: request.links, user_metadata: request.user_metadata, request_id: request.request_id }
}

/// Rounded, as Temporal stores it.
fn to_millis(time: Timestamp) -> Timestamp {
    const MILLI: i64 = 1_000_000;
    Timestamp(time.as_nanos().saturating_add(MILLI / 2) / MILLI * MILLI)
}
