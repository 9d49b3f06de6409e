//! DeleteWorkflowExecution: the run goes as it would at the end of its retention. An open one is terminated first, and
//! stays until everybody who must know of its end does.

use perdure_proto::temporal::api::workflowservice::v1::DeleteWorkflowExecutionRequest;

use crate::{
    api::Env,
    chain::{Answered, Chain, empty_reply},
    terminate::SERVER_IDENTITY,
};

impl Chain {
    pub(crate) fn delete(&mut self, request: DeleteWorkflowExecutionRequest, env: &mut Env) -> Answered {
        self.check_namespace(&request.namespace, env)?;
        let run = self.run(&request.workflow_execution.map(|e| e.run_id).unwrap_or_default())?;
        if run.is_open() {
            run.terminate_run(env, "Delete workflow execution", None, SERVER_IDENTITY, Vec::new());
        }
        let now = env.now.as_nanos();
        let deadline = run.info.retention_deadline_ns;
        if deadline == 0 || deadline > now {
            run.info.edit().retention_deadline_ns = now;
        }
        empty_reply()
    }
}
