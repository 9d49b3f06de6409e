//! The calls of a job: pages of the list, and the operation for one execution.

use perdure_proto::{
    Code, Error,
    perdure::node::v1::{
        ActivityCommand, ActivityOperation, RequestCancelWorkflow, ResetWorkflow, SignalWorkflow, TerminateWorkflow,
        WorkflowCall,
        activity_command::Command as ToActivity,
        activity_operation::{Activity, Operation as OfActivity, Reset, Unpause, UpdateOptions},
        workflow_call::Command,
    },
    temporal::api::{
        batch::v1::{
            BatchOperationReset, BatchOperationResetActivities, BatchOperationSignal, BatchOperationUnpauseActivities,
            BatchOperationUpdateActivityOptions, BatchOperationUpdateWorkflowExecutionOptions,
            batch_operation_reset_activities, batch_operation_unpause_activities,
            batch_operation_update_activity_options,
        },
        common::v1::{ResetOptions, WorkflowExecution, reset_options::Target},
        enums::v1::ResetType,
        workflowservice::v1::{
            DeleteActivityExecutionRequest, DeleteWorkflowExecutionRequest, ListWorkflowExecutionsRequest,
            RequestCancelActivityExecutionRequest, RequestCancelWorkflowExecutionRequest,
            ResetWorkflowExecutionRequest, SignalWorkflowExecutionRequest, StartBatchOperationRequest,
            TerminateActivityExecutionRequest, TerminateWorkflowExecutionRequest,
            UpdateWorkflowExecutionOptionsRequest, start_batch_operation_request::Operation,
        },
    },
};
use perdure_types::{Duration, EntityKind};
use perdure_workflow::{CallId, CallKind, Effect};

use crate::job::Job;

pub(crate) const LIST: CallKind = CallKind::Other(1);
pub(crate) const OPERATE: CallKind = CallKind::Other(2);

/// Executions of one page.
const PAGE_SIZE: i32 = 500;
/// More than a page ever has: call ids number executions by page and place.
const PAGE_STRIDE: i64 = 1_000_000;

impl Job {
    pub(crate) fn list_call(&self, incarnation: &str) -> Effect {
        let request = self.request();
        let command = Command::List(ListWorkflowExecutionsRequest {
            namespace: request.namespace.clone(),
            page_size: PAGE_SIZE,
            next_page_token: self.state.next_page_token.clone(),
            query: query_of(request),
        });
        self.call(LIST, self.state.page_number, incarnation, "", command)
    }

    /// `None`: there is nothing that could be done, which the start has refused.
    pub(crate) fn operation_call(&self, index: u32, incarnation: &str) -> Option<Effect> {
        let execution = self.state.page.get(index as usize)?.clone();
        let number = self.state.page_number * PAGE_STRIDE + i64::from(index);
        let workflow_id = execution.workflow_id.clone();
        let request_id = format!("{incarnation}-{number}");
        let command = if kind_of(self.request()) == EntityKind::Activity {
            let command = Some(self.activity_command(execution, request_id)?);
            Command::Activity(Box::new(ActivityCommand { command }))
        } else {
            self.command(execution, request_id)?
        };
        Some(self.call(OPERATE, number, incarnation, &workflow_id, command))
    }

    /// The place in the page under way that a call was for.
    pub(crate) fn index_of(&self, number: i64) -> Option<u32> {
        let index = number.checked_sub(self.state.page_number * PAGE_STRIDE)?;
        u32::try_from(index).ok().filter(|index| (*index as usize) < self.state.page.len())
    }

    fn call(&self, kind: CallKind, number: i64, incarnation: &str, workflow_id: &str, command: Command) -> Effect {
        Effect::Call {
            id: CallId { run_id: incarnation.to_owned(), kind, event_id: number },
            call: Box::new(WorkflowCall {
                namespace_id: self.key.namespace_id.to_string(),
                workflow_id: workflow_id.to_owned(),
                kind: kind_of(self.request()).number(),
                command: Some(command),
            }),
        }
    }

