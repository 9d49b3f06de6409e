//! Workflow tasks: completion, failure, timeouts, buffered events, stickiness.

mod common;

use common::*;
use perdure_proto::{
    Code,
    perdure::node::v1::{TaskKind, TaskToken, TaskUndelivered, workflow_call},
    temporal::api::{
        enums::v1::{EventType as E, TimeoutType, WorkflowExecutionStatus, WorkflowTaskFailedCause as Cause},
        history::v1::history_event::Attributes,
        workflowservice::v1::{RespondWorkflowTaskCompletedRequest, RespondWorkflowTaskFailedRequest},
    },
};
use perdure_types::Duration;
use prost::Message;

fn fail_task(chain: &mut TestChain, task: &WorkflowTask, cause: Cause) {
    chain.call(workflow_call::Command::RespondWorkflowTaskFailed(RespondWorkflowTaskFailedRequest {
        task_token: task.response.task_token.clone(),
        cause: cause as i32,
        failure: Some(application_failure("NonDeterminism")),
        ..RespondWorkflowTaskFailedRequest::default()
    }));
}

fn undelivered(chain: &mut TestChain, token: &[u8]) {
    let token = Some(TaskToken::decode(token).expect("a token"));
    chain.call(workflow_call::Command::TaskUndelivered(TaskUndelivered { token }));
}

fn sticky_completion(
    task: &WorkflowTask,
    commands: Vec<perdure_proto::temporal::api::command::v1::Command>,
) -> RespondWorkflowTaskCompletedRequest {
    RespondWorkflowTaskCompletedRequest { sticky_attributes: Some(sticky_attributes()), ..completion(task, commands) }
}

const BEGIN: [E; 3] = [E::WorkflowExecutionStarted, E::WorkflowTaskScheduled, E::WorkflowTaskStarted];

#[test]
fn the_shortest_workflow() {
    let mut chain = TestChain::started();
    let task = chain.poll();
    assert_eq!((task.response.started_event_id, task.response.attempt), (3, 1));
    let fill = task.history.as_ref().expect("history");
    assert_eq!((fill.from_event_id, fill.until_event_id, fill.extra.len()), (1, 4, 0));
    chain.complete(&task, vec![commands::complete("done")]);
    chain.assert_types_from(1, &[&BEGIN[..], &[E::WorkflowTaskCompleted, E::WorkflowExecutionCompleted]].concat());
    assert!(chain.offers.is_empty());
    assert_eq!(chain.chain.next_timer(), Some(chain.now + Duration::from_secs(3 * 24 * 3600)));
    chain.advance_secs(4 * 24 * 3600);
    assert!(chain.chain.run_ids().next().is_none(), "gone after its retention");
}

#[test]
fn commands_become_events_in_order() {
    let mut chain = TestChain::started();
    chain.work(vec![
        commands::marker("m"),
        commands::activity("a"),
        commands::timer("t", 60),
        commands::memo("k", "1"),
        commands::cancel_timer("t"),
    ]);
    chain.assert_types_from(
        4,
        &[
            E::WorkflowTaskCompleted,
            E::MarkerRecorded,
            E::ActivityTaskScheduled,
            E::TimerStarted,
            E::WorkflowPropertiesModified,
            E::TimerCanceled,
        ],
    );
    let snapshot = chain.snapshot();
    assert_eq!(snapshot.memo.expect("memo").fields.len(), 1);
    assert!(snapshot.timers.is_empty());
}

#[test]
fn a_stale_completion_changes_nothing() {
    let mut chain = TestChain::started();
    let task = chain.poll();
    chain.complete(&task, vec![commands::timer("t", 1)]);
    let error = chain.try_complete(&task, vec![]).expect_err("completed already");
    assert_eq!((error.grpc_code(), error.message.as_str()), (Code::NotFound, "Workflow task not found."));
    chain.advance_secs(1);
    let next = chain.poll();
    chain.complete(&next, vec![commands::complete("")]);
    let error = chain.try_complete(&next, vec![]).expect_err("closed");
    assert_eq!(error.message, "Workflow task not found.");
}

