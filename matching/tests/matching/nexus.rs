//! Nexus requests: they meet polls, and answers find their senders.

use std::time::Duration;

use perdure_matching::Matching;
use perdure_proto::{
    Code, Error,
    perdure::{
        nexus::v1::{
            NexusOutcome, NexusTaskCall, NexusTaskResponse, nexus_outcome::Outcome, nexus_task_call::Command,
            nexus_task_reply::Reply,
        },
        node::v1::{MatchingCall, TaskToken, matching_call, matching_reply, task_token::Kind},
    },
    temporal::api::{
        enums::v1::TaskQueueType,
        nexus::v1::{Request, Response},
        taskqueue::v1::TaskQueue,
        workflowservice::v1::{
            DescribeTaskQueueRequest, PollNexusTaskQueueRequest, PollNexusTaskQueueResponse, ShutdownWorkerRequest,
        },
    },
};
use prost::Message;

use crate::common::{call, settle, setup};

const SECOND: i64 = 1_000_000_000;

async fn nexus(matching: &Matching, queue: &str, command: Command, timeout_ns: i64) -> Result<Option<Reply>, Error> {
    let command = matching_call::Command::Nexus(Box::new(NexusTaskCall { command: Some(command) }));
    let reply = matching.call(MatchingCall { timeout_ns, ..call(queue, command) }).await?;
    let Some(matching_reply::Reply::Nexus(reply)) = reply.reply else { panic!("{reply:?}") };
    Ok(reply.reply)
}

fn poll_request(queue: &str) -> PollNexusTaskQueueRequest {
    PollNexusTaskQueueRequest {
        task_queue: Some(TaskQueue { name: queue.into(), ..Default::default() }),
        identity: "worker".into(),
        worker_instance_key: "key".into(),
        ..Default::default()
    }
}

async fn poll(matching: &Matching, queue: &str) -> PollNexusTaskQueueResponse {
    match nexus(matching, queue, Command::Poll(poll_request(queue)), 0).await.unwrap() {
        Some(Reply::Task(task)) => task,
        other => panic!("{other:?}"),
    }
}

fn request(header: &[(&str, &str)]) -> Request {
    let header = header.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Request { header, ..Default::default() }
}

async fn dispatch(matching: &Matching, queue: &str, request: Request, timeout_ns: i64) -> Result<Outcome, Error> {
    match nexus(matching, queue, Command::Dispatch(request), timeout_ns).await? {
        Some(Reply::Outcome(outcome)) => Ok(outcome.outcome.expect("an outcome")),
        other => panic!("{other:?}"),
    }
}

fn task_id(task: &PollNexusTaskQueueResponse) -> String {
    let token = TaskToken::decode(task.task_token.clone()).unwrap();
    assert_eq!(token.kind(), Kind::Nexus);
    token.query_id
}

async fn respond(matching: &Matching, queue: &str, task: &PollNexusTaskQueueResponse) -> Result<(), Error> {
    let outcome = Some(NexusOutcome { outcome: Some(Outcome::Response(Response::default())) });
    let response = NexusTaskResponse { task_id: task_id(task), outcome };
    nexus(matching, queue, Command::Respond(response), 0).await.map(drop)
}

/// Spawned, so that both sides wait at once.
fn dispatching(
    matching: &Matching,
    queue: &'static str,
    timeout_ns: i64,
) -> tokio::task::JoinHandle<Result<Outcome, Error>> {
    let matching = matching.clone();
    tokio::spawn(async move { dispatch(&matching, queue, request(&[]), timeout_ns).await })
}

