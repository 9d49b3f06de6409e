//! The RPCs of activities that no workflow has scheduled: start, describe, wait for the outcome, cancel, terminate, delete.
//! Their lists are in `list_activities`, what operators do to their attempts in `activity_operation`.

use perdure_proto::{
    Error,
    perdure::node::v1::{ActivityCommand, activity_command::Command, activity_reply, workflow_call, workflow_reply},
    temporal::api::workflowservice::v1::{
        DeleteActivityExecutionRequest, DeleteActivityExecutionResponse, DescribeActivityExecutionRequest,
        DescribeActivityExecutionResponse, PollActivityExecutionRequest, PollActivityExecutionResponse,
        RequestCancelActivityExecutionRequest, RequestCancelActivityExecutionResponse, StartActivityExecutionRequest,
        StartActivityExecutionResponse, TerminateActivityExecutionRequest, TerminateActivityExecutionResponse,
    },
};
use perdure_types::{EntityKind, Limits};

use crate::{call::Call, search_attributes, validate};

pub(crate) async fn start_activity_execution(
    call: &Call<'_>,
    mut request: StartActivityExecutionRequest,
) -> Result<StartActivityExecutionResponse, Error> {
    let namespace = call.namespace_for_start(&request.namespace)?;
    check_start(&mut request, call.limits())?;
    search_attributes::check(call, &namespace, request.search_attributes.as_ref()).await?;
    // As workers will be told.
    request.namespace = namespace.name().to_owned();
    let id = request.activity_id.clone();
    match ask(call, namespace.id(), &id, Command::Start(request)).await? {
        Some(activity_reply::Reply::Start(reply)) => Ok(reply),
        _ => Err(call.unexpected_reply()),
    }
}

fn check_start(request: &mut StartActivityExecutionRequest, limits: &Limits) -> Result<(), Error> {
    if request.activity_id.is_empty() {
        return Err(Error::invalid_argument("activityId is not set"));
    }
    validate::request_id(&mut request.request_id, limits)?;
    validate::identity(&request.identity, limits)?;
    validate::user_task_queue(request.task_queue.as_mut(), limits)?;
    validate::priority(request.priority.as_ref())?;
    if validate::is_blob_too_large(validate::size(request.input.as_ref()), limits) {
        return Err(Error::invalid_argument("input exceeds length limit"));
    }
    validate::blob_size(validate::size(request.user_metadata.as_ref()), limits)?;
    validate::links(&request.links, &request.completion_callbacks)?;
    validate::completion_callbacks(&mut request.completion_callbacks, limits)?;
    let Some(options) = &request.on_conflict_options else { return Ok(()) };
    if options.attach_completion_callbacks && !options.attach_request_id {
        return Err(Error::invalid_argument(
            "on_conflict_options: attach_completion_callbacks requires attach_request_id to be set",
        ));
    }
    if options.attach_request_id && request.links.is_empty() && request.completion_callbacks.is_empty() {
        return Err(Error::invalid_argument(
            "on_conflict_options: attach_request_id requires at least one completion callback or link",
        ));
    }
    Ok(())
}

pub(crate) async fn describe_activity_execution(
    call: &Call<'_>,
    request: DescribeActivityExecutionRequest,
) -> Result<DescribeActivityExecutionResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    named(&request.activity_id, &request.run_id, call.limits())?;
    if !request.long_poll_token.is_empty() && request.run_id.is_empty() {
        return Err(Error::invalid_argument("run id is required when long poll token is provided"));
    }
    let id = request.activity_id.clone();
    match call.owner_news(ask(call, namespace.id(), &id, Command::Describe(request))).await.unwrap_or(Ok(None))? {
        Some(activity_reply::Reply::Describe(reply)) => Ok(reply),
        Some(_) => Err(call.unexpected_reply()),
        // Nothing has happened yet: the client asks again.
        None => Ok(DescribeActivityExecutionResponse::default()),
    }
}

pub(crate) async fn poll_activity_execution(
    call: &Call<'_>,
    request: PollActivityExecutionRequest,
) -> Result<PollActivityExecutionResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    named(&request.activity_id, &request.run_id, call.limits())?;
    let id = request.activity_id.clone();
    match call.owner_news(ask(call, namespace.id(), &id, Command::Poll(request))).await.unwrap_or(Ok(None))? {
        Some(activity_reply::Reply::Poll(reply)) => Ok(reply),
        Some(_) => Err(call.unexpected_reply()),
        // Nothing has happened yet: the client asks again.
        None => Ok(PollActivityExecutionResponse::default()),
    }
}

pub(crate) async fn request_cancel_activity_execution(
    call: &Call<'_>,
    mut request: RequestCancelActivityExecutionRequest,
) -> Result<RequestCancelActivityExecutionResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    named(&request.activity_id, &request.run_id, call.limits())?;
    speaker(&mut request.request_id, &request.identity, &request.reason, call.limits())?;
    let id = request.activity_id.clone();
    ask(call, namespace.id(), &id, Command::RequestCancel(request)).await?;
    Ok(RequestCancelActivityExecutionResponse::default())
}

pub(crate) async fn terminate_activity_execution(
    call: &Call<'_>,
    mut request: TerminateActivityExecutionRequest,
) -> Result<TerminateActivityExecutionResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    named(&request.activity_id, &request.run_id, call.limits())?;
    speaker(&mut request.request_id, &request.identity, &request.reason, call.limits())?;
    let id = request.activity_id.clone();
    ask(call, namespace.id(), &id, Command::Terminate(request)).await?;
    Ok(TerminateActivityExecutionResponse::default())
}

pub(crate) async fn delete_activity_execution(
    call: &Call<'_>,
    request: DeleteActivityExecutionRequest,
) -> Result<DeleteActivityExecutionResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    named(&request.activity_id, &request.run_id, call.limits())?;
    let id = request.activity_id.clone();
    ask(call, namespace.id(), &id, Command::Delete(request)).await?;
    Ok(DeleteActivityExecutionResponse::default())
}

/// `None`: it is done, and there is nothing to say.
async fn ask(
    call: &Call<'_>,
    namespace_id: &str,
    id: &str,
    command: Command,
) -> Result<Option<activity_reply::Reply>, Error> {
    let command = workflow_call::Command::Activity(Box::new(ActivityCommand { command: Some(command) }));
    match call.entity(EntityKind::Activity, namespace_id, id, command).await? {
        workflow_reply::Reply::Activity(reply) => Ok(reply.reply),
        workflow_reply::Reply::Empty(_) => Ok(None),
        _ => Err(call.unexpected_reply()),
    }
}

/// The activity that a call is about.
pub(super) fn named(activity_id: &str, run_id: &str, limits: &Limits) -> Result<(), Error> {
    if activity_id.is_empty() {
        return Err(Error::invalid_argument("activity ID is required"));
    }
    if validate::is_too_long(activity_id, limits) {
        return Err(Error::invalid_argument(format!(
            "activity ID exceeds length limit. Length={} Limit={}",
            activity_id.len(),
            limits.max_id_length
        )));
    }
    if !run_id.is_empty() && !validate::is_uuid(run_id) {
        return Err(Error::invalid_argument("invalid run id: must be a valid UUID"));
    }
    Ok(())
}

fn speaker(request_id: &mut String, identity: &str, reason: &str, limits: &Limits) -> Result<(), Error> {
    validate::request_id(request_id, limits)?;
    validate::identity(identity, limits)?;
    if validate::is_blob_too_large(reason.len(), limits) {
        return Err(Error::invalid_argument("reason exceeds length limit"));
    }
    Ok(())
}
