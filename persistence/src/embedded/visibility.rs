//! The list of runs in redb: the rows by id, and indexes over them that hold keys only.
//!
//! Invariant: rows, indexes and counts change in one transaction, so they always agree.

use std::{cmp::Reverse, iter::Peekable, sync::Arc};

use bytes::Bytes;
use perdure_types::{ChainKey, Timestamp};
use redb::{
    ReadOnlyTable, ReadTransaction, ReadableTable, ReadableTableMetadata, Table, TableDefinition, WriteTransaction,
};

use super::tables::{Reader, RunKey, failure};
use crate::{
    Hidden, IdMatch, ListPlace, ListedRun, Result, StatusSet, TimeRange, VisibilityCount, VisibilityIndex,
    VisibilityQuery, VisibilityRow,
};

const ROWS: TableDefinition<RunKey, RowValue> = TableDefinition::new("visibility");
/// Value: workflow id.
const BY_STATUS: TableDefinition<StatusKey, &str> = TableDefinition::new("visibility_by_status");
/// Value: workflow id.
const BY_KEYWORD: TableDefinition<KeywordKey, &str> = TableDefinition::new("visibility_by_keyword");
/// List id, run id; value: workflow id.
const BY_RUN: TableDefinition<(&str, &str), &str> = TableDefinition::new("visibility_by_run");
const COUNTS: TableDefinition<CountKey, u64> = TableDefinition::new("visibility_counts");

/// Stamp; type; status; start, close; hidden; made at; keywords; info.
type RowValue<'a> = (i64, &'a str, u8, i64, Option<i64>, bool, i64, Vec<(&'a str, &'a str)>, &'a [u8]);
/// List id, hidden, type (empty: any), closed, status, time (latest first), run id.
type StatusKey<'a> = (&'a str, bool, &'a str, bool, u8, u64, &'a str);
/// List id, name, value, closed, time (latest first), run id.
type KeywordKey<'a> = (&'a str, &'a str, &'a str, bool, u64, &'a str);
/// List id, hidden, type, status.
type CountKey<'a> = (&'a str, bool, &'a str, u8);

/// Orders later times first.
fn descending(at: Timestamp) -> u64 {
    !(at.0 as u64 ^ 1 << 63)
}

fn ascending(at: u64) -> Timestamp {
    Timestamp((!at ^ 1 << 63) as i64)
}

fn row((_, workflow_type, status, start, close, hidden, made_at, keywords, info): RowValue) -> VisibilityRow {
    VisibilityRow {
        workflow_type: workflow_type.into(),
        status,
        start_time: Timestamp(start),
        close_time: close.map(Timestamp),
        hidden,
        made_at: Timestamp(made_at),
        keywords: keywords.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
        info: Bytes::copy_from_slice(info),
    }
}

/// Creates the tables that a store lacks.
pub(super) fn touch(transaction: &WriteTransaction) -> Result<(), redb::Error> {
    let rows = transaction.open_table(ROWS)?;
    let mut by_run = transaction.open_table(BY_RUN)?;
    if by_run.is_empty()? {
        for row in rows.iter()? {
            let (key, _) = row?;
            let (list_id, workflow_id, run_id) = key.value();
            by_run.insert((list_id, run_id), workflow_id)?;
        }
    }
    transaction.open_table(BY_STATUS)?;
    transaction.open_table(BY_KEYWORD)?;
    transaction.open_table(COUNTS)?;
    Ok(())
}

pub(super) fn exist(transaction: &ReadTransaction) -> bool {
    transaction.open_table(COUNTS).is_ok() && transaction.open_table(BY_RUN).is_ok()
}

/// The writer's side.
pub(super) struct VisibilityTables<'t> {
    rows: Table<'t, RunKey<'static>, RowValue<'static>>,
    by_status: Table<'t, StatusKey<'static>, &'static str>,
    by_keyword: Table<'t, KeywordKey<'static>, &'static str>,
    by_run: Table<'t, (&'static str, &'static str), &'static str>,
    counts: Table<'t, CountKey<'static>, u64>,
}

