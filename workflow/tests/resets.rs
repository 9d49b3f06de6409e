//! Resets: what the new run begins with, what it takes over, what becomes of the old one.

mod common;

use common::{operations::*, updates, *};
use perdure_proto::{
    Code,
    perdure::node::v1::{ChildWorkflowClosed, StartWorkflow, TaskKind, WorkflowReply, workflow_call, workflow_reply},
    temporal::api::{
        command::v1::{Command, StartChildWorkflowExecutionCommandAttributes, command::Attributes as C},
        common::v1::{Priority, WorkerVersionStamp, WorkflowExecution, WorkflowType},
        enums::v1::{
            CommandType, EventType as E, ParentClosePolicy, ResetReapplyExcludeType, UpdateAdmittedEventOrigin,
            WorkflowExecutionStatus as S, WorkflowTaskFailedCause,
        },
        history::v1::{HistoryEvent, WorkflowExecutionCompletedEventAttributes, history_event::Attributes},
        workflow::v1::{PostResetOperation, WorkflowExecutionOptions, post_reset_operation},
        workflowservice::v1::{
            DescribeWorkflowExecutionRequest, DescribeWorkflowExecutionResponse, ResetWorkflowExecutionRequest,
            RespondWorkflowTaskCompletedRequest, StartWorkflowExecutionResponse,
        },
    },
};
use perdure_workflow::CallKind;

fn describe(chain: &mut TestChain, run_id: &str) -> DescribeWorkflowExecutionResponse {
    let request = DescribeWorkflowExecutionRequest { namespace: NAMESPACE.to_owned(), execution: execution(run_id) };
    match chain.call(workflow_call::Command::Describe(request)).message.reply {
        Some(workflow_reply::Reply::Describe(described)) => *described,
        other => panic!("not a description: {other:?}"),
    }
}

fn child(id: &str) -> Command {
    let attributes = StartChildWorkflowExecutionCommandAttributes {
        workflow_id: id.to_owned(),
        workflow_type: Some(WorkflowType { name: "Child".to_owned() }),
        parent_close_policy: ParentClosePolicy::Terminate as i32,
        ..StartChildWorkflowExecutionCommandAttributes::default()
    };
    command(CommandType::StartChildWorkflowExecution, C::StartChildWorkflowExecutionCommandAttributes(attributes))
}

fn failed(event: &HistoryEvent) -> &perdure_proto::temporal::api::history::v1::WorkflowTaskFailedEventAttributes {
    match &event.attributes {
        Some(Attributes::WorkflowTaskFailedEventAttributes(failed)) => failed,
        other => panic!("no failed workflow task: {other:?}"),
    }
}

#[test]
fn a_new_run_begins_where_the_old_one_went_wrong() {
    let mut chain = TestChain::started();
    let old = chain.run_id();
    chain.work(vec![commands::activity("1")]);
    chain.advance_secs(100);
    let new = reset(&mut chain, 4);

    assert_ne!(new, old);
    assert_eq!(chain.run_id(), new);
    chain.assert_types_from(
        1,
        &[
            E::WorkflowExecutionStarted,
            E::WorkflowTaskScheduled,
            E::WorkflowTaskStarted,
            E::WorkflowTaskFailed,
            E::WorkflowTaskScheduled,
        ],
    );
    assert_eq!(chain.histories[&old][..3], chain.history()[..3]);
    let failed = failed(chain.event(4));
    assert_eq!(failed.cause, WorkflowTaskFailedCause::ResetWorkflow as i32);
    assert_eq!((&failed.base_run_id, &failed.new_run_id), (&old, &new));
    assert_eq!(failed.failure.as_ref().map(|f| f.message.as_str()), Some("wrong turn"));

    let before = describe(&mut chain, &old);
    let extended = before.workflow_extended_info.expect("extended");
    assert_eq!(extended.reset_run_id, new);
    assert_eq!(before.workflow_execution_info.map(|info| info.status), Some(S::Terminated as i32));
    let after = describe(&mut chain, "");
    let info = after.workflow_execution_info.expect("info");
    assert_eq!(info.start_time, chain.now.to_proto());
    assert_eq!(info.first_run_id, old);
    let extended = after.workflow_extended_info.expect("extended");
    assert_eq!(extended.last_reset_time, chain.now.to_proto());
    assert_eq!(extended.original_start_time, chain.event(1).event_time);

    chain.work(vec![commands::complete("done")]);
    assert_eq!(chain.snapshot().info.map(|info| info.status), Some(S::Completed as i32));
}

