//! A node of a test: real membership, links and routing; shards and task queues that only count.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use perdure_cluster::{Cluster, LocalMatching, LocalShards, Membership, NodeId, QueueFilter};
use perdure_proto::{
    Error,
    perdure::node::v1::{
        Empty, MatchingCall, MatchingReply, Offer, OfferReply, PollActivityTask, PollWorkflowTask, ShardCall,
        ShardReply, SignalWorkflow, TaskToken, WorkflowCall, WorkflowReply, matching_call, matching_reply, shard_call,
        task_token::Kind, workflow_call, workflow_reply,
    },
    temporal::api::{
        common::v1::RetryPolicy,
        workflowservice::v1::{
            PollActivityTaskQueueRequest, PollActivityTaskQueueResponse, PollWorkflowTaskQueueResponse,
        },
    },
};
use perdure_types::{ChainKey, ShardId};
use prost::Message;
use tokio::{net::TcpListener, runtime::Runtime, sync::Notify};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{ClientTlsConfig, ServerTlsConfig};

use super::{Table, fast_at, slots, wait_for};

/// Has a runtime of its own, which dies with it: tasks, sockets and all.
pub struct Node {
    pub membership: Membership,
    pub cluster: Cluster,
    pub shards: Arc<Shards>,
    pub matching: Arc<Matching>,
    runtime: Option<Runtime>,
}

impl Node {
    pub async fn start(table: &Table, tls: Option<Tls>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let started = runtime.spawn(Self::start_parts(table.clone(), tls)).await;
        let (membership, cluster, shards, matching) = started.unwrap();
        Self { membership, cluster, shards, matching, runtime: Some(runtime) }
    }

