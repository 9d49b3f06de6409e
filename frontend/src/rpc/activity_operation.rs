//! PauseActivity, UnpauseActivity, ResetActivity and UpdateActivityOptions, and their newer forms, which name an activity
//! as an execution: of a workflow, or one that no workflow has scheduled.

use perdure_proto::{
    Error,
    perdure::node::v1::{
        ActivityOperation,
        activity_operation::{Activity, Operation, Pause, Reset, Unpause, UpdateOptions},
        workflow_call, workflow_reply,
    },
    temporal::api::{
        activity::v1::ActivityOptions,
        common::v1::WorkflowExecution,
        workflowservice::v1::{
            PauseActivityExecutionRequest, PauseActivityExecutionResponse, PauseActivityRequest, PauseActivityResponse,
            ResetActivityExecutionRequest, ResetActivityExecutionResponse, ResetActivityRequest, ResetActivityResponse,
            UnpauseActivityExecutionRequest, UnpauseActivityExecutionResponse, UnpauseActivityRequest,
            UnpauseActivityResponse, UpdateActivityExecutionOptionsRequest, UpdateActivityExecutionOptionsResponse,
            UpdateActivityOptionsRequest, UpdateActivityOptionsResponse, pause_activity_request,
            reset_activity_request, unpause_activity_request, update_activity_options_request,
        },
    },
};
use perdure_types::{Duration, EntityKind};

use crate::{call::Call, validate};

/// An operation on its way: what all forms of all of them say.
struct Request {
    namespace: String,
    execution: Option<WorkflowExecution>,
    identity: String,
    activity: Option<Activity>,
    operation: Operation,
}

pub(crate) async fn pause_activity(
    call: &Call<'_>,
    request: PauseActivityRequest,
) -> Result<PauseActivityResponse, Error> {
    use pause_activity_request::Activity as By;
    let activity = request.activity.map(|by| match by {
        By::Id(id) => Activity::Id(id),
        By::Type(name) => Activity::Type(name),
    });
    let operation = Operation::Pause(Pause { reason: request.reason, request_id: request.request_id });
    let (namespace, execution, identity) = (request.namespace, request.execution, request.identity);
    send(call, Request { namespace, execution, identity, activity, operation }).await?;
    Ok(PauseActivityResponse::default())
}

pub(crate) async fn unpause_activity(
    call: &Call<'_>,
    mut request: UnpauseActivityRequest,
) -> Result<UnpauseActivityResponse, Error> {
    use unpause_activity_request::Activity as By;
    let activity = request.activity.map(|by| match by {
        By::Id(id) => Activity::Id(id),
        By::Type(name) => Activity::Type(name),
        By::UnpauseAll(all) => Activity::All(all),
    });
    let operation = Operation::Unpause(Unpause {
        reset_attempts: request.reset_attempts,
        reset_heartbeat: request.reset_heartbeat,
        jitter_ns: jitter(&mut request.jitter)?,
    });
    let (namespace, execution, identity) = (request.namespace, request.execution, request.identity);
    send(call, Request { namespace, execution, identity, activity, operation }).await?;
    Ok(UnpauseActivityResponse::default())
}

pub(crate) async fn reset_activity(
    call: &Call<'_>,
    mut request: ResetActivityRequest,
) -> Result<ResetActivityResponse, Error> {
    use reset_activity_request::Activity as By;
    let activity = request.activity.map(|by| match by {
        By::Id(id) => Activity::Id(id),
        By::Type(name) => Activity::Type(name),
        By::MatchAll(all) => Activity::All(all),
    });
    let operation = Operation::Reset(Reset {
        reset_heartbeat: request.reset_heartbeat,
        keep_paused: request.keep_paused,
        restore_original_options: request.restore_original_options,
        jitter_ns: jitter(&mut request.jitter)?,
    });
    let (namespace, execution, identity) = (request.namespace, request.execution, request.identity);
    send(call, Request { namespace, execution, identity, activity, operation }).await?;
    Ok(ResetActivityResponse::default())
}

pub(crate) async fn update_activity_options(
    call: &Call<'_>,
    request: UpdateActivityOptionsRequest,
) -> Result<UpdateActivityOptionsResponse, Error> {
    use update_activity_options_request::Activity as By;
    validate::priority(request.activity_options.as_ref().and_then(|options| options.priority.as_ref()))?;
    let activity = request.activity.map(|by| match by {
        By::Id(id) => Activity::Id(id),
        By::Type(name) => Activity::Type(name),
        By::MatchAll(all) => Activity::All(all),
    });
    let operation = Operation::UpdateOptions(UpdateOptions {
        options: request.activity_options,
        update_mask: request.update_mask,
        restore_original: request.restore_original,
    });
    let (namespace, execution, identity) = (request.namespace, request.execution, request.identity);
    let options = send(call, Request { namespace, execution, identity, activity, operation }).await?;
    Ok(UpdateActivityOptionsResponse { activity_options: Some(options) })
}

