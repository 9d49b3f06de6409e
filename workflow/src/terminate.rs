//! Termination: wins over everything, whatever the workflow's worker is doing.

use perdure_proto::{
    Error,
    perdure::{node::v1::TerminateWorkflow, state::v1::workflow_task_info::Kind},
    temporal::api::{
        common::v1::{Link, Payloads},
        enums::v1::WorkflowTaskFailedCause,
        history::v1::{
            HistoryEvent, WorkflowExecutionTerminatedEventAttributes, WorkflowTaskFailedEventAttributes,
            history_event::Attributes,
        },
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
            self.make_workflow_task_durable();
        }
        let task = self.info.edit().workflow_task.take();
        let Some(task) = task.filter(|task| task.started_event_id != 0) else { return };
        // A retry has left no events so far, so there is nothing to end in the history.
        if task.kind() == Kind::Normal {
            let attributes = WorkflowTaskFailedEventAttributes {
                scheduled_event_id: task.scheduled_event_id,
                started_event_id: task.started_event_id,
                cause: WorkflowTaskFailedCause::ForceCloseCommand as i32,
                identity: SERVER_IDENTITY.to_owned(),
                ..WorkflowTaskFailedEventAttributes::default()
            };
            self.add_event(env.now, Attributes::WorkflowTaskFailedEventAttributes(attributes));
        }
        self.flush_buffered(env.now);
    }
}
