//! The same workloads on two servers by turns, which may share one store.
//!
//! While one is measured, the other is frozen (SIGSTOP): neither is charged for what the other does to the store when it is
//! idle. A ratio is taken within each round, and the median of the rounds is stated with their extremes.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use perdure_proto::temporal::api::workflowservice::v1::RegisterNamespaceRequest;
use serde::Serialize;
use tonic::Code;

use crate::api::{self, Api};
use crate::drive::Pace;
use crate::measure::{LoadOptions, Pids};
use crate::report::{Report, Row};

const PATIENCE: Duration = Duration::from_secs(60);
const WARM_UP: Pace = Pace::InFlight(20);
const RETENTION_SECONDS: i64 = 24 * 3600;

#[derive(Args)]
pub struct Options {
    /// Host and port of the server
    #[arg(long)]
    address: String,
    #[arg(long = "server-pid", value_delimiter = ',', required = true)]
    server_pids: Vec<u32>,
    /// Host and port of the server that it is compared with
    #[arg(long)]
    peer_address: String,
    #[arg(long = "peer-pid", value_delimiter = ',', required = true)]
    peer_pids: Vec<u32>,
    /// Processes of the store that both use
    #[arg(long = "store-pid", value_delimiter = ',')]
    store_pids: Vec<u32>,
    /// Measurements of each server
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Load on each server before the first round
    #[arg(long, default_value_t = 20.0)]
    warm_seconds: f64,
    #[command(flatten)]
    load: LoadOptions,
    /// Write the figures as JSON to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

/// One of the two servers.
struct Side {
    name: &'static str,
    api: Api,
    pids: Pids,
}

#[derive(Serialize)]
struct Comparison {
    workload: &'static str,
    pace: String,
    /// How many times more workflows per CPU-second of server and store.
    workflows_per_cpu_second: Spread,
    throughput: Spread,
    /// How many times lower.
    p50: Spread,
    p99: Spread,
    /// How many times less peak memory the server took; the store's is the same for both.
    memory: Spread,
    server: Vec<Row>,
    peer: Vec<Row>,
}

/// The ratios of the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

pub async fn run(options: &Options) -> Result<()> {
    ensure!(options.rounds > 0, "--rounds must be at least 1");
    let ours = Side::connect("server", &options.address, &options.server_pids, options).await?;
    let peer = Side::connect("peer", &options.peer_address, &options.peer_pids, options).await?;
    warm_up(options, &ours, &peer).await?;

    let mut comparisons = Vec::new();
    println!("{:<7} {}", "", Report::heading());
    for (workload, pace) in options.load.plan() {
        let (mut server_rows, mut peer_rows) = (Vec::new(), Vec::new());
        for _ in 0..options.rounds {
            for (side, other, rows) in [(&ours, &peer, &mut server_rows), (&peer, &ours, &mut peer_rows)] {
                let _frozen = Frozen::new(&other.pids.server)?;
                let row = options.load.measure(&side.api, workload, pace, &side.pids).await?;
                println!("{:<7} {}", side.name, row.line(None));
                rows.push(row);
            }
        }
        comparisons.push(Comparison::new(server_rows, peer_rows)?);
    }
    print(&comparisons);
    if let Some(path) = &options.json {
        std::fs::write(path, serde_json::to_vec_pretty(&comparisons)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

async fn warm_up(options: &Options, ours: &Side, peer: &Side) -> Result<()> {
    for (side, other) in [(peer, ours), (ours, peer)] {
        let _frozen = Frozen::new(&other.pids.server)?;
        for &workload in &options.load.workloads {
            options.load.warm_up(&side.api, workload, WARM_UP, options.warm_seconds).await;
        }
    }
    Ok(())
}

fn print(comparisons: &[Comparison]) {
    println!(
        "\n{:<15} {:>9}  {:>26} {:>22} {:>22} {:>22} {:>22}",
        "ratio", "in flight", "wf per CPU-s (with store)", "wf/s", "p50", "p99", "peak RSS"
    );
    for one in comparisons {
        println!(
            "{:<15} {:>9}  {:>26} {:>22} {:>22} {:>22} {:>22}",
            one.workload,
            one.pace,
            one.workflows_per_cpu_second.text(),
            one.throughput.text(),
            one.p50.text(),
            one.p99.text(),
            one.memory.text()
        );
    }
}

impl Side {
    async fn connect(name: &'static str, address: &str, pids: &[u32], options: &Options) -> Result<Self> {
        let pids = Pids { server: pids.to_vec(), store: options.store_pids.clone() };
        register(address, &options.load.namespace).await?;
        let api = api::connect(address, &options.load.namespace, PATIENCE).await?;
        Ok(Self { name, api, pids })
    }
}

/// Makes the namespace where there is none. A server that just starts is waited for.
async fn register(address: &str, namespace: &str) -> Result<()> {
    let mut client = api::client(address)?;
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let request = RegisterNamespaceRequest {
            namespace: namespace.to_owned(),
            workflow_execution_retention_period: Some(prost_types::Duration { seconds: RETENTION_SECONDS, nanos: 0 }),
            ..Default::default()
        };
        match client.register_namespace(request).await {
            Ok(_) => return Ok(()),
            Err(error) if error.code() == Code::AlreadyExists => return Ok(()),
            Err(error) if std::time::Instant::now() > deadline => {
                return Err(error).with_context(|| format!("{address} does not register namespace `{namespace}`"));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
}

/// Processes that do nothing while this value lives.
struct Frozen<'a>(&'a [u32]);

impl<'a> Frozen<'a> {
    fn new(pids: &'a [u32]) -> Result<Self> {
        signal("-STOP", pids)?;
        Ok(Self(pids))
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if let Err(error) = signal("-CONT", self.0) {
            eprintln!("{error:#}");
        }
    }
}

fn signal(signal: &str, pids: &[u32]) -> Result<()> {
    let status = Command::new("kill").arg(signal).args(pids.iter().map(u32::to_string)).status()?;
    if !status.success() {
        bail!("kill {signal} {pids:?}: {status}");
    }
    Ok(())
}

impl Comparison {
    fn new(server: Vec<Row>, peer: Vec<Row>) -> Result<Self> {
        let first = server.first().context("no round")?;
        let (workload, pace) = (first.workload, first.pace.clone());
        let ratios =
            |of: fn(&Row, &Row) -> f64| Spread::of(server.iter().zip(&peer).map(|(ours, peer)| of(ours, peer)));
        Ok(Self {
            workload,
            pace,
            workflows_per_cpu_second: ratios(|ours, peer| peer.cpu_ms_per_workflow() / ours.cpu_ms_per_workflow()),
            throughput: ratios(|ours, peer| ours.workflows_per_second / peer.workflows_per_second),
            p50: ratios(|ours, peer| peer.p50_ms / ours.p50_ms),
            p99: ratios(|ours, peer| peer.p99_ms / ours.p99_ms),
            memory: ratios(|ours, peer| peer.server_peak_rss_mb() / ours.server_peak_rss_mb()),
            server,
            peer,
        })
    }
}

impl Spread {
    fn of(ratios: impl Iterator<Item = f64>) -> Self {
        let mut ratios: Vec<f64> = ratios.collect();
        ratios.sort_by(f64::total_cmp);
        let at = |index: usize| ratios.get(index).copied().unwrap_or(f64::NAN);
        Self { median: at(ratios.len() / 2), least: at(0), most: at(ratios.len().saturating_sub(1)) }
    }

    fn text(self) -> String {
        format!("{:.1} ({:.1} to {:.1})", self.median, self.least, self.most)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_the_median_and_the_extremes() {
        assert_eq!(Spread::of([5.0, 1.0, 2.0].into_iter()), Spread { median: 2.0, least: 1.0, most: 5.0 });
        assert_eq!(Spread::of([5.0].into_iter()).text(), "5.0 (5.0 to 5.0)");
    }
}
