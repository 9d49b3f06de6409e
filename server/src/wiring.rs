//! Ties the parts of a node together: each lower part declares what it needs of the others as a small port, and here
//! the ports lead to the cluster, which finds the owner.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use perdure_cluster::{Cluster, LocalMatching, LocalShards, Namespaces};
use perdure_frontend::Frontend;
use perdure_matching::{Matching, TaskStarter};
use perdure_nexus::Dispatcher;
use perdure_proto::{
    Error,
    perdure::nexus::v1::NexusCall,
    perdure::node::v1::{
        MatchingCall, MatchingReply, Offer, OfferReply, ShardCall, ShardReply, TaskQueueCommand, WorkflowCall,
        WorkflowReply, matching_call, matching_reply, task_queue_command, workflow_call, workflow_reply,
    },
    temporal::api::{
        common::v1::WorkflowExecution,
        enums::v1::TaskQueueType,
        workflow::v1::WorkflowExecutionInfo,
        workflowservice::v1::{
            ListActivityExecutionsRequest, ListWorkflowExecutionsRequest, ListWorkflowExecutionsResponse,
            workflow_service_server::WorkflowService,
        },
    },
};
use perdure_shard::{EntityCaller, Peers, Shards, TaskSink};
use perdure_types::{EntityKind, Layout, NodeId, QueueFilter, ShardId, SlotCount};

/// The way back up to the cluster for parts that are made before it is.
#[derive(Clone, Default)]
pub struct Uplink {
    cluster: Arc<OnceLock<Cluster>>,
    lists: Arc<OnceLock<Frontend>>,
    namespaces: Arc<OnceLock<Arc<Namespaces>>>,
    nexus: Arc<OnceLock<Dispatcher>>,
}

impl Uplink {
    pub fn connect(&self, cluster: Cluster) {
        // Wiring runs once: a second cluster would be a bug, and the first one stays.
        let _ = self.cluster.set(cluster);
    }

    /// How people call namespaces.
    pub fn name_namespaces(&self, namespaces: Arc<Namespaces>) {
        let _ = self.namespaces.set(namespaces);
    }

    /// Where entities read lists.
    pub fn serve_lists(&self, frontend: Frontend) {
        let _ = self.lists.set(frontend);
    }

    /// The way of entities to Nexus handlers.
    pub fn dispatch_nexus(&self, dispatcher: Dispatcher) {
        let _ = self.nexus.set(dispatcher);
    }

    async fn nexus(&self, call: NexusCall) -> Result<WorkflowReply, Error> {
        let dispatcher = self.nexus.get().ok_or_else(|| Error::unavailable("this node is still starting"))?;
        let reply = dispatcher.call(call).await;
        Ok(WorkflowReply { reply: Some(workflow_reply::Reply::Nexus(Box::new(reply))) })
    }

    /// As a client would.
    async fn list(&self, request: ListWorkflowExecutionsRequest) -> Result<WorkflowReply, Error> {
        let frontend = self.lists.get().ok_or_else(|| Error::unavailable("this node is still starting"))?;
        let listed = frontend.list_workflow_executions(tonic::Request::new(request)).await;
        let response = listed.map_err(|status| Error::new(status.code(), status.message()))?.into_inner();
        Ok(WorkflowReply { reply: Some(workflow_reply::Reply::List(response)) })
    }

    /// Standalone activities, as workflows would be listed.
    async fn list_activities(&self, request: ListWorkflowExecutionsRequest) -> Result<WorkflowReply, Error> {
        let frontend = self.lists.get().ok_or_else(|| Error::unavailable("this node is still starting"))?;
        let ListWorkflowExecutionsRequest { namespace, page_size, next_page_token, query } = request;
        let request = ListActivityExecutionsRequest { namespace, page_size, next_page_token, query };
        let listed = frontend.list_activity_executions(tonic::Request::new(request)).await;
        let listed = listed.map_err(|status| Error::new(status.code(), status.message()))?.into_inner();
        let executions = listed.executions.into_iter().map(|activity| WorkflowExecutionInfo {
            execution: Some(WorkflowExecution { workflow_id: activity.activity_id, run_id: activity.run_id }),
            ..WorkflowExecutionInfo::default()
        });
        let next_page_token = listed.next_page_token;
        let response = ListWorkflowExecutionsResponse { executions: executions.collect(), next_page_token };
        Ok(WorkflowReply { reply: Some(workflow_reply::Reply::List(response)) })
    }

