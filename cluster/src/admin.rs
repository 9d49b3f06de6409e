//! What operators ask of a cluster: the same answers from every node.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use perdure_proto::perdure::node::v1::{
    DescribeShard, DrainRequest, DrainResponse, MemberInfo, MembersRequest, MembersResponse, QueuesRequest,
    QueuesResponse, ShardCall, ShardInfo, ShardRequest, ShardResponse, ShardsRequest, ShardsResponse, SplitRequest,
    SplitResponse, admin_client::AdminClient, admin_server::Admin, shard_call, shard_reply,
};
use perdure_types::{Member, NodeId, ShardId, SlotCount};
use tokio::sync::Notify;
use tonic::{Request, Response, Status};

use crate::{
    calls::endpoint,
    membership::{MemberState, Membership, Routes},
    route::Cluster,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Answers operators.
pub(crate) struct AdminService {
    pub cluster: Cluster,
    pub membership: Membership,
    /// Told when this node is to drain and end.
    pub drain: Arc<Notify>,
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn members(&self, _request: Request<MembersRequest>) -> Result<Response<MembersResponse>, Status> {
        let routes = self.membership.routes().borrow().clone();
        let mut wanted: BTreeMap<&NodeId, u32> = BTreeMap::new();
        for owner in routes.placement.owners.iter() {
            *wanted.entry(owner).or_default() += 1;
        }
        let info = |member: &MemberState| MemberInfo {
            node: member.node.to_string(),
            address: member.address.to_string(),
            state: state_of(member, routes.placement.members.get(&member.node)).to_owned(),
            session: member.session.map(|session| session.to_string()).unwrap_or_default(),
            shards_served: u32::try_from(member.served.shards.len()).unwrap_or(u32::MAX),
            shards_wanted: wanted.get(&member.node).copied().unwrap_or(0),
            started_time_ns: member.started_ns,
            clock_offset_ns: self.cluster.clock_offset_ns(&member.node),
            version: member.version.clone(),
            frontend_address: member.frontend_address.clone(),
        };
        let mut members: Vec<MemberInfo> = routes.members.iter().map(info).collect();
        members.sort_by(|a, b| a.node.cmp(&b.node));
        let config = self.membership.config();
        Ok(Response::new(MembersResponse {
            cluster_id: config.cluster_id.clone(),
            slots: routes.map.slots.unwrap_or(config.slots).get(),
            node: self.membership.me().to_string(),
            members,
        }))
    }

    async fn shards(&self, request: Request<ShardsRequest>) -> Result<Response<ShardsResponse>, Status> {
        let layout = self.cluster.layout().await.map_err(|error| error.to_status())?;
        let routes = self.membership.routes().borrow().clone();
        let slots = layout.map.slots.unwrap_or(self.membership.config().slots);
        let mut shards = layout.shards;
        for shard in slots.shards() {
            shards.entry(shard).or_insert(slots);
        }
        let mut statuses = BTreeMap::new();
        if request.into_inner().status {
            let nodes: Vec<NodeId> = routes.members.iter().map(|member| member.node.clone()).collect();
            statuses = self.cluster.shard_statuses(&nodes).await;
        }
        let with_status = |(shard, of): (ShardId, SlotCount)| {
            let status = statuses.remove(&shard.0);
            ShardInfo { status, ..info(&routes, shard, of) }
        };
        let shards = shards.into_iter().map(with_status).collect();
        Ok(Response::new(ShardsResponse { shards, slots: slots.get(), goal: layout.goal.get() }))
    }

    async fn split(&self, request: Request<SplitRequest>) -> Result<Response<SplitResponse>, Status> {
        let goal = goal_of(request.into_inner().slots)?;
        let layout = self.cluster.split(goal).await.map_err(|error| error.to_status())?;
        let slots = layout.map.slots.unwrap_or(self.membership.config().slots);
        Ok(Response::new(SplitResponse { slots: slots.get(), goal: layout.goal.get() }))
    }

    async fn queues(&self, request: Request<QueuesRequest>) -> Result<Response<QueuesResponse>, Status> {
        let nodes: Vec<NodeId> =
            self.membership.routes().borrow().members.iter().map(|member| member.node.clone()).collect();
        Ok(Response::new(self.cluster.queues(&nodes, &request.into_inner().namespace_id).await))
    }

    async fn shard(&self, request: Request<ShardRequest>) -> Result<Response<ShardResponse>, Status> {
        let shard = request.into_inner().shard;
        let layout = self.cluster.layout().await.map_err(|error| error.to_status())?;
        let slots = layout.map.slots.unwrap_or(self.membership.config().slots);
        let Some(of) = layout.shards.get(&ShardId(shard)).copied().or_else(|| (shard < slots.get()).then_some(slots))
        else {
            return Err(Status::not_found(format!("there is no shard {shard}: this cluster has {}", slots.get())));
        };
        let routes = self.membership.routes().borrow().clone();
        let mut status = None;
        if let Some(node) = routes.target(ShardId(shard)) {
            let call = ShardCall {
                shard,
                node: self.membership.me().to_string(),
                command: Some(shard_call::Command::Describe(DescribeShard {})),
                ..ShardCall::default()
            };
            let reply = self.cluster.shard(node, call).await.map_err(|error| error.to_status())?;
            if let Some(shard_reply::Reply::Status(found)) = reply.reply {
                status = Some(found);
            }
        }
        Ok(Response::new(ShardResponse { info: Some(info(&routes, ShardId(shard), of)), status }))
    }

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<DrainResponse>, Status> {
        let DrainRequest { node, forwarded } = request.into_inner();
        let routes = self.membership.routes().borrow().clone();
        let found = find(&routes, &node)?;
        if found.node == *self.membership.me() {
            tracing::info!("asked to drain by an operator");
            self.drain.notify_one();
            return Ok(Response::new(DrainResponse { node: found.node.to_string() }));
        }
        if forwarded {
            return Err(Status::failed_precondition(format!("this is {}", self.membership.me())));
        }
        let unreachable = |error: tonic::transport::Error| Status::unavailable(format!("{}: {error}", found.node));
        let endpoint = endpoint(found.address, self.membership.config().tls.as_ref()).map_err(unreachable)?;
        let channel = endpoint.connect_timeout(CONNECT_TIMEOUT).connect().await.map_err(unreachable)?;
        AdminClient::new(channel).drain(DrainRequest { node: found.node.to_string(), forwarded: true }).await
    }
}

/// How many shards there are to be; none: twice as many as there are.
pub(crate) fn goal_of(slots: u32) -> Result<Option<SlotCount>, Status> {
    let refused =
        || Status::invalid_argument(format!("a number of shards is a power of two of at most 65536, not {slots}"));
    if slots == 0 { Ok(None) } else { SlotCount::new(slots).map(Some).ok_or_else(refused) }
}

fn state_of(said: &MemberState, known: Option<&Member>) -> &'static str {
    match known {
        _ if said.draining => "draining",
        Some(known) if known.unreachable => "unreachable",
        // Perhaps as all others are; then it keeps its place.
        _ if said.silent => "silent",
        _ => "alive",
    }
}

