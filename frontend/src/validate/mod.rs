//! What a request must look like. Pure functions; texts are those that Temporal's clients and tests know.

mod callbacks;
mod links;
mod retry_policy;
mod task_queue;

use perdure_proto::{
    Error,
    temporal::api::common::v1::{Payloads, Priority, WorkflowExecution},
};
use perdure_types::Limits;
use prost::Message;
use uuid::Uuid;

pub(crate) use callbacks::completion_callbacks;
pub(crate) use links::links;
pub(crate) use retry_policy::retry_policy;
pub(crate) use task_queue::{task_queue, task_queue_partition, user_task_queue};

/// Fairness keys are short: they are kept per task queue.
const LONGEST_FAIRNESS_KEY_BYTES: usize = 64;

/// Durations are cut to this many years: enough for ever, and arithmetic stays far from overflow.
const LONGEST_DURATION_SECONDS: i64 = 250 * 365 * 24 * 3600;

fn refuse<T>(message: &str) -> Result<T, Error> {
    Err(Error::invalid_argument(message))
}

pub(crate) fn is_too_long(text: &str, limits: &Limits) -> bool {
    text.len() as u64 > limits.max_id_length.max(0) as u64
}

pub(crate) fn is_uuid(text: &str) -> bool {
    Uuid::try_parse(text).is_ok()
}

pub(crate) fn namespace_name(name: &str, limits: &Limits) -> Result<(), Error> {
    if is_too_long(name, limits) { refuse("Namespace length exceeds limit.") } else { Ok(()) }
}

/// The execution that a call is about: a workflow id, and a run id or none for the current run.
pub(crate) fn execution<'a>(
    execution: Option<&'a WorkflowExecution>,
    limits: &Limits,
) -> Result<&'a WorkflowExecution, Error> {
    let Some(execution) = execution else {
        return refuse("Execution is not set on request.");
    };
    if execution.workflow_id.is_empty() {
        return refuse("WorkflowId is not set on request.");
    }
    if is_too_long(&execution.workflow_id, limits) {
        return refuse("WorkflowId length exceeds limit.");
    }
    if !execution.run_id.is_empty() && !is_uuid(&execution.run_id) {
        return refuse("Invalid RunId.");
    }
    Ok(execution)
}

/// The workflow id of a start.
pub(crate) fn new_workflow_id(id: &str, limits: &Limits) -> Result<(), Error> {
    if id.is_empty() {
        return refuse("WorkflowId is not set on request.");
    }
    if is_too_long(id, limits) {
        return Err(Error::invalid_argument(format!(
            "WorkflowId exceeds maximum allowed length ({}/{})",
            id.len(),
            limits.max_id_length
        )));
    }
    Ok(())
}

pub(crate) fn identity(identity: &str, limits: &Limits) -> Result<(), Error> {
    if is_too_long(identity, limits) { refuse("Identity length exceeds limit.") } else { Ok(()) }
}

/// A request without an id gets one, so that our own retries of it count once.
pub(crate) fn request_id(id: &mut String, limits: &Limits) -> Result<(), Error> {
    if id.is_empty() {
        *id = crate::ids::new_id();
    }
    if is_too_long(id, limits) { refuse("RequestId length exceeds limit.") } else { Ok(()) }
}

/// Size of a message as it would be stored.
pub(crate) fn size<M: Message>(message: Option<&M>) -> usize {
    message.map_or(0, Message::encoded_len)
}

pub(crate) fn is_blob_too_large(bytes: usize, limits: &Limits) -> bool {
    bytes as u64 > limits.blob_size_error_bytes.max(0) as u64
}

pub(crate) fn blob_size(bytes: usize, limits: &Limits) -> Result<(), Error> {
    if is_blob_too_large(bytes, limits) { refuse("Blob data size exceeds limit.") } else { Ok(()) }
}

pub(crate) fn payloads(payloads: Option<&Payloads>, limits: &Limits) -> Result<(), Error> {
    blob_size(size(payloads), limits)
}

