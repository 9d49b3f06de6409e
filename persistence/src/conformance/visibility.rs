//! The list of runs: every index gives what a plain filter over all rows would.

use std::sync::Arc;

use bytes::Bytes;
use perdure_types::{ChainKey, Timestamp};

use super::patient::{Patient, until_done};
use crate::{
    Hidden, IdMatch, ListedRun, Listing, PlainRows, Status, StatusSet, Store, TableWrite, TimeRange, VisibilityCount,
    VisibilityIndex, VisibilityQuery, VisibilityRow,
};

const RUNNING: Status = 1;
const COMPLETED: Status = 2;
const FAILED: Status = 3;
const TYPES: [&str; 3] = ["Order", "Payment", "Ord"];
const HOUR: i64 = 3_600_000_000_000;

fn chain(namespace_id: &str, i: i64) -> ChainKey {
    ChainKey::new(namespace_id, format!("w-{}", i % 7))
}

fn run_id(i: i64) -> Arc<str> {
    format!("run-{i:03}").into()
}

/// Rows of several days, with ties in their times.
fn row(i: i64, status: Status) -> VisibilityRow {
    let start = (i / 2) * 5 * HOUR;
    let value = |name: &str, value: String| (Arc::from(name), Arc::from(value));
    let mut keywords = vec![value("Customer", format!("c-{}", i % 5)), value("Tag", "all".into())];
    if i % 3 == 0 {
        keywords.push(value("Tag", "third".into()));
    }
    VisibilityRow {
        workflow_type: TYPES[i as usize % 3].into(),
        status,
        start_time: Timestamp(start),
        close_time: (status != RUNNING).then_some(Timestamp(start + (i % 4) * HOUR)),
        hidden: i % 11 == 0,
        made_at: Timestamp(start + 1),
        keywords,
        info: Bytes::from(format!("info {i} {status}")),
    }
}

fn status_of(i: i64) -> Status {
    [RUNNING, COMPLETED, FAILED, COMPLETED][i as usize % 4]
}

/// All places at which the checks list a run.
fn listings(i: i64) -> Vec<Listing> {
    [RUNNING, COMPLETED, FAILED].map(|status| Listing::of(&row(i, status))).to_vec()
}

fn put(namespace_id: &str, i: i64, status: Status) -> TableWrite {
    let row = Box::new(row(i, status));
    let new = Listing::of(&row);
    let before = listings(i).into_iter().filter(|listing| *listing != new).collect();
    TableWrite::PutVisibility { chain: chain(namespace_id, i), run_id: run_id(i), row, before }
}

fn delete(i: i64) -> TableWrite {
    TableWrite::DeleteVisibility { chain: chain("n", i), run_id: run_id(i), before: listings(i) }
}

fn query(index: VisibilityIndex) -> VisibilityQuery {
    VisibilityQuery {
        list_id: "n".into(),
        index,
        open: TimeRange::ALL,
        closed: TimeRange::ALL,
        after: None,
        limit: usize::MAX,
    }
}

fn by_status(workflow_type: Option<&str>, statuses: StatusSet, hidden: Hidden) -> VisibilityIndex {
    VisibilityIndex::Status { workflow_type: workflow_type.map(Arc::from), statuses, hidden }
}

fn by_keyword(name: &str, value: &str) -> VisibilityIndex {
    VisibilityIndex::Keyword { name: name.into(), value: value.into() }
}

impl<S: Store> Patient<S> {
    async fn list(&self, query: &VisibilityQuery) -> Vec<ListedRun> {
        until_done(async || self.0.list_visibility(query).await).await
    }

    async fn find(&self, ids: &IdMatch) -> Vec<ListedRun> {
        let mut found = until_done(async || self.0.find_visibility("n", ids, usize::MAX).await).await;
        found.sort_by_key(ListedRun::place);
        found
    }

    async fn counts(&self) -> Vec<VisibilityCount> {
        let mut counts = until_done(async || self.0.count_visibility("n").await).await;
        counts.sort();
        counts
    }
}

/// What the list holds after [`fill`].
fn model() -> PlainRows {
    let mut rows = PlainRows::default();
    for i in (0..60).filter(|i| *i != 17 && *i != 40) {
        rows.add(&chain("n", i), &run_id(i), row(i, status_of(i)));
    }
    rows
}

