//! Updates, from admission to their outcome. The workflow tasks that exist for them only are in `speculative`.

mod common;

use common::{
    updates::{self, accepting, rejecting, try_update, update, waiting},
    *,
};
use perdure_proto::{
    Code, Error,
    perdure::node::v1::{TaskKind, workflow_call, workflow_reply},
    temporal::api::{
        command::v1::{Command, ContinueAsNewWorkflowExecutionCommandAttributes, command::Attributes as C},
        common::v1::WorkflowExecution,
        enums::v1::{CommandType, EventType as E, UpdateWorkflowExecutionLifecycleStage as Stage},
        update::v1::{Outcome, UpdateRef, outcome::Value},
        workflowservice::v1::{
            PollWorkflowExecutionUpdateRequest, RespondWorkflowTaskCompletedRequest, StartWorkflowExecutionRequest,
        },
    },
};
use perdure_types::Duration;
use perdure_workflow::{Answer, Watch};

fn completing(task: &WorkflowTask, update_ids: &[&str]) -> RespondWorkflowTaskCompletedRequest {
    let (messages, commands) = update_ids.iter().map(|id| updates::response(id)).unzip();
    RespondWorkflowTaskCompletedRequest { messages, ..completion(task, commands) }
}

fn watched(chain: &mut TestChain, update_id: &str) -> Watch {
    match try_update(chain, update_id).expect("admitted") {
        Answer::Watch(watch) => watch,
        other => panic!("not waiting: {other:?}"),
    }
}

fn poll(chain: &mut TestChain, update_id: &str) -> Result<Watch, Error> {
    let execution = WorkflowExecution { workflow_id: WORKFLOW_ID.to_owned(), ..WorkflowExecution::default() };
    let command = workflow_call::Command::PollUpdate(PollWorkflowExecutionUpdateRequest {
        namespace: NAMESPACE.to_owned(),
        update_ref: Some(UpdateRef { workflow_execution: Some(execution), update_id: update_id.to_owned() }),
        ..PollWorkflowExecutionUpdateRequest::default()
    });
    match chain.try_handle(command)? {
        Answer::Watch(watch) => Ok(watch),
        other => panic!("not waiting: {other:?}"),
    }
}

/// How far the update is, for somebody who waits no longer.
fn progress(chain: &mut TestChain, watch: &Watch) -> (Stage, Option<Outcome>) {
    let reply = chain.chain.give_up(watch).expect("limited").expect("known");
    match reply.message.reply {
        Some(workflow_reply::Reply::Update(response)) => (response.stage(), response.outcome),
        Some(workflow_reply::Reply::PollUpdate(response)) => (response.stage(), response.outcome),
        other => panic!("not about an update: {other:?}"),
    }
}

fn failure_of(outcome: Option<Outcome>) -> String {
    match outcome.and_then(|outcome| outcome.value) {
        Some(Value::Failure(failure)) => failure.message,
        other => panic!("not failed: {other:?}"),
    }
}

fn continue_as_new() -> Command {
    command(
        CommandType::ContinueAsNewWorkflowExecution,
        C::ContinueAsNewWorkflowExecutionCommandAttributes(ContinueAsNewWorkflowExecutionCommandAttributes::default()),
    )
}

#[test]
fn who_waits_too_long_hears_how_far_it_is() {
    let mut chain = waiting();
    let watch = watched(&mut chain, "u");
    assert!(chain.chain.check(&watch).is_some(), "no stage was asked for");
    assert_eq!(progress(&mut chain, &watch), (Stage::Admitted, None));
    let task = chain.poll();
    chain.try_complete_with(accepting(&task, vec![commands::timer("t", 5)])).expect("accepted");
    assert_eq!(progress(&mut chain, &watch), (Stage::Accepted, None));
    chain.advance_secs(5);
    let task = chain.poll();
    chain.try_complete_with(completing(&task, &["u"])).expect("accepted");
    let (stage, outcome) = progress(&mut chain, &watch);
    assert_eq!((stage, outcome), (Stage::Completed, Some(updates::success())));
    chain.assert_types_from(13, &[E::WorkflowTaskCompleted, E::WorkflowExecutionUpdateCompleted]);
}

#[test]
fn a_known_id_is_the_same_update_also_after_a_crash_and_the_close() {
    let mut chain = waiting();
    update(&mut chain, "u");
    update(&mut chain, "u");
    let task = chain.poll();
    assert_eq!(task.response.messages.len(), 1);
    let mut both = accepting(&task, vec![]);
    let done = completing(&task, &["u"]);
    both.messages.extend(done.messages);
    both.commands.extend(done.commands);
    chain.try_complete_with(both).expect("accepted");
    let events = chain.history().len();
    chain.crash();
    let watch = watched(&mut chain, "u");
    assert_eq!(progress(&mut chain, &watch).0, Stage::Completed);
    chain.signal("go");
    chain.work(vec![commands::complete("")]);
    chain.crash();
    for watch in [watched(&mut chain, "u"), poll(&mut chain, "u").expect("known")] {
        assert_eq!(progress(&mut chain, &watch), (Stage::Completed, Some(updates::success())));
    }
    assert_eq!(chain.history().len(), events + 5);
    let error = try_update(&mut chain, "other").expect_err("closed");
    assert_eq!((error.grpc_code(), error.message.as_str()), (Code::NotFound, "workflow execution already completed"));
    assert_eq!(poll(&mut chain, "other").expect_err("unknown").grpc_code(), Code::NotFound);
}

