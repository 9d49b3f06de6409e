//! StartWorkflowExecution.

use perdure_proto::{
    Error,
    perdure::node::v1::{StartWorkflow, workflow_call, workflow_reply},
    temporal::api::{
        common::v1::{TimeSkippingConfig, WorkflowType},
        enums::v1::{WorkflowIdConflictPolicy, WorkflowIdReusePolicy},
        workflow::v1::VersioningOverride,
        workflowservice::v1::{StartWorkflowExecutionRequest, StartWorkflowExecutionResponse},
    },
    versions,
};
use perdure_types::Limits;

use crate::{call::Call, search_attributes, validate, versioning};

pub(crate) async fn start_workflow_execution(
    call: &Call<'_>,
    mut request: StartWorkflowExecutionRequest,
) -> Result<StartWorkflowExecutionResponse, Error> {
    let namespace = call.namespace_for_start(&request.namespace)?;
    prepare(&mut request, call.limits())?;
    search_attributes::check(call, &namespace, request.search_attributes.as_ref()).await?;
    let task_queue = request.task_queue.as_ref().map_or("", |queue| &queue.name);
    versioning::check_override(call, &namespace, request.versioning_override.as_ref(), task_queue).await?;
    let workflow_id = request.workflow_id.clone();
    let command =
        workflow_call::Command::Start(Box::new(StartWorkflow { request: Some(request), ..StartWorkflow::default() }));
    match call.workflow(namespace.id(), &workflow_id, command).await? {
        workflow_reply::Reply::Start(mut reply) => {
            hand_out(call, &mut reply);
            Ok(reply)
        }
        _ => Err(call.unexpected_reply()),
    }
}

/// A start may carry its first workflow task.
pub(crate) fn hand_out(call: &Call<'_>, reply: &mut StartWorkflowExecutionResponse) {
    if let Some(task) = &mut reply.eager_workflow_task {
        call.hands_out(&mut task.task_token);
    }
}

/// Checks a start and fills in what it leaves open.
pub(crate) fn prepare(request: &mut StartWorkflowExecutionRequest, limits: &Limits) -> Result<(), Error> {
    default_id_policies(
        &mut request.workflow_id_reuse_policy,
        &mut request.workflow_id_conflict_policy,
        WorkflowIdConflictPolicy::Fail,
    );
    validate::new_workflow_id(&request.workflow_id, limits)?;
    validate::retry_policy(request.retry_policy.as_mut(), limits)?;
    start_delay(&request.cron_schedule, request.workflow_start_delay.as_mut())?;
    workflow_type(request.workflow_type.as_ref(), limits)?;
    validate::user_task_queue(request.task_queue.as_mut(), limits)?;
    timeouts([
        ("WorkflowExecutionTimeoutSeconds", request.workflow_execution_timeout.as_mut()),
        ("WorkflowRunTimeoutSeconds", request.workflow_run_timeout.as_mut()),
        ("WorkflowTaskTimeoutSeconds", request.workflow_task_timeout.as_mut()),
    ])?;
    validate::request_id(&mut request.request_id, limits)?;
    id_policies(request.workflow_id_reuse_policy, request.workflow_id_conflict_policy)?;
    if let Some(options) = &request.on_conflict_options
        && options.attach_completion_callbacks
        && !options.attach_request_id
    {
        return Err(Error::invalid_argument("attaching request ID is required for attaching completion callbacks"));
    }
    validate::priority(request.priority.as_ref())?;
    validate::links(&request.links, &request.completion_callbacks)?;
    validate::completion_callbacks(&mut request.completion_callbacks, limits)?;
    drop_links_of_callbacks(request);
    refuse_unbuilt(request.versioning_override.as_ref(), request.time_skipping_config.as_ref(), limits)?;
    validate::payloads(request.input.as_ref(), limits)?;
    memo(validate::size(request.memo.as_ref()), limits)
}

pub(crate) fn memo(bytes: usize, limits: &Limits) -> Result<(), Error> {
    if bytes as u64 > limits.memo_size_error_bytes.max(0) as u64 {
        return Err(Error::invalid_argument("Memo size exceeds limit."));
    }
    Ok(())
}

