//! What a connection took with it when it broke.
//!
//! An answer that this node has written may still be lost on its way: the worker died with its connection, or just
//! before. For workflow tasks that is no reason to wait for a timeout: when the connection ends, those that it was given
//! lately are reported undelivered. A task that was completed meanwhile is stale by then, and one that a worker still
//! works on is merely done twice. Activities are never offered again on such a guess: an attempt may run only once.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use tokio::time::{Duration, Instant};

use crate::delivery::Guard;

/// After this a workflow task has been answered, or has run into its own (default) timeout.
const REMEMBERED: Duration = Duration::from_secs(10);
const REMEMBERED_TASKS: usize = 1024;

/// The workflow tasks that went out over one connection lately. Shared by the connection and the calls on it; the
/// transport says when it has ended.
#[derive(Default)]
pub struct Connection {
    lately: Mutex<Lately>,
}

#[derive(Default)]
struct Lately {
    ended: bool,
    tasks: VecDeque<(Instant, Guard)>,
}

impl Connection {
    /// The answer with these tasks has been taken for writing.
    pub(crate) fn remember(&self, tasks: Guard) {
        let now = Instant::now();
        let mut lately = self.lately.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some((at, _)) = lately.tasks.front()
            && (*at + REMEMBERED < now || lately.tasks.len() >= REMEMBERED_TASKS)
        {
            if let Some((_, old)) = lately.tasks.pop_front() {
                old.disarm();
            }
        }
        if !lately.ended {
            lately.tasks.push_back((now, tasks));
        }
        // After the end: dropping the guard reports its tasks.
    }

    /// The connection has ended, in whatever way.
    pub fn end(&self) {
        let mut lately = self.lately.lock().unwrap_or_else(PoisonError::into_inner);
        lately.ended = true;
        let tasks = std::mem::take(&mut lately.tasks);
        drop(lately);
        for (at, guard) in tasks {
            if at + REMEMBERED < Instant::now() {
                guard.disarm();
            }
        }
    }
}
