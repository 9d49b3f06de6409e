//! Calls to workflows: start, cancel, terminate; and what becomes of them.

use chrono::{DateTime, SecondsFormat};
use perdure_proto::{
    Code, Error,
    perdure::{
        node::v1::{
            RequestCancelWorkflow, ScheduledWorkflowClosed, StartWorkflow, TerminateWorkflow, WorkflowCall,
            WorkflowReply, schedule_reply, workflow_call::Command, workflow_reply,
        },
        state::v1::{ScheduleRef, ScheduleRun, ScheduleStart},
    },
    temporal::api::{
        common::v1::{Payload, Payloads, SearchAttributes, WorkflowExecution},
        enums::v1::{
            ScheduleOverlapPolicy, WorkflowExecutionStatus as Status, WorkflowIdConflictPolicy, WorkflowIdReusePolicy,
        },
        failure::v1::Failure,
        history::v1::history_event::Attributes,
        schedule::v1::ScheduleActionResult,
        workflowservice::v1::{
            RequestCancelWorkflowExecutionRequest, StartWorkflowExecutionRequest, TerminateWorkflowExecutionRequest,
        },
    },
};
use perdure_types::Timestamp;
use perdure_workflow::{CallId, CallKind, Effect, Env};

use crate::{overlap, schedule::Schedule};

const START: CallKind = CallKind::Other(1);
const CANCEL: CallKind = CallKind::Other(2);
const TERMINATE: CallKind = CallKind::Other(3);

/// Results that a schedule keeps.
const RECENT: usize = 10;
/// Workflows that are watched at the same time; what overlaps on purpose need not be.
const MAX_RUNNING: usize = 1000;

impl Schedule {
    /// Begins an action: it counts from here on, whatever becomes of it.
    pub(crate) fn start(&mut self, mut start: ScheduleStart, incarnation: &str, env: &mut Env) -> Effect {
        if !start.manual && self.has_limited_actions() {
            self.state.remaining_actions -= 1;
            self.state.revision += 1;
        }
        start.overlap = overlap::resolve(start.overlap(), self.overlap_policy()) as i32;
        start.workflow_id = self.workflow_id(Timestamp(start.nominal_time_ns));
        start.request_id = env.ids.uuid();
        start.desired_time_ns = env.now.0;
        let effect = self.start_call(&start, incarnation);
        self.state.starting.push(start);
        self.changed.any = true;
        effect
    }

    fn workflow_id(&self, nominal: Timestamp) -> String {
        let base = self.action().map(|action| action.workflow_id.as_str()).unwrap_or_default();
        if self.policies().keep_original_workflow_id {
            return base.to_owned();
        }
        format!("{base}-{}", rfc3339(nominal))
    }

    fn namespace(&self) -> &str {
        self.state.definition.as_ref().map_or("", |definition| &definition.namespace)
    }

    fn identity(&self) -> String {
        format!("temporal-scheduler-{}-{}", self.namespace(), self.id())
    }

    fn start_call(&self, start: &ScheduleStart, incarnation: &str) -> Effect {
        let action = self.action().cloned().unwrap_or_default();
        // One id for all actions has to be used again.
        let again = start.manual || self.policies().keep_original_workflow_id;
        let reuse = if again { WorkflowIdReusePolicy::AllowDuplicate } else { WorkflowIdReusePolicy::RejectDuplicate };
        let carries = start.overlap() != ScheduleOverlapPolicy::AllowAll;
        let request = StartWorkflowExecutionRequest {
            namespace: self.namespace().to_owned(),
            workflow_id: start.workflow_id.clone(),
            workflow_type: action.workflow_type,
            task_queue: action.task_queue,
            input: action.input,
            workflow_execution_timeout: action.workflow_execution_timeout,
            workflow_run_timeout: action.workflow_run_timeout,
            workflow_task_timeout: action.workflow_task_timeout,
            identity: self.identity(),
            request_id: start.request_id.clone(),
            workflow_id_reuse_policy: reuse as i32,
            workflow_id_conflict_policy: WorkflowIdConflictPolicy::Fail as i32,
            retry_policy: action.retry_policy,
            memo: action.memo,
            search_attributes: Some(self.search_attributes(action.search_attributes, start)),
            header: action.header,
            last_completion_result: self.state.last_completion_result.clone().filter(|_| carries),
            continued_failure: self.state.continued_failure.clone().filter(|_| carries),
            user_metadata: action.user_metadata,
            versioning_override: action.versioning_override,
            priority: action.priority,
            ..StartWorkflowExecutionRequest::default()
        };
        let schedule = Box::new(ScheduleRef { schedule_id: self.id().to_owned(), incarnation: incarnation.to_owned() });
        let command = StartWorkflow { request: Some(request), parent: None, schedule: Some(schedule) };
        self.call(START, start.number, incarnation, &start.workflow_id, Command::Start(Box::new(command)))
    }

