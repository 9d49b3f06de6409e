//! Child workflows, seen from the parent: initiated → started or not → closed in one of five ways, exactly once; and what
//! becomes of them when the parent closes.

use perdure_proto::{
    Error,
    perdure::{
        node::v1::{
            ChildWorkflowClosed, ParentInfo, RequestCancelWorkflow, StartWorkflow, TerminateWorkflow, WorkflowReply,
            workflow_call::Command, workflow_reply::Reply as Answer,
        },
        state::v1::ChildInfo,
    },
    temporal::api::{
        common::v1::WorkflowExecution,
        enums::v1::{ParentClosePolicy, StartChildWorkflowExecutionFailedCause, WorkflowIdConflictPolicy},
        history::v1::{
            ChildWorkflowExecutionStartedEventAttributes, StartChildWorkflowExecutionFailedEventAttributes,
            StartChildWorkflowExecutionInitiatedEventAttributes, history_event::Attributes,
        },
        workflowservice::v1::{
            RequestCancelWorkflowExecutionRequest, StartWorkflowExecutionRequest, TerminateWorkflowExecutionRequest,
        },
    },
};

use crate::{
    api::{CallKind, Effect, Env},
    chain::{Answered, Chain, empty_reply},
    child_closing::closing_event,
    external_calls::{call, is_namespace_not_found, is_settled},
    priority,
    run::{Pending, Run},
    start::root_execution,
    terminate::SERVER_IDENTITY,
};

impl Chain {
    pub(crate) fn child_closed(&mut self, command: ChildWorkflowClosed, env: &mut Env) -> Answered {
        let named = self.run(&command.run_id)?;
        // The parent was reset since it started the child: the run that goes on waits for it.
        let run = if named.is_open() || named.info.reset_run_id.is_empty() {
            self.open_run(&command.run_id)?
        } else {
            self.open_run("")?
        };
        run.record_child_closed(command, env)?;
        empty_reply()
    }
}

impl Run {
    /// Has the workflow task that is being completed started a child with this id?
    pub(crate) fn initiated_child_in_task(&self, workflow_id: &str, completed_event_id: i64) -> bool {
        self.children.values().filter_map(initiated).any(|child| {
            child.workflow_id == workflow_id && child.workflow_task_completed_event_id == completed_event_id
        })
    }

    /// Must a call to this execution wait? It means a child whose start has no result so far.
    pub(crate) fn awaits_child(&self, namespace_id: &str, execution: &WorkflowExecution, call_event_id: i64) -> bool {
        execution.run_id.is_empty()
            && self.children.range(..call_event_id).map(|(_, child)| child).any(|child| {
                child.info.run_id.is_empty()
                    && initiated(child)
                        .is_some_and(|i| i.workflow_id == execution.workflow_id && i.namespace_id == namespace_id)
            })
    }

    /// The call that starts the child. The request id makes it repeatable.
    pub(crate) fn start_child_call(&self, child: &Pending<ChildInfo>) -> Option<Effect> {
        let attributes = initiated(child)?;
        let request = StartWorkflowExecutionRequest {
            namespace: attributes.namespace.clone(),
            workflow_id: attributes.workflow_id.clone(),
            workflow_type: attributes.workflow_type.clone(),
            task_queue: attributes.task_queue.clone(),
            input: attributes.input.clone(),
            workflow_execution_timeout: attributes.workflow_execution_timeout,
            workflow_run_timeout: attributes.workflow_run_timeout,
            workflow_task_timeout: attributes.workflow_task_timeout,
            request_id: child.info.request_id.clone(),
            workflow_id_reuse_policy: attributes.workflow_id_reuse_policy,
            workflow_id_conflict_policy: WorkflowIdConflictPolicy::Fail as i32,
            retry_policy: attributes.retry_policy.clone(),
            cron_schedule: attributes.cron_schedule.clone(),
            memo: attributes.memo.clone(),
            search_attributes: attributes.search_attributes.clone(),
            header: attributes.header.clone(),
            user_metadata: child.event.user_metadata.clone(),
            versioning_override: attributes.versioning_override.clone(),
            priority: priority::merged(self.info.priority.as_ref(), attributes.priority.as_ref()),
            ..StartWorkflowExecutionRequest::default()
        };
        let mut parent = ParentInfo {
            namespace_id: self.key.namespace_id.to_string(),
            execution: Some(self.execution()),
            initiated_event_id: child.info.initiated_event_id,
            root_execution: Some(root_execution(self)),
            ..ParentInfo::default()
        };
        let task_queue = attributes.task_queue.as_ref().map_or("", |queue| &queue.name);
        self.tell_child(&mut parent, &attributes.namespace_id, task_queue);
        self.tell_child_build_id(&mut parent, attributes);
        let command =
            Command::Start(Box::new(StartWorkflow { request: Some(request), parent: Some(parent), schedule: None }));
        let call = call(&attributes.namespace_id, &attributes.workflow_id, command);
        Some(self.call_effect(CallKind::StartChild, child.info.initiated_event_id, call))
    }