impl<'t> VisibilityTables<'t> {
    pub fn open(transaction: &'t WriteTransaction) -> Result<Self> {
        Ok(Self {
            rows: transaction.open_table(ROWS).map_err(failure)?,
            by_status: transaction.open_table(BY_STATUS).map_err(failure)?,
            by_keyword: transaction.open_table(BY_KEYWORD).map_err(failure)?,
            by_run: transaction.open_table(BY_RUN).map_err(failure)?,
            counts: transaction.open_table(COUNTS).map_err(failure)?,
        })
    }

    /// Puts a row, or deletes it. An older stamp has no effect (M1).
    pub fn write(&mut self, stamp: i64, chain: &ChainKey, run_id: &Arc<str>, new: Option<VisibilityRow>) -> Result<()> {
        let list_id = chain.list_id();
        let key = (&*list_id, &*chain.workflow_id, &**run_id);
        let old = self.rows.get(key).map_err(failure)?.map(|stored| (stored.value().0, row(stored.value())));
        if old.as_ref().is_some_and(|(written, _)| *written > stamp) {
            return Ok(());
        }
        let old = old.map(|(_, row)| row);
        self.index(chain, run_id, old.as_ref(), new.as_ref())?;
        let by_run = (&*list_id, &**run_id);
        match (&old, &new) {
            (None, Some(_)) => drop(self.by_run.insert(by_run, &*chain.workflow_id).map_err(failure)?),
            (Some(_), None) => drop(self.by_run.remove(by_run).map_err(failure)?),
            (None, None) | (Some(_), Some(_)) => {}
        }
        match new {
            None => drop(self.rows.remove(key).map_err(failure)?),
            Some(new) => {
                let keywords = new.keywords.iter().map(|(name, value)| (&**name, &**value)).collect();
                let close = new.close_time.map(|at| at.0);
                let times = (new.start_time.0, close, new.made_at.0);
                let value = (
                    stamp,
                    &*new.workflow_type,
                    new.status,
                    times.0,
                    times.1,
                    new.hidden,
                    times.2,
                    keywords,
                    &*new.info,
                );
                self.rows.insert(key, value).map_err(failure)?;
            }
        }
        Ok(())
    }

    fn index(
        &mut self,
        chain: &ChainKey,
        run_id: &Arc<str>,
        old: Option<&VisibilityRow>,
        new: Option<&VisibilityRow>,
    ) -> Result<()> {
        let list_id = &*chain.list_id();
        let kind = |row: &VisibilityRow| (row.workflow_type.clone(), row.status, row.hidden);
        let place = |row: &VisibilityRow| (kind(row), row.place(run_id));
        if old.map(place) != new.map(place) {
            for (row, is_new) in old.iter().map(|row| (row, false)).chain(new.iter().map(|row| (row, true))) {
                let at = descending(row.place(run_id).at.0);
                for workflow_type in ["", &*row.workflow_type] {
                    let closed = row.close_time.is_some();
                    let key = (list_id, row.hidden, workflow_type, closed, row.status, at, &**run_id);
                    if is_new {
                        self.by_status.insert(key, &*chain.workflow_id).map_err(failure)?;
                    } else {
                        self.by_status.remove(key).map_err(failure)?;
                    }
                }
            }
        }
        if old.map(kind) != new.map(kind) {
            if let Some(row) = old {
                self.count(list_id, row, |count| count.saturating_sub(1))?;
            }
            if let Some(row) = new {
                self.count(list_id, row, |count| count + 1)?;
            }
        }
        self.index_keywords(chain, run_id, old, new)
    }

