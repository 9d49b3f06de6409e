//! `perdure-load`: measures any Temporal-compatible server from outside.
//!
//! It speaks the worker protocol itself, without an SDK, so that it costs little beside the server that it shares a machine
//! with. What it measures is what a client sees: the time from calling StartWorkflowExecution to seeing the close event.

mod api;
mod chaos;
mod close;
mod commit_path;
mod compare;
mod drive;
mod fsync;
mod lists;
mod measure;
mod process;
mod recovery;
mod report;
mod sleepers;
mod statements;
mod worker;
mod workload;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand};

use crate::measure::{LoadOptions, Pids};
use crate::report::Report;

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
    /// Run the same workloads on two servers by turns, and print the ratios
    Compare(Box<compare::Options>),
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
    /// Count the statements that a workflow costs the store, by kind
    Statements(statements::Options),
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
    #[command(flatten)]
    load: LoadOptions,
    /// Processes whose CPU time and memory are reported as the server's
    #[arg(long = "server-pid", value_delimiter = ',')]
    server_pids: Vec<u32>,
    /// Processes whose CPU time and memory are reported as the store's
    #[arg(long = "store-pid", value_delimiter = ',')]
    store_pids: Vec<u32>,
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
        Command::Compare(options) => runtime(1).and_then(|runtime| runtime.block_on(compare::run(&options))),
        Command::Sleepers(options) => sleepers(&options),
        Command::Lists(options) => runtime(1).and_then(|runtime| runtime.block_on(lists::run(&options))),
        Command::Recovery(options) => runtime(1).and_then(|runtime| runtime.block_on(recovery::run(&options))),
        Command::Chaos(options) => runtime(1).and_then(|runtime| runtime.block_on(chaos::run(&options))),
        Command::Fsync { directory } => fsync::measure(&directory).map(|timing| println!("{timing}")),
        Command::Statements(options) => runtime(1).and_then(|runtime| runtime.block_on(statements::run(&options))),
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
    let api = api::connect(&options.address, &options.load.namespace, Duration::from_secs(30)).await?;
    let pids = Pids { server: options.server_pids.clone(), store: options.store_pids.clone() };
    println!("{}", Report::heading());
    let mut errors = 0;
    for (workload, pace) in options.load.plan() {
        let row = options.load.measure(&api, workload, pace, &pids).await?;
        println!("{}", row.line(report.fsync.as_ref()));
        errors += row.errors;
        report.runs.push(row);
    }
    if let Some(path) = &options.json {
        report.write(path).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if errors > 0 {
        bail!("{errors} workflows failed");
    }
    Ok(())
}
