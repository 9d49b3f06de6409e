//! The trait that every store implements, and the rows it speaks of.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use perdure_types::{ChainKey, Epoch, Position, Seq, SessionId, ShardId, SlotCount, Timestamp};

use crate::{IdMatch, ListedRun, Listing, VisibilityCount, VisibilityQuery, VisibilityRow};

/// What went wrong, by what the caller must do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The operation did not take effect, or is idempotent: try the same again.
    #[error("store unavailable: {0}")]
    Unavailable(String),
    /// A conditional write whose outcome is not known: settle it first (rule G3).
    #[error("outcome unknown: {0}")]
    Indeterminate(String),
    /// Stored data does not read back as it was written: stop loudly.
    #[error("corrupt: {0}")]
    Corrupt(String),
    /// The store can take no more writes (disk full, read-only): stop, tell the operator.
    #[error("store refuses writes: {0}")]
    ReadOnly(String),
}

pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// Outcome of a conditional write whose outcome is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cas<T> {
    Applied,
    /// The condition did not hold; this is what stood there instead.
    Rejected(Option<T>),
}

/// Settings fixed when the cluster is created.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSettings {
    pub cluster_id: String,
    pub slots: SlotCount,
    pub schema_version: u32,
}

/// A row of `sessions`. Written only by conditional writes (G4); a missing row reads as not live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow {
    pub state: SessionState,
    /// First log row that anyone still needs (M3).
    pub base: Seq,
    /// First segment that is not deleted.
    pub base_segment: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionState {
    Live,
    /// May commit nothing any more; its end is still to be decided.
    Fenced,
    /// Nothing beyond this row was ever acknowledged, nor ever will be.
    Sealed(Seq),
}

/// A row of `shards`: who owns it, and what to replay. Written only by conditional writes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ShardRow {
    pub owner: Option<SessionId>,
    pub epoch: Epoch,
    /// Everything up to here is materialized.
    pub checkpoint: Position,
    /// Logs that hold records after the checkpoint, by epoch.
    pub sources: BTreeMap<Epoch, Source>,
    /// None: one of the shards that the cluster began with.
    pub split: Option<Split>,
}

impl ShardRow {
    /// Whether the row, or the one that is to be made of it, needs the session's log or names it as the owner.
    pub fn names(&self, session: SessionId) -> bool {
        let sibling = self.split.as_ref().and_then(|split| split.sibling.as_deref());
        self.owner == Some(session)
            || self.sources.values().any(|source| source.session == session)
            || sibling.is_some_and(|row| row.names(session))
    }
}

/// Whose half a shard is (S1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// How many shards of this size there are, or will be.
    pub slots: SlotCount,
    /// The last epoch of the shard that was split: records of it and of earlier ones bear that shard's number (S3).
    pub epoch: Epoch,
    /// The row of the upper half, until it is known to be there (S2). Only the lower half's row has it.
    pub sibling: Option<Box<ShardRow>>,
}

/// A stretch of one session's log that holds records of a shard, all tagged with one epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    pub session: SessionId,
    /// First row that can hold such a record.
    pub from: Seq,
    /// Last one; open (`None`) until hand-over: then the session's seal ends it.
    pub until: Option<Seq>,
}

/// A row of a session's log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogRow {
    pub segment: u32,
    pub seq: Seq,
    /// Contiguous acknowledged prefix when this row was sent (F2).
    pub acknowledged: Seq,
    /// Encoded `perdure.log.v1.Batch`. The same for ever for one (session, seq) (G2).
    pub batch: Bytes,
}

/// One run, as its row in `executions` holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunRow {
    /// Encoded `perdure.state.v1.RunSnapshot`.
    pub snapshot: Bytes,
    /// The last record that the snapshot reflects: replay skips it and all before (M1).
    pub applied: Position,
    /// The wake-up row that is stored for this run.
    pub wake_at: Option<Timestamp>,
}

/// The head of a chain, as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadRow {
    /// Encoded `perdure.state.v1.ChainHead`.
    pub head: Bytes,
    pub applied: Position,
}

