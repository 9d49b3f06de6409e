//! An activity in a small world: workers take its tasks, time passes, and a replica is built from the records alone.

use perdure_activity::Activities;
use perdure_proto::{
    Code, Error, nexus_token,
    perdure::{
        nexus::v1::CallbackToken,
        node::v1::{
            ActivityCommand, ActivityOperation, ActivityRef, Offer, RecordActivityTaskStarted, RespondActivityTask,
            TaskToken, activity_command, activity_operation, activity_reply,
            respond_activity_task::{Completed, Failed, Heartbeat, Outcome},
            workflow_call::Command,
            workflow_reply,
        },
        state::v1::ChainHead,
    },
    temporal::api::{
        activity::v1::activity_execution_outcome::Value,
        common::v1::{ActivityType, Callback, OnConflictOptions, Payloads, callback},
        enums::v1::{
            ActivityExecutionStatus as Status, ActivityIdConflictPolicy, ActivityIdReusePolicy, CallbackState,
            RetryState,
        },
        failure::v1::Failure,
        taskqueue::v1::TaskQueue,
        workflowservice::v1::{
            DeleteActivityExecutionRequest, DescribeActivityExecutionRequest, DescribeActivityExecutionResponse,
            PollActivityExecutionRequest, PollActivityTaskQueueResponse, RequestCancelActivityExecutionRequest,
            StartActivityExecutionRequest,
        },
    },
};
use perdure_types::{ChainKey, Duration, EntityKind, Limits, Timestamp};
use perdure_workflow::{Answer, CallKind, Effect, Entity, Env, Handled, IdSource, NamespaceInfo, NamespaceView, Watch};
use prost::Message;

struct OneNamespace;

impl NamespaceView for OneNamespace {
    fn by_name(&self, _name: &str) -> Option<NamespaceInfo> {
        self.by_id("")
    }
    fn by_id(&self, _id: &str) -> Option<NamespaceInfo> {
        Some(NamespaceInfo { id: "id".into(), name: "name".into(), retention: Duration::from_secs(3600) })
    }
}

fn key() -> ChainKey {
    ChainKey::of(EntityKind::Activity, "id", "activity")
}

struct World {
    entity: Activities,
    replica: Activities,
    now: Timestamp,
    ids: IdSource,
    limits: Limits,
    offers: Vec<Offer>,
    watches: Vec<Watch>,
}

impl World {
    fn new() -> Self {
        Self {
            entity: Activities::from_head(key(), ChainHead::default()),
            replica: Activities::from_head(key(), ChainHead::default()),
            now: Timestamp(1_700_000_000_000_000_000),
            ids: IdSource::new(1),
            limits: Limits::default(),
            offers: Vec::new(),
            watches: Vec::new(),
        }
    }

    fn step<T>(&mut self, input: impl FnOnce(&mut Activities, &mut Env) -> T) -> T {
        let mut env = Env { now: self.now, limits: &self.limits, ids: &mut self.ids, namespaces: &OneNamespace };
        input(&mut self.entity, &mut env)
    }

    fn absorb(&mut self, handled: Handled) -> Option<workflow_reply::Reply> {
        if let Some(record) = &handled.record {
            self.replica.apply(record).expect("applies");
            for run in record.runs.iter().filter(|run| !run.deleted) {
                let live = self.entity.snapshot(&run.run_id);
                assert_eq!(self.replica.snapshot(&run.run_id), live, "replay gives the state of the live path");
            }
        }
        assert_eq!(self.replica.head(), self.entity.head());
        for effect in handled.effects {
            if let Effect::Offer(offer) = effect {
                self.offers.push(offer);
            }
        }
        match handled.answer {
            Answer::Reply(reply) => reply.message.reply,
            Answer::Watch(watch) => {
                self.watches.push(watch);
                None
            }
            Answer::Reject(error) => panic!("rejected: {error}"),
        }
    }

    fn call(&mut self, command: Command) -> Result<Option<workflow_reply::Reply>, Error> {
        let handled = self.step(|entity, env| entity.handle(command, env))?;
        Ok(self.absorb(handled))
    }

    fn own(&mut self, command: activity_command::Command) -> Result<Option<activity_reply::Reply>, Error> {
        let command = Command::Activity(Box::new(ActivityCommand { command: Some(command) }));
        Ok(self.call(command)?.and_then(|reply| match reply {
            workflow_reply::Reply::Activity(reply) => reply.reply,
            _ => None,
        }))
    }

    fn start(&mut self, request: StartActivityExecutionRequest) -> Result<String, Error> {
        match self.own(activity_command::Command::Start(request))? {
            Some(activity_reply::Reply::Start(started)) => Ok(started.run_id),
            other => panic!("not a start: {other:?}"),
        }
    }

