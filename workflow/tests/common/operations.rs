//! What operators do to a workflow.

use perdure_proto::{
    Error,
    perdure::node::v1::{
        ActivityOperation, ResetWorkflow, RunHistory,
        activity_operation::{Activity, Operation},
        workflow_call, workflow_reply,
    },
    temporal::api::{
        activity::v1::ActivityOptions,
        common::v1::WorkflowExecution,
        history::v1::{History, history_event::Attributes},
        workflowservice::v1::{
            DeleteWorkflowExecutionRequest, PauseWorkflowExecutionRequest, ResetWorkflowExecutionRequest,
            UnpauseWorkflowExecutionRequest,
        },
    },
};

use super::{NAMESPACE, TestChain, WORKFLOW_ID};

pub fn execution(run_id: &str) -> Option<WorkflowExecution> {
    Some(WorkflowExecution { workflow_id: WORKFLOW_ID.to_owned(), run_id: run_id.to_owned() })
}

/// A reset of the current run.
pub fn reset_request(finish_event_id: i64) -> ResetWorkflowExecutionRequest {
    ResetWorkflowExecutionRequest {
        namespace: NAMESPACE.to_owned(),
        workflow_execution: execution(""),
        reason: "wrong turn".to_owned(),
        workflow_task_finish_event_id: finish_event_id,
        request_id: format!("reset-{finish_event_id}"),
        ..ResetWorkflowExecutionRequest::default()
    }
}

/// Hands the histories in, as the driver does. Gives the new run's id.
pub fn try_reset(chain: &mut TestChain, request: ResetWorkflowExecutionRequest) -> Result<String, Error> {
    let named = request.workflow_execution.as_ref().map(|e| e.run_id.clone()).unwrap_or_default();
    let mut next = Some(if named.is_empty() { chain.run_id() } else { named });
    let mut histories = Vec::new();
    while let Some(run_id) = next.take() {
        let events = chain.histories.get(&run_id).cloned().unwrap_or_default();
        next = match events.last().and_then(|event| event.attributes.as_ref()) {
            Some(Attributes::WorkflowExecutionContinuedAsNewEventAttributes(a)) => Some(a.new_execution_run_id.clone()),
            _ => None,
        };
        histories.push(RunHistory { run_id, history: Some(History::new(events)) });
    }
    let command = ResetWorkflow { request: Some(request), histories, options: None };
    match chain.try_call(workflow_call::Command::Reset(Box::new(command)))?.message.reply {
        Some(workflow_reply::Reply::Reset(reset)) => Ok(reset.run_id),
        other => panic!("not a reset: {other:?}"),
    }
}

pub fn reset(chain: &mut TestChain, finish_event_id: i64) -> String {
    try_reset(chain, reset_request(finish_event_id)).expect("reset")
}

pub fn try_pause(chain: &mut TestChain, request_id: &str) -> Result<(), Error> {
    let request = PauseWorkflowExecutionRequest {
        namespace: NAMESPACE.to_owned(),
        workflow_id: WORKFLOW_ID.to_owned(),
        identity: "operator".to_owned(),
        reason: "look first".to_owned(),
        request_id: request_id.to_owned(),
        ..PauseWorkflowExecutionRequest::default()
    };
    chain.try_call(workflow_call::Command::Pause(request)).map(drop)
}

pub fn try_unpause(chain: &mut TestChain) -> Result<(), Error> {
    let request = UnpauseWorkflowExecutionRequest {
        namespace: NAMESPACE.to_owned(),
        workflow_id: WORKFLOW_ID.to_owned(),
        ..UnpauseWorkflowExecutionRequest::default()
    };
    chain.try_call(workflow_call::Command::Unpause(request)).map(drop)
}

pub fn delete(chain: &mut TestChain, run_id: &str) {
    let request =
        DeleteWorkflowExecutionRequest { namespace: NAMESPACE.to_owned(), workflow_execution: execution(run_id) };
    chain.call(workflow_call::Command::Delete(request));
}

pub fn try_operate(chain: &mut TestChain, activity: Activity, operation: Operation) -> Result<ActivityOptions, Error> {
    let command = ActivityOperation {
        identity: "operator".to_owned(),
        activity: Some(activity),
        operation: Some(operation),
        ..ActivityOperation::default()
    };
    match chain.try_call(workflow_call::Command::ActivityOperation(Box::new(command)))?.message.reply {
        Some(workflow_reply::Reply::ActivityOptions(options)) => Ok(*options),
        other => panic!("not about an activity: {other:?}"),
    }
}

pub fn operate(chain: &mut TestChain, id: &str, operation: Operation) -> ActivityOptions {
    try_operate(chain, Activity::Id(id.to_owned()), operation).expect("accepted")
}
