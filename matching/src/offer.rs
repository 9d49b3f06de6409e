//! A task that waits to be started, by reference. Kept small: a backlog may hold a million of them.

use perdure_proto::{
    perdure::node::v1::{
        Offer, RecordActivityTaskStarted, RecordWorkflowTaskStarted, StickyQueueUnavailable, VersionDirective,
        WorkflowCall, workflow_call::Command,
    },
    temporal::api::workflowservice::v1::{PollActivityTaskQueueRequest, PollWorkflowTaskQueueRequest},
};
use perdure_types::Timestamp;
use uuid::Uuid;

use crate::{
    fairness,
    routing::{Asked, Target, share},
};

/// Urgency of a task: 1 goes first, 5 last.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Priority(u8);

impl Priority {
    pub const LEVELS: usize = 5;
    const DEFAULT: Self = Self(3);

    /// 0 or nonsense is the default; beyond the last level is the last level.
    pub fn from_key(key: i32) -> Self {
        match key {
            ..=0 => Self::DEFAULT,
            1..=5 => Self(key as u8),
            6.. => Self(Self::LEVELS as u8),
        }
    }

    pub fn key(self) -> i32 {
        i32::from(self.0)
    }

    pub fn index(self) -> usize {
        usize::from(self.0) - 1
    }

    pub fn all() -> impl Iterator<Item = Self> {
        (1..=Self::LEVELS as u8).map(Self)
    }
}

/// A run id: 16 bytes when it is a UUID as servers write it, and any other text as it is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum RunId {
    Uuid(Uuid),
    Text(Box<str>),
}

impl RunId {
    fn new(text: String) -> Self {
        let mut buffer = Uuid::encode_buffer();
        match Uuid::try_parse(&text) {
            Ok(uuid) if uuid.hyphenated().encode_lower(&mut buffer) == text.as_str() => Self::Uuid(uuid),
            _ => Self::Text(text.into()),
        }
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Uuid(uuid) => uuid.as_bytes(),
            Self::Text(text) => text.as_bytes(),
        }
    }

    fn to_text(&self) -> String {
        match self {
            Self::Uuid(uuid) => uuid.hyphenated().to_string(),
            Self::Text(text) => text.to_string(),
        }
    }
}

/// What two offers of the same task have in common.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct TaskKey {
    run_id: RunId,
    scheduled_event_id: i64,
}

/// One offered task.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct TaskOffer {
    pub key: TaskKey,
    workflow_id: Box<str>,
    /// Of entity: where the start is recorded.
    entity_kind: u8,
    /// The rules of its queue may give it a build id.
    unassigned: bool,
    attempt: i32,
    stamp: i32,
    pub priority: Priority,
    /// What few tasks have.
    extra: Option<Box<Extra>>,
    /// How often its shard was not reached; sets the pause before the next try.
    pub failures: u8,
    /// Since when the task waits: its schedule time, or when the offer came.
    pub waits_since: Timestamp,
}

/// Shares and versions.
#[derive(Clone, PartialEq, Debug, Default)]
struct Extra {
    fairness_key: Box<str>,
    fairness_weight: f32,
    directive: Option<Box<VersionDirective>>,
    /// Of an activity that is on another queue than its workflow.
    workflow_task_queue: Box<str>,
}

// A weight is a number, and no nonsense is kept.
impl Eq for Extra {}

impl Extra {
    fn new(offer: &mut Offer) -> Option<Box<Self>> {
        let (fairness_key, fairness_weight) = match &mut offer.priority {
            Some(priority) => (std::mem::take(&mut priority.fairness_key), priority.fairness_weight),
            None => (String::new(), 0.0),
        };
        let directive = offer.directive.take();
        if fairness_key.is_empty() && fairness_weight == 0.0 && directive.is_none() {
            return None;
        }
        let workflow_task_queue = std::mem::take(&mut offer.normal_task_queue).into();
        let fairness_weight = fairness::weight(fairness_weight);
        Some(Box::new(Self { fairness_key: fairness_key.into(), fairness_weight, directive, workflow_task_queue }))
    }
}

impl TaskOffer {
    pub fn new(mut offer: Offer, now: Timestamp) -> Self {
        let scheduled = Timestamp(offer.scheduled_time_ns);
        let extra = Extra::new(&mut offer);
        Self {
            key: TaskKey { run_id: RunId::new(offer.run_id), scheduled_event_id: offer.scheduled_event_id },
            workflow_id: offer.workflow_id.into(),
            entity_kind: u8::try_from(offer.entity_kind).unwrap_or(u8::MAX),
            unassigned: offer.unassigned,
            attempt: offer.attempt,
            stamp: offer.stamp,
            priority: Priority::from_key(offer.priority.map_or(0, |p| p.priority_key)),
            extra,
            failures: 0,
            waits_since: if scheduled > Timestamp::ZERO && scheduled < now { scheduled } else { now },
        }
    }