fn info(routes: &Routes, shard: ShardId, of: SlotCount) -> ShardInfo {
    let served_by = routes.serving.get(shard.0 as usize).and_then(Option::as_ref);
    let member = served_by.and_then(|node| routes.members.iter().find(|member| member.node == *node));
    let epoch = member.and_then(|member| member.served.shards.get(&shard));
    let name = |node: Option<&NodeId>| node.map(NodeId::to_string).unwrap_or_default();
    ShardInfo {
        shard: shard.0,
        served_by: name(served_by),
        epoch: epoch.map_or(0, |epoch| epoch.0),
        wanted_by: name(routes.placement.owner(shard)),
        slots: of.get(),
        status: None,
    }
}

/// The member that the beginning of an id or of an address names.
fn find<'a>(routes: &'a Routes, text: &str) -> Result<&'a MemberState, Status> {
    let names =
        |member: &&MemberState| member.node.as_str().starts_with(text) || member.address.to_string().starts_with(text);
    let found: Vec<&MemberState> = routes.members.iter().filter(names).collect();
    match found[..] {
        [member] if !text.is_empty() => Ok(member),
        [] => Err(Status::not_found(format!("no member is called {text}"))),
        _ => Err(Status::invalid_argument(format!("{text} may be any of {} members", found.len()))),
    }
}
