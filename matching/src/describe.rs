//! What operators are told about a queue.

use std::collections::HashMap;

use perdure_proto::{
    Error,
    temporal::api::{
        enums::v1::{DescribeTaskQueueMode, RateLimitSource, TaskQueueKind, TaskQueueType},
        taskqueue::v1::{
            TaskIdBlock, TaskQueuePartitionMetadata, TaskQueueStats, TaskQueueStatus, TaskQueueTypeInfo,
            TaskQueueVersionInfo,
        },
        workflowservice::v1::{
            DescribeTaskQueueRequest, DescribeTaskQueueResponse, ListTaskQueuePartitionsRequest,
            ListTaskQueuePartitionsResponse, describe_task_queue_response::EffectiveRateLimit,
        },
    },
};

use crate::{offer::Priority, pollers::UNLIMITED_PER_SECOND, queue::QueueStats, registry::QueueKind, shell::Shell};

/// Everything that is known about a queue at one moment.
#[derive(Default)]
struct Snapshot {
    info: TaskQueueTypeInfo,
    by_priority: HashMap<i32, TaskQueueStats>,
    rate_limit: Option<f64>,
}

fn stats_message(stats: &QueueStats) -> TaskQueueStats {
    TaskQueueStats {
        approximate_backlog_count: i64::try_from(stats.backlog).unwrap_or(i64::MAX),
        approximate_backlog_age: Some(stats.backlog_age.to_proto()),
        tasks_add_rate: stats.added_per_second,
        tasks_dispatch_rate: stats.dispatched_per_second,
        rate_limiting_active: stats.rate_limited,
    }
}

fn sum(stats: &[(Priority, QueueStats)]) -> QueueStats {
    stats.iter().fold(QueueStats::default(), |sum, (_, one)| QueueStats {
        backlog: sum.backlog + one.backlog,
        backlog_age: sum.backlog_age.max(one.backlog_age),
        added_per_second: sum.added_per_second + one.added_per_second,
        dispatched_per_second: sum.dispatched_per_second + one.dispatched_per_second,
        rate_limited: sum.rate_limited || one.rate_limited,
    })
}

fn queue_kind(task_type: TaskQueueType, sticky: bool) -> Option<QueueKind> {
    match task_type {
        TaskQueueType::Workflow | TaskQueueType::Unspecified if sticky => Some(QueueKind::Sticky),
        TaskQueueType::Workflow | TaskQueueType::Unspecified => Some(QueueKind::Workflow),
        TaskQueueType::Activity => Some(QueueKind::Activity),
        TaskQueueType::Nexus => None,
    }
}

impl Shell {
    /// A queue that is not in memory has nothing to tell, and asking does not bring it there.
    fn snapshot(&self, namespace_id: &str, kind: Option<QueueKind>, name: &str) -> Snapshot {
        let cell = kind.and_then(|kind| self.registry.get(namespace_id, kind, name));
        let Some(cell) = cell else {
            let stats = Some(stats_message(&QueueStats::default()));
            return Snapshot { info: TaskQueueTypeInfo { pollers: Vec::new(), stats }, ..Snapshot::default() };
        };
        let now = self.now();
        let mut core = cell.lock();
        let stats = core.queue.stats(now);
        Snapshot {
            info: TaskQueueTypeInfo {
                pollers: core.queue.pollers(now, self.config.poller_history),
                stats: Some(stats_message(&sum(&stats))),
            },
            by_priority: stats.iter().map(|(priority, one)| (priority.key(), stats_message(one))).collect(),
            rate_limit: core.queue.rate_limit(),
        }
    }

