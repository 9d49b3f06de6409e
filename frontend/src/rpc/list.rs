//! ListWorkflowExecutions, and its older forms: Scan, ListOpen, ListClosed.

use std::time::Duration;

use perdure_proto::{
    Error,
    temporal::api::{
        enums::v1::WorkflowExecutionStatus,
        filter::v1::StartTimeFilter,
        workflowservice::v1::{
            ListArchivedWorkflowExecutionsRequest, ListArchivedWorkflowExecutionsResponse,
            ListClosedWorkflowExecutionsRequest, ListClosedWorkflowExecutionsResponse,
            ListOpenWorkflowExecutionsRequest, ListOpenWorkflowExecutionsResponse, ListWorkflowExecutionsRequest,
            ListWorkflowExecutionsResponse, ScanWorkflowExecutionsRequest, ScanWorkflowExecutionsResponse,
            list_closed_workflow_executions_request::Filters as ClosedFilter,
            list_open_workflow_executions_request::Filters as OpenFilter,
        },
    },
};
use perdure_types::{ChainKey, EntityKind};
use perdure_visibility::{Page, Query, Request};
use tokio::time::Instant;

use crate::{call::Call, search_attributes};

/// Temporal's `frontend.visibilityMaxPageSize`.
const LARGEST_PAGE: usize = 1_000;
/// A page that few rows match is answered as it is after this time, or shortly before the client gives up.
const LONGEST_SEARCH: Duration = Duration::from_secs(8);

pub(crate) async fn list_workflow_executions(
    call: &Call<'_>,
    request: ListWorkflowExecutionsRequest,
) -> Result<ListWorkflowExecutionsResponse, Error> {
    let page = page(call, &request.namespace, &request.query, request.page_size, &request.next_page_token).await?;
    Ok(ListWorkflowExecutionsResponse { executions: page.executions, next_page_token: page.next_page_token })
}

pub(crate) async fn scan_workflow_executions(
    call: &Call<'_>,
    request: ScanWorkflowExecutionsRequest,
) -> Result<ScanWorkflowExecutionsResponse, Error> {
    let page = page(call, &request.namespace, &request.query, request.page_size, &request.next_page_token).await?;
    Ok(ScanWorkflowExecutionsResponse { executions: page.executions, next_page_token: page.next_page_token })
}

pub(crate) async fn list_open_workflow_executions(
    call: &Call<'_>,
    request: ListOpenWorkflowExecutionsRequest,
) -> Result<ListOpenWorkflowExecutionsResponse, Error> {
    let mut conditions = vec!["ExecutionStatus = 'Running'".to_owned()];
    conditions.extend(times("StartTime", request.start_time_filter.as_ref())?);
    match &request.filters {
        Some(OpenFilter::ExecutionFilter(filter)) => conditions.push(equals("WorkflowId", &filter.workflow_id)),
        Some(OpenFilter::TypeFilter(filter)) => conditions.push(equals("WorkflowType", &filter.name)),
        None => {}
    }
    let (query, size) = (conditions.join(" AND "), request.maximum_page_size);
    let page = page(call, &request.namespace, &query, size, &request.next_page_token).await?;
    Ok(ListOpenWorkflowExecutionsResponse { executions: page.executions, next_page_token: page.next_page_token })
}

pub(crate) async fn list_closed_workflow_executions(
    call: &Call<'_>,
    request: ListClosedWorkflowExecutionsRequest,
) -> Result<ListClosedWorkflowExecutionsResponse, Error> {
    let mut conditions = vec!["ExecutionStatus != 'Running'".to_owned()];
    conditions.extend(times("CloseTime", request.start_time_filter.as_ref())?);
    match &request.filters {
        Some(ClosedFilter::ExecutionFilter(filter)) => conditions.push(equals("WorkflowId", &filter.workflow_id)),
        Some(ClosedFilter::TypeFilter(filter)) => conditions.push(equals("WorkflowType", &filter.name)),
        Some(ClosedFilter::StatusFilter(filter)) => {
            let status = filter.status();
            if matches!(status, WorkflowExecutionStatus::Unspecified | WorkflowExecutionStatus::Running) {
                return Err(Error::invalid_argument("StatusFilter must be specified and must be not Running."));
            }
            conditions.push(format!("ExecutionStatus = {}", status as i32));
        }
        None => {}
    }
    let (query, size) = (conditions.join(" AND "), request.maximum_page_size);
    let page = page(call, &request.namespace, &query, size, &request.next_page_token).await?;
    Ok(ListClosedWorkflowExecutionsResponse { executions: page.executions, next_page_token: page.next_page_token })
}

