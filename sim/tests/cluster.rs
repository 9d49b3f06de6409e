//! Seeds of the cluster's simulation. `SIM_SEED=n` runs one; `SIM_SEEDS=n` runs so many, `SIM_LOG=1` shows what nodes log.

use perdure_sim::{
    cluster::{run, run_cuts},
    simulation::{Plan, Report},
};

fn simulate(plan: Plan) -> Report {
    if std::env::var_os("SIM_LOG").is_some() {
        let _ = tracing_subscriber::fmt()
            .with_env_filter("perdure_shard=debug,perdure_sim=debug")
            .with_test_writer()
            .try_init();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("runtime").block_on(run(plan))
}

fn check(plan: Plan) {
    let seed = plan.seed;
    let report = simulate(plan);
    assert!(report.violations.is_empty(), "seed {seed}: {:#?}\n{:#?}", report.violations, report.trace);
    assert!(report.acknowledged > 10, "seed {seed} acknowledged only {}", report.acknowledged);
}

fn seeds(most: u64) -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIM_SEEDS").unwrap_or(most),
    }
}

#[test]
fn what_is_acknowledged_survives_moves() {
    for seed in seeds(20) {
        check(Plan::cluster(seed));
    }
}

#[test]
fn what_is_acknowledged_survives_moves_over_a_good_store() {
    for seed in seeds(20) {
        check(Plan::calm_cluster(seed));
    }
}

/// From the store, and from calls, while gossip goes on: the others take over, and the node comes back by itself.
#[test]
fn shards_of_a_node_that_is_cut_off_are_served_by_others() {
    for seed in seeds(6) {
        for plan in [Plan::calm_cluster(seed), Plan::cluster(seed)] {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
            let report = runtime.expect("runtime").block_on(run_cuts(plan));
            assert!(report.violations.is_empty(), "seed {seed}: {:#?}\n{:#?}", report.violations, report.trace);
            assert!(report.acknowledged > 10, "seed {seed} acknowledged only {}", report.acknowledged);
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [2, 11] {
        assert_eq!(simulate(Plan::cluster(seed)), simulate(Plan::cluster(seed)), "seed {seed}");
    }
}
