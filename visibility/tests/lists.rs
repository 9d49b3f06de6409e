//! Lists over rows in memory: an index gives what a look at every row would; pages are stable while rows change.

#![allow(clippy::unwrap_used)] // Tests may.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use perdure_proto::{
    Error,
    temporal::api::{
        common::v1::{Payload, SearchAttributes, WorkflowExecution, WorkflowType},
        workflow::v1::WorkflowExecutionInfo,
    },
};
use perdure_types::{IdMatch, ListedRun, Timestamp, VisibilityCount, VisibilityQuery};
use perdure_visibility::{Attributes, Page, Query, Request, Rows, count, list, row_of};

const SECOND: i64 = 1_000_000_000;
const RUNNING: i32 = 1;
const COMPLETED: i32 = 2;
const FAILED: i32 = 3;

#[derive(Default)]
struct Memory {
    rows: Mutex<BTreeMap<String, ListedRun>>,
    rows_read: AtomicUsize,
}

#[async_trait]
impl Rows for Memory {
    async fn list(&self, query: &VisibilityQuery) -> Result<Vec<ListedRun>, Error> {
        let rows = self.rows.lock().unwrap();
        let mut found: Vec<ListedRun> = rows.values().filter(|run| query.admits(run)).cloned().collect();
        found.sort_by_key(ListedRun::place);
        found.truncate(query.limit);
        self.rows_read.fetch_add(found.len(), Ordering::Relaxed);
        Ok(found)
    }

    async fn find(&self, _list_id: &str, ids: &IdMatch, limit: usize) -> Result<Vec<ListedRun>, Error> {
        let rows = self.rows.lock().unwrap();
        let found = rows.values().filter(|run| ids.admits(&run.workflow_id, &run.run_id)).take(limit);
        let found: Vec<ListedRun> = found.cloned().collect();
        self.rows_read.fetch_add(found.len(), Ordering::Relaxed);
        Ok(found)
    }

    fn now(&self) -> Timestamp {
        Timestamp(0)
    }

    async fn counts(&self, _list_id: &str) -> Result<Vec<VisibilityCount>, Error> {
        let mut counts = BTreeMap::<_, u64>::new();
        for run in self.rows.lock().unwrap().values() {
            *counts.entry((run.row.workflow_type.clone(), run.row.status, run.row.hidden)).or_default() += 1;
        }
        let counts = counts.into_iter();
        let count = |((workflow_type, status, hidden), count)| VisibilityCount { workflow_type, status, hidden, count };
        Ok(counts.map(count).collect())
    }
}

fn text(value: &str) -> Payload {
    let metadata = [("encoding".to_owned(), b"json/plain".to_vec().into())].into();
    Payload { metadata, data: format!("{value:?}").into_bytes().into(), ..Default::default() }
}

fn execution(i: i64) -> WorkflowExecution {
    WorkflowExecution { workflow_id: format!("w-{}", i % 13), run_id: format!("run-{i:03}") }
}

impl Memory {
    fn put(&self, i: i64, status: i32, start: i64, close: i64, made_at: i64) {
        self.put_in(i, status, (start, close, made_at), false);
    }

    fn put_in(&self, i: i64, status: i32, (start, close, made_at): (i64, i64, i64), hidden: bool) {
        let time = |seconds: i64| Timestamp(seconds * SECOND).to_proto();
        let WorkflowExecution { workflow_id, run_id } = execution(i);
        let mut fields = [("Customer".to_owned(), text(&format!("c-{}", i % 5)))].to_vec();
        if hidden {
            fields.push(("TemporalNamespaceDivision".to_owned(), text("division")));
        }
        let info = WorkflowExecutionInfo {
            execution: Some(execution(i)),
            r#type: Some(WorkflowType { name: format!("T{}", i % 3) }),
            start_time: time(start),
            close_time: (status != RUNNING).then(|| time(close)).flatten(),
            status,
            history_length: i,
            search_attributes: Some(SearchAttributes { indexed_fields: fields.into_iter().collect() }),
            ..Default::default()
        };
        // Every fourth run has a child, that has another, and so on.
        let info = WorkflowExecutionInfo {
            parent_execution: (i % 4 > 0).then(|| execution(i - 1)),
            root_execution: Some(execution(i - i % 4)),
            ..info
        };
        let row = row_of(&info, Timestamp(made_at * SECOND));
        let run = ListedRun { workflow_id: workflow_id.into(), run_id: run_id.as_str().into(), row };
        self.rows.lock().unwrap().insert(run_id, run);
    }

