//! Metrics of task queues, under the names and labels that Temporal's dashboards use. Each queue holds its handles.
//!
//! Sticky queues, which come and go with workers, share one label. So do the queues beyond the first thousand: labels that
//! clients choose have a bound.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use metrics::{
    Counter, Gauge, Histogram, Label, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};
use perdure_types::Duration;

use crate::registry::QueueKind;

const BACKLOG: &str = "approximate_backlog_count";
const BACKLOG_AGE: &str = "approximate_backlog_age_seconds";
const POLL_SUCCESS: &str = "poll_success";
const POLL_SUCCESS_SYNC: &str = "poll_success_sync";
const POLL_TIMEOUTS: &str = "poll_timeouts";
const POLL_LATENCY: &str = "poll_latency";
const ADDED: &str = "tasks_added";
const NO_POLLER: &str = "no_poller_tasks";
const DISPATCH: &str = "task_dispatch_latency";
const QUEUES: &str = "loaded_task_queue_count";
const VANISHED: &str = "perdure_task_queue_polls_vanished_total";
const OFFERS_REFUSED: &str = "perdure_task_queue_sticky_offers_refused_total";
const STARTS: &str = "perdure_task_queue_starts_total";
const UNDELIVERED: &str = "perdure_task_queue_undelivered_total";

/// Queues of one node that have a label of their own.
const MOST_NAMED: usize = 1000;
/// Temporal's label of a queue that is not named.
const OMITTED: &str = "__omitted__";
const STICKY: &str = "__sticky__";
const NORMAL: &str = "__normal__";

/// The metrics of one queue.
pub(crate) struct QueueMeters {
    backlog: Gauge,
    backlog_age: Gauge,
    poll_success: Counter,
    poll_success_sync: Counter,
    poll_timeouts: Counter,
    poll_latency: Histogram,
    added: Counter,
    no_poller: Counter,
    dispatch: Histogram,
    vanished: Counter,
    start_obsolete: Counter,
    start_retried: Counter,
    undelivered: Counter,
}

impl QueueMeters {
    fn new(labels: Vec<Label>) -> Self {
        let starts = |result| {
            let mut labels = labels.clone();
            labels.push(Label::from_static_parts("result", result));
            counter!(STARTS, labels)
        };
        Self {
            backlog: gauge!(BACKLOG, labels.clone()),
            backlog_age: gauge!(BACKLOG_AGE, labels.clone()),
            poll_success: counter!(POLL_SUCCESS, labels.clone()),
            poll_success_sync: counter!(POLL_SUCCESS_SYNC, labels.clone()),
            poll_timeouts: counter!(POLL_TIMEOUTS, labels.clone()),
            poll_latency: histogram!(POLL_LATENCY, labels.clone()),
            added: counter!(ADDED, labels.clone()),
            no_poller: counter!(NO_POLLER, labels.clone()),
            dispatch: histogram!(DISPATCH, labels.clone()),
            vanished: counter!(VANISHED, labels.clone()),
            start_obsolete: starts("obsolete"),
            start_retried: starts("retried"),
            undelivered: counter!(UNDELIVERED, labels),
        }
    }

    pub fn backlog_changed(&self, before: usize, after: usize) {
        if before != after {
            // Relative, since queues may share a label.
            self.backlog.increment(after as f64 - before as f64);
        }
    }

    /// Of the task that has waited longest. Of queues that share a label, the last to tell is seen.
    pub fn backlog_age(&self, age: Duration) {
        self.backlog_age.set(age.to_std().as_secs_f64());
    }

    pub fn added(&self, has_poller: bool) {
        self.added.increment(1);
        if !has_poller {
            self.no_poller.increment(1);
        }
    }

    /// A poll was there before its task.
    pub fn matched_at_once(&self) {
        self.poll_success_sync.increment(1);
    }

    /// A task was started for a poll, so long after it was offered.
    pub fn dispatched(&self, waited: Duration) {
        self.dispatch.record(waited.to_std().as_secs_f64());
    }

