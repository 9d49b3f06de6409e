//! ListWorkers, CountWorkers and DescribeWorker: what the workers of a namespace told in their last heartbeats.

use perdure_proto::{
    Error,
    perdure::node::v1::{Empty, matching_call, matching_reply},
    temporal::api::{
        enums::v1::{IndexedValueType as Kind, WorkerStatus},
        worker::v1::{WorkerHeartbeat, WorkerHostInfo, WorkerInfo, WorkerListInfo},
        workflowservice::v1::{
            CountWorkersRequest, CountWorkersResponse, DescribeWorkerRequest, DescribeWorkerResponse,
            ListWorkersRequest, ListWorkersResponse,
        },
    },
};
use perdure_types::Timestamp;
use perdure_visibility::{Attributes, Field, Query};

use super::worker::WORKERS;
use crate::call::Call;

/// Also the size of a page when none is asked for.
const LARGEST_PAGE: usize = 1_000;

/// What a query may name.
const ATTRIBUTES: [(&str, Kind); 11] = [
    ("BuildId", Kind::Keyword),
    ("DeploymentName", Kind::Keyword),
    ("HostName", Kind::Keyword),
    ("LastHeartbeatTime", Kind::Datetime),
    ("SdkName", Kind::Keyword),
    ("SdkVersion", Kind::Keyword),
    ("StartTime", Kind::Datetime),
    ("Status", Kind::Keyword),
    ("TaskQueue", Kind::Keyword),
    ("WorkerIdentity", Kind::Keyword),
    ("WorkerInstanceKey", Kind::Keyword),
];

#[allow(deprecated)]
pub(crate) async fn list_workers(call: &Call<'_>, request: ListWorkersRequest) -> Result<ListWorkersResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    let after = String::from_utf8(request.next_page_token.to_vec())
        .map_err(|_| Error::invalid_argument("Invalid NextPageToken."))?;
    let mut found = matching(call, namespace.id(), &request.query).await?;
    found.retain(|worker| worker.worker_instance_key > after);
    let wanted = usize::try_from(request.page_size).unwrap_or_default();
    let page = if wanted == 0 { LARGEST_PAGE } else { wanted.min(LARGEST_PAGE) };
    let more = found.len() > page;
    found.truncate(page);
    let next = found.last().filter(|_| more).map(|worker| worker.worker_instance_key.clone()).unwrap_or_default();
    Ok(ListWorkersResponse {
        workers: found.iter().map(list_info).collect(),
        workers_info: found.into_iter().map(|worker| WorkerInfo { worker_heartbeat: Some(worker) }).collect(),
        next_page_token: next.into(),
    })
}

pub(crate) async fn count_workers(
    call: &Call<'_>,
    request: CountWorkersRequest,
) -> Result<CountWorkersResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    let found = matching(call, namespace.id(), &request.query).await?;
    Ok(CountWorkersResponse { count: i64::try_from(found.len()).unwrap_or(i64::MAX) })
}

pub(crate) async fn describe_worker(
    call: &Call<'_>,
    request: DescribeWorkerRequest,
) -> Result<DescribeWorkerResponse, Error> {
    let namespace = call.namespace(&request.namespace)?;
    let key = request.worker_instance_key;
    if key.is_empty() {
        return Err(Error::invalid_argument("WorkerInstanceKey is not set on request."));
    }
    let found = all(call, namespace.id()).await?.into_iter().find(|worker| worker.worker_instance_key == key);
    let worker = found.ok_or_else(|| Error::not_found(format!("Worker {key} not found")))?;
    Ok(DescribeWorkerResponse { worker_info: Some(WorkerInfo { worker_heartbeat: Some(worker) }) })
}

/// By instance key.
async fn all(call: &Call<'_>, namespace_id: &str) -> Result<Vec<WorkerHeartbeat>, Error> {
    match call.matching(namespace_id, WORKERS, matching_call::Command::ListWorkers(Empty {})).await? {
        matching_reply::Reply::Workers(workers) => Ok(workers.heartbeats),
        _ => Err(call.unexpected_reply()),
    }
}

async fn matching(call: &Call<'_>, namespace_id: &str, query: &str) -> Result<Vec<WorkerHeartbeat>, Error> {
    let query = Query::parse(query, &Attributes::only(ATTRIBUTES))
        .and_then(|query| query.check_list().map(|()| query))
        .map_err(|error| Error::invalid_argument(error.to_string()))?;
    let mut found = all(call, namespace_id).await?;
    found.retain(|worker| query.admits_record(|name| field(worker, name)));
    Ok(found)
}

fn field(worker: &WorkerHeartbeat, name: &str) -> Field {
    let text = |text: &str| if text.is_empty() { Field::Absent } else { Field::Text(text.to_owned()) };
    let time = |time: Option<&_>| time.map_or(Field::Absent, |time| Field::Time(Timestamp::from_proto(Some(time))));
    let version = worker.deployment_version.as_ref();
    match name {
        "BuildId" => version.map_or(Field::Absent, |version| text(&version.build_id)),
        "DeploymentName" => version.map_or(Field::Absent, |version| text(&version.deployment_name)),
        "HostName" => worker.host_info.as_ref().map_or(Field::Absent, |host| text(&host.host_name)),
        "LastHeartbeatTime" => time(worker.heartbeat_time.as_ref()),
        "SdkName" => text(&worker.sdk_name),
        "SdkVersion" => text(&worker.sdk_version),
        "StartTime" => time(worker.start_time.as_ref()),
        "Status" => text(status_name(worker.status())),
        "TaskQueue" => text(&worker.task_queue),
        "WorkerIdentity" => text(&worker.worker_identity),
        "WorkerInstanceKey" => text(&worker.worker_instance_key),
        _ => Field::Absent,
    }
}

/// As the CLI and the UI spell it in queries.
fn status_name(status: WorkerStatus) -> &'static str {
    match status {
        WorkerStatus::Unspecified => "Unspecified",
        WorkerStatus::Running => "Running",
        WorkerStatus::ShuttingDown => "ShuttingDown",
        WorkerStatus::Shutdown => "Shutdown",
    }
}

fn list_info(worker: &WorkerHeartbeat) -> WorkerListInfo {
    let nowhere = WorkerHostInfo::default();
    let host = worker.host_info.as_ref().unwrap_or(&nowhere);
    WorkerListInfo {
        worker_instance_key: worker.worker_instance_key.clone(),
        worker_identity: worker.worker_identity.clone(),
        task_queue: worker.task_queue.clone(),
        deployment_version: worker.deployment_version.clone(),
        sdk_name: worker.sdk_name.clone(),
        sdk_version: worker.sdk_version.clone(),
        status: worker.status,
        start_time: worker.start_time,
        host_name: host.host_name.clone(),
        worker_grouping_key: host.worker_grouping_key.clone(),
        process_id: host.process_id.clone(),
        plugins: worker.plugins.clone(),
        drivers: worker.drivers.clone(),
    }
}