    /// Orders offers of the same task: a later attempt, or a later change of its options, makes the earlier obsolete.
    pub fn version(&self) -> (i32, i32) {
        (self.attempt, self.stamp)
    }

    pub fn workflow_id(&self) -> &str {
        &self.workflow_id
    }

    pub fn fairness_key(&self) -> &str {
        self.extra.as_ref().map_or("", |extra| &extra.fairness_key)
    }

    pub fn weight(&self) -> f32 {
        self.extra.as_ref().map_or(1.0, |extra| extra.fairness_weight)
    }

    /// What operators have set counts for more than what the task says.
    pub fn set_weight(&mut self, weight: f32) {
        self.extra.get_or_insert_default().fairness_weight = fairness::weight(weight);
    }

    pub fn directive(&self) -> Option<&VersionDirective> {
        self.extra.as_ref()?.directive.as_deref()
    }

    /// What routing looks at.
    pub fn asked(&self) -> Asked<'_> {
        let place = self.unassigned.then(|| share(self.key.run_id.bytes()));
        Asked { workflow_id: &self.workflow_id, directive: self.directive(), place }
    }

    pub fn without_version(mut self) -> Self {
        self.unassigned = false;
        if let Some(extra) = &mut self.extra {
            extra.directive = None;
        }
        self
    }

    /// Empty: this one.
    pub fn workflow_task_queue(&self) -> &str {
        self.extra.as_ref().map_or("", |extra| &extra.workflow_task_queue)
    }

    fn call(&self, namespace_id: &str, command: Command) -> WorkflowCall {
        WorkflowCall {
            namespace_id: namespace_id.to_owned(),
            workflow_id: self.workflow_id.to_string(),
            kind: i32::from(self.entity_kind),
            command: Some(command),
        }
    }

    /// `routed`: the revision by which the task came to this poll. `target`: where tasks that are not pinned go. `build_id`:
    /// what a rule has assigned to it.
    pub fn start_workflow_task(
        &self,
        namespace_id: &str,
        (request_id, poll): (String, PollWorkflowTaskQueueRequest),
        routed: i64,
        target: Target,
        build_id: String,
    ) -> WorkflowCall {
        let command = RecordWorkflowTaskStarted {
            run_id: self.key.run_id.to_text(),
            scheduled_event_id: self.key.scheduled_event_id,
            attempt: self.attempt,
            request_id,
            poll: Some(poll),
            stamp: self.stamp,
            routing_revision: routed,
            target_version: target.0,
            target_revision: target.1,
            build_id,
        };
        self.call(namespace_id, Command::RecordWorkflowTaskStarted(command))
    }

    /// `target`: where workflow tasks of the same execution go.
    pub fn start_activity_task(
        &self,
        namespace_id: &str,
        (request_id, poll): (String, PollActivityTaskQueueRequest),
        routed: i64,
        target: Target,
    ) -> WorkflowCall {
        let command = RecordActivityTaskStarted {
            run_id: self.key.run_id.to_text(),
            scheduled_event_id: self.key.scheduled_event_id,
            attempt: self.attempt,
            stamp: self.stamp,
            request_id,
            poll: Some(poll),
            routing_revision: routed,
            workflow_target: target.0,
            workflow_target_revision: target.1,
        };
        self.call(namespace_id, Command::RecordActivityTaskStarted(command))
    }

    /// Hands the task back to its shard, for the normal queue.
    pub fn sticky_unavailable(&self, namespace_id: &str) -> WorkflowCall {
        let command = StickyQueueUnavailable {
            run_id: self.key.run_id.to_text(),
            scheduled_event_id: self.key.scheduled_event_id,
            attempt: self.attempt,
        };
        self.call(namespace_id, Command::StickyQueueUnavailable(command))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn run_ids_come_back_as_they_were() {
        for text in ["0192d3c4-5e6f-4a7b-8c9d-0e1f2a3b4c5d", "0192D3C4-5E6F-4A7B-8C9D-0E1F2A3B4C5D", "run", ""] {
            assert_eq!(RunId::new(text.to_owned()).to_text(), text);
        }
        assert!(matches!(RunId::new("0192d3c4-5e6f-4a7b-8c9d-0e1f2a3b4c5d".into()), RunId::Uuid(_)));
    }

    #[test]
    fn priorities_are_clamped() {
        let keys = [-1, 0, 1, 5, 9].map(|key| Priority::from_key(key).key());
        assert_eq!(keys, [3, 3, 1, 5, 5]);
    }

    #[test]
    fn an_offer_is_small() {
        assert!(size_of::<TaskOffer>() <= 80, "{} bytes", size_of::<TaskOffer>());
    }
}
