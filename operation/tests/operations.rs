//! An operation in a small world: a handler answers its requests, time passes, and a replica is built from the records alone.

use perdure_operation::Operations;
use perdure_proto::{
    Code, Error, nexus_token,
    perdure::{
        nexus::v1::{
            CallbackToken, NexusCall, NexusCompletion, NexusReply, OperationCommand, StartOperation, nexus_call,
            nexus_completion, nexus_reply::Outcome, operation_command, operation_reply,
        },
        node::v1::{WorkflowReply, workflow_call::Command, workflow_reply},
        state::v1::ChainHead,
    },
    temporal::api::{
        common::v1::{Callback, Payload, callback},
        enums::v1::{
            CallbackState, NexusOperationCancellationState as CancelState, NexusOperationExecutionStatus as Status,
            NexusOperationIdConflictPolicy, NexusOperationIdReusePolicy, NexusOperationWaitStage as Stage,
            PendingNexusOperationState as Pending,
        },
        failure::v1::{CanceledFailureInfo, Failure, NexusHandlerFailureInfo, failure::FailureInfo},
        nexus::v1::{
            CancelOperationResponse, StartOperationResponse, request,
            start_operation_response::{Async, Sync, Variant},
        },
        nexusoperation::v1::OnConflictOptions,
        workflowservice::v1::{
            DeleteNexusOperationExecutionRequest, DescribeNexusOperationExecutionRequest,
            DescribeNexusOperationExecutionResponse, PollNexusOperationExecutionRequest,
            PollNexusOperationExecutionResponse, RequestCancelNexusOperationExecutionRequest,
            StartNexusOperationExecutionRequest, TerminateNexusOperationExecutionRequest,
            describe_nexus_operation_execution_response as describe, poll_nexus_operation_execution_response as poll,
        },
    },
};
use perdure_types::{ChainKey, Duration, EntityKind, Limits, Timestamp};
use perdure_workflow::{
    Answer, CallId, CallKind, Effect, Entity, Env, Handled, IdSource, NamespaceInfo, NamespaceView, Watch,
};

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
    ChainKey::of(EntityKind::NexusOperation, "id", "operation")
}

struct World {
    entity: Operations,
    replica: Operations,
    now: Timestamp,
    ids: IdSource,
    limits: Limits,
    calls: Vec<(CallId, Command)>,
    watches: Vec<Watch>,
}

impl World {
    fn new() -> Self {
        Self {
            entity: Operations::from_head(key(), ChainHead::default()),
            replica: Operations::from_head(key(), ChainHead::default()),
            now: Timestamp(1_700_000_000_000_000_000),
            ids: IdSource::new(1),
            limits: Limits::default(),
            calls: Vec::new(),
            watches: Vec::new(),
        }
    }

    fn started() -> Self {
        let mut world = Self::new();
        world.start(request()).expect("started");
        world
    }

    fn step<T>(&mut self, input: impl FnOnce(&mut Operations, &mut Env) -> T) -> T {
        let mut env = Env { now: self.now, limits: &self.limits, ids: &mut self.ids, namespaces: &OneNamespace };
        input(&mut self.entity, &mut env)
    }

