//! What a specification may be written as: calendars of strings, and cron strings. Both become structured calendars.

use perdure_proto::temporal::api::schedule::v1::{CalendarSpec, IntervalSpec, Range, StructuredCalendarSpec};
use perdure_types::Duration;

use super::calendar::{FIRST_YEAR, LAST_YEAR};

const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];
const DAYS: [&str; 7] = ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];

/// The names that a field knows: what counts from where, and how much of a name is enough.
#[derive(Clone, Copy)]
enum Names {
    None,
    Months,
    Days,
}

/// What a cron string comes to.
#[derive(Debug, PartialEq)]
pub(super) enum Cron {
    Calendar(StructuredCalendarSpec),
    Interval(IntervalSpec),
}

const MALFORMED: &str = "malformed expression";

pub(super) fn calendar(spec: &CalendarSpec) -> Result<StructuredCalendarSpec, String> {
    Ok(StructuredCalendarSpec {
        second: SECOND.parse(&spec.second)?,
        minute: MINUTE.parse(&spec.minute)?,
        hour: HOUR.parse(&spec.hour)?,
        day_of_month: DAY_OF_MONTH.parse(&spec.day_of_month)?,
        month: MONTH.parse(&spec.month)?,
        // A missing year is every year.
        year: if matches!(spec.year.trim(), "" | "*") { Vec::new() } else { YEAR.parse(&spec.year)? },
        day_of_week: sundays(DAY_OF_WEEK.parse(&spec.day_of_week)?),
        comment: spec.comment.clone(),
    })
}

/// Structured calendars know Sunday as 0 only; what is written may say 7, also as the end of a range.
fn sundays(ranges: Vec<Range>) -> Vec<Range> {
    let mut out = Vec::with_capacity(ranges.len() + 1);
    for range in ranges {
        let end = range.end.max(range.start);
        if end < 7 {
            out.push(range);
            continue;
        }
        if range.start > 0 && (7 - range.start) % range.step.max(1) == 0 {
            out.push(Range::default());
        }
        if range.start < 7 {
            out.push(Range { end: 6, ..range });
        }
    }
    out
}

/// The calendar or interval, and the time zone in front of it (empty: none).
pub(super) fn cron(text: &str) -> Result<(Cron, String), String> {
    let mut rest = text.trim();
    let mut zone = "";
    if let Some(named) = rest.strip_prefix("CRON_TZ=").or_else(|| rest.strip_prefix("TZ=")) {
        (zone, rest) = named.split_once(' ').ok_or(MALFORMED)?;
        rest = rest.trim();
    }
    let (fields, comment) = match rest.split_once('#') {
        Some((fields, comment)) => (fields.trim(), comment.trim()),
        None => (rest, ""),
    };
    if let Some(every) = fields.strip_prefix("@every") {
        return Ok((Cron::Interval(interval(every)?), zone.to_owned()));
    }
    let fields = match fields {
        "@yearly" | "@annually" => "0 0 1 1 *",
        "@monthly" => "0 0 1 * *",
        "@weekly" => "0 0 * * 0",
        "@daily" | "@midnight" => "0 0 * * *",
        "@hourly" => "0 * * * *",
        fields => fields,
    };
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let (second, fields, year) = match fields[..] {
        ref five if five.len() == 5 => ("0", five, "*"),
        [ref five @ .., year] if five.len() == 5 => ("0", five, year),
        [second, ref five @ .., year] if five.len() == 5 => (second, five, year),
        _ => return Err("CronString does not have 5-7 fields".to_owned()),
    };
    let spec = CalendarSpec {
        second: second.to_owned(),
        minute: fields[0].to_owned(),
        hour: fields[1].to_owned(),
        day_of_month: fields[2].to_owned(),
        month: fields[3].to_owned(),
        day_of_week: fields[4].to_owned(),
        year: year.to_owned(),
        comment: comment.to_owned(),
    };
    Ok((Cron::Calendar(calendar(&spec)?), zone.to_owned()))
}

