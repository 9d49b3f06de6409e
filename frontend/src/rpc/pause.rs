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

/// Both requests name a run and say who wants it and why, in the same fields.
macro_rules! send {
    ($call:ident, $request:ident, $command:ident) => {{
        let namespace = $call.namespace(&$request.namespace)?;
        let execution =
            WorkflowExecution { workflow_id: $request.workflow_id.clone(), run_id: $request.run_id.clone() };
        let texts = [
            ("reason", $request.reason.as_str()),
            ("request id", $request.request_id.as_str()),
            ("identity", $request.identity.as_str()),
        ];
        check(&execution, texts, $call.limits())?;
        let command = workflow_call::Command::$command($request);
        $call.workflow(namespace.id(), &execution.workflow_id, command).await?;
    }};
}

pub(crate) async fn pause_workflow_execution(
    call: &Call<'_>,
    request: PauseWorkflowExecutionRequest,
) -> Result<PauseWorkflowExecutionResponse, Error> {
    send!(call, request, Pause);
    Ok(PauseWorkflowExecutionResponse::default())
}

pub(crate) async fn unpause_workflow_execution(
    call: &Call<'_>,
    request: UnpauseWorkflowExecutionRequest,
) -> Result<UnpauseWorkflowExecutionResponse, Error> {
    send!(call, request, Unpause);
    Ok(UnpauseWorkflowExecutionResponse::default())
}

fn check(execution: &WorkflowExecution, texts: [(&str, &str); 3], limits: &Limits) -> Result<(), Error> {
    validate::execution(Some(execution), limits)?;
    for (name, value) in texts {
        if validate::is_too_long(value, limits) {
            return Err(Error::invalid_argument(format!("{name} is too long.")));
        }
    }
    Ok(())
}
