//! The workers of a chaos run: as SDKs' workers, each with a sticky queue of its own and some polls on each queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use perdure_proto::temporal::api::enums::v1::TaskQueueKind;
use perdure_proto::temporal::api::taskqueue::v1::{StickyExecutionAttributes, TaskQueue};
use perdure_proto::temporal::api::workflowservice::v1::{
    GetWorkflowExecutionHistoryRequest, PollActivityTaskQueueRequest, PollActivityTaskQueueResponse,
    PollWorkflowTaskQueueRequest, PollWorkflowTaskQueueResponse, RespondActivityTaskCompletedRequest,
    RespondWorkflowTaskCompletedRequest,
};
use tokio::task::JoinSet;
use tonic::{Code, Status};

use super::Shared;
use super::client::{Answer, Client, is_out_of_reach};
use super::journal::{Call, Outcome, What};
use super::script::{self, Step};
use crate::api::{long_poll, with_timeout};

/// That of the SDKs.
const STICKY_SCHEDULE_TO_START_SECONDS: i64 = 5;
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);
/// That of the SDKs.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Its pollers end when this value is dropped.
pub struct Worker {
    _pollers: JoinSet<()>,
}

struct Part {
    shared: Arc<Shared>,
    client: Client,
    sticky_queue: String,
    results: Arc<AtomicU64>,
}

impl Worker {
    /// `results` numbers the results of all workers.
    pub fn start(shared: &Arc<Shared>, number: usize, pollers: usize, results: &Arc<AtomicU64>) -> Self {
        let part = Arc::new(Part {
            shared: shared.clone(),
            client: shared.nodes.client(),
            sticky_queue: format!("{}-sticky-{number}", shared.script.task_queue),
            results: results.clone(),
        });
        let mut tasks = JoinSet::new();
        for _ in 0..pollers {
            tasks.spawn(poll_workflow_tasks(part.clone(), part.normal_queue()));
            tasks.spawn(poll_workflow_tasks(part.clone(), part.sticky_queue()));
            tasks.spawn(poll_activity_tasks(part.clone()));
        }
        Self { _pollers: tasks }
    }
}

impl Part {
    fn normal_queue(&self) -> TaskQueue {
        TaskQueue {
            name: self.shared.script.task_queue.clone(),
            kind: TaskQueueKind::Normal as i32,
            normal_name: String::new(),
        }
    }

    fn sticky_queue(&self) -> TaskQueue {
        TaskQueue {
            name: self.sticky_queue.clone(),
            kind: TaskQueueKind::Sticky as i32,
            normal_name: self.shared.script.task_queue.clone(),
        }
    }

    async fn workflow_task(self: Arc<Self>, mut task: PollWorkflowTaskQueueResponse) -> Result<(), Status> {
        let workflow_id = task.workflow_execution.clone().unwrap_or_default().workflow_id;
        let progress = &self.shared.progress;
        let is_sticky =
            task.history.as_ref().is_some_and(|history| history.events.first().is_some_and(|event| event.event_id > 1));
        progress.note(&workflow_id, if is_sticky { "sticky workflow task came" } else { "workflow task came" });
        self.complete_history(&mut task).await?;
        let decision = self.shared.script.decide(&task);
        match decision.step {
            Some(Step::Timer) => progress.allowed(&workflow_id, script::TIMER),
            Some(Step::Activity | Step::NewRun) | None => {}
        }
        let request = RespondWorkflowTaskCompletedRequest {
            commands: decision.commands,
            messages: decision.messages,
            task_token: task.task_token,
            identity: self.shared.nodes.identity(),
            namespace: self.shared.nodes.namespace(),
            sticky_attributes: Some(StickyExecutionAttributes {
                worker_task_queue: Some(self.sticky_queue()),
                schedule_to_start_timeout: Some(prost_types::Duration {
                    seconds: STICKY_SCHEDULE_TO_START_SECONDS,
                    nanos: 0,
                }),
            }),
            ..Default::default()
        };
        let answer = self.client.call(|mut client| {
            let request = with_timeout(request.clone(), CALL_TIMEOUT);
            async move { client.respond_workflow_task_completed(request).await }
        });
        let answer = answer.await;
        progress.note(&workflow_id, told("workflow task answered", "workflow task refused", &answer));
        ignore_stale(answer.result.map(|_| ()))
    }

    /// Fetches the pages of a long history that the task does not carry.
    async fn complete_history(&self, task: &mut PollWorkflowTaskQueueResponse) -> Result<(), Status> {
        while !task.next_page_token.is_empty() {
            let request = GetWorkflowExecutionHistoryRequest {
                namespace: self.shared.nodes.namespace(),
                execution: task.workflow_execution.clone(),
                next_page_token: std::mem::take(&mut task.next_page_token),
                ..Default::default()
            };
            let page = self.client.call(|mut client| {
                let request = with_timeout(request.clone(), CALL_TIMEOUT);
                async move { client.get_workflow_execution_history(request).await }
            });
            let page = page.await.result?;
            task.history.get_or_insert_default().events.extend(page.history.unwrap_or_default().events);
            task.next_page_token = page.next_page_token;
        }
        Ok(())
    }

