//! One measurement: a workload at one pace, and what it cost the processes behind it.

use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::api::Api;
use crate::drive::{Load, Pace, Until};
use crate::process::Usage;
use crate::report::{Costs, Row};
use crate::worker::WorkerOptions;
use crate::workload::Workload;

/// What is run, and for how long.
#[derive(Args)]
pub struct LoadOptions {
    #[arg(long, default_value = "default")]
    pub namespace: String,
    #[arg(long = "workload", value_enum, value_delimiter = ',', default_values = ["one-activity", "ten-sequential"])]
    pub workloads: Vec<Workload>,
    /// Workflows in flight: a new one starts when one has closed
    #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 100])]
    concurrency: Vec<usize>,
    /// In place of a number in flight: workflows to start each second. Latency then counts from when one was to start
    #[arg(long, value_delimiter = ',', conflicts_with = "concurrency")]
    rate: Vec<f64>,
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
}

/// The processes whose usage is reported; a group may be empty.
#[derive(Clone)]
pub struct Pids {
    pub server: Vec<u32>,
    pub store: Vec<u32>,
}

impl LoadOptions {
    /// All that is to be measured, workload by workload.
    pub fn plan(&self) -> Vec<(Workload, Pace)> {
        let paces: Vec<Pace> = if self.rate.is_empty() {
            self.concurrency.iter().map(|in_flight| Pace::InFlight(*in_flight)).collect()
        } else {
            self.rate.iter().map(|rate| Pace::PerSecond(*rate)).collect()
        };
        self.workloads.iter().flat_map(|workload| paces.iter().map(|pace| (*workload, *pace))).collect()
    }

    /// A worker on a queue of its own, load to warm up, then the load that counts.
    pub async fn measure(&self, api: &Api, workload: Workload, pace: Pace, pids: &Pids) -> Result<Row> {
        let load = self.load(api, workload, pace);
        if self.warmup_seconds > 0.0 {
            load.run(Until::elapsed(self.warmup_seconds)).await;
        }
        let until = self.count.map_or_else(|| Until::elapsed(self.seconds), Until::Count);
        let groups = || Ok::<_, anyhow::Error>((Usage::of(&pids.server)?, Usage::of(&pids.store)?, Usage::of_self()?));
        let before = groups()?;
        let outcome = load.run(until).await;
        let after = groups()?;
        let costs = Costs {
            server: (!pids.server.is_empty()).then(|| after.0.since(&before.0)),
            store: (!pids.store.is_empty()).then(|| after.1.since(&before.1)),
            driver: after.2.since(&before.2),
        };
        Ok(Row::new(workload, pace, &outcome, costs))
    }

    /// Load that is not measured.
    pub async fn warm_up(&self, api: &Api, workload: Workload, pace: Pace, seconds: f64) {
        self.load(api, workload, pace).run(Until::elapsed(seconds)).await;
    }

    fn load(&self, api: &Api, workload: Workload, pace: Pace) -> Load {
        let worker = WorkerOptions {
            sticky: self.sticky,
            eager_activities: self.eager_activities,
            pollers: self.pollers.max(1),
        };
        Load::start(api.clone(), workload, pace, &worker, Duration::from_secs_f64(self.timeout_seconds))
    }
}
