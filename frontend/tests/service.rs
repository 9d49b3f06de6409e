//! Calls of the API as a client makes them, over scripted shards and task queues.

#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod common;

use std::time::Duration;

use common::{NAMESPACE, NAMESPACE_ID, RUN_ID, fixture, no_matching, no_workflow, token, token_bytes, within};
use perdure_proto::{
    Error,
    perdure::node::v1::{
        DirectQuery, Empty, HistoryToken, QueryReply, RespondActivityTaskReply, TaskToken, WorkerHeartbeats,
        matching_call, matching_reply, query_reply, respond_activity_task, task_token::Kind, workflow_call,
        workflow_reply,
    },
    temporal::api::{
        common::v1::{Payload, Payloads, WorkflowExecution, WorkflowType},
        enums::v1::QueryResultType,
        failure::v1::failure::FailureInfo,
        query::v1::WorkflowQuery,
        taskqueue::v1::TaskQueue,
        worker::v1::WorkerHeartbeat,
        workflow::v1::WorkflowExecutionInfo,
        workflowservice::v1::{workflow_service_server::WorkflowService, *},
    },
};
use prost::Message;
use tokio::time::Instant;
use tonic::{Code, Request};

fn start() -> StartWorkflowExecutionRequest {
    StartWorkflowExecutionRequest {
        namespace: NAMESPACE.into(),
        workflow_id: "w".into(),
        workflow_type: Some(WorkflowType { name: "Order".into() }),
        task_queue: queue("orders"),
        ..Default::default()
    }
}

fn queue(name: &str) -> Option<TaskQueue> {
    Some(TaskQueue { name: name.into(), ..Default::default() })
}

fn execution(run_id: &str) -> Option<WorkflowExecution> {
    Some(WorkflowExecution { workflow_id: "w".into(), run_id: run_id.into() })
}

fn started(_: &workflow_call::Command, _: usize) -> Option<Result<workflow_reply::Reply, Error>> {
    let reply = StartWorkflowExecutionResponse { run_id: RUN_ID.into(), started: true, ..Default::default() };
    Some(Ok(workflow_reply::Reply::Start(reply)))
}

fn poll(name: &str) -> PollWorkflowTaskQueueRequest {
    PollWorkflowTaskQueueRequest { namespace: NAMESPACE.into(), task_queue: queue(name), ..Default::default() }
}

fn big() -> Option<Payloads> {
    Some(Payloads { payloads: vec![Payload { data: vec![0; 1_001].into(), ..Default::default() }] })
}

#[tokio::test]
async fn a_start_reaches_its_shard() {
    let f = fixture(started, no_matching).await;
    let reply = f.frontend.start_workflow_execution(Request::new(start())).await.unwrap().into_inner();
    assert_eq!(reply.run_id, RUN_ID);
    let call = f.shards.calls.lock().unwrap()[0].clone();
    assert_eq!((call.namespace_id.as_str(), call.workflow_id.as_str()), (NAMESPACE_ID, "w"));
    let Some(workflow_call::Command::Start(start)) = call.command else { panic!("a start") };
    assert!(!start.request.unwrap().request_id.is_empty());
}

#[tokio::test]
async fn namespaces_are_checked_first() {
    let f = fixture(no_workflow, no_matching).await;
    let check = async |namespace: &str, code: Code, message: &str| {
        let request = StartWorkflowExecutionRequest { namespace: namespace.into(), ..Default::default() };
        let status = f.frontend.start_workflow_execution(Request::new(request)).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (code, message));
        status
    };
    check("", Code::InvalidArgument, "Namespace not set on request.").await;
    check(&"n".repeat(1_001), Code::InvalidArgument, "Namespace length exceeds limit.").await;
    let status = check("nowhere", Code::NotFound, "Namespace nowhere is not found.").await;
    let rich = perdure_proto::google::rpc::Status::decode(status.details()).unwrap();
    assert!(rich.details[0].type_url.ends_with("NamespaceNotFoundFailure"));
}