    fn describe(&mut self) -> DescribeActivityExecutionResponse {
        let request = DescribeActivityExecutionRequest {
            include_outcome: true,
            include_last_failure: true,
            ..Default::default()
        };
        match self.own(activity_command::Command::Describe(request)) {
            Ok(Some(activity_reply::Reply::Describe(described))) => described,
            other => panic!("not a description: {other:?}"),
        }
    }

    fn status(&mut self) -> Status {
        self.describe().info.expect("info").status()
    }

    /// A worker takes the latest offer.
    fn take(&mut self) -> Result<PollActivityTaskQueueResponse, Error> {
        let offer = self.offers.pop().expect("an offer");
        let command = RecordActivityTaskStarted {
            run_id: offer.run_id,
            scheduled_event_id: offer.scheduled_event_id,
            attempt: offer.attempt,
            stamp: offer.stamp,
            request_id: self.ids.uuid(),
            ..RecordActivityTaskStarted::default()
        };
        match self.call(Command::RecordActivityTaskStarted(command))? {
            Some(workflow_reply::Reply::ActivityTask(task)) => Ok(task),
            other => panic!("not a task: {other:?}"),
        }
    }

    fn respond(&mut self, task: &PollActivityTaskQueueResponse, outcome: Outcome) -> Result<(), Error> {
        let token = TaskToken::decode(task.task_token.clone()).expect("a token");
        assert_eq!(token.entity_kind, EntityKind::Activity.number());
        let activity = ActivityRef {
            run_id: token.run_id,
            scheduled_event_id: token.scheduled_event_id,
            attempt: token.attempt,
            activity_id: String::new(),
            started_event_id: token.started_event_id,
        };
        let command = RespondActivityTask { activity: Some(activity), outcome: Some(outcome), ..Default::default() };
        self.call(Command::RespondActivityTask(command)).map(drop)
    }

    fn advance(&mut self, by: Duration) {
        let end = self.now + by;
        while let Some(at) = self.entity.next_timer().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            let handled = self.step(|entity, env| entity.on_timer(env));
            self.absorb(handled);
        }
        self.now = end;
    }
}

fn request() -> StartActivityExecutionRequest {
    StartActivityExecutionRequest {
        activity_id: "activity".to_owned(),
        request_id: "request".to_owned(),
        activity_type: Some(ActivityType { name: "work".to_owned() }),
        task_queue: Some(TaskQueue { name: "queue".to_owned(), ..TaskQueue::default() }),
        start_to_close_timeout: Some(Duration::from_secs(10).to_proto()),
        ..StartActivityExecutionRequest::default()
    }
}

fn failed(message: &str) -> Outcome {
    Outcome::Failed(Failed {
        failure: Some(Failure { message: message.to_owned(), ..Failure::default() }),
        last_heartbeat_details: None,
    })
}

fn completed() -> Outcome {
    Outcome::Completed(Completed { result: Some(Payloads::default()) })
}

#[test]
fn it_fails_is_retried_and_completes() {
    let mut world = World::new();
    let run_id = world.start(request()).expect("started");
    let poll = PollActivityExecutionRequest::default();
    assert_eq!(world.own(activity_command::Command::Poll(poll)), Ok(None), "no outcome yet");
    let task = world.take().expect("taken");
    assert_eq!((task.attempt, task.activity_run_id.as_str()), (1, run_id.as_str()));
    world.respond(&task, failed("not yet")).expect("accepted");
    assert!(world.offers.is_empty(), "it backs off");
    world.advance(Duration::from_secs(1));
    let again = world.take().expect("taken");
    assert_eq!(again.attempt, 2);
    let stale = world.respond(&task, completed()).expect_err("the attempt before");
    assert_eq!(stale.grpc_code(), Code::NotFound);
    world.respond(&again, Outcome::Heartbeat(Heartbeat::default())).expect("accepted");
    world.respond(&again, completed()).expect("accepted");
    let described = world.describe();
    assert!(matches!(described.outcome.and_then(|outcome| outcome.value), Some(Value::Result(_))));
    let info = described.info.expect("info");
    assert_eq!((info.status(), info.attempt, info.total_heartbeat_count), (Status::Completed, 2, 1));
    assert_eq!(info.last_failure.map(|failure| failure.message).as_deref(), Some("not yet"));
    let watch = world.watches.pop().expect("somebody waits");
    assert!(matches!(world.entity.check(&watch), Some(Ok(_))));
    world.advance(Duration::from_secs(3600));
    assert_eq!(world.entity.head(), &ChainHead::default(), "gone after its retention");
}

#[test]
fn deadlines() {
    let mut world = World::new();
    let close = Some(Duration::from_secs(15).to_proto());
    world.start(StartActivityExecutionRequest { schedule_to_close_timeout: close, ..request() }).expect("started");
    world.take().expect("taken");
    // The worker is silent: a second attempt begins, which nobody takes.
    world.advance(Duration::from_secs(12));
    assert_eq!(world.describe().info.expect("info").attempt, 2);
    world.advance(Duration::from_secs(4));
    let described = world.describe();
    assert_eq!(described.info.expect("info").status(), Status::TimedOut);
    assert_eq!(described.outcome.expect("outcome").retry_state(), RetryState::Timeout);
}

