//! How long a durable append takes in a directory: the floor of every latency of a server that keeps its promises there.

use std::fmt::{self, Display};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::Serialize;

const APPEND_BYTES: usize = 4096;
const MAX_APPENDS: u64 = 2_000;
const MAX_TIME: Duration = Duration::from_secs(2);

#[derive(Clone, Debug, Serialize)]
pub struct Timing {
    pub appends: u64,
    pub p50_ms: f64,
    pub p99_ms: f64,
}

impl Display for Timing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { appends, p50_ms, p99_ms } = self;
        write!(f, "fdatasync of a 4 KiB append: p50 {p50_ms:.3} ms, p99 {p99_ms:.3} ms ({appends} appends)")
    }
}

pub fn measure(directory: &Path) -> Result<Timing> {
    let path = directory.join(format!(".perdure-load-fsync-{}", std::process::id()));
    let timing = append(&path).with_context(|| format!("cannot append to a file in {}", directory.display()));
    // It may not have come to be.
    let _ = fs::remove_file(&path);
    timing
}

fn append(path: &Path) -> Result<Timing> {
    let mut file = OpenOptions::new().create_new(true).append(true).open(path)?;
    let block = [0x5a; APPEND_BYTES];
    let mut took_us = Histogram::<u64>::new(3)?;
    let begun = Instant::now();
    while took_us.len() < MAX_APPENDS && begun.elapsed() < MAX_TIME {
        let started = Instant::now();
        file.write_all(&block)?;
        file.sync_data()?;
        took_us.record(u64::try_from(started.elapsed().as_micros())?.max(1))?;
    }
    let ms = |quantile| took_us.value_at_quantile(quantile) as f64 / 1000.0;
    Ok(Timing { appends: took_us.len(), p50_ms: ms(0.5), p99_ms: ms(0.99) })
}

#[cfg(test)]
mod tests {
    #[test]
    fn leaves_nothing_behind() {
        let directory = std::env::temp_dir().join(format!("perdure-load-test-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let timing = super::measure(&directory).unwrap();
        assert!(timing.appends > 0 && timing.p99_ms >= timing.p50_ms && timing.p50_ms > 0.0);
        assert_eq!(std::fs::read_dir(&directory).unwrap().count(), 0);
        std::fs::remove_dir_all(&directory).unwrap();
        assert!(super::measure(&directory).is_err());
    }
}
