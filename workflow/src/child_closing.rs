//! The event in a parent's history that tells how its child ended.

use perdure_proto::temporal::api::{
    common::v1::WorkflowExecution,
    history::v1::{
        ChildWorkflowExecutionCanceledEventAttributes, ChildWorkflowExecutionCompletedEventAttributes,
        ChildWorkflowExecutionFailedEventAttributes, ChildWorkflowExecutionTerminatedEventAttributes,
        ChildWorkflowExecutionTimedOutEventAttributes, StartChildWorkflowExecutionInitiatedEventAttributes,
        history_event::Attributes,
    },
};

/// `None` if `closed` is not an event that ends a chain of runs.
pub(crate) fn closing_event(
    initiated: &StartChildWorkflowExecutionInitiatedEventAttributes,
    initiated_event_id: i64,
    started_event_id: i64,
    execution: WorkflowExecution,
    closed: Option<Attributes>,
) -> Option<Attributes> {
    macro_rules! child_event {
        ($type:ident { $($field:ident : $value:expr),* }) => {
            Some(Attributes::$type($type {
                $($field: $value,)*
                namespace: initiated.namespace.clone(),
                namespace_id: initiated.namespace_id.clone(),
                workflow_execution: Some(execution),
                workflow_type: initiated.workflow_type.clone(),
                initiated_event_id,
                started_event_id,
            }))
        };
    }
    match closed? {
        Attributes::WorkflowExecutionCompletedEventAttributes(a) => {
            child_event!(ChildWorkflowExecutionCompletedEventAttributes { result: a.result })
        }
        Attributes::WorkflowExecutionFailedEventAttributes(a) => {
            child_event!(ChildWorkflowExecutionFailedEventAttributes { failure: a.failure, retry_state: a.retry_state })
        }
        Attributes::WorkflowExecutionCanceledEventAttributes(a) => {
            child_event!(ChildWorkflowExecutionCanceledEventAttributes { details: a.details })
        }
        Attributes::WorkflowExecutionTimedOutEventAttributes(a) => {
            child_event!(ChildWorkflowExecutionTimedOutEventAttributes { retry_state: a.retry_state })
        }
        Attributes::WorkflowExecutionTerminatedEventAttributes(_) => {
            child_event!(ChildWorkflowExecutionTerminatedEventAttributes {})
        }
        _ => None,
    }
}
