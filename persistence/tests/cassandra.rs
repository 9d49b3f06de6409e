//! The suite over a real Cassandra, and what only a real one can show.
//!
//! Needs `PERDURE_TEST_CASSANDRA_SEEDS` (`cargo xtask cassandra up` prints them); without it the tests say so and pass.
//! `PERDURE_TEST_CASSANDRA_REPLICAS` is the replication factor, 1 if unset.

#![allow(clippy::disallowed_methods)] // What a real Cassandra writes is stamped with its clock, so tests read theirs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::join_all;
use perdure_persistence::{
    Cas, HeadRow, HistoryRow, LogRow, RunRow, SessionRow, SessionState, StampedWrite, Store, StoreError, TableWrite,
    Wakeup,
    cassandra::{CassandraConfig, CassandraStore, ConnectError, apply_schema, render_schema},
    conformance,
};
use perdure_types::{ChainKey, Epoch, Position, Seq, SessionId, ShardId, Timestamp};
use scylla::client::{session::Session, session_builder::SessionBuilder};
use uuid::Uuid;

/// Settings for a keyspace that no other test has; `None`: there is no Cassandra to test with.
fn config(test: &str) -> Option<CassandraConfig> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let Ok(seeds) = std::env::var("PERDURE_TEST_CASSANDRA_SEEDS") else {
        eprintln!("SKIPPED: {test} needs PERDURE_TEST_CASSANDRA_SEEDS (cargo xtask cassandra up)");
        return None;
    };
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let _ = tracing_subscriber::fmt().with_env_filter("warn,scylla=off").try_init();
    Some(CassandraConfig {
        seeds: seeds.split(',').map(str::to_owned).collect(),
        keyspace: format!("t{}_{number}", std::process::id()),
        replication_factor: std::env::var("PERDURE_TEST_CASSANDRA_REPLICAS")
            .map_or(1, |n| n.parse().expect("a number")),
        ..CassandraConfig::default()
    })
}

/// For what is done to a keyspace behind the store's back.
async fn raw(config: &CassandraConfig) -> Session {
    let with_port = |seed: &String| if seed.contains(':') { seed.clone() } else { format!("{seed}:{}", config.port) };
    let seeds = config.seeds.iter().map(with_port);
    SessionBuilder::new().known_nodes(seeds).build().await.expect("connects")
}

async fn run(config: &CassandraConfig, statements: &[String]) {
    let session = raw(config).await;
    for statement in statements {
        session.query_unpaged(statement.as_str(), ()).await.expect("runs");
    }
}

