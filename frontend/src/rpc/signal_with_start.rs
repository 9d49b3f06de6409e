//! SignalWithStartWorkflowExecution.

use perdure_proto::{
    Error,
    perdure::node::v1::{workflow_call, workflow_reply},
    temporal::api::{
        enums::v1::WorkflowIdConflictPolicy,
        workflowservice::v1::{SignalWithStartWorkflowExecutionRequest, SignalWithStartWorkflowExecutionResponse},
    },
};
use perdure_types::Limits;

use crate::{
    call::Call,
    rpc::start::{default_id_policies, id_policies, memo, refuse_unbuilt, start_delay, timeouts},
    search_attributes, validate, versioning,
};

pub(crate) async fn signal_with_start_workflow_execution(
    call: &Call<'_>,
    mut request: SignalWithStartWorkflowExecutionRequest,
) -> Result<SignalWithStartWorkflowExecutionResponse, Error> {
    let namespace = call.namespace_for_start(&request.namespace)?;
    prepare(&mut request, call.limits())?;
    search_attributes::check(call, &namespace, request.search_attributes.as_ref()).await?;
    let task_queue = request.task_queue.as_ref().map_or("", |queue| &queue.name);
    versioning::check_override(call, &namespace, request.versioning_override.as_ref(), task_queue).await?;
    let workflow_id = request.workflow_id.clone();
    match call
        .workflow(namespace.id(), &workflow_id, workflow_call::Command::SignalWithStart(Box::new(request)))
        .await?
    {
        workflow_reply::Reply::SignalWithStart(reply) => Ok(reply),
        _ => Err(call.unexpected_reply()),
    }
}

/// Checks the request and fills in what it leaves open.
fn prepare(request: &mut SignalWithStartWorkflowExecutionRequest, limits: &Limits) -> Result<(), Error> {
    validate::new_workflow_id(&request.workflow_id, limits)?;
    name("signal", "signal name", &request.signal_name, limits)?;
    let workflow_type = request.workflow_type.as_ref().map_or("", |t| t.name.as_str());
    name("workflow type", "workflow type name", workflow_type, limits)?;
    validate::user_task_queue(request.task_queue.as_mut(), limits)?;
    validate::request_id(&mut request.request_id, limits)?;
    timeouts([
        ("WorkflowExecutionTimeoutSeconds", request.workflow_execution_timeout.as_mut()),
        ("WorkflowRunTimeoutSeconds", request.workflow_run_timeout.as_mut()),
        ("WorkflowTaskTimeoutSeconds", request.workflow_task_timeout.as_mut()),
    ])?;
    validate::retry_policy(request.retry_policy.as_mut(), limits)?;
    start_delay(&request.cron_schedule, request.workflow_start_delay.as_mut())?;
    id_policies(request.workflow_id_reuse_policy, request.workflow_id_conflict_policy)?;
    if request.workflow_id_conflict_policy == WorkflowIdConflictPolicy::Fail as i32 {
        return Err(Error::invalid_argument(
            "Invalid WorkflowIDConflictPolicy: WORKFLOW_ID_CONFLICT_POLICY_FAIL is not supported for this operation.",
        ));
    }
    default_id_policies(
        &mut request.workflow_id_reuse_policy,
        &mut request.workflow_id_conflict_policy,
        WorkflowIdConflictPolicy::UseExisting,
    );
    validate::priority(request.priority.as_ref())?;
    validate::links(&request.links, &[])?;
    refuse_unbuilt(request.versioning_override.as_ref(), request.time_skipping_config.as_ref(), limits)?;
    validate::payloads(request.input.as_ref(), limits)?;
    validate::payloads(request.signal_input.as_ref(), limits)?;
    memo(validate::size(request.memo.as_ref()), limits)
}

fn name(field: &str, long_field: &str, value: &str, limits: &Limits) -> Result<(), Error> {
    if value.is_empty() {
        return Err(Error::invalid_argument(format!("{field} not set")));
    }
    if validate::is_too_long(value, limits) {
        return Err(Error::invalid_argument(format!(
            "{long_field} exceeds maximum allowed length ({}/{})",
            value.len(),
            limits.max_id_length
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use perdure_proto::temporal::api::{
        common::v1::WorkflowType, enums::v1::WorkflowIdReusePolicy, taskqueue::v1::TaskQueue,
    };

    use super::*;

    fn request() -> SignalWithStartWorkflowExecutionRequest {
        SignalWithStartWorkflowExecutionRequest {
            namespace: "default".into(),
            workflow_id: "w".into(),
            workflow_type: Some(WorkflowType { name: "Order".into() }),
            task_queue: Some(TaskQueue { name: "orders".into(), ..Default::default() }),
            signal_name: "approve".into(),
            ..Default::default()
        }
    }

    fn check(change: impl FnOnce(&mut SignalWithStartWorkflowExecutionRequest), expect: Result<(), &str>) {
        let mut request = request();
        change(&mut request);
        assert_eq!(prepare(&mut request, &Limits::default()).map_err(|e| e.message), expect.map_err(str::to_owned));
    }

    #[test]
    fn rules() {
        check(|_| {}, Ok(()));
        check(|r| r.signal_name.clear(), Err("signal not set"));
        check(|r| r.signal_name = "s".repeat(1001), Err("signal name exceeds maximum allowed length (1001/1000)"));
        check(|r| r.workflow_type = None, Err("workflow type not set"));
        check(
            |r| r.workflow_id_conflict_policy = WorkflowIdConflictPolicy::Fail as i32,
            Err("Invalid WorkflowIDConflictPolicy: WORKFLOW_ID_CONFLICT_POLICY_FAIL is not supported for this \
                 operation."),
        );
    }

    #[test]
    fn by_default_the_existing_run_is_signaled() {
        let mut request = request();
        prepare(&mut request, &Limits::default()).expect("valid");
        assert_eq!(request.workflow_id_conflict_policy, WorkflowIdConflictPolicy::UseExisting as i32);
        assert_eq!(request.workflow_id_reuse_policy, WorkflowIdReusePolicy::AllowDuplicate as i32);
        assert!(!request.request_id.is_empty());
    }
}
