//! Calendars: sets of local clock times, made of ranges for each field.
//!
//! Matching is literal: a clock time that a change of the clocks skips does not come, one that it repeats comes twice.

use chrono::{DateTime, Datelike, NaiveDate};
use perdure_proto::temporal::api::schedule::v1::{Range, StructuredCalendarSpec};

use super::zone::Zone;

pub(super) const FIRST_YEAR: i32 = 2000;
/// Calendars end here, so that the search for a date that never comes does.
pub(super) const LAST_YEAR: i32 = 2100;

const DAY: i64 = 86_400;

/// Compiled: the values of a field are bits.
#[derive(Debug, Clone)]
pub(super) struct Calendar {
    second: u64,
    minute: u64,
    hour: u64,
    day_of_month: u64,
    month: u64,
    day_of_week: u64,
    /// One for each year from [`FIRST_YEAR`].
    year: u128,
}

impl Calendar {
    pub fn compile(spec: &StructuredCalendarSpec) -> Self {
        let day_of_week = bits(&spec.day_of_week);
        let year = match spec.year.is_empty() {
            true => u128::MAX,
            false => values(&spec.year)
                .filter(|year| (FIRST_YEAR..=LAST_YEAR).contains(year))
                .fold(0, |all, year| all | 1 << (year - FIRST_YEAR)),
        };
        Self {
            second: bits(&spec.second),
            minute: bits(&spec.minute),
            hour: bits(&spec.hour),
            day_of_month: bits(&spec.day_of_month),
            month: bits(&spec.month),
            // Sunday is 0, and 7 as well.
            day_of_week: day_of_week | day_of_week >> 7 & 1,
            year,
        }
    }

    pub fn matches(&self, zone: &Zone, utc_seconds: i64) -> bool {
        let local = utc_seconds + zone.offset_at(utc_seconds);
        let (day, time) = (local.div_euclid(DAY), local.rem_euclid(DAY));
        date(day).is_some_and(|date| self.has_date(date))
            && has(self.hour, time / 3600)
            && has(self.minute, time / 60 % 60)
            && has(self.second, time % 60)
    }

    /// The first matching instant at or after this one.
    pub fn next(&self, zone: &Zone, from: i64) -> Option<i64> {
        if self.is_empty() {
            return None;
        }
        let mut at = from;
        loop {
            let offset = zone.offset_at(at);
            let day = (at + offset).div_euclid(DAY);
            let today = date(day).filter(|date| date.year() <= LAST_YEAR)?;
            // Neither the offset nor the date changes before this.
            let end = zone.constant_until(at, (day + 1) * DAY - offset);
            if self.has_date(today) {
                let start_of_day = day * DAY - offset;
                if let Some(time) = self.next_time(at - start_of_day).filter(|time| start_of_day + time < end) {
                    return Some(start_of_day + time);
                }
                at = end;
            } else {
                // No place is more than 26 hours from another.
                let next_day = day_number(self.next_date(today)?);
                at = end.max((next_day - 2) * DAY);
            }
        }
    }

    fn is_empty(&self) -> bool {
        [self.second, self.minute, self.hour, self.day_of_month, self.month, self.day_of_week].contains(&0)
            || self.year == 0
    }

    fn has_date(&self, date: NaiveDate) -> bool {
        self.has_month(date)
            && has(self.day_of_month, date.day().into())
            && has(self.day_of_week, date.weekday().num_days_from_sunday().into())
    }

    fn has_month(&self, date: NaiveDate) -> bool {
        (FIRST_YEAR..=LAST_YEAR).contains(&date.year())
            && self.year & 1 << (date.year() - FIRST_YEAR) != 0
            && has(self.month, date.month().into())
    }

    /// The first matching date after this one.
    fn next_date(&self, after: NaiveDate) -> Option<NaiveDate> {
        let mut date = after.succ_opt()?.max(NaiveDate::from_ymd_opt(FIRST_YEAR, 1, 1)?);
        while date.year() <= LAST_YEAR {
            if self.has_date(date) {
                return Some(date);
            }
            date = if self.has_month(date) {
                date.succ_opt()?
            } else {
                let (year, month) = (date.year(), date.month());
                let (year, month) = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
                NaiveDate::from_ymd_opt(year, month, 1)?
            };
        }
        None
    }

    /// The first matching second of a day from this one on.
    fn next_time(&self, from: i64) -> Option<i64> {
        let (hour, minute, second) = (from / 3600, from / 60 % 60, from % 60);
        if has(self.hour, hour) {
            if has(self.minute, minute)
                && let Some(second) = next_bit(self.second, second)
            {
                return Some(hour * 3600 + minute * 60 + second);
            }
            if let Some(minute) = next_bit(self.minute, minute + 1) {
                return Some(hour * 3600 + minute * 60 + next_bit(self.second, 0)?);
            }
        }
        let hour = next_bit(self.hour, hour + 1)?;
        Some(hour * 3600 + next_bit(self.minute, 0)? * 60 + next_bit(self.second, 0)?)
    }
}

fn date(day: i64) -> Option<NaiveDate> {
    DateTime::from_timestamp(day.checked_mul(DAY)?, 0).map(|time| time.date_naive())
}

fn day_number(date: NaiveDate) -> i64 {
    i64::from(date.num_days_from_ce()) - i64::from(NaiveDate::default().num_days_from_ce())
}

fn has(bits: u64, value: i64) -> bool {
    (0..64).contains(&value) && bits & 1 << value != 0
}

fn next_bit(bits: u64, from: i64) -> Option<i64> {
    let rest = if from < 64 { bits >> from << from } else { 0 };
    (rest != 0).then(|| rest.trailing_zeros().into())
}

fn bits(ranges: &[Range]) -> u64 {
    values(ranges).filter(|value| (0..64).contains(value)).fold(0, |bits, value| bits | 1 << value)
}

/// Ranges are checked before: they are short.
fn values(ranges: &[Range]) -> impl Iterator<Item = i32> + '_ {
    ranges.iter().flat_map(|range| {
        let step = usize::try_from(range.step.max(1)).unwrap_or(1);
        (range.start..=range.end.max(range.start)).step_by(step)
    })
}
