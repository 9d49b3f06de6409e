//! `perdure dev`: every role in one process, on the embedded store.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use perdure_cluster::{Cluster, Namespaces};
use perdure_frontend::{ClusterInfo, Frontend};
use perdure_matching::{Matching, MatchingConfig};
use perdure_persistence::{
    ClusterSettings, Store, StoreError,
    embedded::{Config, Embedded, OpenError},
};
use perdure_shard::{Clock, Setup, ShardConfig, Shards, StartError};
use perdure_types::{Limits, SlotCount};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    cli::DevArgs,
    exit::Failure,
    grpc,
    namespaces::{NamespaceRegistry, StoredNamespaces, ensure_namespaces},
    telemetry,
    wiring::{MatchingHere, ShardsHere, Uplink},
};

/// Shards of a new cluster (design: small enough for one machine, and it can be doubled).
const DEFAULT_SLOTS: u32 = 64;
const SCHEMA_VERSION: u32 = 1;
/// How long a stopping server waits for calls under way.
const DRAIN: Duration = Duration::from_secs(5);

/// Runs until Ctrl-C or SIGTERM.
pub async fn run(args: DevArgs) -> Result<(), Failure> {
    let limits = args.limits().map_err(|error| Failure::new(Failure::USAGE, error.to_string()))?;
    // The port first: a second server in the same directory usually fails on both, and the port says it best.
    let address = SocketAddr::new(args.ip, args.port);
    let listener = TcpListener::bind(address).await.map_err(|error| port_failure(address, &error))?;
    // The system chose it when 0 was asked for.
    let address = listener.local_addr().unwrap_or(address);
    let metrics_address = telemetry::serve_metrics(SocketAddr::new(args.ip, args.metrics_port))?;

    let store: Arc<dyn Store> = Arc::new(open(&args)?);
    let node = Node::start(store, limits, &args.namespace, address.to_string()).await?;

    let (stop, stopped) = watch::channel(false);
    let (health, server) = grpc::serve(listener, &node.frontend, stopped)?;
    let server = tokio::spawn(server);
    // From here on: while it starts, a signal ends it at once, which is safe.
    let mut signals = Signals::listen()
        .map_err(|error| Failure::new(Failure::OTHER, format!("cannot listen for signals: {error}")))?;
    health.set_serving(true).await;
    tracing::info!(%address, metrics = %metrics_address, data = %data_name(&args), "perdure is ready");

    let outcome = tokio::select! {
        () = signals.received() => Ok(()),
        error = node.shards.ended() => Err(store_failure(&error)),
    };
    tracing::info!("draining");
    let drained = async {
        health.set_serving(false).await;
        node.draining.send_replace(true);
        node.matching.drain();
        stop.send_replace(true);
        health.end_watches().await;
        if tokio::time::timeout(DRAIN, server).await.is_err() {
            tracing::info!("calls still under way are cut off");
        }
        node.shards.stop().await;
    };
    tokio::select! {
        () = drained => tracing::info!("stopped"),
        () = signals.received() => tracing::warn!("asked again: stopped at once, the next start replays the log"),
    }
    outcome
}

/// The parts of a node that the process has to hold on to.
struct Node {
    frontend: Frontend,
    shards: Shards,
    matching: Matching,
    draining: watch::Sender<bool>,
}

impl Node {
    async fn start(
        store: Arc<dyn Store>,
        limits: Limits,
        extra_namespaces: &[String],
        host_name: String,
    ) -> Result<Self, Failure> {
        let settings = settings(&*store).await?;
        let namespaces = load_namespaces(&store, extra_namespaces).await?;

        let uplink = Uplink::default();
        let matching =
            Matching::new(Arc::new(uplink.clone()), MatchingConfig { host_name, ..MatchingConfig::default() });
        let shards = Shards::new();
        let cluster = Cluster::new(
            settings.slots,
            Arc::new(ShardsHere(shards.clone())),
            Arc::new(MatchingHere(matching.clone())),
        );
        uplink.connect(cluster.clone());
        let setup = Setup {
            store,
            shards: settings.slots.shards().collect(),
            config: ShardConfig { limits: limits.clone(), ..ShardConfig::default() },
            clock: Arc::new(Clock::system()),
            namespaces: Arc::new(NamespaceRegistry(namespaces.clone())),
            tasks: Arc::new(uplink.clone()),
            entities: Arc::new(uplink),
        };
        shards.start(setup).await.map_err(|error| match error {
            StartError::Store(error) => store_failure(&error),
            StartError::AlreadyStarted => Failure::new(Failure::OTHER, error.to_string()),
        })?;

        let (draining, watch_draining) = watch::channel(false);
        let info = ClusterInfo {
            cluster_id: settings.cluster_id,
            shard_count: settings.slots.get(),
            persistence_store: "embedded".to_owned(),
            ..ClusterInfo::default()
        };
        let frontend = Frontend::new(cluster, namespaces, Arc::new(limits), info, watch_draining);
        Ok(Self { frontend, shards, matching, draining })
    }
}

