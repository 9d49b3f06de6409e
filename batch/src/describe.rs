//! How a job shows itself: to those who describe it, and in lists.

use perdure_proto::temporal::api::{
    common::v1::{Execution, Memo, Payload, SearchAttributes, WorkflowExecution, WorkflowType},
    enums::v1::{BatchOperationState, BatchOperationType, ExecutionType, WorkflowExecutionStatus},
    workflow::v1::WorkflowExecutionInfo,
    workflowservice::v1::{
        DescribeBatchOperationResponse, StartBatchOperationRequest, start_batch_operation_request::Operation,
    },
};
use perdure_types::{EntityKind, Timestamp};

use crate::{
    calls::{kind_of, named_executions},
    job::{Job, phase},
};

const WORKFLOW_TYPE: &str = "temporal-sys-batch-workflow-protobuf";
/// Of the memo of a list row: the number of a BatchOperationType. The frontend reads it.
const TYPE_MEMO: &str = "batch_operation_type";

impl Job {
    pub(crate) fn describe(&self) -> DescribeBatchOperationResponse {
        let (state, request) = (&self.state, self.request());
        let is_activity = kind_of(request) == EntityKind::Activity;
        let kind = if is_activity { ExecutionType::Activity } else { ExecutionType::Workflow };
        let named = named_executions(request).into_iter().map(|execution| Execution {
            r#type: kind as i32,
            business_id: execution.workflow_id,
            run_id: execution.run_id,
        });
        DescribeBatchOperationResponse {
            operation_type: type_of(request) as i32,
            job_id: self.key.workflow_id.to_string(),
            state: state.state,
            start_time: Timestamp(state.start_time_ns).to_proto(),
            close_time: Timestamp(state.close_time_ns).to_proto(),
            total_operation_count: state.total_count,
            complete_operation_count: state.complete_count,
            failure_operation_count: state.failure_count,
            identity: state.identity.clone(),
            reason: request.reason.clone(),
            query: request.visibility_query.clone(),
            executions: named.collect(),
        }
    }

    /// As a workflow would be listed; jobs have a list of their own.
    pub(crate) fn list_row(&self, incarnation: &str) -> Option<WorkflowExecutionInfo> {
        let request = self.state.request.as_ref()?;
        let status = match phase(&self.state) {
            BatchOperationState::Running | BatchOperationState::Unspecified => WorkflowExecutionStatus::Running,
            BatchOperationState::Completed => WorkflowExecutionStatus::Completed,
            BatchOperationState::Failed => WorkflowExecutionStatus::Terminated,
        };
        let keyword = |text: &str| Payload {
            metadata: [
                ("encoding".to_owned(), bytes::Bytes::from_static(b"json/plain")),
                ("type".to_owned(), bytes::Bytes::from_static(b"Keyword")),
            ]
            .into(),
            data: format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")).into(),
            ..Payload::default()
        };
        let attributes = [("BatcherUser", keyword(&self.state.identity))];
        let kind = Payload { data: (type_of(request) as i32).to_string().into(), ..Payload::default() };
        let started = Timestamp(self.state.start_time_ns).to_proto();
        Some(WorkflowExecutionInfo {
            execution: Some(WorkflowExecution {
                workflow_id: self.key.workflow_id.to_string(),
                run_id: incarnation.to_owned(),
            }),
            r#type: Some(WorkflowType { name: WORKFLOW_TYPE.to_owned() }),
            start_time: started,
            execution_time: started,
            close_time: Timestamp(self.state.close_time_ns).to_proto(),
            status: status as i32,
            memo: Some(Memo { fields: [(TYPE_MEMO.to_owned(), kind)].into() }),
            search_attributes: Some(SearchAttributes {
                indexed_fields: attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            }),
            ..WorkflowExecutionInfo::default()
        })
    }
}

#[allow(deprecated, reason = "the numbers that every client knows")]
fn type_of(request: &StartBatchOperationRequest) -> BatchOperationType {
    use BatchOperationType as T;
    match &request.operation {
        Some(Operation::TerminationOperation(_)) => T::Terminate,
        Some(Operation::SignalOperation(_)) => T::Signal,
        Some(Operation::CancellationOperation(_)) => T::Cancel,
        Some(Operation::DeletionOperation(_)) => T::Delete,
        Some(Operation::ResetOperation(_)) => T::Reset,
        Some(Operation::UpdateWorkflowOptionsOperation(_)) => T::UpdateExecutionOptions,
        Some(Operation::UnpauseActivitiesOperation(_)) => T::UnpauseActivity,
        Some(Operation::ResetActivitiesOperation(_)) => T::ResetActivity,
        Some(Operation::UpdateActivityOptionsOperation(_)) => T::UpdateActivityOptions,
        Some(Operation::CancelActivitiesOperation(_)) => T::CancelActivity,
        Some(Operation::TerminateActivitiesOperation(_)) => T::TerminateActivity,
        Some(Operation::DeleteActivitiesOperation(_)) => T::DeleteActivity,
        None => T::Unspecified,
    }
}

pub(crate) fn identity_of(request: &StartBatchOperationRequest) -> String {
    match &request.operation {
        Some(Operation::TerminationOperation(o)) => &o.identity,
        Some(Operation::SignalOperation(o)) => &o.identity,
        Some(Operation::CancellationOperation(o)) => &o.identity,
        Some(Operation::DeletionOperation(o)) => &o.identity,
        Some(Operation::ResetOperation(o)) => &o.identity,
        Some(Operation::UpdateWorkflowOptionsOperation(o)) => &o.identity,
        Some(Operation::UnpauseActivitiesOperation(o)) => &o.identity,
        Some(Operation::ResetActivitiesOperation(o)) => &o.identity,
        Some(Operation::UpdateActivityOptionsOperation(o)) => &o.identity,
        Some(Operation::CancelActivitiesOperation(o)) => &o.identity,
        Some(Operation::TerminateActivitiesOperation(o)) => &o.identity,
        Some(Operation::DeleteActivitiesOperation(_)) | None => return String::new(),
    }
    .clone()
}
