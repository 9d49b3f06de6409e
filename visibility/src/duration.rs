//! Durations as queries write them: nanoseconds, `1h30m`, or `hh:mm:ss`.

/// Nanoseconds, if the text is a duration.
pub(crate) fn parse(text: &str) -> Option<i64> {
    text.parse().ok().or_else(|| with_units(text)).or_else(|| clock(text))
}

const UNITS: [(&str, f64); 8] =
    [("ns", 1.0), ("us", 1e3), ("µs", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 60e9), ("h", 3_600e9), ("d", 86_400e9)];

fn with_units(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest.is_empty() {
        return None;
    }
    let mut nanos = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let length = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let (_, unit) = UNITS.iter().find(|(name, _)| *name == &rest[..length])?;
        nanos += number * unit;
        rest = &rest[length..];
    }
    let nanos = sign * nanos;
    (nanos.abs() < i64::MAX as f64).then_some(nanos as i64)
}

fn clock(text: &str) -> Option<i64> {
    let (sign, text) = text.strip_prefix('-').map_or((1, text), |rest| (-1, rest));
    let parts: Vec<&str> = text.split(':').collect();
    let [hours, minutes, seconds] = parts.as_slice() else { return None };
    let number =
        |digits: &str| digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse::<i64>().ok()).flatten();
    let (hours, minutes, seconds) = (number(hours)?, number(minutes)?, number(seconds)?);
    if minutes > 59 || seconds > 59 {
        return None;
    }
    hours.checked_mul(3_600)?.checked_add(minutes * 60 + seconds)?.checked_mul(sign * 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let check = |text, expected| assert_eq!(parse(text), expected, "{text}");
        check("1000", Some(1000));
        check("-5", Some(-5));
        check("300ms", Some(300_000_000));
        check("1.5h", Some(5_400_000_000_000));
        check("2h45m", Some(9_900_000_000_000));
        check("1d", Some(86_400_000_000_000));
        check("-1s", Some(-1_000_000_000));
        check("01:02:03", Some(3_723_000_000_000));
        check("01:60:00", None);
        check("5 minutes", None);
        check("h", None);
        check("", None);
        check("99999999999h", None);
    }
}
