//! Starting runs, for clients and for parents: one open run per workflow id, id policies, request dedupe.

use perdure_proto::{
    Error,
    perdure::node::v1::{ParentInfo, StartWorkflow, workflow_reply},
    temporal::api::{
        common::v1::{Link, Payload, Payloads, WorkflowExecution, link},
        enums::v1::{
            ContinueAsNewInitiator, EventType, WorkflowExecutionStatus, WorkflowIdConflictPolicy, WorkflowIdReusePolicy,
        },
        history::v1::{
            HistoryEvent, WorkflowExecutionOptionsUpdatedEventAttributes, WorkflowExecutionStartedEventAttributes,
            history_event::Attributes,
        },
        workflow::v1::OnConflictOptions,
        workflowservice::v1::{StartWorkflowExecutionRequest, StartWorkflowExecutionResponse},
    },
};
use perdure_types::{Duration, Timestamp};
use prost::Message;

use crate::{
    activity_retry::{check_duration, fill_in_defaults, validate as validate_retry_policy},
    api::{Answer, Env, Release, Reply},
    begin::{Beginning, effective_run_timeout, effective_workflow_task_timeout},
    chain::{Answered, Chain},
    cron,
    run::Run,
    signal::Signal,
    terminate::SERVER_IDENTITY,
};

/// What a start came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StartKind {
    /// A new run.
    New,
    /// The open run, as the conflict policy wants it.
    UsedExisting,
    /// The run that the same request had started (or was attached to) before.
    Deduplicated,
}

#[derive(Debug)]
pub(crate) struct StartOutcome {
    pub kind: StartKind,
    pub run_id: String,
    pub first_execution_run_id: String,
    /// The API's flag: this request is what started the run.
    pub started: bool,
    pub status: WorkflowExecutionStatus,
    pub link: Link,
    /// The first workflow task, for the caller to do.
    pub eager_task: Option<Box<Reply>>,
}

impl StartOutcome {
    /// The answer to StartWorkflowExecution.
    pub fn into_reply(self) -> Reply {
        let mut response = StartWorkflowExecutionResponse {
            run_id: self.run_id,
            first_execution_run_id: self.first_execution_run_id,
            started: self.started,
            status: self.status as i32,
            link: Some(self.link),
            ..StartWorkflowExecutionResponse::default()
        };
        let mut history = None;
        if let Some(task) = self.eager_task {
            history = task.history;
            if let Some(workflow_reply::Reply::WorkflowTask(task)) = task.message.reply {
                response.eager_workflow_task = Some(task);
            }
        }
        let mut reply = Reply::new(workflow_reply::Reply::Start(response));
        reply.history = history;
        reply
    }
}

impl Chain {
    pub(crate) fn start_workflow(&mut self, command: StartWorkflow, env: &mut Env) -> Answered {
        let request = command
            .request
            .ok_or_else(|| Error::invalid_argument("Request is not set."))?;
        let outcome = self.start_run(request, command.parent, env)?;
        Ok((Answer::Reply(Box::new(outcome.into_reply())), Release::Durable))
    }

    /// Starts a run, or finds the one that the request means.
    pub(crate) fn start_run(
        &mut self,
        mut request: StartWorkflowExecutionRequest,
        parent: Option<ParentInfo>,
        env: &mut Env,
    ) -> Result<StartOutcome, Error> {
        prepare(&mut request, WorkflowIdConflictPolicy::Fail, env)?;
        self.check_namespace(&request.namespace, env)?;
        if let Some(outcome) = self.deduplicate_start(&request, env) {
            return Ok(outcome);
        }
        let run_id = env.ids.uuid();
        if self.make_way(&request, &run_id, env)? == Way::UseExisting {
            return self.use_existing(&request, env);
        }
        Ok(self.create_run(run_id, request, parent, None, env))
    }

    /// A namespace that has been deleted meanwhile, or never was (calls of other workflows).
    pub(crate) fn check_namespace(&self, name: &str, env: &Env) -> Result<(), Error> {
        let id = &self.key().namespace_id;
        match env.namespaces.by_id(id) {
            Some(_) => Ok(()),
            None => Err(Error::namespace_not_found(if name.is_empty() { id } else { name })),
        }
    }