    async fn activity_task(self: Arc<Self>, task: PollActivityTaskQueueResponse) -> Result<(), Status> {
        let execution = task.workflow_execution.clone().unwrap_or_default();
        let workflow_id = execution.workflow_id;
        self.shared.progress.came(&workflow_id);
        tokio::time::sleep(self.shared.step_time).await;
        let result = self.results.fetch_add(1, Ordering::Relaxed);
        let request = RespondActivityTaskCompletedRequest {
            task_token: task.task_token,
            result: Some(script::payloads(&format!("{} {result}", task.activity_id))),
            identity: self.shared.nodes.identity(),
            namespace: self.shared.nodes.namespace(),
            ..Default::default()
        };
        self.shared.progress.asked(&workflow_id);
        let invoked_ns = self.shared.recorder.now_ns();
        let answer = self.client.call(|mut client| {
            let request = with_timeout(request.clone(), CALL_TIMEOUT);
            async move { client.respond_activity_task_completed(request).await }
        });
        let answer = answer.await;
        self.shared.progress.note(&workflow_id, told("activity answered", "activity refused", &answer));
        self.shared.recorder.record(Call {
            workflow_id,
            what: What::Activity { run_id: execution.run_id, activity_id: task.activity_id, result },
            invoked_ns,
            answered_ns: self.shared.recorder.now_ns(),
            attempts: answer.attempts,
            outcome: outcome(&answer, |_| String::new()),
        });
        ignore_stale(answer.result.map(|_| ()))
    }
}

/// What a client may believe after this answer.
pub fn outcome<T>(answer: &Answer<T>, read: impl Fn(&T) -> String) -> Outcome {
    match &answer.result {
        Ok(value) => Outcome::Done(read(value)),
        Err(error) if answer.in_doubt || !answer.is_decided() => Outcome::Unknown(error.to_string()),
        Err(error) => Outcome::Refused(error.to_string()),
    }
}

fn told<T>(done: &'static str, refused: &'static str, answer: &Answer<T>) -> &'static str {
    if answer.result.is_ok() { done } else { refused }
}

/// The server gave the task to someone else, or news came in before a workflow closed: another task follows.
fn ignore_stale(result: Result<(), Status>) -> Result<(), Status> {
    match result {
        Err(error) if matches!(error.code(), Code::NotFound | Code::InvalidArgument) => {
            let expected = error.code() == Code::NotFound || error.message().contains("UnhandledCommand");
            if expected { Ok(()) } else { Err(error) }
        }
        other => other,
    }
}

async fn poll_workflow_tasks(part: Arc<Part>, queue: TaskQueue) {
    let request = PollWorkflowTaskQueueRequest {
        namespace: part.shared.nodes.namespace(),
        task_queue: Some(queue),
        identity: part.shared.nodes.identity(),
        ..Default::default()
    };
    loop {
        let request = long_poll(request.clone());
        match part.client.once(|mut client| async move { client.poll_workflow_task_queue(request).await }).await {
            Ok(task) if task.task_token.is_empty() => {}
            Ok(task) => spawn("a workflow task", part.clone().workflow_task(task)),
            Err(error) => poll_failed(&error).await,
        }
    }
}

async fn poll_activity_tasks(part: Arc<Part>) {
    let request = PollActivityTaskQueueRequest {
        namespace: part.shared.nodes.namespace(),
        task_queue: Some(part.normal_queue()),
        identity: part.shared.nodes.identity(),
        ..Default::default()
    };
    loop {
        let request = long_poll(request.clone());
        match part.client.once(|mut client| async move { client.poll_activity_task_queue(request).await }).await {
            Ok(task) if task.task_token.is_empty() => {}
            Ok(task) => spawn("an activity task", part.clone().activity_task(task)),
            Err(error) => poll_failed(&error).await,
        }
    }
}

/// How many tasks run at once is bounded by the workflows in flight.
fn spawn(what: &'static str, task: impl Future<Output = Result<(), Status>> + Send + 'static) {
    tokio::spawn(async move {
        if let Err(error) = task.await
            && !is_out_of_reach(&error)
        {
            eprintln!("the answer to {what} was refused: {error}");
        }
    });
}

async fn poll_failed(error: &Status) {
    if error.code() != Code::DeadlineExceeded && !is_out_of_reach(error) {
        eprintln!("a poll failed: {error}");
    }
    tokio::time::sleep(PAUSE_AFTER_ERROR).await;
}
