//! A shard in memory: it knows which tasks may start, and offers a task again that was not delivered.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, OnceLock},
};

use async_trait::async_trait;
use perdure_matching::{Matching, MatchingConfig, TaskStarter};
use perdure_proto::{
    Error,
    perdure::node::v1::{
        MatchingCall, Offer, PollActivityTask, PollWorkflowTask, QueryTask, TaskKind, TaskToken, WorkflowCall,
        WorkflowReply, matching_call, matching_reply, task_queue_command, task_token::Kind, workflow_call,
        workflow_reply,
    },
    temporal::api::{
        common::v1::WorkflowExecution,
        enums::v1::TaskQueueKind,
        query::v1::WorkflowQuery,
        taskqueue::v1::{TaskQueue, TaskQueueMetadata},
        workflowservice::v1::*,
    },
};
use prost::Message;
use tokio::sync::Semaphore;

pub const NAMESPACE: &str = "namespace-id";

#[derive(Default)]
struct State {
    /// Tasks that were offered, by run id, and whether they are started.
    tasks: HashMap<String, (Offer, bool)>,
    /// What the next starts of a run answer instead.
    failures: HashMap<String, VecDeque<Error>>,
    starts: usize,
    undelivered: usize,
    sticky_unavailable: Vec<String>,
}

pub struct FakeShard {
    matching: OnceLock<Matching>,
    state: Mutex<State>,
    /// One permit a start.
    pub gate: Semaphore,
}

impl FakeShard {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn fail(&self, run_id: &str, error: Error) {
        self.state().failures.entry(run_id.to_owned()).or_default().push_back(error);
    }

    pub fn starts(&self) -> usize {
        self.state().starts
    }

    pub fn undelivered(&self) -> usize {
        self.state().undelivered
    }

    pub fn sticky_unavailable(&self) -> Vec<String> {
        self.state().sticky_unavailable.clone()
    }

    /// The task is done or timed out: it can't be started any more.
    pub fn forget(&self, run_id: &str) {
        self.state().tasks.remove(run_id);
    }

    fn begin(&self, workflow_id: &str, run_id: &str, kind: Kind) -> Result<TaskToken, Error> {
        let mut state = self.state();
        state.starts += 1;
        if let Some(error) = state.failures.get_mut(run_id).and_then(VecDeque::pop_front) {
            return Err(error);
        }
        let task = state.tasks.get_mut(run_id).filter(|(_, started)| !started);
        let (offer, started) = task.ok_or_else(|| Error::not_found("no such task"))?;
        *started = true;
        Ok(TaskToken {
            kind: kind as i32,
            namespace_id: NAMESPACE.into(),
            workflow_id: workflow_id.into(),
            run_id: run_id.into(),
            scheduled_event_id: offer.scheduled_event_id,
            ..Default::default()
        })
    }

    async fn offer_again(&self, run_id: &str) {
        let offer = {
            let mut state = self.state();
            state.undelivered += 1;
            let (offer, started) = state.tasks.get_mut(run_id).expect("a started task");
            assert!(*started);
            *started = false;
            offer.clone()
        };
        let matching = self.matching.get().expect("connected").clone();
        let _ = matching.call(call(offer.task_queue.clone(), matching_call::Command::Offer(offer))).await;
    }
}

fn execution(workflow_id: &str, run_id: &str) -> Option<WorkflowExecution> {
    Some(WorkflowExecution { workflow_id: workflow_id.into(), run_id: run_id.into() })
}

#[async_trait]
impl TaskStarter for FakeShard {
    async fn start(&self, call: WorkflowCall) -> Result<WorkflowReply, Error> {
        use workflow_call::Command;
        assert_eq!(call.namespace_id, NAMESPACE);
        if let Some(Command::TaskQueue(command)) = &call.command {
            // Nothing is durable of these queues, and nothing ever changes.
            if command.command != Some(task_queue_command::Command::Follow(-1)) {
                std::future::pending::<()>().await;
            }
            return Ok(WorkflowReply { reply: Some(workflow_reply::Reply::TaskQueue(Box::default())) });
        }
        self.gate.acquire().await.unwrap().forget();
        let workflow_id = call.workflow_id;
        let reply = match call.command.unwrap() {
            Command::RecordWorkflowTaskStarted(start) => {
                assert!(!start.request_id.is_empty() && start.poll.is_some());
                let token = self.begin(&workflow_id, &start.run_id, Kind::Workflow)?;
                workflow_reply::Reply::WorkflowTask(PollWorkflowTaskQueueResponse {
                    task_token: token.encode_to_vec().into(),
                    workflow_execution: execution(&workflow_id, &start.run_id),
                    attempt: start.attempt,
                    ..Default::default()
                })
            }
            Command::RecordActivityTaskStarted(start) => {
                let token = self.begin(&workflow_id, &start.run_id, Kind::Activity)?;
                workflow_reply::Reply::ActivityTask(PollActivityTaskQueueResponse {
                    task_token: token.encode_to_vec().into(),
                    workflow_execution: execution(&workflow_id, &start.run_id),
                    ..Default::default()
                })
            }
            Command::TaskUndelivered(undelivered) => {
                self.gate.add_permits(1);
                self.offer_again(&undelivered.token.unwrap().run_id).await;
                workflow_reply::Reply::Empty(Default::default())
            }
            Command::StickyQueueUnavailable(task) => {
                self.state().sticky_unavailable.push(task.run_id);
                workflow_reply::Reply::Empty(Default::default())
            }
            Command::GetQueryTask(query) => {
                if let Some(error) = self.state().failures.get_mut(&query.run_id).and_then(VecDeque::pop_front) {
                    return Err(error);
                }
                workflow_reply::Reply::WorkflowTask(PollWorkflowTaskQueueResponse {
                    workflow_execution: execution(&workflow_id, &query.run_id),
                    ..Default::default()
                })
            }
            other => panic!("unexpected call {other:?}"),
        };
        Ok(WorkflowReply { reply: Some(reply) })
    }
}