    fn keep(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Call { id, call } => self.calls.push((id, call.command.expect("a command"))),
                Effect::Offer(offer) => panic!("offered: {offer:?}"),
            }
        }
    }

    fn absorb(&mut self, handled: Handled) -> Option<workflow_reply::Reply> {
        if let Some(record) = &handled.record {
            self.replica.apply(record).expect("applies");
            for run in record.runs.iter().filter(|run| !run.deleted) {
                let live = self.entity.snapshot(&run.run_id);
                assert_eq!(self.replica.snapshot(&run.run_id), live, "replay gives the state of the live path");
                assert_eq!(self.replica.wake_at(&run.run_id), self.entity.wake_at(&run.run_id));
            }
        }
        assert_eq!(self.replica.head(), self.entity.head());
        self.keep(handled.effects);
        match handled.answer {
            Answer::Reply(reply) => reply.message.reply,
            Answer::Watch(watch) => {
                self.watches.push(watch);
                None
            }
            Answer::Reject(error) => panic!("rejected: {error}"),
        }
    }

    /// A new owner has nothing but what was logged: calls without a result are made again.
    fn crash(&mut self) {
        let mut restored = Operations::from_head(key(), self.entity.head().clone());
        let run_id = self.entity.head().current_run_id.clone();
        let snapshot = self.replica.snapshot(&run_id).expect("a run");
        restored.insert_run(&run_id, snapshot).expect("decodes");
        self.entity = restored;
        self.calls.clear();
        let effects = self.entity.resume();
        self.keep(effects);
    }

    fn call(&mut self, command: Command) -> Result<Option<workflow_reply::Reply>, Error> {
        let handled = self.step(|entity, env| entity.handle(command, env))?;
        Ok(self.absorb(handled))
    }

    fn own(&mut self, command: operation_command::Command) -> Result<Option<operation_reply::Reply>, Error> {
        let command = Command::NexusOperation(Box::new(OperationCommand { command: Some(command) }));
        Ok(self.call(command)?.and_then(|reply| match reply {
            workflow_reply::Reply::NexusOperation(reply) => reply.reply,
            _ => None,
        }))
    }

    fn start(&mut self, request: StartNexusOperationExecutionRequest) -> Result<(String, bool), Error> {
        let command = StartOperation { request: Some(request), endpoint_id: "endpoint-id".to_owned() };
        match self.own(operation_command::Command::Start(command))? {
            Some(operation_reply::Reply::Start(started)) => Ok((started.run_id, started.started)),
            other => panic!("not a start: {other:?}"),
        }
    }

    fn describe(&mut self) -> DescribeNexusOperationExecutionResponse {
        let request = DescribeNexusOperationExecutionRequest { include_outcome: true, ..Default::default() };
        match self.own(operation_command::Command::Describe(request)) {
            Ok(Some(operation_reply::Reply::Describe(described))) => described,
            other => panic!("not a description: {other:?}"),
        }
    }

    fn status(&mut self) -> Status {
        self.describe().info.expect("info").status()
    }

    fn poll(&mut self, stage: Stage) -> Option<PollNexusOperationExecutionResponse> {
        let request = PollNexusOperationExecutionRequest { wait_stage: stage as i32, ..Default::default() };
        match self.own(operation_command::Command::Poll(request)).expect("polls") {
            Some(operation_reply::Reply::Poll(reply)) => Some(reply),
            None => None,
            other => panic!("not a poll's answer: {other:?}"),
        }
    }

    /// The oldest request that is under way.
    fn take(&mut self, kind: CallKind) -> (CallId, NexusCall) {
        let (id, command) = self.calls.remove(0);
        assert_eq!(id.kind, kind);
        match command {
            Command::Nexus(call) => (id, *call),
            other => panic!("no request: {other:?}"),
        }
    }

    fn answer(&mut self, id: &CallId, outcome: Outcome) {
        let reply = workflow_reply::Reply::Nexus(Box::new(NexusReply { outcome: Some(outcome) }));
        let result = Ok(WorkflowReply { reply: Some(reply) });
        let handled = self.step(|entity, env| entity.on_call_result(id, result, env));
        self.absorb(handled);
    }

    /// The handler has taken the operation.
    fn accept(&mut self) -> CallbackToken {
        let (id, call) = self.take(CallKind::StartNexusOperation);
        self.answer(
            &id,
            started(Variant::AsyncSuccess(Async { operation_token: "token".into(), ..Default::default() })),
        );
        token_of(&call)
    }

    fn complete(&mut self, token: CallbackToken, outcome: nexus_completion::Outcome) -> Result<(), Error> {
        let operation_token = "token".to_owned();
        let completion =
            NexusCompletion { token: Some(token), operation_token, outcome: Some(outcome), ..Default::default() };
        self.call(Command::NexusCompletion(Box::new(completion))).map(drop)
    }

    fn cancel(&mut self, request_id: &str) -> Result<(), Error> {
        let (request_id, reason) = (request_id.to_owned(), "why".to_owned());
        let request = RequestCancelNexusOperationExecutionRequest { request_id, reason, ..Default::default() };
        self.own(operation_command::Command::RequestCancel(request)).map(drop)
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

fn request() -> StartNexusOperationExecutionRequest {
    StartNexusOperationExecutionRequest {
        namespace: "name".to_owned(),
        operation_id: "operation".to_owned(),
        request_id: "request".to_owned(),
        endpoint: "endpoint".to_owned(),
        service: "service".to_owned(),
        operation: "ship".to_owned(),
        input: Some(payload("input")),
        ..StartNexusOperationExecutionRequest::default()
    }
}

fn payload(data: &str) -> Payload {
    Payload { data: data.to_owned().into(), ..Payload::default() }
}

fn started(variant: Variant) -> Outcome {
    Outcome::Started(StartOperationResponse { variant: Some(variant) })
}

fn handler_error(kind: &str) -> Outcome {
    let info = NexusHandlerFailureInfo { r#type: kind.to_owned(), ..Default::default() };
    let failure_info = Some(FailureInfo::NexusHandlerFailureInfo(info));
    Outcome::HandlerError(Box::new(Failure { message: kind.to_owned(), failure_info, ..Failure::default() }))
}

/// What the handler gets to call back with.
fn token_of(call: &NexusCall) -> CallbackToken {
    let Some(nexus_call::Call::Request(request)) = &call.call else { panic!("no request: {call:?}") };
    let Some(request::Variant::StartOperation(start)) = &request.variant else { panic!("no start: {request:?}") };
    let header = start.callback_header.get(nexus_token::HEADER).expect("a token");
    nexus_token::decode(header).expect("decodes")
}

fn callback_to(caller: &str) -> Callback {
    let token =
        CallbackToken { namespace_id: "other".to_owned(), workflow_id: caller.to_owned(), ..CallbackToken::default() };
    let header = [(nexus_token::HEADER.to_owned(), nexus_token::encode(&token))].into();
    let nexus = callback::Nexus { url: "temporal://system".to_owned(), header };
    Callback { variant: Some(callback::Variant::Nexus(nexus)), ..Callback::default() }
}

#[test]
fn it_is_tried_again_and_ends_at_once() {
    let mut world = World::started();
    assert_eq!(world.poll(Stage::Closed), None);
    let (id, call) = world.take(CallKind::StartNexusOperation);
    assert_eq!((call.endpoint_id.as_str(), call.endpoint.as_str()), ("endpoint-id", "endpoint"));
    assert_eq!(world.describe().info.expect("info").attempt, 1, "the one under way counts");
    world.answer(&id, handler_error("UNAVAILABLE"));
    let info = world.describe().info.expect("info");
    assert_eq!((info.state(), info.attempt), (Pending::BackingOff, 1));
    assert!(info.next_attempt_schedule_time.is_some() && info.last_attempt_failure.is_some());
    world.advance(Duration::from_secs(1));
    // Nobody knows what became of this attempt.
    world.crash();
    let (id, again) = world.take(CallKind::StartNexusOperation);
    assert_eq!(again, call, "a repetition is the same request");
    let sync = Sync { payload: Some(payload("done")), ..Default::default() };
    world.answer(&id, started(Variant::SyncSuccess(sync)));
    let described = world.describe();
    assert_eq!(described.outcome, Some(describe::Outcome::Result(payload("done"))));
    assert!(described.long_poll_token.is_empty());
    let info = described.info.expect("info");
    assert_eq!((info.status(), info.state(), info.attempt), (Status::Completed, Pending::Unspecified, 2));
    let watch = world.watches.pop().expect("somebody waits");
    assert!(matches!(world.entity.check(&watch), Some(Ok(_))));
    world.advance(Duration::from_secs(3600));
    assert_eq!(world.entity.head(), &ChainHead::default(), "gone after its retention");
}

#[test]
fn it_starts_and_ends_later() {
    let mut world = World::started();
    let token = world.accept();
    assert_eq!((token.entity_kind, token.workflow_id.as_str()), (EntityKind::NexusOperation.number(), "operation"));
    let reached = world.poll(Stage::Started).expect("started");
    assert_eq!((reached.wait_stage(), reached.operation_token.as_str()), (Stage::Started, "token"));
    assert_eq!(world.describe().info.expect("info").state(), Pending::Started);
    world.crash();
    assert!(world.calls.is_empty(), "it waits to be called");

    let stale = CallbackToken { request_id: "other".to_owned(), ..token.clone() };
    let error = world.complete(stale, nexus_completion::Outcome::Result(payload("no"))).expect_err("stale");
    assert_eq!(error.grpc_code(), Code::NotFound);
    world.complete(token.clone(), nexus_completion::Outcome::Result(payload("done"))).expect("completes");
    let reached = world.poll(Stage::Started).expect("ended");
    assert_eq!((reached.wait_stage(), reached.outcome), (Stage::Closed, Some(poll::Outcome::Result(payload("done")))));
    let error = world.complete(token, nexus_completion::Outcome::Result(payload("again"))).expect_err("ended");
    assert_eq!(error.grpc_code(), Code::NotFound);
}

#[test]
fn an_end_may_come_before_the_answer() {
    let mut world = World::started();
    let (id, call) = world.take(CallKind::StartNexusOperation);
    let failure = Failure { message: "no".to_owned(), ..Failure::default() };
    let outcome = nexus_completion::Outcome::Failure(Box::new(failure.clone()));
    world.complete(token_of(&call), outcome).expect("completes");
    assert_eq!(world.describe().outcome, Some(describe::Outcome::Failure(failure)));
    let before = world.describe();
    world.answer(&id, handler_error("INTERNAL"));
    assert_eq!(world.describe(), before, "the answer comes too late");
}

#[test]
fn how_it_may_end_badly() {
    let canceled = FailureInfo::CanceledFailureInfo(CanceledFailureInfo::default());
    let canceled = Failure { failure_info: Some(canceled), ..Failure::default() };
    for (outcome, expect) in [
        (handler_error("BAD_REQUEST"), Status::Failed),
        (started(Variant::Failure(Failure::default())), Status::Failed),
        (started(Variant::Failure(canceled)), Status::Canceled),
    ] {
        let mut world = World::started();
        let (id, _) = world.take(CallKind::StartNexusOperation);
        world.answer(&id, outcome);
        assert_eq!(world.status(), expect);
        assert!(world.describe().info.expect("info").last_attempt_failure.is_some());
    }
}

#[test]
fn deadlines() {
    let seconds = |seconds| Some(Duration::from_secs(seconds).to_proto());
    let close = StartNexusOperationExecutionRequest { schedule_to_close_timeout: seconds(5), ..request() };
    let start = StartNexusOperationExecutionRequest { schedule_to_start_timeout: seconds(5), ..request() };
    let run = StartNexusOperationExecutionRequest { start_to_close_timeout: seconds(5), ..request() };
    for (request, accepted, expect) in [
        (close.clone(), false, Status::TimedOut),
        (close, true, Status::TimedOut),
        (start.clone(), false, Status::TimedOut),
        (start, true, Status::Running),
        (run.clone(), false, Status::Running),
        (run, true, Status::TimedOut),
    ] {
        let mut world = World::new();
        world.start(request.clone()).expect("started");
        if accepted {
            world.accept();
        }
        world.advance(Duration::from_secs(6));
        assert_eq!(world.status(), expect, "{request:?}, accepted: {accepted}");
    }
}

#[test]
fn a_cancel_waits_for_the_start() {
    let mut world = World::started();
    world.cancel("c").expect("asked");
    world.cancel("c").expect("the same request");
    assert_eq!(world.cancel("d").expect_err("asked before").grpc_code(), Code::FailedPrecondition);
    assert_eq!(world.calls.len(), 1, "there is no token to cancel");
    let token = world.accept();
    let (id, _) = world.take(CallKind::CancelNexusOperation);
    world.answer(&id, handler_error("UNAVAILABLE"));
    world.advance(Duration::from_secs(1));
    world.crash();
    let (id, call) = world.take(CallKind::CancelNexusOperation);
    let Some(nexus_call::Call::Request(sent)) = call.call else { panic!("no request") };
    assert!(matches!(sent.variant, Some(request::Variant::CancelOperation(c)) if c.operation_token == "token"));
    world.answer(&id, Outcome::Canceled(CancelOperationResponse {}));
    let info = world.describe().info.expect("info").cancellation_info.expect("requested");
    assert_eq!((info.state(), info.attempt, info.reason.as_str()), (CancelState::Succeeded, 2, "why"));
    assert_eq!(world.status(), Status::Running, "what comes of it is the handler's to decide");

    let canceled = FailureInfo::CanceledFailureInfo(CanceledFailureInfo::default());
    let failure = Failure { failure_info: Some(canceled), ..Failure::default() };
    world.complete(token, nexus_completion::Outcome::Failure(Box::new(failure))).expect("completes");
    assert_eq!(world.status(), Status::Canceled);
    world.cancel("c").expect("the same request");
    assert_eq!(world.cancel("e").expect_err("ended").grpc_code(), Code::FailedPrecondition);
}

#[test]
fn an_id_is_used_again() {
    let mut world = World::new();
    let (first, _) = world.start(request()).expect("started");
    assert_eq!(world.start(request()), Ok((first.clone(), true)), "the same request");
    let other = StartNexusOperationExecutionRequest { request_id: "other".to_owned(), ..request() };
    assert_eq!(world.start(other.clone()).expect_err("it runs").grpc_code(), Code::AlreadyExists);
    let existing = StartNexusOperationExecutionRequest {
        id_conflict_policy: NexusOperationIdConflictPolicy::UseExisting as i32,
        ..other.clone()
    };
    assert_eq!(world.start(existing), Ok((first.clone(), false)));
    let terminate = |request_id: &str| {
        let (request_id, reason) = (request_id.to_owned(), "enough".to_owned());
        operation_command::Command::Terminate(TerminateNexusOperationExecutionRequest {
            request_id,
            reason,
            ..Default::default()
        })
    };
    world.own(terminate("t")).expect("terminated");
    world.own(terminate("t")).expect("the same request");
    assert_eq!(world.own(terminate("u")).expect_err("ended").grpc_code(), Code::FailedPrecondition);
    assert_eq!(world.status(), Status::Terminated);
    let reject = StartNexusOperationExecutionRequest {
        id_reuse_policy: NexusOperationIdReusePolicy::RejectDuplicate as i32,
        ..other.clone()
    };
    assert_eq!(world.start(reject).expect_err("used").grpc_code(), Code::AlreadyExists);
    let (second, started) = world.start(other).expect("started");
    assert!(started && first != second);
    assert!(world.entity.has_run(&first) && world.entity.has_run(&second));
    let delete = DeleteNexusOperationExecutionRequest { run_id: second.clone(), ..Default::default() };
    world.own(operation_command::Command::Delete(delete)).expect("deleted");
    world.advance(Duration::ZERO);
    assert!(!world.entity.has_run(&second));
}

#[test]
fn those_who_want_it_are_told_the_end() {
    let mut world = World::new();
    let first = StartNexusOperationExecutionRequest { completion_callbacks: vec![callback_to("first")], ..request() };
    world.start(first).expect("started");
    let second = StartNexusOperationExecutionRequest {
        request_id: "other".to_owned(),
        completion_callbacks: vec![callback_to("second")],
        id_conflict_policy: NexusOperationIdConflictPolicy::UseExisting as i32,
        on_conflict_options: Some(OnConflictOptions {
            attach_request_id: true,
            attach_completion_callbacks: true,
            ..Default::default()
        }),
        ..request()
    };
    assert!(!world.start(second.clone()).expect("attached").1);
    world.start(second).expect("the same request");
    let states = |world: &mut World| -> Vec<CallbackState> {
        let callbacks = world.describe().completion_callbacks;
        callbacks.into_iter().map(|callback| callback.info.expect("info").state()).collect()
    };
    assert_eq!(states(&mut world), [CallbackState::Standby; 2]);
    let (id, _) = world.take(CallKind::StartNexusOperation);
    world.answer(&id, handler_error("NOT_FOUND"));
    assert_eq!(states(&mut world), [CallbackState::Scheduled; 2]);
    world.crash();
    world.advance(Duration::from_secs(7200));
    assert_eq!(world.calls.len(), 2, "it is kept until they know");
    for (id, command) in std::mem::take(&mut world.calls) {
        let Command::NexusCompletion(completion) = command else { panic!("no completion: {command:?}") };
        assert!(matches!(completion.outcome, Some(nexus_completion::Outcome::Failure(_))));
        let handled = world.step(|entity, env| entity.on_call_result(&id, Ok(WorkflowReply::default()), env));
        world.absorb(handled);
    }
    world.advance(Duration::ZERO);
    assert_eq!(world.entity.head(), &ChainHead::default(), "gone after its retention");
}
