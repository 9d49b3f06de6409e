//! What operators ask of a node that is the whole cluster: the same questions, and the same answers as far as there are any.

use std::sync::Arc;

use perdure_proto::perdure::node::v1::{
    DescribeShard, DrainRequest, DrainResponse, MemberInfo, MembersRequest, MembersResponse, QueuesRequest,
    QueuesResponse, ShardCall, ShardInfo, ShardRequest, ShardResponse, ShardStatus, ShardsRequest, ShardsResponse,
    SplitRequest, SplitResponse, admin_server::Admin, shard_call, shard_reply,
};
use perdure_types::{Layout, NodeId, ShardId, SlotCount};
use tokio::sync::Notify;
use tonic::{Request, Response, Status};

use crate::{admin::goal_of, route::Cluster};

const SERVING: &str = "serving";

/// A node that is the whole cluster, as operators see it.
#[derive(Debug, Clone)]
pub struct Alone {
    pub cluster_id: String,
    /// What the node is called; also its address.
    pub name: String,
    pub frontend_address: String,
    pub version: String,
    pub started_ns: i64,
    /// How many shards it began with.
    pub slots: SlotCount,
}

pub(crate) struct AloneAdmin {
    pub cluster: Cluster,
    pub node: Alone,
    /// Told when the node is to end.
    pub drain: Arc<Notify>,
}

impl AloneAdmin {
    fn me(&self) -> NodeId {
        NodeId::new(self.node.name.as_str())
    }

    async fn layout(&self) -> Result<(Layout, SlotCount), Status> {
        let mut layout = self.cluster.layout().await.map_err(|error| error.to_status())?;
        let slots = layout.map.slots.unwrap_or(self.node.slots);
        for shard in slots.shards() {
            layout.shards.entry(shard).or_insert(slots);
        }
        Ok((layout, slots))
    }

    async fn status(&self, shard: ShardId) -> Result<ShardStatus, Status> {
        let command = Some(shard_call::Command::Describe(DescribeShard {}));
        let call = ShardCall { shard: shard.0, command, ..ShardCall::default() };
        let reply = self.cluster.shard(&self.me(), call).await;
        match reply.map_err(|error| error.to_status())?.reply {
            Some(shard_reply::Reply::Status(status)) => Ok(status),
            _ => Err(Status::internal("the shard answered with something else")),
        }
    }

    fn info(&self, shard: ShardId, of: SlotCount, status: &ShardStatus) -> ShardInfo {
        let served_by = if status.ownership == SERVING { self.node.name.clone() } else { String::new() };
        let wanted_by = self.node.name.clone();
        ShardInfo { shard: shard.0, served_by, epoch: status.epoch, wanted_by, slots: of.get(), status: None }
    }
}

#[tonic::async_trait]
impl Admin for AloneAdmin {
    async fn members(&self, _request: Request<MembersRequest>) -> Result<Response<MembersResponse>, Status> {
        let (layout, slots) = self.layout().await?;
        let statuses = self.cluster.shard_statuses(&[self.me()]).await;
        let served = statuses.values().filter(|status| status.ownership == SERVING).count();
        let session = statuses.into_values().next().map(|status| status.session).unwrap_or_default();
        let Alone { cluster_id, name, frontend_address, version, started_ns, .. } = self.node.clone();
        let member = MemberInfo {
            node: name.clone(),
            address: name.clone(),
            state: "alive".to_owned(),
            session,
            shards_served: u32::try_from(served).unwrap_or(u32::MAX),
            shards_wanted: u32::try_from(layout.shards.len()).unwrap_or(u32::MAX),
            started_time_ns: started_ns,
            clock_offset_ns: 0,
            version,
            frontend_address,
        };
        Ok(Response::new(MembersResponse { cluster_id, slots: slots.get(), node: name, members: vec![member] }))
    }

    async fn shards(&self, request: Request<ShardsRequest>) -> Result<Response<ShardsResponse>, Status> {
        let with_status = request.into_inner().status;
        let (layout, slots) = self.layout().await?;
        let mut statuses = self.cluster.shard_statuses(&[self.me()]).await;
        let info = |(shard, of): (&ShardId, &SlotCount)| {
            let status = statuses.remove(&shard.0).unwrap_or_default();
            let info = self.info(*shard, *of, &status);
            ShardInfo { status: with_status.then_some(status), ..info }
        };
        let shards = layout.shards.iter().map(info).collect();
        Ok(Response::new(ShardsResponse { shards, slots: slots.get(), goal: layout.goal.get() }))
    }

    async fn shard(&self, request: Request<ShardRequest>) -> Result<Response<ShardResponse>, Status> {
        let shard = ShardId(request.into_inner().shard);
        let (layout, slots) = self.layout().await?;
        let Some(of) = layout.shards.get(&shard) else {
            return Err(Status::not_found(format!("there is no shard {}: this cluster has {}", shard.0, slots.get())));
        };
        let status = self.status(shard).await?;
        Ok(Response::new(ShardResponse { info: Some(self.info(shard, *of, &status)), status: Some(status) }))
    }

    async fn queues(&self, request: Request<QueuesRequest>) -> Result<Response<QueuesResponse>, Status> {
        Ok(Response::new(self.cluster.queues(&[self.me()], &request.into_inner().namespace_id).await))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        let node = request.into_inner().node;
        if node.is_empty() || !self.node.name.starts_with(&node) {
            return Err(Status::not_found(format!("no member is called {node}")));
        }
        tracing::info!("asked to end by an operator");
        self.drain.notify_one();
        Ok(Response::new(DrainResponse { node: self.node.name.clone() }))
    }

    async fn split(&self, request: Request<SplitRequest>) -> Result<Response<SplitResponse>, Status> {
        let goal = goal_of(request.into_inner().slots)?;
        let layout = self.cluster.split(goal).await.map_err(|error| error.to_status())?;
        let slots = layout.map.slots.unwrap_or(self.node.slots);
        Ok(Response::new(SplitResponse { slots: slots.get(), goal: layout.goal.get() }))
    }
}
