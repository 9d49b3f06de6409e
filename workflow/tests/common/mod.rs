//! A chain with a clock, and workers that poll it. Every step checks the core's promises:
//! - WF-1: a replica that applies the records has the same durable state;
//! - WF-2: event ids are contiguous, event times do not go back;
//! - WF-3: a refused input changes nothing.

#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod nexus;
pub mod operations;
pub mod updates;

use std::{collections::BTreeMap, sync::Arc};

use perdure_proto::{
    Error,
    perdure::{
        node::v1::{
            ActivityRef, Offer, RecordActivityTaskStarted, RecordWorkflowTaskStarted, RespondActivityTask,
            SignalWorkflow, StartWorkflow, TaskKind, TaskToken, WorkflowCall, WorkflowReply, respond_activity_task,
            workflow_call, workflow_reply,
        },
        state::v1::{ChainRecord, RunSnapshot},
    },
    temporal::api::{
        command::v1::{Command, command::Attributes},
        common::v1::{ActivityType, Payload, Payloads, WorkflowType},
        enums::v1::{CommandType, EventType},
        failure::v1::{ApplicationFailureInfo, Failure, failure::FailureInfo},
        history::v1::{History, HistoryEvent, history_event},
        taskqueue::v1::{StickyExecutionAttributes, TaskQueue},
        workflowservice::v1::{
            PollActivityTaskQueueRequest, PollActivityTaskQueueResponse, PollWorkflowTaskQueueRequest,
            PollWorkflowTaskQueueResponse, RespondWorkflowTaskCompletedRequest, RespondWorkflowTaskCompletedResponse,
            SignalWorkflowExecutionRequest, StartWorkflowExecutionRequest,
        },
    },
};
use perdure_types::{ChainKey, Duration, Limits, Timestamp};
use perdure_workflow::{
    Answer, CallId, Chain, Effect, Env, Handled, HistoryFill, IdSource, NamespaceInfo, NamespaceView, Release, Reply,
};
use prost::Message;

pub const NAMESPACE: &str = "default";
pub const NAMESPACE_ID: &str = "namespace-id";
pub const WORKFLOW_ID: &str = "workflow";
pub const QUEUE: &str = "queue";
pub const STICKY_QUEUE: &str = "sticky";

pub struct Namespaces;

impl Namespaces {
    fn info() -> NamespaceInfo {
        NamespaceInfo { id: NAMESPACE_ID.into(), name: NAMESPACE.into(), retention: Duration::from_secs(3 * 24 * 3600) }
    }
}

impl NamespaceView for Namespaces {
    fn by_name(&self, name: &str) -> Option<NamespaceInfo> {
        (name == NAMESPACE).then(Self::info)
    }
    fn by_id(&self, id: &str) -> Option<NamespaceInfo> {
        (id == NAMESPACE_ID).then(Self::info)
    }
    fn nexus_endpoint(&self, name: &str) -> Option<String> {
        (name == nexus::ENDPOINT).then(|| "endpoint-id".to_owned())
    }
}

pub struct TestChain {
    pub chain: Chain,
    /// Built from the records alone.
    pub replica: Chain,
    pub now: Timestamp,
    pub limits: Limits,
    ids: IdSource,
    /// Offers that nobody has taken.
    pub offers: Vec<Offer>,
    /// Calls to other entities that nobody has answered.
    pub calls: Vec<(CallId, WorkflowCall)>,
    pub records: Vec<ChainRecord>,
    pub histories: BTreeMap<String, Vec<HistoryEvent>>,
    /// How the last answer was released.
    pub release: Release,
    polls: u64,
    checked: bool,
}

impl Default for TestChain {
    fn default() -> Self {
        Self::new()
    }
}

impl TestChain {
    pub fn new() -> Self {
        Self::named(WORKFLOW_ID, 7)
    }

