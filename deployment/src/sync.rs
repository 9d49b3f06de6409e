//! The task queues of a deployment's versions are told of its routing. A queue is told the whole of what concerns it, with
//! the revision of the state that this is of: what arrives late, or twice, changes nothing.

use std::collections::BTreeSet;

use perdure_proto::{
    Error,
    perdure::{
        node::v1::{TaskQueueCommand, WorkflowCall, WorkflowReply, task_queue_command, workflow_call, workflow_reply},
        state::v1::{DeploymentQueue, TaskQueueDeployment, TaskQueueVersion},
    },
};
use perdure_types::EntityKind;
use perdure_workflow::{CallId, CallKind, Effect};

use crate::deployment::Deployment;

pub(crate) const SYNC: CallKind = CallKind::Other(1);

impl Deployment {
    /// The state has changed in a way that task queues have to know of.
    pub(crate) fn news_for_queues(&mut self) {
        self.changed = true;
        self.timer = None;
        self.state.revision += 1;
        let known: BTreeSet<&str> = self.state.queues.iter().map(|queue| queue.name.as_str()).collect();
        let named = self.state.versions.iter().flat_map(|version| &version.queues).map(|queue| &queue.name);
        let new: BTreeSet<String> = named.filter(|name| !known.contains(name.as_str())).cloned().collect();
        for name in new {
            self.state.next_queue_number += 1;
            let number = self.state.next_queue_number;
            self.state.queues.push(DeploymentQueue { name, number, revision: 0 });
        }
    }

    /// All queues know the state as it was at this revision.
    pub(crate) fn is_settled(&self, revision: i64) -> bool {
        self.state.queues.iter().all(|queue| queue.revision >= revision)
    }

    pub(crate) fn outstanding_syncs(&self, incarnation: &str) -> Vec<Effect> {
        let behind = self.state.queues.iter().filter(|queue| queue.revision < self.state.revision);
        behind.map(|queue| self.sync_call(queue, incarnation)).collect()
    }

    fn sync_call(&self, queue: &DeploymentQueue, incarnation: &str) -> Effect {
        let versions = self.state.versions.iter().filter_map(|version| {
            let here = version.queues.iter().find(|known| known.name == queue.name)?;
            Some(TaskQueueVersion {
                build_id: version.build_id.clone(),
                types: here.types.clone(),
                status: version.status,
            })
        });
        let told = TaskQueueDeployment {
            name: self.name().to_owned(),
            routing_config: self.state.routing_config.clone(),
            versions: versions.collect(),
            revision: self.state.revision,
        };
        let command = TaskQueueCommand { command: Some(task_queue_command::Command::Sync(told)) };
        Effect::Call {
            id: CallId { run_id: incarnation.to_owned(), kind: SYNC, event_id: queue.number },
            call: Box::new(WorkflowCall {
                namespace_id: self.key.namespace_id.to_string(),
                workflow_id: queue.name.clone(),
                kind: EntityKind::TaskQueue.number(),
                command: Some(workflow_call::Command::TaskQueue(Box::new(command))),
            }),
        }
    }

    /// What a queue knows now. A change that was made while the call was under way has made none of its own, since only one
    /// is made at a time to each queue: the next one follows here.
    pub(crate) fn synced(&mut self, id: &CallId, result: Result<WorkflowReply, Error>) -> Option<Effect> {
        let known = match result {
            Ok(WorkflowReply { reply: Some(workflow_reply::Reply::TaskQueue(known)) }) => known,
            Ok(_) => return None,
            Err(error) => {
                tracing::warn!(deployment = %self.name(), %error, "a task queue does not take a deployment's routing");
                return None;
            }
        };
        let name = self.name().to_owned();
        let queue = self.state.queues.iter_mut().find(|queue| queue.number == id.event_id)?;
        let revision = known.deployments.iter().find(|told| told.name == name).map_or(0, |told| told.revision);
        if revision > queue.revision {
            queue.revision = revision;
            self.changed = true;
        }
        // A queue that no version has any more need not be told of what comes.
        let (current, versions) = (self.state.revision, &self.state.versions);
        let used = |name: &str| versions.iter().flat_map(|version| &version.queues).any(|queue| queue.name == name);
        self.state.queues.retain(|queue| queue.revision < current || used(&queue.name));
        let behind = self.state.queues.iter().find(|queue| queue.number == id.event_id && queue.revision < current)?;
        Some(self.sync_call(behind, &id.run_id))
    }
}
