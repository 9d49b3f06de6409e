//! Retries of activities: whether there is another attempt, when, and what is kept of the failed one.

use perdure_proto::temporal::api::{
    enums::v1::{RetryState, TimeoutType},
    failure::v1::{Failure, failure::FailureInfo},
};
use perdure_types::{Duration, Timestamp};
use prost::Message;

use crate::{
    activity_retry::{backoff, is_retryable, requested_delay, server_failure},
    api::Env,
    run::Run,
};

/// Bytes above which the failure of a retried attempt is not kept as it is.
const LAST_FAILURE_MAX_BYTES: usize = 4 * 1024;

impl Run {
    /// Begins the next attempt, after its backoff; or says why there is none.
    pub(crate) fn retry_activity(&mut self, env: &Env, id: i64, failure: Option<&Failure>) -> Result<(), RetryState> {
        let Some(activity) = self.activities.get(&id) else {
            return Err(RetryState::InternalServerError);
        };
        let Some(policy) = activity.retry_policy() else {
            return Err(RetryState::RetryPolicyNotSet);
        };
        let info = &activity.info;
        if info.cancel_requested {
            return Err(RetryState::CancelRequested);
        }
        if is_schedule_timeout(failure) {
            return Err(RetryState::Timeout);
        }
        if !is_retryable(failure, &policy.non_retryable_error_types) {
            return Err(RetryState::NonRetryableFailure);
        }
        if info.paused {
            // Whatever the policy says, the next attempt waits until somebody lets it begin.
            self.next_attempt(env, id, Duration::ZERO, failure);
            return Ok(());
        }
        let expiration = (info.expiration_time_ns != 0).then_some(Timestamp(info.expiration_time_ns));
        let interval = backoff(policy, info.attempt, requested_delay(failure), env.now, expiration)?;
        self.next_attempt(env, id, interval, failure);
        Ok(())
    }

    fn next_attempt(&mut self, env: &Env, id: i64, interval: Duration, failure: Option<&Failure>) {
        let Some(activity) = self.activities.get_mut(&id) else {
            return;
        };
        let info = &mut activity.info;
        info.attempt += 1;
        info.stamp += 1;
        info.scheduled_time_ns = (env.now + interval).as_nanos();
        info.current_retry_interval_ns = interval.0;
        info.last_attempt_complete_time_ns = env.now.as_nanos();
        info.started_time_ns = 0;
        info.request_id.clear();
        info.last_identity = std::mem::take(&mut info.identity);
        info.last_failure = failure.cloned().map(bounded);
        info.eager = false;
        info.reset = false;
        if std::mem::take(&mut info.reset_heartbeats) {
            info.heartbeat_details = None;
            info.last_heartbeat_time_ns = 0;
        }
        self.offer_activity_when_due(id, env.now);
    }
}

fn is_schedule_timeout(failure: Option<&Failure>) -> bool {
    match failure.and_then(|failure| failure.failure_info.as_ref()) {
        Some(FailureInfo::TimeoutFailureInfo(timeout)) => {
            matches!(timeout.timeout_type(), TimeoutType::ScheduleToStart | TimeoutType::ScheduleToClose)
        }
        _ => false,
    }
}

/// A failure that is kept for the next attempts costs memory: of a big one its beginning is kept.
pub fn bounded(failure: Failure) -> Failure {
    if failure.encoded_len() <= LAST_FAILURE_MAX_BYTES {
        return failure;
    }
    let mut rest = LAST_FAILURE_MAX_BYTES;
    let mut bounded = server_failure("Failure exceeds size limit.");
    bounded.cause = Some(Box::new(truncated(&failure, &mut rest, 20)));
    bounded
}

fn truncated(failure: &Failure, rest: &mut usize, depth: u32) -> Failure {
    let mut cut = |text: &str| {
        let end = (0..=text.len().min(*rest)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        *rest = rest.saturating_sub(end + 4);
        text[..end].to_owned()
    };
    let mut kept = Failure::default();
    match &failure.failure_info {
        Some(FailureInfo::ApplicationFailureInfo(info)) => {
            let mut info = info.clone();
            info.details = None;
            info.r#type = cut(&info.r#type);
            kept.failure_info = Some(FailureInfo::ApplicationFailureInfo(info));
        }
        Some(FailureInfo::ServerFailureInfo(info)) => {
            kept.failure_info = Some(FailureInfo::ServerFailureInfo(*info));
        }
        _ => {}
    }
    kept.source = cut(&failure.source);
    kept.message = cut(&failure.message);
    kept.stack_trace = cut(&failure.stack_trace);
    if *rest > 4 && depth > 0 {
        kept.cause = failure.cause.as_ref().map(|cause| Box::new(truncated(cause, rest, depth - 1)));
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_big_failure_keeps_its_beginning() {
        let cause = Failure { message: "root".to_owned(), ..Failure::default() };
        let big = Failure {
            message: "é".repeat(1000),
            stack_trace: "frame\n".repeat(10_000),
            cause: Some(Box::new(cause)),
            ..Failure::default()
        };
        let kept = bounded(big.clone());
        assert!(kept.encoded_len() < LAST_FAILURE_MAX_BYTES + 100);
        assert_eq!(kept.message, "Failure exceeds size limit.");
        assert_eq!(kept.cause.expect("kept").message, big.message);
        let small = Failure { message: "small".to_owned(), ..Failure::default() };
        assert_eq!(bounded(small.clone()), small);
    }
}