/// Consecutive events of one run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryRow {
    pub first_event_id: i64,
    /// Inclusive.
    pub last_event_id: i64,
    /// Encoded `temporal.api.history.v1.History`.
    pub events: Bytes,
}

/// An entity that has something to do at a time.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wakeup {
    pub at: Timestamp,
    pub chain: ChainKey,
    pub run_id: Arc<str>,
}

/// One materialized row to write. All are idempotent; a write with an older stamp never replaces a newer one (M1).
#[derive(Debug, Clone)]
pub enum TableWrite {
    PutHead {
        chain: ChainKey,
        row: HeadRow,
    },
    DeleteHead {
        chain: ChainKey,
    },
    PutRun {
        chain: ChainKey,
        run_id: Arc<str>,
        row: RunRow,
    },
    PutHistory {
        chain: ChainKey,
        run_id: Arc<str>,
        row: HistoryRow,
    },
    /// The run's row and all its history rows.
    DeleteRun {
        chain: ChainKey,
        run_id: Arc<str>,
    },
    PutWakeup {
        shard: ShardId,
        wakeup: Wakeup,
    },
    DeleteWakeup {
        shard: ShardId,
        wakeup: Wakeup,
    },
    /// The run's row in the list, with all indexes over it.
    ///
    /// `before`: every other place at which the run may be listed, by writes that may still be under way, too. The shard
    /// knows them from the run's state, so that a store that keeps rows by place has nothing to look up.
    PutVisibility {
        chain: ChainKey,
        run_id: Arc<str>,
        row: Box<VisibilityRow>,
        before: Vec<Listing>,
    },
    /// `before`: every place at which it may be listed.
    DeleteVisibility {
        chain: ChainKey,
        run_id: Arc<str>,
        before: Vec<Listing>,
    },
}

/// A [`TableWrite`] with the position that it reflects: the write timestamp.
#[derive(Debug, Clone)]
pub struct StampedWrite {
    pub stamp: Position,
    pub write: TableWrite,
}

/// A namespace record with the version that its conditional updates compare.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceRow {
    pub id: String,
    pub name: String,
    /// Encoded by the owner of the registry.
    pub record: Bytes,
    pub version: u64,
}

/// A row of `members`: where a node of the cluster is to be found. A hint, and a sign of life; never what decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberRow {
    /// The node's id, unique for each start of its process.
    pub node: String,
    /// The same after a restart.
    pub name: String,
    /// `ip:port` of its node-to-node calls.
    pub address: String,
    pub generation: u64,
    /// Rises with each write.
    pub beat: u64,
    /// Under which it commits, as far as it had one when it wrote the row: whoever replaces the node ends that one first.
    pub session: Option<SessionId>,
}

