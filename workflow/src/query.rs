//! Queries. While a workflow task is pending a query rides on it, so it sees everything acknowledged before it came;
//! without one the frontend sends it through the task queue. Nothing of a query is durable: its caller waits for it.

use std::collections::{BTreeMap, HashMap};

use perdure_proto::{
    Error,
    perdure::node::v1::{DirectQuery, GetQueryTask, QueryReply, query_reply, workflow_reply},
    temporal::api::{
        enums::v1::{
            QueryRejectCondition, QueryResultType, ResourceExhaustedCause, ResourceExhaustedScope, TaskQueueKind,
            WorkflowExecutionStatus,
        },
        query::v1::{QueryRejected, WorkflowQuery, WorkflowQueryResult},
        taskqueue::v1::TaskQueue,
        workflowservice::v1::{PollWorkflowTaskQueueResponse, QueryWorkflowRequest, QueryWorkflowResponse},
    },
};

use crate::{
    api::{Answer, Env, HistoryFill, Outcome, Release, Reply, Watch},
    chain::{Answered, Chain},
    run::Run,
};

/// After so many failed attempts of a workflow task its queries fail at once: the worker cannot replay.
const FAILING_ATTEMPTS: i32 = 3;

/// Most queries that wait for the workflow tasks of one run. Temporal takes one at a time by default, and has clients try
/// again; a bound on memory is all that is needed here.
const MAX_BUFFERED: usize = 1_000;

/// Queries that wait for a workflow task of this run, and answers that wait to be fetched by their callers.
#[derive(Debug, Clone, Default)]
pub(crate) struct Queries {
    last_id: u64,
    waiting: BTreeMap<u64, WorkflowQuery>,
    /// Given to the started workflow task.
    sent: BTreeMap<u64, WorkflowQuery>,
    answered: BTreeMap<u64, Result<QueryWorkflowResponse, Error>>,
}

impl Queries {
    fn add(&mut self, query: WorkflowQuery) -> Result<u64, Error> {
        if self.waiting.len() + self.sent.len() >= MAX_BUFFERED {
            return Err(Error::resource_exhausted(
                "consistent query buffer is full, cannot accept new consistent queries",
                ResourceExhaustedCause::BusyWorkflow,
                ResourceExhaustedScope::Namespace,
            ));
        }
        self.last_id += 1;
        self.waiting.insert(self.last_id, query);
        Ok(self.last_id)
    }

    /// Answers of an earlier input have been fetched, or nobody waits for them any more.
    pub fn forget_answered(&mut self) {
        self.answered.clear();
    }

    /// The queries that go with the workflow task that is being started, by id.
    pub fn take_for_workflow_task(&mut self) -> HashMap<String, WorkflowQuery> {
        self.sent.append(&mut self.waiting);
        self.sent.iter().map(|(id, query)| (id.to_string(), query.clone())).collect()
    }

    /// The workflow task ended without answers.
    pub fn not_answered(&mut self) {
        self.waiting.append(&mut self.sent);
    }
}

impl Chain {
    pub(crate) fn query(&mut self, request: QueryWorkflowRequest, _env: &mut Env) -> Answered {
        let run_id = request.execution.as_ref().map(|e| e.run_id.clone()).unwrap_or_default();
        let reject_condition = request.query_reject_condition();
        let query = request.query.ok_or_else(|| Error::invalid_argument("Query is not set on request."))?;
        let run = self.run(&run_id)?;
        if run.is_paused() || is_rejected(run.status(), reject_condition) {
            let rejected = QueryRejected { status: run.status() as i32 };
            return answer(query_reply::Outcome::Answered(QueryWorkflowResponse {
                query_rejected: Some(rejected),
                ..QueryWorkflowResponse::default()
            }));
        }
        if let Some(direct) = run.direct_query() {
            return answer(query_reply::Outcome::Direct(direct));
        }
        if run.workflow_task().is_none() {
            return Err(Error::workflow_not_ready("Workflow task is not scheduled yet."));
        }
        run.fail_if_not_replayable("query")?;
        let query_id = run.queries.add(query)?;
        let run_id = run.run_id.clone();
        Ok((Answer::Watch(Watch::Query { run_id, query_id }), Release::Prior))
    }