    pub(crate) fn on_child_start_result(
        &mut self,
        initiated_event_id: i64,
        result: Result<WorkflowReply, Error>,
        env: &mut Env,
    ) {
        let Some(child) = self.children.get(&initiated_event_id) else {
            return;
        };
        if !child.info.run_id.is_empty() {
            return;
        }
        match result {
            Ok(reply) => {
                let Some(Answer::Start(response)) = reply.reply else {
                    return;
                };
                if self.is_open() {
                    self.record_child_started(initiated_event_id, &response.run_id, env);
                } else {
                    self.close_late_child(initiated_event_id, response.run_id);
                }
            }
            Err(error) => {
                if !self.is_open() {
                    if is_settled(&Err(error)) {
                        self.children.remove(&initiated_event_id);
                    }
                } else if let Some(cause) = start_failure(&error) {
                    self.record_child_not_started(initiated_event_id, cause, env);
                }
            }
        }
    }

    fn record_child_started(&mut self, initiated_event_id: i64, run_id: &str, env: &mut Env) {
        let Some(child) = self.children.get(&initiated_event_id) else {
            return;
        };
        let Some(initiated) = initiated(child).cloned() else {
            return;
        };
        let event = ChildWorkflowExecutionStartedEventAttributes {
            namespace: initiated.namespace.clone(),
            namespace_id: initiated.namespace_id.clone(),
            initiated_event_id,
            workflow_execution: Some(WorkflowExecution {
                workflow_id: initiated.workflow_id.clone(),
                run_id: run_id.to_owned(),
            }),
            workflow_type: initiated.workflow_type.clone(),
            header: initiated.header.clone(),
        };
        let event_id = self.add_external(env.now, Attributes::ChildWorkflowExecutionStartedEventAttributes(event));
        if let Some(child) = self.children.get_mut(&initiated_event_id) {
            child.info.run_id = run_id.to_owned();
            child.info.started_event_id = event_id.unwrap_or_default();
        }
        self.release_calls_to_child(&initiated.namespace_id, &initiated.workflow_id, initiated_event_id);
        self.ensure_workflow_task(env);
    }

    fn record_child_not_started(
        &mut self,
        initiated_event_id: i64,
        cause: StartChildWorkflowExecutionFailedCause,
        env: &mut Env,
    ) {
        let Some(child) = self.children.remove(&initiated_event_id) else {
            return;
        };
        let Some(initiated) = initiated(&child) else { return };
        self.add_external(env.now, child_not_started(initiated_event_id, initiated, cause));
        self.release_calls_to_child(&initiated.namespace_id, &initiated.workflow_id, initiated_event_id);
        self.ensure_workflow_task(env);
    }

    fn record_child_closed(&mut self, command: ChildWorkflowClosed, env: &mut Env) -> Result<(), Error> {
        let unknown = || Error::not_found("Pending child execution not found.");
        let id = command.initiated_event_id;
        let child = self.children.get(&id).ok_or_else(unknown)?;
        let initiated = initiated(child).cloned().ok_or_else(unknown)?;
        let execution = command.child_execution.unwrap_or_default();
        if execution.workflow_id != initiated.workflow_id {
            return Err(unknown());
        }
        let first_run_id = command.first_execution_run_id;
        if child.info.run_id.is_empty() {
            // The child was faster than the answer to the call that started it.
            self.record_child_started(id, &first_run_id, env);
        } else if child.info.run_id != first_run_id {
            return Err(unknown());
        }
        let started_event_id = self.children.get(&id).map_or(0, |child| child.info.started_event_id);
        let closed = command.close_event.and_then(|event| event.attributes);
        let event = closing_event(&initiated, id, started_event_id, execution, closed)
            .ok_or_else(|| Error::invalid_argument("the close event of a child is of no closing type"))?;
        self.children.remove(&id);
        self.add_external(env.now, event);
        self.ensure_workflow_task(env);
        Ok(())
    }

    /// The run closes: children that no call has been made for are not started.
    pub(crate) fn drop_unsent_children(&mut self) {
        let Some(first) = self.new_events.first().map(|new| new.event.event_id) else {
            return;
        };
        let unsent: Vec<i64> = self.children.range(first..).map(|(id, _)| *id).collect();
        for id in unsent {
            self.children.remove(&id);
        }
    }

