//! A node over a real Cassandra: what only that can show. Needs `PERDURE_TEST_CASSANDRA_SEEDS` (`cargo xtask cassandra up` prints
//! them); without it the tests say so and pass.

use std::{sync::Arc, time::Duration};

use perdure_persistence::{
    Store,
    cassandra::{CassandraConfig, CassandraStore},
};
use perdure_proto::Code;
use perdure_sim::{Node, Options, Script};
use scylla::client::{session::Session, session_builder::SessionBuilder};

fn config(test: &str) -> Option<CassandraConfig> {
    let Ok(seeds) = std::env::var("PERDURE_TEST_CASSANDRA_SEEDS") else {
        eprintln!("SKIPPED: {test} needs PERDURE_TEST_CASSANDRA_SEEDS (cargo xtask cassandra up)");
        return None;
    };
    Some(CassandraConfig {
        seeds: seeds.split(',').map(str::to_owned).collect(),
        keyspace: format!("sim{}_{test}", std::process::id()),
        replication_factor: std::env::var("PERDURE_TEST_CASSANDRA_REPLICAS")
            .map_or(1, |n| n.parse().expect("a number")),
        ..CassandraConfig::default()
    })
}

async fn number(session: &Session, text: String) -> f64 {
    let rows = session.query_unpaged(text.as_str(), ()).await.expect(&text).into_rows_result().expect("rows");
    rows.maybe_first_row::<(f64,)>().expect("a number").map_or(0.0, |(number,)| number)
}

async fn rows(session: &Session, keyspace: &str, table: &str) -> i64 {
    let text = format!("SELECT count(*) FROM {keyspace}.{table}");
    let rows = session.query_unpaged(text, ()).await.expect("counts").into_rows_result().expect("rows");
    rows.first_row::<(i64,)>().expect("a count").0
}

/// A closed workflow whose retention has passed is gone from every table, and nobody had to look for it: the only rows that
/// were read were named in full, and no read passed over rows of others that were deleted.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_past_its_retention_is_gone() {
    let Some(config) = config("retention") else { return };
    let keyspace = config.keyspace.clone();
    let seeds: Vec<String> = config.addresses();
    let store = Arc::new(CassandraStore::connect(config).await.expect("connects"));
    let mut options = Options { retention: perdure_types::Duration::from_secs(2), ..Options::default() };
    options.script = Script { sleep: Duration::from_millis(1500), ..Script::default() };
    options.config.flush_interval = Duration::from_millis(300);
    options.config.list_interval = Duration::from_millis(100);
    let node = Node::start(store.clone() as Arc<dyn Store>, options).await.expect("starts");
    let client = node.client();
    const WORKFLOWS: usize = 30;
    // Listed and flushed while they are open, closed later: each has rows of both kinds.
    let mut runs = Vec::new();
    for i in 0..WORKFLOWS {
        let id = format!("w{i}");
        let run = client.start(&id, "sleep").await.expect("starts");
        runs.push((id, run));
    }
    for (id, run) in &runs {
        client.close_event(id, run).await.expect("closes");
    }
    for (id, _) in &runs {
        let mut tries = 0;
        while client.status(id, "").await.map_err(|error| error.grpc_code()) != Err(Code::NotFound) {
            tokio::time::sleep(Duration::from_millis(50)).await;
            tries += 1;
            assert!(tries < 2000, "{id} stays");
        }
    }
    node.stop().await;
    let raw = SessionBuilder::new().known_nodes(seeds).build().await.expect("connects");
    // Before anything else reads: the counts below pass over all that was deleted.
    for table in ["executions", "history", "wakeups", "wakeup_buckets", "sessions", "shards", "node_log"] {
        let text = format!(
            "SELECT max FROM system_views.tombstones_per_read WHERE keyspace_name = '{keyspace}' AND table_name = '{table}'"
        );
        let most = number(&raw, text).await;
        // A search for the first live wake-up passes over those of its bucket and shard, ten minutes, at most.
        let bound = if table == "wakeups" { WORKFLOWS as f64 } else { 1.0 };
        assert!(most <= bound, "{table}: a read passed over {most} deleted rows");
    }
    for table in ["executions", "history", "wakeups", "visibility_rows", "visibility_index", "visibility_ids"] {
        assert_eq!(rows(&raw, &keyspace, table).await, 0, "{table}");
    }
    let counts = store.statement_counts();
    let sent = |kind: &str| counts.iter().find(|(name, _)| *name == kind).map_or(0, |(_, count)| *count);
    assert_eq!(sent("read_visibility"), 0, "lists are written without being read");
    let _ = raw.query_unpaged(format!("DROP KEYSPACE {keyspace}"), ()).await;
}