    fn index_keywords(
        &mut self,
        chain: &ChainKey,
        run_id: &Arc<str>,
        old: Option<&VisibilityRow>,
        new: Option<&VisibilityRow>,
    ) -> Result<()> {
        if old.is_some_and(|old| {
            new.is_some_and(|new| old.keywords == new.keywords && old.place(run_id) == new.place(run_id))
        }) {
            return Ok(());
        }
        let list_id = chain.list_id();
        for (row, is_new) in old.iter().map(|row| (row, false)).chain(new.iter().map(|row| (row, true))) {
            let at = descending(row.place(run_id).at.0);
            for (name, value) in &row.keywords {
                let key = (&*list_id, &**name, &**value, row.close_time.is_some(), at, &**run_id);
                if is_new {
                    self.by_keyword.insert(key, &*chain.workflow_id).map_err(failure)?;
                } else {
                    self.by_keyword.remove(key).map_err(failure)?;
                }
            }
        }
        Ok(())
    }

    fn count(&mut self, list_id: &str, row: &VisibilityRow, change: impl Fn(u64) -> u64) -> Result<()> {
        let key = (list_id, row.hidden, &*row.workflow_type, row.status);
        let count = change(self.counts.get(key).map_err(failure)?.map_or(0, |count| count.value()));
        match count {
            0 => drop(self.counts.remove(key).map_err(failure)?),
            count => drop(self.counts.insert(key, count).map_err(failure)?),
        }
        Ok(())
    }
}

/// Keys of one stretch of an index, in list order: place, workflow id.
type Stretch = Peekable<Box<dyn Iterator<Item = Result<(ListPlace, Arc<str>)>>>>;

/// The times, latest first, of a part of the list that a query wants.
fn wanted_times(query: &VisibilityQuery, closed: bool) -> Option<(u64, u64)> {
    let mut range = if closed { query.closed } else { query.open };
    match &query.after {
        Some(after) if after.closed && !closed => return None,
        // Rows of the same time may still come; they are told apart by their run ids.
        Some(after) if after.closed == closed => {
            range = range.intersection(TimeRange { from: TimeRange::ALL.from, until: after.at.0 });
        }
        _ => {}
    }
    (!range.is_empty()).then(|| (descending(range.until), descending(range.from)))
}

impl Reader {
    pub fn list_visibility(&self, query: &VisibilityQuery) -> Result<Vec<ListedRun>> {
        let transaction = self.begin()?;
        let rows = transaction.open_table(ROWS).map_err(failure)?;
        let mut listed = Vec::new();
        for closed in [false, true] {
            let Some(times) = wanted_times(query, closed) else { continue };
            let mut stretches = match &query.index {
                VisibilityIndex::Status { workflow_type, statuses, hidden } => {
                    let table = transaction.open_table(BY_STATUS).map_err(failure)?;
                    let kind = (workflow_type.as_deref().unwrap_or(""), *statuses, *hidden);
                    by_status(&table, &query.list_id, kind, closed, times)?
                }
                VisibilityIndex::Keyword { name, value } => {
                    let table = transaction.open_table(BY_KEYWORD).map_err(failure)?;
                    vec![by_keyword(&table, (&query.list_id, name, value), closed, times)?]
                }
            };
            while let Some((place, workflow_id)) = next(&mut stretches)? {
                if query.after.as_ref().is_some_and(|after| place <= *after) {
                    continue;
                }
                if listed.len() >= query.limit {
                    return Ok(listed);
                }
                let key = (&*query.list_id, &*workflow_id, &*place.run_id);
                if let Some(stored) = rows.get(key).map_err(failure)? {
                    let row = row(stored.value());
                    listed.push(ListedRun { workflow_id, run_id: place.run_id, row });
                }
            }
        }
        Ok(listed)
    }