/// "14h/3h": interval and phase.
fn interval(text: &str) -> Result<IntervalSpec, String> {
    let text = text.strip_prefix(' ').ok_or(MALFORMED)?.trim();
    let (interval, phase) = match text.split_once('/') {
        Some((interval, phase)) => (interval, Some(phase)),
        None => (text, None),
    };
    let interval = duration(interval)?.to_proto();
    let phase = phase.map(duration).transpose()?.map(Duration::to_proto);
    Ok(IntervalSpec { interval: Some(interval), phase })
}

/// Decimal integers with a unit; several add up ("1h30m").
fn duration(text: &str) -> Result<Duration, String> {
    let malformed = || format!("invalid duration {text:?}");
    let mut rest = text.trim();
    let mut seconds: i64 = 0;
    if rest.is_empty() {
        return Err(malformed());
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = rest.split_at(digits);
        let number: i64 = number.parse().map_err(|_| malformed())?;
        let (unit, after) = match unit.as_bytes().first() {
            Some(b's') => (1, &unit[1..]),
            Some(b'm') => (60, &unit[1..]),
            Some(b'h') => (3600, &unit[1..]),
            Some(b'd') => (86_400, &unit[1..]),
            _ => return Err(malformed()),
        };
        seconds = number.checked_mul(unit).and_then(|n| n.checked_add(seconds)).ok_or_else(malformed)?;
        rest = after;
    }
    Ok(Duration::from_secs(seconds))
}

/// One field of a calendar.
struct Field {
    name: &'static str,
    /// What a field that is left empty stands for.
    default: &'static str,
    min: i32,
    max: i32,
    names: Names,
}

const SECOND: Field = Field { name: "Second", default: "0", min: 0, max: 59, names: Names::None };
const MINUTE: Field = Field { name: "Minute", default: "0", min: 0, max: 59, names: Names::None };
const HOUR: Field = Field { name: "Hour", default: "0", min: 0, max: 23, names: Names::None };
const DAY_OF_MONTH: Field = Field { name: "DayOfMonth", default: "*", min: 1, max: 31, names: Names::None };
const MONTH: Field = Field { name: "Month", default: "*", min: 1, max: 12, names: Names::Months };
const YEAR: Field = Field { name: "Year", default: "*", min: FIRST_YEAR, max: LAST_YEAR, names: Names::None };
const DAY_OF_WEEK: Field = Field { name: "DayOfWeek", default: "*", min: 0, max: 7, names: Names::Days };

impl Field {
    /// `*`, `x`, `x-z`, each with an optional `/step`, separated by commas. `x/step` goes to the end.
    fn parse(&self, text: &str) -> Result<Vec<Range>, String> {
        let text = if text.trim().is_empty() { self.default } else { text.trim() };
        text.split(',').map(|part| self.range(part)).collect()
    }

    fn range(&self, part: &str) -> Result<Range, String> {
        let (part, step) = match part.split_once('/') {
            Some((part, step)) => {
                let step: Option<i32> = step.parse().ok().filter(|step| *step > 0);
                (part, Some(step.ok_or_else(|| format!("{} has invalid Step", self.name))?))
            }
            None => (part, None),
        };
        let (start, end) = if part == "*" {
            (self.min, self.max)
        } else if let Some((start, end)) = part.split_once('-') {
            let start = self.value(start, self.min)?;
            (start, self.value(end, start)?)
        } else {
            let start = self.value(part, self.min)?;
            (start, if step.is_some() { self.max } else { start })
        };
        // As short as it can be said.
        let end = if end == start { 0 } else { end };
        Ok(Range { start, end, step: step.filter(|step| *step != 1).unwrap_or(0) })
    }

    /// A number or a name, not below `least`.
    fn value(&self, text: &str, least: i32) -> Result<i32, String> {
        let lower = text.to_ascii_lowercase();
        let find = |all: &[&str], enough: usize| {
            if lower.len() < enough { None } else { all.iter().position(|name| name.starts_with(&lower)) }
        };
        let named = match self.names {
            Names::None => None,
            Names::Months => find(&MONTHS, 3).map(|index| index + 1),
            Names::Days => find(&DAYS, 2),
        };
        let Self { name, min, max, .. } = self;
        let value = named.and_then(|index| i32::try_from(index).ok()).or_else(|| text.parse().ok());
        value
            .filter(|value| (least..=*max).contains(value))
            .ok_or_else(|| format!("{name} is not in range [{min}-{max}]: {text:?}"))
    }
}
