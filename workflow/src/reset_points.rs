//! Reset points: where each build of a worker first took part in an execution. They go along from run to run.

#![allow(deprecated, reason = "older workers still send what newer ones replaced, and histories show both")]

use perdure_proto::{
    Error,
    temporal::api::{
        common::v1::{ResetOptions, reset_options::Target},
        enums::v1::EventType,
        history::v1::{HistoryEvent, WorkflowTaskCompletedEventAttributes},
        workflow::v1::{ResetPointInfo, ResetPoints},
    },
};
use perdure_types::Timestamp;

use crate::run::Run;

/// Most points that are kept; the oldest go first.
const MAX_POINTS: usize = 20;

impl Run {
    /// Notes a completed workflow task, if it is the first one of its worker's build.
    pub(crate) fn note_reset_point(
        &mut self,
        event_id: i64,
        time: Timestamp,
        a: &WorkflowTaskCompletedEventAttributes,
    ) {
        let build_id = a.worker_version.as_ref().map(|version| version.build_id.clone()).unwrap_or_default();
        let known = |point: &ResetPointInfo| point.build_id == build_id && point.binary_checksum == a.binary_checksum;
        if self.reset_points.points.iter().any(known) {
            return;
        }
        let resettable =
            self.children.is_empty() && self.external_signals.is_empty() && self.external_cancels.is_empty();
        let point = ResetPointInfo {
            binary_checksum: a.binary_checksum.clone(),
            build_id,
            run_id: self.run_id.clone(),
            first_workflow_task_completed_id: event_id,
            create_time: time.to_proto(),
            expire_time: None,
            resettable,
        };
        let points = &mut self.reset_points.edit().points;
        points.push(point);
        let excess = points.len().saturating_sub(MAX_POINTS);
        points.drain(..excess);
    }

    /// Where a reset that is described in words begins: the event that ended a workflow task.
    pub(crate) fn reset_point(&self, events: &[HistoryEvent], options: &ResetOptions) -> Result<i64, Error> {
        let no_point = || Error::invalid_argument("no workflow task to reset to");
        let of_type = |kind: EventType| move |event: &&HistoryEvent| event.event_type() == kind;
        let completed = of_type(EventType::WorkflowTaskCompleted);
        let scheduled = of_type(EventType::WorkflowTaskScheduled);
        match options.target {
            Some(Target::FirstWorkflowTask(())) => {
                let first = events.iter().find(completed).map(|event| event.event_id);
                first.or_else(|| events.iter().find(scheduled).map(|event| event.event_id + 1)).ok_or_else(no_point)
            }
            Some(Target::LastWorkflowTask(())) => {
                let last = events.iter().rfind(completed).map(|event| event.event_id);
                last.or_else(|| events.iter().rfind(scheduled).map(|event| event.event_id + 1)).ok_or_else(no_point)
            }
            Some(Target::WorkflowTaskId(id)) => Ok(id),
            Some(Target::BuildId(ref build_id)) => {
                let here = |point: &&ResetPointInfo| point.build_id == *build_id && point.run_id == self.run_id;
                let point = self.reset_points.points.iter().find(here).map(|p| p.first_workflow_task_completed_id);
                point.ok_or_else(|| Error::invalid_argument(format!("build {build_id} has no reset point in this run")))
            }
            None => Err(Error::invalid_argument("ResetOptions.Target is not set on request.")),
        }
    }

    /// What the run after this one begins with: points of this run are gone when its retention is over.
    pub(crate) fn reset_points_for_successor(&self) -> Option<ResetPoints> {
        if self.reset_points.points.is_empty() {
            return None;
        }
        let mut points = (*self.reset_points).clone();
        for point in points.points.iter_mut().filter(|point| point.expire_time.is_none()) {
            point.expire_time = Timestamp(self.info.retention_deadline_ns).to_proto();
        }
        Some(points)
    }
}
