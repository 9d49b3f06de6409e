//! Pages of a list: rows of an index, in list order, filtered.
//!
//! Open runs come first and closed ones after them, so a run moves when it closes, from a part that may be still to come
//! into one that is to come for sure, and would be seen twice. (VI-2) So every page shows the order of the time when the
//! list began: a row that was closed since then stands where it stood as an open one.

use std::{collections::VecDeque, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;
use perdure_proto::{Error, temporal::api::workflow::v1::WorkflowExecutionInfo};
use perdure_types::{
    Duration, IdMatch, ListPlace, ListedRun, TimeRange, Timestamp, VisibilityCount, VisibilityIndex, VisibilityQuery,
};

use crate::{
    attributes::Attributes,
    order::SortKey,
    plan::{Lookup, PARENT, Plan, ROOT, plan},
    query::Query,
    row::Row,
    token::{After, Token},
};

/// Where the rows are kept: a port to the store.
#[async_trait]
pub trait Rows: Send + Sync + 'static {
    async fn list(&self, query: &VisibilityQuery) -> Result<Vec<ListedRun>, Error>;
    async fn find(&self, list_id: &str, ids: &IdMatch, limit: usize) -> Result<Vec<ListedRun>, Error>;
    /// By the clock of those who make the rows.
    fn now(&self) -> Timestamp;
    async fn counts(&self, list_id: &str) -> Result<Vec<VisibilityCount>, Error>;
}

/// What a list is to give.
pub struct Request<'a> {
    pub list_id: Arc<str>,
    pub attributes: &'a Attributes,
    pub query: &'a Query,
    pub page_size: usize,
    /// Of the page before; empty: the first page.
    pub token: &'a [u8],
    pub now: Timestamp,
    /// Whether it is time to answer with what there is.
    pub is_late: &'a (dyn Fn() -> bool + Sync),
}

#[derive(Debug, Default)]
pub struct Page {
    pub executions: Vec<WorkflowExecutionInfo>,
    /// Empty: that was all.
    pub next_page_token: Bytes,
}

/// Rows read at once.
const SMALLEST_CHUNK: usize = 64;
const LARGEST_CHUNK: usize = 1_000;
/// Runs found by their workflow ids at most; if there are more, the list is walked.
const MOST_FOUND: usize = 5_000;
/// A closed row is in the tables so soon after the close, but for recoveries.
const FLUSH_LAG: Duration = Duration::from_secs(10);
/// Runs that closed since a list began, as far as it minds them.
const MOST_MOVED: usize = 20_000;

/// One page.
pub async fn list(rows: &dyn Rows, request: &Request<'_>) -> Result<Page, Error> {
    let sorted_by = request.query.order_by.len();
    let token = match request.token {
        [] => None,
        bytes => {
            Some(Token::decode(bytes, sorted_by).ok_or_else(|| Error::invalid_argument("Invalid NextPageToken."))?)
        }
    };
    let begun_at = token.as_ref().map_or(request.now, |token| token.begun_at);
    let plan = plan(request.query);
    let mut source = Source::open(rows, request, &plan, begun_at, token.is_some()).await?;
    match token.map(|token| token.after) {
        Some(After::Key(key)) => sorted(&mut source, request, Some(key)).await,
        Some(After::Place(place)) => in_order(&mut source, request, Some(place)).await,
        None if sorted_by > 0 => sorted(&mut source, request, None).await,
        None => in_order(&mut source, request, None).await,
    }
}

async fn in_order(source: &mut Source<'_>, request: &Request<'_>, after: Option<ListPlace>) -> Result<Page, Error> {
    source.skip_to(after);
    let mut page = Page::default();
    let mut last = None;
    while let Some(run) = source.next().await? {
        if page.executions.len() >= request.page_size {
            return Ok(page.goes_on(source.begun_at, last.map(After::Place)));
        }
        let place = source.place(&run);
        if let Some(row) = Row::decode(&run).filter(|row| request.query.admits(row)) {
            page.executions.push(shown(row.info, request.attributes));
        }
        last = Some(place);
        if source.at_chunk_end() && (request.is_late)() {
            return Ok(page.goes_on(source.begun_at, last.map(After::Place)));
        }
    }
    Ok(page)
}

