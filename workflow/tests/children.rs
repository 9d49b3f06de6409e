//! Children and other workflows: what they tell each other, in any order, once.

mod common;

use std::collections::BTreeMap;

use common::*;
use perdure_proto::{
    Code, Error,
    perdure::node::v1::{TerminateWorkflow, WorkflowReply, workflow_call, workflow_reply},
    temporal::api::{
        command::v1::{
            Command, ContinueAsNewWorkflowExecutionCommandAttributes,
            RequestCancelExternalWorkflowExecutionCommandAttributes, SignalExternalWorkflowExecutionCommandAttributes,
            StartChildWorkflowExecutionCommandAttributes, command::Attributes as C,
        },
        common::v1::{Priority, WorkflowExecution, WorkflowType},
        enums::v1::{
            CancelExternalWorkflowExecutionFailedCause, CommandType, EventType as E, ParentClosePolicy,
            SignalExternalWorkflowExecutionFailedCause, StartChildWorkflowExecutionFailedCause,
            WorkflowExecutionStatus as S,
        },
        history::v1::{WorkflowExecutionStartedEventAttributes, history_event::Attributes},
        sdk::v1::UserMetadata,
        workflowservice::v1::{StartWorkflowExecutionRequest, TerminateWorkflowExecutionRequest},
    },
};
use perdure_types::Duration;
use perdure_workflow::{CallId, CallKind};

/// Chains that call each other.
struct World {
    chains: BTreeMap<String, TestChain>,
}

impl World {
    /// A parent whose first workflow task is scheduled.
    fn new() -> Self {
        let mut world = Self { chains: BTreeMap::new() };
        world.chain(WORKFLOW_ID).start();
        world
    }

    fn chain(&mut self, workflow_id: &str) -> &mut TestChain {
        let seed = 1000 + self.chains.len() as u64;
        self.chains.entry(workflow_id.to_owned()).or_insert_with(|| TestChain::named(workflow_id, seed))
    }

    fn parent(&mut self) -> &mut TestChain {
        self.chain(WORKFLOW_ID)
    }

    /// Takes the oldest call of a chain to its target; the result is not brought back.
    fn deliver(&mut self, from: &str) -> (CallId, Result<WorkflowReply, Error>) {
        let chain = self.chain(from);
        assert!(!chain.calls.is_empty(), "{from} makes no call");
        let (id, call) = chain.calls.remove(0);
        let target = self.chain(&call.workflow_id);
        let result = target.try_call(call.command.expect("a command")).map(|reply| reply.message);
        (id, result)
    }

    fn deliver_and_answer(&mut self, from: &str) -> Result<WorkflowReply, Error> {
        let (id, result) = self.deliver(from);
        self.chain(from).on_call_result(&id, result.clone());
        result
    }

    /// Until nobody calls anybody.
    fn settle(&mut self) {
        for _ in 0..1000 {
            let Some(from) = self.chains.iter().find(|(_, c)| !c.calls.is_empty()).map(|(id, _)| id.clone()) else {
                return;
            };
            let _ = self.deliver_and_answer(&from);
        }
        panic!("calls do not come to rest");
    }

    fn status(&mut self, workflow_id: &str) -> S {
        let chain = self.chain(workflow_id);
        chain.chain.run_view(&chain.run_id()).expect("a run").status
    }
}

fn child_with(id: &str, change: impl FnOnce(&mut StartChildWorkflowExecutionCommandAttributes)) -> Command {
    let mut attributes = StartChildWorkflowExecutionCommandAttributes {
        workflow_id: id.to_owned(),
        workflow_type: Some(WorkflowType { name: "Child".to_owned() }),
        input: Some(payloads("in")),
        ..Default::default()
    };
    change(&mut attributes);
    command(CommandType::StartChildWorkflowExecution, C::StartChildWorkflowExecutionCommandAttributes(attributes))
}

fn child(id: &str) -> Command {
    child_with(id, |_| {})
}

