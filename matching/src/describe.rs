//! What operators are told about a queue.

use std::{collections::HashMap, sync::Arc, time::Duration};

use perdure_proto::{
    Error, build_ids,
    perdure::node::v1::{QueueInfo, QueueInfos},
    temporal::api::{
        deployment::v1::WorkerDeploymentVersion as Version,
        enums::v1::{DescribeTaskQueueMode, RateLimitSource, TaskQueueKind, TaskQueueType},
        taskqueue::v1::{
            PollerInfo, TaskIdBlock, TaskQueuePartitionMetadata, TaskQueueStats, TaskQueueStatus, TaskQueueTypeInfo,
            TaskQueueVersionInfo,
        },
        workflowservice::v1::{
            DescribeTaskQueueRequest, DescribeTaskQueueResponse, ListTaskQueuePartitionsRequest,
            ListTaskQueuePartitionsResponse, describe_task_queue_response::EffectiveRateLimit,
        },
    },
    versions,
};
use perdure_types::Timestamp;
use tokio::time::Instant;

use crate::{
    follow::Known,
    offer::Priority,
    pollers::UNLIMITED_PER_SECOND,
    queue::QueueStats,
    registry::{QueueCell, QueueKind},
    routing::Routing,
    shell::Shell,
};

/// How long a description waits for what is durable of a queue.
const LEARNED_WITHIN: Duration = Duration::from_secs(2);
/// Queues in one answer.
const MOST_LISTED: usize = 1_000;

/// Everything that is known about a queue at one moment.
#[derive(Default)]
struct Snapshot {
    info: TaskQueueTypeInfo,
    by_priority: HashMap<i32, TaskQueueStats>,
    /// And whether an operator has set it.
    rate_limit: Option<(f64, bool)>,
    known: Option<Arc<Known>>,
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

/// What a text names: unversioned workers, those of a deployment's version, or those of a build id, which may look like
/// the older text form of a version.
fn named(text: &str, routing: &Routing) -> Option<Version> {
    let version = versions::parse(text).ok().flatten();
    let version = version.filter(|version| text.contains(':') || routing.has(version));
    version.or_else(|| (!text.is_empty()).then(|| build_ids::as_version(text)))
}

fn version_of(poller: &PollerInfo) -> Option<Version> {
    let deployment = poller.deployment_options.as_ref();
    #[allow(deprecated)]
    let capabilities = poller.worker_version_capabilities.as_ref();
    versions::of_worker(deployment)
        .or_else(|| build_ids::of_worker(capabilities, deployment).map(build_ids::as_version))
}

fn sum(stats: &[(Priority, QueueStats)]) -> QueueStats {
    stats.iter().fold(QueueStats::default(), |sum, (_, one)| sum.and(one))
}

fn queue_kind(task_type: TaskQueueType, sticky: bool) -> Option<QueueKind> {
    match task_type {
        TaskQueueType::Workflow | TaskQueueType::Unspecified if sticky => Some(QueueKind::Sticky),
        TaskQueueType::Workflow | TaskQueueType::Unspecified => Some(QueueKind::Workflow),
        TaskQueueType::Activity => Some(QueueKind::Activity),
        TaskQueueType::Nexus => Some(QueueKind::Nexus),
    }
}

impl Shell {
    /// A queue that is not in memory has nothing to tell, and asking does not bring it there.
    /// `version`: only what concerns its workers.
    fn snapshot(
        &self,
        namespace_id: &str,
        kind: Option<QueueKind>,
        name: &str,
        version: Option<Option<&Version>>,
    ) -> Snapshot {
        let cell = kind.and_then(|kind| self.registry.get(namespace_id, kind, name));
        let Some(cell) = cell else {
            let stats = Some(stats_message(&QueueStats::default()));
            return Snapshot { info: TaskQueueTypeInfo { pollers: Vec::new(), stats }, ..Snapshot::default() };
        };
        let now = self.now();
        let mut core = cell.lock();
        let stats = match version {
            None => core.queue.stats(now),
            Some(version) => core.queue.stats_of(now, version),
        };
        let mut pollers = core.queue.pollers(now, self.config.poller_history);
        if let Some(version) = version {
            pollers.retain(|poller| version_of(poller).as_ref() == version);
        }
        Snapshot {
            info: TaskQueueTypeInfo { pollers, stats: Some(stats_message(&sum(&stats))) },
            by_priority: stats.iter().map(|(priority, one)| (priority.key(), stats_message(one))).collect(),
            rate_limit: core.queue.rate_limit(),
            known: cell.family().and_then(|family| family.known(cell.key.kind.task_type())),
        }
    }

    /// Of a queue that is not in memory it is read, and the queue comes there.
    async fn known(self: &Arc<Self>, namespace_id: &str, kind: QueueKind, name: &str) -> Option<Arc<Known>> {
        let family = self.family(namespace_id, name);
        family.wait(kind.task_type(), Instant::now() + LEARNED_WITHIN, |_| true).await
    }