    /// What is done to a workflow.
    fn command(&self, execution: WorkflowExecution, request_id: String) -> Option<Command> {
        let request = self.request();
        let (namespace, reason) = (request.namespace.clone(), request.reason.clone());
        let identity = self.state.identity.clone();
        let run_id = execution.run_id.clone();
        let workflow_execution = Some(execution);
        Some(match request.operation.as_ref()? {
            Operation::TerminationOperation(terminate) => Command::Terminate(TerminateWorkflow {
                request: Some(TerminateWorkflowExecutionRequest {
                    namespace,
                    workflow_execution,
                    reason,
                    details: terminate.details.clone(),
                    identity,
                    ..TerminateWorkflowExecutionRequest::default()
                }),
                ..TerminateWorkflow::default()
            }),
            Operation::CancellationOperation(_) => Command::RequestCancel(RequestCancelWorkflow {
                request: Some(RequestCancelWorkflowExecutionRequest {
                    namespace,
                    workflow_execution,
                    identity,
                    request_id,
                    reason,
                    ..RequestCancelWorkflowExecutionRequest::default()
                }),
                ..RequestCancelWorkflow::default()
            }),
            Operation::SignalOperation(signal) => {
                signal_command(signal, namespace, workflow_execution, identity, request_id)
            }
            Operation::DeletionOperation(_) => {
                Command::Delete(DeleteWorkflowExecutionRequest { namespace, workflow_execution })
            }
            Operation::ResetOperation(reset) => {
                reset_command(reset, namespace, workflow_execution, identity, request_id, reason)
            }
            Operation::UpdateWorkflowOptionsOperation(update) => {
                options_command(update, namespace, workflow_execution, identity)
            }
            Operation::UnpauseActivitiesOperation(unpause) => unpause_command(unpause, run_id, identity),
            Operation::ResetActivitiesOperation(reset) => reset_activities_command(reset, run_id, identity),
            Operation::UpdateActivityOptionsOperation(update) => activity_options_command(update, run_id, identity),
            Operation::CancelActivitiesOperation(_)
            | Operation::TerminateActivitiesOperation(_)
            | Operation::DeleteActivitiesOperation(_) => return None,
        })
    }

    /// What is done to a standalone activity.
    fn activity_command(&self, execution: WorkflowExecution, request_id: String) -> Option<ToActivity> {
        let request = self.request();
        let (namespace, identity) = (request.namespace.clone(), self.state.identity.clone());
        let WorkflowExecution { workflow_id: activity_id, run_id } = execution;
        Some(match request.operation.as_ref()? {
            Operation::CancelActivitiesOperation(cancel) => {
                ToActivity::RequestCancel(RequestCancelActivityExecutionRequest {
                    namespace,
                    activity_id,
                    run_id,
                    identity,
                    request_id,
                    reason: cancel.reason.clone(),
                })
            }
            Operation::TerminateActivitiesOperation(terminate) => {
                ToActivity::Terminate(TerminateActivityExecutionRequest {
                    namespace,
                    activity_id,
                    run_id,
                    identity,
                    request_id,
                    reason: terminate.reason.clone(),
                })
            }
            Operation::DeleteActivitiesOperation(_) => {
                ToActivity::Delete(DeleteActivityExecutionRequest { namespace, activity_id, run_id })
            }
            _ => return None,
        })
    }
}

fn signal_command(
    signal: &BatchOperationSignal,
    namespace: String,
    workflow_execution: Option<WorkflowExecution>,
    identity: String,
    request_id: String,
) -> Command {
    Command::Signal(SignalWorkflow {
        request: Some(SignalWorkflowExecutionRequest {
            namespace,
            workflow_execution,
            signal_name: signal.signal.clone(),
            input: signal.input.clone(),
            identity,
            request_id,
            header: signal.header.clone(),
            ..SignalWorkflowExecutionRequest::default()
        }),
        ..SignalWorkflow::default()
    })
}

#[allow(deprecated, reason = "older clients still send what newer ones replaced")]
fn reset_command(
    reset: &BatchOperationReset,
    namespace: String,
    workflow_execution: Option<WorkflowExecution>,
    identity: String,
    request_id: String,
    reason: String,
) -> Command {
    let options = reset.options.clone().unwrap_or_else(|| ResetOptions {
        target: match reset.reset_type() {
            ResetType::FirstWorkflowTask => Some(Target::FirstWorkflowTask(())),
            ResetType::LastWorkflowTask => Some(Target::LastWorkflowTask(())),
            ResetType::Unspecified => None,
        },
        reset_reapply_type: reset.reset_reapply_type,
        ..ResetOptions::default()
    });
    let request = ResetWorkflowExecutionRequest {
        namespace,
        workflow_execution,
        reason,
        request_id,
        reset_reapply_type: options.reset_reapply_type,
        reset_reapply_exclude_types: options.reset_reapply_exclude_types.clone(),
        post_reset_operations: reset.post_reset_operations.clone(),
        identity,
        ..ResetWorkflowExecutionRequest::default()
    };
    Command::Reset(Box::new(ResetWorkflow { request: Some(request), options: Some(options), ..Default::default() }))
}

