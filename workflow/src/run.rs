//! One run: its state in memory, the transition under way, and the way from and to durable form.
//!
//! Every change goes through tracked fields, so a transition can be rolled back as a whole, and its delta is exactly
//! what it changed. Invariants:
//! - WF-1: applying the deltas of all transitions to an empty run gives the state of the live path (volatile parts aside).
//! - WF-2: event ids are contiguous from 1, event times never go back.
//! - WF-3: after an error the run is as it was before the input.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use perdure_proto::{
    perdure::state::v1::{
        ActivityInfo, CallbackInfo, ChildInfo, ExternalCancelInfo, ExternalSignalInfo, NexusOperationInfo,
        RequestIdInfo, RunDelta, RunInfo, RunSnapshot, TimerInfo, UpdateInfo, workflow_task_info::Kind,
    },
    temporal::api::{
        common::v1::{Memo, SearchAttributes},
        enums::v1::WorkflowExecutionStatus,
        history::v1::{History, HistoryEvent, WorkflowExecutionStartedEventAttributes, history_event::Attributes},
        workflow::v1::ResetPoints,
    },
};
use perdure_types::{ChainKey, Timestamp};
use prost::Message;

use crate::{
    api::Effect,
    events::{NewEvent, encode_history},
    query::Queries,
    timeouts::DelayedOffers,
    tracked::{Tracked, Value},
    update::AdmittedUpdates,
};

/// A pending entry together with the event that initiated it (which holds its constant attributes).
#[derive(Debug, Clone, PartialEq)]
pub struct Pending<T> {
    /// The mutable part; its own event field stays empty in memory and in deltas.
    pub info: T,
    pub event: Arc<HistoryEvent>,
}

#[derive(Debug, Clone)]
pub struct Run {
    pub(crate) key: ChainKey,
    pub(crate) run_id: String,
    /// WorkflowExecutionStarted.
    pub(crate) started: Arc<HistoryEvent>,
    pub(crate) info: Value<RunInfo>,
    pub(crate) activities: Tracked<i64, Pending<ActivityInfo>>,
    pub(crate) timers: Tracked<String, TimerInfo>,
    pub(crate) children: Tracked<i64, Pending<ChildInfo>>,
    pub(crate) external_signals: Tracked<i64, Pending<ExternalSignalInfo>>,
    pub(crate) external_cancels: Tracked<i64, Pending<ExternalCancelInfo>>,
    pub(crate) nexus_operations: Tracked<i64, Pending<NexusOperationInfo>>,
    pub(crate) callbacks: Tracked<i64, CallbackInfo>,
    pub(crate) updates: Tracked<String, UpdateInfo>,
    pub(crate) request_ids: Tracked<String, RequestIdInfo>,
    /// Events that wait for the end of the started workflow task to get their ids.
    pub(crate) buffered: Value<Vec<Arc<HistoryEvent>>>,
    pub(crate) memo: Value<Memo>,
    pub(crate) search_attributes: Value<SearchAttributes>,
    pub(crate) reset_points: Value<ResetPoints>,
    pub(crate) close_event: Value<Option<Arc<HistoryEvent>>>,
    /// Set by retention and delete: the transition under way removes the run.
    pub(crate) deleted: bool,

    /// Events of the transition under way.
    pub(crate) new_events: Vec<NewEvent>,
    /// Effects of the transition under way.
    pub(crate) effects: Vec<Effect>,
    /// The run that this one continues as, begun by the transition under way.
    pub(crate) successor: Option<Box<Run>>,

    /// Not durable: callers ask again after a crash.
    pub(crate) admitted: Value<AdmittedUpdates>,
    pub(crate) queries: Queries,
    /// Offers to make later. Derived from state.
    pub(crate) delayed: DelayedOffers,
}

