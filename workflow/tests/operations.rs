//! What operators do to activities and to whole workflows: pause, unpause, reset and change; and delete.

mod common;

use common::{operations::*, updates, *};
use perdure_proto::{
    Code,
    perdure::node::v1::{
        TaskKind,
        activity_operation::{Activity, Operation, Pause, Reset, Unpause, UpdateOptions},
        query_reply, workflow_call, workflow_reply,
    },
    temporal::api::{
        activity::v1::ActivityOptions,
        common::v1::{Priority, RetryPolicy},
        enums::v1::{EventType as E, PendingActivityState as P, WorkflowExecutionStatus as S},
        query::v1::WorkflowQuery,
        taskqueue::v1::TaskQueue,
        workflow::v1::{PendingActivityInfo, WorkflowExecutionOptions},
        workflowservice::v1::{
            DescribeWorkflowExecutionRequest, DescribeWorkflowExecutionResponse, QueryWorkflowRequest,
            UpdateWorkflowExecutionOptionsRequest,
        },
    },
};
use perdure_types::Duration;

fn describe(chain: &mut TestChain) -> DescribeWorkflowExecutionResponse {
    let request = DescribeWorkflowExecutionRequest { namespace: NAMESPACE.to_owned(), execution: execution("") };
    match chain.call(workflow_call::Command::Describe(request)).message.reply {
        Some(workflow_reply::Reply::Describe(described)) => *described,
        other => panic!("not a description: {other:?}"),
    }
}

fn activity(chain: &mut TestChain) -> PendingActivityInfo {
    describe(chain).pending_activities.into_iter().next().expect("a pending activity")
}

fn pause() -> Operation {
    Operation::Pause(Pause { reason: "look first".to_owned(), request_id: "p".to_owned() })
}

fn unpause() -> Operation {
    Operation::Unpause(Unpause::default())
}

fn with_activity() -> TestChain {
    let mut chain = TestChain::started();
    chain.work(vec![commands::activity("1")]);
    chain
}

