//! Reading histories: events from the store, then those that are not flushed yet, a page at a time.
//!
//! Used for GetWorkflowExecutionHistory and its reverse, and for the workflow tasks in replies. What a page may show is
//! fixed when the request is handled, and the page is built when all of that is covered (A4, A5).

use std::time::Duration;

use bytes::Bytes;
use perdure_persistence::{HistoryRow, Store, StoreError};
use perdure_proto::{
    Code, Error,
    perdure::node::v1::{HistoryToken, WorkflowReply, workflow_call::Command, workflow_reply::Reply as Message_},
    temporal::api::{
        enums::v1::HistoryEventFilterType,
        history::v1::{History, HistoryEvent},
        workflowservice::v1::{
            GetWorkflowExecutionHistoryRequest, GetWorkflowExecutionHistoryResponse,
            GetWorkflowExecutionHistoryReverseRequest, GetWorkflowExecutionHistoryReverseResponse,
            PollWorkflowTaskQueueResponse, execute_multi_operation_response::response::Response,
        },
    },
};
use perdure_types::{ChainKey, Limits};
use perdure_workflow::{Chain, RunRef, RunView};
use prost::Message;

use crate::entry::TailBatch;

/// Bytes of one page of a scan: more than any row has.
const SCAN_BYTES: usize = 64 << 20;

/// How often, and after what pause, a run whose history is gone is looked at until its row is gone, too.
const DELETION_LOOKS: usize = 10;
const DELETION_PAUSE: Duration = Duration::from_millis(50);

/// A history request, parsed.
#[derive(Debug, Clone)]
pub(crate) struct HistoryQuery {
    /// Empty: the current run.
    pub run_id: String,
    /// The first event; in reverse the last one (0: the latest).
    from: i64,
    /// Where the pages end, exclusive; 0: as far as the history goes.
    until: i64,
    wait_new_event: bool,
    close_event_only: bool,
    reverse: bool,
    max_events: usize,
    extra: Vec<HistoryEvent>,
}

/// A history long poll.
#[derive(Debug)]
pub(crate) struct HistoryWatch(pub HistoryQuery);

/// What to do with a history request now.
pub(crate) enum Step {
    Page(Box<PageJob>),
    /// Nothing yet: wait for events or for the close.
    Wait(HistoryWatch),
    Answer(Box<WorkflowReply>),
}

/// A page to be read.
#[derive(Debug)]
pub(crate) struct PageJob {
    pub run_id: String,
    from: i64,
    /// Exclusive; in reverse the page goes from `from` down.
    until: i64,
    max_events: usize,
    max_bytes: usize,
    /// The unflushed events among them; everything before is in the store.
    pub tail: Vec<TailBatch>,
    then: Then,
}

#[derive(Debug)]
enum Then {
    Forward {
        query: HistoryQuery,
        is_open: bool,
    },
    Reverse {
        query: HistoryQuery,
    },
    /// Events of a workflow task in this reply.
    Fill {
        reply: Box<WorkflowReply>,
        extra: Vec<HistoryEvent>,
    },
}

struct Page {
    history: History,
    /// The event after the last one given (in reverse: before it).
    next: i64,
}

/// The run that has to be loaded for a command; history requests say it in their token, too.
pub(crate) fn run_ref(command: &Command) -> RunRef {
    let (token, execution) = match command {
        Command::GetHistory(c) => (&c.next_page_token, &c.execution),
        Command::GetHistoryReverse(c) => (&c.next_page_token, &c.execution),
        other => return Chain::run_ref(other),
    };
    let from_token = HistoryToken::decode(token.as_ref()).map(|token| token.run_id).unwrap_or_default();
    let named = execution.as_ref().map(|e| e.run_id.clone()).unwrap_or_default();
    let run_id = if from_token.is_empty() { named } else { from_token };
    if run_id.is_empty() { RunRef::Current } else { RunRef::Run(run_id) }
}

