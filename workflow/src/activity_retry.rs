//! Retry policies: defaults, validation, whether there is another attempt and when. Shared by activities and workflows.

use perdure_proto::temporal::api::{
    common::v1::RetryPolicy,
    enums::v1::{RetryState, TimeoutType},
    failure::v1::{Failure, ServerFailureInfo, TimeoutFailureInfo, failure::FailureInfo},
};
use perdure_types::{Duration, Limits, Timestamp};

/// In non-retryable types: a timeout, by the name of its type.
const TIMEOUT_PREFIX: &str = "TemporalTimeout:";

/// Longest duration that is kept: 100 years, so that sums stay representable.
const MAX_DURATION: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Checks a duration from a client and caps it.
pub fn check_duration(duration: &mut Option<prost_types::Duration>) -> Result<(), &'static str> {
    let Some(d) = duration else { return Ok(()) };
    if (d.seconds > 0 && d.nanos < 0) || (d.seconds < 0 && d.nanos > 0) {
        return Err("duration has seconds and nanos with different signs");
    }
    if d.seconds < 0 || d.nanos < 0 {
        return Err("negative duration");
    }
    if Duration::from_proto(Some(d)) > MAX_DURATION {
        *d = MAX_DURATION.to_proto();
    }
    Ok(())
}

/// Fills in what a policy leaves open.
pub(crate) fn fill_in_defaults(policy: &mut RetryPolicy, limits: &Limits) {
    if duration(&policy.initial_interval).is_zero() {
        policy.initial_interval = Some(limits.default_activity_retry_initial_interval.to_proto());
    }
    if duration(&policy.maximum_interval).is_zero() {
        let factor = limits.default_activity_retry_max_interval_coefficient.trunc();
        policy.maximum_interval = Some(duration(&policy.initial_interval).mul_f64(factor).to_proto());
    }
    if policy.backoff_coefficient == 0.0 {
        policy.backoff_coefficient = limits.default_activity_retry_backoff_coefficient;
    }
}

/// The message says what is wrong.
pub(crate) fn validate(policy: &mut RetryPolicy) -> Result<(), String> {
    if policy.maximum_attempts == 1 {
        // No retries: the rest does not matter.
        return Ok(());
    }
    check_duration(&mut policy.initial_interval)
        .map_err(|e| format!("invalid InitialInterval set on retry policy: {e}"))?;
    if policy.backoff_coefficient.is_nan() || policy.backoff_coefficient < 1.0 {
        return Err("BackoffCoefficient cannot be less than 1 on retry policy.".to_owned());
    }
    check_duration(&mut policy.maximum_interval)
        .map_err(|e| format!("invalid MaximumInterval set on retry policy: {e}"))?;
    let (initial, maximum) = (duration(&policy.initial_interval), duration(&policy.maximum_interval));
    if maximum > Duration::ZERO && maximum < initial {
        return Err("MaximumInterval cannot be less than InitialInterval on retry policy.".to_owned());
    }
    if policy.maximum_attempts < 0 {
        return Err("MaximumAttempts cannot be negative on retry policy.".to_owned());
    }
    for name in policy.non_retryable_error_types.iter().filter_map(|name| name.strip_prefix(TIMEOUT_PREFIX)) {
        if !TIMEOUT_TYPES.iter().any(|kind| timeout_name(*kind) == name) {
            return Err(format!("Invalid timeout type value: {name}."));
        }
    }
    Ok(())
}

