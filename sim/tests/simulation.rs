//! Seeds of the simulation. `SIM_SEED=n` is the first one, `SIM_SEEDS=n` says how many; `SIM_LOG=perdure_shard=info`
//! shows what nodes log, `SIM_LOG=perdure_persistence=trace` every operation of the store.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use perdure_sim::simulation::{Plan, Report, run};

fn simulate(plan: Plan) -> Report {
    if std::env::var_os("SIM_LOG").is_some() {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(std::env::var("SIM_LOG").unwrap_or_default())
            .with_test_writer()
            .try_init();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("runtime").block_on(run(plan))
}

/// What many runs came to.
#[derive(Debug, Default)]
struct Total {
    runs: u64,
    simulated: Duration,
    acknowledged: usize,
    periods: usize,
    faults: BTreeMap<&'static str, u64>,
    failures: Vec<String>,
}

impl Total {
    fn add(&mut self, seed: u64, report: Report) {
        self.runs += 1;
        self.simulated += report.simulated;
        self.acknowledged += report.acknowledged;
        self.periods += report.periods;
        for (kind, count) in report.faults {
            *self.faults.entry(kind).or_default() += count;
        }
        if !report.violations.is_empty() {
            self.failures.push(format!("seed {seed}: {:#?}\n{:#?}", report.violations, report.trace));
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok())
}

/// Runs seeds on all cores, each on a runtime of its own, and prints what they came to.
fn simulate_many(name: &str, unless_told: u64, plan: fn(u64) -> Plan) -> Total {
    let first = number("SIM_SEED").unwrap_or(0);
    let end = first + number("SIM_SEEDS").unwrap_or(if first > 0 { 1 } else { unless_told });
    let (next, total, began) = (AtomicU64::new(first), Mutex::new(Total::default()), Instant::now());
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= end {
                        return;
                    }
                    let report = simulate(plan(seed));
                    total.lock().expect("no panic").add(seed, report);
                }
            });
        }
    });
    let total = total.into_inner().expect("no panic");
    let faults: u64 = total.faults.values().sum();
    println!(
        "{name}: {} seeds in {:.1} s: {:.1} simulated hours, {} sessions' worth of nodes, {} acknowledged, {faults} faults: {:?}",
        total.runs,
        began.elapsed().as_secs_f64(),
        total.simulated.as_secs_f64() / 3600.0,
        total.periods,
        total.acknowledged,
        total.faults
    );
    assert!(
        total.failures.is_empty(),
        "{} of {} seeds failed: {}",
        total.failures.len(),
        total.runs,
        total.failures[0]
    );
    total
}

#[test]
fn short_runs_lose_nothing() {
    let total = simulate_many("short runs", 1000, Plan::short);
    // Faults must leave room for work, or nothing is tested.
    assert!(total.acknowledged as u64 > 10 * total.runs, "acknowledged only {}", total.acknowledged);
}

#[test]
fn long_runs_lose_nothing() {
    let total = simulate_many("long runs", 20, Plan::new);
    assert!(total.acknowledged as u64 > 30 * total.runs, "acknowledged only {}", total.acknowledged);
}

#[test]
fn rough_runs_lose_nothing() {
    simulate_many("rough runs", 20, Plan::rough);
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    for seed in [3, 17] {
        assert_eq!(simulate(Plan::new(seed)), simulate(Plan::new(seed)), "seed {seed}");
    }
}
