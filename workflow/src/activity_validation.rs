//! What a command to schedule an activity must look like, and what the server fills in.

use perdure_proto::temporal::api::{
    command::v1::ScheduleActivityTaskCommandAttributes, enums::v1::TaskQueueKind, taskqueue::v1::TaskQueue,
};
use perdure_types::{Duration, Limits};

use crate::{
    activity_retry::{check_duration, fill_in_defaults, validate},
    limits::check_task_queue,
    priority,
};

/// Checks the attributes and makes them complete: task queue, retry policy and all four timeouts.
pub fn validate_and_complete(
    activity: &mut ScheduleActivityTaskCommandAttributes,
    run_timeout: Duration,
    workflow_task_queue: &str,
    limits: &Limits,
) -> Result<(), String> {
    complete_task_queue(&mut activity.task_queue, limits)?;
    let queue = activity.task_queue.as_ref().map_or("", |queue| queue.name.as_str());
    if queue.starts_with("temporal-sys-per-ns-tq") && queue != workflow_task_queue {
        return Err(format!("internal per namespace task queue {queue} cannot be used here"));
    }
    let kind = activity.activity_type.as_ref().map_or("", |kind| kind.name.as_str());
    if activity.activity_id.is_empty() {
        return Err("activityId is not set".to_owned());
    }
    if kind.is_empty() {
        return Err("activityType is not set".to_owned());
    }
    let policy = activity.retry_policy.get_or_insert_default();
    fill_in_defaults(policy, limits);
    validate(policy)?;
    for (what, length) in [("activityId", activity.activity_id.len()), ("activityType", kind.len())] {
        if length as i64 > limits.max_id_length {
            let limit = limits.max_id_length;
            return Err(format!("{what} exceeds length limit. Length={length} Limit={limit}"));
        }
    }
    priority::check(activity.priority.as_ref()).map_err(|e| format!("invalid priorities: {e}"))?;
    complete_timeouts(activity, run_timeout)
}

/// A kind that is not given is the normal one.
fn complete_task_queue(queue: &mut Option<TaskQueue>, limits: &Limits) -> Result<(), String> {
    let Some(queue) = queue else {
        return Err("taskQueue is not set".to_owned());
    };
    if queue.kind == TaskQueueKind::Unspecified as i32 {
        queue.kind = TaskQueueKind::Normal as i32;
    }
    check_task_queue(&queue.name, limits.max_id_length).map_err(str::to_owned)
}

/// The rules:
/// 1. Schedule-to-close given: it caps the other two, and stands in for the missing ones.
/// 2. Only start-to-close given: the run timeout stands in for the missing ones.
/// 3. Neither given: refused.
/// 4. Nothing exceeds the run timeout, if there is one; the heartbeat timeout does not exceed start-to-close.
fn complete_timeouts(
    activity: &mut ScheduleActivityTaskCommandAttributes,
    run_timeout: Duration,
) -> Result<(), String> {
    let read = |name: &str, value: &mut Option<prost_types::Duration>| {
        check_duration(value).map_err(|e| format!("invalid {name}: {e}"))?;
        Ok::<_, String>(Duration::from_proto(value.as_ref()))
    };
    let mut schedule_to_close = read("ScheduleToCloseTimeout", &mut activity.schedule_to_close_timeout)?;
    let mut schedule_to_start = read("ScheduleToStartTimeout", &mut activity.schedule_to_start_timeout)?;
    let mut start_to_close = read("StartToCloseTimeout", &mut activity.start_to_close_timeout)?;
    let mut heartbeat = read("HeartbeatTimeout", &mut activity.heartbeat_timeout)?;
    let cap = |value: Duration, by: Duration| if value.is_zero() { by } else { value.min(by) };
    if !schedule_to_close.is_zero() {
        schedule_to_start = cap(schedule_to_start, schedule_to_close);
        start_to_close = cap(start_to_close, schedule_to_close);
    } else if !start_to_close.is_zero() {
        schedule_to_close = run_timeout;
        if schedule_to_start.is_zero() {
            schedule_to_start = run_timeout;
        }
    } else {
        return Err(format!(
            "a valid StartToCloseTimeout or ScheduleToCloseTimeout must be set on the activity. ActivityId={} ActivityType={}",
            activity.activity_id,
            activity.activity_type.as_ref().map_or("", |kind| kind.name.as_str())
        ));
    }
    if !run_timeout.is_zero() {
        for timeout in [&mut schedule_to_close, &mut schedule_to_start, &mut start_to_close, &mut heartbeat] {
            *timeout = (*timeout).min(run_timeout);
        }
    }
    heartbeat = heartbeat.min(start_to_close);
    activity.schedule_to_close_timeout = Some(schedule_to_close.to_proto());
    activity.schedule_to_start_timeout = Some(schedule_to_start.to_proto());
    activity.start_to_close_timeout = Some(start_to_close.to_proto());
    activity.heartbeat_timeout = Some(heartbeat.to_proto());
    Ok(())
}