/// A durable store. Reads are QUORUM unless they say serial; conditional writes are linearizable per row.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Writes `proposal` if the cluster has no settings yet; returns what holds.
    async fn cluster_settings(&self, proposal: ClusterSettings) -> Result<ClusterSettings>;

    /// How many shards there are to be, if somebody wants more than the settings say.
    async fn read_goal(&self) -> Result<Option<SlotCount>>;
    async fn cas_goal(&self, expected: Option<SlotCount>, new: SlotCount) -> Result<Cas<SlotCount>>;

    async fn list_namespaces(&self) -> Result<Vec<NamespaceRow>>;
    /// Writes `row` if the stored version is `expected` (`None`: no namespace of that name). `row.version` is the new one.
    async fn cas_namespace(&self, expected: Option<u64>, row: NamespaceRow) -> Result<Cas<NamespaceRow>>;

    /// Writes a row that vanishes after `ttl`. A store of one machine has no members: it forgets the row at once.
    async fn put_member(&self, _row: MemberRow, _ttl: Duration) -> Result<()> {
        Ok(())
    }
    async fn list_members(&self) -> Result<Vec<MemberRow>> {
        Ok(Vec::new())
    }
    async fn delete_member(&self, _node: &str) -> Result<()> {
        Ok(())
    }

    async fn list_sessions(&self) -> Result<Vec<(SessionId, SessionRow)>>;
    /// Plain read of one's own or another's row: the fence read (A3).
    async fn read_session(&self, id: SessionId) -> Result<Option<SessionRow>>;
    /// Read that also settles conditional writes under way (G3).
    async fn read_session_serial(&self, id: SessionId) -> Result<Option<SessionRow>>;
    async fn cas_session(
        &self,
        id: SessionId,
        expected: Option<SessionRow>,
        new: SessionRow,
    ) -> Result<Cas<SessionRow>>;
    /// Removes the row of a sealed session whose log nobody needs any more.
    async fn delete_session(&self, id: SessionId, expected: SessionRow) -> Result<Cas<SessionRow>>;

    /// Inserts a log row. Acknowledged means durable on a quorum. Repeating it with the same content is harmless.
    async fn append(&self, session: SessionId, row: LogRow) -> Result<()>;
    /// Rows of one segment with `seq >= from`, in order, at most about `max_bytes` (at least one row if there is any).
    /// A segment that does not exist reads as empty.
    async fn read_log(&self, session: SessionId, segment: u32, from: Seq, max_bytes: usize) -> Result<Vec<LogRow>>;
    async fn delete_segment(&self, session: SessionId, segment: u32) -> Result<()>;

    async fn list_shards(&self) -> Result<Vec<(ShardId, ShardRow)>>;
    async fn read_shard_serial(&self, id: ShardId) -> Result<Option<ShardRow>>;
    async fn cas_shard(&self, id: ShardId, expected: Option<ShardRow>, new: ShardRow) -> Result<Cas<ShardRow>>;

    /// Writes rows, durably when it returns; rows of lists alone may become durable later, with the next conditional write
    /// at the latest. Not atomic: a failed call may have written some; do it again.
    async fn write(&self, writes: Vec<StampedWrite>) -> Result<()>;

    async fn read_head(&self, chain: &ChainKey) -> Result<Option<HeadRow>>;
    async fn read_run(&self, chain: &ChainKey, run_id: &str) -> Result<Option<RunRow>>;
    /// The head, and those of these runs that are there: at once, where the store can.
    async fn read_chain(
        &self,
        chain: &ChainKey,
        run_ids: &[String],
    ) -> Result<(Option<HeadRow>, Vec<(String, RunRow)>)> {
        let head = self.read_head(chain).await?;
        let mut runs = Vec::new();
        for run_id in run_ids {
            runs.extend(self.read_run(chain, run_id).await?.map(|row| (run_id.clone(), row)));
        }
        Ok((head, runs))
    }
    /// History rows that overlap `[from_event_id, until_event_id]`, in order, at most about `max_bytes` (at least one
    /// row if there is any). With `reverse` the page is taken from the end, and given newest row first.
    async fn read_history(
        &self,
        chain: &ChainKey,
        run_id: &str,
        from_event_id: i64,
        until_event_id: i64,
        max_bytes: usize,
        reverse: bool,
    ) -> Result<Vec<HistoryRow>>;
    /// Wake-ups with `after < wakeup` and `at <= until`, ordered, at most `limit`. Here and in [`TableWrite`] the number is
    /// that of a shard's lane of wake-ups: its own while it is one of those that the cluster began with.
    async fn read_wakeups(
        &self,
        shard: ShardId,
        after: Option<&Wakeup>,
        until: Timestamp,
        limit: usize,
    ) -> Result<Vec<Wakeup>>;

    /// A stretch of the list of runs, in list order.
    async fn list_visibility(&self, query: &VisibilityQuery) -> Result<Vec<ListedRun>>;
    /// Runs by their workflow id, at most `limit`, in no order.
    async fn find_visibility(&self, list_id: &str, ids: &IdMatch, limit: usize) -> Result<Vec<ListedRun>>;
    /// How many rows a list has.
    async fn count_visibility(&self, list_id: &str) -> Result<Vec<VisibilityCount>>;
}
