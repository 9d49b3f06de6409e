//! The four timeouts of activities.
//!
//! Start-to-close and heartbeat end an attempt, and another may follow; the two that count from scheduling end the
//! activity.

use perdure_proto::{
    perdure::state::v1::ActivityInfo,
    temporal::api::{
        enums::v1::{RetryState, TimeoutType},
        failure::v1::failure::FailureInfo,
        history::v1::{ActivityTaskTimedOutEventAttributes, history_event::Attributes},
    },
};
use perdure_types::Timestamp;

use crate::{
    activity_retry::{timeout_failure, timeout_name},
    api::Env,
    run::Run,
};

/// The next deadline of an activity, and which one it is.
pub(crate) fn next_deadline(info: &ActivityInfo) -> Option<(Timestamp, TimeoutType)> {
    if info.paused { None } else { deadline(info) }
}

/// The same, whether it is paused or not.
pub fn deadline(info: &ActivityInfo) -> Option<(Timestamp, TimeoutType)> {
    let after =
        |start: i64, timeout: i64, kind| (timeout != 0).then(|| (Timestamp(start.saturating_add(timeout)), kind));
    let closing =
        (info.expiration_time_ns != 0).then_some((Timestamp(info.expiration_time_ns), TimeoutType::ScheduleToClose));
    // The first of deadlines at the same time counts: that nobody took the activity says more than that its time is up;
    // that its time is up says more than that the attempt was slow, after which none could follow anyway. An eager
    // activity, which starts when it is scheduled, meets the latter often.
    let deadlines = if info.started_time_ns == 0 {
        let taking = after(info.scheduled_time_ns, info.schedule_to_start_ns, TimeoutType::ScheduleToStart);
        [taking, closing, None]
    } else {
        let alive = info.last_heartbeat_time_ns.max(info.started_time_ns);
        let attempt = after(info.started_time_ns, info.start_to_close_ns, TimeoutType::StartToClose);
        [closing, attempt, after(alive, info.heartbeat_ns, TimeoutType::Heartbeat)]
    };
    deadlines.into_iter().flatten().min_by_key(|(time, _)| *time)
}

impl Run {
    /// The activity has reached its next deadline.
    pub(crate) fn time_out_activity(&mut self, env: &Env, id: i64) {
        let Some(activity) = self.activities.get(&id) else {
            return;
        };
        let Some((_, kind)) = next_deadline(&activity.info).filter(|(deadline, _)| *deadline <= env.now) else {
            return;
        };
        let mut failure = timeout_failure(format!("activity {} timeout", timeout_name(kind)), kind);
        let retry_state = match self.retry_activity(env, id, Some(&failure)) {
            Ok(()) => return,
            Err(retry_state) => retry_state,
        };
        if retry_state == RetryState::Timeout && kind != TimeoutType::ScheduleToStart {
            failure = timeout_failure(
                "Not enough time to schedule next retry before activity ScheduleToClose timeout, giving up retrying",
                TimeoutType::ScheduleToClose,
            );
        }
        let Some(activity) = self.activities.get(&id) else {
            return;
        };
        if let Some(FailureInfo::TimeoutFailureInfo(info)) = &mut failure.failure_info {
            info.last_heartbeat_details = activity.info.heartbeat_details.clone();
        }
        failure.cause = activity.info.last_failure.clone().map(Box::new);
        let started_event_id = self.add_activity_started(id, None);
        let attributes = Attributes::ActivityTaskTimedOutEventAttributes(ActivityTaskTimedOutEventAttributes {
            failure: Some(failure),
            scheduled_event_id: id,
            started_event_id,
            retry_state: retry_state as i32,
        });
        self.end_activity(env, id, attributes);
    }
}
