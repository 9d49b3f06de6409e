//! Termination: wins over everything, whatever the workflow's worker is doing.

use perdure_proto::{
    Error,
    perdure::node::v1::TerminateWorkflow,
    temporal::api::{
        common::v1::{Link, Payloads},
        enums::v1::WorkflowTaskFailedCause,
        history::v1::{HistoryEvent, WorkflowExecutionTerminatedEventAttributes, history_event::Attributes},
    },
};

use crate::{
    api::Env,
    chain::{Answered, Chain, empty_reply},
    run::Run,
};

/// Who acts when the server itself does, as histories show it.
pub(crate) const SERVER_IDENTITY: &str = "history-service";

impl Chain {
    pub(crate) fn terminate(&mut self, command: TerminateWorkflow, env: &mut Env) -> Answered {
        let request = command.request.unwrap_or_default();
        self.check_namespace(&request.namespace, env)?;
        let run = self.run_of_chain(request.workflow_execution.as_ref(), &request.first_execution_run_id)?;
        if !run.is_open() {
            return Err(Error::not_found("workflow execution already completed"));
        }
        run.check_first_execution(&request.first_execution_run_id)?;
        if command.child_workflow_only {
            run.check_parent(command.external_execution.as_ref())?;
        }
        run.terminate_run(env, &request.reason, request.details, &request.identity, request.links);
        empty_reply()
    }
}

impl Run {
    /// Closes the run as terminated.
    pub(crate) fn terminate_run(
        &mut self,
        env: &mut Env,
        reason: &str,
        details: Option<Payloads>,
        identity: &str,
        links: Vec<Link>,
    ) {
        self.force_out_workflow_task(env);
        let attributes = WorkflowExecutionTerminatedEventAttributes {
            reason: reason.to_owned(),
            details,
            identity: identity.to_owned(),
        };
        let event = HistoryEvent {
            links,
            attributes: Some(Attributes::WorkflowExecutionTerminatedEventAttributes(attributes)),
            ..HistoryEvent::default()
        };
        self.close(env, event);
    }

    /// Ends the pending workflow task for a close from outside: a started one fails, and what it held back is written.
    pub(crate) fn force_out_workflow_task(&mut self, env: &Env) {
        if self.workflow_task_is_started() {
            self.fail_workflow_task(env, WorkflowTaskFailedCause::ForceCloseCommand, None, SERVER_IDENTITY, "");
            self.flush_buffered(env.now);
        }
    }
}