    fn search_attributes(&self, own: Option<SearchAttributes>, start: &ScheduleStart) -> SearchAttributes {
        let mut attributes = own.unwrap_or_default();
        let time = rfc3339(Timestamp(start.nominal_time_ns));
        for (name, kind, text) in
            [("TemporalScheduledStartTime", "Datetime", time.as_str()), ("TemporalScheduledById", "Keyword", self.id())]
        {
            attributes.indexed_fields.insert(name.to_owned(), json(quoted(text), kind));
        }
        attributes
    }

    fn call(&self, kind: CallKind, number: i64, incarnation: &str, workflow_id: &str, command: Command) -> Effect {
        Effect::Call {
            id: CallId { run_id: incarnation.to_owned(), kind, event_id: number },
            call: Box::new(WorkflowCall {
                namespace_id: self.key.namespace_id.to_string(),
                workflow_id: workflow_id.to_owned(),
                command: Some(command),
                ..WorkflowCall::default()
            }),
        }
    }

    /// Makes all that runs stop. Those that were told once are not told again, unless more firmly.
    pub(crate) fn stop_running(&mut self, terminate: bool, incarnation: &str) -> Vec<Effect> {
        let mut told = Vec::new();
        for run in &mut self.state.running {
            let wanted = if terminate { !run.terminate_pending } else { !run.stop_requested && !run.cancel_pending };
            if wanted {
                run.stop_requested = true;
                run.cancel_pending = !terminate;
                run.terminate_pending = terminate;
                told.push(run.clone());
            }
        }
        self.changed.any |= !told.is_empty();
        told.iter().filter_map(|run| self.stop_call(run, incarnation)).collect()
    }

    fn stop_call(&self, run: &ScheduleRun, incarnation: &str) -> Option<Effect> {
        let execution = Some(WorkflowExecution { workflow_id: run.workflow_id.clone(), run_id: String::new() });
        let (kind, command) = if run.terminate_pending {
            let request = TerminateWorkflowExecutionRequest {
                workflow_execution: execution,
                reason: "terminated by schedule overlap policy".to_owned(),
                identity: self.identity(),
                first_execution_run_id: run.first_run_id.clone(),
                ..TerminateWorkflowExecutionRequest::default()
            };
            (TERMINATE, Command::Terminate(TerminateWorkflow { request: Some(request), ..Default::default() }))
        } else if run.cancel_pending {
            let request = RequestCancelWorkflowExecutionRequest {
                workflow_execution: execution,
                reason: "cancelled by schedule overlap policy".to_owned(),
                identity: self.identity(),
                request_id: format!("{incarnation}-{}", run.number),
                first_execution_run_id: run.first_run_id.clone(),
                ..RequestCancelWorkflowExecutionRequest::default()
            };
            (CANCEL, Command::RequestCancel(RequestCancelWorkflow { request: Some(request), ..Default::default() }))
        } else {
            return None;
        };
        Some(self.call(kind, run.number, incarnation, &run.workflow_id, command))
    }