impl HistoryQuery {
    pub(crate) fn forward(request: &GetWorkflowExecutionHistoryRequest, limits: &Limits) -> Result<Self, Error> {
        let token = decode_token(&request.next_page_token)?;
        let named = request.execution.as_ref().map(|e| e.run_id.clone()).unwrap_or_default();
        Ok(Self {
            run_id: if token.run_id.is_empty() { named } else { token.run_id },
            from: token.next_event_id.max(1),
            until: if token.until_event_id > 0 { token.until_event_id + 1 } else { 0 },
            wait_new_event: request.wait_new_event || token.wait_new_event,
            close_event_only: request.history_event_filter_type() == HistoryEventFilterType::CloseEvent,
            reverse: false,
            max_events: page_size(request.maximum_page_size, limits),
            extra: token.extra,
        })
    }

    pub(crate) fn reverse(request: &GetWorkflowExecutionHistoryReverseRequest, limits: &Limits) -> Result<Self, Error> {
        let token = decode_token(&request.next_page_token)?;
        let named = request.execution.as_ref().map(|e| e.run_id.clone()).unwrap_or_default();
        Ok(Self {
            run_id: if token.run_id.is_empty() { named } else { token.run_id },
            from: token.next_event_id,
            until: 0,
            wait_new_event: false,
            close_event_only: false,
            reverse: true,
            max_events: page_size(request.maximum_page_size, limits),
            extra: Vec::new(),
        })
    }

    /// What can be answered from the run as it is now.
    pub(crate) fn step(self, view: &RunView, limits: &Limits) -> Step {
        let end = if self.until > 0 { self.until.min(view.next_event_id) } else { view.next_event_id };
        if self.reverse {
            let from = if self.from > 0 { self.from.min(end - 1) } else { end - 1 };
            return Step::Page(self.page(view, from, end, limits));
        }
        if self.close_event_only {
            return match (view.is_open, self.wait_new_event) {
                (false, _) => {
                    let last = view.next_event_id - 1;
                    Step::Page(Self { until: last + 1, ..self }.page(view, last, last + 1, limits))
                }
                (true, true) => Step::Wait(HistoryWatch(self)),
                (true, false) => Step::Answer(Box::new(forward_reply(History::default(), None))),
            };
        }
        if self.from < end {
            let from = self.from;
            // Without a long poll, later pages end where the history ended at the first one.
            let until = if self.wait_new_event { self.until } else { end };
            return Step::Page(Self { until, ..self }.page(view, from, end, limits));
        }
        if self.wait_new_event && view.is_open {
            return Step::Wait(HistoryWatch(self));
        }
        Step::Answer(Box::new(forward_reply(History::new(self.extra), None)))
    }

    fn page(self, view: &RunView, from: i64, until: i64, limits: &Limits) -> Box<PageJob> {
        let (max_events, max_bytes) = (self.max_events, limits.history_page_bytes.max(1) as usize);
        let query = Self { run_id: view.run_id.clone(), ..self };
        let then = if query.reverse { Then::Reverse { query } } else { Then::Forward { query, is_open: view.is_open } };
        Box::new(PageJob { run_id: view.run_id.clone(), from, until, max_events, max_bytes, tail: Vec::new(), then })
    }
}

impl HistoryWatch {
    pub(crate) fn is_ready(&self, view: &RunView) -> bool {
        !view.is_open || (!self.0.close_event_only && view.next_event_id > self.0.from)
    }

    /// The long poll has lasted long enough: an empty page, and a token to go on with.
    pub(crate) fn time_out(self) -> WorkflowReply {
        let token = HistoryToken {
            run_id: self.0.run_id,
            next_event_id: self.0.from,
            wait_new_event: true,
            ..Default::default()
        };
        forward_reply(History::default(), Some(token))
    }
}

impl PageJob {
    /// The events of a workflow task in a reply.
    pub(crate) fn fill(reply: WorkflowReply, fill: perdure_workflow::HistoryFill, limits: &Limits) -> Self {
        let extra = fill.extra.into_iter().map(std::sync::Arc::unwrap_or_clone).collect();
        Self {
            run_id: fill.run_id,
            from: fill.from_event_id.max(1),
            until: fill.until_event_id,
            max_events: limits.history_page_events.max(1) as usize,
            max_bytes: limits.history_page_bytes.max(1) as usize,
            tail: Vec::new(),
            then: Then::Fill { reply: Box::new(reply), extra },
        }
    }

