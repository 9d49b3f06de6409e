//! StartBatchOperation, StopBatchOperation, DescribeBatchOperation and ListBatchOperations.

use perdure_proto::{
    Error,
    perdure::node::v1::{BatchCommand, batch_command, batch_reply, workflow_call, workflow_reply},
    temporal::api::{
        batch::v1::BatchOperationInfo,
        enums::v1::{BatchOperationState, ExecutionType, WorkflowExecutionStatus},
        workflow::v1::WorkflowExecutionInfo,
        workflowservice::v1::{
            DescribeBatchOperationRequest, DescribeBatchOperationResponse, ListBatchOperationsRequest,
            ListBatchOperationsResponse, StartBatchOperationRequest, StartBatchOperationResponse,
            StopBatchOperationRequest, StopBatchOperationResponse, start_batch_operation_request::Operation,
        },
    },
};
use perdure_types::EntityKind;

use super::list::page_of;
use crate::{call::Call, search_attributes, validate};

/// Temporal's `frontend.MaxExecutionCountBatchOperationPerNamespace`.
const MAX_EXECUTIONS: usize = 1_000;
/// Where a row of the list says what the job does: the number of a BatchOperationType.
const TYPE_MEMO: &str = "batch_operation_type";

/// Asks the job, and takes the answer of that kind.
macro_rules! ask {
    ($call:ident, $namespace_id:expr, $id:expr, $command:expr, $kind:ident) => {
        match send($call, $namespace_id, $id, $command).await? {
            batch_reply::Reply::$kind(reply) => Ok(reply),
            _ => Err($call.unexpected_reply()),
        }
    };
}

pub(crate) async fn start_batch_operation(
    call: &Call<'_>,
    request: StartBatchOperationRequest,
) -> Result<StartBatchOperationResponse, Error> {
    let namespace = call.namespace_for_start(&request.namespace)?;
    check(call, &request)?;
    if !request.visibility_query.is_empty() {
        let query = &request.visibility_query;
        let kind = if is_of_activities(&request) { EntityKind::Activity } else { EntityKind::Workflow };
        let accept = perdure_visibility::Query::check_list;
        search_attributes::parse_query_of(kind, call, &namespace, query, accept).await?;
    }
    let id = request.job_id.clone();
    ask!(call, namespace.id(), &id, batch_command::Command::Start(request), Start)
}

#[allow(deprecated, reason = "older clients still send what newer ones replaced")]
fn check(call: &Call<'_>, request: &StartBatchOperationRequest) -> Result<(), Error> {
    let refuse = |message: &str| Err(Error::invalid_argument(message));
    let named = request.executions.len() + request.target_executions.len();
    let nothing_named = request.visibility_query.is_empty() && named == 0;
    if request.operation.is_none() || request.reason.is_empty() || nothing_named {
        return refuse(
            "must provide required parameters: BatchType,Reason,Namespace, AND one of (Query OR Executions OR TargetExecutions)",
        );
    }
    job_id(&request.job_id, call)?;
    let selectors =
        [!request.visibility_query.is_empty(), !request.executions.is_empty(), !request.target_executions.is_empty()];
    if selectors.into_iter().filter(|given| *given).count() > 1 {
        return refuse("visibility query, executions, and target executions are mutually exclusive");
    }
    if named > MAX_EXECUTIONS {
        return Err(Error::invalid_argument(format!(
            "batch executions count exceeded, max {MAX_EXECUTIONS}, requested {named}"
        )));
    }
    let kind = if is_of_activities(request) { ExecutionType::Activity } else { ExecutionType::Workflow };
    if let Some(i) = request.target_executions.iter().position(|execution| execution.r#type() != kind) {
        let kind = kind.as_str_name();
        return Err(Error::invalid_argument(format!("target_executions[{i}] must be of {kind} for this operation")));
    }
    match &request.operation {
        None => refuse("Batch operation is not set on request."),
        Some(Operation::SignalOperation(signal)) if signal.signal.is_empty() => refuse("must provide signal name"),
        Some(Operation::ResetOperation(reset))
            if reset.options.as_ref().is_none_or(|options| options.target.is_none()) && reset.reset_type == 0 =>
        {
            refuse("batch reset missing target")
        }
        Some(Operation::UnpauseActivitiesOperation(o)) if o.activity.is_none() => no_activity(),
        Some(Operation::ResetActivitiesOperation(o)) if o.activity.is_none() => no_activity(),
        Some(Operation::UpdateActivityOptionsOperation(o)) if o.activity.is_none() => no_activity(),
        Some(_) => Ok(()),
    }
}