#[test]
fn only_a_point_within_a_workflow_task_will_do() {
    let mut chain = TestChain::started();
    chain.work(vec![commands::activity("1")]);
    let check = |chain: &mut TestChain, finish: i64, expect: &str| {
        let error = try_reset(chain, reset_request(finish)).expect_err("refused");
        assert_eq!((error.grpc_code(), error.message.as_str()), (Code::InvalidArgument, expect));
    };
    let range = "Workflow task finish ID must be > 1 && <= workflow last event ID.";
    check(&mut chain, 1, range);
    check(&mut chain, 6, range);
    let point = "Can only reset workflow to event ID in range [WorkflowTaskScheduled +1, WorkflowTaskStarted + 1]";
    check(&mut chain, 2, &format!("{point}: 2"));
    check(&mut chain, 5, &format!("{point}: 5"));
    // Of a task that had only been scheduled.
    reset(&mut chain, 3);
    chain.assert_types_from(3, &[E::WorkflowTaskStarted, E::WorkflowTaskFailed, E::WorkflowTaskScheduled]);
}

#[test]
fn the_same_request_resets_once() {
    let mut chain = TestChain::started();
    chain.work(vec![]);
    let first = reset(&mut chain, 4);
    assert_eq!(reset(&mut chain, 4), first);
    let other = ResetWorkflowExecutionRequest { request_id: "again".to_owned(), ..reset_request(4) };
    assert_ne!(try_reset(&mut chain, other).expect("reset"), first);
}

#[test]
fn a_closed_run_can_be_reset() {
    let mut chain = TestChain::started();
    let old = chain.run_id();
    chain.work(vec![commands::complete("wrong")]);
    reset(&mut chain, 4);
    assert_eq!(chain.snapshot().info.map(|info| info.status), Some(S::Running as i32));
    assert_eq!(describe(&mut chain, &old).workflow_execution_info.map(|i| i.status), Some(S::Completed as i32));
}

#[test]
fn an_older_run_can_be_reset_and_the_current_one_ends() {
    let mut chain = TestChain::started();
    let first = chain.run_id();
    chain.work(vec![commands::complete("")]);
    let mut again = TestChain::start_request();
    again.request_id = "second".to_owned();
    let second = chain.start_with(again);
    let request = ResetWorkflowExecutionRequest { workflow_execution: execution(&first), ..reset_request(4) };
    let third = try_reset(&mut chain, request).expect("reset");
    assert_eq!(chain.run_id(), third);
    let status = |chain: &mut TestChain, run: &str| {
        describe(chain, run).workflow_execution_info.map(|info| info.status()).expect("info")
    };
    assert_eq!(status(&mut chain, &second), S::Terminated);
    assert_eq!(status(&mut chain, &first), S::Completed);
}

#[test]
fn an_outdated_history_is_refused() {
    let mut chain = TestChain::started();
    chain.work(vec![]);
    chain.histories.values_mut().for_each(|events| drop(events.pop()));
    let error = try_reset(&mut chain, reset_request(3)).expect_err("refused");
    assert_eq!(error.grpc_code(), Code::Unavailable);
}

#[test]
fn signals_after_the_point_are_taken_over() {
    let mut chain = TestChain::started();
    chain.work(vec![]);
    chain.signal("late");
    chain.poll();
    // Waits in the buffer for the task's end, which is the reset.
    chain.signal("later");
    reset(&mut chain, 4);
    chain.assert_types_from(5, &[E::WorkflowExecutionSignaled, E::WorkflowExecutionSignaled, E::WorkflowTaskScheduled]);
}

#[test]
fn what_is_excluded_is_not_taken_over() {
    let check = |exclude: Vec<ResetReapplyExcludeType>, expect: &[E]| {
        let mut chain = TestChain::started();
        chain.work(vec![]);
        chain.signal("late");
        let task = chain.poll();
        let request = ResetWorkflowExecutionRequest {
            reset_reapply_exclude_types: exclude.into_iter().map(|kind| kind as i32).collect(),
            ..reset_request(4)
        };
        try_reset(&mut chain, request).expect("reset");
        chain.assert_types_from(5, expect);
        drop(task);
    };
    check(vec![], &[E::WorkflowExecutionSignaled, E::WorkflowTaskScheduled]);
    check(vec![ResetReapplyExcludeType::Update], &[E::WorkflowExecutionSignaled, E::WorkflowTaskScheduled]);
    check(vec![ResetReapplyExcludeType::Signal], &[E::WorkflowTaskScheduled]);
}

