//! Ways in which durable-execution servers have lost or doubled work in the field: each is a test that must pass here.

use std::{sync::Arc, time::Duration};

use perdure_persistence::{
    Store,
    simulated::{Failure, Faults, Op, Simulated},
};
use perdure_proto::temporal::api::{
    enums::v1::{EventType, WorkflowExecutionStatus},
    history::v1::HistoryEvent,
};
use perdure_sim::{Client, Node, Options, Script, invariants::contiguous_from_one};
use perdure_types::Timestamp;

fn options(seed: u64) -> Options {
    let mut options = Options::default();
    options.config.seed = Some(seed);
    options.config.flush_interval = Duration::from_millis(200);
    options
}

async fn node(store: &Simulated, options: Options) -> Node {
    Node::start(Arc::new(store.clone()), options).await.expect("starts")
}

fn three_replicas(seed: u64) -> Simulated {
    let latency = (Duration::from_micros(200), Duration::from_millis(4));
    Simulated::new(seed, Faults { latency, ..Faults::none() })
}

fn count(events: &[HistoryEvent], kind: EventType) -> usize {
    events.iter().filter(|event| event.event_type() == kind).count()
}

/// The whole history, which must be one: events in order, and no page boundary that shows.
async fn history(client: &Client, workflow: &str, run: &str) -> Vec<HistoryEvent> {
    let events = client.history(workflow, run, 3).await.expect("history");
    assert!(contiguous_from_one(events.iter().map(|event| event.event_id)), "{events:#?}");
    assert_eq!(client.history(workflow, run, 0).await.expect("history"), events);
    events
}

