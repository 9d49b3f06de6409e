//! Nexus operations of a workflow: started, ended, timed out and canceled, each told once.

mod common;

use common::{nexus::*, *};
use perdure_proto::{
    Code,
    perdure::{
        nexus::v1::{CallbackToken, nexus_completion},
        node::v1::{workflow_call, workflow_reply},
    },
    temporal::api::{
        common::v1::link,
        enums::v1::{
            EventType as E, NexusOperationCancellationState, PendingNexusOperationState, TimeoutType,
            WorkflowTaskFailedCause as Cause,
        },
        failure::v1::{Failure, failure::FailureInfo},
        history::v1::history_event::Attributes,
        nexus::v1::{Link as NexusLink, start_operation_response},
        workflow::v1::PendingNexusOperationInfo,
        workflowservice::v1::DescribeWorkflowExecutionRequest,
    },
};
use perdure_workflow::CallKind;

/// The Scheduled event of the first operation.
const SCHEDULED: i64 = 5;

fn with_operation() -> TestChain {
    let mut chain = TestChain::started();
    chain.work(vec![schedule()]);
    chain
}

fn pending(chain: &mut TestChain) -> Vec<PendingNexusOperationInfo> {
    let request = DescribeWorkflowExecutionRequest { namespace: NAMESPACE.to_owned(), ..Default::default() };
    match chain.call(workflow_call::Command::Describe(request)).message.reply {
        Some(workflow_reply::Reply::Describe(described)) => described.pending_nexus_operations,
        other => panic!("not described: {other:?}"),
    }
}

fn cause_of(attributes: &Attributes) -> Failure {
    let failure = match attributes {
        Attributes::NexusOperationFailedEventAttributes(a) => &a.failure,
        Attributes::NexusOperationCanceledEventAttributes(a) => &a.failure,
        Attributes::NexusOperationTimedOutEventAttributes(a) => &a.failure,
        other => panic!("no bad end: {other:?}"),
    };
    let failure = failure.clone().expect("a failure");
    match failure.failure_info {
        Some(FailureInfo::NexusOperationExecutionFailureInfo(info)) => {
            assert_eq!((info.scheduled_event_id, info.endpoint.as_str()), (SCHEDULED, ENDPOINT));
        }
        other => panic!("not an operation's: {other:?}"),
    }
    *failure.cause.expect("a cause")
}

/// The attributes of the last event of that type.
fn last_of(chain: &TestChain, kind: E) -> Attributes {
    let event = chain.history().iter().rfind(|event| event.event_type() == kind);
    event.and_then(|event| event.attributes.clone()).unwrap_or_else(|| panic!("no {kind:?} in {:?}", chain.types()))
}

#[test]
fn an_operation_that_ends_at_once() {
    let mut chain = with_operation();
    let call = chain.answer_start(sync("result"));
    assert_eq!((call.endpoint_id.as_str(), call.deadline_ns), ("endpoint-id", 0));
    let start = start_of(&call);
    assert_eq!((start.service.as_str(), start.operation.as_str()), ("service", "operation"));
    assert_eq!(start.payload, Some(payload("input")));
    chain.assert_types_from(
        SCHEDULED,
        &[E::NexusOperationScheduled, E::NexusOperationCompleted, E::WorkflowTaskScheduled],
    );
    match last_of(&chain, E::NexusOperationCompleted) {
        Attributes::NexusOperationCompletedEventAttributes(a) => {
            assert_eq!((a.result, a.request_id), (Some(payload("result")), start.request_id.clone()));
        }
        other => panic!("{other:?}"),
    }
    assert!(pending(&mut chain).is_empty());
}

#[test]
fn the_handler_is_told_where_the_request_comes_from() {
    let mut chain = with_operation();
    let (_, call) = chain.take_nexus_call(CallKind::StartNexusOperation);
    let links = &start_of(&call).links;
    let link = perdure_proto::links::from_nexus(&links[0]).expect("of Temporal's");
    match link.variant {
        Some(link::Variant::WorkflowEvent(event)) => {
            assert_eq!((event.namespace.as_str(), event.workflow_id.as_str()), (NAMESPACE, WORKFLOW_ID));
        }
        other => panic!("{other:?}"),
    }
    let token = token_of(&call);
    assert_eq!((token.run_id, token.scheduled_event_id), (chain.run_id(), SCHEDULED));
}

