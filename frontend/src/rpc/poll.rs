//! PollWorkflowTaskQueue, PollActivityTaskQueue and PollNexusTaskQueue.
//!
//! The task queue's home is told how long the client waits, and answers before that, with nothing if there is nothing. When
//! this node shuts down its polls end at once. Dropping the call to the home takes the poll back.

use std::time::Duration;

use perdure_proto::{
    Code, Error, build_ids,
    perdure::{
        nexus::v1::{NexusTaskCall, nexus_task_call, nexus_task_reply},
        node::v1::{PollActivityTask, PollWorkflowTask, matching_call, matching_reply},
    },
    temporal::api::{
        common::v1::WorkerVersionCapabilities,
        deployment::v1::WorkerDeploymentOptions,
        enums::v1::{TaskQueueKind, WorkerVersioningMode},
        workflowservice::v1::{
            PollActivityTaskQueueRequest, PollActivityTaskQueueResponse, PollNexusTaskQueueRequest,
            PollNexusTaskQueueResponse, PollWorkflowTaskQueueRequest, PollWorkflowTaskQueueResponse,
        },
    },
    versions,
};
use perdure_types::Limits;

use crate::{call::Call, rpc::worker, token, validate};

/// Of a client that sets no deadline.
const LONGEST_POLL: Duration = Duration::from_secs(60);

pub(crate) async fn poll_workflow_task_queue(
    call: &Call<'_>,
    mut request: PollWorkflowTaskQueueRequest,
) -> Result<PollWorkflowTaskQueueResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    validate::identity(&request.identity, call.limits())?;
    #[allow(deprecated)]
    versioning(request.worker_version_capabilities.as_ref(), request.deployment_options.as_ref(), call.limits())?;
    let versioned = is_versioned(&request);
    let queue = validate::task_queue(request.task_queue.as_mut(), call.limits())?;
    if queue.kind() == TaskQueueKind::Sticky && queue.normal_name.is_empty() && versioned {
        let message = "WorkerVersionCapabilities requires normal_name set on sticky task queue";
        return Err(Error::invalid_argument(message));
    }
    let task_queue = queue.name.clone();
    let command = matching_call::Command::PollWorkflowTask(PollWorkflowTask { request: Some(request) });
    let until = call.long_poll_until(LONGEST_POLL);
    let poll = call.matching_until(Some(until), namespace.id(), &task_queue, command);
    match call.poll(until, poll).await? {
        Some(matching_reply::Reply::WorkflowTask(mut task)) => {
            call.hands_out(&mut task.task_token);
            Ok(task)
        }
        Some(matching_reply::Reply::Empty(_)) | None => Ok(PollWorkflowTaskQueueResponse::default()),
        Some(_) => Err(call.unexpected_reply()),
    }
}

pub(crate) async fn poll_activity_task_queue(
    call: &Call<'_>,
    mut request: PollActivityTaskQueueRequest,
) -> Result<PollActivityTaskQueueResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    let task_queue = validate::task_queue(request.task_queue.as_mut(), call.limits())?.name.clone();
    validate::identity(&request.identity, call.limits())?;
    #[allow(deprecated)]
    versioning(request.worker_version_capabilities.as_ref(), request.deployment_options.as_ref(), call.limits())?;
    let command = matching_call::Command::PollActivityTask(PollActivityTask { request: Some(request) });
    let until = call.long_poll_until(LONGEST_POLL);
    let poll = call.matching_until(Some(until), namespace.id(), &task_queue, command);
    match call.poll(until, poll).await? {
        Some(matching_reply::Reply::ActivityTask(mut task)) => {
            call.hands_out(&mut task.task_token);
            Ok(task)
        }
        Some(matching_reply::Reply::Empty(_)) | None => Ok(PollActivityTaskQueueResponse::default()),
        Some(_) => Err(call.unexpected_reply()),
    }
}

