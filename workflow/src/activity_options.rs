//! The options of pending activities, as they were scheduled or as an operator has changed them.

use perdure_proto::{
    Error,
    perdure::node::v1::activity_operation::UpdateOptions,
    temporal::api::{
        activity::v1::ActivityOptions,
        command::v1::ScheduleActivityTaskCommandAttributes,
        common::v1::{Priority, RetryPolicy},
        enums::v1::TaskQueueKind,
        taskqueue::v1::TaskQueue,
    },
};
use perdure_types::{Duration, Timestamp};

use crate::{
    activity::{Activity, activity_not_found},
    activity_retry::validate,
    activity_validation::validate_and_complete,
    api::Env,
    run::Run,
};

impl Activity {
    fn changed(&self) -> Option<&ActivityOptions> {
        self.info.options.as_deref()
    }

    pub(crate) fn retry_policy(&self) -> Option<&RetryPolicy> {
        self.changed().map_or(self.scheduled().retry_policy.as_ref(), |options| options.retry_policy.as_ref())
    }

    pub(crate) fn priority(&self) -> Option<&Priority> {
        self.changed().map_or(self.scheduled().priority.as_ref(), |options| options.priority.as_ref())
    }

    pub(crate) fn task_queue(&self) -> &str {
        let queue = self.changed().map_or(self.scheduled().task_queue.as_ref(), |options| options.task_queue.as_ref());
        queue.map_or("", |queue| queue.name.as_str())
    }

    pub(crate) fn schedule_to_close(&self) -> Duration {
        let timeout = self.changed().map_or(self.scheduled().schedule_to_close_timeout.as_ref(), |options| {
            options.schedule_to_close_timeout.as_ref()
        });
        Duration::from_proto(timeout)
    }

    /// All of them.
    pub(crate) fn options(&self) -> ActivityOptions {
        self.changed().cloned().unwrap_or_else(|| self.original_options())
    }

    fn original_options(&self) -> ActivityOptions {
        let scheduled = self.scheduled();
        ActivityOptions {
            task_queue: scheduled.task_queue.as_ref().map(|queue| TaskQueue {
                name: queue.name.clone(),
                normal_name: queue.name.clone(),
                ..TaskQueue::default()
            }),
            schedule_to_close_timeout: scheduled.schedule_to_close_timeout,
            schedule_to_start_timeout: scheduled.schedule_to_start_timeout,
            start_to_close_timeout: scheduled.start_to_close_timeout,
            heartbeat_timeout: scheduled.heartbeat_timeout,
            retry_policy: scheduled.retry_policy.clone(),
            priority: scheduled.priority.clone(),
            ..ActivityOptions::default()
        }
    }
}

impl Run {
    pub(crate) fn update_activity_options(
        &mut self,
        env: &Env,
        id: i64,
        update: &UpdateOptions,
    ) -> Result<ActivityOptions, Error> {
        let paths = update.update_mask.as_ref().map(|mask| mask.paths.as_slice()).unwrap_or_default();
        if update.restore_original {
            if !paths.is_empty() {
                return Err(Error::invalid_argument("Both UpdateMask and RestoreOriginal are provided"));
            }
            self.restore_activity_options(id);
        } else {
            let wanted = update.options.as_ref();
            let wanted = wanted.ok_or_else(|| Error::invalid_argument("ActivityOptions are not provided"))?;
            if update.update_mask.is_none() {
                return Err(Error::invalid_argument("UpdateMask is not provided"));
            }
            let activity = self.activities.get(&id).ok_or_else(activity_not_found)?;
            let mut options = activity.options();
            merge(&mut options, wanted, paths)?;
            self.check_activity_options(env, activity, &mut options)?;
            self.set_activity_options(id, Some(options));
        }
        self.reschedule_after_change(env, id);
        self.activities.get(&id).map(Activity::options).ok_or_else(activity_not_found)
    }

    pub(crate) fn restore_activity_options(&mut self, id: i64) {
        self.set_activity_options(id, None);
    }

