//! Task queues: offers of tasks meet the polls of workers. In memory only: an offer is a reference, the shard that made
//! it decides who may start the task, and offers again when it sees this home change. So nothing here is ever the only
//! copy of anything, a duplicate offer is harmless, and a lost process loses no task.
//!
//! The decisions are in `queue` (synchronous, no clock); the rest is a thin shell: `registry` finds queues, `poll` and
//! `query` wait, `dispatch` starts matched tasks in spawned tasks of their own, so that a client that vanishes in the
//! middle never takes a task with it.
//!
//! Which workers get a task is decided by `routing`, from what the queue's durable part says (`follow`).
//!
//! Not here: whether a task may start, timeouts of tasks, forwarding to other nodes.

mod ambient;
mod backlog;
mod config;
mod depart;
mod describe;
mod dispatch;
mod fairness;
mod follow;
mod limiter;
mod nexus;
mod offer;
mod poll;
mod pollers;
mod query;
mod queue;
mod registry;
mod routing;
mod shell;
mod shutdown;
mod stats;
mod telemetry;
mod waits;
mod workers;

use std::sync::Arc;

use async_trait::async_trait;
pub use config::MatchingConfig;
use perdure_proto::{
    Error,
    perdure::node::v1::{
        Empty, MatchingCall, MatchingReply, Offer, OfferReply, TaskKind, WorkerHeartbeats, WorkflowCall, WorkflowReply,
        matching_call::Command, matching_reply::Reply,
    },
};
use perdure_types::{PollName, QueueFilter};
pub use query::is_no_sticky_poller;
use shell::Shell;
use workers::WorkerRegistry;

use crate::{offer::TaskOffer, poll::PollRequest, registry::QueueKind};

/// The way to the shards. The wiring leads it to the owner of the entity that the call names.
#[async_trait]
pub trait TaskStarter: Send + Sync + 'static {
    async fn start(&self, call: WorkflowCall) -> Result<WorkflowReply, Error>;

    /// What people call a namespace: a label of metrics.
    fn namespace_name(&self, _namespace_id: &str) -> Option<Arc<str>> {
        None
    }
}

/// The task queues whose home this node is. Cheap to clone.
#[derive(Clone)]
pub struct Matching {
    shell: Arc<Shell>,
    workers: Arc<WorkerRegistry>,
}

impl Matching {
    /// Starts without queues; they appear with their first offer or poll.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(starter: Arc<dyn TaskStarter>, config: MatchingConfig) -> Self {
        Self { shell: Shell::start(starter, config), workers: Arc::default() }
    }

    /// Handles any call to a task queue.
    ///
    /// A poll waits until `timeout_ns` or the configured long poll is over, and answers with an empty response then.
    /// Dropping its future earlier says that the client is gone: the poll leaves its queue, and a task that it got
    /// goes back to its shard, which offers it again at once.
    pub async fn call(&self, call: MatchingCall) -> Result<MatchingReply, Error> {
        let MatchingCall { namespace_id, task_queue, timeout_ns, poll: name, command } = call;
        let name = PollName::from_number(name);
        let Some(command) = command else {
            return Err(Error::invalid_argument("The call has no command."));
        };
        let reply = match command {
            Command::Offer(offer) => Reply::Offer(self.offer(&namespace_id, &task_queue, offer)?),
            Command::PollWorkflowTask(poll) => {
                let request = PollRequest::Workflow(poll.request.unwrap_or_default());
                self.shell.poll(&namespace_id, &task_queue, request, timeout_ns, name).await?
            }
            Command::PollActivityTask(poll) => {
                let request = PollRequest::Activity(poll.request.unwrap_or_default());
                self.shell.poll(&namespace_id, &task_queue, request, timeout_ns, name).await?
            }
            Command::Query(task) => Reply::Query(self.shell.query(&namespace_id, &task_queue, task, timeout_ns).await?),
            Command::RespondQuery(request) => {
                self.shell.respond_query(&namespace_id, request)?;
                Reply::Empty(Empty {})
            }
            Command::Describe(request) => {
                Reply::Describe(self.shell.describe(&namespace_id, &task_queue, &request).await?)
            }
            Command::ListPartitions(request) => {
                Reply::ListPartitions(self.shell.list_partitions(&task_queue, &request))
            }
            Command::RecordWorkerHeartbeats(WorkerHeartbeats { heartbeats }) => {
                self.workers.record(&namespace_id, heartbeats);
                Reply::Empty(Empty {})
            }
            Command::ListWorkers(_) => {
                Reply::Workers(WorkerHeartbeats { heartbeats: self.workers.of_namespace(&namespace_id) })
            }
            Command::AwaitRevision(revision) => {
                self.shell.await_revision(&namespace_id, &task_queue, revision).await;
                Reply::Empty(Empty {})
            }
            Command::ListQueues(_) => Reply::Queues(self.shell.list_queues(&namespace_id)),
            Command::Nexus(call) => self.shell.nexus(&namespace_id, &task_queue, *call, timeout_ns).await?,
            Command::ShutdownWorker(request) => {
                self.shell.shutdown_worker(&namespace_id, &task_queue, &request);
                Reply::Empty(Empty {})
            }
        };
        Ok(MatchingReply { reply: Some(reply) })
    }

    /// Brings those metrics up to date that change by themselves; to be called before they are read.
    pub fn measure(&self) {
        self.shell.measure();
    }

    /// This node is about to leave: polls, waiting and new, are answered empty at once, so that workers go elsewhere.
    pub fn drain(&self) {
        self.shell.drain();
    }

    /// This node is not the home of the queues that `departed` names, but of all others. Polls and queries that wait in
    /// them, and those that come, are told so ([`Error::not_owner`]).
    pub fn depart(&self, departed: QueueFilter) {
        self.shell.depart(departed);
    }

    fn offer(&self, namespace_id: &str, task_queue: &str, offer: Offer) -> Result<OfferReply, Error> {
        let kind = match offer.kind() {
            TaskKind::Workflow if offer.sticky => QueueKind::Sticky,
            TaskKind::Workflow => QueueKind::Workflow,
            TaskKind::Activity => QueueKind::Activity,
            TaskKind::Unspecified => return Err(Error::invalid_argument("The offer has no task kind.")),
        };
        let name = if offer.task_queue.is_empty() { task_queue.to_owned() } else { offer.task_queue.clone() };
        let accepted = self.shell.offer(namespace_id, kind, &name, |now| TaskOffer::new(offer, now));
        Ok(OfferReply { accepted })
    }
}