fn signal(id: &str, child_only: bool) -> Command {
    let attributes = SignalExternalWorkflowExecutionCommandAttributes {
        execution: Some(WorkflowExecution { workflow_id: id.to_owned(), ..Default::default() }),
        signal_name: "go".to_owned(),
        child_workflow_only: child_only,
        ..Default::default()
    };
    command(
        CommandType::SignalExternalWorkflowExecution,
        C::SignalExternalWorkflowExecutionCommandAttributes(attributes),
    )
}

fn cancel(id: &str, child_only: bool) -> Command {
    let attributes = RequestCancelExternalWorkflowExecutionCommandAttributes {
        workflow_id: id.to_owned(),
        child_workflow_only: child_only,
        reason: "why".to_owned(),
        ..Default::default()
    };
    command(
        CommandType::RequestCancelExternalWorkflowExecution,
        C::RequestCancelExternalWorkflowExecutionCommandAttributes(attributes),
    )
}

fn continue_as_new() -> Command {
    let attributes = ContinueAsNewWorkflowExecutionCommandAttributes::default();
    command(CommandType::ContinueAsNewWorkflowExecution, C::ContinueAsNewWorkflowExecutionCommandAttributes(attributes))
}

fn terminate(chain: &mut TestChain) {
    let request = TerminateWorkflowExecutionRequest { namespace: NAMESPACE.to_owned(), ..Default::default() };
    let command = TerminateWorkflow { request: Some(request), ..Default::default() };
    chain.call(workflow_call::Command::Terminate(command));
}

fn started(chain: &TestChain) -> &WorkflowExecutionStartedEventAttributes {
    match &chain.event(1).attributes {
        Some(Attributes::WorkflowExecutionStartedEventAttributes(started)) => started,
        other => panic!("event 1 is {other:?}"),
    }
}

#[test]
fn a_child_is_started_runs_and_ends() {
    let mut world = World::new();
    let mut start =
        child_with("child", |a| a.priority = Some(Priority { fairness_key: "f".into(), ..Default::default() }));
    start.user_metadata = Some(UserMetadata::default());
    world.parent().work(vec![start]);
    world.parent().assert_types_from(4, &[E::WorkflowTaskCompleted, E::StartChildWorkflowExecutionInitiated]);
    let Some(Attributes::StartChildWorkflowExecutionInitiatedEventAttributes(initiated)) =
        world.parent().event(5).attributes.clone()
    else {
        panic!("not initiated")
    };
    assert_eq!((initiated.namespace.as_str(), initiated.namespace_id.as_str()), (NAMESPACE, NAMESPACE_ID));
    assert_eq!(initiated.task_queue.as_ref().expect("queue").name, QUEUE, "the parent's");
    assert_eq!(initiated.parent_close_policy(), ParentClosePolicy::Terminate);
    assert_eq!(initiated.workflow_task_timeout, Some(Duration::from_secs(10).to_proto()));

    world.settle();
    let parent = WorkflowExecution { workflow_id: WORKFLOW_ID.to_owned(), run_id: world.parent().run_id() };
    let begun = started(world.chain("child"));
    assert_eq!((&begun.parent_workflow_execution, begun.parent_initiated_event_id), (&Some(parent.clone()), 5));
    assert_eq!(
        (begun.parent_workflow_namespace.as_str(), begun.parent_workflow_namespace_id.as_str()),
        (NAMESPACE, NAMESPACE_ID)
    );
    assert_eq!(begun.root_workflow_execution, Some(parent));
    assert_eq!(
        (&begun.input, begun.priority.as_ref().expect("priority").fairness_key.as_str()),
        (&Some(payloads("in")), "f")
    );
    assert!(world.chain("child").event(1).user_metadata.is_some());
    world.parent().assert_types_from(6, &[E::ChildWorkflowExecutionStarted, E::WorkflowTaskScheduled]);

    world.chain("child").work(vec![commands::complete("out")]);
    world.settle();
    world.parent().assert_types_from(8, &[E::ChildWorkflowExecutionCompleted]);
    let child_run = world.chain("child").run_id();
    let Attributes::ChildWorkflowExecutionCompletedEventAttributes(completed) = world.parent().last() else {
        panic!("not completed")
    };
    assert_eq!((completed.initiated_event_id, completed.started_event_id), (5, 6));
    assert_eq!(completed.result, Some(payloads("out")));
    assert_eq!(completed.workflow_execution.as_ref().expect("execution").run_id, child_run);
    assert!(world.chain("child").snapshot().info.expect("info").parent_notified);
    assert!(world.parent().snapshot().children.is_empty());
}

