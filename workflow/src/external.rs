//! Signals and cancellation requests to other workflows: an Initiated event, a call until it is answered, and an event
//! that tells the outcome.

use perdure_proto::{
    Code, Error,
    perdure::{
        node::v1::WorkflowReply,
        state::v1::{ExternalCancelInfo, ExternalSignalInfo},
    },
    temporal::api::{
        command::v1::{
            RequestCancelExternalWorkflowExecutionCommandAttributes, SignalExternalWorkflowExecutionCommandAttributes,
        },
        common::v1::WorkflowExecution,
        enums::v1::{
            CancelExternalWorkflowExecutionFailedCause as CancelFailed,
            SignalExternalWorkflowExecutionFailedCause as SignalFailed, WorkflowTaskFailedCause as Cause,
        },
        history::v1::{
            ExternalWorkflowExecutionCancelRequestedEventAttributes, ExternalWorkflowExecutionSignaledEventAttributes,
            RequestCancelExternalWorkflowExecutionFailedEventAttributes,
            RequestCancelExternalWorkflowExecutionInitiatedEventAttributes,
            SignalExternalWorkflowExecutionFailedEventAttributes,
            SignalExternalWorkflowExecutionInitiatedEventAttributes, history_event::Attributes,
        },
    },
};
use prost::Message;

use crate::{
    api::Env,
    command::{BadCommand, CommandContext, CommandResult},
    external_calls::{cancel_initiated, is_namespace_not_found, is_settled, signal_initiated},
    limits::{check_payload_bytes, check_pending},
    run::{Pending, Run},
};

/// Where a call goes.
pub(crate) struct Target {
    pub namespace: String,
    /// Empty: there is no such namespace.
    pub namespace_id: String,
}

impl Run {
    #[allow(deprecated)]
    pub(crate) fn signal_external_command(
        &mut self,
        env: &mut Env,
        ctx: &CommandContext,
        command: SignalExternalWorkflowExecutionCommandAttributes,
    ) -> CommandResult {
        const CAUSE: Cause = Cause::BadSignalWorkflowExecutionAttributes;
        const COMMAND: &str = "SignalExternalWorkflowExecutionCommand";
        let Some(execution) = command.execution else {
            return Err(BadCommand::new(CAUSE, format!("Execution is not set on {COMMAND}.")));
        };
        check_target(&execution, &command.namespace, env).map_err(|e| BadCommand::new(CAUSE, e.text(COMMAND)))?;
        if command.signal_name.is_empty() {
            let message = format!(
                "SignalName is not set on {COMMAND}. WorkflowId={} Namespace={} RunId={}",
                execution.workflow_id, command.namespace, execution.run_id
            );
            return Err(BadCommand::new(CAUSE, message));
        }
        check_pending(
            self.external_signals.len(),
            env.limits.pending_signals_error,
            "pending signals to external workflows",
            Cause::PendingSignalsLimitExceeded,
        )?;
        let size = command.input.as_ref().map_or(0, Message::encoded_len);
        let message = "SignalExternalWorkflowExecutionCommandAttributes.Input exceeds size limit.";
        check_payload_bytes(env, size, CAUSE, message)?;

        let target = self.target(env, &command.namespace);
        let initiated = SignalExternalWorkflowExecutionInitiatedEventAttributes {
            workflow_task_completed_event_id: ctx.completed_event_id,
            namespace: command.namespace,
            namespace_id: target.namespace_id.clone(),
            workflow_execution: Some(execution.clone()),
            signal_name: command.signal_name,
            input: command.input,
            control: command.control,
            child_workflow_only: command.child_workflow_only,
            header: command.header,
        };
        let attributes = Attributes::SignalExternalWorkflowExecutionInitiatedEventAttributes(initiated.clone());
        let id = self.add_prepared(env.now, ctx.event(attributes));
        if let Some(cause) = self.unreachable(&target, &execution) {
            let failed = signal_failed(id, &initiated, target.namespace, cause.for_signal());
            self.buffer_event(env.now, failed);
            return Ok(());
        }
        let Some(event) = self.last_new_event() else {
            return Ok(());
        };
        let info = ExternalSignalInfo { initiated_event_id: id, request_id: env.ids.uuid(), ..Default::default() };
        let pending = Pending { info, event };
        self.effects.extend(self.signal_call(&pending));
        self.external_signals.insert(id, pending);
        Ok(())
    }