impl Run {
    /// A run without events; the first event must be WorkflowExecutionStarted.
    pub(crate) fn empty(key: ChainKey, run_id: String) -> Self {
        Self {
            key,
            run_id,
            started: Arc::default(),
            info: Value::new(RunInfo { next_event_id: 1, workflow_task_attempt: 1, ..RunInfo::default() }),
            activities: Tracked::default(),
            timers: Tracked::default(),
            children: Tracked::default(),
            external_signals: Tracked::default(),
            external_cancels: Tracked::default(),
            nexus_operations: Tracked::default(),
            callbacks: Tracked::default(),
            updates: Tracked::default(),
            request_ids: Tracked::default(),
            buffered: Value::default(),
            memo: Value::default(),
            search_attributes: Value::default(),
            reset_points: Value::default(),
            close_event: Value::default(),
            deleted: false,
            new_events: Vec::new(),
            effects: Vec::new(),
            successor: None,
            admitted: Value::default(),
            queries: Queries::default(),
            delayed: DelayedOffers::default(),
        }
    }

    pub fn run_id(&self) -> &str {
        &self.run_id
    }

    pub fn status(&self) -> WorkflowExecutionStatus {
        self.info.status()
    }

    pub fn is_open(&self) -> bool {
        matches!(self.status(), WorkflowExecutionStatus::Running | WorkflowExecutionStatus::Paused)
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.status() == WorkflowExecutionStatus::Paused
    }

    /// The attributes of event 1.
    pub(crate) fn start(&self) -> &WorkflowExecutionStartedEventAttributes {
        static NONE: std::sync::LazyLock<WorkflowExecutionStartedEventAttributes> =
            std::sync::LazyLock::new(WorkflowExecutionStartedEventAttributes::default);
        match &self.started.attributes {
            Some(Attributes::WorkflowExecutionStartedEventAttributes(start)) => start,
            _ => &NONE,
        }
    }

    /// A run that a reset began is younger than its first event.
    pub(crate) fn start_time(&self) -> Timestamp {
        match self.info.start_time_ns {
            0 => Timestamp::from_proto(self.started.event_time.as_ref()),
            time_ns => Timestamp(time_ns),
        }
    }

    /// Ends a transition: what changed, if anything durable did.
    pub(crate) fn commit(&mut self) -> Option<RunDelta> {
        if self.deleted {
            return Some(RunDelta { run_id: self.run_id.clone(), deleted: true, ..RunDelta::default() });
        }
        self.admitted.settle();
        let info_changed = self.info.before().is_some_and(|before| durable(before) != durable(&self.info));
        let others_clean = self.new_events.is_empty()
            && self.activities.is_clean()
            && self.timers.is_clean()
            && self.children.is_clean()
            && self.external_signals.is_clean()
            && self.external_cancels.is_clean()
            && self.nexus_operations.is_clean()
            && self.callbacks.is_clean()
            && self.updates.is_clean()
            && self.request_ids.is_clean()
            && self.buffered.before().is_none()
            && self.memo.before().is_none()
            && self.search_attributes.before().is_none()
            && self.reset_points.before().is_none();
        if others_clean && !info_changed {
            self.info.settle();
            return None;
        }
        self.info.edit().state_transition_count += 1;
        self.info.settle();
        self.close_event.settle();
        let mut delta = RunDelta {
            run_id: self.run_id.clone(),
            info: Some(durable(&self.info).into_owned()),
            ..RunDelta::default()
        };
        let events = std::mem::take(&mut self.new_events);
        if let Some(first) = events.first() {
            delta.first_event_id = first.event.event_id;
            delta.events = encode_history(&events).into();
        }
        commit_pending(&mut self.activities, &mut delta.activities, &mut delta.removed_activities);
        commit_pending(&mut self.children, &mut delta.children, &mut delta.removed_children);
        commit_pending(&mut self.external_signals, &mut delta.external_signals, &mut delta.removed_external_signals);
        commit_pending(&mut self.external_cancels, &mut delta.external_cancels, &mut delta.removed_external_cancels);
        commit_pending(&mut self.nexus_operations, &mut delta.nexus_operations, &mut delta.removed_nexus_operations);
        delta.callbacks = self.callbacks.commit().0;
        (delta.timers, delta.removed_timers) = self.timers.commit();
        delta.updates = self.updates.commit().0;
        delta.request_ids = self.request_ids.commit().0;
        if self.buffered.commit().is_some() {
            delta.buffered_events_changed = true;
            delta.buffered_events = self.buffered.iter().map(|e| (**e).clone()).collect();
        }
        delta.memo = self.memo.commit();
        delta.search_attributes = self.search_attributes.commit();
        delta.reset_points = self.reset_points.commit();
        Some(delta)
    }

