//! Queries, goodbyes and descriptions.

use crate::common::*;
use perdure_matching::Matching;
use perdure_matching::is_no_sticky_poller;
use perdure_proto::{
    Code, Error,
    perdure::node::v1::{MatchingCall, TaskKind, TaskToken, matching_call::Command, matching_reply::Reply},
    temporal::api::{
        common::v1::{Payload, Payloads},
        enums::v1::{DescribeTaskQueueMode, QueryResultType, RateLimitSource},
        taskqueue::v1::TaskQueue,
        workflowservice::v1::*,
    },
};
use prost::Message;
use tokio::time::{Duration, Instant};

fn answer_to(task: &PollWorkflowTaskQueueResponse) -> RespondQueryTaskCompletedRequest {
    let payload = Payload { data: "result".into(), ..Default::default() };
    RespondQueryTaskCompletedRequest {
        task_token: task.task_token.clone(),
        completed_type: QueryResultType::Answered as i32,
        query_result: Some(Payloads { payloads: vec![payload] }),
        ..Default::default()
    }
}

async fn respond(matching: &Matching, request: RespondQueryTaskCompletedRequest) -> Result<(), Error> {
    matching.call(call("q", Command::RespondQuery(request))).await.map(|_| ())
}

#[tokio::test(start_paused = true)]
async fn a_query_waits_for_a_worker_and_its_answer() {
    let (matching, _) = setup();
    let asked = tokio::spawn({
        let matching = matching.clone();
        async move { query(&matching, "q", false, 0).await }
    });
    settle().await;
    let task = poll(&matching, workflow_poll("q")).await;
    assert_eq!(task.query.as_ref().unwrap().query_type, "state");
    assert_eq!(task.workflow_execution_task_queue.as_ref().unwrap().name, "q");
    let token = TaskToken::decode(task.task_token.clone()).unwrap();
    assert_eq!(
        (token.task_queue.as_str(), token.workflow_id.as_str(), token.run_id.as_str()),
        ("q", "workflow", "run")
    );
    respond(&matching, answer_to(&task)).await.unwrap();
    assert_eq!(asked.await.unwrap().unwrap().query_result, answer_to(&task).query_result);
    let again = respond(&matching, answer_to(&task)).await.unwrap_err();
    assert_eq!(again.grpc_code(), Code::NotFound);
}