    pub fn find_visibility(&self, list_id: &str, ids: &IdMatch, limit: usize) -> Result<Vec<ListedRun>> {
        let transaction = self.begin()?;
        let rows = transaction.open_table(ROWS).map_err(failure)?;
        let by_run = transaction.open_table(BY_RUN).map_err(failure)?;
        let from: (Arc<str>, Arc<str>) = match ids {
            IdMatch::Is(from) | IdMatch::StartsWith(from) => (from.clone(), "".into()),
            IdMatch::Run(run_id) => match by_run.get((list_id, &**run_id)).map_err(failure)? {
                Some(workflow_id) => (workflow_id.value().into(), run_id.clone()),
                None => return Ok(Vec::new()),
            },
        };
        let mut found = Vec::new();
        for stored in rows.range::<RunKey>((list_id, &*from.0, &*from.1)..).map_err(failure)? {
            let (key, value) = stored.map_err(failure)?;
            let (list, workflow_id, run_id) = key.value();
            if list != list_id || !ids.admits(workflow_id, run_id) || found.len() >= limit {
                break;
            }
            let row = row(value.value());
            found.push(ListedRun { workflow_id: workflow_id.into(), run_id: run_id.into(), row });
        }
        Ok(found)
    }

    pub fn count_visibility(&self, list_id: &str) -> Result<Vec<VisibilityCount>> {
        let counts = self.begin()?.open_table(COUNTS).map_err(failure)?;
        let mut found = Vec::new();
        for stored in counts.range::<CountKey>((list_id, false, "", 0)..).map_err(failure)? {
            let (key, count) = stored.map_err(failure)?;
            let (list, hidden, workflow_type, status) = key.value();
            if list != list_id {
                break;
            }
            let workflow_type = workflow_type.into();
            found.push(VisibilityCount { workflow_type, status, hidden, count: count.value() });
        }
        Ok(found)
    }
}

fn by_status(
    table: &ReadOnlyTable<StatusKey<'static>, &'static str>,
    namespace: &str,
    (workflow_type, statuses, hidden): (&str, StatusSet, Hidden),
    closed: bool,
    (first, last): (u64, u64),
) -> Result<Vec<Stretch>> {
    let parts: &[bool] = if hidden == Hidden::With { &[false, true] } else { &[false] };
    let mut stretches = Vec::new();
    for &hidden in parts {
        for status in statuses.iter() {
            let from = (namespace, hidden, workflow_type, closed, status, first, "");
            // No run id is larger.
            let until = (namespace, hidden, workflow_type, closed, status, last, "\u{10ffff}");
            let range = table.range::<StatusKey>(from..=until).map_err(failure)?;
            let keys = range.map(move |entry| {
                let (key, workflow_id) = entry.map_err(failure)?;
                let (.., at, run_id) = key.value();
                let place = ListPlace { closed, at: Reverse(ascending(at)), run_id: run_id.into() };
                Ok((place, workflow_id.value().into()))
            });
            stretches.push((Box::new(keys) as Box<dyn Iterator<Item = _>>).peekable());
        }
    }
    Ok(stretches)
}

fn by_keyword(
    table: &ReadOnlyTable<KeywordKey<'static>, &'static str>,
    (namespace, name, value): (&str, &str, &str),
    closed: bool,
    (first, last): (u64, u64),
) -> Result<Stretch> {
    let range = (namespace, name, value, closed, first, "")..=(namespace, name, value, closed, last, "\u{10ffff}");
    let keys = table.range::<KeywordKey>(range).map_err(failure)?.map(move |entry| {
        let (key, workflow_id) = entry.map_err(failure)?;
        let (.., at, run_id) = key.value();
        let place = ListPlace { closed, at: Reverse(ascending(at)), run_id: run_id.into() };
        Ok((place, workflow_id.value().into()))
    });
    Ok((Box::new(keys) as Box<dyn Iterator<Item = _>>).peekable())
}

/// Takes the key that comes first in the list.
fn next(stretches: &mut [Stretch]) -> Result<Option<(ListPlace, Arc<str>)>> {
    let mut first: Option<(ListPlace, usize)> = None;
    for (i, stretch) in stretches.iter_mut().enumerate() {
        match stretch.peek() {
            Some(Ok((place, _))) if first.as_ref().is_none_or(|(earliest, _)| place < earliest) => {
                first = Some((place.clone(), i));
            }
            None | Some(Ok(_)) => {}
            Some(Err(_)) => return stretch.next().transpose(),
        }
    }
    first.and_then(|(_, i)| stretches[i].next()).transpose()
}
