//! A node over a reliable store: what it acknowledges survives, and what it reads is right.

use std::{sync::Arc, time::Duration};

use perdure_persistence::{Store, simulated::Simulated};
use perdure_proto::{
    perdure::node::v1::{workflow_call::Command, workflow_reply::Reply},
    temporal::api::{
        common::v1::WorkflowExecution,
        enums::v1::{EventType, UpdateWorkflowExecutionLifecycleStage as Stage, WorkflowExecutionStatus},
        update::v1::{Input, Meta, Request, WaitPolicy},
        workflowservice::v1::UpdateWorkflowExecutionRequest,
    },
};
use perdure_sim::{Node, Options, Script, history_of};

fn store() -> (Simulated, Arc<dyn Store>) {
    let store = Simulated::reliable();
    (store.clone(), Arc::new(store))
}

async fn node(store: &Arc<dyn Store>, options: Options) -> Node {
    Node::start(store.clone(), options).await.expect("starts")
}

fn options(seed: u64) -> Options {
    let mut options = Options::default();
    options.config.seed = Some(seed);
    options
}

#[tokio::test(start_paused = true)]
async fn a_workflow_runs_to_its_end() {
    let (_, store) = store();
    let node = node(&store, options(1)).await;
    let client = node.client();
    let run = client.start("w", "complete").await.expect("starts");
    let close = client.close_event("w", &run).await.expect("closes");
    assert_eq!(close.event_type(), EventType::WorkflowExecutionCompleted);
    let kinds: Vec<EventType> =
        client.history("w", &run, 0).await.expect("history").iter().map(|event| event.event_type()).collect();
    let expected = [
        EventType::WorkflowExecutionStarted,
        EventType::WorkflowTaskScheduled,
        EventType::WorkflowTaskStarted,
        EventType::WorkflowTaskCompleted,
        EventType::WorkflowExecutionCompleted,
    ];
    assert_eq!(kinds, expected);
}

#[tokio::test(start_paused = true)]
async fn acknowledged_starts_survive_a_crash() {
    let (_, store) = store();
    let first = node(&store, options(1)).await;
    let client = first.client();
    let mut runs = Vec::new();
    for i in 0..20 {
        runs.push(client.start(&format!("w{i}"), "signals").await.expect("starts"));
        client.signal(&format!("w{i}"), "s", "1").await.expect("signals");
    }
    first.crash().await;
    let second = node(&store, options(2)).await;
    let client = second.client();
    for (i, run) in runs.iter().enumerate() {
        let id = format!("w{i}");
        assert_eq!(client.status(&id, "").await.expect("known"), WorkflowExecutionStatus::Running);
        // The same start again is the same run.
        assert_eq!(&client.start(&id, "signals").await.expect("starts"), run);
        client.signal(&id, "s", "2").await.expect("signals");
        client.signal(&id, "s", "3").await.expect("signals");
        client.close_event(&id, run).await.expect("closes");
        let events = client.history(&id, run, 2).await.expect("history");
        let ids: Vec<i64> = events.iter().map(|event| event.event_id).collect();
        assert_eq!(ids, (1..=events.len() as i64).collect::<Vec<_>>());
        let signals = events.iter().filter(|e| e.event_type() == EventType::WorkflowExecutionSignaled).count();
        assert_eq!(signals, 3);
    }
}

