//! Completion callbacks: carried to the last run, delivered once it has closed, again until somebody takes them.

mod common;

use common::{nexus::*, *};
use perdure_proto::{
    Code, Error, nexus_token,
    perdure::{
        nexus::v1::{
            CallbackToken, NexusCompletion, NexusDelivery, nexus_call, nexus_completion, nexus_reply::Outcome,
        },
        node::v1::{WorkflowReply, workflow_call, workflow_reply},
    },
    temporal::api::{
        command::v1::{
            Command, ContinueAsNewWorkflowExecutionCommandAttributes, FailWorkflowExecutionCommandAttributes,
            command::Attributes as C,
        },
        common::v1::{Callback, RetryPolicy, callback},
        enums::v1::{CallbackState as State, CommandType, EventType as E, WorkflowIdConflictPolicy},
        failure::v1::failure::FailureInfo,
        workflow::v1::{CallbackInfo, OnConflictOptions},
        workflowservice::v1::{DescribeWorkflowExecutionRequest, StartWorkflowExecutionRequest},
    },
};
use perdure_types::EntityKind;
use perdure_workflow::{CallId, CallKind};

fn token() -> CallbackToken {
    CallbackToken {
        namespace_id: "caller-namespace".to_owned(),
        workflow_id: "caller".to_owned(),
        run_id: "caller-run".to_owned(),
        scheduled_event_id: 5,
        request_id: "request".to_owned(),
        entity_kind: EntityKind::Workflow.number(),
    }
}

fn callback_to(url: &str) -> Callback {
    let header = [
        ("temporal-callback-token".to_owned(), nexus_token::encode(&token())),
        ("nexus-operation-token".to_owned(), "operation".to_owned()),
    ];
    let nexus = callback::Nexus { url: url.to_owned(), header: header.into() };
    Callback { variant: Some(callback::Variant::Nexus(nexus)), ..Callback::default() }
}

fn request(url: &str) -> StartWorkflowExecutionRequest {
    StartWorkflowExecutionRequest { completion_callbacks: vec![callback_to(url)], ..TestChain::start_request() }
}

fn with_callback(url: &str) -> TestChain {
    let mut chain = TestChain::new();
    chain.start_with(request(url));
    chain
}

fn callbacks(chain: &mut TestChain) -> Vec<CallbackInfo> {
    let request = DescribeWorkflowExecutionRequest { namespace: NAMESPACE.to_owned(), ..Default::default() };
    match chain.call(workflow_call::Command::Describe(request)).message.reply {
        Some(workflow_reply::Reply::Describe(described)) => described.callbacks,
        other => panic!("not described: {other:?}"),
    }
}

fn states(chain: &mut TestChain) -> Vec<State> {
    callbacks(chain).iter().map(CallbackInfo::state).collect()
}

/// The oldest call, which must be a completion for the caller.
fn take_completion(chain: &mut TestChain) -> (CallId, NexusCompletion) {
    let (id, call) = chain.calls.remove(0);
    assert_eq!(
        (id.kind, call.namespace_id.as_str(), call.workflow_id.as_str()),
        (CallKind::Callback, "caller-namespace", "caller")
    );
    match call.command {
        Some(workflow_call::Command::NexusCompletion(completion)) => (id, *completion),
        other => panic!("no completion: {other:?}"),
    }
}

fn take_delivery(chain: &mut TestChain) -> (CallId, NexusDelivery) {
    let (id, call) = chain.take_nexus_call(CallKind::Callback);
    match call.call {
        Some(nexus_call::Call::Delivery(delivery)) => (id, delivery),
        other => panic!("no delivery: {other:?}"),
    }
}

fn fail(message: &str) -> Command {
    let attributes = FailWorkflowExecutionCommandAttributes { failure: Some(failure(message)) };
    Command {
        command_type: CommandType::FailWorkflowExecution as i32,
        attributes: Some(C::FailWorkflowExecutionCommandAttributes(attributes)),
        ..Command::default()
    }
}

