//! How long a server that was killed takes to serve all its workflows again.
//!
//! It is started and killed from here, by a command that is the same each time. Workflows sleep; a tail of signals goes into
//! the log after the tables were written; `kill -9`; the clock runs from the new process's start until each workflow has
//! answered, with all its signals.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use perdure_proto::temporal::api::common::v1::{Payload, Payloads, WorkflowExecution};
use perdure_proto::temporal::api::workflowservice::v1::{
    DescribeWorkflowExecutionRequest, SignalWorkflowExecutionRequest,
};
use tokio::task::JoinSet;

use crate::api::{Api, connect, with_timeout};
use crate::sleepers::{fall_asleep, start};
use crate::worker::{Worker, WorkerOptions};

const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const STARTS_WITHIN: Duration = Duration::from_secs(120);
const STOPS_WITHIN: Duration = Duration::from_secs(60);
/// Events of a workflow that sleeps: started, task scheduled, started, completed, timer started.
const EVENTS_ASLEEP: i64 = 5;

#[derive(Args)]
pub struct Options {
    /// The command that runs the server, for `sh`
    #[arg(long)]
    server_command: String,
    /// Where that command serves
    #[arg(long)]
    address: String,
    #[arg(long, default_value = "default")]
    namespace: String,
    /// Workflows that are open
    #[arg(long, default_value_t = 10_000)]
    workflows: u64,
    /// What is signaled before the kill, MiB
    #[arg(long, default_value_t = 32)]
    tail_mib: u64,
    /// Bytes of each signal
    #[arg(long, default_value_t = 16 << 10)]
    signal_bytes: u64,
    /// Calls in flight
    #[arg(long, default_value_t = 64)]
    concurrency: u64,
    /// Kills and starts; each has a tail of its own
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// A round that takes longer is a failure
    #[arg(long)]
    at_most_ms: Option<u64>,
}

pub async fn run(options: &Options) -> Result<()> {
    let mut server = Server::start(options)?;
    let api = connect(&options.address, &options.namespace, STARTS_WITHIN).await?;
    let workflows = Arc::new(Workflows::new(options.workflows));
    workflows.fall_asleep(&api, options.concurrency).await?;
    println!("{} workflows are asleep", options.workflows);
    // In good order, so that the tables have them all, and the log nothing.
    server.stop()?;
    server = Server::start(options)?;
    connect(&options.address, &options.namespace, STARTS_WITHIN).await?;

    println!("{:>6} {:>9} {:>12} {:>14} {:>14}", "round", "tail MiB", "serving ms", "1 % asked ms", "all asked ms");
    let mut slowest = Duration::ZERO;
    for round in 1..=options.rounds {
        workflows.signal(&api, options).await?;
        server.kill()?;
        let begun = Instant::now();
        server = Server::start(options)?;
        let api = connect(&options.address, &options.namespace, STARTS_WITHIN).await?;
        let serving = begun.elapsed();
        workflows.check(&api, options.concurrency, 100).await?;
        let some = begun.elapsed();
        workflows.check(&api, options.concurrency, 1).await?;
        let all = begun.elapsed();
        println!(
            "{round:>6} {:>9} {:>12} {:>14} {:>14}",
            options.tail_mib,
            serving.as_millis(),
            some.as_millis(),
            all.as_millis()
        );
        slowest = slowest.max(some);
    }
    server.stop()?;
    match options.at_most_ms.map(Duration::from_millis) {
        Some(most) if slowest > most => bail!("{} ms, and {} ms are allowed", slowest.as_millis(), most.as_millis()),
        _ => Ok(()),
    }
}

struct Workflows {
    task_queue: String,
    /// Signals that each has got.
    signals: Vec<AtomicU64>,
}

impl Workflows {
    fn new(count: u64) -> Self {
        let task_queue = format!("recovery-{}", std::process::id());
        Self { task_queue, signals: (0..count).map(|_| AtomicU64::new(0)).collect() }
    }

    fn execution(&self, number: u64) -> WorkflowExecution {
        WorkflowExecution { workflow_id: format!("{}-{number}", self.task_queue), run_id: String::new() }
    }

