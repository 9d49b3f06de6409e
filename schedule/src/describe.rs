//! How a schedule shows itself: to those who describe it, and in lists.

use perdure_proto::temporal::api::{
    common::v1::{Payload, WorkflowExecution, WorkflowType},
    enums::v1::WorkflowExecutionStatus,
    schedule::v1::{
        Schedule as ScheduleMessage, ScheduleInfo, ScheduleListInfo, SchedulePolicies, ScheduleState as StateMessage,
    },
    workflow::v1::WorkflowExecutionInfo,
    workflowservice::v1::DescribeScheduleResponse,
};
use perdure_types::Timestamp;
use prost::Message;

use crate::{calls::json, schedule::Schedule, spec::Next};

const FUTURE_TIMES: usize = 10;
const FUTURE_TIMES_LISTED: usize = 5;
const RECENT_LISTED: usize = 5;
/// Parts of a specification that a list shows, of each sort.
const SPEC_PARTS_LISTED: usize = 10;

impl Schedule {
    pub(crate) fn describe(&self) -> DescribeScheduleResponse {
        let definition = self.state.definition.clone().unwrap_or_default();
        DescribeScheduleResponse {
            schedule: Some(self.current()),
            info: Some(self.info()),
            memo: definition.memo,
            search_attributes: definition.search_attributes.filter(|found| !found.indexed_fields.is_empty()),
            conflict_token: self.conflict_token(),
        }
    }

    /// With defaults, and as it is now.
    fn current(&self) -> ScheduleMessage {
        let mut schedule = self.message().clone();
        schedule.policies = Some(SchedulePolicies {
            overlap_policy: self.overlap_policy() as i32,
            catchup_window: Some(self.catchup_window().to_proto()),
            ..*self.policies()
        });
        schedule.state = Some(StateMessage {
            notes: self.state.notes.clone(),
            paused: self.state.paused,
            limited_actions: self.has_limited_actions(),
            remaining_actions: self.state.remaining_actions,
        });
        schedule
    }

    #[allow(deprecated)]
    fn info(&self) -> ScheduleInfo {
        let state = &self.state;
        let running = state
            .running
            .iter()
            .map(|run| WorkflowExecution { workflow_id: run.workflow_id.clone(), run_id: run.first_run_id.clone() });
        ScheduleInfo {
            action_count: state.action_count,
            missed_catchup_window: state.missed_catchup_window,
            overlap_skipped: state.overlap_skipped,
            buffer_dropped: state.buffer_dropped,
            buffer_size: state.buffered.len() as i64,
            running_workflows: running.collect(),
            recent_actions: state.recent.clone(),
            future_action_times: self.future_times(FUTURE_TIMES),
            create_time: Timestamp(state.create_time_ns).to_proto(),
            update_time: Timestamp(state.update_time_ns).to_proto(),
            // The only place where the API lets a schedule say what went wrong.
            invalid_schedule_error: self.state.last_problem.clone(),
            state_size_bytes: state.encoded_len() as i64,
        }
    }

    /// When the next actions will be, also of a paused schedule.
    fn future_times(&self, most: usize) -> Vec<prost_types::Timestamp> {
        let limit = match self.has_limited_actions() {
            true => usize::try_from(self.state.remaining_actions).unwrap_or(0).min(most),
            false => most,
        };
        let mut times = Vec::with_capacity(limit);
        let mut after = Timestamp(self.state.processed_until_ns);
        // A search that rests is not gone on with: the list is shorter then.
        while times.len() < limit {
            let Next::At(found) = self.next_after(after) else { break };
            after = found.actual;
            if found.actual.0 >= self.state.update_time_ns {
                times.extend(found.actual.to_proto());
            }
        }
        times
    }

    /// As a workflow would be listed. Schedules have a list of their own.
    pub(crate) fn list_row(&self, incarnation: &str) -> Option<WorkflowExecutionInfo> {
        let definition = self.state.definition.as_ref()?;
        let mut memo = definition.memo.clone().unwrap_or_default();
        let info = Payload { data: self.list_info().encode_to_vec().into(), ..Payload::default() };
        memo.fields.insert(LIST_INFO.to_owned(), info);
        let mut attributes = definition.search_attributes.clone().unwrap_or_default();
        let paused = if self.state.paused { "true" } else { "false" };
        attributes.indexed_fields.insert(PAUSED.to_owned(), json(paused.to_owned(), "Bool"));
        let created = Timestamp(self.state.create_time_ns).to_proto();
        Some(WorkflowExecutionInfo {
            execution: Some(WorkflowExecution { workflow_id: self.id().to_owned(), run_id: incarnation.to_owned() }),
            r#type: Some(WorkflowType { name: WORKFLOW_TYPE.to_owned() }),
            start_time: created,
            execution_time: created,
            status: WorkflowExecutionStatus::Running as i32,
            memo: Some(memo),
            search_attributes: Some(attributes),
            ..WorkflowExecutionInfo::default()
        })
    }

    fn list_info(&self) -> ScheduleListInfo {
        let mut spec = self.message().spec.clone().unwrap_or_default();
        spec.timezone_data = bytes::Bytes::new();
        spec.structured_calendar.truncate(SPEC_PARTS_LISTED);
        spec.exclude_structured_calendar.truncate(SPEC_PARTS_LISTED);
        spec.interval.truncate(SPEC_PARTS_LISTED);
        let recent = &self.state.recent;
        ScheduleListInfo {
            spec: Some(spec),
            workflow_type: self.action().and_then(|action| action.workflow_type.clone()),
            notes: self.state.notes.clone(),
            paused: self.state.paused,
            recent_actions: recent[recent.len().saturating_sub(RECENT_LISTED)..].to_vec(),
            future_action_times: self.future_times(FUTURE_TIMES_LISTED),
            state_size_bytes: self.state.encoded_len() as i64,
        }
    }
}

/// The key of the memo under which a list row carries a `ScheduleListInfo`, as the value of a payload.
const LIST_INFO: &str = "ScheduleInfo";
const PAUSED: &str = "TemporalSchedulePaused";
const WORKFLOW_TYPE: &str = "temporal-sys-scheduler-workflow";
