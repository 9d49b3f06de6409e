//! Deployments and versions come to be, by workers that poll or by request, and go.

#![allow(deprecated, reason = "older clients still send what newer ones replaced")]

use perdure_proto::{
    Error,
    perdure::{
        node::v1::{RegisterWorker, deployment_reply::Reply},
        state::v1::{DeploymentVersionState, TaskQueueVersionQueue},
    },
    temporal::api::{
        deployment::v1::{RoutingConfig, VersionMetadata, WorkerDeploymentVersion},
        enums::v1::{
            ResourceExhaustedCause, ResourceExhaustedScope, VersionDrainageStatus as Drainage,
            WorkerDeploymentVersionStatus as Status,
        },
        workflowservice::v1::{
            CreateWorkerDeploymentRequest, CreateWorkerDeploymentResponse, CreateWorkerDeploymentVersionRequest,
            DeleteWorkerDeploymentVersionRequest, UpdateWorkerDeploymentVersionMetadataRequest,
            UpdateWorkerDeploymentVersionMetadataResponse,
        },
    },
    versions,
};
use perdure_workflow::Env;

use crate::{
    deployment::{Deployment, Done, empty},
    version::is_active,
};

/// Request ids of deployments that nobody asked for begin with this.
const BY_POLLS: &str = "_auto_create_";

impl Deployment {
    /// Makes sure that the deployment exists.
    pub(crate) fn begin(&mut self, namespace: String, request_id: String, identity: &str, env: &Env) {
        if self.exists() {
            return;
        }
        self.state.namespace = namespace;
        self.state.create_time_ns = env.now.as_nanos().max(1);
        self.state.create_request_id =
            if request_id.is_empty() { format!("{BY_POLLS}{}", env.now.as_nanos()) } else { request_id };
        self.state.routing_config =
            Some(RoutingConfig { current_version: versions::UNVERSIONED.to_owned(), ..RoutingConfig::default() });
        // Above all revisions that a deployment of the same name has had.
        self.state.revision = env.now.as_nanos();
        self.touch(identity, env);
    }

    pub(crate) fn register(&mut self, namespace: String, worker: RegisterWorker, env: &Env) -> Result<Done, Error> {
        self.begin(namespace, String::new(), "", env);
        if self.version(&worker.build_id).is_none() {
            self.add_version(&worker.build_id, String::new(), env)?;
        }
        let most = env.limits.task_queues_in_deployment_version;
        let name = worker.task_queue;
        let Some(version) = self.state.versions.iter_mut().find(|version| version.build_id == worker.build_id) else {
            return Err(Error::internal("a version is gone that was here"));
        };
        let known = version.queues.iter().position(|queue| queue.name == name);
        if known.is_none() && version.queues.len() as i64 >= most {
            return Err(exhausted(format!(
                "cannot add task queue {name} since maximum number of task queues ({most}) have been registered in deployment"
            )));
        }
        let index = known.unwrap_or_else(|| {
            version.queues.push(TaskQueueVersionQueue { name: name.clone(), types: Vec::new() });
            version.queues.len() - 1
        });
        let mut is_news = version.status() == Status::Created;
        if is_news {
            version.set_status(Status::Inactive);
        }
        let types = &mut version.queues[index].types;
        if !types.contains(&worker.task_queue_type) {
            types.push(worker.task_queue_type);
            is_news = true;
        }
        if is_news {
            self.news_for_queues();
        }
        Ok(Done::when_known(empty()))
    }

    pub(crate) fn add_version(
        &mut self,
        build_id: &str,
        create_request_id: String,
        env: &Env,
    ) -> Result<&mut DeploymentVersionState, Error> {
        let most = env.limits.versions_in_deployment;
        if self.state.versions.len() as i64 >= most && !self.drop_unused_version() {
            let version = versions::legacy_text(Some(&self.named(build_id)));
            return Err(exhausted(format!(
                "cannot add version {version} since maximum number of versions ({most}) have been registered in the deployment"
            )));
        }
        let latest = self.state.versions.iter().map(|version| version.create_time_ns).max().unwrap_or_default();
        self.changed = true;
        self.state.versions.push(DeploymentVersionState {
            build_id: build_id.to_owned(),
            status: Status::Inactive as i32,
            // It names the version in calls, too.
            create_time_ns: env.now.as_nanos().max(latest + 1),
            create_request_id,
            ..DeploymentVersionState::default()
        });
        let last = self.state.versions.len() - 1;
        Ok(&mut self.state.versions[last])
    }

