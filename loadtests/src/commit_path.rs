//! What a durable update costs Cassandra: our commit path beside one lightweight transaction an update.
//!
//! Both run in one program against one Cassandra, one after the other, at the same numbers of updates in flight. Ours is
//! the store that the server uses, driven as the server's log writer drives it ([`ours`]). The other is what a server does
//! that keeps each shard in one partition and makes each state change conditional on it ([`lwt`]).

mod lwt;
mod ours;

use std::{
    collections::HashSet,
    fs,
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use hdrhistogram::Histogram;
use perdure_persistence::cassandra::CassandraConfig;
use serde::Serialize;

use crate::process::Usage;

#[derive(Args)]
pub struct Options {
    /// Nodes of Cassandra to begin with, comma-separated
    #[arg(long, env = "CASSANDRA_SEEDS", value_delimiter = ',', required = true)]
    cassandra_seeds: Vec<String>,
    #[arg(long, default_value_t = 9042)]
    cassandra_port: u16,
    /// Its processes, whose CPU time counts; found by their address if they run on this machine
    #[arg(long = "cassandra-pid", value_delimiter = ',')]
    cassandra_pids: Vec<u32>,
    #[arg(long, default_value_t = 1)]
    replication_factor: u32,
    /// Updates in flight
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 128])]
    concurrency: Vec<usize>,
    /// Length of each measurement
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Load of each kind before the first measurement: a Java process starts slow
    #[arg(long, default_value_t = 60.0)]
    warmup_seconds: f64,
    /// Size of an update: a state change with its events
    #[arg(long, default_value_t = 400)]
    update_bytes: usize,
    /// Conditional writes sent to the partition at once. More than one only makes Paxos contend, so that servers which work
    /// that way let one through at a time
    #[arg(long, default_value_t = 1)]
    lwt_at_once: usize,
    /// Write the figures as JSON to this file
    #[arg(long)]
    json: Option<std::path::PathBuf>,
}

/// A way to make one update durable.
#[async_trait::async_trait]
pub trait Path: Send + Sync + 'static {
    fn name(&self) -> &'static str;
    /// Returns when the update is durable. `worker` is one of those in flight.
    async fn update(&self, worker: usize, update: Bytes) -> Result<()>;
    /// Statements sent so far.
    fn statements(&self) -> u64;
}

#[derive(Debug, Serialize)]
struct Row {
    path: &'static str,
    in_flight: usize,
    updates: u64,
    failures: u64,
    updates_per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    cassandra_cpu_s_per_1000: f64,
    statements_per_update: f64,
    own_cpu_s_per_1000: f64,
}

