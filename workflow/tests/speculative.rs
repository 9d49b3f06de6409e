//! Workflow tasks that exist only to deliver updates: they leave no trace if they change nothing.

mod common;

use common::{
    updates::{accepting, rejecting, update, waiting},
    *,
};
use perdure_proto::{
    perdure::node::v1::{TaskKind, TaskToken, TaskUndelivered, workflow_call},
    temporal::api::{
        enums::v1::EventType as E,
        workflowservice::v1::{
            RespondWorkflowTaskCompletedRequest, respond_workflow_task_completed_request::Capabilities,
        },
    },
};
use perdure_types::Duration;
use prost::Message as _;

#[test]
fn a_rejection_leaves_no_trace() {
    let mut chain = waiting();
    let records = chain.records.len();
    update(&mut chain, "u");
    let task = chain.poll();
    assert_eq!(task.response.messages.len(), 1);
    let extra = &task.history.as_ref().expect("history").extra;
    assert_eq!(extra.iter().map(|e| e.event_id).collect::<Vec<_>>(), [5, 6]);
    let response = chain.try_complete_with(rejecting(&task)).expect("accepted");
    assert_eq!(response.reset_history_event_id, 3);
    assert_eq!(chain.records.len(), records);
    chain.assert_types_from(4, &[E::WorkflowTaskCompleted]);
    assert!(chain.offers.is_empty());
}

#[test]
fn an_acceptance_writes_what_the_worker_has_seen() {
    let mut chain = waiting();
    update(&mut chain, "u");
    chain.advance_secs(1);
    let task = chain.poll();
    chain.advance_secs(1);
    let response = chain.try_complete_with(accepting(&task, vec![])).expect("accepted");
    assert_eq!(response.reset_history_event_id, 0);
    chain.assert_types_from(
        5,
        &[
            E::WorkflowTaskScheduled,
            E::WorkflowTaskStarted,
            E::WorkflowTaskCompleted,
            E::WorkflowExecutionUpdateAccepted,
        ],
    );
    let extra = &task.history.as_ref().expect("history").extra;
    assert_eq!((chain.event(5), chain.event(6)), (&*extra[0], &*extra[1]));
}

#[test]
fn events_make_it_real() {
    let mut chain = TestChain::started();
    chain.work(vec![commands::timer("t", 5)]);
    update(&mut chain, "u");
    let task = chain.poll();
    chain.advance_secs(5);
    chain.assert_types_from(6, &[E::WorkflowTaskScheduled, E::WorkflowTaskStarted]);
    chain.try_complete_with(rejecting(&task)).expect("accepted");
    chain.assert_types_from(8, &[E::WorkflowTaskCompleted, E::TimerFired, E::WorkflowTaskScheduled]);
}

#[test]
fn events_that_were_shown_are_kept_unless_the_worker_can_see_them_again() {
    for (again, dropped) in [(false, false), (true, true)] {
        let mut chain = TestChain::started();
        // The timer stands after the Completed event.
        chain.work(vec![commands::timer("t", 5)]);
        update(&mut chain, "u");
        let task = chain.poll();
        let request = RespondWorkflowTaskCompletedRequest {
            capabilities: Some(Capabilities { discard_speculative_workflow_task_with_events: again }),
            ..rejecting(&task)
        };
        chain.try_complete_with(request).expect("accepted");
        assert_eq!(chain.types().len() == 5, dropped, "{:?}", chain.types());
    }
}

#[test]
fn a_failed_one_is_delivered_again() {
    let mut chain = waiting();
    update(&mut chain, "u");
    let task = chain.poll();
    chain.try_complete(&task, vec![commands::marker("")]).expect_err("bad");
    chain.assert_types_from(5, &[E::WorkflowTaskScheduled, E::WorkflowTaskStarted, E::WorkflowTaskFailed]);
    let retry = chain.poll();
    assert_eq!((retry.response.attempt, retry.response.messages.len()), (2, 1));
    chain.try_complete_with(accepting(&retry, vec![])).expect("accepted");
}

#[test]
fn an_undelivered_one_has_never_been() {
    let mut chain = waiting();
    let records = chain.records.len();
    update(&mut chain, "u");
    let task = chain.poll();
    let token = Some(TaskToken::decode(&*task.response.task_token).expect("a token"));
    chain.call(workflow_call::Command::TaskUndelivered(TaskUndelivered { token }));
    chain.advance(Duration(1));
    let again = chain.poll();
    assert_eq!(again.response.messages.len(), 1);
    chain.try_complete_with(rejecting(&again)).expect("accepted");
    assert_eq!(chain.records.len(), records);
}

#[test]
fn an_update_during_a_task_comes_along_with_the_next() {
    let mut chain = TestChain::started();
    let task = chain.poll();
    update(&mut chain, "u");
    let request = RespondWorkflowTaskCompletedRequest { return_new_workflow_task: true, ..completion(&task, vec![]) };
    let response = chain.try_complete_with(request).expect("accepted");
    let next = WorkflowTask { response: response.workflow_task.expect("comes along"), history: None };
    assert_eq!(chain.offered(TaskKind::Workflow), 0);
    chain.assert_types_from(4, &[E::WorkflowTaskCompleted]);
    chain.try_complete_with(rejecting(&next)).expect("accepted");
    chain.assert_types_from(4, &[E::WorkflowTaskCompleted]);
}
