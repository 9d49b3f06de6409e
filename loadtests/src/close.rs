//! One workflow as a client sees it: start it, send what it waits for, and wait for its close event.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use perdure_proto::temporal::api::common::v1::{WorkflowExecution, WorkflowType};
use perdure_proto::temporal::api::enums::v1::{
    EventType, HistoryEventFilterType, UpdateWorkflowExecutionLifecycleStage,
};
use perdure_proto::temporal::api::taskqueue::v1::TaskQueue;
use perdure_proto::temporal::api::update::v1 as update;
use perdure_proto::temporal::api::workflowservice::v1::{
    GetWorkflowExecutionHistoryRequest, SignalWorkflowExecutionRequest, StartWorkflowExecutionRequest,
    UpdateWorkflowExecutionRequest,
};

use crate::api::{Api, long_poll, with_timeout};
use crate::workload::{FAN, Workload};

const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs one workflow to its end; an error if that is not its completion.
pub async fn run_workflow(api: &Api, workload: Workload, task_queue: &str, workflow_id: String) -> Result<()> {
    let execution = start_workflow(api, workload, task_queue, workflow_id).await?;
    for number in 1..=FAN {
        match workload {
            Workload::Signals => signal(api, &execution, number).await?,
            Workload::Updates => update(api, &execution, number).await?,
            _ => break,
        }
    }
    wait_for_close(api, execution).await
}

async fn signal(api: &Api, execution: &WorkflowExecution, number: u32) -> Result<()> {
    let request = SignalWorkflowExecutionRequest {
        namespace: api.namespace(),
        workflow_execution: Some(execution.clone()),
        signal_name: "go on".to_owned(),
        request_id: format!("{}-{number}", execution.run_id),
        identity: api.identity(),
        ..Default::default()
    };
    api.client
        .clone()
        .signal_workflow_execution(with_timeout(request, CALL_TIMEOUT))
        .await
        .context("SignalWorkflowExecution")?;
    Ok(())
}

/// Waits until the update is completed.
async fn update(api: &Api, execution: &WorkflowExecution, number: u32) -> Result<()> {
    let update = update::Request {
        meta: Some(update::Meta { update_id: number.to_string(), identity: api.identity() }),
        input: Some(update::Input { name: "go on".to_owned(), ..Default::default() }),
        ..Default::default()
    };
    let request = UpdateWorkflowExecutionRequest {
        namespace: api.namespace(),
        workflow_execution: Some(execution.clone()),
        wait_policy: Some(update::WaitPolicy {
            lifecycle_stage: UpdateWorkflowExecutionLifecycleStage::Completed as i32,
        }),
        request: Some(update),
        ..Default::default()
    };
    let answer =
        api.client.clone().update_workflow_execution(long_poll(request)).await.context("UpdateWorkflowExecution")?;
    if answer.get_ref().outcome.is_none() {
        bail!("an update did not complete within a long poll");
    }
    Ok(())
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
        .start_workflow_execution(with_timeout(start, CALL_TIMEOUT))
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
