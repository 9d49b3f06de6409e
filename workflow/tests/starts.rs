//! Starts: the first event, id policies, request dedupe, eager tasks, delays.

mod common;

use common::*;
use perdure_proto::{
    Code, Error,
    perdure::node::v1::{StartWorkflow, TaskKind, workflow_call, workflow_reply},
    temporal::api::{
        common::v1::{Callback, Link, Memo, Payload, RetryPolicy, link},
        enums::v1::{
            ContinueAsNewInitiator, EventType as E, WorkflowExecutionStatus as S, WorkflowIdConflictPolicy as Conflict,
            WorkflowIdReusePolicy as Reuse,
        },
        errordetails::v1::WorkflowExecutionAlreadyStartedFailure,
        history::v1::{WorkflowExecutionStartedEventAttributes, history_event::Attributes},
        workflow::v1::OnConflictOptions,
        workflowservice::v1::{StartWorkflowExecutionRequest, StartWorkflowExecutionResponse},
    },
};
use perdure_types::Duration;
use prost::Message;

fn request(id: &str, change: impl FnOnce(&mut StartWorkflowExecutionRequest)) -> StartWorkflowExecutionRequest {
    let mut request = StartWorkflowExecutionRequest { request_id: id.to_owned(), ..TestChain::start_request() };
    change(&mut request);
    request
}

fn try_start(
    chain: &mut TestChain,
    request: StartWorkflowExecutionRequest,
) -> Result<StartWorkflowExecutionResponse, Error> {
    let command =
        workflow_call::Command::Start(Box::new(StartWorkflow { request: Some(request), ..StartWorkflow::default() }));
    match chain.try_call(command)?.message.reply {
        Some(workflow_reply::Reply::Start(response)) => Ok(response),
        other => panic!("not a start: {other:?}"),
    }
}

fn started_event(chain: &TestChain) -> WorkflowExecutionStartedEventAttributes {
    match chain.event(1).attributes.clone() {
        Some(Attributes::WorkflowExecutionStartedEventAttributes(started)) => *started,
        other => panic!("event 1 is {other:?}"),
    }
}

fn secs(secs: i64) -> Option<prost_types::Duration> {
    Some(Duration::from_secs(secs).to_proto())
}

#[test]
fn event_one_says_everything() {
    let mut chain = TestChain::new();
    let mut memo = Memo::default();
    memo.fields.insert("kept".into(), Payload { data: b"1".as_slice().into(), ..Default::default() });
    memo.fields.insert("null".into(), Payload { data: b"null".as_slice().into(), ..Default::default() });
    let response = try_start(
        &mut chain,
        request("r", |r| {
            r.input = Some(payloads("in"));
            r.workflow_execution_timeout = secs(3600);
            r.workflow_run_timeout = secs(7200);
            r.workflow_task_timeout = secs(500);
            r.retry_policy = Some(RetryPolicy::default());
            r.memo = Some(memo);
            r.links = vec![Link::default()];
            r.completion_callbacks = vec![Callback::default()];
        }),
    )
    .expect("starts");
    let run_id = chain.run_id();
    assert_eq!((response.run_id.as_str(), response.started, response.status()), (run_id.as_str(), true, S::Running));
    assert_eq!(response.first_execution_run_id, run_id);
    let Some(link::Variant::WorkflowEvent(link)) = response.link.and_then(|l| l.variant) else { panic!("no link") };
    assert_eq!((link.namespace.as_str(), link.run_id.as_str()), (NAMESPACE, run_id.as_str()));

    chain.assert_types_from(1, &[E::WorkflowExecutionStarted, E::WorkflowTaskScheduled]);
    let started = started_event(&chain);
    assert_eq!(started.workflow_execution_timeout, secs(3600));
    assert_eq!(started.workflow_run_timeout, secs(3600), "capped");
    assert_eq!(started.workflow_task_timeout, secs(120), "capped");
    assert_eq!(started.first_workflow_task_backoff, secs(0));
    assert_eq!((started.attempt, started.workflow_id.as_str(), started.identity.as_str()), (1, WORKFLOW_ID, "client"));
    assert_eq!((&started.first_execution_run_id, &started.original_execution_run_id), (&run_id, &run_id));
    assert_eq!(started.workflow_execution_expiration_time, (chain.now + Duration::from_secs(3600)).to_proto());
    assert_eq!(started.memo.clone().expect("memo").fields.len(), 1);
    let policy = started.retry_policy.clone().expect("policy");
    assert_eq!(
        (policy.backoff_coefficient, policy.initial_interval, policy.maximum_interval),
        (2.0, secs(1), secs(100))
    );
    assert_eq!((chain.event(1).links.len(), started.completion_callbacks.len()), (1, 1));
    assert_eq!((started.initiator(), started.parent_workflow_execution), (ContinueAsNewInitiator::Unspecified, None));
    assert_eq!(chain.offered(TaskKind::Workflow), 1);
}

