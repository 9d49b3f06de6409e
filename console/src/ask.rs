//! Calls of this node's own services, on behalf of who looks at a page.

use std::time::Duration;

use axum::http::HeaderMap;
use perdure_proto::{
    perdure::node::v1::{
        MembersRequest, MembersResponse, QueuesRequest, QueuesResponse, ShardsRequest, ShardsResponse,
    },
    temporal::api::{
        common::v1::WorkflowExecution,
        history::v1::HistoryEvent,
        workflowservice::v1::{
            CountWorkflowExecutionsRequest, CountWorkflowExecutionsResponse, DescribeWorkflowExecutionRequest,
            DescribeWorkflowExecutionResponse, GetWorkflowExecutionHistoryReverseRequest, ListNamespacesRequest,
            ListWorkflowExecutionsRequest, ListWorkflowExecutionsResponse, workflow_service_server::WorkflowService,
        },
    },
};
use tonic::{Request, Status, metadata::MetadataValue};

use crate::Console;

/// A page that takes longer says so.
const TIMEOUT: Duration = Duration::from_secs(10);
/// As through the HTTP API: who looks is who calls.
const CREDENTIALS: [&str; 2] = ["authorization", "authorization-extras"];
const CLIENT_NAME: &str = "perdure-console";
/// Runs on one page of the list.
pub const RUNS_A_PAGE: i32 = 50;
/// Namespaces to choose from.
const MOST_NAMESPACES: i32 = 1_000;
/// Events of a run that are drawn: its latest.
pub const MOST_EVENTS: usize = 1_000;

/// A namespace to choose.
pub struct NamespaceName {
    pub id: String,
    pub name: String,
}

/// The latest events of a run, oldest first.
pub struct Events {
    pub events: Vec<HistoryEvent>,
    pub are_all: bool,
}

pub struct Asker<'a> {
    console: &'a Console,
    headers: &'a HeaderMap,
}

impl<'a> Asker<'a> {
    pub fn new(console: &'a Console, headers: &'a HeaderMap) -> Self {
        Self { console, headers }
    }

    pub fn now(&self) -> i64 {
        (self.console.clock)()
    }

    fn request<T>(&self, message: T) -> Request<T> {
        on_behalf(self.headers, message)
    }

    /// By name.
    pub async fn namespaces(&self) -> Result<Vec<NamespaceName>, Status> {
        let request = ListNamespacesRequest { page_size: MOST_NAMESPACES, ..ListNamespacesRequest::default() };
        let listed = self.console.frontend.list_namespaces(self.request(request)).await?.into_inner();
        let infos = listed.namespaces.into_iter().filter_map(|namespace| namespace.namespace_info);
        let mut namespaces: Vec<_> = infos.map(|info| NamespaceName { id: info.id, name: info.name }).collect();
        namespaces.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(namespaces)
    }

    pub async fn runs(
        &self,
        namespace: &str,
        query: &str,
        next_page_token: bytes::Bytes,
    ) -> Result<ListWorkflowExecutionsResponse, Status> {
        let request = ListWorkflowExecutionsRequest {
            namespace: namespace.to_owned(),
            page_size: RUNS_A_PAGE,
            next_page_token,
            query: query.to_owned(),
        };
        Ok(self.console.frontend.list_workflow_executions(self.request(request)).await?.into_inner())
    }

    pub async fn count(&self, namespace: &str, query: &str) -> Result<CountWorkflowExecutionsResponse, Status> {
        let request = CountWorkflowExecutionsRequest { namespace: namespace.to_owned(), query: query.to_owned() };
        Ok(self.console.frontend.count_workflow_executions(self.request(request)).await?.into_inner())
    }

    pub async fn describe(
        &self,
        namespace: &str,
        execution: &WorkflowExecution,
    ) -> Result<DescribeWorkflowExecutionResponse, Status> {
        let request =
            DescribeWorkflowExecutionRequest { namespace: namespace.to_owned(), execution: Some(execution.clone()) };
        Ok(self.console.frontend.describe_workflow_execution(self.request(request)).await?.into_inner())
    }

    pub async fn events(&self, namespace: &str, execution: &WorkflowExecution) -> Result<Events, Status> {
        let mut request = GetWorkflowExecutionHistoryReverseRequest {
            namespace: namespace.to_owned(),
            execution: Some(execution.clone()),
            maximum_page_size: MOST_EVENTS as i32,
            next_page_token: bytes::Bytes::new(),
        };
        let mut events = Vec::new();
        loop {
            let page = self.request(request.clone());
            let page = self.console.frontend.get_workflow_execution_history_reverse(page).await?.into_inner();
            events.extend(page.history.unwrap_or_default().events);
            let is_last = page.next_page_token.is_empty();
            if is_last || events.len() >= MOST_EVENTS {
                events.truncate(MOST_EVENTS);
                events.reverse();
                return Ok(Events { are_all: events.first().is_none_or(|event| event.event_id == 1), events });
            }
            request.next_page_token = page.next_page_token;
        }
    }

    pub async fn members(&self) -> Result<MembersResponse, Status> {
        Ok(self.console.admin.members(self.request(MembersRequest {})).await?.into_inner())
    }

    pub async fn shards(&self) -> Result<ShardsResponse, Status> {
        Ok(self.console.admin.shards(self.request(ShardsRequest { status: true })).await?.into_inner())
    }

    pub async fn queues(&self, namespace_id: &str) -> Result<QueuesResponse, Status> {
        let request = QueuesRequest { namespace_id: namespace_id.to_owned() };
        Ok(self.console.admin.queues(self.request(request)).await?.into_inner())
    }
}

/// A call with the credentials of who asked for the page.
fn on_behalf<T>(headers: &HeaderMap, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(TIMEOUT);
    let metadata = request.metadata_mut();
    metadata.insert("client-name", MetadataValue::from_static(CLIENT_NAME));
    for name in CREDENTIALS {
        let value = headers.get(name).and_then(|value| MetadataValue::try_from(value.as_bytes()).ok());
        if let Some(value) = value {
            metadata.insert(name, value);
        }
    }
    request
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn credentials_go_on_and_nothing_else() {
        let mut headers = HeaderMap::new();
        headers.insert("authorization", HeaderValue::from_static("Bearer x"));
        headers.insert("cookie", HeaderValue::from_static("a=b"));
        let request = on_behalf(&headers, ());
        assert_eq!(request.metadata().get("authorization").map(|value| value.as_bytes()), Some("Bearer x".as_bytes()));
        assert_eq!(request.metadata().get("client-name").map(|value| value.as_bytes()), Some(CLIENT_NAME.as_bytes()));
        assert!(request.metadata().get("cookie").is_none());
    }
}
