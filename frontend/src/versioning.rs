//! Overrides of versioning in requests: an execution may be pinned only where workers of the version poll.

use perdure_cluster::Namespace;
use perdure_proto::{
    Error,
    perdure::node::v1::{TaskQueueCommand, task_queue_command, workflow_call, workflow_reply},
    temporal::api::{enums::v1::TaskQueueType, workflow::v1::VersioningOverride},
    versions,
};
use perdure_types::EntityKind;

use crate::call::Call;

/// Checks that an override leads to workers of this queue.
pub(crate) async fn check_override(
    call: &Call<'_>,
    namespace: &Namespace,
    over: Option<&VersioningOverride>,
    task_queue: &str,
) -> Result<(), Error> {
    let Some(version) = over.and_then(versions::override_target) else { return Ok(()) };
    let command = TaskQueueCommand { command: Some(task_queue_command::Command::Follow(-1)) };
    let command = workflow_call::Command::TaskQueue(Box::new(command));
    let state = match call.entity(EntityKind::TaskQueue, namespace.id(), task_queue, command).await? {
        workflow_reply::Reply::TaskQueue(state) => state,
        _ => return Err(call.unexpected_reply()),
    };
    let deployments = state.deployments.iter().filter(|deployment| deployment.name == version.deployment_name);
    let here = deployments
        .flat_map(|deployment| &deployment.versions)
        .any(|known| known.build_id == version.build_id && known.types.contains(&(TaskQueueType::Workflow as i32)));
    if here {
        return Ok(());
    }
    Err(Error::failed_precondition(format!(
        "Pinned version '{}' is not present in task queue '{task_queue}' of type 'Workflow'",
        versions::text(&version)
    )))
}
