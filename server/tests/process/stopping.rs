//! How it stops: SIGTERM and Ctrl-C drain, kill -9 costs a replay.

use std::time::{Duration, Instant};

use perdure_proto::temporal::api::workflowservice::v1::{
    GetWorkflowExecutionHistoryRequest, PollActivityTaskQueueRequest, PollWorkflowTaskQueueRequest,
};
use tempfile::tempdir;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::common::{NAMESPACE, Server, describe, execution, field, queue, start_request};

/// A drain that has nothing to wait for; the server cuts off after 5 s.
const DRAIN: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains() {
    drains("TERM").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_drains() {
    drains("INT").await;
}

async fn drains(signal: &str) {
    let directory = tempdir().unwrap();
    let server = Server::start(directory.path(), &[]);
    let mut client = server.client().await;
    client.start_workflow_execution(start_request("w")).await.unwrap();

    // All kinds of callers who wait: none of them may hold up the end, and none gets an error.
    let (mut c1, mut c2, mut c3) = (client.clone(), client.clone(), client.clone());
    let workflow_task = tokio::spawn(async move {
        let request = PollWorkflowTaskQueueRequest {
            namespace: NAMESPACE.into(),
            task_queue: Some(queue("other")),
            ..Default::default()
        };
        c1.poll_workflow_task_queue(request).await
    });
    let activity_task = tokio::spawn(async move {
        let request = PollActivityTaskQueueRequest {
            namespace: NAMESPACE.into(),
            task_queue: Some(queue("other")),
            ..Default::default()
        };
        c2.poll_activity_task_queue(request).await
    });
    let news = tokio::spawn(async move { c3.get_workflow_execution_history(wait_for_close()).await });
    let mut health = HealthClient::new(server.channel().await);
    let mut statuses = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(statuses.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    wait_for_pollers(&server).await;

    let begun = Instant::now();
    server.signal(signal);
    assert_eq!(statuses.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    assert!(workflow_task.await.unwrap().unwrap().into_inner().task_token.is_empty());
    assert!(activity_task.await.unwrap().unwrap().into_inner().task_token.is_empty());
    let page = news.await.unwrap().unwrap().into_inner();
    assert!(page.history.unwrap().events.is_empty() && !page.next_page_token.is_empty());
    let (status, log) = server.wait();
    let took = begun.elapsed();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(took < DRAIN, "took {took:?}:\n{log}");
    assert!(log.contains("draining") && log.contains("flushed=true sealed=true"), "{log}");

    let mut server = Server::start(directory.path(), &[]);
    assert_eq!(replayed(&server), 0);
    server.client().await.describe_workflow_execution(describe("w")).await.unwrap();
    assert!(server.is_running());
}

fn wait_for_close() -> GetWorkflowExecutionHistoryRequest {
    GetWorkflowExecutionHistoryRequest {
        namespace: NAMESPACE.into(),
        execution: Some(execution("w")),
        wait_new_event: true,
        history_event_filter_type: 2,
        ..Default::default()
    }
}

/// Until all three calls that wait have arrived, as the gauge of calls under way tells.
async fn wait_for_pollers(server: &Server) {
    let waiting = ["PollWorkflowTaskQueue", "PollActivityTaskQueue", "GetWorkflowExecutionHistory"];
    loop {
        let text = crate::endpoints::scrape(&server.metrics_address);
        let arrived = |operation: &&str| {
            let operation = format!("operation=\"{operation}\"");
            let mut pending = text.lines().filter(|line| line.starts_with("service_pending_requests{"));
            pending.any(|line| line.contains(&operation) && line.ends_with(" 1"))
        };
        if waiting.iter().all(arrived) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn what_was_acknowledged_before_a_kill_is_replayed() {
    let directory = tempdir().unwrap();
    let server = Server::start(directory.path(), &[]);
    let run_id = server.client().await.start_workflow_execution(start_request("w")).await.unwrap().into_inner().run_id;
    server.signal("KILL");
    server.wait();

    let server = Server::start(directory.path(), &[]);
    assert!(replayed(&server) > 0);
    let found = server.client().await.describe_workflow_execution(describe("w")).await.unwrap().into_inner();
    let found = found.workflow_execution_info.and_then(|info| info.execution).unwrap();
    assert_eq!(found.run_id, run_id);
}

/// Log records that the start had to read again.
fn replayed(server: &Server) -> u64 {
    field(&server.wait_for_line(" replayed="), "replayed").parse().unwrap()
}
