//! A deployment and the task queues of its versions in a small world: calls are delivered, late, twice and after a crash.

use std::collections::BTreeMap;

use perdure_deployment::{Deployment, TaskQueue};
use perdure_proto::{
    Code, Error,
    perdure::{
        node::v1::{
            DeploymentCommand, RegisterWorker, TaskQueueCommand, WorkflowCall, WorkflowReply, deployment_command,
            deployment_reply, task_queue_command, workflow_call::Command, workflow_reply,
        },
        state::v1::{ChainHead, TaskQueueState},
    },
    temporal::api::{
        deployment::v1::WorkerDeploymentInfo,
        enums::v1::{
            RoutingConfigUpdateState, TaskQueueType, VersionDrainageStatus as Drainage,
            WorkerDeploymentVersionStatus as Status,
        },
        workflow::v1::WorkflowExecutionInfo,
        workflowservice::v1::{
            DescribeWorkerDeploymentRequest, ListWorkflowExecutionsResponse, SetWorkerDeploymentCurrentVersionRequest,
            SetWorkerDeploymentRampingVersionRequest,
        },
    },
};
use perdure_types::{ChainKey, Duration, EntityKind, Limits, Timestamp};
use perdure_workflow::{
    Answer, CallId, Effect, Entity, Env, Handled, IdSource, NamespaceInfo, NamespaceView, SingleEntity, Watch,
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

fn key(kind: EntityKind, id: &str) -> ChainKey {
    ChainKey::of(kind, "namespace-id", id)
}

struct World {
    deployment: SingleEntity<Deployment>,
    /// Built from the records alone.
    replica: SingleEntity<Deployment>,
    queues: BTreeMap<String, SingleEntity<TaskQueue>>,
    now: Timestamp,
    ids: IdSource,
    limits: Limits,
    calls: Vec<(CallId, WorkflowCall)>,
    /// What the list of pinned workflows finds.
    pinned: usize,
}

impl World {
    fn new() -> Self {
        Self {
            deployment: SingleEntity::new(key(EntityKind::Deployment, "d")),
            replica: SingleEntity::new(key(EntityKind::Deployment, "d")),
            queues: BTreeMap::new(),
            now: Timestamp(1_700_000_000_000_000_000),
            ids: IdSource::new(1),
            limits: Limits::default(),
            calls: Vec::new(),
            pinned: 0,
        }
    }

    fn step<T>(&mut self, input: impl FnOnce(&mut SingleEntity<Deployment>, &mut Env) -> T) -> T {
        let mut env = Env { now: self.now, limits: &self.limits, ids: &mut self.ids, namespaces: &NoNamespaces };
        input(&mut self.deployment, &mut env)
    }

    fn take(&mut self, handled: Handled) -> Answer {
        if let Some(record) = &handled.record {
            self.replica.apply(record).expect("applies");
        }
        for effect in handled.effects {
            if let Effect::Call { id, call } = effect {
                self.calls.push((id, *call));
            }
        }
        let run = &self.deployment.head().current_run_id;
        assert_eq!(self.deployment.snapshot(run), self.replica.snapshot(run));
        handled.answer
    }

    fn send(&mut self, command: deployment_command::Command) -> Result<Answer, Error> {
        let command = DeploymentCommand { namespace: "ns".into(), command: Some(command), ..Default::default() };
        let handled = self.step(|deployment, env| deployment.handle(Command::Deployment(Box::new(command)), env))?;
        Ok(self.take(handled))
    }

    /// All calls that are outstanding, and those that come of them.
    fn deliver(&mut self) {
        while let Some((id, call)) = self.calls.pop() {
            let result = self.answer(call);
            let handled = self.step(|deployment, env| deployment.on_call_result(&id, Ok(result), env));
            self.take(handled);
        }
    }

    fn answer(&mut self, call: WorkflowCall) -> WorkflowReply {
        let reply = match call.command.expect("a command") {
            Command::TaskQueue(command) => {
                let name = call.workflow_id;
                let queue = self
                    .queues
                    .entry(name.clone())
                    .or_insert_with(|| SingleEntity::new(key(EntityKind::TaskQueue, &name)));
                let mut env =
                    Env { now: self.now, limits: &self.limits, ids: &mut self.ids, namespaces: &NoNamespaces };
                match queue.handle(Command::TaskQueue(command), &mut env).expect("taken").answer {
                    Answer::Reply(reply) => return reply.message,
                    other => panic!("{other:?}"),
                }
            }
            Command::List(_) => workflow_reply::Reply::List(ListWorkflowExecutionsResponse {
                executions: vec![WorkflowExecutionInfo::default(); self.pinned],
                ..Default::default()
            }),
            other => panic!("{other:?}"),
        };
        WorkflowReply { reply: Some(reply) }
    }

    fn register(&mut self, build_id: &str, queue: &str) -> Answer {
        let worker = RegisterWorker {
            build_id: build_id.into(),
            task_queue: queue.into(),
            task_queue_type: TaskQueueType::Workflow as i32,
            identity: "worker".into(),
        };
        self.send(deployment_command::Command::Register(worker)).expect("registered")
    }

    fn set_current(&mut self, build_id: &str) -> Answer {
        let request = SetWorkerDeploymentCurrentVersionRequest {
            build_id: build_id.into(),
            identity: "me".into(),
            ..Default::default()
        };
        self.send(deployment_command::Command::SetCurrent(request)).expect("set")
    }

    fn info(&mut self) -> WorkerDeploymentInfo {
        let describe = deployment_command::Command::Describe(DescribeWorkerDeploymentRequest::default());
        let Answer::Reply(reply) = self.send(describe).expect("described") else { panic!("no reply") };
        match reply.message.reply {
            Some(workflow_reply::Reply::Deployment(reply)) => match reply.reply {
                Some(deployment_reply::Reply::Describe(reply)) => reply.worker_deployment_info.expect("info"),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    fn status(&mut self, build_id: &str) -> (Status, Drainage) {
        let summaries = self.info().version_summaries;
        let of =
            |build: &str| summaries.iter().find(|s| s.deployment_version.as_ref().is_some_and(|v| v.build_id == build));
        let summary = of(build_id).expect("a version");
        (summary.status(), summary.drainage_info.as_ref().map_or(Drainage::Unspecified, |info| info.status()))
    }

    fn known_to(&mut self, queue: &str) -> TaskQueueState {
        let command = TaskQueueCommand { command: Some(task_queue_command::Command::Follow(-1)) };
        let call = WorkflowCall {
            workflow_id: queue.into(),
            command: Some(Command::TaskQueue(Box::new(command))),
            ..Default::default()
        };
        match self.answer(call).reply {
            Some(workflow_reply::Reply::TaskQueue(state)) => *state,
            other => panic!("{other:?}"),
        }
    }

    fn crash(&mut self) {
        let run = self.deployment.head().current_run_id.clone();
        let snapshot = self.replica.snapshot(&run).expect("it exists");
        let head = ChainHead { current_run_id: run.clone(), ..ChainHead::default() };
        self.deployment = SingleEntity::from_head(key(EntityKind::Deployment, "d"), head);
        self.deployment.insert_run(&run, snapshot).expect("decodes");
        self.calls.clear();
        for effect in self.deployment.resume() {
            if let Effect::Call { id, call } = effect {
                self.calls.push((id, *call));
            }
        }
    }

    fn run_timers(&mut self, until: Timestamp) {
        while let Some(at) = self.deployment.next_timer().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            let handled = self.step(|deployment, env| deployment.on_timer(env));
            self.take(handled);
            self.deliver();
        }
        self.now = until;
    }
}

fn watch(answer: Answer) -> Watch {
    match answer {
        Answer::Watch(watch) => watch,
        other => panic!("not a watch: {other:?}"),
    }
}

#[test]
fn an_answer_waits_until_the_queues_know() {
    let mut world = World::new();
    let registered = watch(world.register("1", "q"));
    assert!(world.deployment.check(&registered).is_none());
    world.deliver();
    assert!(world.deployment.check(&registered).is_some());
    let set = watch(world.set_current("1"));
    assert!(world.deployment.check(&set).is_none());
    assert_eq!(world.info().routing_config_update_state(), RoutingConfigUpdateState::InProgress);
    world.deliver();
    assert!(world.deployment.check(&set).is_some());
    assert_eq!(world.info().routing_config_update_state(), RoutingConfigUpdateState::Completed);
    let told = world.known_to("q").deployments.remove(0);
    assert_eq!(told.routing_config.expect("routing").current_deployment_version.expect("current").build_id, "1");
}

#[test]
fn what_queues_are_told_survives_a_crash_and_late_news_change_nothing() {
    let mut world = World::new();
    world.register("1", "q");
    world.register("2", "q");
    world.deliver();
    world.set_current("1");
    let late = world.calls.clone();
    world.set_current("2");
    world.crash();
    world.deliver();
    let current = |world: &mut World| {
        let told = world.known_to("q").deployments.remove(0);
        told.routing_config.expect("routing").current_deployment_version.expect("current").build_id
    };
    assert_eq!(current(&mut world), "2");
    world.calls = late;
    world.deliver();
    assert_eq!(current(&mut world), "2");
    assert_eq!(world.info().routing_config_update_state(), RoutingConfigUpdateState::Completed);
}

#[test]
fn a_version_drains_until_its_last_pinned_workflow_has_closed() {
    let mut world = World::new();
    world.register("1", "q");
    world.register("2", "q");
    world.set_current("1");
    world.pinned = 1;
    world.set_current("2");
    world.deliver();
    assert_eq!(world.status("1"), (Status::Draining, Drainage::Draining));
    let minute = |world: &World| Timestamp(world.now.0 + Duration::from_secs(60).0);
    let until = minute(&world);
    world.run_timers(until);
    assert_eq!(world.status("1"), (Status::Draining, Drainage::Draining));
    world.pinned = 0;
    let until = minute(&world);
    world.run_timers(until);
    assert_eq!(world.status("1"), (Status::Drained, Drainage::Drained));
    world.set_current("1");
    world.deliver();
    assert_eq!(world.status("1"), (Status::Current, Drainage::Unspecified));
    assert_eq!(world.status("2"), (Status::Draining, Drainage::Draining));
}

#[test]
fn a_ramp_that_is_promoted_ends() {
    let mut world = World::new();
    world.register("1", "q");
    world.register("2", "q");
    world.set_current("1");
    let ramp = |build: &str, percentage| {
        deployment_command::Command::SetRamping(SetWorkerDeploymentRampingVersionRequest {
            build_id: build.into(),
            percentage,
            identity: "me".into(),
            ..Default::default()
        })
    };
    world.send(ramp("2", 20.0)).expect("set");
    assert_eq!(world.status("2").0, Status::Ramping);
    assert_eq!(world.send(ramp("1", 20.0)).expect_err("current").grpc_code(), Code::FailedPrecondition);
    assert_eq!(world.send(ramp("9", 20.0)).expect_err("unknown").grpc_code(), Code::NotFound);
    world.set_current("2");
    let routing = world.info().routing_config.expect("routing");
    assert!(routing.ramping_deployment_version.is_none() && routing.ramping_version_percentage == 0.0);
    assert_eq!(routing.revision_number, 3);
    world.deliver();
}

#[test]
fn a_queue_is_followed_from_revision_to_revision() {
    let mut queue = SingleEntity::<TaskQueue>::new(key(EntityKind::TaskQueue, "q"));
    let (limits, mut ids) = (Limits::default(), IdSource::new(1));
    let mut env = Env { now: Timestamp(1), limits: &limits, ids: &mut ids, namespaces: &NoNamespaces };
    let mut send = |queue: &mut SingleEntity<TaskQueue>, command| {
        let command = TaskQueueCommand { command: Some(command) };
        queue.handle(Command::TaskQueue(Box::new(command)), &mut env).expect("taken").answer
    };
    let followed = watch(send(&mut queue, task_queue_command::Command::Follow(0)));
    assert!(queue.check(&followed).is_none());
    assert!(queue.give_up(&followed).is_some());
    let told =
        perdure_proto::perdure::state::v1::TaskQueueDeployment { name: "d".into(), revision: 5, ..Default::default() };
    send(&mut queue, task_queue_command::Command::Sync(told.clone()));
    assert!(queue.check(&followed).is_some());
    let again = watch(send(&mut queue, task_queue_command::Command::Follow(1)));
    send(&mut queue, task_queue_command::Command::Sync(told));
    assert!(queue.check(&again).is_none(), "the same news are none");
}

#[test]
fn a_change_made_while_a_queue_is_being_told_of_the_last_one_gets_there_too() {
    let mut world = World::new();
    world.register("1", "q");
    // One call to a queue is under way at a time: what the same id names is not called again meanwhile.
    let under_way = world.calls.clone();
    let set = watch(world.set_current("1"));
    world.calls = under_way;
    world.deliver();
    assert!(world.deployment.check(&set).is_some());
    assert_eq!(world.info().routing_config_update_state(), RoutingConfigUpdateState::Completed);
}
