//! What goes into the pure core and what comes out of it. All of it values.

use std::sync::Arc;

use perdure_proto::{
    Error,
    perdure::{
        node::v1::{Offer, WorkflowCall, WorkflowReply, workflow_reply},
        state::v1::ChainRecord,
    },
    temporal::api::{
        common::v1::SearchAttributes,
        history::v1::HistoryEvent,
        rules::v1::{WorkflowRule, WorkflowRuleSpec},
        workflow::v1::WorkflowExecutionInfo,
        workflowservice::v1::{DescribeActivityExecutionRequest, DescribeNexusOperationExecutionRequest},
    },
};
use perdure_types::{Duration, Limits, Timestamp};

/// What a decision may depend on besides the entity's state: given by the driver, recorded nowhere.
pub struct Env<'a> {
    pub now: Timestamp,
    pub limits: &'a Limits,
    pub ids: &'a mut IdSource,
    pub namespaces: &'a dyn NamespaceView,
}

/// The namespace registry as the core sees it.
pub trait NamespaceView: Send + Sync {
    fn by_name(&self, name: &str) -> Option<NamespaceInfo>;
    fn by_id(&self, id: &str) -> Option<NamespaceInfo>;
    /// Why search attributes may not be set in a namespace (by id).
    fn check_search_attributes(&self, _namespace_id: &str, _attributes: &SearchAttributes) -> Result<(), String> {
        Ok(())
    }
    /// The id of a Nexus endpoint.
    fn nexus_endpoint(&self, _name: &str) -> Option<String> {
        None
    }
    /// Of a namespace (by id).
    fn rules(&self, _namespace_id: &str) -> Vec<WorkflowRule> {
        Vec::new()
    }
    /// Whether a rule means this activity of this run; or what is wrong with the rule.
    fn rule_matches(
        &self,
        _rule: &WorkflowRuleSpec,
        _run: &WorkflowExecutionInfo,
        _activity: &SearchAttributes,
    ) -> Result<bool, String> {
        Ok(false)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct NamespaceInfo {
    pub id: Arc<str>,
    pub name: Arc<str>,
    pub retention: Duration,
}

/// A stream of ids from a seed. The driver seeds it with randomness, a simulation with its own seed.
#[derive(Clone, Debug)]
pub struct IdSource {
    state: u64,
}

impl IdSource {
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number from 0 to below the limit; 0 for limits that leave no choice.
    pub fn below(&mut self, limit: i64) -> i64 {
        if limit <= 0 { 0 } else { (self.next() % limit.unsigned_abs()) as i64 }
    }

    /// A version 4 UUID: run ids and request ids.
    pub fn uuid(&mut self) -> String {
        let bits = u128::from(self.next()) << 64 | u128::from(self.next());
        uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid().to_string()
    }
}

/// What one input did to an entity. If there is an error instead, the chain is as it was.
#[derive(Debug, Default)]
pub struct Handled {
    /// To append to the log; `None` when nothing durable changed.
    pub record: Option<ChainRecord>,
    /// To carry out once the record is durable.
    pub effects: Vec<Effect>,
    pub answer: Answer,
    pub release: Release,
}

/// What the caller gets.
#[derive(Debug)]
pub enum Answer {
    Reply(Box<Reply>),
    /// The call is refused, but it changed the state all the same: a workflow task's completion with a bad command fails
    /// the task. Released as a reply is, together with the record.
    Reject(Error),
    /// Not yet: the driver asks [`crate::Chain::check`] after this and each later transition of the chain.
    Watch(Watch),
}

impl Default for Answer {
    fn default() -> Self {
        Self::Reply(Box::default())
    }
}

#[derive(Debug, Default, Clone, PartialEq)]
pub struct Reply {
    pub message: WorkflowReply,
    /// Events that the driver has to put into the message: from the store, and from what is not yet flushed.
    pub history: Option<HistoryFill>,
}

impl Reply {
    pub fn new(reply: workflow_reply::Reply) -> Self {
        Self { message: WorkflowReply { reply: Some(reply) }, history: None }
    }
}

/// The events that a reply with a workflow task carries: `[from_event_id, until_event_id)` of the run's history, then `extra`.
///
/// They go into `PollWorkflowTaskQueueResponse.history` (of the reply itself, or of the workflow task inside a start
/// or completion reply), paged by [`Limits::history_page_events`] and bytes with a `next_page_token` for the rest.
#[derive(Debug, Clone, PartialEq)]
pub struct HistoryFill {
    pub run_id: String,
    pub from_event_id: i64,
    pub until_event_id: i64,
    /// Scheduled and Started of a task whose events are not written yet (transient, speculative).
    pub extra: Vec<Arc<HistoryEvent>>,
}

/// When the answer may leave.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// When the record of this transition is durable.
    #[default]
    Durable,
    /// When everything before this transition is durable: a workflow task's start, a read.
    Prior,
    /// At once: heartbeats.
    Now,
}

/// What must happen outside the chain after a transition. Each is also derivable from state ([`crate::Chain::resume`]),
/// so losing one in a crash loses nothing.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// A task can be started.
    Offer(Offer),
    /// Call another entity; bring the result back with [`crate::Chain::on_call_result`], retry while it is unavailable.
    Call { id: CallId, call: Box<WorkflowCall> },
}

