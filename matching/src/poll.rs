//! Polls: they wait for work, or until their time is over, or until their client is gone.

use std::{sync::Arc, time::Duration};

use perdure_proto::{
    Error, build_ids,
    perdure::{
        nexus::v1::{NexusTaskReply, nexus_task_reply},
        node::v1::matching_reply::Reply,
    },
    temporal::api::{
        deployment::v1::{WorkerDeploymentOptions, WorkerDeploymentVersion as Version},
        enums::v1::TaskQueueKind,
        taskqueue::v1::TaskQueue,
        workflowservice::v1::{
            PollActivityTaskQueueRequest, PollActivityTaskQueueResponse, PollNexusTaskQueueRequest,
            PollNexusTaskQueueResponse, PollWorkflowTaskQueueRequest, PollWorkflowTaskQueueResponse,
        },
    },
    versions,
};
use perdure_types::PollName;
use tokio::{sync::oneshot, time::Instant};

use crate::{
    follow::Known,
    pollers::PollerView,
    queue::{Leave, PollId},
    registry::{QueueCell, QueueKind},
    shell::Shell,
};

/// A poll that gets its task later than this is one of more than are needed.
pub(crate) const WAITS_TOO_LONG: Duration = Duration::from_secs(1);

/// A poll as its worker sent it.
pub(crate) enum PollRequest {
    Workflow(PollWorkflowTaskQueueRequest),
    Activity(PollActivityTaskQueueRequest),
    Nexus(PollNexusTaskQueueRequest),
}

impl PollRequest {
    fn task_queue(&self) -> Option<&TaskQueue> {
        match self {
            Self::Workflow(poll) => poll.task_queue.as_ref(),
            Self::Activity(poll) => poll.task_queue.as_ref(),
            Self::Nexus(poll) => poll.task_queue.as_ref(),
        }
    }

    fn kind(&self) -> QueueKind {
        match self {
            Self::Workflow(_) if self.task_queue().is_some_and(|q| q.kind() == TaskQueueKind::Sticky) => {
                QueueKind::Sticky
            }
            Self::Workflow(_) => QueueKind::Workflow,
            Self::Activity(_) => QueueKind::Activity,
            Self::Nexus(_) => QueueKind::Nexus,
        }
    }

    /// The name of the normal queue, if the polled one is sticky; else of the polled one.
    pub fn normal_name(&self) -> Option<&str> {
        let queue = self.task_queue()?;
        let name = if queue.normal_name.is_empty() { &queue.name } else { &queue.normal_name };
        Some(name.as_str())
    }

    pub fn worker_instance_key(&self) -> &str {
        match self {
            Self::Workflow(poll) => &poll.worker_instance_key,
            Self::Activity(poll) => &poll.worker_instance_key,
            Self::Nexus(poll) => &poll.worker_instance_key,
        }
    }

    #[allow(deprecated)]
    fn view(&self) -> PollerView<'_> {
        match self {
            Self::Workflow(poll) => PollerView {
                identity: &poll.identity,
                rate_per_second: None,
                capabilities: poll.worker_version_capabilities.as_ref(),
                deployment: poll.deployment_options.as_ref(),
            },
            Self::Activity(poll) => PollerView {
                identity: &poll.identity,
                rate_per_second: poll.task_queue_metadata.as_ref().and_then(|m| m.max_tasks_per_second),
                capabilities: poll.worker_version_capabilities.as_ref(),
                deployment: poll.deployment_options.as_ref(),
            },
            Self::Nexus(poll) => PollerView {
                identity: &poll.identity,
                rate_per_second: None,
                capabilities: poll.worker_version_capabilities.as_ref(),
                deployment: poll.deployment_options.as_ref(),
            },
        }
    }

    /// The version of its worker.
    pub fn version(&self) -> Option<Version> {
        versions::of_worker(self.deployment_options())
    }

    /// What its worker has in the place of a version, if it uses an older form of versioning.
    pub fn build_id(&self) -> Option<&str> {
        build_ids::of_worker(self.view().capabilities, self.deployment_options())
    }

    /// Which tasks it gets.
    fn lane(&self) -> Option<Version> {
        self.version().or_else(|| self.build_id().map(build_ids::as_version))
    }

    fn deployment_options(&self) -> Option<&WorkerDeploymentOptions> {
        match self {
            Self::Workflow(poll) => poll.deployment_options.as_ref(),
            Self::Activity(poll) => poll.deployment_options.as_ref(),
            Self::Nexus(poll) => poll.deployment_options.as_ref(),
        }
    }

    /// The name of its namespace, and who polls.
    fn sender(&self) -> (&str, &str) {
        match self {
            Self::Workflow(poll) => (&poll.namespace, &poll.identity),
            Self::Activity(poll) => (&poll.namespace, &poll.identity),
            Self::Nexus(poll) => (&poll.namespace, &poll.identity),
        }
    }

    /// Without a hint to poll less, too: SDKs know an empty answer by its having nothing in it.
    fn empty_reply(kind: QueueKind) -> Reply {
        match kind {
            QueueKind::Workflow | QueueKind::Sticky => Reply::WorkflowTask(PollWorkflowTaskQueueResponse::default()),
            QueueKind::Activity => Reply::ActivityTask(PollActivityTaskQueueResponse::default()),
            QueueKind::Nexus => {
                let reply = Some(nexus_task_reply::Reply::Task(PollNexusTaskQueueResponse::default()));
                Reply::Nexus(Box::new(NexusTaskReply { reply }))
            }
        }
    }
}