    /// Undoes the transition under way.
    pub(crate) fn roll_back(&mut self) {
        self.new_events.clear();
        self.effects.clear();
        self.successor = None;
        self.info.roll_back();
        self.activities.roll_back();
        self.timers.roll_back();
        self.children.roll_back();
        self.external_signals.roll_back();
        self.external_cancels.roll_back();
        self.nexus_operations.roll_back();
        self.callbacks.roll_back();
        self.updates.roll_back();
        self.request_ids.roll_back();
        self.buffered.roll_back();
        self.memo.roll_back();
        self.search_attributes.roll_back();
        self.reset_points.roll_back();
        self.close_event.roll_back();
        self.admitted.roll_back();
        self.deleted = false;
    }

    /// Replays one delta.
    pub(crate) fn apply(&mut self, delta: &RunDelta) -> Result<(), prost::DecodeError> {
        let was_open = self.info.status == 0 || self.is_open();
        let events = History::decode(delta.events.clone())?.events;
        let by_id: BTreeMap<i64, Arc<HistoryEvent>> =
            events.into_iter().map(|event| (event.event_id, Arc::new(event))).collect();
        if let Some(first) = by_id.get(&1) {
            self.started = first.clone();
        }
        if let Some(info) = &delta.info {
            self.info.restore(info.clone());
        }
        if was_open && !self.is_open() {
            self.close_event.restore(by_id.values().next_back().cloned());
        }
        restore_pending(&mut self.activities, &delta.activities, &delta.removed_activities, &by_id);
        self.restore_delayed_offers(delta.activities.iter().map(|activity| activity.scheduled_event_id));
        restore_pending(&mut self.children, &delta.children, &delta.removed_children, &by_id);
        restore_pending(&mut self.external_signals, &delta.external_signals, &delta.removed_external_signals, &by_id);
        restore_pending(&mut self.external_cancels, &delta.external_cancels, &delta.removed_external_cancels, &by_id);
        restore_pending(&mut self.nexus_operations, &delta.nexus_operations, &delta.removed_nexus_operations, &by_id);
        for callback in &delta.callbacks {
            self.callbacks.restore(callback.number, Some(callback.clone()));
        }
        for timer in &delta.timers {
            self.timers.restore(timer.timer_id.clone(), Some(timer.clone()));
        }
        for id in &delta.removed_timers {
            self.timers.restore(id.clone(), None);
        }
        for update in &delta.updates {
            self.updates.restore(update.update_id.clone(), Some(update.clone()));
        }
        for request in &delta.request_ids {
            self.request_ids.restore(request.request_id.clone(), Some(request.clone()));
        }
        if delta.buffered_events_changed {
            self.buffered.restore(delta.buffered_events.iter().cloned().map(Arc::new).collect());
        }
        if let Some(memo) = &delta.memo {
            self.memo.restore(memo.clone());
        }
        if let Some(attributes) = &delta.search_attributes {
            self.search_attributes.restore(attributes.clone());
        }
        if let Some(points) = &delta.reset_points {
            self.reset_points.restore(points.clone());
        }
        Ok(())
    }

    /// Everything durable of this run.
    pub fn snapshot(&self) -> RunSnapshot {
        RunSnapshot {
            run_id: self.run_id.clone(),
            started_event: Some((*self.started).clone()),
            info: Some(durable(&self.info).into_owned()),
            activities: self.activities.values().map(with_event).collect(),
            timers: self.timers.values().cloned().collect(),
            children: self.children.values().map(with_event).collect(),
            external_signals: self.external_signals.values().map(with_event).collect(),
            external_cancels: self.external_cancels.values().map(with_event).collect(),
            nexus_operations: self.nexus_operations.values().map(with_event).collect(),
            callbacks: self.callbacks.values().cloned().collect(),
            updates: self.updates.values().cloned().collect(),
            request_ids: self.request_ids.values().cloned().collect(),
            buffered_events: self.buffered.iter().map(|e| (**e).clone()).collect(),
            memo: Some((*self.memo).clone()),
            search_attributes: Some((*self.search_attributes).clone()),
            close_event: self.close_event.as_ref().map(|e| (**e).clone()),
            reset_points: (!self.reset_points.points.is_empty()).then(|| (*self.reset_points).clone()),
        }
    }

