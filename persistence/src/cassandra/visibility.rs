//! The list of runs.
//!
//! **Rows** lie in `visibility_rows`, by list, open or closed, and hour (of the start of an open run, the close of a closed
//! one), latest first. That is the list itself, and where filters that no index helps are evaluated.
//!
//! **Indexes** (`visibility_index`) hold keys of rows by a *facet*: a workflow type, a keyword. They are hints: the row is
//! read and must still match, so an entry that was left behind is never shown. `visibility_ids` has the workflow ids of a
//! day's starts in their order, `visibility_runs` the run ids. A directory (`visibility_buckets`) says which hours, days or months of a facet ever had
//! something, so that rare ones need no walk over empty partitions.
//!
//! **Where a run was listed** is told by who lists it again, or no more: its place changes when it closes. So nothing is read
//! before it is written. Rows and their deletions carry the position that they reflect, and a write that comes late
//! changes nothing (M1): wherever it can put a row, that row was deleted with a later stamp.

mod read;

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use perdure_types::ChainKey;
use scylla::statement::prepared::PreparedStatement;

use super::{CassandraStore, IN_FLIGHT, telemetry::Request};
use crate::{Listing, Result, StoreError, VisibilityRow};

const HOUR_NANOS: i64 = 3_600_000_000_000;

/// Hours of a bucket. A keyword often belongs to few runs: wide buckets keep those together.
const ROW_HOURS: i64 = 1;
const ID_HOURS: i64 = 24;
const KEYWORD_HOURS: i64 = 24 * 30;

/// The facet of the rows themselves, and of ids; others begin with another letter.
const ROWS: &str = "rows";
const IDS: &str = "ids";

/// Rows of one mutation.
const BATCH_ROWS: usize = 64;

fn bucket_of(at: i64, hours: i64) -> i64 {
    at.div_euclid(HOUR_NANOS * hours)
}

fn type_facet(workflow_type: &str) -> Arc<str> {
    format!("t:{workflow_type}").into()
}

fn keyword_facet(name: &str, value: &str) -> Arc<str> {
    // The length keeps names and values apart.
    format!("k{}:{name}{value}", name.len()).into()
}

fn hours_of(facet: &str) -> i64 {
    match facet.as_bytes().first() {
        Some(b'k') => KEYWORD_HOURS,
        Some(b'i') => ID_HOURS,
        _ => ROW_HOURS,
    }
}

/// The last change of each run, which takes away what all of them would have.
fn latest(changes: Vec<Change>) -> Vec<Change> {
    let mut latest: HashMap<(ChainKey, Arc<str>), Change> = HashMap::new();
    for mut change in changes {
        match latest.entry((change.chain.clone(), change.run_id.clone())) {
            Entry::Vacant(place) => drop(place.insert(change)),
            Entry::Occupied(mut place) => {
                if place.get().stamp <= change.stamp {
                    std::mem::swap(place.get_mut(), &mut change);
                }
                place.get_mut().before.append(&mut change.before);
            }
        }
    }
    latest.into_values().collect()
}

fn chunks<V>(rows: Vec<V>) -> Vec<Vec<V>> {
    let mut chunks = Vec::new();
    let mut rows = rows.into_iter().peekable();
    while rows.peek().is_some() {
        chunks.push(rows.by_ref().take(BATCH_ROWS).collect());
    }
    chunks
}

/// A listing by the keys of its rows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Keys {
    start: i64,
    closed: bool,
    /// The time that places it.
    at: i64,
    facets: Vec<Arc<str>>,
}

impl Keys {
    fn of(listing: &Listing) -> Self {
        let keywords = listing.keywords.iter().map(|(name, value)| keyword_facet(name, value));
        let mut facets: Vec<Arc<str>> = std::iter::once(type_facet(&listing.workflow_type)).chain(keywords).collect();
        facets.sort();
        facets.dedup();
        let (closed, at) = listing.place();
        Self { start: listing.start_time.0, closed, at: at.0, facets }
    }
}

/// Partitions, and the rows to write into each.
type Grouped<K, V> = BTreeMap<K, Vec<V>>;
type RowKey = (Arc<str>, bool, i64);
type IndexKey = (Arc<str>, Arc<str>, bool, i64);
type RowTuple =
    (Arc<str>, bool, i64, i64, Arc<str>, Arc<str>, Arc<str>, i8, i64, bool, i64, Vec<(Arc<str>, Arc<str>)>, Bytes, i64);