#[cfg(test)]
mod tests {
    use perdure_proto::temporal::api::common::v1::{ActivityType, Priority};

    use super::*;

    fn activity(close: i64, start: i64, run: i64, heartbeat: i64) -> ScheduleActivityTaskCommandAttributes {
        let timeout = |secs: i64| (secs != 0).then(|| Duration::from_secs(secs).to_proto());
        ScheduleActivityTaskCommandAttributes {
            activity_id: "1".to_owned(),
            activity_type: Some(ActivityType { name: "work".to_owned() }),
            task_queue: Some(TaskQueue { name: "queue".to_owned(), ..TaskQueue::default() }),
            schedule_to_close_timeout: timeout(close),
            schedule_to_start_timeout: timeout(start),
            start_to_close_timeout: timeout(run),
            heartbeat_timeout: timeout(heartbeat),
            ..ScheduleActivityTaskCommandAttributes::default()
        }
    }

    /// Timeouts are schedule-to-close, schedule-to-start, start-to-close, heartbeat, in seconds.
    fn check(given: [i64; 4], run_timeout: i64, expect: [i64; 4]) {
        let mut a = activity(given[0], given[1], given[2], given[3]);
        validate_and_complete(&mut a, Duration::from_secs(run_timeout), "queue", &Limits::default()).expect("valid");
        let all =
            [a.schedule_to_close_timeout, a.schedule_to_start_timeout, a.start_to_close_timeout, a.heartbeat_timeout];
        assert_eq!(all.map(|t| t.expect("complete").seconds), expect, "given {given:?}, run timeout {run_timeout}");
    }

    #[test]
    fn timeouts_are_completed_and_capped() {
        check([0, 0, 10, 0], 0, [0, 0, 10, 0]);
        check([0, 0, 10, 0], 60, [60, 60, 10, 0]);
        check([0, 5, 10, 20], 0, [0, 5, 10, 10]);
        check([30, 0, 0, 0], 0, [30, 30, 30, 0]);
        check([30, 40, 50, 0], 0, [30, 30, 30, 0]);
        check([300, 100, 200, 90], 60, [60, 60, 60, 60]);
    }

    #[test]
    fn nonsense_is_refused() {
        let check = |change: fn(&mut ScheduleActivityTaskCommandAttributes), expect: &str| {
            let mut a = activity(0, 0, 10, 0);
            change(&mut a);
            let error = validate_and_complete(&mut a, Duration::ZERO, "queue", &Limits::default());
            assert_eq!(error, Err(expect.to_owned()));
        };
        check(|a| a.task_queue = None, "taskQueue is not set");
        check(|a| a.activity_id.clear(), "activityId is not set");
        check(|a| a.activity_type = None, "activityType is not set");
        check(|a| a.activity_id = "x".repeat(1001), "activityId exceeds length limit. Length=1001 Limit=1000");
        check(
            |a| a.start_to_close_timeout = None,
            "a valid StartToCloseTimeout or ScheduleToCloseTimeout must be set on the activity. ActivityId=1 ActivityType=work",
        );
        check(
            |a| a.start_to_close_timeout = Some(prost_types::Duration { seconds: -1, nanos: 0 }),
            "invalid StartToCloseTimeout: negative duration",
        );
        check(
            |a| a.priority = Some(Priority { priority_key: -1, ..Priority::default() }),
            "invalid priorities: priority key can't be negative",
        );
    }
}
