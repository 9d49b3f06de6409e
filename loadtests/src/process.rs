//! CPU time and memory of processes, from `/proc`.

use std::fs;

use anyhow::{Context, Result};

/// Linux reports CPU time in hundredths of a second, on every architecture that this runs on.
const MS_PER_TICK: u64 = 10;

/// The sum over some processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub cpu_ms: u64,
    pub rss_bytes: u64,
    /// Since each process began.
    pub peak_rss_bytes: u64,
}

impl Usage {
    pub fn of(pids: &[u32]) -> Result<Self> {
        pids.iter().map(|pid| Self::read(&pid.to_string())).try_fold(Self::default(), |sum, one| {
            let one = one?;
            Ok(Self {
                cpu_ms: sum.cpu_ms + one.cpu_ms,
                rss_bytes: sum.rss_bytes + one.rss_bytes,
                peak_rss_bytes: sum.peak_rss_bytes + one.peak_rss_bytes,
            })
        })
    }

    pub fn of_self() -> Result<Self> {
        Self::read("self")
    }

    /// The CPU time spent since then, with today's memory.
    pub fn since(self, before: &Self) -> Self {
        Self { cpu_ms: self.cpu_ms.saturating_sub(before.cpu_ms), ..self }
    }

    fn read(pid: &str) -> Result<Self> {
        let read = |file: &str| {
            let path = format!("/proc/{pid}/{file}");
            fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
        };
        let status = read("status")?;
        Ok(Self {
            cpu_ms: cpu_ms(&read("stat")?).context("unknown form of /proc/<pid>/stat")?,
            rss_bytes: kib_field(&status, "VmRSS:").unwrap_or(0) * 1024,
            peak_rss_bytes: kib_field(&status, "VmHWM:").unwrap_or(0) * 1024,
        })
    }
}

/// User and system time of a `/proc/<pid>/stat` line. The second field, the name, may hold spaces and parentheses.
fn cpu_ms(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) * MS_PER_TICK)
}

fn kib_field(status: &str, name: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_linux_writes() {
        let stat = "17 (a (b) c) S 1 17 17 0 -1 4194304 900 0 0 0 123 45 6 7 20 0 9 0 100 1 2";
        assert_eq!(cpu_ms(stat), Some(1680));
        assert_eq!(kib_field("Name:\tx\nVmHWM:\t   2048 kB\nVmRSS:\t 1024 kB\n", "VmHWM:"), Some(2048));
        assert!(Usage::of_self().unwrap().peak_rss_bytes > 0);
        assert!(Usage::of(&[u32::MAX]).is_err());
    }
}
