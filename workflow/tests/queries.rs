//! Queries: with a workflow task when one is pending, else straight to a worker.

mod common;

use std::collections::HashMap;

use common::*;
use perdure_proto::{
    Code, Error,
    perdure::node::v1::{GetQueryTask, QueryReply, query_reply::Outcome, workflow_call, workflow_reply},
    temporal::api::{
        enums::v1::{EventType as E, QueryRejectCondition, QueryResultType, WorkflowExecutionStatus as S},
        query::v1::{WorkflowQuery, WorkflowQueryResult},
        workflowservice::v1::{
            QueryWorkflowRequest, RespondWorkflowTaskCompletedRequest, RespondWorkflowTaskFailedRequest,
        },
    },
};
use perdure_workflow::{Answer, Watch};

fn request() -> QueryWorkflowRequest {
    QueryWorkflowRequest {
        namespace: NAMESPACE.to_owned(),
        query: Some(WorkflowQuery { query_type: "state".to_owned(), ..WorkflowQuery::default() }),
        ..QueryWorkflowRequest::default()
    }
}

fn ask(chain: &mut TestChain) -> Result<Answer, Error> {
    chain.try_handle(workflow_call::Command::Query(request()))
}

fn waiting(chain: &mut TestChain) -> Watch {
    match ask(chain).expect("taken") {
        Answer::Watch(watch) => watch,
        other => panic!("not waiting: {other:?}"),
    }
}

fn outcome(reply: perdure_workflow::Reply) -> Outcome {
    match reply.message.reply {
        Some(workflow_reply::Reply::Query(QueryReply { outcome: Some(outcome) })) => outcome,
        other => panic!("not about a query: {other:?}"),
    }
}

fn answer_of(chain: &mut TestChain, watch: &Watch) -> Option<Result<Outcome, Error>> {
    chain.chain.check(watch).map(|result| result.map(outcome))
}

fn answering(task: &WorkflowTask, kind: QueryResultType) -> RespondWorkflowTaskCompletedRequest {
    let result = WorkflowQueryResult {
        result_type: kind as i32,
        answer: Some(payloads("answer")),
        error_message: "no such query".to_owned(),
        failure: Some(application_failure("Unknown")),
    };
    let results: HashMap<_, _> = task.response.queries.keys().map(|id| (id.clone(), result.clone())).collect();
    RespondWorkflowTaskCompletedRequest { query_results: results, ..completion(task, vec![]) }
}

fn fail_task(chain: &mut TestChain, task: &WorkflowTask) {
    chain.call(workflow_call::Command::RespondWorkflowTaskFailed(RespondWorkflowTaskFailedRequest {
        task_token: task.response.task_token.clone(),
        ..RespondWorkflowTaskFailedRequest::default()
    }));
}

#[test]
fn a_quiet_workflow_is_asked_directly() {
    let mut chain = TestChain::started();
    chain.work(vec![]);
    let records = chain.records.len();
    let Answer::Reply(reply) = ask(&mut chain).expect("taken") else { panic!("waits") };
    let Outcome::Direct(direct) = outcome(*reply) else { panic!("answered") };
    assert_eq!((direct.run_id, direct.task_queue.as_str()), (chain.run_id(), QUEUE));
    assert_eq!(chain.records.len(), records);
}

/// A worker with the run in its cache would act on the news, and a query's answer takes no commands along.
#[test]
fn a_query_on_its_way_to_a_worker_does_not_run_ahead_of_the_workflow_task() {
    let mut chain = TestChain::started();
    chain.work(vec![]);
    let get = GetQueryTask { run_id: chain.run_id(), query: request().query, ..GetQueryTask::default() };
    chain.try_call(workflow_call::Command::GetQueryTask(get.clone())).expect("quiet");
    chain.signal("news");
    let error = chain.try_call(workflow_call::Command::GetQueryTask(get.clone())).expect_err("not quiet");
    assert_eq!(error.grpc_code(), Code::FailedPrecondition);
    chain.work(vec![]);
    chain.try_call(workflow_call::Command::GetQueryTask(get)).expect("quiet");
}

