//! Everything that happens because time passes, and everything outstanding.

use std::collections::BTreeSet;

use perdure_proto::{
    perdure::state::v1::{WorkflowTaskInfo, workflow_task_info::Kind},
    temporal::api::common::v1::Payloads,
};
use perdure_types::Timestamp;
use prost::Message;

use crate::{
    activity::Activity,
    activity_timeout::next_deadline,
    api::{Effect, Env},
    run::Run,
};

/// Offers that are to be made later. What is here may be out of date: it is checked against the state when it is due.
#[derive(Debug, Clone, Default)]
pub(crate) struct DelayedOffers {
    /// When, and the activity's scheduled event.
    pub activities: BTreeSet<(Timestamp, i64)>,
    pub workflow_task: Option<Timestamp>,
}

/// Something whose time has come.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Deadline,
    WorkflowTask,
    Timer { started_event_id: i64, timer_id: String },
    Activity { scheduled_event_id: i64 },
    NexusOperation { scheduled_event_id: i64 },
}

impl Run {
    /// Does everything due at `env.now`, in the order in which it was due.
    pub(crate) fn on_timer(&mut self, env: &mut Env) {
        self.callbacks_due(env.now);
        if !self.is_open() {
            self.deleted |= self.retention_end().is_some_and(|end| end <= env.now);
            return;
        }
        self.begin_when_due(env);
        // Firing one thing makes others due only by what they cause at `now`, so few rounds suffice; the bound
        // keeps a thing that does not go away from holding the shard.
        for _ in 0..8 {
            let mut due = self.due(env.now);
            if due.is_empty() {
                break;
            }
            due.sort_unstable();
            for (_, due) in due {
                if !self.is_open() {
                    return;
                }
                match due {
                    Due::Deadline => self.time_out(env),
                    Due::WorkflowTask => self.workflow_task_deadline_passed(env),
                    Due::Timer { timer_id, .. } => self.fire_timer(env, &timer_id),
                    Due::Activity { scheduled_event_id } => self.time_out_activity(env, scheduled_event_id),
                    Due::NexusOperation { scheduled_event_id } => self.nexus_operation_due(scheduled_event_id, env),
                }
            }
        }
        self.make_delayed_offers(env.now);
    }

    /// The first workflow task of a run that began with a delay.
    fn begin_when_due(&mut self, env: &Env) {
        if self.first_workflow_task_at().is_some_and(|at| at <= env.now) {
            self.schedule_workflow_task(env, env.now);
        }
    }

    fn first_workflow_task_at(&self) -> Option<Timestamp> {
        let waits = !self.is_paused()
            && self.workflow_task().is_none()
            && self.info.last_completed_workflow_task_started_id == 0
            && self.info.first_workflow_task_due_ns != 0;
        waits.then_some(Timestamp(self.info.first_workflow_task_due_ns))
    }

    fn due(&self, now: Timestamp) -> Vec<(Timestamp, Due)> {
        let mut due = Vec::new();
        due.extend(self.deadline().map(|at| (at, Due::Deadline)));
        due.extend(self.workflow_task_deadline().map(|(at, _)| (at, Due::WorkflowTask)));
        due.retain(|(at, _)| *at <= now);
        due.extend(self.timers.values().filter(|timer| timer.fire_time_ns <= now.as_nanos()).map(|timer| {
            let due = Due::Timer { started_event_id: timer.started_event_id, timer_id: timer.timer_id.clone() };
            (Timestamp(timer.fire_time_ns), due)
        }));
        due.extend(self.activities.iter().filter_map(|(id, activity)| {
            let (at, _) = next_deadline(&activity.info).filter(|(at, _)| *at <= now)?;
            Some((at, Due::Activity { scheduled_event_id: *id }))
        }));
        due.extend(self.nexus_operations.iter().filter_map(|(id, operation)| {
            let at = operation.next_due().filter(|at| *at <= now)?;
            Some((at, Due::NexusOperation { scheduled_event_id: *id }))
        }));
        due
    }

    /// Of the run, or of the execution.
    fn deadline(&self) -> Option<Timestamp> {
        [self.info.run_deadline_ns, self.info.execution_deadline_ns]
            .into_iter()
            .filter(|at| *at != 0)
            .min()
            .map(Timestamp)
    }

    fn make_delayed_offers(&mut self, now: Timestamp) {
        while let Some((at, id)) = self.delayed.activities.first().copied().filter(|(at, _)| *at <= now) {
            self.delayed.activities.remove(&(at, id));
            if self.activities.get(&id).is_some_and(|activity| activity.info.scheduled_time_ns == at.as_nanos()) {
                self.offer_activity_when_due(id, now);
            }
        }
        if self.delayed.workflow_task.is_some_and(|at| at <= now) {
            let at = self.delayed.workflow_task.take();
            if self.workflow_task().map(|task| Timestamp(task.not_before_ns)) == at {
                self.offer_workflow_task();
            }
        }
    }

    /// Earliest time at which [`Run::on_timer`] does something.
    pub(crate) fn next_timer(&self) -> Option<Timestamp> {
        if !self.is_open() {
            return [self.retention_end(), self.next_callback_attempt()].into_iter().flatten().min();
        }
        let offers = self.delayed.activities.first().map(|(at, _)| *at);
        [self.next_deadline(), offers, self.delayed.workflow_task].into_iter().flatten().min()
    }

