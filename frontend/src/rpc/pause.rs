//! PauseWorkflowExecution and UnpauseWorkflowExecution.

use perdure_proto::{
    Error,
    perdure::node::v1::workflow_call,
    temporal::api::{
        common::v1::WorkflowExecution,
        workflowservice::v1::{
            PauseWorkflowExecutionRequest, PauseWorkflowExecutionResponse, UnpauseWorkflowExecutionRequest,
            UnpauseWorkflowExecutionResponse,
        },
    },
};
use perdure_types::Limits;

use crate::{call::Call, validate};

pub(crate) async fn pause_workflow_execution(
    call: &Call<'_>,
    request: PauseWorkflowExecutionRequest,
) -> Result<PauseWorkflowExecutionResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    check(
        [&request.workflow_id, &request.run_id],
        &request.reason,
        &request.request_id,
        &request.identity,
        call.limits(),
    )?;
    let workflow_id = request.workflow_id.clone();
    call.workflow(namespace.id(), &workflow_id, workflow_call::Command::Pause(request)).await?;
    Ok(PauseWorkflowExecutionResponse::default())
}

pub(crate) async fn unpause_workflow_execution(
    call: &Call<'_>,
    request: UnpauseWorkflowExecutionRequest,
) -> Result<UnpauseWorkflowExecutionResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    check(
        [&request.workflow_id, &request.run_id],
        &request.reason,
        &request.request_id,
        &request.identity,
        call.limits(),
    )?;
    let workflow_id = request.workflow_id.clone();
    call.workflow(namespace.id(), &workflow_id, workflow_call::Command::Unpause(request)).await?;
    Ok(UnpauseWorkflowExecutionResponse::default())
}

fn check(
    [workflow_id, run_id]: [&String; 2],
    reason: &str,
    request_id: &str,
    identity: &str,
    limits: &Limits,
) -> Result<(), Error> {
    let execution = WorkflowExecution { workflow_id: workflow_id.clone(), run_id: run_id.clone() };
    validate::execution(Some(&execution), limits)?;
    for (name, value) in [("reason", reason), ("request id", request_id), ("identity", identity)] {
        if validate::is_too_long(value, limits) {
            return Err(Error::invalid_argument(format!("{name} is too long.")));
        }
    }
    Ok(())
}