#[test]
fn five_ways_to_end() {
    for (status, event) in [
        (S::Completed, E::ChildWorkflowExecutionCompleted),
        (S::Failed, E::ChildWorkflowExecutionFailed),
        (S::TimedOut, E::ChildWorkflowExecutionTimedOut),
        (S::Terminated, E::ChildWorkflowExecutionTerminated),
        (S::Canceled, E::ChildWorkflowExecutionCanceled),
    ] {
        let mut world = World::new();
        world
            .parent()
            .work(vec![child_with("child", |a| a.workflow_run_timeout = Some(Duration::from_secs(9).to_proto()))]);
        world.settle();
        let child = world.chain("child");
        match status {
            S::Completed => child.work(vec![commands::complete("")]),
            S::Failed => child.work(vec![commands::fail(application_failure("x"))]),
            S::TimedOut => child.advance_secs(9),
            S::Terminated => terminate(child),
            _ => child.work(vec![command(
                CommandType::CancelWorkflowExecution,
                C::CancelWorkflowExecutionCommandAttributes(Default::default()),
            )]),
        }
        assert_eq!(world.status("child"), status);
        world.settle();
        assert_eq!(world.parent().types().last(), Some(&event));
    }
}

#[test]
fn the_close_is_told_once_whatever_is_repeated() {
    let mut world = World::new();
    world.parent().work(vec![child("child")]);
    world.settle();
    world.chain("child").work(vec![commands::complete("")]);
    // The parent hears of it, the child does not hear that it did, and dies.
    let (_, result) = world.deliver("child");
    result.expect("told");
    world.chain("child").crash();
    assert_eq!(world.chain("child").calls.len(), 1, "told again");
    let again = world.deliver_and_answer("child").expect_err("known already");
    assert_eq!((again.grpc_code(), again.message.as_str()), (Code::NotFound, "Pending child execution not found."));
    assert!(world.chain("child").calls.is_empty());
    world.chain("child").crash();
    assert!(world.chain("child").calls.is_empty());
    let ends = world.parent().types().iter().filter(|t| **t == E::ChildWorkflowExecutionCompleted).count();
    assert_eq!(ends, 1);
}

#[test]
fn a_lost_start_is_repeated_and_finds_its_child() {
    let mut world = World::new();
    world.parent().work(vec![child("child")]);
    let (_, result) = world.deliver(WORKFLOW_ID);
    result.expect("started");
    world.parent().crash();
    world.settle();
    assert_eq!(world.chain("child").histories.len(), 1);
    world.parent().assert_types_from(6, &[E::ChildWorkflowExecutionStarted, E::WorkflowTaskScheduled]);
}

