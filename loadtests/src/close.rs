//! One workflow as a client sees it: start it, and wait for its close event.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use perdure_proto::temporal::api::common::v1::{WorkflowExecution, WorkflowType};
use perdure_proto::temporal::api::enums::v1::{EventType, HistoryEventFilterType};
use perdure_proto::temporal::api::taskqueue::v1::TaskQueue;
use perdure_proto::temporal::api::workflowservice::v1::{
    GetWorkflowExecutionHistoryRequest, StartWorkflowExecutionRequest,
};

use crate::api::{Api, long_poll, with_timeout};
use crate::workload::Workload;

const START_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs one workflow to its end; an error if that is not its completion.
pub async fn run_workflow(api: &Api, workload: Workload, task_queue: &str, workflow_id: String) -> Result<()> {
    let execution = start_workflow(api, workload, task_queue, workflow_id).await?;
    wait_for_close(api, execution).await
}

/// Starts one workflow; gives its run.
pub async fn start_workflow(
    api: &Api,
    workload: Workload,
    task_queue: &str,
    workflow_id: String,
) -> Result<WorkflowExecution> {
    let start = StartWorkflowExecutionRequest {
        namespace: api.namespace(),
        request_id: workflow_id.clone(),
        workflow_id: workflow_id.clone(),
        workflow_type: Some(WorkflowType { name: workload.name().to_owned() }),
        task_queue: Some(TaskQueue { name: task_queue.to_owned(), ..Default::default() }),
        workflow_task_timeout: Some(prost_types::Duration { seconds: 10, nanos: 0 }),
        identity: api.identity(),
        ..Default::default()
    };
    let started = api
        .client
        .clone()
        .start_workflow_execution(with_timeout(start, START_TIMEOUT))
        .await
        .context("StartWorkflowExecution")?
        .into_inner();

    Ok(WorkflowExecution { workflow_id, run_id: started.run_id })
}

async fn wait_for_close(api: &Api, execution: WorkflowExecution) -> Result<()> {
    let mut client = api.client.clone();
    let mut request = GetWorkflowExecutionHistoryRequest {
        namespace: api.namespace(),
        execution: Some(execution),
        wait_new_event: true,
        history_event_filter_type: HistoryEventFilterType::CloseEvent as i32,
        skip_archival: true,
        ..Default::default()
    };
    loop {
        let page = client
            .get_workflow_execution_history(long_poll(request.clone()))
            .await
            .context("GetWorkflowExecutionHistory")?
            .into_inner();
        // The server may answer an idle long poll with no event, and a token to go on with.
        match page.history.and_then(|history| history.events.into_iter().next_back()) {
            Some(event) if event.event_type == EventType::WorkflowExecutionCompleted as i32 => return Ok(()),
            Some(event) => bail!("the workflow closed with {}", event.event_type().as_str_name()),
            None if page.next_page_token.is_empty() => bail!("the history ended without a close event"),
            None => request.next_page_token = page.next_page_token,
        }
    }
}
