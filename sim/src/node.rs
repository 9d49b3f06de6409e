//! One node: shards, and a worker for every task queue.

use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use perdure_persistence::Store;
use perdure_proto::{
    Error,
    perdure::node::v1::{LostPolls, Offer, OfferReply, ShardCall, WorkflowCall, WorkflowReply, shard_call},
};
use perdure_shard::{Clock, EntityCaller, Joining, Setup, ShardConfig, Shards, StartError, TaskSink};
use perdure_types::{ChainKey, Duration, Layout, PollName, SlotCount, Timestamp};
use perdure_workflow::{NamespaceInfo, NamespaceView};
use tokio::{sync::mpsc, task::JoinHandle};

use crate::{
    client::Client,
    worker::{self, Script},
};

pub const NAMESPACE: &str = "default";
pub const NAMESPACE_ID: &str = "9f8e3f0e-0000-4000-8000-000000000001";

/// How a node of a test is set up.
#[derive(Clone)]
pub struct Options {
    pub slots: u32,
    pub config: ShardConfig,
    pub script: Script,
    /// Offers are thrown away: nobody works.
    pub no_worker: bool,
    pub retention: Duration,
    /// Start of the node's time; it follows the runtime's clock from there.
    pub start: Timestamp,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            slots: 4,
            config: ShardConfig { seed: Some(1), ..ShardConfig::default() },
            script: Script::default(),
            no_worker: false,
            retention: Duration::from_secs(86_400),
            start: Timestamp(1_700_000_000_000_000_000),
        }
    }
}

/// A node that serves. Dropping it without [`Node::stop`] is a crash.
pub struct Node {
    shards: Shards,
    router: Router,
    clock: Arc<Clock>,
    worker: JoinHandle<()>,
}

struct Namespace {
    retention: Duration,
}

impl NamespaceView for Namespace {
    fn by_name(&self, name: &str) -> Option<NamespaceInfo> {
        (name == NAMESPACE).then(|| NamespaceInfo {
            id: NAMESPACE_ID.into(),
            name: NAMESPACE.into(),
            retention: self.retention,
        })
    }

    fn by_id(&self, id: &str) -> Option<NamespaceInfo> {
        if id == NAMESPACE_ID { self.by_name(NAMESPACE) } else { None }
    }
}

/// Offers go to the worker through a bounded channel.
struct Sink(Option<mpsc::Sender<Offer>>);

#[async_trait]
impl TaskSink for Sink {
    async fn offer(&self, offer: Offer) -> Result<OfferReply, Error> {
        match &self.0 {
            Some(offers) => match offers.send(offer).await {
                Ok(()) => Ok(OfferReply { accepted: true }),
                Err(_) => Err(Error::unavailable("the worker is gone")),
            },
            None => Ok(OfferReply { accepted: true }),
        }
    }
}

/// Calls to entities of the same node.
#[derive(Clone)]
pub(crate) struct Router {
    shards: Arc<OnceLock<Shards>>,
    slots: SlotCount,
    /// In a cluster: finds the owner, here or elsewhere.
    cluster: Option<Arc<dyn EntityCaller>>,
}

#[async_trait]
impl EntityCaller for Router {
    async fn call(&self, call: WorkflowCall) -> Result<WorkflowReply, Error> {
        if let Some(cluster) = &self.cluster {
            return cluster.call(call).await;
        }
        let shards = self.shards.get().ok_or_else(|| Error::unavailable("starting"))?;
        let key = ChainKey::numbered(call.kind, call.namespace_id.as_str(), call.workflow_id.as_str());
        let shard = key.ok_or_else(|| Error::invalid_argument("an entity of an unknown kind"))?.shard(self.slots);
        // A shard that is being split is waited for.
        for _ in 0..400 {
            let result = shards.call(shard, &call).await;
            if result.as_ref().err().and_then(Error::as_not_owner).is_none() {
                return result;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        Err(Error::unavailable("the shard of this workflow is moving, try again"))
    }
}

impl Node {
    /// Starts a node over a store that may hold what an earlier one left.
    pub async fn start(store: Arc<dyn Store>, options: Options) -> Result<Self, StartError> {
        Self::begin(store, options, None).await
    }

    /// Starts a member of a cluster. `entities` reaches the owners of all.
    pub(crate) async fn join(
        store: Arc<dyn Store>,
        options: Options,
        joining: Joining,
        entities: Arc<dyn EntityCaller>,
    ) -> Result<Self, StartError> {
        Self::begin(store, options, Some((joining, entities))).await
    }

    async fn begin(
        store: Arc<dyn Store>,
        options: Options,
        cluster: Option<(Joining, Arc<dyn EntityCaller>)>,
    ) -> Result<Self, StartError> {
        let (joining, entities) = cluster.unzip();
        let slots = SlotCount::new(options.slots).expect("a power of two");
        let shards = Shards::new();
        let router = Router { shards: Arc::new(OnceLock::new()), slots, cluster: entities };
        let _ = router.shards.set(shards.clone());
        let (offers, offered) = mpsc::channel(1024);
        let worker = tokio::spawn(worker::run(offered, router.clone(), options.script.clone()));
        let clock = Arc::new(Clock::runtime(options.start));
        let setup = Setup {
            store,
            slots,
            config: options.config,
            clock: clock.clone(),
            namespaces: Arc::new(Namespace { retention: options.retention }),
            tasks: Arc::new(Sink((!options.no_worker).then_some(offers))),
            entities: Arc::new(router.clone()),
        };
        match joining {
            None => shards.start(setup).await?,
            Some(joining) => shards.join(setup, joining).await?,
        }
        Ok(Self { shards, router, clock, worker })
    }

    pub fn client(&self) -> Client {
        Client::new(Arc::new(self.router.clone()))
    }

    pub(crate) fn shards(&self) -> &Shards {
        &self.shards
    }

    /// Wants so many shards.
    pub async fn split(&self, goal: Option<SlotCount>) -> Result<Layout, Error> {
        self.shards.split(goal).await
    }

    pub async fn layout(&self) -> Result<Layout, Error> {
        self.shards.layout().await
    }

    /// Another node says that these polls got no answer.
    pub async fn polls_lost(&self, polls: &[PollName]) {
        let lost = LostPolls { polls: polls.iter().map(|poll| poll.number()).collect() };
        let call = ShardCall { command: Some(shard_call::Command::LostPolls(lost)), ..ShardCall::default() };
        let told = self.shards.shard(call).await;
        debug_assert!(told.is_ok(), "{told:?}");
    }

    /// Gives its shards to others, as far as they take them, and stops.
    pub(crate) async fn drain(self, patience: std::time::Duration) {
        self.shards.drain(patience).await;
        self.worker.abort();
    }

    /// Somebody sets the node's clock.
    pub fn jump_clock(&self, by: Duration) {
        self.clock.jump(by);
    }

    /// Returns when serving has ended for good.
    pub async fn ended(&self) -> String {
        self.shards.ended().await.to_string()
    }

    /// In good order.
    pub async fn stop(self) {
        self.shards.stop().await;
        self.worker.abort();
    }

    /// As kill -9 does.
    pub async fn crash(self) {
        self.worker.abort();
        self.shards.crash().await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.worker.abort();
    }
}
