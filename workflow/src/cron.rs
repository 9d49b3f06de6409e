//! Cron schedules of workflows, in the dialect of Temporal's server: five fields, `@every 1h30m`, `@hourly` and the like,
//! and a time zone in front (`CRON_TZ=Europe/Berlin 0 9 * * MON-FRI`); UTC without one.
//!
//! Where a day of the month and a day of the week are both given, either will do. Local times that a clock change skips
//! do not come; those that it repeats come twice.

use chrono::{DateTime, Datelike, Days, Months, NaiveDate, NaiveTime, TimeDelta, TimeZone, Timelike};
use chrono_tz::Tz;
use perdure_proto::Error;
use perdure_types::{Duration, Timestamp};

/// Refuses what is no schedule, and a schedule that never comes.
pub(crate) fn validate(schedule: &str, now: Timestamp) -> Result<(), Error> {
    if schedule.is_empty() {
        return Ok(());
    }
    let parsed = Schedule::parse(schedule).ok_or_else(|| Error::invalid_argument("invalid CronSchedule."))?;
    match parsed.next(now) {
        Some(_) => Ok(()),
        None => Err(Error::invalid_argument("invalid CronSchedule, no time can be found to satisfy the schedule")),
    }
}

/// How long the first run waits. Zero without a schedule.
pub(crate) fn first_backoff(schedule: &str, now: Timestamp) -> Duration {
    next_backoff(schedule, now, now).unwrap_or_default()
}

/// How long the run after the one that was due at `due` waits, in whole seconds. Times that have passed meanwhile are
/// left out.
pub(crate) fn next_backoff(schedule: &str, due: Timestamp, now: Timestamp) -> Option<Duration> {
    if schedule.is_empty() {
        return None;
    }
    let next = if now < due { due } else { Schedule::parse(schedule)?.next_not_before(due, now)? };
    let wait = next.since(now).0;
    Some(Duration::from_secs(wait.div_euclid(NANOS) + i64::from(wait.rem_euclid(NANOS) != 0)))
}

const NANOS: i64 = 1_000_000_000;
/// A schedule that has no time within so many years never comes.
const HORIZON_YEARS: i32 = 5;

#[derive(Debug, Clone, PartialEq)]
enum Schedule {
    Every(Duration),
    Fields(Fields),
}

#[derive(Debug, Clone, PartialEq)]
struct Fields {
    zone: Tz,
    minute: Field,
    hour: Field,
    day_of_month: Field,
    month: Field,
    day_of_week: Field,
}

/// The values of a field as bits, and whether it was left open by a star.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Field {
    bits: u64,
    star: bool,
}

impl Field {
    fn has(self, value: u32) -> bool {
        self.bits & (1 << value) != 0
    }
}

impl Schedule {
    fn parse(spec: &str) -> Option<Self> {
        let mut spec = spec.trim();
        let mut zone = Tz::UTC;
        if let Some(named) = spec.strip_prefix("CRON_TZ=").or_else(|| spec.strip_prefix("TZ=")) {
            let (name, rest) = named.split_once(' ')?;
            zone = name.parse().ok()?;
            spec = rest.trim();
        }
        let fields = match spec {
            "@yearly" | "@annually" => "0 0 1 1 *",
            "@monthly" => "0 0 1 * *",
            "@weekly" => "0 0 * * 0",
            "@daily" | "@midnight" => "0 0 * * *",
            "@hourly" => "0 * * * *",
            _ => match spec.strip_prefix("@every ") {
                // Whole seconds, one at least.
                Some(every) => {
                    let seconds = parse_duration(every)?.0 / NANOS;
                    return Some(Self::Every(Duration::from_secs(seconds.max(1))));
                }
                None => spec,
            },
        };
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let [minute, hour, day_of_month, month, day_of_week] = fields[..] else {
            return None;
        };
        Some(Self::Fields(Fields {
            zone,
            minute: parse_field(minute, 0, 59, &[])?,
            hour: parse_field(hour, 0, 23, &[])?,
            day_of_month: parse_field(day_of_month, 1, 31, &[])?,
            month: parse_field(month, 1, 12, &MONTHS)?,
            day_of_week: parse_field(day_of_week, 0, 6, &DAYS)?,
        }))
    }

