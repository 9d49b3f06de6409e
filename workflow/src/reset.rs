//! ResetWorkflowExecution: a new run that begins with the history of another up to a workflow task, which fails there, so
//! that a worker decides anew. The current run, if it is open, ends. What came after the point is not all lost: see
//! `reapply`.
//!
//! Children that the base run had started stay and belong to the new run; the parent goes on to wait for it.

use perdure_proto::{
    Error,
    perdure::{
        node::v1::{ResetWorkflow, RunHistory, workflow_reply},
        state::v1::ResetInfo,
    },
    temporal::api::{
        common::v1::Payloads,
        enums::v1::{RetryState, WorkflowTaskFailedCause},
        failure::v1::{Failure, ResetWorkflowFailureInfo, failure::FailureInfo},
        history::v1::{
            ActivityTaskFailedEventAttributes, HistoryEvent, WorkflowTaskFailedEventAttributes,
            history_event::Attributes,
        },
        workflow::v1::{PostResetOperation, post_reset_operation::Variant},
        workflowservice::v1::{ResetWorkflowExecutionRequest, ResetWorkflowExecutionResponse},
    },
};
use perdure_types::Duration;
use prost::Message;

use crate::{
    api::Env,
    chain::{Answered, Chain, reply},
    close::clear,
    reapply::Excluded,
    run::Run,
    signal::Signal,
    terminate::SERVER_IDENTITY,
};

/// Who ends a run that is reset, as histories show it.
pub(crate) const RESETTER_IDENTITY: &str = "history-resetter";

/// What a reset copies is one record of the log, and a store may take no row above 16 MiB (Cassandra's usual limit of a
/// mutation): one that it refuses would hold up the shard for ever.
const MOST_COPIED_BYTES: usize = 12 << 20;

fn check_copy(copied: &[HistoryEvent]) -> Result<(), Error> {
    let bytes: usize = copied.iter().map(HistoryEvent::encoded_len).sum();
    if bytes <= MOST_COPIED_BYTES {
        return Ok(());
    }
    let message = format!(
        "The history before the reset point has {bytes} bytes, and at most {MOST_COPIED_BYTES} can be copied: choose an earlier point."
    );
    Err(Error::invalid_argument(message))
}

/// A reset, with its new run named.
struct Reset {
    request: ResetWorkflowExecutionRequest,
    base_run_id: String,
    run_id: String,
}

impl Chain {
    pub(crate) fn reset(&mut self, command: ResetWorkflow, env: &mut Env) -> Answered {
        let request = command.request.ok_or_else(|| Error::invalid_argument("Request is not set."))?;
        self.check_namespace(&request.namespace, env)?;
        let named = request.workflow_execution.as_ref().map_or("", |execution| &execution.run_id);
        let base = self.run(named)?;
        let (base_run_id, next_event_id) = (base.run_id.clone(), base.info.next_event_id);
        if let Some(run_id) = self.seen_reset(&request.request_id) {
            return reset_reply(run_id);
        }
        let mut histories = command.histories.into_iter();
        let events = histories.next().filter(|history| history.run_id == base_run_id).map(events).unwrap_or_default();
        if events.len() as i64 != next_event_id - 1 {
            // It went on while its history was read.
            return Err(Error::unavailable("the workflow is changing, try again"));
        }
        let finish = match &command.options {
            Some(options) => self.run(&base_run_id)?.reset_point(&events, options)?,
            None => request.workflow_task_finish_event_id,
        };
        if finish <= 1 || finish >= next_event_id {
            let message = "Workflow task finish ID must be > 1 && <= workflow last event ID.";
            return Err(Error::invalid_argument(message));
        }
        let mut copied = events;
        let mut later = copied.split_off(finish as usize - 1);
        check_copy(&copied)?;
        let reset = Reset { base_run_id, run_id: env.ids.uuid(), request };
        let late = self.end_current_run(&reset, env);
        let mut last_run_id = reset.base_run_id.clone();
        for history in histories {
            last_run_id = history.run_id.clone();
            later.extend(self::events(history));
        }
        if last_run_id == self.current_run_id() {
            later.extend(late);
        }
        self.begin_reset_run(&reset, copied, &later, env)?;
        reset_reply(reset.run_id)
    }

    /// The run that this very request has begun before.
    fn seen_reset(&mut self, request_id: &str) -> Option<String> {
        let current = self.current()?;
        let reset = current.info.reset.as_ref()?;
        (!request_id.is_empty() && reset.request_id == request_id).then(|| current.run_id.clone())
    }

