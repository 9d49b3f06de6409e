//! Nexus requests: they wait for a poll of a worker, and then for its answer. Nothing of them is stored: who sent one sends
//! it again if it comes to nothing, and the operation's request id tells the handler that it is the same.

use std::sync::Arc;

use perdure_proto::{
    Error,
    perdure::{
        nexus::v1::{
            NexusOutcome, NexusTaskCall, NexusTaskReply, NexusTaskResponse, nexus_outcome, nexus_task_call,
            nexus_task_reply,
        },
        node::v1::{TaskToken, matching_reply::Reply, task_token::Kind},
    },
    temporal::api::{nexus::v1::Request, workflowservice::v1::PollNexusTaskQueueResponse},
};
use perdure_types::{Duration, spans};
use prost::Message;
use tokio::time::Instant;
use uuid::Uuid;

use crate::{
    dispatch::scaling,
    poll::{PollRequest, Waiter},
    queue::{Match, PRESSED_AFTER, PollId, QueryRoute},
    registry::{QueueCell, QueueKind},
    shell::Shell,
    waits::Waits,
};

/// Longest time that a request waits for its answer, as with Temporal.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How much of the given time is left to bring the news that it was not enough: this share, but not more than this.
const TAIL_SHARE: u32 = 10;
const LONGEST_TAIL: std::time::Duration = std::time::Duration::from_secs(1);

/// Tell handlers how much time they have. The second spelling is what the Java SDK looks for.
const REQUEST_TIMEOUT: [&str; 2] = ["request-timeout", "Request-Timeout"];
const OPERATION_TIMEOUT: &str = "operation-timeout";

/// A request that came to a task queue.
pub(crate) struct NexusTask {
    request: Request,
    /// When it came, and when nobody waits for it any more.
    begun: Instant,
    deadline: Instant,
}

/// The requests whose senders wait.
pub(crate) type NexusRequests = Waits<NexusTask, NexusOutcome>;

impl Shell {
    pub async fn nexus(
        self: &Arc<Self>,
        namespace_id: &str,
        task_queue: &str,
        call: NexusTaskCall,
        timeout_ns: i64,
    ) -> Result<Reply, Error> {
        use nexus_task_call::Command;
        let reply = match call.command {
            Some(Command::Poll(poll)) => {
                return self.poll(namespace_id, task_queue, PollRequest::Nexus(poll), timeout_ns, None).await;
            }
            Some(Command::Dispatch(request)) => {
                let outcome = self.dispatch_nexus(namespace_id, task_queue, request, timeout_ns).await?;
                Some(nexus_task_reply::Reply::Outcome(outcome))
            }
            Some(Command::Respond(response)) => {
                self.respond_nexus(namespace_id, response)?;
                None
            }
            None => return Err(Error::invalid_argument("The call has no command.")),
        };
        Ok(Reply::Nexus(Box::new(NexusTaskReply { reply })))
    }