type EntryTuple = (i64, Arc<str>, Arc<str>, i64);
type IdTuple = (Arc<str>, Arc<str>, bool, i64, i64);
/// Of a row, or an entry: stamp, time, run.
type DeletionTuple = (i64, i64, Arc<str>);
/// Stamp, workflow, run.
type IdDeletionTuple = (i64, Arc<str>, Arc<str>);

/// Changes of the list, grouped by partition: rows of one hour share their mutations.
#[derive(Default)]
struct Plan {
    rows: Grouped<RowKey, RowTuple>,
    deleted_rows: Grouped<RowKey, DeletionTuple>,
    entries: Grouped<IndexKey, EntryTuple>,
    deleted_entries: Grouped<IndexKey, DeletionTuple>,
    /// Both by workflow id and by run id.
    ids: Grouped<(Arc<str>, i64), IdTuple>,
    deleted_ids: Grouped<(Arc<str>, i64), IdDeletionTuple>,
}

/// A change of one run's listing; `None`: it is to be listed no more.
pub(super) struct Change {
    pub chain: ChainKey,
    pub run_id: Arc<str>,
    pub row: Option<Box<VisibilityRow>>,
    pub before: Vec<Listing>,
    pub stamp: i64,
}

impl Plan {
    fn add(&mut self, change: Change) {
        let Change { chain, run_id, row, before, stamp } = change;
        let list: Arc<str> = chain.list_id();
        let id = chain.workflow_id;
        let new = row.as_deref().map(|row| Keys::of(&Listing::of(row)));
        for old in before.iter().map(Keys::of).filter(|old| Some(old) != new.as_ref()) {
            self.remove(&list, &id, &run_id, &old, new.as_ref(), stamp);
        }
        if let (Some(row), Some(new)) = (row, &new) {
            let row_status = row.status as i8;
            for facet in &new.facets {
                let key = (list.clone(), facet.clone(), new.closed, bucket_of(new.at, hours_of(facet)));
                self.entries.entry(key).or_default().push((new.at, run_id.clone(), id.clone(), stamp));
            }
            let day = bucket_of(new.start, ID_HOURS);
            let entry = (id.clone(), run_id.clone(), new.closed, new.at, stamp);
            self.ids.entry((list.clone(), day)).or_default().push(entry);
            let key = (list.clone(), new.closed, bucket_of(new.at, ROW_HOURS));
            let (list_id, closed, bucket) = key.clone();
            let VisibilityRow { workflow_type, start_time, hidden, made_at, keywords, info, .. } = *row;
            let tuple = (
                list_id,
                closed,
                bucket,
                new.at,
                run_id.clone(),
                id.clone(),
                workflow_type,
                row_status,
                start_time.0,
                hidden,
                made_at.0,
                keywords,
                info,
                stamp,
            );
            self.rows.entry(key).or_default().push(tuple);
        }
    }

    /// What the new listing does not write over.
    fn remove(
        &mut self,
        list: &Arc<str>,
        id: &Arc<str>,
        run_id: &Arc<str>,
        old: &Keys,
        new: Option<&Keys>,
        stamp: i64,
    ) {
        let moved = new.is_none_or(|new| (new.closed, new.at) != (old.closed, old.at));
        if moved {
            let key = (list.clone(), old.closed, bucket_of(old.at, ROW_HOURS));
            self.deleted_rows.entry(key).or_default().push((stamp, old.at, run_id.clone()));
        }
        for facet in old.facets.iter().filter(|facet| moved || new.is_none_or(|new| !new.facets.contains(facet))) {
            let key = (list.clone(), facet.clone(), old.closed, bucket_of(old.at, hours_of(facet)));
            self.deleted_entries.entry(key).or_default().push((stamp, old.at, run_id.clone()));
        }
        if new.is_none_or(|new| new.start != old.start) {
            let key = (list.clone(), bucket_of(old.start, ID_HOURS));
            self.deleted_ids.entry(key).or_default().push((stamp, id.clone(), run_id.clone()));
        }
    }

    /// Buckets that have to be in their directories before anything is put into them.
    fn buckets(&self) -> Vec<(Arc<str>, Arc<str>, bool, i64)> {
        let rows = self.rows.keys().map(|(list, closed, bucket)| (list.clone(), ROWS.into(), *closed, *bucket));
        let ids = self.ids.keys().map(|(list, day)| (list.clone(), IDS.into(), false, *day));
        rows.chain(self.entries.keys().cloned()).chain(ids).collect()
    }
}

