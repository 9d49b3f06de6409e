//! A store in memory for tests: deterministic, seeded, and as weak as Cassandra is.
//!
//! It is three replicas behind a network that loses, delays and repeats messages ([`network`]); with
//! [`Simulated::reliable`] it is one replica and nothing fails. The same seed and the same order of calls give the same
//! results. Handles are clones of one store, which outlives the nodes of a test; a caller that drops a call does not
//! take back what the call has sent. [`Simulated::for_node`] is a connection that can be paused and cut by itself.

mod faults;
mod network;
mod replica;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use perdure_types::{ChainKey, Seq, SessionId, ShardId, SlotCount, Timestamp};
use tokio::sync::Notify;

pub use faults::{Failure, Faults};
use network::{Condition, Lwt, Network};
use replica::{LwtKey, LwtRow, Mutation, Replica, Scope};

use crate::{
    Cas, ClusterSettings, HeadRow, HistoryRow, IdMatch, ListedRun, LogRow, MemberRow, NamespaceRow, Result, RunRow,
    SessionRow, ShardRow, StampedWrite, Store, StoreError, VisibilityCount, VisibilityQuery, Wakeup,
};

/// Kinds of operations, for counting them and making them fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    Append,
    DeleteSegment,
    Write,
    Read,
    SerialRead,
    /// Every conditional write.
    Cas,
}

/// The store. See the module.
#[derive(Debug, Clone)]
pub struct Simulated {
    network: Arc<Mutex<Network>>,
    gate: Arc<Gate>,
    /// Replicas that this connection does not reach, one bit each.
    cut: Arc<AtomicU8>,
}

/// Holds operations back. They go on in the order in which they came (a `watch` channel would wake them in any order).
#[derive(Debug, Default)]
struct Gate {
    paused: AtomicBool,
    resumed: Notify,
}

impl Simulated {
    /// Nothing fails, nothing waits.
    pub fn reliable() -> Self {
        Self::with_replicas(1, 0, Faults::none())
    }

    /// Three replicas.
    pub fn new(seed: u64, faults: Faults) -> Self {
        Self::with_replicas(3, seed, faults)
    }

    fn with_replicas(replicas: usize, seed: u64, faults: Faults) -> Self {
        Self {
            network: Arc::new(Mutex::new(Network::new(replicas, seed, faults))),
            gate: Arc::default(),
            cut: Arc::default(),
        }
    }

    /// The same store over a connection of its own.
    #[must_use]
    pub fn for_node(&self) -> Self {
        Self { network: self.network.clone(), gate: Arc::default(), cut: Arc::default() }
    }

    /// From now on this connection reaches all replicas but these.
    pub fn cut_off(&self, replicas: &[usize]) {
        self.cut.store(bits(replicas), Ordering::Relaxed);
    }

    /// From now on these replicas are down, for everybody. They keep what they have.
    pub fn take_down(&self, replicas: &[usize]) {
        self.network().down = bits(replicas);
    }

    /// Faults so far, by kind.
    pub fn faults(&self) -> BTreeMap<&'static str, u64> {
        self.network().happened().clone()
    }

    /// From now on; messages under way stay under way.
    pub fn set_faults(&self, faults: Faults) {
        self.network().faults = faults;
    }

    /// The next `times` operations of this kind fail so.
    pub fn inject(&self, op: Op, failure: Failure, times: usize) {
        self.network().injected.set(op, failure, times);
    }

    /// Operations that have not taken effect yet wait until [`Simulated::resume`], and so do replies of those that have.
    pub fn pause(&self) {
        self.gate.paused.store(true, Ordering::Relaxed);
    }

    pub fn resume(&self) {
        self.gate.paused.store(false, Ordering::Relaxed);
        self.gate.resumed.notify_waiters();
    }

    /// Messages under way are lost: late writes, and proposals that are not decided.
    pub fn drop_in_flight(&self) {
        self.network().drop_in_flight();
    }

    /// Messages under way arrive now.
    pub fn deliver_all(&self) {
        self.network().deliver_all();
    }

    /// Operations of this kind so far, failed ones too.
    pub fn count(&self, op: Op) -> u64 {
        self.network().count(op)
    }

    fn network(&self) -> MutexGuard<'_, Network> {
        self.network.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one operation with its latency around it.
    async fn run<T>(&self, operation: impl FnOnce(&mut Network) -> T) -> T {
        let half = self.network().latency() / 2;
        if !half.is_zero() {
            tokio::time::sleep(half).await;
        }
        self.resumed().await;
        let result = {
            let mut network = self.network();
            network.cut = self.cut.load(Ordering::Relaxed);
            operation(&mut network)
        };
        if !half.is_zero() {
            tokio::time::sleep(half).await;
        }
        self.resumed().await;
        result
    }

    async fn resumed(&self) {
        while self.gate.paused.load(Ordering::Relaxed) {
            self.gate.resumed.notified().await;
        }
    }

    async fn read<T>(&self, scope: Scope, query: impl Fn(&Replica) -> T) -> Result<T> {
        self.run(|network| network.read(&scope, query)).await
    }

    async fn cas<T>(
        &self,
        key: LwtKey,
        condition: Condition,
        new: Option<LwtRow>,
        unwrap: Unwrap<T>,
    ) -> Result<Cas<T>> {
        match self.run(|network| network.cas(Lwt { key, condition, new })).await? {
            Cas::Applied => Ok(Cas::Applied),
            Cas::Rejected(row) => Ok(Cas::Rejected(row.and_then(unwrap))),
        }
    }
}

