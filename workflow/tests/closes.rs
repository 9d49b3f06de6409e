//! Closes and what follows them: timeouts, retries, cron, continue-as-new, limits.

mod common;

use common::*;
use perdure_proto::temporal::api::{
    command::v1::{
        CancelWorkflowExecutionCommandAttributes, Command, ContinueAsNewWorkflowExecutionCommandAttributes,
        command::Attributes as C,
    },
    common::v1::RetryPolicy,
    enums::v1::{
        CommandType, ContinueAsNewInitiator as Initiator, EventType as E, RetryState, WorkflowExecutionStatus as S,
    },
    failure::v1::failure::FailureInfo,
    history::v1::{HistoryEvent, WorkflowExecutionStartedEventAttributes, history_event::Attributes},
    workflowservice::v1::StartWorkflowExecutionRequest,
};
use perdure_types::{Duration, Timestamp};

fn secs(secs: i64) -> Option<prost_types::Duration> {
    Some(Duration::from_secs(secs).to_proto())
}

fn start(change: impl FnOnce(&mut StartWorkflowExecutionRequest)) -> TestChain {
    let mut chain = TestChain::new();
    let mut request = TestChain::start_request();
    change(&mut request);
    chain.start_with(request);
    chain
}

fn started(events: &[HistoryEvent]) -> &WorkflowExecutionStartedEventAttributes {
    match &events[0].attributes {
        Some(Attributes::WorkflowExecutionStartedEventAttributes(started)) => started,
        other => panic!("event 1 is {other:?}"),
    }
}

fn status(chain: &TestChain, run_id: &str) -> S {
    chain.chain.run_view(run_id).expect("a run").status
}

fn retry(attempts: i32) -> Option<RetryPolicy> {
    Some(RetryPolicy { maximum_attempts: attempts, ..RetryPolicy::default() })
}

#[test]
fn a_cancelled_workflow_says_so() {
    let mut chain = TestChain::started();
    let attributes = CancelWorkflowExecutionCommandAttributes { details: Some(payloads("d")) };
    chain.work(vec![command(
        CommandType::CancelWorkflowExecution,
        C::CancelWorkflowExecutionCommandAttributes(attributes),
    )]);
    assert_eq!(status(&chain, &chain.run_id()), S::Canceled);
    let Attributes::WorkflowExecutionCanceledEventAttributes(canceled) = chain.last() else { panic!("not canceled") };
    assert_eq!((canceled.workflow_task_completed_event_id, &canceled.details), (4, &Some(payloads("d"))));
}

#[test]
fn a_failed_workflow_without_a_policy_is_not_retried() {
    let mut chain = TestChain::started();
    chain.work(vec![commands::fail(application_failure("x"))]);
    let Attributes::WorkflowExecutionFailedEventAttributes(failed) = chain.last() else { panic!("not failed") };
    assert_eq!((failed.retry_state(), failed.new_execution_run_id.as_str()), (RetryState::RetryPolicyNotSet, ""));
    assert_eq!(chain.histories.len(), 1);
}