    /// Chains that meet need different seeds.
    pub fn named(workflow_id: &str, seed: u64) -> Self {
        let key = ChainKey::new(NAMESPACE_ID, workflow_id);
        Self {
            chain: Chain::new(key.clone()),
            replica: Chain::new(key),
            now: Timestamp(1_700_000_000_000_000_000),
            limits: Limits::default(),
            ids: IdSource::new(seed),
            offers: Vec::new(),
            calls: Vec::new(),
            records: Vec::new(),
            histories: BTreeMap::new(),
            release: Release::Durable,
            polls: 0,
            checked: true,
        }
    }

    /// Without the checks: for measuring.
    pub fn unchecked() -> Self {
        Self { checked: false, ..Self::new() }
    }

    /// A chain with a run whose first workflow task is scheduled.
    pub fn started() -> Self {
        let mut chain = Self::new();
        chain.start();
        chain
    }

    pub fn start_request() -> StartWorkflowExecutionRequest {
        StartWorkflowExecutionRequest {
            namespace: NAMESPACE.to_owned(),
            workflow_id: WORKFLOW_ID.to_owned(),
            workflow_type: Some(WorkflowType { name: "Order".to_owned() }),
            task_queue: Some(queue(QUEUE)),
            request_id: "start".to_owned(),
            identity: "client".to_owned(),
            ..StartWorkflowExecutionRequest::default()
        }
    }

    pub fn start(&mut self) -> String {
        self.start_with(Self::start_request())
    }

    pub fn start_with(&mut self, request: StartWorkflowExecutionRequest) -> String {
        let command = workflow_call::Command::Start(Box::new(StartWorkflow {
            request: Some(request),
            ..StartWorkflow::default()
        }));
        match self.call(command).message.reply {
            Some(workflow_reply::Reply::Start(start)) => start.run_id,
            other => panic!("not a start: {other:?}"),
        }
    }

    // ---- Inputs ----

    fn step<T>(&mut self, input: impl FnOnce(&mut Chain, &mut Env) -> T) -> T {
        let mut env = Env { now: self.now, limits: &self.limits, ids: &mut self.ids, namespaces: &Namespaces };
        input(&mut self.chain, &mut env)
    }

    pub fn try_handle(&mut self, command: workflow_call::Command) -> Result<Answer, Error> {
        let before = self.checked.then(|| snapshots(&self.chain));
        match self.step(|chain, env| chain.handle(command, env)) {
            Ok(handled) => Ok(self.absorb(handled)),
            Err(error) => {
                if let Some(before) = before {
                    assert_eq!(snapshots(&self.chain), before, "WF-3: {error}");
                }
                Err(error)
            }
        }
    }

    /// A call that must be answered at once.
    pub fn try_call(&mut self, command: workflow_call::Command) -> Result<Reply, Error> {
        match self.try_handle(command)? {
            Answer::Reply(reply) => Ok(*reply),
            Answer::Reject(error) => Err(error),
            Answer::Watch(watch) => panic!("not answered at once: {watch:?}"),
        }
    }

    pub fn call(&mut self, command: workflow_call::Command) -> Reply {
        self.try_call(command).expect("accepted")
    }

    pub fn on_timer(&mut self) {
        let handled = self.step(|chain, env| chain.on_timer(env));
        self.absorb(handled);
    }

    pub fn on_call_result(&mut self, id: &CallId, result: Result<WorkflowReply, Error>) {
        let handled = self.step(|chain, env| chain.on_call_result(id, result, env));
        self.absorb(handled);
    }

    /// Lets time pass, with everything that happens on the way.
    pub fn advance(&mut self, by: Duration) {
        let end = self.now + by;
        for _ in 0..10_000 {
            match self.chain.next_timer().filter(|at| *at <= end) {
                Some(at) => {
                    self.now = self.now.max(at);
                    self.on_timer();
                }
                None => {
                    self.now = end;
                    return;
                }
            }
        }
        panic!("timers do not come to rest");
    }