    /// Makes the task with which a query goes to a worker outside a workflow task.
    pub(crate) fn get_query_task(&mut self, request: GetQueryTask, _env: &mut Env) -> Answered {
        let run = self.run(&request.run_id)?;
        // Something has come since the query was sent this way. With it a worker that has the run in its cache would run
        // ahead, and what it decides would be lost: an answer to a query has no commands.
        if run.is_open() && run.workflow_task().is_some() {
            return Err(Error::workflow_not_ready("A workflow task is pending: the query goes with it."));
        }
        // A query that was sent to a worker that has lost its cache since must bring the whole history.
        let sticky = request.sticky && run.info.sticky.is_some();
        let from_event_id = if sticky { run.info.last_completed_workflow_task_started_id + 1 } else { 1 };
        let response = PollWorkflowTaskQueueResponse {
            workflow_execution: Some(run.execution()),
            workflow_type: run.start().workflow_type.clone(),
            previous_started_event_id: run.info.last_completed_workflow_task_started_id,
            attempt: 1,
            query: request.query,
            workflow_execution_task_queue: Some(TaskQueue {
                name: run.info.task_queue.clone(),
                kind: TaskQueueKind::Normal as i32,
                ..TaskQueue::default()
            }),
            ..PollWorkflowTaskQueueResponse::default()
        };
        let history = HistoryFill {
            run_id: run.run_id.clone(),
            from_event_id,
            until_event_id: run.info.next_event_id,
            extra: Vec::new(),
        };
        let mut reply = Reply::new(workflow_reply::Reply::WorkflowTask(response));
        reply.history = Some(history);
        Ok((Answer::Reply(Box::new(reply)), Release::Prior))
    }
}

impl Run {
    /// Where to send a query now, if nothing is pending that the query would have to see first. A worker cannot
    /// answer before it has seen a workflow task.
    fn direct_query(&self) -> Option<DirectQuery> {
        let seen = self.info.last_completed_workflow_task_started_id > 0;
        let quiet = !self.is_open() || self.workflow_task().is_none();
        if !seen || !quiet {
            return None;
        }
        Some(DirectQuery {
            run_id: self.run_id.clone(),
            task_queue: self.info.task_queue.clone(),
            sticky_task_queue: self.info.sticky.as_ref().map(|s| s.task_queue.clone()).unwrap_or_default(),
            directive: self.version_directive(),
        })
    }

    /// Refuses what needs a worker while the worker cannot get past a workflow task.
    pub(crate) fn fail_if_not_replayable(&self, what: &str) -> Result<(), Error> {
        if self.workflow_task().is_some_and(|task| task.attempt >= FAILING_ATTEMPTS) {
            let message = format!("Unable to {what} workflow due to Workflow Task in failed state.");
            return Err(Error::workflow_not_ready(message));
        }
        Ok(())
    }

    /// Results that came with a workflow task's completion. What it left out is asked again.
    pub(crate) fn answer_queries(&mut self, results: HashMap<String, WorkflowQueryResult>) {
        self.queries.forget_answered();
        for (id, result) in results {
            let Ok(id) = id.parse::<u64>() else { continue };
            if self.queries.sent.remove(&id).is_some() {
                self.queries.answered.insert(id, query_outcome(result));
            }
        }
        self.queries.not_answered();
    }

    pub(crate) fn check_query(&mut self, query_id: u64) -> Option<Outcome> {
        if let Some(answered) = self.queries.answered.remove(&query_id) {
            return Some(answered.map(|response| query_message(query_reply::Outcome::Answered(response))));
        }
        if !self.queries.waiting.contains_key(&query_id) {
            return None;
        }
        let outcome = if let Some(direct) = self.direct_query() {
            Ok(query_message(query_reply::Outcome::Direct(direct)))
        } else if !self.is_open() {
            Err(Error::workflow_not_ready("Workflow was closed before it handled a workflow task."))
        } else {
            self.fail_if_not_replayable("query").err().map(Err)?
        };
        self.queries.waiting.remove(&query_id);
        Some(outcome)
    }
}

fn is_rejected(status: WorkflowExecutionStatus, condition: QueryRejectCondition) -> bool {
    use WorkflowExecutionStatus as S;
    match condition {
        QueryRejectCondition::Unspecified | QueryRejectCondition::None => false,
        QueryRejectCondition::NotOpen => !matches!(status, S::Running | S::Paused),
        QueryRejectCondition::NotCompletedCleanly => {
            matches!(status, S::Failed | S::TimedOut | S::Terminated | S::Canceled)
        }
    }
}

fn query_outcome(result: WorkflowQueryResult) -> Result<QueryWorkflowResponse, Error> {
    match result.result_type() {
        QueryResultType::Answered => {
            Ok(QueryWorkflowResponse { query_result: result.answer, ..QueryWorkflowResponse::default() })
        }
        QueryResultType::Failed | QueryResultType::Unspecified => {
            Err(Error::query_failed(result.error_message, result.failure))
        }
    }
}

fn query_message(outcome: query_reply::Outcome) -> Reply {
    Reply::new(workflow_reply::Reply::Query(QueryReply { outcome: Some(outcome) }))
}

fn answer(outcome: query_reply::Outcome) -> Answered {
    Ok((Answer::Reply(Box::new(query_message(outcome))), Release::Prior))
}
