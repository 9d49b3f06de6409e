//! `perdure-load chaos`: steady load on a cluster while somebody else kills, freezes and cuts off its nodes; then proof that
//! nothing acknowledged was lost or doubled.
//!
//! Whoever does that says so on the standard input, a line each: the word says what happened (`kill 2`), and the figures are
//! told apart by it. The end of the input, or of `--seconds`, ends the load: what runs is seen through, and checked.

mod check;
#[cfg(test)]
mod check_tests;
mod client;
mod driver;
mod journal;
mod progress;
mod read;
mod report;
mod script;
mod story;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::client::Nodes;
use self::driver::Driver;
use self::journal::Recorder;
use self::progress::Progress;
use self::report::{Happened, Limits, Report};
use self::script::Script;
use self::worker::Worker;

#[derive(Args)]
pub struct Options {
    /// Hosts and ports of the nodes that workers and clients know; each begins with another one
    #[arg(long = "address", value_delimiter = ',', default_value = "127.0.0.1:7233")]
    addresses: Vec<String>,
    #[arg(long, default_value = "default")]
    namespace: String,
    /// Workflows in flight
    #[arg(long, default_value_t = 200)]
    in_flight: u64,
    /// Workers, each with a sticky queue of its own
    #[arg(long, default_value_t = 6)]
    workers: usize,
    /// Polls that a worker keeps open on each queue
    #[arg(long, default_value_t = 5)]
    pollers: usize,
    /// Steps of a workflow
    #[arg(long, default_value_t = 24)]
    steps: u64,
    /// After so many steps it continues as a new run
    #[arg(long, default_value_t = 9)]
    steps_per_run: u64,
    /// What an activity takes
    #[arg(long, default_value_t = 500)]
    step_ms: u64,
    /// Between two signals or updates of one workflow
    #[arg(long, default_value_t = 1500)]
    news_ms: u64,
    /// After this time an activity that was lost on its way is tried again
    #[arg(long, default_value_t = 60)]
    activity_timeout_seconds: i64,
    /// End after this time; else with the standard input
    #[arg(long)]
    seconds: Option<f64>,
    /// How long the last workflows may take once the load has ended
    #[arg(long, default_value_t = 90.0)]
    patience_seconds: f64,
    /// Write the calls to this file, one JSON object a line
    #[arg(long)]
    journal: Option<PathBuf>,
    /// Write the figures as JSON to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// A longer stall of any workflow is a failure
    #[arg(long)]
    at_most_stall_ms: Option<u64>,
    /// As is any call that fails for good
    #[arg(long)]
    no_failed_call: bool,
}

/// What workers and clients of a run share.
pub struct Shared {
    nodes: Arc<Nodes>,
    script: Script,
    step_time: Duration,
    recorder: Recorder,
    progress: Progress,
}

pub async fn run(options: &Options) -> Result<()> {
    let nodes = Nodes::connect(&options.addresses, &options.namespace).await?;
    let name = format!("chaos-{:08x}", unique() as u32);
    let shared = Arc::new(Shared {
        nodes: nodes.clone(),
        script: Script {
            task_queue: name.clone(),
            workflow_type: name,
            steps: options.steps.max(1),
            steps_per_run: options.steps_per_run.max(1),
            activity_timeout_seconds: options.activity_timeout_seconds.max(1),
        },
        step_time: Duration::from_millis(options.step_ms),
        recorder: Recorder::new(),
        progress: Progress::default(),
    });
    let results = Arc::new(AtomicU64::new(0));
    let workers: Vec<Worker> =
        (0..options.workers.max(1)).map(|n| Worker::start(&shared, n, options.pollers.max(1), &results)).collect();
    let driver = Driver::new(shared.clone(), Duration::from_millis(options.news_ms.max(1)));
    let mut clients = JoinSet::new();
    // Not all in step.
    let spread = shared.step_time * u32::try_from(options.steps).unwrap_or(1) / 2;
    for n in 0..options.in_flight {
        clients.spawn(driver.clone().run(spread.mul_f64(n as f64 / options.in_flight as f64)));
    }
    println!("load: {} workflows in flight on {}", options.in_flight, options.addresses.join(", "));
    let begun = Instant::now();
    let happened = listen(options.seconds, &driver).await;
    let ended = Instant::now();

    driver.stop.store(true, Ordering::Relaxed);
    let patience = Duration::from_secs_f64(options.patience_seconds);
    let all = async { while clients.join_next().await.is_some() {} };
    let in_time = tokio::time::timeout(patience, all).await.is_ok();
    if !in_time {
        eprintln!("{} workflows have not closed", clients.len());
    }
    drop(workers);
    // Signals and updates that were under way when their workflow closed.
    tokio::time::sleep(Duration::from_secs(1)).await;

    let calls = shared.recorder.calls();
    if let Some(path) = &options.journal {
        journal::write(&calls, path).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let runs = read::all(&shared, driver.started()).await.context("reading the histories")?;
    for run in runs.iter().filter(|run| run.is_open()) {
        match read::why_open(&shared, run).await {
            Ok(why) => println!("open: {why}"),
            Err(error) => println!("open: {}: {error}", run.workflow_id),
        }
    }
    let violations = check::check(&calls, &runs);
    let report = Report::new(&shared, &driver, begun..ended, &happened, &calls, &runs, &violations);
    report.print();
    if let Some(path) = &options.json {
        report.write(path).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let limits = Limits { stall_ms: options.at_most_stall_ms, no_failed_call: options.no_failed_call };
    match report.verdict(&limits) {
        Ok(line) => {
            println!("{line}");
            Ok(())
        }
        Err(line) => bail!("{line}"),
    }
}

/// Takes note of what happens until the load is to end.
async fn listen(seconds: Option<f64>, driver: &Driver) -> Vec<Happened> {
    let mut happened = Vec::new();
    if let Some(seconds) = seconds {
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        return happened;
    }
    let mut lines = lines_of_input();
    while let Some(line) = lines.recv().await {
        let closed = driver.closed.load(Ordering::Relaxed);
        println!("{line} ({closed} workflows have closed)");
        happened.push(Happened { at: Instant::now(), what: line });
    }
    happened
}

fn lines_of_input() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(16);
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Tells the runs of this program apart on a server that remembers them.
fn unique() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}
