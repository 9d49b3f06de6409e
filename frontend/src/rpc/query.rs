//! QueryWorkflow.
//!
//! The run's owner answers the query itself if a workflow task carries it, or it says where workers can be asked directly:
//! first the worker that is believed to have the run in its cache, then any worker of the queue.

use std::time::Duration;

use perdure_proto::{
    Code, Error,
    perdure::node::v1::{
        DirectQuery, QueryTask, VersionDirective, matching_call, matching_reply, query_reply, workflow_call,
        workflow_reply,
    },
    temporal::api::{
        common::v1::WorkflowExecution,
        enums::v1::QueryRejectCondition,
        query::v1::WorkflowQuery,
        workflowservice::v1::{QueryWorkflowRequest, QueryWorkflowResponse, ResetStickyTaskQueueRequest},
    },
};
use tokio::time::Instant;

use crate::{call::Call, validate};

/// Of a query whose client sets no deadline.
const LONGEST_QUERY: Duration = Duration::from_secs(30);
/// How long the worker with the cached run may take before others are asked.
const LONGEST_STICKY_WAIT: Duration = Duration::from_secs(5);

pub(crate) async fn query_workflow(
    call: &Call<'_>,
    mut request: QueryWorkflowRequest,
) -> Result<QueryWorkflowResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    let execution = validate::execution(request.execution.as_ref(), call.limits())?.clone();
    let Some(query) = request.query.clone() else {
        return Err(Error::invalid_argument("WorkflowQuery is not set on request."));
    };
    if query.query_type.is_empty() {
        return Err(Error::invalid_argument("QueryType is not set on request."));
    }
    validate::payloads(query.query_args.as_ref(), call.limits())?;
    if request.query_reject_condition == QueryRejectCondition::Unspecified as i32 {
        request.query_reject_condition = QueryRejectCondition::None as i32;
    }
    let asked = Asked {
        call,
        namespace_id: namespace.id(),
        namespace: namespace.name(),
        workflow_id: &execution.workflow_id,
        query,
        until: call.answer_by(LONGEST_QUERY),
    };
    match call.before(asked.until, asked.answer(request)).await {
        Some(Err(error)) if error.grpc_code() == Code::DeadlineExceeded => Err(timed_out()),
        Some(answer) => answer,
        None => Err(timed_out()),
    }
}

struct Asked<'a> {
    call: &'a Call<'a>,
    namespace_id: &'a str,
    namespace: &'a str,
    workflow_id: &'a str,
    query: WorkflowQuery,
    until: Instant,
}

impl Asked<'_> {
    async fn answer(&self, request: QueryWorkflowRequest) -> Result<QueryWorkflowResponse, Error> {
        loop {
            let command = workflow_call::Command::Query(request.clone());
            let reply = match self.call.workflow(self.namespace_id, self.workflow_id, command).await? {
                workflow_reply::Reply::Query(reply) => reply,
                _ => return Err(self.call.unexpected_reply()),
            };
            let direct = match reply.outcome {
                Some(query_reply::Outcome::Answered(answer)) => return Ok(answer),
                Some(query_reply::Outcome::Direct(direct)) => direct,
                None => return Err(self.call.unexpected_reply()),
            };
            match self.ask_workers(direct).await {
                // A workflow task has come meanwhile: the query goes with it.
                Err(error) if error.grpc_code() == Code::FailedPrecondition => {}
                answer => return answer,
            }
        }
    }

    async fn ask_workers(&self, direct: DirectQuery) -> Result<QueryWorkflowResponse, Error> {
        if !direct.sticky_task_queue.is_empty() {
            let until = self.until.min(Instant::now() + LONGEST_STICKY_WAIT);
            let sticky = &direct.sticky_task_queue;
            let asked = self.ask(until, &direct.run_id, sticky, true, direct.directive.as_deref());
            match self.call.before(until, asked).await {
                // Nobody polls there any more, or nobody answers.
                Some(Err(error)) if matches!(error.grpc_code(), Code::Unavailable | Code::DeadlineExceeded) => {}
                None => {}
                Some(answer) => return answer,
            }
            self.reset_sticky(&direct.run_id).await;
        }
        self.ask(self.until, &direct.run_id, &direct.task_queue, false, direct.directive.as_deref()).await
    }

    async fn ask(
        &self,
        until: Instant,
        run_id: &str,
        task_queue: &str,
        sticky: bool,
        directive: Option<&VersionDirective>,
    ) -> Result<QueryWorkflowResponse, Error> {
        let task = QueryTask {
            workflow_id: self.workflow_id.to_owned(),
            run_id: run_id.to_owned(),
            sticky,
            query: Some(self.query.clone()),
            directive: directive.cloned().map(Box::new),
            normal_task_queue: String::new(),
        };
        let command = matching_call::Command::Query(task);
        match self.call.matching_until(Some(until), self.namespace_id, task_queue, command).await? {
            matching_reply::Reply::Query(answer) => Ok(answer),
            _ => Err(self.call.unexpected_reply()),
        }
    }

    /// The cached run is gone with its worker: the next workflow task need not wait there too. A closed run has nothing
    /// to reset.
    async fn reset_sticky(&self, run_id: &str) {
        let execution = WorkflowExecution { workflow_id: self.workflow_id.to_owned(), run_id: run_id.to_owned() };
        let request = ResetStickyTaskQueueRequest { namespace: self.namespace.to_owned(), execution: Some(execution) };
        let command = workflow_call::Command::ResetSticky(request);
        if let Err(error) = self.call.workflow(self.namespace_id, self.workflow_id, command).await {
            tracing::debug!(%error, workflow_id = self.workflow_id, "stickiness not reset");
        }
    }
}

fn timed_out() -> Error {
    Error::new(Code::DeadlineExceeded, "query timed out before a worker could process it")
}
