//! Seeds of the simulation. `SIM_SEED=n` runs one; `SIM_SEEDS=n` runs so many, `SIM_LOG=1` shows what nodes log.

use perdure_sim::simulation::{Plan, Report, run};

fn simulate(seed: u64) -> Report {
    simulate_plan(Plan::new(seed))
}

fn simulate_plan(plan: Plan) -> Report {
    if std::env::var_os("SIM_LOG").is_some() {
        let _ = tracing_subscriber::fmt()
            .with_env_filter("perdure_shard=info,perdure_sim=debug")
            .with_test_writer()
            .try_init();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("runtime").block_on(run(plan))
}

fn check(seed: u64) {
    let report = simulate(seed);
    assert!(report.violations.is_empty(), "seed {seed}: {:#?}\n{:#?}", report.violations, report.trace);
    assert!(report.acknowledged > 20, "seed {seed} acknowledged only {}", report.acknowledged);
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    match number("SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SIM_SEEDS").unwrap_or(30),
    }
}

#[test]
fn what_is_acknowledged_survives() {
    for seed in seeds() {
        check(seed);
    }
}

#[test]
fn what_is_acknowledged_survives_rough_times() {
    for seed in seeds().take(10) {
        let report = simulate_plan(Plan::rough(seed));
        assert!(report.violations.is_empty(), "seed {seed}: {:#?}\n{:#?}", report.violations, report.trace);
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [3, 17] {
        assert_eq!(simulate(seed), simulate(seed), "seed {seed}");
    }
}
