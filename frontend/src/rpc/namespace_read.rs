//! DescribeNamespace and ListNamespaces.

use std::ops::Bound;

use perdure_cluster::Namespace;
use perdure_proto::{
    Error,
    perdure::state::v1::NamespaceRecord,
    temporal::api::{
        enums::v1::{ArchivalState, NamespaceState, ReplicationState},
        namespace::v1::{
            BadBinaries, NamespaceConfig, NamespaceInfo,
            namespace_info::{Capabilities, Limits as NamespaceLimits},
        },
        replication::v1::{ClusterReplicationConfig, NamespaceReplicationConfig},
        workflowservice::v1::{
            DescribeNamespaceRequest, DescribeNamespaceResponse, ListNamespacesRequest, ListNamespacesResponse,
        },
    },
};
use perdure_types::{Duration, Limits};

use crate::{ClusterInfo, MAX_REQUEST_BYTES, call::Call};

const DEFAULT_PAGE: usize = 100;
const LARGEST_PAGE: usize = 1_000;

pub(crate) async fn describe_namespace(
    call: &Call<'_>,
    request: DescribeNamespaceRequest,
) -> Result<DescribeNamespaceResponse, Error> {
    let (name, id) = (request.namespace.as_str(), request.id.as_str());
    let registry = call.frontend().namespaces();
    let find = || {
        if id.is_empty() { registry.by_name(name) } else { registry.by_id(id) }
    };
    match (name.is_empty(), id.is_empty()) {
        (true, true) => return Err(crate::call::namespace_not_set()),
        (false, false) => {
            return Err(Error::invalid_argument(
                "GetNamespace operation failed. Both ID and Name specified in request.",
            ));
        }
        _ => crate::validate::namespace_name(name, call.limits())?,
    }
    let mut found = find();
    if found.is_none() && !request.weak_consistency {
        // It may have been registered on another node a moment ago.
        registry.refresh().await?;
        found = find();
    }
    let found = found.ok_or_else(|| Error::namespace_not_found(if id.is_empty() { name } else { id }))?;
    Ok(describe(&found, call.limits(), call.frontend().info()))
}

pub(crate) async fn list_namespaces(
    call: &Call<'_>,
    request: ListNamespacesRequest,
) -> Result<ListNamespacesResponse, Error> {
    let size = usize::try_from(request.page_size).ok().filter(|n| *n > 0).unwrap_or(DEFAULT_PAGE).min(LARGEST_PAGE);
    // The token is the last name of the page before.
    let after =
        std::str::from_utf8(&request.next_page_token).map_err(|_| Error::invalid_argument("Invalid NextPageToken."))?;
    let with_deleted = request.namespace_filter.is_some_and(|f| f.include_deleted);
    let all = call.frontend().namespaces().all();
    let start = if after.is_empty() { Bound::Unbounded } else { Bound::Excluded(after) };
    let mut rest = all
        .iter()
        .filter(|n| match start {
            Bound::Excluded(after) => n.name() > after,
            Bound::Included(_) | Bound::Unbounded => true,
        })
        .filter(|n| with_deleted || n.record.state != NamespaceState::Deleted as i32);
    let page: Vec<_> = rest.by_ref().take(size).collect();
    let next_page_token = match (page.last(), rest.next()) {
        (Some(last), Some(_)) => last.name().to_owned().into(),
        _ => bytes::Bytes::new(),
    };
    let (limits, info) = (call.limits(), call.frontend().info());
    let namespaces = page.into_iter().map(|n| describe(n, limits, info)).collect();
    Ok(ListNamespacesResponse { namespaces, next_page_token })
}

fn describe(namespace: &Namespace, limits: &Limits, info: &ClusterInfo) -> DescribeNamespaceResponse {
    let record = &namespace.record;
    DescribeNamespaceResponse {
        namespace_info: Some(info_of(record, limits)),
        config: Some(config_of(record)),
        replication_config: Some(replication_of(info)),
        ..Default::default()
    }
}

pub(crate) fn info_of(record: &NamespaceRecord, limits: &Limits) -> NamespaceInfo {
    NamespaceInfo {
        name: record.name.clone(),
        state: record.state,
        description: record.description.clone(),
        owner_email: record.owner_email.clone(),
        data: record.data.clone(),
        id: record.id.clone(),
        capabilities: Some(capabilities(limits)),
        limits: Some(NamespaceLimits {
            blob_size_limit_error: limits.blob_size_error_bytes,
            memo_size_limit_error: limits.memo_size_error_bytes,
            workflow_task_completion_size_limit_error: MAX_REQUEST_BYTES as i64,
        }),
        supports_schedules: true,
    }
}

/// SDKs change what they do by these: each is set only when the feature works.
pub(super) fn capabilities(limits: &Limits) -> Capabilities {
    Capabilities {
        eager_workflow_start: limits.eager_workflow_start,
        sync_update: true,
        async_update: true,
        worker_heartbeats: true,
        worker_poll_complete_on_shutdown: true,
        workflow_pause: true,
        reported_problems_search_attribute: true,
        poller_autoscaling: true,
        standalone_activities: true,
        standalone_activity_start_delay: true,
        standalone_activity_operator_commands: true,
        standalone_nexus_operation: true,
        workflow_update_callbacks: true,
        ..Default::default()
    }
}

pub(crate) fn config_of(record: &NamespaceRecord) -> NamespaceConfig {
    NamespaceConfig {
        workflow_execution_retention_ttl: Some(Duration(record.retention_ns).to_proto()),
        bad_binaries: Some(BadBinaries::default()),
        history_archival_state: ArchivalState::Disabled as i32,
        visibility_archival_state: ArchivalState::Disabled as i32,
        custom_search_attribute_aliases: record.custom_search_attribute_aliases.clone(),
        ..Default::default()
    }
}

pub(crate) fn replication_of(info: &ClusterInfo) -> NamespaceReplicationConfig {
    NamespaceReplicationConfig {
        active_cluster_name: info.cluster_name.clone(),
        clusters: vec![ClusterReplicationConfig { cluster_name: info.cluster_name.clone(), ..Default::default() }],
        state: ReplicationState::Normal as i32,
    }
}
