//! The client's deadline, as the `grpc-timeout` header gives it.

use std::time::Duration;

use tonic::metadata::MetadataMap;

/// Longest timeout that is taken at its word; later is as good as never.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// Time that the client gives the call; `None` when it sets no deadline, or one that cannot be read.
pub(crate) fn timeout_of(metadata: &MetadataMap) -> Option<Duration> {
    parse(metadata.get("grpc-timeout")?.to_str().ok()?)
}

/// A number of at most eight digits, and a unit.
fn parse(text: &str) -> Option<Duration> {
    let unit = text.chars().last()?;
    let digits = text.strip_suffix(unit)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    let timeout = match unit {
        'H' => Duration::from_secs(number.saturating_mul(3600)),
        'M' => Duration::from_secs(number.saturating_mul(60)),
        'S' => Duration::from_secs(number),
        'm' => Duration::from_millis(number),
        'u' => Duration::from_micros(number),
        'n' => Duration::from_nanos(number),
        _ => return None,
    };
    Some(timeout.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_of_grpc() {
        let check = |text: &str, expect: Option<Duration>| assert_eq!(parse(text), expect, "{text:?}");
        check("1H", Some(Duration::from_secs(3600)));
        check("2M", Some(Duration::from_secs(120)));
        check("70S", Some(Duration::from_secs(70)));
        check("1500m", Some(Duration::from_millis(1500)));
        check("10u", Some(Duration::from_micros(10)));
        check("99999999n", Some(Duration::from_nanos(99_999_999)));
        check("99999999H", Some(LONGEST));
    }

    #[test]
    fn nonsense_is_no_deadline() {
        for text in ["", "S", "12", "-1S", "1.5S", "123456789S", "1é", "1X"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