    /// A child on another queue inherits its parent's version if workers of the version poll there, which only that queue
    /// knows.
    async fn with_inheritance(&self, mut call: WorkflowCall) -> Result<WorkflowCall, Error> {
        let Some(workflow_call::Command::Start(start)) = &mut call.command else { return Ok(call) };
        let queue = start.request.as_ref().and_then(|request| request.task_queue.as_ref()).map(|queue| &queue.name);
        let (Some(parent), Some(queue)) = (&mut start.parent, queue) else { return Ok(call) };
        let Some(version) = parent.deployment_version.as_ref().filter(|_| !parent.queue_has_version) else {
            return Ok(call);
        };
        let command = TaskQueueCommand { command: Some(task_queue_command::Command::Follow(-1)) };
        let read = WorkflowCall {
            namespace_id: call.namespace_id.clone(),
            workflow_id: queue.clone(),
            kind: EntityKind::TaskQueue.number(),
            command: Some(workflow_call::Command::TaskQueue(Box::new(command))),
        };
        let Some(workflow_reply::Reply::TaskQueue(state)) = self.cluster()?.workflow(&read).await?.reply else {
            return Err(Error::internal("a task queue answered with something else"));
        };
        let known = state.deployments.iter().filter(|deployment| deployment.name == version.deployment_name);
        let workflow = TaskQueueType::Workflow as i32;
        parent.queue_has_version = known
            .flat_map(|deployment| &deployment.versions)
            .any(|known| known.build_id == version.build_id && known.types.contains(&workflow));
        Ok(call)
    }

    fn cluster(&self) -> Result<&Cluster, Error> {
        self.cluster.get().ok_or_else(|| Error::unavailable("this node is still starting"))
    }
}

#[async_trait]
impl TaskStarter for Uplink {
    async fn start(&self, call: WorkflowCall) -> Result<WorkflowReply, Error> {
        self.cluster()?.workflow(&call).await
    }

    fn namespace_name(&self, namespace_id: &str) -> Option<Arc<str>> {
        Some(self.namespaces.get()?.by_id(namespace_id)?.name().into())
    }
}

#[async_trait]
impl EntityCaller for Uplink {
    async fn call(&self, call: WorkflowCall) -> Result<WorkflowReply, Error> {
        if let Some(workflow_call::Command::List(request)) = call.command {
            return if call.kind == EntityKind::Activity.number() {
                self.list_activities(request).await
            } else {
                self.list(request).await
            };
        }
        if let Some(workflow_call::Command::Nexus(call)) = call.command {
            return self.nexus(*call).await;
        }
        self.cluster()?.workflow(&self.with_inheritance(call).await?).await
    }
}

#[async_trait]
impl TaskSink for Uplink {
    async fn offer(&self, offer: Offer) -> Result<OfferReply, Error> {
        let answer = self.cluster()?.matching(MatchingCall {
            namespace_id: offer.namespace_id.clone(),
            task_queue: offer.task_queue.clone(),
            command: Some(matching_call::Command::Offer(offer)),
            ..MatchingCall::default()
        });
        match answer.await?.reply {
            Some(matching_reply::Reply::Offer(reply)) => Ok(reply),
            other => Err(Error::internal(format!("offer was answered with {other:?}"))),
        }
    }
}

#[async_trait]
impl Peers for Uplink {
    async fn shard(&self, node: &NodeId, call: ShardCall) -> Result<ShardReply, Error> {
        self.cluster()?.shard(node, call).await
    }
}

/// The shards of this process, as the cluster calls them.
pub struct ShardsHere(pub Shards);

#[async_trait]
impl LocalShards for ShardsHere {
    async fn call(&self, shard: ShardId, call: &WorkflowCall) -> Result<WorkflowReply, Error> {
        self.0.call(shard, call).await
    }

    async fn shard(&self, call: ShardCall) -> Result<ShardReply, Error> {
        self.0.shard(call).await
    }

    async fn layout(&self) -> Result<Layout, Error> {
        self.0.layout().await
    }

    async fn split(&self, goal: Option<SlotCount>) -> Result<Layout, Error> {
        self.0.split(goal).await
    }

    fn offer_again(&self, moved: QueueFilter) {
        let shards = self.0.clone();
        tokio::spawn(async move { shards.offer_again(moved).await });
    }
}

/// The task queues of this process, as the cluster calls them.
pub struct MatchingHere(pub Matching);

#[async_trait]
impl LocalMatching for MatchingHere {
    async fn call(&self, call: MatchingCall) -> Result<MatchingReply, Error> {
        self.0.call(call).await
    }

    fn depart(&self, departed: QueueFilter) {
        self.0.depart(departed);
    }
}