    pub fn advance_secs(&mut self, secs: i64) {
        self.advance(Duration::from_secs(secs));
    }

    /// The owner dies; another one takes over, with what is durable.
    pub fn crash(&mut self) {
        let mut recovered = Chain::from_head(self.replica.key().clone(), self.replica.head().clone());
        for snapshot in snapshots(&self.replica).into_values() {
            recovered.insert_run(snapshot);
        }
        self.chain = recovered;
        self.offers.clear();
        self.calls.clear();
        let effects = self.chain.resume();
        self.take_effects(effects);
        self.on_timer();
    }

    /// Drops from memory what the driver would.
    pub fn unload_closed(&mut self) {
        for run_id in self.histories.keys() {
            self.chain.unload_closed(run_id);
            self.replica.unload_closed(run_id);
        }
    }

    fn absorb(&mut self, handled: Handled) -> Answer {
        if !self.checked {
            self.take_effects(handled.effects);
            return handled.answer;
        }
        if let Some(record) = handled.record {
            self.replica.apply(&record).expect("applies");
            self.remember_events(&record);
            self.records.push(record);
        }
        assert_eq!(snapshots(&self.replica), snapshots(&self.chain), "WF-1");
        assert_eq!(self.replica.head(), self.chain.head(), "WF-1");
        self.take_effects(handled.effects);
        self.release = handled.release;
        handled.answer
    }

    fn take_effects(&mut self, effects: Vec<Effect>) {
        // Its task queue may get another home at any time: then it is offered again.
        let outstanding = self.chain.resume();
        let is_offer = |effect: &&Effect| matches!(effect, Effect::Offer(_));
        for offer in effects.iter().filter(is_offer) {
            assert!(outstanding.contains(offer), "offered, and not outstanding: {offer:?}");
        }
        for effect in effects {
            match effect {
                Effect::Offer(offer) => self.offers.push(offer),
                Effect::Call { id, call } => self.calls.push((id, *call)),
            }
        }
    }

    fn remember_events(&mut self, record: &ChainRecord) {
        for delta in &record.runs {
            let events = History::decode(delta.events.clone()).expect("a history").events;
            let history = self.histories.entry(delta.run_id.clone()).or_default();
            for event in events {
                let last = history.last();
                assert_eq!(event.event_id, last.map_or(1, |last| last.event_id + 1), "WF-2: contiguous ids");
                let time = |event: &HistoryEvent| Timestamp::from_proto(event.event_time.as_ref());
                assert!(last.is_none_or(|last| time(last) <= time(&event)), "WF-2: time goes back at {event:?}");
                history.push(event);
            }
        }
    }

    pub fn signal(&mut self, name: &str) {
        let request = SignalWorkflowExecutionRequest {
            namespace: NAMESPACE.to_owned(),
            signal_name: name.to_owned(),
            ..SignalWorkflowExecutionRequest::default()
        };
        self.call(workflow_call::Command::Signal(SignalWorkflow {
            request: Some(request),
            ..SignalWorkflow::default()
        }));
    }

    // ---- Workflow tasks ----

    /// Takes the oldest offer of that kind.
    pub fn take_offer(&mut self, kind: TaskKind) -> Option<Offer> {
        let index = self.offers.iter().position(|offer| offer.kind() == kind)?;
        Some(self.offers.remove(index))
    }

    pub fn try_poll_workflow_task(&mut self, offer: &Offer) -> Result<WorkflowTask, Error> {
        self.polls += 1;
        let command = workflow_call::Command::RecordWorkflowTaskStarted(RecordWorkflowTaskStarted {
            run_id: offer.run_id.clone(),
            scheduled_event_id: offer.scheduled_event_id,
            attempt: offer.attempt,
            request_id: format!("poll-{}", self.polls),
            poll: Some(PollWorkflowTaskQueueRequest { identity: "worker".to_owned(), ..Default::default() }),
            stamp: offer.stamp,
            ..RecordWorkflowTaskStarted::default()
        });
        let reply = self.try_call(command)?;
        match reply.message.reply {
            Some(workflow_reply::Reply::WorkflowTask(response)) => {
                Ok(WorkflowTask { response, history: reply.history })
            }
            other => panic!("not a workflow task: {other:?}"),
        }
    }

