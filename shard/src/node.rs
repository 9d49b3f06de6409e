//! The shards of a node: routes calls to them, keeps them served, stops them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::Duration,
};

use perdure_persistence::{Store, StoreError};
use perdure_proto::{
    Error,
    perdure::node::v1::{WorkflowCall, WorkflowReply},
    temporal::api::enums::v1::{ResourceExhaustedCause, ResourceExhaustedScope},
};
use perdure_types::{ChainKey, ShardId};
use perdure_workflow::{IdSource, NamespaceView};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use crate::{
    clock::Clock,
    config::ShardConfig,
    driver::{Call, Ownership, ShardHandle, ended},
    flush::Registry,
    log::{LogState, session::Backoff},
    period::{Period, seed},
    ports::{EntityCaller, TaskSink},
    watched::Watched,
};

/// What serving needs.
pub struct Setup {
    pub store: Arc<dyn Store>,
    /// The shards that this node is to own.
    pub shards: Vec<ShardId>,
    pub config: ShardConfig,
    pub clock: Arc<Clock>,
    pub namespaces: Arc<dyn NamespaceView>,
    pub tasks: Arc<dyn TaskSink>,
    pub entities: Arc<dyn EntityCaller>,
}

/// Why serving could not begin.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("already started")]
    AlreadyStarted,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The node's shards. Cheap to clone. Serves nothing until [`Shards::start`]; so it can be wired to others first.
#[derive(Clone)]
pub struct Shards {
    inner: Arc<Inner>,
}

struct Inner {
    /// Shards of the period under way; none while there is none.
    routes: RwLock<Option<Registry>>,
    supervisor: Mutex<Option<Supervisor>>,
    ended: Watched<Option<StoreError>>,
}

struct Supervisor {
    stop: mpsc::Sender<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Default for Shards {
    fn default() -> Self {
        Self::new()
    }
}

impl Shards {
    pub fn new() -> Self {
        let inner = Inner { routes: RwLock::default(), supervisor: Mutex::default(), ended: Watched::new(None) };
        Self { inner: Arc::new(inner) }
    }

    /// Begins to serve: returns when all shards that can be served are.
    pub async fn start(&self, setup: Setup) -> Result<(), StartError> {
        if self.supervisor().is_some() {
            return Err(StartError::AlreadyStarted);
        }
        let setup = Arc::new(setup);
        let seed = setup.config.seed.unwrap_or_else(random_seed);
        let mut ids = IdSource::new(seed);
        let period = Period::start(setup.clone(), next_ids(&mut ids)).await?;
        self.inner.route(Some(period.registry.clone()));
        let (stop, stops) = mpsc::channel(1);
        let task = tokio::spawn(supervise(self.inner.clone(), setup, ids, period, stops));
        *self.supervisor() = Some(Supervisor { stop, task });
        Ok(())
    }

    /// Handles a call on a shard of this node. Dropping the future gives up the wait, not the effect.
    pub async fn call(&self, shard: ShardId, call: WorkflowCall) -> Result<WorkflowReply, Error> {
        let Some(command) = call.command else {
            return Err(Error::invalid_argument("the call has no command"));
        };
        let handle = self.inner.shard(shard).ok_or_else(ended)?;
        if handle.ownership() != Ownership::Serving {
            return Err(ended());
        }
        let chain = ChainKey::numbered(call.kind, call.namespace_id, call.workflow_id)
            .ok_or_else(|| Error::unimplemented("entity of an unknown kind"))?;
        let (reply, answer) = oneshot::channel();
        match handle.calls.try_send(Call { chain, command, reply }) {
            Ok(()) => answer.await.unwrap_or_else(|_| Err(ended())),
            Err(mpsc::error::TrySendError::Full(_)) => Err(Error::resource_exhausted(
                "too many calls wait for this workflow's shard",
                ResourceExhaustedCause::SystemOverloaded,
                ResourceExhaustedScope::System,
            )),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(ended()),
        }
    }