    /// All calls without a result, from state.
    pub(crate) fn outstanding(&self, incarnation: &str) -> Vec<Effect> {
        let starts = self.state.starting.iter().map(|start| self.start_call(start, incarnation));
        let stops = self.state.running.iter().filter_map(|run| self.stop_call(run, incarnation));
        starts.chain(stops).collect()
    }

    pub(crate) fn call_result(
        &mut self,
        id: &CallId,
        result: Result<WorkflowReply, Error>,
        env: &mut Env,
    ) -> Vec<Effect> {
        match id.kind {
            START => self.start_result(id.event_id, result),
            _ => {
                if let Some(run) = self.state.running.iter_mut().find(|run| run.number == id.event_id) {
                    run.cancel_pending &= id.kind != CANCEL;
                    run.terminate_pending &= id.kind != TERMINATE;
                    self.changed.any = true;
                    // Not there at all, so nobody will tell of its end. One that has closed does that.
                    let gone = |error: &Error| {
                        error.grpc_code() == Code::NotFound && !error.message.contains("already completed")
                    };
                    if result.is_err_and(|error| gone(&error)) {
                        self.forget_run(id.event_id);
                    }
                }
            }
        }
        self.work_off_buffer(&id.run_id, env)
    }

    fn start_result(&mut self, number: i64, result: Result<WorkflowReply, Error>) {
        let Some(start) = self.take_starting(number) else { return };
        match result.map(|reply| reply.reply) {
            Ok(Some(workflow_reply::Reply::Start(reply))) => self.started(start, reply.run_id),
            Ok(_) => self.drop_action("the workflow's answer is not one to a start"),
            Err(error) => {
                self.drop_action(&format!("workflow {} could not be started: {}", start.workflow_id, error.message));
            }
        }
    }

    fn take_starting(&mut self, number: i64) -> Option<ScheduleStart> {
        let index = self.state.starting.iter().position(|start| start.number == number)?;
        self.changed.any = true;
        Some(self.state.starting.remove(index))
    }

    fn started(&mut self, start: ScheduleStart, run_id: String) {
        self.state.action_count += 1;
        let execution = WorkflowExecution { workflow_id: start.workflow_id.clone(), run_id: run_id.clone() };
        let result = ScheduleActionResult {
            schedule_time: Timestamp(start.actual_time_ns).to_proto(),
            actual_time: Timestamp(start.desired_time_ns).to_proto(),
            start_workflow_result: Some(execution),
            start_workflow_status: Status::Running as i32,
        };
        // The answers to calls made at once come in any order.
        let times = |action: &ScheduleActionResult| {
            let time = |time: &Option<prost_types::Timestamp>| Timestamp::from_proto(time.as_ref());
            (time(&action.actual_time), time(&action.schedule_time))
        };
        let place = self.state.recent.iter().rposition(|known| times(known) <= times(&result)).map_or(0, |i| i + 1);
        self.state.recent.insert(place, result);
        let surplus = self.state.recent.len().saturating_sub(RECENT);
        self.state.recent.drain(..surplus);
        if start.overlap() != ScheduleOverlapPolicy::AllowAll && self.state.running.len() < MAX_RUNNING {
            self.state.running.push(ScheduleRun {
                workflow_id: start.workflow_id,
                first_run_id: run_id,
                number: start.number,
                ..ScheduleRun::default()
            });
        }
        self.changed.any = true;
    }

    fn forget_run(&mut self, number: i64) {
        self.state.running.retain(|run| run.number != number);
        self.changed.any = true;
    }