/// All runs were open once; two are gone.
async fn fill<S: Store>(store: &Patient<S>) {
    for i in 0..60 {
        store.write((1, i as u64 + 1), put("n", i, RUNNING)).await;
        store.write((1, i as u64 + 1), put("m", i, RUNNING)).await;
    }
    for i in 0..60 {
        store.write((2, i as u64 + 1), put("n", i, status_of(i))).await;
    }
    for i in [17, 40] {
        store.write((2, 100), delete(i)).await;
    }
}

pub(super) async fn reads_agree_with_plain_rows<S: Store>(store: &Patient<S>) {
    fill(store).await;
    let mut indexes = vec![
        by_keyword("Customer", "c-2"),
        by_keyword("Customer", "c-"),
        by_keyword("Tag", "all"),
        by_keyword("Tag", "third"),
        by_keyword("Nothing", "all"),
    ];
    for hidden in [Hidden::Without, Hidden::With] {
        for statuses in [StatusSet::ALL, StatusSet::NONE, StatusSet::of([RUNNING]), StatusSet::of([COMPLETED, FAILED])]
        {
            indexes.push(by_status(None, statuses, hidden));
            indexes.extend(TYPES.iter().map(|name| by_status(Some(name), statuses, hidden)));
        }
    }
    let day = TimeRange { from: Timestamp(24 * HOUR), until: Timestamp(51 * HOUR) };
    for index in indexes {
        for (open, closed) in [(TimeRange::ALL, TimeRange::ALL), (day, day), (TimeRange::NONE, day)] {
            let query = VisibilityQuery { open, closed, ..query(index.clone()) };
            assert_eq!(store.list(&query).await, model().list(&query), "{query:?}");
        }
    }
    let runs = [0, 1, 17, 30].map(|i| IdMatch::Run(run_id(i)));
    let workflows = [IdMatch::Is("w-3".into()), IdMatch::Is("w-".into()), IdMatch::StartsWith("w-".into())];
    for ids in workflows.into_iter().chain(runs).chain([IdMatch::Run("run-".into())]) {
        let mut expected = model().find(&ids, usize::MAX);
        expected.sort_by_key(ListedRun::place);
        assert_eq!(store.find(&ids).await, expected, "{ids:?}");
    }
    assert_eq!(store.counts().await, model().counts());
}

pub(super) async fn an_older_stamp_changes_no_row<S: Store>(store: &Patient<S>) {
    store.write((3, 5), put("n", 1, COMPLETED)).await;
    let late_deletion = delete(1);
    for (stamp, write) in
        [((3, 4), put("n", 1, RUNNING)), ((2, 90), late_deletion.clone()), ((1, 1), put("n", 1, FAILED))]
    {
        store.write(stamp, write).await;
    }
    let all = query(by_status(None, StatusSet::ALL, Hidden::With));
    let closed = ListedRun { workflow_id: "w-1".into(), run_id: run_id(1), row: row(1, COMPLETED) };
    assert_eq!(store.list(&all).await, [closed], "a closed run is never shown as running again");
    // The same again is harmless.
    store.write((3, 5), put("n", 1, COMPLETED)).await;
    assert_eq!(store.counts().await.iter().map(|count| count.count).sum::<u64>(), 1);
    store.write((3, 6), late_deletion).await;
    assert_eq!(store.list(&all).await, []);
    assert_eq!(store.counts().await, []);
}

pub(super) async fn pages_go_on_where_they_ended<S: Store>(store: &Patient<S>) {
    fill(store).await;
    for index in [by_status(None, StatusSet::ALL, Hidden::With), by_keyword("Tag", "all")] {
        let whole = store.list(&query(index.clone())).await;
        for limit in [1, 7] {
            let (mut read, mut after) = (Vec::new(), None);
            loop {
                let page = store.list(&VisibilityQuery { limit, after, ..query(index.clone()) }).await;
                let Some(last) = page.last() else { break };
                after = Some(last.place());
                read.extend(page);
            }
            assert_eq!(read, whole);
        }
    }
}