#[test]
fn a_lost_start_finds_its_child_though_the_id_is_in_use_again() {
    let mut world = World::new();
    world.parent().work(vec![child("child")]);
    let (_, result) = world.deliver(WORKFLOW_ID);
    result.expect("started");
    let child = world.chain("child");
    let first = child.run_id();
    child.work(vec![commands::complete("out")]);
    child.start_with(StartWorkflowExecutionRequest {
        workflow_id: "child".into(),
        request_id: "somebody else's".into(),
        ..TestChain::start_request()
    });
    child.work(vec![commands::complete("")]);
    // The parent knows neither of the start nor of the end: the run is kept, and loaded with the chain.
    assert_eq!(child.chain.head().unsettled_run_ids, std::slice::from_ref(&first));
    child.unload_closed();
    child.crash();
    world.parent().crash();
    world.deliver_and_answer(WORKFLOW_ID).expect("the same child");
    world.settle();
    use E::{ChildWorkflowExecutionCompleted as Completed, ChildWorkflowExecutionStarted as Started};
    world.parent().assert_types_from(6, &[Started, E::WorkflowTaskScheduled, Completed]);
    let child = world.chain("child");
    assert_eq!(child.histories.len(), 2);
    assert!(child.chain.head().unsettled_run_ids.is_empty());
    child.unload_closed();
    assert!(!child.chain.has_run(&first));
}

#[test]
fn a_child_may_end_before_its_start_is_known() {
    let mut world = World::new();
    world.parent().work(vec![child("child")]);
    let (id, result) = world.deliver(WORKFLOW_ID);
    let first_run = world.chain("child").run_id();
    world.chain("child").work(vec![continue_as_new()]);
    world.chain("child").work(vec![commands::complete("out")]);
    world.settle();
    use E::{ChildWorkflowExecutionCompleted as Completed, ChildWorkflowExecutionStarted as Started};
    world.parent().assert_types_from(6, &[Started, E::WorkflowTaskScheduled, Completed]);
    let Some(Attributes::ChildWorkflowExecutionStartedEventAttributes(begun)) =
        world.parent().event(6).attributes.clone()
    else {
        panic!("not started")
    };
    assert_eq!(begun.workflow_execution.expect("execution").run_id, first_run);
    world.parent().on_call_result(&id, result);
    assert_eq!(world.parent().history().len(), 8);
}

#[test]
fn what_happens_during_a_workflow_task_is_buffered_in_order() {
    let mut world = World::new();
    world.parent().work(vec![child("child"), commands::timer("t", 1)]);
    world.parent().advance_secs(1);
    let task = world.parent().poll();
    world.settle();
    world.chain("child").work(vec![commands::complete("")]);
    world.settle();
    world.parent().crash();
    world.parent().complete(&task, vec![]);
    use E::{ChildWorkflowExecutionCompleted as Completed, ChildWorkflowExecutionStarted as Started};
    world.parent().assert_types_from(10, &[E::WorkflowTaskCompleted, Started, Completed, E::WorkflowTaskScheduled]);
    let Some(Attributes::ChildWorkflowExecutionCompletedEventAttributes(completed)) =
        &world.parent().event(12).attributes.clone()
    else {
        panic!("not completed")
    };
    assert_eq!((completed.initiated_event_id, completed.started_event_id), (5, 11));
}

#[test]
fn only_the_last_run_of_a_child_is_its_end() {
    let mut world = World::new();
    world.parent().work(vec![child_with("child", |a| a.retry_policy = Some(Default::default()))]);
    world.settle();
    let first = world.chain("child").run_id();
    world.chain("child").work(vec![continue_as_new()]);
    world.chain("child").advance_secs(1);
    assert!(world.chain("child").calls.is_empty());
    world.chain("child").work(vec![commands::complete("")]);
    world.settle();
    let last = world.chain("child").run_id();
    assert_ne!(first, last);
    let Attributes::ChildWorkflowExecutionCompletedEventAttributes(completed) = world.parent().last() else {
        panic!("not completed: {:?}", world.parent().last())
    };
    assert_eq!(completed.workflow_execution.as_ref().expect("execution").run_id, last);
}

