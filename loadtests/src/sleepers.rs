//! Many workflows that sleep: what they cost in memory and on disk, and whether starting more of them gets slower.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use tokio::task::JoinSet;

use crate::api::{Api, connect};
use crate::close::start_workflow;
use crate::process::Usage;
use crate::worker::{Worker, WorkerOptions};
use crate::workload::Workload;

/// How long the worker may take to send the last workflows to sleep.
const LONGEST_TAIL: Duration = Duration::from_secs(60);

#[derive(Args)]
pub struct Options {
    /// Host and port of the server
    #[arg(long, default_value = "127.0.0.1:7233")]
    address: String,
    #[arg(long, default_value = "default")]
    namespace: String,
    /// Workflows in all
    #[arg(long, default_value_t = 100_000)]
    count: u64,
    /// Starts in flight
    #[arg(long, default_value_t = 64)]
    concurrency: usize,
    /// Report each time so many have fallen asleep
    #[arg(long, default_value_t = 10_000)]
    every: u64,
    /// Processes whose CPU time and memory are reported as the server's
    #[arg(long = "server-pid", value_delimiter = ',', required = true)]
    server_pids: Vec<u32>,
    /// Directory whose size is reported as the server's
    #[arg(long)]
    data: Option<PathBuf>,
}

pub async fn run(options: &Options) -> Result<()> {
    let api = connect(&options.address, &options.namespace, Duration::from_secs(30)).await?;
    let task_queue = format!("sleepers-{}", std::process::id());
    let worker_options = WorkerOptions { sticky: false, eager_activities: false, pollers: 16 };
    let worker = Worker::start(api.clone(), &task_queue, &worker_options);
    println!(
        "{:>10} {:>10} {:>14} {:>10} {:>10} {:>12}",
        "asleep", "starts/s", "CPU-ms/start", "RSS MB", "disk MB", "disk B each"
    );
    let mut asleep = 0;
    while asleep < options.count {
        let next = options.count.min(asleep + options.every.max(1));
        let (before, begun) = (Usage::of(&options.server_pids)?, Instant::now());
        start(&api, &task_queue, asleep..next, options.concurrency).await?;
        fall_asleep(&worker, next).await?;
        let (usage, elapsed) = (Usage::of(&options.server_pids)?, begun.elapsed());
        let started = (next - asleep) as f64;
        asleep = next;
        let disk = options.data.as_deref().map_or(Ok(0), size_of)?;
        println!(
            "{asleep:>10} {:>10.0} {:>14.3} {:>10.1} {:>10.1} {:>12}",
            started / elapsed.as_secs_f64(),
            usage.since(&before).cpu_ms as f64 / started,
            usage.rss_bytes as f64 / 1e6,
            disk as f64 / 1e6,
            disk / asleep,
        );
    }
    Ok(())
}

/// Starts the workflows of those numbers.
pub async fn start(api: &Api, task_queue: &str, numbers: std::ops::Range<u64>, concurrency: usize) -> Result<()> {
    let next = Arc::new(AtomicU64::new(numbers.start));
    let mut slots: JoinSet<Result<()>> = JoinSet::new();
    for _ in 0..concurrency.max(1) {
        let (api, task_queue, next, end) = (api.clone(), task_queue.to_owned(), Arc::clone(&next), numbers.end);
        slots.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= end {
                    return Ok(());
                }
                let workflow_id = format!("{task_queue}-{number}");
                start_workflow(&api, Workload::Sleeper, &task_queue, workflow_id).await?;
            }
        });
    }
    while let Some(slot) = slots.join_next().await {
        slot.context("a slot panicked")??;
    }
    Ok(())
}

/// Returns when the worker has set so many timers.
pub async fn fall_asleep(worker: &Worker, count: u64) -> Result<()> {
    let deadline = Instant::now() + LONGEST_TAIL;
    while worker.workflow_tasks_completed() < count {
        let asleep = worker.workflow_tasks_completed();
        ensure!(Instant::now() < deadline, "only {asleep} of {count} workflows have fallen asleep");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Bytes of all files in a directory. Files may go while it looks.
fn size_of(directory: &Path) -> Result<u64> {
    let mut bytes = 0;
    let entries = std::fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    for entry in entries.flatten() {
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes += size_of(&entry.path()).unwrap_or(0),
            Ok(metadata) => bytes += metadata.len(),
            Err(_) => {}
        }
    }
    Ok(bytes)
}