async fn settings(store: &dyn Store) -> Result<ClusterSettings, Failure> {
    let proposal = ClusterSettings {
        cluster_id: uuid::Uuid::new_v4().to_string(),
        slots: SlotCount::new(DEFAULT_SLOTS).expect("a power of two"),
        schema_version: SCHEMA_VERSION,
    };
    let settings = store.cluster_settings(proposal).await.map_err(|error| store_failure(&error))?;
    if settings.schema_version > SCHEMA_VERSION {
        let message = format!(
            "the data has schema version {}, this binary knows {SCHEMA_VERSION}: use a newer perdure",
            settings.schema_version
        );
        return Err(Failure::new(Failure::DATA_NEWER, message));
    }
    Ok(settings)
}

fn open(args: &DevArgs) -> Result<Embedded, Failure> {
    let opened = if args.ephemeral { Embedded::ephemeral() } else { Embedded::open(&Config::new(&args.db_filename)) };
    opened.map_err(|error| open_failure(&error))
}

fn open_failure(error: &OpenError) -> Failure {
    let code = match error {
        OpenError::Locked { .. } => Failure::DATA_LOCKED,
        OpenError::NewerFormat { .. } => Failure::DATA_NEWER,
        OpenError::Corrupt { .. } => Failure::DATA_CORRUPT,
        OpenError::ReadOnly { .. } | OpenError::DiskFull { .. } => Failure::DATA_NOT_WRITABLE,
        OpenError::NotAStore { .. } | OpenError::Io { .. } => Failure::OTHER,
    };
    Failure::new(code, error.to_string())
}

fn store_failure(error: &StoreError) -> Failure {
    let code = match error {
        StoreError::Corrupt(_) => Failure::DATA_CORRUPT,
        StoreError::ReadOnly(_) => Failure::DATA_NOT_WRITABLE,
        StoreError::Unavailable(_) | StoreError::Indeterminate(_) => Failure::OTHER,
    };
    Failure::new(code, error.to_string())
}

async fn load_namespaces(store: &Arc<dyn Store>, extra: &[String]) -> Result<Arc<Namespaces>, Failure> {
    let stored = StoredNamespaces::new(store.clone());
    let first_failure = stored.first_failure();
    let loaded = async {
        let namespaces = Arc::new(Namespaces::load(Arc::new(stored)).await?);
        ensure_namespaces(&namespaces, extra).await?;
        Ok(namespaces)
    };
    loaded.await.map_err(|error: perdure_proto::Error| match first_failure.get() {
        Some(cause) => store_failure(cause),
        None => Failure::new(Failure::OTHER, format!("cannot load namespaces: {}", error.message)),
    })
}

fn port_failure(address: SocketAddr, error: &std::io::Error) -> Failure {
    let code = if error.kind() == std::io::ErrorKind::AddrInUse { Failure::PORT_TAKEN } else { Failure::OTHER };
    Failure::new(code, format!("cannot listen on {address}: {error}; choose another with --port or --ip"))
}

fn data_name(args: &DevArgs) -> String {
    if args.ephemeral { "in a temporary directory".to_owned() } else { args.db_filename.display().to_string() }
}

/// Ctrl-C and SIGTERM. From the moment when this is made they no longer end the process by themselves.
#[cfg(unix)]
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    async fn received(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn received(&mut self) {
        if let Err(error) = tokio::signal::ctrl_c().await {
            tracing::warn!(%error, "cannot listen for Ctrl-C");
            std::future::pending().await
        }
    }
}
