//! What stays in memory, what goes to the tables, and what a start has to read.

use std::{sync::Arc, time::Duration};

use perdure_persistence::{
    SessionState, Store,
    embedded::{Config, Embedded, OpenError},
    simulated::{Failure, Op, Simulated},
};
use perdure_proto::temporal::api::enums::v1::{EventType, WorkflowExecutionStatus};
use perdure_sim::{NAMESPACE_ID, Node, Options, Script};
use perdure_types::{ChainKey, Seq, ShardId, Timestamp};
use tokio::time::Instant;

fn options(seed: u64) -> Options {
    let mut options = Options::default();
    options.config.seed = Some(seed);
    options.config.flush_interval = Duration::from_secs(1);
    options
}

async fn node(store: &Arc<dyn Store>, options: Options) -> Node {
    Node::start(store.clone(), options).await.expect("starts")
}

fn simulated() -> (Simulated, Arc<dyn Store>) {
    let store = Simulated::reliable();
    (store.clone(), Arc::new(store))
}

fn later(mut options: Options, by: Duration) -> Options {
    options.start = Timestamp(options.start.0 + by.as_nanos() as i64);
    options
}

async fn log_rows(store: &dyn Store) -> usize {
    let mut rows = 0;
    for (id, _) in store.list_sessions().await.expect("sessions") {
        for segment in 0..1000 {
            rows += store.read_log(id, segment, Seq(0), usize::MAX).await.expect("log").len();
        }
    }
    rows
}

#[tokio::test(start_paused = true)]
async fn timers_fire_after_a_crash_and_after_a_stop() {
    for graceful in [false, true] {
        let (_, store) = simulated();
        let mut settings = options(1);
        settings.script = Script { sleep: Duration::from_secs(3600), ..Script::default() };
        let first = node(&store, settings.clone()).await;
        let run = first.client().start("w", "sleep").await.expect("starts");
        // Long enough to be in the tables.
        tokio::time::sleep(Duration::from_secs(60)).await;
        if graceful {
            first.stop().await
        } else {
            first.crash().await
        }
        settings.config.seed = Some(2);
        let second = node(&store, later(settings, Duration::from_secs(120))).await;
        let client = second.client();
        let before = tokio::time::Instant::now();
        let close = client.close_event("w", &run).await.expect("closes");
        assert_eq!(close.event_type(), EventType::WorkflowExecutionCompleted);
        let waited = before.elapsed().as_secs();
        assert!((3300..3600).contains(&waited), "waited {waited} s of an hour");
    }
}

#[tokio::test(start_paused = true)]
async fn cold_workflows_leave_memory_and_come_back() {
    let (sim, store) = simulated();
    let mut settings = options(1);
    settings.script = Script { sleep: Duration::from_secs(3600), signals: 1 };
    // Nothing fits: every clean chain is evicted at once.
    settings.config.cache_bytes = 1;
    settings.config.wakeups_ahead = 4;
    let node = node(&store, settings).await;
    let client = node.client();
    let mut runs = Vec::new();
    for i in 0..50 {
        runs.push(client.start(&format!("sleep{i}"), "sleep").await.expect("starts"));
        client.start(&format!("signal{i}"), "signals").await.expect("starts");
    }
    tokio::time::sleep(Duration::from_secs(100)).await;
    let reads = sim.count(Op::Read);
    for i in 0..50 {
        client.signal(&format!("signal{i}"), "s", "1").await.expect("signals");
        client.close_event(&format!("signal{i}"), "").await.expect("closes");
    }
    assert!(sim.count(Op::Read) > reads + 100, "they were read from the store");
    for (i, run) in runs.iter().enumerate() {
        let close = client.close_event(&format!("sleep{i}"), run).await.expect("closes");
        assert_eq!(close.event_type(), EventType::WorkflowExecutionCompleted);
    }
}

