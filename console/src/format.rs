//! Times, sizes and names, as people read them.

use chrono::DateTime;
use maud::{Markup, html};
use perdure_proto::temporal::api::enums::v1::WorkflowExecutionStatus as Status;
use perdure_types::Timestamp;

const NANOS: i64 = 1_000_000_000;

pub fn nanos(time: Option<&prost_types::Timestamp>) -> Option<i64> {
    time.map(|time| Timestamp::from_proto(Some(time)).0)
}

/// "2026-11-23 08:15:02 UTC"
pub fn moment(ns: i64) -> String {
    let time = DateTime::from_timestamp(ns.div_euclid(NANOS), ns.rem_euclid(NANOS) as u32);
    time.map_or_else(String::new, |time| time.format("%Y-%m-%d %H:%M:%S UTC").to_string())
}

/// How long ago, with the time itself for who wants to know.
pub fn ago(at: Option<i64>, now: i64) -> Markup {
    let Some(at) = at.filter(|at| *at != 0) else { return html! { span.dim { "–" } } };
    let past = now.saturating_sub(at);
    let text = if past.abs() < NANOS {
        "now".to_owned()
    } else if past < 0 {
        format!("in {}", span(past.saturating_neg()))
    } else {
        format!("{} ago", span(past))
    };
    html! { time title=(moment(at)) { (text) } }
}

/// A length of time, to two digits or units: "340 µs", "1.2 s", "3 h 5 min".
pub fn span(ns: i64) -> String {
    const UNITS: [(&str, i64); 3] = [("d", 86_400), ("h", 3_600), ("min", 60)];
    let ns = ns.max(0);
    if ns == 0 {
        return "0 s".to_owned();
    }
    if ns < 1_000 {
        return format!("{ns} ns");
    }
    if ns < 1_000_000 {
        return format!("{} µs", ns / 1_000);
    }
    if ns < NANOS {
        let ms = ns as f64 / 1e6;
        return if ms < 10.0 { format!("{} ms", tenths(ms)) } else { format!("{ms:.0} ms") };
    }
    let seconds = ns / NANOS;
    if seconds < 60 {
        let exact = ns as f64 / 1e9;
        return if seconds < 10 { format!("{} s", tenths(exact)) } else { format!("{seconds} s") };
    }
    for (place, (name, length)) in UNITS.iter().enumerate() {
        if seconds >= *length {
            let (smaller, size) = UNITS.get(place + 1).copied().unwrap_or(("s", 1));
            return match seconds % length / size {
                0 => format!("{} {name}", seconds / length),
                rest => format!("{} {name} {rest} {smaller}", seconds / length),
            };
        }
    }
    format!("{seconds} s")
}

/// "1.5", but "2".
fn tenths(number: f64) -> String {
    let text = format!("{number:.1}");
    text.strip_suffix(".0").map_or_else(|| text.clone(), str::to_owned)
}

pub fn bytes(count: i64) -> String {
    let exact = count as f64;
    match count {
        ..1_024 => format!("{count} B"),
        1_024..1_048_576 => format!("{:.1} KiB", exact / 1_024.0),
        _ => format!("{:.1} MiB", exact / 1_048_576.0),
    }
}

/// 12345 as "12,345".
pub fn number(count: i64) -> String {
    let digits = count.unsigned_abs().to_string();
    let mut text = if count < 0 { "-".to_owned() } else { String::new() };
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// As the list language writes it, in words, and the class of its badge.
pub fn status(status: i32) -> (&'static str, &'static str, &'static str) {
    match Status::try_from(status).unwrap_or_default() {
        Status::Unspecified => ("", "Unknown", "off"),
        Status::Running => ("Running", "Running", "run"),
        Status::Completed => ("Completed", "Completed", "ok"),
        Status::Failed => ("Failed", "Failed", "bad"),
        Status::Canceled => ("Canceled", "Cancelled", "off"),
        Status::Terminated => ("Terminated", "Terminated", "warn"),
        Status::ContinuedAsNew => ("ContinuedAsNew", "Continued", "next"),
        Status::TimedOut => ("TimedOut", "Timed out", "bad"),
        Status::Paused => ("Paused", "Paused", "warn"),
    }
}

pub fn badge(of: i32) -> Markup {
    let (_, name, class) = status(of);
    html! { span.badge.(class) { (name) } }
}

/// Of a name in capitals with a prefix, as enums have it in protos: "PENDING_ACTIVITY_STATE_STARTED" to "started".
pub fn plain(name: &str, prefix: &str) -> String {
    name.strip_prefix(prefix).unwrap_or(name).to_lowercase().replace('_', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_have_at_most_two_units() {
        let cases = [
            (0, "0 s"),
            (1, "1 ns"),
            (5_000_000_000, "5 s"),
            (1_500, "1 µs"),
            (2_340_000, "2.3 ms"),
            (340_000_000, "340 ms"),
            (1_250_000_000, "1.2 s"),
            (59 * NANOS, "59 s"),
            (60 * NANOS, "1 min"),
            (3_725 * NANOS, "1 h 2 min"),
            (90_000 * NANOS, "1 d 1 h"),
            (-5, "0 s"),
        ];
        for (ns, text) in cases {
            assert_eq!(span(ns), text);
        }
        assert_eq!(span(i64::MAX), "106751 d 23 h");
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([0, 999, 1_000, 12_345_678, -1_000].map(number), ["0", "999", "1,000", "12,345,678", "-1,000"]);
    }

    #[test]
    fn times_out_of_range_are_no_panic() {
        assert_eq!(moment(0), "1970-01-01 00:00:00 UTC");
        for at in [i64::MIN, -1, i64::MAX] {
            moment(at);
            ago(Some(at), 0);
            ago(Some(at), i64::MAX);
        }
    }
}
