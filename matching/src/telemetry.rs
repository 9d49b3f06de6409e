//! Metrics of task queues. Handles are looked up once: create [`Telemetry`] after the recorder is installed.

use metrics::{Counter, Gauge, Unit, counter, describe_counter, describe_gauge, gauge};

use crate::registry::QueueKind;

const BACKLOG: &str = "perdure_task_queue_backlog";
const MATCHED: &str = "perdure_task_queue_matched_total";
const POLLS: &str = "perdure_task_queue_polls_total";
const OFFERS_REFUSED: &str = "perdure_task_queue_sticky_offers_refused_total";
const STARTS: &str = "perdure_task_queue_starts_total";
const UNDELIVERED: &str = "perdure_task_queue_undelivered_total";

/// The metrics of one kind of queue.
struct KindMetrics {
    backlog: Gauge,
    matched_sync: Counter,
    matched_backlog: Counter,
    poll_succeeded: Counter,
    poll_empty: Counter,
    poll_vanished: Counter,
    start_obsolete: Counter,
    start_retried: Counter,
    undelivered: Counter,
}

impl KindMetrics {
    fn new(kind: QueueKind) -> Self {
        let kind = kind.label();
        Self {
            backlog: gauge!(BACKLOG, "kind" => kind),
            matched_sync: counter!(MATCHED, "kind" => kind, "match" => "sync"),
            matched_backlog: counter!(MATCHED, "kind" => kind, "match" => "backlog"),
            poll_succeeded: counter!(POLLS, "kind" => kind, "result" => "task"),
            poll_empty: counter!(POLLS, "kind" => kind, "result" => "empty"),
            poll_vanished: counter!(POLLS, "kind" => kind, "result" => "vanished"),
            start_obsolete: counter!(STARTS, "kind" => kind, "result" => "obsolete"),
            start_retried: counter!(STARTS, "kind" => kind, "result" => "retried"),
            undelivered: counter!(UNDELIVERED, "kind" => kind),
        }
    }
}

/// All metrics of this crate.
pub(crate) struct Telemetry {
    kinds: [KindMetrics; 3],
    offers_refused: Counter,
}

impl Telemetry {
    pub fn new() -> Self {
        describe_gauge!(BACKLOG, Unit::Count, "Tasks that wait for a poll");
        describe_counter!(MATCHED, Unit::Count, "Offers matched with a poll: at once (sync), or out of the backlog");
        describe_counter!(POLLS, Unit::Count, "Polls that ended: with a task, empty, or with a vanished client");
        describe_counter!(OFFERS_REFUSED, Unit::Count, "Offers to sticky queues without a recent poller");
        describe_counter!(STARTS, Unit::Count, "Matched tasks that were obsolete, or whose shard was not reached");
        describe_counter!(
            UNDELIVERED,
            Unit::Count,
            "Started tasks that went back because their poll's client vanished"
        );
        Self { kinds: QueueKind::ALL.map(KindMetrics::new), offers_refused: counter!(OFFERS_REFUSED) }
    }

    fn of(&self, kind: QueueKind) -> &KindMetrics {
        &self.kinds[kind as usize]
    }

    pub fn backlog_changed(&self, kind: QueueKind, before: usize, after: usize) {
        if before != after {
            self.of(kind).backlog.increment(after as f64 - before as f64);
        }
    }

    pub fn matched(&self, kind: QueueKind, sync: bool) {
        let kind = self.of(kind);
        if sync { kind.matched_sync.increment(1) } else { kind.matched_backlog.increment(1) }
    }

    pub fn poll_succeeded(&self, kind: QueueKind) {
        self.of(kind).poll_succeeded.increment(1);
    }

    pub fn poll_empty(&self, kind: QueueKind) {
        self.of(kind).poll_empty.increment(1);
    }

    pub fn poll_vanished(&self, kind: QueueKind) {
        self.of(kind).poll_vanished.increment(1);
    }

    pub fn start_obsolete(&self, kind: QueueKind) {
        self.of(kind).start_obsolete.increment(1);
    }

    pub fn start_retried(&self, kind: QueueKind) {
        self.of(kind).start_retried.increment(1);
    }

    pub fn undelivered(&self, kind: QueueKind) {
        self.of(kind).undelivered.increment(1);
    }

    pub fn offer_refused(&self) {
        self.offers_refused.increment(1);
    }
}
