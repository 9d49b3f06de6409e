//! A node: its parts, made and tied together over a store.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use perdure_cluster::{Alone, Cluster, Namespaces};
use perdure_frontend::{ClusterInfo, Frontend};
use perdure_matching::{Matching, MatchingConfig};
use perdure_nexus::{AddressRules, Dispatcher, Settings};
use perdure_persistence::{ClusterSettings, Store, StoreError};
use perdure_proto::perdure::node::v1::admin_server::Admin;
use perdure_shard::{Clock, Joining, Setup, ShardConfig, Shards, StartError};
use perdure_types::{Limits, SlotCount};
use perdure_visibility::Kind;
use tokio::sync::{Notify, watch};

use crate::{
    admin_port::AdminPort,
    deletion::Deletion,
    exit::Failure,
    lists::ListedRows,
    namespaces::{NamespaceRegistry, StoredNamespaces, ensure_namespaces, ensure_search_attributes, patiently},
    node_service::{self, ClusterPort, Joined},
    telemetry::{self, Metrics},
    wiring::{MatchingHere, ShardsHere, Uplink},
};

/// Shards of a new cluster (design: small enough for one machine, and it can be doubled).
const DEFAULT_SLOTS: u32 = 64;
const SCHEMA_VERSION: u32 = 1;

/// A hand-over that takes longer is left to the others: the session is sealed, and they claim.
const HAND_OVER: Duration = Duration::from_secs(10);

/// Where other nodes and operators reach this one.
#[allow(clippy::large_enum_variant)] // There is one a process.
pub enum Reached {
    AsMember(ClusterPort),
    /// It is the whole cluster.
    Alone(AdminPort),
}

/// What a node is to be.
pub struct Plan {
    pub reached: Reached,
    /// Its limits are those of the whole node.
    pub shards: ShardConfig,
    /// Namespaces to create if they are not there.
    pub namespaces: Vec<String>,
    /// Search attributes that these namespaces get if they do not have them.
    pub search_attributes: Vec<(String, Kind)>,
    /// What clients are told about where the data is.
    pub store_name: &'static str,
}

/// The parts of a node that the process has to hold on to.
pub struct Node {
    pub frontend: Frontend,
    pub shards: Shards,
    pub matching: Matching,
    /// What operators can ask.
    pub admin: Arc<dyn Admin>,
    /// None: this node is the whole cluster.
    pub joined: Option<Joined>,
    drain_asked: Arc<Notify>,
    pub draining: watch::Sender<bool>,
}

impl Node {
    /// Serves when it returns. `address` is where clients reach it, `http` where they reach its HTTP API.
    pub async fn start(store: Arc<dyn Store>, plan: Plan, address: String, http: SocketAddr) -> Result<Self, Failure> {
        let Plan { reached, shards: config, namespaces, search_attributes, store_name } = plan;
        let limits = Arc::new(config.limits.clone());
        AddressRules::parse(&limits.callback_addresses).map_err(|error| {
            Failure::new(Failure::USAGE, format!("component.callbacks.allowedAddresses is no list of rules: {error}"))
        })?;
        let settings = settings(&*store).await?;
        let namespaces = load_namespaces(&store, &namespaces, &search_attributes).await?;

        let uplink = Uplink::default();
        uplink.name_namespaces(namespaces.clone());
        let matching = Matching::new(
            Arc::new(uplink.clone()),
            MatchingConfig { host_name: address.clone(), ..MatchingConfig::default() },
        );
        let shards = Shards::new();
        let shards_here = Arc::new(ShardsHere(shards.clone()));
        let matching_here = Arc::new(MatchingHere(matching.clone()));
        let (cluster, joined, drain_asked, alone) = match reached {
            Reached::Alone(port) => {
                let cluster = Cluster::new(settings.slots, shards_here, matching_here);
                let node = alone(&settings, port.address(), &address);
                let drain_asked = port.serve(&cluster, node.clone());
                (cluster, None, drain_asked, Some(node))
            }
            Reached::AsMember(port) => {
                let membership = node_service::join(&port, &settings, store.clone(), address.clone()).await?;
                namespaces.follow(membership.clone());
                let cluster = Cluster::joined(membership.clone(), shards_here, matching_here);
                let joined = node_service::serve(port, membership, &cluster)?;
                let drain_asked = joined.drain_asked.clone();
                (cluster, Some(joined), drain_asked, None)
            }
        };
        uplink.connect(cluster.clone());
        let admin = admin(&cluster, alone, &drain_asked)?;
        let clock = Arc::new(Clock::system());
        let (nexus, nexus_clock) = (nexus_settings(&limits, http), clock.clone());
        let dispatcher = Dispatcher::new(cluster.clone(), namespaces.clone(), nexus, move || nexus_clock.now());
        uplink.dispatch_nexus(dispatcher);
        let rows = Arc::new(ListedRows::new(store.clone(), clock.clone()));
        let setup = Setup {
            store,
            slots: settings.slots,
            config,
            clock,
            namespaces: Arc::new(NamespaceRegistry(namespaces.clone())),
            tasks: Arc::new(uplink.clone()),
            entities: Arc::new(uplink.clone()),
        };
        let started = match &joined {
            None => shards.start(setup).await,
            Some(joined) => {
                let placement = joined.membership.placement();
                let started = shards.join(setup, Joining { placement, peers: Arc::new(uplink.clone()) }).await;
                joined.membership.tell_served(shards.served());
                started
            }
        };
        started.map_err(|error| match error {
            StartError::Store(error) => store_failure(&error),
            StartError::AlreadyStarted => Failure::new(Failure::OTHER, error.to_string()),
        })?;
        if let Some(joined) = &joined {
            joined.membership.settled().await;
        }

        let (draining, watch_draining) = watch::channel(false);
        let info = ClusterInfo {
            cluster_id: settings.cluster_id,
            address,
            shard_count: settings.slots.get(),
            persistence_store: store_name.to_owned(),
            ..ClusterInfo::default()
        };
        let deletion = Deletion {
            namespaces: namespaces.clone(),
            cluster: cluster.clone(),
            rows: rows.clone(),
            slots: settings.slots,
            placement: joined.as_ref().map(|joined| joined.membership.placement()),
        };
        tokio::spawn(deletion.run());
        let frontend = Frontend::new(cluster, namespaces, limits, info, watch_draining).with_lists(rows);
        uplink.serve_lists(frontend.clone());
        Ok(Self { frontend, shards, matching, admin, joined, drain_asked, draining })
    }