    #[allow(deprecated)]
    pub fn describe(
        &self,
        namespace_id: &str,
        task_queue: &str,
        request: &DescribeTaskQueueRequest,
    ) -> Result<DescribeTaskQueueResponse, Error> {
        let queue = request.task_queue.as_ref();
        let name = queue.map(|q| q.name.as_str()).filter(|name| !name.is_empty()).unwrap_or(task_queue);
        let sticky = queue.is_some_and(|q| q.kind() == TaskQueueKind::Sticky);
        if request.api_mode() == DescribeTaskQueueMode::Enhanced {
            if sticky {
                return Err(Error::invalid_argument("Sticky task queues cannot be described in enhanced mode."));
            }
            return Ok(self.describe_enhanced(namespace_id, name, request));
        }
        let snapshot = self.snapshot(namespace_id, queue_kind(request.task_queue_type(), sticky), name);
        let stats = snapshot.info.stats.unwrap_or_default();
        let status = request.include_task_queue_status.then(|| TaskQueueStatus {
            backlog_count_hint: stats.approximate_backlog_count,
            rate_per_second: snapshot.rate_limit.unwrap_or(UNLIMITED_PER_SECOND),
            // There are no task ids: tasks are not stored.
            task_id_block: Some(TaskIdBlock::default()),
            ..Default::default()
        });
        let source = if snapshot.rate_limit.is_some() { RateLimitSource::Worker } else { RateLimitSource::System };
        Ok(DescribeTaskQueueResponse {
            pollers: snapshot.info.pollers,
            stats: request.report_stats.then_some(stats),
            stats_by_priority_key: if request.report_stats { snapshot.by_priority } else { HashMap::new() },
            effective_rate_limit: Some(EffectiveRateLimit {
                requests_per_second: snapshot.rate_limit.unwrap_or(UNLIMITED_PER_SECOND) as f32,
                rate_limit_source: source as i32,
            }),
            task_queue_status: status,
            ..Default::default()
        })
    }

    /// All types in one answer, under each build id asked for. Tasks are not routed by build id: they are all in the
    /// unversioned queue, named by the empty string.
    #[allow(deprecated)]
    fn describe_enhanced(
        &self,
        namespace_id: &str,
        name: &str,
        request: &DescribeTaskQueueRequest,
    ) -> DescribeTaskQueueResponse {
        let mut types: Vec<_> = request.task_queue_types().filter(|t| *t != TaskQueueType::Unspecified).collect();
        if types.is_empty() {
            types = vec![TaskQueueType::Workflow, TaskQueueType::Activity];
        }
        let infos = |versioned: bool| TaskQueueVersionInfo {
            types_info: types
                .iter()
                .map(|task_type| {
                    let kind = queue_kind(*task_type, false).filter(|_| !versioned);
                    let mut info = self.snapshot(namespace_id, kind, name).info;
                    if !request.report_pollers {
                        info.pollers.clear();
                    }
                    if !request.report_stats {
                        info.stats = None;
                    }
                    (*task_type as i32, info)
                })
                .collect(),
            ..Default::default()
        };
        let mut versions_info = HashMap::new();
        let selection = request.versions.as_ref();
        for build_id in selection.map(|s| s.build_ids.as_slice()).unwrap_or_default() {
            versions_info.insert(build_id.clone(), infos(!build_id.is_empty()));
        }
        if selection.is_none_or(|s| s.unversioned || s.all_active || s.build_ids.is_empty()) {
            versions_info.insert(String::new(), infos(false));
        }
        DescribeTaskQueueResponse { versions_info, ..Default::default() }
    }

    /// Queues have one partition, which bears the queue's name.
    pub fn list_partitions(
        &self,
        task_queue: &str,
        request: &ListTaskQueuePartitionsRequest,
    ) -> ListTaskQueuePartitionsResponse {
        let named = request.task_queue.as_ref().map(|q| q.name.as_str()).filter(|name| !name.is_empty());
        let partition = TaskQueuePartitionMetadata {
            key: named.unwrap_or(task_queue).to_owned(),
            owner_host_name: self.config.host_name.clone(),
        };
        ListTaskQueuePartitionsResponse {
            activity_task_queue_partitions: vec![partition.clone()],
            workflow_task_queue_partitions: vec![partition],
        }
    }
}