#[test]
fn a_bad_command_fails_the_task_and_undoes_the_rest() {
    let bad: Vec<(Vec<_>, Cause, &str)> = vec![
        (
            vec![commands::timer("t", 1), commands::timer("t", 1)],
            Cause::StartTimerDuplicateId,
            "StartTimerDuplicateId: invalid history builder state for action: add-timer-started-event, TimerID: t",
        ),
        (
            vec![commands::activity("a"), commands::activity("a")],
            Cause::ScheduleActivityDuplicateId,
            "ScheduleActivityDuplicateId: invalid history builder state for action: add-activitytask-scheduled-event, ActivityID: a",
        ),
        (
            vec![commands::activity_with("a", |a| a.start_to_close_timeout = None)],
            Cause::BadScheduleActivityAttributes,
            "BadScheduleActivityAttributes: a valid StartToCloseTimeout or ScheduleToCloseTimeout must be set on the activity. ActivityId=a ActivityType=charge",
        ),
        (
            vec![commands::activity("a"), commands::cancel_timer("t")],
            Cause::BadCancelTimerAttributes,
            "BadCancelTimerAttributes: invalid history builder state for action: add-timer-canceled-event, TimerID: t",
        ),
        (
            vec![commands::cancel_activity(77)],
            Cause::BadRequestCancelActivityAttributes,
            "BadRequestCancelActivityAttributes: invalid history builder state for action: add-activitytask-cancel-requested-event, ScheduledEventID: 77",
        ),
        (
            vec![commands::marker("")],
            Cause::BadRecordMarkerAttributes,
            "BadRecordMarkerAttributes: MarkerName is not set on RecordMarkerCommand.",
        ),
    ];
    for (commands, cause, message) in bad {
        let mut chain = TestChain::started();
        let task = chain.poll();
        let error = chain.try_complete(&task, commands).expect_err("bad");
        assert_eq!((error.grpc_code(), error.message.as_str()), (Code::InvalidArgument, message));
        chain.assert_types_from(4, &[E::WorkflowTaskFailed]);
        let Attributes::WorkflowTaskFailedEventAttributes(failed) = chain.last() else { panic!("not failed") };
        assert_eq!((failed.cause(), failed.scheduled_event_id, failed.started_event_id), (cause, 2, 3));
        assert_eq!(failed.failure.as_ref().expect("failure").message, message);
        assert!(chain.snapshot().activities.is_empty() && chain.snapshot().timers.is_empty());
        let retry = chain.poll();
        assert_eq!((retry.response.attempt, retry.response.started_event_id), (2, 6));
        chain.complete(&retry, vec![commands::complete("")]);
    }
}

#[test]
fn a_command_sequence_that_cannot_be_fails_no_task() {
    let mut chain = TestChain::started();
    let task = chain.poll();
    let error = chain.try_complete(&task, vec![commands::complete(""), commands::timer("t", 1)]).expect_err("refused");
    assert_eq!(
        error.message,
        "invalid command sequence: [CompleteWorkflowExecution, StartTimer], command CompleteWorkflowExecution must be the last command."
    );
    chain.assert_types_from(1, &BEGIN);
    chain.complete(&task, vec![commands::complete("")]);
}

#[test]
fn an_oversized_payload_terminates_the_workflow() {
    let mut chain = TestChain::started();
    let task = chain.poll();
    let big = commands::activity_with("a", |a| a.input = Some(payloads(&"x".repeat(3 << 20))));
    chain.try_complete(&task, vec![big]).expect_err("too big");
    chain.assert_types_from(4, &[E::WorkflowTaskFailed, E::WorkflowExecutionTerminated]);
    assert!(chain.offers.is_empty());
}

#[test]
fn retries_are_transient() {
    let mut chain = TestChain::started();
    let task = chain.poll();
    fail_task(&mut chain, &task, Cause::NonDeterministicError);
    let Attributes::WorkflowTaskFailedEventAttributes(failed) = chain.last() else { panic!("not failed") };
    assert_eq!(failed.cause(), Cause::NonDeterministicError);

    let retry = chain.poll();
    let fill = retry.history.clone().expect("history");
    assert_eq!((fill.from_event_id, fill.until_event_id), (1, 5));
    let shown: Vec<_> = fill.extra.iter().map(|event| (event.event_id, event.event_type())).collect();
    assert_eq!(shown, [(5, E::WorkflowTaskScheduled), (6, E::WorkflowTaskStarted)]);
    chain.assert_types_from(4, &[E::WorkflowTaskFailed]);

    chain.advance_secs(3);
    chain.complete(&retry, vec![commands::timer("t", 1)]);
    chain.assert_types_from(
        5,
        &[E::WorkflowTaskScheduled, E::WorkflowTaskStarted, E::WorkflowTaskCompleted, E::TimerStarted],
    );
    assert_eq!(chain.event(5), &*fill.extra[0], "as the worker has seen it");
    assert_eq!(chain.event(6), &*fill.extra[1], "as the worker has seen it");
    assert_eq!(chain.snapshot().info.expect("info").workflow_task_attempt, 1);
}

