//! The RPCs of Nexus operations that no workflow has scheduled: start, describe, wait, cancel, terminate, delete. Their lists
//! are in `list_nexus_operations`.

use std::collections::HashMap;

use perdure_proto::{
    Error,
    perdure::{
        nexus::v1::{OperationCommand, StartOperation, operation_command::Command, operation_reply},
        node::v1::{workflow_call, workflow_reply},
    },
    temporal::api::workflowservice::v1::{
        DeleteNexusOperationExecutionRequest, DeleteNexusOperationExecutionResponse,
        DescribeNexusOperationExecutionRequest, DescribeNexusOperationExecutionResponse,
        PollNexusOperationExecutionRequest, PollNexusOperationExecutionResponse,
        RequestCancelNexusOperationExecutionRequest, RequestCancelNexusOperationExecutionResponse,
        StartNexusOperationExecutionRequest, StartNexusOperationExecutionResponse,
        TerminateNexusOperationExecutionRequest, TerminateNexusOperationExecutionResponse,
    },
};
use perdure_types::{Duration, EntityKind, Limits, nexus::RESERVED_HEADERS};

use crate::{call::Call, search_attributes, validate};

pub(crate) async fn start_nexus_operation_execution(
    call: &Call<'_>,
    mut request: StartNexusOperationExecutionRequest,
) -> Result<StartNexusOperationExecutionResponse, Error> {
    let namespace = call.namespace_for_start(&request.namespace)?;
    check_start(&mut request, call.limits())?;
    search_attributes::check(call, &namespace, request.search_attributes.as_ref()).await?;
    let endpoint_id = endpoint_id(call, &request.endpoint).await?;
    // As handlers will be told.
    request.namespace = namespace.name().to_owned();
    let id = request.operation_id.clone();
    let command = Command::Start(StartOperation { request: Some(request), endpoint_id });
    match ask(call, namespace.id(), &id, command).await? {
        Some(operation_reply::Reply::Start(reply)) => Ok(reply),
        _ => Err(call.unexpected_reply()),
    }
}

async fn endpoint_id(call: &Call<'_>, name: &str) -> Result<String, Error> {
    let registry = call.frontend().namespaces();
    let find = || Some(registry.nexus_endpoint_by_name(name)?.endpoint?.id);
    let mut found = find();
    if found.is_none() {
        // Another node may have made it a moment ago.
        registry.refresh().await?;
        found = find();
    }
    found.ok_or_else(|| Error::not_found(format!("could not find Nexus endpoint by name: {name}")))
}

fn check_start(request: &mut StartNexusOperationExecutionRequest, limits: &Limits) -> Result<(), Error> {
    validate::request_id(&mut request.request_id, limits)?;
    operation_id(&request.operation_id, limits)?;
    short("identity", &request.identity, limits.max_id_length)?;
    check_target(request, limits)?;
    check_timeouts(request, limits)?;
    let bytes = validate::size(request.input.as_ref());
    if validate::is_blob_too_large(bytes, limits) {
        let limit = limits.blob_size_error_bytes;
        return Err(Error::invalid_argument(format!("input exceeds size limit. Length={bytes} Limit={limit}")));
    }
    validate::blob_size(validate::size(request.user_metadata.as_ref()), limits)?;
    request.nexus_header = checked_header(&request.nexus_header, limits)?;
    validate::links(&request.links, &request.completion_callbacks)?;
    validate::completion_callbacks(&mut request.completion_callbacks, limits)?;
    let Some(options) = &request.on_conflict_options else { return Ok(()) };
    if options.attach_completion_callbacks && !options.attach_request_id {
        return Err(Error::invalid_argument(
            "on_conflict_options: attach_completion_callbacks requires attach_request_id to be set",
        ));
    }
    Ok(())
}

fn check_target(request: &StartNexusOperationExecutionRequest, limits: &Limits) -> Result<(), Error> {
    for (name, value, most) in [
        ("endpoint", &request.endpoint, limits.nexus_endpoint_name_length),
        ("service", &request.service, limits.nexus_service_name_length),
        ("operation", &request.operation, limits.nexus_operation_name_length),
    ] {
        if value.is_empty() {
            return Err(Error::invalid_argument(format!("{name} is required")));
        }
        let length = value.len();
        if length as i64 > most {
            return Err(Error::invalid_argument(format!("{name} exceeds length limit. Length={length} Limit={most}")));
        }
    }
    Ok(())
}