/// The queue has another home now: the poll goes on there.
pub(crate) struct Departed;

/// How a poll ends; with nothing, maybe.
type Answer = Result<Option<Reply>, Departed>;

/// The side of a poll that work is handed to.
pub(crate) struct Waiter {
    pub request: PollRequest,
    /// What the node that it came from calls it.
    pub name: Option<PollName>,
    /// From here on the poll is answered empty rather than waiting again.
    pub deadline: Instant,
    pub entered: Instant,
    reply: oneshot::Sender<Answer>,
}

impl Waiter {
    /// True if nobody waits any more.
    pub fn is_gone(&self) -> bool {
        self.reply.is_closed()
    }

    pub fn answer_empty(self: Box<Self>) {
        // If the client is gone as well, nothing is lost.
        let _ = self.reply.send(Ok(None));
    }

    pub fn answer_departed(self: Box<Self>) {
        let _ = self.reply.send(Err(Departed));
    }

    /// Gives the reply back if nobody waits any more.
    #[allow(clippy::result_large_err)] // Not an error: the same value, back at its sender.
    pub fn answer(self: Box<Self>, reply: Reply) -> Result<(), Reply> {
        match self.reply.send(Ok(Some(reply))) {
            Err(Ok(Some(reply))) => Err(reply),
            Ok(()) | Err(Ok(None) | Err(Departed)) => Ok(()),
        }
    }
}

/// The side of a poll that its caller holds. Dropping it before it is answered takes the poll back.
struct PollWait {
    shell: Arc<Shell>,
    cell: Arc<QueueCell>,
    poll: PollId,
    reply: oneshot::Receiver<Answer>,
    answered: bool,
}

impl PollWait {
    async fn wait(mut self, deadline: Instant) -> Answer {
        let reply = match tokio::time::timeout_at(deadline, &mut self.reply).await {
            Ok(reply) => reply,
            Err(_) => {
                let left = self.shell.step(&self.cell, |queue, now| queue.leave(now, self.poll, Leave::TimedOut));
                match left {
                    Some(_) => Ok(Ok(None)),
                    // Matched already: the answer of the shard is on its way, and it is the last one.
                    None => (&mut self.reply).await,
                }
            }
        };
        self.answered = true;
        // The sender vanishes only with its runtime: an empty answer says "again, elsewhere".
        reply.unwrap_or(Ok(None))
    }
}

impl Drop for PollWait {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        self.cell.meters.poll_vanished();
        // Closed first: whoever wants to make this poll wait again, or to answer it, sees it gone.
        self.reply.close();
        self.shell.step(&self.cell, |queue, now| queue.leave(now, self.poll, Leave::Vanished));
        if let Ok(Ok(Some(reply))) = self.reply.try_recv() {
            let (shell, cell) = (Arc::clone(&self.shell), Arc::clone(&self.cell));
            self.shell.spawn(async move { shell.take_back(&cell, reply).await });
        }
    }
}

/// Workers whose build id has been superseded get nothing.
fn check_build_id(request: &PollRequest, known: &Known) -> Result<(), Error> {
    match request.build_id().and_then(|build_id| known.routing.newer_build_id(build_id)) {
        Some(newer) => Err(Error::newer_build_exists(&newer)),
        None => Ok(()),
    }
}

