//! Delivery of calls: to their owner, here or one hop away.
//!
//! A call about a workflow goes to who serves its shard, else to who should; one redirect is followed. A call to a task queue
//! goes to its home, and only there: sender and home must agree on the ring, or an offer would be kept by a node that is
//! about to forget it. While a shard or a queue moves the call waits here, for news of the cluster.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use perdure_proto::{
    Code, Error,
    perdure::nexus::v1::nexus_task_call,
    perdure::node::v1::{
        Empty, MatchingCall, MatchingReply, ReplyFrame, ShardCall, ShardReply, TaskToken, TaskUndelivered,
        WorkflowCall, WorkflowReply,
        admin_server::{Admin, AdminServer},
        call_frame, matching_call, matching_reply,
        node_server::NodeServer,
        reply_frame, workflow_call,
    },
};
use perdure_types::{EntityKind, Layout, NodeId, PollName, ShardId, ShardMap, SlotCount};
use tokio::{
    sync::{Notify, mpsc, watch},
    time::{Instant, timeout_at},
};

use crate::{
    admin::AdminService,
    alone::{Alone, AloneAdmin},
    calls::{
        link::{CallError, Caller},
        links::Links,
        receipts::Receipts,
        service::NodeService,
        task_of,
    },
    lost_polls::{self, PollNames},
    membership::{LinkNews, Membership, Routes},
    ports::{LocalMatching, LocalShards},
    ring::Ring,
};

/// How long a call waits for an owner; who made it may try again.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between attempts to give back a task that went with a node that vanished, and for how long: its owner may have vanished
/// too, and without this the task waits for its timeout.
const UNDELIVERED_PAUSE: Duration = Duration::from_millis(200);
const UNDELIVERED_PATIENCE: Duration = Duration::from_secs(60);
/// How long an owner-to-be holds a call for a shard that it is about to serve.
const HOLD: Duration = Duration::from_secs(2);
/// How long the start of a task waits for an owner. A poll waits with it, which tasks of other shards could have: else the
/// shards of one dead node stop the queues of all.
const START_PATIENCE: Duration = Duration::from_millis(50);
/// Between attempts when there is no news.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// A poll without a limit of its own.
const LONGEST_POLL: Duration = Duration::from_secs(60);

/// Reaches the owner of every entity and the home of every task queue. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

struct Inner {
    /// How many shards the cluster began with.
    first: SlotCount,
    shards: Arc<dyn LocalShards>,
    matching: Arc<dyn LocalMatching>,
    /// None: this node is the whole cluster.
    others: Option<Others>,
}

struct Others {
    membership: Membership,
    routes: watch::Receiver<Routes>,
    links: Links,
    receipts: Arc<Receipts>,
    polls: PollNames,
}

impl Others {
    /// Whether this is another live member. Who was given a shard may have died since.
    fn is_other_member(&self, node: &str) -> bool {
        let routes = self.routes.borrow();
        node != routes.me().as_str() && routes.members.iter().any(|member| member.node.as_str() == node)
    }
}

/// What came of an attempt.
enum Outcome<T> {
    Done(Result<T, Error>),
    /// Nothing was done; perhaps that node owns it.
    Elsewhere(Option<NodeId>),
    /// It may have been done.
    Unknown,
}

impl<T> Outcome<T> {
    fn of(result: Result<T, Error>) -> Self {
        match result {
            Err(error) => match error.as_not_owner() {
                Some(hint) => Self::Elsewhere((!hint.owner.is_empty()).then(|| NodeId::new(hint.owner))),
                None => Self::Done(Err(error)),
            },
            done => Self::Done(done),
        }
    }

    fn of_call(result: Result<reply_frame::Reply, CallError>, read: impl Fn(reply_frame::Reply) -> Option<T>) -> Self {
        match result {
            Ok(reply_frame::Reply::Error(error)) => Self::of(Err(error)),
            Ok(reply) => {
                Self::Done(read(reply).ok_or_else(|| Error::internal("the owner answered with something else")))
            }
            Err(CallError::NotSent) => Self::Elsewhere(None),
            Err(CallError::Broken) => Self::Unknown,
        }
    }
}