#[test]
fn an_accepted_update_is_admitted_again() {
    let mut chain = TestChain::started();
    chain.work(vec![]);
    updates::update(&mut chain, "u1");
    let task = chain.poll();
    let (message, command) = updates::acceptance(&task, &task.response.messages[0]);
    let request = RespondWorkflowTaskCompletedRequest { messages: vec![message], ..completion(&task, vec![command]) };
    chain.try_complete_with(request).expect("accepted");
    reset(&mut chain, 4);
    chain.assert_types_from(5, &[E::WorkflowExecutionUpdateAdmitted, E::WorkflowTaskScheduled]);
    let Some(Attributes::WorkflowExecutionUpdateAdmittedEventAttributes(admitted)) = &chain.event(5).attributes else {
        panic!("not admitted: {:?}", chain.event(5));
    };
    assert_eq!(admitted.origin, UpdateAdmittedEventOrigin::Reapply as i32);
    // The worker has it from the history.
    let task = chain.poll();
    assert!(task.response.messages.is_empty());
    let sent = perdure_proto::temporal::api::protocol::v1::Message {
        id: "u1/request".to_owned(),
        protocol_instance_id: "u1".to_owned(),
        ..Default::default()
    };
    let (message, command) = updates::acceptance(&task, &sent);
    let request = RespondWorkflowTaskCompletedRequest { messages: vec![message], ..completion(&task, vec![command]) };
    chain.try_complete_with(request).expect("accepted");
    let accepted = chain.history().iter().rev().find_map(|event| match &event.attributes {
        Some(Attributes::WorkflowExecutionUpdateAcceptedEventAttributes(a)) => Some(a.accepted_request.clone()),
        _ => None,
    });
    assert_eq!(accepted, Some(None), "the request stands in the event that admitted the update");
}

#[test]
fn activities_that_wait_go_on_and_those_that_run_fail() {
    let mut chain = TestChain::started();
    chain.work(vec![commands::activity("waits"), commands::activity("is canceled")]);
    chain.signal("s");
    chain.work(vec![commands::cancel_activity(6)]);
    let finish = chain.history().len() as i64;
    let point = chain.types().iter().rposition(|t| *t == E::WorkflowTaskStarted).expect("a task") as i64 + 2;
    assert!(point <= finish);
    reset(&mut chain, point);
    let pending: Vec<String> = chain.snapshot().activities.into_iter().map(|a| a.activity_id).collect();
    assert_eq!(pending, ["waits", "is canceled"]);
    let offered: Vec<_> = chain.offers.iter().filter(|offer| offer.run_id == chain.run_id()).collect();
    assert_eq!(offered.iter().filter(|offer| offer.kind() == TaskKind::Activity).count(), 2);
}

#[test]
fn timers_keep_their_time() {
    let mut chain = TestChain::started();
    chain.work(vec![commands::timer("t", 60)]);
    chain.advance_secs(10);
    chain.signal("s");
    chain.work(vec![]);
    let point = chain.history().len() as i64;
    reset(&mut chain, point);
    chain.work(vec![]);
    chain.advance_secs(49);
    assert_ne!(chain.types().last(), Some(&E::WorkflowTaskScheduled));
    chain.advance_secs(2);
    assert!(chain.types().contains(&E::TimerFired));
}

fn parent_with_child() -> (TestChain, String) {
    let mut chain = TestChain::started();
    let old = chain.run_id();
    chain.work(vec![child("child")]);
    let (id, _) = chain.calls.remove(0);
    assert_eq!(id.kind, CallKind::StartChild);
    let reply = workflow_reply::Reply::Start(StartWorkflowExecutionResponse {
        run_id: "child-run".to_owned(),
        ..StartWorkflowExecutionResponse::default()
    });
    chain.on_call_result(&id, Ok(WorkflowReply { reply: Some(reply) }));
    (chain, old)
}

#[test]
fn children_change_to_the_new_run() {
    let (mut chain, old) = parent_with_child();
    chain.work(vec![]);
    let point = chain.history().len() as i64;
    reset(&mut chain, point);
    assert!(chain.calls.is_empty(), "the child is neither ended nor started: {:?}", chain.calls);
    // It knows the old run only.
    let closed = ChildWorkflowClosed {
        run_id: old,
        initiated_event_id: 5,
        child_execution: Some(WorkflowExecution { workflow_id: "child".to_owned(), run_id: "child-run".to_owned() }),
        first_execution_run_id: "child-run".to_owned(),
        close_event: Some(HistoryEvent {
            attributes: Some(Attributes::WorkflowExecutionCompletedEventAttributes(
                WorkflowExecutionCompletedEventAttributes::default(),
            )),
            ..HistoryEvent::default()
        }),
        ..ChildWorkflowClosed::default()
    };
    chain.call(workflow_call::Command::ChildClosed(Box::new(closed)));
    assert!(chain.types().contains(&E::ChildWorkflowExecutionCompleted));
}

