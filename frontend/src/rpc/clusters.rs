//! ListClusters and RemoveRemoteCluster. There is one cluster, and no replication to others: none can be added.

use perdure_proto::{
    Error,
    temporal::api::operatorservice::v1::{
        ClusterMetadata, ListClustersRequest, ListClustersResponse, RemoveRemoteClusterRequest,
        RemoveRemoteClusterResponse,
    },
};

use crate::call::Call;

pub(crate) async fn list_clusters(
    call: &Call<'_>,
    _request: ListClustersRequest,
) -> Result<ListClustersResponse, Error> {
    let info = call.frontend().info();
    let cluster = ClusterMetadata {
        cluster_name: info.cluster_name.clone(),
        cluster_id: info.cluster_id.clone(),
        address: info.address.clone(),
        initial_failover_version: 1,
        history_shard_count: i32::try_from(info.shard_count).unwrap_or(i32::MAX),
        is_connection_enabled: true,
        ..ClusterMetadata::default()
    };
    Ok(ListClustersResponse { clusters: vec![cluster], ..Default::default() })
}

pub(crate) async fn remove_remote_cluster(
    _call: &Call<'_>,
    _request: RemoveRemoteClusterRequest,
) -> Result<RemoveRemoteClusterResponse, Error> {
    Err(Error::not_found("The cluster to be deleted cannot be found in clusters cache."))
}
