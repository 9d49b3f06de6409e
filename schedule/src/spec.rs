//! Specifications: sets of points in time, and the next one of them.
//!
//! Times have a resolution of one second; only jitter adds milliseconds. A specification is the union of its calendars and
//! intervals, without what its excluding calendars match, from its start to its end, both included.

mod calendar;
mod parse;
mod zone;

use perdure_proto::temporal::api::schedule::v1::{IntervalSpec, Range, ScheduleSpec, StructuredCalendarSpec};
use perdure_types::{Duration, Timestamp};

use calendar::{Calendar, FIRST_YEAR, LAST_YEAR};
use zone::Zone;

const NANOS: i64 = 1_000_000_000;
const MAX_COMMENT_BYTES: usize = 200;
/// Times tried in one search before it rests: a specification may exclude nearly all that it includes.
const MAX_TRIES: usize = 10_000;

/// A specification that is ready to be asked.
#[derive(Debug, Clone)]
pub struct Spec {
    canonical: ScheduleSpec,
    zone: Zone,
    calendars: Vec<Calendar>,
    excludes: Vec<Calendar>,
    /// Interval and phase in seconds.
    intervals: Vec<(i64, i64)>,
    start: Option<Timestamp>,
    end: Option<Timestamp>,
    jitter: Duration,
    seed: u64,
}

/// What a search found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    At(Match),
    /// Nothing up to here; the search goes on from there.
    NotBefore(Timestamp),
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Match {
    /// The time that the specification names.
    pub nominal: Timestamp,
    /// With jitter.
    pub actual: Timestamp,
}

impl Spec {
    /// Refuses with the reason what is no specification. `seed`: of the jitter; the same seed gives the same times.
    pub fn compile(spec: &ScheduleSpec, seed: &str) -> Result<Self, String> {
        let canonical = canonical(spec)?;
        let zone = Zone::find(&canonical.timezone_name, &canonical.timezone_data).ok_or_else(|| {
            match canonical.timezone_data.is_empty() {
                true => format!("unknown time zone {}", canonical.timezone_name),
                false => "malformed time zone information".to_owned(),
            }
        })?;
        let time = |time: &Option<prost_types::Timestamp>| time.as_ref().map(|time| Timestamp::from_proto(Some(time)));
        let seconds = |duration: &Option<prost_types::Duration>| Duration::from_proto(duration.as_ref()).0 / NANOS;
        Ok(Self {
            calendars: canonical.structured_calendar.iter().map(Calendar::compile).collect(),
            excludes: canonical.exclude_structured_calendar.iter().map(Calendar::compile).collect(),
            intervals: canonical.interval.iter().map(|i| (seconds(&i.interval).max(1), seconds(&i.phase))).collect(),
            start: time(&canonical.start_time),
            end: time(&canonical.end_time),
            jitter: Duration::from_proto(canonical.jitter.as_ref()),
            seed: xxhash_rust::xxh3::xxh3_64(seed.as_bytes()),
            zone,
            canonical,
        })
    }

    /// With strings compiled into structured calendars and intervals.
    pub fn canonical(&self) -> &ScheduleSpec {
        &self.canonical
    }

    /// The first time after this one.
    pub fn next(&self, after: Timestamp) -> Next {
        let mut after = after.0.div_euclid(NANOS);
        if let Some(start) = self.start
            && after < start.0.div_euclid(NANOS)
        {
            // The first second of the range belongs to it.
            after = (start.0 - 1).div_euclid(NANOS);
        }
        for _ in 0..MAX_TRIES {
            let Some(nominal) = self.next_included(after) else {
                return Next::Never;
            };
            let at = at_second(nominal);
            if self.end.is_some_and(|end| at > end) {
                return Next::Never;
            }
            if !self.excludes.iter().any(|calendar| calendar.matches(&self.zone, nominal)) {
                return Next::At(Match { nominal: at, actual: self.with_jitter(nominal) });
            }
            after = nominal;
        }
        Next::NotBefore(at_second(after))
    }

    /// The first included second after this one.
    fn next_included(&self, after: i64) -> Option<i64> {
        let calendars = self.calendars.iter().filter_map(|calendar| calendar.next(&self.zone, after + 1));
        let intervals = self.intervals.iter().map(|(interval, phase)| {
            let periods = (after - phase).div_euclid(*interval) + 1;
            periods.saturating_mul(*interval).saturating_add(*phase)
        });
        calendars.chain(intervals).min()
    }