/// The rows of the page are the smallest after `after`, found by looking at all.
async fn sorted(source: &mut Source<'_>, request: &Request<'_>, after: Option<SortKey>) -> Result<Page, Error> {
    let order = &request.query.order_by;
    let mut best: Vec<(SortKey, WorkflowExecutionInfo)> = Vec::new();
    // One more, to know whether the list goes on.
    let most = request.page_size + 1;
    while let Some(run) = source.next().await? {
        let Some(row) = Row::decode(&run).filter(|row| request.query.admits(row)) else { continue };
        let key = SortKey::of(&row, &run.run_id, order);
        if after.as_ref().is_some_and(|after| key.compare(after, order).is_le()) {
            continue;
        }
        let at = best.partition_point(|(other, _)| other.compare(&key, order).is_lt());
        if at < most {
            best.insert(at, (key, row.info));
            best.truncate(most);
        }
    }
    let goes_on = best.len() > request.page_size;
    best.truncate(request.page_size);
    let last = best.last().filter(|_| goes_on).map(|(key, _)| After::Key(key.clone()));
    let executions = best.into_iter().map(|(_, info)| shown(info, request.attributes)).collect();
    Ok(Page { executions, next_page_token: Bytes::new() }.goes_on(source.begun_at, last))
}

impl Page {
    fn goes_on(mut self, begun_at: Timestamp, after: Option<After>) -> Self {
        self.next_page_token = after.map(|after| Token { begun_at, after }.encode()).unwrap_or_default();
        self
    }
}

/// As clients see it: search attributes carry their kinds, those that are not registered any more are gone.
fn shown(mut info: WorkflowExecutionInfo, attributes: &Attributes) -> WorkflowExecutionInfo {
    if let Some(found) = &mut info.search_attributes {
        found.indexed_fields.retain(|name, payload| {
            let kind = attributes.kind(name);
            if let Some(kind) = kind {
                let name = crate::attributes::kind_name(kind);
                payload.metadata.insert("type".to_owned(), Bytes::from_static(name.as_bytes()));
            }
            kind.is_some()
        });
    }
    info
}

/// The rows that a plan gives, chunk by chunk.
pub(crate) struct Source<'a> {
    rows: &'a dyn Rows,
    query: VisibilityQuery,
    begun_at: Timestamp,
    chunk: VecDeque<ListedRun>,
    /// There is nothing after the chunk.
    is_last: bool,
    /// Runs that closed since the list began, which stand among the open ones.
    moved: VecDeque<ListedRun>,
}

impl<'a> Source<'a> {
    async fn open(
        rows: &'a dyn Rows,
        request: &Request<'_>,
        plan: &Plan,
        begun_at: Timestamp,
        goes_on: bool,
    ) -> Result<Self, Error> {
        let mut source = Self::new(rows, &request.list_id, plan, begun_at);
        source.query.limit = (request.page_size + 1).clamp(SMALLEST_CHUNK, LARGEST_CHUNK);
        if let Some(found) = find(rows, &request.list_id, plan).await? {
            source.chunk = found.into();
            source.is_last = true;
        } else if goes_on {
            source.read_moved().await?;
        }
        source.chunk.make_contiguous().sort_by_cached_key(|run| place_at(run, begun_at));
        Ok(source)
    }

    pub(crate) fn new(rows: &'a dyn Rows, list_id: &Arc<str>, plan: &Plan, begun_at: Timestamp) -> Self {
        let query = VisibilityQuery {
            list_id: list_id.clone(),
            index: plan.index.clone(),
            open: plan.open,
            closed: plan.closed,
            after: None,
            limit: LARGEST_CHUNK,
        };
        Self { rows, query, begun_at, chunk: VecDeque::new(), is_last: false, moved: VecDeque::new() }
    }

    /// Rows that are closed now but were not when the list began.
    async fn read_moved(&mut self) -> Result<(), Error> {
        let since = TimeRange { from: self.begun_at - FLUSH_LAG, ..TimeRange::ALL };
        let recent = VisibilityQuery {
            open: TimeRange::NONE,
            closed: self.query.closed.intersection(since),
            limit: MOST_MOVED,
            ..self.query.clone()
        };
        let mut moved = self.rows.list(&recent).await?;
        moved.retain(|run| is_moved(run, self.begun_at));
        moved.sort_by_cached_key(|run| place_at(run, self.begun_at));
        self.moved = moved.into();
        Ok(())
    }

    fn skip_to(&mut self, after: Option<ListPlace>) {
        let Some(after) = after else { return };
        let begun_at = self.begun_at;
        self.chunk.retain(|run| place_at(run, begun_at) > after);
        self.moved.retain(|run| place_at(run, begun_at) > after);
        self.query.after = Some(after);
    }

    fn place(&self, run: &ListedRun) -> ListPlace {
        place_at(run, self.begun_at)
    }

    fn at_chunk_end(&self) -> bool {
        self.chunk.is_empty()
    }