    /// A worker takes the workflow task that is offered.
    pub fn poll(&mut self) -> WorkflowTask {
        let offer = self.take_offer(TaskKind::Workflow).expect("a workflow task is offered");
        self.try_poll_workflow_task(&offer).expect("can be started")
    }

    pub fn try_complete_with(
        &mut self,
        request: RespondWorkflowTaskCompletedRequest,
    ) -> Result<RespondWorkflowTaskCompletedResponse, Error> {
        let reply = self.try_call(workflow_call::Command::RespondWorkflowTaskCompleted(request))?;
        match reply.message.reply {
            Some(workflow_reply::Reply::RespondWorkflowTaskCompleted(response)) => Ok(response),
            other => panic!("not a completion: {other:?}"),
        }
    }

    pub fn try_complete(
        &mut self,
        task: &WorkflowTask,
        commands: Vec<Command>,
    ) -> Result<RespondWorkflowTaskCompletedResponse, Error> {
        self.try_complete_with(completion(task, commands))
    }

    pub fn complete(&mut self, task: &WorkflowTask, commands: Vec<Command>) -> RespondWorkflowTaskCompletedResponse {
        self.try_complete(task, commands).expect("accepted")
    }

    /// Polls the offered workflow task and completes it.
    pub fn work(&mut self, commands: Vec<Command>) {
        let task = self.poll();
        self.complete(&task, commands);
    }

    // ---- Activities ----

    pub fn try_poll_activity(&mut self, offer: &Offer) -> Result<PollActivityTaskQueueResponse, Error> {
        self.polls += 1;
        let command = workflow_call::Command::RecordActivityTaskStarted(RecordActivityTaskStarted {
            run_id: offer.run_id.clone(),
            scheduled_event_id: offer.scheduled_event_id,
            attempt: offer.attempt,
            stamp: offer.stamp,
            request_id: format!("poll-{}", self.polls),
            poll: Some(PollActivityTaskQueueRequest { identity: "activity-worker".to_owned(), ..Default::default() }),
            ..RecordActivityTaskStarted::default()
        });
        match self.try_call(command)?.message.reply {
            Some(workflow_reply::Reply::ActivityTask(response)) => Ok(response),
            other => panic!("not an activity task: {other:?}"),
        }
    }

    pub fn poll_activity(&mut self) -> PollActivityTaskQueueResponse {
        let offer = self.take_offer(TaskKind::Activity).expect("an activity is offered");
        self.try_poll_activity(&offer).expect("can be started")
    }

    pub fn try_respond_activity(
        &mut self,
        activity: ActivityRef,
        outcome: respond_activity_task::Outcome,
    ) -> Result<perdure_proto::perdure::node::v1::RespondActivityTaskReply, Error> {
        let command = workflow_call::Command::RespondActivityTask(RespondActivityTask {
            activity: Some(activity),
            identity: "activity-worker".to_owned(),
            outcome: Some(outcome),
            ..RespondActivityTask::default()
        });
        match self.try_call(command)?.message.reply {
            Some(workflow_reply::Reply::RespondActivityTask(reply)) => Ok(reply),
            other => panic!("not about an activity: {other:?}"),
        }
    }

    pub fn complete_activity(&mut self, task: &PollActivityTaskQueueResponse, result: &str) {
        let outcome = completed_with(result);
        self.try_respond_activity(activity_ref(&task.task_token), outcome).expect("accepted");
    }

