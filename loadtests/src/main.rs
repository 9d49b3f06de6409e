//! `perdure-load`: measures any Temporal-compatible server from outside.
//!
//! It speaks the worker protocol itself, without an SDK, so that it costs little beside the server that it shares a machine
//! with. What it measures is what a client sees: the time from calling StartWorkflowExecution to seeing the close event.

mod api;
mod chaos;
mod close;
mod commit_path;
mod drive;
mod fsync;
mod lists;
mod process;
mod recovery;
mod report;
mod sleepers;
mod worker;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};

use crate::drive::{Load, Until};
use crate::report::{Report, Row};
use crate::worker::WorkerOptions;
use crate::workload::Workload;

#[derive(Parser)]
#[command(name = "perdure-load", about = "Load against a Temporal-compatible server, measured from outside")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run workloads, one after the other, and report their speed and cost
    Run(Box<RunOptions>),
    /// Time one durable 4 KiB append in a directory: the unit that latencies are stated in
    Fsync {
        #[arg(long, default_value = ".")]
        directory: PathBuf,
    },
    /// Start workflows that sleep for thirty days, and watch what they cost the server
    Sleepers(sleepers::Options),
    /// Fill a namespace with runs, and time lists and counts
    Lists(lists::Options),
    /// Kill a server, and time how long it takes to serve all its workflows again
    Recovery(recovery::Options),
    /// Load a cluster while its nodes come and go, and prove that nothing was lost or doubled
    Chaos(Box<chaos::Options>),
    /// Measure what a durable update costs Cassandra, beside one lightweight transaction each
    CommitPath(commit_path::Options),
    /// Watch processes that have nothing to do
    Idle {
        #[arg(long = "server-pid", value_delimiter = ',', required = true)]
        server_pids: Vec<u32>,
        #[arg(long, default_value_t = 10.0)]
        seconds: f64,
    },
}

#[derive(Args)]
struct RunOptions {
    /// Host and port of the server
    #[arg(long, default_value = "127.0.0.1:7233")]
    address: String,
    #[arg(long, default_value = "default")]
    namespace: String,
    #[arg(long = "workload", value_enum, value_delimiter = ',', default_values = ["one-activity", "ten-sequential"])]
    workloads: Vec<Workload>,
    /// Workflows in flight: a new one starts when one has closed
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 100])]
    concurrency: Vec<usize>,
    /// Length of each measurement
    #[arg(long, default_value_t = 10.0, conflicts_with = "count")]
    seconds: f64,
    /// Workflows of each measurement, in place of a time
    #[arg(long)]
    count: Option<u64>,
    /// Load before each measurement that is not counted
    #[arg(long, default_value_t = 2.0)]
    warmup_seconds: f64,
    /// A workflow that has not closed after this time is an error
    #[arg(long, default_value_t = 60.0)]
    timeout_seconds: f64,
    /// Let the worker have a sticky queue
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set)]
    sticky: bool,
    /// Ask for activities in the answer to the workflow task that schedules them
    #[arg(long)]
    eager_activities: bool,
    /// Polls that the worker keeps open on each queue
    #[arg(long, default_value_t = 5)]
    pollers: usize,
    /// Processes whose CPU time and memory are reported as the server's
    #[arg(long = "server-pid", value_delimiter = ',')]
    server_pids: Vec<u32>,
    /// Measure a durable append in this directory first, and state latencies in it too
    #[arg(long)]
    fsync_directory: Option<PathBuf>,
    /// Write the figures as JSON to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Threads of this program
    #[arg(long, default_value_t = 1)]
    threads: usize,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(options) => run(&options),
        Command::Sleepers(options) => sleepers(&options),
        Command::Lists(options) => runtime(1).and_then(|runtime| runtime.block_on(lists::run(&options))),
        Command::Recovery(options) => runtime(1).and_then(|runtime| runtime.block_on(recovery::run(&options))),
        Command::Chaos(options) => runtime(1).and_then(|runtime| runtime.block_on(chaos::run(&options))),
        Command::Fsync { directory } => fsync::measure(&directory).map(|timing| println!("{timing}")),
        Command::CommitPath(options) => runtime(2).and_then(|runtime| runtime.block_on(commit_path::run(&options))),
        Command::Idle { server_pids, seconds } => idle(&server_pids, seconds),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn idle(server_pids: &[u32], seconds: f64) -> Result<()> {
    let before = process::Usage::of(server_pids)?;
    std::thread::sleep(Duration::from_secs_f64(seconds));
    let usage = process::Usage::of(server_pids)?.since(&before);
    let cpu_percent = usage.cpu_ms as f64 / seconds / 10.0;
    println!("idle for {seconds} s: {cpu_percent:.2} % of a core, RSS {:.1} MB", usage.rss_bytes as f64 / 1e6);
    Ok(())
}

fn sleepers(options: &sleepers::Options) -> Result<()> {
    runtime(1)?.block_on(sleepers::run(options))
}

fn run(options: &RunOptions) -> Result<()> {
    runtime(options.threads)?.block_on(run_all(options))
}

fn runtime(threads: usize) -> Result<tokio::runtime::Runtime> {
    let runtime = match threads {
        0 | 1 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
        threads => tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build(),
    };
    runtime.context("cannot start the runtime")
}

async fn run_all(options: &RunOptions) -> Result<()> {
    let mut report = Report::new(&options.address);
    if let Some(directory) = &options.fsync_directory {
        let timing = fsync::measure(directory)?;
        println!("{timing}");
        report.fsync = Some(timing);
    }
    let api = api::connect(&options.address, &options.namespace, Duration::from_secs(30)).await?;
    println!("{}", Report::heading());
    let mut errors = 0;
    for &workload in &options.workloads {
        for &in_flight in &options.concurrency {
            let row = measure(options, &api, workload, in_flight).await?;
            println!("{}", row.line(report.fsync.as_ref()));
            errors += row.errors;
            report.runs.push(row);
        }
    }
    if let Some(path) = &options.json {
        report.write(path).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if errors > 0 {
        bail!("{errors} workflows failed");
    }
    Ok(())
}

/// One row: a worker on a queue of its own, load to warm up, then the load that counts.
async fn measure(options: &RunOptions, api: &api::Api, workload: Workload, in_flight: usize) -> Result<Row> {
    let worker = WorkerOptions {
        sticky: options.sticky,
        eager_activities: options.eager_activities,
        pollers: options.pollers.max(1),
    };
    let load = Load::start(api.clone(), workload, in_flight, &worker, Duration::from_secs_f64(options.timeout_seconds));
    if options.warmup_seconds > 0.0 {
        load.run(Until::elapsed(options.warmup_seconds)).await;
    }
    let until = options.count.map_or_else(|| Until::elapsed(options.seconds), Until::Count);
    let before = process::Usage::of(&options.server_pids)?;
    let driver_before = process::Usage::of_self()?;
    let outcome = load.run(until).await;
    let server = process::Usage::of(&options.server_pids)?.since(&before);
    let driver = process::Usage::of_self()?.since(&driver_before);
    Ok(Row::new(workload, in_flight, &outcome, (!options.server_pids.is_empty()).then_some(server), driver))
}