#[tokio::test(start_paused = true)]
async fn pages_come_from_the_tables_and_from_memory_alike() {
    let (_, store) = store();
    let mut settings = options(1);
    settings.script = Script { signals: 40, ..Script::default() };
    settings.config.flush_interval = Duration::from_secs(1);
    let node = node(&store, settings).await;
    let client = node.client();
    let run = client.start("w", "signals").await.expect("starts");
    for i in 0..40 {
        client.signal("w", "s", &i.to_string()).await.expect("signals");
        // Flushes happen in between: some events are in rows, some in memory.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    client.close_event("w", &run).await.expect("closes");
    let all = client.history("w", &run, 0).await.expect("history");
    assert!(all.len() > 100, "{} events", all.len());
    for page in [1, 3, 7, 200] {
        assert_eq!(client.history("w", &run, page).await.expect("history"), all);
        let mut reversed = client.history_reverse("w", page).await.expect("reverse");
        reversed.reverse();
        assert_eq!(reversed, all);
    }
}

#[tokio::test(start_paused = true)]
async fn a_history_long_poll_ends_with_a_token_and_goes_on() {
    let (_, store) = store();
    let node = node(&store, options(1)).await;
    let client = node.client();
    let run = client.start("w", "forever").await.expect("starts");
    let mut request = history_of("w", "");
    request.wait_new_event = true;
    let mut seen = 0;
    // What is there comes at once; then the poll waits, and ends empty.
    loop {
        let page = client.history_page("w", request.clone()).await.expect("page");
        let events = page.history.unwrap_or_default().events;
        request.next_page_token = page.next_page_token;
        seen += events.len();
        assert!(!request.next_page_token.is_empty());
        if events.is_empty() {
            break;
        }
    }
    assert_eq!(seen, 4);
    let poll = tokio::spawn({
        let (client, request) = (client.clone(), request.clone());
        async move { client.history_page("w", request).await }
    });
    tokio::task::yield_now().await;
    client.signal("w", "s", "1").await.expect("signals");
    let page = poll.await.expect("joins").expect("page");
    let events = page.history.unwrap_or_default().events;
    assert_eq!(events.first().map(|event| event.event_type()), Some(EventType::WorkflowExecutionSignaled));
    assert_eq!(client.status("w", &run).await.expect("known"), WorkflowExecutionStatus::Running);
}

/// An SDK asks again then; after an error it would give up, if the wait has lasted longer than its retries may.
#[tokio::test(start_paused = true)]
async fn a_stop_ends_long_polls_as_their_time_does() {
    let (_, store) = store();
    let node = node(&store, Options { no_worker: true, ..options(1) }).await;
    let client = node.client();
    client.start("w", "forever").await.expect("starts");
    let mut request = history_of("w", "");
    request.wait_new_event = true;
    request.next_page_token = client.history_page("w", request.clone()).await.expect("page").next_page_token;
    let update = UpdateWorkflowExecutionRequest {
        workflow_execution: Some(WorkflowExecution { workflow_id: "w".into(), run_id: String::new() }),
        wait_policy: Some(WaitPolicy { lifecycle_stage: Stage::Completed as i32 }),
        request: Some(Request {
            meta: Some(Meta { update_id: "u".into(), ..Default::default() }),
            input: Some(Input { name: "add".into(), ..Default::default() }),
            ..Default::default()
        }),
        ..Default::default()
    };
    let poll = tokio::spawn({
        let (client, request) = (client.clone(), request.clone());
        async move { client.history_page("w", request).await }
    });
    let update = tokio::spawn(async move { client.call("w", Command::Update(update)).await });
    // Simulated: both wait by then.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!poll.is_finished() && !update.is_finished());
    node.stop().await;
    let page = poll.await.expect("joins").expect("no error");
    assert_eq!(page.next_page_token, request.next_page_token);
    assert!(page.history.unwrap_or_default().events.is_empty());
    match update.await.expect("joins").expect("no error").reply {
        Some(Reply::Update(reply)) => assert_eq!((reply.outcome, reply.stage), (None, Stage::Admitted as i32)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn unknown_workflows_and_runs_are_not_found() {
    let (_, store) = store();
    let node = node(&store, options(1)).await;
    let client = node.client();
    client.start("w", "forever").await.expect("starts");
    for (workflow, run) in [("x", ""), ("w", "00000000-0000-4000-8000-000000000000")] {
        let error = client.history(workflow, run, 0).await.expect_err("unknown");
        assert_eq!(error.grpc_code(), perdure_proto::Code::NotFound, "{error}");
        let error = client.status(workflow, run).await.expect_err("unknown");
        assert_eq!(error.grpc_code(), perdure_proto::Code::NotFound, "{error}");
    }
    let mut request = history_of("w", "");
    request.next_page_token = b"\xff\xff".to_vec().into();
    let error = client.history_page("w", request).await.expect_err("bad token");
    assert_eq!(error.grpc_code(), perdure_proto::Code::InvalidArgument);
}
