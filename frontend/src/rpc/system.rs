//! GetSystemInfo and GetClusterInfo.

use perdure_proto::{
    Error,
    temporal::api::{
        version::v1::{ReleaseInfo, VersionInfo},
        workflowservice::v1::{
            GetClusterInfoRequest, GetClusterInfoResponse, GetSystemInfoRequest, GetSystemInfoResponse,
            get_system_info_response::Capabilities,
        },
    },
};

use perdure_types::Limits;

use crate::call::Call;

/// Clients, and the versions of them that this server is made for.
const SUPPORTED_CLIENTS: [(&str, &str); 8] = [
    ("temporal-go", "<2.0.0"),
    ("temporal-java", "<2.0.0"),
    ("temporal-php", "<2.0.0"),
    ("temporal-typescript", "<2.0.0"),
    ("temporal-cli", "<2.0.0"),
    ("temporal-server", "<2.0.0"),
    ("temporal-ui", "<3.0.0"),
    ("Nexus-go-sdk", "<2.0.0"),
];

pub(crate) async fn get_system_info(
    call: &Call<'_>,
    _request: GetSystemInfoRequest,
) -> Result<GetSystemInfoResponse, Error> {
    Ok(GetSystemInfoResponse {
        server_version: call.frontend().info().server_version.clone(),
        capabilities: Some(capabilities(call.limits())),
    })
}

/// SDKs change what they send by these: each is set only when the feature works.
fn capabilities(limits: &Limits) -> Capabilities {
    Capabilities {
        signal_and_query_header: true,
        internal_error_differentiation: true,
        activity_failure_include_heartbeat: true,
        encoded_failure_attributes: true,
        upsert_memo: true,
        eager_workflow_start: limits.eager_workflow_start,
        sdk_metadata: true,
        supports_schedules: true,
        // By worker deployments; the older forms are refused, as Temporal's server does by default.
        build_id_based_versioning: true,
        count_group_by_execution_status: true,
        nexus: true,
        server_scaled_deployments: false,
        server_scaled_provider_cloud_run: false,
    }
}

pub(crate) async fn get_cluster_info(
    call: &Call<'_>,
    _request: GetClusterInfoRequest,
) -> Result<GetClusterInfoResponse, Error> {
    let info = call.frontend().info().clone();
    let release = ReleaseInfo { version: info.server_version.clone(), ..Default::default() };
    Ok(GetClusterInfoResponse {
        supported_clients: SUPPORTED_CLIENTS.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        server_version: info.server_version,
        cluster_id: info.cluster_id,
        version_info: Some(VersionInfo { current: Some(release), ..Default::default() }),
        cluster_name: info.cluster_name,
        history_shard_count: i32::try_from(info.shard_count).unwrap_or(i32::MAX),
        persistence_store: info.persistence_store,
        visibility_store: info.visibility_store,
        initial_failover_version: 1,
        failover_version_increment: 10,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{rpc::namespace_read, service::WORKFLOW_IMPLEMENTED};

    /// A flag is on exactly when the RPCs behind it are served.
    #[test]
    fn flags_follow_what_is_served() {
        let limits = Limits::default();
        let (system, namespace) = (capabilities(&limits), namespace_read::capabilities(&limits));
        let flags = [
            (system.supports_schedules, "CreateSchedule"),
            (system.count_group_by_execution_status, "CountWorkflowExecutions"),
            (system.build_id_based_versioning, "SetWorkerDeploymentCurrentVersion"),
            (system.nexus, "PollNexusTaskQueue"),
            (namespace.sync_update, "UpdateWorkflowExecution"),
            (namespace.async_update, "PollWorkflowExecutionUpdate"),
            (namespace.worker_heartbeats, "RecordWorkerHeartbeat"),
            (namespace.worker_poll_complete_on_shutdown, "ShutdownWorker"),
            (namespace.workflow_pause, "PauseWorkflowExecution"),
            (namespace.standalone_activities, "StartActivityExecution"),
            (namespace.standalone_nexus_operation, "StartNexusOperationExecution"),
        ];
        for (is_on, rpc) in flags {
            assert_eq!(is_on, WORKFLOW_IMPLEMENTED.contains(&rpc), "the flag of {rpc}");
        }
    }

    /// What nothing stands behind is off.
    #[test]
    fn flags_of_what_is_not_built_are_off() {
        let (system, namespace) = (capabilities(&Limits::default()), namespace_read::capabilities(&Limits::default()));
        let off = [
            system.server_scaled_deployments,
            system.server_scaled_provider_cloud_run,
            namespace.worker_commands,
            namespace.workflow_task_completion_pagination,
        ];
        assert!(!off.contains(&true));
    }

    #[test]
    fn what_can_be_switched_off_says_so() {
        let limits = Limits { eager_workflow_start: false, ..Limits::default() };
        assert!(
            !capabilities(&limits).eager_workflow_start && !namespace_read::capabilities(&limits).eager_workflow_start
        );
        assert!(capabilities(&Limits::default()).eager_workflow_start);
    }
}
