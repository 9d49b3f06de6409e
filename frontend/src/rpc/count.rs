//! CountWorkflowExecutions.

use perdure_proto::{
    Error,
    temporal::api::workflowservice::v1::{
        CountWorkflowExecutionsRequest, CountWorkflowExecutionsResponse,
        count_workflow_executions_response::AggregationGroup,
    },
};
use perdure_types::ChainKey;

use crate::{call::Call, metrics, search_attributes};

pub(crate) async fn count_workflow_executions(
    call: &Call<'_>,
    request: CountWorkflowExecutionsRequest,
) -> Result<CountWorkflowExecutionsResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    let (query, _) = search_attributes::parse_query(call, &namespace, &request.query, |_| Ok(())).await?;
    let rows = call.frontend().rows()?;
    let list_id = ChainKey::new(namespace.id(), "").list_id();
    let count = perdure_visibility::count(&*rows, &list_id, &query).await?;
    if count.scanned {
        metrics::count_scanned(namespace.name());
    }
    let groups = count.groups.into_iter().map(|(value, count)| AggregationGroup {
        group_values: vec![value],
        count: i64::try_from(count).unwrap_or(i64::MAX),
    });
    Ok(CountWorkflowExecutionsResponse {
        count: i64::try_from(count.total).unwrap_or(i64::MAX),
        groups: groups.collect(),
    })
}