    /// A run that has seen this request before. A request that started a run is looked for in all runs in memory, so
    /// that a parent's repeated call finds its child even when the id has been used again since.
    pub(crate) fn deduplicate_start(
        &mut self,
        request: &StartWorkflowExecutionRequest,
        env: &Env,
    ) -> Option<StartOutcome> {
        let request_id = request.request_id.as_str();
        let current = self.current_run_id().to_owned();
        let seen = |run: &Run| run.request_ids.get(request_id).map(|info| info.event_type);
        let started = EventType::WorkflowExecutionStarted as i32;
        let run = match self.runs.get(&current).and_then(seen) {
            Some(_) => self.runs.get_mut(&current)?,
            None => self.runs.values_mut().find(|run| seen(run) == Some(started))?,
        };
        let started = seen(run) == Some(started);
        let eager_task = (started && request.request_eager_execution && run.first_workflow_task_is_started())
            .then(|| Box::new(run.workflow_task_reply(env)));
        let link = if started {
            started_link(request, &run.run_id)
        } else {
            attached_link(request, &run.run_id)
        };
        Some(run.start_outcome(StartKind::Deduplicated, started, link, eager_task))
    }

    /// Applies the id policies: terminates the open run, refuses, or tells that there is one to use.
    pub(crate) fn make_way(
        &mut self,
        request: &StartWorkflowExecutionRequest,
        new_run_id: &str,
        env: &mut Env,
    ) -> Result<Way, Error> {
        let workflow_id = self.key().workflow_id.clone();
        let Some(current) = self.current() else {
            return Ok(Way::Clear);
        };
        let already_started = |message: String| {
            Err(Error::workflow_already_started(
                message,
                current.start_request_id(),
                &current.run_id,
                current.first_execution_run_id(),
            ))
        };
        let run_id = &current.run_id;
        if !current.is_open() {
            return match request.workflow_id_reuse_policy() {
                WorkflowIdReusePolicy::AllowDuplicateFailedOnly if !ended_badly(current.status()) => {
                    already_started(format!(
                        "Workflow execution already finished successfully. WorkflowId: {workflow_id}, RunId: {run_id}. \
                     Workflow Id reuse policy: allow duplicate workflow Id if last run failed."
                    ))
                }
                WorkflowIdReusePolicy::RejectDuplicate => already_started(format!(
                    "Workflow execution already finished. WorkflowId: {workflow_id}, RunId: {run_id}. \
                     Workflow Id reuse policy: reject duplicate workflow Id."
                )),
                _ => Ok(Way::Clear),
            };
        }
        match request.workflow_id_conflict_policy() {
            WorkflowIdConflictPolicy::UseExisting => Ok(Way::UseExisting),
            WorkflowIdConflictPolicy::TerminateExisting => {
                let details = text_payloads(&format!("terminated by new runID: {new_run_id}"));
                let reason = "TerminateIfRunning WorkflowIdReusePolicy";
                current.terminate_run(env, reason, Some(details), SERVER_IDENTITY, Vec::new());
                Ok(Way::Clear)
            }
            WorkflowIdConflictPolicy::Fail | WorkflowIdConflictPolicy::Unspecified => already_started(format!(
                "Workflow execution is already running. WorkflowId: {workflow_id}, RunId: {run_id}."
            )),
        }
    }

    fn use_existing(&mut self, request: &StartWorkflowExecutionRequest, env: &Env) -> Result<StartOutcome, Error> {
        let run = self.open_run("")?;
        let mut link = started_link(request, &run.run_id);
        if let Some(options) = &request.on_conflict_options {
            run.attach(options, request, env);
            if options.attach_request_id {
                link = attached_link(request, &run.run_id);
            }
        }
        Ok(run.start_outcome(StartKind::UsedExisting, false, link, None))
    }

    /// Begins a run and makes it the current one. The way must be clear.
    pub(crate) fn create_run(
        &mut self,
        run_id: String,
        request: StartWorkflowExecutionRequest,
        parent: Option<ParentInfo>,
        signal: Option<Signal>,
        env: &mut Env,
    ) -> StartOutcome {
        let link = started_link(&request, &run_id);
        let (identity, request_id) = (request.identity.clone(), request.request_id.clone());
        let beginning = beginning(request, parent, env);
        let eager = beginning.attributes.eager_execution_accepted;
        let mut run = Run::begin(self.key().clone(), run_id.clone(), env.now, beginning);
        if let Some(signal) = signal {
            run.record_signal(env, signal);
        }
        run.schedule_first_workflow_task(env);
        let mut eager_task = None;
        if eager {
            run.start_workflow_task(env, &identity, &request_id);
            eager_task = Some(Box::new(run.workflow_task_reply(env)));
        }
        let outcome = run.start_outcome(StartKind::New, true, link, eager_task);
        self.set_current(&run_id);
        self.runs.insert(run_id, run);
        outcome
    }
}

/// What the id policies say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Clear,
    UseExisting,
}

impl Run {
    fn start_outcome(
        &self,
        kind: StartKind,
        started: bool,
        link: Link,
        eager_task: Option<Box<Reply>>,
    ) -> StartOutcome {
        StartOutcome {
            kind,
            run_id: self.run_id.clone(),
            first_execution_run_id: self.first_execution_run_id().to_owned(),
            started,
            status: self.status(),
            link,
            eager_task,
        }
    }