impl Cluster {
    /// A cluster of this node alone: all calls are local.
    pub fn new(slots: SlotCount, shards: Arc<dyn LocalShards>, matching: Arc<dyn LocalMatching>) -> Self {
        Self { inner: Arc::new(Inner { first: slots, shards, matching, others: None }) }
    }

    /// The cluster that this node is a member of.
    pub fn joined(membership: Membership, shards: Arc<dyn LocalShards>, matching: Arc<dyn LocalMatching>) -> Self {
        let first = membership.config().slots;
        let routes = membership.routes();
        let (news, link_news) = mpsc::channel(64);
        let receipts = Arc::new(Receipts::default());
        tokio::spawn(report_links(link_news, membership.clone()));
        let (polls, lost_polls) = PollNames::new(membership.me().clone());
        let members = routes.clone();
        let inner = Arc::new_cyclic(|weak: &std::sync::Weak<Inner>| {
            let weak = weak.clone();
            let orphan = move |frame| {
                if let Some(inner) = weak.upgrade() {
                    Cluster { inner }.orphan(frame);
                }
            };
            let caller = Caller {
                cluster_id: membership.config().cluster_id.clone(),
                me: membership.me().clone(),
                clock: membership.config().clock,
                tls: membership.config().tls.clone(),
                orphan: Box::new(orphan),
                news,
                receipts: receipts.clone(),
            };
            let links = Links::new(Arc::new(caller), routes.clone());
            tokio::spawn(follow_queues(routes.clone(), shards.clone(), matching.clone()));
            Inner { first, shards, matching, others: Some(Others { membership, routes, links, receipts, polls }) }
        });
        let weak = Arc::downgrade(&inner);
        let tell = move |node: NodeId, call| {
            let inner = weak.upgrade();
            async move {
                if let Some(inner) = inner
                    && let Err(error) = (Cluster { inner }).shard(&node, call).await
                {
                    tracing::debug!(%node, %error, "a node does not hear of lost polls");
                }
            }
        };
        tokio::spawn(lost_polls::tell(lost_polls, move || others_and_me(&members), tell));
        Self { inner }
    }

    /// The service of this node's calls, for the cluster port. None: this node is the whole cluster.
    pub fn node_service(&self) -> Option<NodeServer<impl perdure_proto::perdure::node::v1::node_server::Node + use<>>> {
        let config = self.inner.others.as_ref()?.membership.config();
        let service = NodeService { cluster: self.clone(), cluster_id: config.cluster_id.clone(), clock: config.clock };
        Some(NodeServer::new(service).max_decoding_message_size(crate::calls::MAX_MESSAGE_BYTES))
    }

    /// The service of operators, for the cluster port. `drain` is told when this node is to drain and end. None: this node
    /// is the whole cluster.
    pub fn admin_service(
        &self,
        drain: Arc<Notify>,
    ) -> Option<AdminServer<impl perdure_proto::perdure::node::v1::admin_server::Admin + use<>>> {
        let membership = self.inner.others.as_ref()?.membership.clone();
        Some(AdminServer::new(AdminService { cluster: self.clone(), membership, drain }))
    }

    /// The same for a node that is the whole cluster.
    pub fn admin_service_alone(
        &self,
        node: Alone,
        drain: Arc<Notify>,
    ) -> AdminServer<impl perdure_proto::perdure::node::v1::admin_server::Admin + use<>> {
        AdminServer::new(AloneAdmin { cluster: self.clone(), node, drain })
    }

    /// What operators can ask, for parts of this process. None: this node is the whole cluster.
    pub fn admin(&self, drain: Arc<Notify>) -> Option<Arc<dyn Admin>> {
        let membership = self.inner.others.as_ref()?.membership.clone();
        Some(Arc::new(AdminService { cluster: self.clone(), membership, drain }))
    }

    /// The same for a node that is the whole cluster.
    pub fn admin_alone(&self, node: Alone, drain: Arc<Notify>) -> Arc<dyn Admin> {
        Arc::new(AloneAdmin { cluster: self.clone(), node, drain })
    }

    pub(crate) fn me(&self) -> String {
        self.inner.others.as_ref().map_or_else(String::new, |others| others.membership.me().to_string())
    }

