//! ShutdownWorker and RecordWorkerHeartbeat.

use perdure_proto::{
    Error,
    perdure::node::v1::{WorkerHeartbeats, matching_call},
    temporal::api::{
        worker::v1::WorkerHeartbeat,
        workflowservice::v1::{
            RecordWorkerHeartbeatRequest, RecordWorkerHeartbeatResponse, ShutdownWorkerRequest, ShutdownWorkerResponse,
        },
    },
};

use crate::{call::Call, validate};

/// Name of the task queue whose home knows the workers of a namespace. No worker can poll it.
pub(super) const WORKERS: &str = "";

pub(super) async fn record(call: &Call<'_>, namespace_id: &str, heartbeats: Vec<WorkerHeartbeat>) -> Result<(), Error> {
    let command = matching_call::Command::RecordWorkerHeartbeats(WorkerHeartbeats { heartbeats });
    call.matching(namespace_id, WORKERS, command).await.map(drop)
}

pub(crate) async fn shutdown_worker(
    call: &Call<'_>,
    mut request: ShutdownWorkerRequest,
) -> Result<ShutdownWorkerResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    for name in [&request.sticky_task_queue, &request.task_queue] {
        if validate::is_too_long(name, call.limits()) {
            return Err(Error::invalid_argument("taskQueue length exceeds limit"));
        }
    }
    if let Some(heartbeat) = request.worker_heartbeat.take() {
        record(call, namespace.id(), vec![heartbeat]).await?;
    }
    // The two queues may have different homes; each does its part.
    let mut homes = vec![request.sticky_task_queue.clone(), request.task_queue.clone()];
    homes.retain(|home| !home.is_empty());
    for home in homes {
        let command = matching_call::Command::ShutdownWorker(Box::new(request.clone()));
        call.matching(namespace.id(), &home, command).await?;
    }
    Ok(ShutdownWorkerResponse::default())
}

pub(crate) async fn record_worker_heartbeat(
    call: &Call<'_>,
    request: RecordWorkerHeartbeatRequest,
) -> Result<RecordWorkerHeartbeatResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    record(call, namespace.id(), request.worker_heartbeat).await?;
    Ok(RecordWorkerHeartbeatResponse::default())
}
