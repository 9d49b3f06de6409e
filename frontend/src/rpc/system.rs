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
        build_id_based_versioning: false,
        count_group_by_execution_status: true,
        nexus: false,
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