pub(crate) async fn pause_activity_execution(
    call: &Call<'_>,
    request: PauseActivityExecutionRequest,
) -> Result<PauseActivityExecutionResponse, Error> {
    let operation = Operation::Pause(Pause { reason: request.reason, request_id: request.request_id });
    let named = Named { workflow_id: request.workflow_id, run_id: request.run_id, activity_id: request.activity_id };
    send_to(call, &request.namespace, named, request.identity, operation).await?;
    Ok(PauseActivityExecutionResponse::default())
}

pub(crate) async fn unpause_activity_execution(
    call: &Call<'_>,
    mut request: UnpauseActivityExecutionRequest,
) -> Result<UnpauseActivityExecutionResponse, Error> {
    let operation = Operation::Unpause(Unpause { jitter_ns: jitter(&mut request.jitter)?, ..Unpause::default() });
    let named = Named { workflow_id: request.workflow_id, run_id: request.run_id, activity_id: request.activity_id };
    send_to(call, &request.namespace, named, request.identity, operation).await?;
    Ok(UnpauseActivityExecutionResponse::default())
}

pub(crate) async fn reset_activity_execution(
    call: &Call<'_>,
    mut request: ResetActivityExecutionRequest,
) -> Result<ResetActivityExecutionResponse, Error> {
    let operation = Operation::Reset(Reset {
        reset_heartbeat: request.reset_heartbeat,
        keep_paused: request.keep_paused,
        restore_original_options: request.restore_original_options,
        jitter_ns: jitter(&mut request.jitter)?,
    });
    let named = Named { workflow_id: request.workflow_id, run_id: request.run_id, activity_id: request.activity_id };
    send_to(call, &request.namespace, named, request.identity, operation).await?;
    Ok(ResetActivityExecutionResponse::default())
}

pub(crate) async fn update_activity_execution_options(
    call: &Call<'_>,
    request: UpdateActivityExecutionOptionsRequest,
) -> Result<UpdateActivityExecutionOptionsResponse, Error> {
    validate::priority(request.activity_options.as_ref().and_then(|options| options.priority.as_ref()))?;
    let operation = Operation::UpdateOptions(UpdateOptions {
        options: request.activity_options,
        update_mask: request.update_mask,
        restore_original: request.restore_original,
    });
    let named = Named { workflow_id: request.workflow_id, run_id: request.run_id, activity_id: request.activity_id };
    let options = send_to(call, &request.namespace, named, request.identity, operation).await?;
    Ok(UpdateActivityExecutionOptionsResponse { activity_options: Some(options) })
}

/// An activity execution; without a workflow it is one that no workflow has scheduled.
struct Named {
    workflow_id: String,
    run_id: String,
    activity_id: String,
}

async fn send_to(
    call: &Call<'_>,
    namespace: &str,
    named: Named,
    identity: String,
    operation: Operation,
) -> Result<ActivityOptions, Error> {
    let Named { workflow_id, run_id, activity_id } = named;
    if !workflow_id.is_empty() {
        let (namespace, execution) = (namespace.to_owned(), Some(WorkflowExecution { workflow_id, run_id }));
        let activity = Some(Activity::Id(activity_id));
        return send(call, Request { namespace, execution, identity, activity, operation }).await;
    }
    let namespace = call.namespace(namespace)?;
    super::standalone_activity::named(&activity_id, &run_id, call.limits())?;
    let command = ActivityOperation { run_id, identity, operation: Some(operation), ..ActivityOperation::default() };
    let command = workflow_call::Command::ActivityOperation(Box::new(command));
    match call.entity(EntityKind::Activity, namespace.id(), &activity_id, command).await? {
        workflow_reply::Reply::ActivityOptions(options) => Ok(*options),
        _ => Err(call.unexpected_reply()),
    }
}

fn jitter(jitter: &mut Option<prost_types::Duration>) -> Result<i64, Error> {
    validate::duration(jitter.as_mut()).map_err(|e| Error::invalid_argument(format!("invalid jitter: {e}")))?;
    Ok(Duration::from_proto(jitter.as_ref()).0)
}

async fn send(call: &Call<'_>, request: Request) -> Result<ActivityOptions, Error> {
    let Request { namespace, execution, identity, activity, operation } = request;
    let namespace = call.namespace(&namespace)?;
    let execution = validate::execution(execution.as_ref(), call.limits())?;
    let named = match &activity {
        Some(Activity::Id(name) | Activity::Type(name)) => !name.is_empty(),
        Some(Activity::All(all)) => *all,
        None => false,
    };
    if !named {
        return Err(Error::invalid_argument("Either Activity.Id or Activity.Type should be set on request."));
    }
    let (run_id, operation) = (execution.run_id.clone(), Some(operation));
    let command = ActivityOperation { run_id, identity, activity, operation };
    let command = workflow_call::Command::ActivityOperation(Box::new(command));
    match call.workflow(namespace.id(), &execution.workflow_id, command).await? {
        workflow_reply::Reply::ActivityOptions(options) => Ok(*options),
        _ => Err(call.unexpected_reply()),
    }
}