#[test]
fn repeated_failures_back_off() {
    let mut chain = TestChain::started();
    for (attempt, delay_secs) in [(1, 0), (2, 1), (3, 2), (4, 4)] {
        let task = chain.poll();
        assert_eq!(task.response.attempt, attempt);
        fail_task(&mut chain, &task, Cause::WorkflowWorkerUnhandledFailure);
        assert_eq!(chain.offered(TaskKind::Workflow), usize::from(delay_secs == 0), "after attempt {attempt}");
        chain.advance(Duration(Duration::from_secs(delay_secs).0 - i64::from(delay_secs > 0)));
        assert_eq!(chain.offered(TaskKind::Workflow), usize::from(delay_secs == 0), "after attempt {attempt}");
        chain.advance(Duration(1));
        assert_eq!(chain.offered(TaskKind::Workflow), 1);
    }
    chain.assert_types_from(4, &[E::WorkflowTaskFailed]);
}

#[test]
fn a_bad_command_of_a_retry_waits_for_its_timeout() {
    let mut chain = TestChain::started();
    let task = chain.poll();
    fail_task(&mut chain, &task, Cause::NonDeterministicError);
    let retry = chain.poll();
    chain.try_complete(&retry, vec![commands::marker("")]).expect_err("bad");
    assert!(chain.offers.is_empty());
    chain.advance_secs(10);
    assert_eq!(chain.poll().response.attempt, 3);
    chain.assert_types_from(4, &[E::WorkflowTaskFailed]);
}

#[test]
fn a_started_task_times_out() {
    let mut chain = TestChain::started();
    let task = chain.poll();
    chain.advance_secs(10);
    chain.assert_types_from(4, &[E::WorkflowTaskTimedOut]);
    let Attributes::WorkflowTaskTimedOutEventAttributes(timed_out) = chain.last() else { panic!("not timed out") };
    assert_eq!((timed_out.timeout_type(), timed_out.started_event_id), (TimeoutType::StartToClose, 3));
    chain.try_complete(&task, vec![]).expect_err("too late");
    // Attempts 2 and 3 have the same time as the first, then they get more.
    for (attempt, timeout_secs) in [(2, 10), (3, 10), (4, 15), (5, 20)] {
        assert_eq!(chain.poll().response.attempt, attempt);
        chain.advance(Duration(Duration::from_secs(timeout_secs).0 - 1));
        assert!(chain.offers.is_empty(), "attempt {attempt}");
        chain.advance(Duration(1));
    }
    chain.assert_types_from(4, &[E::WorkflowTaskTimedOut]);
}

#[test]
fn what_comes_during_a_task_waits_for_its_end() {
    let mut chain = TestChain::started();
    chain.work(vec![commands::activity("a"), commands::timer("t", 5)]);
    chain.signal("one");
    let activity = chain.poll_activity();
    let task = chain.poll();
    chain.complete_activity(&activity, "result");
    chain.signal("two");
    chain.advance_secs(5);
    chain.assert_types_from(7, &[E::WorkflowExecutionSignaled, E::WorkflowTaskScheduled, E::WorkflowTaskStarted]);
    assert!(chain.offers.is_empty());
    chain.complete(&task, vec![commands::marker("m")]);
    chain.assert_types_from(
        10,
        &[
            E::WorkflowTaskCompleted,
            E::MarkerRecorded,
            E::ActivityTaskStarted,
            E::WorkflowExecutionSignaled,
            E::TimerFired,
            E::ActivityTaskCompleted,
            E::WorkflowTaskScheduled,
        ],
    );
    let Some(Attributes::ActivityTaskCompletedEventAttributes(completed)) = &chain.event(15).attributes else {
        panic!("not completed")
    };
    assert_eq!((completed.scheduled_event_id, completed.started_event_id), (5, 12));
    assert_eq!(chain.offered(TaskKind::Workflow), 1);
}

#[test]
fn a_workflow_cannot_close_on_unseen_events() {
    let mut chain = TestChain::started();
    let task = chain.poll();
    chain.signal("late");
    let error = chain.try_complete(&task, vec![commands::complete("")]).expect_err("unseen signal");
    assert_eq!((error.grpc_code(), error.message.as_str()), (Code::InvalidArgument, "UnhandledCommand"));
    chain.assert_types_from(4, &[E::WorkflowTaskFailed, E::WorkflowExecutionSignaled, E::WorkflowTaskScheduled]);
    let task = chain.poll();
    assert_eq!(task.response.attempt, 1);
    chain.complete(&task, vec![commands::complete("")]);
    assert_eq!(chain.snapshot().info.expect("info").status(), WorkflowExecutionStatus::Completed);
}