    /// Stops in good order: no more calls, everything answered and written, the log sealed.
    pub async fn stop(&self) {
        let supervisor = self.supervisor().take();
        let Some(Supervisor { stop, task }) = supervisor else {
            return;
        };
        let (done, stopped) = oneshot::channel();
        if stop.send(done).await.is_ok() {
            let _ = stopped.await;
        }
        let _ = task.await;
    }

    /// Ends as a crash would: nothing is finished, nothing is written.
    pub async fn crash(&self) {
        self.inner.route(None);
        let supervisor = self.supervisor().take();
        if let Some(Supervisor { task, .. }) = supervisor {
            task.abort();
            let _ = task.await;
        }
    }

    /// Returns, with the reason, when serving has ended for good though nobody asked: the store refuses writes, or is
    /// damaged.
    pub async fn ended(&self) -> StoreError {
        let ended = self.inner.ended.wait_for(Option::is_some).await;
        ended.unwrap_or_else(|| StoreError::Unavailable("the node is gone".to_owned()))
    }

    fn supervisor(&self) -> std::sync::MutexGuard<'_, Option<Supervisor>> {
        self.inner.supervisor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn route(&self, registry: Option<Registry>) {
        *self.routes.write().unwrap_or_else(PoisonError::into_inner) = registry;
    }

    fn shard(&self, shard: ShardId) -> Option<ShardHandle> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        let shards: &RwLock<BTreeMap<ShardId, ShardHandle>> = routes.as_deref()?;
        shards.read().unwrap_or_else(PoisonError::into_inner).get(&shard).cloned()
    }
}

#[allow(clippy::disallowed_methods, reason = "where the system's randomness enters, if no seed is given")]
fn random_seed() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}

fn next_ids(ids: &mut IdSource) -> IdSource {
    IdSource::new(seed(ids))
}

enum Happened {
    Stop(Option<oneshot::Sender<()>>),
    Ended(LogState),
    Panicked(ShardId),
}

/// Keeps the node serving: one period after the other.
async fn supervise(
    inner: Arc<Inner>,
    setup: Arc<Setup>,
    mut ids: IdSource,
    mut period: Period,
    mut stops: mpsc::Receiver<oneshot::Sender<()>>,
) {
    loop {
        let log = period.log.clone();
        let happened = tokio::select! {
            biased;
            stop = stops.recv() => Happened::Stop(stop),
            ended = log.ended() => Happened::Ended(ended),
            shard = period.panicked() => Happened::Panicked(shard),
        };
        match happened {
            Happened::Stop(done) => {
                inner.route(None);
                if let Err(error) = period.stop().await {
                    tracing::error!(%error, "the session could not be sealed; the next start replays its log");
                }
                if let Some(done) = done {
                    let _ = done.send(());
                }
                return;
            }
            Happened::Ended(LogState::Failed(error)) => {
                inner.route(None);
                inner.ended.set(Some(error));
                return;
            }
            // A3, C4: nothing of the old period is left when the next one begins.
            Happened::Ended(LogState::Live | LogState::Fenced | LogState::Closed) => {
                inner.route(None);
                drop(period);
                period = begin_again(&setup, &mut ids).await;
                inner.route(Some(period.registry.clone()));
            }
            Happened::Panicked(shard) => {
                tokio::time::sleep(Duration::from_millis(200)).await;
                if let Err(error) = period.reload(shard).await {
                    tracing::error!(shard_id = shard.0, %error, "the shard cannot be loaded again");
                }
            }
        }
    }
}

async fn begin_again(setup: &Arc<Setup>, ids: &mut IdSource) -> Period {
    let mut backoff = Backoff::new();
    loop {
        match Period::start(setup.clone(), next_ids(ids)).await {
            Ok(period) => return period,
            Err(error) => tracing::error!(%error, "serving cannot begin again, trying once more"),
        }
        backoff.wait().await;
    }
}
