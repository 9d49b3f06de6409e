//! Starting runs, for clients and for parents: one open run per workflow id, id policies, request dedupe.

use perdure_proto::{
    Error,
    perdure::node::v1::{ParentInfo, StartWorkflow, workflow_reply},
    temporal::api::{
        common::v1::{Link, Payload, Payloads, WorkflowExecution},
        enums::v1::{EventType, WorkflowExecutionStatus, WorkflowIdConflictPolicy, WorkflowIdReusePolicy},
        history::v1::{HistoryEvent, WorkflowExecutionOptionsUpdatedEventAttributes, history_event::Attributes},
        workflow::v1::OnConflictOptions,
        workflowservice::v1::{StartWorkflowExecutionRequest, StartWorkflowExecutionResponse},
    },
};

use crate::{
    api::{Answer, Env, Release, Reply},
    chain::{Answered, Chain},
    links::{attached_link, started_link},
    run::Run,
    signal::Signal,
    start_request::{beginning, prepare},
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
        let request = command.request.ok_or_else(|| Error::invalid_argument("Request is not set."))?;
        let outcome = self.start_run(request, command.parent, env)?;
        if outcome.kind == StartKind::New
            && let Some(run) = self.current()
        {
            run.info.edit().schedule = command.schedule;
        }
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
        let run = match self.runs.get(&current).and_then(|run| seen(run)) {
            Some(_) => self.runs.get_mut(&current)?,
            None => self.runs.values_mut().find(|run| seen(run) == Some(started))?,
        };
        let started = seen(run) == Some(started);
        let eager_task = (started && request.request_eager_execution && run.first_workflow_task_is_started())
            .then(|| Box::new(run.workflow_task_reply(env)));
        let link = if started { started_link(request, &run.run_id) } else { attached_link(request, &run.run_id) };
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
            run.attach(options, request, env)?;
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
        self.runs.insert(run_id, Box::new(run));
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
        self.workflow_task().is_some_and(|task| task.started_event_id == 3 && task.attempt == 1)
    }

    /// Puts what the caller wants attached on the open run. The worker need not look at it.
    fn attach(
        &mut self,
        options: &OnConflictOptions,
        request: &StartWorkflowExecutionRequest,
        env: &Env,
    ) -> Result<(), Error> {
        let request_id = if options.attach_request_id { request.request_id.clone() } else { String::new() };
        let callbacks =
            if options.attach_completion_callbacks { request.completion_callbacks.clone() } else { Vec::new() };
        self.check_callbacks(callbacks.len(), env)?;
        self.attach_callbacks(&request_id, &callbacks, env.now);
        let attributes = WorkflowExecutionOptionsUpdatedEventAttributes {
            attached_request_id: request_id.clone(),
            attached_completion_callbacks: callbacks,
            ..WorkflowExecutionOptionsUpdatedEventAttributes::default()
        };
        let event = HistoryEvent {
            links: if options.attach_links { request.links.clone() } else { Vec::new() },
            worker_may_ignore: true,
            attributes: Some(Attributes::WorkflowExecutionOptionsUpdatedEventAttributes(attributes)),
            ..HistoryEvent::default()
        };
        let event_id = self.add_external_prepared(env.now, event);
        self.remember_request(request_id, EventType::WorkflowExecutionOptionsUpdated, event_id);
        Ok(())
    }
}

fn ended_badly(status: WorkflowExecutionStatus) -> bool {
    use WorkflowExecutionStatus as S;
    matches!(status, S::Failed | S::Canceled | S::Terminated | S::TimedOut)
}

/// A text as the default converters of the SDKs encode it.
pub(crate) fn text_payloads(text: &str) -> Payloads {
    let metadata = [("encoding".to_owned(), bytes::Bytes::from_static(b"json/plain"))].into();
    Payloads { payloads: vec![Payload { metadata, data: json_text(text).into(), ..Payload::default() }] }
}

/// A text in JSON.
pub(crate) fn json_text(text: &str) -> String {
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

/// The root of the tree of workflows that a run's children belong to.
pub(crate) fn root_execution(run: &Run) -> WorkflowExecution {
    run.start().root_workflow_execution.clone().unwrap_or_else(|| run.execution())
}
