//! When workflows start. Now: a closed loop, which keeps a number of them in flight.

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
    in_flight: usize,
    _worker: Worker,
}

/// What the slots of the closed loop share.
struct Slots {
    api: Api,
    workload: Workload,
    task_queue: String,
    timeout: Duration,
    started: AtomicU64,
}

impl Load {
    pub fn start(api: Api, workload: Workload, in_flight: usize, options: &WorkerOptions, timeout: Duration) -> Self {
        let task_queue = format!("load-{}-{in_flight}-{:x}", workload.name(), unique());
        let worker = Worker::start(api.clone(), workload, &task_queue, options);
        let slots = Slots { api, workload, task_queue, timeout, started: AtomicU64::new(0) };
        Self { slots: Arc::new(slots), in_flight, _worker: worker }
    }

    /// Keeps the load up until then, and waits for the workflows that are still in flight.
    pub async fn run(&self, until: Until) -> Outcome {
        let begun = Instant::now();
        let limit = match until {
            Until::Count(count) => self.slots.started.load(Ordering::Relaxed) + count,
            Until::Deadline(_) => u64::MAX,
        };
        let mut running = JoinSet::new();
        for _ in 0..self.in_flight {
            running.spawn(Arc::clone(&self.slots).run_slot(until, limit));
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
            match self.run_one(number).await {
                Ok(()) => {
                    let elapsed_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(MAX_LATENCY_US);
                    latency_us.saturating_record(elapsed_us.max(1));
                }
                Err(error) => {
                    errors += 1;
                    eprintln!("{}, workflow {number}: {error:#}", self.task_queue);
                }
            }
        }
        (latency_us, errors)
    }

    async fn run_one(&self, number: u64) -> Result<()> {
        let workflow_id = format!("{}-{number}", self.task_queue);
        tokio::time::timeout(self.timeout, run_workflow(&self.api, self.workload, &self.task_queue, workflow_id))
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
