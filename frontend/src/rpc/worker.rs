//! ShutdownWorker and RecordWorkerHeartbeat.

use perdure_proto::{
    Error,
    perdure::node::v1::matching_call,
    temporal::api::workflowservice::v1::{
        RecordWorkerHeartbeatRequest, RecordWorkerHeartbeatResponse, ShutdownWorkerRequest, ShutdownWorkerResponse,
    },
};

use crate::{call::Call, validate};

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
        call.frontend().workers().record(namespace.id(), vec![heartbeat]);
    }
    // The two queues may have different homes; each does its part.
    let mut homes = vec![request.sticky_task_queue.clone(), request.task_queue.clone()];
    homes.retain(|home| !home.is_empty());
    for home in homes {
        let command = matching_call::Command::ShutdownWorker(request.clone());
        call.matching(namespace.id(), &home, command).await?;
    }
    Ok(ShutdownWorkerResponse::default())
}

pub(crate) async fn record_worker_heartbeat(
    call: &Call<'_>,
    request: RecordWorkerHeartbeatRequest,
) -> Result<RecordWorkerHeartbeatResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    call.frontend().workers().record(namespace.id(), request.worker_heartbeat);
    Ok(RecordWorkerHeartbeatResponse::default())
}