    /// The inverse of [`Run::snapshot`].
    pub fn from_snapshot(key: ChainKey, snapshot: RunSnapshot) -> Self {
        let mut run = Self::empty(key, snapshot.run_id);
        run.started = Arc::new(snapshot.started_event.unwrap_or_default());
        run.info.restore(snapshot.info.unwrap_or_default());
        load_pending(&mut run.activities, snapshot.activities);
        load_pending(&mut run.children, snapshot.children);
        load_pending(&mut run.external_signals, snapshot.external_signals);
        load_pending(&mut run.external_cancels, snapshot.external_cancels);
        load_pending(&mut run.nexus_operations, snapshot.nexus_operations);
        for callback in snapshot.callbacks {
            run.callbacks.restore(callback.number, Some(callback));
        }
        for timer in snapshot.timers {
            run.timers.restore(timer.timer_id.clone(), Some(timer));
        }
        for update in snapshot.updates {
            run.updates.restore(update.update_id.clone(), Some(update));
        }
        for request in snapshot.request_ids {
            run.request_ids.restore(request.request_id.clone(), Some(request));
        }
        run.buffered.restore(snapshot.buffered_events.into_iter().map(Arc::new).collect());
        run.memo.restore(snapshot.memo.unwrap_or_default());
        run.search_attributes.restore(snapshot.search_attributes.unwrap_or_default());
        run.reset_points.restore(snapshot.reset_points.unwrap_or_default());
        run.close_event.restore(snapshot.close_event.map(Arc::new));
        let activities: Vec<i64> = run.activities.keys().copied().collect();
        run.restore_delayed_offers(activities.into_iter());
        run
    }
}

/// The info without what lives in memory only: a speculative workflow task.
fn durable(info: &RunInfo) -> Cow<'_, RunInfo> {
    if info.workflow_task.as_ref().is_none_or(|task| task.kind() != Kind::Speculative) {
        return Cow::Borrowed(info);
    }
    let mut info = info.clone();
    info.workflow_task = None;
    Cow::Owned(info)
}

/// What kinds of pending entries have in common.
pub(crate) trait PendingInfo: Clone {
    fn id(&self) -> i64;
    fn event_slot(&mut self) -> &mut Option<Box<HistoryEvent>>;
}

macro_rules! pending_info {
    ($type:ty, $id:ident, $event:ident) => {
        impl PendingInfo for $type {
            fn id(&self) -> i64 {
                self.$id
            }
            fn event_slot(&mut self) -> &mut Option<Box<HistoryEvent>> {
                &mut self.$event
            }
        }
    };
}

pending_info!(ActivityInfo, scheduled_event_id, scheduled_event);
pending_info!(ChildInfo, initiated_event_id, initiated_event);
pending_info!(ExternalSignalInfo, initiated_event_id, initiated_event);
pending_info!(ExternalCancelInfo, initiated_event_id, initiated_event);
pending_info!(NexusOperationInfo, scheduled_event_id, scheduled_event);

fn with_event<T: PendingInfo>(pending: &Pending<T>) -> T {
    let mut info = pending.info.clone();
    *info.event_slot() = Some(Box::new((*pending.event).clone()));
    info
}

fn commit_pending<T: PendingInfo>(map: &mut Tracked<i64, Pending<T>>, written: &mut Vec<T>, removed: &mut Vec<i64>) {
    let (changed, gone) = map.commit();
    written.extend(changed.into_iter().map(|pending| pending.info));
    removed.extend(gone);
}

fn restore_pending<T: PendingInfo>(
    map: &mut Tracked<i64, Pending<T>>,
    written: &[T],
    removed: &[i64],
    events: &BTreeMap<i64, Arc<HistoryEvent>>,
) {
    for info in written {
        let event = match map.get(&info.id()) {
            Some(known) => known.event.clone(),
            None => events.get(&info.id()).cloned().unwrap_or_default(),
        };
        map.restore(info.id(), Some(Pending { info: info.clone(), event }));
    }
    for id in removed {
        map.restore(*id, None);
    }
}

fn load_pending<T: PendingInfo>(map: &mut Tracked<i64, Pending<T>>, infos: Vec<T>) {
    for mut info in infos {
        let event = Arc::from(info.event_slot().take().unwrap_or_default());
        map.restore(info.id(), Some(Pending { info, event }));
    }
}