#[test]
fn an_operation_that_takes_its_time() {
    let mut chain = with_operation();
    let link = NexusLink {
        url: "temporal:///namespaces/n/workflows/w/r/history?eventID=1&eventType=WorkflowExecutionStarted\
              &referenceType=EventReference"
            .to_owned(),
        r#type: "temporal.api.common.v1.Link.WorkflowEvent".to_owned(),
    };
    let start = started(start_operation_response::Variant::AsyncSuccess(start_operation_response::Async {
        operation_token: "token".to_owned(),
        links: vec![link],
        ..Default::default()
    }));
    let call = chain.answer_start(start);
    assert_eq!(chain.types()[5..], [E::NexusOperationStarted, E::WorkflowTaskScheduled]);
    assert_eq!(chain.event(6).links.len(), 1);
    let info = &pending(&mut chain)[0];
    assert_eq!((info.state(), info.operation_token.as_str()), (PendingNexusOperationState::Started, "token"));

    chain.crash();
    assert!(chain.calls.is_empty(), "it has started: {:?}", chain.calls);
    let done = ended(token_of(&call), nexus_completion::Outcome::Result(payload("result")));
    chain.try_nexus_completion(done.clone()).expect("taken");
    assert!(chain.types().contains(&E::NexusOperationCompleted));
    assert_eq!(chain.try_nexus_completion(done).expect_err("once").grpc_code(), Code::NotFound);
}

#[test]
fn a_completion_may_be_faster_than_the_start() {
    let mut chain = with_operation();
    let (id, call) = chain.take_nexus_call(CallKind::StartNexusOperation);
    let failed = nexus_completion::Outcome::Failure(Box::new(failure("no")));
    chain.try_nexus_completion(ended(token_of(&call), failed)).expect("taken");
    chain.assert_types_from(
        SCHEDULED + 1,
        &[E::NexusOperationStarted, E::NexusOperationFailed, E::WorkflowTaskScheduled],
    );
    assert_eq!(cause_of(&last_of(&chain, E::NexusOperationFailed)).message, "no");
    let before = chain.history().len();
    chain.on_call_result(&id, Ok(reply(asynchronous("token"))));
    assert_eq!(chain.history().len(), before);
}

#[test]
fn completions_of_others_are_refused() {
    let mut chain = with_operation();
    let call = chain.answer_start(asynchronous("token"));
    let token = token_of(&call);
    for token in [
        CallbackToken { request_id: "other".to_owned(), ..token.clone() },
        CallbackToken { scheduled_event_id: 4, ..token.clone() },
        CallbackToken { run_id: "00000000-0000-0000-0000-000000000000".to_owned(), ..token },
    ] {
        // The run that the token names is gone, but the request is the current run's.
        let is_current = token.run_id != chain.run_id();
        let done = ended(token, nexus_completion::Outcome::Result(payload("")));
        assert_eq!(chain.try_nexus_completion(done).is_ok(), is_current);
    }
}

#[test]
fn bad_ends() {
    let mut chain = with_operation();
    chain.answer_start(operation_failed("no"));
    assert_eq!(cause_of(&last_of(&chain, E::NexusOperationFailed)).message, "no");

    let mut chain = with_operation();
    chain.answer_start(started(start_operation_response::Variant::Failure(canceled())));
    assert_eq!(cause_of(&last_of(&chain, E::NexusOperationCanceled)).message, "canceled");

    let mut chain = with_operation();
    chain.answer_start(handler_error("BAD_REQUEST"));
    let cause = cause_of(&last_of(&chain, E::NexusOperationFailed));
    assert!(matches!(cause.failure_info, Some(FailureInfo::NexusHandlerFailureInfo(_))), "{cause:?}");

    let mut chain = with_operation();
    chain.answer_start(asynchronous(&"t".repeat(5000)));
    let cause = cause_of(&last_of(&chain, E::NexusOperationFailed));
    assert_eq!(cause.message, "invalid operation token: length exceeds allowed limit (5000/4096)");
}

#[test]
fn failed_attempts_are_repeated_later() {
    let mut chain = with_operation();
    let first = chain.answer_start(handler_error("INTERNAL"));
    let info = &pending(&mut chain)[0];
    assert_eq!((info.state(), info.attempt), (PendingNexusOperationState::BackingOff, 1));
    assert_eq!(info.last_attempt_failure.as_ref().map(|f| f.message.as_str()), Some("handler error"));
    chain.crash();
    assert!(chain.calls.is_empty());

    chain.advance_secs(1);
    assert_eq!(pending(&mut chain)[0].state(), PendingNexusOperationState::Scheduled);
    chain.crash();
    let second = chain.answer_start(handler_error("UNAVAILABLE"));
    assert_eq!(start_of(&first).request_id, start_of(&second).request_id);
    chain.advance_secs(1);
    assert!(chain.calls.is_empty(), "the second pause is longer");
    chain.advance_secs(1);
    chain.answer_start(sync("result"));
    assert!(chain.types().contains(&E::NexusOperationCompleted));
}