    /// Terminates the current run. Gives what it wrote doing so: what had waited for a workflow task's end is there.
    fn end_current_run(&mut self, reset: &Reset, env: &mut Env) -> Vec<HistoryEvent> {
        let is_base = self.current_run_id() == reset.base_run_id;
        let Some(current) = self.current().filter(|run| run.is_open()) else {
            return Vec::new();
        };
        // The parent waits for the new run, and so do the children.
        current.info.edit().parent_notified = true;
        if is_base {
            clear(&mut current.children);
            current.info.edit().reset_run_id = reset.run_id.clone();
        }
        current.terminate_run(env, &reset.request.reason, None, RESETTER_IDENTITY, Vec::new());
        current.new_events.iter().map(|new| (*new.event).clone()).collect()
    }

    fn begin_reset_run(
        &mut self,
        reset: &Reset,
        copied: Vec<HistoryEvent>,
        later: &[HistoryEvent],
        env: &mut Env,
    ) -> Result<(), Error> {
        let key = self.key().clone();
        let Some(base) = self.runs.get_mut(&reset.base_run_id) else {
            return Err(Error::internal("the run to reset is gone"));
        };
        base.info.edit().reset_run_id = reset.run_id.clone();
        let mut run = Run::rebuilt(key, reset.run_id.clone(), copied, base, env);
        run.become_reset_run(reset, base, env)?;
        run.reapply(later, &Excluded::of(&reset.request), base, env);
        for operation in &reset.request.post_reset_operations {
            run.after_reset(operation, &reset.request.identity, env)?;
        }
        run.schedule_workflow_task(env, env.now);
        run.resume_pending(env);
        self.set_current(&reset.run_id);
        self.runs.insert(reset.run_id.clone(), Box::new(run));
        Ok(())
    }
}

impl Run {
    fn become_reset_run(&mut self, reset: &Reset, base: &Run, env: &Env) -> Result<(), Error> {
        let base_event_id = self.info.next_event_id - 1;
        let start = self.start();
        let timeout = |field: &Option<prost_types::Duration>| Duration::from_proto(field.as_ref()).or_none();
        let execution = timeout(&start.workflow_execution_timeout).map_or(0, |t| (env.now + t).as_nanos());
        let run = timeout(&start.workflow_run_timeout).map_or(0, |t| (env.now + t).as_nanos());
        let info = self.info.edit();
        info.start_time_ns = env.now.as_nanos();
        info.execution_deadline_ns = execution;
        info.run_deadline_ns = if run == 0 || (execution != 0 && execution < run) { execution } else { run };
        info.schedule = base.info.schedule.clone();
        info.reset = Some(Box::new(ResetInfo {
            base_run_id: reset.base_run_id.clone(),
            base_event_id,
            request_id: reset.request.request_id.clone(),
        }));
        self.fail_task_by_reset(reset, base_event_id + 1, env)?;
        self.fail_running_activities(&reset.request.reason, env);
        Ok(())
    }

    fn fail_task_by_reset(&mut self, reset: &Reset, finish_event_id: i64, env: &Env) -> Result<(), Error> {
        let Some(task) = self.workflow_task().cloned() else {
            return Err(Error::invalid_argument(format!(
                "Can only reset workflow to event ID in range [WorkflowTaskScheduled +1, WorkflowTaskStarted + 1]: {finish_event_id}"
            )));
        };
        if task.started_event_id == 0 {
            self.start_workflow_task(env, SERVER_IDENTITY, &task.request_id);
        }
        let started_event_id = self.workflow_task().map_or(0, |task| task.started_event_id);
        let attributes = WorkflowTaskFailedEventAttributes {
            scheduled_event_id: task.scheduled_event_id,
            started_event_id,
            cause: WorkflowTaskFailedCause::ResetWorkflow as i32,
            failure: Some(reset_failure(&reset.request.reason, None)),
            identity: SERVER_IDENTITY.to_owned(),
            base_run_id: reset.base_run_id.clone(),
            new_run_id: reset.run_id.clone(),
            ..WorkflowTaskFailedEventAttributes::default()
        };
        self.info.edit().workflow_task = None;
        self.add_event(env.now, Attributes::WorkflowTaskFailedEventAttributes(attributes));
        Ok(())
    }

