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
const OUT_OF_RANGE: &str = "out of range";

pub(super) fn calendar(spec: &CalendarSpec) -> Result<StructuredCalendarSpec, String> {
    Ok(StructuredCalendarSpec {
        second: ranges(&spec.second, "0", 0, 59, Names::None)?,
        minute: ranges(&spec.minute, "0", 0, 59, Names::None)?,
        hour: ranges(&spec.hour, "0", 0, 23, Names::None)?,
        day_of_month: ranges(&spec.day_of_month, "*", 1, 31, Names::None)?,
        month: ranges(&spec.month, "*", 1, 12, Names::Months)?,
        year: ranges(&spec.year, "*", FIRST_YEAR, LAST_YEAR, Names::None).map(every_year)?,
        day_of_week: sundays(ranges(&spec.day_of_week, "*", 0, 7, Names::Days)?),
        comment: spec.comment.clone(),
    })
}

/// A missing year is every year.
fn every_year(ranges: Vec<Range>) -> Vec<Range> {
    let all = |range: &Range| range.start == FIRST_YEAR && range.end == LAST_YEAR && range.step <= 1;
    if ranges.iter().any(all) { Vec::new() } else { ranges }
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
        [ref five @ ..] if five.len() == 5 => ("0", five, "*"),
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

/// One field: `*`, `x`, `x-z`, each with an optional `/step`, separated by commas. `x/step` goes to the end.
fn ranges(text: &str, default: &str, min: i32, max: i32, names: Names) -> Result<Vec<Range>, String> {
    let text = if text.trim().is_empty() { default } else { text.trim() };
    text.split(',').map(|part| range(part, min, max, names)).collect()
}

fn range(part: &str, min: i32, max: i32, names: Names) -> Result<Range, String> {
    let (part, step) = match part.split_once('/') {
        Some((part, step)) => {
            let step: i32 = step.parse().map_err(|_| format!("{MALFORMED}: {step:?}"))?;
            if step < 1 {
                return Err(MALFORMED.to_owned());
            }
            (part, Some(step))
        }
        None => (part, None),
    };
    let (start, end) = if part == "*" {
        (min, max)
    } else if let Some((start, end)) = part.split_once('-') {
        let start = value(start, min, max, names)?;
        (start, value(end, start, max, names)?)
    } else {
        let start = value(part, min, max, names)?;
        (start, if step.is_some() { max } else { start })
    };
    // As short as it can be said.
    let end = if end == start { 0 } else { end };
    Ok(Range { start, end, step: step.filter(|step| *step != 1).unwrap_or(0) })
}

fn value(text: &str, min: i32, max: i32, names: Names) -> Result<i32, String> {
    let lower = text.to_ascii_lowercase();
    let find = |all: &[&str], enough: usize| {
        if lower.len() < enough { None } else { all.iter().position(|name| name.starts_with(&lower)) }
    };
    let named = match names {
        Names::None => None,
        Names::Months => find(&MONTHS, 3).map(|index| index + 1),
        Names::Days => find(&DAYS, 2),
    };
    let value = match named.and_then(|index| i32::try_from(index).ok()) {
        Some(value) => value,
        None => text.parse().map_err(|_| format!("{MALFORMED}: {text:?}"))?,
    };
    if (min..=max).contains(&value) { Ok(value) } else { Err(OUT_OF_RANGE.to_owned()) }
}
