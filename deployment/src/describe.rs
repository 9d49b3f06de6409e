//! How a deployment shows itself: to those who describe it, and in lists.

#![allow(deprecated, reason = "older clients look at what newer ones replaced")]

use perdure_proto::{
    Error,
    perdure::{node::v1::deployment_reply::Reply, state::v1::DeploymentVersionState},
    temporal::api::{
        common::v1::{Memo, Payload, WorkflowExecution, WorkflowType},
        deployment::v1::{
            VersionDrainageInfo, WorkerDeploymentInfo, WorkerDeploymentVersionInfo,
            worker_deployment_info::WorkerDeploymentVersionSummary,
            worker_deployment_version_info::VersionTaskQueueInfo,
        },
        enums::v1::{RoutingConfigUpdateState, VersionDrainageStatus as Drainage, WorkflowExecutionStatus},
        workflow::v1::WorkflowExecutionInfo,
        workflowservice::v1::{
            DescribeWorkerDeploymentResponse, DescribeWorkerDeploymentVersionRequest,
            DescribeWorkerDeploymentVersionResponse, describe_worker_deployment_version_response::VersionTaskQueue,
            list_worker_deployments_response::WorkerDeploymentSummary,
        },
    },
    versions,
};
use perdure_types::Timestamp;
use prost::Message;

use crate::{
    deployment::{Deployment, Done},
    register::version_not_found,
};

const WORKFLOW_TYPE: &str = "temporal-sys-worker-deployment-workflow";
/// Of the memo of a list row: a WorkerDeploymentSummary. The frontend reads it.
const SUMMARY_MEMO: &str = "WorkerDeploymentSummary";

impl Deployment {
    pub(crate) fn describe(&self) -> DescribeWorkerDeploymentResponse {
        let settled = self.is_settled(self.state.revision);
        let update = if settled { RoutingConfigUpdateState::Completed } else { RoutingConfigUpdateState::InProgress };
        DescribeWorkerDeploymentResponse {
            conflict_token: self.token(),
            worker_deployment_info: Some(WorkerDeploymentInfo {
                name: self.name().to_owned(),
                // The latest first.
                version_summaries: self.state.versions.iter().rev().map(|version| self.summary(version)).collect(),
                create_time: Timestamp(self.state.create_time_ns).to_proto(),
                routing_config: self.state.routing_config.clone(),
                last_modifier_identity: self.state.last_modifier_identity.clone(),
                manager_identity: self.state.manager_identity.clone(),
                routing_config_update_state: update as i32,
            }),
        }
    }

    pub(crate) fn describe_version(&self, request: &DescribeWorkerDeploymentVersionRequest) -> Result<Done, Error> {
        let build_id = self.build_id_of(request.deployment_version.clone(), &request.version)?;
        let version = self.version(&build_id).ok_or_else(version_not_found)?;
        let named = self.named(&build_id);
        let queues: Vec<(String, i32)> = version
            .queues
            .iter()
            .flat_map(|queue| queue.types.iter().map(|kind| (queue.name.clone(), *kind)))
            .collect();
        let is_ramping = version.ramping_since_ns != 0;
        let time = |ns: i64| Timestamp(ns).to_proto();
        let info = WorkerDeploymentVersionInfo {
            version: versions::legacy_text(Some(&named)),
            status: version.status,
            deployment_version: Some(named),
            deployment_name: self.name().to_owned(),
            create_time: time(version.create_time_ns),
            routing_changed_time: time(version.routing_changed_time_ns),
            current_since_time: time(version.current_since_ns),
            ramping_since_time: time(version.ramping_since_ns),
            first_activation_time: time(version.first_activation_time_ns),
            last_current_time: time(version.last_current_time_ns),
            last_deactivation_time: time(version.last_deactivation_time_ns),
            ramp_percentage: if is_ramping { self.routing().ramping_version_percentage } else { 0.0 },
            task_queue_infos: queues
                .iter()
                .map(|(name, kind)| VersionTaskQueueInfo { name: name.clone(), r#type: *kind })
                .collect(),
            drainage_info: drainage(version),
            metadata: version.metadata.clone(),
            last_modifier_identity: version.last_modifier_identity.clone(),
            ..WorkerDeploymentVersionInfo::default()
        };
        let queues = queues.into_iter();
        Ok(Done::now(Reply::DescribeVersion(DescribeWorkerDeploymentVersionResponse {
            worker_deployment_version_info: Some(info),
            version_task_queues: queues
                .map(|(name, kind)| VersionTaskQueue { name, r#type: kind, ..VersionTaskQueue::default() })
                .collect(),
        })))
    }

    fn summary(&self, version: &DeploymentVersionState) -> WorkerDeploymentVersionSummary {
        let named = self.named(&version.build_id);
        let time = |ns: i64| Timestamp(ns).to_proto();
        WorkerDeploymentVersionSummary {
            version: versions::legacy_text(Some(&named)),
            status: version.status,
            deployment_version: Some(named),
            create_time: time(version.create_time_ns),
            drainage_status: version.drainage,
            drainage_info: drainage(version),
            current_since_time: time(version.current_since_ns),
            ramping_since_time: time(version.ramping_since_ns),
            routing_update_time: time(version.routing_changed_time_ns),
            first_activation_time: time(version.first_activation_time_ns),
            last_current_time: time(version.last_current_time_ns),
            last_deactivation_time: time(version.last_deactivation_time_ns),
            ..WorkerDeploymentVersionSummary::default()
        }
    }

    /// As a workflow would be listed; deployments have a list of their own.
    pub(crate) fn list_row(&self, incarnation: &str) -> WorkflowExecutionInfo {
        let of = |is: fn(&DeploymentVersionState) -> bool| {
            self.state.versions.iter().find(|version| is(version)).map(|version| self.summary(version))
        };
        let created = Timestamp(self.state.create_time_ns).to_proto();
        let summary = WorkerDeploymentSummary {
            name: self.name().to_owned(),
            create_time: created,
            routing_config: self.state.routing_config.clone(),
            latest_version_summary: self.state.versions.last().map(|version| self.summary(version)),
            current_version_summary: of(|version| version.current_since_ns != 0),
            ramping_version_summary: of(|version| version.ramping_since_ns != 0),
        };
        let payload = Payload { data: summary.encode_to_vec().into(), ..Payload::default() };
        WorkflowExecutionInfo {
            execution: Some(WorkflowExecution { workflow_id: self.name().to_owned(), run_id: incarnation.to_owned() }),
            r#type: Some(WorkflowType { name: WORKFLOW_TYPE.to_owned() }),
            start_time: created,
            execution_time: created,
            status: WorkflowExecutionStatus::Running as i32,
            memo: Some(Memo { fields: [(SUMMARY_MEMO.to_owned(), payload)].into() }),
            ..WorkflowExecutionInfo::default()
        }
    }
}

fn drainage(version: &DeploymentVersionState) -> Option<VersionDrainageInfo> {
    (version.drainage() != Drainage::Unspecified).then(|| VersionDrainageInfo {
        status: version.drainage,
        last_changed_time: Timestamp(version.drainage_changed_time_ns).to_proto(),
        last_checked_time: Timestamp(version.drainage_checked_time_ns).to_proto(),
    })
}