impl Shell {
    /// True if a poll must not wait: workers should go elsewhere, or this one said goodbye.
    pub fn refuses(&self, namespace_id: &str, request: &PollRequest) -> bool {
        self.is_draining() || self.stopped_workers.contains(namespace_id, request.worker_instance_key())
    }

    pub async fn poll(
        self: &Arc<Self>,
        namespace_id: &str,
        task_queue: &str,
        request: PollRequest,
        timeout_ns: i64,
        poll_name: Option<PollName>,
    ) -> Result<Reply, Error> {
        let begun = Instant::now();
        let kind = request.kind();
        let limit = if timeout_ns > 0 { timeout_ns.min(self.config.long_poll.0) } else { self.config.long_poll.0 };
        let deadline = begun + perdure_types::Duration(limit).to_std();
        let name = request.task_queue().map(|q| q.name.as_str()).filter(|name| !name.is_empty()).unwrap_or(task_queue);
        let name = name.to_owned();
        let empty = || PollRequest::empty_reply(kind);
        if !self.prepare_poll(namespace_id, &name, &request, deadline).await? {
            return Ok(empty());
        }
        let wait = match self.enter_poll(namespace_id, &name, (request, poll_name), deadline) {
            Ok(Some(wait)) => wait,
            Ok(None) => return Ok(empty()),
            Err(Departed) => return Err(Error::not_owner(None)),
        };
        let cell = Arc::clone(&wait.cell);
        match wait.wait(deadline).await {
            Ok(Some(reply)) => {
                cell.meters.poll_succeeded(begun.elapsed());
                Ok(reply)
            }
            Ok(None) => {
                cell.meters.poll_empty();
                Ok(empty())
            }
            Err(Departed) => Err(Error::not_owner(None)),
        }
    }

    /// What must be known before a poll may have a task. False: it is not, and there is no more time.
    async fn prepare_poll(
        self: &Arc<Self>,
        namespace_id: &str,
        name: &str,
        request: &PollRequest,
        deadline: Instant,
    ) -> Result<bool, Error> {
        if self.has_departed(namespace_id, name) || self.refuses(namespace_id, request) {
            // Answered where it would enter.
            return Ok(true);
        }
        let kind = request.kind();
        let cell = self.queue(namespace_id, kind, name);
        if kind == QueueKind::Sticky {
            let Some(normal) = request.normal_name().filter(|normal| *normal != name) else {
                return Ok(true);
            };
            let family = Arc::clone(cell.follow(|| self.family(namespace_id, normal)));
            let known = family.wait(kind.task_type(), deadline, |_| true).await;
            known.as_ref().map_or(Ok(()), |known| check_build_id(request, known))?;
            return Ok(known.is_some());
        }
        let Some(family) = cell.family().cloned() else {
            return Ok(true);
        };
        if request.build_id().is_some() {
            let known = family.wait(kind.task_type(), deadline, |_| true).await;
            known.as_ref().map_or(Ok(()), |known| check_build_id(request, known))?;
            return Ok(known.is_some());
        }
        let Some(version) = request.version() else {
            return Ok(true);
        };
        self.register(&family, request.sender(), &version, kind.task_type(), deadline).await
    }

    /// Puts the poll into its queue, or in front of its first match. `None`: refused.
    fn enter_poll(
        self: &Arc<Self>,
        namespace_id: &str,
        name: &str,
        (request, poll_name): (PollRequest, Option<PollName>),
        deadline: Instant,
    ) -> Result<Option<PollWait>, Departed> {
        let kind = request.kind();
        let cell = self.queue(namespace_id, kind, name);
        let version = request.lane().filter(|_| kind != QueueKind::Sticky);
        let (sender, reply) = oneshot::channel();
        let entered = self.step(&cell, |queue, now| {
            // Under the queue's lock: see `Shell::drain` and `Shell::depart`.
            if self.has_departed(namespace_id, name) {
                return Err(Departed);
            }
            if self.refuses(namespace_id, &request) {
                return Ok(None);
            }
            queue.poller_seen(now, &request.view());
            let lane = queue.lane_of(version.as_ref());
            let waiter = Waiter { request, name: poll_name, deadline, entered: Instant::now(), reply: sender };
            Ok(Some(queue.poll_lane(now, lane, Box::new(waiter))))
        })?;
        let Some((poll, matched)) = entered else {
            return Ok(None);
        };
        if let Some(matched) = matched {
            self.dispatch_in_background(&cell, matched);
        }
        Ok(Some(PollWait { shell: Arc::clone(self), cell, poll, reply, answered: false }))
    }
}
