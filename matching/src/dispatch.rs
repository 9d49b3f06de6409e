//! What happens to a match: the shard is asked to start the task, and its answer goes to the poll. Runs apart from both
//! the offer and the poll, and always comes to one of these ends: the poll has its task; or the task is back where it
//! can be started again, in the queue or with its shard, or was found obsolete, and the poll waits again or is gone.

use std::{sync::Arc, time::Duration};

use perdure_proto::{
    Code, Error,
    perdure::{
        nexus::v1::nexus_task_reply,
        node::v1::{
            TaskToken, TaskUndelivered, WorkflowCall, matching_reply::Reply, task_token::Kind, workflow_call,
            workflow_reply,
        },
    },
    temporal::api::{enums::v1::TaskQueueType, taskqueue::v1::PollerScalingDecision},
};
use perdure_types::Timestamp;
use prost::Message;
use tokio::time::Instant;

use crate::{
    ambient::request_id,
    backlog::Queued,
    offer::TaskOffer,
    poll::{PollRequest, WAITS_TOO_LONG, Waiter},
    queue::{Match, PollId, Queue, Work},
    registry::{QueueCell, QueueKind},
    routing::Target,
    shell::Shell,
};

/// How long an activity's start may wait until the routing of its workflow is known.
const LEARNED_WITHIN: Duration = Duration::from_secs(2);

type BoxedMatch = Match<Box<Waiter>>;

/// How long, and how often, a shard is told that a task did not reach its worker. Saying it twice does no harm; without it
/// the task waits for its timeout.
const TAKE_BACK_PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);
const TAKE_BACK_PAUSE: std::time::Duration = std::time::Duration::from_millis(200);

/// True if the same call may succeed later. Everything else says that there is nothing to start.
pub(crate) fn is_transient(error: &Error) -> bool {
    matches!(
        error.grpc_code(),
        Code::Unavailable
            | Code::ResourceExhausted
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::Cancelled
            | Code::Internal
            | Code::Unknown
    )
}

impl Shell {
    pub async fn dispatch(self: Arc<Self>, cell: Arc<QueueCell>, matched: BoxedMatch) {
        let mut next = Some(matched);
        while let Some(Match { poll, waiter, work, backlog, pressed }) = next {
            next = match work {
                Work::Task(queued) => self.start_task(&cell, poll, waiter, queued, (backlog, pressed)).await,
                Work::Query(id) if cell.key.kind == QueueKind::Nexus => self.start_nexus(&cell, poll, waiter, id).await,
                Work::Query(id) => self.start_query(&cell, poll, waiter, id).await,
            };
        }
    }

    /// Returns the match that follows from this one's end, mostly of the same poll.
    async fn start_task(
        self: &Arc<Self>,
        cell: &Arc<QueueCell>,
        poll: PollId,
        waiter: Box<Waiter>,
        mut queued: Queued,
        (backlog, pressed): (usize, bool),
    ) -> Option<BoxedMatch> {
        if waiter.is_gone() {
            return self.step(cell, |queue, now| {
                queue.put_back(now, queued, None);
                queue.next(now)
            });
        }
        let call = self.start_call(cell, &queued, &waiter).await;
        let error = match self.starter.start(call).await {
            Ok(reply) => match poll_reply(reply.reply, backlog, scaling(&waiter, pressed)) {
                Some(reply) => {
                    cell.meters.dispatched(self.now().since(queued.offer.waits_since));
                    self.deliver(cell, waiter, reply).await;
                    return None;
                }
                None => Error::new(Code::DataLoss, "The shard's answer is not a task."),
            },
            Err(error) => error,
        };
        if is_transient(&error) {
            tracing::debug!(%error, queue = &*cell.key.name, "task not started, tried again later");
            cell.meters.start_retried();
            queued.offer.failures = queued.offer.failures.saturating_add(1);
            let pause = self.config.backoff(queued.offer.failures);
            return self.step(cell, |queue, now| {
                queue.put_back(now, queued, Some(Timestamp(now.0.saturating_add(pause.0))));
                self.resume(cell, queue, now, poll, waiter)
            });
        }
        if error.grpc_code() != Code::NotFound {
            let workflow_id = queued.offer.workflow_id();
            tracing::warn!(%error, workflow_id, queue = &*cell.key.name, "offered task dropped");
        }
        cell.meters.start_obsolete();
        self.step(cell, |queue, now| {
            queue.obsolete();
            self.resume(cell, queue, now, poll, waiter)
        })
    }

    /// Makes a poll wait again that was matched in vain, if it still may.
    pub fn resume(
        &self,
        cell: &QueueCell,
        queue: &mut Queue<Box<Waiter>>,
        now: Timestamp,
        poll: PollId,
        waiter: Box<Waiter>,
    ) -> Option<BoxedMatch> {
        if waiter.is_gone() {
            return queue.next(now);
        }
        if self.has_departed(&cell.key.namespace_id, &cell.key.name) {
            waiter.answer_departed();
            return None;
        }
        if Instant::now() >= waiter.deadline || self.refuses(&cell.key.namespace_id, &waiter.request) {
            waiter.answer_empty();
            return queue.next(now);
        }
        queue.resume(now, poll, waiter)
    }

    pub async fn deliver(self: &Arc<Self>, cell: &Arc<QueueCell>, waiter: Box<Waiter>, reply: Reply) {
        if let Err(reply) = waiter.answer(reply) {
            self.take_back(cell, reply).await;
        }
    }

