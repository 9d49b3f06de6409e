//! Writes to the tables: one thread, which takes all that waits into one durable redb transaction.
//!
//! Invariant: jobs take effect in the order in which they were sent. So a row that was deleted needs no tombstone: an
//! older write cannot come after its deletion, since all of them come through this queue, from one process.

use std::{borrow::Borrow, sync::Arc};

use perdure_types::{ChainKey, SessionId, ShardId, SlotCount};
use redb::{Database, Durability, Key, ReadableTable, Table, Value, WriteTransaction};
use tokio::sync::{mpsc, oneshot};

use super::{log::again, tables::*, visibility::VisibilityTables};
use crate::{Cas, ClusterSettings, NamespaceRow, Result, SessionRow, ShardRow, StoreError, TableWrite};

const QUEUE: usize = 256;
/// Jobs of one transaction at most.
const MAX_GROUP: usize = 256;

type Reply<T> = oneshot::Sender<Result<T>>;

pub(super) enum Job {
    Settings { proposal: ClusterSettings, reply: Reply<ClusterSettings> },
    Namespace { expected: Option<u64>, row: NamespaceRow, reply: Reply<Cas<NamespaceRow>> },
    Session { id: SessionId, expected: Option<SessionRow>, new: Option<SessionRow>, reply: Reply<Cas<SessionRow>> },
    Goal { expected: Option<SlotCount>, new: SlotCount, reply: Reply<Cas<SlotCount>> },
    Shard { id: ShardId, expected: Option<ShardRow>, new: ShardRow, reply: Reply<Cas<ShardRow>> },
    Write { writes: Vec<(i64, TableWrite)>, reply: Reply<()> },
}

impl Job {
    /// It writes rows of lists and nothing else. These come often, to be seen soon, and need no sync of their own: the next
    /// transaction that has one makes them durable too, and until a session's base moves (a conditional write, which
    /// has one) the log has what they say.
    fn only_lists(&self) -> bool {
        let is_list = |write: &TableWrite| {
            matches!(write, TableWrite::PutVisibility { .. } | TableWrite::DeleteVisibility { .. })
        };
        match self {
            Self::Write { writes, .. } => writes.iter().all(|(_, write)| is_list(write)),
            Self::Settings { .. } | Self::Namespace { .. } | Self::Session { .. } => false,
            Self::Goal { .. } | Self::Shard { .. } => false,
        }
    }
}

/// Sends the answer once it is known whether the transaction is durable.
type Answer = Box<dyn FnOnce(Option<&StoreError>) + Send>;

#[derive(Debug)]
pub(super) struct TableWriter {
    jobs: mpsc::Sender<Job>,
}

impl TableWriter {
    /// `guard` lives as long as the thread does.
    pub fn start<G: Send + 'static>(
        database: Arc<Database>,
        guard: G,
    ) -> std::io::Result<(Self, std::thread::JoinHandle<()>)> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new().name("perdure-tables".into()).spawn(move || {
            run(&database, queue);
            drop(database);
            drop(guard);
        })?;
        Ok((Self { jobs }, thread))
    }

    pub async fn send<T>(&self, job: impl FnOnce(Reply<T>) -> Job) -> Result<T> {
        let stopped = || StoreError::ReadOnly("the tables take no more writes since one failed".into());
        let (reply, answer) = oneshot::channel();
        self.jobs.send(job(reply)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }
}

fn run(database: &Database, mut queue: mpsc::Receiver<Job>) {
    let mut jobs = Vec::new();
    while queue.blocking_recv_many(&mut jobs, MAX_GROUP) > 0 {
        let mut answers = Vec::new();
        let durability = if jobs.iter().all(Job::only_lists) { Durability::None } else { Durability::Immediate };
        let failure = transact(database, durability, jobs.drain(..), &mut answers).err();
        if let Some(error) = &failure {
            tracing::error!(%error, "write to the tables failed");
        }
        answers.into_iter().for_each(|answer| answer(failure.as_ref()));
    }
}

/// Does the jobs in one transaction. If it fails none of them has taken effect, unless in the moment of commit; jobs
/// after the one that failed are dropped, which tells their callers.
fn transact(
    database: &Database,
    durability: Durability,
    jobs: impl Iterator<Item = Job>,
    answers: &mut Vec<Answer>,
) -> Result<()> {
    let mut transaction = database.begin_write().map_err(failure)?;
    transaction.set_durability(durability).map_err(|error| StoreError::ReadOnly(error.to_string()))?;
    // Slower commits, but a start after a crash need not walk the file.
    transaction.set_quick_repair(true);
    let mut tables = Tables::open(&transaction)?;
    for job in jobs {
        tables.apply(job, answers)?;
    }
    let dirty = tables.dirty;
    drop(tables);
    if dirty { transaction.commit().map_err(failure) } else { transaction.abort().map_err(failure) }
}

