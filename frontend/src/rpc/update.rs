//! UpdateWorkflowExecution and PollWorkflowExecutionUpdate.
//!
//! The owner answers when the stage that the client waits for is reached, or after the server's limit with the stage that
//! is reached then. Giving up here does not take the update back.

use perdure_proto::{
    Code, Error,
    perdure::node::v1::{workflow_call, workflow_reply},
    temporal::api::{
        enums::v1::UpdateWorkflowExecutionLifecycleStage as Stage,
        errordetails::v1::PermissionDeniedFailure,
        update::v1::UpdateRef,
        workflowservice::v1::{
            PollWorkflowExecutionUpdateRequest, PollWorkflowExecutionUpdateResponse, UpdateWorkflowExecutionRequest,
            UpdateWorkflowExecutionResponse,
        },
    },
};
use perdure_types::Limits;
use prost::Message;

use crate::{call::Call, ids::new_id, validate};

pub(crate) async fn update_workflow_execution(
    call: &Call<'_>,
    mut request: UpdateWorkflowExecutionRequest,
) -> Result<UpdateWorkflowExecutionResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    prepare(&mut request, call.limits())?;
    let workflow_id = request.workflow_execution.as_ref().map(|e| e.workflow_id.clone()).unwrap_or_default();
    match call.workflow(namespace.id(), &workflow_id, workflow_call::Command::Update(request)).await? {
        workflow_reply::Reply::Update(reply) => Ok(reply),
        _ => Err(call.unexpected_reply()),
    }
}

/// Checks an update and fills in what it leaves open.
pub(crate) fn prepare(request: &mut UpdateWorkflowExecutionRequest, limits: &Limits) -> Result<(), Error> {
    validate::execution(request.workflow_execution.as_ref(), limits)?;
    let update = request.request.as_mut();
    let Some((meta, input)) = update.map(|u| (u.meta.as_mut(), u.input.as_ref())) else {
        return refuse("Update meta is not set on request.");
    };
    let Some(meta) = meta else {
        return refuse("Update meta is not set on request.");
    };
    if validate::is_too_long(&meta.update_id, limits) {
        return refuse("UpdateId length exceeds limit.");
    }
    if meta.update_id.is_empty() {
        meta.update_id = new_id();
    }
    let Some(input) = input else {
        return refuse("Update input is not set on request.");
    };
    if input.name.is_empty() {
        return refuse("Update name is not set on request.");
    }
    validate::payloads(input.args.as_ref(), limits)?;
    let wait = request.wait_policy.get_or_insert_default();
    if wait.lifecycle_stage == Stage::Unspecified as i32 {
        wait.lifecycle_stage = Stage::Completed as i32;
    }
    if wait.lifecycle_stage == Stage::Admitted as i32 {
        return Err(not_permitted(
            "UpdateWorkflowExecution issued asynchronously and waiting on update admitted is not supported.",
        ));
    }
    let Some(update) = request.request.as_mut() else { return Ok(()) };
    validate::completion_callbacks(&mut update.completion_callbacks, limits)?;
    if !update.completion_callbacks.is_empty() && update.request_id.is_empty() {
        return refuse("request_id is required when completion_callbacks are set");
    }
    // SDKs say the links of a callback twice, for older servers.
    let callbacks = &update.completion_callbacks;
    update.links.retain(|link| !callbacks.iter().any(|callback| callback.links.contains(link)));
    validate::links(&update.links, callbacks)
}

fn not_permitted(message: &str) -> Error {
    let detail = prost_types::Any {
        type_url: "type.googleapis.com/temporal.api.errordetails.v1.PermissionDeniedFailure".to_owned(),
        value: PermissionDeniedFailure::default().encode_to_vec(),
    };
    Error { detail: Some(detail), ..Error::new(Code::PermissionDenied, message) }
}