    /// The first time of the schedule after `time`.
    fn next(&self, time: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Every(interval) => Some(whole_seconds(time) + *interval),
            Self::Fields(fields) => fields.next(time),
        }
    }

    /// The first time of the schedule after `due` that has not passed at `now`.
    fn next_not_before(&self, due: Timestamp, now: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Every(interval) => {
                let base = whole_seconds(due);
                let passed = now.as_nanos().saturating_sub(base.as_nanos());
                let times = passed.div_euclid(interval.0) + i64::from(passed.rem_euclid(interval.0) != 0);
                Some(base + Duration(interval.0.saturating_mul(times.max(1))))
            }
            Self::Fields(fields) => fields.next(due.max(now - Duration(1))),
        }
    }
}

fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp(time.as_nanos().div_euclid(NANOS) * NANOS)
}

impl Fields {
    fn next(&self, after: Timestamp) -> Option<Timestamp> {
        // The first whole minute after it.
        const MINUTE: i64 = 60;
        let second = after.as_nanos().div_euclid(NANOS) + 1;
        let minute = (second + MINUTE - 1).div_euclid(MINUTE) * MINUTE;
        let mut time = DateTime::from_timestamp(minute, 0)?.with_timezone(&self.zone);
        let last_year = time.year() + HORIZON_YEARS;
        while time.year() <= last_year {
            let date = time.date_naive();
            if !self.month.has(time.month()) {
                time = self.start_of_day(date.with_day(1)?.checked_add_months(Months::new(1))?)?;
            } else if !self.day_matches(date) {
                time = self.start_of_day(date.checked_add_days(Days::new(1))?)?;
            } else if !self.hour.has(time.hour()) {
                time = time - TimeDelta::minutes(i64::from(time.minute())) + TimeDelta::hours(1);
            } else if !self.minute.has(time.minute()) {
                time += TimeDelta::minutes(1);
            } else {
                return Some(Timestamp(time.timestamp().checked_mul(NANOS)?));
            }
        }
        None
    }

    fn day_matches(&self, date: NaiveDate) -> bool {
        let month_day = self.day_of_month.has(date.day());
        let week_day = self.day_of_week.has(date.weekday().num_days_from_sunday());
        if self.day_of_month.star || self.day_of_week.star { month_day && week_day } else { month_day || week_day }
    }

    /// The first moment of a day; some days have no midnight.
    fn start_of_day(&self, date: NaiveDate) -> Option<DateTime<Tz>> {
        let midnight = date.and_time(NaiveTime::MIN);
        (0..24 * 4)
            .map(|quarter| midnight + TimeDelta::minutes(15 * quarter))
            .find_map(|local| self.zone.from_local_datetime(&local).earliest())
    }
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// A list of `*`, `n`, `n-m`, each with `/step`.
fn parse_field(text: &str, min: u32, max: u32, names: &[&str]) -> Option<Field> {
    let mut field = Field { bits: 0, star: false };
    for part in text.split(',').filter(|part| !part.is_empty()) {
        let range = parse_range(part, min, max, names)?;
        field.bits |= range.bits;
        field.star |= range.star;
    }
    // Nothing but commas is no list.
    (field.bits != 0).then_some(field)
}

fn parse_range(text: &str, min: u32, max: u32, names: &[&str]) -> Option<Field> {
    let (range, step) = match text.split_once('/') {
        Some((range, step)) => (range, Some(parse_number(step)?)),
        None => (text, None),
    };
    let value = |text: &str| {
        let name = names.iter().position(|name| text.eq_ignore_ascii_case(name));
        name.map_or_else(|| parse_number(text), |index| Some(index as u32 + min))
    };
    let (start, end, star) = match range.split_once('-') {
        None if range == "*" || range == "?" => (min, max, step.is_none_or(|step| step == 1)),
        // `n/step` runs to the end.
        None => (value(range)?, if step.is_some() { max } else { value(range)? }, false),
        Some(("*" | "?", _)) => (min, max, step.is_none_or(|step| step == 1)),
        Some((start, end)) => (value(start)?, value(end)?, false),
    };
    let step = step.unwrap_or(1);
    if start < min || end > max || start > end || step == 0 {
        return None;
    }
    let bits = (start..=end).step_by(step as usize).fold(0, |bits, value| bits | 1 << value);
    Some(Field { bits, star })
}

fn parse_number(text: &str) -> Option<u32> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok())?
}

