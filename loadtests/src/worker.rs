//! A worker: pollers that hand each task to a Tokio task of its own and poll again at once, as SDKs do.
//!
//! The activity gives back what it got, and does nothing else, so that only the server's work is measured.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
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

use crate::api::{Api, long_poll};
use crate::workload::{Decision, Progress, Settings, decide};

const STICKY_SCHEDULE_TO_START_SECONDS: i64 = 10;
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);

pub struct WorkerOptions {
    pub sticky: bool,
    pub eager_activities: bool,
    /// Polls kept open on each queue.
    pub pollers: usize,
}

/// Its pollers end when this value is dropped.
pub struct Worker {
    _pollers: JoinSet<()>,
    shared: Arc<Shared>,
}

struct Shared {
    api: Api,
    settings: Settings,
    sticky_queue: Option<String>,
    /// The open runs that this worker has seen, as an SDK's cache.
    runs: Mutex<HashMap<String, Progress>>,
    workflow_tasks_completed: AtomicU64,
}

impl Worker {
    pub fn start(api: Api, task_queue: &str, options: &WorkerOptions) -> Self {
        let shared = Arc::new(Shared {
            api,
            settings: Settings { task_queue: task_queue.to_owned(), eager_activities: options.eager_activities },
            sticky_queue: options.sticky.then(|| format!("{task_queue}-sticky")),
            runs: Mutex::default(),
            workflow_tasks_completed: AtomicU64::new(0),
        });
        let mut pollers = JoinSet::new();
        for _ in 0..options.pollers {
            pollers.spawn(poll_workflow_tasks(Arc::clone(&shared), shared.normal_queue()));
            if let Some(queue) = shared.sticky_queue() {
                pollers.spawn(poll_workflow_tasks(Arc::clone(&shared), queue));
            }
            pollers.spawn(poll_activity_tasks(Arc::clone(&shared)));
        }
        Self { _pollers: pollers, shared }
    }

    pub fn workflow_tasks_completed(&self) -> u64 {
        self.shared.workflow_tasks_completed.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn normal_queue(&self) -> TaskQueue {
        TaskQueue {
            name: self.settings.task_queue.clone(),
            kind: TaskQueueKind::Normal as i32,
            normal_name: String::new(),
        }
    }

    fn sticky_queue(&self) -> Option<TaskQueue> {
        self.sticky_queue.clone().map(|name| TaskQueue {
            name,
            kind: TaskQueueKind::Sticky as i32,
            normal_name: self.settings.task_queue.clone(),
        })
    }

    /// Answers a workflow task, and those that the server's answers bring along.
    async fn workflow_task(self: Arc<Self>, task: PollWorkflowTaskQueueResponse) -> Result<(), Status> {
        let mut next = Some(task);
        while let Some(mut task) = next {
            self.complete_history(&mut task).await?;
            let Decision { commands, messages, .. } = self.decide(&task);
            let request = RespondWorkflowTaskCompletedRequest {
                commands,
                messages,
                task_token: task.task_token,
                identity: self.api.identity(),
                namespace: self.api.namespace(),
                sticky_attributes: self.sticky_queue().map(|queue| StickyExecutionAttributes {
                    worker_task_queue: Some(queue),
                    schedule_to_start_timeout: Some(prost_types::Duration {
                        seconds: STICKY_SCHEDULE_TO_START_SECONDS,
                        nanos: 0,
                    }),
                }),
                return_new_workflow_task: true,
                ..Default::default()
            };
            let answer = self.api.client.clone().respond_workflow_task_completed(request).await?.into_inner();
            self.workflow_tasks_completed.fetch_add(1, Ordering::Relaxed);
            for activity in answer.activity_tasks {
                spawn("an eager activity task", Arc::clone(&self).activity_task(activity));
            }
            next = answer.workflow_task.filter(|task| !task.task_token.is_empty());
        }
        Ok(())
    }

    fn decide(&self, task: &PollWorkflowTaskQueueResponse) -> Decision {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let run_id = task.workflow_execution.as_ref().map_or("", |execution| &execution.run_id);
        let mut progress = runs.get(run_id).copied().unwrap_or_default();
        let decision = decide(task, &mut progress, &self.settings);
        if decision.closes || self.sticky_queue.is_none() {
            runs.remove(run_id);
        } else {
            runs.insert(run_id.to_owned(), progress);
        }
        decision
    }

    /// Fetches the pages of a long history that the task does not carry.
    async fn complete_history(&self, task: &mut PollWorkflowTaskQueueResponse) -> Result<(), Status> {
        while !task.next_page_token.is_empty() {
            let request = GetWorkflowExecutionHistoryRequest {
                namespace: self.api.namespace(),
                execution: task.workflow_execution.clone(),
                next_page_token: std::mem::take(&mut task.next_page_token),
                ..Default::default()
            };
            let page = self.api.client.clone().get_workflow_execution_history(request).await?.into_inner();
            let events = page.history.unwrap_or_default().events;
            task.history.get_or_insert_default().events.extend(events);
            task.next_page_token = page.next_page_token;
        }
        Ok(())
    }

    async fn activity_task(self: Arc<Self>, task: PollActivityTaskQueueResponse) -> Result<(), Status> {
        let request = RespondActivityTaskCompletedRequest {
            task_token: task.task_token,
            result: task.input,
            identity: self.api.identity(),
            namespace: self.api.namespace(),
            ..Default::default()
        };
        self.api.client.clone().respond_activity_task_completed(request).await?;
        Ok(())
    }
}

async fn poll_workflow_tasks(shared: Arc<Shared>, queue: TaskQueue) {
    loop {
        let request = PollWorkflowTaskQueueRequest {
            namespace: shared.api.namespace(),
            task_queue: Some(queue.clone()),
            identity: shared.api.identity(),
            ..Default::default()
        };
        match shared.api.client.clone().poll_workflow_task_queue(long_poll(request)).await {
            Ok(task) if task.get_ref().task_token.is_empty() => {}
            Ok(task) => spawn("a workflow task", Arc::clone(&shared).workflow_task(task.into_inner())),
            Err(error) => poll_failed(&error).await,
        }
    }
}

async fn poll_activity_tasks(shared: Arc<Shared>) {
    loop {
        let request = PollActivityTaskQueueRequest {
            namespace: shared.api.namespace(),
            task_queue: Some(shared.normal_queue()),
            identity: shared.api.identity(),
            ..Default::default()
        };
        match shared.api.client.clone().poll_activity_task_queue(long_poll(request)).await {
            Ok(task) if task.get_ref().task_token.is_empty() => {}
            Ok(task) => spawn("an activity task", Arc::clone(&shared).activity_task(task.into_inner())),
            Err(error) => poll_failed(&error).await,
        }
    }
}

/// How many tasks run at once is bounded by the workflows in flight.
fn spawn(what: &'static str, task: impl Future<Output = Result<(), Status>> + Send + 'static) {
    tokio::spawn(async move {
        match task.await {
            Ok(()) => {}
            // The server gave the task to someone else, after a timeout.
            Err(error) if error.code() == Code::NotFound => {}
            Err(error) => eprintln!("the answer to {what} was refused: {error}"),
        }
    });
}

async fn poll_failed(error: &Status) {
    if !matches!(error.code(), Code::DeadlineExceeded | Code::Cancelled) {
        eprintln!("a poll failed: {error}");
        tokio::time::sleep(PAUSE_AFTER_ERROR).await;
    }
}
