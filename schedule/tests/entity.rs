//! The entity against a small world: workflows that start, refuse, and end. After every input the records applied give
//! the live state (WF-1), and every time of the specification is accounted for (SC-1).

use std::collections::BTreeMap;

use perdure_proto::{
    Error,
    perdure::node::v1::{
        ScheduleCommand, ScheduledWorkflowClosed, WorkflowCall, WorkflowReply, schedule_command, schedule_reply,
        workflow_call::Command, workflow_reply,
    },
    perdure::state::v1::{ChainRecord, ScheduleRef},
    temporal::api::{
        common::v1::{Payload, Payloads, WorkflowExecution},
        enums::v1::{ScheduleOverlapPolicy as Policy, WorkflowExecutionStatus as Status},
        failure::v1::Failure,
        history::v1::{
            HistoryEvent, WorkflowExecutionCompletedEventAttributes, WorkflowExecutionFailedEventAttributes,
            history_event::Attributes,
        },
        schedule::v1::{
            BackfillRequest, IntervalSpec, Schedule as ScheduleMessage, ScheduleAction, SchedulePatch,
            SchedulePolicies, ScheduleSpec, ScheduleState, TriggerImmediatelyRequest, schedule_action::Action,
        },
        workflow::v1::NewWorkflowExecutionInfo,
        workflowservice::v1::*,
    },
};
use perdure_schedule::Schedule;
use perdure_types::{ChainKey, Duration, EntityKind, Limits, Timestamp};
use perdure_workflow::{
    Answer, CallId, Effect, Entity, Env, Handled, IdSource, NamespaceInfo, NamespaceView, SingleEntity,
};
use proptest::prelude::*;

struct OneNamespace;

impl NamespaceView for OneNamespace {
    fn by_name(&self, _: &str) -> Option<NamespaceInfo> {
        self.by_id("")
    }

    fn by_id(&self, _: &str) -> Option<NamespaceInfo> {
        Some(NamespaceInfo { id: "id".into(), name: "default".into(), retention: Duration::from_secs(1) })
    }
}

fn key() -> ChainKey {
    ChainKey::of(EntityKind::Schedule, "id", "s")
}

/// One schedule, and all that it wants done.
struct World {
    entity: SingleEntity<Schedule>,
    records: Vec<ChainRecord>,
    calls: BTreeMap<CallId, WorkflowCall>,
    now: Timestamp,
    ids: IdSource,
    limits: Limits,
}

const START: &str = "start";
const CANCEL: &str = "cancel";
const TERMINATE: &str = "terminate";

impl World {
    /// Begins at a whole hour.
    fn new() -> Self {
        Self {
            entity: SingleEntity::new(key()),
            records: Vec::new(),
            calls: BTreeMap::new(),
            now: Timestamp(1_700_002_800 * 1_000_000_000),
            ids: IdSource::new(7),
            limits: Limits::default(),
        }
    }

    fn input<T>(&mut self, input: impl FnOnce(&mut SingleEntity<Schedule>, &mut Env) -> T) -> T {
        let (ids, limits) = (&mut self.ids, &self.limits);
        let mut env = Env { now: self.now, limits, ids, namespaces: &OneNamespace };
        input(&mut self.entity, &mut env)
    }

    fn take(&mut self, handled: Handled) -> Option<schedule_reply::Reply> {
        self.records.extend(handled.record);
        for effect in handled.effects {
            let Effect::Call { id, call } = effect else { panic!("an offer by a schedule") };
            self.calls.insert(id, *call);
        }
        self.check();
        let Answer::Reply(reply) = handled.answer else { panic!("no reply") };
        match reply.message.reply {
            Some(workflow_reply::Reply::Schedule(reply)) => reply.reply,
            _ => None,
        }
    }

    fn ask(&mut self, command: schedule_command::Command) -> Result<schedule_reply::Reply, Error> {
        let command = Command::Schedule(Box::new(ScheduleCommand { command: Some(command) }));
        let before = self.entity.head().clone();
        let snapshot = self.entity.snapshot(&before.current_run_id);
        match self.input(|entity, env| entity.handle(command, env)) {
            Ok(handled) => Ok(self.take(handled).expect("a reply")),
            Err(error) => {
                // WF-3
                assert_eq!(self.entity.snapshot(&before.current_run_id), snapshot);
                Err(error)
            }
        }
    }