    pub(crate) fn clock_offset_ns(&self, node: &NodeId) -> i64 {
        self.inner.others.as_ref().map_or(0, |others| others.links.clock_offset_ns(node))
    }

    /// Calls the entity that `call` names.
    pub async fn workflow(&self, call: &WorkflowCall) -> Result<WorkflowReply, Error> {
        self.workflow_settling(call, true).await
    }

    async fn workflow_settling(&self, call: &WorkflowCall, settling: bool) -> Result<WorkflowReply, Error> {
        let hash = slot_hash(call)?;
        let Some(others) = &self.inner.others else {
            return self.workflow_alone(hash, call).await;
        };
        let patience = if is_start(call) { START_PATIENCE } else { PATIENCE };
        let mut pause = Pause::new(others, Instant::now() + patience);
        loop {
            let mut target = self.target(others, hash);
            // The owner as far as is known here, and the one that it names.
            for _ in 0..2 {
                let Some(node) = target.take() else { break };
                match self.workflow_at(others, &node, hash, call).await {
                    Outcome::Done(result) => return result,
                    Outcome::Elsewhere(hint) => target = hint.filter(|hint| *hint != node),
                    Outcome::Unknown => {
                        if settling && is_start(call) {
                            self.settle_start(call.clone());
                        }
                        return Err(lost());
                    }
                }
            }
            if !pause.take().await {
                return Err(Error::unavailable("the shard of this workflow is moving, try again"));
            }
        }
    }

    /// The shard may have been split since this node has heard of it: who has it knows.
    fn shard_of(&self, others: &Others, hash: u32) -> ShardId {
        others.routes.borrow().map.shard_of(hash, self.inner.first)
    }

    fn target(&self, others: &Others, hash: u32) -> Option<NodeId> {
        let routes = others.routes.borrow();
        routes.target(routes.map.shard_of(hash, self.inner.first)).cloned()
    }