#[test]
fn a_rejected_id_may_come_again() {
    let mut chain = waiting();
    let watch = watched(&mut chain, "u");
    let task = chain.poll();
    chain.try_complete_with(rejecting(&task)).expect("accepted");
    let (stage, outcome) = progress(&mut chain, &watch);
    assert_eq!((stage, failure_of(outcome)), (Stage::Completed, "boom".to_owned()));
    update(&mut chain, "u");
    let task = chain.poll();
    chain.try_complete_with(accepting(&task, vec![])).expect("accepted");
    chain.assert_types_from(8, &[E::WorkflowExecutionUpdateAccepted]);
}

#[test]
fn an_update_does_not_wait_for_a_start_delay() {
    let delayed = || {
        let mut chain = TestChain::new();
        chain.start_with(StartWorkflowExecutionRequest {
            workflow_start_delay: Some(Duration::from_secs(30).to_proto()),
            ..TestChain::start_request()
        });
        update(&mut chain, "u");
        let task = chain.poll();
        (chain, task)
    };
    let (mut chain, task) = delayed();
    chain.try_complete_with(rejecting(&task)).expect("accepted");
    chain.assert_types_from(1, &[E::WorkflowExecutionStarted]);
    chain.advance_secs(29);
    assert_eq!(chain.offered(TaskKind::Workflow), 0);
    chain.advance_secs(1);
    chain.assert_types_from(2, &[E::WorkflowTaskScheduled]);

    let (mut chain, task) = delayed();
    chain.try_complete_with(accepting(&task, vec![])).expect("accepted");
    chain.advance_secs(60);
    chain.assert_types_from(4, &[E::WorkflowTaskCompleted, E::WorkflowExecutionUpdateAccepted]);
}

#[test]
fn a_workflow_that_is_closing_takes_no_updates() {
    let mut chain = TestChain::started();
    let task = chain.poll();
    chain.signal("go");
    chain.try_complete(&task, vec![commands::complete("")]).expect_err("not yet");
    let task = chain.poll();
    let error = try_update(&mut chain, "u").expect_err("closing");
    assert_eq!(error.grpc_code(), Code::ResourceExhausted);
    chain.complete(&task, vec![commands::complete("")]);
    assert_eq!(chain.types().last(), Some(&E::WorkflowExecutionCompleted));
}

#[test]
fn what_becomes_of_updates_when_the_run_ends() {
    // Not accepted, and another run follows: it may take the update.
    let mut chain = waiting();
    let watch = watched(&mut chain, "u");
    let task = chain.poll();
    chain.complete(&task, vec![continue_as_new()]);
    let error = chain.chain.check(&watch).expect("settled").expect_err("not here");
    assert_eq!(error.grpc_code(), Code::Unavailable);
    update(&mut chain, "u");
    assert_eq!(chain.poll().response.messages.len(), 1);

    // Not accepted, and no run follows.
    let mut chain = waiting();
    let watch = watched(&mut chain, "u");
    let task = chain.poll();
    chain.complete(&task, vec![commands::complete("")]);
    let error = chain.chain.check(&watch).expect("settled").expect_err("not here");
    assert_eq!(error.grpc_code(), Code::NotFound);

    // Accepted, whatever follows.
    for end in [continue_as_new(), commands::complete("")] {
        let mut chain = waiting();
        let watch = watched(&mut chain, "u");
        let task = chain.poll();
        chain.try_complete_with(accepting(&task, vec![end])).expect("accepted");
        let (stage, outcome) = progress(&mut chain, &watch);
        assert_eq!(stage, Stage::Completed);
        assert!(failure_of(outcome).contains("completed before the Update completed"));
    }
}

#[test]
fn an_accepted_update_survives_its_worker_and_the_server() {
    let mut chain = waiting();
    update(&mut chain, "u");
    let task = chain.poll();
    // Makes the task, and what the worker has seen of it, durable.
    chain.signal("go");
    chain.crash();
    let mut accepted = accepting(&task, vec![]);
    accepted.commands.push(commands::timer("t", 5));
    chain.try_complete_with(accepted).expect("the worker knows the update");
    chain.crash();
    // The worker dies with the task that the signal made; the next one answers.
    let lost = chain.poll();
    chain.advance_secs(11);
    let task = chain.poll();
    assert_ne!(lost.response.task_token, task.response.task_token);
    chain.try_complete_with(completing(&task, &["u"])).expect("accepted");
    let watch = watched(&mut chain, "u");
    assert_eq!(progress(&mut chain, &watch), (Stage::Completed, Some(updates::success())));
}

#[test]
fn there_may_be_too_many() {
    let mut chain = TestChain::started();
    chain.limits.updates_in_flight = 2;
    chain.limits.updates_total = 3;
    update(&mut chain, "1");
    update(&mut chain, "2");
    let error = try_update(&mut chain, "3").expect_err("in flight");
    assert_eq!(error.grpc_code(), Code::ResourceExhausted);
    let task = chain.poll();
    chain.try_complete_with(accepting(&task, vec![])).expect("accepted");
    chain.signal("go");
    let task = chain.poll();
    chain.try_complete_with(completing(&task, &["1", "2"])).expect("accepted");
    update(&mut chain, "3");
    let error = try_update(&mut chain, "4").expect_err("in all");
    assert_eq!(error.grpc_code(), Code::FailedPrecondition);
}
