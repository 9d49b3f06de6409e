//! DescribeWorkflowExecution: what a run is, and what it waits for.

use perdure_proto::{
    perdure::{
        node::v1::workflow_reply,
        state::v1::{ActivityInfo, ChildInfo, PauseInfo, WorkflowTaskInfo},
    },
    temporal::api::{
        enums::v1::{PendingActivityState, PendingWorkflowTaskState, TaskQueueKind},
        history::v1::{ActivityTaskScheduledEventAttributes, history_event::Attributes},
        taskqueue::v1::TaskQueue,
        workflow::v1::{
            PendingActivityInfo, PendingChildExecutionInfo, PendingWorkflowTaskInfo, RequestIdInfo,
            WorkflowExecutionConfig, WorkflowExecutionExtendedInfo, WorkflowExecutionInfo, WorkflowExecutionPauseInfo,
            pending_activity_info::{
                self,
                pause_info::{self, PausedBy},
            },
        },
        workflowservice::v1::{DescribeWorkflowExecutionRequest, DescribeWorkflowExecutionResponse},
    },
};
use perdure_types::{Duration, Timestamp};

use crate::{
    api::{Answer, Env, Release, Reply},
    chain::{Answered, Chain},
    nexus_describe::pending_nexus_operation,
    run::{Pending, Run},
};

impl Chain {
    pub(crate) fn describe(&mut self, request: DescribeWorkflowExecutionRequest, env: &mut Env) -> Answered {
        let run_id = request.execution.map(|e| e.run_id).unwrap_or_default();
        let response = self.run(&run_id)?.describe(env.now);
        Ok((Answer::Reply(Box::new(Reply::new(workflow_reply::Reply::Describe(Box::new(response))))), Release::Prior))
    }
}

impl Run {
    fn describe(&self, now: Timestamp) -> DescribeWorkflowExecutionResponse {
        DescribeWorkflowExecutionResponse {
            execution_config: Some(self.execution_config()),
            workflow_execution_info: Some(self.execution_info()),
            // Those of a closed run, too: they tell what it did not wait for.
            pending_activities: self.activities.values().map(|activity| pending_activity(activity, now)).collect(),
            pending_children: self.children.values().filter(|_| self.is_open()).map(pending_child).collect(),
            pending_workflow_task: self.workflow_task().map(pending_workflow_task),
            pending_nexus_operations: self.nexus_operations.values().map(pending_nexus_operation).collect(),
            callbacks: self.described_callbacks(),
            workflow_extended_info: Some(self.extended_info()),
        }
    }

    fn execution_config(&self) -> WorkflowExecutionConfig {
        let start = self.start();
        WorkflowExecutionConfig {
            task_queue: Some(TaskQueue {
                name: self.info.task_queue.clone(),
                kind: TaskQueueKind::Normal as i32,
                ..TaskQueue::default()
            }),
            workflow_execution_timeout: start.workflow_execution_timeout,
            workflow_run_timeout: start.workflow_run_timeout,
            default_workflow_task_timeout: Some(Duration(self.info.workflow_task_timeout_ns).to_proto()),
            user_metadata: self.started.user_metadata.clone(),
        }
    }

    /// The list form of a run. Its execution time is when its first workflow task is due.
    #[allow(deprecated, reason = "older clients look at what newer ones replaced")]
    pub fn execution_info(&self) -> WorkflowExecutionInfo {
        let start = self.start();
        let start_time = self.start_time();
        let execution_time = Timestamp(self.info.first_workflow_task_due_ns).max(start_time);
        let close_time = Timestamp(self.info.close_time_ns);
        WorkflowExecutionInfo {
            execution: Some(self.execution()),
            r#type: start.workflow_type.clone(),
            start_time: start_time.to_proto(),
            close_time: close_time.to_proto(),
            status: self.info.status,
            history_length: self.info.next_event_id - 1,
            parent_namespace_id: start.parent_workflow_namespace_id.clone(),
            parent_execution: start.parent_workflow_execution.clone(),
            execution_time: execution_time.to_proto(),
            memo: Some((*self.memo).clone()),
            search_attributes: Some((*self.search_attributes).clone()),
            task_queue: self.info.task_queue.clone(),
            state_transition_count: self.info.state_transition_count,
            history_size_bytes: self.info.history_size_bytes,
            execution_duration: (!self.is_open()).then(|| close_time.since(execution_time).to_proto()),
            root_execution: start.root_workflow_execution.clone().or_else(|| Some(self.execution())),
            first_run_id: start.first_execution_run_id.clone(),
            priority: self.info.priority.clone(),
            external_payload_count: self.info.external_payload_count,
            external_payload_size_bytes: self.info.external_payload_size_bytes,
            versioning_info: self.versioning_info(),
            assigned_build_id: self.assigned_build_id(),
            inherited_build_id: self.inherited_build_id(),
            most_recent_worker_version_stamp: self.info.most_recent_worker_version.clone(),
            worker_deployment_name: self.worker_deployment_name(),
            auto_reset_points: Some((*self.reset_points).clone()).filter(|points| !points.points.is_empty()),
        }
    }

