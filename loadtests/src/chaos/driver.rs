//! The clients of a chaos run: each starts a workflow, signals and updates it while it runs, and waits for its end; then
//! the next one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use perdure_proto::temporal::api::common::v1::{WorkflowExecution, WorkflowType};
use perdure_proto::temporal::api::enums::v1::{
    EventType, HistoryEventFilterType, UpdateWorkflowExecutionLifecycleStage, WorkflowIdReusePolicy,
};
use perdure_proto::temporal::api::history::v1::history_event::Attributes;
use perdure_proto::temporal::api::taskqueue::v1::TaskQueue;
use perdure_proto::temporal::api::update::v1::{Input, Meta, Request, WaitPolicy, outcome::Value};
use perdure_proto::temporal::api::workflowservice::v1::{
    GetWorkflowExecutionHistoryRequest, SignalWorkflowExecutionRequest, StartWorkflowExecutionRequest,
    StartWorkflowExecutionResponse, UpdateWorkflowExecutionRequest, UpdateWorkflowExecutionResponse,
};
use tokio::time::{Instant, sleep_until};

use super::Shared;
use super::client::{Answer, Client};
use super::journal::{Call, Outcome, What};
use super::script;
use super::worker::outcome;
use crate::api::{long_poll, with_timeout};

/// That of the SDKs.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// An update waits for its workflow: as long as an SDK lets it.
const UPDATE_TIMEOUT: Duration = Duration::from_secs(30);
/// Every so many workflows are started by two clients at once.
const RACED: u64 = 4;

/// What all clients share.
pub struct Driver {
    pub shared: Arc<Shared>,
    pub stop: AtomicBool,
    /// Workflows started.
    next: AtomicU64,
    pub closed: AtomicU64,
    /// Signals and updates sent.
    numbers: AtomicU64,
    /// Between two signals or updates of one workflow.
    news_every: Duration,
}

impl Driver {
    pub fn new(shared: Arc<Shared>, news_every: Duration) -> Arc<Self> {
        let zero = AtomicU64::default;
        let stop = AtomicBool::new(false);
        Arc::new(Self { shared, stop, next: zero(), closed: zero(), numbers: zero(), news_every })
    }

