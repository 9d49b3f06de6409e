//! Rows: made of what a run tells of itself, and read by filters.

use perdure_proto::temporal::api::{enums::v1::WorkflowExecutionStatus, workflow::v1::WorkflowExecutionInfo};
use perdure_types::{ListedRun, Status, Timestamp, VisibilityRow};
use prost::Message;

use crate::{
    attributes::{Attribute, DIVISION},
    plan::{PARENT, ROOT},
    value::{Value, decode, keywords_of},
};

/// The row of a run in the list.
pub fn row_of(info: &WorkflowExecutionInfo, made_at: Timestamp) -> VisibilityRow {
    let fields = info.search_attributes.as_ref().map(|attributes| &attributes.indexed_fields);
    let mut keywords = fields.map(keywords_of).unwrap_or_default();
    let parent = info.parent_execution.as_ref().map(|parent| &parent.workflow_id);
    keywords.extend(parent.map(|parent| (PARENT.into(), parent.as_str().into())));
    // Most know their root by another way.
    let own = info.execution.as_ref().map(|execution| &execution.workflow_id);
    let root = info.root_execution.as_ref().map(|root| &root.workflow_id).filter(|root| !root.is_empty());
    let root = root.filter(|root| Some(*root) != own && Some(*root) != parent);
    keywords.extend(root.map(|root| (ROOT.into(), root.as_str().into())));
    let closed = info.close_time.is_some();
    VisibilityRow {
        workflow_type: info.r#type.as_ref().map_or("", |t| t.name.as_str()).into(),
        status: Status::try_from(info.status).unwrap_or_default(),
        start_time: Timestamp::from_proto(info.start_time.as_ref()),
        close_time: closed.then(|| Timestamp::from_proto(info.close_time.as_ref())),
        hidden: fields.is_some_and(|fields| fields.contains_key(DIVISION)),
        made_at,
        keywords,
        info: info.encode_to_vec().into(),
    }
}

/// A row as filters see it.
pub(crate) struct Row {
    pub info: WorkflowExecutionInfo,
}

impl Row {
    /// `None`: it does not decode. That is logged by whoever wrote it; a list shows the others.
    pub fn decode(run: &ListedRun) -> Option<Self> {
        Some(Self { info: WorkflowExecutionInfo::decode(run.row.info.clone()).ok()? })
    }

    pub fn value(&self, attribute: &Attribute) -> Value {
        if attribute.of_row {
            return self.own(&attribute.name);
        }
        let fields = self.info.search_attributes.as_ref().map(|attributes| &attributes.indexed_fields);
        let payload = fields.and_then(|fields| fields.get(&attribute.name));
        payload.and_then(|payload| decode(payload, attribute.kind)).unwrap_or(Value::Null)
    }

    fn own(&self, name: &str) -> Value {
        let info = &self.info;
        let text = |text: Option<&String>| match text {
            Some(text) if !text.is_empty() => Value::Text(text.clone()),
            _ => Value::Null,
        };
        let time = |time: Option<&prost_types::Timestamp>| match time {
            Some(_) => Value::micros(Timestamp::from_proto(time).0),
            None => Value::Null,
        };
        match name {
            "WorkflowId" => text(info.execution.as_ref().map(|e| &e.workflow_id)),
            "RunId" => text(info.execution.as_ref().map(|e| &e.run_id)),
            "WorkflowType" => text(info.r#type.as_ref().map(|t| &t.name)),
            "TaskQueue" => text(Some(&info.task_queue)),
            "ParentWorkflowId" => text(info.parent_execution.as_ref().map(|e| &e.workflow_id)),
            "ParentRunId" => text(info.parent_execution.as_ref().map(|e| &e.run_id)),
            "RootWorkflowId" => text(info.root_execution.as_ref().map(|e| &e.workflow_id)),
            "RootRunId" => text(info.root_execution.as_ref().map(|e| &e.run_id)),
            "StartTime" => time(info.start_time.as_ref()),
            "ExecutionTime" => time(info.execution_time.as_ref().or(info.start_time.as_ref())),
            "CloseTime" => time(info.close_time.as_ref()),
            "ExecutionStatus" => Value::Integer(info.status.into()),
            "HistoryLength" => Value::Integer(info.history_length),
            "HistorySizeBytes" => Value::Integer(info.history_size_bytes),
            "StateTransitionCount" => Value::Integer(info.state_transition_count),
            "TemporalExternalPayloadCount" => Value::Integer(info.external_payload_count),
            "TemporalExternalPayloadSizeBytes" => Value::Integer(info.external_payload_size_bytes),
            "ExecutionDuration" => match &info.execution_duration {
                Some(d) => Value::Integer(d.seconds.saturating_mul(1_000_000_000).saturating_add(d.nanos.into())),
                None => Value::Null,
            },
            _ => Value::Null,
        }
    }
}

/// "Running" and so on, as Temporal writes it.
pub(crate) fn status_name(status: WorkflowExecutionStatus) -> &'static str {
    match status {
        WorkflowExecutionStatus::Unspecified => "Unspecified",
        WorkflowExecutionStatus::Running => "Running",
        WorkflowExecutionStatus::Completed => "Completed",
        WorkflowExecutionStatus::Failed => "Failed",
        WorkflowExecutionStatus::Canceled => "Canceled",
        WorkflowExecutionStatus::Terminated => "Terminated",
        WorkflowExecutionStatus::ContinuedAsNew => "ContinuedAsNew",
        WorkflowExecutionStatus::TimedOut => "TimedOut",
        WorkflowExecutionStatus::Paused => "Paused",
    }
}

/// By its short or its long name.
pub(crate) fn status_by_name(name: &str) -> Option<WorkflowExecutionStatus> {
    let all = (0..i32::from(Status::MAX)).map_while(|number| WorkflowExecutionStatus::try_from(number).ok());
    all.into_iter().find(|status| status_name(*status) == name || status.as_str_name() == name)
}
