//! When the last open workflow that is pinned to a version has closed. Nobody counts them: the list of runs is asked now
//! and then.

use perdure_proto::{
    Error,
    perdure::{
        node::v1::{WorkflowCall, WorkflowReply, workflow_call::Command, workflow_reply::Reply},
        state::v1::DeploymentVersionState,
    },
    temporal::api::{
        enums::v1::{VersionDrainageStatus as Drainage, WorkerDeploymentVersionStatus as Status},
        workflowservice::v1::ListWorkflowExecutionsRequest,
    },
    versions,
};
use perdure_types::{Duration, Limits, Timestamp};
use perdure_workflow::{CallId, CallKind, Effect, Env};

use crate::deployment::Deployment;

pub(crate) const LIST: CallKind = CallKind::Other(2);

/// Until its limits are known, a deployment that was loaded looks after this time.
const AT_FIRST: Duration = Duration::from_secs(1);

/// At first when the list surely shows what ran before, then at intervals.
fn due(version: &DeploymentVersionState, limits: &Limits) -> Timestamp {
    let first = version.drainage_checked_time_ns == version.drainage_changed_time_ns;
    let wait = if first { limits.version_drainage_grace } else { limits.version_drainage_refresh };
    Timestamp(version.drainage_checked_time_ns) + wait
}

impl Deployment {
    fn draining(&self) -> impl Iterator<Item = &DeploymentVersionState> {
        let checking = &self.checking;
        let waits = |version: &&DeploymentVersionState| {
            version.drainage() == Drainage::Draining && !checking.contains(&version.create_time_ns)
        };
        self.state.versions.iter().filter(waits)
    }

    /// Follows the state. Without limits the time is early: the timer sets it right.
    pub(crate) fn retime(&mut self) {
        let next = self.draining().map(|version| Timestamp(version.drainage_checked_time_ns) + AT_FIRST).min();
        self.timer = match (next, self.timer) {
            (Some(next), Some(set)) if set > next => Some(set),
            (next, _) => next,
        };
    }

    /// Looks for workflows of the versions that are due.
    pub(crate) fn check_drainage(&mut self, incarnation: &str, env: &Env) -> Vec<Effect> {
        let is_due = |version: &&DeploymentVersionState| due(version, env.limits) <= env.now;
        let now: Vec<(i64, String)> =
            self.draining().filter(is_due).map(|version| (version.create_time_ns, version.build_id.clone())).collect();
        let effects = now.iter().map(|(number, build_id)| self.list_call(*number, build_id, incarnation)).collect();
        self.checking.extend(now.iter().map(|(number, _)| *number));
        self.timer = self.draining().map(|version| due(version, env.limits)).min();
        effects
    }

    fn list_call(&self, number: i64, build_id: &str, incarnation: &str) -> Effect {
        let version = versions::text(&self.named(build_id)).replace('\'', "''");
        let query = format!(
            "TemporalWorkerDeploymentVersion = '{version}' AND TemporalWorkflowVersioningBehavior = 'Pinned' AND (ExecutionStatus = 'Running' OR ExecutionStatus = 'Paused')"
        );
        let command = Command::List(ListWorkflowExecutionsRequest {
            namespace: self.state.namespace.clone(),
            page_size: 1,
            query,
            ..ListWorkflowExecutionsRequest::default()
        });
        Effect::Call {
            id: CallId { run_id: incarnation.to_owned(), kind: LIST, event_id: number },
            call: Box::new(WorkflowCall {
                namespace_id: self.key.namespace_id.to_string(),
                command: Some(command),
                ..WorkflowCall::default()
            }),
        }
    }

    pub(crate) fn drainage_checked(&mut self, number: i64, result: Result<WorkflowReply, Error>, env: &Env) {
        self.checking.remove(&number);
        let name = self.name().to_owned();
        let Some(version) = self.state.versions.iter_mut().find(|version| version.create_time_ns == number) else {
            return;
        };
        if version.drainage() != Drainage::Draining {
            return;
        }
        let is_drained = match result {
            Ok(WorkflowReply { reply: Some(Reply::List(list)) }) => list.executions.is_empty(),
            Ok(_) => false,
            Err(error) => {
                tracing::warn!(deployment = %name, build_id = %version.build_id, %error, "drainage not known");
                false
            }
        };
        version.drainage_checked_time_ns = env.now.as_nanos();
        self.changed = true;
        if is_drained {
            version.set_drainage(Drainage::Drained);
            version.drainage_changed_time_ns = env.now.as_nanos();
            version.set_status(Status::Drained);
            self.news_for_queues();
        }
        self.timer = None;
    }
}
