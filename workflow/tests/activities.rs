//! Activities: attempts, timeouts, heartbeats, cancellation; timers.

mod common;

use common::*;
use perdure_proto::{
    Code,
    perdure::node::v1::{ActivityRef, TaskKind, TaskToken, TaskUndelivered, respond_activity_task, workflow_call},
    temporal::api::{
        common::v1::{Priority, RetryPolicy},
        enums::v1::{EventType as E, RetryState, TimeoutType},
        failure::v1::{Failure, failure::FailureInfo},
        history::v1::{
            ActivityTaskFailedEventAttributes, ActivityTaskStartedEventAttributes, ActivityTaskTimedOutEventAttributes,
            history_event::Attributes,
        },
    },
};
use perdure_types::{Duration, Timestamp};
use perdure_workflow::Release;
use prost::Message;

fn secs(secs: i64) -> Option<prost_types::Duration> {
    Some(Duration::from_secs(secs).to_proto())
}

/// A run that waits for one activity (event 5) to be polled.
fn with_activity(
    change: impl FnOnce(&mut perdure_proto::temporal::api::command::v1::ScheduleActivityTaskCommandAttributes),
) -> TestChain {
    let mut chain = TestChain::started();
    chain.work(vec![commands::activity_with("a", change)]);
    chain
}

fn policy(attempts: i32, non_retryable: &[&str]) -> Option<RetryPolicy> {
    Some(RetryPolicy {
        maximum_attempts: attempts,
        non_retryable_error_types: non_retryable.iter().map(|s| s.to_string()).collect(),
        ..RetryPolicy::default()
    })
}

fn started(chain: &TestChain, id: i64) -> &ActivityTaskStartedEventAttributes {
    match &chain.event(id).attributes {
        Some(Attributes::ActivityTaskStartedEventAttributes(started)) => started,
        other => panic!("not started: {other:?}"),
    }
}

fn failed(chain: &TestChain) -> &ActivityTaskFailedEventAttributes {
    let attributes = chain.history().iter().rev().find_map(|event| match &event.attributes {
        Some(Attributes::ActivityTaskFailedEventAttributes(failed)) => Some(failed),
        _ => None,
    });
    attributes.expect("an activity failed")
}

fn timed_out(chain: &TestChain) -> &ActivityTaskTimedOutEventAttributes {
    let attributes = chain.history().iter().rev().find_map(|event| match &event.attributes {
        Some(Attributes::ActivityTaskTimedOutEventAttributes(timed_out)) => Some(timed_out),
        _ => None,
    });
    attributes.expect("an activity timed out")
}

fn timeout_info(failure: &Failure) -> (TimeoutType, Option<perdure_proto::temporal::api::common::v1::Payloads>) {
    match &failure.failure_info {
        Some(FailureInfo::TimeoutFailureInfo(info)) => (info.timeout_type(), info.last_heartbeat_details.clone()),
        other => panic!("not a timeout: {other:?}"),
    }
}

fn by_id(id: &str) -> ActivityRef {
    ActivityRef { activity_id: id.to_owned(), ..ActivityRef::default() }
}

fn canceled() -> respond_activity_task::Outcome {
    respond_activity_task::Outcome::Canceled(respond_activity_task::Canceled { details: None })
}

