//! Signals and cancellation requests from outside, and signal-with-start.

use perdure_proto::{
    Error,
    perdure::node::v1::{RequestCancelWorkflow, SignalWorkflow, workflow_reply},
    temporal::api::{
        common::v1::{Header, Link, Payloads, WorkflowExecution},
        enums::v1::{
            EventType, ResourceExhaustedCause, ResourceExhaustedScope, WorkflowIdConflictPolicy,
            WorkflowTaskFailedCause,
        },
        history::v1::{
            HistoryEvent, WorkflowExecutionCancelRequestedEventAttributes, WorkflowExecutionSignaledEventAttributes,
            history_event::Attributes,
        },
        workflowservice::v1::{
            SignalWithStartWorkflowExecutionRequest, SignalWithStartWorkflowExecutionResponse,
            SignalWorkflowExecutionResponse, StartWorkflowExecutionRequest,
        },
    },
};
use prost::Message;

use crate::{
    api::Env,
    chain::{Answered, Chain, empty_reply, reply},
    command::cause_name,
    links::request_link,
    run::Run,
    start::{StartKind, Way},
    start_request::prepare,
};

/// A signal, whoever sends it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Signal {
    pub name: String,
    pub input: Option<Payloads>,
    pub identity: String,
    pub header: Option<Header>,
    /// The sender, when it is a workflow.
    pub external_execution: Option<WorkflowExecution>,
    pub request_id: String,
    pub links: Vec<Link>,
}

impl Chain {
    pub(crate) fn signal(&mut self, command: SignalWorkflow, env: &mut Env) -> Answered {
        let request = command.request.ok_or_else(|| Error::invalid_argument("Request is not set."))?;
        self.check_namespace(&request.namespace, env)?;
        let workflow_id = self.key().workflow_id.to_string();
        let run = self.run(&request.workflow_execution.map(|e| e.run_id).unwrap_or_default())?;
        let link = signal_link(&request.namespace, &workflow_id, &run.run_id, &request.request_id);
        let seen = run.has_seen_request(&request.request_id);
        if !seen {
            if !run.is_open() {
                return Err(Error::not_found("workflow execution already completed"));
            }
            if command.child_workflow_only {
                run.check_parent(command.external_execution.as_ref())?;
            }
            run.accept_signal(
                env,
                Signal {
                    name: request.signal_name,
                    input: request.input,
                    identity: request.identity,
                    header: request.header,
                    external_execution: command.external_execution,
                    request_id: request.request_id,
                    links: request.links,
                },
            )?;
        }
        reply(workflow_reply::Reply::Signal(SignalWorkflowExecutionResponse { link: Some(link) }))
    }

    pub(crate) fn signal_with_start(
        &mut self,
        request: SignalWithStartWorkflowExecutionRequest,
        env: &mut Env,
    ) -> Answered {
        let (mut start, signal) = split(request);
        prepare(&mut start, WorkflowIdConflictPolicy::UseExisting, env)?;
        self.check_namespace(&start.namespace, env)?;
        let respond = |run_id: String, first_execution_run_id: String, started: bool| {
            let link = signal_link(&start.namespace, &start.workflow_id, &run_id, &start.request_id);
            reply(workflow_reply::Reply::SignalWithStart(SignalWithStartWorkflowExecutionResponse {
                run_id,
                first_execution_run_id,
                started,
                signal_link: Some(link),
            }))
        };
        // The open run takes the signal, unless the caller wants no part in it.
        let uses_open_run = start.workflow_id_conflict_policy() == WorkflowIdConflictPolicy::UseExisting;
        if let Some(run) = self.current().filter(|run| run.is_open() && uses_open_run) {
            if !run.has_seen_request(&start.request_id) {
                run.accept_signal(env, signal)?;
            }
            return respond(run.run_id.clone(), run.first_execution_run_id().to_owned(), false);
        }
        // The same request came before, and its run has closed since.
        if let Some(outcome) = self.deduplicate_start(&start, env) {
            return respond(outcome.run_id, outcome.first_execution_run_id, outcome.started);
        }
        check_signal_size(&signal, env)?;
        let run_id = env.ids.uuid();
        // Open runs that may be used were dealt with above.
        if self.make_way(&start, &run_id, env)? == Way::UseExisting {
            return Err(Error::unavailable("the workflow is changing, try again"));
        }
        let outcome = self.create_run(run_id, start.clone(), None, Some(signal), env);
        debug_assert_eq!(outcome.kind, StartKind::New);
        respond(outcome.run_id, outcome.first_execution_run_id, true)
    }