pub(crate) async fn poll_nexus_task_queue(
    call: &Call<'_>,
    mut request: PollNexusTaskQueueRequest,
) -> Result<PollNexusTaskQueueResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    let task_queue = validate::task_queue(request.task_queue.as_mut(), call.limits())?.name.clone();
    validate::identity(&request.identity, call.limits())?;
    #[allow(deprecated)]
    versioning(request.worker_version_capabilities.as_ref(), request.deployment_options.as_ref(), call.limits())?;
    let heartbeats = std::mem::take(&mut request.worker_heartbeat);
    if !heartbeats.is_empty() {
        worker::record(call, namespace.id(), heartbeats).await?;
    }
    let command = NexusTaskCall { command: Some(nexus_task_call::Command::Poll(request)) };
    let command = matching_call::Command::Nexus(Box::new(command));
    let until = call.long_poll_until(LONGEST_POLL);
    let poll = call.matching_until(Some(until), namespace.id(), &task_queue, command);
    match call.poll(until, poll).await? {
        Some(matching_reply::Reply::Nexus(reply)) => match reply.reply {
            // Its sender waits for the answer, and asks again if there is none.
            Some(nexus_task_reply::Reply::Task(mut task)) => {
                task.task_token = token::seal(&task.task_token);
                Ok(task)
            }
            Some(nexus_task_reply::Reply::Outcome(_)) | None => Err(call.unexpected_reply()),
        },
        Some(matching_reply::Reply::Empty(_)) | None => Ok(PollNexusTaskQueueResponse::default()),
        Some(_) => Err(call.unexpected_reply()),
    }
}

#[allow(deprecated)]
fn is_versioned(poll: &PollWorkflowTaskQueueRequest) -> bool {
    let (older, options) = (poll.worker_version_capabilities.as_ref(), poll.deployment_options.as_ref());
    versions::of_worker(options).is_some() || build_ids::of_worker(older, options).is_some()
}

/// What a worker says of its version, in the new form or in an older one.
fn versioning(
    capabilities: Option<&WorkerVersionCapabilities>,
    deployment: Option<&WorkerDeploymentOptions>,
    limits: &Limits,
) -> Result<(), Error> {
    let is_versioned = deployment.is_some_and(|d| d.worker_versioning_mode == WorkerVersioningMode::Versioned as i32);
    // Who knows deployments may say it in the older form too.
    if let Some(older) = capabilities.filter(|older| older.use_versioning && !is_versioned) {
        if !limits.versioned_workers {
            let message = "Worker versioning in workflow progress APIs is disabled on this namespace.";
            return Err(Error::new(Code::PermissionDenied, message));
        }
        if older.build_id.is_empty() {
            let message = "WorkerVersionStamp must be present if UseVersioning is true.";
            return Err(Error::invalid_argument(message));
        }
        if older.build_id.len() as i64 > limits.build_id_length {
            let message = "Build ID exceeds configured limit.workerBuildIdSize, use a shorter build ID.";
            return Err(Error::invalid_argument(message));
        }
    }
    let Some(deployment) = deployment.filter(|_| is_versioned) else { return Ok(()) };
    if deployment.deployment_name.is_empty() || deployment.build_id.is_empty() {
        return Err(Error::invalid_argument("Deployment name and build id must be set together."));
    }
    let version = versions::version(&deployment.deployment_name, &deployment.build_id);
    versions::check_version(&version, limits.max_id_length).map_err(Error::invalid_argument)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_checked() {
        let check = |mode: WorkerVersioningMode, name: &str, expect: Result<(), Code>| {
            let options = WorkerDeploymentOptions {
                deployment_name: name.into(),
                build_id: "1".into(),
                worker_versioning_mode: mode as i32,
            };
            assert_eq!(versioning(None, Some(&options), &Limits::default()).map_err(|e| e.grpc_code()), expect);
        };
        check(WorkerVersioningMode::Unversioned, "", Ok(()));
        check(WorkerVersioningMode::Versioned, "", Err(Code::InvalidArgument));
        check(WorkerVersioningMode::Versioned, "orders", Ok(()));
        check(WorkerVersioningMode::Versioned, "or.ders", Err(Code::InvalidArgument));
        assert!(versioning(None, None, &Limits::default()).is_ok());
        let mut old = WorkerVersionCapabilities { use_versioning: true, ..WorkerVersionCapabilities::default() };
        let new = WorkerDeploymentOptions {
            deployment_name: "orders".into(),
            build_id: "1".into(),
            worker_versioning_mode: WorkerVersioningMode::Versioned as i32,
        };
        let refused = versioning(Some(&old), None, &Limits::default()).map_err(|e| e.grpc_code());
        assert_eq!(refused, Err(Code::InvalidArgument));
        old.build_id = "1".into();
        assert!(versioning(Some(&old), None, &Limits::default()).is_ok());
        let off = Limits { versioned_workers: false, ..Limits::default() };
        let refused = versioning(Some(&old), None, &off).map_err(|e| e.grpc_code());
        assert_eq!(refused, Err(Code::PermissionDenied));
        assert!(versioning(Some(&old), Some(&new), &Limits::default()).is_ok(), "both forms at once");
    }
}