/// Names an outstanding call of a run, so that its result finds its way back.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId {
    pub run_id: String,
    pub kind: CallKind,
    /// The initiated event; 0 for [`CallKind::NotifyParent`].
    pub event_id: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CallKind {
    StartChild,
    SignalExternal,
    CancelExternal,
    /// Tell the parent that this run has closed.
    NotifyParent,
    /// Terminate or cancel a child after this run's close.
    ParentClosePolicy,
    StartNexusOperation,
    CancelNexusOperation,
    /// Tell a completion callback, by its number.
    Callback,
    /// Of an entity that is no workflow: a number of its own.
    Other(u8),
}

/// A condition that a caller waits for.
#[derive(Debug, Clone, PartialEq)]
pub enum Watch {
    /// The run has events from this id on, or is closed (history long poll). The answer is made by the driver.
    History { run_id: String, next_event_id: i64 },
    /// The update has reached a stage (an UpdateWorkflowExecutionLifecycleStage).
    Update { run_id: String, update_id: String, stage: i32, kind: UpdateWatch },
    /// The query, buffered for the next workflow task, is answered.
    Query { run_id: String, query_id: u64 },
    /// Of an entity that is no workflow: it has come to this revision. The reply, if it is known already.
    Revision { revision: i64, reply: Option<Box<Reply>> },
    /// An execution that is no workflow has ended, or has changed.
    Execution { run_id: String, wait: ExecutionWait },
}

/// What somebody waits for who looks at a standalone activity or Nexus operation.
#[derive(Debug, Clone, PartialEq)]
pub enum ExecutionWait {
    /// That its handler has it; or its end.
    Started,
    Closed,
    /// More transitions than the caller has seen.
    Changed {
        seen: i64,
        request: DescribeExecution,
    },
}

/// How those who wait for a change want to hear of it.
#[derive(Debug, Clone, PartialEq)]
pub enum DescribeExecution {
    Activity(Box<DescribeActivityExecutionRequest>),
    NexusOperation(Box<DescribeNexusOperationExecutionRequest>),
}

/// In which form the update's outcome is to be given.
#[derive(Debug, Clone, PartialEq)]
pub enum UpdateWatch {
    Update(UpdateAsker),
    Poll,
    /// The second operation of an ExecuteMultiOperation whose first one answered this.
    MultiOperation(Box<perdure_proto::temporal::api::workflowservice::v1::StartWorkflowExecutionResponse>, UpdateAsker),
}

/// Who gets a link to an update that was asked for.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UpdateAsker {
    pub namespace: String,
    pub request_id: String,
}

/// Which run a command is about, so that the driver can load it first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunRef {
    /// The current run, loaded whenever the chain is.
    Current,
    Run(String),
}

/// `Ok` is the answer, `Err` the refusal.
pub type Outcome = Result<Reply, Error>;
