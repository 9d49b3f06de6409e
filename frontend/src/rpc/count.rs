//! CountWorkflowExecutions, and what the counts of other lists have in common with it.

use perdure_proto::{
    Error,
    temporal::api::{
        common::v1::Payload,
        workflowservice::v1::{
            CountWorkflowExecutionsRequest, CountWorkflowExecutionsResponse,
            count_workflow_executions_response::AggregationGroup,
        },
    },
};
use perdure_types::{ChainKey, EntityKind};

use crate::{call::Call, metrics, search_attributes};

pub(crate) async fn count_workflow_executions(
    call: &Call<'_>,
    request: CountWorkflowExecutionsRequest,
) -> Result<CountWorkflowExecutionsResponse, Error> {
    let (count, groups) = count_of(EntityKind::Workflow, call, &request.namespace, &request.query).await?;
    let groups = groups.into_iter().map(|(value, count)| AggregationGroup { group_values: vec![value], count });
    Ok(CountWorkflowExecutionsResponse { count, groups: groups.collect() })
}

/// How many entities of a kind a query finds, and how many with each value of what it groups by.
pub(super) async fn count_of(
    kind: EntityKind,
    call: &Call<'_>,
    namespace: &str,
    query: &str,
) -> Result<(i64, Vec<(Payload, i64)>), Error> {
    let namespace = call.namespace(namespace)?;
    let (query, _) = search_attributes::parse_query_of(kind, call, &namespace, query, |_| Ok(())).await?;
    let rows = call.frontend().rows()?;
    let list_id = ChainKey::of(kind, namespace.id(), "").list_id();
    let count = perdure_visibility::count(&*rows, &list_id, &query).await?;
    if count.scanned {
        metrics::count_scanned(namespace.name());
    }
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let groups = count.groups.into_iter().map(|(value, count)| (value, number(count))).collect();
    Ok((number(count.total), groups))
}
