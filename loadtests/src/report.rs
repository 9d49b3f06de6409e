//! The figures, as a table to read and as JSON to compare.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use crate::drive::{Outcome, Pace};
use crate::fsync::Timing;
use crate::process::Usage;
use crate::workload::Workload;

#[derive(Debug, Serialize)]
pub struct Report {
    pub address: String,
    pub version: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fsync: Option<Timing>,
    pub runs: Vec<Row>,
}

/// One workload at one pace.
#[derive(Debug, Serialize)]
pub struct Row {
    pub workload: &'static str,
    /// A number in flight, or a rate.
    pub pace: String,
    pub workflows: u64,
    pub errors: u64,
    pub seconds: f64,
    pub workflows_per_second: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<Cost>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store: Option<Cost>,
    pub driver: Cost,
}

/// What a measurement cost the groups of processes that took part.
pub struct Costs {
    pub server: Option<Usage>,
    pub store: Option<Usage>,
    pub driver: Usage,
}

#[derive(Debug, Serialize)]
pub struct Cost {
    pub cpu_ms_per_workflow: f64,
    /// Of one core.
    pub cpu_percent: f64,
    pub rss_mb: f64,
    pub peak_rss_mb: f64,
}

impl Report {
    pub fn new(address: &str) -> Self {
        Self { address: address.to_owned(), version: env!("CARGO_PKG_VERSION"), fsync: None, runs: Vec::new() }
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        let mut file = File::create(path)?;
        serde_json::to_writer_pretty(&mut file, self)?;
        writeln!(file)?;
        Ok(())
    }

    pub fn heading() -> String {
        format!(
            "{:<15} {:>9} {:>9} {:>9} {:>9} {:>9} {:>6}  {:>18} {:>14}  {:>18} {:>18}  {}",
            "workload",
            "in flight",
            "wf/s",
            "p50 ms",
            "p99 ms",
            "max ms",
            "errors",
            "server CPU-ms/wf",
            "peak RSS MB",
            "store CPU-ms/wf",
            "driver CPU-ms/wf",
            "p50 in fsyncs"
        )
    }
}

impl Row {
    pub fn new(workload: Workload, pace: Pace, outcome: &Outcome, costs: Costs) -> Self {
        let latency = &outcome.latency_us;
        let workflows = latency.len();
        let seconds = outcome.elapsed.as_secs_f64();
        let ms = |us: u64| us as f64 / 1000.0;
        Self {
            workload: workload.name(),
            pace: pace.to_string(),
            workflows,
            errors: outcome.errors,
            seconds,
            workflows_per_second: workflows as f64 / seconds,
            p50_ms: ms(latency.value_at_quantile(0.5)),
            p99_ms: ms(latency.value_at_quantile(0.99)),
            max_ms: ms(latency.max()),
            server: costs.server.map(|usage| Cost::new(usage, workflows, seconds)),
            store: costs.store.map(|usage| Cost::new(usage, workflows, seconds)),
            driver: Cost::new(costs.driver, workflows, seconds),
        }
    }

    /// Of server and store together.
    pub fn cpu_ms_per_workflow(&self) -> f64 {
        [&self.server, &self.store].into_iter().flatten().map(|cost| cost.cpu_ms_per_workflow).sum()
    }

    pub fn server_peak_rss_mb(&self) -> f64 {
        self.server.as_ref().map_or(f64::NAN, |cost| cost.peak_rss_mb)
    }

    pub fn line(&self, fsync: Option<&Timing>) -> String {
        let dash = || "-".to_owned();
        format!(
            "{:<15} {:>9} {:>9.1} {:>9.2} {:>9.2} {:>9.2} {:>6}  {:>18} {:>14}  {:>18} {:>18.3}  {}",
            self.workload,
            self.pace,
            self.workflows_per_second,
            self.p50_ms,
            self.p99_ms,
            self.max_ms,
            self.errors,
            self.server.as_ref().map_or_else(dash, |cost| format!("{:.3}", cost.cpu_ms_per_workflow)),
            self.server.as_ref().map_or_else(dash, |cost| format!("{:.1}", cost.peak_rss_mb)),
            self.store.as_ref().map_or_else(dash, |cost| format!("{:.3}", cost.cpu_ms_per_workflow)),
            self.driver.cpu_ms_per_workflow,
            fsync.map_or_else(dash, |timing| format!("{:.1}", self.p50_ms / timing.p50_ms)),
        )
    }
}

impl Cost {
    fn new(usage: Usage, workflows: u64, seconds: f64) -> Self {
        let cpu_ms = usage.cpu_ms as f64;
        let mb = |bytes: u64| bytes as f64 / 1e6;
        Self {
            cpu_ms_per_workflow: cpu_ms / workflows.max(1) as f64,
            cpu_percent: cpu_ms / seconds / 10.0,
            rss_mb: mb(usage.rss_bytes),
            peak_rss_mb: mb(usage.peak_rss_bytes),
        }
    }
}
