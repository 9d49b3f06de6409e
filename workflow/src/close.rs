//! Closing a run: by its own commands, by its timeouts, and what every close has in common.

use perdure_proto::{
    Error,
    perdure::{
        node::v1::{
            ChildWorkflowClosed, ScheduleCommand, ScheduledWorkflowClosed, WorkflowCall, WorkflowReply,
            schedule_command, workflow_call::Command,
        },
        state::v1::ScheduleRef,
    },
    temporal::api::{
        command::v1::{
            CancelWorkflowExecutionCommandAttributes, CompleteWorkflowExecutionCommandAttributes,
            FailWorkflowExecutionCommandAttributes,
        },
        enums::v1::{RetryState, TimeoutType, WorkflowExecutionStatus, WorkflowTaskFailedCause as Cause},
        history::v1::{
            HistoryEvent, WorkflowExecutionCanceledEventAttributes, WorkflowExecutionCompletedEventAttributes,
            WorkflowExecutionFailedEventAttributes, WorkflowExecutionTimedOutEventAttributes,
            history_event::Attributes,
        },
    },
};
use perdure_types::EntityKind;
use prost::Message;

use crate::{
    activity_retry::timeout_failure,
    api::{CallId, CallKind, Effect, Env},
    command::{BadCommand, CommandContext, CommandResult},
    external_calls::is_settled,
    limits::check_payload_bytes,
    run::Run,
};

impl Run {
    pub(crate) fn complete_workflow_command(
        &mut self,
        env: &mut Env,
        ctx: &CommandContext,
        command: CompleteWorkflowExecutionCommandAttributes,
    ) -> CommandResult {
        let size = command.result.as_ref().map_or(0, Message::encoded_len);
        let message = "CompleteWorkflowExecutionCommandAttributes.Result exceeds size limit.";
        check_payload_bytes(env, size, Cause::BadCompleteWorkflowExecutionAttributes, message)?;
        if !self.is_open() {
            return Ok(());
        }
        let next = self.next_cron_run(env);
        let attributes = WorkflowExecutionCompletedEventAttributes {
            result: command.result.clone(),
            workflow_task_completed_event_id: ctx.completed_event_id,
            new_execution_run_id: next.as_ref().map(|next| next.run_id.clone()).unwrap_or_default(),
        };
        self.close(env, ctx.event(Attributes::WorkflowExecutionCompletedEventAttributes(attributes)));
        if let Some(next) = next {
            self.begin_successor(env, next, command.result, None);
        }
        Ok(())
    }

    pub(crate) fn fail_workflow_command(
        &mut self,
        env: &mut Env,
        ctx: &CommandContext,
        command: FailWorkflowExecutionCommandAttributes,
    ) -> CommandResult {
        const CAUSE: Cause = Cause::BadFailWorkflowExecutionAttributes;
        let Some(failure) = command.failure else {
            return Err(BadCommand::new(CAUSE, "Failure is not set on FailWorkflowExecutionCommand."));
        };
        let message = "FailWorkflowExecutionCommandAttributes.Failure exceeds size limit.";
        check_payload_bytes(env, failure.encoded_len(), CAUSE, message)?;
        if !self.is_open() {
            return Ok(());
        }
        let (retry_state, next) = self.next_run_after(env, &failure);
        let attributes = WorkflowExecutionFailedEventAttributes {
            failure: Some(failure.clone()),
            retry_state: retry_state as i32,
            workflow_task_completed_event_id: ctx.completed_event_id,
            new_execution_run_id: next.as_ref().map(|next| next.run_id.clone()).unwrap_or_default(),
        };
        self.close(env, ctx.event(Attributes::WorkflowExecutionFailedEventAttributes(attributes)));
        if let Some(next) = next {
            let last_result = self.start().last_completion_result.clone();
            self.begin_successor(env, next, last_result, Some(failure));
        }
        Ok(())
    }

