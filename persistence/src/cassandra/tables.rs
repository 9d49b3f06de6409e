//! Heads, runs and histories, and the order in which a flush's rows are written.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures::{
    future::BoxFuture,
    stream::{self, StreamExt, TryStreamExt},
};
use perdure_types::{ChainKey, Epoch, Position, Seq, ShardId, Timestamp};
use scylla::response::PagingState;
use std::sync::Arc;

use super::{CassandraStore, IN_FLIGHT, errors, telemetry::Request, visibility::Change, wakeups::StampedWakeup};
use crate::{HeadRow, HistoryRow, Result, RunRow, StampedWrite, StoreError, TableWrite};

/// Rows of a history that are read at once: a history row is about 1 MiB at most, and a page has to stay well below what
/// Cassandra can write in one read repair.
const HISTORY_PAGE_ROWS: i32 = 6;

/// Rows that one read names.
const NAMED_ROWS: usize = 64;

/// The run id under which an entity's head stands: no run has it.
const HEAD: &str = "";

/// A row of `executions`, in the order of its statement.
type ExecutionTuple = (Arc<str>, i8, Arc<str>, Arc<str>, i64, i64, bool, i64, Bytes, i64);

fn execution(chain: &ChainKey, run_id: Arc<str>, row: RunRow, stamp: i64) -> ExecutionTuple {
    let (epoch, seq) = (row.applied.epoch.0 as i64, row.applied.seq.0 as i64);
    let wake_at = row.wake_at.map_or(0, |at| at.0);
    let key = (chain.namespace_id.clone(), chain.kind as i8, chain.workflow_id.clone());
    (key.0, key.1, key.2, run_id, epoch, seq, row.wake_at.is_some(), wake_at, row.snapshot, stamp)
}

/// Deletion of the row of a run, or of all its history.
type DeletionTuple = (i64, Arc<str>, i8, Arc<str>, Arc<str>);

fn deletion(chain: ChainKey, run_id: Arc<str>, stamp: i64) -> DeletionTuple {
    (stamp, chain.namespace_id, chain.kind as i8, chain.workflow_id, run_id)
}

type ExecutionColumns = (Option<i64>, Option<i64>, Option<bool>, Option<i64>, Option<Bytes>);

fn stored(chain: &ChainKey, run_id: &str, (epoch, seq, wakes, wake_at, snapshot): ExecutionColumns) -> Result<RunRow> {
    let (Some(epoch), Some(seq), Some(wakes), Some(wake_at), Some(snapshot)) = (epoch, seq, wakes, wake_at, snapshot)
    else {
        return Err(StoreError::Corrupt(format!("the row of {chain:?} {run_id:?} is incomplete")));
    };
    let applied = Position { epoch: Epoch(epoch as u64), seq: Seq(seq as u64) };
    Ok(RunRow { snapshot, applied, wake_at: wakes.then_some(Timestamp(wake_at)) })
}

type HistoryTuple = (Arc<str>, i8, Arc<str>, Arc<str>, i64, i64, Bytes, i64);

/// A flush's rows in the order in which they become durable. What is written later relies on what was written before: a
/// run's row says which wake-up stands for it, and that the events before it are there. After a crash between two steps
/// the log still has everything (M2), and all is written again.
#[derive(Default)]
struct Plan {
    histories: Vec<HistoryTuple>,
    wakeups: BTreeMap<ShardId, (Epoch, Vec<StampedWakeup>)>,
    /// By entity: one mutation each.
    executions: BTreeMap<ChainKey, Vec<ExecutionTuple>>,
    listings: Vec<Change>,
    deleted_histories: Vec<DeletionTuple>,
    deleted_executions: Vec<DeletionTuple>,
    deleted_wakeups: BTreeMap<ShardId, (Epoch, Vec<StampedWakeup>)>,
}