pub(crate) async fn poll_workflow_execution_update(
    call: &Call<'_>,
    mut request: PollWorkflowExecutionUpdateRequest,
) -> Result<PollWorkflowExecutionUpdateResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    let update = prepare_poll(&mut request, call.limits())?;
    let workflow_id = update.workflow_execution.as_ref().map(|e| e.workflow_id.clone()).unwrap_or_default();
    let read = call.workflow(namespace.id(), &workflow_id, workflow_call::Command::PollUpdate(request));
    match call.owner_news(read).await {
        Some(Ok(workflow_reply::Reply::PollUpdate(reply))) => Ok(reply),
        Some(Ok(_)) => Err(call.unexpected_reply()),
        Some(Err(error)) => Err(error),
        // The stage "unspecified" says: not there yet, poll again.
        None => Ok(PollWorkflowExecutionUpdateResponse { update_ref: Some(update), ..Default::default() }),
    }
}

fn prepare_poll(request: &mut PollWorkflowExecutionUpdateRequest, limits: &Limits) -> Result<UpdateRef, Error> {
    let Some(update) = request.update_ref.clone() else {
        return refuse("UpdateRef is not set on request.");
    };
    validate::execution(update.workflow_execution.as_ref(), limits)?;
    if validate::is_too_long(&update.update_id, limits) {
        return refuse("UpdateId length exceeds limit.");
    }
    request.wait_policy.get_or_insert_default();
    Ok(update)
}

fn refuse<T>(message: &str) -> Result<T, Error> {
    Err(Error::invalid_argument(message))
}

#[cfg(test)]
mod tests {
    use perdure_proto::temporal::api::{
        common::v1::WorkflowExecution,
        update::v1::{Input, Meta, Request, WaitPolicy},
    };

    use super::*;

    fn request() -> UpdateWorkflowExecutionRequest {
        UpdateWorkflowExecutionRequest {
            namespace: "default".into(),
            workflow_execution: Some(WorkflowExecution { workflow_id: "w".into(), run_id: String::new() }),
            request: Some(Request {
                meta: Some(Meta { update_id: "u".into(), ..Default::default() }),
                input: Some(Input { name: "add".into(), ..Default::default() }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn check(change: impl FnOnce(&mut UpdateWorkflowExecutionRequest), expect: Result<(), &str>) {
        let mut request = request();
        change(&mut request);
        assert_eq!(prepare(&mut request, &Limits::default()).map_err(|e| e.message), expect.map_err(str::to_owned));
    }

    fn update(r: &mut UpdateWorkflowExecutionRequest) -> &mut Request {
        r.request.as_mut().expect("set")
    }

    #[test]
    fn rules() {
        check(|_| {}, Ok(()));
        check(|r| r.workflow_execution = None, Err("Execution is not set on request."));
        check(|r| r.request = None, Err("Update meta is not set on request."));
        check(|r| update(r).meta = None, Err("Update meta is not set on request."));
        check(|r| update(r).input = None, Err("Update input is not set on request."));
        check(|r| update(r).input = Some(Input::default()), Err("Update name is not set on request."));
        check(
            |r| update(r).meta = Some(Meta { update_id: "u".repeat(1001), ..Default::default() }),
            Err("UpdateId length exceeds limit."),
        );
        check(
            |r| r.wait_policy = Some(WaitPolicy { lifecycle_stage: Stage::Admitted as i32 }),
            Err("UpdateWorkflowExecution issued asynchronously and waiting on update admitted is not supported."),
        );
    }

    #[test]
    fn defaults() {
        let mut request = request();
        update(&mut request).meta = Some(Meta::default());
        prepare(&mut request, &Limits::default()).expect("valid");
        assert_eq!(request.wait_policy.map(|p| p.lifecycle_stage), Some(Stage::Completed as i32));
        let id = request.request.and_then(|u| u.meta).map(|m| m.update_id).expect("set");
        assert!(validate::is_uuid(&id));
    }
}
