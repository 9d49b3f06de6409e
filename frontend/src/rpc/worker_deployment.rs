//! Worker deployments and their versions: all calls go to the deployment, an entity of its own.

#![allow(deprecated, reason = "older clients still send what newer ones replaced")]

use perdure_proto::{
    Error,
    perdure::node::v1::{
        DeploymentCommand, deployment_command::Command, deployment_reply::Reply, matching_call, matching_reply,
        workflow_call, workflow_reply,
    },
    temporal::api::{
        deployment::v1::WorkerDeploymentVersion,
        enums::v1::{DescribeTaskQueueMode, TaskQueueKind, TaskQueueType},
        taskqueue::v1::{TaskQueue, TaskQueueTypeInfo, TaskQueueVersionSelection},
        workflow::v1::WorkflowExecutionInfo,
        workflowservice::v1::{
            describe_worker_deployment_version_response::VersionTaskQueue,
            list_worker_deployments_response::WorkerDeploymentSummary, *,
        },
    },
    versions,
};
use perdure_types::{ChainKey, EntityKind};
use prost::Message;

use super::list::page_of;
use crate::call::Call;

/// Where a row of the list carries what is shown of the deployment.
const SUMMARY: &str = "WorkerDeploymentSummary";

/// Deployments of one namespace (`matching.maxDeployments`).
const MOST_DEPLOYMENTS: u64 = 100;

struct To<'a> {
    call: &'a Call<'a>,
    namespace: String,
    namespace_id: String,
    deployment: String,
}

impl<'a> To<'a> {
    fn new(call: &'a Call<'a>, namespace: &str, deployment: &str) -> Result<Self, Error> {
        let found = call.namespace(namespace)?;
        versions::check_name(versions::DEPLOYMENT_NAME, deployment, call.limits().max_id_length)
            .map_err(Error::invalid_argument)?;
        Ok(Self {
            call,
            namespace: namespace.to_owned(),
            namespace_id: found.id().to_owned(),
            deployment: deployment.to_owned(),
        })
    }

    async fn send(&self, command: Command) -> Result<Reply, Error> {
        self.send_with(DeploymentCommand { command: Some(command), ..DeploymentCommand::default() }).await
    }

    async fn send_with(&self, mut command: DeploymentCommand) -> Result<Reply, Error> {
        command.namespace.clone_from(&self.namespace);
        let command = workflow_call::Command::Deployment(Box::new(command));
        match self.call.entity(EntityKind::Deployment, &self.namespace_id, &self.deployment, command).await? {
            workflow_reply::Reply::Deployment(reply) => reply.reply.ok_or_else(|| self.call.unexpected_reply()),
            _ => Err(self.call.unexpected_reply()),
        }
    }

    async fn queues_of(&self, build_id: &str) -> Result<Vec<VersionTaskQueue>, Error> {
        let request = DescribeWorkerDeploymentVersionRequest {
            deployment_version: Some(versions::version(&self.deployment, build_id)),
            ..DescribeWorkerDeploymentVersionRequest::default()
        };
        match self.send(Command::DescribeVersion(request)).await? {
            Reply::DescribeVersion(reply) => Ok(reply.version_task_queues),
            _ => Err(self.call.unexpected_reply()),
        }
    }

    /// What a queue's home says of it.
    async fn describe_queue(
        &self,
        name: &str,
        mut request: DescribeTaskQueueRequest,
    ) -> Result<DescribeTaskQueueResponse, Error> {
        let kind = TaskQueueKind::Normal as i32;
        request.task_queue = Some(TaskQueue { name: name.to_owned(), kind, ..TaskQueue::default() });
        request.namespace.clone_from(&self.namespace);
        match self.call.matching(&self.namespace_id, name, matching_call::Command::Describe(request)).await? {
            matching_reply::Reply::Describe(reply) => Ok(reply),
            _ => Err(self.call.unexpected_reply()),
        }
    }

