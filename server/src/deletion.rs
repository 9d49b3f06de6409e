//! Deletes what is in namespaces that an operator has deleted, and the namespaces when nothing is left.
//!
//! Nothing is kept about how far this has come: what is still listed is still to be deleted. So any node can go on with it
//! at any time; the one that should own the shard of the namespace's id does.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use perdure_cluster::{Cluster, Namespace, Namespaces};
use perdure_proto::{
    Code, Error,
    perdure::{
        nexus::v1::{OperationCommand, operation_command},
        node::v1::{
            ActivityCommand, BatchCommand, ScheduleCommand, WorkflowCall, activity_command, batch_command,
            schedule_command, workflow_call::Command,
        },
    },
    temporal::api::{
        common::v1::WorkflowExecution,
        workflowservice::v1::{
            DeleteActivityExecutionRequest, DeleteNexusOperationExecutionRequest, DeleteScheduleRequest,
            DeleteWorkflowExecutionRequest, StopBatchOperationRequest,
        },
    },
};
use perdure_types::{
    ChainKey, EntityKind, Hidden, ListedRun, Placement, SlotCount, StatusSet, TimeRange, VisibilityIndex,
    VisibilityQuery,
};
use perdure_visibility::Rows;
use tokio::sync::watch;

/// How often it is looked whether there is something to delete.
const LOOK: Duration = Duration::from_secs(2);
/// Rows of one list that are taken at once, and how many of them are deleted at the same time.
const PAGE: usize = 500;
const AT_ONCE: usize = 16;
/// Lists may lag behind: only after so many looks that found nothing is a namespace empty.
const EMPTY_LOOKS: u32 = 2;

/// What a namespace's entities are deleted in this order: what starts others first.
const KINDS: [EntityKind; 5] =
    [EntityKind::Schedule, EntityKind::Batch, EntityKind::Workflow, EntityKind::Activity, EntityKind::NexusOperation];

/// Works in the background for as long as the server runs.
pub struct Deletion {
    pub namespaces: Arc<Namespaces>,
    pub cluster: Cluster,
    pub rows: Arc<dyn Rows>,
    pub slots: SlotCount,
    /// Of a node that has joined others.
    pub placement: Option<watch::Receiver<Arc<Placement>>>,
}

impl Deletion {
    pub async fn run(self) {
        // Looks in a row that have found a namespace empty, by its id.
        let mut empty = std::collections::BTreeMap::<String, u32>::new();
        loop {
            tokio::time::sleep(LOOK).await;
            for namespace in self.namespaces.all() {
                if namespace.record.deleted_name.is_empty() || !self.is_mine(namespace.id()) {
                    continue;
                }
                match self.work_on(&namespace).await {
                    Ok(0) => {
                        let looks = empty.entry(namespace.id().to_owned()).or_default();
                        *looks += 1;
                        if *looks >= EMPTY_LOOKS {
                            self.release(&namespace).await;
                        }
                    }
                    Ok(deleted) => {
                        empty.remove(namespace.id());
                        tracing::info!(namespace = namespace.name(), deleted, "deleting a namespace");
                    }
                    Err(error) => {
                        empty.remove(namespace.id());
                        tracing::warn!(namespace = namespace.name(), %error, "a namespace is not deleted yet");
                    }
                }
            }
        }
    }

    fn is_mine(&self, namespace_id: &str) -> bool {
        let Some(placement) = &self.placement else { return true };
        let placement = placement.borrow();
        let shard = ChainKey::new(namespace_id, "").shard(self.slots);
        placement.owners.get(shard.0 as usize % placement.owners.len().max(1)) == Some(&placement.me)
    }

    /// How much there was to delete.
    async fn work_on(&self, namespace: &Namespace) -> Result<usize, Error> {
        let Some(namespace) = self.namespaces.rename_deleted(namespace).await? else { return Ok(1) };
        if self.rows.now().as_nanos() < namespace.record.delete_not_before_ns {
            return Ok(1);
        }
        for kind in KINDS {
            let found = self.rows.list(&everything(kind, namespace.id())).await?;
            let calls: Vec<WorkflowCall> = found.iter().filter_map(|run| deletion_of(kind, &namespace, run)).collect();
            let work: Vec<_> = calls.into_iter().map(|call| self.delete(call)).collect();
            let outcomes: Vec<Result<(), Error>> = stream::iter(work).buffer_unordered(AT_ONCE).collect().await;
            let deleted = outcomes.len();
            outcomes.into_iter().collect::<Result<(), Error>>()?;
            if deleted > 0 {
                return Ok(deleted);
            }
        }
        Ok(0)
    }

    async fn delete(&self, call: WorkflowCall) -> Result<(), Error> {
        match self.cluster.workflow(&call).await {
            // It is gone already, or ends by itself.
            Err(error) if !matches!(error.grpc_code(), Code::NotFound | Code::FailedPrecondition) => Err(error),
            _ => Ok(()),
        }
    }

    async fn release(&self, namespace: &Namespace) {
        match self.namespaces.release(namespace).await {
            Ok(true) => {
                tracing::info!(namespace = namespace.name(), namespace_id = namespace.id(), "namespace is gone");
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(namespace = namespace.name(), %error, "a namespace is not deleted yet"),
        }
    }
}

fn everything(kind: EntityKind, namespace_id: &str) -> VisibilityQuery {
    VisibilityQuery {
        list_id: ChainKey::of(kind, namespace_id, "").list_id(),
        index: VisibilityIndex::Status { workflow_type: None, statuses: StatusSet::ALL, hidden: Hidden::With },
        open: TimeRange::ALL,
        closed: TimeRange::ALL,
        after: None,
        limit: PAGE,
    }
}

/// `None`: there is nothing to do about it.
fn deletion_of(kind: EntityKind, namespace: &Namespace, run: &ListedRun) -> Option<WorkflowCall> {
    let (id, run_id) = (run.workflow_id.to_string(), run.run_id.to_string());
    let name = namespace.name().to_owned();
    let command = match kind {
        EntityKind::Workflow => Command::Delete(DeleteWorkflowExecutionRequest {
            namespace: name,
            workflow_execution: Some(WorkflowExecution { workflow_id: id.clone(), run_id }),
        }),
        EntityKind::Schedule => {
            let request = DeleteScheduleRequest { namespace: name, schedule_id: id.clone(), ..Default::default() };
            let command = Some(schedule_command::Command::Delete(request));
            Command::Schedule(Box::new(ScheduleCommand { command }))
        }
        EntityKind::Activity => {
            let request = DeleteActivityExecutionRequest { namespace: name, activity_id: id.clone(), run_id };
            let command = Some(activity_command::Command::Delete(request));
            Command::Activity(Box::new(ActivityCommand { command }))
        }
        EntityKind::NexusOperation => {
            let request = DeleteNexusOperationExecutionRequest { namespace: name, operation_id: id.clone(), run_id };
            let command = Some(operation_command::Command::Delete(request));
            Command::NexusOperation(Box::new(OperationCommand { command }))
        }
        // A job that is over goes by itself.
        EntityKind::Batch if run.row.close_time.is_none() => {
            let reason = "the namespace is deleted".to_owned();
            let request =
                StopBatchOperationRequest { namespace: name, job_id: id.clone(), reason, ..Default::default() };
            Command::Batch(Box::new(BatchCommand { command: Some(batch_command::Command::Stop(request)) }))
        }
        _ => return None,
    };
    Some(WorkflowCall {
        namespace_id: namespace.id().to_owned(),
        workflow_id: id,
        kind: kind.number(),
        command: Some(command),
    })
}