/// Nothing is archived here: the answer of a Temporal server without archival.
pub(crate) async fn list_archived_workflow_executions(
    call: &Call<'_>,
    request: ListArchivedWorkflowExecutionsRequest,
) -> Result<ListArchivedWorkflowExecutionsResponse, Error> {
    call.namespace(&request.namespace)?;
    Err(Error::invalid_argument("Cluster is not configured for visibility archival."))
}

fn equals(name: &str, value: &str) -> String {
    format!("{name} = '{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// The range of times that the old forms of lists take.
fn times(name: &str, filter: Option<&StartTimeFilter>) -> Result<Vec<String>, Error> {
    let nanos = |time: Option<&prost_types::Timestamp>| {
        time.map(|time| perdure_types::Timestamp::from_proto(Some(time)).as_nanos()).filter(|nanos| *nanos != 0)
    };
    let earliest = nanos(filter.and_then(|filter| filter.earliest_time.as_ref()));
    let latest = nanos(filter.and_then(|filter| filter.latest_time.as_ref()));
    if let (Some(earliest), Some(latest)) = (earliest, latest)
        && earliest > latest
    {
        return Err(Error::invalid_argument("EarliestTime in StartTimeFilter should not be larger than LatestTime."));
    }
    let from = earliest.map(|nanos| format!("{name} >= {nanos}"));
    let until = latest.map(|nanos| format!("{name} <= {nanos}"));
    Ok(from.into_iter().chain(until).collect())
}

async fn page(call: &Call<'_>, namespace: &str, query: &str, size: i32, token: &[u8]) -> Result<Page, Error> {
    page_of(EntityKind::Workflow, call, namespace, query, size, token).await
}

/// A page of the list of entities of a kind.
pub(super) async fn page_of(
    kind: EntityKind,
    call: &Call<'_>,
    namespace: &str,
    query: &str,
    size: i32,
    token: &[u8],
) -> Result<Page, Error> {
    let namespace = call.namespace(namespace)?;
    let (query, attributes) =
        search_attributes::parse_query_of(kind, call, &namespace, query, Query::check_list).await?;
    let until = call.answer_by(LONGEST_SEARCH);
    let begun = Instant::now();
    let enough = begun + until.saturating_duration_since(begun) * 3 / 4;
    let rows = call.frontend().rows()?;
    let request = Request {
        list_id: ChainKey::of(kind, namespace.id(), "").list_id(),
        attributes: &attributes,
        query: &query,
        page_size: usize::try_from(size).ok().filter(|size| *size > 0).unwrap_or(LARGEST_PAGE).min(LARGEST_PAGE),
        token,
        now: rows.now(),
        is_late: &|| Instant::now() >= enough,
    };
    perdure_visibility::list(&*rows, &request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Option<prost_types::Timestamp> {
        Some(prost_types::Timestamp { seconds, nanos: 0 })
    }

    #[test]
    fn old_filters_become_conditions() {
        let filter = |earliest_time, latest_time| StartTimeFilter { earliest_time, latest_time };
        assert_eq!(times("StartTime", None), Ok(vec![]));
        assert_eq!(times("StartTime", Some(&filter(at(1), None))), Ok(vec!["StartTime >= 1000000000".into()]));
        let both = vec!["CloseTime >= 1000000000".to_owned(), "CloseTime <= 2000000000".to_owned()];
        assert_eq!(times("CloseTime", Some(&filter(at(1), at(2)))), Ok(both));
        assert!(times("CloseTime", Some(&filter(at(2), at(1)))).is_err());
        assert_eq!(equals("WorkflowId", "it's \\"), "WorkflowId = 'it''s \\\\'");
    }
}
