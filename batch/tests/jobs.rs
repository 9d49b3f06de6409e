//! A job in a small world: its calls are answered, lost and made again.

use std::collections::BTreeSet;

use perdure_batch::Job;
use perdure_proto::{
    Error,
    perdure::{
        node::v1::{
            BatchCommand, WorkflowCall, WorkflowReply, batch_command, batch_reply, workflow_call::Command,
            workflow_reply,
        },
        state::v1::ChainHead,
    },
    temporal::api::{
        batch::v1::{BatchOperationSignal, BatchOperationTermination},
        common::v1::WorkflowExecution,
        enums::v1::BatchOperationState as State,
        workflow::v1::WorkflowExecutionInfo,
        workflowservice::v1::{
            DescribeBatchOperationRequest, DescribeBatchOperationResponse, ListWorkflowExecutionsResponse,
            StartBatchOperationRequest, StopBatchOperationRequest, start_batch_operation_request::Operation,
        },
    },
};
use perdure_types::{ChainKey, Duration, EntityKind, Limits, Timestamp};
use perdure_workflow::{
    Answer, CallId, Effect, Entity, Env, Handled, IdSource, NamespaceInfo, NamespaceView, SingleEntity,
};

struct NoNamespaces;

impl NamespaceView for NoNamespaces {
    fn by_name(&self, _name: &str) -> Option<NamespaceInfo> {
        None
    }
    fn by_id(&self, _id: &str) -> Option<NamespaceInfo> {
        None
    }
}

fn key() -> ChainKey {
    ChainKey::of(EntityKind::Batch, "namespace-id", "job")
}

struct World {
    job: SingleEntity<Job>,
    /// Built from the records alone.
    replica: SingleEntity<Job>,
    now: Timestamp,
    ids: IdSource,
    limits: Limits,
    calls: Vec<(CallId, WorkflowCall)>,
}

impl World {
    fn new() -> Self {
        Self {
            job: SingleEntity::new(key()),
            replica: SingleEntity::new(key()),
            now: Timestamp(1_700_000_000_000_000_000),
            ids: IdSource::new(1),
            limits: Limits::default(),
            calls: Vec::new(),
        }
    }

    fn step<T>(&mut self, input: impl FnOnce(&mut SingleEntity<Job>, &mut Env) -> T) -> T {
        let mut env = Env { now: self.now, limits: &self.limits, ids: &mut self.ids, namespaces: &NoNamespaces };
        input(&mut self.job, &mut env)
    }

    fn absorb(&mut self, handled: Handled) -> Answer {
        if let Some(record) = &handled.record {
            self.replica.apply(record).expect("applies");
        }
        assert_eq!(self.replica.head(), self.job.head());
        let run = self.job.head().current_run_id.clone();
        assert_eq!(self.replica.snapshot(&run), self.job.snapshot(&run), "replay gives the state of the live path");
        for effect in handled.effects {
            if let Effect::Call { id, call } = effect {
                self.calls.push((id, *call));
            }
        }
        handled.answer
    }

    fn command(&mut self, command: batch_command::Command) -> Result<batch_reply::Reply, Error> {
        let command = Command::Batch(Box::new(BatchCommand { command: Some(command) }));
        let handled = self.step(|job, env| job.handle(command, env))?;
        let Answer::Reply(reply) = self.absorb(handled) else { panic!("not answered at once") };
        match reply.message.reply {
            Some(workflow_reply::Reply::Batch(reply)) => Ok(reply.reply.expect("a reply")),
            other => panic!("not of a batch: {other:?}"),
        }
    }

    fn start(&mut self, request: StartBatchOperationRequest) -> Result<(), Error> {
        self.command(batch_command::Command::Start(request)).map(drop)
    }

    fn describe(&mut self) -> DescribeBatchOperationResponse {
        match self.command(batch_command::Command::Describe(DescribeBatchOperationRequest::default())) {
            Ok(batch_reply::Reply::Describe(described)) => described,
            other => panic!("not a description: {other:?}"),
        }
    }

    fn answer(&mut self, id: &CallId, result: Result<WorkflowReply, Error>) {
        let handled = self.step(|job, env| job.on_call_result(id, result, env));
        self.absorb(handled);
    }

    fn advance(&mut self, by: Duration) {
        let end = self.now + by;
        for _ in 0..10_000 {
            match self.job.next_timer().filter(|at| *at <= end) {
                Some(at) => {
                    self.now = self.now.max(at);
                    let handled = self.step(|job, env| job.on_timer(env));
                    self.absorb(handled);
                }
                None => break,
            }
        }
        self.now = end;
    }

    /// The owner dies; another one takes over, with what is durable. Calls under way are lost.
    fn crash(&mut self) {
        let head: ChainHead = self.replica.head().clone();
        let run = head.current_run_id.clone();
        let mut heir = SingleEntity::from_head(key(), head);
        heir.insert_run(&run, self.replica.snapshot(&run).expect("stored")).expect("decodes");
        self.job = heir;
        self.calls.clear();
    }
}

fn execution(id: impl ToString) -> WorkflowExecution {
    WorkflowExecution { workflow_id: id.to_string(), run_id: String::new() }
}

#[allow(deprecated)]
fn signal(count: usize, rate: f32) -> StartBatchOperationRequest {
    StartBatchOperationRequest {
        namespace: "default".to_owned(),
        job_id: "job".to_owned(),
        reason: "why not".to_owned(),
        executions: (0..count).map(execution).collect(),
        max_operations_per_second: rate,
        operation: Some(Operation::SignalOperation(BatchOperationSignal {
            signal: "go".to_owned(),
            identity: "operator".to_owned(),
            ..BatchOperationSignal::default()
        })),
        ..StartBatchOperationRequest::default()
    }
}

