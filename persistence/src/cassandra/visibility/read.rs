//! Reading the list: buckets from the latest to the earliest, the first alone, then several at once.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use futures::stream::{self, StreamExt, TryStreamExt};
use perdure_types::Timestamp;
use scylla::response::PagingState;

use super::{IDS, ROWS, bucket_of, hours_of, keyword_facet, type_facet};
use crate::{
    IdMatch, ListedRun, Result, TimeRange, VisibilityCount, VisibilityIndex, VisibilityQuery, VisibilityRow,
    cassandra::{CassandraStore, IN_FLIGHT, errors, telemetry::Request},
};

/// Entries of a directory in one read.
const PAGE_BUCKETS: i32 = 64;

/// Buckets read at once, after the first.
const BUCKETS_AT_ONCE: usize = 8;

/// Rows named in one read.
const NAMED_ROWS: usize = 64;

type RowTuple = (i64, String, String, String, i8, i64, bool, i64, Option<Vec<(String, String)>>, Option<Bytes>);

fn listed_run(closed: bool, row: RowTuple) -> ListedRun {
    let (at, run_id, workflow_id, workflow_type, status, start, hidden, made_at, keywords, info) = row;
    let keywords = keywords.unwrap_or_default().into_iter().map(|(name, value)| (name.into(), value.into()));
    ListedRun {
        workflow_id: workflow_id.into(),
        run_id: run_id.into(),
        row: VisibilityRow {
            workflow_type: workflow_type.into(),
            status: status as u8,
            start_time: Timestamp(start),
            close_time: closed.then_some(Timestamp(at)),
            hidden,
            made_at: Timestamp(made_at),
            keywords: keywords.collect(),
            // Not a slice of the page that it came in.
            info: info.map(|info| Bytes::copy_from_slice(&info)).unwrap_or_default(),
        },
    }
}

/// Names a row: open or closed, its time, its run.
type Key = (bool, i64, String);

/// A stretch of one half of the list.
struct Stretch<'a> {
    query: &'a VisibilityQuery,
    facet: Arc<str>,
    closed: bool,
    times: TimeRange,
}

/// The times of a half of the list that a query wants.
fn wanted_times(query: &VisibilityQuery, closed: bool) -> TimeRange {
    let range = if closed { query.closed } else { query.open };
    match &query.after {
        Some(after) if after.closed && !closed => TimeRange::NONE,
        // Rows of the same time may still come; they are told apart by their run ids.
        Some(after) if after.closed == closed => {
            range.intersection(TimeRange { from: TimeRange::ALL.from, until: after.at.0 })
        }
        _ => range,
    }
}

impl CassandraStore {
    pub(in crate::cassandra) async fn list(&self, query: &VisibilityQuery) -> Result<Vec<ListedRun>> {
        let facet = match &query.index {
            VisibilityIndex::Status { statuses, .. } if statuses.is_empty() => return Ok(Vec::new()),
            VisibilityIndex::Status { workflow_type: None, .. } => ROWS.into(),
            VisibilityIndex::Status { workflow_type: Some(name), .. } => type_facet(name),
            VisibilityIndex::Keyword { name, value } => keyword_facet(name, value),
        };
        let mut listed = Vec::new();
        for closed in [false, true] {
            let times = wanted_times(query, closed);
            if !times.is_empty() && listed.len() < query.limit {
                let stretch = Stretch { query, facet: facet.clone(), closed, times };
                listed.extend(self.list_stretch(&stretch, query.limit - listed.len()).await?);
            }
        }
        Ok(listed)
    }

    async fn list_stretch(&self, stretch: &Stretch<'_>, limit: usize) -> Result<Vec<ListedRun>> {
        let mut found: Vec<ListedRun> = Vec::new();
        let hours = hours_of(&stretch.facet);
        let last = bucket_of(stretch.times.from.0, hours);
        let (mut next, mut at_once) = (bucket_of(stretch.times.until.0, hours), 1);
        while next >= last && found.len() < limit {
            let key = (&*stretch.query.list_id, &*stretch.facet, stretch.closed);
            let buckets = self.visibility_directory(key, last, next).await?;
            let is_end = buckets.len() < PAGE_BUCKETS as usize;
            next = buckets.last().map_or(i64::MIN, |bucket| bucket - 1);
            let mut buckets = buckets.into_iter().peekable();
            while buckets.peek().is_some() && found.len() < limit {
                let reads: Vec<i64> = buckets.by_ref().take(at_once).collect();
                let reads = reads.into_iter().map(|bucket| self.list_bucket(stretch, bucket, limit - found.len()));
                let read: Vec<Vec<ListedRun>> = stream::iter(reads).buffered(BUCKETS_AT_ONCE).try_collect().await?;
                found.extend(read.into_iter().flatten());
                at_once = BUCKETS_AT_ONCE;
            }
            if is_end {
                break;
            }
        }
        found.truncate(limit);
        Ok(found)
    }