#[test]
fn that_a_child_has_started_is_taken_over() {
    let (mut chain, _) = parent_with_child();
    let started = chain.types().iter().position(|t| *t == E::ChildWorkflowExecutionStarted).expect("started");
    // The point lies before the child's start: there is a second task because of a signal in between.
    assert_eq!(started, 5);
    chain.work(vec![]);
    reset(&mut chain, 4);
    assert!(chain.snapshot().children.is_empty(), "it was initiated after the point");
}

#[test]
fn a_reset_child_does_not_tell_its_parent() {
    let mut chain = TestChain::new();
    let parent = perdure_proto::perdure::node::v1::ParentInfo {
        namespace_id: NAMESPACE_ID.to_owned(),
        namespace_name: NAMESPACE.to_owned(),
        execution: Some(WorkflowExecution { workflow_id: "parent".to_owned(), run_id: "p".to_owned() }),
        initiated_event_id: 5,
        ..Default::default()
    };
    let request = Some(TestChain::start_request());
    chain.call(workflow_call::Command::Start(Box::new(StartWorkflow {
        request,
        parent: Some(parent),
        ..StartWorkflow::default()
    })));
    chain.work(vec![]);
    reset(&mut chain, 4);
    assert!(chain.calls.is_empty());
    chain.work(vec![commands::complete("")]);
    assert_eq!(chain.calls.len(), 1);
    assert_eq!(chain.calls[0].0.kind, CallKind::NotifyParent);
}

#[test]
fn operations_after_the_reset() {
    let mut chain = TestChain::started();
    chain.work(vec![]);
    let signal = post_reset_operation::SignalWorkflow { signal_name: "go on".to_owned(), ..Default::default() };
    let options = post_reset_operation::UpdateWorkflowOptions {
        workflow_execution_options: Some(WorkflowExecutionOptions {
            priority: Some(Priority { priority_key: 1, ..Priority::default() }),
            ..WorkflowExecutionOptions::default()
        }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["priority".to_owned()] }),
    };
    let operation = |variant| PostResetOperation { variant: Some(variant) };
    let request = ResetWorkflowExecutionRequest {
        post_reset_operations: vec![
            operation(post_reset_operation::Variant::SignalWorkflow(signal)),
            operation(post_reset_operation::Variant::UpdateWorkflowOptions(options)),
        ],
        ..reset_request(4)
    };
    try_reset(&mut chain, request).expect("reset");
    chain.assert_types_from(
        5,
        &[E::WorkflowExecutionSignaled, E::WorkflowExecutionOptionsUpdated, E::WorkflowTaskScheduled],
    );
    assert_eq!(chain.snapshot().info.and_then(|i| i.priority).map(|p| p.priority_key), Some(1));
}

#[test]
fn a_reset_that_cannot_be_finished_leaves_the_old_run_open() {
    let mut chain = TestChain::started();
    chain.work(vec![]);
    let before = chain.snapshot();
    let options = post_reset_operation::UpdateWorkflowOptions {
        workflow_execution_options: Some(WorkflowExecutionOptions::default()),
        update_mask: Some(prost_types::FieldMask { paths: vec!["no_such_option".to_owned()] }),
    };
    for variant in [Some(post_reset_operation::Variant::UpdateWorkflowOptions(options)), None] {
        let request = ResetWorkflowExecutionRequest {
            post_reset_operations: vec![PostResetOperation { variant }],
            ..reset_request(4)
        };
        let error = try_reset(&mut chain, request).expect_err("refused");
        assert_eq!(error.grpc_code(), Code::InvalidArgument, "{error}");
        assert_eq!(chain.snapshot(), before);
    }
    chain.signal("it goes on");
    chain.work(vec![commands::complete("done")]);
}

#[test]
#[allow(deprecated)]
fn each_build_leaves_a_reset_point() {
    let mut chain = TestChain::started();
    for build in ["a", "a", "b"] {
        let task = chain.poll();
        let stamp = WorkerVersionStamp { build_id: build.to_owned(), ..WorkerVersionStamp::default() };
        let request =
            RespondWorkflowTaskCompletedRequest { worker_version_stamp: Some(stamp), ..completion(&task, vec![]) };
        chain.try_complete_with(request).expect("completed");
        chain.signal("s");
    }
    let points = describe(&mut chain, "").workflow_execution_info.and_then(|info| info.auto_reset_points);
    let points = points.expect("points").points;
    let found: Vec<_> = points.iter().map(|p| (p.build_id.as_str(), p.first_workflow_task_completed_id)).collect();
    assert_eq!(found, [("a", 4), ("b", 12)]);
    assert!(points.iter().all(|point| point.resettable));
}