    /// Makes room: the oldest version that nobody needs any more goes.
    fn drop_unused_version(&mut self) -> bool {
        let unused = |version: &DeploymentVersionState| version.drainage() == Drainage::Drained && !is_active(version);
        let Some(index) = self.state.versions.iter().position(unused) else {
            return false;
        };
        self.state.versions.remove(index);
        self.news_for_queues();
        true
    }

    pub(crate) fn create(
        &mut self,
        namespace: String,
        request: CreateWorkerDeploymentRequest,
        env: &Env,
    ) -> Result<Done, Error> {
        if self.exists() && self.state.create_request_id != request.request_id {
            let by_polls = self.state.create_request_id.starts_with(BY_POLLS);
            let how = if by_polls { " (auto-created from worker polls)" } else { "" };
            let message = format!("Worker Deployment with name {:?} already exists{how}", self.name());
            return Err(Error::new(perdure_proto::Code::AlreadyExists, message));
        }
        self.begin(namespace, request.request_id, &request.identity, env);
        Ok(Done::now(Reply::Create(CreateWorkerDeploymentResponse { conflict_token: self.token() })))
    }

    pub(crate) fn create_version(
        &mut self,
        request: CreateWorkerDeploymentVersionRequest,
        env: &Env,
    ) -> Result<Done, Error> {
        let version = request.deployment_version.unwrap_or_default();
        if let Some(known) = self.version(&version.build_id) {
            if known.create_request_id == request.request_id && !request.request_id.is_empty() {
                return Ok(Done::now(empty()));
            }
            let text = versions::legacy_text(Some(&version));
            let message = format!("Worker Deployment Version {text:?} already exists");
            return Err(Error::new(perdure_proto::Code::AlreadyExists, message));
        }
        let added = self.add_version(&version.build_id, request.request_id, env)?;
        added.set_status(Status::Created);
        added.last_modifier_identity = request.identity;
        Ok(Done::now(empty()))
    }

    pub(crate) fn update_metadata(
        &mut self,
        request: UpdateWorkerDeploymentVersionMetadataRequest,
    ) -> Result<Done, Error> {
        let build_id = self.build_id_of(request.deployment_version, &request.version)?;
        let Some(version) = self.version_mut(&build_id) else {
            return Err(version_not_found());
        };
        let mut metadata = version.metadata.take().unwrap_or_default();
        metadata.entries.extend(request.upsert_entries);
        for key in &request.remove_entries {
            metadata.entries.remove(key);
        }
        version.metadata = Some(VersionMetadata { entries: metadata.entries.clone() });
        version.last_modifier_identity = request.identity;
        Ok(Done::now(Reply::UpdateMetadata(UpdateWorkerDeploymentVersionMetadataResponse { metadata: Some(metadata) })))
    }

    pub(crate) fn delete_version(
        &mut self,
        request: DeleteWorkerDeploymentVersionRequest,
        has_pollers: bool,
        env: &Env,
    ) -> Result<Done, Error> {
        let build_id = self.build_id_of(request.deployment_version, &request.version)?;
        let Some(version) = self.version(&build_id) else {
            return Ok(Done::now(empty()));
        };
        let text = versions::text(&self.named(&build_id));
        let refuse = |reason: &str| {
            Err(Error::failed_precondition(format!("version '{text}' cannot be deleted since it {reason}")))
        };
        if is_active(version) {
            return refuse("is current or ramping");
        }
        self.check_manager(&request.identity)?;
        if version.drainage() == Drainage::Draining && !request.skip_drainage {
            return refuse("is draining");
        }
        if has_pollers {
            return refuse("has active pollers");
        }
        self.state.versions.retain(|version| version.build_id != build_id);
        self.news_for_queues();
        self.touch(&request.identity, env);
        Ok(Done::when_known(empty()))
    }

    pub(crate) fn build_id_of(&self, version: Option<WorkerDeploymentVersion>, legacy: &str) -> Result<String, Error> {
        match version {
            Some(version) => Ok(version.build_id),
            None => Ok(self.read_version(legacy)?.map(|version| version.build_id).unwrap_or_default()),
        }
    }
}

pub(crate) fn version_not_found() -> Error {
    Error::not_found("Worker Deployment Version not found")
}

fn exhausted(message: String) -> Error {
    Error::resource_exhausted(
        message,
        ResourceExhaustedCause::WorkerDeploymentLimits,
        ResourceExhaustedScope::Namespace,
    )
}