async fn drop_keyspace(config: &CassandraConfig) {
    run(config, &[format!("DROP KEYSPACE IF EXISTS {}", config.keyspace)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn conformance() {
    if config("conformance").is_none() {
        return;
    }
    let used = std::sync::Mutex::new(Vec::new());
    // A small Cassandra has no memory for the tables of all checks at once.
    let drop_used = async || {
        let used: Vec<CassandraConfig> = used.lock().expect("not poisoned").drain(..).collect();
        for config in used {
            drop_keyspace(&config).await;
        }
    };
    conformance::run(async || {
        drop_used().await;
        let config = config("conformance").expect("checked");
        used.lock().expect("not poisoned").push(config.clone());
        CassandraStore::connect(config).await.expect("connects")
    })
    .await;
    drop_used().await;
}

/// All nodes start at once, on nothing: one schema comes out, and all can use it.
#[tokio::test(flavor = "multi_thread")]
async fn many_create_the_schema_at_once() {
    let Some(config) = config("many_create_the_schema_at_once") else { return };
    let stores = join_all((0..6).map(|_| CassandraStore::connect(config.clone()))).await;
    let stores: Vec<_> = stores.into_iter().map(|store| store.expect("connects")).collect();
    let id = SessionId(Uuid::from_u128(1));
    let live = SessionRow { state: SessionState::Live, base: Seq(1), base_segment: 0 };
    let created = join_all(stores.iter().map(|store| store.cas_session(id, None, live.clone()))).await;
    let applied = created.iter().filter(|outcome| matches!(outcome, Ok(Cas::Applied))).count();
    assert_eq!(applied, 1, "{created:?}");
    for store in &stores {
        assert_eq!(store.read_session(id).await, Ok(Some(live.clone())));
    }
    apply_schema(&config).await.expect("again is harmless");
    drop_keyspace(&config).await;
}

/// The text that `perdure schema show` prints makes a keyspace that the server takes as it is.
#[tokio::test(flavor = "multi_thread")]
async fn the_rendered_schema_is_the_schema() {
    let Some(config) = config("the_rendered_schema_is_the_schema") else { return };
    let text = render_schema(&config);
    let statements = text.lines().filter(|line| !line.starts_with("--")).collect::<Vec<_>>().join("\n");
    let statements: Vec<String> =
        statements.split(';').map(str::trim).filter(|s| !s.is_empty()).map(String::from).collect();
    run(&config, &statements).await;
    let store = CassandraStore::connect(config.clone()).await.expect("connects");
    assert_eq!(store.list_sessions().await, Ok(Vec::new()));
    drop_keyspace(&config).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unsafe_keyspaces_are_refused() {
    let Some(config) = config("unsafe_keyspaces_are_refused") else { return };
    let (ks, replicas) = (&config.keyspace, config.replication_factor);
    apply_schema(&config).await.expect("connects");
    let simple = |more: &str| {
        format!(
            "ALTER KEYSPACE {ks} WITH replication = {{'class': 'SimpleStrategy', 'replication_factor': {replicas}}} {more}"
        )
    };
    let refusal = async |config: &CassandraConfig, statement: String| {
        run(config, &[statement]).await;
        match CassandraStore::connect(config.clone()).await {
            Err(error) => error.to_string(),
            Ok(_) => "accepted".into(),
        }
    };
    let local = CassandraConfig { local_datacenter: Some("datacenter1".into()), ..config.clone() };
    assert!(refusal(&config, simple("AND durable_writes = false")).await.contains("durable_writes"));
    assert!(refusal(&local, simple("AND durable_writes = true")).await.contains("SimpleStrategy"));
    assert_eq!(refusal(&config, simple("AND durable_writes = true")).await, "accepted");
    let network = format!(
        "ALTER KEYSPACE {ks} WITH replication = {{'class': 'NetworkTopologyStrategy', 'datacenter1': {replicas}}}"
    );
    assert_eq!(refusal(&local, network).await, "accepted");
    let sessions = |option: &str| format!("ALTER TABLE {ks}.sessions WITH {option}");
    assert!(refusal(&config, sessions("read_repair = 'NONE'")).await.contains("read_repair"));
    let restored = sessions("read_repair = 'BLOCKING' AND default_time_to_live = 60");
    assert!(refusal(&config, restored).await.contains("default_time_to_live"));
    assert_eq!(refusal(&config, sessions("default_time_to_live = 0")).await, "accepted");
    let newer = format!("UPDATE {ks}.schema_state SET version = 999 WHERE name = 'version' IF version > 0");
    assert!(refusal(&config, newer).await.contains("schema version 999"));
    drop_keyspace(&config).await;
}

#[tokio::test]
async fn nothing_to_connect_to_is_said_and_does_not_hang() {
    let started = Instant::now();
    let unreachable = CassandraConfig {
        // Reserved for documentation: nobody answers, or somebody says that it cannot be reached.
        seeds: vec!["127.0.0.1:1".into()],
        connect_timeout_ms: 1500,
        ..CassandraConfig::default()
    };
    let error = CassandraStore::connect(unreachable).await.expect_err("nobody listens");
    assert!(matches!(error, ConnectError::Unreachable { .. }), "{error}");
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(20));
    let nameless = CassandraConfig { keyspace: "no-such".into(), ..CassandraConfig::default() };
    assert!(matches!(CassandraStore::connect(nameless).await, Err(ConnectError::Config(_))));
    let ca = Some("/nonexistent/ca.pem".into());
    let tls = Some(perdure_persistence::cassandra::CassandraTls { ca, ..Default::default() });
    let error = CassandraStore::connect(CassandraConfig { tls, ..CassandraConfig::default() }).await;
    assert!(matches!(error, Err(ConnectError::Tls(_))));
}

fn position(epoch: u64, seq: u64) -> Position {
    Position { epoch: Epoch(epoch), seq: Seq(seq) }
}

fn stamped(stamp: Position, write: TableWrite) -> Vec<StampedWrite> {
    vec![StampedWrite { stamp, write }]
}

/// M1 and M3 against writes that come late: whatever the order, the newest stamp wins, deletions too.
#[tokio::test(flavor = "multi_thread")]
async fn late_writes_change_nothing() {
    let Some(config) = config("late_writes_change_nothing") else { return };
    let store = CassandraStore::connect(config.clone()).await.expect("connects");
    let chain = ChainKey::new("n", "w");
    let head = HeadRow { head: Bytes::from_static(b"late"), applied: position(2, 9) };
    let row = RunRow { snapshot: Bytes::from_static(b"late"), applied: position(2, 9), wake_at: None };
    let history = HistoryRow { first_event_id: 1, last_event_id: 2, events: Bytes::from_static(b"late") };
    let wakeup = Wakeup { at: Timestamp(i64::MAX / 2), chain: chain.clone(), run_id: "r".into() };
    let run_id: Arc<str> = "r".into();
    let deletions = [
        TableWrite::DeleteHead { chain: chain.clone() },
        TableWrite::DeleteRun { chain: chain.clone(), run_id: run_id.clone() },
        TableWrite::DeleteWakeup { shard: ShardId(1), wakeup: wakeup.clone() },
    ];
    let puts = [
        TableWrite::PutHead { chain: chain.clone(), row: head },
        TableWrite::PutRun { chain: chain.clone(), run_id: run_id.clone(), row },
        TableWrite::PutHistory { chain: chain.clone(), run_id: run_id.clone(), row: history },
        TableWrite::PutWakeup { shard: ShardId(1), wakeup },
    ];
    for write in deletions {
        store.write(stamped(position(3, 1), write)).await.expect("written");
    }
    for write in puts {
        // Of the epoch before, though with a higher seq.
        store.write(stamped(position(2, 999), write)).await.expect("written");
    }
    assert_eq!(store.read_head(&chain).await, Ok(None));
    assert_eq!(store.read_run(&chain, "r").await, Ok(None));
    assert_eq!(store.read_history(&chain, "r", 1, i64::MAX, usize::MAX, false).await, Ok(Vec::new()));
    assert_eq!(store.read_wakeups(ShardId(1), None, Timestamp::MAX, 10).await, Ok(Vec::new()));

    let session = SessionId(Uuid::from_u128(7));
    let log_row = |seq| LogRow { segment: 0, seq: Seq(seq), acknowledged: Seq(0), batch: Bytes::from_static(b"row") };
    // Deleted before it was ever written: the insert is the late one.
    store.delete_segment(session, 0).await.expect("deleted");
    store.append(session, log_row(1)).await.expect("acknowledged");
    assert_eq!(store.read_log(session, 0, Seq(0), usize::MAX).await, Ok(Vec::new()));
    drop_keyspace(&config).await;
}

/// A row whose bytes are not those that were written is told, and never taken for an end of the log.
#[tokio::test(flavor = "multi_thread")]
async fn damaged_log_rows_are_told() {
    let Some(config) = config("damaged_log_rows_are_told") else { return };
    let store = CassandraStore::connect(config.clone()).await.expect("connects");
    let session = SessionId(Uuid::from_u128(7));
    let row = LogRow { segment: 0, seq: Seq(1), acknowledged: Seq(0), batch: Bytes::from_static(b"row") };
    store.append(session, row).await.expect("acknowledged");
    let ks = &config.keyspace;
    let damage = format!(
        "UPDATE {ks}.node_log USING TIMESTAMP 1 SET records = 0x72ff77 WHERE session_id = {session} AND segment = 0 AND seq = 1"
    );
    run(&config, &[damage]).await;
    assert!(matches!(store.read_log(session, 0, Seq(1), usize::MAX).await, Err(StoreError::Corrupt(_))));
    drop_keyspace(&config).await;
}

/// The floor under the wake-ups rises over what is dead, never over what is not, whoever owns the shard.
#[tokio::test(flavor = "multi_thread")]
async fn no_wakeup_is_lost_under_the_floor() {
    let Some(config) = config("no_wakeup_is_lost_under_the_floor") else { return };
    const HOUR: i64 = 3_600_000_000_000;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos() as i64;
    let shard = ShardId(3);
    let wakeup = |hours_ago: i64, name: &str| Wakeup {
        at: Timestamp(now - hours_ago * HOUR),
        chain: ChainKey::new("n", name),
        run_id: "r".into(),
    };
    let put = |w: &Wakeup| TableWrite::PutWakeup { shard, wakeup: w.clone() };
    let delete = |w: &Wakeup| TableWrite::DeleteWakeup { shard, wakeup: w.clone() };
    let (one, two) = (
        CassandraStore::connect(config.clone()).await.expect("connects"),
        CassandraStore::connect(config.clone()).await.expect("connects"),
    );
    let read = async |store: &CassandraStore| store.read_wakeups(shard, None, Timestamp::MAX, 100).await.expect("read");
    let (a, b, c) = (wakeup(9, "a"), wakeup(5, "b"), wakeup(1, "c"));
    for w in [&a, &b, &c] {
        one.write(stamped(position(1, 1), put(w))).await.expect("written");
    }
    // The floor may rise to b, and does not pass it.
    one.write(stamped(position(1, 2), delete(&a))).await.expect("written");
    assert_eq!(read(&one).await, [b.clone(), c.clone()]);
    // A row that is due before the floor is still there, first, and can be deleted.
    let early = wakeup(7, "early");
    one.write(stamped(position(1, 3), put(&early))).await.expect("written");
    assert_eq!(read(&one).await, [early.clone(), b.clone(), c.clone()]);
    // Another owner, which knows nothing of this, raises it further.
    for w in [&early, &b, &c] {
        two.write(stamped(position(2, 1), delete(w))).await.expect("written");
    }
    assert_eq!(read(&two).await, []);
    // The first owner is none any more: what it does to the floor must not hide what the second puts.
    let overdue = wakeup(8, "overdue");
    two.write(stamped(position(2, 2), put(&overdue))).await.expect("written");
    one.write(stamped(position(1, 4), delete(&c))).await.expect("written");
    assert_eq!(read(&two).await, std::slice::from_ref(&overdue));
    // Back at the first, in a new epoch: its old notion of the floor is not used.
    let again = wakeup(6, "again");
    one.write(stamped(position(3, 1), put(&again))).await.expect("written");
    assert_eq!(read(&one).await, [overdue.clone(), again.clone()]);
    for w in [&overdue, &again] {
        one.write(stamped(position(3, 2), delete(w))).await.expect("written");
    }
    assert_eq!(read(&two).await, []);
    drop_keyspace(&config).await;
}

/// What Cassandra counts of deleted rows that its reads passed over, since the keyspace was made.
async fn tombstones_read(config: &CassandraConfig, table: &str) -> f64 {
    let text = "SELECT max FROM system_views.tombstones_per_read WHERE keyspace_name = ? AND table_name = ?";
    let rows = raw(config).await.query_unpaged(text, (&config.keyspace, table)).await.expect("read");
    let rows = rows.into_rows_result().expect("rows");
    rows.maybe_first_row::<(f64,)>().expect("a number").map_or(0.0, |(max,)| max)
}

/// Retention and truncation leave nothing behind that a hot path would have to pass over: what is deleted is gone whole,
/// and what is read is read behind it.
#[tokio::test(flavor = "multi_thread")]
async fn hot_paths_read_no_deleted_rows() {
    let Some(config) = config("hot_paths_read_no_deleted_rows") else { return };
    let store = CassandraStore::connect(config.clone()).await.expect("connects");
    const RUNS: i64 = 50;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_nanos() as i64;
    let shard = ShardId(1);
    // All runs of one workflow id, the case that is hardest: their rows share a partition.
    let chain = ChainKey::new("n", "cron");
    let run_id = |i: i64| Arc::<str>::from(format!("run-{i:03}"));
    let wakeup = |i: i64| Wakeup { at: Timestamp(now + i), chain: chain.clone(), run_id: run_id(i) };
    let row =
        |i: i64| RunRow { snapshot: Bytes::from_static(b"run"), applied: position(1, 1), wake_at: Some(wakeup(i).at) };
    let events = |i: i64| HistoryRow { first_event_id: i, last_event_id: i, events: Bytes::from_static(b"event") };
    let mut writes = Vec::new();
    let head = HeadRow { head: Bytes::from_static(b"head"), applied: position(1, 1) };
    writes.push(TableWrite::PutHead { chain: chain.clone(), row: head.clone() });
    for i in 0..RUNS {
        writes.push(TableWrite::PutRun { chain: chain.clone(), run_id: run_id(i), row: row(i) });
        writes.extend((1..4).map(|e| TableWrite::PutHistory {
            chain: chain.clone(),
            run_id: run_id(i),
            row: events(e),
        }));
        writes.push(TableWrite::PutWakeup { shard, wakeup: wakeup(i) });
    }
    let at = |seq: u64, writes: Vec<TableWrite>| {
        writes.into_iter().map(move |write| StampedWrite { stamp: position(1, seq), write }).collect::<Vec<_>>()
    };
    store.write(at(1, writes)).await.expect("written");
    // The shard reads its wake-ups in pages, and deletes what was due.
    let mut after: Option<Wakeup> = None;
    loop {
        let page = store.read_wakeups(shard, after.as_ref(), Timestamp::MAX, 7).await.expect("read");
        let Some(last) = page.last() else { break };
        after = Some(last.clone());
        let mut writes = Vec::new();
        for wakeup in page {
            // The last run stays.
            if wakeup.at.0 < now + RUNS - 1 {
                writes.push(TableWrite::DeleteRun { chain: chain.clone(), run_id: wakeup.run_id.clone() });
                writes.push(TableWrite::DeleteWakeup { shard, wakeup });
            }
        }
        store.write(at(2, writes)).await.expect("written");
    }
    assert_eq!(store.read_head(&chain).await, Ok(Some(head)));
    for i in 0..RUNS {
        let expected = (i == RUNS - 1).then(|| row(i));
        assert_eq!(store.read_run(&chain, &run_id(i)).await, Ok(expected), "run {i}");
        let rows = store.read_history(&chain, &run_id(i), 1, i64::MAX, usize::MAX, false).await.expect("read");
        assert_eq!(rows.len(), if i == RUNS - 1 { 3 } else { 0 }, "run {i}");
    }
    let session = SessionId(Uuid::from_u128(9));
    for seq in 1..=40 {
        let batch = Bytes::from_static(b"row");
        let row = LogRow { segment: seq as u32 / 10, seq: Seq(seq), acknowledged: Seq(0), batch };
        store.append(session, row).await.expect("acknowledged");
    }
    for segment in 0..4 {
        store.delete_segment(session, segment).await.expect("deleted");
        assert_eq!(store.read_log(session, segment, Seq(0), usize::MAX).await, Ok(Vec::new()));
    }
    assert_eq!(store.read_log(session, 4, Seq(0), usize::MAX).await.expect("read").len(), 1);
    // A partition that was deleted whole counts once; so does a row that is read by its full key, or that a page goes on
    // behind.
    for table in ["node_log", "history", "executions", "wakeups", "wakeup_buckets", "sessions", "shards"] {
        assert!(tombstones_read(&config, table).await <= 1.0, "{table}");
    }
    drop_keyspace(&config).await;
}