    pub fn fail_activity(&mut self, task: &PollActivityTaskQueueResponse, failure: Failure) {
        let outcome = respond_activity_task::Outcome::Failed(respond_activity_task::Failed {
            failure: Some(failure),
            last_heartbeat_details: None,
        });
        self.try_respond_activity(activity_ref(&task.task_token), outcome).expect("accepted");
    }

    pub fn heartbeat(
        &mut self,
        task: &PollActivityTaskQueueResponse,
        details: &str,
    ) -> Result<perdure_proto::perdure::node::v1::RespondActivityTaskReply, Error> {
        let outcome = respond_activity_task::Outcome::Heartbeat(respond_activity_task::Heartbeat {
            details: Some(payloads(details)),
        });
        self.try_respond_activity(activity_ref(&task.task_token), outcome)
    }

    // ---- What has happened ----

    pub fn run_id(&self) -> String {
        self.chain.head().current_run_id.clone()
    }

    pub fn snapshot(&self) -> RunSnapshot {
        self.chain.snapshot(&self.run_id()).expect("there is a run")
    }

    pub fn history(&self) -> &[HistoryEvent] {
        self.histories.get(&self.run_id()).map_or(&[], Vec::as_slice)
    }

    pub fn event(&self, id: i64) -> &HistoryEvent {
        &self.history()[id as usize - 1]
    }

    /// Attributes of the last event.
    pub fn last(&self) -> &history_event::Attributes {
        self.history().last().and_then(|event| event.attributes.as_ref()).expect("an event")
    }

    pub fn types(&self) -> Vec<EventType> {
        self.history().iter().map(HistoryEvent::event_type).collect()
    }

    /// The history from that event on.
    #[track_caller]
    pub fn assert_types_from(&self, first: i64, expect: &[EventType]) {
        assert_eq!(&self.types()[first as usize - 1..], expect);
    }

    pub fn offered(&self, kind: TaskKind) -> usize {
        self.offers.iter().filter(|offer| offer.kind() == kind).count()
    }
}

/// What a worker got from its poll.
#[derive(Debug, Clone)]
pub struct WorkflowTask {
    pub response: PollWorkflowTaskQueueResponse,
    pub history: Option<HistoryFill>,
}

pub fn snapshots(chain: &Chain) -> BTreeMap<String, RunSnapshot> {
    let ids: Vec<String> = chain.run_ids().map(str::to_owned).collect();
    ids.into_iter().filter_map(|id| chain.snapshot(&id).map(|snapshot| (id, snapshot))).collect()
}

pub fn completion(task: &WorkflowTask, commands: Vec<Command>) -> RespondWorkflowTaskCompletedRequest {
    RespondWorkflowTaskCompletedRequest {
        task_token: task.response.task_token.clone(),
        commands,
        identity: "worker".to_owned(),
        ..RespondWorkflowTaskCompletedRequest::default()
    }
}

pub fn sticky_attributes() -> StickyExecutionAttributes {
    StickyExecutionAttributes {
        worker_task_queue: Some(queue(STICKY_QUEUE)),
        schedule_to_start_timeout: Some(Duration::from_secs(5).to_proto()),
    }
}

/// What the frontend makes of an activity's token.
pub fn activity_ref(token: &[u8]) -> ActivityRef {
    let token = TaskToken::decode(token).expect("a token");
    ActivityRef {
        run_id: token.run_id,
        scheduled_event_id: token.scheduled_event_id,
        attempt: token.attempt,
        activity_id: token.activity_id,
        started_event_id: token.started_event_id,
    }
}

pub fn completed_with(result: &str) -> respond_activity_task::Outcome {
    respond_activity_task::Outcome::Completed(respond_activity_task::Completed { result: Some(payloads(result)) })
}

pub fn queue(name: &str) -> TaskQueue {
    TaskQueue { name: name.to_owned(), ..TaskQueue::default() }
}

pub fn payloads(text: &str) -> Payloads {
    Payloads { payloads: vec![Payload { data: text.as_bytes().to_vec().into(), ..Payload::default() }] }
}

