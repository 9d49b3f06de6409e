//! ListSchedules and CountSchedules. Schedules are listed as workflows are, in a list of their own.

use perdure_proto::{
    Error,
    temporal::api::{
        schedule::v1::{ScheduleListEntry, ScheduleListInfo},
        workflow::v1::WorkflowExecutionInfo,
        workflowservice::v1::{
            CountSchedulesRequest, CountSchedulesResponse, ListSchedulesRequest, ListSchedulesResponse,
            count_schedules_response::AggregationGroup,
        },
    },
};
use perdure_types::EntityKind;
use prost::Message;

use super::{count::count_of, list::page_of};
use crate::call::Call;

/// Where a row carries what the list shows of the schedule: the value of a payload of its memo.
const LIST_INFO: &str = "ScheduleInfo";
const PAUSED: &str = "TemporalSchedulePaused";

pub(crate) async fn list_schedules(
    call: &Call<'_>,
    request: ListSchedulesRequest,
) -> Result<ListSchedulesResponse, Error> {
    let (size, token) = (request.maximum_page_size, &request.next_page_token);
    let page = page_of(EntityKind::Schedule, call, &request.namespace, &request.query, size, token).await?;
    let schedules = page.executions.into_iter().map(entry).collect();
    Ok(ListSchedulesResponse { schedules, next_page_token: page.next_page_token })
}

pub(crate) async fn count_schedules(
    call: &Call<'_>,
    request: CountSchedulesRequest,
) -> Result<CountSchedulesResponse, Error> {
    let (count, groups) = count_of(EntityKind::Schedule, call, &request.namespace, &request.query).await?;
    let groups = groups.into_iter().map(|(value, count)| AggregationGroup { group_values: vec![value], count });
    Ok(CountSchedulesResponse { count, groups: groups.collect() })
}

fn entry(row: WorkflowExecutionInfo) -> ScheduleListEntry {
    let mut memo = row.memo.unwrap_or_default();
    let info = memo.fields.remove(LIST_INFO);
    let info = info.and_then(|payload| ScheduleListInfo::decode(payload.data).ok());
    let mut attributes = row.search_attributes.unwrap_or_default();
    attributes.indexed_fields.remove(PAUSED);
    ScheduleListEntry {
        schedule_id: row.execution.map(|execution| execution.workflow_id).unwrap_or_default(),
        memo: Some(memo).filter(|memo| !memo.fields.is_empty()),
        search_attributes: Some(attributes).filter(|attributes| !attributes.indexed_fields.is_empty()),
        info,
    }
}
