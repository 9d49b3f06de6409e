//! Signals, signal-with-start, cancellation requests, termination.

mod common;

use common::*;
use perdure_proto::{
    Code, Error,
    perdure::node::v1::{
        RequestCancelWorkflow, SignalWorkflow, TaskKind, TerminateWorkflow, workflow_call, workflow_reply,
    },
    temporal::api::{
        common::v1::{Header, Link, WorkflowExecution},
        enums::v1::{
            EventType as E, WorkflowExecutionStatus as S, WorkflowIdConflictPolicy as Conflict, WorkflowTaskFailedCause,
        },
        history::v1::history_event::Attributes,
        workflowservice::v1::{
            RequestCancelWorkflowExecutionRequest, SignalWithStartWorkflowExecutionRequest,
            SignalWithStartWorkflowExecutionResponse, SignalWorkflowExecutionRequest,
            TerminateWorkflowExecutionRequest,
        },
    },
};
use perdure_types::Duration;

fn execution(run_id: &str) -> Option<WorkflowExecution> {
    Some(WorkflowExecution { workflow_id: WORKFLOW_ID.to_owned(), run_id: run_id.to_owned() })
}

fn signal_request(request_id: &str) -> SignalWorkflowExecutionRequest {
    SignalWorkflowExecutionRequest {
        namespace: NAMESPACE.to_owned(),
        workflow_execution: execution(""),
        signal_name: "go".to_owned(),
        input: Some(payloads("input")),
        identity: "client".to_owned(),
        request_id: request_id.to_owned(),
        ..Default::default()
    }
}

fn signal(chain: &mut TestChain, request: SignalWorkflowExecutionRequest) -> Result<(), Error> {
    let command = SignalWorkflow { request: Some(request), ..Default::default() };
    chain.try_call(workflow_call::Command::Signal(command)).map(drop)
}

fn cancel(chain: &mut TestChain, change: impl FnOnce(&mut RequestCancelWorkflow)) -> Result<(), Error> {
    let request = RequestCancelWorkflowExecutionRequest {
        namespace: NAMESPACE.to_owned(),
        workflow_execution: execution(""),
        reason: "why".to_owned(),
        identity: "client".to_owned(),
        ..Default::default()
    };
    let mut command = RequestCancelWorkflow { request: Some(request), ..Default::default() };
    change(&mut command);
    chain.try_call(workflow_call::Command::RequestCancel(command)).map(drop)
}

fn terminate(chain: &mut TestChain, run_id: &str, first_run_id: &str) -> Result<(), Error> {
    let request = TerminateWorkflowExecutionRequest {
        namespace: NAMESPACE.to_owned(),
        workflow_execution: execution(run_id),
        reason: "enough".to_owned(),
        details: Some(payloads("details")),
        identity: "client".to_owned(),
        first_execution_run_id: first_run_id.to_owned(),
        ..Default::default()
    };
    let command = TerminateWorkflow { request: Some(request), ..Default::default() };
    chain.try_call(workflow_call::Command::Terminate(command)).map(drop)
}

fn signal_with_start(
    chain: &mut TestChain,
    request_id: &str,
    change: impl FnOnce(&mut SignalWithStartWorkflowExecutionRequest),
) -> Result<SignalWithStartWorkflowExecutionResponse, Error> {
    let start = TestChain::start_request();
    let mut request = SignalWithStartWorkflowExecutionRequest {
        namespace: start.namespace,
        workflow_id: start.workflow_id,
        workflow_type: start.workflow_type,
        task_queue: start.task_queue,
        request_id: request_id.to_owned(),
        signal_name: "go".to_owned(),
        ..Default::default()
    };
    change(&mut request);
    match chain.try_call(workflow_call::Command::SignalWithStart(Box::new(request)))?.message.reply {
        Some(workflow_reply::Reply::SignalWithStart(response)) => Ok(response),
        other => panic!("not signal-with-start: {other:?}"),
    }
}

#[track_caller]
fn refused(result: Result<(), Error>, code: Code, message: &str) {
    let error = result.expect_err("refused");
    assert_eq!((error.grpc_code(), error.message.as_str()), (code, message));
}