pub fn application_failure(kind: &str) -> Failure {
    Failure {
        message: "boom".to_owned(),
        failure_info: Some(FailureInfo::ApplicationFailureInfo(ApplicationFailureInfo {
            r#type: kind.to_owned(),
            ..ApplicationFailureInfo::default()
        })),
        ..Failure::default()
    }
}

pub fn command(kind: CommandType, attributes: Attributes) -> Command {
    Command { command_type: kind as i32, attributes: Some(attributes), ..Command::default() }
}

pub mod commands {
    //! Commands with as little in them as they may have.

    use perdure_proto::temporal::api::command::v1::*;

    use super::*;

    pub fn activity(id: &str) -> Command {
        activity_with(id, |_| {})
    }

    pub fn activity_with(id: &str, change: impl FnOnce(&mut ScheduleActivityTaskCommandAttributes)) -> Command {
        let mut attributes = ScheduleActivityTaskCommandAttributes {
            activity_id: id.to_owned(),
            activity_type: Some(ActivityType { name: "charge".to_owned() }),
            task_queue: Some(queue(QUEUE)),
            start_to_close_timeout: Some(Duration::from_secs(10).to_proto()),
            ..ScheduleActivityTaskCommandAttributes::default()
        };
        change(&mut attributes);
        command(CommandType::ScheduleActivityTask, Attributes::ScheduleActivityTaskCommandAttributes(attributes))
    }

    pub fn cancel_activity(scheduled_event_id: i64) -> Command {
        let attributes = RequestCancelActivityTaskCommandAttributes { scheduled_event_id };
        command(
            CommandType::RequestCancelActivityTask,
            Attributes::RequestCancelActivityTaskCommandAttributes(attributes),
        )
    }

    pub fn timer(id: &str, secs: i64) -> Command {
        let attributes = StartTimerCommandAttributes {
            timer_id: id.to_owned(),
            start_to_fire_timeout: Some(Duration::from_secs(secs).to_proto()),
        };
        command(CommandType::StartTimer, Attributes::StartTimerCommandAttributes(attributes))
    }

    pub fn cancel_timer(id: &str) -> Command {
        let attributes = CancelTimerCommandAttributes { timer_id: id.to_owned() };
        command(CommandType::CancelTimer, Attributes::CancelTimerCommandAttributes(attributes))
    }

    pub fn complete(result: &str) -> Command {
        let attributes = CompleteWorkflowExecutionCommandAttributes { result: Some(payloads(result)) };
        command(
            CommandType::CompleteWorkflowExecution,
            Attributes::CompleteWorkflowExecutionCommandAttributes(attributes),
        )
    }

    pub fn fail(failure: Failure) -> Command {
        let attributes = FailWorkflowExecutionCommandAttributes { failure: Some(failure) };
        command(CommandType::FailWorkflowExecution, Attributes::FailWorkflowExecutionCommandAttributes(attributes))
    }

    pub fn marker(name: &str) -> Command {
        let attributes = RecordMarkerCommandAttributes { marker_name: name.to_owned(), ..Default::default() };
        command(CommandType::RecordMarker, Attributes::RecordMarkerCommandAttributes(attributes))
    }

    pub fn memo(name: &str, value: &str) -> Command {
        let mut memo = perdure_proto::temporal::api::common::v1::Memo::default();
        memo.fields.insert(name.to_owned(), Payload { data: value.as_bytes().to_vec().into(), ..Payload::default() });
        let attributes = ModifyWorkflowPropertiesCommandAttributes { upserted_memo: Some(memo) };
        command(
            CommandType::ModifyWorkflowProperties,
            Attributes::ModifyWorkflowPropertiesCommandAttributes(attributes),
        )
    }
}

/// For tests that look at shared events.
pub fn shared(event: HistoryEvent) -> Arc<HistoryEvent> {
    Arc::new(event)
}
