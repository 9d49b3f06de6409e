//! ListActivityExecutions and CountActivityExecutions. Activities are listed as workflows are, in a list of their own.

use perdure_proto::{
    Error,
    temporal::api::{
        activity::v1::ActivityExecutionListInfo,
        common::v1::ActivityType,
        enums::v1::{ActivityExecutionStatus as Status, WorkflowExecutionStatus as ListStatus},
        workflow::v1::WorkflowExecutionInfo,
        workflowservice::v1::{
            CountActivityExecutionsRequest, CountActivityExecutionsResponse, ListActivityExecutionsRequest,
            ListActivityExecutionsResponse, count_activity_executions_response::AggregationGroup,
        },
    },
};
use perdure_types::EntityKind;

use super::{count::count_of, list::page_of};
use crate::call::Call;

pub(crate) async fn list_activity_executions(
    call: &Call<'_>,
    request: ListActivityExecutionsRequest,
) -> Result<ListActivityExecutionsResponse, Error> {
    let (size, token) = (request.page_size, &request.next_page_token);
    let page = page_of(EntityKind::Activity, call, &request.namespace, &request.query, size, token).await?;
    let executions = page.executions.into_iter().map(entry).collect();
    Ok(ListActivityExecutionsResponse { executions, next_page_token: page.next_page_token })
}

pub(crate) async fn count_activity_executions(
    call: &Call<'_>,
    request: CountActivityExecutionsRequest,
) -> Result<CountActivityExecutionsResponse, Error> {
    let (count, groups) = count_of(EntityKind::Activity, call, &request.namespace, &request.query).await?;
    let groups = groups.into_iter().map(|(value, count)| AggregationGroup { group_values: vec![value], count });
    Ok(CountActivityExecutionsResponse { count, groups: groups.collect() })
}

fn entry(row: WorkflowExecutionInfo) -> ActivityExecutionListInfo {
    let status = match row.status() {
        ListStatus::Running => Status::Running,
        ListStatus::Completed => Status::Completed,
        ListStatus::Failed => Status::Failed,
        ListStatus::Canceled => Status::Canceled,
        ListStatus::Terminated => Status::Terminated,
        ListStatus::TimedOut => Status::TimedOut,
        ListStatus::Paused => Status::Paused,
        ListStatus::ContinuedAsNew | ListStatus::Unspecified => Status::Unspecified,
    };
    let execution = row.execution.unwrap_or_default();
    ActivityExecutionListInfo {
        activity_id: execution.workflow_id,
        run_id: execution.run_id,
        activity_type: row.r#type.map(|kind| ActivityType { name: kind.name }),
        schedule_time: row.start_time,
        close_time: row.close_time,
        status: status as i32,
        search_attributes: row.search_attributes,
        task_queue: row.task_queue,
        state_transition_count: row.state_transition_count,
        state_size_bytes: row.history_size_bytes,
        execution_duration: row.execution_duration,
        execution_time: row.execution_time,
    }
}