#[test]
fn retries_to_the_attempt() {
    let mut chain = start(|r| {
        r.retry_policy = retry(3);
        r.input = Some(payloads("in"));
        r.workflow_execution_timeout = secs(600);
    });
    let first = chain.run_id();
    let mut before = first.clone();
    for (attempt, backoff) in [(2, 1), (3, 2)] {
        chain.work(vec![commands::fail(application_failure("x"))]);
        let Some(Attributes::WorkflowExecutionFailedEventAttributes(failed)) =
            &chain.histories[&before].last().expect("events").attributes
        else {
            panic!("not failed")
        };
        let now = chain.run_id();
        assert_eq!((failed.retry_state(), &failed.new_execution_run_id), (RetryState::InProgress, &now));
        assert_eq!(chain.chain.run_view(&before).expect("a run").new_execution_run_id, now);
        let begun = started(chain.history());
        assert_eq!((begun.attempt, begun.first_workflow_task_backoff), (attempt, secs(backoff)));
        assert_eq!((begun.initiator(), &begun.continued_execution_run_id), (Initiator::Retry, &before));
        assert_eq!((&begun.first_execution_run_id, &begun.original_execution_run_id), (&first, &now));
        assert_eq!(begun.continued_failure, Some(application_failure("x")));
        assert_eq!(begun.input, Some(payloads("in")));
        assert_eq!(
            begun.workflow_execution_expiration_time,
            started(&chain.histories[&first]).workflow_execution_expiration_time
        );
        assert_eq!(chain.history().len(), 1, "backs off");
        chain.advance_secs(backoff);
        before = now;
    }
    chain.work(vec![commands::fail(application_failure("x"))]);
    let Attributes::WorkflowExecutionFailedEventAttributes(failed) = chain.last() else { panic!("not failed") };
    assert_eq!(failed.retry_state(), RetryState::MaximumAttemptsReached);
    assert_eq!(chain.histories.len(), 3);
}

#[test]
fn a_workflow_waits_no_longer_than_its_policy_says() {
    let mut chain = start(|r| r.retry_policy = retry(0));
    let mut failure = application_failure("x");
    if let Some(FailureInfo::ApplicationFailureInfo(info)) = &mut failure.failure_info {
        info.next_retry_delay = secs(1_000_000);
    }
    chain.work(vec![commands::fail(failure)]);
    assert_eq!(started(chain.history()).first_workflow_task_backoff, secs(100));
}

#[test]
fn a_failure_may_be_final() {
    let mut chain = start(|r| {
        r.retry_policy = Some(RetryPolicy { non_retryable_error_types: vec!["Bad".into()], ..RetryPolicy::default() });
    });
    chain.work(vec![commands::fail(application_failure("Bad"))]);
    let Attributes::WorkflowExecutionFailedEventAttributes(failed) = chain.last() else { panic!("not failed") };
    assert_eq!(failed.retry_state(), RetryState::NonRetryableFailure);
}

#[test]
fn a_run_times_out_and_is_retried_until_the_execution_times_out() {
    let mut chain = start(|r| {
        r.workflow_run_timeout = secs(10);
        r.workflow_execution_timeout = secs(25);
        r.retry_policy = retry(0);
    });
    let first = chain.run_id();
    chain.advance_secs(10);
    let Some(Attributes::WorkflowExecutionTimedOutEventAttributes(timed_out)) =
        &chain.histories[&first].last().expect("events").attributes
    else {
        panic!("not timed out")
    };
    assert_eq!((timed_out.retry_state(), &timed_out.new_execution_run_id), (RetryState::InProgress, &chain.run_id()));
    // 1 s backoff, 10 s run; 2 s backoff; then the execution's time is up.
    chain.advance_secs(15);
    assert_eq!(chain.histories.len(), 3);
    let Attributes::WorkflowExecutionTimedOutEventAttributes(timed_out) = chain.last() else { panic!("not timed out") };
    assert_eq!((timed_out.retry_state(), timed_out.new_execution_run_id.as_str()), (RetryState::Timeout, ""));
    assert_eq!(status(&chain, &chain.run_id()), S::TimedOut);
}

#[test]
fn a_timeout_ends_the_workflow_task_and_takes_what_it_held_back() {
    let mut chain = start(|r| {
        r.workflow_run_timeout = secs(10);
        r.workflow_task_timeout = secs(60);
    });
    let task = chain.poll();
    chain.advance_secs(10);
    chain.assert_types_from(4, &[E::WorkflowTaskFailed, E::WorkflowExecutionTimedOut]);
    assert!(chain.try_complete(&task, vec![]).is_err());
}