/// No part is allowed more than the whole.
fn check_timeouts(request: &mut StartNexusOperationExecutionRequest, limits: &Limits) -> Result<(), Error> {
    for (name, timeout) in [
        ("schedule_to_close_timeout", &mut request.schedule_to_close_timeout),
        ("schedule_to_start_timeout", &mut request.schedule_to_start_timeout),
        ("start_to_close_timeout", &mut request.start_to_close_timeout),
    ] {
        validate::duration(timeout.as_mut())
            .map_err(|problem| Error::invalid_argument(format!("{name} is invalid: {problem}")))?;
    }
    let span = |timeout: &Option<prost_types::Duration>| Duration::from_proto(timeout.as_ref()).or_none();
    if let Some(most) = limits.nexus_schedule_to_close_max.or_none()
        && span(&request.schedule_to_close_timeout).is_none_or(|whole| whole > most)
    {
        request.schedule_to_close_timeout = Some(most.to_proto());
    }
    if let Some(whole) = span(&request.schedule_to_close_timeout) {
        for part in [&mut request.schedule_to_start_timeout, &mut request.start_to_close_timeout] {
            if span(part).is_some_and(|part| part > whole) {
                *part = Some(whole.to_proto());
            }
        }
    }
    Ok(())
}

/// Names of headers are the same in any case: they are kept in small letters.
fn checked_header(header: &HashMap<String, String>, limits: &Limits) -> Result<HashMap<String, String>, Error> {
    let mut bytes = 0;
    let mut checked = HashMap::with_capacity(header.len());
    for (name, value) in header {
        let lower = name.to_lowercase();
        if RESERVED_HEADERS.contains(&lower.as_str()) {
            return Err(Error::invalid_argument(format!("nexus_header contains a disallowed key: {name:?}")));
        }
        bytes += lower.len() + value.len();
        checked.insert(lower, value.clone());
    }
    if bytes as i64 > limits.nexus_header_size_bytes {
        return Err(Error::invalid_argument("nexus_header exceeds size limit"));
    }
    Ok(checked)
}

pub(crate) async fn describe_nexus_operation_execution(
    call: &Call<'_>,
    request: DescribeNexusOperationExecutionRequest,
) -> Result<DescribeNexusOperationExecutionResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    named(&request.operation_id, &request.run_id, call.limits())?;
    if !request.long_poll_token.is_empty() && request.run_id.is_empty() {
        return Err(Error::invalid_argument("run_id is required when long_poll_token is provided"));
    }
    let id = request.operation_id.clone();
    match call.owner_news(ask(call, namespace.id(), &id, Command::Describe(request))).await.unwrap_or(Ok(None))? {
        Some(operation_reply::Reply::Describe(reply)) => Ok(reply),
        Some(_) => Err(call.unexpected_reply()),
        // Nothing has happened yet: the client asks again.
        None => Ok(DescribeNexusOperationExecutionResponse::default()),
    }
}

pub(crate) async fn poll_nexus_operation_execution(
    call: &Call<'_>,
    request: PollNexusOperationExecutionRequest,
) -> Result<PollNexusOperationExecutionResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    named(&request.operation_id, &request.run_id, call.limits())?;
    let id = request.operation_id.clone();
    match call.owner_news(ask(call, namespace.id(), &id, Command::Poll(request))).await.unwrap_or(Ok(None))? {
        Some(operation_reply::Reply::Poll(reply)) => Ok(reply),
        Some(_) => Err(call.unexpected_reply()),
        // Nothing has happened yet: the client asks again.
        None => Ok(PollNexusOperationExecutionResponse::default()),
    }
}

pub(crate) async fn request_cancel_nexus_operation_execution(
    call: &Call<'_>,
    mut request: RequestCancelNexusOperationExecutionRequest,
) -> Result<RequestCancelNexusOperationExecutionResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    named(&request.operation_id, &request.run_id, call.limits())?;
    speaker(&mut request.request_id, &request.identity, &request.reason, call.limits())?;
    let id = request.operation_id.clone();
    ask(call, namespace.id(), &id, Command::RequestCancel(request)).await?;
    Ok(RequestCancelNexusOperationExecutionResponse::default())
}

