//! Time passes: what has come due is put into the buffer, and the buffer is worked off as the overlap policy says.

use perdure_proto::{
    perdure::state::v1::{ScheduleBackfill, ScheduleStart},
    temporal::api::enums::v1::ScheduleOverlapPolicy,
};
use perdure_types::{Duration, Timestamp};
use perdure_workflow::{Effect, Env};

use crate::{
    overlap::{self, Decision},
    schedule::Schedule,
    spec::{Match, Next},
};

/// Actions that may wait. More are dropped, and counted.
pub(crate) const MAX_BUFFER: usize = 1000;
/// Times looked at in one transition: after a long outage the rest comes with the next ones.
const TIMES_A_TURN: usize = 1000;
const TURN_PAUSE: Duration = Duration::from_millis(10);
/// Of backfills, so many actions in one transition, and one such step a second.
const BACKFILLED_A_TURN: usize = 10;
const BACKFILL_PAUSE: Duration = Duration::from_secs(1);
/// A schedule without anything left to do goes after this.
const RETENTION: Duration = Duration::from_secs(7 * 24 * 3600);

impl Schedule {
    /// Does all that is due now.
    pub(crate) fn advance(&mut self, incarnation: &str, env: &mut Env) -> Vec<Effect> {
        self.take_due_times(env.now);
        self.take_backfills(env.now);
        self.work_off_buffer(incarnation, env)
    }

    fn take_due_times(&mut self, now: Timestamp) {
        if !self.may_act(false) {
            self.processed(now);
            return;
        }
        let window = self.catchup_window();
        for _ in 0..TIMES_A_TURN {
            match self.next_after(Timestamp(self.state.processed_until_ns)) {
                Next::At(Match { nominal, actual }) if actual <= now => {
                    self.processed(actual);
                    if actual.0 < self.state.update_time_ns {
                        // Of a specification that did not hold then.
                        continue;
                    }
                    if now.since(actual) > window {
                        self.state.missed_catchup_window += 1;
                        let late_ms = now.since(actual).0 / 1_000_000;
                        let (namespace_id, schedule_id) = (&self.key.namespace_id, self.id());
                        tracing::warn!(%namespace_id, schedule_id, late_ms, "an action has missed its catch-up window");
                        continue;
                    }
                    self.add_start(nominal, actual, ScheduleOverlapPolicy::Unspecified, false);
                }
                Next::NotBefore(time) if time <= now => self.processed(time),
                Next::At(_) | Next::NotBefore(_) | Next::Never => return,
            }
        }
        self.busy_until = now + TURN_PAUSE;
    }

    /// Only ever forward: a clock that was set back brings no action twice.
    fn processed(&mut self, until: Timestamp) {
        if until.0 > self.state.processed_until_ns {
            self.state.processed_until_ns = until.0;
            self.changed.any = true;
        }
    }

    pub(crate) fn next_after(&self, time: Timestamp) -> Next {
        self.spec.as_ref().map_or(Next::Never, |spec| spec.next(time))
    }

    pub(crate) fn add_start(
        &mut self,
        nominal: Timestamp,
        actual: Timestamp,
        overlap: ScheduleOverlapPolicy,
        manual: bool,
    ) {
        self.changed.any = true;
        if self.state.buffered.len() >= MAX_BUFFER {
            self.drop_action("too many actions wait");
            return;
        }
        self.state.next_number += 1;
        self.state.buffered.push(ScheduleStart {
            number: self.state.next_number,
            nominal_time_ns: nominal.0,
            actual_time_ns: actual.0,
            overlap: overlap as i32,
            manual,
            ..ScheduleStart::default()
        });
    }

    pub(crate) fn drop_action(&mut self, why: &str) {
        tracing::warn!(namespace_id = %self.key.namespace_id, schedule_id = %self.id(), why, "an action is dropped");
        self.state.buffer_dropped += 1;
        self.state.last_problem = why.to_owned();
        self.changed.any = true;
    }

    /// One step of the first backfill. They leave half of the buffer to others.
    fn take_backfills(&mut self, now: Timestamp) {
        if self.backfill_due > now {
            return;
        }
        for _ in 0..BACKFILLED_A_TURN {
            if self.state.buffered.len() >= MAX_BUFFER / 2 {
                break;
            }
            let Some(first) = self.state.backfills.first() else { return };
            let (after, end, policy) = (Timestamp(first.processed_until_ns), Timestamp(first.end_ns), first.overlap());
            let processed = match self.next_after(after) {
                Next::At(Match { nominal, actual }) if actual <= end => {
                    self.add_start(nominal, actual, policy, true);
                    Some(actual)
                }
                Next::NotBefore(time) if time <= end => Some(time),
                Next::At(_) | Next::NotBefore(_) | Next::Never => None,
            };
            self.changed.any = true;
            match (processed, self.state.backfills.first_mut()) {
                (Some(time), Some(first)) => first.processed_until_ns = time.0,
                _ => drop(self.state.backfills.remove(0)),
            }
        }
        if !self.state.backfills.is_empty() {
            self.backfill_due = now + BACKFILL_PAUSE;
        }
    }