#[test]
fn an_activity_from_end_to_end() {
    let mut chain = with_activity(|a| {
        a.input = Some(payloads("in"));
        a.heartbeat_timeout = secs(3);
        a.priority = Some(Priority { priority_key: 2, ..Priority::default() });
    });
    let scheduled_at = chain.now;
    chain.advance_secs(1);
    let task = chain.poll_activity();
    assert_eq!(chain.release, Release::Durable);
    assert_eq!((task.activity_id.as_str(), task.attempt), ("a", 1));
    assert_eq!(task.input, Some(payloads("in")));
    assert_eq!(task.workflow_namespace, NAMESPACE);
    assert_eq!(task.workflow_type.as_ref().expect("type").name, "Order");
    assert_eq!(Timestamp::from_proto(task.scheduled_time.as_ref()), scheduled_at);
    assert_eq!(Timestamp::from_proto(task.started_time.as_ref()), chain.now);
    assert_eq!((task.start_to_close_timeout, task.heartbeat_timeout), (secs(10), secs(3)));
    assert_eq!(task.retry_policy.as_ref().expect("filled in").maximum_interval, secs(100));
    assert_eq!(task.priority.as_ref().expect("given").priority_key, 2);
    chain.assert_types_from(5, &[E::ActivityTaskScheduled]);

    let started_at = chain.now;
    chain.advance_secs(1);
    chain.complete_activity(&task, "out");
    chain.assert_types_from(6, &[E::ActivityTaskStarted, E::ActivityTaskCompleted, E::WorkflowTaskScheduled]);
    assert_eq!(Timestamp::from_proto(chain.event(6).event_time.as_ref()), started_at);
    assert_eq!((started(&chain, 6).attempt, started(&chain, 6).identity.as_str()), (1, "activity-worker"));
    let Some(Attributes::ActivityTaskCompletedEventAttributes(completed)) = &chain.event(7).attributes else {
        panic!("not completed")
    };
    assert_eq!((completed.scheduled_event_id, completed.started_event_id), (5, 6));
    assert_eq!(completed.result, Some(payloads("out")));
}

#[test]
fn a_poll_is_answered_again_but_never_twice() {
    let mut chain = with_activity(|_| {});
    let offer = chain.take_offer(TaskKind::Activity).expect("offered");
    chain.try_poll_activity(&offer).expect("started");
    let error = chain.try_poll_activity(&offer).expect_err("another poll");
    assert_eq!(error.grpc_code(), Code::NotFound);
}

#[test]
fn retries_leave_no_events() {
    let mut chain = with_activity(|a| a.retry_policy = policy(3, &[]));
    let first = chain.poll_activity();
    chain.fail_activity(&first, application_failure("Flaky"));
    chain.assert_types_from(5, &[E::ActivityTaskScheduled]);
    assert!(chain.offers.is_empty(), "backs off");
    chain.advance_secs(1);
    let second = chain.poll_activity();
    assert_eq!(second.attempt, 2);
    assert_eq!(Timestamp::from_proto(second.current_attempt_scheduled_time.as_ref()), chain.now);
    chain.fail_activity(&second, application_failure("Flaky"));
    chain.advance(Duration(Duration::from_secs(2).0 - 1));
    assert!(chain.offers.is_empty(), "backs off");
    chain.advance(Duration(1));
    let third = chain.poll_activity();
    chain.fail_activity(&third, application_failure("Last"));
    chain.assert_types_from(6, &[E::ActivityTaskStarted, E::ActivityTaskFailed, E::WorkflowTaskScheduled]);
    assert_eq!(started(&chain, 6).attempt, 3);
    assert_eq!(started(&chain, 6).last_failure, Some(application_failure("Flaky")));
    assert_eq!(failed(&chain).retry_state(), RetryState::MaximumAttemptsReached);
    assert_eq!(failed(&chain).failure, Some(application_failure("Last")));
    // Answers to earlier attempts are too late.
    for task in [&first, &second, &third] {
        let error = chain.try_respond_activity(activity_ref(&task.task_token), completed_with("")).expect_err("late");
        assert_eq!(error.message, "invalid activityID or activity already timed out or invoking workflow is completed");
    }
}

#[test]
fn an_old_attempt_cannot_answer_for_the_new_one() {
    let mut chain = with_activity(|_| {});
    let first = chain.poll_activity();
    chain.advance_secs(10);
    chain.advance_secs(1);
    let second = chain.poll_activity();
    assert_eq!(second.attempt, 2);
    chain.try_respond_activity(activity_ref(&first.task_token), completed_with("")).expect_err("old");
    chain.heartbeat(&first, "").expect_err("old");
    chain.complete_activity(&second, "");
}