    pub fn poll_succeeded(&self, waited: std::time::Duration) {
        self.poll_success.increment(1);
        self.poll_latency.record(waited.as_secs_f64());
    }

    pub fn poll_empty(&self) {
        self.poll_timeouts.increment(1);
    }

    pub fn poll_vanished(&self) {
        self.vanished.increment(1);
    }

    pub fn start_obsolete(&self) {
        self.start_obsolete.increment(1);
    }

    pub fn start_retried(&self) {
        self.start_retried.increment(1);
    }

    pub fn undelivered(&self) {
        self.undelivered.increment(1);
    }
}

/// All metrics of this crate.
pub(crate) struct Telemetry {
    offers_refused: Counter,
    queues: Gauge,
    /// Names that are labels.
    named: Mutex<HashSet<Arc<str>>>,
}

impl Telemetry {
    pub fn new() -> Self {
        describe_gauge!(BACKLOG, Unit::Count, "Tasks that wait for a poll");
        describe_gauge!(BACKLOG_AGE, Unit::Seconds, "How long the oldest of them has waited");
        describe_counter!(POLL_SUCCESS, Unit::Count, "Polls that got a task");
        describe_counter!(POLL_SUCCESS_SYNC, Unit::Count, "Tasks that a poll was waiting for");
        describe_counter!(POLL_TIMEOUTS, Unit::Count, "Polls that ended without a task");
        describe_histogram!(POLL_LATENCY, Unit::Seconds, "How long polls waited for their task");
        describe_counter!(ADDED, Unit::Count, "Tasks offered to the queue");
        describe_counter!(NO_POLLER, Unit::Count, "Tasks offered while no worker has polled lately");
        describe_histogram!(DISPATCH, Unit::Seconds, "From a task's offer to the poll that gets it");
        describe_gauge!(QUEUES, Unit::Count, "Task queues in memory");
        describe_counter!(VANISHED, Unit::Count, "Polls whose client went away");
        describe_counter!(OFFERS_REFUSED, Unit::Count, "Offers to sticky queues without a recent poller");
        describe_counter!(STARTS, Unit::Count, "Matched tasks that were obsolete, or whose shard was not reached");
        describe_counter!(
            UNDELIVERED,
            Unit::Count,
            "Started tasks that went back because their poll's client vanished"
        );
        let offers_refused = counter!(OFFERS_REFUSED);
        offers_refused.increment(0);
        Self { offers_refused, queues: gauge!(QUEUES), named: Mutex::default() }
    }

    /// The meters of a new queue; a name that was seen before gets the same series again.
    pub fn queue(&self, namespace: Option<Arc<str>>, kind: QueueKind, name: &Arc<str>) -> QueueMeters {
        let (task_type, partition) = match kind {
            QueueKind::Workflow => ("Workflow", NORMAL),
            QueueKind::Sticky => ("Workflow", STICKY),
            QueueKind::Activity => ("Activity", NORMAL),
            QueueKind::Nexus => ("Nexus", NORMAL),
        };
        let queue = match kind {
            QueueKind::Sticky => Label::from_static_parts("taskqueue", STICKY),
            QueueKind::Workflow | QueueKind::Activity | QueueKind::Nexus if self.may_be_named(name) => {
                Label::new("taskqueue", Arc::clone(name))
            }
            QueueKind::Workflow | QueueKind::Activity | QueueKind::Nexus => {
                Label::from_static_parts("taskqueue", OMITTED)
            }
        };
        QueueMeters::new(vec![
            Label::from_static_parts("service_name", "matching"),
            Label::new("namespace", namespace.unwrap_or_else(|| "_unknown_".into())),
            queue,
            Label::from_static_parts("task_type", task_type),
            Label::from_static_parts("partition", partition),
        ])
    }

    fn may_be_named(&self, name: &Arc<str>) -> bool {
        let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
        named.contains(name) || (named.len() < MOST_NAMED && named.insert(Arc::clone(name)))
    }

    pub fn queues(&self, count: usize) {
        self.queues.set(count as f64);
    }

    pub fn offer_refused(&self) {
        self.offers_refused.increment(1);
    }
}