    /// The run closes: its children go their own way, or are called to an end. Where the call that starts a child is
    /// still under way its result is waited for.
    pub(crate) fn close_children(&mut self) {
        let ids: Vec<i64> = self.children.keys().copied().collect();
        for id in ids {
            let Some(child) = self.children.get_mut(&id) else {
                continue;
            };
            let policy = initiated(child).map_or(ParentClosePolicy::Abandon, |i| i.parent_close_policy());
            if policy == ParentClosePolicy::Abandon {
                self.children.remove(&id);
                continue;
            }
            child.info.close_policy_pending = true;
            if !child.info.run_id.is_empty() {
                self.emit_close_policy(id);
            }
        }
    }

    fn close_late_child(&mut self, initiated_event_id: i64, run_id: String) {
        if let Some(child) = self.children.get_mut(&initiated_event_id) {
            child.info.run_id = run_id;
        }
        self.emit_close_policy(initiated_event_id);
    }

    fn emit_close_policy(&mut self, initiated_event_id: i64) {
        let effect = self.children.get(&initiated_event_id).and_then(|child| self.close_policy_call(child));
        self.effects.extend(effect);
    }

    /// Reaches the child across its own continuations: it is named by its first run.
    fn close_policy_call(&self, child: &Pending<ChildInfo>) -> Option<Effect> {
        let attributes = initiated(child)?;
        let namespace = attributes.namespace.clone();
        let execution = WorkflowExecution { workflow_id: attributes.workflow_id.clone(), run_id: String::new() };
        let first_execution_run_id = child.info.run_id.clone();
        let command = match attributes.parent_close_policy() {
            ParentClosePolicy::Abandon => return None,
            ParentClosePolicy::Terminate | ParentClosePolicy::Unspecified => Command::Terminate(TerminateWorkflow {
                request: Some(TerminateWorkflowExecutionRequest {
                    namespace,
                    workflow_execution: Some(execution),
                    first_execution_run_id,
                    reason: "by parent close policy".to_owned(),
                    identity: SERVER_IDENTITY.to_owned(),
                    ..TerminateWorkflowExecutionRequest::default()
                }),
                external_execution: Some(self.execution()),
                child_workflow_only: true,
            }),
            ParentClosePolicy::RequestCancel => Command::RequestCancel(RequestCancelWorkflow {
                request: Some(RequestCancelWorkflowExecutionRequest {
                    namespace,
                    workflow_execution: Some(execution),
                    first_execution_run_id,
                    identity: SERVER_IDENTITY.to_owned(),
                    ..RequestCancelWorkflowExecutionRequest::default()
                }),
                external_execution: Some(self.execution()),
                child_workflow_only: true,
                ..RequestCancelWorkflow::default()
            }),
        };
        let call = call(&attributes.namespace_id, &attributes.workflow_id, command);
        Some(self.call_effect(CallKind::ParentClosePolicy, child.info.initiated_event_id, call))
    }

    pub(crate) fn on_close_policy_result(&mut self, initiated_event_id: i64, result: Result<WorkflowReply, Error>) {
        if is_settled(&result) && !self.is_open() {
            self.children.remove(&initiated_event_id);
        }
    }

    /// Calls for children without a result: starts of an open run, close policies of a closed one.
    pub(crate) fn child_calls(&self) -> Vec<Effect> {
        let open = self.is_open();
        self.children
            .values()
            .filter_map(|child| match (open, child.info.run_id.is_empty()) {
                (true, true) => self.start_child_call(child),
                (true, false) => None,
                (false, _) => self.close_policy_call(child),
            })
            .collect()
    }
}

pub(crate) fn initiated(child: &Pending<ChildInfo>) -> Option<&StartChildWorkflowExecutionInitiatedEventAttributes> {
    match &child.event.attributes {
        Some(Attributes::StartChildWorkflowExecutionInitiatedEventAttributes(attributes)) => Some(attributes),
        _ => None,
    }
}

#[allow(deprecated)]
pub(crate) fn child_not_started(
    initiated_event_id: i64,
    initiated: &StartChildWorkflowExecutionInitiatedEventAttributes,
    cause: StartChildWorkflowExecutionFailedCause,
) -> Attributes {
    Attributes::StartChildWorkflowExecutionFailedEventAttributes(StartChildWorkflowExecutionFailedEventAttributes {
        namespace: initiated.namespace.clone(),
        namespace_id: initiated.namespace_id.clone(),
        workflow_id: initiated.workflow_id.clone(),
        workflow_type: initiated.workflow_type.clone(),
        cause: cause as i32,
        control: initiated.control.clone(),
        initiated_event_id,
        ..StartChildWorkflowExecutionFailedEventAttributes::default()
    })
}

/// `None`: no answer yet, the call is made again.
fn start_failure(error: &Error) -> Option<StartChildWorkflowExecutionFailedCause> {
    if error.already_started_run_id().is_some() {
        Some(StartChildWorkflowExecutionFailedCause::WorkflowAlreadyExists)
    } else if is_namespace_not_found(error) {
        Some(StartChildWorkflowExecutionFailedCause::NamespaceNotFound)
    } else {
        None
    }
}
