//! When a call to an owner is made again though the client has asked once.
//!
//! While a shard moves nothing is done, and the call waits here. If the connection to the owner is lost, what was asked for
//! may be done: then a call is made again only if that does the same or nothing. Most are known by the id of their request or
//! task. But a run remembers the requests that it has had, and one that names no run is for the current one: if that has
//! continued as new meanwhile, or was started again, the same request would be done a second time. Of such a call the client
//! hears that it is in doubt, and decides.

use std::time::Duration;

use perdure_proto::{Code, Error, perdure::node::v1::workflow_call::Command};
use tokio::time::{Instant, sleep};

/// An owner that moves is tried again after this time, doubled each time up to the longest.
const FIRST_BACKOFF: Duration = Duration::from_millis(10);
const LONGEST_BACKOFF: Duration = Duration::from_millis(500);

/// Whether a call may be made again though it may be done.
pub(crate) fn is_the_same_again(command: &Command) -> bool {
    let names_run = |execution: Option<&perdure_proto::temporal::api::common::v1::WorkflowExecution>| {
        execution.is_some_and(|execution| !execution.run_id.is_empty())
    };
    match command {
        Command::Update(c) => names_run(c.workflow_execution.as_ref()),
        Command::Signal(c) => c.request.as_ref().is_some_and(|c| names_run(c.workflow_execution.as_ref())),
        Command::RequestCancel(c) => c
            .request
            .as_ref()
            .is_some_and(|c| names_run(c.workflow_execution.as_ref()) || !c.first_execution_run_id.is_empty()),
        Command::Terminate(c) => c
            .request
            .as_ref()
            .is_some_and(|c| names_run(c.workflow_execution.as_ref()) || !c.first_execution_run_id.is_empty()),
        Command::SignalWithStart(_) | Command::MultiOperation(_) => false,
        // Reads; starts, which the current run knows, open or closed; and what names a task, a run or a version.
        _ => true,
    }
}

/// Makes the attempt until it comes to something, or until `give_up`. `again_in_doubt`: also when it may be done.
pub(crate) async fn while_unavailable<T, F: Future<Output = Result<T, Error>>>(
    give_up: Instant,
    again_in_doubt: bool,
    is_draining: impl Fn() -> bool,
    attempt: impl Fn() -> F,
) -> Result<T, Error> {
    let mut backoff = FIRST_BACKOFF;
    let mut in_doubt = None;
    loop {
        let error = match attempt().await {
            // Of a store that is silent, the client hears at once: whether it asks again is its choice.
            Err(error) if error.grpc_code() == Code::Unavailable && !error.is_store_silent() => error,
            // What an attempt before this one did may be why. Who called has to know that it is in doubt.
            Err(error) => return Err(in_doubt.unwrap_or(error)),
            done => return done,
        };
        if error.may_be_done() {
            if !again_in_doubt {
                return Err(error);
            }
            in_doubt = Some(error.clone());
        }
        if Instant::now() + backoff >= give_up || is_draining() {
            return Err(error);
        }
        sleep(backoff).await;
        backoff = (backoff * 2).min(LONGEST_BACKOFF);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use perdure_proto::{
        perdure::node::v1::{RequestCancelWorkflow, SignalWorkflow, TerminateWorkflow},
        temporal::api::{
            common::v1::WorkflowExecution,
            workflowservice::v1::{
                DescribeWorkflowExecutionRequest, RequestCancelWorkflowExecutionRequest,
                RespondWorkflowTaskCompletedRequest, SignalWorkflowExecutionRequest, TerminateWorkflowExecutionRequest,
                UpdateWorkflowExecutionRequest,
            },
        },
    };

    use super::*;

    /// One of each kind that goes to a run, to that run.
    fn to_run(run_id: &str) -> [Command; 4] {
        let workflow_execution = Some(WorkflowExecution { workflow_id: "w".into(), run_id: run_id.into() });
        let update =
            UpdateWorkflowExecutionRequest { workflow_execution: workflow_execution.clone(), ..Default::default() };
        let signal =
            SignalWorkflowExecutionRequest { workflow_execution: workflow_execution.clone(), ..Default::default() };
        let cancel = RequestCancelWorkflowExecutionRequest {
            workflow_execution: workflow_execution.clone(),
            ..Default::default()
        };
        let terminate = TerminateWorkflowExecutionRequest { workflow_execution, ..Default::default() };
        [
            Command::Update(update),
            Command::Signal(SignalWorkflow { request: Some(signal), ..Default::default() }),
            Command::RequestCancel(RequestCancelWorkflow { request: Some(cancel), ..Default::default() }),
            Command::Terminate(TerminateWorkflow { request: Some(terminate), ..Default::default() }),
        ]
    }

    #[test]
    fn what_is_for_the_current_run_is_another_thing_the_second_time() {
        for command in to_run("") {
            assert!(!is_the_same_again(&command), "{command:?}");
        }
        for command in to_run("run") {
            assert!(is_the_same_again(&command), "{command:?}");
        }
        let others = [
            Command::Start(Box::default()),
            Command::Describe(DescribeWorkflowExecutionRequest::default()),
            Command::RespondWorkflowTaskCompleted(RespondWorkflowTaskCompletedRequest::default()),
        ];
        for command in others {
            assert!(is_the_same_again(&command), "{command:?}");
        }
    }

    /// The answers of an owner in turn; gives what came of it, and how often it was asked.
    async fn ask(again_in_doubt: bool, answers: Vec<Result<(), Error>>) -> (Result<(), Error>, usize) {
        let count = answers.len();
        let left = RefCell::new(answers.into_iter());
        let give_up = Instant::now() + Duration::from_secs(10);
        let attempt = || async { left.borrow_mut().next().expect("not asked so often") };
        let outcome = while_unavailable(give_up, again_in_doubt, || false, attempt).await;
        let asked = count - left.borrow().len();
        (outcome, asked)
    }

    #[tokio::test(start_paused = true)]
    async fn who_did_nothing_is_asked_again_by_everybody() {
        for again_in_doubt in [false, true] {
            let answers = vec![Err(Error::not_owner(None)), Err(Error::unavailable("moving")), Ok(())];
            let (outcome, asked) = ask(again_in_doubt, answers).await;
            assert_eq!((outcome.is_ok(), asked), (true, 3));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_be_done_is_not_asked_again_unless_it_is_the_same() {
        let lost = || Error::in_doubt("the connection was lost");
        let (outcome, asked) = ask(false, vec![Err(Error::not_owner(None)), Err(lost()), Ok(())]).await;
        let error = outcome.expect_err("the client decides");
        assert_eq!((error.grpc_code(), error.may_be_done(), asked), (Code::Unavailable, true, 2));
        let (outcome, asked) = ask(true, vec![Err(lost()), Ok(())]).await;
        assert_eq!((outcome.is_ok(), asked), (true, 2));
        // It was done the first time, perhaps: "not found" would be a lie.
        let (outcome, asked) = ask(true, vec![Err(lost()), Err(Error::not_found("no such task"))]).await;
        assert_eq!((outcome.map_err(|error| error.grpc_code()), asked), (Err(Code::Unavailable), 2));
    }
}