    /// Takes what the page may need of the unflushed events.
    pub(crate) fn take_tail<'a>(&mut self, batches: impl Iterator<Item = &'a TailBatch>) {
        let (low, high) = match self.then {
            Then::Reverse { .. } => (1, self.from + 1),
            Then::Forward { .. } | Then::Fill { .. } => (self.from, self.until),
        };
        self.tail = batches.filter(|batch| batch.last >= low && batch.first < high).cloned().collect();
    }

    fn tail_first(&self) -> i64 {
        self.tail.first().map_or(i64::MAX, |batch| batch.first)
    }

    /// Nothing has to be read from the store.
    pub(crate) fn is_in_memory(&self) -> bool {
        match self.then {
            Then::Reverse { .. } => self.from < 1 || self.tail_first() <= 1,
            Then::Forward { .. } | Then::Fill { .. } => self.from >= self.until || self.tail_first() <= self.from,
        }
    }

    /// The reply of a job for which [`PageJob::is_in_memory`] holds.
    pub(crate) fn finish_in_memory(self) -> Result<WorkflowReply, Error> {
        let mut page = Builder::new(&self);
        page.push_tail()?;
        let page = page.finish();
        Ok(self.reply(page))
    }

    /// Reads what is in the store, and makes the reply.
    pub(crate) async fn finish(self, store: &dyn Store, chain: &ChainKey) -> Result<WorkflowReply, Error> {
        let mut page = Builder::new(&self);
        if page.reverse {
            page.push_tail()?;
            page.push_stored(store, chain, 1).await?;
        } else {
            page.push_stored(store, chain, self.until.min(self.tail_first()) - 1).await?;
            page.push_tail()?;
        }
        let page = page.finish();
        Ok(self.reply(page))
    }

    fn reply(self, page: Page) -> WorkflowReply {
        let (until, next, mut history) = (self.until, page.next, page.history);
        let more = next < until;
        match self.then {
            Then::Forward { query, is_open } => {
                let goes_on = more || (query.wait_new_event && is_open && !query.close_event_only);
                let token = goes_on.then(|| HistoryToken {
                    run_id: query.run_id,
                    next_event_id: next,
                    wait_new_event: query.wait_new_event,
                    until_event_id: (query.until - 1).max(0),
                    extra: query.extra.clone(),
                });
                if !more {
                    history.events.extend(query.extra);
                }
                forward_reply(history, token)
            }
            Then::Reverse { query } => {
                let token = HistoryToken { run_id: query.run_id, next_event_id: next, ..Default::default() };
                let next_page_token = if next >= 1 { token.encode_to_vec().into() } else { Default::default() };
                reply(Message_::GetHistoryReverse(GetWorkflowExecutionHistoryReverseResponse {
                    history: Some(history),
                    next_page_token,
                }))
            }
            Then::Fill { reply: mut message, extra } => {
                let mut token = None;
                if more {
                    let rest = HistoryToken {
                        run_id: self.run_id,
                        next_event_id: next,
                        until_event_id: until - 1,
                        extra,
                        ..Default::default()
                    };
                    token = Some(rest.encode_to_vec());
                } else {
                    history.events.extend(extra);
                }
                if let Some(task) = workflow_task_of(&mut message) {
                    task.history = Some(history);
                    task.next_page_token = token.unwrap_or_default().into();
                }
                *message
            }
        }
    }
}

/// Collects events of one page up to its limits.
struct Builder<'a> {
    job: &'a PageJob,
    reverse: bool,
    /// Whole batches at the beginning, as the log has them: nobody here looks at the events.
    encoded: Vec<Bytes>,
    events: Vec<HistoryEvent>,
    count: usize,
    bytes: usize,
    next: i64,
    full: bool,
}

impl<'a> Builder<'a> {
    fn new(job: &'a PageJob) -> Self {
        let reverse = matches!(job.then, Then::Reverse { .. });
        Self { job, reverse, encoded: Vec::new(), events: Vec::new(), count: 0, bytes: 0, next: job.from, full: false }
    }

    /// Takes the events that come next; others are passed over (stored rows may overlap after a crash).
    fn push_all(&mut self, events: Vec<HistoryEvent>) {
        let reverse = self.reverse;
        let wanted = |next: i64, job: &PageJob| if reverse { next >= 1 } else { next < job.until };
        let step = if self.reverse { -1 } else { 1 };
        let ordered: Box<dyn Iterator<Item = HistoryEvent>> =
            if self.reverse { Box::new(events.into_iter().rev()) } else { Box::new(events.into_iter()) };
        for event in ordered {
            if self.full || event.event_id != self.next || !wanted(self.next, self.job) {
                continue;
            }
            self.bytes += event.encoded_len();
            self.next += step;
            self.events.push(event);
            self.count += 1;
            self.note_size();
        }
    }