#[test]
fn why_a_retry_does_not_happen() {
    let check = |policy, failure: Failure, expect: RetryState| {
        let mut chain = with_activity(|a| {
            a.retry_policy = policy;
            a.schedule_to_close_timeout = secs(5);
        });
        let task = chain.poll_activity();
        chain.fail_activity(&task, failure);
        assert_eq!(failed(&chain).retry_state(), expect);
    };
    check(policy(1, &[]), application_failure("x"), RetryState::MaximumAttemptsReached);
    check(policy(0, &["Bad"]), application_failure("Bad"), RetryState::NonRetryableFailure);
    let mut fatal = application_failure("x");
    if let Some(FailureInfo::ApplicationFailureInfo(info)) = &mut fatal.failure_info {
        info.non_retryable = true;
    }
    check(policy(0, &[]), fatal, RetryState::NonRetryableFailure);
    let slow = Some(RetryPolicy { initial_interval: secs(6), ..RetryPolicy::default() });
    check(slow, application_failure("x"), RetryState::Timeout);
}

#[test]
fn the_worker_chooses_the_next_delay() {
    let failure = |delay| {
        let mut failure = application_failure("Busy");
        if let Some(FailureInfo::ApplicationFailureInfo(info)) = &mut failure.failure_info {
            info.next_retry_delay = secs(delay);
        }
        failure
    };
    let mut chain = with_activity(|_| {});
    let task = chain.poll_activity();
    // Longer than the policy's longest, which is 100 seconds.
    chain.fail_activity(&task, failure(300));
    chain.advance_secs(299);
    assert!(chain.offers.is_empty());
    chain.advance_secs(1);
    let task = chain.poll_activity();
    assert_eq!(task.attempt, 2);
    chain.fail_activity(&task, failure(0));
    assert_eq!(chain.poll_activity().attempt, 3, "at once");
}

#[test]
fn a_slow_attempt_is_tried_again() {
    let mut chain = with_activity(|a| a.retry_policy = policy(2, &[]));
    let task = chain.poll_activity();
    chain.heartbeat(&task, "half").expect("alive");
    chain.advance_secs(11);
    let task = chain.poll_activity();
    assert_eq!((task.attempt, task.heartbeat_details.clone()), (2, Some(payloads("half"))));
    chain.advance_secs(10);
    chain.assert_types_from(6, &[E::ActivityTaskStarted, E::ActivityTaskTimedOut, E::WorkflowTaskScheduled]);
    assert_eq!(timed_out(&chain).retry_state(), RetryState::MaximumAttemptsReached);
    let failure = timed_out(&chain).failure.clone().expect("failure");
    assert_eq!(failure.message, "activity StartToClose timeout");
    assert_eq!(timeout_info(&failure), (TimeoutType::StartToClose, Some(payloads("half"))));
    let cause = failure.cause.expect("the attempt before");
    assert_eq!(timeout_info(&cause), (TimeoutType::StartToClose, None));
}

#[test]
fn a_silent_worker_is_given_up() {
    let mut chain = with_activity(|a| {
        a.heartbeat_timeout = secs(2);
        a.start_to_close_timeout = secs(60);
        a.retry_policy = policy(1, &[]);
    });
    let task = chain.poll_activity();
    for _ in 0..3 {
        chain.advance_secs(1);
        let reply = chain.heartbeat(&task, "x").expect("alive");
        assert!(!reply.cancel_requested);
        assert_eq!(chain.release, Release::Now);
    }
    chain.advance(Duration(Duration::from_secs(2).0 - 1));
    chain.assert_types_from(5, &[E::ActivityTaskScheduled]);
    chain.advance(Duration(1));
    let failure = timed_out(&chain).failure.clone().expect("failure");
    assert_eq!(timeout_info(&failure), (TimeoutType::Heartbeat, Some(payloads("x"))));
    assert_eq!(failure.message, "activity Heartbeat timeout");
    chain.heartbeat(&task, "").expect_err("too late");
}