    /// The same rules as for a command that schedules an activity.
    fn check_activity_options(
        &self,
        env: &Env,
        activity: &Activity,
        options: &mut ActivityOptions,
    ) -> Result<(), Error> {
        let mut command = ScheduleActivityTaskCommandAttributes {
            activity_id: activity.info.activity_id.clone(),
            activity_type: activity.scheduled().activity_type.clone(),
            task_queue: options.task_queue.clone(),
            schedule_to_close_timeout: options.schedule_to_close_timeout,
            schedule_to_start_timeout: options.schedule_to_start_timeout,
            start_to_close_timeout: options.start_to_close_timeout,
            heartbeat_timeout: options.heartbeat_timeout,
            retry_policy: options.retry_policy.clone(),
            priority: options.priority.clone(),
            ..ScheduleActivityTaskCommandAttributes::default()
        };
        let run_timeout = Duration::from_proto(self.start().workflow_run_timeout.as_ref());
        validate_and_complete(&mut command, run_timeout, &self.info.task_queue, env.limits)
            .map_err(Error::invalid_argument)?;
        options.schedule_to_close_timeout = command.schedule_to_close_timeout;
        options.schedule_to_start_timeout = command.schedule_to_start_timeout;
        options.start_to_close_timeout = command.start_to_close_timeout;
        options.heartbeat_timeout = command.heartbeat_timeout;
        Ok(())
    }

    fn set_activity_options(&mut self, id: i64, options: Option<ActivityOptions>) {
        let Some(activity) = self.activities.get_mut(&id) else {
            return;
        };
        activity.info.options = options.map(Box::new);
        let options = activity.options();
        let nanos = |timeout: &Option<prost_types::Duration>| Duration::from_proto(timeout.as_ref()).0;
        let info = &mut activity.info;
        info.schedule_to_start_ns = nanos(&options.schedule_to_start_timeout);
        info.start_to_close_ns = nanos(&options.start_to_close_timeout);
        info.heartbeat_ns = nanos(&options.heartbeat_timeout);
        let schedule_to_close = Duration(nanos(&options.schedule_to_close_timeout));
        let first = Timestamp(info.first_scheduled_time_ns);
        info.expiration_time_ns = schedule_to_close.or_none().map_or(0, |timeout| (first + timeout).as_nanos());
    }

    /// A waiting activity is offered again: on another queue perhaps, after another backoff perhaps.
    fn reschedule_after_change(&mut self, env: &Env, id: i64) {
        let Some(activity) = self.activities.get(&id).filter(|activity| !activity.is_started()) else {
            return;
        };
        let info = &activity.info;
        let mut at = Timestamp(info.scheduled_time_ns);
        if info.attempt > 1
            && let Some(policy) = activity.retry_policy()
        {
            let policy = RetryPolicy { maximum_attempts: 0, ..policy.clone() };
            let interval = crate::activity_retry::backoff(&policy, info.attempt - 1, None, env.now, None);
            if let Ok(interval) = interval {
                at = Timestamp(info.last_attempt_complete_time_ns) + interval;
            }
        }
        self.schedule_activity_again(env, id, at);
    }
}