pub(crate) fn id_policies(reuse: i32, conflict: i32) -> Result<(), Error> {
    #[allow(deprecated)]
    let terminate_if_running = WorkflowIdReusePolicy::TerminateIfRunning as i32;
    if reuse == terminate_if_running && conflict != WorkflowIdConflictPolicy::Unspecified as i32 {
        return Err(Error::invalid_argument(
            "Invalid WorkflowIDReusePolicy: WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING cannot be used together with \
             a WorkflowIDConflictPolicy",
        ));
    }
    if reuse == WorkflowIdReusePolicy::RejectDuplicate as i32
        && conflict == WorkflowIdConflictPolicy::TerminateExisting as i32
    {
        return Err(Error::invalid_argument(
            "Invalid WorkflowIDReusePolicy: WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE cannot be used together with \
             WorkflowIdConflictPolicy WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING",
        ));
    }
    Ok(())
}

/// The old reuse policy "terminate if running" is a conflict policy today.
pub(crate) fn default_id_policies(reuse: &mut i32, conflict: &mut i32, default_conflict: WorkflowIdConflictPolicy) {
    #[allow(deprecated)]
    let terminate_if_running = WorkflowIdReusePolicy::TerminateIfRunning as i32;
    if *conflict == WorkflowIdConflictPolicy::Unspecified as i32 {
        if *reuse == terminate_if_running {
            *conflict = WorkflowIdConflictPolicy::TerminateExisting as i32;
            *reuse = WorkflowIdReusePolicy::AllowDuplicate as i32;
        } else {
            *conflict = default_conflict as i32;
        }
    }
    if *reuse == WorkflowIdReusePolicy::Unspecified as i32 {
        *reuse = WorkflowIdReusePolicy::AllowDuplicate as i32;
    }
}

pub(crate) fn start_delay(cron: &str, delay: Option<&mut prost_types::Duration>) -> Result<(), Error> {
    if !cron.is_empty() && delay.is_some() {
        return Err(Error::invalid_argument("CronSchedule and WorkflowStartDelay may not be used together."));
    }
    timeouts([("WorkflowStartDelaySeconds", delay)])
}

pub(crate) fn timeouts<const N: usize>(fields: [(&str, Option<&mut prost_types::Duration>); N]) -> Result<(), Error> {
    for (name, value) in fields {
        validate::duration(value)
            .map_err(|why| Error::invalid_argument(format!("An invalid {name} is set on request. cause: {why}")))?;
    }
    Ok(())
}

fn workflow_type(workflow_type: Option<&WorkflowType>, limits: &Limits) -> Result<(), Error> {
    let name = workflow_type.map_or("", |t| t.name.as_str());
    if name.is_empty() {
        return Err(Error::invalid_argument("WorkflowType is not set on request."));
    }
    if validate::is_too_long(name, limits) {
        return Err(Error::invalid_argument("WorkflowType length exceeds limit."));
    }
    Ok(())
}

/// SDKs say the links of a callback twice, for older servers.
fn drop_links_of_callbacks(request: &mut StartWorkflowExecutionRequest) {
    let callbacks = &request.completion_callbacks;
    request.links.retain(|link| !callbacks.iter().any(|callback| callback.links.contains(link)));
}

