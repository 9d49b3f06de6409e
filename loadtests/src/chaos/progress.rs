//! How long workflows stood still: from what their worker answered (or their client asked for) to the next task.
//!
//! What the worker itself takes does not count, nor the time of a timer. Calls that have to be tried again, polls that break
//! and tasks that get lost all count.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Stalls that are kept one by one.
const WORTH_KEEPING: Duration = Duration::from_millis(150);
/// What is known of a long one.
const TRAIL: usize = 16;

#[derive(Clone, Debug)]
pub struct Stall {
    pub from: Instant,
    pub until: Instant,
    /// The timer's time, which is not part of the stall.
    pub allowed: Duration,
    pub workflow_id: String,
    pub trail: Vec<(Instant, &'static str)>,
}

impl Stall {
    pub fn length(&self) -> Duration {
        self.until.duration_since(self.from).saturating_sub(self.allowed)
    }
}

#[derive(Default)]
struct Waiting {
    from: Option<Instant>,
    allowed: Duration,
    trail: Vec<(Instant, &'static str)>,
}

#[derive(Default)]
struct State {
    workflows: HashMap<String, Waiting>,
    stalls: Vec<Stall>,
    /// Of all that were measured: when each ended, and how long it was, in ms.
    lengths_ms: Vec<(Instant, u32)>,
    last: Option<Instant>,
    /// Times without progress of any workflow.
    gaps: Vec<(Instant, Instant)>,
}

#[derive(Default)]
pub struct Progress(Mutex<State>);

impl Progress {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server has to do something now.
    pub fn asked(&self, workflow_id: &str) {
        let now = Instant::now();
        let mut state = self.state();
        let waiting = state.workflows.entry(workflow_id.to_owned()).or_default();
        waiting.from.get_or_insert(now);
    }

    /// It is right for the next step to take that long.
    pub fn allowed(&self, workflow_id: &str, allowed: Duration) {
        if let Some(waiting) = self.state().workflows.get_mut(workflow_id) {
            waiting.allowed = allowed;
        }
    }

    /// Something that helps to explain a stall.
    pub fn note(&self, workflow_id: &str, what: &'static str) {
        if let Some(waiting) = self.state().workflows.get_mut(workflow_id) {
            if waiting.trail.len() == TRAIL {
                waiting.trail.remove(0);
            }
            waiting.trail.push((Instant::now(), what));
        }
    }

    /// The next step has come to its worker.
    pub fn came(&self, workflow_id: &str) {
        self.end(workflow_id, false);
    }

    /// It has closed.
    pub fn closed(&self, workflow_id: &str) {
        self.end(workflow_id, true);
    }

    fn end(&self, workflow_id: &str, closed: bool) {
        let now = Instant::now();
        let mut state = self.state();
        let state = &mut *state;
        if let Some(last) = state.last.replace(now)
            && now.duration_since(last) > WORTH_KEEPING
        {
            state.gaps.push((last, now));
        }
        let Some(waiting) = state.workflows.get_mut(workflow_id) else { return };
        let (from, allowed) = (waiting.from.take(), std::mem::take(&mut waiting.allowed));
        let trail = std::mem::take(&mut waiting.trail);
        if closed {
            state.workflows.remove(workflow_id);
        }
        let Some(from) = from else { return };
        let stall = Stall { from, until: now, allowed, workflow_id: workflow_id.to_owned(), trail };
        state.lengths_ms.push((now, u32::try_from(stall.length().as_millis()).unwrap_or(u32::MAX)));
        if stall.length() > WORTH_KEEPING {
            state.stalls.push(stall);
        }
    }

    /// All stalls so far; those that last count until now.
    pub fn stalls(&self) -> Vec<Stall> {
        let now = Instant::now();
        let state = self.state();
        let lasting = state.workflows.iter().filter_map(|(workflow_id, waiting)| {
            Some(Stall {
                from: waiting.from?,
                until: now,
                allowed: waiting.allowed,
                workflow_id: workflow_id.clone(),
                trail: waiting.trail.clone(),
            })
        });
        let lasting = lasting.filter(|stall| stall.length() > WORTH_KEEPING);
        state.stalls.iter().cloned().chain(lasting).collect()
    }

    pub fn gaps(&self) -> Vec<(Instant, Instant)> {
        self.state().gaps.clone()
    }

    /// When each step came, and how long it took, in ms.
    pub fn lengths_ms(&self) -> Vec<(Instant, u32)> {
        self.state().lengths_ms.clone()
    }
}