#[test]
fn a_paused_activity_is_not_given_out() {
    let mut chain = with_activity();
    let offer = chain.take_offer(TaskKind::Activity).expect("offered");
    operate(&mut chain, "1", pause());
    assert!(chain.try_poll_activity(&offer).is_err());
    let info = activity(&mut chain);
    assert_eq!((info.state(), info.paused), (P::Paused, true));
    assert!(info.pause_info.is_some());
    let shown = describe(&mut chain).workflow_execution_info.and_then(|i| i.search_attributes).expect("shown");
    let payload = &shown.indexed_fields["TemporalPauseInfo"];
    assert_eq!(&*payload.data, br#"["property:activityType=charge"]"#);

    chain.advance_secs(3600);
    chain.crash();
    assert_eq!(chain.offered(TaskKind::Activity), 0);
    operate(&mut chain, "1", unpause());
    let task = chain.poll_activity();
    chain.complete_activity(&task, "x");
    assert!(chain.types().contains(&E::ActivityTaskCompleted));
    let shown = describe(&mut chain).workflow_execution_info.and_then(|i| i.search_attributes).unwrap_or_default();
    assert!(shown.indexed_fields.is_empty());
}

#[test]
fn pausing_twice_is_refused_unless_it_is_the_same_request() {
    let mut chain = with_activity();
    operate(&mut chain, "1", pause());
    operate(&mut chain, "1", pause());
    let other = Operation::Pause(Pause { request_id: "q".to_owned(), ..Pause::default() });
    let error = try_operate(&mut chain, Activity::All(true), other).expect_err("refused");
    assert_eq!((error.grpc_code(), error.message.as_str()), (Code::FailedPrecondition, "activity is already paused"));
    let unknown = try_operate(&mut chain, Activity::Type("other".to_owned()), pause()).expect_err("refused");
    assert_eq!(unknown.grpc_code(), Code::NotFound);
}

#[test]
fn a_running_attempt_hears_that_it_is_paused_and_its_retry_waits() {
    let mut chain = with_activity();
    let task = chain.poll_activity();
    operate(&mut chain, "1", pause());
    assert_eq!(activity(&mut chain).state(), P::PauseRequested);
    let told = chain.heartbeat(&task, "half").expect("accepted");
    assert!(told.activity_paused);
    chain.fail_activity(&task, application_failure("x"));
    chain.advance_secs(600);
    assert_eq!(chain.offered(TaskKind::Activity), 0);
    let info = activity(&mut chain);
    assert_eq!((info.state(), info.attempt), (P::Paused, 2));
    operate(&mut chain, "1", unpause());
    assert_eq!(chain.poll_activity().attempt, 2);
}

#[test]
fn unpausing_may_begin_anew() {
    let mut chain = with_activity();
    let task = chain.poll_activity();
    chain.heartbeat(&task, "half").expect("accepted");
    operate(&mut chain, "1", pause());
    chain.fail_activity(&task, application_failure("x"));
    let anew = Unpause { reset_attempts: true, reset_heartbeat: true, jitter_ns: Duration::from_secs(10).0 };
    operate(&mut chain, "1", Operation::Unpause(anew));
    chain.advance_secs(10);
    let task = chain.poll_activity();
    assert_eq!((task.attempt, task.heartbeat_details), (1, None));
}

#[test]
fn a_reset_activity_begins_anew_at_once() {
    let mut chain = with_activity();
    let task = chain.poll_activity();
    chain.fail_activity(&task, application_failure("x"));
    assert_eq!(chain.offered(TaskKind::Activity), 0, "it backs off");
    operate(&mut chain, "1", Operation::Reset(Reset::default()));
    assert_eq!(chain.poll_activity().attempt, 1);
}

#[test]
fn the_worker_of_a_reset_attempt_is_told_and_may_finish_it() {
    let mut chain = with_activity();
    let task = chain.poll_activity();
    chain.fail_activity(&task, application_failure("x"));
    chain.advance_secs(1);
    let task = chain.poll_activity();
    assert_eq!(task.attempt, 2);
    let reset = Reset { reset_heartbeat: true, ..Reset::default() };
    operate(&mut chain, "1", Operation::Reset(reset));
    assert!(chain.heartbeat(&task, "half").expect("accepted").activity_reset);
    chain.fail_activity(&task, application_failure("x"));
    chain.advance_secs(2);
    let task = chain.poll_activity();
    assert_eq!((task.attempt, task.heartbeat_details.clone()), (2, None), "the details go with the reset");
    chain.complete_activity(&task, "x");
}

#[test]
fn a_reset_may_leave_it_paused() {
    let mut chain = with_activity();
    operate(&mut chain, "1", pause());
    operate(&mut chain, "1", Operation::Reset(Reset { keep_paused: true, ..Reset::default() }));
    assert!(activity(&mut chain).paused);
    operate(&mut chain, "1", Operation::Reset(Reset::default()));
    assert!(!activity(&mut chain).paused);
}

#[test]
fn options_change_and_are_restored() {
    let mut chain = with_activity();
    let offer = chain.take_offer(TaskKind::Activity).expect("offered");
    let secs = |secs: i64| Some(Duration::from_secs(secs).to_proto());
    let update = UpdateOptions {
        options: Some(ActivityOptions {
            task_queue: Some(TaskQueue { name: "other".to_owned(), ..TaskQueue::default() }),
            start_to_close_timeout: secs(99),
            retry_policy: Some(RetryPolicy { maximum_attempts: 1, ..RetryPolicy::default() }),
            priority: Some(Priority { priority_key: 2, ..Priority::default() }),
            ..ActivityOptions::default()
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: ["task_queue.name", "startToCloseTimeout", "retryPolicy.maximumAttempts"].map(str::to_owned).into(),
        }),
        restore_original: false,
    };
    let options = operate(&mut chain, "1", Operation::UpdateOptions(update));
    assert_eq!(options.start_to_close_timeout, secs(99));
    assert_eq!(options.priority, None, "not in the mask");
    assert!(chain.try_poll_activity(&offer).is_err(), "offered on the old queue");
    let offer = chain.offers.last().cloned().expect("offered again");
    assert_eq!(offer.task_queue, "other");
    chain.crash();
    let task = chain.poll_activity();
    assert_eq!(task.start_to_close_timeout, secs(99));
    chain.fail_activity(&task, application_failure("x"));
    assert!(chain.types().contains(&E::ActivityTaskFailed), "one attempt is allowed now");

    let mut chain = with_activity();
    let change = |paths: &[&str], restore_original| {
        Operation::UpdateOptions(UpdateOptions {
            options: Some(ActivityOptions { start_to_close_timeout: secs(99), ..ActivityOptions::default() }),
            update_mask: Some(prost_types::FieldMask { paths: paths.iter().map(|p| (*p).to_owned()).collect() }),
            restore_original,
        })
    };
    operate(&mut chain, "1", change(&["start_to_close_timeout"], false));
    let restored = operate(&mut chain, "1", change(&[], true));
    assert_eq!(restored.start_to_close_timeout, secs(10));
    let both = try_operate(&mut chain, Activity::All(true), change(&["start_to_close_timeout"], true));
    assert_eq!(both.expect_err("refused").message, "Both UpdateMask and RestoreOriginal are provided");
}

#[test]
fn a_paused_workflow_gives_out_nothing() {
    let mut chain = with_activity();
    try_pause(&mut chain, "p").expect("paused");
    assert_eq!(chain.types().last(), Some(&E::WorkflowExecutionPaused));
    let offer = chain.take_offer(TaskKind::Activity).expect("from before");
    assert!(chain.try_poll_activity(&offer).is_err());
    let described = describe(&mut chain);
    assert_eq!(described.workflow_execution_info.as_ref().map(|i| i.status), Some(S::Paused as i32));
    let shown = described.workflow_execution_info.and_then(|i| i.search_attributes).expect("shown");
    assert_eq!(&*shown.indexed_fields["TemporalPauseInfo"].data, br#"["Workflow:workflow","Reason:look first"]"#);
    let paused = described.workflow_extended_info.and_then(|i| i.pause_info).expect("paused");
    assert_eq!(paused.identity, "operator");

    chain.signal("s");
    chain.crash();
    chain.advance_secs(60);
    assert!(chain.offers.is_empty(), "{:?}", chain.offers);
    try_unpause(&mut chain).expect("unpaused");
    assert_eq!((chain.offered(TaskKind::Workflow), chain.offered(TaskKind::Activity)), (1, 1));
    chain.work(vec![commands::complete("")]);
}

#[test]
fn a_workflow_task_that_nobody_has_ends_with_the_pause() {
    let mut chain = TestChain::started();
    try_pause(&mut chain, "").expect("paused");
    chain.assert_types_from(3, &[E::WorkflowExecutionPaused, E::WorkflowTaskFailed]);
    let offer = chain.take_offer(TaskKind::Workflow).expect("from before");
    assert!(chain.try_poll_workflow_task(&offer).is_err());
    try_unpause(&mut chain).expect("unpaused");
    chain.assert_types_from(5, &[E::WorkflowExecutionUnpaused, E::WorkflowTaskScheduled]);
}

#[test]
fn a_workflow_task_under_way_may_finish() {
    let mut chain = TestChain::started();
    let task = chain.poll();
    try_pause(&mut chain, "").expect("paused");
    chain.signal("s");
    chain.complete(&task, vec![commands::activity("1")]);
    chain.assert_types_from(
        4,
        &[E::WorkflowTaskCompleted, E::ActivityTaskScheduled, E::WorkflowExecutionPaused, E::WorkflowExecutionSignaled],
    );
    assert!(chain.offers.is_empty(), "{:?}", chain.offers);
}

#[test]
fn what_a_paused_workflow_refuses() {
    let mut chain = TestChain::started();
    try_pause(&mut chain, "p").expect("paused");
    try_pause(&mut chain, "p").expect("the same request");
    let check = |error: perdure_proto::Error, expect: &str| {
        assert_eq!((error.grpc_code(), error.message.as_str()), (Code::FailedPrecondition, expect));
    };
    check(try_pause(&mut chain, "q").expect_err("refused"), "workflow is already paused.");
    let update = updates::try_update(&mut chain, "u").expect_err("refused");
    check(update, "Workflow is paused. Cannot update the workflow.");
    let query = QueryWorkflowRequest {
        execution: execution(""),
        query: Some(WorkflowQuery::default()),
        ..QueryWorkflowRequest::default()
    };
    let reply = chain.call(workflow_call::Command::Query(query)).message.reply;
    let Some(workflow_reply::Reply::Query(reply)) = reply else { panic!("no answer: {reply:?}") };
    let Some(query_reply::Outcome::Answered(answered)) = reply.outcome else { panic!("not answered") };
    assert_eq!(answered.query_rejected.map(|r| r.status), Some(S::Paused as i32));
    try_unpause(&mut chain).expect("unpaused");
    check(try_unpause(&mut chain).expect_err("refused"), "workflow is not paused.");
}

#[test]
fn options_of_a_workflow() {
    let mut chain = TestChain::started();
    let mut update = |paths: &[&str], priority_key| -> Result<(Option<Priority>, usize), perdure_proto::Error> {
        let request = UpdateWorkflowExecutionOptionsRequest {
            namespace: NAMESPACE.to_owned(),
            workflow_execution: execution(""),
            workflow_execution_options: Some(WorkflowExecutionOptions {
                priority: Some(Priority { priority_key, ..Priority::default() }),
                ..WorkflowExecutionOptions::default()
            }),
            update_mask: Some(prost_types::FieldMask { paths: paths.iter().map(|p| (*p).to_owned()).collect() }),
            ..UpdateWorkflowExecutionOptionsRequest::default()
        };
        let reply = chain.try_call(workflow_call::Command::UpdateOptions(Box::new(request)))?;
        match reply.message.reply {
            Some(workflow_reply::Reply::UpdateOptions(reply)) => {
                Ok((reply.workflow_execution_options.and_then(|o| o.priority), chain.history().len()))
            }
            other => panic!("not about options: {other:?}"),
        }
    };
    let key = |key| Some(Priority { priority_key: key, ..Priority::default() });
    assert_eq!(update(&["priority.priority_key"], 3), Ok((key(3), 3)));
    assert_eq!(update(&["priority"], 3), Ok((key(3), 3)), "no change, no event");
    let error = update(&["nonsense"], 3).expect_err("refused");
    assert_eq!(error.grpc_code(), Code::InvalidArgument);
    let error = update(&["time_skipping_config"], 3).expect_err("refused");
    assert_eq!(error.grpc_code(), Code::Unimplemented);
}

#[test]
fn a_deleted_workflow_is_gone() {
    let mut chain = TestChain::started();
    let run_id = chain.run_id();
    delete(&mut chain, "");
    assert_eq!(chain.types().last(), Some(&E::WorkflowExecutionTerminated));
    chain.on_timer();
    assert!(!chain.chain.has_run(&run_id));
    assert_eq!(chain.run_id(), "");

    let mut chain = TestChain::started();
    chain.work(vec![commands::complete("")]);
    let run_id = chain.run_id();
    delete(&mut chain, &run_id);
    chain.advance_secs(1);
    assert!(!chain.chain.has_run(&run_id));
}
