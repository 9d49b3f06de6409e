//! StartActivityExecution: what a start must look like, and what becomes of an id that is in use.

use perdure_proto::{
    Error,
    perdure::{
        node::v1::{ActivityReply, activity_reply, workflow_reply},
        state::v1::{ActivityInfo, ActivityState},
    },
    temporal::api::{
        activity::v1::ActivityOptions,
        command::v1::ScheduleActivityTaskCommandAttributes,
        enums::v1::{
            ActivityExecutionStatus as Status, ActivityIdConflictPolicy as ConflictPolicy,
            ActivityIdReusePolicy as ReusePolicy,
        },
        taskqueue::v1::TaskQueue,
        workflowservice::v1::{StartActivityExecutionRequest, StartActivityExecutionResponse},
    },
};
use perdure_types::{ChainKey, Duration, Limits};
use perdure_workflow::{
    Callbacks, Env,
    attempts::{check_duration, validate_and_complete},
};

use crate::run::{Run, TASK};

/// What has callbacks, in texts.
const HOLDER: &str = "an activity";

/// What becomes of a start.
pub(crate) enum Started {
    /// The id is free.
    New(Box<Run>),
    /// The current run answers it. True: because of the same request.
    Existing(Box<Run>, bool),
}

/// `current`: the last run of the id, open or closed.
pub(crate) fn start(
    key: &ChainKey,
    current: Option<Run>,
    mut request: StartActivityExecutionRequest,
    env: &mut Env,
) -> Result<Started, Error> {
    complete(&mut request, env.limits)?;
    if let Some(mut run) = current {
        let same = run.request().request_id == request.request_id;
        if same || run.state.attached_request_ids.contains(&request.request_id) {
            return Ok(Started::Existing(Box::new(run), same));
        }
        let refused = || Error::activity_already_started(&run.request().request_id, &run.run_id);
        if run.is_open() {
            if request.id_conflict_policy() != ConflictPolicy::UseExisting {
                return Err(refused());
            }
            attach(&mut run, &request, env)?;
            return Ok(Started::Existing(Box::new(run), false));
        }
        match request.id_reuse_policy() {
            ReusePolicy::RejectDuplicate => return Err(refused()),
            ReusePolicy::AllowDuplicateFailedOnly if run.status() == Status::Completed => return Err(refused()),
            ReusePolicy::AllowDuplicateFailedOnly | ReusePolicy::AllowDuplicate | ReusePolicy::Unspecified => {}
        }
    }
    Ok(Started::New(Box::new(begin(key, request, env)?)))
}

fn attach(run: &mut Run, request: &StartActivityExecutionRequest, env: &Env) -> Result<(), Error> {
    let Some(options) = &request.on_conflict_options else { return Ok(()) };
    if options.attach_completion_callbacks {
        let from = (request.request_id.as_str(), request.completion_callbacks.as_slice());
        Callbacks::attach(&mut run.state.callbacks, from, HOLDER, env)?;
    }
    if options.attach_links {
        run.state.attached_links.extend(request.links.iter().cloned());
    }
    if options.attach_request_id || options.attach_links {
        run.state.attached_request_ids.push(request.request_id.clone());
    }
    Ok(())
}

fn begin(key: &ChainKey, mut request: StartActivityExecutionRequest, env: &mut Env) -> Result<Run, Error> {
    let mut callbacks = Vec::new();
    let attached = std::mem::take(&mut request.completion_callbacks);
    Callbacks::attach(&mut callbacks, (&request.request_id, &attached), HOLDER, env)?;
    let options = options_of(&request);
    let state = ActivityState {
        request: Some(request),
        status: Status::Running as i32,
        start_time_ns: env.now.as_nanos(),
        info: Some(ActivityInfo {
            scheduled_event_id: TASK,
            activity_id: key.workflow_id.to_string(),
            attempt: 1,
            ..ActivityInfo::default()
        }),
        callbacks,
        ..ActivityState::default()
    };
    let mut run = Run::new(key.clone(), env.ids.uuid(), state);
    run.set_options(options);
    let at = run.execution_time();
    let info = run.edit();
    info.first_scheduled_time_ns = at.as_nanos();
    info.scheduled_time_ns = at.as_nanos();
    run.offer_if_due(env.now);
    Ok(run)
}

/// As the start asked for them.
pub(crate) fn options_of(request: &StartActivityExecutionRequest) -> ActivityOptions {
    ActivityOptions {
        task_queue: request.task_queue.as_ref().map(|queue| TaskQueue {
            name: queue.name.clone(),
            normal_name: queue.name.clone(),
            ..TaskQueue::default()
        }),
        schedule_to_close_timeout: request.schedule_to_close_timeout,
        schedule_to_start_timeout: request.schedule_to_start_timeout,
        start_to_close_timeout: request.start_to_close_timeout,
        heartbeat_timeout: request.heartbeat_timeout,
        retry_policy: request.retry_policy.clone(),
        priority: request.priority.clone(),
        start_delay: request.start_delay,
    }
}

/// Checks a start and fills in what it leaves open, as for an activity of a workflow without a run timeout.
fn complete(request: &mut StartActivityExecutionRequest, limits: &Limits) -> Result<(), Error> {
    let mut attributes = ScheduleActivityTaskCommandAttributes {
        activity_id: request.activity_id.clone(),
        activity_type: request.activity_type.clone(),
        task_queue: request.task_queue.take(),
        schedule_to_close_timeout: request.schedule_to_close_timeout,
        schedule_to_start_timeout: request.schedule_to_start_timeout,
        start_to_close_timeout: request.start_to_close_timeout,
        heartbeat_timeout: request.heartbeat_timeout,
        retry_policy: request.retry_policy.take(),
        priority: request.priority.clone(),
        ..ScheduleActivityTaskCommandAttributes::default()
    };
    validate_and_complete(&mut attributes, Duration::ZERO, "", limits).map_err(Error::invalid_argument)?;
    check_duration(&mut request.start_delay)
        .map_err(|problem| Error::invalid_argument(format!("invalid StartDelay: {problem}")))?;
    request.task_queue = attributes.task_queue;
    request.schedule_to_close_timeout = attributes.schedule_to_close_timeout;
    request.schedule_to_start_timeout = attributes.schedule_to_start_timeout;
    request.start_to_close_timeout = attributes.start_to_close_timeout;
    request.heartbeat_timeout = attributes.heartbeat_timeout;
    request.retry_policy = attributes.retry_policy;
    Ok(())
}

pub(crate) fn reply(run: &Run, started: bool) -> workflow_reply::Reply {
    let response = StartActivityExecutionResponse { run_id: run.run_id.clone(), started, link: Some(run.link()) };
    workflow_reply::Reply::Activity(Box::new(ActivityReply { reply: Some(activity_reply::Reply::Start(response)) }))
}