    pub(crate) fn cancel_workflow_command(
        &mut self,
        env: &mut Env,
        ctx: &CommandContext,
        command: CancelWorkflowExecutionCommandAttributes,
    ) -> CommandResult {
        let size = command.details.as_ref().map_or(0, Message::encoded_len);
        let message = "CancelWorkflowExecutionCommandAttributes.Details exceeds size limit.";
        check_payload_bytes(env, size, Cause::BadCancelWorkflowExecutionAttributes, message)?;
        if !self.is_open() {
            return Ok(());
        }
        let attributes = WorkflowExecutionCanceledEventAttributes {
            workflow_task_completed_event_id: ctx.completed_event_id,
            details: command.details,
        };
        self.close(env, ctx.event(Attributes::WorkflowExecutionCanceledEventAttributes(attributes)));
        Ok(())
    }

    /// The run's or the execution's deadline has passed. A run may be followed by its retry or the next one of its cron
    /// schedule; an execution whose time is up may not.
    pub(crate) fn time_out(&mut self, env: &mut Env) {
        if !self.is_open() {
            return;
        }
        let failure = timeout_failure("workflow timeout", TimeoutType::StartToClose);
        let execution_deadline = self.info.execution_deadline_ns;
        let time_is_up = execution_deadline != 0 && execution_deadline <= env.now.as_nanos();
        let (retry_state, next) =
            if time_is_up { (RetryState::Timeout, None) } else { self.next_run_after(env, &failure) };
        self.force_out_workflow_task(env);
        let attributes = WorkflowExecutionTimedOutEventAttributes {
            retry_state: retry_state as i32,
            new_execution_run_id: next.as_ref().map(|next| next.run_id.clone()).unwrap_or_default(),
        };
        let attributes = Attributes::WorkflowExecutionTimedOutEventAttributes(attributes);
        self.close(env, HistoryEvent { attributes: Some(attributes), ..HistoryEvent::default() });
        if let Some(next) = next {
            let last_result = self.start().last_completion_result.clone();
            self.begin_successor(env, next, last_result, Some(failure));
        }
    }

    /// Writes the closing event and lets go of everything that was pending. The workflow task must have been ended.
    pub(crate) fn close(&mut self, env: &mut Env, event: HistoryEvent) {
        let (status, new_run_id) = event.attributes.as_ref().map_or_else(Default::default, closing);
        let retention = env.namespaces.by_id(&self.key.namespace_id).map(|namespace| namespace.retention);
        self.add_prepared(env.now, event);
        let Some(event) = self.last_new_event() else {
            return;
        };
        let batch_id = self.new_events.first().map_or(event.event_id, |first| first.event.event_id);
        *self.close_event.edit() = Some(event);

        let has_parent = self.has_parent();
        let info = self.info.edit();
        info.set_status(status);
        info.close_time_ns = info.last_event_time_ns;
        info.completion_event_batch_id = batch_id;
        info.parent_notified |= !has_parent || !new_run_id.is_empty();
        info.new_execution_run_id = new_run_id;
        info.workflow_task = None;
        info.sticky = None;
        info.retention_deadline_ns = retention.map_or(0, |retention| info.close_time_ns.saturating_add(retention.0));

        self.drop_pending();
        self.effects.extend(self.parent_notification());
        self.close_children();
        self.call_back(env);
    }

    /// What has been begun is not waited for any more; what has not even been sent is not sent. Activities stay to be seen in
    /// descriptions: nothing becomes of them.
    fn drop_pending(&mut self) {
        self.delayed.activities.clear();
        clear(&mut self.timers);
        clear(&mut self.external_signals);
        clear(&mut self.external_cancels);
        clear(&mut self.nexus_operations);
        if !self.buffered.is_empty() {
            self.buffered.edit().clear();
        }
        self.drop_unsent_children();
        self.effects.clear();
    }