#[test]
fn the_same_request_finds_its_run() {
    let mut chain = TestChain::new();
    let first = try_start(&mut chain, request("r", |_| {})).expect("starts");
    let again = try_start(&mut chain, request("r", |_| {})).expect("found");
    assert_eq!(again, first);
    assert_eq!(chain.records.len(), 1);
    chain.work(vec![commands::complete("")]);
    let closed = try_start(&mut chain, request("r", |_| {})).expect("found");
    assert_eq!((closed.run_id.as_str(), closed.started, closed.status()), (first.run_id.as_str(), true, S::Completed));
    assert_eq!(chain.histories.len(), 1);
}

fn ended(status: S) -> TestChain {
    let mut chain = TestChain::new();
    chain.start_with(request("first", |r| r.workflow_run_timeout = secs(50)));
    match status {
        S::Completed => chain.work(vec![commands::complete("")]),
        S::Failed => chain.work(vec![commands::fail(application_failure("x"))]),
        S::TimedOut => chain.advance_secs(60),
        _ => {}
    }
    assert_eq!(chain.snapshot().info.expect("info").status(), status);
    chain
}

#[test]
fn id_policies() {
    // (status of the current run, reuse, conflict, does a new run start?)
    #[allow(deprecated)]
    let table = [
        (S::Running, Reuse::Unspecified, Conflict::Unspecified, false),
        (S::Running, Reuse::AllowDuplicate, Conflict::Fail, false),
        (S::Running, Reuse::RejectDuplicate, Conflict::TerminateExisting, true),
        (S::Running, Reuse::TerminateIfRunning, Conflict::Unspecified, true),
        (S::Completed, Reuse::Unspecified, Conflict::Unspecified, true),
        (S::Completed, Reuse::AllowDuplicateFailedOnly, Conflict::Unspecified, false),
        (S::Failed, Reuse::AllowDuplicateFailedOnly, Conflict::Unspecified, true),
        (S::TimedOut, Reuse::AllowDuplicateFailedOnly, Conflict::Unspecified, true),
        (S::Failed, Reuse::RejectDuplicate, Conflict::UseExisting, false),
        (S::Completed, Reuse::AllowDuplicate, Conflict::UseExisting, true),
        (S::Completed, Reuse::TerminateIfRunning, Conflict::Unspecified, true),
    ];
    for (status, reuse, conflict, starts) in table {
        let mut chain = ended(status);
        let old = chain.run_id();
        let records = chain.records.len();
        let result = try_start(
            &mut chain,
            request("second", |r| {
                r.set_workflow_id_reuse_policy(reuse);
                r.set_workflow_id_conflict_policy(conflict);
            }),
        );
        let case = format!("{status:?} {reuse:?} {conflict:?}");
        assert_eq!(result.is_ok(), starts, "{case}");
        match result {
            Ok(response) => {
                assert_ne!(response.run_id, old, "{case}");
                assert!(response.started, "{case}");
                assert_eq!(chain.records.len(), records + 1, "{case}: one record");
            }
            Err(error) => {
                assert_eq!(error.grpc_code(), Code::AlreadyExists, "{case}");
                let detail = error.detail.expect("detail");
                let detail = WorkflowExecutionAlreadyStartedFailure::decode(detail.value.as_slice()).expect("decodes");
                assert_eq!(
                    (detail.run_id.as_str(), detail.start_request_id.as_str()),
                    (old.as_str(), "first"),
                    "{case}"
                );
                assert_eq!(detail.first_execution_run_id, old, "{case}");
            }
        }
    }
}