    #[allow(deprecated)]
    pub(crate) fn cancel_external_command(
        &mut self,
        env: &mut Env,
        ctx: &CommandContext,
        command: RequestCancelExternalWorkflowExecutionCommandAttributes,
    ) -> CommandResult {
        const CAUSE: Cause = Cause::BadRequestCancelExternalWorkflowExecutionAttributes;
        const COMMAND: &str = "RequestCancelExternalWorkflowExecutionCommand";
        let execution = WorkflowExecution { workflow_id: command.workflow_id, run_id: command.run_id };
        check_target(&execution, &command.namespace, env).map_err(|e| BadCommand::new(CAUSE, e.text(COMMAND)))?;
        if self.initiated_child_in_task(&execution.workflow_id, ctx.completed_event_id) {
            let message = format!(
                "Start and RequestCancel for child workflow is not allowed in same workflow task. \
                 WorkflowId={} RunId={} Namespace={}",
                execution.workflow_id, execution.run_id, command.namespace
            );
            return Err(BadCommand::new(CAUSE, message));
        }
        check_pending(
            self.external_cancels.len(),
            env.limits.pending_cancel_requests_error,
            "pending requests to cancel external workflows",
            Cause::PendingRequestCancelLimitExceeded,
        )?;

        let target = self.target(env, &command.namespace);
        let initiated = RequestCancelExternalWorkflowExecutionInitiatedEventAttributes {
            workflow_task_completed_event_id: ctx.completed_event_id,
            namespace: command.namespace,
            namespace_id: target.namespace_id.clone(),
            workflow_execution: Some(execution.clone()),
            control: command.control,
            child_workflow_only: command.child_workflow_only,
            reason: command.reason,
        };
        let attributes = Attributes::RequestCancelExternalWorkflowExecutionInitiatedEventAttributes(initiated.clone());
        let id = self.add_prepared(env.now, ctx.event(attributes));
        if let Some(cause) = self.unreachable(&target, &execution) {
            let failed = cancel_failed(id, &initiated, target.namespace, cause.for_cancel());
            self.buffer_event(env.now, failed);
            return Ok(());
        }
        let Some(event) = self.last_new_event() else {
            return Ok(());
        };
        let info = ExternalCancelInfo { initiated_event_id: id, request_id: env.ids.uuid(), ..Default::default() };
        let pending = Pending { info, event };
        self.effects.extend(self.cancel_call(&pending));
        self.external_cancels.insert(id, pending);
        Ok(())
    }

    /// The namespace that a command names; not naming one means this run's.
    pub(crate) fn target(&self, env: &Env, namespace: &str) -> Target {
        let known = if namespace.is_empty() {
            env.namespaces.by_id(&self.key.namespace_id)
        } else {
            env.namespaces.by_name(namespace)
        };
        match known {
            Some(known) => Target { namespace: known.name.to_string(), namespace_id: known.id.to_string() },
            None => Target { namespace: namespace.to_owned(), namespace_id: String::new() },
        }
    }

    /// Workflows do not reach themselves, nor what is in a namespace that does not exist.
    fn unreachable(&self, target: &Target, execution: &WorkflowExecution) -> Option<Unreached> {
        if target.namespace_id.is_empty() {
            return Some(Unreached::NoNamespace);
        }
        let own = target.namespace_id == *self.key.namespace_id && execution.workflow_id == *self.key.workflow_id;
        own.then_some(Unreached::NoWorkflow)
    }

    pub(crate) fn on_external_signal_result(
        &mut self,
        initiated: i64,
        result: Result<WorkflowReply, Error>,
        env: &mut Env,
    ) {
        if !self.is_open() || !is_settled(&result) {
            return;
        }
        let Some(pending) = self.external_signals.remove(&initiated) else {
            return;
        };
        let Some(attributes) = signal_initiated(&pending) else {
            return;
        };
        let namespace = self.target(env, &attributes.namespace).namespace;
        let event = match &result {
            Ok(_) => signaled(initiated, attributes, namespace),
            Err(error) => signal_failed(initiated, attributes, namespace, Unreached::from(error).for_signal()),
        };
        self.add_external(env.now, event);
        self.ensure_workflow_task(env);
    }

    pub(crate) fn on_external_cancel_result(
        &mut self,
        initiated: i64,
        result: Result<WorkflowReply, Error>,
        env: &mut Env,
    ) {
        if !self.is_open() || !is_settled(&result) {
            return;
        }
        let Some(pending) = self.external_cancels.remove(&initiated) else {
            return;
        };
        let Some(attributes) = cancel_initiated(&pending) else {
            return;
        };
        let namespace = self.target(env, &attributes.namespace).namespace;
        let event = match &result {
            Ok(_) => Attributes::ExternalWorkflowExecutionCancelRequestedEventAttributes(
                ExternalWorkflowExecutionCancelRequestedEventAttributes {
                    initiated_event_id: initiated,
                    namespace,
                    namespace_id: attributes.namespace_id.clone(),
                    workflow_execution: attributes.workflow_execution.clone(),
                },
            ),
            Err(error) => cancel_failed(initiated, attributes, namespace, Unreached::from(error).for_cancel()),
        };
        self.add_external(env.now, event);
        self.ensure_workflow_task(env);
    }
}

