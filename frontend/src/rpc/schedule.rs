//! The RPCs of one schedule: create, describe, update, patch, delete, list the times that it matches.

use perdure_cluster::Namespace;
use perdure_proto::{
    Error,
    perdure::node::v1::{ScheduleCommand, schedule_command, schedule_reply, workflow_call, workflow_reply},
    temporal::api::{
        common::v1::{Memo, SearchAttributes},
        enums::v1::{ScheduleOverlapPolicy, WorkflowIdReusePolicy},
        schedule::v1::{Schedule, SchedulePatch, schedule_action::Action},
        workflow::v1::NewWorkflowExecutionInfo,
        workflowservice::v1::{
            CreateScheduleRequest, CreateScheduleResponse, DeleteScheduleRequest, DeleteScheduleResponse,
            DescribeScheduleRequest, DescribeScheduleResponse, ListScheduleMatchingTimesRequest,
            ListScheduleMatchingTimesResponse, PatchScheduleRequest, PatchScheduleResponse,
            StartWorkflowExecutionRequest, UpdateScheduleRequest, UpdateScheduleResponse,
        },
    },
};
use perdure_types::{EntityKind, Limits};

use super::start;
use crate::{call::Call, search_attributes, validate};

/// What a workflow id gets appended is as long as this.
const APPENDED_TIME: &str = "-2009-11-10T23:00:00Z";

/// Asks the schedule, and takes the answer of that kind.
macro_rules! ask {
    ($call:ident, $namespace_id:expr, $id:expr, $command:expr, $kind:ident) => {
        match ask($call, $namespace_id, $id, $command).await? {
            schedule_reply::Reply::$kind(reply) => Ok(reply),
            _ => Err($call.unexpected_reply()),
        }
    };
}

pub(crate) async fn create_schedule(
    call: &Call<'_>,
    mut request: CreateScheduleRequest,
) -> Result<CreateScheduleResponse, Error> {
    let namespace = call.namespace_for_start(&request.namespace)?;
    let limits = call.limits();
    schedule_id(&request.schedule_id, limits)?;
    validate::identity(&request.identity, limits)?;
    validate::request_id(&mut request.request_id, limits)?;
    definition(request.schedule.as_mut(), request.memo.as_ref(), limits)?;
    attributes(call, &namespace, request.schedule.as_ref(), request.search_attributes.as_ref()).await?;
    if let Some(initial) = &request.initial_patch {
        patch(initial)?;
    }
    // As workflows will be told.
    request.namespace = namespace.name().to_owned();
    let id = request.schedule_id.clone();
    let command = schedule_command::Command::Create(request);
    ask!(call, namespace.id(), &id, command, Create)
}

pub(crate) async fn describe_schedule(
    call: &Call<'_>,
    request: DescribeScheduleRequest,
) -> Result<DescribeScheduleResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    schedule_id(&request.schedule_id, call.limits())?;
    let id = request.schedule_id.clone();
    let command = schedule_command::Command::Describe(request);
    ask!(call, namespace.id(), &id, command, Describe)
}

pub(crate) async fn update_schedule(
    call: &Call<'_>,
    mut request: UpdateScheduleRequest,
) -> Result<UpdateScheduleResponse, Error> {
    let namespace = call.namespace_for_start(&request.namespace)?;
    let limits = call.limits();
    schedule_id(&request.schedule_id, limits)?;
    validate::identity(&request.identity, limits)?;
    validate::request_id(&mut request.request_id, limits)?;
    definition(request.schedule.as_mut(), request.memo.as_ref(), limits)?;
    attributes(call, &namespace, request.schedule.as_ref(), request.search_attributes.as_ref()).await?;
    let id = request.schedule_id.clone();
    let command = schedule_command::Command::Update(request);
    ask!(call, namespace.id(), &id, command, Update)
}

pub(crate) async fn patch_schedule(
    call: &Call<'_>,
    mut request: PatchScheduleRequest,
) -> Result<PatchScheduleResponse, Error> {
    let namespace = call.namespace_for_start(&request.namespace)?;
    let limits = call.limits();
    schedule_id(&request.schedule_id, limits)?;
    validate::identity(&request.identity, limits)?;
    validate::request_id(&mut request.request_id, limits)?;
    let Some(wanted) = &request.patch else {
        return Err(Error::invalid_argument("Patch is not set on request."));
    };
    patch(wanted)?;
    let id = request.schedule_id.clone();
    let command = schedule_command::Command::Patch(request);
    ask!(call, namespace.id(), &id, command, Patch)
}

pub(crate) async fn delete_schedule(
    call: &Call<'_>,
    request: DeleteScheduleRequest,
) -> Result<DeleteScheduleResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    schedule_id(&request.schedule_id, call.limits())?;
    let id = request.schedule_id.clone();
    let command = schedule_command::Command::Delete(request);
    ask!(call, namespace.id(), &id, command, Delete)
}

pub(crate) async fn list_schedule_matching_times(
    call: &Call<'_>,
    request: ListScheduleMatchingTimesRequest,
) -> Result<ListScheduleMatchingTimesResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    schedule_id(&request.schedule_id, call.limits())?;
    let id = request.schedule_id.clone();
    let command = schedule_command::Command::MatchingTimes(request);
    ask!(call, namespace.id(), &id, command, MatchingTimes)
}

