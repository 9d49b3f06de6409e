//! Callbacks of updates: they come with the update or with a later request for it, and are told its end.

mod common;

use common::{
    commands,
    nexus::reply,
    updates::{self, accepting, rejecting, update, waiting},
    *,
};
use perdure_proto::{
    nexus_token,
    perdure::{
        nexus::v1::{CallbackToken, NexusCompletion, nexus_completion, nexus_reply::Outcome},
        node::v1::{WorkflowReply, workflow_call, workflow_reply},
    },
    temporal::api::{
        common::v1::{Callback, WorkflowExecution, callback},
        enums::v1::{CallbackState as State, EventType as E},
        update::v1::{Input, Meta, Request},
        workflow::v1::{CallbackInfo, callback_info::trigger::Variant},
        workflowservice::v1::{
            DescribeWorkflowExecutionRequest, RespondWorkflowTaskCompletedRequest, UpdateWorkflowExecutionRequest,
        },
    },
};
use perdure_workflow::{Answer, CallId, CallKind, Watch};

fn callback_to(caller: &str) -> Callback {
    let token = CallbackToken { namespace_id: "other".into(), workflow_id: caller.into(), ..CallbackToken::default() };
    let header = [("temporal-callback-token".to_owned(), nexus_token::encode(&token))].into();
    let nexus = callback::Nexus { url: "temporal://system".to_owned(), header };
    Callback { variant: Some(callback::Variant::Nexus(nexus)), ..Callback::default() }
}

/// A request for the update that wants `caller` told of its end.
fn ask(chain: &mut TestChain, update_id: &str, caller: &str) -> Watch {
    let request = Request {
        meta: Some(Meta { update_id: update_id.to_owned(), ..Meta::default() }),
        input: Some(Input { name: "approve".to_owned(), ..Input::default() }),
        request_id: format!("request-{caller}"),
        completion_callbacks: vec![callback_to(caller)],
        ..Request::default()
    };
    let execution = WorkflowExecution { workflow_id: WORKFLOW_ID.to_owned(), ..WorkflowExecution::default() };
    let command = workflow_call::Command::Update(UpdateWorkflowExecutionRequest {
        namespace: NAMESPACE.to_owned(),
        workflow_execution: Some(execution),
        request: Some(request),
        ..UpdateWorkflowExecutionRequest::default()
    });
    match chain.try_handle(command).expect("admitted") {
        Answer::Watch(watch) => watch,
        other => panic!("not waiting: {other:?}"),
    }
}

fn described(chain: &mut TestChain) -> Vec<CallbackInfo> {
    let request = DescribeWorkflowExecutionRequest { namespace: NAMESPACE.to_owned(), ..Default::default() };
    match chain.call(workflow_call::Command::Describe(request)).message.reply {
        Some(workflow_reply::Reply::Describe(described)) => described.callbacks,
        other => panic!("not described: {other:?}"),
    }
}

fn states(chain: &mut TestChain) -> Vec<State> {
    described(chain).iter().map(CallbackInfo::state).collect()
}

fn take_completion(chain: &mut TestChain) -> (CallId, String, NexusCompletion) {
    let (id, call) = chain.calls.remove(0);
    assert_eq!(id.kind, CallKind::Callback);
    match call.command {
        Some(workflow_call::Command::NexusCompletion(completion)) => (id, call.workflow_id, *completion),
        other => panic!("no completion: {other:?}"),
    }
}

fn complete(chain: &mut TestChain, update_id: &str) {
    let task = chain.poll();
    let (message, command) = updates::response(update_id);
    let request = RespondWorkflowTaskCompletedRequest { messages: vec![message], ..completion(&task, vec![command]) };
    chain.try_complete_with(request).expect("accepted");
}

fn succeeded(completion: &NexusCompletion) -> bool {
    completion.outcome == Some(nexus_completion::Outcome::Result(payloads("done").payloads.remove(0)))
}

#[test]
fn everybody_who_asked_is_told() {
    let mut chain = waiting();
    ask(&mut chain, "u", "first");
    let task = chain.poll();
    // While a worker has it.
    ask(&mut chain, "u", "second");
    ask(&mut chain, "u", "second");
    chain.try_complete_with(accepting(&task, vec![commands::timer("t", 60)])).expect("accepted");
    // Once it is accepted.
    ask(&mut chain, "u", "third");
    ask(&mut chain, "u", "third");
    assert_eq!(states(&mut chain), [State::Standby; 3]);
    let shown = &described(&mut chain)[0];
    let trigger = shown.trigger.clone().and_then(|trigger| trigger.variant);
    assert!(matches!(trigger, Some(Variant::UpdateWorkflowExecutionCompleted(of)) if of.update_id == "u"));
    assert_eq!(shown.request_id, "request-first");

    chain.signal("go on");
    complete(&mut chain, "u");
    let mut told = Vec::new();
    for _ in 0..3 {
        let (id, caller, completion) = take_completion(&mut chain);
        assert!(succeeded(&completion), "{completion:?}");
        assert!(completion.links[0].url.contains(&format!("request-{caller}")), "{:?}", completion.links);
        told.push(id);
    }
    // The run is open: what was lost is sent again.
    chain.crash();
    assert_eq!(chain.calls.len(), 3);
    chain.calls.clear();
    for id in told {
        chain.on_call_result(&id, Ok(WorkflowReply::default()));
    }
    assert_eq!(states(&mut chain), [State::Succeeded; 3]);
    chain.crash();
    assert!(chain.calls.is_empty());
    let attached = chain.types().iter().filter(|kind| **kind == E::WorkflowExecutionOptionsUpdated).count();
    assert_eq!(attached, 2, "the first stands in the event that accepts the update");
}

#[test]
fn an_attempt_is_repeated_while_the_run_is_open() {
    let mut chain = waiting();
    ask(&mut chain, "u", "first");
    let task = chain.poll();
    chain.try_complete_with(accepting(&task, vec![])).expect("accepted");
    chain.signal("go on");
    complete(&mut chain, "u");
    let (id, ..) = take_completion(&mut chain);
    chain.on_call_result(&id, Ok(reply(Outcome::HandlerError(Box::default()))));
    assert_eq!(states(&mut chain), [State::BackingOff]);
    chain.advance_secs(2);
    assert!(succeeded(&take_completion(&mut chain).2));
}

#[test]
fn a_run_that_closes_tells_that_the_update_failed() {
    let mut chain = waiting();
    ask(&mut chain, "u", "first");
    let task = chain.poll();
    chain.try_complete_with(accepting(&task, vec![commands::complete("bye")])).expect("accepted");
    let (_, _, completion) = take_completion(&mut chain);
    match completion.outcome {
        Some(nexus_completion::Outcome::Failure(failure)) => {
            assert!(failure.message.contains("Workflow completed before the Update completed"), "{failure:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_is_refused_knows_it_already() {
    let mut chain = waiting();
    let watch = ask(&mut chain, "u", "first");
    let task = chain.poll();
    chain.try_complete_with(rejecting(&task)).expect("accepted");
    assert!(matches!(chain.chain.check(&watch), Some(Ok(_))));
    assert!(described(&mut chain).is_empty() && chain.calls.is_empty());
    // The id is free again.
    update(&mut chain, "u");
}