    fn filled() -> Self {
        let memory = Self::default();
        for i in (0..100).filter(|i| *i != GONE) {
            let status = [RUNNING, COMPLETED, FAILED, COMPLETED][i as usize % 4];
            memory.put_in(i, status, (1_000 + i / 2, 1_100 + (i * 7) % 50, 1_200), i % 17 == 3);
        }
        memory
    }
}

fn attributes() -> Attributes {
    Attributes::from_aliases(&[("Keyword01".to_owned(), "Customer".to_owned())].into())
}

async fn page(rows: &Memory, query: &str, page_size: usize, token: &[u8], now: i64) -> Page {
    let attributes = attributes();
    let query = Query::parse(query, &attributes).unwrap();
    let request = Request {
        list_id: "n".into(),
        attributes: &attributes,
        query: &query,
        page_size,
        token,
        now: Timestamp(now * SECOND),
        is_late: &|| false,
    };
    list(rows, &request).await.unwrap()
}

fn runs(page: &Page) -> Vec<String> {
    page.executions.iter().map(|info| info.execution.as_ref().unwrap().run_id.clone()).collect()
}

async fn all(rows: &Memory, query: &str, page_size: usize) -> Vec<String> {
    let (mut found, mut token) = (Vec::new(), Vec::new());
    loop {
        let page = page(rows, query, page_size, &token, 2_000).await;
        assert!(page.executions.len() <= page_size);
        found.extend(runs(&page));
        token = page.next_page_token.to_vec();
        if token.is_empty() {
            return found;
        }
    }
}

const QUERIES: [&str; 29] = [
    "ExecutionStatus = 'Running'",
    "ExecutionStatus != 'Running'",
    "ExecutionStatus IN ('Completed', 'Failed') AND WorkflowType = 'T1'",
    "WorkflowType = 'T2'",
    "WorkflowType = 'T1' OR ExecutionStatus = 'Failed'",
    "WorkflowId = 'w-4'",
    "WorkflowId STARTS_WITH 'w-1' AND ExecutionStatus = 'Completed'",
    "WorkflowId IN ('w-1', 'w-2', 'nobody')",
    "Customer = 'c-3'",
    "Customer = 'c-3' AND WorkflowType != 'T0'",
    "Customer = 'c-3' OR WorkflowId = 'w-4'",
    "StartTime >= '1970-01-01T00:17:20Z' AND StartTime < '1970-01-01T00:17:30Z'",
    "CloseTime BETWEEN '1970-01-01T00:18:30Z' AND '1970-01-01T00:18:50Z'",
    "CloseTime IS NULL AND StartTime > '1970-01-01T00:17:10Z'",
    "CloseTime IS NULL OR CloseTime > '1970-01-01T00:19:00Z'",
    "HistoryLength > 50 AND RunId != 'run-060'",
    "TemporalNamespaceDivision = 'division'",
    "TemporalNamespaceDivision IS NOT NULL OR ExecutionStatus = 'Failed'",
    "TemporalNamespaceDivision = 'division' AND Customer = 'c-3'",
    "Customer = 'nobody'",
    "RunId = 'run-042'",
    "RunId IN ('run-042', 'run-007', 'nobody') AND WorkflowType != 'T0'",
    "ParentWorkflowId = 'w-4'",
    "ParentWorkflowId IN ('w-4', 'w-5')",
    "ParentRunId = 'run-041'",
    "RootWorkflowId = 'w-4'",
    "RootWorkflowId IN ('w-4', 'w-8') AND ExecutionStatus != 'Failed'",
    "RootRunId = 'run-040'",
    "RootRunId = 'run-052'",
];

/// It has descendants, but is there no more.
const GONE: i64 = 52;

#[tokio::test]
async fn an_index_gives_what_a_look_at_every_row_gives() {
    let rows = Memory::filled();
    for query in QUERIES {
        // No index serves a negation.
        let every_row = all(&rows, &format!("NOT (NOT ({query}))"), 1_000).await;
        for page_size in [1, 7, 1_000] {
            assert_eq!(all(&rows, query, page_size).await, every_row, "{query}");
        }
        let attributes = attributes();
        let parsed = Query::parse(query, &attributes).unwrap();
        let counted = count(&rows, &"n".into(), &parsed).await.unwrap();
        assert_eq!(counted.total as usize, every_row.len(), "{query}");
        for order in ["HistoryLength DESC", "WorkflowType, StartTime DESC", "CloseTime"] {
            let mut sorted = all(&rows, &format!("{query} ORDER BY {order}"), 7).await;
            assert_eq!(sorted, all(&rows, &format!("{query} ORDER BY {order}"), 1_000).await, "{query} {order}");
            sorted.sort();
            let mut expected = every_row.clone();
            expected.sort();
            assert_eq!(sorted, expected, "{query} {order}");
        }
    }
    assert!(!all(&rows, "", 1_000).await.contains(&"run-003".to_owned()), "divisions are not listed unless asked for");
}

