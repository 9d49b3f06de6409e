//! Spans of time as Nexus writes them in headers: `1500ms`, `1.5s`, `2m`.

use std::time::Duration;

/// `None` if it is not written so.
pub fn parse(text: &str) -> Option<Duration> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let (number, unit) = text.split_at(unit_at);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if !is_number(whole) || !is_number(fraction) {
        return None;
    }
    let millis = match unit {
        "ms" => 1.0,
        "s" => 1_000.0,
        "m" => 60_000.0,
        _ => return None,
    };
    Duration::try_from_secs_f64((number.parse::<f64>().ok()? * millis).floor() / 1_000.0).ok()
}

pub fn format(span: Duration) -> String {
    format!("{}ms", span.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_headers() {
        let check =
            |text: &str, millis: Option<u64>| assert_eq!(parse(text), millis.map(Duration::from_millis), "{text}");
        check("10ms", Some(10));
        check("1.5s", Some(1500));
        check("2m", Some(120_000));
        check("0.0004s", Some(0));
        for nonsense in ["", "s", "10", "1.s", ".5s", "1.2.3s", "-1s", "1h", "1 s", "1e3s", "ms"] {
            check(nonsense, None);
        }
        assert_eq!(format(Duration::from_micros(9_980_700)), "9980ms");
    }

    #[test]
    fn a_number_of_any_length_does_no_harm() {
        assert_eq!(parse(&format!("{}s", "9".repeat(400))), None);
    }
}
