//! Queries and Nexus requests: never stored, so whoever sent one waits here, until a worker has answered it.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use perdure_proto::Error;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::{ambient::new_id, registry::QueueCell, shell::Shell};

type Answer<A> = Result<A, Error>;

struct Pending<T, A> {
    task: Arc<T>,
    namespace_id: Arc<str>,
    task_queue: Arc<str>,
    answer: oneshot::Sender<Answer<A>>,
}

/// Those of one kind: `T` is what a worker gets, `A` what it answers.
pub(crate) struct Waits<T, A>(Mutex<HashMap<Uuid, Pending<T, A>>>);

impl<T, A> Default for Waits<T, A> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T, A> Waits<T, A> {
    fn lock(&self) -> MutexGuard<'_, HashMap<Uuid, Pending<T, A>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// None if nobody waits for the answer any more.
    pub fn task(&self, id: Uuid) -> Option<Arc<T>> {
        self.lock().get(&id).map(|pending| Arc::clone(&pending.task))
    }

    /// False if nobody waits for the answer.
    pub fn answer(&self, id: Uuid, answer: Answer<A>) -> bool {
        let pending = self.lock().remove(&id);
        pending.is_some_and(|pending| pending.answer.send(answer).is_ok())
    }

    /// As [`Self::answer`], if the sender is of that namespace.
    pub fn answer_in(&self, namespace_id: &str, id: Uuid, answer: Answer<A>) -> bool {
        let known = self.lock().get(&id).is_some_and(|pending| &*pending.namespace_id == namespace_id);
        known && self.answer(id, answer)
    }

    pub fn fail_all(&self, error: &Error) {
        self.fail(error, |_, _| true);
    }

    /// Fails those of the queues that `chosen` names, by namespace id and name, also what a worker is answering.
    pub fn fail(&self, error: &Error, chosen: impl Fn(&str, &str) -> bool) {
        let is_chosen = |_: &Uuid, pending: &mut Pending<T, A>| chosen(&pending.namespace_id, &pending.task_queue);
        let failed: Vec<(Uuid, Pending<T, A>)> = self.lock().extract_if(is_chosen).collect();
        for (_, pending) in failed {
            let _ = pending.answer.send(Err(error.clone()));
        }
    }
}

/// Takes the task out of everything when its sender has its answer, or goes.
pub(crate) struct Wait<T, A> {
    pub id: Uuid,
    shell: Arc<Shell>,
    cell: Arc<QueueCell>,
    waits: fn(&Shell) -> &Waits<T, A>,
}

/// What keeps a wait alive, and where its answer comes.
type Begun<T, A> = (Wait<T, A>, oneshot::Receiver<Answer<A>>);

impl<T, A> Drop for Wait<T, A> {
    fn drop(&mut self) {
        (self.waits)(&self.shell).lock().remove(&self.id);
        self.shell.step(&self.cell, |queue, _| queue.remove_query(self.id));
    }
}

impl Shell {
    /// Begins to wait, unless this node is the wrong place for it. The task is in no queue yet.
    pub fn begin_wait<T, A>(
        self: &Arc<Self>,
        cell: &Arc<QueueCell>,
        waits: fn(&Self) -> &Waits<T, A>,
        task: T,
    ) -> Result<Begun<T, A>, Error> {
        let (sender, answer) = oneshot::channel();
        let pending = Pending {
            task: Arc::new(task),
            namespace_id: Arc::clone(&cell.key.namespace_id),
            task_queue: Arc::clone(&cell.key.name),
            answer: sender,
        };
        let id = new_id();
        waits(self).lock().insert(id, pending);
        let wait = Wait { id, shell: Arc::clone(self), cell: Arc::clone(cell), waits };
        // After the insertion: either this sees the flag, or the drain sees the task.
        if self.is_draining() {
            return Err(Error::unavailable("This node is shutting down."));
        }
        if self.has_departed(&cell.key.namespace_id, &cell.key.name) {
            return Err(Error::not_owner(None));
        }
        Ok((wait, answer))
    }
}