    /// Never as late as the time that follows.
    fn with_jitter(&self, nominal: i64) -> Timestamp {
        let at = at_second(nominal);
        if self.jitter.0 <= 0 {
            return at;
        }
        let room = self.next_included(nominal).map_or(Duration(i64::MAX), |next| at_second(next).since(at));
        let most_ms = (self.jitter.min(room).0 / 1_000_000).min(i64::from(u32::MAX)) as u64;
        let hash = xxhash_rust::xxh3::xxh3_64_with_seed(&nominal.to_be_bytes(), self.seed) >> 32;
        at + Duration::from_millis(((hash * most_ms) >> 32) as i64)
    }
}

fn at_second(second: i64) -> Timestamp {
    Timestamp(second.saturating_mul(NANOS))
}

#[allow(deprecated)]
fn canonical(spec: &ScheduleSpec) -> Result<ScheduleSpec, String> {
    let mut out = spec.clone();
    for calendar in std::mem::take(&mut out.calendar) {
        out.structured_calendar.push(parse::calendar(&calendar)?);
    }
    for calendar in std::mem::take(&mut out.exclude_calendar) {
        out.exclude_structured_calendar.push(parse::calendar(&calendar)?);
    }
    let mut cron_zone: Option<String> = None;
    for text in std::mem::take(&mut out.cron_string) {
        let (cron, zone) = parse::cron(&text)?;
        // All must agree, also on having none.
        if cron_zone.as_ref().is_some_and(|known| *known != zone) {
            return Err(CONFLICTING_ZONES.to_owned());
        }
        cron_zone = Some(zone);
        match cron {
            parse::Cron::Calendar(calendar) => out.structured_calendar.push(calendar),
            parse::Cron::Interval(interval) => out.interval.push(interval),
        }
    }
    if let Some(zone) = cron_zone.filter(|zone| !zone.is_empty()) {
        let differs = !out.timezone_name.is_empty() && out.timezone_name != zone;
        if differs || !out.timezone_data.is_empty() {
            return Err(CONFLICTING_ZONES.to_owned());
        }
        out.timezone_name = zone;
    }
    for calendar in out.structured_calendar.iter_mut().chain(&mut out.exclude_structured_calendar) {
        check_calendar(calendar)?;
        fill_in_ranges(calendar);
    }
    for interval in &out.interval {
        check_interval(interval)?;
    }
    if Duration::from_proto(out.jitter.as_ref()).0 < 0 {
        return Err("jitter is negative".to_owned());
    }
    Ok(out)
}

const CONFLICTING_ZONES: &str = "conflicting timezone names";

fn check_calendar(calendar: &StructuredCalendarSpec) -> Result<(), String> {
    let mut errors = Vec::new();
    let mut check = |ranges: &[Range], field: &str, min: i32, max: i32| {
        for range in ranges {
            if range.start < min || range.start > max {
                errors.push(format!("{field} Start is not in range [{min}-{max}]"));
            }
            if range.end != 0 && (range.end < range.start || range.end > max) {
                errors.push(format!("{field} End is before Start or not in range [{min}-{max}]"));
            }
            if range.step < 0 {
                errors.push(format!("{field} has invalid Step"));
            }
        }
    };
    check(&calendar.second, "Second", 0, 59);
    check(&calendar.minute, "Minute", 0, 59);
    check(&calendar.hour, "Hour", 0, 23);
    check(&calendar.day_of_month, "DayOfMonth", 1, 31);
    check(&calendar.month, "Month", 1, 12);
    check(&calendar.year, "Year", FIRST_YEAR, LAST_YEAR);
    check(&calendar.day_of_week, "DayOfWeek", 0, 6);
    if calendar.comment.len() > MAX_COMMENT_BYTES {
        errors.push("comment is too long".to_owned());
    }
    if errors.is_empty() { Ok(()) } else { Err(format!("invalid calendar spec: {}", errors.join(", "))) }
}

/// Says what was left out.
fn fill_in_ranges(calendar: &mut StructuredCalendarSpec) {
    let StructuredCalendarSpec { second, minute, hour, day_of_month, month, year, day_of_week, .. } = calendar;
    for range in [second, minute, hour, day_of_month, month, year, day_of_week].into_iter().flatten() {
        range.end = range.end.max(range.start);
        range.step = range.step.max(1);
    }
}

fn check_interval(spec: &IntervalSpec) -> Result<(), String> {
    let interval = Duration::from_proto(spec.interval.as_ref());
    let phase = Duration::from_proto(spec.phase.as_ref());
    if interval < Duration::from_secs(1) {
        Err("interval is too small".to_owned())
    } else if phase < Duration::ZERO {
        Err("phase is negative".to_owned())
    } else if phase >= interval {
        Err("phase cannot be greater than Interval".to_owned())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