/// Buckets known to be in their directories; forgetting costs a write.
#[derive(Debug, Default)]
pub(super) struct Listed(Mutex<HashSet<IndexKey>>);

const LISTED: usize = 16_384;

impl Listed {
    fn contains(&self, key: &IndexKey) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(key)
    }

    fn insert(&self, key: IndexKey) {
        let mut listed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if listed.len() >= LISTED {
            listed.clear();
        }
        listed.insert(key);
    }
}

impl CassandraStore {
    pub(super) async fn write_visibility(&self, changes: Vec<Change>) -> Result<()> {
        let mut plan = Plan::default();
        latest(changes).into_iter().for_each(|change| plan.add(change));
        let unlisted: Vec<_> = plan.buckets().into_iter().filter(|key| !self.listed.contains(key)).collect();
        stream::iter(unlisted)
            .map(|key| async move {
                self.cql.write(Request::WriteVisibility, &self.statements.put_visibility_bucket, &key).await?;
                self.listed.insert(key);
                Ok::<_, StoreError>(())
            })
            .buffer_unordered(IN_FLIGHT)
            .try_collect::<()>()
            .await?;
        self.carry_out(plan).await
    }

    async fn carry_out(&self, plan: Plan) -> Result<()> {
        let s = &self.statements;
        let mut writes: Vec<futures::future::BoxFuture<'_, Result<()>>> = Vec::new();
        for chunk in plan.rows.into_values().flat_map(chunks) {
            writes.push(self.partition(&s.put_visibility, chunk));
        }
        for ((list, closed, bucket), rows) in plan.deleted_rows {
            for chunk in chunks(rows) {
                let values = chunk.into_iter().map(|(stamp, at, run)| (stamp, list.clone(), closed, bucket, at, run));
                writes.push(self.partition(&s.delete_visibility, values.collect()));
            }
        }
        for ((list, facet, closed, bucket), rows) in plan.entries {
            for chunk in chunks(rows) {
                let key = (&list, &facet);
                let values = chunk
                    .into_iter()
                    .map(|(at, run, id, stamp)| (key.0.clone(), key.1.clone(), closed, bucket, at, run, id, stamp));
                writes.push(self.partition(&s.put_visibility_entry, values.collect()));
            }
        }
        for ((list, facet, closed, bucket), rows) in plan.deleted_entries {
            for chunk in chunks(rows) {
                let key = (&list, &facet);
                let values = chunk
                    .into_iter()
                    .map(|(stamp, at, run)| (stamp, key.0.clone(), key.1.clone(), closed, bucket, at, run));
                writes.push(self.partition(&s.delete_visibility_entry, values.collect()));
            }
        }
        for ((list, day), rows) in plan.ids {
            for chunk in chunks(rows) {
                let by_run = chunk
                    .iter()
                    .map(|(_, run, closed, at, stamp)| (list.clone(), day, run.clone(), *closed, *at, *stamp));
                writes.push(self.partition(&s.put_visibility_run, by_run.collect()));
                let by_id = chunk
                    .into_iter()
                    .map(|(id, run, closed, at, stamp)| (list.clone(), day, id, run, closed, at, stamp));
                writes.push(self.partition(&s.put_visibility_id, by_id.collect()));
            }
        }
        for ((list, day), rows) in plan.deleted_ids {
            for chunk in chunks(rows) {
                let by_run = chunk.iter().map(|(stamp, _, run)| (*stamp, list.clone(), day, run.clone()));
                writes.push(self.partition(&s.delete_visibility_run, by_run.collect()));
                let by_id = chunk.into_iter().map(|(stamp, id, run)| (stamp, list.clone(), day, id, run));
                writes.push(self.partition(&s.delete_visibility_id, by_id.collect()));
            }
        }
        stream::iter(writes).buffer_unordered(IN_FLIGHT).try_collect::<()>().await
    }

    fn partition<'a, V>(
        &'a self,
        statement: &'a PreparedStatement,
        rows: Vec<V>,
    ) -> futures::future::BoxFuture<'a, Result<()>>
    where
        V: scylla::serialize::row::SerializeRow + Send + Sync + 'a,
    {
        Box::pin(self.cql.write_partition(Request::WriteVisibility, statement, rows))
    }
}