#[test]
fn a_child_that_cannot_be_started() {
    let mut world = World::new();
    let request = StartWorkflowExecutionRequest { workflow_id: "taken".into(), ..TestChain::start_request() };
    world.chain("taken").start_with(request);
    world.parent().work(vec![child("taken")]);
    world.settle();
    world.parent().assert_types_from(6, &[E::StartChildWorkflowExecutionFailed, E::WorkflowTaskScheduled]);
    let Some(Attributes::StartChildWorkflowExecutionFailedEventAttributes(failed)) =
        &world.parent().event(6).attributes
    else {
        panic!("not failed")
    };
    assert_eq!(failed.cause(), StartChildWorkflowExecutionFailedCause::WorkflowAlreadyExists);
    assert_eq!((failed.initiated_event_id, failed.workflow_id.as_str()), (5, "taken"));
    assert!(world.parent().snapshot().children.is_empty());
}

#[test]
#[allow(deprecated)]
fn a_namespace_that_does_not_exist() {
    let mut world = World::new();
    let mut lost_signal = signal("x", false);
    if let Some(C::SignalExternalWorkflowExecutionCommandAttributes(a)) = &mut lost_signal.attributes {
        a.namespace = "nowhere".into();
    }
    world.parent().work(vec![
        child_with("child", |a| a.namespace = "nowhere".into()),
        lost_signal,
        commands::marker("m"),
    ]);
    world.parent().assert_types_from(
        5,
        &[
            E::StartChildWorkflowExecutionInitiated,
            E::SignalExternalWorkflowExecutionInitiated,
            E::MarkerRecorded,
            E::StartChildWorkflowExecutionFailed,
            E::SignalExternalWorkflowExecutionFailed,
            E::WorkflowTaskScheduled,
        ],
    );
    let Some(Attributes::StartChildWorkflowExecutionFailedEventAttributes(failed)) =
        &world.parent().event(8).attributes
    else {
        panic!("not failed")
    };
    assert_eq!(failed.cause(), StartChildWorkflowExecutionFailedCause::NamespaceNotFound);
    assert!(world.parent().calls.is_empty());
}

#[test]
fn bad_children() {
    let check = |commands: Vec<Command>, expect: &str| {
        let mut world = World::new();
        let task = world.parent().poll();
        let error = world.parent().try_complete(&task, commands).expect_err("bad");
        assert_eq!(error.message, expect);
        assert!(world.parent().calls.is_empty(), "nothing was called");
    };
    check(
        vec![child("")],
        "BadStartChildExecutionAttributes: Required field WorkflowId is not set on StartChildWorkflowExecutionCommand. \
         WorkflowType=Child Namespace=default",
    );
    check(
        vec![child_with("child", |a| a.cron_schedule = "x".into())],
        "BadStartChildExecutionAttributes: invalid CronSchedule on StartChildWorkflowExecutionCommand: \
         invalid CronSchedule.. WorkflowId=child WorkflowType=Child Namespace=default",
    );
    check(
        vec![child("child"), cancel("child", true)],
        "BadRequestCancelExternalWorkflowExecutionAttributes: Start and RequestCancel for child workflow is not allowed \
         in same workflow task. WorkflowId=child RunId= Namespace=",
    );
    check(
        vec![signal("", false)],
        "BadSignalWorkflowExecutionAttributes: WorkflowId is not set on SignalExternalWorkflowExecutionCommand. \
         WorkflowId= RunId= Namespace=",
    );
}

#[test]
fn pending_children_are_limited() {
    let mut world = World::new();
    world.parent().limits.pending_child_executions_error = 2;
    let task = world.parent().poll();
    let error = world.parent().try_complete(&task, vec![child("a"), child("b"), child("c")]).expect_err("too many");
    assert_eq!(
        error.message,
        "PendingChildWorkflowsLimitExceeded: the number of pending child workflow executions, 2, has reached the \
         per-workflow limit of 2"
    );
}