fn options_command(
    update: &BatchOperationUpdateWorkflowExecutionOptions,
    namespace: String,
    workflow_execution: Option<WorkflowExecution>,
    identity: String,
) -> Command {
    Command::UpdateOptions(Box::new(UpdateWorkflowExecutionOptionsRequest {
        namespace,
        workflow_execution,
        workflow_execution_options: update.workflow_execution_options.clone(),
        update_mask: update.update_mask.clone(),
        identity,
    }))
}

fn unpause_command(unpause: &BatchOperationUnpauseActivities, run_id: String, identity: String) -> Command {
    use batch_operation_unpause_activities::Activity as By;
    let activity = unpause.activity.as_ref().map(|by| match by {
        By::Type(name) => Activity::Type(name.clone()),
        By::MatchAll(all) => Activity::All(*all),
    });
    let operation = OfActivity::Unpause(Unpause {
        reset_attempts: unpause.reset_attempts,
        reset_heartbeat: unpause.reset_heartbeat,
        jitter_ns: Duration::from_proto(unpause.jitter.as_ref()).0,
    });
    activities_command(activity, operation, run_id, identity)
}

fn reset_activities_command(reset: &BatchOperationResetActivities, run_id: String, identity: String) -> Command {
    use batch_operation_reset_activities::Activity as By;
    let activity = reset.activity.as_ref().map(|by| match by {
        By::Type(name) => Activity::Type(name.clone()),
        By::MatchAll(all) => Activity::All(*all),
    });
    let operation = OfActivity::Reset(Reset {
        reset_heartbeat: reset.reset_heartbeat,
        keep_paused: reset.keep_paused,
        restore_original_options: reset.restore_original_options,
        jitter_ns: Duration::from_proto(reset.jitter.as_ref()).0,
    });
    activities_command(activity, operation, run_id, identity)
}

fn activity_options_command(update: &BatchOperationUpdateActivityOptions, run_id: String, identity: String) -> Command {
    use batch_operation_update_activity_options::Activity as By;
    let activity = update.activity.as_ref().map(|by| match by {
        By::Type(name) => Activity::Type(name.clone()),
        By::MatchAll(all) => Activity::All(*all),
    });
    let operation = OfActivity::UpdateOptions(UpdateOptions {
        options: update.activity_options.clone(),
        update_mask: update.update_mask.clone(),
        restore_original: update.restore_original,
    });
    activities_command(activity, operation, run_id, identity)
}

fn activities_command(activity: Option<Activity>, operation: OfActivity, run_id: String, identity: String) -> Command {
    let operation = Some(operation);
    Command::ActivityOperation(Box::new(ActivityOperation { run_id, identity, activity, operation }))
}

/// What the job works through: workflows, or standalone activities.
pub(crate) fn kind_of(request: &StartBatchOperationRequest) -> EntityKind {
    match &request.operation {
        Some(
            Operation::CancelActivitiesOperation(_)
            | Operation::TerminateActivitiesOperation(_)
            | Operation::DeleteActivitiesOperation(_),
        ) => EntityKind::Activity,
        _ => EntityKind::Workflow,
    }
}

/// What the job looks for: open executions, unless closed ones can be operated on too. Paused activities of a type are
/// found by what their workflows say is paused.
fn query_of(request: &StartBatchOperationRequest) -> String {
    let query = asked_for(request);
    match &request.operation {
        Some(
            Operation::DeletionOperation(_) | Operation::DeleteActivitiesOperation(_) | Operation::ResetOperation(_),
        ) => query,
        _ => format!("({query}) AND (ExecutionStatus = 'Running' OR ExecutionStatus = 'Paused')"),
    }
}

fn asked_for(request: &StartBatchOperationRequest) -> String {
    use batch_operation_unpause_activities::Activity as By;
    if let Some(Operation::UnpauseActivitiesOperation(unpause)) = &request.operation
        && let Some(By::Type(name)) = &unpause.activity
    {
        let value = format!("property:activityType={name}").replace('\'', "''");
        return format!("TemporalPauseInfo = '{value}'");
    }
    request.visibility_query.clone()
}

#[allow(deprecated, reason = "older clients still send what newer ones replaced")]
pub(crate) fn named_executions(request: &StartBatchOperationRequest) -> Vec<WorkflowExecution> {
    if request.target_executions.is_empty() {
        return request.executions.clone();
    }
    let execution = |e: &perdure_proto::temporal::api::common::v1::Execution| WorkflowExecution {
        workflow_id: e.business_id.clone(),
        run_id: e.run_id.clone(),
    };
    request.target_executions.iter().map(execution).collect()
}

/// A refusal that says that there is nothing left to do: the execution has ended, or is gone.
pub(crate) fn is_done(error: &Error) -> bool {
    error.grpc_code() == Code::NotFound
}