    /// Has what it knows measured whenever metrics are read.
    pub fn measure(&self, metrics: &Metrics) {
        let matching = self.matching.clone();
        metrics.measure(move || matching.measure());
        let placement = self.joined.as_ref().map(|joined| joined.membership.placement());
        telemetry::describe_members();
        let served = self.shards.served();
        metrics.measure(move || {
            telemetry::owned(served.borrow().shards.len());
            match &placement {
                Some(placement) => telemetry::members(&placement.borrow()),
                None => telemetry::alone(),
            }
        });
    }

    /// Returns when an operator wants this node to end.
    pub async fn drain_asked(&self) {
        self.drain_asked.notified().await;
    }

    /// Gives all shards to other members, if there are any.
    pub async fn hand_over(&self) {
        if let Some(joined) = &self.joined {
            joined.membership.drain().await;
            let mut served = self.shards.served();
            tokio::select! {
                _ = served.wait_for(|served| served.shards.is_empty()) => {}
                () = joined.membership.successors_gone() => {}
                () = tokio::time::sleep(HAND_OVER) => tracing::warn!("not all shards were taken by others"),
            }
        }
    }
}

fn admin(cluster: &Cluster, alone: Option<Alone>, drain: &Arc<Notify>) -> Result<Arc<dyn Admin>, Failure> {
    let admin = match alone {
        Some(node) => Some(cluster.admin_alone(node, drain.clone())),
        None => cluster.admin(drain.clone()),
    };
    admin.ok_or_else(|| Failure::new(Failure::OTHER, "this node is neither alone nor a member"))
}

fn alone(settings: &ClusterSettings, admin: SocketAddr, frontend_address: &str) -> Alone {
    Alone {
        cluster_id: settings.cluster_id.clone(),
        name: admin.to_string(),
        frontend_address: frontend_address.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_ns: node_service::wall_clock(),
        slots: settings.slots,
    }
}

fn nexus_settings(limits: &Limits, http: SocketAddr) -> Settings {
    let callback_url = match limits.nexus_callback_url.as_str() {
        "" => format!("http://{http}/namespaces/{{{{.NamespaceName}}}}/nexus/callback"),
        set => set.to_owned(),
    };
    Settings { callback_url }
}

async fn settings(store: &dyn Store) -> Result<ClusterSettings, Failure> {
    let proposal = ClusterSettings {
        cluster_id: uuid::Uuid::new_v4().to_string(),
        slots: SlotCount::new(DEFAULT_SLOTS).expect("a power of two"),
        schema_version: SCHEMA_VERSION,
    };
    let settings = patiently(|| store.cluster_settings(proposal.clone())).await;
    let settings = settings.map_err(|error| store_failure(&error))?;
    if settings.schema_version > SCHEMA_VERSION {
        let message = format!(
            "the data has schema version {}, this binary knows {SCHEMA_VERSION}: use a newer perdure",
            settings.schema_version
        );
        return Err(Failure::new(Failure::DATA_NEWER, message));
    }
    Ok(settings)
}

pub fn store_failure(error: &StoreError) -> Failure {
    let code = match error {
        StoreError::Corrupt(_) => Failure::DATA_CORRUPT,
        StoreError::ReadOnly(_) => Failure::DATA_NOT_WRITABLE,
        StoreError::Unavailable(_) | StoreError::Indeterminate(_) => Failure::STORE_UNAVAILABLE,
    };
    Failure::new(code, error.to_string())
}

async fn load_namespaces(
    store: &Arc<dyn Store>,
    extra: &[String],
    search_attributes: &[(String, Kind)],
) -> Result<Arc<Namespaces>, Failure> {
    let stored = StoredNamespaces::new(store.clone());
    let first_failure = stored.first_failure();
    let loaded = async {
        let namespaces = Arc::new(Namespaces::load(Arc::new(stored)).await?);
        ensure_namespaces(&namespaces, extra).await?;
        ensure_search_attributes(&namespaces, extra, search_attributes).await?;
        Ok(namespaces)
    };
    loaded.await.map_err(|error: perdure_proto::Error| match first_failure.get() {
        Some(cause) => store_failure(cause),
        None => Failure::new(Failure::OTHER, format!("cannot load namespaces: {}", error.message)),
    })
}