/// Cuts a duration to a sane length, or says what is wrong with it.
pub(crate) fn duration(duration: Option<&mut prost_types::Duration>) -> Result<(), &'static str> {
    let Some(duration) = duration else { return Ok(()) };
    if (duration.seconds > 0 && duration.nanos < 0) || (duration.seconds < 0 && duration.nanos > 0) {
        return Err("duration has seconds and nanos with different signs");
    }
    if duration.seconds < 0 || duration.nanos < 0 {
        return Err("negative duration");
    }
    if duration.seconds >= LONGEST_DURATION_SECONDS {
        *duration = prost_types::Duration { seconds: LONGEST_DURATION_SECONDS, nanos: 0 };
    }
    // More than a second of nanos has no meaning; protobuf's own rules forbid it.
    duration.seconds += i64::from(duration.nanos / 1_000_000_000);
    duration.nanos %= 1_000_000_000;
    Ok(())
}

pub(crate) fn priority(priority: Option<&Priority>) -> Result<(), Error> {
    let Some(priority) = priority else { return Ok(()) };
    if priority.priority_key < 0 {
        return refuse("priority key can't be negative");
    }
    if priority.fairness_key.len() > LONGEST_FAIRNESS_KEY_BYTES {
        return refuse("fairness key length exceeds limit");
    }
    if priority.fairness_weight < 0.0 || priority.fairness_weight.is_nan() {
        return refuse("must be greater than zero");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits { max_id_length: 10, blob_size_error_bytes: 20, ..Limits::default() }
    }

    #[test]
    fn executions() {
        let run = "0fd54b4e-0b8e-4ad5-9ab4-0b9a9d4a4a10";
        let check = |workflow_id: &str, run_id: &str, expect: Result<(), &str>| {
            let named = WorkflowExecution { workflow_id: workflow_id.into(), run_id: run_id.into() };
            let got = execution(Some(&named), &limits()).map(|_| ()).map_err(|e| e.message);
            assert_eq!(got, expect.map_err(str::to_owned), "{workflow_id:?} {run_id:?}");
        };
        check("w", "", Ok(()));
        check("w", run, Ok(()));
        check("", run, Err("WorkflowId is not set on request."));
        check("w2345678901", "", Err("WorkflowId length exceeds limit."));
        check("w", "current", Err("Invalid RunId."));
        assert_eq!(execution(None, &limits()).expect_err("unset").message, "Execution is not set on request.");
    }

    #[test]
    fn durations() {
        let check = |seconds: i64, nanos: i32, expect: Result<(i64, i32), &str>| {
            let mut value = prost_types::Duration { seconds, nanos };
            let got = duration(Some(&mut value)).map(|()| (value.seconds, value.nanos));
            assert_eq!(got, expect, "{seconds} {nanos}");
        };
        check(0, 0, Ok((0, 0)));
        check(5, 3, Ok((5, 3)));
        check(1, 2_000_000_001, Ok((3, 1)));
        check(i64::MAX, 999, Ok((LONGEST_DURATION_SECONDS, 0)));
        check(-1, 0, Err("negative duration"));
        check(0, -1, Err("negative duration"));
        check(1, -1, Err("duration has seconds and nanos with different signs"));
        check(i64::MIN, i32::MIN, Err("negative duration"));
    }

    #[test]
    fn request_ids_are_made_up_when_missing() {
        let mut id = String::new();
        request_id(&mut id, &Limits::default()).expect("fine");
        assert!(is_uuid(&id));
        let mut id = "12345678901".to_owned();
        assert_eq!(request_id(&mut id, &limits()).expect_err("long").message, "RequestId length exceeds limit.");
    }

    #[test]
    fn blobs() {
        assert!(blob_size(20, &limits()).is_ok());
        assert_eq!(blob_size(21, &limits()).expect_err("big").message, "Blob data size exceeds limit.");
    }

    #[test]
    fn priorities() {
        let check = |value: Priority, expect: Result<(), &str>| {
            assert_eq!(priority(Some(&value)).map_err(|e| e.message), expect.map_err(str::to_owned));
        };
        check(Priority { priority_key: 3, fairness_key: "k".into(), fairness_weight: 1.5 }, Ok(()));
        check(Priority { priority_key: -1, ..Default::default() }, Err("priority key can't be negative"));
        check(
            Priority { fairness_key: "k".repeat(65), ..Default::default() },
            Err("fairness key length exceeds limit"),
        );
        check(Priority { fairness_weight: -0.5, ..Default::default() }, Err("must be greater than zero"));
    }
}