fn bits(replicas: &[usize]) -> u8 {
    replicas.iter().fold(0, |mask, replica| mask | 1 << replica)
}

type Unwrap<T> = fn(LwtRow) -> Option<T>;

fn settings(row: LwtRow) -> Option<ClusterSettings> {
    if let LwtRow::Settings(row) = row { Some(row) } else { None }
}

fn namespace(row: LwtRow) -> Option<NamespaceRow> {
    if let LwtRow::Namespace(row) = row { Some(row) } else { None }
}

fn session(row: LwtRow) -> Option<SessionRow> {
    if let LwtRow::Session(row) = row { Some(row) } else { None }
}

fn shard(row: LwtRow) -> Option<ShardRow> {
    if let LwtRow::Shard(row) = row { Some(row) } else { None }
}

fn goal(row: LwtRow) -> Option<SlotCount> {
    if let LwtRow::Goal(row) = row { Some(row) } else { None }
}

#[async_trait]
impl Store for Simulated {
    async fn cluster_settings(&self, proposal: ClusterSettings) -> Result<ClusterSettings> {
        let condition = Condition::Is(None);
        match self.cas(LwtKey::Settings, condition, Some(LwtRow::Settings(proposal.clone())), settings).await? {
            Cas::Applied => Ok(proposal),
            Cas::Rejected(row) => row.ok_or_else(|| StoreError::Corrupt("settings row is of another kind".into())),
        }
    }

    async fn read_goal(&self) -> Result<Option<SlotCount>> {
        Ok(self.read(Scope::Lwt(LwtKey::Goal), |replica| replica.lwt(&LwtKey::Goal)).await?.and_then(goal))
    }

    async fn cas_goal(&self, expected: Option<SlotCount>, new: SlotCount) -> Result<Cas<SlotCount>> {
        let condition = Condition::Is(expected.map(LwtRow::Goal));
        self.cas(LwtKey::Goal, condition, Some(LwtRow::Goal(new)), goal).await
    }

    async fn list_namespaces(&self) -> Result<Vec<NamespaceRow>> {
        let query = |replica: &Replica| replica.lwt_rows().filter_map(|(_, row)| namespace(row.clone())).collect();
        self.read(Scope::Namespaces, query).await
    }

    async fn cas_namespace(&self, expected: Option<u64>, row: NamespaceRow) -> Result<Cas<NamespaceRow>> {
        let key = LwtKey::Namespace(row.name.clone());
        self.cas(key, Condition::NamespaceVersionIs(expected), Some(LwtRow::Namespace(row)), namespace).await
    }

    async fn put_member(&self, row: MemberRow, _ttl: Duration) -> Result<()> {
        self.run(|network| drop(network.members.insert(row.node.clone(), row))).await;
        Ok(())
    }

    async fn list_members(&self) -> Result<Vec<MemberRow>> {
        Ok(self.run(|network| network.members.values().cloned().collect()).await)
    }

    async fn delete_member(&self, node: &str) -> Result<()> {
        self.run(|network| drop(network.members.remove(node))).await;
        Ok(())
    }

    async fn list_sessions(&self) -> Result<Vec<(SessionId, SessionRow)>> {
        let query = |replica: &Replica| {
            let rows = replica.lwt_rows().filter_map(|row| match row {
                (LwtKey::Session(id), LwtRow::Session(row)) => Some((*id, row.clone())),
                _ => None,
            });
            rows.collect()
        };
        self.read(Scope::Sessions, query).await
    }

    async fn read_session(&self, id: SessionId) -> Result<Option<SessionRow>> {
        let key = LwtKey::Session(id);
        self.read(Scope::Lwt(key.clone()), |replica| replica.lwt(&key).and_then(session)).await
    }