    pub(crate) fn request_cancel(&mut self, command: RequestCancelWorkflow, env: &mut Env) -> Answered {
        let request = command.request.clone().unwrap_or_default();
        self.check_namespace(&request.namespace, env)?;
        let run = self.run_of_chain(request.workflow_execution.as_ref(), &request.first_execution_run_id)?;
        // Who asks for the end of what has ended, or asks again, has what he wants.
        if !run.is_open() {
            return empty_reply();
        }
        run.check_first_execution(&request.first_execution_run_id)?;
        if command.child_workflow_only {
            run.check_parent(command.external_execution.as_ref())?;
        }
        if !run.info.cancel_requested {
            run.record_cancel_request(env, command);
        }
        empty_reply()
    }

    /// The run that a request names: by run id, or (by the first run id of a chain of continued runs) the current one.
    pub(crate) fn run_of_chain(
        &mut self,
        execution: Option<&WorkflowExecution>,
        first_execution_run_id: &str,
    ) -> Result<&mut Run, Error> {
        let named = execution.filter(|_| first_execution_run_id.is_empty());
        self.run(named.map_or("", |execution| &execution.run_id))
    }
}

impl Run {
    fn has_seen_request(&self, request_id: &str) -> bool {
        !request_id.is_empty() && self.request_ids.contains_key(request_id)
    }

    pub(crate) fn check_first_execution(&self, first_execution_run_id: &str) -> Result<(), Error> {
        if first_execution_run_id.is_empty() || first_execution_run_id == self.first_execution_run_id() {
            Ok(())
        } else {
            Err(Error::not_found("workflow execution not found"))
        }
    }

    /// The parent's run may be another one than when it started this child: it may have been reset since.
    pub(crate) fn check_parent(&self, expected: Option<&WorkflowExecution>) -> Result<(), Error> {
        let parent = self.start().parent_workflow_execution.as_ref().map(|parent| &parent.workflow_id);
        if parent.is_some() && parent == expected.map(|expected| &expected.workflow_id) {
            Ok(())
        } else {
            Err(Error::not_found("workflow parent does not match"))
        }
    }

    fn accept_signal(&mut self, env: &mut Env, signal: Signal) -> Result<(), Error> {
        check_signal_size(&signal, env)?;
        if self.info.signal_count >= env.limits.signals_per_execution {
            return Err(Error::invalid_argument("exceeded workflow execution limit for signal events"));
        }
        self.check_not_closing()?;
        self.record_signal(env, signal);
        self.ensure_workflow_task(env);
        Ok(())
    }

    /// The workflow wanted to close, and had to look at what had just come first. While it does so it gets nothing new:
    /// else a steady stream of signals or updates would keep it open for ever.
    pub(crate) fn check_not_closing(&self) -> Result<(), Error> {
        let refused_close = cause_name(WorkflowTaskFailedCause::UnhandledCommand);
        let failure = self.info.last_workflow_task_failure.as_ref();
        if self.workflow_task_is_started() && failure.is_some_and(|failure| failure.message == refused_close) {
            return Err(Error::resource_exhausted(
                "workflow operation can not be applied because workflow is closing",
                ResourceExhaustedCause::BusyWorkflow,
                ResourceExhaustedScope::Namespace,
            ));
        }
        Ok(())
    }