/// Of standalone ones; others are found by their workflows.
fn is_of_activities(request: &StartBatchOperationRequest) -> bool {
    matches!(
        request.operation,
        Some(
            Operation::CancelActivitiesOperation(_)
                | Operation::TerminateActivitiesOperation(_)
                | Operation::DeleteActivitiesOperation(_)
        )
    )
}

fn job_id(id: &str, call: &Call<'_>) -> Result<(), Error> {
    if id.is_empty() {
        return Err(Error::invalid_argument("JobId is not set on request."));
    }
    if validate::is_too_long(id, call.limits()) {
        return Err(Error::invalid_argument("JobId length exceeds limit."));
    }
    Ok(())
}

fn no_activity() -> Result<(), Error> {
    Err(Error::invalid_argument("activity filter must be set"))
}

pub(crate) async fn stop_batch_operation(
    call: &Call<'_>,
    request: StopBatchOperationRequest,
) -> Result<StopBatchOperationResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    job_id(&request.job_id, call)?;
    if request.reason.is_empty() {
        return Err(Error::invalid_argument("Reason is not set on request."));
    }
    let id = request.job_id.clone();
    ask!(call, namespace.id(), &id, batch_command::Command::Stop(request), Stop)
}

pub(crate) async fn describe_batch_operation(
    call: &Call<'_>,
    request: DescribeBatchOperationRequest,
) -> Result<DescribeBatchOperationResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    job_id(&request.job_id, call)?;
    let id = request.job_id.clone();
    ask!(call, namespace.id(), &id, batch_command::Command::Describe(request), Describe)
}

pub(crate) async fn list_batch_operations(
    call: &Call<'_>,
    request: ListBatchOperationsRequest,
) -> Result<ListBatchOperationsResponse, Error> {
    let (size, token) = (request.page_size, &request.next_page_token);
    let page = page_of(EntityKind::Batch, call, &request.namespace, "", size, token).await?;
    Ok(ListBatchOperationsResponse {
        operation_info: page.executions.into_iter().map(entry).collect(),
        next_page_token: page.next_page_token,
    })
}

fn entry(row: WorkflowExecutionInfo) -> BatchOperationInfo {
    let state = match row.status() {
        WorkflowExecutionStatus::Running => BatchOperationState::Running,
        WorkflowExecutionStatus::Completed => BatchOperationState::Completed,
        _ => BatchOperationState::Failed,
    };
    let kind = row.memo.as_ref().and_then(|memo| memo.fields.get(TYPE_MEMO)).map(|payload| &payload.data);
    let kind = kind.and_then(|number| std::str::from_utf8(number).ok()?.parse().ok());
    BatchOperationInfo {
        job_id: row.execution.map(|execution| execution.workflow_id).unwrap_or_default(),
        state: state as i32,
        start_time: row.start_time,
        close_time: row.close_time,
        operation_type: kind.unwrap_or_default(),
    }
}

async fn send(
    call: &Call<'_>,
    namespace_id: &str,
    job_id: &str,
    command: batch_command::Command,
) -> Result<batch_reply::Reply, Error> {
    let command = workflow_call::Command::Batch(Box::new(BatchCommand { command: Some(command) }));
    match call.entity(EntityKind::Batch, namespace_id, job_id, command).await? {
        workflow_reply::Reply::Batch(reply) => reply.reply.ok_or_else(|| call.unexpected_reply()),
        _ => Err(call.unexpected_reply()),
    }
}