    async fn read_session_serial(&self, id: SessionId) -> Result<Option<SessionRow>> {
        Ok(self.run(|network| network.read_serial(&LwtKey::Session(id))).await?.and_then(session))
    }

    async fn cas_session(
        &self,
        id: SessionId,
        expected: Option<SessionRow>,
        new: SessionRow,
    ) -> Result<Cas<SessionRow>> {
        let condition = Condition::Is(expected.map(LwtRow::Session));
        self.cas(LwtKey::Session(id), condition, Some(LwtRow::Session(new)), session).await
    }

    async fn delete_session(&self, id: SessionId, expected: SessionRow) -> Result<Cas<SessionRow>> {
        let condition = Condition::Is(Some(LwtRow::Session(expected)));
        self.cas(LwtKey::Session(id), condition, None, session).await
    }

    async fn append(&self, session: SessionId, row: LogRow) -> Result<()> {
        self.run(|network| network.write(Op::Append, vec![Mutation::LogRow(session, row)])).await
    }

    async fn read_log(&self, session: SessionId, segment: u32, from: Seq, max_bytes: usize) -> Result<Vec<LogRow>> {
        self.read(Scope::Segment(session, segment), |replica| replica.log(session, segment, from, max_bytes)).await
    }

    async fn delete_segment(&self, session: SessionId, segment: u32) -> Result<()> {
        let mutation = Mutation::DeleteSegment(session, segment);
        self.run(|network| network.write(Op::DeleteSegment, vec![mutation])).await
    }

    async fn list_shards(&self) -> Result<Vec<(ShardId, ShardRow)>> {
        let query = |replica: &Replica| {
            let rows = replica.lwt_rows().filter_map(|row| match row {
                (LwtKey::Shard(id), LwtRow::Shard(row)) => Some((*id, row.clone())),
                _ => None,
            });
            rows.collect()
        };
        self.read(Scope::Shards, query).await
    }

    async fn read_shard_serial(&self, id: ShardId) -> Result<Option<ShardRow>> {
        Ok(self.run(|network| network.read_serial(&LwtKey::Shard(id))).await?.and_then(shard))
    }

    async fn cas_shard(&self, id: ShardId, expected: Option<ShardRow>, new: ShardRow) -> Result<Cas<ShardRow>> {
        let condition = Condition::Is(expected.map(LwtRow::Shard));
        self.cas(LwtKey::Shard(id), condition, Some(LwtRow::Shard(new)), shard).await
    }

    async fn write(&self, writes: Vec<StampedWrite>) -> Result<()> {
        let mutations = writes.into_iter().flat_map(Mutation::of_table_write).collect();
        self.run(|network| network.write(Op::Write, mutations)).await
    }

    async fn read_head(&self, chain: &ChainKey) -> Result<Option<HeadRow>> {
        self.read(Scope::Head(chain.clone()), |replica| replica.head(chain)).await
    }

    async fn read_run(&self, chain: &ChainKey, run_id: &str) -> Result<Option<RunRow>> {
        let run_id: Arc<str> = run_id.into();
        self.read(Scope::Run(chain.clone(), run_id.clone()), |replica| replica.run(chain, &run_id)).await
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
        let key = (chain.clone(), Arc::<str>::from(run_id));
        let scope = Scope::History(key.0.clone(), key.1.clone());
        let query = |replica: &Replica| replica.history(&key, from_event_id, until_event_id, max_bytes, reverse);
        self.read(scope, query).await
    }

    async fn read_wakeups(
        &self,
        shard: ShardId,
        after: Option<&Wakeup>,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<Wakeup>> {
        self.read(Scope::Wakeups(shard), |replica| replica.wakeups(shard, after, until, limit)).await
    }

    async fn list_visibility(&self, query: &VisibilityQuery) -> Result<Vec<ListedRun>> {
        let read = |replica: &Replica| replica.visibility(&query.list_id).list(query);
        self.read(Scope::Visibility(query.list_id.clone()), read).await
    }

    async fn find_visibility(&self, list_id: &str, ids: &IdMatch, limit: usize) -> Result<Vec<ListedRun>> {
        let read = |replica: &Replica| replica.visibility(list_id).find(ids, limit);
        self.read(Scope::Visibility(list_id.into()), read).await
    }

    async fn count_visibility(&self, list_id: &str) -> Result<Vec<VisibilityCount>> {
        let read = |replica: &Replica| replica.visibility(list_id).counts();
        self.read(Scope::Visibility(list_id.into()), read).await
    }
}