/// Task queues over a fake shard whose gate is wide open.
pub fn setup() -> (Matching, Arc<FakeShard>) {
    let shard = Arc::new(FakeShard {
        matching: OnceLock::new(),
        state: Mutex::default(),
        gate: Semaphore::new(Semaphore::MAX_PERMITS / 2),
    });
    let starter: Arc<dyn TaskStarter> = shard.clone();
    let matching = Matching::new(starter, MatchingConfig { host_name: "host:1".into(), ..Default::default() });
    let _ = shard.matching.set(matching.clone());
    (matching, shard)
}

pub fn close_gate(shard: &FakeShard) {
    shard.gate.forget_permits(usize::MAX);
}

pub fn call(task_queue: impl Into<String>, command: matching_call::Command) -> MatchingCall {
    MatchingCall {
        namespace_id: NAMESPACE.into(),
        task_queue: task_queue.into(),
        command: Some(command),
        ..MatchingCall::default()
    }
}

pub fn task(kind: TaskKind, queue: &str, run_id: &str) -> Offer {
    Offer {
        kind: kind as i32,
        namespace_id: NAMESPACE.into(),
        task_queue: queue.into(),
        workflow_id: format!("workflow-of-{run_id}"),
        run_id: run_id.into(),
        scheduled_event_id: 2,
        attempt: 1,
        ..Default::default()
    }
}

pub fn sticky_task(queue: &str, run_id: &str) -> Offer {
    Offer { sticky: true, ..task(TaskKind::Workflow, queue, run_id) }
}

/// Schedules the task in the shard and offers it. Returns whether it was accepted.
pub async fn offer(matching: &Matching, shard: &FakeShard, offer: Offer) -> bool {
    shard.state().tasks.insert(offer.run_id.clone(), (offer.clone(), false));
    let reply = matching.call(call(offer.task_queue.clone(), matching_call::Command::Offer(offer))).await.unwrap();
    let Some(matching_reply::Reply::Offer(reply)) = reply.reply else { panic!("{reply:?}") };
    reply.accepted
}

pub fn workflow_poll(queue: &str) -> PollWorkflowTaskQueueRequest {
    PollWorkflowTaskQueueRequest {
        task_queue: Some(TaskQueue { name: queue.into(), ..Default::default() }),
        identity: "worker".into(),
        ..Default::default()
    }
}

pub fn sticky_poll(queue: &str, normal: &str) -> PollWorkflowTaskQueueRequest {
    PollWorkflowTaskQueueRequest {
        task_queue: Some(TaskQueue {
            name: queue.into(),
            kind: TaskQueueKind::Sticky as i32,
            normal_name: normal.into(),
        }),
        ..workflow_poll(queue)
    }
}

pub fn activity_poll(queue: &str, max_tasks_per_second: Option<f64>) -> PollActivityTaskQueueRequest {
    PollActivityTaskQueueRequest {
        task_queue: Some(TaskQueue { name: queue.into(), ..Default::default() }),
        identity: "worker".into(),
        task_queue_metadata: max_tasks_per_second.map(|rate| TaskQueueMetadata { max_tasks_per_second: Some(rate) }),
        ..Default::default()
    }
}

pub async fn poll_within(
    matching: &Matching,
    request: PollWorkflowTaskQueueRequest,
    timeout_ns: i64,
) -> PollWorkflowTaskQueueResponse {
    let command = matching_call::Command::PollWorkflowTask(PollWorkflowTask { request: Some(request) });
    let reply = matching.call(MatchingCall { timeout_ns, ..call("", command) }).await.unwrap();
    let Some(matching_reply::Reply::WorkflowTask(task)) = reply.reply else { panic!("{reply:?}") };
    task
}

pub async fn poll(matching: &Matching, request: PollWorkflowTaskQueueRequest) -> PollWorkflowTaskQueueResponse {
    poll_within(matching, request, 0).await
}

pub async fn poll_activity(
    matching: &Matching,
    request: PollActivityTaskQueueRequest,
) -> PollActivityTaskQueueResponse {
    let command = matching_call::Command::PollActivityTask(PollActivityTask { request: Some(request) });
    let reply = matching.call(call("", command)).await.unwrap();
    let Some(matching_reply::Reply::ActivityTask(task)) = reply.reply else { panic!("{reply:?}") };
    task
}

pub async fn query(
    matching: &Matching,
    queue: &str,
    sticky: bool,
    timeout_ns: i64,
) -> Result<QueryWorkflowResponse, Error> {
    let task = QueryTask {
        workflow_id: "workflow".into(),
        run_id: "run".into(),
        sticky,
        query: Some(WorkflowQuery { query_type: "state".into(), ..Default::default() }),
        ..QueryTask::default()
    };
    let reply = matching.call(MatchingCall { timeout_ns, ..call(queue, matching_call::Command::Query(task)) }).await?;
    let Some(matching_reply::Reply::Query(answer)) = reply.reply else { panic!("{reply:?}") };
    Ok(answer)
}

pub fn run_of(task: &PollWorkflowTaskQueueResponse) -> &str {
    task.workflow_execution.as_ref().map_or("", |execution| &execution.run_id)
}

/// Lets everything run that can run without time passing.
pub async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}