    fn note_size(&mut self) {
        self.full = self.count >= self.job.max_events || self.bytes >= self.job.max_bytes;
    }

    /// Takes the whole batch as it is, if it comes next and fits.
    fn push_encoded(&mut self, batch: &TailBatch) -> bool {
        let count = usize::try_from(batch.last + 1 - batch.first).unwrap_or(usize::MAX);
        let comes_next = !self.reverse && self.events.is_empty() && batch.first == self.next;
        let fits = batch.last < self.job.until
            && self.count.saturating_add(count) <= self.job.max_events
            && self.bytes + batch.events.len() <= self.job.max_bytes;
        if !comes_next || !fits {
            return false;
        }
        self.encoded.push(batch.events.clone());
        self.count += count;
        self.bytes += batch.events.len();
        self.next = batch.last + 1;
        self.note_size();
        true
    }

    fn push_tail(&mut self) -> Result<(), Error> {
        let job = self.job;
        let ordered: Box<dyn Iterator<Item = &TailBatch>> =
            if self.reverse { Box::new(job.tail.iter().rev()) } else { Box::new(job.tail.iter()) };
        for batch in ordered {
            if self.full {
                break;
            }
            if !self.push_encoded(batch) {
                self.push_all(decode(&batch.events)?);
            }
        }
        Ok(())
    }

    /// Reads up to (in reverse: down to) an event id, inclusive.
    async fn push_stored(&mut self, store: &dyn Store, chain: &ChainKey, end: i64) -> Result<(), Error> {
        loop {
            let done = if self.reverse { self.next < end } else { self.next > end };
            if done || self.full {
                return Ok(());
            }
            let (low, high) = if self.reverse { (end, self.next) } else { (self.next, end) };
            let budget = self.job.max_bytes.saturating_sub(self.bytes).max(1);
            let rows = store
                .read_history(chain, &self.job.run_id, low, high, budget, self.reverse)
                .await
                .map_err(|error| store_error(&error))?;
            let before = self.next;
            for row in rows {
                self.push_all(decode(&row.events)?);
            }
            if self.next == before
                && let Some(row) = self.find_overlapped(store, chain).await?
            {
                self.push_all(decode(&row.events)?);
            }
            if self.next == before {
                return Err(self.missing(store, chain).await?);
            }
        }
    }

    /// Why an event is not in the store: its run has been deleted since the page was begun, or it is lost.
    async fn missing(&self, store: &dyn Store, chain: &ChainKey) -> Result<Error, Error> {
        // A run's rows go one after the other, its history first.
        for _ in 0..DELETION_LOOKS {
            if store.read_run(chain, &self.job.run_id).await.map_err(|error| store_error(&error))?.is_none() {
                return Ok(Error::not_found(format!("workflow not found for ID: {}", chain.workflow_id)));
            }
            tokio::time::sleep(DELETION_PAUSE).await;
        }
        tracing::error!(?chain, run_id = self.job.run_id, event_id = self.next, "history event is missing");
        Ok(Error::new(Code::DataLoss, "history events are missing"))
    }

    /// A row that holds the next event, behind one that begins after it and ends before the event: an owner that did not
    /// know yet that it was fenced has written the shorter one. Rare, so it may cost a scan.
    async fn find_overlapped(&self, store: &dyn Store, chain: &ChainKey) -> Result<Option<HistoryRow>, Error> {
        let mut from = 1;
        loop {
            let rows = store
                .read_history(chain, &self.job.run_id, from, self.next, SCAN_BYTES, false)
                .await
                .map_err(|error| store_error(&error))?;
            let holds_next = |row: &HistoryRow| row.first_event_id <= self.next && row.last_event_id >= self.next;
            let last = rows.last().map_or(0, |row| row.first_event_id);
            if let Some(row) = rows.into_iter().find(holds_next) {
                return Ok(Some(row));
            }
            if last < from {
                return Ok(None);
            }
            from = last + 1;
        }
    }