#[test]
fn cron_goes_on_after_success_and_failure() {
    let mut chain = start(|r| r.cron_schedule = "* * * * *".into());
    let first = chain.run_id();
    let begun = started(chain.history()).clone();
    // 1_700_000_000 is 20 s after a full minute.
    assert_eq!((begun.initiator(), begun.first_workflow_task_backoff), (Initiator::CronSchedule, secs(40)));
    chain.advance_secs(40);
    chain.work(vec![commands::complete("one")]);
    let Some(Attributes::WorkflowExecutionCompletedEventAttributes(completed)) =
        &chain.histories[&first].last().expect("events").attributes
    else {
        panic!("not completed")
    };
    assert_eq!(completed.new_execution_run_id, chain.run_id());
    let begun = started(chain.history());
    assert_eq!((begun.initiator(), begun.first_workflow_task_backoff), (Initiator::CronSchedule, secs(60)));
    assert_eq!((&begun.last_completion_result, &begun.continued_failure), (&Some(payloads("one")), &None));

    chain.advance_secs(60);
    chain.work(vec![commands::fail(application_failure("x"))]);
    let begun = started(chain.history());
    assert_eq!(begun.attempt, 1);
    assert_eq!(begun.last_completion_result, Some(payloads("one")), "of the last run that had one");
    assert_eq!(begun.continued_failure, Some(application_failure("x")));
    assert_eq!(chain.histories.len(), 3);
}

fn continue_as_new(change: impl FnOnce(&mut ContinueAsNewWorkflowExecutionCommandAttributes)) -> Command {
    let mut attributes =
        ContinueAsNewWorkflowExecutionCommandAttributes { input: Some(payloads("next")), ..Default::default() };
    change(&mut attributes);
    command(CommandType::ContinueAsNewWorkflowExecution, C::ContinueAsNewWorkflowExecutionCommandAttributes(attributes))
}

#[test]
fn continue_as_new_inherits() {
    let mut chain = start(|r| {
        r.workflow_execution_timeout = secs(100);
        r.workflow_run_timeout = secs(50);
        r.workflow_task_timeout = secs(7);
    });
    let first = chain.run_id();
    chain.advance_secs(5);
    let records = chain.records.len();
    let task = chain.poll();
    chain.complete(&task, vec![continue_as_new(|_| {})]);
    assert_eq!(chain.records.len(), records + 2, "started and completed: close and start are one");
    let second = chain.run_id();
    let Some(Attributes::WorkflowExecutionContinuedAsNewEventAttributes(continued)) =
        &chain.histories[&first].last().expect("events").attributes
    else {
        panic!("not continued")
    };
    assert_eq!(
        (&continued.new_execution_run_id, continued.initiator()),
        (&second, Initiator::Unspecified),
        "as the command said"
    );
    assert_eq!(continued.workflow_type.as_ref().expect("type").name, "Order");
    assert_eq!(continued.task_queue.as_ref().expect("queue").name, QUEUE);
    let begun = started(chain.history());
    assert_eq!((&begun.continued_execution_run_id, &begun.first_execution_run_id), (&first, &first));
    assert_eq!((begun.workflow_run_timeout, begun.workflow_task_timeout), (secs(50), secs(7)));
    assert_eq!((begun.attempt, begun.initiator(), &begun.input), (1, Initiator::Workflow, &Some(payloads("next"))));
    let deadline = Timestamp::from_proto(begun.workflow_execution_expiration_time.as_ref());
    assert_eq!(
        deadline,
        Timestamp::from_proto(started(&chain.histories[&first]).workflow_execution_expiration_time.as_ref())
    );
    assert_eq!(status(&chain, &first), S::ContinuedAsNew);
    chain.assert_types_from(2, &[E::WorkflowTaskScheduled]);
    chain.crash();
    chain.work(vec![commands::complete("")]);
    assert_eq!(status(&chain, &second), S::Completed);
}

