//! The suite over each store.

use perdure_persistence::{
    conformance,
    embedded::{Config, Embedded},
    simulated::{Faults, Simulated},
};

#[tokio::test]
async fn simulated_reliable() {
    conformance::run(async || Simulated::reliable()).await;
}

#[tokio::test]
async fn simulated_three_replicas() {
    conformance::run(async || Simulated::new(1, Faults::none())).await;
}

#[tokio::test]
async fn simulated_with_some_faults() {
    for seed in 0..30 {
        conformance::run_under_faults(async || Simulated::new(seed, Faults::some())).await;
    }
}

#[tokio::test]
async fn simulated_with_many_faults() {
    for seed in 0..30 {
        conformance::run_under_faults(async || Simulated::new(seed, Faults::many())).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_ephemeral() {
    conformance::run(async || Embedded::ephemeral().expect("opens")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn embedded_on_disk() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let next = std::cell::Cell::new(0);
    conformance::run(async || {
        next.set(next.get() + 1);
        Embedded::open(&Config::new(directory.path().join(next.get().to_string()))).expect("opens")
    })
    .await;
}