#[test]
fn a_signal_keeps_what_it_brings_and_comes_once() {
    let mut chain = TestChain::started();
    chain.work(vec![]);
    let request = SignalWorkflowExecutionRequest {
        header: Some(Header::default()),
        links: vec![Link::default()],
        ..signal_request("s")
    };
    signal(&mut chain, request.clone()).expect("accepted");
    signal(&mut chain, request).expect("known");
    signal(&mut chain, signal_request("")).expect("accepted");
    signal(&mut chain, signal_request("")).expect("accepted");
    use E::{WorkflowExecutionSignaled as Signaled, WorkflowTaskScheduled as Scheduled};
    chain.assert_types_from(5, &[Signaled, Scheduled, Signaled, Signaled]);
    let event = chain.event(5);
    assert_eq!(event.links.len(), 1);
    let Some(Attributes::WorkflowExecutionSignaledEventAttributes(signaled)) = &event.attributes else {
        panic!("{event:?}")
    };
    assert_eq!((signaled.signal_name.as_str(), signaled.request_id.as_str()), ("go", "s"));
    assert_eq!((&signaled.input, &signaled.header), (&Some(payloads("input")), &Some(Header::default())));
}

#[test]
fn signals_during_a_workflow_task_are_buffered_and_still_come_once() {
    let mut chain = TestChain::started();
    let task = chain.poll();
    for _ in 0..2 {
        signal(&mut chain, signal_request("s")).expect("accepted");
    }
    chain.crash();
    signal(&mut chain, signal_request("s")).expect("known");
    chain.complete(&task, vec![]);
    chain.assert_types_from(4, &[E::WorkflowTaskCompleted, E::WorkflowExecutionSignaled, E::WorkflowTaskScheduled]);
}

#[test]
fn a_workflow_task_that_too_much_waits_for_is_ended() {
    let many = |chain: &mut TestChain| chain.limits.buffered_events = 3;
    let big = |chain: &mut TestChain| chain.limits.buffered_events_bytes = 1_000;
    for limit in [many, big] {
        let mut chain = TestChain::started();
        limit(&mut chain);
        let task = chain.poll();
        for id in ["1", "2", "3"] {
            signal(&mut chain, signal_request(id)).expect("accepted");
        }
        chain.assert_types_from(3, &[E::WorkflowTaskStarted]);
        let mut last = signal_request("4");
        last.input = Some(payloads(&"x".repeat(1_000)));
        signal(&mut chain, last).expect("accepted");
        use E::WorkflowExecutionSignaled as Signaled;
        let expect = [E::WorkflowTaskFailed, Signaled, Signaled, Signaled, Signaled, E::WorkflowTaskScheduled];
        chain.assert_types_from(4, &expect);
        let Some(Attributes::WorkflowTaskFailedEventAttributes(failed)) = &chain.event(4).attributes else {
            panic!("not failed")
        };
        assert_eq!(failed.cause(), WorkflowTaskFailedCause::ForceCloseCommand);
        chain.try_complete(&task, vec![]).expect_err("stale");
        chain.work(vec![commands::complete("")]);
    }
}

#[test]
fn a_signal_to_what_is_not_there() {
    refused(signal(&mut TestChain::new(), signal_request("s")), Code::NotFound, "workflow not found for ID: workflow");
    let mut chain = TestChain::started();
    signal(&mut chain, signal_request("before")).expect("accepted");
    chain.work(vec![commands::complete("")]);
    refused(signal(&mut chain, signal_request("s")), Code::NotFound, "workflow execution already completed");
    // What was acknowledged before stays acknowledged.
    signal(&mut chain, signal_request("before")).expect("known");
}

#[test]
fn there_may_be_too_many_signals_or_too_big_ones() {
    let mut chain = TestChain::started();
    chain.limits.signals_per_execution = 2;
    signal(&mut chain, signal_request("1")).expect("accepted");
    signal(&mut chain, signal_request("2")).expect("accepted");
    refused(
        signal(&mut chain, signal_request("3")),
        Code::InvalidArgument,
        "exceeded workflow execution limit for signal events",
    );
    signal(&mut chain, signal_request("2")).expect("known");
    let big = SignalWorkflowExecutionRequest { input: Some(payloads(&"x".repeat(3 << 20))), ..signal_request("4") };
    refused(signal(&mut chain, big), Code::InvalidArgument, "Blob data size exceeds limit.");
}