#[test]
fn parent_close_policies() {
    for (policy, expect) in [
        (ParentClosePolicy::Unspecified, E::WorkflowExecutionTerminated),
        (ParentClosePolicy::Terminate, E::WorkflowExecutionTerminated),
        (ParentClosePolicy::RequestCancel, E::WorkflowExecutionCancelRequested),
        (ParentClosePolicy::Abandon, E::WorkflowTaskScheduled),
    ] {
        let mut world = World::new();
        world.parent().work(vec![child_with("child", |a| a.set_parent_close_policy(policy))]);
        world.settle();
        // The policy reaches the child across its own runs.
        world.chain("child").work(vec![continue_as_new()]);
        world.parent().work(vec![commands::complete("")]);
        // The call is not lost when the parent dies.
        world.parent().crash();
        world.settle();
        assert_eq!(world.chain("child").types().last(), Some(&expect), "{policy:?}");
        assert!(world.parent().snapshot().children.is_empty(), "{policy:?}");
        let end = world.parent().chain.next_timer();
        assert_eq!(end, Some(world.parent().now + Duration::from_secs(3 * 24 * 3600)), "{policy:?}");
    }
}

#[test]
fn a_child_initiated_with_the_close_is_not_started() {
    let mut world = World::new();
    let abandoned = child_with("child", |a| a.set_parent_close_policy(ParentClosePolicy::Abandon));
    world.parent().work(vec![abandoned, signal("other", false), commands::complete("")]);
    assert!(world.parent().calls.is_empty());
    assert!(world.parent().snapshot().children.is_empty());
}

#[test]
fn a_child_whose_start_is_under_way_when_the_parent_closes_is_closed_too() {
    for crash in [false, true] {
        let mut world = World::new();
        world.parent().work(vec![child("child")]);
        let (id, result) = world.deliver(WORKFLOW_ID);
        terminate(world.parent());
        assert!(world.parent().calls.is_empty(), "waits for the result");
        if crash {
            world.parent().crash();
        } else {
            world.parent().on_call_result(&id, result);
        }
        world.settle();
        assert_eq!(world.status("child"), S::Terminated);
        assert!(world.parent().snapshot().children.is_empty());
    }
}

#[test]
fn a_signal_reaches_another_workflow_once() {
    let mut world = World::new();
    world
        .chain("other")
        .start_with(StartWorkflowExecutionRequest { workflow_id: "other".into(), ..TestChain::start_request() });
    world.parent().work(vec![signal("other", false)]);
    let (_, result) = world.deliver(WORKFLOW_ID);
    result.expect("signalled");
    world.parent().crash();
    world.settle();
    world.parent().assert_types_from(
        5,
        &[E::SignalExternalWorkflowExecutionInitiated, E::ExternalWorkflowExecutionSignaled, E::WorkflowTaskScheduled],
    );
    world.chain("other").assert_types_from(3, &[E::WorkflowExecutionSignaled]);
    let run_id = world.parent().run_id();
    let Attributes::WorkflowExecutionSignaledEventAttributes(signaled) = world.chain("other").last() else {
        panic!("no signal")
    };
    let sender = signaled.external_workflow_execution.as_ref().expect("a sender").clone();
    assert_eq!((sender.workflow_id.as_str(), sender.run_id.as_str()), (WORKFLOW_ID, run_id.as_str()));
    let Some(Attributes::ExternalWorkflowExecutionSignaledEventAttributes(signaled)) =
        &world.parent().event(6).attributes
    else {
        panic!("not signaled")
    };
    assert_eq!(signaled.namespace, NAMESPACE, "although the command named none");
}

#[test]
fn a_workflow_that_is_not_there_or_oneself() {
    for target in ["missing", WORKFLOW_ID] {
        let mut world = World::new();
        world.parent().work(vec![signal(target, false), cancel(target, false)]);
        world.settle();
        let failures: Vec<_> = world.parent().history()[6..].iter().filter_map(|e| e.attributes.clone()).collect();
        let mut causes = (None, None);
        for failure in failures {
            match failure {
                Attributes::SignalExternalWorkflowExecutionFailedEventAttributes(a) => causes.0 = Some(a.cause()),
                Attributes::RequestCancelExternalWorkflowExecutionFailedEventAttributes(a) => {
                    causes.1 = Some(a.cause())
                }
                _ => {}
            }
        }
        assert_eq!(
            causes.0,
            Some(SignalExternalWorkflowExecutionFailedCause::ExternalWorkflowExecutionNotFound),
            "{target}"
        );
        assert_eq!(
            causes.1,
            Some(CancelExternalWorkflowExecutionFailedCause::ExternalWorkflowExecutionNotFound),
            "{target}"
        );
        let snapshot = world.parent().snapshot();
        assert!(snapshot.external_signals.is_empty() && snapshot.external_cancels.is_empty());
    }
}

