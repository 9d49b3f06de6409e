//! Queries: they wait for a poll of a worker, and then for its answer.

use std::sync::Arc;

use perdure_proto::{
    Code, Error,
    perdure::node::v1::{
        GetQueryTask, QueryTask, TaskToken, WorkflowCall, matching_reply::Reply, task_token::Kind, workflow_call,
        workflow_reply,
    },
    temporal::api::{
        enums::v1::{QueryResultType, TaskQueueKind},
        taskqueue::v1::TaskQueue,
        workflowservice::v1::{PollWorkflowTaskQueueResponse, QueryWorkflowResponse, RespondQueryTaskCompletedRequest},
    },
};
use perdure_types::Duration;
use prost::Message;
use uuid::Uuid;

use crate::{
    dispatch::is_transient,
    poll::Waiter,
    queue::{Match, PollId, QueryRoute},
    registry::{QueueCell, QueueKind},
    shell::Shell,
    waits::Waits,
};

type Answer = Result<QueryWorkflowResponse, Error>;

const NO_STICKY_POLLER: &str = "The sticky task queue has no recent poller.";

/// No worker serves the sticky queue (any more): ask through the normal queue.
pub(crate) fn no_sticky_poller() -> Error {
    Error::unavailable(NO_STICKY_POLLER)
}

/// True for the error of a query to a sticky queue that must be sent to the normal queue instead.
pub fn is_no_sticky_poller(error: &Error) -> bool {
    error.grpc_code() == Code::Unavailable && error.message == NO_STICKY_POLLER
}

/// The queries whose callers wait.
pub(crate) type Queries = Waits<QueryTask, QueryWorkflowResponse>;

impl Shell {
    pub async fn query(
        self: &Arc<Self>,
        namespace_id: &str,
        task_queue: &str,
        task: QueryTask,
        timeout_ns: i64,
    ) -> Answer {
        let sticky = task.sticky;
        let cell = if sticky {
            self.registry.get(namespace_id, QueueKind::Sticky, task_queue).ok_or_else(no_sticky_poller)?
        } else {
            self.queue(namespace_id, QueueKind::Workflow, task_queue)
        };
        let route = route(&task);
        if sticky
            && let Some(known) = cell.family().and_then(|family| family.known(QueueKind::Sticky.task_type()))
            && !known.routing.may_stick(&route.workflow_id, route.directive.as_deref())
        {
            return Err(no_sticky_poller());
        }
        let route = if sticky { QueryRoute::default() } else { route };
        let (wait, answer) = self.begin_wait(&cell, |shell| &shell.queries, task)?;
        let id = wait.id;
        let window = self.config.sticky_poller_window;
        let matched = self.step(&cell, |queue, now| {
            if sticky && !queue.has_recent_poller(now, window) {
                return Err(no_sticky_poller());
            }
            Ok(queue.query(now, id, route))
        })?;
        if let Some(matched) = matched {
            self.dispatch_in_background(&cell, matched);
        }
        let answered = if timeout_ns > 0 {
            tokio::time::timeout(Duration(timeout_ns).to_std(), answer).await.map_err(|_| {
                let late = || Error::new(Code::DeadlineExceeded, "No worker answered the query in time.");
                if sticky { no_sticky_poller() } else { late() }
            })?
        } else {
            answer.await
        };
        answered.unwrap_or_else(|_| Err(Error::unavailable("The query was dropped.")))
    }

    /// Fetches what a worker needs to answer, and hands it to the poll.
    pub async fn start_query(
        self: &Arc<Self>,
        cell: &Arc<QueueCell>,
        poll: PollId,
        waiter: Box<Waiter>,
        id: Uuid,
    ) -> Option<Match<Box<Waiter>>> {
        // No task: its caller went away.
        if let Some(task) = self.queries.task(id) {
            if waiter.is_gone() {
                let route = route(&task);
                return self.step(cell, |queue, now| queue.query(now, id, route));
            }
            match self.starter.start(query_call(cell, &task)).await {
                Ok(reply) => match reply.reply {
                    Some(workflow_reply::Reply::WorkflowTask(response)) => {
                        let reply = query_reply(cell, &waiter, &task, id, response);
                        self.deliver(cell, waiter, Reply::WorkflowTask(reply)).await;
                        return None;
                    }
                    _ => {
                        self.queries.answer(id, Err(Error::internal("The shard's answer is not a task.")));
                    }
                },
                Err(error) if is_transient(&error) => self.requeue_query_later(cell, id),
                Err(error) => {
                    self.queries.answer(id, Err(error));
                }
            }
        }
        self.step(cell, |queue, now| self.resume(cell, queue, now, poll, waiter))
    }