    /// Pollers and statistics of one version on one queue.
    async fn version_on(&self, build_id: &str, queue: &VersionTaskQueue) -> Result<TaskQueueTypeInfo, Error> {
        let version = versions::text(&versions::version(&self.deployment, build_id));
        let request = DescribeTaskQueueRequest {
            api_mode: DescribeTaskQueueMode::Enhanced as i32,
            task_queue_types: vec![queue.r#type],
            task_queue_type: TaskQueueType::Workflow as i32,
            versions: Some(TaskQueueVersionSelection { build_ids: vec![version.clone()], ..Default::default() }),
            report_stats: true,
            report_pollers: true,
            ..DescribeTaskQueueRequest::default()
        };
        let mut described = self.describe_queue(&queue.name, request).await?;
        let info = described.versions_info.remove(&version).unwrap_or_default();
        Ok(info.types_info.into_values().next().unwrap_or_default())
    }

    /// Whether queues of the current version that are in use have no workers of the version that is to get its work.
    async fn misses_task_queues(&self, build_id: &str) -> Result<bool, Error> {
        let routing = match self.send(Command::Describe(DescribeWorkerDeploymentRequest::default())).await {
            Ok(Reply::Describe(reply)) => reply.worker_deployment_info.and_then(|info| info.routing_config),
            // The change itself says so.
            Err(_) => None,
            Ok(_) => return Err(self.call.unexpected_reply()),
        };
        let current = routing.and_then(|routing| routing.current_deployment_version);
        let Some(current) = current.filter(|current| current.build_id != build_id) else {
            return Ok(false);
        };
        let Ok(new) = self.queues_of(build_id).await else { return Ok(false) };
        for queue in self.queues_of(&current.build_id).await? {
            if new.iter().any(|served| served.name == queue.name && served.r#type == queue.r#type) {
                continue;
            }
            let request = DescribeTaskQueueRequest { task_queue_type: queue.r#type, ..Default::default() };
            let described = self.describe_queue(&queue.name, request).await?;
            let own = described.versioning_info.and_then(|info| info.current_deployment_version);
            if own.is_some_and(|own| own != current) {
                continue;
            }
            let stats = self.version_on(&current.build_id, &queue).await?.stats.unwrap_or_default();
            if stats.approximate_backlog_count != 0 || stats.tasks_add_rate != 0.0 {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// The deployment that a request about a version is for.
fn deployment_of(version: Option<&WorkerDeploymentVersion>, legacy: &str, limit: i64) -> Result<String, Error> {
    if let Some(version) = version {
        versions::check_version(version, limit).map_err(Error::invalid_argument)?;
        return Ok(version.deployment_name.clone());
    }
    if legacy.is_empty() {
        return Err(Error::invalid_argument("deployment version cannot be empty"));
    }
    match versions::parse(legacy) {
        Ok(Some(version)) => Ok(version.deployment_name),
        Ok(None) | Err(_) => Err(Error::invalid_argument(format!(
            "invalid version string {legacy:?}, expected format is \"<deployment_name>.<build_id>\""
        ))),
    }
}

pub(crate) async fn describe_worker_deployment(
    call: &Call<'_>,
    request: DescribeWorkerDeploymentRequest,
) -> Result<DescribeWorkerDeploymentResponse, Error> {
    let to = To::new(call, &request.namespace, &request.deployment_name)?;
    match to.send(Command::Describe(request)).await? {
        Reply::Describe(reply) => Ok(reply),
        _ => Err(call.unexpected_reply()),
    }
}

pub(crate) async fn describe_worker_deployment_version(
    call: &Call<'_>,
    request: DescribeWorkerDeploymentVersionRequest,
) -> Result<DescribeWorkerDeploymentVersionResponse, Error> {
    let limit = call.limits().max_id_length;
    let deployment = deployment_of(request.deployment_version.as_ref(), &request.version, limit)?;
    let to = To::new(call, &request.namespace, &deployment)?;
    let with_stats = request.report_task_queue_stats;
    let reply = match to.send(Command::DescribeVersion(request)).await {
        Ok(Reply::DescribeVersion(reply)) => reply,
        Ok(_) => return Err(call.unexpected_reply()),
        Err(error) if error.grpc_code() == perdure_proto::Code::NotFound => {
            return Err(Error::not_found("Worker Deployment Version not found"));
        }
        Err(error) => return Err(error),
    };
    let mut reply = reply;
    if with_stats {
        let info = reply.worker_deployment_version_info.as_ref();
        let build_id = info.and_then(|info| info.deployment_version.as_ref()).map(|v| v.build_id.clone());
        for queue in &mut reply.version_task_queues {
            let found = to.version_on(build_id.as_deref().unwrap_or_default(), queue).await?;
            queue.stats = Some(found.stats.unwrap_or_default());
        }
    }
    Ok(reply)
}

pub(crate) async fn set_worker_deployment_current_version(
    call: &Call<'_>,
    request: SetWorkerDeploymentCurrentVersionRequest,
) -> Result<SetWorkerDeploymentCurrentVersionResponse, Error> {
    if request.deployment_name.is_empty() {
        return Err(Error::invalid_argument("deployment name cannot be empty"));
    }
    let to = To::new(call, &request.namespace, &request.deployment_name)?;
    let build_id = named_build_id(&request.build_id, &request.version);
    let misses_task_queues =
        !request.ignore_missing_task_queues && !build_id.is_empty() && to.misses_task_queues(&build_id).await?;
    let command = Some(Command::SetCurrent(request));
    let command = DeploymentCommand { command, misses_task_queues, ..DeploymentCommand::default() };
    match to.send_with(command).await? {
        Reply::SetCurrent(reply) => Ok(reply),
        _ => Err(call.unexpected_reply()),
    }
}

pub(crate) async fn set_worker_deployment_ramping_version(
    call: &Call<'_>,
    request: SetWorkerDeploymentRampingVersionRequest,
) -> Result<SetWorkerDeploymentRampingVersionResponse, Error> {
    if !(0.0..=100.0).contains(&request.percentage) {
        return Err(Error::invalid_argument("Percentage must be between 0 and 100 (inclusive)"));
    }
    let to = To::new(call, &request.namespace, &request.deployment_name)?;
    let build_id = named_build_id(&request.build_id, &request.version);
    let misses_task_queues =
        !request.ignore_missing_task_queues && !build_id.is_empty() && to.misses_task_queues(&build_id).await?;
    let command = Some(Command::SetRamping(request));
    let command = DeploymentCommand { command, misses_task_queues, ..DeploymentCommand::default() };
    match to.send_with(command).await? {
        Reply::SetRamping(reply) => Ok(reply),
        _ => Err(call.unexpected_reply()),
    }
}

fn named_build_id(build_id: &str, legacy: &str) -> String {
    if !build_id.is_empty() {
        return build_id.to_owned();
    }
    versions::parse(legacy).ok().flatten().map(|version| version.build_id).unwrap_or_default()
}

pub(crate) async fn set_worker_deployment_manager(
    call: &Call<'_>,
    request: SetWorkerDeploymentManagerRequest,
) -> Result<SetWorkerDeploymentManagerResponse, Error> {
    if request.identity.is_empty() {
        return Err(Error::invalid_argument("Identity is required to set the manager of a Worker Deployment."));
    }
    let to = To::new(call, &request.namespace, &request.deployment_name)?;
    match to.send(Command::SetManager(request)).await? {
        Reply::SetManager(reply) => Ok(reply),
        _ => Err(call.unexpected_reply()),
    }
}

pub(crate) async fn update_worker_deployment_version_metadata(
    call: &Call<'_>,
    request: UpdateWorkerDeploymentVersionMetadataRequest,
) -> Result<UpdateWorkerDeploymentVersionMetadataResponse, Error> {
    if request.remove_entries.is_empty() && request.upsert_entries.is_empty() {
        return Err(Error::invalid_argument("At least one of remove_entries or upsert_entries must be provided"));
    }
    let limit = call.limits().max_id_length;
    let deployment = deployment_of(request.deployment_version.as_ref(), &request.version, limit)?;
    let to = To::new(call, &request.namespace, &deployment)?;
    match to.send(Command::UpdateMetadata(request)).await? {
        Reply::UpdateMetadata(reply) => Ok(reply),
        _ => Err(call.unexpected_reply()),
    }
}

pub(crate) async fn create_worker_deployment(
    call: &Call<'_>,
    request: CreateWorkerDeploymentRequest,
) -> Result<CreateWorkerDeploymentResponse, Error> {
    let to = To::new(call, &request.namespace, &request.deployment_name)?;
    let namespace = call.namespace(&request.namespace)?;
    let list_id = ChainKey::of(EntityKind::Deployment, namespace.id(), "").list_id();
    let (query, _) = crate::search_attributes::parse_query(call, &namespace, "", |_| Ok(())).await?;
    let rows = call.frontend().rows()?;
    if perdure_visibility::count(&*rows, &list_id, &query).await?.total >= MOST_DEPLOYMENTS {
        return Err(Error::resource_exhausted(
            format!("reached maximum deployments in namespace ({MOST_DEPLOYMENTS})"),
            perdure_proto::temporal::api::enums::v1::ResourceExhaustedCause::WorkerDeploymentLimits,
            perdure_proto::temporal::api::enums::v1::ResourceExhaustedScope::Namespace,
        ));
    }
    match to.send(Command::Create(request)).await? {
        Reply::Create(reply) => Ok(reply),
        _ => Err(call.unexpected_reply()),
    }
}

pub(crate) async fn create_worker_deployment_version(
    call: &Call<'_>,
    request: CreateWorkerDeploymentVersionRequest,
) -> Result<CreateWorkerDeploymentVersionResponse, Error> {
    let version = request.deployment_version.clone().unwrap_or_default();
    if version.deployment_name.is_empty() {
        return Err(Error::invalid_argument("deployment name cannot be empty"));
    }
    if version.build_id.is_empty() {
        return Err(Error::invalid_argument("build ID cannot be empty"));
    }
    if request.compute_config.is_some() {
        return Err(no_compute());
    }
    versions::check_version(&version, call.limits().max_id_length).map_err(Error::invalid_argument)?;
    let to = To::new(call, &request.namespace, &version.deployment_name)?;
    to.send(Command::CreateVersion(request)).await?;
    Ok(CreateWorkerDeploymentVersionResponse::default())
}

pub(crate) async fn delete_worker_deployment(
    call: &Call<'_>,
    request: DeleteWorkerDeploymentRequest,
) -> Result<DeleteWorkerDeploymentResponse, Error> {
    let to = To::new(call, &request.namespace, &request.deployment_name)?;
    to.send(Command::Delete(request)).await?;
    Ok(DeleteWorkerDeploymentResponse::default())
}

pub(crate) async fn delete_worker_deployment_version(
    call: &Call<'_>,
    request: DeleteWorkerDeploymentVersionRequest,
) -> Result<DeleteWorkerDeploymentVersionResponse, Error> {
    let limit = call.limits().max_id_length;
    let deployment = deployment_of(request.deployment_version.as_ref(), &request.version, limit)?;
    let to = To::new(call, &request.namespace, &deployment)?;
    let build_id = match &request.deployment_version {
        Some(version) => version.build_id.clone(),
        None => named_build_id("", &request.version),
    };
    let mut has_pollers = false;
    for queue in to.queues_of(&build_id).await.unwrap_or_default() {
        has_pollers |= !to.version_on(&build_id, &queue).await?.pollers.is_empty();
    }
    let command = Some(Command::DeleteVersion(request));
    to.send_with(DeploymentCommand { command, has_pollers, ..DeploymentCommand::default() }).await?;
    Ok(DeleteWorkerDeploymentVersionResponse::default())
}

pub(crate) async fn list_worker_deployments(
    call: &Call<'_>,
    request: ListWorkerDeploymentsRequest,
) -> Result<ListWorkerDeploymentsResponse, Error> {
    let (size, token) = (request.page_size, &request.next_page_token);
    let page = page_of(EntityKind::Deployment, call, &request.namespace, "", size, token).await?;
    Ok(ListWorkerDeploymentsResponse {
        worker_deployments: page.executions.into_iter().filter_map(summary).collect(),
        next_page_token: page.next_page_token,
    })
}

fn summary(row: WorkflowExecutionInfo) -> Option<WorkerDeploymentSummary> {
    let payload = row.memo?.fields.remove(SUMMARY)?;
    WorkerDeploymentSummary::decode(payload.data).ok()
}

// ---- Workers that the server starts itself ---------------------------------------------------------------------------

fn no_compute() -> Error {
    Error::failed_precondition("This server does not start workers: compute configuration is not supported.")
}

pub(crate) async fn update_worker_deployment_version_compute_config(
    call: &Call<'_>,
    request: UpdateWorkerDeploymentVersionComputeConfigRequest,
) -> Result<UpdateWorkerDeploymentVersionComputeConfigResponse, Error> {
    call.namespace(&request.namespace)?;
    Err(no_compute())
}

pub(crate) async fn validate_worker_deployment_version_compute_config(
    call: &Call<'_>,
    request: ValidateWorkerDeploymentVersionComputeConfigRequest,
) -> Result<ValidateWorkerDeploymentVersionComputeConfigResponse, Error> {
    call.namespace(&request.namespace)?;
    Err(no_compute())
}