#[test]
fn a_target_that_takes_no_more_signals() {
    let mut world = World::new();
    world
        .chain("other")
        .start_with(StartWorkflowExecutionRequest { workflow_id: "other".into(), ..TestChain::start_request() });
    world.chain("other").limits.signals_per_execution = 0;
    world.parent().work(vec![signal("other", false)]);
    world.settle();
    let Some(Attributes::SignalExternalWorkflowExecutionFailedEventAttributes(failed)) =
        &world.parent().event(6).attributes
    else {
        panic!("not failed")
    };
    assert_eq!(failed.cause(), SignalExternalWorkflowExecutionFailedCause::SignalCountLimitExceeded);
}

#[test]
fn an_unavailable_target_is_no_answer() {
    let mut world = World::new();
    world.parent().work(vec![signal("other", false), child("child")]);
    let calls: Vec<CallId> = world.parent().calls.iter().map(|(id, _)| id.clone()).collect();
    for id in &calls {
        world.parent().on_call_result(id, Err(Error::unavailable("later")));
    }
    assert_eq!(world.parent().history().len(), 6);
    world.parent().crash();
    assert_eq!(world.parent().calls.len(), 2);
}

#[test]
fn messages_to_a_child_wait_for_its_start() {
    let mut world = World::new();
    world.parent().work(vec![child("child"), signal("child", true), commands::timer("t", 1)]);
    world.parent().advance_secs(1);
    world.parent().work(vec![cancel("child", true)]);
    let kinds = |world: &mut World| world.parent().calls.iter().map(|(id, _)| id.kind).collect::<Vec<_>>();
    assert_eq!(kinds(&mut world), [CallKind::StartChild]);
    world.parent().crash();
    assert_eq!(kinds(&mut world), [CallKind::StartChild]);
    let reply = world.deliver_and_answer(WORKFLOW_ID).expect("started");
    assert!(matches!(reply.reply, Some(workflow_reply::Reply::Start(_))));
    assert_eq!(kinds(&mut world), [CallKind::SignalExternal, CallKind::CancelExternal]);
    world.settle();
    world.chain("child").assert_types_from(
        2,
        &[E::WorkflowTaskScheduled, E::WorkflowExecutionSignaled, E::WorkflowExecutionCancelRequested],
    );
}

#[test]
fn messages_to_a_child_that_did_not_start_fail() {
    let mut world = World::new();
    world
        .chain("taken")
        .start_with(StartWorkflowExecutionRequest { workflow_id: "taken".into(), ..TestChain::start_request() });
    world.parent().work(vec![child("taken"), signal("taken", true)]);
    world.settle();
    let types = world.parent().types();
    assert_eq!(
        types[6..],
        [E::StartChildWorkflowExecutionFailed, E::WorkflowTaskScheduled, E::SignalExternalWorkflowExecutionFailed]
    );
    assert_eq!(world.chain("taken").history().len(), 2);
}

#[test]
fn a_child_of_a_child_knows_the_root() {
    let mut world = World::new();
    world.parent().work(vec![child("child")]);
    world.settle();
    world.chain("child").work(vec![child("grandchild")]);
    world.settle();
    let root = started(world.chain("grandchild")).root_workflow_execution.clone().expect("a root");
    assert_eq!((root.workflow_id.as_str(), root.run_id), (WORKFLOW_ID, world.parent().run_id()));
}