#[tokio::test(start_paused = true)]
async fn only_the_querys_own_namespace_answers_it() {
    let (matching, _) = setup();
    let asked = tokio::spawn({
        let matching = matching.clone();
        async move { query(&matching, "q", false, 0).await }
    });
    settle().await;
    let task = poll(&matching, workflow_poll("q")).await;
    let foreign = MatchingCall { namespace_id: "other".into(), ..call("q", Command::RespondQuery(answer_to(&task))) };
    assert_eq!(matching.call(foreign).await.unwrap_err().grpc_code(), Code::NotFound);
    respond(&matching, answer_to(&task)).await.unwrap();
    assert!(asked.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_drain_fails_the_queries_that_wait() {
    let (matching, _) = setup();
    let asked = tokio::spawn({
        let matching = matching.clone();
        // Its own limit would end it with another error.
        async move { query(&matching, "q", false, 60_000_000_000).await }
    });
    settle().await;
    matching.drain();
    assert_eq!(asked.await.unwrap().unwrap_err().grpc_code(), Code::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn a_failed_query_says_why() {
    let (matching, _) = setup();
    let asked = tokio::spawn({
        let matching = matching.clone();
        async move { query(&matching, "q", false, 0).await }
    });
    let task = poll(&matching, workflow_poll("q")).await;
    let failed = RespondQueryTaskCompletedRequest {
        completed_type: QueryResultType::Failed as i32,
        query_result: None,
        error_message: "no such query".into(),
        ..answer_to(&task)
    };
    respond(&matching, failed).await.unwrap();
    let error = asked.await.unwrap().unwrap_err();
    assert_eq!(error, Error::query_failed("no such query", None));
}

#[tokio::test(start_paused = true)]
async fn nonsense_answers_are_refused() {
    let (matching, _) = setup();
    let request = RespondQueryTaskCompletedRequest { task_token: "nonsense".into(), ..Default::default() };
    assert_eq!(respond(&matching, request).await.unwrap_err().grpc_code(), Code::InvalidArgument);
    let error = matching.call(Default::default()).await.unwrap_err();
    assert_eq!(error.grpc_code(), Code::InvalidArgument);
}

#[tokio::test(start_paused = true)]
async fn a_query_that_its_worker_drops_goes_to_the_next() {
    let (matching, shard) = setup();
    close_gate(&shard);
    let asked = tokio::spawn({
        let matching = matching.clone();
        async move { query(&matching, "q", false, 0).await }
    });
    let dies = tokio::spawn({
        let matching = matching.clone();
        async move { poll(&matching, workflow_poll("q")).await }
    });
    settle().await;
    dies.abort();
    settle().await;
    shard.gate.add_permits(100);
    let task = poll(&matching, workflow_poll("q")).await;
    respond(&matching, answer_to(&task)).await.unwrap();
    assert!(asked.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_query_whose_caller_left_costs_no_poll() {
    let (matching, shard) = setup();
    let asked = tokio::spawn({
        let matching = matching.clone();
        async move { query(&matching, "q", false, 0).await }
    });
    settle().await;
    asked.abort();
    settle().await;
    offer(&matching, &shard, task(TaskKind::Workflow, "q", "a")).await;
    assert_eq!(run_of(&poll(&matching, workflow_poll("q")).await), "a");
}

#[tokio::test(start_paused = true)]
async fn a_query_of_a_run_that_is_gone_fails_and_the_poll_goes_on() {
    let (matching, shard) = setup();
    shard.fail("run", Error::unavailable("shard is moving"));
    shard.fail("run", Error::not_found("gone"));
    let waiting = tokio::spawn({
        let matching = matching.clone();
        async move { poll(&matching, workflow_poll("q")).await }
    });
    settle().await;
    assert_eq!(query(&matching, "q", false, 0).await.unwrap_err(), Error::not_found("gone"));
    offer(&matching, &shard, task(TaskKind::Workflow, "q", "a")).await;
    assert_eq!(run_of(&waiting.await.unwrap()), "a");
}

#[tokio::test(start_paused = true)]
async fn a_sticky_query_falls_back() {
    let (matching, _) = setup();
    assert!(is_no_sticky_poller(&query(&matching, "s", true, 0).await.unwrap_err()));
    poll_within(&matching, sticky_poll("s", "q"), 1_000_000).await;
    // The worker was here a moment ago, but does not come back.
    let before = Instant::now();
    assert!(is_no_sticky_poller(&query(&matching, "s", true, 3_000_000_000).await.unwrap_err()));
    assert!(before.elapsed() >= Duration::from_secs(3));
    let late = query(&matching, "q", false, 3_000_000_000).await.unwrap_err();
    assert_eq!(late.grpc_code(), Code::DeadlineExceeded);
    // The worker comes back.
    let (answer, task) = tokio::join!(query(&matching, "s", true, 0), async {
        let task = poll(&matching, sticky_poll("s", "q")).await;
        respond(&matching, answer_to(&task)).await.unwrap();
        task
    });
    assert!(answer.is_ok());
    assert_eq!(task.workflow_execution_task_queue.unwrap().name, "q");
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_ends_the_polls_of_its_worker() {
    let (matching, shard) = setup();
    let keyed = |queue: &str, key: &str| PollWorkflowTaskQueueRequest {
        worker_instance_key: key.into(),
        identity: key.into(),
        ..workflow_poll(queue)
    };
    let spawn = |request| {
        let matching = matching.clone();
        tokio::spawn(async move { poll(&matching, request).await })
    };
    let (mine, other, sticky) = (spawn(keyed("q", "me")), spawn(keyed("q", "you")), spawn(sticky_poll("s", "q")));
    settle().await;
    let goodbye = ShutdownWorkerRequest {
        sticky_task_queue: "s".into(),
        task_queue: "q".into(),
        worker_instance_key: "me".into(),
        identity: "me".into(),
        ..Default::default()
    };
    let before = Instant::now();
    matching.call(call("q", Command::ShutdownWorker(Box::new(goodbye)))).await.unwrap();
    assert!(mine.await.unwrap().task_token.is_empty());
    assert!(sticky.await.unwrap().task_token.is_empty());
    assert!(poll(&matching, keyed("q", "me")).await.task_token.is_empty(), "a late poll takes nothing");
    assert_eq!(before.elapsed(), Duration::ZERO);
    assert!(!offer(&matching, &shard, sticky_task("s", "a")).await);
    let pollers = describe(&matching, describe_request("q")).await.pollers;
    assert_eq!(pollers.iter().map(|p| p.identity.as_str()).collect::<Vec<_>>(), ["you"]);
    offer(&matching, &shard, task(TaskKind::Workflow, "q", "b")).await;
    assert_eq!(run_of(&other.await.unwrap()), "b");
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_sends_sticky_work_to_the_normal_queue() {
    let (matching, shard) = setup();
    poll_within(&matching, sticky_poll("s", "q"), 1_000_000).await;
    assert!(offer(&matching, &shard, sticky_task("s", "a")).await);
    let asked = tokio::spawn({
        let matching = matching.clone();
        async move { query(&matching, "s", true, 0).await }
    });
    settle().await;
    let goodbye = ShutdownWorkerRequest { sticky_task_queue: "s".into(), ..Default::default() };
    matching.call(call("s", Command::ShutdownWorker(Box::new(goodbye)))).await.unwrap();
    settle().await;
    assert_eq!(shard.sticky_unavailable(), ["a"]);
    assert!(is_no_sticky_poller(&asked.await.unwrap().unwrap_err()));
}

fn describe_request(queue: &str) -> DescribeTaskQueueRequest {
    DescribeTaskQueueRequest {
        task_queue: Some(TaskQueue { name: queue.into(), ..Default::default() }),
        ..Default::default()
    }
}

async fn describe(matching: &Matching, request: DescribeTaskQueueRequest) -> DescribeTaskQueueResponse {
    let reply = matching.call(call("", Command::Describe(request))).await.unwrap();
    let Some(Reply::Describe(description)) = reply.reply else { panic!("{reply:?}") };
    description
}

#[tokio::test(start_paused = true)]
#[allow(deprecated)]
async fn a_queue_is_described() {
    let (matching, shard) = setup();
    poll_within(&matching, workflow_poll("q"), 1_000_000_000).await;
    offer(&matching, &shard, task(TaskKind::Workflow, "q", "a")).await;
    offer(&matching, &shard, task(TaskKind::Workflow, "q", "b")).await;
    poll(&matching, workflow_poll("q")).await;
    tokio::time::advance(Duration::from_secs(2)).await;
    let plain = describe(&matching, describe_request("q")).await;
    assert_eq!((plain.pollers.len(), plain.stats, plain.task_queue_status), (1, None, None));
    assert_eq!((plain.pollers[0].identity.as_str(), plain.pollers[0].rate_per_second), ("worker", 100_000.0));
    assert!(plain.pollers[0].last_access_time.is_some());

    let request =
        DescribeTaskQueueRequest { report_stats: true, include_task_queue_status: true, ..describe_request("q") };
    let full = describe(&matching, request).await;
    let stats = full.stats.unwrap();
    assert_eq!(stats.approximate_backlog_count, 1);
    assert!(stats.approximate_backlog_age.unwrap().seconds >= 2);
    assert!(stats.tasks_add_rate > stats.tasks_dispatch_rate && stats.tasks_dispatch_rate > 0.0);
    assert_eq!(full.stats_by_priority_key.keys().collect::<Vec<_>>(), [&3]);
    assert_eq!(full.task_queue_status.unwrap().backlog_count_hint, 1);

    let enhanced = DescribeTaskQueueRequest {
        api_mode: DescribeTaskQueueMode::Enhanced as i32,
        report_stats: true,
        report_pollers: true,
        ..describe_request("q")
    };
    let versions = describe(&matching, enhanced).await.versions_info;
    let types = &versions[""].types_info;
    assert_eq!((types[&1].pollers.len(), types[&2].pollers.len()), (1, 0));
    assert_eq!(types[&1].stats.as_ref().unwrap().approximate_backlog_count, 1);
    assert_eq!(types[&2].stats.as_ref().unwrap().approximate_backlog_count, 0);

    tokio::time::advance(Duration::from_secs(301)).await;
    assert!(describe(&matching, describe_request("q")).await.pollers.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_unknown_queue_is_described_as_empty() {
    let (matching, _) = setup();
    let description = describe(&matching, describe_request("unknown")).await;
    let limit = description.effective_rate_limit.unwrap();
    assert_eq!((limit.requests_per_second, limit.rate_limit_source()), (100_000.0, RateLimitSource::System));
    assert!(description.pollers.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_queue_has_one_partition_of_each_type() {
    let (matching, _) = setup();
    let request = ListTaskQueuePartitionsRequest {
        task_queue: Some(TaskQueue { name: "q".into(), ..Default::default() }),
        ..Default::default()
    };
    let reply = matching.call(call("q", Command::ListPartitions(request))).await.unwrap();
    let Some(Reply::ListPartitions(partitions)) = reply.reply else { panic!("{reply:?}") };
    for one in [partitions.workflow_task_queue_partitions, partitions.activity_task_queue_partitions] {
        assert_eq!(one.len(), 1);
        assert_eq!((one[0].key.as_str(), one[0].owner_host_name.as_str()), ("q", "host:1"));
    }
}