/// Says until it is heard: as an SDK does.
async fn insist_on_signal(client: &Client, workflow: &str, name: &str) {
    for _ in 0..1000 {
        match tokio::time::timeout(Duration::from_secs(5), client.signal(workflow, name, name)).await {
            Ok(Ok(())) => return,
            Ok(Err(_)) | Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
    panic!("{workflow} never took signal {name}");
}

/// The same request until it is answered: while the store is silent, calls are refused at once.
async fn insist_on_start(client: &Client, workflow: &str, workflow_type: &str) -> String {
    for _ in 0..1000 {
        match client.start(workflow, workflow_type).await {
            Ok(run) => return run,
            Err(error) if error.grpc_code() == perdure_proto::Code::Unavailable => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) => panic!("{workflow}: {error:?}"),
        }
    }
    panic!("{workflow} never started");
}

#[tokio::test(start_paused = true)]
async fn histories_are_contiguous_after_the_store_restarts() {
    for seed in 1..6 {
        let store = three_replicas(seed);
        let node = node(&store, options(seed)).await;
        let client = node.client();
        let run = client.start("w", "forever").await.expect("starts");
        for signal in 0..30 {
            if signal % 7 == 3 {
                // The store goes away in the middle of whatever is under way, and comes back a while later.
                let pending = tokio::spawn({
                    let client = client.clone();
                    async move { insist_on_signal(&client, "w", &format!("during-{signal}")).await }
                });
                tokio::time::sleep(Duration::from_millis(signal)).await;
                store.take_down(&[0, 1, 2]);
                tokio::time::sleep(Duration::from_secs(4)).await;
                store.take_down(&[]);
                pending.await.expect("is heard");
            }
            insist_on_signal(&client, "w", &format!("s{signal}")).await;
            tokio::time::sleep(Duration::from_millis(30 * (signal % 5))).await;
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        let events = history(&client, "w", &run).await;
        assert_eq!(count(&events, EventType::WorkflowExecutionSignaled), 34);
    }
}

#[tokio::test(start_paused = true)]
async fn state_and_history_agree_after_unknown_outcomes() {
    for op in [Op::Append, Op::Write, Op::Cas] {
        let store = three_replicas(1);
        let first = node(&store, options(1)).await;
        let client = first.client();
        let run = client.start("w", "signals").await.expect("starts");
        for signal in ["1", "2", "3"] {
            // It happens, and the answer is lost.
            store.inject(op, Failure::ReplyLost, 2);
            insist_on_signal(&client, "w", signal).await;
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        client.close_event("w", &run).await.expect("closes");
        first.crash().await;
        let second = node(&store, options(2)).await;
        let client = second.client();
        assert_eq!(client.status("w", &run).await.expect("known"), WorkflowExecutionStatus::Completed, "{op:?}");
        let events = history(&client, "w", &run).await;
        assert_eq!(count(&events, EventType::WorkflowExecutionSignaled), 3, "{op:?}");
        assert_eq!(count(&events, EventType::WorkflowExecutionCompleted), 1, "{op:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_that_timed_out_and_succeeded_is_found_again() {
    for crash in [false, true] {
        let store = three_replicas(1);
        let mut node = node(&store, options(1)).await;
        // The row of the log lands, and nobody hears of it.
        let start = tokio::spawn({
            let client = node.client();
            async move { client.start("w", "forever").await }
        });
        let appends = store.count(Op::Append);
        while store.count(Op::Append) == appends {
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
        store.take_down(&[0, 1, 2]);
        start.abort();
        tokio::time::sleep(Duration::from_secs(10)).await;
        store.take_down(&[]);
        if crash {
            node.crash().await;
            node = self::node(&store, options(2)).await;
        }
        // The same request again: one run, whatever became of the first.
        let client = node.client();
        let run = insist_on_start(&client, "w", "forever").await;
        assert_eq!(client.start("w", "forever").await.expect("starts"), run);
        let error = client.start_as("w", "forever", "another").await.expect_err("is running");
        assert_eq!(error.grpc_code(), perdure_proto::Code::AlreadyExists);
        let events = history(&client, "w", "").await;
        assert_eq!(count(&events, EventType::WorkflowExecutionStarted), 1);
        assert_eq!(client.status("w", &run).await.expect("known"), WorkflowExecutionStatus::Running);
    }
}

/// A node dies after each of its writes to the tables in turn, and another takes over.
async fn crash_after_each_write(workflow_type: &str, check: impl AsyncFn(&Client, &str, u64)) {
    for writes in 1..12 {
        let store = three_replicas(writes);
        let mut settings = options(writes);
        settings.script = Script { sleep: Duration::from_secs(5), ..Script::default() };
        let first = node(&store, settings.clone()).await;
        let client = first.client();
        let run = client.start("w", workflow_type).await.expect("starts");
        let began = tokio::time::Instant::now();
        while store.count(Op::Write) < writes && began.elapsed() < Duration::from_secs(20) {
            tokio::time::sleep(Duration::from_micros(50)).await;
        }
        first.crash().await;
        settings.config.seed = Some(100 + writes);
        settings.start = Timestamp(settings.start.0 + began.elapsed().as_nanos() as i64);
        let second = node(&store, settings).await;
        check(&second.client(), &run, writes).await;
        second.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_current_run_never_dangles() {
    crash_after_each_write("complete", async |client, run, writes| {
        // By the workflow id alone, then by the run id: both lead to the run, and its history is there.
        let close = client.close_event("w", "").await.expect("closes");
        assert_eq!(close.event_type(), EventType::WorkflowExecutionCompleted, "after {writes} writes");
        assert_eq!(client.status("w", run).await.expect("known"), WorkflowExecutionStatus::Completed);
        history(client, "w", run).await;
        // The next run takes its place at once.
        let next = client.start_as("w", "forever", "next").await.expect("starts");
        assert_ne!(next, run);
        assert_eq!(client.status("w", "").await.expect("known"), WorkflowExecutionStatus::Running);
        history(client, "w", &next).await;
        history(client, "w", run).await;
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_timer_fires_whatever_became_of_its_index_row() {
    crash_after_each_write("sleep", async |client, run, writes| {
        let closed = tokio::time::timeout(Duration::from_secs(60), client.close_event("w", run)).await;
        assert!(closed.is_ok(), "after {writes} writes the timer never fires");
        let events = history(client, "w", run).await;
        assert_eq!(count(&events, EventType::TimerFired), 1, "after {writes} writes");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn no_task_is_skipped_when_reads_overlap_writes() {
    for seed in 1..4 {
        // Each second write reaches a replica late, so rows appear behind what was read already.
        let latency = (Duration::from_micros(200), Duration::from_millis(20));
        let faults = Faults { replica_write_late: 0.5, late_ops: 200, latency, ..Faults::none() };
        let store = Simulated::new(seed, faults);
        let mut settings = options(seed);
        settings.script = Script { sleep: Duration::from_secs(30), ..Script::default() };
        // Nothing stays in memory: only the rows can wake them.
        settings.config.cache_bytes = 1;
        settings.config.wakeups_ahead = 2;
        let node = node(&store, settings).await;
        let client = node.client();
        for i in 0..60 {
            client.start(&format!("w{i}"), "sleep").await.expect("starts");
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
        tokio::time::sleep(Duration::from_secs(120)).await;
        for i in 0..60 {
            let id = format!("w{i}");
            assert_eq!(client.status(&id, "").await.expect("known"), WorkflowExecutionStatus::Completed, "{id}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_cleaner_deletes_the_history_of_a_live_run() {
    let store = three_replicas(1);
    let mut settings = options(1);
    settings.retention = perdure_types::Duration::from_secs(3600);
    // Deletions linger on their way, and arrive more than once.
    store.set_faults(Faults {
        replica_write_late: 0.3,
        replica_write_duplicated: 0.5,
        late_ops: 300,
        ..Faults::none()
    });
    let first = node(&store, settings.clone()).await;
    let client = first.client();
    let closed = client.start("w", "complete").await.expect("starts");
    client.close_event("w", &closed).await.expect("closes");
    let live = client.start_as("w", "forever", "second").await.expect("starts");
    let mut signals = 0;
    for _ in 0..40 {
        tokio::time::sleep(Duration::from_secs(180)).await;
        signals += 1;
        insist_on_signal(&client, "w", &format!("s{signals}")).await;
    }
    client.status("w", &closed).await.expect_err("its retention is over");
    let events = history(&client, "w", &live).await;
    first.crash().await;
    settings.config.seed = Some(2);
    settings.start = Timestamp(settings.start.0 + 8_000_000_000_000);
    store.deliver_all();
    let second = node(&store, settings).await;
    let found = history(&second.client(), "w", "").await;
    assert_eq!(found[..events.len()], events[..]);
    assert_eq!(count(&found, EventType::WorkflowExecutionSignaled), signals);
    // Nor does one that cleans up after sessions: what it deletes are logs that nobody needs.
    let sessions = store.list_sessions().await.expect("sessions");
    for (shard, row) in store.list_shards().await.expect("shards") {
        for source in row.sources.values() {
            assert!(sessions.iter().any(|(id, _)| *id == source.session), "{shard:?} names a session that is gone");
        }
    }
}
