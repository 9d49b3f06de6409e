//! The calls that a run has outstanding with other workflows, made from its state: so a call that was lost is made again.

use perdure_proto::{
    Code, Error,
    perdure::{
        node::v1::{RequestCancelWorkflow, SignalWorkflow, WorkflowCall, WorkflowReply, workflow_call::Command},
        state::v1::{ExternalCancelInfo, ExternalSignalInfo},
    },
    temporal::api::{
        common::v1::WorkflowExecution,
        history::v1::{
            RequestCancelExternalWorkflowExecutionInitiatedEventAttributes,
            SignalExternalWorkflowExecutionInitiatedEventAttributes, history_event::Attributes,
        },
        workflowservice::v1::{RequestCancelWorkflowExecutionRequest, SignalWorkflowExecutionRequest},
    },
};

use crate::{
    api::{CallId, CallKind, Effect},
    run::{Pending, Run},
    terminate::SERVER_IDENTITY,
};

impl Run {
    /// All calls without a result, from state.
    pub(crate) fn outstanding_calls(&self) -> Vec<Effect> {
        let signals = self.external_signals.values().filter_map(|pending| self.signal_call(pending));
        let cancels = self.external_cancels.values().filter_map(|pending| self.cancel_call(pending));
        let calls = self.child_calls().into_iter().chain(signals).chain(cancels).chain(self.parent_notification());
        calls.chain(self.nexus_calls()).chain(self.callback_calls()).collect()
    }

    /// Is somebody still to be told of the end of this closed run? Then it stays within reach.
    pub(crate) fn is_unsettled(&self) -> bool {
        !self.is_open() && (self.is_waited_for() || self.has_callbacks_to_make())
    }

    /// Must a closed run stay, because somebody relies on hearing of its end?
    pub(crate) fn is_waited_for(&self) -> bool {
        !self.children.is_empty() || (self.has_parent() && !self.info.parent_notified) || self.is_calling_back()
    }

    /// The call to make, unless it has to wait until this run's child has started.
    pub(crate) fn signal_call(&self, pending: &Pending<ExternalSignalInfo>) -> Option<Effect> {
        let initiated = signal_initiated(pending)?;
        let execution = initiated.workflow_execution.as_ref()?;
        if self.awaits_child(&initiated.namespace_id, execution, pending.info.initiated_event_id) {
            return None;
        }
        let command = Command::Signal(SignalWorkflow {
            request: Some(SignalWorkflowExecutionRequest {
                namespace: initiated.namespace.clone(),
                workflow_execution: Some(execution.clone()),
                signal_name: initiated.signal_name.clone(),
                input: initiated.input.clone(),
                identity: SERVER_IDENTITY.to_owned(),
                request_id: pending.info.request_id.clone(),
                header: initiated.header.clone(),
                ..SignalWorkflowExecutionRequest::default()
            }),
            external_execution: Some(self.execution()),
            child_workflow_only: initiated.child_workflow_only,
        });
        let call = call(&initiated.namespace_id, &execution.workflow_id, command);
        Some(self.call_effect(CallKind::SignalExternal, pending.info.initiated_event_id, call))
    }

    pub(crate) fn cancel_call(&self, pending: &Pending<ExternalCancelInfo>) -> Option<Effect> {
        let initiated = cancel_initiated(pending)?;
        let execution = initiated.workflow_execution.as_ref()?;
        let id = pending.info.initiated_event_id;
        if self.awaits_child(&initiated.namespace_id, execution, id) {
            return None;
        }
        let command = Command::RequestCancel(RequestCancelWorkflow {
            request: Some(RequestCancelWorkflowExecutionRequest {
                namespace: initiated.namespace.clone(),
                workflow_execution: Some(execution.clone()),
                identity: SERVER_IDENTITY.to_owned(),
                request_id: pending.info.request_id.clone(),
                reason: initiated.reason.clone(),
                ..RequestCancelWorkflowExecutionRequest::default()
            }),
            external_execution: Some(self.execution()),
            external_initiated_event_id: id,
            child_workflow_only: initiated.child_workflow_only,
        });
        let call = call(&initiated.namespace_id, &execution.workflow_id, command);
        Some(self.call_effect(CallKind::CancelExternal, id, call))
    }

    pub(crate) fn call_effect(&self, kind: CallKind, event_id: i64, call: WorkflowCall) -> Effect {
        Effect::Call { id: CallId { run_id: self.run_id.clone(), kind, event_id }, call: Box::new(call) }
    }

    /// Sends what waited for this child's start.
    pub(crate) fn release_calls_to_child(&mut self, namespace_id: &str, workflow_id: &str, initiated_event_id: i64) {
        let to_child = |ns: &str, execution: &Option<WorkflowExecution>| {
            ns == namespace_id
                && execution.as_ref().is_some_and(|e| e.workflow_id == workflow_id && e.run_id.is_empty())
        };
        let signals = self.external_signals.range(initiated_event_id..).map(|(_, pending)| pending);
        let signals = signals
            .filter(|pending| {
                signal_initiated(pending).is_some_and(|i| to_child(&i.namespace_id, &i.workflow_execution))
            })
            .filter_map(|pending| self.signal_call(pending));
        let cancels = self.external_cancels.range(initiated_event_id..).map(|(_, pending)| pending);
        let cancels = cancels
            .filter(|pending| {
                cancel_initiated(pending).is_some_and(|i| to_child(&i.namespace_id, &i.workflow_execution))
            })
            .filter_map(|pending| self.cancel_call(pending));
        let released: Vec<Effect> = signals.chain(cancels).collect();
        self.effects.extend(released);
    }
}

pub(crate) fn is_namespace_not_found(error: &Error) -> bool {
    error.detail.as_ref().is_some_and(|detail| detail.type_url.ends_with("NamespaceNotFoundFailure"))
}

/// Asking again would not change the answer.
pub(crate) fn is_settled(result: &Result<WorkflowReply, Error>) -> bool {
    match result {
        Ok(_) => true,
        Err(error) => matches!(
            error.grpc_code(),
            Code::NotFound
                | Code::AlreadyExists
                | Code::InvalidArgument
                | Code::FailedPrecondition
                | Code::PermissionDenied
        ),
    }
}

pub(crate) fn call(namespace_id: &str, workflow_id: &str, command: Command) -> WorkflowCall {
    WorkflowCall {
        namespace_id: namespace_id.to_owned(),
        workflow_id: workflow_id.to_owned(),
        command: Some(command),
        ..WorkflowCall::default()
    }
}

pub(crate) fn signal_initiated(
    pending: &Pending<ExternalSignalInfo>,
) -> Option<&SignalExternalWorkflowExecutionInitiatedEventAttributes> {
    match &pending.event.attributes {
        Some(Attributes::SignalExternalWorkflowExecutionInitiatedEventAttributes(attributes)) => Some(attributes),
        _ => None,
    }
}

pub(crate) fn cancel_initiated(
    pending: &Pending<ExternalCancelInfo>,
) -> Option<&RequestCancelExternalWorkflowExecutionInitiatedEventAttributes> {
    match &pending.event.attributes {
        Some(Attributes::RequestCancelExternalWorkflowExecutionInitiatedEventAttributes(attributes)) => {
            Some(attributes)
        }
        _ => None,
    }
}