#[test]
fn events_during_a_retry_make_the_next_attempt_ordinary() {
    let mut chain = TestChain::started();
    let task = chain.poll();
    fail_task(&mut chain, &task, Cause::NonDeterministicError);
    let retry = chain.poll();
    chain.signal("s");
    fail_task(&mut chain, &retry, Cause::NonDeterministicError);
    chain.assert_types_from(4, &[E::WorkflowTaskFailed, E::WorkflowExecutionSignaled, E::WorkflowTaskScheduled]);
    assert_eq!(chain.poll().response.attempt, 1);
}

#[test]
fn events_before_a_retry_starts_make_it_ordinary() {
    let mut chain = TestChain::started();
    let task = chain.poll();
    fail_task(&mut chain, &task, Cause::NonDeterministicError);
    chain.signal("s");
    let retry = chain.poll();
    assert_eq!(retry.response.attempt, 1);
    chain.assert_types_from(
        4,
        &[E::WorkflowTaskFailed, E::WorkflowExecutionSignaled, E::WorkflowTaskScheduled, E::WorkflowTaskStarted],
    );
}

#[test]
fn stickiness() {
    let mut chain = TestChain::started();
    let task = chain.poll();
    chain.try_complete_with(sticky_completion(&task, vec![commands::timer("t", 1)])).expect("accepted");
    chain.advance_secs(1);
    let offer = chain.take_offer(TaskKind::Workflow).expect("offered");
    assert!(offer.sticky && offer.task_queue == STICKY_QUEUE && offer.normal_task_queue == QUEUE);
    // Nobody is there: after five seconds it goes to everybody, with everything.
    chain.advance_secs(5);
    chain.assert_types_from(
        6,
        &[E::TimerFired, E::WorkflowTaskScheduled, E::WorkflowTaskTimedOut, E::WorkflowTaskScheduled],
    );
    let Some(Attributes::WorkflowTaskTimedOutEventAttributes(timed_out)) = &chain.event(8).attributes else {
        panic!("not timed out")
    };
    assert_eq!((timed_out.timeout_type(), timed_out.started_event_id), (TimeoutType::ScheduleToStart, 0));
    chain.try_poll_workflow_task(&offer).expect_err("stale offer");
    let task = chain.poll();
    assert_eq!((task.response.attempt, task.history.expect("history").from_event_id), (1, 1));
}

#[test]
fn a_sticky_worker_gets_only_what_is_new() {
    let mut chain = TestChain::started();
    let task = chain.poll();
    chain.try_complete_with(sticky_completion(&task, vec![commands::timer("t", 1)])).expect("accepted");
    chain.advance_secs(1);
    let task = chain.poll();
    let fill = task.history.clone().expect("history");
    assert_eq!((fill.from_event_id, fill.until_event_id, task.response.previous_started_event_id), (4, 9, 3));
    // A sticky task that fails is tried again with everything, as a first attempt.
    fail_task(&mut chain, &task, Cause::NonDeterministicError);
    chain.assert_types_from(9, &[E::WorkflowTaskFailed, E::WorkflowTaskScheduled]);
    let task = chain.poll();
    assert_eq!((task.response.attempt, task.history.expect("history").from_event_id), (1, 1));
}

#[test]
fn an_undelivered_task_is_offered_at_once() {
    let mut chain = TestChain::started();
    let task = chain.poll();
    undelivered(&mut chain, &task.response.task_token);
    chain.assert_types_from(4, &[E::WorkflowTaskTimedOut]);
    let retry = chain.poll();
    assert_eq!(retry.response.attempt, 2);
    // The start of a retry has left no trace.
    chain.advance_secs(1);
    undelivered(&mut chain, &retry.response.task_token);
    let again = chain.poll();
    assert_eq!(again.response.attempt, 2);
    chain.try_complete(&retry, vec![]).expect_err("stale");
    chain.complete(&again, vec![commands::complete("")]);
}