#[test]
fn continue_as_new_changes_what_it_names() {
    let mut chain = TestChain::started();
    chain.work(vec![continue_as_new(|a| {
        a.workflow_type = Some(perdure_proto::temporal::api::common::v1::WorkflowType { name: "Other".into() });
        a.task_queue = Some(queue("elsewhere"));
        a.workflow_run_timeout = secs(3);
        a.backoff_start_interval = secs(20);
        a.retry_policy = retry(5);
    })]);
    let begun = started(chain.history());
    assert_eq!(begun.workflow_type.as_ref().expect("type").name, "Other");
    assert_eq!((begun.workflow_run_timeout, begun.first_workflow_task_backoff), (secs(3), secs(20)));
    assert!(begun.retry_policy.is_some());
    assert_eq!(chain.history().len(), 1);
    chain.advance_secs(20);
    assert_eq!(chain.offers.last().expect("offered").task_queue, "elsewhere");
}

#[test]
fn a_bad_continue_as_new_fails_the_task() {
    let check = |change: fn(&mut ContinueAsNewWorkflowExecutionCommandAttributes), expect: &str| {
        let mut chain = TestChain::started();
        let task = chain.poll();
        let error = chain.try_complete(&task, vec![continue_as_new(change)]).expect_err("bad");
        assert_eq!(error.message, expect);
        chain.assert_types_from(4, &[E::WorkflowTaskFailed]);
        assert_eq!(chain.histories.len(), 1);
    };
    check(
        |a| a.workflow_run_timeout = secs(-1),
        "BadContinueAsNewAttributes: Invalid WorkflowRunTimeout on ContinueAsNewWorkflowExecutionCommand: \
         negative duration. WorkflowType=Order TaskQueue=queue",
    );
    check(
        |a| a.task_queue = Some(queue("/_sys/x")),
        "BadContinueAsNewAttributes: error validating ContinueAsNewWorkflowExecutionCommand TaskQueue: \
         task queue name cannot start with reserved prefix /_sys/. WorkflowType=Order TaskQueue=/_sys/x",
    );
}

#[test]
fn a_result_that_is_too_big_ends_the_workflow() {
    let mut chain = TestChain::started();
    let task = chain.poll();
    let error = chain.try_complete(&task, vec![commands::complete(&"x".repeat(3 << 20))]).expect_err("too big");
    let text =
        "BadCompleteWorkflowExecutionAttributes: CompleteWorkflowExecutionCommandAttributes.Result exceeds size limit.";
    assert_eq!(error.message, text);
    chain.assert_types_from(4, &[E::WorkflowTaskFailed, E::WorkflowExecutionTerminated]);
    let Attributes::WorkflowExecutionTerminatedEventAttributes(terminated) = chain.last() else {
        panic!("not terminated")
    };
    assert_eq!(terminated.reason, text);
}

#[test]
fn a_history_that_is_too_long_or_too_big_ends_the_workflow() {
    for (count, size, reason) in [
        (20, i64::MAX, "Workflow history count exceeds limit."),
        (i64::MAX, 4000, "Workflow history size exceeds limit."),
    ] {
        let mut chain = TestChain::started();
        chain.limits.history_count_error = count;
        chain.limits.history_size_error_bytes = size;
        let mut markers = 0;
        while chain.offered(perdure_proto::perdure::node::v1::TaskKind::Workflow) > 0 && markers < 100 {
            let task = chain.poll();
            let mut request = completion(&task, vec![commands::marker(&"m".repeat(200))]);
            request.force_create_new_workflow_task = true;
            chain.try_complete_with(request).expect("accepted");
            markers += 1;
            if status(&chain, &chain.run_id()) != S::Running {
                break;
            }
        }
        let Attributes::WorkflowExecutionTerminatedEventAttributes(terminated) = chain.last() else {
            panic!("not terminated: {:?}", chain.last())
        };
        assert_eq!((terminated.reason.as_str(), terminated.identity.as_str()), (reason, "history-service"));
        assert!((chain.history().len() as i64) < count.saturating_add(10));
    }
}
