//! The queues of this node, by name. Locks are short: a lookup in one of the registry's slices, or one synchronous step of
//! one queue. A queue's lock is never taken inside another lock but its slice's, and that only in the sweep.

use std::{
    borrow::Borrow,
    collections::HashMap,
    hash::{BuildHasher, Hash, Hasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use perdure_proto::temporal::api::enums::v1::TaskQueueType;
use perdure_types::{Duration, Timestamp};

use crate::{follow::Family, poll::Waiter, queue::Queue, telemetry::QueueMeters};

/// What is queued. A sticky queue is one worker's own, for workflow tasks of executions that it has in its cache.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum QueueKind {
    Workflow,
    Sticky,
    Activity,
    Nexus,
}

impl QueueKind {
    pub fn task_type(self) -> TaskQueueType {
        match self {
            Self::Workflow | Self::Sticky => TaskQueueType::Workflow,
            Self::Activity => TaskQueueType::Activity,
            Self::Nexus => TaskQueueType::Nexus,
        }
    }
}

#[derive(PartialEq, Eq, Debug)]
pub(crate) struct QueueKey {
    pub namespace_id: Arc<str>,
    pub kind: QueueKind,
    pub name: Arc<str>,
}

/// The parts of a key, so that a lookup needs no owned key.
trait KeyParts {
    fn parts(&self) -> (&str, QueueKind, &str);
}

impl KeyParts for QueueKey {
    fn parts(&self) -> (&str, QueueKind, &str) {
        (&self.namespace_id, self.kind, &self.name)
    }
}

impl KeyParts for (&str, QueueKind, &str) {
    fn parts(&self) -> (&str, QueueKind, &str) {
        *self
    }
}

impl Hash for dyn KeyParts + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}

impl Hash for QueueKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parts().hash(state);
    }
}

impl PartialEq for dyn KeyParts + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.parts() == other.parts()
    }
}

impl Eq for dyn KeyParts + '_ {}

impl<'a> Borrow<dyn KeyParts + 'a> for QueueKey {
    fn borrow(&self) -> &(dyn KeyParts + 'a) {
        self
    }
}

/// A queue and what its shell remembers about it.
pub(crate) struct Core {
    pub queue: Queue<Box<Waiter>>,
    /// The earliest wake-up that is set for it.
    pub armed: Option<Timestamp>,
}

/// One queue, with its name.
pub(crate) struct QueueCell {
    pub key: QueueKey,
    pub meters: QueueMeters,
    core: Mutex<Core>,
    /// Of a sticky queue: that of the normal queue behind it, once somebody polls.
    family: OnceLock<Arc<Family>>,
}

impl QueueCell {
    pub fn lock(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn family(&self) -> Option<&Arc<Family>> {
        self.family.get()
    }

    pub fn follow(&self, family: impl FnOnce() -> Arc<Family>) -> &Arc<Family> {
        self.family.get_or_init(family)
    }
}

const SLICES: usize = 16;

type Slice = HashMap<QueueKey, Arc<QueueCell>>;

/// All queues.
pub(crate) struct Registry {
    hasher: RandomState,
    slices: [Mutex<Slice>; SLICES],
}

impl Registry {
    pub fn new() -> Self {
        Self { hasher: RandomState::new(), slices: Default::default() }
    }

    fn slice(&self, parts: &(&str, QueueKind, &str)) -> MutexGuard<'_, Slice> {
        let index = self.hasher.hash_one(parts) as usize % SLICES;
        self.slices[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, namespace_id: &str, kind: QueueKind, name: &str) -> Option<Arc<QueueCell>> {
        let parts = (namespace_id, kind, name);
        self.slice(&parts).get(&parts as &dyn KeyParts).cloned()
    }

    /// `meters` makes those of a new queue.
    pub fn get_or_create(
        &self,
        now: Timestamp,
        namespace_id: &str,
        kind: QueueKind,
        name: &str,
        meters: impl FnOnce(&Arc<str>) -> QueueMeters,
    ) -> Arc<QueueCell> {
        let parts = (namespace_id, kind, name);
        let mut slice = self.slice(&parts);
        if let Some(cell) = slice.get(&parts as &dyn KeyParts) {
            return Arc::clone(cell);
        }
        let (namespace_id, name): (Arc<str>, Arc<str>) = (namespace_id.into(), name.into());
        let key = || QueueKey { namespace_id: Arc::clone(&namespace_id), kind, name: Arc::clone(&name) };
        let mut queue = Queue::of(now, kind.task_type());
        if kind != QueueKind::Sticky {
            queue.hold();
        }
        let core = Core { queue, armed: None };
        let cell =
            Arc::new(QueueCell { key: key(), meters: meters(&name), core: Mutex::new(core), family: OnceLock::new() });
        slice.insert(key(), Arc::clone(&cell));
        cell
    }

    pub fn all(&self) -> Vec<Arc<QueueCell>> {
        let cells = |slice: &Mutex<Slice>| -> Vec<_> {
            slice.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
        };
        self.slices.iter().flat_map(cells).collect()
    }

    /// Drops the queues that nobody used for `idle`, and what is too old to be told of the others.
    pub fn sweep(&self, now: Timestamp, idle: Duration, poller_history: Duration) {
        for slice in &self.slices {
            slice.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, cell| {
                // Only the registry hands out references, under this lock: if it holds the only one, nobody is about
                // to use the queue.
                let alone = Arc::strong_count(cell) == 1;
                let mut core = cell.lock();
                core.queue.expire(Timestamp(now.0.saturating_sub(poller_history.0)));
                !(alone && core.queue.is_idle(now, idle))
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Telemetry;

    const IDLE: Duration = Duration::from_secs(300);

    fn create(registry: &Registry, name: &str) -> Arc<QueueCell> {
        let meters = |name: &Arc<str>| Telemetry::new().queue(None, QueueKind::Workflow, name);
        registry.get_or_create(Timestamp(0), "n", QueueKind::Workflow, name, meters)
    }

    #[test]
    fn a_key_is_found_by_its_parts() {
        let registry = Registry::new();
        let cell = create(&registry, "q");
        assert!(Arc::ptr_eq(&cell, &create(&registry, "q")));
        assert!(registry.get("n", QueueKind::Workflow, "q").is_some());
        assert!(registry.get("n", QueueKind::Activity, "q").is_none());
        assert!(registry.get("nq", QueueKind::Workflow, "").is_none());
    }

    #[test]
    fn only_queues_that_nobody_uses_are_dropped() {
        let registry = Registry::new();
        let held = create(&registry, "held");
        create(&registry, "idle");
        registry.sweep(Timestamp(IDLE.0 - 1), IDLE, IDLE);
        assert_eq!(registry.all().len(), 2);
        registry.sweep(Timestamp(IDLE.0), IDLE, IDLE);
        assert_eq!(registry.all().len(), 1);
        drop(held);
        registry.sweep(Timestamp(IDLE.0), IDLE, IDLE);
        assert!(registry.all().is_empty());
    }
}
