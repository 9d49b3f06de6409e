//! A worker says goodbye: its polls end at once, and nothing waits for it any more.

use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use perdure_proto::temporal::api::{enums::v1::TaskQueueType, workflowservice::v1::ShutdownWorkerRequest};
use perdure_types::{Duration, Timestamp};

use crate::{offer::TaskOffer, poll::Waiter, query::no_sticky_poller, registry::QueueKind, shell::Shell};

/// For how long late polls of a stopped worker are recognised.
const REMEMBERED: Duration = Duration::from_secs(300);
const MAX_REMEMBERED: usize = 10_000;

struct Stopped {
    namespace_id: Box<str>,
    at: Timestamp,
}

/// Worker instances that said goodbye, by their key: a poll that was under way then must not take a task.
#[derive(Default)]
pub(crate) struct StoppedWorkers {
    /// Nearly always false: spares polls the lock.
    any: AtomicBool,
    by_key: RwLock<HashMap<Box<str>, Stopped>>,
}

impl StoppedWorkers {
    fn insert(&self, now: Timestamp, namespace_id: &str, key: &str) {
        let mut by_key = self.by_key.write().unwrap_or_else(PoisonError::into_inner);
        if by_key.len() < MAX_REMEMBERED {
            by_key.insert(key.into(), Stopped { namespace_id: namespace_id.into(), at: now });
            self.any.store(true, Ordering::SeqCst);
        }
    }

    pub fn contains(&self, namespace_id: &str, key: &str) -> bool {
        if key.is_empty() || !self.any.load(Ordering::SeqCst) {
            return false;
        }
        let by_key = self.by_key.read().unwrap_or_else(PoisonError::into_inner);
        by_key.get(key).is_some_and(|stopped| &*stopped.namespace_id == namespace_id)
    }

    pub fn expire(&self, now: Timestamp) {
        let mut by_key = self.by_key.write().unwrap_or_else(PoisonError::into_inner);
        by_key.retain(|_, stopped| now.since(stopped.at) < REMEMBERED);
        self.any.store(!by_key.is_empty(), Ordering::SeqCst);
    }
}

impl Shell {
    pub fn shutdown_worker(self: &Arc<Self>, namespace_id: &str, task_queue: &str, request: &ShutdownWorkerRequest) {
        let key = request.worker_instance_key.as_str();
        if !key.is_empty() {
            self.stopped_workers.insert(self.now(), namespace_id, key);
            let name = if request.task_queue.is_empty() { task_queue } else { &request.task_queue };
            for kind in polled_kinds(request) {
                self.end_polls_of(namespace_id, kind, name, key, &request.identity);
            }
        }
        if !request.sticky_task_queue.is_empty() {
            self.abandon_sticky(namespace_id, &request.sticky_task_queue);
        }
    }

    fn end_polls_of(self: &Arc<Self>, namespace_id: &str, kind: QueueKind, name: &str, key: &str, identity: &str) {
        let Some(cell) = self.registry.get(namespace_id, kind, name) else {
            return;
        };
        let polls = self.step(&cell, |queue, _| {
            queue.forget_poller(identity);
            queue.take_polls(|waiter| waiter.request.worker_instance_key() == key)
        });
        polls.into_iter().for_each(Waiter::answer_empty);
    }

    /// What waited in the sticky queue goes through the normal queue.
    fn abandon_sticky(self: &Arc<Self>, namespace_id: &str, name: &str) {
        let Some(cell) = self.registry.get(namespace_id, QueueKind::Sticky, name) else {
            return;
        };
        let (polls, offers, queries) = self.step(&cell, |queue, _| queue.abandon());
        polls.into_iter().for_each(Waiter::answer_empty);
        for query in queries {
            self.queries.answer(query, Err(no_sticky_poller()));
        }
        if !offers.is_empty() {
            let shell = Arc::clone(self);
            self.spawn(async move { shell.give_back(&cell.key.namespace_id, offers).await });
        }
    }

    async fn give_back(&self, namespace_id: &str, offers: Vec<TaskOffer>) {
        for offer in offers {
            // If it fails, the task's own schedule-to-start timeout brings it to the normal queue.
            if let Err(error) = self.starter.start(offer.sticky_unavailable(namespace_id)).await {
                tracing::debug!(%error, workflow_id = offer.workflow_id(), "sticky task not given back");
            }
        }
    }
}

/// None named: all that a worker polls.
fn polled_kinds(request: &ShutdownWorkerRequest) -> Vec<QueueKind> {
    let kinds = request.task_queue_types().filter_map(|task_type| match task_type {
        TaskQueueType::Workflow => Some(QueueKind::Workflow),
        TaskQueueType::Activity => Some(QueueKind::Activity),
        TaskQueueType::Nexus => Some(QueueKind::Nexus),
        TaskQueueType::Unspecified => None,
    });
    if request.task_queue_types.is_empty() {
        return vec![QueueKind::Workflow, QueueKind::Activity, QueueKind::Nexus];
    }
    kinds.collect()
}