struct Tables<'t> {
    cluster: Table<'t, (), (&'static str, u32, u32)>,
    namespaces: Table<'t, &'static str, (&'static str, &'static [u8], u64)>,
    sessions: Table<'t, u128, SessionValue>,
    shards: Table<'t, u32, ShardValue>,
    splits: Table<'t, u32, SplitValue>,
    goal: Table<'t, (), u32>,
    heads: Table<'t, ChainKeyValue<'static>, HeadValue<'static>>,
    runs: Table<'t, RunRowKey<'static>, RunValue<'static>>,
    history: Table<'t, HistoryKey<'static>, HistoryValue<'static>>,
    wakeups: Table<'t, WakeupKey<'static>, i64>,
    visibility: VisibilityTables<'t>,
    dirty: bool,
}

impl<'t> Tables<'t> {
    fn open(transaction: &'t WriteTransaction) -> Result<Self> {
        Ok(Self {
            cluster: transaction.open_table(CLUSTER).map_err(failure)?,
            namespaces: transaction.open_table(NAMESPACES).map_err(failure)?,
            sessions: transaction.open_table(SESSIONS).map_err(failure)?,
            shards: transaction.open_table(SHARDS).map_err(failure)?,
            splits: transaction.open_table(SPLITS).map_err(failure)?,
            goal: transaction.open_table(GOAL).map_err(failure)?,
            heads: transaction.open_table(HEADS).map_err(failure)?,
            runs: transaction.open_table(RUNS).map_err(failure)?,
            history: transaction.open_table(HISTORY).map_err(failure)?,
            wakeups: transaction.open_table(WAKEUPS).map_err(failure)?,
            visibility: VisibilityTables::open(transaction)?,
            dirty: false,
        })
    }

    fn apply(&mut self, job: Job, answers: &mut Vec<Answer>) -> Result<()> {
        match job {
            Job::Settings { proposal, reply } => {
                let outcome = self.settings(proposal)?;
                answers.push(answer(reply, outcome));
            }
            Job::Namespace { expected, row, reply } => {
                let outcome = self.namespace(expected, &row)?;
                answers.push(answer(reply, outcome));
            }
            Job::Session { id, expected, new, reply } => {
                let outcome = self.session(id, expected, new)?;
                answers.push(answer(reply, outcome));
            }
            Job::Goal { expected, new, reply } => {
                let outcome = self.set_goal(expected, new)?;
                answers.push(answer(reply, outcome));
            }
            Job::Shard { id, expected, new, reply } => {
                let outcome = self.shard(id, expected, &new)?;
                answers.push(answer(reply, outcome));
            }
            Job::Write { writes, reply } => {
                for (stamp, write) in writes {
                    self.write(stamp, write)?;
                }
                answers.push(answer(reply, ()));
            }
        }
        Ok(())
    }

    fn settings(&mut self, proposal: ClusterSettings) -> Result<ClusterSettings> {
        if let Some(stored) = self.cluster.get(()).map_err(failure)? {
            return settings(stored.value());
        }
        let value = (proposal.cluster_id.as_str(), proposal.slots.get(), proposal.schema_version);
        self.cluster.insert((), value).map_err(failure)?;
        self.dirty = true;
        Ok(proposal)
    }

    fn namespace(&mut self, expected: Option<u64>, row: &NamespaceRow) -> Result<Cas<NamespaceRow>> {
        let stored = self.namespaces.get(row.name.as_str()).map_err(failure)?;
        let stored = stored.map(|value| namespace_row(&row.name, value.value()));
        if stored.as_ref().map(|row| row.version) != expected {
            return Ok(Cas::Rejected(stored));
        }
        let value = (row.id.as_str(), row.record.as_ref(), row.version);
        self.namespaces.insert(row.name.as_str(), value).map_err(failure)?;
        self.dirty = true;
        Ok(Cas::Applied)
    }

    fn session(
        &mut self,
        id: SessionId,
        expected: Option<SessionRow>,
        new: Option<SessionRow>,
    ) -> Result<Cas<SessionRow>> {
        let key = id.0.as_u128();
        let stored = self.sessions.get(key).map_err(failure)?.map(|value| session_row(value.value())).transpose()?;
        if stored != expected {
            return Ok(Cas::Rejected(stored));
        }
        match new {
            Some(new) => drop(self.sessions.insert(key, session_value(&new)).map_err(failure)?),
            None => drop(self.sessions.remove(key).map_err(failure)?),
        }
        self.dirty = true;
        Ok(Cas::Applied)
    }