    async fn fall_asleep(&self, api: &Api, concurrency: u64) -> Result<()> {
        let worker_options = WorkerOptions { sticky: false, eager_activities: false, pollers: 16 };
        let worker = Worker::start(api.clone(), &self.task_queue, &worker_options);
        let count = self.signals.len() as u64;
        start(api, &self.task_queue, 0..count, usize::try_from(concurrency)?).await?;
        fall_asleep(&worker, count).await
    }

    /// Sends the tail, to some of the workflows in turn.
    async fn signal(self: &Arc<Self>, api: &Api, options: &Options) -> Result<()> {
        let signals = (options.tail_mib << 20) / options.signal_bytes.max(1);
        let data = bytes_of(options.signal_bytes);
        let all = self.signals.len() as u64;
        let this = Arc::clone(self);
        let api = api.clone();
        in_flight(options.concurrency, signals, move |number| {
            let (this, api, data) = (Arc::clone(&this), api.clone(), data.clone());
            async move {
                let number = number % all;
                let request = SignalWorkflowExecutionRequest {
                    namespace: api.namespace(),
                    workflow_execution: Some(this.execution(number)),
                    signal_name: "note".to_owned(),
                    input: Some(Payloads { payloads: vec![Payload { data: data.into(), ..Default::default() }] }),
                    identity: api.identity(),
                    ..Default::default()
                };
                let request = with_timeout(request, CALL_TIMEOUT);
                api.client.clone().signal_workflow_execution(request).await.context("SignalWorkflowExecution")?;
                this.signals[usize::try_from(number)?].fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        })
        .await
    }

    /// Asks every so many workflows, and checks that they have what was acknowledged.
    async fn check(self: &Arc<Self>, api: &Api, concurrency: u64, every: u64) -> Result<()> {
        let (this, api) = (Arc::clone(self), api.clone());
        in_flight(concurrency, self.signals.len() as u64 / every, move |number| {
            let (this, api) = (Arc::clone(&this), api.clone());
            async move {
                let number = number * every;
                let request = DescribeWorkflowExecutionRequest {
                    namespace: api.namespace(),
                    execution: Some(this.execution(number)),
                };
                let request = with_timeout(request, CALL_TIMEOUT);
                let answer = api.client.clone().describe_workflow_execution(request).await;
                let answer = answer.context("DescribeWorkflowExecution")?.into_inner();
                let found = answer.workflow_execution_info.map_or(0, |info| info.history_length);
                let signals = i64::try_from(this.signals[usize::try_from(number)?].load(Ordering::Relaxed))?;
                ensure!(
                    found >= EVENTS_ASLEEP + signals,
                    "workflow {number} has {found} events, and was acknowledged {signals} signals"
                );
                Ok(())
            }
        })
        .await
    }
}

/// Data that does not compress, and needs no randomness.
fn bytes_of(count: u64) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..count).map(|_| next()).collect()
}

/// Does something for each number below `count`, so many at a time.
async fn in_flight<F: Future<Output = Result<()>> + Send + 'static>(
    concurrency: u64,
    count: u64,
    work: impl Fn(u64) -> F + Send + Sync + 'static,
) -> Result<()> {
    let (next, work) = (Arc::new(AtomicU64::new(0)), Arc::new(work));
    let mut slots: JoinSet<Result<()>> = JoinSet::new();
    for _ in 0..concurrency.max(1) {
        let (next, work) = (Arc::clone(&next), Arc::clone(&work));
        slots.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(());
                }
                work(number).await?;
            }
        });
    }
    while let Some(slot) = slots.join_next().await {
        slot.context("a slot panicked")??;
    }
    Ok(())
}

/// The server's process. It ends when this value is dropped.
struct Server(Child);

impl Server {
    fn start(options: &Options) -> Result<Self> {
        let child = Command::new("sh")
            .args(["-c", &format!("exec {}", options.server_command)])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot run the server")?;
        Ok(Self(child))
    }

    fn kill(&mut self) -> Result<()> {
        ensure!(self.0.try_wait()?.is_none(), "the server has ended by itself");
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        let asked = Command::new("kill").arg(self.0.id().to_string()).status()?;
        ensure!(asked.success(), "the server has ended by itself");
        let deadline = Instant::now() + STOPS_WITHIN;
        while self.0.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "the server does not stop");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