    fn create(&mut self, schedule: ScheduleMessage) {
        let request = CreateScheduleRequest {
            namespace: "default".into(),
            schedule_id: "s".into(),
            schedule: Some(schedule),
            request_id: "create".into(),
            ..Default::default()
        };
        self.ask(schedule_command::Command::Create(request)).expect("created");
    }

    fn patch(&mut self, patch: SchedulePatch) {
        let request_id = self.ids.uuid();
        let request = PatchScheduleRequest { patch: Some(patch), request_id, ..Default::default() };
        self.ask(schedule_command::Command::Patch(request)).expect("patched");
    }

    fn describe(&mut self) -> DescribeScheduleResponse {
        match self.ask(schedule_command::Command::Describe(Default::default())) {
            Ok(schedule_reply::Reply::Describe(reply)) => reply,
            other => panic!("{other:?}"),
        }
    }

    /// Time passes; timers fire as they come due.
    fn pass(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(due) = self.entity.next_timer().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            let handled = self.input(|entity, env| entity.on_timer(env));
            self.take(handled);
            assert!(self.entity.next_timer().is_none_or(|next| next > self.now), "a timer that does nothing");
        }
        self.now = end;
    }

    /// The outage: nothing happens although time passes.
    fn sleep(&mut self, duration: Duration) {
        self.now = self.now + duration;
    }

    fn kind_of(call: &WorkflowCall) -> &'static str {
        match call.command {
            Some(Command::Start(_)) => START,
            Some(Command::RequestCancel(_)) => CANCEL,
            Some(Command::Terminate(_)) => TERMINATE,
            _ => panic!("{call:?}"),
        }
    }

    fn calls(&self, kind: &str) -> Vec<(CallId, WorkflowCall)> {
        let calls = self.calls.iter().filter(|(_, call)| Self::kind_of(call) == kind);
        calls.map(|(id, call)| (id.clone(), call.clone())).collect()
    }

    fn result(&mut self, id: &CallId, result: Result<WorkflowReply, Error>) {
        self.calls.remove(id);
        let handled = self.input(|entity, env| entity.on_call_result(id, result, env));
        self.take(handled);
    }

    fn answer_start(&mut self, id: &CallId, result: Result<String, Error>) {
        let result = result.map(|run_id| {
            let reply = StartWorkflowExecutionResponse { run_id, started: true, ..Default::default() };
            WorkflowReply { reply: Some(workflow_reply::Reply::Start(reply)) }
        });
        self.result(id, result);
    }

    /// All starts succeed; gives the workflow ids.
    fn start_all(&mut self) -> Vec<String> {
        let mut started = Vec::new();
        loop {
            let calls = self.calls(START);
            let Some((id, call)) = calls.first() else { return started };
            self.answer_start(id, Ok(format!("run of {}", call.workflow_id)));
            started.push(call.workflow_id.clone());
        }
    }

    fn close(&mut self, workflow_id: &str, attributes: Attributes) {
        let schedule = ScheduleRef { schedule_id: "s".into(), incarnation: self.entity.head().current_run_id.clone() };
        let closed = ScheduledWorkflowClosed {
            schedule: Some(schedule),
            workflow_id: workflow_id.to_owned(),
            first_execution_run_id: format!("run of {workflow_id}"),
            close_event: Some(HistoryEvent { attributes: Some(attributes), ..Default::default() }),
            ..Default::default()
        };
        self.ask(schedule_command::Command::WorkflowClosed(closed)).expect("heard");
    }

    fn complete(&mut self, workflow_id: &str) {
        let result = Some(payloads(workflow_id));
        let attributes = WorkflowExecutionCompletedEventAttributes { result, ..Default::default() };
        self.close(workflow_id, Attributes::WorkflowExecutionCompletedEventAttributes(attributes));
    }

    fn fail(&mut self, workflow_id: &str) {
        let failure = Some(Failure { message: "broken".into(), ..Default::default() });
        let attributes = WorkflowExecutionFailedEventAttributes { failure, ..Default::default() };
        self.close(workflow_id, Attributes::WorkflowExecutionFailedEventAttributes(attributes));
    }

    /// WF-1: both ways to a state are the same; a restored one does the same next.
    fn check(&self) {
        let live = &self.entity;
        let mut replayed = SingleEntity::<Schedule>::new(key());
        for record in &self.records {
            replayed.apply(record).expect("applies");
        }
        let run_id = &live.head().current_run_id;
        assert_eq!(live.head(), replayed.head());
        assert_eq!(live.snapshot(run_id), replayed.snapshot(run_id));
        assert_eq!(live.resume(), replayed.resume());
        let mut restored = SingleEntity::<Schedule>::from_head(key(), live.head().clone());
        if let Some(snapshot) = live.snapshot(run_id) {
            restored.insert_run(run_id, snapshot).expect("decodes");
        }
        assert_eq!(restored.resume(), live.resume());
        assert_eq!(restored.snapshot(run_id), live.snapshot(run_id));
        assert!(live.resume().iter().all(|effect| match effect {
            Effect::Call { id, call } => self.calls.get(id).is_none_or(|known| known == &**call),
            Effect::Offer(_) => false,
        }));
    }
}