#[test]
fn nobody_takes_the_activity() {
    let mut chain = with_activity(|a| a.schedule_to_start_timeout = secs(7));
    let offer = chain.take_offer(TaskKind::Activity).expect("offered");
    chain.advance_secs(7);
    chain.assert_types_from(6, &[E::ActivityTaskTimedOut, E::WorkflowTaskScheduled]);
    let timed_out = timed_out(&chain);
    assert_eq!((timed_out.retry_state(), timed_out.started_event_id), (RetryState::Timeout, 0));
    let failure = timed_out.failure.as_ref().expect("failure");
    assert_eq!(timeout_info(failure).0, TimeoutType::ScheduleToStart);
    assert_eq!(failure.message, "activity ScheduleToStart timeout");
    chain.try_poll_activity(&offer).expect_err("gone");
}

#[test]
fn of_two_deadlines_at_once_the_more_particular_counts() {
    // Schedule-to-close stands in for schedule-to-start.
    let mut chain = with_activity(|a| a.schedule_to_close_timeout = secs(8));
    chain.advance_secs(8);
    let failure = timed_out(&chain).failure.as_ref().expect("failure");
    assert_eq!(timeout_info(failure).0, TimeoutType::ScheduleToStart);
}

#[test]
fn schedule_to_close_ends_all_attempts() {
    let mut chain = with_activity(|a| {
        a.schedule_to_close_timeout = secs(12);
        a.start_to_close_timeout = secs(5);
    });
    let task = chain.poll_activity();
    chain.fail_activity(&task, application_failure("Flaky"));
    chain.advance_secs(1);
    chain.poll_activity();
    // The second attempt times out at 6, the third begins at 8 and would have time until 13.
    chain.advance_secs(7);
    chain.poll_activity();
    chain.advance_secs(4);
    let timed_out = timed_out(&chain);
    assert_eq!(timed_out.retry_state(), RetryState::Timeout);
    let failure = timed_out.failure.clone().expect("failure");
    assert_eq!(timeout_info(&failure).0, TimeoutType::ScheduleToClose);
    assert_eq!(timeout_info(&failure.cause.expect("attempt 2")).0, TimeoutType::StartToClose);
}

#[test]
fn no_time_for_another_attempt() {
    let mut chain = with_activity(|a| {
        a.schedule_to_close_timeout = secs(10);
        a.start_to_close_timeout = secs(9);
        a.retry_policy = Some(RetryPolicy { initial_interval: secs(2), ..RetryPolicy::default() });
    });
    chain.poll_activity();
    chain.advance_secs(9);
    let failure = timed_out(&chain).failure.clone().expect("failure");
    assert_eq!(timed_out(&chain).retry_state(), RetryState::Timeout);
    assert_eq!(timeout_info(&failure).0, TimeoutType::ScheduleToClose);
    assert!(failure.message.starts_with("Not enough time to schedule next retry"));
}