/// Does a failure permit another attempt?
pub fn is_retryable(failure: Option<&Failure>, non_retryable_types: &[String]) -> bool {
    let listed = |name: &str| non_retryable_types.iter().any(|listed| listed == name);
    match failure.and_then(|failure| failure.failure_info.as_ref()) {
        Some(FailureInfo::TerminatedFailureInfo(_) | FailureInfo::CanceledFailureInfo(_)) => false,
        Some(FailureInfo::TimeoutFailureInfo(timeout)) => match timeout.timeout_type() {
            kind @ (TimeoutType::StartToClose | TimeoutType::Heartbeat) => {
                !listed(&format!("{TIMEOUT_PREFIX}{}", timeout_name(kind)))
            }
            TimeoutType::Unspecified | TimeoutType::ScheduleToStart | TimeoutType::ScheduleToClose => false,
        },
        Some(FailureInfo::ServerFailureInfo(server)) => !server.non_retryable,
        Some(FailureInfo::ApplicationFailureInfo(application)) => {
            !application.non_retryable && !listed(&application.r#type)
        }
        _ => true,
    }
}

/// The delay that the worker wants before the next attempt, instead of the policy's.
pub fn requested_delay(failure: Option<&Failure>) -> Option<Duration> {
    match failure?.failure_info.as_ref()? {
        FailureInfo::ApplicationFailureInfo(application) => {
            application.next_retry_delay.as_ref().map(|delay| Duration::from_proto(Some(delay)))
        }
        _ => None,
    }
}

/// How long to wait after attempt number `attempt` (from 1), or why there is no other.
pub fn backoff(
    policy: &RetryPolicy,
    attempt: i32,
    requested: Option<Duration>,
    now: Timestamp,
    expiration: Option<Timestamp>,
) -> Result<Duration, RetryState> {
    if policy.maximum_attempts > 0 && attempt >= policy.maximum_attempts {
        return Err(RetryState::MaximumAttemptsReached);
    }
    let interval = match requested {
        // A worker knows better than the policy's cap.
        Some(delay) => delay.max(Duration::ZERO).min(MAX_DURATION),
        None => {
            let exponent = attempt.saturating_sub(1).max(0);
            let interval = duration(&policy.initial_interval).mul_f64(policy.backoff_coefficient.powi(exponent));
            let maximum = duration(&policy.maximum_interval);
            if interval <= Duration::ZERO && maximum.is_zero() {
                return Err(RetryState::Timeout);
            }
            if !maximum.is_zero() && (interval <= Duration::ZERO || interval > maximum) { maximum } else { interval }
        }
    };
    if expiration.is_some_and(|expiration| now + interval > expiration) {
        return Err(RetryState::Timeout);
    }
    Ok(interval)
}

pub fn timeout_failure(message: impl Into<String>, kind: TimeoutType) -> Failure {
    Failure {
        message: message.into(),
        source: "Server".to_owned(),
        failure_info: Some(FailureInfo::TimeoutFailureInfo(TimeoutFailureInfo {
            timeout_type: kind as i32,
            ..TimeoutFailureInfo::default()
        })),
        ..Failure::default()
    }
}

pub(crate) fn server_failure(message: impl Into<String>) -> Failure {
    Failure {
        message: message.into(),
        failure_info: Some(FailureInfo::ServerFailureInfo(ServerFailureInfo::default())),
        ..Failure::default()
    }
}

const TIMEOUT_TYPES: [TimeoutType; 4] =
    [TimeoutType::StartToClose, TimeoutType::ScheduleToStart, TimeoutType::ScheduleToClose, TimeoutType::Heartbeat];

/// As policies and messages name it.
pub fn timeout_name(kind: TimeoutType) -> &'static str {
    match kind {
        TimeoutType::Unspecified => "Unspecified",
        TimeoutType::StartToClose => "StartToClose",
        TimeoutType::ScheduleToStart => "ScheduleToStart",
        TimeoutType::ScheduleToClose => "ScheduleToClose",
        TimeoutType::Heartbeat => "Heartbeat",
    }
}

fn duration(duration: &Option<prost_types::Duration>) -> Duration {
    Duration::from_proto(duration.as_ref())
}

#[cfg(test)]
mod tests {
    use perdure_proto::temporal::api::failure::v1::{ApplicationFailureInfo, CanceledFailureInfo};

