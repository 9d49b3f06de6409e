//! The figures of a chaos run.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use super::Shared;
use super::check::Violation;
use super::driver::Driver;
use super::journal::{Call, Outcome};
use super::progress::Stall;
use super::story::Run;

/// Stalls and violations that are shown one by one.
const SHOWN: usize = 8;

/// Something that was done to the cluster.
pub struct Happened {
    pub at: Instant,
    pub what: String,
}

/// What is a failure, beside violations and workflows that do not end.
pub struct Limits {
    pub stall_ms: Option<u64>,
    pub no_failed_call: bool,
}

#[derive(Debug, Serialize)]
pub struct Report {
    seconds: f64,
    workflows: u64,
    runs: usize,
    calls: u64,
    retries: u64,
    failed_calls: u64,
    unknown_outcomes: usize,
    step_ms_p50: u32,
    step_ms_p99: u32,
    step_ms_max: u32,
    longest_gap_ms: u64,
    longest_stall_ms: u64,
    /// One an event: in the time from one to the next.
    events: Vec<Window>,
    /// Over all events of a kind.
    kinds: BTreeMap<String, Kind>,
    violations: Vec<String>,
    #[serde(skip)]
    worst: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Window {
    what: String,
    at_ms: u64,
    longest_stall_ms: u64,
    longest_gap_ms: u64,
    /// Stalls of more than two seconds.
    long_stalls: usize,
    step_ms_p50: u32,
    step_ms_p99: u32,
}

#[derive(Debug, Serialize)]
struct Kind {
    count: usize,
    longest_stall_ms_p50: u64,
    longest_stall_ms_p99: u64,
    longest_stall_ms_max: u64,
    longest_gap_ms_max: u64,
}

const LONG: Duration = Duration::from_secs(2);

impl Report {
    pub fn new(
        shared: &Shared,
        driver: &Driver,
        time: Range<Instant>,
        happened: &[Happened],
        calls: &[Call],
        runs: &[Run],
        violations: &[Violation],
    ) -> Self {
        let mut stalls = shared.progress.stalls();
        stalls.sort_by_key(|stall| std::cmp::Reverse(stall.length()));
        let gaps = shared.progress.gaps();
        let steps = shared.progress.lengths_ms();
        let events = windows(&time, happened, &stalls, &gaps, &steps);
        let steps = sorted(steps.into_iter());
        let counter = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            seconds: time.end.duration_since(time.start).as_secs_f64(),
            workflows: driver.started(),
            runs: runs.len(),
            calls: counter(&shared.nodes.calls),
            retries: counter(&shared.nodes.retries),
            failed_calls: counter(&shared.nodes.failed),
            unknown_outcomes: calls.iter().filter(|call| matches!(call.outcome, Outcome::Unknown(_))).count(),
            step_ms_p50: quantile(&steps, 0.5),
            step_ms_p99: quantile(&steps, 0.99),
            step_ms_max: steps.last().copied().unwrap_or(0),
            longest_gap_ms: gaps.iter().map(|gap| ms(gap.1.duration_since(gap.0))).max().unwrap_or(0),
            longest_stall_ms: stalls.first().map_or(0, |stall| ms(stall.length())),
            kinds: kinds(&events),
            events,
            violations: violations
                .iter()
                .map(|found| format!("{}: {}: {}", found.rule, found.workflow_id, found.what))
                .collect(),
            worst: stalls.iter().take(SHOWN).map(|stall| describe(stall, time.start)).collect(),
        }
    }

    pub fn print(&self) {
        println!("\nthe slowest steps:");
        self.worst.iter().for_each(|stall| println!("  {stall}"));
        println!(
            "\n{:<28} {:>8} {:>12} {:>10} {:>12} {:>10} {:>10}",
            "event", "at s", "stall ms", "gap ms", "stalls > 2 s", "p50 ms", "p99 ms"
        );
        for window in &self.events {
            println!(
                "{:<28} {:>8.1} {:>12} {:>10} {:>12} {:>10} {:>10}",
                window.what,
                window.at_ms as f64 / 1000.0,
                window.longest_stall_ms,
                window.longest_gap_ms,
                window.long_stalls,
                window.step_ms_p50,
                window.step_ms_p99
            );
        }
        for (name, kind) in &self.kinds {
            println!(
                "{name}: {} times, longest stall of any workflow p50 {} ms, p99 {} ms, max {} ms; longest gap {} ms",
                kind.count,
                kind.longest_stall_ms_p50,
                kind.longest_stall_ms_p99,
                kind.longest_stall_ms_max,
                kind.longest_gap_ms_max
            );
        }
        println!(
            "{} workflows ({} runs) in {:.0} s; {} calls, {} retries, {} failed for good, {} outcomes unknown; steps p50 {} \
             ms, p99 {} ms, max {} ms",
            self.workflows,
            self.runs,
            self.seconds,
            self.calls,
            self.retries,
            self.failed_calls,
            self.unknown_outcomes,
            self.step_ms_p50,
            self.step_ms_p99,
            self.step_ms_max
        );
        for violation in self.violations.iter().take(SHOWN) {
            println!("VIOLATION {violation}");
        }
    }