fn done() -> Result<WorkflowReply, Error> {
    Ok(WorkflowReply::default())
}

fn counts(described: &DescribeBatchOperationResponse) -> (i64, i64, i64) {
    (described.total_operation_count, described.complete_operation_count, described.failure_operation_count)
}

#[test]
fn every_execution_is_counted_once() {
    let mut world = World::new();
    world.start(signal(3, 0.0)).expect("started");
    assert_eq!(world.calls.len(), 3);
    let results = [done(), Err(Error::not_found("gone")), Err(Error::invalid_argument("no"))];
    for ((id, _), result) in std::mem::take(&mut world.calls).into_iter().zip(results) {
        world.answer(&id, result.clone());
        // Its answer came twice.
        world.answer(&id, result);
    }
    let described = world.describe();
    assert_eq!((counts(&described), described.state), ((3, 2, 1), State::Completed as i32));
    assert!(described.close_time.is_some());
    world.advance(Duration::from_secs(8 * 24 * 3600));
    assert_eq!(world.job.head(), &ChainHead::default(), "it does not stay for ever");
}

#[test]
fn a_job_keeps_its_pace() {
    let mut world = World::new();
    world.start(signal(100, 10.0)).expect("started");
    let mut made = world.calls.len();
    for second in 1..=5 {
        for (id, _) in std::mem::take(&mut world.calls) {
            world.answer(&id, done());
        }
        world.advance(Duration::from_secs(1));
        made += world.calls.len();
        assert!(made <= 11 + second * 11, "{made} calls after {second} s");
    }
    assert!(made >= 40, "{made} calls in 5 s");
}

#[test]
fn a_new_owner_goes_on_with_what_is_left() {
    let mut world = World::new();
    world.start(signal(10, 0.0)).expect("started");
    let mut signaled = BTreeSet::new();
    let mut request_ids = BTreeSet::new();
    for round in 0.. {
        assert!(round < 50, "the job does not end");
        for (index, (id, call)) in std::mem::take(&mut world.calls).into_iter().enumerate() {
            let Some(Command::Signal(signal)) = call.command else { panic!("not a signal") };
            request_ids.insert(signal.request.expect("a request").request_id);
            signaled.insert(call.workflow_id);
            // Half of the answers are lost with the owner.
            if index % 2 == 0 {
                world.answer(&id, done());
            }
        }
        if world.describe().state == State::Completed as i32 {
            break;
        }
        world.crash();
        world.advance(Duration::from_secs(1));
    }
    assert_eq!(counts(&world.describe()), (10, 10, 0));
    assert_eq!((signaled.len(), request_ids.len()), (10, 10), "what is done again is the same request");
}

#[test]
fn a_query_is_read_page_by_page() {
    let mut world = World::new();
    let query = "WorkflowType = 'x'".to_owned();
    world.start(StartBatchOperationRequest { visibility_query: query.clone(), ..signal(0, 0.0) }).expect("started");
    for (page, token) in [(0..2, "more"), (2..3, "")] {
        let (id, call) = world.calls.pop().expect("a list is read");
        let Some(Command::List(request)) = call.command else { panic!("not a list") };
        let open = "(ExecutionStatus = 'Running' OR ExecutionStatus = 'Paused')";
        assert_eq!(request.query, format!("({query}) AND {open}"), "closed ones are left alone");
        let executions = page
            .map(|id| WorkflowExecutionInfo { execution: Some(execution(id)), ..WorkflowExecutionInfo::default() })
            .collect();
        let response = ListWorkflowExecutionsResponse { executions, next_page_token: token.as_bytes().to_vec().into() };
        let reply = WorkflowReply { reply: Some(workflow_reply::Reply::List(response)) };
        world.answer(&id, Ok(reply));
        world.crash();
        world.advance(Duration::from_secs(1));
        for (id, _) in std::mem::take(&mut world.calls) {
            world.answer(&id, done());
        }
    }
    let described = world.describe();
    assert_eq!((counts(&described), described.state), ((3, 3, 0), State::Completed as i32));
}

#[test]
fn a_stopped_job_does_no_more() {
    let mut world = World::new();
    let operation = Operation::TerminationOperation(BatchOperationTermination::default());
    world.start(StartBatchOperationRequest { operation: Some(operation), ..signal(100, 1.0) }).expect("started");
    let under_way = std::mem::take(&mut world.calls);
    let stop = StopBatchOperationRequest { reason: "enough".to_owned(), ..StopBatchOperationRequest::default() };
    world.command(batch_command::Command::Stop(stop.clone())).expect("stopped");
    for (id, _) in under_way {
        world.answer(&id, done());
    }
    world.advance(Duration::from_secs(60));
    assert!(world.calls.is_empty());
    assert_eq!(world.describe().state, State::Failed as i32);
    assert!(world.command(batch_command::Command::Stop(stop)).is_err());
}

#[test]
fn a_job_id_is_used_once() {
    let mut world = World::new();
    let unknown = world.command(batch_command::Command::Describe(DescribeBatchOperationRequest::default()));
    assert!(unknown.is_err());
    world.start(signal(1, 0.0)).expect("started");
    assert!(world.start(signal(1, 0.0)).is_err());
}