impl Plan {
    fn of(writes: Vec<StampedWrite>) -> Self {
        let mut plan = Self::default();
        for StampedWrite { stamp: position, write } in writes {
            // M1: the position, and never a clock.
            let stamp = position.stamp();
            match write {
                TableWrite::PutHead { chain, row: HeadRow { head, applied } } => {
                    let row = execution(&chain, HEAD.into(), RunRow { snapshot: head, applied, wake_at: None }, stamp);
                    plan.executions.entry(chain).or_default().push(row);
                }
                TableWrite::PutRun { chain, run_id, row } => {
                    let row = execution(&chain, run_id, row, stamp);
                    plan.executions.entry(chain).or_default().push(row);
                }
                TableWrite::PutHistory { chain, run_id, row } => {
                    let (first, last, events) = (row.first_event_id, row.last_event_id, row.events);
                    let key = (chain.namespace_id, chain.kind as i8, chain.workflow_id);
                    plan.histories.push((key.0, key.1, key.2, run_id, first, last, events, stamp));
                }
                TableWrite::DeleteHead { chain } => plan.deleted_executions.push(deletion(chain, HEAD.into(), stamp)),
                TableWrite::DeleteRun { chain, run_id } => {
                    plan.deleted_histories.push(deletion(chain.clone(), run_id.clone(), stamp));
                    plan.deleted_executions.push(deletion(chain, run_id, stamp));
                }
                TableWrite::PutWakeup { shard, wakeup } => {
                    add_wakeup(&mut plan.wakeups, shard, position.epoch, (wakeup, stamp));
                }
                TableWrite::DeleteWakeup { shard, wakeup } => {
                    add_wakeup(&mut plan.deleted_wakeups, shard, position.epoch, (wakeup, stamp));
                }
                TableWrite::PutVisibility { chain, run_id, row, before } => {
                    plan.listings.push(Change { chain, run_id, row: Some(row), before, stamp });
                }
                TableWrite::DeleteVisibility { chain, run_id, before } => {
                    plan.listings.push(Change { chain, run_id, row: None, before, stamp });
                }
            }
        }
        plan
    }
}

fn add_wakeup(
    shards: &mut BTreeMap<ShardId, (Epoch, Vec<StampedWakeup>)>,
    shard: ShardId,
    epoch: Epoch,
    wakeup: StampedWakeup,
) {
    let (newest, wakeups) = shards.entry(shard).or_default();
    *newest = (*newest).max(epoch);
    wakeups.push(wakeup);
}

type Writes<'a> = Vec<BoxFuture<'a, Result<()>>>;

async fn all(writes: Writes<'_>) -> Result<()> {
    stream::iter(writes).buffer_unordered(IN_FLIGHT).try_collect::<()>().await
}

impl CassandraStore {
    pub(super) async fn write_tables(&self, writes: Vec<StampedWrite>) -> Result<()> {
        let plan = Plan::of(writes);
        let Plan { histories, wakeups, executions, listings, .. } = plan;
        let Plan { deleted_histories, deleted_executions, deleted_wakeups, .. } = plan;
        let shards: BTreeMap<ShardId, Epoch> =
            deleted_wakeups.iter().map(|(shard, (epoch, _))| (*shard, *epoch)).collect();
        let (cql, statements) = (&self.cql, &self.statements);
        let mut first: Writes = Vec::new();
        for row in histories {
            first.push(Box::pin(cql.write(Request::WriteHistory, &statements.put_history, row)));
        }
        for (shard, (epoch, wakeups)) in wakeups {
            first.push(Box::pin(self.put_wakeups(shard, epoch, wakeups)));
        }
        all(first).await?;
        let mut second: Writes = Vec::new();
        for rows in executions.into_values() {
            second.push(Box::pin(cql.write_partition(Request::WriteExecution, &statements.put_execution, rows)));
        }
        if !listings.is_empty() {
            second.push(Box::pin(self.write_visibility(listings)));
        }
        for row in deleted_histories {
            second.push(Box::pin(cql.write(Request::Delete, &statements.delete_history, row)));
        }
        all(second).await?;
        let mut third: Writes = Vec::new();
        for row in deleted_executions {
            third.push(Box::pin(cql.write(Request::Delete, &statements.delete_execution, row)));
        }
        for (shard, (epoch, wakeups)) in deleted_wakeups {
            third.push(Box::pin(self.delete_wakeups(shard, epoch, wakeups)));
        }
        all(third).await?;
        let now = super::wall_clock();
        let raise = shards.into_iter().map(|(shard, epoch)| self.raise_floor(shard, epoch, now));
        stream::iter(raise).buffer_unordered(BACKGROUND).collect::<()>().await;
        Ok(())
    }

    async fn execution(&self, chain: &ChainKey, run_id: &str) -> Result<Option<RunRow>> {
        let values = (&chain.namespace_id, chain.kind as i8, &chain.workflow_id, run_id);
        let rows = self.cql.read(Request::ReadExecution, &self.statements.read_execution, values).await?;
        let row = rows.maybe_first_row::<ExecutionColumns>().map_err(|e| errors::corrupt("execution row", e))?;
        row.map(|row| stored(chain, run_id, row)).transpose()
    }

