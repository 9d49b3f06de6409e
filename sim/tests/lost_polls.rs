//! Tasks that were started for polls whose answer was lost with the node that was to bring it.

use std::sync::Arc;

use perdure_persistence::simulated::Simulated;
use perdure_proto::{
    Code, Error,
    perdure::node::v1::{
        RecordActivityTaskStarted, RecordWorkflowTaskStarted, workflow_call::Command, workflow_reply::Reply,
    },
    temporal::api::{
        command::v1::{Command as WorkflowCommand, ScheduleActivityTaskCommandAttributes, command::Attributes},
        common::v1::{ActivityType, RetryPolicy},
        enums::v1::CommandType,
        taskqueue::v1::TaskQueue,
        workflowservice::v1::{PollWorkflowTaskQueueResponse, RespondWorkflowTaskCompletedRequest},
    },
};
use perdure_sim::{Client, NAMESPACE, Node, Options};
use perdure_types::PollName;

const WORKFLOW: &str = "w";

async fn node(store: &Simulated, seed: u64) -> Node {
    let mut options = Options { no_worker: true, ..Options::default() };
    options.config.seed = Some(seed);
    Node::start(Arc::new(store.clone()), options).await.expect("starts")
}

async fn start_workflow_task(
    client: &Client,
    run_id: &str,
    poll: PollName,
) -> Result<PollWorkflowTaskQueueResponse, Error> {
    let command = RecordWorkflowTaskStarted {
        run_id: run_id.to_owned(),
        scheduled_event_id: 2,
        attempt: 1,
        request_id: poll.request_id(7).to_string(),
        ..Default::default()
    };
    match client.call(WORKFLOW, Command::RecordWorkflowTaskStarted(command)).await?.reply {
        Some(Reply::WorkflowTask(task)) => Ok(task),
        other => panic!("{other:?}"),
    }
}

/// The first attempt, as it was offered for the `stamp`-th time.
async fn start_activity(client: &Client, run_id: &str, poll: PollName, stamp: i32) -> Result<i32, Error> {
    let command = RecordActivityTaskStarted {
        run_id: run_id.to_owned(),
        scheduled_event_id: 5,
        attempt: 1,
        stamp,
        request_id: poll.request_id(7).to_string(),
        ..Default::default()
    };
    match client.call(WORKFLOW, Command::RecordActivityTaskStarted(command)).await?.reply {
        Some(Reply::ActivityTask(task)) => Ok(task.attempt),
        other => panic!("{other:?}"),
    }
}

/// An activity that may run only once.
fn schedule_activity() -> WorkflowCommand {
    let hour = perdure_types::Duration::from_secs(3600).to_proto();
    let attributes = ScheduleActivityTaskCommandAttributes {
        activity_id: "a".to_owned(),
        activity_type: Some(ActivityType { name: "a".to_owned() }),
        task_queue: Some(TaskQueue { name: "queue".to_owned(), ..Default::default() }),
        start_to_close_timeout: Some(hour),
        retry_policy: Some(RetryPolicy { maximum_attempts: 1, ..Default::default() }),
        ..Default::default()
    };
    WorkflowCommand {
        command_type: CommandType::ScheduleActivityTask as i32,
        attributes: Some(Attributes::ScheduleActivityTaskCommandAttributes(attributes)),
        ..Default::default()
    }
}

fn names() -> [PollName; 3] {
    [1, 2, 3].map(PollName::new)
}

#[tokio::test(start_paused = true)]
async fn an_activity_that_no_worker_got_is_offered_again_as_the_same_attempt() {
    let store = Simulated::reliable();
    let first = node(&store, 1).await;
    let client = first.client();
    let [lost, other, next] = names();
    let run = client.start(WORKFLOW, "any").await.expect("starts");
    let task = start_workflow_task(&client, &run, other).await.expect("a task");
    let completed = RespondWorkflowTaskCompletedRequest {
        namespace: NAMESPACE.to_owned(),
        task_token: task.task_token,
        commands: vec![schedule_activity()],
        ..Default::default()
    };
    client.call(WORKFLOW, Command::RespondWorkflowTaskCompleted(completed)).await.expect("completes");
    assert_eq!(start_activity(&client, &run, lost, 0).await.expect("starts"), 1);

    // Shard and task queue go with the node, and the answer on its way.
    first.crash().await;
    let second = node(&store, 2).await;
    let client = second.client();
    let error = start_activity(&client, &run, next, 1).await.expect_err("a worker may have it");
    assert_eq!(error.grpc_code(), Code::NotFound);
    second.polls_lost(&[other]).await;
    start_activity(&client, &run, next, 1).await.expect_err("it was started for another poll");
    second.polls_lost(&[other, lost]).await;
    assert_eq!(start_activity(&client, &run, next, 1).await.expect("nobody has it"), 1, "the same attempt");
    // Whoever is told again, and late, does no harm.
    second.polls_lost(&[lost]).await;
    start_activity(&client, &run, other, 2).await.expect_err("it is with a worker");
}

#[tokio::test(start_paused = true)]
async fn a_workflow_task_that_no_worker_got_does_not_wait_for_its_timeout() {
    let store = Simulated::reliable();
    let first = node(&store, 1).await;
    let client = first.client();
    let [lost, next, _] = names();
    let run = client.start(WORKFLOW, "any").await.expect("starts");
    start_workflow_task(&client, &run, lost).await.expect("a task");
    // Its start becomes durable with what comes after.
    client.signal(WORKFLOW, "s", "s").await.expect("signals");
    first.crash().await;
    let second = node(&store, 2).await;
    let client = second.client();
    let before = client.history(WORKFLOW, &run, 0).await.expect("history").len();
    second.polls_lost(&[lost, next]).await;
    let after = client.history(WORKFLOW, &run, 0).await.expect("history").len();
    assert!(after > before, "it has ended, and another one is scheduled: {before} events, then {after}");
}