pub async fn run(options: &Options) -> Result<()> {
    let pids = match &options.cassandra_pids[..] {
        [] => find_processes(&options.cassandra_seeds, options.cassandra_port)?,
        pids => pids.to_vec(),
    };
    let config = CassandraConfig {
        seeds: options.cassandra_seeds.clone(),
        port: options.cassandra_port,
        keyspace: format!("commit_path_{}", std::process::id()),
        replication_factor: options.replication_factor,
        ..CassandraConfig::default()
    };
    let ours: Arc<dyn Path> = Arc::new(ours::Ours::start(config.clone()).await?);
    let theirs = Arc::new(lwt::Lwt::start(&config, options.lwt_at_once).await?);
    let paths: [Arc<dyn Path>; 2] = [ours, theirs.clone()];
    for path in &paths {
        measure(path, 16, options.warmup_seconds, options.update_bytes, &pids).await?;
    }
    println!(
        "Cassandra processes {pids:?}, replication factor {}, updates of {} bytes",
        options.replication_factor, options.update_bytes
    );
    println!(
        "{:<12} {:>9} {:>11} {:>9} {:>9} {:>16} {:>12} {:>9}",
        "path", "in flight", "updates/s", "p50 ms", "p99 ms", "CPU-s/1000 upd.", "statements", "failures"
    );
    let mut rows = Vec::new();
    for &in_flight in &options.concurrency {
        for path in &paths {
            let row = measure(path, in_flight, options.seconds, options.update_bytes, &pids).await?;
            println!(
                "{:<12} {:>9} {:>11.0} {:>9.2} {:>9.2} {:>16.4} {:>12.3} {:>9}",
                row.path,
                row.in_flight,
                row.updates_per_s,
                row.p50_ms,
                row.p99_ms,
                row.cassandra_cpu_s_per_1000,
                row.statements_per_update,
                row.failures
            );
            rows.push(row);
        }
        if let [.., ours, theirs] = &rows[..] {
            let cheaper = theirs.cassandra_cpu_s_per_1000 / ours.cassandra_cpu_s_per_1000.max(1e-9);
            let faster = ours.updates_per_s / theirs.updates_per_s.max(1e-9);
            println!("at {in_flight} in flight: {cheaper:.1} x fewer CPU-seconds an update, {faster:.1} x the updates");
        }
    }
    theirs.drop_keyspace(&config.keyspace).await?;
    if let Some(path) = &options.json {
        fs::write(path, serde_json::to_vec_pretty(&rows)?)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

async fn measure(
    path: &Arc<dyn Path>,
    in_flight: usize,
    seconds: f64,
    update_bytes: usize,
    pids: &[u32],
) -> Result<Row> {
    let (before, own_before, statements) = (Usage::of(pids)?, Usage::of_self()?, path.statements());
    let started = Instant::now();
    let until = started + Duration::from_secs_f64(seconds);
    let workers: Vec<_> = (0..in_flight)
        .map(|worker| {
            let path = path.clone();
            tokio::spawn(async move {
                let mut latencies = histogram()?;
                let (mut failures, mut number) = (0_u64, 0_u64);
                while Instant::now() < until {
                    let update = update(worker, number, update_bytes);
                    number += 1;
                    let started = Instant::now();
                    match path.update(worker, update).await {
                        Ok(()) => latencies.saturating_record(started.elapsed().as_micros() as u64),
                        Err(error) if failures == 0 => {
                            eprintln!("{}: {error:#}", path.name());
                            failures += 1;
                        }
                        Err(_) => failures += 1,
                    }
                }
                anyhow::Ok((latencies, failures))
            })
        })
        .collect();
    let mut latencies = histogram()?;
    let mut failures = 0;
    for worker in workers {
        let (of_worker, failed) = worker.await??;
        latencies.add(of_worker)?;
        failures += failed;
    }
    let elapsed = started.elapsed().as_secs_f64();
    let cassandra = Usage::of(pids)?.since(&before);
    let own = Usage::of_self()?.since(&own_before);
    let updates = latencies.len();
    if updates == 0 {
        bail!("{}: no update succeeded", path.name());
    }
    let per_1000 = |cpu_ms: u64| cpu_ms as f64 / updates as f64;
    Ok(Row {
        path: path.name(),
        in_flight,
        updates,
        failures,
        updates_per_s: updates as f64 / elapsed,
        p50_ms: latencies.value_at_quantile(0.5) as f64 / 1e3,
        p99_ms: latencies.value_at_quantile(0.99) as f64 / 1e3,
        cassandra_cpu_s_per_1000: per_1000(cassandra.cpu_ms),
        statements_per_update: (path.statements() - statements) as f64 / updates as f64,
        own_cpu_s_per_1000: per_1000(own.cpu_ms),
    })
}

/// Of microseconds, up to a minute.
fn histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 60_000_000, 3)?)
}

/// Bytes that do not compress to nothing, different for each update.
fn update(worker: usize, number: u64, bytes: usize) -> Bytes {
    let mut state =
        (worker as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ number.wrapping_mul(0xd134_2543_de82_ef95);
    let mut content = Vec::with_capacity(bytes + 8);
    while content.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend_from_slice(&state.to_le_bytes());
    }
    content.truncate(bytes);
    content.into()
}

/// The processes of this machine that listen on a seed's address.
fn find_processes(seeds: &[String], port: u16) -> Result<Vec<u32>> {
    let table = fs::read_to_string("/proc/net/tcp").context("cannot read /proc/net/tcp: give --cassandra-pid")?;
    let mut inodes = HashSet::new();
    for seed in seeds {
        let (host, port) = match seed.split_once(':') {
            Some((host, port)) => (host, port.parse()?),
            None => (seed.as_str(), port),
        };
        let address: Ipv4Addr = host.parse().context("give --cassandra-pid, or seeds as IPv4 addresses")?;
        let local = format!("{:08X}:{port:04X}", u32::from_le_bytes(address.octets()));
        inodes.extend(table.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // State 0A: listening.
            (fields.get(1) == Some(&&*local) && fields.get(3) == Some(&"0A")).then(|| fields[9].to_owned())
        }));
    }
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let Ok(files) = fs::read_dir(entry.path().join("fd")) else { continue };
        let owns = files.flatten().filter_map(|file| fs::read_link(file.path()).ok()).any(|target| {
            let target = target.to_string_lossy().into_owned();
            target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')).is_some_and(|i| inodes.contains(i))
        });
        if owns {
            pids.push(pid);
        }
    }
    if pids.is_empty() {
        bail!("no process of this machine listens on {}: give --cassandra-pid", seeds.join(", "));
    }
    Ok(pids)
}