#[test]
fn the_caller_is_told_the_result() {
    let mut chain = with_callback("temporal://system");
    assert_eq!(states(&mut chain), [State::Standby]);
    chain.work(vec![commands::complete("done")]);
    let (id, completion) = take_completion(&mut chain);
    assert_eq!(completion.token, Some(token()));
    assert_eq!(completion.operation_token, "operation");
    let expect = payloads("done").payloads.remove(0);
    assert_eq!(completion.outcome, Some(nexus_completion::Outcome::Result(expect)));
    assert!(completion.links[0].url.contains(&chain.run_id()), "{:?}", completion.links);
    assert_eq!(states(&mut chain), [State::Scheduled]);

    // Nobody knows whether it arrived: it is sent again.
    chain.crash();
    assert_eq!(take_completion(&mut chain).1.outcome, completion.outcome);
    chain.on_call_result(&id, Ok(WorkflowReply::default()));
    assert_eq!(states(&mut chain), [State::Succeeded]);
    chain.crash();
    assert!(chain.calls.is_empty());
}

#[test]
fn how_it_ended_is_told_and_not_why() {
    let mut chain = with_callback("temporal://system");
    chain.work(vec![fail("no")]);
    match take_completion(&mut chain).1.outcome {
        Some(nexus_completion::Outcome::Failure(failure)) => assert_eq!(failure.message, "no"),
        other => panic!("{other:?}"),
    }

    let mut chain = with_callback("temporal://system");
    let terminate = perdure_proto::perdure::node::v1::TerminateWorkflow {
        request: Some(perdure_proto::temporal::api::workflowservice::v1::TerminateWorkflowExecutionRequest {
            namespace: NAMESPACE.to_owned(),
            reason: "secret".to_owned(),
            ..Default::default()
        }),
        ..Default::default()
    };
    chain.call(workflow_call::Command::Terminate(terminate));
    match take_completion(&mut chain).1.outcome {
        Some(nexus_completion::Outcome::Failure(failure)) => {
            assert_eq!(failure.message, "operation terminated");
            assert!(matches!(failure.failure_info, Some(FailureInfo::TerminatedFailureInfo(_))));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_caller_that_does_not_wait_ends_it() {
    let mut chain = with_callback("temporal://system");
    chain.work(vec![commands::complete("done")]);
    let (id, _) = take_completion(&mut chain);
    chain.on_call_result(&id, Err(Error::not_found("operation not found")));
    let info = &callbacks(&mut chain)[0];
    assert_eq!((info.state(), info.attempt), (State::Failed, 1));
    chain.advance_secs(3600);
    assert!(chain.calls.is_empty());
}

#[test]
fn a_callback_without_a_token_is_not_made() {
    let mut chain = TestChain::new();
    let mut request = request("temporal://system");
    if let Some(callback::Variant::Nexus(nexus)) = &mut request.completion_callbacks[0].variant {
        nexus.header.clear();
    }
    chain.start_with(request);
    chain.work(vec![commands::complete("done")]);
    assert!(chain.calls.is_empty());
    assert_eq!(states(&mut chain), [State::Failed]);
}

#[test]
fn others_are_told_over_http_with_retries() {
    let mut chain = with_callback("http://example.com/callback");
    chain.work(vec![commands::complete("done")]);
    let (id, delivery) = take_delivery(&mut chain);
    assert_eq!(delivery.url, "http://example.com/callback");
    chain.on_call_result(&id, Ok(reply(handler_error("UNAVAILABLE"))));
    assert_eq!(states(&mut chain), [State::BackingOff]);
    chain.crash();
    assert!(chain.calls.is_empty());
    chain.advance_secs(1);
    let (id, again) = take_delivery(&mut chain);
    assert_eq!(again, delivery);
    chain.on_call_result(&id, Ok(reply(Outcome::Delivered(Default::default()))));
    assert_eq!(states(&mut chain), [State::Succeeded]);

    let mut chain = with_callback("http://example.com/callback");
    chain.work(vec![commands::complete("done")]);
    let (id, _) = take_delivery(&mut chain);
    chain.on_call_result(&id, Ok(reply(handler_error("BAD_REQUEST"))));
    assert_eq!(states(&mut chain), [State::Failed]);
}

#[test]
fn nobody_keeps_a_run_for_ever() {
    let mut chain = with_callback("http://example.com/callback");
    chain.work(vec![commands::complete("done")]);
    let run_id = chain.run_id();
    for _ in 0..200 {
        if chain.calls.is_empty() {
            chain.advance_secs(3600);
            continue;
        }
        let (id, _) = take_delivery(&mut chain);
        chain.on_call_result(&id, Ok(reply(handler_error("UNAVAILABLE"))));
    }
    assert!(!chain.chain.has_run(&run_id), "its retention is over");
}

#[test]
fn continued_runs_hand_them_on() {
    let mut chain = with_callback("temporal://system");
    let attributes = ContinueAsNewWorkflowExecutionCommandAttributes::default();
    chain.work(vec![Command {
        command_type: CommandType::ContinueAsNewWorkflowExecution as i32,
        attributes: Some(C::ContinueAsNewWorkflowExecutionCommandAttributes(attributes)),
        ..Command::default()
    }]);
    assert!(chain.calls.is_empty());
    assert_eq!(states(&mut chain), [State::Standby]);
    chain.work(vec![commands::complete("done")]);
    take_completion(&mut chain);

    let mut chain = TestChain::new();
    let retry_policy = Some(RetryPolicy { maximum_attempts: 2, ..RetryPolicy::default() });
    chain.start_with(StartWorkflowExecutionRequest { retry_policy, ..request("temporal://system") });
    chain.work(vec![fail("first")]);
    assert!(chain.calls.is_empty(), "it is tried again");
    chain.advance_secs(1);
    chain.work(vec![fail("second")]);
    match take_completion(&mut chain).1.outcome {
        Some(nexus_completion::Outcome::Failure(failure)) => assert_eq!(failure.message, "second"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_second_start_attaches_its_own() {
    let mut chain = with_callback("temporal://system");
    let second = |request_id: &str| StartWorkflowExecutionRequest {
        request_id: request_id.to_owned(),
        workflow_id_conflict_policy: WorkflowIdConflictPolicy::UseExisting as i32,
        on_conflict_options: Some(OnConflictOptions {
            attach_request_id: true,
            attach_completion_callbacks: true,
            attach_links: true,
        }),
        ..request("temporal://system")
    };
    chain.start_with(second("second"));
    chain.start_with(second("second"));
    assert_eq!(states(&mut chain), [State::Standby; 2]);
    assert!(chain.types().contains(&E::WorkflowExecutionOptionsUpdated));

    for n in 0..30 {
        chain.start_with(second(&n.to_string()));
    }
    let start = perdure_proto::perdure::node::v1::StartWorkflow { request: Some(second("last")), ..Default::default() };
    let error = chain.try_call(workflow_call::Command::Start(Box::new(start))).expect_err("too many");
    assert_eq!(error.grpc_code(), Code::FailedPrecondition);

    chain.work(vec![commands::complete("done")]);
    assert_eq!(chain.calls.len(), 32);
    let (_, first) = take_completion(&mut chain);
    let (_, attached) = take_completion(&mut chain);
    assert!(first.links[0].url.contains("referenceType=EventReference"), "{:?}", first.links);
    assert!(attached.links[0].url.contains("requestID=second"), "{:?}", attached.links);
}

#[test]
fn a_run_that_is_reset_hands_them_on() {
    let mut chain = with_callback("temporal://system");
    chain.work(vec![]);
    operations::reset(&mut chain, 4);
    assert!(chain.calls.is_empty(), "it goes on: {:?}", chain.calls);
    assert_eq!(states(&mut chain), [State::Standby]);
    chain.work(vec![commands::complete("done")]);
    take_completion(&mut chain);
    assert!(chain.calls.is_empty());
}