    fn finish(mut self) -> Page {
        let encoded = match self.encoded.len() {
            0 | 1 => self.encoded.pop().unwrap_or_default(),
            // Encodings of consecutive batches concatenate.
            _ => self.encoded.concat().into(),
        };
        Page { history: History { encoded, events: self.events }, next: self.next }
    }
}

/// All events of a run before `until`; `tail` holds those that the store may not have.
pub(crate) async fn whole(
    store: &dyn Store,
    chain: &ChainKey,
    run_id: &str,
    until: i64,
    tail: Vec<TailBatch>,
) -> Result<Vec<HistoryEvent>, Error> {
    let then = Then::Fill { reply: Box::default(), extra: Vec::new() };
    let (max_events, max_bytes) = (usize::MAX, SCAN_BYTES.saturating_mul(16));
    let job = PageJob { run_id: run_id.to_owned(), from: 1, until, max_events, max_bytes, tail, then };
    let mut page = Builder::new(&job);
    page.push_stored(store, chain, until.min(job.tail_first()) - 1).await?;
    page.push_tail()?;
    page.finish().history.into_events().map_err(|error| damaged(&error))
}

/// As callers see trouble with the store.
pub(crate) fn store_error(error: &StoreError) -> Error {
    match error {
        StoreError::Unavailable(_) | StoreError::Indeterminate(_) | StoreError::ReadOnly(_) => {
            Error::unavailable("the store is not available")
        }
        StoreError::Corrupt(_) => Error::new(perdure_proto::Code::DataLoss, "stored data is damaged"),
    }
}

fn decode(events: &Bytes) -> Result<Vec<HistoryEvent>, Error> {
    History::decode(events.clone()).map(|history| history.events).map_err(|error| damaged(&error))
}

fn damaged(error: &prost::DecodeError) -> Error {
    tracing::error!(%error, "history events do not decode");
    Error::new(Code::DataLoss, "stored history is damaged")
}

fn decode_token(bytes: &[u8]) -> Result<HistoryToken, Error> {
    HistoryToken::decode(bytes).map_err(|_| Error::invalid_argument("Invalid NextPageToken."))
}

fn page_size(requested: i32, limits: &Limits) -> usize {
    let most = limits.history_page_events.max(1) as usize;
    usize::try_from(requested).ok().filter(|size| *size > 0).map_or(most, |size| size.min(most))
}

fn reply(message: Message_) -> WorkflowReply {
    WorkflowReply { reply: Some(message) }
}

fn forward_reply(history: History, token: Option<HistoryToken>) -> WorkflowReply {
    reply(Message_::GetHistory(GetWorkflowExecutionHistoryResponse {
        history: Some(history),
        next_page_token: token.map(|token| token.encode_to_vec()).unwrap_or_default().into(),
        ..Default::default()
    }))
}

/// The workflow task that a reply is or carries.
fn workflow_task_of(reply: &mut WorkflowReply) -> Option<&mut PollWorkflowTaskQueueResponse> {
    match reply.reply.as_mut()? {
        Message_::WorkflowTask(task) => Some(task),
        Message_::RespondWorkflowTaskCompleted(reply) => reply.workflow_task.as_mut(),
        Message_::Start(reply) => reply.eager_workflow_task.as_mut(),
        Message_::MultiOperation(reply) => {
            reply.responses.iter_mut().find_map(|response| match &mut response.response {
                Some(Response::StartWorkflow(start)) => start.eager_workflow_task.as_mut(),
                Some(Response::UpdateWorkflow(_)) | None => None,
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use perdure_persistence::{RunRow, StampedWrite, TableWrite, simulated::Simulated};
    use perdure_types::Position;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_run_that_is_deleted_meanwhile_is_not_found_and_nothing_else_that_is_missing_is_well() {
        let store = Simulated::reliable();
        let chain = ChainKey::new("n", "w");
        let read = || whole(&store, &chain, "r", 3, Vec::new());
        assert_eq!(read().await.expect_err("no row").grpc_code(), Code::NotFound);
        let row = RunRow { snapshot: Bytes::new(), applied: Position::ZERO, wake_at: None };
        let write = TableWrite::PutRun { chain: chain.clone(), run_id: "r".into(), row };
        store.write(vec![StampedWrite { stamp: Position::ZERO, write }]).await.expect("writes");
        assert_eq!(read().await.expect_err("no history").grpc_code(), Code::DataLoss);
    }
}
