//! Retry policies of workflows.

use perdure_proto::{
    Error,
    temporal::api::{common::v1::RetryPolicy, enums::v1::TimeoutType},
};
use perdure_types::{Duration, Limits};

/// A non-retryable "error type" with this prefix names a kind of timeout.
const TIMEOUT_TYPE_PREFIX: &str = "TemporalTimeout:";

/// Fills in what the policy leaves open, then checks it. No policy means no retries.
pub(crate) fn retry_policy(policy: Option<&mut RetryPolicy>, limits: &Limits) -> Result<(), Error> {
    let Some(policy) = policy else { return Ok(()) };
    fill_in(policy, limits);
    if policy.maximum_attempts == 1 {
        // There is no retry: the rest does not matter.
        return Ok(());
    }
    let refuse = |message: String| Err(Error::invalid_argument(message));
    if let Err(why) = super::duration(policy.initial_interval.as_mut()) {
        return refuse(format!("invalid InitialInterval set on retry policy: {why}"));
    }
    if policy.backoff_coefficient < 1.0 || !policy.backoff_coefficient.is_finite() {
        return refuse("BackoffCoefficient cannot be less than 1 on retry policy.".into());
    }
    if let Err(why) = super::duration(policy.maximum_interval.as_mut()) {
        return refuse(format!("invalid MaximumInterval set on retry policy: {why}"));
    }
    let (initial, maximum) = intervals(policy);
    if !maximum.is_zero() && maximum < initial {
        return refuse("MaximumInterval cannot be less than InitialInterval on retry policy.".into());
    }
    if policy.maximum_attempts < 0 {
        return refuse("MaximumAttempts cannot be negative on retry policy.".into());
    }
    for name in policy.non_retryable_error_types.iter().filter_map(|t| t.strip_prefix(TIMEOUT_TYPE_PREFIX)) {
        if !is_timeout_type(name) {
            return refuse(format!("Invalid timeout type value: {name}."));
        }
    }
    Ok(())
}

fn intervals(policy: &RetryPolicy) -> (Duration, Duration) {
    (Duration::from_proto(policy.initial_interval.as_ref()), Duration::from_proto(policy.maximum_interval.as_ref()))
}

fn fill_in(policy: &mut RetryPolicy, limits: &Limits) {
    if intervals(policy).0.is_zero() {
        policy.initial_interval = Some(limits.default_activity_retry_initial_interval.to_proto());
    }
    let (initial, maximum) = intervals(policy);
    if maximum.is_zero() {
        let factor = limits.default_activity_retry_max_interval_coefficient;
        policy.maximum_interval = Some(initial.mul_f64(factor).to_proto());
    }
    if policy.backoff_coefficient == 0.0 {
        policy.backoff_coefficient = limits.default_activity_retry_backoff_coefficient;
    }
}

/// As written in the API ("TIMEOUT_TYPE_HEARTBEAT") or short ("Heartbeat").
fn is_timeout_type(name: &str) -> bool {
    [TimeoutType::StartToClose, TimeoutType::ScheduleToStart, TimeoutType::ScheduleToClose, TimeoutType::Heartbeat]
        .iter()
        .any(|t| t.as_str_name() == name || format!("{t:?}") == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }

    fn check(mut policy: RetryPolicy, expect: Result<(), &str>) {
        let got = retry_policy(Some(&mut policy), &Limits::default()).map_err(|e| e.message);
        assert_eq!(got, expect.map_err(str::to_owned), "{policy:?}");
    }

    #[test]
    fn open_fields_are_filled_in() {
        let mut policy = RetryPolicy { initial_interval: seconds(3), ..Default::default() };
        retry_policy(Some(&mut policy), &Limits::default()).expect("valid");
        assert_eq!(policy.maximum_interval, seconds(300));
        assert_eq!(policy.backoff_coefficient, 2.0);
    }

    #[test]
    fn rules() {
        check(RetryPolicy::default(), Ok(()));
        check(
            RetryPolicy { initial_interval: seconds(-1), ..Default::default() },
            Err("invalid InitialInterval set on retry policy: negative duration"),
        );
        check(
            RetryPolicy { backoff_coefficient: 0.5, ..Default::default() },
            Err("BackoffCoefficient cannot be less than 1 on retry policy."),
        );
        check(
            RetryPolicy { backoff_coefficient: f64::NAN, ..Default::default() },
            Err("BackoffCoefficient cannot be less than 1 on retry policy."),
        );
        check(
            RetryPolicy { initial_interval: seconds(5), maximum_interval: seconds(4), ..Default::default() },
            Err("MaximumInterval cannot be less than InitialInterval on retry policy."),
        );
        check(
            RetryPolicy { maximum_attempts: -1, ..Default::default() },
            Err("MaximumAttempts cannot be negative on retry policy."),
        );
        check(RetryPolicy { maximum_attempts: 1, backoff_coefficient: 0.1, ..Default::default() }, Ok(()));
        let except = |name: &str| RetryPolicy { non_retryable_error_types: vec![name.into()], ..Default::default() };
        check(except("Whatever"), Ok(()));
        check(except("TemporalTimeout:Heartbeat"), Ok(()));
        check(except("TemporalTimeout:Lunch"), Err("Invalid timeout type value: Lunch."));
    }
}