    /// `start` belongs to it, as far as it is a time of the specification.
    pub(crate) fn add_backfill(&mut self, start: Timestamp, end: Timestamp, policy: ScheduleOverlapPolicy) {
        self.changed.any = true;
        if self.state.backfills.len() >= MAX_BUFFER {
            self.drop_action("too many backfills wait");
            return;
        }
        self.state.backfills.push(ScheduleBackfill {
            start_ns: start.0,
            end_ns: end.0,
            overlap: policy as i32,
            processed_until_ns: start.0.saturating_sub(1_000_000),
        });
    }

    /// Starts what can be started, as often as that makes room for more.
    pub(crate) fn work_off_buffer(&mut self, incarnation: &str, env: &mut Env) -> Vec<Effect> {
        let mut effects = Vec::new();
        while !self.state.buffered.is_empty() {
            let buffer = std::mem::take(&mut self.state.buffered);
            let waiting = buffer.len();
            let Decision { mut overlapping, alone, keep, cancel, terminate, mut skipped } =
                overlap::decide(buffer, self.is_running(), self.overlap_policy());
            if cancel || terminate {
                // Who stops what runs would stop these, too.
                skipped += overlapping.len() as i64;
                overlapping.clear();
            }
            self.state.buffered = keep;
            self.state.overlap_skipped += skipped;
            if self.state.buffered.len() != waiting {
                self.changed.any = true;
            }
            let mut refused = false;
            for start in overlapping.into_iter().chain(alone) {
                if self.may_act(start.manual) {
                    effects.push(self.start(start, incarnation, env));
                } else {
                    // Paused, or out of actions: the next one may be manual.
                    refused = true;
                }
            }
            if cancel || terminate {
                effects.extend(self.stop_running(terminate, incarnation));
            }
            if !refused {
                break;
            }
        }
        effects
    }

    /// A workflow runs, or is being started, that must not be overlapped.
    fn is_running(&self) -> bool {
        let default = self.overlap_policy();
        let alone =
            |start: &ScheduleStart| overlap::resolve(start.overlap(), default) != ScheduleOverlapPolicy::AllowAll;
        !self.state.running.is_empty() || self.state.starting.iter().any(alone)
    }

    /// Whether an action may be done now.
    pub(crate) fn may_act(&self, manual: bool) -> bool {
        manual || (!self.state.paused && (!self.has_limited_actions() || self.state.remaining_actions > 0))
    }

    /// Computes when time next has something to do here.
    pub(crate) fn retime(&mut self) {
        if !self.exists() {
            self.timer = None;
            return;
        }
        let next = if self.may_act(false) { self.next_action() } else { None };
        let action = next.map(|time| time.max(self.busy_until));
        let backfill = !self.state.backfills.is_empty() && self.state.buffered.len() < MAX_BUFFER / 2;
        let backfill = backfill.then_some(self.backfill_due.max(Timestamp(self.state.processed_until_ns)));
        self.timer = [action, backfill, self.end_of_life(next)].into_iter().flatten().min();
    }

    fn next_action(&self) -> Option<Timestamp> {
        let mut after = Timestamp(self.state.processed_until_ns);
        for _ in 0..TIMES_A_TURN {
            match self.next_after(after) {
                Next::At(found) if found.actual.0 < self.state.update_time_ns => after = found.actual,
                Next::At(found) => return Some(found.actual),
                Next::NotBefore(time) => return Some(time),
                Next::Never => return None,
            }
        }
        Some(after)
    }

    /// When the schedule goes if nothing happens: it has nothing left to do.
    fn end_of_life(&self, next: Option<Timestamp>) -> Option<Timestamp> {
        let state = &self.state;
        let busy = next.is_some()
            || state.paused
            // Not understood (any more): nothing follows from that.
            || self.spec.is_none()
            || !state.backfills.is_empty()
            || !state.buffered.is_empty()
            || !state.starting.is_empty()
            || !state.running.is_empty();
        if busy {
            return None;
        }
        let action = state.recent.last().map(|action| Timestamp::from_proto(action.actual_time.as_ref()).0);
        let last = state.create_time_ns.max(state.update_time_ns).max(action.unwrap_or(0));
        Some(Timestamp(last) + RETENTION)
    }

    pub(crate) fn is_over(&self, now: Timestamp) -> bool {
        let next = if self.may_act(false) { self.next_action() } else { None };
        self.end_of_life(next).is_some_and(|end| end <= now)
    }
}