#[test]
fn timeouts() {
    for (change, expect) in [
        (
            (|a| a.schedule_to_close_timeout = seconds(5))
                as fn(&mut perdure_proto::temporal::api::command::v1::ScheduleNexusOperationCommandAttributes),
            TimeoutType::ScheduleToClose,
        ),
        (|a| a.schedule_to_start_timeout = seconds(5), TimeoutType::ScheduleToStart),
    ] {
        let mut chain = TestChain::started();
        chain.work(vec![schedule_with(change)]);
        let (_, call) = chain.take_nexus_call(CallKind::StartNexusOperation);
        assert_eq!(call.deadline_ns, chain.now.as_nanos() + 5_000_000_000);
        chain.advance_secs(4);
        assert_eq!(chain.history().len(), 5);
        chain.advance_secs(1);
        let cause = cause_of(&last_of(&chain, E::NexusOperationTimedOut));
        match cause.failure_info {
            Some(FailureInfo::TimeoutFailureInfo(info)) => assert_eq!(info.timeout_type(), expect),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_started_operation_has_its_own_timeout() {
    let mut chain = TestChain::started();
    chain.work(vec![schedule_with(|a| {
        a.schedule_to_start_timeout = seconds(5);
        a.start_to_close_timeout = seconds(20);
    })]);
    chain.advance_secs(3);
    chain.answer_start(asynchronous("token"));
    chain.advance_secs(19);
    assert!(!chain.types().contains(&E::NexusOperationTimedOut));
    chain.advance_secs(1);
    assert!(chain.types().contains(&E::NexusOperationTimedOut));
}

#[test]
fn timeouts_are_no_longer_than_the_run() {
    let mut chain = TestChain::new();
    let mut request = TestChain::start_request();
    request.workflow_run_timeout = seconds(60);
    chain.start_with(request);
    chain.work(vec![schedule_with(|a| a.start_to_close_timeout = seconds(100))]);
    match last_of(&chain, E::NexusOperationScheduled) {
        Attributes::NexusOperationScheduledEventAttributes(a) => {
            assert_eq!((a.schedule_to_close_timeout, a.start_to_close_timeout), (seconds(60), seconds(60)));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn bad_commands_fail_the_task() {
    for (command, cause, message) in [
        (
            schedule_with(|a| a.endpoint = "nowhere".to_owned()),
            Cause::BadScheduleNexusOperationAttributes,
            "endpoint \"nowhere\" not found",
        ),
        (
            schedule_with(|a| a.service = "s".repeat(1001)),
            Cause::BadScheduleNexusOperationAttributes,
            "ScheduleNexusOperationCommandAttributes.Service exceeds length limit of 1000",
        ),
        (
            schedule_with(|a| a.schedule_to_start_timeout = seconds(-1)),
            Cause::BadScheduleNexusOperationAttributes,
            "ScheduleNexusOperationCommandAttributes.ScheduleToStartTimeout is invalid: negative duration",
        ),
        (
            schedule_with(|a| a.nexus_header = [("Request-Timeout".to_owned(), String::new())].into()),
            Cause::BadScheduleNexusOperationAttributes,
            "ScheduleNexusOperationCommandAttributes.NexusHeader contains a disallowed header key: \"Request-Timeout\"",
        ),
        (
            cancel(3),
            Cause::BadRequestCancelNexusOperationAttributes,
            "requested cancelation for a non-existing or already completed operation with scheduled event ID of 3",
        ),
    ] {
        let mut chain = TestChain::started();
        let task = chain.poll();
        let error = chain.try_complete(&task, vec![command]).expect_err("refused");
        assert!(error.message.ends_with(message), "{error}");
        match last_of(&chain, E::WorkflowTaskFailed) {
            Attributes::WorkflowTaskFailedEventAttributes(a) => assert_eq!(a.cause(), cause),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn thirty_at_once() {
    let mut chain = TestChain::started();
    let task = chain.poll();
    let error = chain.try_complete(&task, vec![schedule(); 31]).expect_err("too many");
    assert!(error.message.contains("pending nexus operation limit of 30"), "{error}");
    chain.advance_secs(30);
    chain.work(vec![schedule(); 30]);
    assert_eq!(chain.calls.len(), 30);
}

#[test]
fn cancellation_waits_for_the_start() {
    let mut chain = with_operation();
    chain.signal("go");
    chain.work(vec![cancel(SCHEDULED)]);
    assert!(chain.types().contains(&E::NexusOperationCancelRequested));
    assert_eq!(chain.calls.len(), 1, "only the start: {:?}", chain.calls);
    let started = chain.answer_start(asynchronous("token"));
    let (id, call) = chain.take_nexus_call(CallKind::CancelNexusOperation);
    assert_eq!(cancel_of(&call).operation_token, "token");
    chain.on_call_result(&id, Ok(reply(handler_error("UNAVAILABLE"))));
    let info = pending(&mut chain)[0].cancellation_info.clone().expect("requested");
    assert_eq!((info.state(), info.attempt), (NexusOperationCancellationState::BackingOff, 1));

    chain.crash();
    chain.advance_secs(1);
    chain.answer_nexus(CallKind::CancelNexusOperation, cancel_taken());
    let taken = chain.history().iter().find(|e| e.event_type() == E::NexusOperationCancelRequestCompleted);
    assert!(taken.is_some_and(|event| event.worker_may_ignore));

    let outcome = nexus_completion::Outcome::Failure(Box::new(canceled()));
    chain.try_nexus_completion(ended(token_of(&started), outcome)).expect("taken");
    assert_eq!(cause_of(&last_of(&chain, E::NexusOperationCanceled)).message, "canceled");
}

#[test]
fn a_refused_cancellation_is_told() {
    let mut chain = with_operation();
    chain.answer_start(asynchronous("token"));
    chain.work(vec![cancel(SCHEDULED)]);
    chain.answer_nexus(CallKind::CancelNexusOperation, handler_error("NOT_FOUND"));
    match last_of(&chain, E::NexusOperationCancelRequestFailed) {
        Attributes::NexusOperationCancelRequestFailedEventAttributes(a) => {
            assert_eq!(a.scheduled_event_id, SCHEDULED);
            assert_eq!(a.failure.map(|f| f.message).as_deref(), Some("handler error"));
        }
        other => panic!("{other:?}"),
    }
    let task = chain.poll();
    let error = chain.try_complete(&task, vec![cancel(SCHEDULED)]).expect_err("once only");
    assert!(error.message.contains("cancelation was already requested"), "{error}");
}

#[test]
fn an_end_that_the_worker_could_not_know_of() {
    let mut chain = with_operation();
    chain.signal("go");
    let task = chain.poll();
    chain.answer_start(sync("result"));
    assert!(!chain.types().contains(&E::NexusOperationCompleted), "buffered");
    chain.complete(&task, vec![cancel(SCHEDULED)]);
    let types = chain.types();
    let requested = types.iter().position(|kind| *kind == E::NexusOperationCancelRequested).expect("written");
    let completed = types.iter().position(|kind| *kind == E::NexusOperationCompleted).expect("written");
    assert!(requested < completed, "{types:?}");
    assert_eq!(chain.offered(perdure_proto::perdure::node::v1::TaskKind::Workflow), 1);
}

#[test]
fn a_closed_workflow_waits_for_nothing() {
    let mut chain = with_operation();
    let (id, call) = chain.take_nexus_call(CallKind::StartNexusOperation);
    chain.signal("go");
    chain.work(vec![commands::complete("done")]);
    chain.on_call_result(&id, Ok(reply(sync("late"))));
    let done = ended(token_of(&call), nexus_completion::Outcome::Result(payload("")));
    assert_eq!(chain.try_nexus_completion(done).expect_err("closed").grpc_code(), Code::NotFound);
    assert_eq!(chain.types().last(), Some(&E::WorkflowExecutionCompleted));
}

#[test]
fn a_reset_goes_on_with_the_same_request() {
    let mut chain = with_operation();
    let first = chain.answer_start(asynchronous("token"));
    chain.work(vec![]);
    // The point lies behind the Scheduled event, and behind the Started one.
    let point = chain.history().len() as i64;
    let old = chain.run_id();
    operations::try_reset(&mut chain, operations::reset_request(point)).expect("reset");
    assert_ne!(chain.run_id(), old);
    assert!(chain.calls.is_empty(), "it has started: {:?}", chain.calls);
    // The handler knows the old run only.
    let done = ended(token_of(&first), nexus_completion::Outcome::Result(payload("result")));
    chain.try_nexus_completion(done).expect("taken by the new run");
    assert!(chain.types().contains(&E::NexusOperationCompleted));
}

#[test]
fn what_became_of_it_is_taken_over_by_a_reset() {
    let mut chain = TestChain::started();
    chain.work(vec![schedule(), commands::timer("t", 1)]);
    chain.advance_secs(1);
    // The second task begins before the operation's end is known.
    let task = chain.poll();
    chain.answer_start(sync("result"));
    chain.complete(&task, vec![]);
    let second = chain.types().iter().rposition(|kind| *kind == E::WorkflowTaskCompleted).expect("completed") as i64;
    operations::try_reset(&mut chain, operations::reset_request(second + 1)).expect("reset");
    assert!(chain.types().contains(&E::NexusOperationCompleted), "{:?}", chain.types());
    assert!(chain.calls.is_empty(), "{:?}", chain.calls);
    assert!(pending(&mut chain).is_empty());
}
