//! The suite over a real Cassandra, and what only a real one can show.
//!
//! Needs `PERDURE_TEST_CASSANDRA_SEEDS` (`cargo xtask cassandra up` prints them); without it the tests say so and pass.

use std::sync::atomic::{AtomicU32, Ordering};

use perdure_persistence::{
    cassandra::{CassandraConfig, CassandraStore},
    conformance,
};

/// Settings for a keyspace that no other test has; `None`: there is no Cassandra to test with.
fn config(test: &str) -> Option<CassandraConfig> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let Ok(seeds) = std::env::var("PERDURE_TEST_CASSANDRA_SEEDS") else {
        eprintln!("SKIPPED: {test} needs PERDURE_TEST_CASSANDRA_SEEDS (cargo xtask cassandra up)");
        return None;
    };
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Some(CassandraConfig {
        seeds: seeds.split(',').map(str::to_owned).collect(),
        keyspace: format!("t{}_{number}", std::process::id()),
        ..CassandraConfig::default()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn conformance() {
    let _ = tracing_subscriber::fmt().with_env_filter("warn").try_init();
    if config("conformance").is_none() {
        return;
    }
    conformance::run(async || {
        let config = config("conformance").expect("checked");
        CassandraStore::connect(config).await.expect("connects")
    })
    .await;
}