#[tokio::test(start_paused = true)]
async fn a_moving_shard_costs_time_not_an_error() {
    let script = |command: &workflow_call::Command, before: usize| {
        if before < 5 { Some(Err(Error::unavailable("moving"))) } else { started(command, before) }
    };
    let f = fixture(script, no_matching).await;
    f.frontend.start_workflow_execution(Request::new(start())).await.unwrap();
    let ids: Vec<String> = f
        .workflow_commands()
        .into_iter()
        .map(|c| match c {
            workflow_call::Command::Start(s) => s.request.unwrap().request_id,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ids.len(), 6);
    assert!(ids.iter().all(|id| *id == ids[0]), "each attempt is the same request");
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_stays_away_is_unavailable_within_the_deadline() {
    let f = fixture(|_, _| Some(Err(Error::unavailable("gone"))), no_matching).await;
    let begun = Instant::now();
    let status = f.frontend.start_workflow_execution(within(Duration::from_secs(3), start())).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(begun.elapsed() < Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn a_poll_ends_empty_before_the_client_gives_up() {
    let f = fixture(no_workflow, |_, _| None).await;
    let begun = Instant::now();
    let request = within(Duration::from_secs(10), poll("orders"));
    let reply = f.frontend.poll_workflow_task_queue(request).await.unwrap().into_inner();
    assert_eq!(reply, PollWorkflowTaskQueueResponse::default());
    assert!(begun.elapsed() < Duration::from_secs(10));
    let told = Duration::from_nanos(f.queues.calls.lock().unwrap()[0].timeout_ns as u64);
    assert!(told <= Duration::from_secs(9), "the home was told {told:?}");
    assert_eq!(f.queues.dropped.load(std::sync::atomic::Ordering::SeqCst), 1, "the poll is taken back");
}

#[tokio::test(start_paused = true)]
async fn draining_ends_polls_and_takes_no_new_ones() {
    let f = fixture(no_workflow, |_, _| None).await;
    let waiting = tokio::spawn({
        let frontend = f.frontend.clone();
        async move { frontend.poll_workflow_task_queue(within(Duration::from_secs(60), poll("orders"))).await }
    });
    while f.queues.calls.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    let begun = Instant::now();
    f.draining.send(true).unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().into_inner(), PollWorkflowTaskQueueResponse::default());
    assert!(begun.elapsed() < Duration::from_secs(1));
    let status = f.frontend.poll_workflow_task_queue(Request::new(poll("orders"))).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
}

#[tokio::test(start_paused = true)]
async fn a_history_poll_that_ends_early_goes_on_by_its_token() {
    let script = |command: &workflow_call::Command, _: usize| match command {
        workflow_call::Command::Describe(_) => {
            let info = WorkflowExecutionInfo { execution: execution(RUN_ID), ..Default::default() };
            let reply = DescribeWorkflowExecutionResponse { workflow_execution_info: Some(info), ..Default::default() };
            Some(Ok(workflow_reply::Reply::Describe(Box::new(reply))))
        }
        _ => None,
    };
    let f = fixture(script, no_matching).await;
    let request = GetWorkflowExecutionHistoryRequest {
        namespace: NAMESPACE.into(),
        execution: execution(""),
        wait_new_event: true,
        ..Default::default()
    };
    let read = async |request: GetWorkflowExecutionHistoryRequest| {
        let request = within(Duration::from_secs(5), request);
        f.frontend.get_workflow_execution_history(request).await.unwrap().into_inner()
    };
    let page = read(request.clone()).await;
    assert!(page.history.unwrap().events.is_empty());
    let token = HistoryToken::decode(page.next_page_token.clone()).unwrap();
    assert_eq!((token.run_id.as_str(), token.next_event_id, token.wait_new_event), (RUN_ID, 1, true));
    let again =
        read(GetWorkflowExecutionHistoryRequest { next_page_token: page.next_page_token.clone(), ..request }).await;
    assert_eq!(again.next_page_token, page.next_page_token);
}

fn query() -> QueryWorkflowRequest {
    QueryWorkflowRequest {
        namespace: NAMESPACE.into(),
        execution: execution(""),
        query: Some(WorkflowQuery { query_type: "state".into(), ..Default::default() }),
        ..Default::default()
    }
}

fn direct(command: &workflow_call::Command, _: usize) -> Option<Result<workflow_reply::Reply, Error>> {
    Some(Ok(match command {
        workflow_call::Command::Query(_) => {
            let direct = DirectQuery {
                run_id: RUN_ID.into(),
                task_queue: "orders".into(),
                sticky_task_queue: "orders-sticky".into(),
                directive: None,
            };
            workflow_reply::Reply::Query(QueryReply { outcome: Some(query_reply::Outcome::Direct(direct)) })
        }
        workflow_call::Command::ResetSticky(_) => workflow_reply::Reply::Empty(Empty {}),
        other => panic!("{other:?}"),
    }))
}

#[tokio::test(start_paused = true)]
async fn a_query_leaves_a_silent_sticky_worker_for_any_other() {
    for vanished in [true, false] {
        let f = fixture(direct, move |call, _| match call.task_queue.as_str() {
            "orders-sticky" if vanished => Some(Err(Error::unavailable("no poller"))),
            "orders-sticky" => None,
            _ => Some(Ok(matching_reply::Reply::Query(QueryWorkflowResponse::default()))),
        })
        .await;
        f.frontend.query_workflow(within(Duration::from_secs(20), query())).await.unwrap();
        assert!(matches!(
            f.workflow_commands().as_slice(),
            [workflow_call::Command::Query(_), workflow_call::Command::ResetSticky(_)]
        ));
        let [matching_call::Command::Query(first), matching_call::Command::Query(second)] = &f.matching_commands()[..]
        else {
            panic!("two questions")
        };
        assert!(first.sticky && !second.sticky);
        assert_eq!(second.run_id, RUN_ID);
    }
}

#[tokio::test(start_paused = true)]
async fn a_query_that_no_worker_answers_times_out() {
    let f = fixture(direct, |_, _| None).await;
    let begun = Instant::now();
    let status = f.frontend.query_workflow(within(Duration::from_secs(8), query())).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(status.message(), "query timed out before a worker could process it");
    assert!(begun.elapsed() < Duration::from_secs(8));
}

#[tokio::test]
async fn a_failed_query_is_not_asked_again() {
    let f = fixture(direct, |_, _| Some(Err(Error::query_failed("no such query", None)))).await;
    let status = f.frontend.query_workflow(Request::new(query())).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "no such query"));
    assert_eq!(f.matching_commands().len(), 1);
}

#[tokio::test]
async fn a_query_that_a_workflow_task_overtakes_goes_with_it() {
    let script = |command: &workflow_call::Command, nth: usize| match (command, nth) {
        (workflow_call::Command::Query(_), 1..) => {
            let outcome = query_reply::Outcome::Answered(QueryWorkflowResponse::default());
            Some(Ok(workflow_reply::Reply::Query(QueryReply { outcome: Some(outcome) })))
        }
        _ => direct(command, nth),
    };
    let f = fixture(script, |_, _| Some(Err(Error::workflow_not_ready("a workflow task is pending")))).await;
    f.frontend.query_workflow(Request::new(query())).await.unwrap();
    let asked = f.workflow_commands();
    assert!(matches!(asked[..], [workflow_call::Command::Query(_), workflow_call::Command::Query(_)]), "{asked:?}");
    assert_eq!(f.matching_commands().len(), 1);
}

#[tokio::test]
async fn a_result_over_the_limit_fails_the_activity() {
    let answer = |_: &workflow_call::Command, _: usize| {
        Some(Ok(workflow_reply::Reply::RespondActivityTask(RespondActivityTaskReply::default())))
    };
    let f = fixture(answer, no_matching).await;
    let request = RespondActivityTaskCompletedRequest {
        task_token: token_bytes(Kind::Activity),
        result: big(),
        ..Default::default()
    };
    f.frontend.respond_activity_task_completed(Request::new(request)).await.unwrap();
    let [workflow_call::Command::RespondActivityTask(respond)] = &f.workflow_commands()[..] else { panic!("one call") };
    let Some(respond_activity_task::Outcome::Failed(failed)) = &respond.outcome else { panic!("a failure") };
    let failure = failed.failure.as_ref().unwrap();
    assert_eq!(failure.message, "Complete result exceeds size limit.");
    assert!(matches!(&failure.failure_info, Some(FailureInfo::ServerFailureInfo(i)) if i.non_retryable));

    let request = RecordActivityTaskHeartbeatRequest {
        task_token: token_bytes(Kind::Activity),
        details: big(),
        ..Default::default()
    };
    let reply = f.frontend.record_activity_task_heartbeat(Request::new(request)).await.unwrap().into_inner();
    assert!(reply.cancel_requested, "the worker is to stop");
}

#[tokio::test]
async fn an_answer_to_a_query_over_the_limit_fails_the_query() {
    let f = fixture(no_workflow, |_, _| Some(Ok(matching_reply::Reply::Empty(Empty {})))).await;
    let request = RespondQueryTaskCompletedRequest {
        task_token: token_bytes(Kind::Query),
        completed_type: QueryResultType::Answered as i32,
        query_result: big(),
        ..Default::default()
    };
    f.frontend.respond_query_task_completed(Request::new(request)).await.unwrap();
    let [matching_call::Command::RespondQuery(answer)] = &f.matching_commands()[..] else { panic!("one call") };
    assert_eq!(answer.completed_type, QueryResultType::Failed as i32);
    assert_eq!(answer.error_message, "Blob data size exceeds limit.");
    assert_eq!(answer.query_result, None);
}

#[tokio::test]
async fn tokens_are_bound_to_their_namespace() {
    let f = fixture(no_workflow, no_matching).await;
    let register = RegisterNamespaceRequest {
        namespace: "other".into(),
        workflow_execution_retention_period: Some(prost_types::Duration { seconds: 86_400, nanos: 0 }),
        ..Default::default()
    };
    f.frontend.register_namespace(Request::new(register)).await.unwrap();
    let respond = async |namespace: &str, token: TaskToken| {
        let request = RespondWorkflowTaskCompletedRequest {
            namespace: namespace.into(),
            task_token: perdure_frontend::seal_task_token(&token.encode_to_vec().into()),
            ..Default::default()
        };
        f.frontend.respond_workflow_task_completed(Request::new(request)).await.unwrap_err()
    };
    let status = respond("other", token(Kind::Workflow)).await;
    assert_eq!(status.message(), "Operation requested with a token from a different namespace.");
    let unknown = TaskToken { namespace_id: "nowhere".into(), ..token(Kind::Workflow) };
    assert_eq!(respond("", unknown).await.code(), Code::NotFound);
}

#[tokio::test]
async fn tokens_of_random_bytes_change_nothing() {
    let f = fixture(no_workflow, no_matching).await;
    let good = token_bytes(Kind::Activity).to_vec();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..2_000 {
        // xorshift: the same bytes in every run.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let mut bytes = good.clone();
        let at = (state as usize >> 8) % bytes.len();
        bytes[at] = state as u8;
        bytes.truncate(1 + (state as usize >> 20) % bytes.len());
        let request = RespondWorkflowTaskCompletedRequest {
            namespace: NAMESPACE.into(),
            task_token: bytes.into(),
            ..Default::default()
        };
        let status = f.frontend.respond_workflow_task_completed(Request::new(request)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn workers_are_known_at_one_home() {
    let worker = |key: &str, identity: &str| WorkerHeartbeat {
        worker_instance_key: key.into(),
        worker_identity: identity.into(),
        ..Default::default()
    };
    let known = WorkerHeartbeats { heartbeats: vec![worker("a", "one"), worker("b", "two"), worker("c", "two")] };
    let f = fixture(no_workflow, move |call, _| {
        assert_eq!(call.task_queue, "");
        Some(Ok(match &call.command {
            Some(matching_call::Command::ListWorkers(_)) => matching_reply::Reply::Workers(known.clone()),
            _ => matching_reply::Reply::Empty(Empty {}),
        }))
    })
    .await;
    let heartbeat = vec![worker("k", "")];
    let request = RecordWorkerHeartbeatRequest {
        namespace: NAMESPACE.into(),
        worker_heartbeat: heartbeat.clone(),
        ..Default::default()
    };
    f.frontend.record_worker_heartbeat(Request::new(request)).await.unwrap();
    assert_eq!(
        f.matching_commands(),
        [matching_call::Command::RecordWorkerHeartbeats(WorkerHeartbeats { heartbeats: heartbeat })]
    );

    let list = |query: &str, page_size: i32, next_page_token: bytes::Bytes| {
        let request = ListWorkersRequest {
            namespace: NAMESPACE.into(),
            query: query.into(),
            page_size,
            next_page_token,
            ..Default::default()
        };
        f.frontend.list_workers(Request::new(request))
    };
    let keys = |response: &ListWorkersResponse| {
        response.workers.iter().map(|worker| worker.worker_instance_key.clone()).collect::<Vec<_>>()
    };
    let two = "WorkerIdentity = 'two' AND StartTime IS NULL";
    let first = list(two, 1, bytes::Bytes::new()).await.unwrap().into_inner();
    assert_eq!(keys(&first), ["b"]);
    let second = list(two, 1, first.next_page_token).await.unwrap().into_inner();
    assert_eq!((keys(&second), second.next_page_token.is_empty()), (vec!["c".to_owned()], true));
    let status = list("WorkflowId = 'a'", 0, bytes::Bytes::new()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_worker_that_leaves_tells_both_its_queues() {
    let f = fixture(no_workflow, |_, _| Some(Ok(matching_reply::Reply::Empty(Empty {})))).await;
    let request = ShutdownWorkerRequest {
        namespace: NAMESPACE.into(),
        sticky_task_queue: "orders-sticky".into(),
        task_queue: "orders".into(),
        ..Default::default()
    };
    f.frontend.shutdown_worker(Request::new(request)).await.unwrap();
    let homes: Vec<String> = f.queues.calls.lock().unwrap().iter().map(|c| c.task_queue.clone()).collect();
    assert_eq!(homes, ["orders-sticky", "orders"]);
}

#[tokio::test]
async fn what_is_not_built_says_so() {
    let f = fixture(no_workflow, no_matching).await;
    let request = Request::new(FetchWorkerConfigRequest::default());
    let status = f.frontend.fetch_worker_config(request).await.unwrap_err();
    let message = "FetchWorkerConfig is not implemented";
    assert_eq!((status.code(), status.message()), (Code::Unimplemented, message));
}
