//! ExecuteMultiOperation: today always a start and an update ("update-with-start"), both or none.

use perdure_proto::{
    Code, Error,
    perdure::node::v1::{workflow_call, workflow_reply},
    temporal::api::workflowservice::v1::{
        ExecuteMultiOperationRequest, ExecuteMultiOperationResponse, StartWorkflowExecutionRequest,
        UpdateWorkflowExecutionRequest, execute_multi_operation_request::operation::Operation,
        execute_multi_operation_response::response::Response,
    },
};
use perdure_types::{Duration, Limits};

use crate::{
    call::Call,
    rpc::{start, update},
    search_attributes, versioning,
};

const FAILED: &str = "Update-with-Start could not be executed.";

pub(crate) async fn execute_multi_operation(
    call: &Call<'_>,
    mut request: ExecuteMultiOperationRequest,
) -> Result<ExecuteMultiOperationResponse, Error> {
    let namespace = call.namespace_for_start(&request.namespace)?;
    let given = request.operations.first().and_then(|first| match &first.operation {
        Some(Operation::StartWorkflow(start)) => start.search_attributes.as_ref(),
        Some(Operation::UpdateWorkflow(_)) | None => None,
    });
    let checked = search_attributes::check(call, &namespace, given).await;
    let workflow_id = prepare(&mut request, checked, call.limits())?;
    if let Some(Operation::StartWorkflow(start)) = request.operations.first().and_then(|o| o.operation.as_ref()) {
        let task_queue = start.task_queue.as_ref().map_or("", |queue| &queue.name);
        versioning::check_override(call, &namespace, start.versioning_override.as_ref(), task_queue).await?;
    }
    let command = workflow_call::Command::MultiOperation(request);
    let reply = call.workflow(namespace.id(), &workflow_id, command).await.map_err(named)?;
    let workflow_reply::Reply::MultiOperation(mut reply) = reply else {
        return Err(call.unexpected_reply());
    };
    for response in &mut reply.responses {
        if let Some(Response::StartWorkflow(started)) = &mut response.response {
            start::hand_out(call, started);
        }
    }
    Ok(reply)
}

/// Users know the call as update-with-start. What each operation says for itself stands in the detail.
fn named(mut error: Error) -> Error {
    if error.detail.as_ref().is_some_and(|d| d.type_url.ends_with("MultiOperationExecutionFailure")) {
        FAILED.clone_into(&mut error.message);
    }
    error
}

/// Checks both operations, so that the client learns of what is wrong with each. Gives their workflow id.
fn prepare(
    request: &mut ExecuteMultiOperationRequest,
    checked: Result<(), Error>,
    limits: &Limits,
) -> Result<String, Error> {
    let namespace = request.namespace.clone();
    let [first, second] = request.operations.as_mut_slice() else {
        return Err(not_start_and_update());
    };
    let (Some(Operation::StartWorkflow(start)), Some(Operation::UpdateWorkflow(update))) =
        (first.operation.as_mut(), second.operation.as_mut())
    else {
        return Err(not_start_and_update());
    };
    let started = prepare_start(start, &namespace, limits).and(checked);
    let mut updated = prepare_update(update, &namespace, limits);
    let updated_id = update.workflow_execution.as_ref().map_or("", |e| e.workflow_id.as_str());
    if started.is_ok() && updated.is_ok() && updated_id != start.workflow_id {
        updated = refuse("WorkflowId is not consistent with previous operation(s).");
    }
    if started.is_ok() && updated.is_ok() {
        return Ok(start.workflow_id.clone());
    }
    let code = [&started, &updated].iter().find_map(|r| r.as_ref().err()).map_or(Code::Aborted, Error::grpc_code);
    let statuses = [started, updated].map(|r| r.err().unwrap_or_else(Error::multi_operation_aborted));
    Err(Error::multi_operation(code, FAILED, statuses.into()))
}

fn prepare_start(start: &mut StartWorkflowExecutionRequest, namespace: &str, limits: &Limits) -> Result<(), Error> {
    same_namespace(&mut start.namespace, namespace)?;
    start::prepare(start, limits)?;
    if !start.cron_schedule.is_empty() {
        return refuse("CronSchedule is not allowed.");
    }
    if start.request_eager_execution {
        return refuse("RequestEagerExecution is not supported.");
    }
    if !Duration::from_proto(start.workflow_start_delay.as_ref()).is_zero() {
        return refuse("WorkflowStartDelay is not supported.");
    }
    Ok(())
}

fn prepare_update(update: &mut UpdateWorkflowExecutionRequest, namespace: &str, limits: &Limits) -> Result<(), Error> {
    same_namespace(&mut update.namespace, namespace)?;
    update::prepare(update, limits)?;
    if !update.first_execution_run_id.is_empty() {
        return refuse("FirstExecutionRunId is not allowed.");
    }
    if update.workflow_execution.as_ref().is_some_and(|e| !e.run_id.is_empty()) {
        return refuse("RunId is not allowed.");
    }
    Ok(())
}