/// What is not built is refused: a start that dropped it silently would do something else than asked.
pub(crate) fn refuse_unbuilt(
    versioning: Option<&VersioningOverride>,
    time_skipping: Option<&TimeSkippingConfig>,
    limits: &Limits,
) -> Result<(), Error> {
    if let Some(over) = versioning {
        versions::check_override(over, limits.max_id_length).map_err(Error::invalid_argument)?;
    }
    if time_skipping.is_some() {
        return Err(Error::unimplemented("TimeSkippingConfig"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use perdure_proto::temporal::api::{
        common::v1::{Memo, Payload, Payloads, RetryPolicy},
        taskqueue::v1::TaskQueue,
        workflow::v1::OnConflictOptions,
    };

    use super::*;

    fn request() -> StartWorkflowExecutionRequest {
        StartWorkflowExecutionRequest {
            namespace: "default".into(),
            workflow_id: "w".into(),
            workflow_type: Some(WorkflowType { name: "Order".into() }),
            task_queue: Some(TaskQueue { name: "orders".into(), ..Default::default() }),
            ..Default::default()
        }
    }

    fn check(change: impl FnOnce(&mut StartWorkflowExecutionRequest), expect: Result<(), &str>) {
        let mut request = request();
        change(&mut request);
        let got = prepare(
            &mut request,
            &Limits { blob_size_error_bytes: 100, memo_size_error_bytes: 50, ..Limits::default() },
        );
        assert_eq!(got.map_err(|e| e.message), expect.map_err(str::to_owned));
    }

    fn seconds(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }

    fn payload(bytes: usize) -> Payload {
        Payload { data: vec![0; bytes].into(), ..Default::default() }
    }

    #[test]
    fn names() {
        check(|_| {}, Ok(()));
        check(|r| r.workflow_id.clear(), Err("WorkflowId is not set on request."));
        check(|r| r.workflow_id = "w".repeat(1001), Err("WorkflowId exceeds maximum allowed length (1001/1000)"));
        check(|r| r.workflow_type = None, Err("WorkflowType is not set on request."));
        check(
            |r| r.workflow_type = Some(WorkflowType { name: "t".repeat(1001) }),
            Err("WorkflowType length exceeds limit."),
        );
        check(|r| r.task_queue = None, Err("taskQueue is not set"));
        check(|r| r.task_queue = Some(TaskQueue::default()), Err("missing task queue name"));
        check(|r| r.request_id = "r".repeat(1001), Err("RequestId length exceeds limit."));
    }

    #[test]
    fn times() {
        check(
            |r| r.workflow_execution_timeout = seconds(-1),
            Err("An invalid WorkflowExecutionTimeoutSeconds is set on request. cause: negative duration"),
        );
        check(
            |r| r.workflow_run_timeout = seconds(-1),
            Err("An invalid WorkflowRunTimeoutSeconds is set on request. cause: negative duration"),
        );
        check(
            |r| r.workflow_task_timeout = seconds(-1),
            Err("An invalid WorkflowTaskTimeoutSeconds is set on request. cause: negative duration"),
        );
        check(
            |r| r.workflow_start_delay = seconds(-1),
            Err("An invalid WorkflowStartDelaySeconds is set on request. cause: negative duration"),
        );
        check(
            |r| {
                r.cron_schedule = "* * * * *".into();
                r.workflow_start_delay = seconds(1);
            },
            Err("CronSchedule and WorkflowStartDelay may not be used together."),
        );
        check(
            |r| r.retry_policy = Some(RetryPolicy { maximum_attempts: -1, ..Default::default() }),
            Err("MaximumAttempts cannot be negative on retry policy."),
        );
    }

    #[test]
    fn sizes() {
        check(|r| r.input = Some(Payloads { payloads: vec![payload(50)] }), Ok(()));
        check(|r| r.input = Some(Payloads { payloads: vec![payload(100)] }), Err("Blob data size exceeds limit."));
        check(
            |r| r.memo = Some(Memo { fields: [("note".to_owned(), payload(50))].into() }),
            Err("Memo size exceeds limit."),
        );
    }

    #[test]
    #[allow(deprecated)]
    fn policies_that_contradict_each_other() {
        let policies = |reuse: WorkflowIdReusePolicy, conflict: WorkflowIdConflictPolicy| {
            move |r: &mut StartWorkflowExecutionRequest| {
                r.workflow_id_reuse_policy = reuse as i32;
                r.workflow_id_conflict_policy = conflict as i32;
            }
        };
        use WorkflowIdConflictPolicy as Conflict;
        use WorkflowIdReusePolicy as Reuse;
        check(policies(Reuse::TerminateIfRunning, Conflict::Unspecified), Ok(()));
        check(policies(Reuse::RejectDuplicate, Conflict::UseExisting), Ok(()));
        check(
            policies(Reuse::TerminateIfRunning, Conflict::UseExisting),
            Err(
                "Invalid WorkflowIDReusePolicy: WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING cannot be used together \
                 with a WorkflowIDConflictPolicy",
            ),
        );
        check(
            policies(Reuse::RejectDuplicate, Conflict::TerminateExisting),
            Err(
                "Invalid WorkflowIDReusePolicy: WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE cannot be used together with \
                 WorkflowIdConflictPolicy WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING",
            ),
        );
        check(
            |r| {
                r.on_conflict_options =
                    Some(OnConflictOptions { attach_completion_callbacks: true, ..Default::default() });
            },
            Err("attaching request ID is required for attaching completion callbacks"),
        );
    }

    #[test]
    #[allow(deprecated)]
    fn defaults() {
        let mut request = request();
        request.workflow_id_reuse_policy = WorkflowIdReusePolicy::TerminateIfRunning as i32;
        prepare(&mut request, &Limits::default()).expect("valid");
        assert_eq!(request.workflow_id_reuse_policy, WorkflowIdReusePolicy::AllowDuplicate as i32);
        assert_eq!(request.workflow_id_conflict_policy, WorkflowIdConflictPolicy::TerminateExisting as i32);
        assert!(validate::is_uuid(&request.request_id));
    }
}