#[test]
fn a_query_sees_the_signal_that_was_acknowledged_before() {
    let mut chain = TestChain::started();
    chain.work(vec![]);
    chain.signal("go");
    let watch = waiting(&mut chain);
    assert!(answer_of(&mut chain, &watch).is_none());
    let task = chain.poll();
    assert_eq!(task.response.queries.len(), 1);
    let history = task.history.as_ref().expect("history");
    let signaled = chain.types().iter().position(|t| *t == E::WorkflowExecutionSignaled);
    assert!(signaled.is_some_and(|index| (index as i64) < history.until_event_id - 1));
    chain.try_complete_with(answering(&task, QueryResultType::Answered)).expect("accepted");
    let Some(Ok(Outcome::Answered(response))) = answer_of(&mut chain, &watch) else { panic!("not answered") };
    assert_eq!(response.query_result, Some(payloads("answer")));
    assert!(answer_of(&mut chain, &watch).is_none(), "fetched once");
}

#[test]
fn a_failed_query_says_why() {
    let mut chain = TestChain::started();
    let watch = waiting(&mut chain);
    let task = chain.poll();
    chain.try_complete_with(answering(&task, QueryResultType::Failed)).expect("accepted");
    let error = answer_of(&mut chain, &watch).expect("answered").expect_err("failed");
    assert_eq!((error.grpc_code(), error.message.as_str()), (Code::InvalidArgument, "no such query"));
    assert!(error.detail.expect("detail").type_url.ends_with("QueryFailedFailure"));
}

#[test]
fn a_query_outlives_the_workflow_tasks_that_carried_it() {
    let mut chain = TestChain::started();
    let watch = waiting(&mut chain);
    let task = chain.poll();
    let late = waiting(&mut chain);
    fail_task(&mut chain, &task);
    let task = chain.poll();
    assert_eq!(task.response.queries.len(), 2, "also the one that came while the task ran");
    chain.advance_secs(11);
    assert!(answer_of(&mut chain, &watch).is_some_and(|answer| answer.is_err()), "three attempts are enough");
    assert!(answer_of(&mut chain, &late).is_some_and(|answer| answer.is_err()));
    assert_eq!(ask(&mut chain).expect_err("failing").grpc_code(), Code::FailedPrecondition);
}

#[test]
fn what_a_completion_leaves_out_is_asked_directly() {
    let mut chain = TestChain::started();
    let watch = waiting(&mut chain);
    chain.work(vec![]);
    let Some(Ok(Outcome::Direct(_))) = answer_of(&mut chain, &watch) else { panic!("not sent on") };
}

#[test]
fn closed_workflows_are_asked_too_unless_the_caller_minds() {
    let mut chain = TestChain::started();
    let watch = waiting(&mut chain);
    chain.work(vec![commands::complete("")]);
    assert!(matches!(answer_of(&mut chain, &watch), Some(Ok(Outcome::Direct(_)))));
    assert!(matches!(ask(&mut chain), Ok(Answer::Reply(_))));
    let mut rejecting = request();
    rejecting.set_query_reject_condition(QueryRejectCondition::NotOpen);
    let reply = chain.call(workflow_call::Command::Query(rejecting));
    let Outcome::Answered(response) = outcome(reply) else { panic!("sent on") };
    assert_eq!(response.query_rejected.expect("rejected").status(), S::Completed);
}

#[test]
fn a_workflow_that_never_ran_cannot_be_asked() {
    let mut chain = TestChain::started();
    let watch = waiting(&mut chain);
    let terminate = perdure_proto::perdure::node::v1::TerminateWorkflow::default();
    chain.call(workflow_call::Command::Terminate(terminate));
    let error = answer_of(&mut chain, &watch).expect("settled").expect_err("never ran");
    assert_eq!(error.grpc_code(), Code::FailedPrecondition);
}

#[test]
fn memory_for_queries_is_bounded() {
    let mut chain = TestChain::started();
    let taken = (0..2_000).take_while(|_| ask(&mut chain).is_ok()).count();
    assert_eq!(taken, 1_000);
    let error = ask(&mut chain).expect_err("full");
    assert_eq!(error.grpc_code(), Code::ResourceExhausted);
    let task = chain.poll();
    assert_eq!(task.response.queries.len(), taken);
    chain.try_complete_with(answering(&task, QueryResultType::Answered)).expect("accepted");
    ask(&mut chain).expect("room again");
}