fn payloads(text: &str) -> Payloads {
    Payloads { payloads: vec![Payload { data: text.as_bytes().to_vec().into(), ..Default::default() }] }
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

/// Every minute.
fn schedule(policy: Policy) -> ScheduleMessage {
    let start = NewWorkflowExecutionInfo { workflow_id: "w".into(), ..Default::default() };
    let interval = IntervalSpec { interval: seconds(60), phase: None };
    ScheduleMessage {
        spec: Some(ScheduleSpec { interval: vec![interval], ..Default::default() }),
        action: Some(ScheduleAction { action: Some(Action::StartWorkflow(start)) }),
        policies: Some(SchedulePolicies { overlap_policy: policy as i32, ..Default::default() }),
        state: None,
    }
}

const MINUTE: Duration = Duration::from_secs(60);

fn minutes(count: i64) -> Duration {
    Duration(MINUTE.0 * count)
}

#[test]
fn a_workflow_every_minute() {
    let mut world = World::new();
    world.create(schedule(Policy::Skip));
    world.pass(MINUTE);
    let (_, call) = world.calls(START).remove(0);
    let Some(Command::Start(start)) = call.command else { panic!() };
    let request = start.request.expect("a request");
    assert_eq!(request.workflow_id, "w-2023-11-14T23:01:00Z");
    assert_eq!(request.identity, "temporal-scheduler-default-s");
    let attribute = |name: &str| {
        let fields = &request.search_attributes.as_ref().expect("attributes").indexed_fields;
        String::from_utf8(fields[name].data.to_vec()).expect("text")
    };
    assert_eq!(attribute("TemporalScheduledById"), "\"s\"");
    assert_eq!(attribute("TemporalScheduledStartTime"), "\"2023-11-14T23:01:00Z\"");

    let first = world.start_all().remove(0);
    world.complete(&first);
    world.pass(MINUTE);
    let (_, call) = world.calls(START).remove(0);
    let Some(Command::Start(start)) = call.command else { panic!() };
    assert_eq!(start.request.expect("a request").last_completion_result, Some(payloads(&first)));
    let second = world.start_all().remove(0);

    let described = world.describe();
    let info = described.info.expect("info");
    assert_eq!((info.action_count, info.running_workflows.len(), info.future_action_times.len()), (2, 1, 10));
    let statuses: Vec<i32> = info.recent_actions.iter().map(|action| action.start_workflow_status).collect();
    assert_eq!(statuses, [Status::Completed as i32, Status::Running as i32]);
    let execution = WorkflowExecution { workflow_id: second.clone(), run_id: format!("run of {second}") };
    assert_eq!(info.running_workflows, [execution]);
}

#[test]
fn overlap() {
    let started_after = |policy: Policy| {
        let mut world = World::new();
        world.create(schedule(policy));
        world.pass(MINUTE);
        let first = world.start_all().remove(0);
        world.pass(minutes(2));
        let started_meanwhile = world.start_all().len();
        let stops = (world.calls(CANCEL).len(), world.calls(TERMINATE).len());
        world.complete(&first);
        let started_later = world.start_all().len();
        let info = world.describe().info.expect("info");
        (started_meanwhile, stops, started_later, info.overlap_skipped, info.buffer_size)
    };
    assert_eq!(started_after(Policy::Skip), (0, (0, 0), 0, 2, 0));
    assert_eq!(started_after(Policy::BufferOne), (0, (0, 0), 1, 1, 0));
    assert_eq!(started_after(Policy::BufferAll), (0, (0, 0), 1, 0, 1));
    assert_eq!(started_after(Policy::AllowAll), (2, (0, 0), 0, 0, 0));
    assert_eq!(started_after(Policy::CancelOther), (0, (1, 0), 1, 1, 0));
    assert_eq!(started_after(Policy::TerminateOther), (0, (0, 1), 1, 1, 0));
}

#[test]
fn an_end_that_is_faster_than_the_answer_to_the_start() {
    let mut world = World::new();
    world.create(schedule(Policy::BufferAll));
    world.pass(MINUTE);
    let (id, call) = world.calls(START).remove(0);
    world.complete(&call.workflow_id);
    let info = world.describe().info.expect("info");
    assert_eq!((info.action_count, info.running_workflows.len()), (1, 0));
    assert_eq!(info.recent_actions[0].start_workflow_status, Status::Completed as i32);
    world.answer_start(&id, Ok(format!("run of {}", call.workflow_id)));
    assert_eq!(world.describe().info.expect("info").running_workflows, []);
}

#[test]
fn who_is_not_there_is_not_waited_for() {
    let mut world = World::new();
    world.create(schedule(Policy::CancelOther));
    world.pass(MINUTE);
    let first = world.start_all().remove(0);
    world.pass(MINUTE);
    let (id, _) = world.calls(CANCEL).remove(0);
    // Closed: it will tell.
    world.result(&id, Err(Error::not_found("workflow execution already completed")));
    assert_eq!(world.start_all().len(), 0);
    world.complete(&first);
    assert_eq!(world.start_all().len(), 1);
    world.pass(MINUTE);
    let (id, _) = world.calls(CANCEL).remove(0);
    world.result(&id, Err(Error::not_found("workflow not found for ID: w")));
    assert_eq!(world.start_all().len(), 1);
}

#[test]
fn pauses() {
    let mut world = World::new();
    let mut message = schedule(Policy::Skip);
    message.policies.get_or_insert_default().pause_on_failure = true;
    world.create(message);
    world.pass(MINUTE);
    let first = world.start_all().remove(0);
    world.fail(&first);
    let state = world.describe().schedule.and_then(|s| s.state).expect("state");
    assert!(state.paused);
    assert_eq!(state.notes, format!("paused due to workflow failure: {first}: broken"));
    world.pass(minutes(10));
    assert_eq!(world.start_all().len(), 0);
    // What a trigger asks for is done all the same.
    let trigger = TriggerImmediatelyRequest::default();
    world.patch(SchedulePatch { trigger_immediately: Some(trigger), ..Default::default() });
    let second = world.start_all().remove(0);
    world.complete(&second);
    world.patch(SchedulePatch { unpause: "go on".into(), ..Default::default() });
    // The time that was spent paused is not caught up.
    assert_eq!(world.start_all().len(), 0);
    world.pass(MINUTE);
    assert_eq!(world.start_all().len(), 1);
    let info = world.describe().info.expect("info");
    assert_eq!((info.action_count, info.missed_catchup_window, info.overlap_skipped), (3, 0, 0));
}

#[test]
fn outages_are_caught_up_within_the_window() {
    let mut world = World::new();
    let mut message = schedule(Policy::AllowAll);
    message.policies.get_or_insert_default().catchup_window = seconds(10 * 60);
    world.create(message);
    world.sleep(minutes(60));
    world.pass(Duration(1));
    assert_eq!(world.start_all().len(), 11);
    assert_eq!(world.describe().info.expect("info").missed_catchup_window, 49);
}

#[test]
fn limited_actions() {
    let mut world = World::new();
    let state = ScheduleState { limited_actions: true, remaining_actions: 2, ..Default::default() };
    world.create(ScheduleMessage { state: Some(state), ..schedule(Policy::AllowAll) });
    assert_eq!(world.describe().info.expect("info").future_action_times.len(), 2);
    world.pass(minutes(10));
    assert_eq!(world.start_all().len(), 2);
    let described = world.describe();
    assert_eq!(described.schedule.and_then(|s| s.state).expect("state").remaining_actions, 0);
    assert!(described.info.expect("info").future_action_times.is_empty());
    // Some days later it goes.
    world.pass(Duration::from_secs(8 * 24 * 3600));
    let gone = world.ask(schedule_command::Command::Describe(Default::default()));
    assert_eq!(gone.expect_err("gone").grpc_code(), perdure_proto::Code::NotFound);
    assert!(world.entity.next_timer().is_none());
}

#[test]
fn backfills() {
    let mut world = World::new();
    let state = ScheduleState { paused: true, ..Default::default() };
    world.create(ScheduleMessage { state: Some(state), ..schedule(Policy::Skip) });
    let (start, end) = (world.now - minutes(100), world.now - minutes(60));
    let backfill = BackfillRequest {
        start_time: start.to_proto(),
        end_time: end.to_proto(),
        overlap_policy: Policy::AllowAll as i32,
    };
    world.patch(SchedulePatch { backfill_request: vec![backfill], ..Default::default() });
    assert_eq!(world.start_all().len(), 10, "a step at a time");
    world.pass(Duration::from_secs(5));
    // Both ends belong to it.
    assert_eq!(world.start_all().len(), 31);
    world.pass(minutes(10));
    assert_eq!(world.start_all().len(), 0);
}

#[test]
fn updates_and_their_conflicts() {
    let mut world = World::new();
    world.create(schedule(Policy::Skip));
    let token = world.describe().conflict_token;
    world.patch(SchedulePatch { pause: "wait".into(), ..Default::default() });
    let mut hourly = schedule(Policy::Skip);
    hourly.spec = Some(ScheduleSpec { cron_string: vec!["@hourly".into()], ..Default::default() });
    let update = UpdateScheduleRequest { schedule: Some(hourly), conflict_token: token, ..Default::default() };
    let refused = world.ask(schedule_command::Command::Update(update.clone())).expect_err("a conflict");
    assert_eq!(
        (refused.grpc_code(), refused.message.as_str()),
        (perdure_proto::Code::FailedPrecondition, "mismatched conflict token")
    );
    let update = UpdateScheduleRequest { conflict_token: Default::default(), ..update };
    world.ask(schedule_command::Command::Update(update.clone())).expect("updated");
    assert!(!world.describe().schedule.and_then(|s| s.state).expect("state").paused);
    world.pass(minutes(70));
    assert_eq!(world.start_all().len(), 1);
    let mut bad = update;
    bad.schedule.get_or_insert_default().spec.get_or_insert_default().cron_string = vec!["bogus".into()];
    let refused = world.ask(schedule_command::Command::Update(bad)).expect_err("no specification");
    assert_eq!(refused.message, "Invalid schedule spec: CronString does not have 5-7 fields");
}

#[test]
fn an_id_is_used_once_at_a_time() {
    let mut world = World::new();
    world.create(schedule(Policy::Skip));
    // The same request is answered again.
    world.create(schedule(Policy::Skip));
    let other = CreateScheduleRequest { request_id: "other".into(), ..Default::default() };
    let refused = world.ask(schedule_command::Command::Create(other)).expect_err("taken");
    assert_eq!(refused.grpc_code(), perdure_proto::Code::AlreadyExists);
    let incarnation = world.entity.head().current_run_id.clone();
    world.ask(schedule_command::Command::Delete(Default::default())).expect("deleted");
    assert!(world.entity.next_timer().is_none() && world.entity.resume().is_empty());
    world.create(schedule(Policy::Skip));
    assert_ne!(world.entity.head().current_run_id, incarnation);
}

#[derive(Debug, Clone)]
enum Step {
    Pass(i64),
    Sleep(i64),
    AnswerStart(bool),
    Complete,
    Fail,
    AnswerStops,
    Trigger(i32),
    Pause(bool),
    Repolicy(i32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1_i64..200).prop_map(Step::Pass),
        1 => (1_i64..3000).prop_map(Step::Sleep),
        4 => any::<bool>().prop_map(Step::AnswerStart),
        3 => Just(Step::Complete),
        1 => Just(Step::Fail),
        1 => Just(Step::AnswerStops),
        1 => (0..7).prop_map(Step::Trigger),
        1 => any::<bool>().prop_map(Step::Pause),
        1 => (0..7).prop_map(Step::Repolicy),
    ]
}

