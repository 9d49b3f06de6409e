//! ListNexusOperationExecutions and CountNexusOperationExecutions. Operations are listed as workflows are, in a list of their
//! own.

use perdure_proto::{
    Error,
    temporal::api::{
        common::v1::SearchAttributes,
        enums::v1::{NexusOperationExecutionStatus as Status, WorkflowExecutionStatus as ListStatus},
        nexus::v1::NexusOperationExecutionListInfo,
        workflow::v1::WorkflowExecutionInfo,
        workflowservice::v1::{
            CountNexusOperationExecutionsRequest, CountNexusOperationExecutionsResponse,
            ListNexusOperationExecutionsRequest, ListNexusOperationExecutionsResponse,
            count_nexus_operation_executions_response::AggregationGroup,
        },
    },
};
use perdure_types::{
    EntityKind,
    nexus::{ENDPOINT_ATTRIBUTE, REQUEST_ID_ATTRIBUTE, SERVICE_ATTRIBUTE},
};

use super::{count::count_of, list::page_of};
use crate::call::Call;

pub(crate) async fn list_nexus_operation_executions(
    call: &Call<'_>,
    request: ListNexusOperationExecutionsRequest,
) -> Result<ListNexusOperationExecutionsResponse, Error> {
    let (size, token) = (request.page_size, &request.next_page_token);
    let page = page_of(EntityKind::NexusOperation, call, &request.namespace, &request.query, size, token).await?;
    let operations = page.executions.into_iter().map(entry).collect();
    Ok(ListNexusOperationExecutionsResponse { operations, next_page_token: page.next_page_token })
}

pub(crate) async fn count_nexus_operation_executions(
    call: &Call<'_>,
    request: CountNexusOperationExecutionsRequest,
) -> Result<CountNexusOperationExecutionsResponse, Error> {
    let (count, groups) = count_of(EntityKind::NexusOperation, call, &request.namespace, &request.query).await?;
    let groups = groups.into_iter().map(|(value, count)| AggregationGroup { group_values: vec![value], count });
    Ok(CountNexusOperationExecutionsResponse { count, groups: groups.collect() })
}

fn entry(row: WorkflowExecutionInfo) -> NexusOperationExecutionListInfo {
    let status = match row.status() {
        ListStatus::Running => Status::Running,
        ListStatus::Completed => Status::Completed,
        ListStatus::Failed => Status::Failed,
        ListStatus::Canceled => Status::Canceled,
        ListStatus::Terminated => Status::Terminated,
        ListStatus::TimedOut => Status::TimedOut,
        ListStatus::ContinuedAsNew | ListStatus::Paused | ListStatus::Unspecified => Status::Unspecified,
    };
    let execution = row.execution.unwrap_or_default();
    let mut attributes = row.search_attributes.unwrap_or_default();
    let endpoint = take(&mut attributes, ENDPOINT_ATTRIBUTE);
    let service = take(&mut attributes, SERVICE_ATTRIBUTE);
    take(&mut attributes, REQUEST_ID_ATTRIBUTE);
    NexusOperationExecutionListInfo {
        operation_id: execution.workflow_id,
        run_id: execution.run_id,
        endpoint,
        service,
        operation: row.r#type.map(|operation| operation.name).unwrap_or_default(),
        schedule_time: row.start_time,
        close_time: row.close_time,
        status: status as i32,
        search_attributes: Some(attributes),
        state_transition_count: row.state_transition_count,
        execution_duration: row.execution_duration,
        state_size_bytes: row.history_size_bytes,
    }
}

/// What the server has put there: the text, in JSON.
fn take(attributes: &mut SearchAttributes, name: &str) -> String {
    let value = attributes.indexed_fields.remove(name);
    value.and_then(|value| serde_json::from_slice(&value.data).ok()).unwrap_or_default()
}