#[test]
fn refusals_say_why() {
    let refused = |status, reuse: Reuse| {
        let mut chain = ended(status);
        let error =
            try_start(&mut chain, request("second", |r| r.set_workflow_id_reuse_policy(reuse))).expect_err("refused");
        error.message.replace(&chain.run_id(), "RUN")
    };
    assert_eq!(
        refused(S::Running, Reuse::AllowDuplicate),
        "Workflow execution is already running. WorkflowId: workflow, RunId: RUN."
    );
    assert_eq!(
        refused(S::Completed, Reuse::AllowDuplicateFailedOnly),
        "Workflow execution already finished successfully. WorkflowId: workflow, RunId: RUN. \
         Workflow Id reuse policy: allow duplicate workflow Id if last run failed."
    );
    assert_eq!(
        refused(S::Completed, Reuse::RejectDuplicate),
        "Workflow execution already finished. WorkflowId: workflow, RunId: RUN. \
         Workflow Id reuse policy: reject duplicate workflow Id."
    );
}

#[test]
fn terminate_existing_ends_the_old_run_in_the_same_record() {
    let mut chain = TestChain::started();
    let old = chain.run_id();
    let task = chain.poll();
    let new =
        try_start(&mut chain, request("second", |r| r.set_workflow_id_conflict_policy(Conflict::TerminateExisting)))
            .expect("starts")
            .run_id;
    let types: Vec<E> = chain.histories[&old].iter().map(|e| e.event_type()).collect();
    assert_eq!(types[3..], [E::WorkflowTaskFailed, E::WorkflowExecutionTerminated]);
    let Some(Attributes::WorkflowExecutionTerminatedEventAttributes(terminated)) = &chain.histories[&old][4].attributes
    else {
        panic!("not terminated")
    };
    assert_eq!(terminated.reason, "TerminateIfRunning WorkflowIdReusePolicy");
    assert_eq!(terminated.identity, "history-service");
    let details = &terminated.details.as_ref().expect("details").payloads[0].data;
    assert_eq!(&details[..], format!("\"terminated by new runID: {new}\"").as_bytes());
    assert_eq!(chain.records.last().expect("record").runs.len(), 2);
    assert!(chain.try_complete(&task, vec![]).is_err());
    assert_eq!(chain.run_id(), new);
}

#[test]
fn use_existing_attaches_what_is_asked_for() {
    let mut chain = TestChain::started();
    let used = try_start(&mut chain, request("a", |r| r.set_workflow_id_conflict_policy(Conflict::UseExisting)))
        .expect("used");
    assert_eq!((used.run_id.as_str(), used.started), (chain.run_id().as_str(), false));
    assert_eq!(chain.history().len(), 2, "nothing attached");

    let attach = |r: &mut StartWorkflowExecutionRequest| {
        r.set_workflow_id_conflict_policy(Conflict::UseExisting);
        r.completion_callbacks = vec![Callback::default()];
        r.links = vec![Link::default()];
        r.on_conflict_options =
            Some(OnConflictOptions { attach_request_id: true, attach_completion_callbacks: true, attach_links: true });
    };
    let attached = try_start(&mut chain, request("b", attach)).expect("used");
    assert!(!attached.started);
    let event = chain.event(3).clone();
    assert!(event.worker_may_ignore);
    assert_eq!(event.links.len(), 1);
    let Some(Attributes::WorkflowExecutionOptionsUpdatedEventAttributes(options)) = event.attributes else {
        panic!("{event:?}")
    };
    assert_eq!((options.attached_request_id.as_str(), options.attached_completion_callbacks.len()), ("b", 1));
    assert_eq!(try_start(&mut chain, request("b", attach)).expect("found"), attached);
    assert_eq!(chain.history().len(), 3, "once");
    assert_eq!(chain.snapshot().request_ids.len(), 2);
}

