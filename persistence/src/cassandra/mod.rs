//! The store of a cluster: Apache Cassandra (4.1 and later; made for 5.0).
//!
//! The commit protocol needs three things of it, and each has its place here. One *consistency domain* ([`domain`], G1): every
//! statement is prepared with an explicit level, LWTs with a serial one and QUORUM for their commit. *Conditional writes*
//! ([`ownership`], G4) whose unknown outcomes are called that ([`errors`], G3), and that nobody repeats behind our back
//! ([`retry`]). And *stamps*: log rows carry 1, the deletion of a segment 2 ([`log`], M3); materialized rows carry the
//! position that they reflect ([`tables`], M1). What is taken for granted of the keyspace is checked at the start
//! ([`assumptions`]).
//!
//! Nothing here is a queue, and no hot path reads rows that were deleted: log segments, histories and buckets of wake-ups are
//! partitions that are deleted whole; executions are read by their full key; see [`wakeups`] for the one table with rows
//! that are deleted singly.

mod assumptions;
mod codec;
mod config;
mod connect;
mod cql;
mod domain;
mod errors;
mod log;
mod ownership;
mod registry;
mod retry;
mod schema;
mod statements;
mod tables;
mod telemetry;
mod tls;
mod visibility;
mod wakeups;

use std::sync::Arc;

use async_trait::async_trait;
pub use config::{CassandraConfig, CassandraTls, ConnectError};
use cql::Cql;
use domain::Domain;
use perdure_types::{ChainKey, Seq, SessionId, ShardId, SlotCount, Timestamp};
pub use schema::render as render_schema;
use statements::Statements;
use telemetry::Counters;
use visibility::Listed;
use wakeups::Floors;

use crate::{
    Cas, ClusterSettings, HeadRow, HistoryRow, IdMatch, ListedRun, LogRow, MemberRow, NamespaceRow, Result, RunRow,
    SessionRow, ShardRow, StampedWrite, Store, VisibilityCount, VisibilityQuery, Wakeup,
};

/// Statements of one operation that are under way at once.
const IN_FLIGHT: usize = 32;

/// The store. Cheap to share behind an `Arc`; dropping it closes the connections.
#[derive(Debug)]
pub struct CassandraStore {
    cql: Cql,
    statements: Box<Statements>,
    floors: Floors,
    listed: Listed,
}

impl CassandraStore {
    /// Connects, creates or migrates the schema if need be, and checks what the protocol relies on. Waits for a Cassandra
    /// that is not up yet, within the configured time, and says so in the log.
    pub async fn connect(config: CassandraConfig) -> Result<Self, ConnectError> {
        // Boxed, here and below: once a process, and large.
        let cql = Box::pin(open(&config)).await?;
        Box::pin(schema::ensure(&cql, &config, random_id())).await?;
        Box::pin(assumptions::check(&cql, &config)).await?;
        let statements = schema::patiently(|| Box::pin(Statements::prepare(&cql)))
            .await
            .map_err(|error| ConnectError::Schema { keyspace: config.keyspace.clone(), reason: error.to_string() })?;
        tracing::info!(keyspace = config.keyspace, seeds = config.addresses().join(", "), "connected to Cassandra");
        Ok(Self { cql, statements, floors: Floors::default(), listed: Listed::default() })
    }

    /// How many statements were sent, by kind.
    pub fn statement_counts(&self) -> Vec<(&'static str, u64)> {
        self.cql.counters.snapshot()
    }
}

/// Creates or migrates the schema, and checks the keyspace, without serving: `perdure schema apply`.
pub async fn apply_schema(config: &CassandraConfig) -> Result<(), ConnectError> {
    let cql = Box::pin(open(config)).await?;
    Box::pin(schema::ensure(&cql, config, random_id())).await?;
    Box::pin(assumptions::check(&cql, config)).await
}

async fn open(config: &CassandraConfig) -> Result<Cql, ConnectError> {
    let session = connect::session(config).await?;
    Ok(Cql {
        session,
        domain: Domain::of(config.local_datacenter.as_deref()),
        keyspace: config.keyspace.clone(),
        counters: Arc::new(Counters::new()),
    })
}

/// Names this process while it changes the schema. No seed could make a real cluster repeat itself.
#[allow(clippy::disallowed_methods)]
fn random_id() -> uuid::Uuid {
    uuid::Uuid::new_v4()
}

/// Decides only how far dead wake-ups are tidied away; see [`wakeups`].
#[allow(clippy::disallowed_methods)]
fn wall_clock() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_nanos()).unwrap_or(0))
}