/// A duration as Go writes it: `1h30m`, `1.5s`, `250ms`.
fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut total = 0f64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..unit_end] {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        rest = &rest[unit_end..];
        total += number * unit;
    }
    (total < i64::MAX as f64).then_some(Duration(total as i64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        Timestamp(DateTime::parse_from_rfc3339(text).expect("a time").timestamp_nanos_opt().expect("in range"))
    }

    fn check(spec: &str, after: &str, expect: &[&str]) {
        let schedule = Schedule::parse(spec).unwrap_or_else(|| panic!("{spec:?} does not parse"));
        let mut time = at(after);
        for expect in expect {
            time = schedule.next(time).unwrap_or_else(|| panic!("{spec:?} has no time after {after}"));
            assert_eq!(time, at(expect), "{spec:?}: expected {expect}, got {time:?}");
        }
    }

    #[test]
    fn fields() {
        check("* * * * *", "2026-01-01T00:00:00Z", &["2026-01-01T00:01:00Z", "2026-01-01T00:02:00Z"]);
        check("* * * * *", "2026-01-01T00:00:59.5Z", &["2026-01-01T00:01:00Z"]);
        check("*/15 * * * *", "2026-01-01T00:44:00Z", &["2026-01-01T00:45:00Z", "2026-01-01T01:00:00Z"]);
        check(
            "5/20 * * * *",
            "2026-01-01T00:00:00Z",
            &["2026-01-01T00:05:00Z", "2026-01-01T00:25:00Z", "2026-01-01T00:45:00Z", "2026-01-01T01:05:00Z"],
        );
        check(
            "0 9-17/4 * * *",
            "2026-01-01T09:00:00Z",
            &["2026-01-01T13:00:00Z", "2026-01-01T17:00:00Z", "2026-01-02T09:00:00Z"],
        );
        check("30 8 1,15 * ?", "2026-01-02T00:00:00Z", &["2026-01-15T08:30:00Z", "2026-02-01T08:30:00Z"]);
        check("0 0 * JAN,Mar *", "2026-01-31T12:00:00Z", &["2026-03-01T00:00:00Z"]);
        check("0 0 29 2 *", "2026-01-01T00:00:00Z", &["2028-02-29T00:00:00Z"]);
        check("0 12 * * MON-FRI", "2026-01-02T12:00:00Z", &["2026-01-05T12:00:00Z"]);
    }

    #[test]
    fn either_day_will_do_unless_one_is_open() {
        // The 13th, or a Friday.
        check(
            "0 0 13 * FRI",
            "2026-01-08T00:00:00Z",
            &["2026-01-09T00:00:00Z", "2026-01-13T00:00:00Z", "2026-01-16T00:00:00Z"],
        );
        // A step of more than one is not "open".
        check("0 0 */10 * SUN", "2026-01-01T00:00:00Z", &["2026-01-04T00:00:00Z", "2026-01-11T00:00:00Z"]);
        check("0 0 * * SUN", "2026-01-01T00:00:00Z", &["2026-01-04T00:00:00Z", "2026-01-11T00:00:00Z"]);
    }

    #[test]
    fn descriptors() {
        check("@hourly", "2026-01-01T00:30:00Z", &["2026-01-01T01:00:00Z"]);
        check("@daily", "2026-01-01T00:30:00Z", &["2026-01-02T00:00:00Z"]);
        check("@weekly", "2026-01-01T00:30:00Z", &["2026-01-04T00:00:00Z"]);
        check("@monthly", "2026-01-01T00:30:00Z", &["2026-02-01T00:00:00Z"]);
        check("@annually", "2026-01-01T00:30:00Z", &["2027-01-01T00:00:00Z"]);
        check("@every 1h30m", "2026-01-01T00:00:00.7Z", &["2026-01-01T01:30:00Z", "2026-01-01T03:00:00Z"]);
        check("@every 10ms", "2026-01-01T00:00:00Z", &["2026-01-01T00:00:01Z"]);
    }

    #[test]
    fn time_zones_and_clock_changes() {
        check("CRON_TZ=America/New_York 0 9 * * *", "2026-07-01T00:00:00Z", &["2026-07-01T13:00:00Z"]);
        check("TZ=Asia/Kolkata 0 9 * * *", "2026-07-01T00:00:00Z", &["2026-07-01T03:30:00Z"]);
        // 02:30 does not exist on 8 March 2026 in New York.
        check("CRON_TZ=America/New_York 30 2 * * *", "2026-03-07T12:00:00Z", &["2026-03-09T06:30:00Z"]);
        // 01:30 comes twice on 1 November 2026.
        check(
            "CRON_TZ=America/New_York 30 1 * * *",
            "2026-11-01T00:00:00Z",
            &["2026-11-01T05:30:00Z", "2026-11-01T06:30:00Z", "2026-11-02T06:30:00Z"],
        );
        // No midnight on 6 September 2026 in Santiago.
        check("CRON_TZ=America/Santiago 0 * 6 9 *", "2026-09-05T12:00:00Z", &["2026-09-06T04:00:00Z"]);
    }

    #[test]
    fn nonsense_is_refused() {
        let now = at("2026-01-01T00:00:00Z");
        for spec in [
            "* * * *",
            "* * * * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 7",
            "5-1 * * * *",
            "*/0 * * * *",
            "1-2-3 * * * *",
            "1/2/3 * * * *",
            "x * * * *",
            "@sometimes",
            "@every",
            "@every x",
            "@every 5",
            "CRON_TZ=Nowhere/Land * * * * *",
            "TZ=UTC",
            "+5 * * * *",
            ", * * * *",
        ] {
            assert_eq!(validate(spec, now).map_err(|e| e.message), Err("invalid CronSchedule.".to_owned()), "{spec:?}");
        }
        let never = validate("0 0 30 2 *", now).expect_err("never comes").message;
        assert_eq!(never, "invalid CronSchedule, no time can be found to satisfy the schedule");
        assert_eq!(validate("", now), Ok(()));
    }

    #[test]
    fn backoff_is_from_now_and_leaves_out_what_has_passed() {
        let check = |spec: &str, due: &str, now: &str, expect_s: i64| {
            assert_eq!(
                next_backoff(spec, at(due), at(now)),
                Some(Duration::from_secs(expect_s)),
                "{spec:?} {due} {now}"
            );
        };
        check("@every 10s", "2026-01-01T00:00:00Z", "2026-01-01T00:00:03Z", 7);
        check("@every 10s", "2026-01-01T00:00:00Z", "2026-01-01T00:00:20Z", 0);
        check("@every 10s", "2026-01-01T00:00:00Z", "2026-01-01T00:00:24.5Z", 6);
        check("* * * * *", "2026-01-01T00:01:00Z", "2026-01-01T00:01:00.25Z", 60);
        check("* * * * *", "2026-01-01T00:01:00Z", "2026-01-01T00:05:10Z", 50);
        check("* * * * *", "2026-01-01T00:09:00Z", "2026-01-01T00:05:10Z", 230);
        assert_eq!(next_backoff("", at("2026-01-01T00:00:00Z"), at("2026-01-01T00:00:00Z")), None);
        assert_eq!(first_backoff("* * * * *", at("2026-01-01T00:00:10Z")), Duration::from_secs(50));
    }
}