    /// All shards are here; one that is being split is waited for.
    async fn workflow_alone(&self, hash: u32, call: &WorkflowCall) -> Result<WorkflowReply, Error> {
        let shard = ShardMap::default().shard_of(hash, self.inner.first);
        let (until, mut pause) = (Instant::now() + HOLD, FIRST_PAUSE);
        loop {
            let outcome = self.inner.shards.call(shard, call).await;
            let is_elsewhere = outcome.as_ref().err().is_some_and(|error| error.as_not_owner().is_some());
            if !is_elsewhere || Instant::now() >= until {
                return outcome.map_err(plain);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn workflow_at(
        &self,
        others: &Others,
        node: &NodeId,
        hash: u32,
        call: &WorkflowCall,
    ) -> Outcome<WorkflowReply> {
        if node == others.membership.me() {
            return Outcome::of(self.workflow_here(others, hash, call).await);
        }
        let reply = others.links.call(node, call_frame::Call::Workflow(call.clone())).await;
        Outcome::of_call(reply, |reply| match reply {
            reply_frame::Reply::Workflow(reply) => Some(reply),
            _ => None,
        })
    }

    /// Handles a call at this node. A shard that this node is about to serve is waited for.
    async fn workflow_here(&self, others: &Others, hash: u32, call: &WorkflowCall) -> Result<WorkflowReply, Error> {
        let hold = if is_start(call) { START_PATIENCE } else { HOLD };
        let mut pause = Pause::new(others, Instant::now() + hold);
        loop {
            let outcome = self.inner.shards.call(self.shard_of(others, hash), call).await;
            match outcome.as_ref().err().and_then(Error::as_not_owner) {
                None => return outcome,
                // Just handed over.
                Some(hint) if others.is_other_member(&hint.owner) => return outcome,
                Some(_) => {}
            }
            let owner = self.target(others, hash);
            let is_mine = owner.as_ref() == Some(others.membership.me());
            if !is_mine || !pause.take().await {
                return Err(Error::not_owner(owner.as_ref().map(NodeId::as_str)));
            }
        }
    }

    /// Calls the home of the task queue that `call` names.
    pub fn matching(&self, call: MatchingCall) -> BoxFuture<'_, Result<MatchingReply, Error>> {
        match &self.inner.others {
            None => self.inner.matching.call(call),
            Some(others) => Box::pin(self.matching_among(others, call)),
        }
    }

    async fn matching_among(&self, others: &Others, mut call: MatchingCall) -> Result<MatchingReply, Error> {
        let until = patience_of(&call);
        let (limited, repeatable) = (call.timeout_ns > 0, is_repeatable(&call));
        let mut pause = Pause::new(others, until);
        loop {
            if limited {
                let left = until.saturating_duration_since(Instant::now()).as_nanos().max(1);
                call.timeout_ns = i64::try_from(left).unwrap_or(i64::MAX);
            }
            let home = others.routes.borrow().ring.home(&call.namespace_id, &call.task_queue).cloned();
            let outcome = match home {
                Some(home) => self.matching_at(others, &home, call.clone()).await,
                None => Outcome::Elsewhere(None),
            };
            match outcome {
                Outcome::Done(result) => return result,
                Outcome::Unknown if !repeatable => return Err(lost()),
                Outcome::Unknown | Outcome::Elsewhere(_) => {}
            }
            if !pause.take().await {
                return nowhere(&call);
            }
        }
    }

    async fn matching_at(&self, others: &Others, home: &NodeId, call: MatchingCall) -> Outcome<MatchingReply> {
        if home == others.membership.me() {
            return Outcome::of(self.inner.matching.call(call).await);
        }
        let mut call = call;
        let name = is_poll(&call).then(|| others.polls.next());
        call.poll = name.map_or(0, PollName::number);
        let reply = others.links.call(home, call_frame::Call::Matching(call)).await;
        if let (Some(name), Err(CallError::Broken)) = (name, &reply) {
            others.polls.lost(name);
        }
        Outcome::of_call(reply, |reply| match reply {
            reply_frame::Reply::Matching(reply) => Some(reply),
            _ => None,
        })
    }

    /// Calls the owner of shards on that node, about a shard.
    pub async fn shard(&self, node: &NodeId, call: ShardCall) -> Result<ShardReply, Error> {
        let Some(others) = self.inner.others.as_ref().filter(|others| others.membership.me() != node) else {
            return self.inner.shards.shard(call).await;
        };
        let reply = others.links.call(node, call_frame::Call::Shard(call)).await;
        let read = |reply| match reply {
            reply_frame::Reply::Shard(reply) => Some(reply),
            _ => None,
        };
        match Outcome::of_call(reply, read) {
            Outcome::Done(result) => result,
            Outcome::Elsewhere(_) => Err(Error::not_owner(None)),
            Outcome::Unknown => Err(lost()),
        }
    }

    /// Calls the task queues of that node, whichever they are.
    pub(crate) async fn matching_of(&self, node: &NodeId, call: MatchingCall) -> Result<MatchingReply, Error> {
        match self.inner.others.as_ref().filter(|others| others.membership.me() != node) {
            None => self.inner.matching.call(call).await,
            Some(others) => match self.matching_at(others, node, call).await {
                Outcome::Done(result) => result,
                Outcome::Elsewhere(_) => Err(Error::not_owner(None)),
                Outcome::Unknown => Err(lost()),
            },
        }
    }

    /// How far the shards are split, by the store.
    pub(crate) async fn layout(&self) -> Result<Layout, Error> {
        self.inner.shards.layout().await
    }

    pub(crate) async fn split(&self, goal: Option<SlotCount>) -> Result<Layout, Error> {
        self.inner.shards.split(goal).await
    }

    /// Answers what another node calls. Never forwards.
    pub(crate) async fn handle(&self, call: call_frame::Call) -> Result<reply_frame::Reply, Error> {
        let Some(others) = &self.inner.others else {
            return Err(Error::internal("a node on its own was called by another"));
        };
        match call {
            call_frame::Call::Workflow(call) => {
                let hash = slot_hash(&call)?;
                self.workflow_here(others, hash, &call).await.map(reply_frame::Reply::Workflow)
            }
            call_frame::Call::Matching(call) => {
                if matches!(call.command, Some(matching_call::Command::ListQueues(_))) {
                    return self.inner.matching.call(call).await.map(reply_frame::Reply::Matching);
                }
                let home = others.routes.borrow().ring.home(&call.namespace_id, &call.task_queue).cloned();
                if home.as_ref() != Some(others.membership.me()) {
                    return Err(Error::not_owner(home.as_ref().map(NodeId::as_str)));
                }
                self.inner.matching.call(call).await.map(reply_frame::Reply::Matching)
            }
            call_frame::Call::Shard(call) => self.inner.shards.shard(call).await.map(reply_frame::Reply::Shard),
            call_frame::Call::Ping(_) | call_frame::Call::Cancel(_) => Ok(reply_frame::Reply::Pong(Empty {})),
        }
    }

    /// An answer reaches nobody: a task that it carries is offered again.
    pub(crate) fn orphan(&self, frame: ReplyFrame) {
        if let Some(token) = task_of(&frame) {
            self.undelivered(token);
        }
    }

    /// A task that was handed out by this node has been written to its worker, or has gone on from the next node.
    pub fn handed_on(&self, token: &Bytes) {
        if let Some(others) = &self.inner.others {
            others.receipts.close(token);
        }
    }

    /// Nobody knows whether a task was started: its owner vanished. It is started once more, by the same request, and then
    /// given back: else one that was started for nobody would wait for its timeout.
    fn settle_start(&self, call: WorkflowCall) {
        let cluster = self.clone();
        tokio::spawn(async move {
            let until = Instant::now() + UNDELIVERED_PATIENCE;
            loop {
                match cluster.workflow_settling(&call, false).await {
                    Ok(reply) => {
                        return cluster.orphan(ReplyFrame { id: 0, reply: Some(reply_frame::Reply::Workflow(reply)) });
                    }
                    Err(error) if error.grpc_code() == Code::Unavailable && Instant::now() < until => {
                        tokio::time::sleep(UNDELIVERED_PAUSE).await;
                    }
                    // It was started for somebody else, or there is nothing to start.
                    Err(error) => return tracing::debug!(%error, "a start of unknown outcome is settled"),
                }
            }
        });
    }

    /// A started task has not reached its worker, and never will: it is offered again.
    pub fn undelivered(&self, token: TaskToken) {
        let cluster = self.clone();
        tokio::spawn(async move {
            let call = WorkflowCall {
                kind: token.entity_kind,
                namespace_id: token.namespace_id.clone(),
                workflow_id: token.workflow_id.clone(),
                command: Some(workflow_call::Command::TaskUndelivered(TaskUndelivered { token: Some(token) })),
            };
            let until = Instant::now() + UNDELIVERED_PATIENCE;
            loop {
                match cluster.workflow(&call).await {
                    Ok(_) => return,
                    // Closed, timed out or completed meanwhile.
                    Err(error) if error.grpc_code() == Code::NotFound => return,
                    // The node that vanished may have been the owner too. Saying it twice does no harm.
                    Err(error) if error.grpc_code() == Code::Unavailable && Instant::now() < until => {
                        tokio::time::sleep(UNDELIVERED_PAUSE).await;
                    }
                    Err(error) => return tracing::warn!(%error, "an undelivered task waits for its timeout"),
                }
            }
        });
    }
}

/// Waits between attempts: for news of the cluster, or for a while.
struct Pause {
    routes: watch::Receiver<Routes>,
    until: Instant,
    next: Duration,
}

impl Pause {
    fn new(others: &Others, until: Instant) -> Self {
        let mut routes = others.routes.clone();
        routes.mark_unchanged();
        Self { routes, until, next: FIRST_PAUSE }
    }

    /// False: the time is over.
    async fn take(&mut self) -> bool {
        let now = Instant::now();
        if now >= self.until {
            return false;
        }
        let at = (now + self.next).min(self.until);
        self.next = (self.next * 2).min(LONGEST_PAUSE);
        if let Ok(Err(_)) = timeout_at(at, self.routes.changed()).await {
            // No more news: this node has left.
            tokio::time::sleep_until(at).await;
        }
        true
    }
}

fn slot_hash(call: &WorkflowCall) -> Result<u32, Error> {
    let kind = EntityKind::from_number(call.kind);
    let kind = kind.ok_or_else(|| Error::unimplemented("entity of an unknown kind"))?;
    Ok(perdure_types::slot_hash(kind, &call.namespace_id, &call.workflow_id))
}

/// No trace of node-to-node details in what a client may see.
fn plain(error: Error) -> Error {
    if error.as_not_owner().is_some() { Error::unavailable(error.message) } else { error }
}

fn lost() -> Error {
    Error::in_doubt("the connection to the owner was lost, try again")
}

/// Whether a task queue wants to start a task for a poll. If it cannot now, it tries others, and then this one again.
fn is_start(call: &WorkflowCall) -> bool {
    use workflow_call::Command;
    matches!(call.command, Some(Command::RecordWorkflowTaskStarted(_) | Command::RecordActivityTaskStarted(_)))
}

fn is_poll(call: &MatchingCall) -> bool {
    use matching_call::Command;
    match &call.command {
        Some(Command::PollWorkflowTask(_) | Command::PollActivityTask(_)) => true,
        Some(Command::Nexus(call)) => matches!(call.command, Some(nexus_task_call::Command::Poll(_))),
        _ => false,
    }
}

/// Whether it does no harm to do it twice. A poll whose home has vanished has got no task: its shard offers it again.
fn is_repeatable(call: &MatchingCall) -> bool {
    use matching_call::Command;
    match &call.command {
        Some(
            Command::PollWorkflowTask(_)
            | Command::PollActivityTask(_)
            | Command::Offer(_)
            | Command::Query(_)
            | Command::Describe(_)
            | Command::ListPartitions(_)
            | Command::AwaitRevision(_)
            | Command::ShutdownWorker(_)
            | Command::RecordWorkerHeartbeats(_)
            | Command::ListWorkers(_)
            | Command::ListQueues(_),
        ) => true,
        // A request that a worker may have got is sent again: its operation's id tells the handler so.
        Some(Command::Nexus(call)) => !matches!(call.command, Some(nexus_task_call::Command::Respond(_))),
        Some(Command::RespondQuery(_)) | None => false,
    }
}

fn patience_of(call: &MatchingCall) -> Instant {
    let limit = if call.timeout_ns > 0 {
        perdure_types::Duration(call.timeout_ns).to_std()
    } else if is_poll(call) {
        LONGEST_POLL
    } else {
        PATIENCE
    };
    Instant::now() + limit
}

/// The answer when no home was found in time.
fn nowhere(call: &MatchingCall) -> Result<MatchingReply, Error> {
    if is_poll(call) {
        return Ok(MatchingReply { reply: Some(matching_reply::Reply::Empty(Empty {})) });
    }
    Err(Error::unavailable("the home of this task queue is moving, try again"))
}

fn others_and_me(routes: &watch::Receiver<Routes>) -> Vec<NodeId> {
    routes.borrow().members.iter().map(|member| member.node.clone()).collect()
}

async fn report_links(mut links: mpsc::Receiver<(NodeId, LinkNews)>, membership: Membership) {
    while let Some((node, news)) = links.recv().await {
        membership.link_news(node, news).await;
    }
}

/// Tells the parts of this node when task queues get another home.
async fn follow_queues(
    mut routes: watch::Receiver<Routes>,
    shards: Arc<dyn LocalShards>,
    matching: Arc<dyn LocalMatching>,
) {
    let mut before: Arc<Ring> = Arc::default();
    let mut first = true;
    loop {
        let (me, after) = {
            let now = routes.borrow_and_update();
            (now.me().clone(), now.ring.clone())
        };
        if first || after != before {
            first = false;
            let departed = after.clone();
            let not_mine = move |namespace_id: &str, queue: &str| departed.home(namespace_id, queue) != Some(&me);
            matching.depart(Arc::new(not_mine));
            let is_known = !before.members().is_empty() && !after.members().is_empty();
            if is_known {
                let (old, new) = (before.clone(), after.clone());
                let moved = move |namespace_id: &str, queue: &str| {
                    old.home(namespace_id, queue) != new.home(namespace_id, queue)
                };
                shards.offer_again(Arc::new(moved));
            }
            // While this node is cut off it has no ring; what has moved meanwhile is seen afterwards.
            if !after.members().is_empty() {
                before = after;
            }
        }
        if routes.changed().await.is_err() {
            return;
        }
    }
}