    /// The rows are named in full: those of other runs, deleted ones too, are not passed over.
    pub(super) async fn chain(
        &self,
        chain: &ChainKey,
        run_ids: &[String],
    ) -> Result<(Option<HeadRow>, Vec<(String, RunRow)>)> {
        let (mut head, mut runs) = (None, Vec::new());
        let named: Vec<&str> =
            std::iter::once(HEAD).chain(run_ids.iter().map(String::as_str).filter(|id| *id != HEAD)).collect();
        for named in named.chunks(NAMED_ROWS) {
            let values = (&chain.namespace_id, chain.kind as i8, &chain.workflow_id, named);
            let rows = self.cql.read(Request::ReadExecution, &self.statements.read_executions, values).await?;
            type Row = (String, Option<i64>, Option<i64>, Option<bool>, Option<i64>, Option<Bytes>);
            for row in rows.rows::<Row>().map_err(|e| errors::corrupt("execution rows", e))? {
                let (run_id, epoch, seq, wakes, wake_at, snapshot) =
                    row.map_err(|e| errors::corrupt("execution row", e))?;
                let row = stored(chain, &run_id, (epoch, seq, wakes, wake_at, snapshot))?;
                if run_id == HEAD {
                    head = Some(HeadRow { head: row.snapshot, applied: row.applied });
                } else {
                    runs.push((run_id, row));
                }
            }
        }
        Ok((head, runs))
    }

    pub(super) async fn head(&self, chain: &ChainKey) -> Result<Option<HeadRow>> {
        let row = self.execution(chain, HEAD).await?;
        Ok(row.map(|RunRow { snapshot, applied, .. }| HeadRow { head: snapshot, applied }))
    }

    pub(super) async fn run(&self, chain: &ChainKey, run_id: &str) -> Result<Option<RunRow>> {
        if run_id == HEAD { Ok(None) } else { self.execution(chain, run_id).await }
    }

    pub(super) async fn history(
        &self,
        chain: &ChainKey,
        run_id: &str,
        (from, until): (i64, i64),
        max_bytes: usize,
        reverse: bool,
    ) -> Result<Vec<HistoryRow>> {
        let first = self.first_history_row(chain, run_id, from).await?;
        let statement = if reverse { &self.statements.read_history_back } else { &self.statements.read_history };
        let key = (&chain.namespace_id, chain.kind as i8, &chain.workflow_id, run_id);
        let values = (key.0, key.1, key.2, key.3, first, until);
        let mut statement = statement.clone();
        statement.set_page_size(HISTORY_PAGE_ROWS);
        let (mut rows, mut total, mut state) = (Vec::new(), 0_usize, PagingState::start());
        loop {
            let (page, next) = self.cql.read_page(Request::ReadHistory, &statement, values, state).await?;
            for row in page.rows::<(i64, i64, Bytes)>().map_err(|e| errors::corrupt("history rows", e))? {
                let (first_event_id, last_event_id, events) = row.map_err(|e| errors::corrupt("history row", e))?;
                if last_event_id < from {
                    continue;
                }
                total = total.saturating_add(events.len());
                if !rows.is_empty() && total > max_bytes {
                    return Ok(rows);
                }
                rows.push(HistoryRow { first_event_id, last_event_id, events });
            }
            match next.into_paging_control_flow() {
                std::ops::ControlFlow::Break(()) => return Ok(rows),
                std::ops::ControlFlow::Continue(next) => state = next,
            }
        }
    }

    /// The first event of the row that holds `from`: rows are found by their first events.
    async fn first_history_row(&self, chain: &ChainKey, run_id: &str, from: i64) -> Result<i64> {
        if from <= 1 {
            return Ok(i64::MIN);
        }
        let values = (&chain.namespace_id, chain.kind as i8, &chain.workflow_id, run_id, from);
        let rows = self.cql.read(Request::ReadHistory, &self.statements.history_row_of, values).await?;
        let row = rows.maybe_first_row::<(i64,)>().map_err(|e| errors::corrupt("history row", e))?;
        Ok(row.map_or(from, |(first,)| first))
    }
}

/// Shards that are tidied at once.
const BACKGROUND: usize = 8;