fn same_namespace(of_operation: &mut String, of_request: &str) -> Result<(), Error> {
    if of_operation.is_empty() {
        of_request.clone_into(of_operation);
    }
    if of_operation == of_request { Ok(()) } else { refuse("Operation namespace did not match request's namespace.") }
}

fn not_start_and_update() -> Error {
    Error::invalid_argument("Operations have to be exactly [Start, Update].")
}

fn refuse<T>(message: &str) -> Result<T, Error> {
    Err(Error::invalid_argument(message))
}

#[cfg(test)]
mod tests {
    use perdure_proto::temporal::api::{
        common::v1::{WorkflowExecution, WorkflowType},
        errordetails::v1::MultiOperationExecutionFailure,
        taskqueue::v1::TaskQueue,
        update::v1::{Input, Meta, Request},
        workflowservice::v1::execute_multi_operation_request::Operation as Item,
    };
    use prost::Message;

    use super::*;

    fn start(workflow_id: &str) -> StartWorkflowExecutionRequest {
        StartWorkflowExecutionRequest {
            workflow_id: workflow_id.into(),
            workflow_type: Some(WorkflowType { name: "Order".into() }),
            task_queue: Some(TaskQueue { name: "orders".into(), ..Default::default() }),
            ..Default::default()
        }
    }

    fn update(workflow_id: &str) -> UpdateWorkflowExecutionRequest {
        UpdateWorkflowExecutionRequest {
            workflow_execution: Some(WorkflowExecution { workflow_id: workflow_id.into(), run_id: String::new() }),
            request: Some(Request {
                meta: Some(Meta::default()),
                input: Some(Input { name: "add".into(), ..Default::default() }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn request(
        start: StartWorkflowExecutionRequest,
        update: UpdateWorkflowExecutionRequest,
    ) -> ExecuteMultiOperationRequest {
        ExecuteMultiOperationRequest {
            namespace: "default".into(),
            operations: vec![
                Item { operation: Some(Operation::StartWorkflow(start)) },
                Item { operation: Some(Operation::UpdateWorkflow(update)) },
            ],
            ..Default::default()
        }
    }

    /// The messages of the two operations' statuses.
    fn statuses(error: &Error) -> Vec<String> {
        assert_eq!(error.message, FAILED);
        let detail = error.detail.as_ref().expect("a detail");
        let failure = MultiOperationExecutionFailure::decode(detail.value.as_slice()).expect("its type");
        failure.statuses.into_iter().map(|s| s.message).collect()
    }

    #[test]
    fn both_operations_get_the_namespace() {
        let mut request = request(start("w"), update("w"));
        assert_eq!(prepare(&mut request, Ok(()), &Limits::default()).expect("valid"), "w");
        let Some(Operation::UpdateWorkflow(update)) = &request.operations[1].operation else { panic!("an update") };
        assert_eq!(update.namespace, "default");
    }

    #[test]
    fn each_operation_has_its_status() {
        let check = |start, update, expect: [&str; 2]| {
            let error = prepare(&mut request(start, update), Ok(()), &Limits::default()).expect_err("refused");
            assert_eq!(error.grpc_code(), Code::InvalidArgument);
            assert_eq!(statuses(&error), expect);
        };
        const ABORTED: &str = "Operation was aborted.";
        check(start("w"), update("v"), [ABORTED, "WorkflowId is not consistent with previous operation(s)."]);
        let cron = StartWorkflowExecutionRequest { cron_schedule: "* * * * *".into(), ..start("w") };
        check(cron, update("w"), ["CronSchedule is not allowed.", ABORTED]);
        let eager = StartWorkflowExecutionRequest { request_eager_execution: true, ..start("w") };
        check(eager, update(""), ["RequestEagerExecution is not supported.", "WorkflowId is not set on request."]);
        let chained = UpdateWorkflowExecutionRequest { first_execution_run_id: "r".into(), ..update("w") };
        check(start("w"), chained, [ABORTED, "FirstExecutionRunId is not allowed."]);
        let elsewhere = UpdateWorkflowExecutionRequest { namespace: "other".into(), ..update("w") };
        check(start("w"), elsewhere, [ABORTED, "Operation namespace did not match request's namespace."]);
    }

    #[test]
    fn only_start_and_update() {
        let mut other = request(start("w"), update("w"));
        other.operations.swap(0, 1);
        let error = prepare(&mut other, Ok(()), &Limits::default()).expect_err("refused");
        assert_eq!(error.message, "Operations have to be exactly [Start, Update].");
        other.operations.clear();
        assert!(prepare(&mut other, Ok(()), &Limits::default()).is_err());
    }
}