    /// Writes the event; a workflow task is the caller's to schedule.
    pub(crate) fn record_signal(&mut self, env: &Env, signal: Signal) {
        let attributes = WorkflowExecutionSignaledEventAttributes {
            signal_name: signal.name,
            input: signal.input,
            identity: signal.identity,
            header: signal.header,
            external_workflow_execution: signal.external_execution,
            request_id: signal.request_id.clone(),
            ..WorkflowExecutionSignaledEventAttributes::default()
        };
        let event = HistoryEvent {
            links: signal.links,
            attributes: Some(Attributes::WorkflowExecutionSignaledEventAttributes(attributes)),
            ..HistoryEvent::default()
        };
        let event_id = self.add_external_prepared(env.now, event);
        self.info.edit().signal_count += 1;
        // Of a signal-with-start the start is remembered.
        if !self.has_seen_request(&signal.request_id) {
            self.remember_request(signal.request_id, EventType::WorkflowExecutionSignaled, event_id);
        }
    }

    fn record_cancel_request(&mut self, env: &mut Env, command: RequestCancelWorkflow) {
        let request = command.request.unwrap_or_default();
        let attributes = WorkflowExecutionCancelRequestedEventAttributes {
            cause: request.reason,
            identity: request.identity,
            external_initiated_event_id: command.external_initiated_event_id,
            external_workflow_execution: command.external_execution,
        };
        let event = HistoryEvent {
            links: request.links,
            attributes: Some(Attributes::WorkflowExecutionCancelRequestedEventAttributes(attributes)),
            ..HistoryEvent::default()
        };
        self.add_external_prepared(env.now, event);
        self.info.edit().cancel_requested = true;
        // A run that still waits for its first workflow task hears of it at once.
        if self.workflow_task().is_none() {
            self.schedule_workflow_task(env, env.now);
        }
    }
}

fn check_signal_size(signal: &Signal, env: &Env) -> Result<(), Error> {
    let size = signal.input.as_ref().map_or(0, Message::encoded_len) as i64;
    if size > env.limits.blob_size_error_bytes {
        return Err(Error::invalid_argument("Blob data size exceeds limit."));
    }
    Ok(())
}

fn split(request: SignalWithStartWorkflowExecutionRequest) -> (StartWorkflowExecutionRequest, Signal) {
    let signal = Signal {
        name: request.signal_name,
        input: request.signal_input,
        identity: request.identity.clone(),
        header: request.header.clone(),
        external_execution: None,
        request_id: request.request_id.clone(),
        links: request.links.clone(),
    };
    let start = StartWorkflowExecutionRequest {
        namespace: request.namespace,
        workflow_id: request.workflow_id,
        workflow_type: request.workflow_type,
        task_queue: request.task_queue,
        input: request.input,
        workflow_execution_timeout: request.workflow_execution_timeout,
        workflow_run_timeout: request.workflow_run_timeout,
        workflow_task_timeout: request.workflow_task_timeout,
        identity: request.identity,
        request_id: request.request_id,
        workflow_id_reuse_policy: request.workflow_id_reuse_policy,
        workflow_id_conflict_policy: request.workflow_id_conflict_policy,
        retry_policy: request.retry_policy,
        cron_schedule: request.cron_schedule,
        memo: request.memo,
        search_attributes: request.search_attributes,
        header: request.header,
        workflow_start_delay: request.workflow_start_delay,
        user_metadata: request.user_metadata,
        links: request.links,
        versioning_override: request.versioning_override,
        priority: request.priority,
        time_skipping_config: request.time_skipping_config,
        ..StartWorkflowExecutionRequest::default()
    };
    (start, signal)
}

fn signal_link(namespace: &str, workflow_id: &str, run_id: &str, request_id: &str) -> Link {
    request_link(namespace, workflow_id, run_id, request_id, EventType::WorkflowExecutionSignaled)
}