#[test]
fn cancel_before_the_start() {
    let mut chain = with_activity(|_| {});
    chain.try_respond_activity(by_id("a"), canceled()).expect_err("not started");
    wake(&mut chain);
    let offer = chain.take_offer(TaskKind::Activity).expect("offered");
    chain.work(vec![commands::cancel_activity(5), commands::marker("after")]);
    chain.assert_types_from(
        9,
        &[
            E::WorkflowTaskCompleted,
            E::ActivityTaskCancelRequested,
            E::MarkerRecorded,
            E::ActivityTaskCanceled,
            E::WorkflowTaskScheduled,
        ],
    );
    let Some(Attributes::ActivityTaskCanceledEventAttributes(canceled)) = &chain.event(12).attributes else {
        panic!("not canceled")
    };
    assert_eq!(
        (canceled.scheduled_event_id, canceled.started_event_id, canceled.latest_cancel_requested_event_id),
        (5, 0, 10)
    );
    assert_eq!(&canceled.details.as_ref().expect("why").payloads[0].data[..], br#""ACTIVITY_ID_NOT_STARTED""#);
    chain.try_poll_activity(&offer).expect_err("gone");
}

/// Has the workflow look: a timer of one second that was not started by it, seen as a signal would be.
fn wake(chain: &mut TestChain) {
    use perdure_proto::{
        perdure::node::v1::SignalWorkflow,
        temporal::api::{common::v1::WorkflowExecution, workflowservice::v1::SignalWorkflowExecutionRequest},
    };
    let request = SignalWorkflowExecutionRequest {
        namespace: NAMESPACE.to_owned(),
        workflow_execution: Some(WorkflowExecution { workflow_id: WORKFLOW_ID.to_owned(), ..Default::default() }),
        signal_name: "wake".to_owned(),
        ..SignalWorkflowExecutionRequest::default()
    };
    chain.call(workflow_call::Command::Signal(SignalWorkflow { request: Some(request), ..Default::default() }));
}

#[test]
fn cancel_reaches_the_worker_by_its_heartbeat() {
    let mut chain = with_activity(|_| {});
    let task = chain.poll_activity();
    let error = chain.try_respond_activity(activity_ref(&task.task_token), canceled()).expect_err("not requested");
    assert_eq!(error.grpc_code(), Code::InvalidArgument);
    wake(&mut chain);
    chain.work(vec![commands::cancel_activity(5)]);
    chain.assert_types_from(9, &[E::WorkflowTaskCompleted, E::ActivityTaskCancelRequested]);
    assert!(chain.heartbeat(&task, "").expect("alive").cancel_requested);
    chain.try_respond_activity(activity_ref(&task.task_token), canceled()).expect("accepted");
    chain.assert_types_from(11, &[E::ActivityTaskStarted, E::ActivityTaskCanceled, E::WorkflowTaskScheduled]);
}

#[test]
fn a_canceled_activity_is_not_retried() {
    let mut chain = with_activity(|_| {});
    let task = chain.poll_activity();
    wake(&mut chain);
    chain.work(vec![commands::cancel_activity(5)]);
    chain.fail_activity(&task, application_failure("x"));
    assert_eq!(failed(&chain).retry_state(), RetryState::CancelRequested);
}

#[test]
fn cancel_of_an_activity_whose_end_is_not_seen_yet() {
    let mut chain = with_activity(|_| {});
    let activity = chain.poll_activity();
    wake(&mut chain);
    let task = chain.poll();
    chain.complete_activity(&activity, "done");
    chain.complete(&task, vec![commands::cancel_activity(5)]);
    chain.assert_types_from(
        10,
        &[E::ActivityTaskCancelRequested, E::ActivityTaskStarted, E::ActivityTaskCompleted, E::WorkflowTaskScheduled],
    );
}

#[test]
fn by_activity_id() {
    let mut chain = with_activity(|_| {});
    let error = chain.try_respond_activity(by_id("b"), completed_with("")).expect_err("unknown");
    assert_eq!(
        (error.grpc_code(), error.message.as_str()),
        (
            Code::NotFound,
            "cannot find pending activity with ActivityID b, check workflow execution history for more details"
        )
    );
    let error = chain.try_respond_activity(by_id(""), completed_with("")).expect_err("no id");
    assert_eq!(error.grpc_code(), Code::InvalidArgument);
    // It may be completed before any worker has it.
    chain.try_respond_activity(by_id("a"), completed_with("x")).expect("accepted");
    chain.assert_types_from(6, &[E::ActivityTaskStarted, E::ActivityTaskCompleted, E::WorkflowTaskScheduled]);
}

#[test]
fn a_closed_workflow_has_no_activities() {
    let mut chain = with_activity(|_| {});
    let task = chain.poll_activity();
    wake(&mut chain);
    chain.work(vec![commands::complete("")]);
    let error = chain.heartbeat(&task, "").expect_err("closed");
    assert_eq!((error.grpc_code(), error.message.as_str()), (Code::NotFound, "workflow execution already completed"));
}

#[test]
fn an_undelivered_activity_is_offered_again_as_the_same_attempt() {
    let mut chain = with_activity(|_| {});
    let first = chain.poll_activity();
    let token = Some(TaskToken::decode(&*first.task_token).expect("a token"));
    chain.call(workflow_call::Command::TaskUndelivered(TaskUndelivered { token }));
    let second = chain.poll_activity();
    assert_eq!(second.attempt, 1);
    chain.try_respond_activity(activity_ref(&first.task_token), completed_with("")).expect_err("never delivered");
    chain.complete_activity(&second, "");
}

#[test]
fn eager_activities_go_with_the_reply() {
    let mut chain = TestChain::started();
    let task = chain.poll();
    let eager = commands::activity_with("eager", |a| a.request_eager_execution = true);
    let response = chain.complete(&task, vec![eager, commands::activity("offered")]);
    assert_eq!(response.activity_tasks.len(), 1);
    assert_eq!(chain.offered(TaskKind::Activity), 1);
    let task = &response.activity_tasks[0];
    assert_eq!((task.activity_id.as_str(), task.attempt), ("eager", 1));
    chain.complete_activity(task, "");
    chain.assert_types_from(7, &[E::ActivityTaskStarted, E::ActivityTaskCompleted, E::WorkflowTaskScheduled]);
}

#[test]
fn of_deadlines_that_fall_together_the_activitys_own_counts() {
    let mut chain = TestChain::started();
    let task = chain.poll();
    // Eager: it starts when it is scheduled, so start-to-close, which defaults to schedule-to-close, ends with it.
    let eager = commands::activity_with("eager", |a| {
        a.request_eager_execution = true;
        a.schedule_to_close_timeout = secs(3);
        a.start_to_close_timeout = None;
    });
    chain.complete(&task, vec![eager]);
    chain.advance_secs(3);
    let failure = timed_out(&chain).failure.as_ref().expect("a failure");
    assert_eq!(timeout_info(failure).0, TimeoutType::ScheduleToClose);
}

#[test]
fn a_backoff_survives_the_owner() {
    let mut chain = with_activity(|_| {});
    let task = chain.poll_activity();
    chain.fail_activity(&task, application_failure("Flaky"));
    chain.crash();
    assert!(chain.offers.is_empty());
    assert_eq!(chain.chain.wake_at(&chain.run_id()), Some(chain.now + Duration::from_secs(1)));
    chain.advance_secs(1);
    assert_eq!(chain.offered(TaskKind::Activity), 1);
    chain.crash();
    assert_eq!(chain.poll_activity().attempt, 2);
}

#[test]
fn too_many_activities() {
    let mut chain = TestChain::started();
    chain.limits.pending_activities_error = 3;
    let task = chain.poll();
    let all = (0..4).map(|i| commands::activity(&i.to_string())).collect();
    let error = chain.try_complete(&task, all).expect_err("too many");
    assert_eq!(
        error.message,
        "PendingActivitiesLimitExceeded: the number of pending activities, 3, has reached the per-workflow limit of 3"
    );
}

#[test]
fn timers_fire_in_their_order() {
    let mut chain = TestChain::started();
    chain.work(vec![commands::timer("late", 3), commands::timer("soon", 1), commands::timer("long", 30 * 24 * 3600)]);
    chain.now = chain.now + Duration::from_secs(5);
    chain.on_timer();
    chain.assert_types_from(8, &[E::TimerFired, E::WorkflowTaskScheduled, E::TimerFired]);
    let Some(Attributes::TimerFiredEventAttributes(fired)) = &chain.event(8).attributes else { panic!("not fired") };
    assert_eq!((fired.timer_id.as_str(), fired.started_event_id), ("soon", 6));
    chain.work(vec![]);
    chain.crash();
    chain.advance_secs(30 * 24 * 3600);
    assert_eq!(chain.types().iter().filter(|kind| **kind == E::TimerFired).count(), 3);
}

#[test]
fn a_timer_that_fired_unseen_can_be_canceled() {
    let mut chain = TestChain::started();
    chain.work(vec![commands::timer("t", 1)]);
    wake(&mut chain);
    let task = chain.poll();
    chain.advance_secs(1);
    // Nothing is left that the workflow has not seen: it may close.
    chain.complete(&task, vec![commands::cancel_timer("t"), commands::complete("")]);
    chain.assert_types_from(9, &[E::WorkflowTaskCompleted, E::TimerCanceled, E::WorkflowExecutionCompleted]);
}
