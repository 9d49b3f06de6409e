//! UpdateTaskQueueConfig: rate limits of a queue and of its fairness keys, and weights of keys.

use perdure_proto::{
    Error,
    perdure::node::v1::{TaskQueueCommand, task_queue_command, workflow_call, workflow_reply},
    temporal::api::{
        enums::v1::TaskQueueType,
        taskqueue::v1::TaskQueue,
        workflowservice::v1::{
            UpdateTaskQueueConfigRequest, UpdateTaskQueueConfigResponse,
            update_task_queue_config_request::RateLimitUpdate,
        },
    },
};
use perdure_types::{EntityKind, Limits};

use crate::{call::Call, validate};

const MOST_WEIGHTS: usize = 1000;
const LONGEST_REASON: usize = 1000;
const LONGEST_KEY: usize = 64;
const WEIGHTS: std::ops::RangeInclusive<f32> = 0.001..=1000.0;

pub(crate) async fn update_task_queue_config(
    call: &Call<'_>,
    request: UpdateTaskQueueConfigRequest,
) -> Result<UpdateTaskQueueConfigResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    check(&request, call.limits())?;
    let mut queue = TaskQueue { name: request.task_queue.clone(), ..TaskQueue::default() };
    let name = validate::task_queue(Some(&mut queue), call.limits())?.name.clone();
    let kind = request.task_queue_type;
    let command = TaskQueueCommand { command: Some(task_queue_command::Command::UpdateConfig(request)) };
    let command = workflow_call::Command::TaskQueue(Box::new(command));
    match call.entity(EntityKind::TaskQueue, namespace.id(), &name, command).await? {
        workflow_reply::Reply::TaskQueue(state) => {
            let config = state.types.into_iter().find(|of| of.r#type == kind).and_then(|of| of.config);
            Ok(UpdateTaskQueueConfigResponse { config })
        }
        _ => Err(call.unexpected_reply()),
    }
}

fn check(request: &UpdateTaskQueueConfigRequest, limits: &Limits) -> Result<(), Error> {
    let refuse = |message: String| Err(Error::invalid_argument(message));
    let is_workflow = request.task_queue_type() == TaskQueueType::Workflow;
    if request.task_queue_type() == TaskQueueType::Unspecified {
        return refuse("TaskQueueType is not set on request.".to_owned());
    }
    for (update, what, label) in [
        (&request.update_queue_rate_limit, "rate limit", "UpdateQueueRateLimit"),
        (
            &request.update_fairness_key_rate_limit_default,
            "fairness key rate limit",
            "UpdateFairnessKeyRateLimitDefault",
        ),
    ] {
        if is_workflow && update.as_ref().is_some_and(|update| update.rate_limit.is_some()) {
            return refuse(format!("Setting {what} on workflow task queues is not allowed."));
        }
        rate_limit(update.as_ref(), label)?;
    }
    validate::identity(&request.identity, limits)?;
    let (set, unset) = (&request.set_fairness_weight_overrides, &request.unset_fairness_weight_overrides);
    let total = set.len() + unset.len();
    if total > MOST_WEIGHTS {
        return refuse(format!("too many fairness weight overrides in request: got {total}, maximum {MOST_WEIGHTS}"));
    }
    for key in set.keys().chain(unset) {
        if key.is_empty() {
            return refuse("Fairness weight override key must not be empty".to_owned());
        }
        if key.len() > LONGEST_KEY {
            return refuse("fairness key length exceeds limit".to_owned());
        }
    }
    if let Some((key, weight)) = set.iter().find(|(_, weight)| !WEIGHTS.contains(*weight)) {
        return refuse(format!("invalid fairness weight for key {key:?}: {weight} is not from 0.001 to 1000"));
    }
    if let Some(key) = unset.iter().find(|key| set.contains_key(*key)) {
        return refuse(format!("fairness weight override key {key:?} present in both set and unset lists"));
    }
    Ok(())
}

fn rate_limit(update: Option<&RateLimitUpdate>, label: &str) -> Result<(), Error> {
    let Some(update) = update else { return Ok(()) };
    let Some(limit) = &update.rate_limit else { return Ok(()) };
    if limit.requests_per_second < 0.0 || !limit.requests_per_second.is_finite() {
        let message = format!("RequestsPerSecond for {label} rate limit must be non-negative.");
        return Err(Error::invalid_argument(message));
    }
    if update.reason.len() > LONGEST_REASON {
        let message = format!("{label}.Reason field too long (max {LONGEST_REASON} characters).");
        return Err(Error::invalid_argument(message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use perdure_proto::temporal::api::taskqueue::v1::RateLimit;

    use super::*;

    fn request(kind: TaskQueueType, per_second: f32) -> UpdateTaskQueueConfigRequest {
        UpdateTaskQueueConfigRequest {
            task_queue: "q".into(),
            task_queue_type: kind as i32,
            update_queue_rate_limit: Some(RateLimitUpdate {
                rate_limit: Some(RateLimit { requests_per_second: per_second }),
                reason: String::new(),
            }),
            ..Default::default()
        }
    }

    #[test]
    fn what_cannot_be_set_is_refused() {
        let limits = Limits::default();
        assert!(check(&request(TaskQueueType::Activity, 0.0), &limits).is_ok());
        assert!(check(&request(TaskQueueType::Activity, -1.0), &limits).is_err());
        assert!(check(&request(TaskQueueType::Workflow, 1.0), &limits).is_err());
        let mut both = request(TaskQueueType::Activity, 1.0);
        both.set_fairness_weight_overrides.insert("k".into(), 2.0);
        assert!(check(&both, &limits).is_ok());
        both.unset_fairness_weight_overrides.push("k".into());
        assert!(check(&both, &limits).is_err());
    }
}