proptest! {
    /// Whatever happens: replay equals live (checked after every input), nothing runs beside another against the
    /// policy, and every action ends in exactly one of the counters.
    #[test]
    fn every_action_is_accounted_for(policy in 0..7, steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        let policy = Policy::try_from(policy).unwrap_or_default();
        let mut message = schedule(policy);
        message.policies.get_or_insert_default().catchup_window = seconds(600);
        world.create(message.clone());
        let mut running: Vec<String> = Vec::new();
        let mut manual = 0;
        for step in steps {
            match step {
                Step::Pass(secs) => world.pass(Duration::from_secs(secs)),
                Step::Sleep(secs) => world.sleep(Duration::from_secs(secs)),
                Step::AnswerStart(ok) => {
                    if let Some((id, call)) = world.calls(START).into_iter().next() {
                        if ok {
                            running.push(call.workflow_id.clone());
                            world.answer_start(&id, Ok(format!("run of {}", call.workflow_id)));
                        } else {
                            world.answer_start(&id, Err(Error::invalid_argument("no")));
                        }
                    }
                }
                Step::Complete => running.pop().into_iter().for_each(|id| world.complete(&id)),
                Step::Fail => running.pop().into_iter().for_each(|id| world.fail(&id)),
                Step::AnswerStops => {
                    let calls = world.calls(CANCEL).into_iter().chain(world.calls(TERMINATE));
                    for (id, _) in calls.collect::<Vec<_>>() {
                        world.result(&id, Ok(WorkflowReply::default()));
                    }
                }
                Step::Trigger(policy) => {
                    manual += 1;
                    let trigger = TriggerImmediatelyRequest { overlap_policy: policy, scheduled_time: None };
                    world.patch(SchedulePatch { trigger_immediately: Some(trigger), ..Default::default() });
                }
                Step::Pause(pause) => {
                    let (on, off) = if pause { ("p", "") } else { ("", "u") };
                    world.patch(SchedulePatch { pause: on.into(), unpause: off.into(), ..Default::default() });
                }
                Step::Repolicy(policy) => {
                    message.policies.get_or_insert_default().overlap_policy = policy;
                    let request = UpdateScheduleRequest { schedule: Some(message.clone()), ..Default::default() };
                    world.ask(schedule_command::Command::Update(request)).expect("updated");
                }
            }
        }
        let info = world.describe().info.expect("info");
        let starting = world.calls(START).len() as i64;
        let accounted = info.action_count + info.overlap_skipped + info.buffer_dropped + info.buffer_size + starting;
        let due = (world.now.0 - 1_700_002_800 * 1_000_000_000) / MINUTE.0;
        prop_assert!(accounted + info.missed_catchup_window <= due + manual);
        prop_assert!(accounted >= manual);
    }
}

/// Without pauses the account is exact.
#[test]
fn the_account_is_exact() {
    for policy in [Policy::Skip, Policy::BufferOne, Policy::BufferAll, Policy::AllowAll, Policy::CancelOther] {
        let mut world = World::new();
        let mut message = schedule(policy);
        message.policies.get_or_insert_default().catchup_window = seconds(600);
        world.create(message);
        for round in 0..50 {
            world.pass(minutes(1 + round % 3));
            if round % 7 == 0 {
                world.sleep(minutes(20));
            }
            for workflow in world.start_all() {
                if round % 2 == 0 {
                    world.complete(&workflow);
                }
            }
        }
        world.pass(Duration(1));
        let due = (world.now.0 - 1_700_002_800 * 1_000_000_000) / MINUTE.0;
        let starting = world.calls(START).len() as i64;
        let info = world.describe().info.expect("info");
        let accounted = info.action_count
            + info.overlap_skipped
            + info.buffer_dropped
            + info.buffer_size
            + info.missed_catchup_window
            + starting;
        assert_eq!(accounted, due, "{policy:?}: {info:?}");
    }
}