#[test]
fn a_heartbeat_brings_a_new_task_along() {
    let mut chain = TestChain::started();
    let task = chain.poll();
    let request = RespondWorkflowTaskCompletedRequest {
        force_create_new_workflow_task: true,
        return_new_workflow_task: true,
        ..sticky_completion(&task, vec![commands::marker("local activity")])
    };
    let response = chain.try_complete_with(request).expect("accepted");
    let next = response.workflow_task.expect("comes along");
    assert_eq!((next.previous_started_event_id, next.started_event_id), (3, 7));
    chain.assert_types_from(
        4,
        &[E::WorkflowTaskCompleted, E::MarkerRecorded, E::WorkflowTaskScheduled, E::WorkflowTaskStarted],
    );
    assert!(chain.offers.is_empty());
    let next = WorkflowTask { response: next, history: None };
    chain.complete(&next, vec![commands::complete("")]);
}

#[test]
fn heartbeats_end_some_time() {
    let mut chain = TestChain::started();
    let mut task = chain.poll();
    let heartbeat = |task: &WorkflowTask| RespondWorkflowTaskCompletedRequest {
        force_create_new_workflow_task: true,
        return_new_workflow_task: true,
        ..sticky_completion(task, vec![])
    };
    for _ in 0..(30 * 60 / 5) {
        chain.advance_secs(5);
        let response = chain.try_complete_with(heartbeat(&task)).expect("accepted");
        task = WorkflowTask { response: response.workflow_task.expect("comes along"), history: None };
    }
    chain.advance_secs(5);
    let error = chain.try_complete_with(heartbeat(&task)).expect_err("too long");
    assert_eq!(error.message, "workflow task heartbeat timeout");
    let offer = chain.take_offer(TaskKind::Workflow).expect("offered");
    assert!(!offer.sticky);
}

#[test]
fn the_owner_dies() {
    let mut chain = TestChain::started();
    chain.crash();
    let task = chain.poll();
    chain.complete(&task, vec![commands::activity("a"), commands::timer("t", 30)]);
    chain.crash();
    let activity = chain.poll_activity();
    chain.complete_activity(&activity, "");
    chain.crash();
    let task = chain.poll();
    fail_task(&mut chain, &task, Cause::NonDeterministicError);
    chain.crash();
    let retry = chain.poll();
    assert_eq!(retry.response.attempt, 2);
    chain.complete(&retry, vec![]);
    chain.crash();
    chain.advance_secs(30);
    chain.work(vec![commands::complete("")]);
}

#[test]
fn nonsense_tokens_are_refused() {
    let mut chain = TestChain::started();
    let task = chain.poll();
    for token in [vec![], b"nonsense".to_vec(), TaskToken::default().encode_to_vec()] {
        let request = RespondWorkflowTaskCompletedRequest { task_token: token.into(), ..completion(&task, vec![]) };
        assert_eq!(chain.try_complete_with(request).expect_err("refused").grpc_code(), Code::InvalidArgument);
    }
    let mut token = TaskToken::decode(&*task.response.task_token).expect("a token");
    token.attempt += 1;
    let request =
        RespondWorkflowTaskCompletedRequest { task_token: token.encode_to_vec().into(), ..completion(&task, vec![]) };
    assert_eq!(chain.try_complete_with(request).expect_err("refused").grpc_code(), Code::NotFound);
}

#[test]
fn continue_as_new_is_suggested_from_the_limit_on() {
    for (limit, expect) in [(3, true), (4, false)] {
        let mut chain = TestChain::new();
        chain.limits.history_count_suggest_continue_as_new = limit;
        chain.start();
        chain.poll();
        let Attributes::WorkflowTaskStartedEventAttributes(started) = chain.last() else { panic!("not started") };
        assert_eq!(started.suggest_continue_as_new, expect, "event 3, limit {limit}");
        assert_eq!(started.suggest_continue_as_new_reasons.len(), usize::from(expect));
    }
}

#[test]
fn failures_in_a_row_are_reported_until_one_completes() {
    let mut chain = TestChain::started();
    let reported = |chain: &TestChain| {
        let attributes = chain.snapshot().search_attributes.unwrap_or_default();
        attributes.indexed_fields.get("TemporalReportedProblems").map(|payload| payload.data.clone())
    };
    for failures in 1..=6 {
        chain.advance_secs(700);
        let task = chain.poll();
        fail_task(&mut chain, &task, Cause::NonDeterministicError);
        assert_eq!(reported(&chain).is_some(), failures >= 5, "after {failures}");
    }
    let expected = br#"["category=WorkflowTaskFailed","cause=WorkflowTaskFailedCauseNonDeterministicError"]"#;
    assert_eq!(reported(&chain).as_deref(), Some(&expected[..]));
    chain.advance_secs(700);
    let task = chain.poll();
    chain.complete(&task, vec![commands::marker("well again")]);
    assert_eq!(reported(&chain), None);
}