async fn ask(
    call: &Call<'_>,
    namespace_id: &str,
    id: &str,
    command: schedule_command::Command,
) -> Result<schedule_reply::Reply, Error> {
    let command = workflow_call::Command::Schedule(Box::new(ScheduleCommand { command: Some(command) }));
    match call.entity(EntityKind::Schedule, namespace_id, id, command).await? {
        workflow_reply::Reply::Schedule(reply) => reply.reply.ok_or_else(|| call.unexpected_reply()),
        _ => Err(call.unexpected_reply()),
    }
}

fn schedule_id(id: &str, limits: &Limits) -> Result<(), Error> {
    if id.is_empty() {
        return Err(Error::invalid_argument("ScheduleId is not set on request."));
    }
    if validate::is_too_long(id, limits) {
        return Err(Error::invalid_argument("ScheduleId length exceeds limit."));
    }
    Ok(())
}

fn definition(schedule: Option<&mut Schedule>, memo: Option<&Memo>, limits: &Limits) -> Result<(), Error> {
    let Some(schedule) = schedule else {
        return Err(Error::invalid_argument("Schedule is not set on request."));
    };
    let policies = schedule.policies.get_or_insert_default();
    overlap_policy(policies.overlap_policy)?;
    if schedule.state.as_ref().is_some_and(|state| state.remaining_actions < 0) {
        return Err(Error::invalid_argument("RemainingActions cannot be negative."));
    }
    match schedule.action.as_mut().and_then(|action| action.action.as_mut()) {
        Some(Action::StartWorkflow(start)) => action(start, limits)?,
        None => return Err(Error::invalid_argument("ScheduleAction is not set on request.")),
    }
    start::memo(validate::size(memo), limits)?;
    validate::blob_size(validate::size(Some(&*schedule)), limits)
}

/// Checks the search attributes of the schedule and of what it starts.
async fn attributes(
    call: &Call<'_>,
    namespace: &Namespace,
    schedule: Option<&Schedule>,
    own: Option<&SearchAttributes>,
) -> Result<(), Error> {
    search_attributes::check(call, namespace, own).await?;
    let action = schedule.and_then(|schedule| schedule.action.as_ref()).and_then(|action| action.action.as_ref());
    match action {
        Some(Action::StartWorkflow(start)) => {
            search_attributes::check(call, namespace, start.search_attributes.as_ref()).await
        }
        None => Ok(()),
    }
}

/// What is wrong with the workflow that is to be started is said now, not at its time.
fn action(action: &mut NewWorkflowExecutionInfo, limits: &Limits) -> Result<(), Error> {
    if !action.cron_schedule.is_empty() {
        return Err(Error::invalid_argument("CronSchedule cannot be set on a scheduled workflow."));
    }
    if action.workflow_id_reuse_policy != WorkflowIdReusePolicy::Unspecified as i32
        && action.workflow_id_reuse_policy != WorkflowIdReusePolicy::AllowDuplicate as i32
    {
        return Err(Error::invalid_argument("WorkflowIdReusePolicy cannot be set on a scheduled workflow."));
    }
    if action.workflow_id.is_empty() {
        return Err(Error::invalid_argument("WorkflowId is not set on request."));
    }
    let mut request = StartWorkflowExecutionRequest {
        workflow_id: format!("{}{APPENDED_TIME}", action.workflow_id),
        workflow_type: action.workflow_type.clone(),
        task_queue: action.task_queue.take(),
        input: action.input.clone(),
        workflow_execution_timeout: action.workflow_execution_timeout.take(),
        workflow_run_timeout: action.workflow_run_timeout.take(),
        workflow_task_timeout: action.workflow_task_timeout.take(),
        retry_policy: action.retry_policy.take(),
        memo: action.memo.clone(),
        search_attributes: action.search_attributes.clone(),
        versioning_override: action.versioning_override.clone(),
        priority: action.priority.clone(),
        ..StartWorkflowExecutionRequest::default()
    };
    start::prepare(&mut request, limits)?;
    action.task_queue = request.task_queue;
    action.workflow_execution_timeout = request.workflow_execution_timeout;
    action.workflow_run_timeout = request.workflow_run_timeout;
    action.workflow_task_timeout = request.workflow_task_timeout;
    action.retry_policy = request.retry_policy;
    Ok(())
}

fn patch(patch: &SchedulePatch) -> Result<(), Error> {
    if let Some(trigger) = &patch.trigger_immediately {
        overlap_policy(trigger.overlap_policy)?;
    }
    for backfill in &patch.backfill_request {
        overlap_policy(backfill.overlap_policy)?;
        let (Some(start), Some(end)) = (&backfill.start_time, &backfill.end_time) else {
            return Err(Error::invalid_argument("StartTime and EndTime of a backfill are required."));
        };
        if (end.seconds, end.nanos) < (start.seconds, start.nanos) {
            return Err(Error::invalid_argument("EndTime of a backfill is before its StartTime."));
        }
    }
    if !patch.pause.is_empty() && !patch.unpause.is_empty() {
        return Err(Error::invalid_argument("Pause and Unpause cannot be set both."));
    }
    Ok(())
}

fn overlap_policy(policy: i32) -> Result<(), Error> {
    match ScheduleOverlapPolicy::try_from(policy) {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::invalid_argument("Unknown overlap policy.")),
    }
}