    pub fn started(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// One workflow after the other, until it is told to stop; the last one is seen through. The first begins somewhen
    /// within `spread`.
    pub async fn run(self: Arc<Self>, spread: Duration) {
        let client = self.shared.nodes.client();
        tokio::time::sleep(spread).await;
        while !self.stop.load(Ordering::Relaxed) {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let workflow_id = format!("{}-{number}", self.shared.script.workflow_type);
            if !self.start(&client, &workflow_id, number).await {
                continue;
            }
            tokio::select! {
                biased;
                () = self.wait_closed(&client, &workflow_id) => {}
                () = self.send_news(&client, &workflow_id) => {}
            }
            self.shared.progress.closed(&workflow_id);
            self.closed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether it runs now, by an acknowledged start or by one that may have come through.
    async fn start(&self, client: &Client, workflow_id: &str, number: u64) -> bool {
        self.shared.progress.asked(workflow_id);
        if number.is_multiple_of(RACED) {
            let other = self.shared.nodes.client();
            let (first, second) =
                tokio::join!(self.start_once(client, workflow_id, "a"), self.start_once(&other, workflow_id, "b"));
            return first || second;
        }
        self.start_once(client, workflow_id, "a").await
    }

    async fn start_once(&self, client: &Client, workflow_id: &str, who: &str) -> bool {
        let request_id = format!("{workflow_id}-{who}");
        let request = StartWorkflowExecutionRequest {
            namespace: self.shared.nodes.namespace(),
            request_id: request_id.clone(),
            workflow_id: workflow_id.to_owned(),
            workflow_type: Some(WorkflowType { name: self.shared.script.workflow_type.clone() }),
            task_queue: Some(TaskQueue { name: self.shared.script.task_queue.clone(), ..Default::default() }),
            input: Some(script::payloads("0")),
            workflow_task_timeout: Some(prost_types::Duration { seconds: 10, nanos: 0 }),
            workflow_id_reuse_policy: WorkflowIdReusePolicy::RejectDuplicate as i32,
            identity: self.shared.nodes.identity(),
            ..Default::default()
        };
        let invoked_ns = self.shared.recorder.now_ns();
        let answer = client.call(|mut client| {
            let request = with_timeout(request.clone(), CALL_TIMEOUT);
            async move { client.start_workflow_execution(request).await }
        });
        let answer = answer.await;
        let outcome = outcome(&answer, |started: &StartWorkflowExecutionResponse| started.run_id.clone());
        let runs = !matches!(outcome, Outcome::Refused(_));
        self.record(workflow_id, What::Start { request_id }, invoked_ns, answer.attempts, outcome);
        runs
    }

    /// Signals and updates in turn, for as long as it is polled.
    async fn send_news(&self, client: &Client, workflow_id: &str) {
        let mut due = Instant::now() + self.news_every / 2;
        loop {
            sleep_until(due).await;
            let number = self.numbers.fetch_add(1, Ordering::Relaxed);
            // To its end, even if the workflow closes meanwhile: the answer belongs into the journal.
            let (driver, client, workflow_id) = (self.handle(), client.clone(), workflow_id.to_owned());
            let sent = tokio::spawn(async move {
                if number.is_multiple_of(2) {
                    driver.signal(&client, &workflow_id, number).await;
                } else {
                    driver.update(&client, &workflow_id, number).await;
                }
            });
            let _ = sent.await;
            due = (due + self.news_every).max(Instant::now());
        }
    }

    fn handle(&self) -> Sender {
        Sender { shared: self.shared.clone() }
    }

    async fn wait_closed(&self, client: &Client, workflow_id: &str) {
        let mut request = GetWorkflowExecutionHistoryRequest {
            namespace: self.shared.nodes.namespace(),
            execution: Some(WorkflowExecution { workflow_id: workflow_id.to_owned(), run_id: String::new() }),
            wait_new_event: true,
            history_event_filter_type: HistoryEventFilterType::CloseEvent as i32,
            skip_archival: true,
            ..Default::default()
        };
        loop {
            let request_now = request.clone();
            let page = client
                .once(|mut client| async move { client.get_workflow_execution_history(long_poll(request_now)).await });
            let Ok(page) = page.await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let event = page.history.and_then(|history| history.events.into_iter().next_back());
            request.next_page_token = page.next_page_token;
            let Some(event) = event else { continue };
            match event.attributes {
                Some(Attributes::WorkflowExecutionContinuedAsNewEventAttributes(continued)) => {
                    let run_id = continued.new_execution_run_id;
                    request.execution = Some(WorkflowExecution { workflow_id: workflow_id.to_owned(), run_id });
                    request.next_page_token = Default::default();
                }
                _ if event.event_type == EventType::WorkflowExecutionCompleted as i32 => return,
                _ => {
                    eprintln!("{workflow_id} closed with {}", event.event_type().as_str_name());
                    return;
                }
            }
        }
    }

    fn record(&self, workflow_id: &str, what: What, invoked_ns: u64, attempts: u32, outcome: Outcome) {
        self.handle().record(workflow_id, what, invoked_ns, attempts, outcome);
    }
}

struct Sender {
    shared: Arc<Shared>,
}

impl Sender {
    async fn signal(&self, client: &Client, workflow_id: &str, number: u64) {
        let request = SignalWorkflowExecutionRequest {
            namespace: self.shared.nodes.namespace(),
            workflow_execution: Some(execution(workflow_id)),
            signal_name: "news".to_owned(),
            input: Some(script::payloads(&number.to_string())),
            identity: self.shared.nodes.identity(),
            request_id: format!("{workflow_id}-{number}"),
            ..Default::default()
        };
        let invoked_ns = self.shared.recorder.now_ns();
        let answer = client.call(|mut client| {
            let request = with_timeout(request.clone(), CALL_TIMEOUT);
            async move { client.signal_workflow_execution(request).await }
        });
        let answer = answer.await;
        let outcome = outcome(&answer, |_| String::new());
        self.record(workflow_id, What::Signal { number }, invoked_ns, answer.attempts, outcome);
    }

    async fn update(&self, client: &Client, workflow_id: &str, number: u64) {
        let update_id = format!("{workflow_id}-{number}");
        let request = UpdateWorkflowExecutionRequest {
            namespace: self.shared.nodes.namespace(),
            workflow_execution: Some(execution(workflow_id)),
            wait_policy: Some(WaitPolicy { lifecycle_stage: UpdateWorkflowExecutionLifecycleStage::Completed as i32 }),
            request: Some(Request {
                meta: Some(Meta { update_id: update_id.clone(), identity: self.shared.nodes.identity() }),
                input: Some(Input {
                    name: "ask".to_owned(),
                    args: Some(script::payloads(&number.to_string())),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let invoked_ns = self.shared.recorder.now_ns();
        let mut attempts = 0;
        let mut in_doubt = false;
        let answer = loop {
            let answer: Answer<UpdateWorkflowExecutionResponse> = client
                .call(|mut client| {
                    let request = with_timeout(request.clone(), UPDATE_TIMEOUT);
                    async move { client.update_workflow_execution(request).await }
                })
                .await;
            attempts += answer.attempts;
            in_doubt |= answer.in_doubt;
            // Not there yet: asked again, with the same id.
            if !answer.result.as_ref().is_ok_and(|answer| answer.outcome.is_none()) {
                break answer;
            }
            in_doubt = true;
        };
        let answer = Answer { in_doubt, ..answer };
        let outcome = match result_of(&answer) {
            Some(Err(failure)) => Outcome::Unknown(failure),
            Some(Ok(_)) | None => outcome(&answer, |_| result_of(&answer).and_then(Result::ok).unwrap_or_default()),
        };
        self.record(workflow_id, What::Update { update_id, number }, invoked_ns, attempts, outcome);
    }

    fn record(&self, workflow_id: &str, what: What, invoked_ns: u64, attempts: u32, outcome: Outcome) {
        let answered_ns = self.shared.recorder.now_ns();
        let workflow_id = workflow_id.to_owned();
        self.shared.recorder.record(Call { workflow_id, what, invoked_ns, answered_ns, attempts, outcome });
    }
}

/// What an update came to: its number, or a failure, which the server itself makes for one that was cut short by the
/// workflow's close.
fn result_of(answer: &Answer<UpdateWorkflowExecutionResponse>) -> Option<Result<String, String>> {
    match answer.result.as_ref().ok()?.outcome.as_ref()?.value.as_ref()? {
        Value::Success(payloads) => {
            Some(Ok(script::number(Some(payloads)).map_or_else(String::new, |number| number.to_string())))
        }
        Value::Failure(failure) => Some(Err(failure.message.clone())),
    }
}

fn execution(workflow_id: &str) -> WorkflowExecution {
    WorkflowExecution { workflow_id: workflow_id.to_owned(), run_id: String::new() }
}