    fn first_workflow_task_is_started(&self) -> bool {
        self.workflow_task()
            .is_some_and(|task| task.started_event_id == 3 && task.attempt == 1)
    }

    /// Puts what the caller wants attached on the open run. The worker need not look at it.
    fn attach(&mut self, options: &OnConflictOptions, request: &StartWorkflowExecutionRequest, env: &Env) {
        let request_id = if options.attach_request_id {
            request.request_id.clone()
        } else {
            String::new()
        };
        let callbacks = if options.attach_completion_callbacks {
            request.completion_callbacks.clone()
        } else {
            Vec::new()
        };
        let attributes = WorkflowExecutionOptionsUpdatedEventAttributes {
            attached_request_id: request_id.clone(),
            attached_completion_callbacks: callbacks,
            ..WorkflowExecutionOptionsUpdatedEventAttributes::default()
        };
        let event = HistoryEvent {
            links: if options.attach_links {
                request.links.clone()
            } else {
                Vec::new()
            },
            worker_may_ignore: true,
            attributes: Some(Attributes::WorkflowExecutionOptionsUpdatedEventAttributes(attributes)),
            ..HistoryEvent::default()
        };
        let event_id = self.add_external_prepared(env.now, event);
        self.remember_request(request_id, EventType::WorkflowExecutionOptionsUpdated, event_id);
    }
}

/// Applies defaults and refuses what cannot be started.
pub(crate) fn prepare(
    request: &mut StartWorkflowExecutionRequest,
    default_conflict_policy: WorkflowIdConflictPolicy,
    env: &Env,
) -> Result<(), Error> {
    set_id_policies(request, default_conflict_policy);
    if let Some(policy) = &mut request.retry_policy {
        fill_in_defaults(policy, env.limits);
        validate_retry_policy(policy).map_err(Error::invalid_argument)?;
    }
    cron::validate(&request.cron_schedule, env.now)?;
    let duration = |field: &mut Option<prost_types::Duration>, name: &str| {
        check_duration(field).map_err(|e| Error::invalid_argument(format!("invalid {name}: {e}")))?;
        Ok::<_, Error>(Duration::from_proto(field.as_ref()))
    };
    let execution = duration(&mut request.workflow_execution_timeout, "WorkflowExecutionTimeout")?;
    let run = duration(&mut request.workflow_run_timeout, "WorkflowRunTimeout")?;
    let task = duration(&mut request.workflow_task_timeout, "WorkflowTaskTimeout")?;
    duration(&mut request.workflow_start_delay, "WorkflowStartDelay")?;
    let run = effective_run_timeout(run, execution);
    override_timeout(&mut request.workflow_run_timeout, run);
    override_timeout(
        &mut request.workflow_task_timeout,
        effective_workflow_task_timeout(task, run, env.limits),
    );
    let size = |message: Option<usize>| message.unwrap_or_default() as i64;
    if size(request.input.as_ref().map(Message::encoded_len)) > env.limits.blob_size_error_bytes {
        return Err(Error::invalid_argument("Blob data size exceeds limit."));
    }
    if size(request.memo.as_ref().map(Message::encoded_len)) > env.limits.memo_size_error_bytes {
        return Err(Error::invalid_argument("Memo size exceeds limit."));
    }
    Ok(())
}

#[allow(deprecated)]
fn set_id_policies(request: &mut StartWorkflowExecutionRequest, default: WorkflowIdConflictPolicy) {
    // The older way to say it.
    if request.workflow_id_reuse_policy() == WorkflowIdReusePolicy::TerminateIfRunning {
        request.set_workflow_id_conflict_policy(WorkflowIdConflictPolicy::TerminateExisting);
        request.set_workflow_id_reuse_policy(WorkflowIdReusePolicy::AllowDuplicate);
    }
    if request.workflow_id_conflict_policy() == WorkflowIdConflictPolicy::Unspecified {
        request.set_workflow_id_conflict_policy(default);
    }
    if request.workflow_id_reuse_policy() == WorkflowIdReusePolicy::Unspecified {
        request.set_workflow_id_reuse_policy(WorkflowIdReusePolicy::AllowDuplicate);
    }
}

/// A timeout that is right stays as it came, set to zero or not set.
fn override_timeout(field: &mut Option<prost_types::Duration>, effective: Duration) {
    if Duration::from_proto(field.as_ref()) != effective {
        *field = Some(effective.to_proto());
    }
}