    /// A workflow tells how it ended. It repeats that until it is answered.
    pub(crate) fn workflow_closed(
        &mut self,
        closed: ScheduledWorkflowClosed,
        incarnation: &str,
        env: &mut Env,
    ) -> (schedule_reply::Reply, Vec<Effect>) {
        let answer = schedule_reply::Reply::Patch(Default::default());
        if closed.schedule.as_ref().is_none_or(|schedule| schedule.incarnation != incarnation) {
            return (answer, Vec::new());
        }
        // It may be faster than the answer to its start.
        let starting = self.state.starting.iter().find(|start| start.workflow_id == closed.workflow_id);
        if let Some(start) = starting.map(|start| start.number).and_then(|number| self.take_starting(number)) {
            self.started(start, closed.first_execution_run_id.clone());
        }
        let attributes = closed.close_event.and_then(|event| event.attributes);
        let Some((status, result, failure)) = attributes.and_then(ending) else {
            return (answer, Vec::new());
        };
        let is_it = |workflow_id: &str, run_id: &str| {
            workflow_id == closed.workflow_id && run_id == closed.first_execution_run_id
        };
        for action in &mut self.state.recent {
            if action.start_workflow_result.as_ref().is_some_and(|e| is_it(&e.workflow_id, &e.run_id)) {
                action.start_workflow_status = status as i32;
                self.changed.any = true;
            }
        }
        let run = self.state.running.iter().find(|run| is_it(&run.workflow_id, &run.first_run_id));
        if let Some(number) = run.map(|run| run.number) {
            self.forget_run(number);
            if let Some(result) = result {
                self.state.last_completion_result = Some(result);
                self.state.continued_failure = None;
                self.changed.last_result = true;
            } else if failure.is_some() {
                self.state.continued_failure.clone_from(&failure);
            }
        }
        self.pause_on_failure(status, &closed.workflow_id, failure.as_ref());
        (answer, self.work_off_buffer(incarnation, env))
    }

    fn pause_on_failure(&mut self, status: Status, workflow_id: &str, failure: Option<&Failure>) {
        if !self.policies().pause_on_failure || self.state.paused {
            return;
        }
        self.state.notes = match status {
            Status::Failed => {
                let message = failure.map(|failure| failure.message.as_str()).unwrap_or_default();
                format!("paused due to workflow failure: {workflow_id}: {message}")
            }
            Status::TimedOut => format!("paused due to workflow timeout: {workflow_id}"),
            _ => return,
        };
        tracing::info!(namespace_id = %self.key.namespace_id, schedule_id = %self.id(), workflow_id, "paused on failure");
        self.state.paused = true;
        self.state.revision += 1;
        self.changed.any = true;
    }
}

/// Status, result and failure of a closing event; `None` if another run follows.
fn ending(attributes: Attributes) -> Option<(Status, Option<Payloads>, Option<Failure>)> {
    use Attributes as A;
    Some(match attributes {
        A::WorkflowExecutionCompletedEventAttributes(a) => {
            (Status::Completed, a.result.or_else(|| Some(Payloads::default())), None)
        }
        A::WorkflowExecutionFailedEventAttributes(a) => (Status::Failed, None, a.failure),
        A::WorkflowExecutionTimedOutEventAttributes(_) => (Status::TimedOut, None, None),
        A::WorkflowExecutionCanceledEventAttributes(_) => (Status::Canceled, None, None),
        A::WorkflowExecutionTerminatedEventAttributes(_) => (Status::Terminated, None, None),
        _ => return None,
    })
}

/// Whole seconds, in UTC.
fn rfc3339(time: Timestamp) -> String {
    let seconds = time.0.div_euclid(1_000_000_000);
    DateTime::from_timestamp(seconds, 0)
        .map_or_else(|| seconds.to_string(), |time| time.to_rfc3339_opts(SecondsFormat::Secs, true))
}

/// A text as JSON.
fn quoted(text: &str) -> String {
    let mut data = String::with_capacity(text.len() + 2);
    data.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => data.extend(['\\', c]),
            c if c < ' ' => data.push_str(&format!("\\u{:04x}", c as u32)),
            c => data.push(c),
        }
    }
    data.push('"');
    data
}

/// A value as the default converters of the SDKs encode it, with the type of its search attribute.
pub(crate) fn json(data: String, kind: &str) -> Payload {
    let metadata = [
        ("encoding".to_owned(), bytes::Bytes::from_static(b"json/plain")),
        ("type".to_owned(), kind.to_owned().into_bytes().into()),
    ];
    Payload { metadata: metadata.into(), data: data.into(), ..Payload::default() }
}