#[test]
fn a_signal_does_not_wake_a_workflow_that_waits_for_its_start() {
    let mut chain = TestChain::new();
    let mut request = TestChain::start_request();
    request.workflow_start_delay = Some(Duration::from_secs(60).to_proto());
    chain.start_with(request);
    signal(&mut chain, signal_request("s")).expect("accepted");
    chain.assert_types_from(2, &[E::WorkflowExecutionSignaled]);
    // A request to cancel does.
    cancel(&mut chain, |_| {}).expect("accepted");
    chain.assert_types_from(3, &[E::WorkflowExecutionCancelRequested, E::WorkflowTaskScheduled]);
    chain.work(vec![commands::timer("t", 5)]);
    chain.advance_secs(120);
    assert_eq!(chain.types().iter().filter(|t| **t == E::WorkflowTaskScheduled).count(), 2);
}

#[test]
fn signal_with_start_is_one_transition() {
    let mut chain = TestChain::new();
    let first = signal_with_start(&mut chain, "r", |_| {}).expect("starts");
    assert!(first.started && first.signal_link.is_some());
    assert_eq!(chain.records.len(), 1);
    chain.assert_types_from(1, &[E::WorkflowExecutionStarted, E::WorkflowExecutionSignaled, E::WorkflowTaskScheduled]);

    let again = signal_with_start(&mut chain, "r", |_| {}).expect("known");
    assert_eq!((again.run_id.as_str(), again.started), (first.run_id.as_str(), false));
    assert_eq!(chain.history().len(), 3);

    let second = signal_with_start(&mut chain, "r2", |_| {}).expect("signals");
    assert_eq!((second.run_id.as_str(), second.started), (first.run_id.as_str(), false));
    chain.assert_types_from(4, &[E::WorkflowExecutionSignaled]);

    chain.work(vec![commands::complete("")]);
    let late = signal_with_start(&mut chain, "r", |_| {}).expect("known");
    assert_eq!(late.run_id, first.run_id);
    let third = signal_with_start(&mut chain, "r3", |_| {}).expect("starts");
    assert!(third.started && third.run_id != first.run_id);
    assert_eq!(third.first_execution_run_id, third.run_id);
}

#[test]
fn signal_with_start_obeys_the_conflict_policy() {
    let mut chain = TestChain::started();
    let old = chain.run_id();
    let fail = signal_with_start(&mut chain, "a", |r| r.set_workflow_id_conflict_policy(Conflict::Fail));
    assert_eq!(fail.expect_err("refused").grpc_code(), Code::AlreadyExists);
    let new = signal_with_start(&mut chain, "b", |r| r.set_workflow_id_conflict_policy(Conflict::TerminateExisting))
        .expect("starts");
    assert!(new.started && new.run_id != old);
    assert_eq!(chain.histories[&old].last().expect("events").event_type(), E::WorkflowExecutionTerminated);
}

#[test]
fn a_delayed_signal_with_start_waits() {
    let mut chain = TestChain::new();
    signal_with_start(&mut chain, "r", |r| r.workflow_start_delay = Some(Duration::from_secs(9).to_proto()))
        .expect("starts");
    chain.assert_types_from(1, &[E::WorkflowExecutionStarted, E::WorkflowExecutionSignaled]);
    chain.advance_secs(9);
    chain.assert_types_from(3, &[E::WorkflowTaskScheduled]);
}