#[test]
fn attached_while_a_workflow_task_runs_it_gets_its_id_later() {
    let mut chain = TestChain::started();
    let task = chain.poll();
    try_start(
        &mut chain,
        request("b", |r| {
            r.set_workflow_id_conflict_policy(Conflict::UseExisting);
            r.on_conflict_options = Some(OnConflictOptions { attach_request_id: true, ..Default::default() });
        }),
    )
    .expect("used");
    let id =
        |chain: &TestChain| chain.snapshot().request_ids.iter().find(|i| i.request_id == "b").expect("known").event_id;
    assert_eq!(id(&chain), 0);
    chain.complete(&task, vec![]);
    assert_eq!(id(&chain), 5);
}

#[test]
fn an_eager_start_brings_the_first_task() {
    let mut chain = TestChain::new();
    let eager = request("r", |r| r.request_eager_execution = true);
    let command = workflow_call::Command::Start(Box::new(StartWorkflow {
        request: Some(eager.clone()),
        ..StartWorkflow::default()
    }));
    let reply = chain.call(command);
    let Some(workflow_reply::Reply::Start(response)) = reply.message.reply else { panic!("not a start") };
    let task = WorkflowTask { response: response.eager_workflow_task.expect("a task"), history: reply.history };
    assert_eq!(chain.offered(TaskKind::Workflow), 0);
    assert_eq!(task.response.started_event_id, 3);
    let fill = task.history.as_ref().expect("history");
    assert_eq!((fill.from_event_id, fill.until_event_id), (1, 4));
    assert!(started_event(&chain).eager_execution_accepted);
    // Asked again, the caller gets it again.
    assert!(try_start(&mut chain, eager.clone()).expect("found").eager_workflow_task.is_some());
    chain.complete(&task, vec![commands::complete("")]);
    assert!(try_start(&mut chain, eager).expect("found").eager_workflow_task.is_none());
}

#[test]
fn a_delayed_start_waits() {
    let mut chain = TestChain::new();
    let response = try_start(
        &mut chain,
        request("r", |r| {
            r.workflow_start_delay = secs(30);
            r.workflow_run_timeout = secs(10);
            r.request_eager_execution = true;
        }),
    )
    .expect("starts");
    assert!(response.eager_workflow_task.is_none());
    assert_eq!(started_event(&chain).first_workflow_task_backoff, secs(30));
    chain.assert_types_from(1, &[E::WorkflowExecutionStarted]);
    chain.crash();
    chain.advance_secs(29);
    assert_eq!(chain.history().len(), 1);
    chain.advance_secs(1);
    chain.assert_types_from(2, &[E::WorkflowTaskScheduled]);
    chain.poll();
    chain.advance_secs(10);
    chain.assert_types_from(3, &[E::WorkflowTaskStarted, E::WorkflowTaskFailed, E::WorkflowExecutionTimedOut]);
}

#[test]
fn nonsense_is_refused() {
    let check = |change: fn(&mut StartWorkflowExecutionRequest), message: &str| {
        let error = try_start(&mut TestChain::new(), request("r", change)).expect_err("refused");
        assert_eq!((error.grpc_code(), error.message.as_str()), (Code::InvalidArgument, message));
    };
    check(|r| r.cron_schedule = "nonsense".into(), "invalid CronSchedule.");
    check(|r| r.workflow_run_timeout = secs(-1), "invalid WorkflowRunTimeout: negative duration");
    check(
        |r| r.retry_policy = Some(RetryPolicy { backoff_coefficient: 0.1, ..Default::default() }),
        "BackoffCoefficient cannot be less than 1 on retry policy.",
    );
    check(|r| r.input = Some(payloads(&"x".repeat(3 << 20))), "Blob data size exceeds limit.");
    check(
        |r| {
            let payload = Payload { data: vec![b'x'; 3 << 20].into(), ..Default::default() };
            r.memo = Some(Memo { fields: [("big".to_owned(), payload)].into() });
        },
        "Memo size exceeds limit.",
    );
}