    use super::*;

    fn policy(initial_s: i64, coefficient: f64, maximum_s: i64, attempts: i32) -> RetryPolicy {
        RetryPolicy {
            initial_interval: Some(Duration::from_secs(initial_s).to_proto()),
            backoff_coefficient: coefficient,
            maximum_interval: Some(Duration::from_secs(maximum_s).to_proto()),
            maximum_attempts: attempts,
            ..RetryPolicy::default()
        }
    }

    #[test]
    fn backoff_grows_to_its_cap() {
        let policy = policy(1, 2.0, 10, 0);
        let waits: Vec<i64> = (1..=6)
            .map(|attempt| backoff(&policy, attempt, None, Timestamp(0), None).expect("goes on").0 / 1_000_000_000)
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 10, 10]);
        assert_eq!(backoff(&policy, i32::MAX, None, Timestamp(0), None), Ok(Duration::from_secs(10)));
    }

    #[test]
    fn why_there_is_no_other_attempt() {
        let now = Timestamp(1_000_000_000);
        assert_eq!(backoff(&policy(1, 1.0, 1, 3), 3, None, now, None), Err(RetryState::MaximumAttemptsReached));
        let soon = Some(now + Duration::from_millis(999));
        assert_eq!(backoff(&policy(1, 1.0, 1, 3), 1, None, now, soon), Err(RetryState::Timeout));
        let delay = Some(Duration::from_millis(5));
        assert_eq!(backoff(&policy(1, 1.0, 1, 3), 1, delay, now, soon), Ok(Duration::from_millis(5)));
    }

    #[test]
    fn defaults_are_temporals() {
        let mut filled = RetryPolicy::default();
        fill_in_defaults(&mut filled, &Limits::default());
        assert_eq!(filled, policy(1, 2.0, 100, 0));
    }

    #[test]
    fn what_is_retryable() {
        let failure = |info| Failure { failure_info: Some(info), ..Failure::default() };
        let application = |kind: &str, non_retryable| {
            failure(FailureInfo::ApplicationFailureInfo(ApplicationFailureInfo {
                r#type: kind.to_owned(),
                non_retryable,
                ..ApplicationFailureInfo::default()
            }))
        };
        let listed = ["Bad".to_owned(), "TemporalTimeout:Heartbeat".to_owned()];
        let check = |failure: Failure, expect| assert_eq!(is_retryable(Some(&failure), &listed), expect, "{failure:?}");
        check(application("Good", false), true);
        check(application("Good", true), false);
        check(application("Bad", false), false);
        check(timeout_failure("", TimeoutType::StartToClose), true);
        check(timeout_failure("", TimeoutType::Heartbeat), false);
        check(timeout_failure("", TimeoutType::ScheduleToStart), false);
        check(failure(FailureInfo::CanceledFailureInfo(CanceledFailureInfo::default())), false);
        assert!(is_retryable(None, &listed));
    }

    #[test]
    fn bad_policies_are_refused() {
        let check = |mut policy: RetryPolicy, expect: &str| assert_eq!(validate(&mut policy), Err(expect.to_owned()));
        check(policy(1, 0.5, 10, 0), "BackoffCoefficient cannot be less than 1 on retry policy.");
        check(policy(-1, 2.0, 10, 0), "invalid InitialInterval set on retry policy: negative duration");
        check(policy(5, 2.0, 1, 0), "MaximumInterval cannot be less than InitialInterval on retry policy.");
        check(policy(1, 2.0, 10, -1), "MaximumAttempts cannot be negative on retry policy.");
        let mut nonsense = policy(1, 2.0, 10, 0);
        nonsense.non_retryable_error_types = vec!["TemporalTimeout:Never".to_owned()];
        check(nonsense, "Invalid timeout type value: Never.");
        assert_eq!(validate(&mut policy(0, 0.0, 0, 1)), Ok(()));
    }
}