#[tokio::test(start_paused = true)]
async fn sleeping_workflows_wake_by_their_rows_alone() {
    let (_, store) = simulated();
    let mut settings = options(1);
    settings.script = Script { sleep: Duration::from_secs(600), ..Script::default() };
    settings.config.cache_bytes = 1;
    settings.config.wakeups_ahead = 4;
    let node = node(&store, settings).await;
    let client = node.client();
    for i in 0..100 {
        client.start(&format!("w{i}"), "sleep").await.expect("starts");
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    // Nobody asks for them until they are done.
    tokio::time::sleep(Duration::from_secs(700)).await;
    for i in 0..100 {
        let id = format!("w{i}");
        assert_eq!(client.status(&id, "").await.expect("known"), WorkflowExecutionStatus::Completed, "{id}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_log_is_truncated_and_a_stop_leaves_nothing_to_replay() {
    let (_, store) = simulated();
    let mut settings = options(1);
    settings.config.segment_bytes = 8 << 10;
    let first = node(&store, settings.clone()).await;
    let client = first.client();
    for i in 0..200 {
        client.start(&format!("w{i}"), "complete").await.expect("starts");
    }
    let before = log_rows(&*store).await;
    assert!(before > 100, "{before} rows");
    tokio::time::sleep(Duration::from_secs(30)).await;
    let after = log_rows(&*store).await;
    assert!(after * 4 < before, "{before} rows became {after}");
    client.start("last", "complete").await.expect("starts");
    first.stop().await;
    let (id, session) = store.list_sessions().await.expect("sessions").pop().expect("one session");
    let SessionState::Sealed(end) = session.state else { panic!("{id} is {:?}", session.state) };
    assert!(session.base > end, "base {:?} end {end:?}", session.base);
    settings.config.seed = Some(2);
    let second = node(&store, settings).await;
    let client = second.client();
    assert_eq!(client.status("last", "").await.expect("known"), WorkflowExecutionStatus::Completed);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let sessions = store.list_sessions().await.expect("sessions");
    assert_eq!(sessions.len(), 1, "the old session is gone: {sessions:?}");
    for (_, row) in store.list_shards().await.expect("shards") {
        assert_eq!(row.sources.len(), 1, "{row:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn old_sources_are_dropped_once_they_are_materialized() {
    let (_, store) = simulated();
    for seed in 1..6 {
        let node = node(&store, options(seed)).await;
        let client = node.client();
        client.start("w", "signals").await.expect("starts");
        client.start(&format!("w{seed}"), "forever").await.expect("starts");
        if seed == 5 {
            tokio::time::sleep(Duration::from_secs(30)).await;
            assert_eq!(store.list_sessions().await.expect("sessions").len(), 1);
        }
        node.crash().await;
    }
    let node = node(&store, options(9)).await;
    for seed in 1..6 {
        let status = node.client().status(&format!("w{seed}"), "").await.expect("known");
        assert_eq!(status, WorkflowExecutionStatus::Running);
    }
}

#[tokio::test(start_paused = true)]
async fn closed_runs_pass_away_after_their_retention() {
    let (_, store) = simulated();
    let mut settings = options(1);
    settings.retention = perdure_types::Duration::from_secs(3600);
    let node = node(&store, settings).await;
    let client = node.client();
    let run = client.start("w", "complete").await.expect("starts");
    client.close_event("w", &run).await.expect("closes");
    tokio::time::sleep(Duration::from_secs(3000)).await;
    assert_eq!(client.status("w", &run).await.expect("known"), WorkflowExecutionStatus::Completed);
    tokio::time::sleep(Duration::from_secs(1000)).await;
    client.status("w", &run).await.expect_err("gone");
    client.history("w", &run, 0).await.expect_err("gone");
    let key = ChainKey::new(NAMESPACE_ID, "w");
    assert!(store.read_head(&key).await.expect("reads").is_none());
    assert!(store.read_run(&key, &run).await.expect("reads").is_none());
    assert!(store.read_history(&key, &run, 1, 100, 1000, false).await.expect("reads").is_empty());
    for shard in 0..4 {
        assert!(store.read_wakeups(ShardId(shard), None, Timestamp::MAX, 10).await.expect("reads").is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn a_fenced_node_acknowledges_nothing_and_begins_again() {
    let (sim, store) = simulated();
    let node = node(&store, options(1)).await;
    let client = node.client();
    client.start("before", "forever").await.expect("starts");
    let (id, row) = store.list_sessions().await.expect("sessions").pop().expect("one session");
    // The call reaches the log before the fence, its coverage does not.
    sim.pause();
    let start = tokio::spawn({
        let client = client.clone();
        async move { client.start("during", "forever").await }
    });
    tokio::task::yield_now().await;
    sim.resume();
    let fenced = perdure_persistence::SessionRow { state: SessionState::Fenced, ..row.clone() };
    store.cas_session(id, Some(row), fenced).await.expect("fences");
    let error = match start.await.expect("joins") {
        Err(error) => error,
        // It was covered before the fence after all: then the next one is not.
        Ok(_) => client.start("after", "forever").await.expect_err("fenced"),
    };
    assert_eq!(error.grpc_code(), perdure_proto::Code::Unavailable);
    let mut tries = 0;
    while client.status("before", "").await.is_err() {
        tokio::time::sleep(Duration::from_millis(20)).await;
        tries += 1;
        assert!(tries < 1000, "the node never serves again");
    }
    let sessions = store.list_sessions().await.expect("sessions");
    assert!(sessions.iter().any(|(other, row)| *other != id && row.state == SessionState::Live));
    client.start("again", "forever").await.expect("starts");
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_ends_serving() {
    let (sim, store) = simulated();
    let node = node(&store, options(1)).await;
    let client = node.client();
    client.start("before", "forever").await.expect("starts");
    tokio::time::sleep(Duration::from_secs(10)).await;
    sim.inject(Op::Append, Failure::DiskFull, 1);
    let error = client.start("w", "forever").await.expect_err("refused");
    assert_eq!(error.grpc_code(), perdure_proto::Code::Unavailable);
    node.ended().await;
    let error = client.status("before", "").await.expect_err("not served");
    assert_eq!(error.grpc_code(), perdure_proto::Code::Unavailable);
}

/// Clients hear that the store is out of reach, in place of waiting for it; when it is back, all goes on.
#[tokio::test(start_paused = true)]
async fn calls_are_refused_while_the_store_is_silent() {
    for is_frozen in [true, false] {
        let (sim, store) = simulated();
        let node = node(&store, options(1)).await;
        let client = node.client();
        client.start("before", "forever").await.expect("starts");
        if is_frozen {
            sim.pause();
        } else {
            sim.take_down(&[0, 1]);
        }
        let begun = Instant::now();
        let error = client.start("during", "forever").await.expect_err("no answer of the store");
        assert_eq!(error.grpc_code(), perdure_proto::Code::Unavailable, "{error}");
        assert!(client.status("before", "").await.expect_err("no answer of the store").is_store_silent());
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
        let begun = Instant::now();
        assert!(client.status("before", "").await.expect_err("known to be silent").is_store_silent());
        assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
        if is_frozen {
            sim.resume();
        } else {
            sim.take_down(&[]);
        }
        // A start that was under way all the time is not done twice.
        let mut run = client.start("during", "forever").await;
        while run.as_ref().is_err_and(|error| error.grpc_code() == perdure_proto::Code::Unavailable) {
            tokio::time::sleep(Duration::from_millis(100)).await;
            run = client.start("during", "forever").await;
        }
        assert_eq!(client.start("during", "forever").await.expect("starts"), run.expect("starts"));
        assert_eq!(client.status("before", "").await.expect("known"), WorkflowExecutionStatus::Running);
        node.crash().await;
    }
}

/// So does one who asks for what is not in memory: nothing is on its way to the log.
#[tokio::test(start_paused = true)]
async fn readers_hear_of_a_silent_store_too() {
    let (sim, store) = simulated();
    let mut settings = options(1);
    settings.config.cache_bytes = 0;
    let node = node(&store, settings).await;
    let client = node.client();
    client.start("cold", "forever").await.expect("starts");
    tokio::time::sleep(Duration::from_secs(60)).await;
    sim.pause();
    let begun = Instant::now();
    assert!(client.status("cold", "").await.expect_err("no answer of the store").is_store_silent());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    sim.resume();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(client.status("cold", "").await.expect("known"), WorkflowExecutionStatus::Running);
}

/// A crash leaves tasks of the node to end by themselves, and with them the lock of the directory.
async fn open_embedded(directory: &std::path::Path) -> Arc<dyn Store> {
    for _ in 0..1000 {
        match Embedded::open(&Config::new(directory)) {
            Ok(store) => return Arc::new(store),
            Err(OpenError::Locked { .. }) => tokio::time::sleep(Duration::from_millis(10)).await,
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the directory stays locked");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_store_survives_a_crash_and_a_stop() {
    let directory = tempfile::tempdir().expect("directory");
    let mut runs = Vec::<(String, String)>::new();
    for seed in 1..5_u64 {
        let store = open_embedded(directory.path()).await;
        let mut settings = options(seed);
        settings.slots = 64;
        settings.config.flush_interval = Duration::from_millis(100);
        let node = node(&store, settings).await;
        let client = node.client();
        for (id, run) in &runs {
            assert_eq!(&client.start(id, "signals").await.expect("the same run"), run);
        }
        let mut starts = tokio::task::JoinSet::new();
        for i in 0..50 {
            let client = client.clone();
            starts.spawn(async move {
                let id = format!("w{seed}-{i}");
                let run = client.start(&id, "signals").await.expect("starts");
                client.signal(&id, "s", "1").await.expect("signals");
                (id, run)
            });
        }
        runs.extend(starts.join_all().await);
        if seed % 2 == 0 { node.stop().await } else { node.crash().await }
    }
    let store = open_embedded(directory.path()).await;
    let mut settings = options(9);
    settings.slots = 64;
    let node = node(&store, settings).await;
    let client = node.client();
    for (id, run) in &runs {
        for request in ["1", "2", "3"] {
            client.signal(id, "s", request).await.expect("signals");
        }
        client.close_event(id, run).await.expect("closes");
        let events = client.history(id, run, 0).await.expect("history");
        let signals = events.iter().filter(|e| e.event_type() == EventType::WorkflowExecutionSignaled).count();
        assert_eq!(signals, 3, "{id}");
    }
    node.stop().await;
}
