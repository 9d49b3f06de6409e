//! Counts the ends of runs, when they are decided.

use perdure_proto::{
    perdure::state::v1::{ChainRecord, RunInfo},
    temporal::api::enums::v1::WorkflowExecutionStatus as Status,
};
use perdure_types::{Duration, Timestamp};
use perdure_workflow::NamespaceView;

use crate::{entry::Entry, telemetry};

/// To be called before the record is noted: a run that was closed before is not counted again.
pub(super) fn count(entry: &Entry, record: &ChainRecord, now: Timestamp, namespaces: &dyn NamespaceView) {
    for delta in &record.runs {
        let Some(info) = &delta.info else { continue };
        let before = entry.runs.get(&delta.run_id).map_or(0, |run| run.status);
        if ends(info, before, now) {
            let namespace = namespaces.by_id(&record.namespace_id).map(|info| info.name);
            let lasted = Duration(info.close_time_ns.saturating_sub(info.start_time_ns).max(0));
            telemetry::run_closed(info.status(), namespace, lasted);
        }
    }
}

/// `before` is 0 of a run that was loaded and has not changed since: then the time tells.
fn ends(info: &RunInfo, before: i32, now: Timestamp) -> bool {
    let is_open = |status: i32| status == Status::Running as i32 || status == Status::Paused as i32;
    let closed = info.status != 0 && !is_open(info.status);
    closed && (is_open(before) || (before == 0 && info.close_time_ns >= now.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_counts_once() {
        let info =
            |status: Status, close_time_ns| RunInfo { status: status as i32, close_time_ns, ..RunInfo::default() };
        let now = Timestamp(100);
        let running = Status::Running as i32;
        assert!(!ends(&info(Status::Running, 0), running, now));
        assert!(ends(&info(Status::Completed, 100), running, now));
        assert!(ends(&info(Status::Failed, 100), 0, now), "loaded, and closed by this");
        assert!(!ends(&info(Status::Failed, 99), 0, now), "loaded as closed");
        assert!(!ends(&info(Status::Failed, 100), Status::Failed as i32, now));
    }
}