    /// One line.
    pub fn verdict(&self, limits: &Limits) -> Result<String, String> {
        let figures = format!(
            "{} events, longest stall {} ms, longest gap {} ms, {} failed calls, {} violations",
            self.events.len(),
            self.longest_stall_ms,
            self.longest_gap_ms,
            self.failed_calls,
            self.violations.len()
        );
        let is_slow = limits.stall_ms.is_some_and(|most| self.longest_stall_ms > most);
        let has_failed = limits.no_failed_call && self.failed_calls > 0;
        if self.violations.is_empty() && !is_slow && !has_failed {
            Ok(format!("OK: {figures}"))
        } else {
            Err(format!("FAILED: {figures}"))
        }
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        let mut file = File::create(path)?;
        serde_json::to_writer_pretty(&mut file, self)?;
        writeln!(file)?;
        Ok(())
    }
}

/// What stood still from one event to the next.
fn windows(
    time: &Range<Instant>,
    happened: &[Happened],
    stalls: &[Stall],
    gaps: &[(Instant, Instant)],
    steps: &[(Instant, u32)],
) -> Vec<Window> {
    let mut windows = Vec::new();
    for (index, event) in happened.iter().enumerate() {
        let end = happened.get(index + 1).map_or(time.end, |next| next.at);
        let inside = |from: Instant, until: Instant| until > event.at && from < end;
        let stalls: Vec<&Stall> = stalls.iter().filter(|stall| inside(stall.from, stall.until)).collect();
        let steps = sorted(steps.iter().copied().filter(|(at, _)| (event.at..end).contains(at)));
        let gaps = gaps.iter().filter(|gap| inside(gap.0, gap.1)).map(|gap| ms(gap.1.duration_since(gap.0)));
        windows.push(Window {
            what: event.what.clone(),
            at_ms: ms(event.at.duration_since(time.start)),
            longest_stall_ms: stalls.iter().map(|stall| ms(stall.length())).max().unwrap_or(0),
            longest_gap_ms: gaps.max().unwrap_or(0),
            long_stalls: stalls.iter().filter(|stall| stall.length() > LONG).count(),
            step_ms_p50: quantile(&steps, 0.5),
            step_ms_p99: quantile(&steps, 0.99),
        });
    }
    windows
}

fn sorted(steps: impl Iterator<Item = (Instant, u32)>) -> Vec<u32> {
    let mut lengths: Vec<u32> = steps.map(|(_, length)| length).collect();
    lengths.sort_unstable();
    lengths
}

/// Of sorted values; 0 of none.
fn quantile<T: Copy + Default>(sorted: &[T], of: f64) -> T {
    let index = ((sorted.len() as f64 * of) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(index).copied().unwrap_or_default()
}

/// Events whose first word is the same are of one kind.
fn kinds(windows: &[Window]) -> BTreeMap<String, Kind> {
    let mut by_kind: BTreeMap<String, Vec<&Window>> = BTreeMap::new();
    for window in windows {
        let kind = window.what.split_whitespace().next().unwrap_or_default();
        by_kind.entry(kind.to_owned()).or_default().push(window);
    }
    let summary = |windows: Vec<&Window>| {
        let mut longest: Vec<u64> = windows.iter().map(|window| window.longest_stall_ms).collect();
        longest.sort_unstable();
        Kind {
            count: longest.len(),
            longest_stall_ms_p50: quantile(&longest, 0.5),
            longest_stall_ms_p99: quantile(&longest, 0.99),
            longest_stall_ms_max: quantile(&longest, 1.0),
            longest_gap_ms_max: windows.iter().map(|window| window.longest_gap_ms).max().unwrap_or(0),
        }
    };
    by_kind.into_iter().map(|(kind, windows)| (kind, summary(windows))).collect()
}

fn describe(stall: &Stall, start: Instant) -> String {
    let at = stall.from.saturating_duration_since(start).as_secs_f64();
    let trail: Vec<String> = stall
        .trail
        .iter()
        .map(|(when, what)| format!("{what} +{}", ms(when.saturating_duration_since(stall.from))))
        .collect();
    format!("{} ms at {at:.2} s, {}: {}", ms(stall.length()), stall.workflow_id, trail.join(", "))
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