/// Takes over what the paths name.
pub fn merge(into: &mut ActivityOptions, from: &ActivityOptions, paths: &[String]) -> Result<(), Error> {
    let missing = |what: &str| Error::invalid_argument(format!("{what} is not provided"));
    let priority = || from.priority.clone().ok_or_else(|| missing("Priority"));
    let policy = || from.retry_policy.clone().ok_or_else(|| missing("RetryPolicy"));
    for path in paths {
        match snake_case(path).as_str() {
            "task_queue" | "task_queue.name" => {
                let name = from.task_queue.as_ref().ok_or_else(|| missing("TaskQueue"))?.name.clone();
                let normal_name = name.clone();
                into.task_queue = Some(TaskQueue { name, normal_name, kind: TaskQueueKind::Unspecified as i32 });
            }
            "schedule_to_close_timeout" => into.schedule_to_close_timeout = from.schedule_to_close_timeout,
            "schedule_to_start_timeout" => into.schedule_to_start_timeout = from.schedule_to_start_timeout,
            "start_to_close_timeout" => into.start_to_close_timeout = from.start_to_close_timeout,
            "heartbeat_timeout" => into.heartbeat_timeout = from.heartbeat_timeout,
            "priority" => into.priority = from.priority.clone(),
            "priority.priority_key" => into.priority.get_or_insert_default().priority_key = priority()?.priority_key,
            "priority.fairness_key" => into.priority.get_or_insert_default().fairness_key = priority()?.fairness_key,
            "priority.fairness_weight" => {
                into.priority.get_or_insert_default().fairness_weight = priority()?.fairness_weight;
            }
            "retry_policy" => {
                // What is never retried is the workflow's to say.
                let before = into.retry_policy.take().unwrap_or_default();
                let non_retryable_error_types = before.non_retryable_error_types;
                into.retry_policy = Some(RetryPolicy { non_retryable_error_types, ..policy()? });
            }
            "retry_policy.initial_interval" => {
                into.retry_policy.get_or_insert_default().initial_interval = policy()?.initial_interval;
            }
            "retry_policy.backoff_coefficient" => {
                into.retry_policy.get_or_insert_default().backoff_coefficient = policy()?.backoff_coefficient;
            }
            "retry_policy.maximum_interval" => {
                into.retry_policy.get_or_insert_default().maximum_interval = policy()?.maximum_interval;
            }
            "retry_policy.maximum_attempts" => {
                into.retry_policy.get_or_insert_default().maximum_attempts = policy()?.maximum_attempts;
            }
            // Others are not the activity's.
            _ => {}
        }
    }
    if paths.iter().any(|path| snake_case(path).starts_with("retry_policy"))
        && let Some(policy) = &mut into.retry_policy
    {
        validate(policy).map_err(Error::invalid_argument)?;
    }
    Ok(())
}

/// Clients write paths as the API does, or as JSON does.
fn snake_case(path: &str) -> String {
    let mut snake = String::with_capacity(path.len() + 4);
    for c in path.chars() {
        if c.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(c.to_ascii_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_both_forms() {
        let check = |path: &str, expect: &str| assert_eq!(snake_case(path), expect);
        check("retry_policy.maximum_attempts", "retry_policy.maximum_attempts");
        check("retryPolicy.maximumAttempts", "retry_policy.maximum_attempts");
    }

    #[test]
    fn only_what_is_named_changes() {
        let secs = |secs: i64| Some(Duration::from_secs(secs).to_proto());
        let mut into = ActivityOptions {
            start_to_close_timeout: secs(10),
            heartbeat_timeout: secs(5),
            retry_policy: Some(RetryPolicy {
                initial_interval: secs(1),
                backoff_coefficient: 2.0,
                non_retryable_error_types: vec!["Bad".to_owned()],
                ..RetryPolicy::default()
            }),
            ..ActivityOptions::default()
        };
        let from = ActivityOptions {
            start_to_close_timeout: secs(20),
            heartbeat_timeout: secs(7),
            retry_policy: Some(RetryPolicy { maximum_attempts: 3, ..RetryPolicy::default() }),
            ..ActivityOptions::default()
        };
        let paths = ["startToCloseTimeout".to_owned(), "retry_policy.maximum_attempts".to_owned()];
        merge(&mut into, &from, &paths).expect("merged");
        assert_eq!(into.start_to_close_timeout, secs(20));
        assert_eq!(into.heartbeat_timeout, secs(5));
        let policy = into.retry_policy.expect("kept");
        assert_eq!((policy.maximum_attempts, policy.backoff_coefficient), (3, 2.0));
        assert_eq!(policy.non_retryable_error_types, ["Bad"]);
    }

    #[test]
    fn what_is_named_must_be_there() {
        let error =
            merge(&mut ActivityOptions::default(), &ActivityOptions::default(), &["task_queue.name".to_owned()]);
        assert_eq!(error.expect_err("refused").message, "TaskQueue is not provided");
    }
}