    async fn start_parts(table: Table, tls: Option<Tls>) -> (Membership, Cluster, Arc<Shards>, Arc<Matching>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (server_tls, client_tls) = tls.unzip();
        let mut config = fast_at("cluster", listener.local_addr().unwrap());
        config.tls = client_tls;
        let membership = Membership::join(config, table.shared()).await.unwrap();
        let shards = Arc::new(Shards::new(membership.clone()));
        let matching = Arc::new(Matching::default());
        let cluster = Cluster::joined(membership.clone(), shards.clone(), matching.clone());
        *shards.cluster.lock().unwrap() = Some(cluster.clone());
        let service = cluster.node_service().unwrap();
        tokio::spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            let mut server = tonic::transport::Server::builder();
            if let Some(tls) = server_tls {
                server = server.tls_config(tls).unwrap();
            }
            server.add_service(service).serve_with_incoming(incoming).await
        });
        (membership, cluster, shards, matching)
    }

    pub fn name(&self) -> String {
        self.membership.me().to_string()
    }

    pub async fn offer(&self, queue: &str) -> Result<(), Error> {
        self.shards.offers.lock().unwrap().push(queue.to_owned());
        self.cluster.matching(offer(queue)).await.map(|_| ())
    }

    /// As kill -9 does.
    pub async fn crash(mut self) {
        // First: while its tasks run, a link whose node ends may still say goodbye.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        self.membership.crash().await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shards.cluster.lock().unwrap().take();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// As it answers, and as it calls.
pub type Tls = (ServerTlsConfig, ClientTlsConfig);

pub async fn start_cluster(table: &Table, count: usize) -> Vec<Node> {
    start_cluster_with(table, vec![None; count]).await
}

/// One node for each.
pub async fn start_cluster_with(table: &Table, tls: Vec<Option<Tls>>) -> Vec<Node> {
    let count = tls.len();
    let mut nodes = Vec::new();
    for tls in tls {
        nodes.push(Node::start(table, tls).await);
    }
    wait_for("all nodes to have a place", || {
        let owners = |node: &Node| {
            node.membership.placement().borrow().owners.iter().collect::<std::collections::BTreeSet<_>>().len()
        };
        nodes.iter().all(|node| owners(node) == count)
    })
    .await;
    // Each has a link to each.
    for node in &nodes {
        for i in 0..200 {
            let _ = node.cluster.workflow(&signal(&format!("missing-{i}"))).await;
        }
    }
    nodes
}

/// A queue whose home is that node.
pub async fn queue_of(nodes: &[Node], index: usize) -> (String, &Node) {
    for i in 0.. {
        let queue = format!("queue-{i}");
        let before = nodes[index].matching.polls();
        nodes[0].cluster.matching(poll(&queue, 1)).await.unwrap();
        if nodes[index].matching.polls() > before {
            return (queue, &nodes[index]);
        }
    }
    unreachable!()
}

pub fn signal(workflow_id: &str) -> WorkflowCall {
    WorkflowCall {
        namespace_id: "namespace".to_owned(),
        workflow_id: workflow_id.to_owned(),
        command: Some(workflow_call::Command::Signal(SignalWorkflow::default())),
        ..WorkflowCall::default()
    }
}

fn matching_call_of(queue: &str, timeout_ms: i64, command: matching_call::Command) -> MatchingCall {
    MatchingCall {
        namespace_id: "namespace".to_owned(),
        task_queue: queue.to_owned(),
        timeout_ns: timeout_ms * 1_000_000,
        command: Some(command),
        ..MatchingCall::default()
    }
}

fn offer(queue: &str) -> MatchingCall {
    matching_call_of(queue, 0, matching_call::Command::Offer(Offer::default()))
}

pub fn poll(queue: &str, timeout_ms: i64) -> MatchingCall {
    matching_call_of(queue, timeout_ms, matching_call::Command::PollWorkflowTask(PollWorkflowTask::default()))
}

/// The task that comes may be tried so often.
pub fn poll_activity(queue: &str, maximum_attempts: i32) -> MatchingCall {
    let request = PollActivityTaskQueueRequest { identity: maximum_attempts.to_string(), ..Default::default() };
    let command = matching_call::Command::PollActivityTask(PollActivityTask { request: Some(request) });
    matching_call_of(queue, 5000, command)
}

/// The token of the activity's task in an answer, and its workflow.
pub fn activity_of(reply: MatchingReply) -> (Bytes, String) {
    let Some(matching_reply::Reply::ActivityTask(task)) = reply.reply else { panic!("no activity: {reply:?}") };
    let token = TaskToken::decode(task.task_token.clone()).unwrap();
    (task.task_token, token.workflow_id)
}

pub fn has_task(reply: &MatchingReply) -> bool {
    matches!(&reply.reply, Some(matching_reply::Reply::WorkflowTask(task)) if !task.task_token.is_empty())
}

/// Serves what the ring gives it, and counts.
pub struct Shards {
    membership: Membership,
    cluster: Mutex<Option<Cluster>>,
    paused: AtomicBool,
    refused: AtomicUsize,
    undelivered: AtomicUsize,
    offered_again: AtomicUsize,
    serves_all: AtomicBool,
    instead: Mutex<Option<NodeId>>,
    calls: Mutex<BTreeMap<String, usize>>,
    /// Queues of the offers that this node has made.
    offers: Mutex<Vec<String>>,
    /// Polls of which it was told that they are lost.
    lost_polls: Mutex<BTreeSet<u64>>,
}

impl Shards {
    fn new(membership: Membership) -> Self {
        Self {
            membership,
            cluster: Mutex::default(),
            paused: AtomicBool::new(false),
            refused: AtomicUsize::new(0),
            undelivered: AtomicUsize::new(0),
            offered_again: AtomicUsize::new(0),
            serves_all: AtomicBool::new(false),
            instead: Mutex::default(),
            calls: Mutex::default(),
            offers: Mutex::default(),
            lost_polls: Mutex::default(),
        }
    }

    pub fn lost_polls(&self) -> BTreeSet<u64> {
        self.lost_polls.lock().unwrap().clone()
    }

    pub fn calls(&self) -> BTreeMap<String, usize> {
        self.calls.lock().unwrap().clone()
    }

    pub fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::SeqCst);
    }

    pub fn refused(&self) -> usize {
        self.refused.load(Ordering::SeqCst)
    }

    pub fn undelivered(&self) -> usize {
        self.undelivered.load(Ordering::SeqCst)
    }

    pub fn offered_again(&self) -> usize {
        self.offered_again.load(Ordering::SeqCst)
    }

    pub fn give_all_to(&self, node: &Node) {
        *self.instead.lock().unwrap() = Some(node.membership.me().clone());
        node.shards.serves_all.store(true, Ordering::SeqCst);
    }
}

#[async_trait]
impl LocalShards for Shards {
    async fn call(&self, shard: ShardId, call: &WorkflowCall) -> Result<WorkflowReply, Error> {
        let key = ChainKey::new(call.namespace_id.as_str(), call.workflow_id.as_str());
        if key.namespace_id.as_ref() == "namespace" {
            assert_eq!(key.shard(slots()), shard);
        }
        if let Some(instead) = &*self.instead.lock().unwrap() {
            return Err(Error::not_owner(Some(instead.as_str())));
        }
        let is_mine = self.membership.placement().borrow().owner(shard) == Some(self.membership.me());
        if self.paused.load(Ordering::SeqCst) || !(is_mine || self.serves_all.load(Ordering::SeqCst)) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(Error::not_owner(None));
        }
        if call.workflow_id.starts_with("missing") {
            return Err(Error::not_found("no such workflow"));
        }
        if matches!(call.command, Some(workflow_call::Command::TaskUndelivered(_))) {
            self.undelivered.fetch_add(1, Ordering::SeqCst);
        }
        *self.calls.lock().unwrap().entry(call.workflow_id.clone()).or_default() += 1;
        Ok(WorkflowReply { reply: Some(workflow_reply::Reply::Empty(Empty {})) })
    }

    async fn shard(&self, call: ShardCall) -> Result<ShardReply, Error> {
        let Some(shard_call::Command::LostPolls(lost)) = call.command else { return Err(Error::unimplemented("this")) };
        self.lost_polls.lock().unwrap().extend(lost.polls);
        Ok(ShardReply { reply: None })
    }

    fn offer_again(&self, moved: QueueFilter) {
        let offers = self.offers.lock().unwrap().clone();
        let Some(cluster) = self.cluster.lock().unwrap().clone() else { return };
        for queue in offers.into_iter().filter(|queue| moved("namespace", queue)) {
            self.offered_again.fetch_add(1, Ordering::SeqCst);
            let cluster = cluster.clone();
            tokio::spawn(async move { cluster.matching(offer(&queue)).await });
        }
    }
}

