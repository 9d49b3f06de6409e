//! Names of task queues.

use perdure_proto::{
    Error,
    temporal::api::{enums::v1::TaskQueueKind, taskqueue::v1::TaskQueue},
};
use perdure_types::Limits;

use super::is_too_long;

/// Names with it are partitions of a queue, not queues.
const RESERVED_PREFIX: &str = "/_sys/";
/// The queue of the server's own workers in each namespace.
const INTERNAL_QUEUES: [&str; 2] = ["temporal-sys-per-ns-tq", "temporal-sys-worker-controller-per-ns-tq"];

/// A task queue or a sticky queue. An unset kind becomes normal.
pub(crate) fn task_queue<'a>(queue: Option<&'a mut TaskQueue>, limits: &Limits) -> Result<&'a TaskQueue, Error> {
    normalize(queue, limits, true)
}

/// The queue of a workflow that a user starts: not one of the server's own.
pub(crate) fn user_task_queue<'a>(queue: Option<&'a mut TaskQueue>, limits: &Limits) -> Result<&'a TaskQueue, Error> {
    let queue = normalize(queue, limits, true)?;
    if INTERNAL_QUEUES.contains(&queue.name.as_str()) {
        return Err(Error::invalid_argument(format!("cannot use internal per-namespace task queue:{}", queue.name)));
    }
    Ok(queue)
}

/// A task queue or one partition of it.
pub(crate) fn task_queue_partition<'a>(
    queue: Option<&'a mut TaskQueue>,
    limits: &Limits,
) -> Result<&'a TaskQueue, Error> {
    normalize(queue, limits, false)
}

fn normalize<'a>(queue: Option<&'a mut TaskQueue>, limits: &Limits, whole: bool) -> Result<&'a TaskQueue, Error> {
    let Some(queue) = queue else {
        return Err(Error::invalid_argument("taskQueue is not set"));
    };
    if queue.kind == TaskQueueKind::Unspecified as i32 {
        queue.kind = TaskQueueKind::Normal as i32;
    }
    if queue.name.is_empty() {
        return Err(Error::invalid_argument("missing task queue name"));
    }
    name(&queue.name, limits, whole)?;
    if queue.kind == TaskQueueKind::Sticky as i32 && !queue.normal_name.is_empty() {
        name(&queue.normal_name, limits, false)?;
    }
    Ok(queue)
}

fn name(name: &str, limits: &Limits, whole: bool) -> Result<(), Error> {
    if is_too_long(name, limits) {
        return Err(Error::invalid_argument("taskQueue length exceeds limit"));
    }
    if whole && name.starts_with(RESERVED_PREFIX) {
        return Err(Error::invalid_argument(format!(
            "task queue name cannot start with reserved prefix {RESERVED_PREFIX}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, expect: Result<(), &str>) {
        let limits = Limits { max_id_length: 30, ..Limits::default() };
        let mut queue = TaskQueue { name: name.into(), ..Default::default() };
        let got = user_task_queue(Some(&mut queue), &limits).map(|q| q.kind).map_err(|e| e.message);
        assert_eq!(got, expect.map(|()| TaskQueueKind::Normal as i32).map_err(str::to_owned), "{name:?}");
    }

    #[test]
    fn names() {
        check("orders", Ok(()));
        check("", Err("missing task queue name"));
        check("/_sys/orders/1", Err("task queue name cannot start with reserved prefix /_sys/"));
        check("q123456789012345678901234567890", Err("taskQueue length exceeds limit"));
        check("temporal-sys-per-ns-tq", Err("cannot use internal per-namespace task queue:temporal-sys-per-ns-tq"));
        assert_eq!(task_queue(None, &Limits::default()).expect_err("unset").message, "taskQueue is not set");
    }

    #[test]
    fn a_partition_may_be_described() {
        let mut queue = TaskQueue { name: "/_sys/orders/1".into(), ..Default::default() };
        assert!(task_queue_partition(Some(&mut queue), &Limits::default()).is_ok());
    }
}