#[test]
fn an_id_is_used_again() {
    let mut world = World::new();
    let first = world.start(request()).expect("started");
    assert_eq!(world.start(request()), Ok(first.clone()), "the same request");
    let other = StartActivityExecutionRequest { request_id: "other".to_owned(), ..request() };
    assert_eq!(world.start(other.clone()).expect_err("it runs").grpc_code(), Code::AlreadyExists);
    let task = world.take().expect("taken");
    world.respond(&task, completed()).expect("accepted");
    let reject = StartActivityExecutionRequest {
        id_reuse_policy: ActivityIdReusePolicy::AllowDuplicateFailedOnly as i32,
        ..other.clone()
    };
    assert_eq!(world.start(reject).expect_err("it has completed").grpc_code(), Code::AlreadyExists);
    let second = world.start(other).expect("started");
    assert_ne!(first, second);
    assert!(world.entity.has_run(&first) && world.entity.has_run(&second));
    let delete = DeleteActivityExecutionRequest { run_id: second.clone(), ..Default::default() };
    world.own(activity_command::Command::Delete(delete)).expect("deleted");
    world.advance(Duration::ZERO);
    assert!(!world.entity.has_run(&second));
}

#[test]
fn a_pause_holds_it_and_a_cancel_ends_it() {
    let mut world = World::new();
    world.start(request()).expect("started");
    let operate = |operation| {
        Command::ActivityOperation(Box::new(ActivityOperation { operation: Some(operation), ..Default::default() }))
    };
    world.call(operate(activity_operation::Operation::Pause(activity_operation::Pause::default()))).expect("paused");
    assert_eq!(world.status(), Status::Paused);
    assert!(world.take().is_err(), "the offer is stale");
    let unpause = activity_operation::Unpause::default();
    world.call(operate(activity_operation::Operation::Unpause(unpause))).expect("unpaused");
    assert_eq!(world.status(), Status::Running);
    let task = world.take().expect("taken");
    let cancel = RequestCancelActivityExecutionRequest {
        request_id: "c".to_owned(),
        reason: "why".to_owned(),
        ..Default::default()
    };
    world.own(activity_command::Command::RequestCancel(cancel.clone())).expect("asked");
    assert_eq!(world.status(), Status::Running, "its worker is told first");
    let other = RequestCancelActivityExecutionRequest { request_id: "d".to_owned(), ..cancel.clone() };
    let error = world.own(activity_command::Command::RequestCancel(other)).expect_err("asked before");
    assert_eq!(error.grpc_code(), Code::FailedPrecondition);
    world.respond(&task, failed("too late")).expect("accepted");
    assert_eq!(world.status(), Status::Failed, "no retry after a request to cancel");
    world.own(activity_command::Command::RequestCancel(cancel)).expect("the same request");
}

#[test]
fn those_who_want_it_are_told_the_end() {
    let token = CallbackToken {
        namespace_id: "other".to_owned(),
        workflow_id: "caller".to_owned(),
        ..CallbackToken::default()
    };
    let header = [(nexus_token::HEADER.to_owned(), nexus_token::encode(&token))].into();
    let nexus = callback::Nexus { url: "temporal://system".to_owned(), header };
    let callback = Callback { variant: Some(callback::Variant::Nexus(nexus)), ..Callback::default() };
    let mut world = World::new();
    let attach = StartActivityExecutionRequest {
        request_id: "other".to_owned(),
        completion_callbacks: vec![callback],
        id_conflict_policy: ActivityIdConflictPolicy::UseExisting as i32,
        on_conflict_options: Some(OnConflictOptions {
            attach_request_id: true,
            attach_completion_callbacks: true,
            ..Default::default()
        }),
        ..request()
    };
    world.start(request()).expect("started");
    world.start(attach.clone()).expect("attached");
    world.start(attach).expect("the same request");
    let states = |world: &mut World| -> Vec<CallbackState> {
        let callbacks = world.describe().callbacks;
        callbacks.into_iter().map(|callback| callback.info.expect("info").state()).collect()
    };
    assert_eq!(states(&mut world), [CallbackState::Standby]);
    let task = world.take().expect("taken");
    world.respond(&task, completed()).expect("accepted");
    assert_eq!(states(&mut world), [CallbackState::Scheduled]);
    let effects = world.replica.resume();
    let [Effect::Call { id, call }] = effects.as_slice() else { panic!("not one call: {effects:?}") };
    assert_eq!((id.kind, call.workflow_id.as_str()), (CallKind::Callback, "caller"));
    let handled = world.step(|entity, env| entity.on_call_result(id, Ok(Default::default()), env));
    world.absorb(handled);
    assert_eq!(states(&mut world), [CallbackState::Succeeded]);
    assert!(world.replica.resume().is_empty());
}