/// Queues of offers that are not told apart.
#[derive(Default)]
pub struct Matching {
    offers: Mutex<BTreeMap<String, VecDeque<()>>>,
    came: Notify,
    departed: Mutex<Option<QueueFilter>>,
    polls: AtomicUsize,
    /// How nodes name them.
    names: Mutex<BTreeSet<u64>>,
    waiting: AtomicUsize,
    activities: AtomicUsize,
}

impl Matching {
    /// Each has a workflow of its own.
    fn activity(&self, maximum_attempts: i32) -> MatchingReply {
        let number = self.activities.fetch_add(1, Ordering::SeqCst);
        let token = TaskToken {
            kind: Kind::Activity as i32,
            namespace_id: "namespace".to_owned(),
            workflow_id: format!("workflow of activity {number}"),
            ..TaskToken::default()
        };
        let task = PollActivityTaskQueueResponse {
            task_token: token.encode_to_vec().into(),
            attempt: 1,
            retry_policy: Some(RetryPolicy { maximum_attempts, ..RetryPolicy::default() }),
            ..PollActivityTaskQueueResponse::default()
        };
        MatchingReply { reply: Some(matching_reply::Reply::ActivityTask(task)) }
    }

    pub fn polls(&self) -> usize {
        self.polls.load(Ordering::SeqCst)
    }

    pub fn names(&self) -> BTreeSet<u64> {
        self.names.lock().unwrap().clone()
    }

    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    fn take(&self, queue: &str) -> Option<()> {
        self.offers.lock().unwrap().get_mut(queue)?.pop_front()
    }

    fn has_departed(&self, queue: &str) -> bool {
        self.departed.lock().unwrap().as_ref().is_some_and(|departed| departed("namespace", queue))
    }

    async fn poll(&self, queue: &str, timeout: Duration) -> Result<MatchingReply, Error> {
        let _waiting = Waiting::new(&self.waiting);
        let until = tokio::time::Instant::now() + timeout;
        loop {
            let came = self.came.notified();
            if self.has_departed(queue) {
                return Err(Error::not_owner(None));
            }
            let mut task = PollWorkflowTaskQueueResponse::default();
            if self.take(queue).is_some() {
                let token = TaskToken {
                    kind: Kind::Workflow as i32,
                    namespace_id: "namespace".to_owned(),
                    workflow_id: "a workflow".to_owned(),
                    ..TaskToken::default()
                };
                task.task_token = token.encode_to_vec().into();
            } else if tokio::time::timeout_at(until, came).await.is_ok() {
                continue;
            }
            return Ok(MatchingReply { reply: Some(matching_reply::Reply::WorkflowTask(task)) });
        }
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl LocalMatching for Matching {
    async fn call(&self, call: MatchingCall) -> Result<MatchingReply, Error> {
        match call.command {
            Some(matching_call::Command::Offer(_)) => {
                self.offers.lock().unwrap().entry(call.task_queue).or_default().push_back(());
                self.came.notify_waiters();
                Ok(MatchingReply { reply: Some(matching_reply::Reply::Offer(OfferReply { accepted: true })) })
            }
            Some(matching_call::Command::PollWorkflowTask(_)) => {
                self.polls.fetch_add(1, Ordering::SeqCst);
                self.names.lock().unwrap().insert(call.poll);
                self.poll(&call.task_queue, Duration::from_nanos(call.timeout_ns.unsigned_abs())).await
            }
            Some(matching_call::Command::PollActivityTask(poll)) => {
                Ok(self.activity(poll.request.unwrap_or_default().identity.parse().unwrap()))
            }
            _ => Err(Error::unimplemented("this")),
        }
    }

    fn depart(&self, departed: QueueFilter) {
        *self.departed.lock().unwrap() = Some(departed);
        self.came.notify_waiters();
    }
}