#[test]
fn cancellation_is_requested_once() {
    let mut chain = TestChain::started();
    chain.work(vec![]);
    cancel(&mut chain, |_| {}).expect("accepted");
    cancel(&mut chain, |c| c.request.as_mut().expect("set").request_id = "other".into()).expect("already so");
    chain.assert_types_from(5, &[E::WorkflowExecutionCancelRequested, E::WorkflowTaskScheduled]);
    let Some(Attributes::WorkflowExecutionCancelRequestedEventAttributes(requested)) = &chain.event(5).attributes
    else {
        panic!("not requested")
    };
    assert_eq!((requested.cause.as_str(), requested.identity.as_str()), ("why", "client"));
    chain.work(vec![commands::complete("")]);
    cancel(&mut chain, |_| {}).expect("it has ended, which is what is wanted");
    refused(cancel(&mut TestChain::new(), |_| {}), Code::NotFound, "workflow not found for ID: workflow");
}

#[test]
fn only_the_parent_may() {
    let mut chain = TestChain::started();
    let not_parent = |c: &mut RequestCancelWorkflow| {
        c.child_workflow_only = true;
        c.external_execution = execution("some-run");
    };
    refused(cancel(&mut chain, not_parent), Code::NotFound, "workflow parent does not match");
    refused(
        cancel(&mut chain, |c| c.request.as_mut().expect("set").first_execution_run_id = "other".into()),
        Code::NotFound,
        "workflow execution not found",
    );
}

#[test]
fn termination_wins_over_a_started_workflow_task() {
    let mut chain = TestChain::started();
    let task = chain.poll();
    signal(&mut chain, signal_request("s")).expect("accepted");
    terminate(&mut chain, "", "").expect("accepted");
    chain.assert_types_from(4, &[E::WorkflowTaskFailed, E::WorkflowExecutionSignaled, E::WorkflowExecutionTerminated]);
    let Some(Attributes::WorkflowTaskFailedEventAttributes(failed)) = &chain.event(4).attributes else {
        panic!("not failed")
    };
    assert_eq!(failed.cause(), WorkflowTaskFailedCause::ForceCloseCommand);
    let Attributes::WorkflowExecutionTerminatedEventAttributes(terminated) = chain.last() else {
        panic!("not terminated")
    };
    assert_eq!((terminated.reason.as_str(), &terminated.details), ("enough", &Some(payloads("details"))));
    assert!(chain.try_complete(&task, vec![]).is_err());
    let snapshot = chain.snapshot();
    assert_eq!(snapshot.info.expect("info").status(), S::Terminated);
    assert_eq!(snapshot.close_event.as_ref(), chain.history().last());
    refused(terminate(&mut chain, "", ""), Code::NotFound, "workflow execution already completed");
}

#[test]
fn termination_drops_what_is_pending() {
    let mut chain = TestChain::started();
    chain.work(vec![commands::activity("a"), commands::timer("t", 5)]);
    let run_id = chain.run_id();
    refused(terminate(&mut chain, &run_id, "other"), Code::NotFound, "workflow execution not found");
    terminate(&mut chain, "no-such-run", &run_id).expect("the first run id names the chain");
    let snapshot = chain.snapshot();
    assert!(snapshot.timers.is_empty());
    assert_eq!(snapshot.activities.len(), 1, "to be seen in descriptions, and for nothing else");
    let events = chain.history().len();
    chain.advance_secs(60);
    assert_eq!(chain.history().len(), events);
    let offer = chain.take_offer(TaskKind::Activity).expect("was offered");
    assert!(chain.try_poll_activity(&offer).is_err());
}

#[test]
fn signals_cannot_keep_a_workflow_from_closing() {
    let mut chain = TestChain::started();
    let task = chain.poll();
    signal(&mut chain, signal_request("1")).expect("accepted");
    let error = chain.try_complete(&task, vec![commands::complete("")]).expect_err("not yet");
    assert_eq!(error.message, "UnhandledCommand");
    signal(&mut chain, signal_request("2")).expect("the next task has not begun");
    let task = chain.poll();
    refused(
        signal(&mut chain, signal_request("3")),
        Code::ResourceExhausted,
        "workflow operation can not be applied because workflow is closing",
    );
    signal(&mut chain, signal_request("1")).expect("known");
    chain.complete(&task, vec![commands::complete("")]);
    assert_eq!(chain.types().last(), Some(&E::WorkflowExecutionCompleted));
}
