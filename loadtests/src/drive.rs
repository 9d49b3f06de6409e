//! When workflows start: in a closed loop, which keeps a number of them in flight, or at a rate, whatever becomes of them.
//!
//! At a rate, a workflow's latency counts from the time at which it was to start. So a server that falls behind shows it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use hdrhistogram::Histogram;
use tokio::task::JoinSet;

use crate::api::Api;
use crate::close::run_workflow;
use crate::worker::{Worker, WorkerOptions};
use crate::workload::Workload;

const MAX_LATENCY_US: u64 = 600_000_000;
/// Latencies are kept with three significant digits.
const PRECISION: u8 = 3;
/// Errors after which a slot of the closed loop gives up.
const MAX_ERRORS_PER_SLOT: u64 = 5;

#[derive(Clone, Copy)]
pub enum Pace {
    /// So many in flight: a new one starts when one has closed.
    InFlight(usize),
    /// So many starts a second.
    PerSecond(f64),
}

impl fmt::Display for Pace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InFlight(in_flight) => write!(formatter, "{in_flight}"),
            Self::PerSecond(rate) => write!(formatter, "{rate}/s"),
        }
    }
}

#[derive(Clone, Copy)]
pub enum Until {
    Deadline(Instant),
    /// So many workflows in all.
    Count(u64),
}

impl Until {
    pub fn elapsed(seconds: f64) -> Self {
        Self::Deadline(Instant::now() + Duration::from_secs_f64(seconds))
    }
}

/// What was measured.
pub struct Outcome {
    pub latency_us: Histogram<u64>,
    pub errors: u64,
    pub elapsed: Duration,
}

/// One workload with its worker, on a task queue of its own.
pub struct Load {
    slots: Arc<Slots>,
    pace: Pace,
    _worker: Worker,
}

/// What the workflows share.
struct Slots {
    api: Api,
    workload: Workload,
    task_queue: String,
    timeout: Duration,
    started: AtomicU64,
}

impl Load {
    pub fn start(api: Api, workload: Workload, pace: Pace, options: &WorkerOptions, timeout: Duration) -> Self {
        let task_queue = format!("load-{}-{:x}", workload.name(), unique());
        let worker = Worker::start(api.clone(), &task_queue, options);
        let slots = Slots { api, workload, task_queue, timeout, started: AtomicU64::new(0) };
        Self { slots: Arc::new(slots), pace, _worker: worker }
    }

    /// Keeps the load up until then, and waits for the workflows that are still in flight.
    pub async fn run(&self, until: Until) -> Outcome {
        let begun = Instant::now();
        let mut running = JoinSet::new();
        match self.pace {
            Pace::InFlight(in_flight) => {
                let limit = match until {
                    Until::Count(count) => self.slots.started.load(Ordering::Relaxed) + count,
                    Until::Deadline(_) => u64::MAX,
                };
                for _ in 0..in_flight {
                    running.spawn(Arc::clone(&self.slots).run_slot(until, limit));
                }
            }
            Pace::PerSecond(rate) => self.start_at(rate, until, &mut running).await,
        }
        let mut outcome = Outcome { latency_us: histogram(), errors: 0, elapsed: Duration::ZERO };
        while let Some(slot) = running.join_next().await {
            let Ok((latency_us, errors)) = slot else {
                outcome.errors += 1;
                continue;
            };
            outcome.latency_us += latency_us;
            outcome.errors += errors;
        }
        outcome.elapsed = begun.elapsed();
        outcome
    }

    async fn start_at(&self, rate: f64, until: Until, running: &mut JoinSet<(Histogram<u64>, u64)>) {
        let begun = Instant::now();
        for number in 0_u32.. {
            let intended = begun + Duration::from_secs_f64(f64::from(number) / rate);
            match until {
                Until::Deadline(deadline) if intended >= deadline => return,
                Until::Count(count) if u64::from(number) >= count => return,
                Until::Deadline(_) | Until::Count(_) => tokio::time::sleep_until(intended.into()).await,
            }
            running.spawn(Arc::clone(&self.slots).run_once(intended));
        }
    }
}

impl Slots {
    /// One workflow after the other.
    async fn run_slot(self: Arc<Self>, until: Until, limit: u64) -> (Histogram<u64>, u64) {
        let mut latency_us = histogram();
        let mut errors = 0;
        while errors < MAX_ERRORS_PER_SLOT {
            if matches!(until, Until::Deadline(deadline) if Instant::now() >= deadline) {
                break;
            }
            let number = self.started.fetch_add(1, Ordering::Relaxed);
            if number >= limit {
                self.started.fetch_sub(1, Ordering::Relaxed);
                break;
            }
            let started = Instant::now();
            errors += self.run_timed(number, started, &mut latency_us).await;
        }
        (latency_us, errors)
    }

    async fn run_once(self: Arc<Self>, intended: Instant) -> (Histogram<u64>, u64) {
        let mut latency_us = histogram();
        let number = self.started.fetch_add(1, Ordering::Relaxed);
        let errors = self.run_timed(number, intended, &mut latency_us).await;
        (latency_us, errors)
    }

    /// Gives the number of errors.
    async fn run_timed(&self, number: u64, since: Instant, latency_us: &mut Histogram<u64>) -> u64 {
        match self.run_one(number).await {
            Ok(()) => {
                let elapsed_us = u64::try_from(since.elapsed().as_micros()).unwrap_or(MAX_LATENCY_US);
                latency_us.saturating_record(elapsed_us.max(1));
                0
            }
            Err(error) => {
                eprintln!("{}, workflow {number}: {error:#}", self.task_queue);
                1
            }
        }
    }

    async fn run_one(&self, number: u64) -> Result<()> {
        let workflow_id = format!("{}-{number}", self.task_queue);
        tokio::time::timeout(
            self.timeout,
            run_workflow(&self.api, self.workload.of_number(number), &self.task_queue, workflow_id),
        )
        .await
        .unwrap_or_else(|_| Err(anyhow!("did not close within {} s", self.timeout.as_secs_f64())))
    }
}

#[allow(clippy::expect_used)]
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, MAX_LATENCY_US, PRECISION).expect("the bounds are constants that it accepts")
}

/// Tells the runs of this program apart on a server that remembers them.
fn unique() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(std::process::id())
}