    #[allow(deprecated)]
    pub async fn describe(
        self: &Arc<Self>,
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
            let known = self.known(namespace_id, QueueKind::Workflow, name).await;
            let routing = known.map(|known| Arc::clone(&known.routing)).unwrap_or_default();
            return Ok(self.describe_enhanced(namespace_id, name, &routing, request));
        }
        let kind = queue_kind(request.task_queue_type(), sticky);
        let mut snapshot = self.snapshot(namespace_id, kind, name, None);
        if let Some(kind) = kind.filter(|kind| *kind != QueueKind::Sticky && snapshot.known.is_none()) {
            snapshot.known = self.known(namespace_id, kind, name).await;
        }
        let stats = snapshot.info.stats.unwrap_or_default();
        let status = request.include_task_queue_status.then(|| TaskQueueStatus {
            backlog_count_hint: stats.approximate_backlog_count,
            rate_per_second: snapshot.rate_limit.map_or(UNLIMITED_PER_SECOND, |(rate, _)| rate),
            // There are no task ids: tasks are not stored.
            task_id_block: Some(TaskIdBlock::default()),
            ..Default::default()
        });
        let set = snapshot.known.as_ref().and_then(|known| known.settings.per_second).map(|rate| (rate, true));
        let rate_limit = set.or(snapshot.rate_limit);
        let source = match rate_limit {
            Some((_, true)) => RateLimitSource::Api,
            Some((_, false)) => RateLimitSource::Worker,
            None => RateLimitSource::System,
        };
        let config = snapshot.known.as_ref().filter(|_| request.report_config).and_then(|known| known.config.clone());
        Ok(DescribeTaskQueueResponse {
            pollers: snapshot.info.pollers,
            stats: request.report_stats.then_some(stats),
            stats_by_priority_key: if request.report_stats { snapshot.by_priority } else { HashMap::new() },
            effective_rate_limit: Some(EffectiveRateLimit {
                requests_per_second: rate_limit.map_or(UNLIMITED_PER_SECOND, |(rate, _)| rate) as f32,
                rate_limit_source: source as i32,
            }),
            task_queue_status: status,
            config,
            versioning_info: snapshot.known.and_then(|known| known.routing.info()),
            ..Default::default()
        })
    }

    /// All types in one answer, under each version asked for (`deployment:build`, or a build id alone; the empty one is that
    /// of unversioned workers).
    #[allow(deprecated)]
    fn describe_enhanced(
        &self,
        namespace_id: &str,
        name: &str,
        routing: &Routing,
        request: &DescribeTaskQueueRequest,
    ) -> DescribeTaskQueueResponse {
        let mut types: Vec<_> = request.task_queue_types().filter(|t| *t != TaskQueueType::Unspecified).collect();
        if types.is_empty() {
            types = vec![TaskQueueType::Workflow, TaskQueueType::Activity];
        }
        let infos = |version: Option<Option<&Version>>| TaskQueueVersionInfo {
            types_info: types
                .iter()
                .map(|task_type| {
                    let kind = queue_kind(*task_type, false);
                    let mut info = self.snapshot(namespace_id, kind, name, version).info;
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
            versions_info.insert(build_id.clone(), infos(Some(named(build_id, routing).as_ref())));
        }
        let default_build_id = routing.default_build_id();
        if selection.is_none() && !default_build_id.is_empty() {
            let version = build_ids::as_version(default_build_id);
            versions_info.insert(default_build_id.to_owned(), infos(Some(Some(&version))));
        } else if selection.is_none_or(|s| s.unversioned || s.all_active || s.build_ids.is_empty()) {
            let all = selection.is_none_or(|s| s.build_ids.is_empty() && !s.unversioned);
            versions_info.insert(String::new(), infos(if all { None } else { Some(None) }));
        }
        DescribeTaskQueueResponse { versions_info, ..Default::default() }
    }

    /// The queues of this node, of one namespace or, if none is named, of all: those with the longest backlog first.
    pub fn list_queues(&self, namespace_id: &str) -> QueueInfos {
        let mut cells = self.registry.all();
        cells.retain(|cell| namespace_id.is_empty() || &*cell.key.namespace_id == namespace_id);
        let total = cells.len() as u64;
        let now = self.now();
        let mut queues: Vec<QueueInfo> = cells.iter().map(|cell| self.queue_info(cell, now)).collect();
        queues.sort_by(|a, b| b.backlog.cmp(&a.backlog).then_with(|| a.name.cmp(&b.name)));
        queues.truncate(MOST_LISTED);
        QueueInfos { queues, total }
    }

    fn queue_info(&self, cell: &QueueCell, now: Timestamp) -> QueueInfo {
        let mut core = cell.lock();
        let stats = sum(&core.queue.stats(now));
        let pollers = core.queue.pollers(now, self.config.poller_history);
        drop(core);
        let kind = match cell.key.kind {
            QueueKind::Workflow => "workflow",
            QueueKind::Sticky => "sticky",
            QueueKind::Activity => "activity",
            QueueKind::Nexus => "nexus",
        };
        let last_poll = pollers.first().map(|poller| Timestamp::from_proto(poller.last_access_time.as_ref()));
        QueueInfo {
            namespace_id: cell.key.namespace_id.to_string(),
            name: cell.key.name.to_string(),
            kind: kind.to_owned(),
            pollers: u32::try_from(pollers.len()).unwrap_or(u32::MAX),
            last_poll_ns: last_poll.map_or(0, |at| at.0),
            backlog: stats.backlog as u64,
            backlog_age_ns: stats.backlog_age.0,
            added_per_second: stats.added_per_second,
            dispatched_per_second: stats.dispatched_per_second,
            node: String::new(),
        }
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
