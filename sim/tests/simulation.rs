//! Seeds of the simulation. `SIM_SEED=n` runs one; `SIM_SEEDS=n` runs so many more than usual.

use perdure_sim::simulation::{Plan, Report, run};

fn simulate(seed: u64) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("runtime").block_on(run(Plan::new(seed)))
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
fn the_same_seed_gives_the_same_trace() {
    for seed in [3, 17] {
        assert_eq!(simulate(seed), simulate(seed), "seed {seed}");
    }
}