/// Why a call came to nothing.
#[derive(Debug, Clone, Copy)]
enum Unreached {
    NoNamespace,
    NoWorkflow,
    /// The target takes no more signals.
    Refused,
}

impl From<&Error> for Unreached {
    fn from(error: &Error) -> Self {
        if is_namespace_not_found(error) {
            Self::NoNamespace
        } else if error.grpc_code() == Code::InvalidArgument {
            Self::Refused
        } else {
            Self::NoWorkflow
        }
    }
}

impl Unreached {
    fn for_signal(self) -> SignalFailed {
        match self {
            Self::NoNamespace => SignalFailed::NamespaceNotFound,
            Self::NoWorkflow => SignalFailed::ExternalWorkflowExecutionNotFound,
            Self::Refused => SignalFailed::SignalCountLimitExceeded,
        }
    }

    fn for_cancel(self) -> CancelFailed {
        match self {
            Self::NoNamespace => CancelFailed::NamespaceNotFound,
            Self::NoWorkflow | Self::Refused => CancelFailed::ExternalWorkflowExecutionNotFound,
        }
    }
}

#[allow(deprecated)]
fn signaled(
    initiated_event_id: i64,
    initiated: &SignalExternalWorkflowExecutionInitiatedEventAttributes,
    namespace: String,
) -> Attributes {
    Attributes::ExternalWorkflowExecutionSignaledEventAttributes(ExternalWorkflowExecutionSignaledEventAttributes {
        initiated_event_id,
        namespace,
        namespace_id: initiated.namespace_id.clone(),
        workflow_execution: initiated.workflow_execution.clone(),
        control: initiated.control.clone(),
    })
}

#[allow(deprecated)]
fn signal_failed(
    initiated_event_id: i64,
    initiated: &SignalExternalWorkflowExecutionInitiatedEventAttributes,
    namespace: String,
    cause: SignalFailed,
) -> Attributes {
    Attributes::SignalExternalWorkflowExecutionFailedEventAttributes(
        SignalExternalWorkflowExecutionFailedEventAttributes {
            cause: cause as i32,
            namespace,
            namespace_id: initiated.namespace_id.clone(),
            workflow_execution: initiated.workflow_execution.clone(),
            initiated_event_id,
            control: initiated.control.clone(),
            ..SignalExternalWorkflowExecutionFailedEventAttributes::default()
        },
    )
}

fn cancel_failed(
    initiated_event_id: i64,
    initiated: &RequestCancelExternalWorkflowExecutionInitiatedEventAttributes,
    namespace: String,
    cause: CancelFailed,
) -> Attributes {
    Attributes::RequestCancelExternalWorkflowExecutionFailedEventAttributes(
        RequestCancelExternalWorkflowExecutionFailedEventAttributes {
            cause: cause as i32,
            namespace,
            namespace_id: initiated.namespace_id.clone(),
            workflow_execution: initiated.workflow_execution.clone(),
            initiated_event_id,
            ..RequestCancelExternalWorkflowExecutionFailedEventAttributes::default()
        },
    )
}

/// What is wrong with the execution that a command names.
struct BadTarget {
    what: String,
    place: String,
}

impl BadTarget {
    fn text(&self, command: &str) -> String {
        format!("{} {}", self.what.replace("{command}", command), self.place)
    }
}

fn check_target(execution: &WorkflowExecution, namespace: &str, env: &Env) -> Result<(), BadTarget> {
    let WorkflowExecution { workflow_id, run_id } = execution;
    let limit = env.limits.max_id_length;
    let place = format!("WorkflowId={workflow_id} RunId={run_id} Namespace={namespace}");
    let bad = |what: &str| Err(BadTarget { what: what.to_owned(), place: place.clone() });
    if workflow_id.is_empty() {
        return bad("WorkflowId is not set on {command}.");
    }
    for (name, value) in [("Namespace", namespace), ("WorkflowId", workflow_id)] {
        let length = value.len();
        if length as i64 > limit {
            return Err(BadTarget {
                what: format!("{name} on {{command}} exceeds length limit."),
                place: format!("{place} Length={length} Limit={limit}"),
            });
        }
    }
    if !run_id.is_empty() && uuid::Uuid::try_parse(run_id).is_err() {
        return bad("Invalid RunId set on {command}.");
    }
    Ok(())
}