    fn extended_info(&self) -> WorkflowExecutionExtendedInfo {
        let requests = self.request_ids.values().map(|request| {
            let info = RequestIdInfo {
                event_type: request.event_type,
                event_id: request.event_id,
                buffered: request.event_id == 0,
            };
            (request.request_id.clone(), info)
        });
        WorkflowExecutionExtendedInfo {
            execution_expiration_time: Timestamp(self.info.execution_deadline_ns).to_proto(),
            run_expiration_time: Timestamp(self.info.run_deadline_ns).to_proto(),
            cancel_requested: self.info.cancel_requested,
            original_start_time: self.started.event_time,
            last_reset_time: self.info.reset.as_ref().and_then(|_| self.start_time().to_proto()),
            reset_run_id: self.info.reset_run_id.clone(),
            pause_info: self.info.pause.as_ref().map(|pause| WorkflowExecutionPauseInfo {
                identity: pause.identity.clone(),
                paused_time: Timestamp(pause.time_ns).to_proto(),
                reason: pause.reason.clone(),
            }),
            request_id_infos: requests.collect(),
            ..WorkflowExecutionExtendedInfo::default()
        }
    }
}

fn pending_workflow_task(task: &WorkflowTaskInfo) -> PendingWorkflowTaskInfo {
    let started = task.started_event_id != 0;
    let state = if started { PendingWorkflowTaskState::Started } else { PendingWorkflowTaskState::Scheduled };
    PendingWorkflowTaskInfo {
        state: state as i32,
        scheduled_time: Timestamp(task.scheduled_time_ns).to_proto(),
        original_scheduled_time: Timestamp(task.original_scheduled_time_ns).to_proto(),
        started_time: Timestamp(task.started_time_ns).to_proto(),
        attempt: task.attempt,
    }
}

fn scheduled(pending: &Pending<ActivityInfo>) -> Option<&ActivityTaskScheduledEventAttributes> {
    match &pending.event.attributes {
        Some(Attributes::ActivityTaskScheduledEventAttributes(scheduled)) => Some(scheduled),
        _ => None,
    }
}

fn pending_activity(pending: &Pending<ActivityInfo>, now: Timestamp) -> PendingActivityInfo {
    let info = &pending.info;
    let scheduled = scheduled(pending);
    let started = pending.is_started();
    let state = match (started, info.cancel_requested, info.paused) {
        (_, true, _) => PendingActivityState::CancelRequested,
        (true, false, true) => PendingActivityState::PauseRequested,
        (true, false, false) => PendingActivityState::Started,
        (false, false, true) => PendingActivityState::Paused,
        (false, false, false) => PendingActivityState::Scheduled,
    };
    let backing_off = pending.waits() && info.scheduled_time_ns > now.as_nanos();
    let options = pending.options();
    let pause_info = info.pause.as_ref().map(|pause| pending_activity_info::PauseInfo {
        pause_time: Timestamp(pause.time_ns).to_proto(),
        paused_by: Some(paused_by(pause)),
    });
    PendingActivityInfo {
        activity_id: info.activity_id.clone(),
        activity_type: scheduled.and_then(|s| s.activity_type.clone()),
        state: state as i32,
        heartbeat_details: info.heartbeat_details.clone(),
        last_heartbeat_time: Timestamp(info.last_heartbeat_time_ns).to_proto(),
        last_started_time: Timestamp(if started { info.started_time_ns } else { info.last_started_time_ns }).to_proto(),
        attempt: info.attempt,
        maximum_attempts: options.retry_policy.as_ref().map_or(0, |policy| policy.maximum_attempts),
        scheduled_time: Timestamp(info.scheduled_time_ns).to_proto(),
        expiration_time: Timestamp(info.expiration_time_ns).to_proto(),
        last_failure: info.last_failure.clone(),
        last_worker_identity: if started { info.identity.clone() } else { info.last_identity.clone() },
        current_retry_interval: backing_off.then(|| Duration(info.current_retry_interval_ns).to_proto()),
        last_attempt_complete_time: Timestamp(info.last_attempt_complete_time_ns).to_proto(),
        next_attempt_schedule_time: backing_off.then(|| Timestamp(info.scheduled_time_ns).to_proto()).flatten(),
        paused: info.paused,
        priority: options.priority.clone(),
        pause_info,
        activity_options: Some(options),
        ..PendingActivityInfo::default()
    }
}

fn pending_child(pending: &Pending<ChildInfo>) -> PendingChildExecutionInfo {
    let initiated = match &pending.event.attributes {
        Some(Attributes::StartChildWorkflowExecutionInitiatedEventAttributes(initiated)) => initiated.clone(),
        _ => Box::default(),
    };
    PendingChildExecutionInfo {
        workflow_id: initiated.workflow_id,
        run_id: pending.info.run_id.clone(),
        workflow_type_name: initiated.workflow_type.map(|t| t.name).unwrap_or_default(),
        initiated_id: pending.info.initiated_event_id,
        parent_close_policy: initiated.parent_close_policy,
    }
}

fn paused_by(pause: &PauseInfo) -> PausedBy {
    if pause.rule_id.is_empty() {
        PausedBy::Manual(pause_info::Manual { identity: pause.identity.clone(), reason: pause.reason.clone() })
    } else {
        PausedBy::Rule(pause_info::Rule { rule_id: pause.rule_id.clone(), ..pause_info::Rule::default() })
    }
}