    /// Buckets that may have something, the latest first.
    async fn visibility_directory(
        &self,
        (list_id, facet, closed): (&str, &str, bool),
        from: i64,
        until: i64,
    ) -> Result<Vec<i64>> {
        let values = (list_id, facet, closed, from, until, PAGE_BUCKETS);
        let rows = self.cql.read(Request::ReadVisibility, &self.statements.read_visibility_buckets, values).await?;
        let rows = rows.rows::<(i64,)>().map_err(|e| errors::corrupt("directory of the list", e))?;
        rows.map(|row| row.map(|(bucket,)| bucket).map_err(|e| errors::corrupt("directory of the list", e))).collect()
    }

    /// Rows of one bucket that the query admits, in list order.
    async fn list_bucket(&self, stretch: &Stretch<'_>, bucket: i64, limit: usize) -> Result<Vec<ListedRun>> {
        let Stretch { query, facet, closed, times } = stretch;
        let (list_id, closed, until, from) = (&query.list_id, *closed, times.until.0, times.from.0);
        let is_rows = &**facet == ROWS;
        let (mut found, mut state) = (Vec::new(), PagingState::start());
        loop {
            let next = if is_rows {
                let statement = &self.statements.read_visibility;
                let values = (list_id, closed, bucket, until, from);
                let (page, next) = self.cql.read_page(Request::ReadVisibility, statement, values, state).await?;
                for row in page.rows::<RowTuple>().map_err(|e| errors::corrupt("rows of the list", e))? {
                    let run = listed_run(closed, row.map_err(|e| errors::corrupt("row of the list", e))?);
                    if query.admits(&run) {
                        found.push(run);
                    }
                }
                next
            } else {
                let statement = &self.statements.read_visibility_entries;
                let values = (list_id, facet, closed, bucket, until, from);
                let (page, next) = self.cql.read_page(Request::ReadVisibility, statement, values, state).await?;
                let mut keys: Vec<Key> = Vec::new();
                for row in page.rows::<(i64, String)>().map_err(|e| errors::corrupt("entries of the list", e))? {
                    let (at, run_id) = row.map_err(|e| errors::corrupt("entry of the list", e))?;
                    keys.push((closed, at, run_id));
                }
                found.extend(self.rows_of(list_id, keys).await?.into_iter().filter(|run| query.admits(run)));
                next
            };
            match next.into_paging_control_flow() {
                std::ops::ControlFlow::Continue(next) if found.len() < limit => state = next,
                _ => return Ok(found),
            }
        }
    }

    /// The rows with these keys, in the same order; those that are there no more are left out.
    async fn rows_of(&self, list_id: &str, keys: Vec<Key>) -> Result<Vec<ListedRun>> {
        let mut partitions: HashMap<(bool, i64), Vec<(i64, &str)>> = HashMap::new();
        for (closed, at, run_id) in &keys {
            partitions.entry((*closed, bucket_of(*at, hours_of(ROWS)))).or_default().push((*at, run_id));
        }
        let mut reads = Vec::new();
        for ((closed, bucket), keys) in &partitions {
            reads.extend(keys.chunks(NAMED_ROWS).map(|keys| self.named_rows(list_id, *closed, *bucket, keys.to_vec())));
        }
        let read: Vec<Vec<ListedRun>> = stream::iter(reads).buffer_unordered(IN_FLIGHT).try_collect().await?;
        let mut rows: HashMap<Key, ListedRun> = HashMap::new();
        for run in read.into_iter().flatten() {
            let place = run.place();
            rows.insert((place.closed, place.at.0.0, run.run_id.to_string()), run);
        }
        Ok(keys.iter().filter_map(|key| rows.remove(key)).collect())
    }

    async fn named_rows(
        &self,
        list_id: &str,
        closed: bool,
        bucket: i64,
        keys: Vec<(i64, &str)>,
    ) -> Result<Vec<ListedRun>> {
        let values = (list_id, closed, bucket, keys);
        let rows = self.cql.read(Request::ReadVisibility, &self.statements.read_visibility_named, values).await?;
        let rows = rows.rows::<RowTuple>().map_err(|e| errors::corrupt("rows of the list", e))?;
        rows.map(|row| Ok(listed_run(closed, row.map_err(|e| errors::corrupt("row of the list", e))?))).collect()
    }