    /// Earliest time at which something ends or begins by itself.
    fn next_deadline(&self) -> Option<Timestamp> {
        let timers = self.timers.values().map(|timer| Timestamp(timer.fire_time_ns)).min();
        let activities =
            self.activities.values().filter_map(|activity| next_deadline(&activity.info)).map(|(at, _)| at).min();
        let nexus = self.nexus_operations.values().filter_map(|operation| operation.next_due()).min();
        let workflow_task = self.workflow_task_deadline().map(|(at, _)| at);
        let others = [timers, activities, nexus, self.next_callback_attempt()];
        [self.deadline(), self.first_workflow_task_at(), workflow_task].into_iter().chain(others).flatten().min()
    }

    /// When a closed run may be deleted. Not before everybody who must know of its close does.
    fn retention_end(&self) -> Option<Timestamp> {
        let kept = self.info.retention_deadline_ns == 0 || self.is_waited_for();
        (!kept).then_some(Timestamp(self.info.retention_deadline_ns))
    }

    /// When a new owner must load this run: the next timer, or at once (a time that has passed) when something is
    /// outstanding. Only what is durable counts.
    pub(crate) fn wake_at(&self) -> Option<Timestamp> {
        if !self.outstanding_calls().is_empty() {
            return Some(Timestamp(self.info.last_event_time_ns));
        }
        if !self.is_open() {
            return self.next_timer();
        }
        let activities = self
            .activities
            .values()
            .filter(|activity| activity.waits() && !self.is_paused())
            .map(|activity| activity.info.scheduled_time_ns);
        let workflow_task = self
            .workflow_task()
            .filter(|task| task.started_event_id == 0 && task.kind() != Kind::Speculative)
            .map(|task| task.not_before_ns.max(task.scheduled_time_ns));
        let offers = activities.chain(workflow_task).min().map(Timestamp);
        [self.next_deadline(), offers].into_iter().flatten().min()
    }

    /// All outstanding effects: offers that have been made and not taken, calls without result. Offers that were not due yet
    /// when this run last looked at the time come from [`Run::on_timer`].
    pub(crate) fn resume(&self) -> Vec<Effect> {
        let mut effects = self.outstanding_calls();
        if !self.is_open() {
            return effects;
        }
        let is_delayed = |task: &WorkflowTaskInfo| self.delayed.workflow_task == Some(Timestamp(task.not_before_ns));
        if self.workflow_task().is_some_and(|task| !is_delayed(task)) {
            effects.extend(self.workflow_task_offer().map(Effect::Offer));
        }
        let is_offered = |(id, activity): &(&i64, &Activity)| {
            let due = (Timestamp(activity.info.scheduled_time_ns), **id);
            activity.waits() && !self.is_paused() && !self.delayed.activities.contains(&due)
        };
        let offered = self.activities.iter().filter(is_offered);
        effects.extend(offered.map(|(_, activity)| Effect::Offer(self.activity_offer(activity))));
        effects
    }

    /// Without a clock: what is due when the last event was written.
    fn is_surely_due(&self, time_ns: i64) -> bool {
        time_ns <= self.info.last_event_time_ns
    }

    /// After loading: offers that [`Run::resume`] leaves out.
    pub(crate) fn restore_delayed_offers(&mut self, activities: impl Iterator<Item = i64>) {
        for id in activities {
            let waits = self.activities.get(&id).filter(|activity| activity.waits() && self.is_open());
            let Some(activity) = waits else {
                continue;
            };
            let at = activity.info.scheduled_time_ns;
            if !self.is_surely_due(at) {
                self.delayed.activities.insert((Timestamp(at), id));
            }
        }
        self.delayed.workflow_task = self
            .workflow_task()
            .filter(|task| task.started_event_id == 0 && !self.is_surely_due(task.not_before_ns))
            .map(|task| Timestamp(task.not_before_ns));
    }

    /// Roughly the heap that this run holds.
    pub(crate) fn weight_bytes(&self) -> usize {
        let bytes = |payloads: &Option<Payloads>| {
            payloads.as_ref().map_or(0, |p| p.payloads.iter().map(|payload| payload.data.len() + 200).sum::<usize>())
        };
        let activities: usize = self
            .activities
            .values()
            .map(|activity| 1200 + bytes(&activity.scheduled().input) + bytes(&activity.info.heartbeat_details))
            .sum();
        let input = bytes(&self.start().input);
        let buffered: usize = self.buffered.iter().map(|event| event.encoded_len() + 300).sum();
        let nexus: usize = self.nexus_operations.values().map(|operation| 2000 + operation.event.encoded_len()).sum();
        let calls =
            self.children.len() + self.external_signals.len() + self.external_cancels.len() + self.callbacks.len();
        let small = self.timers.len() + self.updates.len() + self.request_ids.len();
        // Measured: a closed run with small payloads holds about 6 KB.
        6000 + input + activities + nexus + buffered + calls * 1500 + small * 250
    }
}