    /// Nobody will hear of what workers do for the base run. What waits begins anew.
    fn fail_running_activities(&mut self, reason: &str, env: &Env) {
        let ids: Vec<i64> = self.activities.keys().copied().collect();
        for id in ids {
            let Some(activity) = self.activities.get_mut(&id) else {
                continue;
            };
            if !activity.is_started() {
                let schedule_to_close = activity.schedule_to_close();
                let info = &mut activity.info;
                info.scheduled_time_ns = env.now.as_nanos();
                info.first_scheduled_time_ns = env.now.as_nanos();
                info.expiration_time_ns = schedule_to_close.or_none().map_or(0, |t| (env.now + t).as_nanos());
                continue;
            }
            let started_event_id = self.started_event_of(id);
            let Some(activity) = self.activities.remove(&id) else {
                continue;
            };
            let details = activity.info.heartbeat_details;
            let attributes = Attributes::ActivityTaskFailedEventAttributes(ActivityTaskFailedEventAttributes {
                failure: Some(reset_failure(reason, details)),
                scheduled_event_id: id,
                started_event_id,
                identity: activity.info.identity,
                retry_state: RetryState::NonRetryableFailure as i32,
                ..ActivityTaskFailedEventAttributes::default()
            });
            self.add_event(env.now, attributes);
        }
    }

    /// The Started event among those of the transition under way.
    fn started_event_of(&self, scheduled_event_id: i64) -> i64 {
        let started = |event: &HistoryEvent| match &event.attributes {
            Some(Attributes::ActivityTaskStartedEventAttributes(a)) => a.scheduled_event_id == scheduled_event_id,
            _ => false,
        };
        self.new_events.iter().rev().find(|new| started(&new.event)).map_or(0, |new| new.event.event_id)
    }

    fn after_reset(&mut self, operation: &PostResetOperation, identity: &str, env: &mut Env) -> Result<(), Error> {
        match &operation.variant {
            Some(Variant::SignalWorkflow(signal)) => {
                let signal = Signal {
                    name: signal.signal_name.clone(),
                    input: signal.input.clone(),
                    identity: identity.to_owned(),
                    header: signal.header.clone(),
                    links: signal.links.clone(),
                    ..Signal::default()
                };
                self.record_signal(env, signal);
                Ok(())
            }
            Some(Variant::UpdateWorkflowOptions(update)) => {
                let options = update.workflow_execution_options.clone().unwrap_or_default();
                let paths = update.update_mask.as_ref().map(|mask| mask.paths.as_slice()).unwrap_or_default();
                self.change_options(env, &options, paths, identity).map(drop)
            }
            None => Err(Error::invalid_argument("unsupported post reset operation: <nil>")),
        }
    }

    /// Offers and calls that the run has outstanding from its first moment on.
    fn resume_pending(&mut self, env: &Env) {
        let calls = self.outstanding_calls();
        self.effects.extend(calls);
        let activities: Vec<i64> = self.activities.keys().copied().collect();
        for id in activities {
            self.offer_activity_when_due(id, env.now);
        }
    }
}

fn events(history: RunHistory) -> Vec<HistoryEvent> {
    history.history.map(|history| history.events).unwrap_or_default()
}

fn reset_reply(run_id: String) -> Answered {
    reply(workflow_reply::Reply::Reset(ResetWorkflowExecutionResponse { run_id }))
}

fn reset_failure(reason: &str, last_heartbeat_details: Option<Payloads>) -> Failure {
    Failure {
        message: reason.to_owned(),
        failure_info: Some(FailureInfo::ResetWorkflowFailureInfo(ResetWorkflowFailureInfo { last_heartbeat_details })),
        ..Failure::default()
    }
}

#[cfg(test)]
mod tests {
    use perdure_proto::temporal::api::{common::v1::Payload, history::v1::WorkflowExecutionSignaledEventAttributes};

    use super::*;

    fn signal(bytes: usize) -> HistoryEvent {
        let payload = Payload { data: vec![0; bytes].into(), ..Payload::default() };
        let attributes = WorkflowExecutionSignaledEventAttributes {
            input: Some(Payloads { payloads: vec![payload] }),
            ..WorkflowExecutionSignaledEventAttributes::default()
        };
        HistoryEvent {
            attributes: Some(Attributes::WorkflowExecutionSignaledEventAttributes(attributes)),
            ..HistoryEvent::default()
        }
    }

    #[test]
    fn no_more_is_copied_than_a_store_takes_in_one_row() {
        let mib = 1 << 20;
        let below: Vec<HistoryEvent> = (0..11).map(|_| signal(mib)).collect();
        assert_eq!(check_copy(&below), Ok(()));
        let above: Vec<HistoryEvent> = (0..12).map(|_| signal(mib)).collect();
        let error = check_copy(&above).expect_err("refused");
        assert!(error.message.contains("choose an earlier point"), "{error}");
    }
}