    pub(in crate::cassandra) async fn find(
        &self,
        list_id: &str,
        ids: &IdMatch,
        limit: usize,
    ) -> Result<Vec<ListedRun>> {
        let mut found: Vec<ListedRun> = Vec::new();
        let mut next = i64::MAX;
        loop {
            let days = self.visibility_directory((list_id, IDS, false), i64::MIN, next).await?;
            let is_end = days.len() < PAGE_BUCKETS as usize;
            next = days.last().map_or(i64::MIN, |day| day - 1);
            let reads = days.into_iter().map(|day| self.ids_of_day(list_id, day, ids, limit));
            let mut reads = stream::iter(reads).buffered(BUCKETS_AT_ONCE);
            while let Some(keys) = reads.try_next().await? {
                found.extend(
                    self.rows_of(list_id, keys)
                        .await?
                        .into_iter()
                        .filter(|run| ids.admits(&run.workflow_id, &run.run_id)),
                );
                if found.len() >= limit {
                    break;
                }
            }
            drop(reads);
            if is_end || found.len() >= limit {
                found.truncate(limit);
                return Ok(found);
            }
        }
    }

    async fn ids_of_day(&self, list_id: &str, day: i64, ids: &IdMatch, limit: usize) -> Result<Vec<Key>> {
        let from = match ids {
            IdMatch::Is(from) | IdMatch::StartsWith(from) => from,
            IdMatch::Run(run_id) => return self.run_of_day(list_id, day, run_id).await,
        };
        let (mut keys, mut state) = (Vec::new(), PagingState::start());
        loop {
            let statement = &self.statements.read_visibility_ids;
            let values = (list_id, day, from);
            let (page, next) = self.cql.read_page(Request::ReadVisibility, statement, values, state).await?;
            for row in page.rows::<(String, String, bool, i64)>().map_err(|e| errors::corrupt("ids of the list", e))? {
                let (workflow_id, run_id, closed, at) = row.map_err(|e| errors::corrupt("id of the list", e))?;
                if !ids.admits(&workflow_id, &run_id) || keys.len() >= limit {
                    return Ok(keys);
                }
                keys.push((closed, at, run_id));
            }
            match next.into_paging_control_flow() {
                std::ops::ControlFlow::Break(()) => return Ok(keys),
                std::ops::ControlFlow::Continue(next) => state = next,
            }
        }
    }

    async fn run_of_day(&self, list_id: &str, day: i64, run_id: &str) -> Result<Vec<Key>> {
        let values = (list_id, day, run_id);
        let rows = self.cql.read(Request::ReadVisibility, &self.statements.read_visibility_run, values).await?;
        let rows = rows.rows::<(bool, i64)>().map_err(|e| errors::corrupt("run of the list", e))?;
        rows.map(|row| {
            let (closed, at) = row.map_err(|e| errors::corrupt("run of the list", e))?;
            Ok((closed, at, run_id.to_owned()))
        })
        .collect()
    }

    /// Counts by reading three columns of every row.
    pub(in crate::cassandra) async fn count(&self, list_id: &str) -> Result<Vec<VisibilityCount>> {
        let mut counts: HashMap<(String, i8, bool), u64> = HashMap::new();
        for closed in [false, true] {
            let mut next = i64::MAX;
            loop {
                let buckets = self.visibility_directory((list_id, ROWS, closed), i64::MIN, next).await?;
                let is_end = buckets.len() < PAGE_BUCKETS as usize;
                next = buckets.last().map_or(i64::MIN, |bucket| bucket - 1);
                let statement = &self.statements.count_visibility;
                let reads = buckets.into_iter().map(|bucket| {
                    let values = (list_id, closed, bucket);
                    self.cql.read_all(Request::ReadVisibility, statement, values, |kind: (String, i8, bool)| Ok(kind))
                });
                let mut reads = stream::iter(reads).buffer_unordered(BUCKETS_AT_ONCE);
                while let Some(kinds) = reads.try_next().await? {
                    for kind in kinds {
                        *counts.entry(kind).or_default() += 1;
                    }
                }
                if is_end {
                    break;
                }
            }
        }
        let counts = counts.into_iter().map(|((workflow_type, status, hidden), count)| VisibilityCount {
            workflow_type: workflow_type.into(),
            status: status as u8,
            hidden,
            count,
        });
        Ok(counts.collect())
    }
}