    pub(crate) async fn next(&mut self) -> Result<Option<ListedRun>, Error> {
        self.read_chunk().await?;
        let moved_first = match (self.chunk.front(), self.moved.front()) {
            (Some(run), Some(moved)) => self.place(run) > self.place(moved),
            (None, Some(_)) => true,
            (_, None) => false,
        };
        Ok(if moved_first { self.moved.pop_front() } else { self.chunk.pop_front() })
    }

    async fn read_chunk(&mut self) -> Result<(), Error> {
        while self.chunk.is_empty() && !self.is_last {
            let mut read = self.rows.list(&self.query).await?;
            self.is_last = read.len() < self.query.limit;
            if let Some(last) = read.last() {
                self.query.after = Some(last.place());
            }
            self.query.limit = (self.query.limit * 2).min(LARGEST_CHUNK);
            // They stood, or stand, among the open ones.
            read.retain(|run| !is_moved(run, self.begun_at));
            self.chunk = read.into();
        }
        Ok(())
    }
}

fn is_moved(run: &ListedRun, begun_at: Timestamp) -> bool {
    run.row.made_at > begun_at && run.row.close_time.is_some_and(|at| at > begun_at - FLUSH_LAG)
}

/// Where the row stood when the list began.
fn place_at(run: &ListedRun, begun_at: Timestamp) -> ListPlace {
    let mut place = run.place();
    if is_moved(run, begun_at) {
        place.closed = false;
        place.at.0 = run.row.start_time;
    }
    place
}

/// The rows that a plan's lookups give, if it has some and they do not give too many.
pub(crate) async fn find(rows: &dyn Rows, list_id: &Arc<str>, plan: &Plan) -> Result<Option<Vec<ListedRun>>, Error> {
    if plan.lookups.is_empty() {
        return Ok(None);
    }
    let mut found = Found { rows, list_id, runs: Vec::new() };
    for lookup in &plan.lookups {
        if !found.look_up(lookup).await? {
            return Ok(None);
        }
    }
    // What is of the tree of two runs, say, is found twice.
    found.runs.sort_by(|a, b| a.run_id.cmp(&b.run_id));
    found.runs.dedup_by(|a, b| a.run_id == b.run_id);
    Ok(Some(found.runs))
}

struct Found<'a> {
    rows: &'a dyn Rows,
    list_id: &'a Arc<str>,
    runs: Vec<ListedRun>,
}

impl Found<'_> {
    /// Whether these are all that there are.
    async fn look_up(&mut self, lookup: &Lookup) -> Result<bool, Error> {
        match lookup {
            Lookup::Ids(ids) => self.ids(ids).await,
            Lookup::Children(id) => self.keyword(PARENT, id).await,
            Lookup::Tree(id) => self.tree(id).await,
            Lookup::ChildrenOfRun(run_id) => match self.workflow_of(run_id).await? {
                Some(id) => self.keyword(PARENT, &id).await,
                None => Ok(false),
            },
            Lookup::TreeOfRun(run_id) => match self.workflow_of(run_id).await? {
                Some(id) => self.tree(&id).await,
                None => Ok(false),
            },
        }
    }

    fn left(&self) -> usize {
        (MOST_FOUND + 1).saturating_sub(self.runs.len())
    }

    async fn ids(&mut self, ids: &IdMatch) -> Result<bool, Error> {
        let limit = if matches!(ids, IdMatch::Run(_)) { 1 } else { self.left() };
        self.runs.extend(self.rows.find(self.list_id, ids, limit).await?);
        Ok(self.runs.len() <= MOST_FOUND)
    }

    async fn keyword(&mut self, name: &str, value: &Arc<str>) -> Result<bool, Error> {
        let query = VisibilityQuery {
            list_id: self.list_id.clone(),
            index: VisibilityIndex::Keyword { name: name.into(), value: value.clone() },
            open: TimeRange::ALL,
            closed: TimeRange::ALL,
            after: None,
            limit: self.left(),
        };
        self.runs.extend(self.rows.list(&query).await?);
        Ok(self.runs.len() <= MOST_FOUND)
    }

    /// A run has its root in its row when neither it nor its parent is that.
    async fn tree(&mut self, id: &Arc<str>) -> Result<bool, Error> {
        let themselves = IdMatch::Is(id.clone());
        Ok(self.ids(&themselves).await? && self.keyword(PARENT, id).await? && self.keyword(ROOT, id).await?)
    }

    /// `None`: it is listed no more, though others may name it.
    async fn workflow_of(&self, run_id: &Arc<str>) -> Result<Option<Arc<str>>, Error> {
        let found = self.rows.find(self.list_id, &IdMatch::Run(run_id.clone()), 1).await?;
        Ok(found.into_iter().next().map(|run| run.workflow_id))
    }
}
