//! ExecuteMultiOperation: start and update of one workflow id, in one transition, both or none.

use perdure_proto::{
    Error,
    perdure::node::v1::workflow_reply,
    temporal::api::{
        enums::v1::UpdateWorkflowExecutionLifecycleStage as Stage,
        workflowservice::v1::{
            ExecuteMultiOperationRequest, StartWorkflowExecutionRequest, StartWorkflowExecutionResponse,
            UpdateWorkflowExecutionRequest, execute_multi_operation_request::operation::Operation,
        },
    },
};

use crate::{
    api::{Answer, Env, Release, UpdateAsker, UpdateWatch, Watch},
    chain::{Answered, Chain},
};

const FAILED: &str = "Update-with-Start could not be executed.";

impl Chain {
    pub(crate) fn multi_operation(&mut self, request: ExecuteMultiOperationRequest, env: &mut Env) -> Answered {
        let Some((start, update)) = start_and_update(request) else {
            return Err(Error::invalid_argument("Operations have to be exactly [Start, Update]."));
        };
        let update_id =
            update.request.as_ref().and_then(|r| r.meta.as_ref()).map(|m| m.update_id.clone()).unwrap_or_default();
        // A repeated call finds its update, whatever has become of the run since.
        let known =
            self.current().filter(|run| run.knows_update(&update_id)).map(|run| StartWorkflowExecutionResponse {
                run_id: run.run_id().to_owned(),
                status: run.status() as i32,
                ..StartWorkflowExecutionResponse::default()
            });
        let started = match known {
            Some(response) => response,
            None => self.start_for_update(start, env)?,
        };
        let stage = update.wait_policy.map_or(Stage::Unspecified as i32, |policy| policy.lifecycle_stage);
        let run = self.run(&started.run_id)?;
        let asked = update.request.unwrap_or_default();
        let asker = UpdateAsker { namespace: update.namespace, request_id: asked.request_id.clone() };
        run.admit_update(asked, env).map_err(|error| {
            Error::multi_operation(error.grpc_code(), FAILED, vec![Error::multi_operation_aborted(), error])
        })?;
        let watch = Watch::Update {
            run_id: started.run_id.clone(),
            update_id,
            stage,
            kind: UpdateWatch::MultiOperation(Box::new(started), asker),
        };
        Ok((Answer::Watch(watch), Release::Durable))
    }

    fn start_for_update(
        &mut self,
        start: StartWorkflowExecutionRequest,
        env: &mut Env,
    ) -> Result<StartWorkflowExecutionResponse, Error> {
        let outcome = self.start_run(start, None, env).map_err(|error| {
            Error::multi_operation(error.grpc_code(), FAILED, vec![error, Error::multi_operation_aborted()])
        })?;
        match outcome.into_reply().message.reply {
            Some(workflow_reply::Reply::Start(response)) => Ok(response),
            _ => Err(Error::internal("a start was not answered as one")),
        }
    }
}

fn start_and_update(
    request: ExecuteMultiOperationRequest,
) -> Option<(StartWorkflowExecutionRequest, UpdateWorkflowExecutionRequest)> {
    let mut operations = request.operations.into_iter().map(|item| item.operation);
    match (operations.next()??, operations.next()??, operations.next()) {
        (Operation::StartWorkflow(start), Operation::UpdateWorkflow(update), None) => Some((start, update)),
        _ => None,
    }
}