#[async_trait]
impl Store for CassandraStore {
    async fn cluster_settings(&self, proposal: ClusterSettings) -> Result<ClusterSettings> {
        self.settle_settings(proposal).await
    }

    async fn read_goal(&self) -> Result<Option<SlotCount>> {
        self.goal().await
    }

    async fn cas_goal(&self, expected: Option<SlotCount>, new: SlotCount) -> Result<Cas<SlotCount>> {
        self.goal_cas(expected, new).await
    }

    async fn list_namespaces(&self) -> Result<Vec<NamespaceRow>> {
        self.namespaces().await
    }

    async fn cas_namespace(&self, expected: Option<u64>, row: NamespaceRow) -> Result<Cas<NamespaceRow>> {
        self.namespace_cas(expected, row).await
    }

    async fn put_member(&self, row: MemberRow, ttl: std::time::Duration) -> Result<()> {
        self.member_put(&row, ttl).await
    }

    async fn list_members(&self) -> Result<Vec<MemberRow>> {
        self.members().await
    }

    async fn delete_member(&self, node: &str) -> Result<()> {
        self.member_delete(node).await
    }

    async fn list_sessions(&self) -> Result<Vec<(SessionId, SessionRow)>> {
        self.sessions().await
    }

    async fn read_session(&self, id: SessionId) -> Result<Option<SessionRow>> {
        self.fence_read(id).await
    }

    async fn read_session_serial(&self, id: SessionId) -> Result<Option<SessionRow>> {
        self.session_serial(id).await
    }

    async fn cas_session(
        &self,
        id: SessionId,
        expected: Option<SessionRow>,
        new: SessionRow,
    ) -> Result<Cas<SessionRow>> {
        self.session_cas(id, expected.as_ref(), Some(&new)).await
    }

    async fn delete_session(&self, id: SessionId, expected: SessionRow) -> Result<Cas<SessionRow>> {
        self.session_cas(id, Some(&expected), None).await
    }

    async fn append(&self, session: SessionId, row: LogRow) -> Result<()> {
        self.append_row(session, row).await
    }

    async fn read_log(&self, session: SessionId, segment: u32, from: Seq, max_bytes: usize) -> Result<Vec<LogRow>> {
        self.log_rows(session, segment, from, max_bytes).await
    }

    async fn delete_segment(&self, session: SessionId, segment: u32) -> Result<()> {
        self.drop_segment(session, segment).await
    }

    async fn list_shards(&self) -> Result<Vec<(ShardId, ShardRow)>> {
        self.shards().await
    }

    async fn read_shard_serial(&self, id: ShardId) -> Result<Option<ShardRow>> {
        self.shard_serial(id).await
    }

    async fn cas_shard(&self, id: ShardId, expected: Option<ShardRow>, new: ShardRow) -> Result<Cas<ShardRow>> {
        self.shard_cas(id, expected.as_ref(), &new).await
    }

    async fn write(&self, writes: Vec<StampedWrite>) -> Result<()> {
        self.write_tables(writes).await
    }

    async fn read_head(&self, chain: &ChainKey) -> Result<Option<HeadRow>> {
        self.head(chain).await
    }

    async fn read_run(&self, chain: &ChainKey, run_id: &str) -> Result<Option<RunRow>> {
        self.run(chain, run_id).await
    }

    async fn read_chain(
        &self,
        chain: &ChainKey,
        run_ids: &[String],
    ) -> Result<(Option<HeadRow>, Vec<(String, RunRow)>)> {
        self.chain(chain, run_ids).await
    }

    async fn read_history(
        &self,
        chain: &ChainKey,
        run_id: &str,
        from_event_id: i64,
        until_event_id: i64,
        max_bytes: usize,
        reverse: bool,
    ) -> Result<Vec<HistoryRow>> {
        self.history(chain, run_id, (from_event_id, until_event_id), max_bytes, reverse).await
    }

    async fn read_wakeups(
        &self,
        shard: ShardId,
        after: Option<&Wakeup>,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<Wakeup>> {
        self.wakeups(shard, after, until, limit).await
    }

    async fn list_visibility(&self, query: &VisibilityQuery) -> Result<Vec<ListedRun>> {
        self.list(query).await
    }

    async fn find_visibility(&self, list_id: &str, ids: &IdMatch, limit: usize) -> Result<Vec<ListedRun>> {
        self.find(list_id, ids, limit).await
    }

    async fn count_visibility(&self, list_id: &str) -> Result<Vec<VisibilityCount>> {
        self.count(list_id).await
    }
}