fn beginning(request: StartWorkflowExecutionRequest, parent: Option<ParentInfo>, env: &Env) -> Beginning {
    let delay = Duration::from_proto(request.workflow_start_delay.as_ref());
    let backoff = if delay.is_zero() {
        cron::first_backoff(&request.cron_schedule, env.now)
    } else {
        delay
    };
    let execution_timeout = Duration::from_proto(request.workflow_execution_timeout.as_ref());
    let initiator = if request.cron_schedule.is_empty() {
        ContinueAsNewInitiator::Unspecified
    } else {
        ContinueAsNewInitiator::CronSchedule
    };
    let mut attributes = WorkflowExecutionStartedEventAttributes {
        workflow_type: request.workflow_type,
        task_queue: request.task_queue.map(|queue| crate::begin::normal_queue(queue.name)),
        input: request.input,
        workflow_execution_timeout: request.workflow_execution_timeout,
        workflow_run_timeout: request.workflow_run_timeout,
        workflow_task_timeout: request.workflow_task_timeout,
        initiator: initiator as i32,
        continued_failure: request.continued_failure,
        last_completion_result: request.last_completion_result,
        identity: request.identity,
        retry_policy: request.retry_policy,
        attempt: 1,
        workflow_execution_expiration_time: execution_timeout
            .or_none()
            .and_then(|timeout| to_millis(env.now + timeout).to_proto()),
        cron_schedule: request.cron_schedule,
        first_workflow_task_backoff: Some(backoff.to_proto()),
        memo: request.memo,
        search_attributes: request.search_attributes,
        header: request.header,
        completion_callbacks: request.completion_callbacks,
        versioning_override: request.versioning_override,
        priority: request.priority,
        eager_execution_accepted: request.request_eager_execution && backoff.is_zero() && parent.is_none(),
        ..WorkflowExecutionStartedEventAttributes::default()
    };
    if let Some(parent) = parent {
        let name = env.namespaces.by_id(&parent.namespace_id).map(|n| n.name.to_string());
        attributes.parent_workflow_namespace = name.unwrap_or(parent.namespace_name);
        attributes.parent_workflow_namespace_id = parent.namespace_id;
        attributes.parent_workflow_execution = parent.execution;
        attributes.parent_initiated_event_id = parent.initiated_event_id;
        attributes.root_workflow_execution = parent.root_execution;
    }
    Beginning {
        attributes,
        links: request.links,
        user_metadata: request.user_metadata,
        request_id: request.request_id,
    }
}

/// Rounded, as Temporal stores it.
fn to_millis(time: Timestamp) -> Timestamp {
    const MILLI: i64 = 1_000_000;
    Timestamp(time.as_nanos().saturating_add(MILLI / 2) / MILLI * MILLI)
}

fn ended_badly(status: WorkflowExecutionStatus) -> bool {
    use WorkflowExecutionStatus as S;
    matches!(status, S::Failed | S::Canceled | S::Terminated | S::TimedOut)
}

/// A text as the default converters of the SDKs encode it.
pub(crate) fn text_payloads(text: &str) -> Payloads {
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
    let metadata = [("encoding".to_owned(), bytes::Bytes::from_static(b"json/plain"))].into();
    Payloads {
        payloads: vec![Payload {
            metadata,
            data: data.into(),
            ..Payload::default()
        }],
    }
}

fn started_link(request: &StartWorkflowExecutionRequest, run_id: &str) -> Link {
    let reference = link::workflow_event::Reference::EventRef(link::workflow_event::EventReference {
        event_id: 1,
        event_type: EventType::WorkflowExecutionStarted as i32,
    });
    event_link(&request.namespace, &request.workflow_id, run_id, reference)
}

fn attached_link(request: &StartWorkflowExecutionRequest, run_id: &str) -> Link {
    let event_type = EventType::WorkflowExecutionOptionsUpdated;
    request_link(
        &request.namespace,
        &request.workflow_id,
        run_id,
        &request.request_id,
        event_type,
    )
}

/// A link to an event that may have no id yet.
pub(crate) fn request_link(
    namespace: &str,
    workflow_id: &str,
    run_id: &str,
    request_id: &str,
    event_type: EventType,
) -> Link {
    let reference = link::workflow_event::Reference::RequestIdRef(link::workflow_event::RequestIdReference {
        request_id: request_id.to_owned(),
        event_type: event_type as i32,
    });
    event_link(namespace, workflow_id, run_id, reference)
}

fn event_link(namespace: &str, workflow_id: &str, run_id: &str, reference: link::workflow_event::Reference) -> Link {
    let event = link::WorkflowEvent {
        namespace: namespace.to_owned(),
        workflow_id: workflow_id.to_owned(),
        run_id: run_id.to_owned(),
        reference: Some(reference),
    };
    Link {
        variant: Some(link::Variant::WorkflowEvent(event)),
    }
}

/// The root of the tree of workflows that a run's children belong to.
pub(crate) fn root_execution(run: &Run) -> WorkflowExecution {
    run.start()
        .root_workflow_execution
        .clone()
        .unwrap_or_else(|| run.execution())
}