#[tokio::test]
async fn ids_are_found_without_a_look_at_every_row() {
    let rows = Memory::filled();
    for (query, found, at_most) in [
        ("RunId = 'run-042'", 1, 1),
        ("RunId IN ('run-042', 'run-007', 'nobody')", 2, 2),
        ("RunId = 'nobody'", 0, 0),
        ("ParentWorkflowId = 'w-4' AND ParentRunId = 'run-043'", 0, 7),
        ("ParentRunId = 'run-041'", 1, 9),
        ("RootWorkflowId = 'w-1' AND RootRunId = 'run-040'", 4, 24),
        ("RootRunId = 'run-040'", 4, 24),
    ] {
        rows.rows_read.store(0, Ordering::Relaxed);
        assert_eq!(all(&rows, query, 1_000).await.len(), found, "{query}");
        let read = rows.rows_read.load(Ordering::Relaxed);
        assert!(read <= at_most, "{query} read {read} rows");
    }
}

#[tokio::test]
async fn open_runs_come_first_then_the_latest_closed() {
    let rows = Memory::default();
    for (i, (status, start, close)) in
        [(COMPLETED, 10, 20), (RUNNING, 1, 0), (COMPLETED, 5, 30), (RUNNING, 7, 0)].into_iter().enumerate()
    {
        rows.put(i as i64, status, start, close, 40);
    }
    assert_eq!(all(&rows, "", 3).await, ["run-003", "run-001", "run-002", "run-000"]);
}

/// VI-2: whatever closes and starts between two pages.
#[tokio::test]
async fn pages_are_stable_while_runs_close_and_start() {
    for closing in 0..40 {
        let rows = Memory::default();
        for i in 0..20 {
            rows.put(i, RUNNING, 1_000 + i, 0, 1_050);
            rows.put(20 + i, COMPLETED, 500 + i, 600 + i, 650);
        }
        let (mut seen, mut token, mut now) = (Vec::new(), Vec::new(), 2_000);
        loop {
            let page = page(&rows, "", 3, &token, now).await;
            seen.extend(runs(&page));
            token = page.next_page_token.to_vec();
            if token.is_empty() {
                break;
            }
            now += 1;
            // Runs close in some order, shown already or not; others start.
            let i = (closing + (now - 2_000) * 3) % 20;
            rows.put(i, FAILED, 1_000 + i, now, now);
            rows.put(100 + now - 2_000, RUNNING, now, 0, now);
        }
        seen.retain(|run| run.as_str() < "run-100");
        let shown = seen.len();
        seen.sort();
        seen.dedup();
        assert_eq!((shown, seen.len()), (40, 40), "each run that was there all the while is shown once ({closing})");
    }
}

#[tokio::test]
async fn a_late_page_goes_on_later() {
    let rows = Memory::default();
    for i in 0..2_000 {
        rows.put(i, COMPLETED, 1_000 + i, 1_001 + i, 1_002 + i);
    }
    let attributes = attributes();
    let query = Query::parse("HistoryLength < 1", &attributes).unwrap();
    let (mut token, mut pages, mut found) = (bytes::Bytes::new(), 0, 0);
    loop {
        let request = Request {
            list_id: "n".into(),
            attributes: &attributes,
            query: &query,
            page_size: 10,
            token: &token,
            now: Timestamp(9_000 * SECOND),
            is_late: &|| true,
        };
        let page = list(&rows, &request).await.unwrap();
        pages += 1;
        found += page.executions.len();
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(found, 1);
    assert!(pages > 2, "each page is cut short, {pages} in all");
}

#[tokio::test]
async fn nonsense_tokens_are_refused() {
    let attributes = attributes();
    let query = Query::parse("", &attributes).unwrap();
    let request = Request {
        list_id: Arc::from("n"),
        attributes: &attributes,
        query: &query,
        page_size: 10,
        token: b"nonsense",
        now: Timestamp(0),
        is_late: &|| false,
    };
    let error = list(&Memory::default(), &request).await.unwrap_err();
    assert_eq!(error.message, "Invalid NextPageToken.");
}
