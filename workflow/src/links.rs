//! Links to events of a run, for who caused them.

use perdure_proto::temporal::api::{
    common::v1::{Link, link},
    enums::v1::EventType,
    workflowservice::v1::StartWorkflowExecutionRequest,
};

pub(crate) fn started_link(request: &StartWorkflowExecutionRequest, run_id: &str) -> Link {
    started_link_to(&request.namespace, &request.workflow_id, run_id)
}

pub(crate) fn started_link_to(namespace: &str, workflow_id: &str, run_id: &str) -> Link {
    let reference = link::workflow_event::Reference::EventRef(link::workflow_event::EventReference {
        event_id: 1,
        event_type: EventType::WorkflowExecutionStarted as i32,
    });
    event_link(namespace, workflow_id, run_id, reference)
}

pub(crate) fn attached_link(request: &StartWorkflowExecutionRequest, run_id: &str) -> Link {
    let event_type = EventType::WorkflowExecutionOptionsUpdated;
    request_link(&request.namespace, &request.workflow_id, run_id, &request.request_id, event_type)
}

/// A link to an event that may have no id yet.
pub(crate) fn request_link(
    namespace: &str,
    workflow_id: &str,
    run_id: &str,
    request_id: &str,
    event_type: EventType,
) -> Link {
    let reference = link::workflow_event::Reference::RequestIdRef(link::workflow_event::RequestIdReference {
        request_id: request_id.to_owned(),
        event_type: event_type as i32,
    });
    event_link(namespace, workflow_id, run_id, reference)
}

fn event_link(namespace: &str, workflow_id: &str, run_id: &str, reference: link::workflow_event::Reference) -> Link {
    let event = link::WorkflowEvent {
        namespace: namespace.to_owned(),
        workflow_id: workflow_id.to_owned(),
        run_id: run_id.to_owned(),
        reference: Some(reference),
    };
    Link { variant: Some(link::Variant::WorkflowEvent(event)) }
}
