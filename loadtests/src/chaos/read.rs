//! Reads what the server has at the end of a chaos run: which runs there are, and their histories.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::StreamExt;
use perdure_proto::temporal::api::common::v1::WorkflowExecution;
use perdure_proto::temporal::api::workflowservice::v1::{
    DescribeWorkflowExecutionRequest, GetWorkflowExecutionHistoryRequest, GetWorkflowExecutionHistoryReverseRequest,
    ListWorkflowExecutionsRequest,
};
use tonic::{Code, Status};

use super::Shared;
use super::client::Client;
use super::story::{self, Kind, Run};

const PAGE: i32 = 500;
const AT_ONCE: usize = 16;
/// Of a run that stays open.
const LAST_EVENTS: i32 = 8;

/// Every run that a list shows, that is the current one of an id, or that another one names.
pub async fn all(shared: &Arc<Shared>, workflow_ids: u64) -> Result<Vec<Run>, Status> {
    let client = shared.nodes.client();
    let mut wanted = listed(shared, &client).await?;
    for number in 0..workflow_ids {
        wanted.insert((format!("{}-{number}", shared.script.workflow_type), String::new()));
    }
    let mut seen = BTreeSet::new();
    let mut runs = Vec::new();
    while !wanted.is_empty() {
        let batch: Vec<_> = std::mem::take(&mut wanted).into_iter().collect();
        let histories = futures::stream::iter(batch)
            .map(|(workflow_id, run_id)| history(shared, &client, workflow_id, run_id))
            .buffer_unordered(AT_ONCE);
        let histories: Vec<Result<Option<Run>, Status>> = histories.collect().await;
        for run in histories {
            let Some(run) = run? else { continue };
            if !seen.insert((run.workflow_id.clone(), run.run_id.clone())) {
                continue;
            }
            for named in named(&run) {
                if !seen.contains(&(run.workflow_id.clone(), named.clone())) {
                    wanted.insert((run.workflow_id.clone(), named));
                }
            }
            runs.push(run);
        }
    }
    Ok(runs)
}

async fn listed(shared: &Shared, client: &Client) -> Result<BTreeSet<(String, String)>, Status> {
    let mut request = ListWorkflowExecutionsRequest {
        namespace: shared.nodes.namespace(),
        page_size: PAGE,
        query: format!("WorkflowType = '{}'", shared.script.workflow_type),
        ..Default::default()
    };
    let mut found = BTreeSet::new();
    loop {
        let page = client.call(|mut client| {
            let request = request.clone();
            async move { client.list_workflow_executions(request).await }
        });
        let page = page.await.result?;
        for execution in page.executions.into_iter().filter_map(|info| info.execution) {
            found.insert((execution.workflow_id, execution.run_id));
        }
        if page.next_page_token.is_empty() {
            return Ok(found);
        }
        request.next_page_token = page.next_page_token;
    }
}

/// None: there is no such run.
async fn history(shared: &Shared, client: &Client, workflow_id: String, run_id: String) -> Result<Option<Run>, Status> {
    let mut run_id = run_id;
    if run_id.is_empty() {
        match current(shared, client, &workflow_id).await? {
            Some(current) => run_id = current,
            None => return Ok(None),
        }
    }
    let mut request = GetWorkflowExecutionHistoryRequest {
        namespace: shared.nodes.namespace(),
        execution: Some(WorkflowExecution { workflow_id: workflow_id.clone(), run_id: run_id.clone() }),
        skip_archival: true,
        ..Default::default()
    };
    let mut events = Vec::new();
    loop {
        let page = client.call(|mut client| {
            let request = request.clone();
            async move { client.get_workflow_execution_history(request).await }
        });
        match page.await.result {
            Err(error) if error.code() == Code::NotFound => return Ok(None),
            Err(error) => return Err(error),
            Ok(page) => {
                events.extend(page.history.iter().flat_map(|history| &history.events).map(story::read));
                if page.next_page_token.is_empty() {
                    return Ok(Some(Run { workflow_id, run_id, events }));
                }
                request.next_page_token = page.next_page_token;
            }
        }
    }
}

async fn current(shared: &Shared, client: &Client, workflow_id: &str) -> Result<Option<String>, Status> {
    let request = DescribeWorkflowExecutionRequest {
        namespace: shared.nodes.namespace(),
        execution: Some(WorkflowExecution { workflow_id: workflow_id.to_owned(), run_id: String::new() }),
    };
    let described = client.call(|mut client| {
        let request = request.clone();
        async move { client.describe_workflow_execution(request).await }
    });
    match described.await.result {
        Ok(described) => Ok(described.workflow_execution_info.and_then(|info| info.execution).map(|run| run.run_id)),
        Err(error) if error.code() == Code::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What is known of a run that stays open: its last events, and what it waits for.
pub async fn why_open(shared: &Shared, run: &Run) -> Result<String, Status> {
    let client = shared.nodes.client();
    let execution = Some(WorkflowExecution { workflow_id: run.workflow_id.clone(), run_id: run.run_id.clone() });
    let request = GetWorkflowExecutionHistoryReverseRequest {
        namespace: shared.nodes.namespace(),
        execution: execution.clone(),
        maximum_page_size: LAST_EVENTS,
        ..Default::default()
    };
    let page = client.call(|mut client| {
        let request = request.clone();
        async move { client.get_workflow_execution_history_reverse(request).await }
    });
    let events: Vec<String> = page
        .await
        .result?
        .history
        .iter()
        .flat_map(|history| &history.events)
        .map(|event| {
            let seconds = event.event_time.map_or(0.0, |at| (at.seconds % 3600) as f64 + f64::from(at.nanos) / 1e9);
            format!("{} {} at {seconds:.3}", event.event_id, event.event_type().as_str_name())
        })
        .collect();
    let request = DescribeWorkflowExecutionRequest { namespace: shared.nodes.namespace(), execution };
    let described = client.call(|mut client| {
        let request = request.clone();
        async move { client.describe_workflow_execution(request).await }
    });
    let described = described.await.result?;
    Ok(format!(
        "{} {}: last events {}; pending workflow task {:?}; {} pending activities",
        run.workflow_id,
        run.run_id,
        events.join(", "),
        described.pending_workflow_task,
        described.pending_activities.len()
    ))
}

fn named(run: &Run) -> Vec<String> {
    let mut named = Vec::new();
    for event in &run.events {
        match &event.kind {
            Kind::Started { continued_from, first_run } => {
                named.extend(continued_from.clone());
                named.extend((!first_run.is_empty()).then(|| first_run.clone()));
            }
            Kind::Closed { next_run } => named.extend(next_run.clone()),
            _ => {}
        }
    }
    named
}
