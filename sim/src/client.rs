//! Calls as the frontend makes them.

use std::sync::Arc;

use perdure_proto::{
    Error,
    perdure::node::v1::{
        SignalWorkflow, StartWorkflow, WorkflowCall, WorkflowReply, workflow_call::Command, workflow_reply::Reply,
    },
    temporal::api::{
        common::v1::{WorkflowExecution, WorkflowType},
        enums::v1::{HistoryEventFilterType, WorkflowExecutionStatus},
        history::v1::{History, HistoryEvent},
        taskqueue::v1::TaskQueue,
        workflowservice::v1::{
            DescribeWorkflowExecutionRequest, GetWorkflowExecutionHistoryRequest, GetWorkflowExecutionHistoryResponse,
            GetWorkflowExecutionHistoryReverseRequest, SignalWorkflowExecutionRequest, StartWorkflowExecutionRequest,
        },
    },
};
use perdure_shard::EntityCaller;

use crate::node::{NAMESPACE, NAMESPACE_ID};

/// A client of one node.
#[derive(Clone)]
pub struct Client {
    entities: Arc<dyn EntityCaller>,
}

fn execution(workflow_id: &str, run_id: &str) -> WorkflowExecution {
    WorkflowExecution { workflow_id: workflow_id.to_owned(), run_id: run_id.to_owned() }
}

fn unexpected(reply: &WorkflowReply) -> Error {
    Error::internal(format!("unexpected reply {reply:?}"))
}

impl Client {
    pub(crate) fn new(entities: Arc<dyn EntityCaller>) -> Self {
        Self { entities }
    }

    pub async fn call(&self, workflow_id: &str, command: Command) -> Result<WorkflowReply, Error> {
        let call = WorkflowCall {
            namespace_id: NAMESPACE_ID.to_owned(),
            workflow_id: workflow_id.to_owned(),
            command: Some(command),
            ..WorkflowCall::default()
        };
        self.entities.call(call).await
    }

    /// Starts a run and gives its id. The request id is the workflow id, so that a repeated start is the same one.
    pub async fn start(&self, workflow_id: &str, workflow_type: &str) -> Result<String, Error> {
        self.start_as(workflow_id, workflow_type, &format!("start-{workflow_id}")).await
    }

    /// A start with a request id of its own.
    pub async fn start_as(&self, workflow_id: &str, workflow_type: &str, request_id: &str) -> Result<String, Error> {
        let request = StartWorkflowExecutionRequest {
            namespace: NAMESPACE.to_owned(),
            workflow_id: workflow_id.to_owned(),
            workflow_type: Some(WorkflowType { name: workflow_type.to_owned() }),
            task_queue: Some(TaskQueue { name: "queue".to_owned(), ..Default::default() }),
            request_id: request_id.to_owned(),
            identity: "client".to_owned(),
            ..Default::default()
        };
        let reply = self
            .call(
                workflow_id,
                Command::Start(Box::new(StartWorkflow { request: Some(request), ..StartWorkflow::default() })),
            )
            .await?;
        match reply.reply {
            Some(Reply::Start(started)) => Ok(started.run_id),
            _ => Err(unexpected(&reply)),
        }
    }

    pub async fn signal(&self, workflow_id: &str, name: &str, request_id: &str) -> Result<(), Error> {
        let request = SignalWorkflowExecutionRequest {
            namespace: NAMESPACE.to_owned(),
            workflow_execution: Some(execution(workflow_id, "")),
            signal_name: name.to_owned(),
            request_id: request_id.to_owned(),
            identity: "client".to_owned(),
            ..Default::default()
        };
        let signal = SignalWorkflow { request: Some(request), ..Default::default() };
        self.call(workflow_id, Command::Signal(signal)).await.map(|_| ())
    }

    pub async fn status(&self, workflow_id: &str, run_id: &str) -> Result<WorkflowExecutionStatus, Error> {
        let request = DescribeWorkflowExecutionRequest {
            namespace: NAMESPACE.to_owned(),
            execution: Some(execution(workflow_id, run_id)),
        };
        let reply = self.call(workflow_id, Command::Describe(request)).await?;
        match &reply.reply {
            Some(Reply::Describe(description)) => {
                Ok(description.workflow_execution_info.as_ref().map(|info| info.status()).unwrap_or_default())
            }
            _ => Err(unexpected(&reply)),
        }
    }

    /// One page.
    pub async fn history_page(
        &self,
        workflow_id: &str,
        request: GetWorkflowExecutionHistoryRequest,
    ) -> Result<GetWorkflowExecutionHistoryResponse, Error> {
        let reply = self.call(workflow_id, Command::GetHistory(request)).await?;
        match reply.reply {
            Some(Reply::GetHistory(mut page)) => {
                // As it is when it has been on the wire.
                let events = page.history.unwrap_or_default().into_events();
                page.history = Some(History::new(events.map_err(|error| Error::internal(error.to_string()))?));
                Ok(page)
            }
            _ => Err(unexpected(&reply)),
        }
    }

    /// The whole history, in pages of a given size (0: the server's).
    pub async fn history(&self, workflow_id: &str, run_id: &str, page: i32) -> Result<Vec<HistoryEvent>, Error> {
        let mut request = history_of(workflow_id, run_id);
        request.maximum_page_size = page;
        let mut events = Vec::new();
        loop {
            let response = self.history_page(workflow_id, request.clone()).await?;
            events.extend(response.history.unwrap_or_default().events);
            if response.next_page_token.is_empty() {
                return Ok(events);
            }
            request.next_page_token = response.next_page_token;
        }
    }

    /// The whole history, newest first.
    pub async fn history_reverse(&self, workflow_id: &str, page: i32) -> Result<Vec<HistoryEvent>, Error> {
        let mut request = GetWorkflowExecutionHistoryReverseRequest {
            namespace: NAMESPACE.to_owned(),
            execution: Some(execution(workflow_id, "")),
            maximum_page_size: page,
            ..Default::default()
        };
        let mut events = Vec::new();
        loop {
            let reply = self.call(workflow_id, Command::GetHistoryReverse(request.clone())).await?;
            let Some(Reply::GetHistoryReverse(response)) = reply.reply else {
                return Err(unexpected(&reply));
            };
            events.extend(response.history.unwrap_or_default().events);
            if response.next_page_token.is_empty() {
                return Ok(events);
            }
            request.next_page_token = response.next_page_token;
        }
    }

    /// Waits for the close of a run, as a client that wants the result does.
    pub async fn close_event(&self, workflow_id: &str, run_id: &str) -> Result<HistoryEvent, Error> {
        let mut request = history_of(workflow_id, run_id);
        request.wait_new_event = true;
        request.history_event_filter_type = HistoryEventFilterType::CloseEvent as i32;
        loop {
            let response = self.history_page(workflow_id, request.clone()).await?;
            if let Some(event) = response.history.unwrap_or_default().events.pop() {
                return Ok(event);
            }
            request.next_page_token = response.next_page_token;
        }
    }
}

/// The request for a history from its beginning.
pub fn history_of(workflow_id: &str, run_id: &str) -> GetWorkflowExecutionHistoryRequest {
    GetWorkflowExecutionHistoryRequest {
        namespace: NAMESPACE.to_owned(),
        execution: Some(execution(workflow_id, run_id)),
        ..Default::default()
    }
}