    fn requeue_query_later(self: &Arc<Self>, cell: &Arc<QueueCell>, id: Uuid) {
        let (shell, cell) = (Arc::clone(self), Arc::clone(cell));
        self.spawn(async move {
            tokio::time::sleep(shell.config.retry_min.to_std()).await;
            shell.requeue(&cell, id);
        });
    }

    /// The worker that took the query vanished before it had it.
    pub fn requeue_query(self: &Arc<Self>, cell: &Arc<QueueCell>, id: &str) {
        if let Ok(id) = Uuid::try_parse(id) {
            self.requeue(cell, id);
        }
    }

    fn requeue(self: &Arc<Self>, cell: &Arc<QueueCell>, id: Uuid) {
        let matched = self.step(cell, |queue, now| {
            // Under the queue's lock, so that a caller that goes away finds the query in the queue.
            self.queries.task(id).and_then(|task| queue.query(now, id, route(&task)))
        });
        if let Some(matched) = matched {
            self.dispatch_in_background(cell, matched);
        }
    }

    /// A worker's answer.
    pub fn respond_query(&self, namespace_id: &str, request: RespondQueryTaskCompletedRequest) -> Result<(), Error> {
        let result_type = request.completed_type();
        let token = TaskToken::decode(request.task_token).ok().filter(|token| token.kind() == Kind::Query);
        let Some(token) = token else {
            return Err(Error::invalid_argument("Invalid TaskToken."));
        };
        let answer = match result_type {
            QueryResultType::Answered => {
                Ok(QueryWorkflowResponse { query_result: request.query_result, ..Default::default() })
            }
            QueryResultType::Failed => Err(Error::query_failed(request.error_message, request.failure)),
            QueryResultType::Unspecified => return Err(Error::invalid_argument("completed_type is not set.")),
        };
        let unknown = || Error::not_found("Nobody waits for this query's answer any more.");
        let id = Uuid::try_parse(&token.query_id).map_err(|_| unknown())?;
        if self.queries.answer_in(namespace_id, id, answer) { Ok(()) } else { Err(unknown()) }
    }
}

/// A sticky queue has one worker.
fn route(task: &QueryTask) -> QueryRoute {
    let directive = task.directive.clone().filter(|_| !task.sticky);
    QueryRoute { workflow_id: task.workflow_id.clone(), directive }
}

fn query_call(cell: &QueueCell, task: &QueryTask) -> WorkflowCall {
    let get = GetQueryTask { run_id: task.run_id.clone(), sticky: task.sticky, query: task.query.clone() };
    WorkflowCall {
        namespace_id: cell.key.namespace_id.to_string(),
        workflow_id: task.workflow_id.clone(),
        command: Some(workflow_call::Command::GetQueryTask(get)),
        ..WorkflowCall::default()
    }
}

fn query_reply(
    cell: &QueueCell,
    waiter: &Waiter,
    task: &QueryTask,
    id: Uuid,
    mut response: PollWorkflowTaskQueueResponse,
) -> PollWorkflowTaskQueueResponse {
    let token = TaskToken {
        kind: Kind::Query as i32,
        namespace_id: cell.key.namespace_id.to_string(),
        workflow_id: task.workflow_id.clone(),
        run_id: task.run_id.clone(),
        query_id: id.to_string(),
        task_queue: cell.key.name.to_string(),
        ..Default::default()
    };
    response.task_token = token.encode_to_vec().into();
    response.query = task.query.clone();
    if response.workflow_execution_task_queue.is_none() {
        let name = waiter.request.normal_name().unwrap_or(&cell.key.name).to_owned();
        let kind = TaskQueueKind::Normal as i32;
        response.workflow_execution_task_queue = Some(TaskQueue { name, kind, ..Default::default() });
    }
    response
}