    async fn dispatch_nexus(
        self: &Arc<Self>,
        namespace_id: &str,
        task_queue: &str,
        request: Request,
        timeout_ns: i64,
    ) -> Result<NexusOutcome, Error> {
        let limit = if timeout_ns > 0 { timeout_ns.min(LONGEST_WAIT.0) } else { LONGEST_WAIT.0 };
        let limit = Duration(limit).to_std();
        let begun = Instant::now();
        let deadline = begun + (limit - (limit / TAIL_SHARE).min(LONGEST_TAIL));
        let cell = self.queue(namespace_id, QueueKind::Nexus, task_queue);
        let task = NexusTask { request, begun, deadline };
        let (wait, answer) = self.begin_wait(&cell, |shell| &shell.nexus, task)?;
        let id = wait.id;
        let window = self.config.poller_history;
        let (served, matched) =
            self.step(&cell, |queue, now| (queue.has_recent_poller(now, window), queue.query(now, id, route(id))));
        cell.meters.added(served);
        if let Some(matched) = matched {
            cell.meters.matched_at_once();
            self.dispatch_in_background(&cell, matched);
        }
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(answered) => answered.unwrap_or_else(|_| Err(Error::unavailable("The request was dropped."))),
            Err(_) => Ok(NexusOutcome { outcome: Some(nexus_outcome::Outcome::TimedOut(true)) }),
        }
    }

    /// Hands a request to a poll.
    pub async fn start_nexus(
        self: &Arc<Self>,
        cell: &Arc<QueueCell>,
        poll: PollId,
        waiter: Box<Waiter>,
        id: Uuid,
    ) -> Option<Match<Box<Waiter>>> {
        // No task: its sender went away.
        if let Some(task) = self.nexus.task(id) {
            if waiter.is_gone() {
                return self.step(cell, |queue, now| queue.query(now, id, route(id)));
            }
            let now = Instant::now();
            let waited = Duration::from_std(now - task.begun);
            cell.meters.dispatched(waited);
            let request = with_timeouts(&task.request, task.deadline.saturating_duration_since(now), now - task.begun);
            let response = PollNexusTaskQueueResponse {
                task_token: token(cell, id).encode_to_vec().into(),
                request: Some(request),
                poller_scaling_decision: scaling(&waiter, waited > PRESSED_AFTER),
                ..PollNexusTaskQueueResponse::default()
            };
            let reply = Some(nexus_task_reply::Reply::Task(response));
            self.deliver(cell, waiter, Reply::Nexus(Box::new(NexusTaskReply { reply }))).await;
            return None;
        }
        self.step(cell, |queue, now| self.resume(cell, queue, now, poll, waiter))
    }

    /// The worker that took the request vanished before it had it.
    pub fn requeue_nexus(self: &Arc<Self>, cell: &Arc<QueueCell>, id: &str) {
        let Ok(id) = Uuid::try_parse(id) else { return };
        let matched = self.step(cell, |queue, now| {
            // Under the queue's lock, so that a sender that goes away finds the request in the queue.
            self.nexus.task(id).and_then(|_| queue.query(now, id, route(id)))
        });
        if let Some(matched) = matched {
            self.dispatch_in_background(cell, matched);
        }
    }

    /// A worker's answer.
    fn respond_nexus(&self, namespace_id: &str, response: NexusTaskResponse) -> Result<(), Error> {
        let unknown = || Error::not_found("Nexus task not found or already expired");
        let id = Uuid::try_parse(&response.task_id).map_err(|_| unknown())?;
        let outcome = response.outcome.unwrap_or_default();
        if self.nexus.answer_in(namespace_id, id, Ok(outcome)) { Ok(()) } else { Err(unknown()) }
    }
}

/// Requests have no workflow; each takes its own chance with a ramping version.
fn route(id: Uuid) -> QueryRoute {
    QueryRoute { workflow_id: id.to_string(), directive: None }
}

fn token(cell: &QueueCell, id: Uuid) -> TaskToken {
    TaskToken {
        kind: Kind::Nexus as i32,
        namespace_id: cell.key.namespace_id.to_string(),
        task_queue: cell.key.name.to_string(),
        query_id: id.to_string(),
        ..TaskToken::default()
    }
}

/// What is left now of the times that the request came with.
fn with_timeouts(request: &Request, left: std::time::Duration, waited: std::time::Duration) -> Request {
    let mut request = request.clone();
    let headers = std::mem::take(&mut request.header);
    for (name, value) in headers {
        if REQUEST_TIMEOUT.iter().any(|known| known.eq_ignore_ascii_case(&name)) {
            continue;
        }
        let value = match spans::parse(&value) {
            Some(span) if name.eq_ignore_ascii_case(OPERATION_TIMEOUT) => spans::format(span.saturating_sub(waited)),
            _ => value,
        };
        request.header.insert(name, value);
    }
    for name in REQUEST_TIMEOUT {
        request.header.insert(name.to_owned(), spans::format(left));
    }
    request
}