    /// A poll's client vanished after its task was started: the shard offers the task again.
    pub async fn take_back(self: &Arc<Self>, cell: &Arc<QueueCell>, reply: Reply) {
        let token = match &reply {
            Reply::WorkflowTask(task) => &task.task_token,
            Reply::ActivityTask(task) => &task.task_token,
            Reply::Nexus(reply) => match &reply.reply {
                Some(nexus_task_reply::Reply::Task(task)) => &task.task_token,
                Some(nexus_task_reply::Reply::Outcome(_)) | None => return,
            },
            _ => return,
        };
        let token = match TaskToken::decode(token.clone()) {
            Ok(token) => token,
            Err(error) => {
                tracing::error!(%error, "a task token of this server cannot be read; its task waits for its timeout");
                return;
            }
        };
        cell.meters.undelivered();
        match token.kind() {
            Kind::Query => return self.requeue_query(cell, &token.query_id),
            Kind::Nexus => return self.requeue_nexus(cell, &token.query_id),
            Kind::Workflow | Kind::Activity | Kind::Unspecified => {}
        }
        let call = WorkflowCall {
            namespace_id: token.namespace_id.clone(),
            workflow_id: token.workflow_id.clone(),
            kind: token.entity_kind,
            command: Some(workflow_call::Command::TaskUndelivered(TaskUndelivered { token: Some(token) })),
        };
        let until = Instant::now() + TAKE_BACK_PATIENCE;
        loop {
            match self.starter.start(call.clone()).await {
                Ok(_) => return,
                // Closed, timed out or completed meanwhile.
                Err(error) if error.grpc_code() == Code::NotFound => return,
                Err(error) if is_transient(&error) && Instant::now() < until => {
                    tokio::time::sleep(TAKE_BACK_PAUSE).await;
                }
                Err(error) => return tracing::warn!(%error, "an undelivered task waits for its timeout"),
            }
        }
    }
}

impl Shell {
    async fn start_call(self: &Arc<Self>, cell: &Arc<QueueCell>, queued: &Queued, waiter: &Waiter) -> WorkflowCall {
        let request = &waiter.request;
        let id = request_id(waiter.name);
        let namespace_id = &*cell.key.namespace_id;
        let offer = &queued.offer;
        let known = cell.family().and_then(|family| family.known(cell.key.kind.task_type()));
        let routing = known.map(|known| Arc::clone(&known.routing)).filter(|routing| !routing.is_plain());
        let (_, routed) =
            routing.as_ref().map_or((None, 0), |routing| routing.route(cell.key.kind.task_type(), offer.asked()));
        // What a sticky queue hands out stays where it is.
        let assigned = request.build_id().filter(|_| cell.key.kind == QueueKind::Workflow);
        let is_assigned = |build_id: &&str| routing.as_ref().is_none_or(|routing| routing.is_assigned(build_id));
        let build_id = assigned.filter(is_assigned).unwrap_or_default().to_owned();
        match request {
            PollRequest::Workflow(poll) => {
                let target = routing.map_or((None, 0), |routing| routing.target(offer.workflow_id(), false));
                offer.start_workflow_task(namespace_id, (id, poll.clone()), routed, target, build_id)
            }
            PollRequest::Activity(poll) => {
                let own = offer.directive().and_then(|directive| directive.version.as_ref());
                let target =
                    if request.version().as_ref() == own { (None, 0) } else { self.workflow_target(cell, offer).await };
                offer.start_activity_task(namespace_id, (id, poll.clone()), routed, target)
            }
            // Nobody offers tasks to such a queue, so nobody can start one.
            PollRequest::Nexus(_) => WorkflowCall::default(),
        }
    }

    /// Where workflow tasks of an activity's workflow go.
    async fn workflow_target(self: &Arc<Self>, cell: &Arc<QueueCell>, offer: &TaskOffer) -> Target {
        let name = Some(offer.workflow_task_queue()).filter(|name| !name.is_empty()).unwrap_or(&cell.key.name);
        let family = self.family(&cell.key.namespace_id, name);
        let known = family.wait(TaskQueueType::Workflow, Instant::now() + LEARNED_WITHIN, |_| true).await;
        known.map_or((None, 0), |known| known.routing.target(offer.workflow_id(), false))
    }
}

/// What the worker is told about the number of its polls.
pub(crate) fn scaling(waiter: &Waiter, pressed: bool) -> Option<PollerScalingDecision> {
    let delta = if waiter.entered.elapsed() >= WAITS_TOO_LONG {
        -1
    } else if pressed {
        1
    } else {
        return None;
    };
    Some(PollerScalingDecision { poll_request_delta_suggestion: delta })
}

fn poll_reply(
    reply: Option<workflow_reply::Reply>,
    backlog: usize,
    scaling: Option<PollerScalingDecision>,
) -> Option<Reply> {
    match reply? {
        workflow_reply::Reply::WorkflowTask(mut task) => {
            task.poller_scaling_decision = scaling;
            task.backlog_count_hint = i64::try_from(backlog).unwrap_or(i64::MAX);
            Some(Reply::WorkflowTask(task))
        }
        workflow_reply::Reply::ActivityTask(mut task) => {
            task.poller_scaling_decision = scaling;
            Some(Reply::ActivityTask(task))
        }
        _ => None,
    }
}