#[tokio::test(start_paused = true)]
async fn a_request_meets_a_poll_whichever_comes_first() {
    let (matching, _) = setup();
    for request_first in [true, false] {
        let polling = || {
            let matching = matching.clone();
            tokio::spawn(async move { poll(&matching, "q").await })
        };
        let (asked, polled) = if request_first {
            let asked = dispatching(&matching, "q", 0);
            settle().await;
            (asked, polling())
        } else {
            let polled = polling();
            settle().await;
            (dispatching(&matching, "q", 0), polled)
        };
        let task = polled.await.unwrap();
        respond(&matching, "q", &task).await.unwrap();
        assert_eq!(asked.await.unwrap(), Ok(Outcome::Response(Response::default())));
        let again = respond(&matching, "q", &task).await.unwrap_err();
        assert_eq!(again.grpc_code(), Code::NotFound);
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_answers_in_time() {
    let (matching, _) = setup();
    assert_eq!(dispatch(&matching, "q", request(&[]), SECOND).await, Ok(Outcome::TimedOut(true)));
    // A worker that takes it and says nothing is no better.
    let asked = dispatching(&matching, "q", 2 * SECOND);
    let task = poll(&matching, "q").await;
    assert_eq!(asked.await.unwrap(), Ok(Outcome::TimedOut(true)));
    assert_eq!(respond(&matching, "q", &task).await.unwrap_err().grpc_code(), Code::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_worker_is_told_how_much_time_is_left() {
    let (matching, _) = setup();
    let header = [("Request-Timeout", "1m"), ("operation-timeout", "30s"), ("other", "x")];
    let asked = {
        let matching = matching.clone();
        tokio::spawn(async move { dispatch(&matching, "q", request(&header), 10 * SECOND).await })
    };
    settle().await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    let header = poll(&matching, "q").await.request.unwrap().header;
    assert_eq!(header["request-timeout"], "5000ms");
    assert_eq!(header["Request-Timeout"], "5000ms");
    assert_eq!(header["operation-timeout"], "26000ms");
    assert_eq!(header["other"], "x");
    asked.abort();
}

#[tokio::test(start_paused = true)]
async fn a_poll_that_vanishes_gives_the_request_back() {
    let (matching, _) = setup();
    let gone = {
        let matching = matching.clone();
        tokio::spawn(async move { poll(&matching, "q").await })
    };
    settle().await;
    // It is matched by then, and gone before it is answered.
    let asked = dispatching(&matching, "q", 0);
    gone.abort();
    assert!(gone.await.is_err());
    let task = poll(&matching, "q").await;
    respond(&matching, "q", &task).await.unwrap();
    assert_eq!(asked.await.unwrap(), Ok(Outcome::Response(Response::default())));
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_sender_goes_is_forgotten() {
    let (matching, _) = setup();
    let asked = dispatching(&matching, "q", 0);
    settle().await;
    asked.abort();
    settle().await;
    let task = nexus(&matching, "q", Command::Poll(poll_request("q")), SECOND).await.unwrap();
    assert_eq!(task, Some(Reply::Task(PollNexusTaskQueueResponse::default())));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_stops_gets_nothing_more() {
    let (matching, _) = setup();
    let polling = {
        let matching = matching.clone();
        tokio::spawn(async move { poll(&matching, "q").await })
    };
    settle().await;
    let describe = DescribeTaskQueueRequest {
        task_queue: Some(TaskQueue { name: "q".into(), ..Default::default() }),
        task_queue_type: TaskQueueType::Nexus as i32,
        ..Default::default()
    };
    let reply = matching.call(call("q", matching_call::Command::Describe(describe))).await.unwrap();
    let Some(matching_reply::Reply::Describe(described)) = reply.reply else { panic!("{reply:?}") };
    assert_eq!(described.pollers.iter().map(|poller| poller.identity.as_str()).collect::<Vec<_>>(), ["worker"]);
    let shutdown = ShutdownWorkerRequest {
        worker_instance_key: "key".into(),
        task_queue: "q".into(),
        task_queue_types: vec![TaskQueueType::Nexus as i32],
        ..Default::default()
    };
    matching.call(call("q", matching_call::Command::ShutdownWorker(Box::new(shutdown)))).await.unwrap();
    assert_eq!(polling.await.unwrap(), PollNexusTaskQueueResponse::default());
    assert_eq!(poll(&matching, "q").await, PollNexusTaskQueueResponse::default());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_leaves_sends_everybody_on() {
    let (matching, _) = setup();
    let asked = dispatching(&matching, "q", 0);
    settle().await;
    let task = poll(&matching, "q").await;
    matching.depart(std::sync::Arc::new(|_: &str, queue: &str| queue == "q"));
    assert!(asked.await.unwrap().unwrap_err().as_not_owner().is_some());
    assert_eq!(respond(&matching, "q", &task).await.unwrap_err().grpc_code(), Code::NotFound);

    let asked = dispatching(&matching, "r", 0);
    settle().await;
    matching.drain();
    assert_eq!(asked.await.unwrap().unwrap_err().grpc_code(), Code::Unavailable);
    let late = dispatch(&matching, "r", request(&[]), 0).await;
    assert_eq!(late.unwrap_err().grpc_code(), Code::Unavailable);
}