    /// Somebody is to be told how this chain of runs ends: the workflow, or the schedule, that has started it.
    pub(crate) fn has_parent(&self) -> bool {
        self.info.schedule.is_some() || self.start().parent_workflow_execution.is_some()
    }

    /// The call that tells the parent (or schedule) how its child ended, until the parent has it.
    pub(crate) fn parent_notification(&self) -> Option<Effect> {
        if self.is_open() || self.info.parent_notified {
            return None;
        }
        if let Some(schedule) = &self.info.schedule {
            return Some(self.schedule_notification(schedule));
        }
        let start = self.start();
        let parent = start.parent_workflow_execution.as_ref()?;
        let command = ChildWorkflowClosed {
            run_id: parent.run_id.clone(),
            initiated_event_id: start.parent_initiated_event_id,
            child_execution: Some(self.execution()),
            child_workflow_type: start.workflow_type.clone(),
            close_event: self.close_event.as_ref().map(|event| (**event).clone()),
            first_execution_run_id: start.first_execution_run_id.clone(),
        };
        Some(Effect::Call {
            id: CallId { run_id: self.run_id.clone(), kind: CallKind::NotifyParent, event_id: 0 },
            call: Box::new(WorkflowCall {
                namespace_id: start.parent_workflow_namespace_id.clone(),
                workflow_id: parent.workflow_id.clone(),
                command: Some(Command::ChildClosed(Box::new(command))),
                ..WorkflowCall::default()
            }),
        })
    }

    fn schedule_notification(&self, schedule: &ScheduleRef) -> Effect {
        let closed = ScheduledWorkflowClosed {
            schedule: Some(schedule.clone()),
            workflow_id: self.key.workflow_id.to_string(),
            first_execution_run_id: self.start().first_execution_run_id.clone(),
            run_id: self.run_id.clone(),
            close_event: self.close_event.as_ref().map(|event| (**event).clone()),
        };
        let command = ScheduleCommand { command: Some(schedule_command::Command::WorkflowClosed(closed)) };
        Effect::Call {
            id: CallId { run_id: self.run_id.clone(), kind: CallKind::NotifyParent, event_id: 0 },
            call: Box::new(WorkflowCall {
                namespace_id: self.key.namespace_id.to_string(),
                workflow_id: schedule.schedule_id.clone(),
                kind: EntityKind::Schedule.number(),
                command: Some(Command::Schedule(Box::new(command))),
            }),
        }
    }

    /// A parent that is gone, closed, or knows of the close already need not be told again.
    pub(crate) fn on_parent_notified(&mut self, result: Result<WorkflowReply, Error>) {
        if is_settled(&result) && !self.is_open() && !self.info.parent_notified {
            self.info.edit().parent_notified = true;
        }
    }
}

pub(crate) fn clear<K: Ord + Clone, V: Clone>(pending: &mut crate::tracked::Tracked<K, V>) {
    let keys: Vec<K> = pending.keys().cloned().collect();
    for key in keys {
        pending.remove(&key);
    }
}

/// How a closing event ends its run, and the run that follows.
fn closing(attributes: &Attributes) -> (WorkflowExecutionStatus, String) {
    use Attributes as A;
    use WorkflowExecutionStatus as S;
    match attributes {
        A::WorkflowExecutionCompletedEventAttributes(a) => (S::Completed, a.new_execution_run_id.clone()),
        A::WorkflowExecutionFailedEventAttributes(a) => (S::Failed, a.new_execution_run_id.clone()),
        A::WorkflowExecutionTimedOutEventAttributes(a) => (S::TimedOut, a.new_execution_run_id.clone()),
        A::WorkflowExecutionContinuedAsNewEventAttributes(a) => (S::ContinuedAsNew, a.new_execution_run_id.clone()),
        A::WorkflowExecutionCanceledEventAttributes(_) => (S::Canceled, String::new()),
        _ => (S::Terminated, String::new()),
    }
}
