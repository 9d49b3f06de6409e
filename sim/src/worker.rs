//! A worker that does what the workflow type says, by the history alone.

use std::time::Duration;

use perdure_proto::Code;
use perdure_proto::perdure::node::v1::{
    Offer, RecordWorkflowTaskStarted, TaskKind, WorkflowCall, WorkflowReply, workflow_call::Command,
    workflow_reply::Reply,
};
use perdure_proto::temporal::api::{
    command::v1::{
        Command as WorkflowCommand, CompleteWorkflowExecutionCommandAttributes, StartTimerCommandAttributes,
        command::Attributes,
    },
    enums::v1::{CommandType, EventType},
    workflowservice::v1::{
        PollWorkflowTaskQueueRequest, PollWorkflowTaskQueueResponse, RespondWorkflowTaskCompletedRequest,
    },
};
use perdure_shard::EntityCaller;
use tokio::{sync::mpsc, task::JoinSet};

use crate::node::{NAMESPACE, NAMESPACE_ID, Router};

/// What workflows of each type do.
#[derive(Debug, Clone)]
pub struct Script {
    /// Timer of workflows of the type `sleep`.
    pub sleep: Duration,
    /// Signals that workflows of the type `signals` wait for.
    pub signals: usize,
}

impl Default for Script {
    fn default() -> Self {
        Self { sleep: Duration::from_secs(60), signals: 3 }
    }
}

/// Does every workflow task that is offered.
pub(crate) async fn run(mut offers: mpsc::Receiver<Offer>, router: Router, script: Script) {
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            offer = offers.recv() => match offer {
                Some(offer) if offer.kind() == TaskKind::Workflow => {
                    tasks.spawn(work(offer, router.clone(), script.clone()));
                }
                Some(_) => {}
                None => return,
            },
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
        }
    }
}

/// Refusals are stale offers; whatever is still to be done is offered again.
async fn work(offer: Offer, router: Router, script: Script) -> Option<()> {
    let call = |command| WorkflowCall {
        namespace_id: NAMESPACE_ID.to_owned(),
        workflow_id: offer.workflow_id.clone(),
        command: Some(command),
        ..WorkflowCall::default()
    };
    let started = RecordWorkflowTaskStarted {
        run_id: offer.run_id.clone(),
        scheduled_event_id: offer.scheduled_event_id,
        attempt: offer.attempt,
        request_id: format!("poll-{}-{}", offer.scheduled_event_id, offer.attempt),
        poll: Some(PollWorkflowTaskQueueRequest {
            namespace: NAMESPACE.to_owned(),
            identity: "worker".to_owned(),
            ..Default::default()
        }),
        stamp: offer.stamp,
        ..RecordWorkflowTaskStarted::default()
    };
    let reply = patient(&router, call(Command::RecordWorkflowTaskStarted(started))).await?;
    let Some(Reply::WorkflowTask(task)) = reply.reply else {
        return None;
    };
    let completed = RespondWorkflowTaskCompletedRequest {
        namespace: NAMESPACE.to_owned(),
        task_token: task.task_token.clone(),
        commands: decide(&task, &script),
        identity: "worker".to_owned(),
        ..Default::default()
    };
    patient(&router, call(Command::RespondWorkflowTaskCompleted(completed))).await?;
    Some(())
}

/// Tries again while the shard is not served, as matching and the SDKs do. The offer is forgotten otherwise: its shard
/// thinks that it is in good hands.
async fn patient(router: &Router, call: WorkflowCall) -> Option<WorkflowReply> {
    for _ in 0..600 {
        match router.call(call.clone()).await {
            Ok(reply) => return Some(reply),
            Err(error) if error.grpc_code() == Code::Unavailable => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(_) => return None,
        }
    }
    None
}

fn decide(task: &PollWorkflowTaskQueueResponse, script: &Script) -> Vec<WorkflowCommand> {
    let events = task.history.clone().unwrap_or_default().into_events().unwrap_or_default();
    let count = |kind: EventType| events.iter().filter(|event| event.event_type() == kind).count();
    let workflow_type = task.workflow_type.as_ref().map_or("", |kind| kind.name.as_str());
    let done = match workflow_type {
        "sleep" if count(EventType::TimerStarted) == 0 => return vec![start_timer(script.sleep)],
        "sleep" => count(EventType::TimerFired) > 0,
        "signals" => count(EventType::WorkflowExecutionSignaled) >= script.signals,
        "forever" => false,
        _ => true,
    };
    if done { vec![complete()] } else { Vec::new() }
}

fn command(kind: CommandType, attributes: Attributes) -> WorkflowCommand {
    WorkflowCommand { command_type: kind as i32, attributes: Some(attributes), ..Default::default() }
}

fn start_timer(after: Duration) -> WorkflowCommand {
    command(
        CommandType::StartTimer,
        Attributes::StartTimerCommandAttributes(StartTimerCommandAttributes {
            timer_id: "timer".to_owned(),
            start_to_fire_timeout: Some(perdure_types::Duration(after.as_nanos() as i64).to_proto()),
        }),
    )
}

fn complete() -> WorkflowCommand {
    command(
        CommandType::CompleteWorkflowExecution,
        Attributes::CompleteWorkflowExecutionCommandAttributes(CompleteWorkflowExecutionCommandAttributes::default()),
    )
}