    fn set_goal(&mut self, expected: Option<SlotCount>, new: SlotCount) -> Result<Cas<SlotCount>> {
        let stored = self.goal.get(()).map_err(failure)?.map(|slots| slot_count(slots.value())).transpose()?;
        if stored != expected {
            return Ok(Cas::Rejected(stored));
        }
        self.goal.insert((), new.get()).map_err(failure)?;
        self.dirty = true;
        Ok(Cas::Applied)
    }

    fn shard(&mut self, id: ShardId, expected: Option<ShardRow>, new: &ShardRow) -> Result<Cas<ShardRow>> {
        let stored = stored_shard(&self.shards, &self.splits, id)?;
        if stored != expected {
            return Ok(Cas::Rejected(stored));
        }
        self.shards.insert(id.0, shard_value(new)).map_err(failure)?;
        match &new.split {
            Some(split) => drop(self.splits.insert(id.0, split_value(split)).map_err(failure)?),
            None => drop(self.splits.remove(id.0).map_err(failure)?),
        }
        self.dirty = true;
        Ok(Cas::Applied)
    }

    fn write(&mut self, stamp: i64, write: TableWrite) -> Result<()> {
        self.dirty = true;
        match write {
            TableWrite::PutHead { chain, row } => {
                let key = chain_key(&chain);
                if !is_newer(&self.heads, key, stamp, |row| row.0)? {
                    let value = (stamp, position_value(row.applied), row.head.as_ref());
                    self.heads.insert(key, value).map_err(failure)?;
                }
            }
            TableWrite::DeleteHead { chain } => {
                let key = chain_key(&chain);
                if !is_newer(&self.heads, key, stamp, |row| row.0)? {
                    self.heads.remove(key).map_err(failure)?;
                }
            }
            TableWrite::PutRun { chain, run_id, row } => {
                let key = run_row_key(&chain, &run_id);
                if !is_newer(&self.runs, key, stamp, |row| row.0)? {
                    let wake_at = row.wake_at.map(|at| at.0);
                    let value = (stamp, position_value(row.applied), wake_at, row.snapshot.as_ref());
                    self.runs.insert(key, value).map_err(failure)?;
                }
            }
            TableWrite::DeleteRun { chain, run_id } => self.delete_run(stamp, &chain, &run_id)?,
            TableWrite::PutHistory { chain, run_id, row } => {
                let key = history_key(&chain, &run_id, row.first_event_id);
                if !is_newer(&self.history, key, stamp, |row| row.0)? {
                    let value = (stamp, row.last_event_id, row.events.as_ref());
                    self.history.insert(key, value).map_err(failure)?;
                }
            }
            TableWrite::PutWakeup { shard, wakeup } => {
                let key = wakeup_key(shard, &wakeup);
                if !is_newer(&self.wakeups, key, stamp, |stored| stored)? {
                    self.wakeups.insert(key, stamp).map_err(failure)?;
                }
            }
            TableWrite::DeleteWakeup { shard, wakeup } => {
                let key = wakeup_key(shard, &wakeup);
                if !is_newer(&self.wakeups, key, stamp, |stored| stored)? {
                    self.wakeups.remove(key).map_err(failure)?;
                }
            }
            TableWrite::PutVisibility { chain, run_id, row, before: _ } => {
                self.visibility.write(stamp, &chain, &run_id, Some(*row))?;
            }
            TableWrite::DeleteVisibility { chain, run_id, before: _ } => {
                self.visibility.write(stamp, &chain, &run_id, None)?;
            }
        }
        Ok(())
    }

    fn delete_run(&mut self, stamp: i64, chain: &ChainKey, run_id: &str) -> Result<()> {
        let key = run_row_key(chain, run_id);
        if !is_newer(&self.runs, key, stamp, |row| row.0)? {
            self.runs.remove(key).map_err(failure)?;
        }
        let all = history_key(chain, run_id, i64::MIN)..=history_key(chain, run_id, i64::MAX);
        self.history.retain_in(all, |_, (written, ..)| written > stamp).map_err(failure)
    }
}

/// Whether what is stored is newer than a write with this stamp, which then has no effect (M1).
fn is_newer<'k, K: Key + 'static, V: Value + 'static>(
    table: &Table<'_, K, V>,
    key: impl Borrow<K::SelfType<'k>>,
    stamp: i64,
    stamp_of: impl Fn(V::SelfType<'_>) -> i64,
) -> Result<bool> {
    Ok(table.get(key).map_err(failure)?.is_some_and(|stored| stamp_of(stored.value()) > stamp))
}

fn answer<T: Send + 'static>(reply: Reply<T>, outcome: T) -> Answer {
    // Whoever waited may be gone.
    Box::new(move |failure| drop(reply.send(failure.map_or(Ok(outcome), |error| Err(again(error))))))
}
