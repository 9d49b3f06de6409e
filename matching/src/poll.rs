//! Polls: they wait for work, or until their time is over, or until their client is gone.

use std::sync::Arc;

use perdure_proto::{
    Error,
    perdure::node::v1::matching_reply::Reply,
    temporal::api::{
        enums::v1::TaskQueueKind,
        taskqueue::v1::TaskQueue,
        workflowservice::v1::{
            PollActivityTaskQueueRequest, PollActivityTaskQueueResponse, PollWorkflowTaskQueueRequest,
            PollWorkflowTaskQueueResponse,
        },
    },
};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    pollers::PollerView,
    queue::{Leave, PollId},
    registry::{QueueCell, QueueKind},
    shell::Shell,
};

/// A poll as its worker sent it.
pub(crate) enum PollRequest {
    Workflow(PollWorkflowTaskQueueRequest),
    Activity(PollActivityTaskQueueRequest),
}

impl PollRequest {
    fn task_queue(&self) -> Option<&TaskQueue> {
        match self {
            Self::Workflow(poll) => poll.task_queue.as_ref(),
            Self::Activity(poll) => poll.task_queue.as_ref(),
        }
    }

    fn kind(&self) -> QueueKind {
        match self {
            Self::Workflow(_) if self.task_queue().is_some_and(|q| q.kind() == TaskQueueKind::Sticky) => {
                QueueKind::Sticky
            }
            Self::Workflow(_) => QueueKind::Workflow,
            Self::Activity(_) => QueueKind::Activity,
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
        }
    }

    fn empty_reply(kind: QueueKind) -> Reply {
        match kind {
            QueueKind::Workflow | QueueKind::Sticky => Reply::WorkflowTask(PollWorkflowTaskQueueResponse::default()),
            QueueKind::Activity => Reply::ActivityTask(PollActivityTaskQueueResponse::default()),
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
    /// From here on the poll is answered empty rather than waiting again.
    pub deadline: Instant,
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
        self.shell.telemetry.poll_vanished(self.cell.key.kind);
        // Closed first: whoever wants to make this poll wait again, or to answer it, sees it gone.
        self.reply.close();
        self.shell.step(&self.cell, |queue, now| queue.leave(now, self.poll, Leave::Vanished));
        if let Ok(Ok(Some(reply))) = self.reply.try_recv() {
            let (shell, cell) = (Arc::clone(&self.shell), Arc::clone(&self.cell));
            self.shell.spawn(async move { shell.take_back(&cell, reply).await });
        }
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
    ) -> Result<Reply, Error> {
        let kind = request.kind();
        let answer = match self.enter_poll(namespace_id, task_queue, request, timeout_ns) {
            Ok(Some((wait, deadline))) => wait.wait(deadline).await,
            Ok(None) => Ok(None),
            Err(departed) => Err(departed),
        };
        match answer {
            Ok(Some(reply)) => {
                self.telemetry.poll_succeeded(kind);
                Ok(reply)
            }
            Ok(None) => {
                self.telemetry.poll_empty(kind);
                Ok(PollRequest::empty_reply(kind))
            }
            Err(Departed) => Err(Error::not_owner(None)),
        }
    }

    /// Puts the poll into its queue, or in front of its first match. `None`: refused.
    fn enter_poll(
        self: &Arc<Self>,
        namespace_id: &str,
        task_queue: &str,
        request: PollRequest,
        timeout_ns: i64,
    ) -> Result<Option<(PollWait, Instant)>, Departed> {
        let kind = request.kind();
        let name = request.task_queue().map(|q| q.name.as_str()).filter(|name| !name.is_empty()).unwrap_or(task_queue);
        let cell = self.registry.get_or_create(self.now(), namespace_id, kind, name);
        let name = &*Arc::clone(&cell.key.name);
        let limit = if timeout_ns > 0 { timeout_ns.min(self.config.long_poll.0) } else { self.config.long_poll.0 };
        let deadline = Instant::now() + perdure_types::Duration(limit).to_std();
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
            Ok(Some(queue.poll(now, Box::new(Waiter { request, deadline, reply: sender }))))
        })?;
        let Some((poll, matched)) = entered else {
            return Ok(None);
        };
        if let Some(matched) = matched {
            self.telemetry.matched(kind, false);
            self.dispatch_in_background(&cell, matched);
        }
        Ok(Some((PollWait { shell: Arc::clone(self), cell, poll, reply, answered: false }, deadline)))
    }
}
