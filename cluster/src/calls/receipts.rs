//! What this node has got from others to pass on, and has not passed on yet: tasks on their way to workers.
//!
//! A started task goes from its shard to the task queue's home, and from there to the node of the poll. Each node on the way
//! remembers what it gave to the next one until that one says that the task has been handed on: when the next one vanishes
//! before, the task is given back to its shard. So a task of an activity is not lost with a node, which would cost its
//! whole timeout, and hardly ever given out twice: only if the node vanishes between writing it to the worker and saying so.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;

use super::link::Connection;

/// A task that has not been handed on after this never will be; who sent it does not wait any longer either.
pub(crate) const HANDED_ON_WITHIN: Duration = Duration::from_secs(10);
const MAX_OPEN: usize = 100_000;

/// Answers with tasks whose senders wait for a word, by task token.
#[derive(Default)]
pub(crate) struct Receipts {
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    by_token: HashMap<Bytes, Receipt>,
    /// By age; some of them are closed.
    order: VecDeque<(Instant, Bytes)>,
}

/// Where the answer came from.
struct Receipt {
    connection: Arc<Connection>,
    id: u64,
}

impl Receipts {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The task has come as the answer to that call.
    pub(crate) fn open(&self, token: Bytes, connection: Arc<Connection>, id: u64) {
        let now = Instant::now();
        let mut open = self.lock();
        while let Some((at, old)) = open.order.front()
            && (now >= *at + HANDED_ON_WITHIN || open.order.len() >= MAX_OPEN)
        {
            let old = old.clone();
            open.by_token.remove(&old);
            open.order.pop_front();
        }
        open.order.push_back((now, token.clone()));
        open.by_token.insert(token, Receipt { connection, id });
    }

    /// The task is on its way to its worker, or at the next node: who sent it is told.
    pub(crate) fn close(&self, token: &Bytes) {
        let receipt = self.lock().by_token.remove(token);
        if let Some(Receipt { connection, id }) = receipt {
            connection.tell_over(id);
        }
    }
}