pub(crate) async fn terminate_nexus_operation_execution(
    call: &Call<'_>,
    mut request: TerminateNexusOperationExecutionRequest,
) -> Result<TerminateNexusOperationExecutionResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    named(&request.operation_id, &request.run_id, call.limits())?;
    speaker(&mut request.request_id, &request.identity, &request.reason, call.limits())?;
    let id = request.operation_id.clone();
    ask(call, namespace.id(), &id, Command::Terminate(request)).await?;
    Ok(TerminateNexusOperationExecutionResponse::default())
}

pub(crate) async fn delete_nexus_operation_execution(
    call: &Call<'_>,
    request: DeleteNexusOperationExecutionRequest,
) -> Result<DeleteNexusOperationExecutionResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    named(&request.operation_id, &request.run_id, call.limits())?;
    let id = request.operation_id.clone();
    ask(call, namespace.id(), &id, Command::Delete(request)).await?;
    Ok(DeleteNexusOperationExecutionResponse::default())
}

/// `None`: it is done, and there is nothing to say.
async fn ask(
    call: &Call<'_>,
    namespace_id: &str,
    id: &str,
    command: Command,
) -> Result<Option<operation_reply::Reply>, Error> {
    let command = workflow_call::Command::NexusOperation(Box::new(OperationCommand { command: Some(command) }));
    match call.entity(EntityKind::NexusOperation, namespace_id, id, command).await? {
        workflow_reply::Reply::NexusOperation(reply) => Ok(reply.reply),
        workflow_reply::Reply::Empty(_) => Ok(None),
        _ => Err(call.unexpected_reply()),
    }
}

fn operation_id(id: &str, limits: &Limits) -> Result<(), Error> {
    if id.is_empty() {
        return Err(Error::invalid_argument("operation_id is required"));
    }
    short("operation_id", id, limits.max_id_length)
}

/// The operation that a call is about.
fn named(id: &str, run_id: &str, limits: &Limits) -> Result<(), Error> {
    operation_id(id, limits)?;
    if !run_id.is_empty() && !validate::is_uuid(run_id) {
        return Err(Error::invalid_argument("run_id is not a valid UUID"));
    }
    Ok(())
}

fn speaker(request_id: &mut String, identity: &str, reason: &str, limits: &Limits) -> Result<(), Error> {
    validate::request_id(request_id, limits)?;
    short("identity", identity, limits.max_id_length)?;
    short("reason", reason, limits.max_id_length)
}

fn short(name: &str, value: &str, limit: i64) -> Result<(), Error> {
    let length = value.len();
    if length as i64 > limit {
        return Err(Error::invalid_argument(format!("{name} exceeds length limit. Length={length} Limit={limit}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(change: impl FnOnce(&mut StartNexusOperationExecutionRequest), expect: Result<(), &str>) {
        let mut request = StartNexusOperationExecutionRequest {
            operation_id: "o".into(),
            endpoint: "e".into(),
            service: "s".into(),
            operation: "op".into(),
            ..Default::default()
        };
        change(&mut request);
        let got = check_start(&mut request, &Limits::default());
        assert_eq!(got.map_err(|error| error.message), expect.map_err(str::to_owned));
    }

    #[test]
    fn what_a_start_must_say() {
        check(|_| {}, Ok(()));
        check(|r| r.operation_id.clear(), Err("operation_id is required"));
        check(|r| r.service.clear(), Err("service is required"));
        check(|r| r.service = "s".repeat(1001), Err("service exceeds length limit. Length=1001 Limit=1000"));
        let negative = Some(prost_types::Duration { seconds: -1, nanos: 0 });
        check(|r| r.start_to_close_timeout = negative, Err("start_to_close_timeout is invalid: negative duration"));
        let header = |name: &str| HashMap::from([(name.to_owned(), "v".to_owned())]);
        check(
            |r| r.nexus_header = header("Request-Timeout"),
            Err("nexus_header contains a disallowed key: \"Request-Timeout\""),
        );
        check(|r| r.nexus_header = header(&"n".repeat(8192)), Err("nexus_header exceeds size limit"));
    }

    #[test]
    fn no_part_is_allowed_more_than_the_whole() {
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let mut request = StartNexusOperationExecutionRequest {
            schedule_to_close_timeout: seconds(5),
            schedule_to_start_timeout: seconds(9),
            start_to_close_timeout: seconds(3),
            ..Default::default()
        };
        check_timeouts(&mut request, &Limits::default()).unwrap();
        assert_eq!(request.schedule_to_start_timeout, seconds(5));
        assert_eq!(request.start_to_close_timeout, seconds(3));
    }
}
