//! How many statements a workflow costs the store, by kind, as the server's own metrics count them.
//!
//! A measurement ends when the server has nothing left to write: what it writes to its tables later belongs to the workflows,
//! too. What goes on while nothing happens (signs of life, looks at the cluster) is not counted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::api::connect;
use crate::drive::{Load, Pace, Until};
use crate::worker::WorkerOptions;
use crate::workload::Workload;

/// A server that sends nothing for so long has written everything: longer than the default interval of its flushes.
const QUIET: Duration = Duration::from_secs(7);
const QUIET_WITHIN: Duration = Duration::from_secs(120);
const COUNTER: &str = "persistence_requests";
/// Kinds that are sent now and then whatever the load is.
const IDLE_KINDS: [&str; 2] = ["members", "list"];
/// An idle server looks now and then whether it is fenced. This kind counts, and says nothing of its being busy.
const FENCE_READS: &str = "fence_read";

#[derive(Args)]
pub struct Options {
    /// Host and port of the server
    #[arg(long, default_value = "127.0.0.1:7233")]
    address: String,
    /// Host and port of its metrics
    #[arg(long)]
    metrics: String,
    #[arg(long, default_value = "default")]
    namespace: String,
    #[arg(long, value_enum, default_value = "one-activity")]
    workload: Workload,
    /// Workflows in flight
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100])]
    concurrency: Vec<usize>,
    /// Length of each measurement
    #[arg(long, default_value_t = 20.0)]
    seconds: f64,
    /// Load before the first measurement: a Java process starts slow
    #[arg(long, default_value_t = 10.0)]
    warmup_seconds: f64,
    /// Fail if the last number in flight costs more than this
    #[arg(long)]
    at_most: Option<f64>,
}

/// Statements by kind.
type Counts = BTreeMap<String, u64>;

struct Measured {
    in_flight: usize,
    workflows: u64,
    per_second: f64,
    counts: Counts,
}

impl Measured {
    fn of(&self, kind: &str) -> f64 {
        self.counts.get(kind).copied().unwrap_or(0) as f64 / self.workflows as f64
    }

    fn all(&self) -> f64 {
        self.counts.values().sum::<u64>() as f64 / self.workflows as f64
    }
}

pub async fn run(options: &Options) -> Result<()> {
    let api = connect(&options.address, &options.namespace, Duration::from_secs(30)).await?;
    let worker = WorkerOptions { sticky: true, eager_activities: false, pollers: 16 };
    let load = |in_flight: usize| {
        let pace = Pace::InFlight(in_flight);
        Load::start(api.clone(), options.workload, pace, &worker, Duration::from_secs(60))
    };
    let most = options.concurrency.iter().copied().max().unwrap_or(1);
    load(most).run(Until::elapsed(options.warmup_seconds)).await;
    let mut all = Vec::new();
    for &in_flight in &options.concurrency {
        let before = when_quiet(&options.metrics).await?;
        let outcome = load(in_flight).run(Until::elapsed(options.seconds)).await;
        let after = when_quiet(&options.metrics).await?;
        let workflows = outcome.latency_us.len();
        ensure!(outcome.errors == 0 && workflows > 0, "{} of {workflows} workflows failed", outcome.errors);
        let sent = |(kind, count): (String, u64)| {
            let before = before.get(&kind).copied().unwrap_or(0);
            (kind, count - before)
        };
        let counts = after.into_iter().map(sent).filter(|(_, count)| *count > 0).collect();
        let per_second = workflows as f64 / outcome.elapsed.as_secs_f64();
        all.push(Measured { in_flight, workflows, per_second, counts });
    }
    print(&all);
    match (options.at_most, all.last()) {
        (Some(most), Some(last)) => {
            ensure!(last.all() <= most, "{:.2} statements a workflow, and {most} are allowed", last.all());
            Ok(())
        }
        _ => Ok(()),
    }
}

fn print(all: &[Measured]) {
    let line = |name: &str, value: &dyn Fn(&Measured) -> String| {
        let values: String = all.iter().map(|measured| format!(" {:>14}", value(measured))).collect();
        println!("{name:<26}{values}");
    };
    line("statements per workflow", &|measured| format!("{} in flight", measured.in_flight));
    let mut kinds: Vec<&String> = all.iter().flat_map(|measured| measured.counts.keys()).collect();
    kinds.sort();
    kinds.dedup();
    for kind in kinds {
        line(kind, &|measured| format!("{:.3}", measured.of(kind)));
    }
    line("all", &|measured| format!("{:.3}", measured.all()));
    line("workflows", &|measured| measured.workflows.to_string());
    line("workflows a second", &|measured| format!("{:.0}", measured.per_second));
}

/// The counts when they have not changed for some time.
async fn when_quiet(metrics: &str) -> Result<Counts> {
    let begun = Instant::now();
    let mut counts = scrape(metrics).await?;
    let mut since = Instant::now();
    while since.elapsed() < QUIET {
        ensure!(begun.elapsed() < QUIET_WITHIN, "the server does not stop writing");
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = scrape(metrics).await?;
        if now.iter().any(|(kind, count)| kind != FENCE_READS && counts.get(kind) != Some(count)) {
            since = Instant::now();
        }
        counts = now;
    }
    Ok(counts)
}

async fn scrape(metrics: &str) -> Result<Counts> {
    let mut stream = TcpStream::connect(metrics).await.with_context(|| format!("no metrics at {metrics}"))?;
    let request = format!("GET /metrics HTTP/1.0\r\nHost: {metrics}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(parse(&text))
}

fn parse(text: &str) -> Counts {
    let count = |line: &str| {
        let (labels, value) = line.strip_prefix(COUNTER)?.split_once("} ")?;
        let kind = labels.split_once("operation=\"")?.1.split_once('"')?.0;
        (!IDLE_KINDS.contains(&kind)).then_some((kind.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_kind() {
        let text = "# TYPE persistence_requests counter\n\
                    persistence_requests{operation=\"append\"} 12\n\
                    persistence_requests{operation=\"members\"} 99\n\
                    persistence_errors{operation=\"append\"} 3\n";
        assert_eq!(parse(text), Counts::from([("append".to_owned(), 12)]));
    }
}
