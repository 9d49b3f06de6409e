//! Pending Nexus operations as DescribeWorkflowExecution shows them.

use perdure_proto::{
    perdure::state::v1::NexusCancelInfo,
    temporal::api::workflow::v1::{NexusOperationCancellationInfo, PendingNexusOperationInfo},
};
use perdure_types::Timestamp;

use crate::{nexus_operation::Operation, rebuild::time_of};

#[allow(deprecated, reason = "older clients read the operation id")]
pub(crate) fn pending_nexus_operation(operation: &Operation) -> PendingNexusOperationInfo {
    let (info, scheduled) = (&operation.info, operation.scheduled());
    PendingNexusOperationInfo {
        endpoint: scheduled.endpoint.clone(),
        service: scheduled.service.clone(),
        operation: scheduled.operation.clone(),
        operation_id: info.operation_token.clone(),
        operation_token: info.operation_token.clone(),
        schedule_to_close_timeout: scheduled.schedule_to_close_timeout,
        schedule_to_start_timeout: scheduled.schedule_to_start_timeout,
        start_to_close_timeout: scheduled.start_to_close_timeout,
        scheduled_time: time_of(&operation.event).to_proto(),
        state: operation.state() as i32,
        attempt: info.attempt,
        last_attempt_complete_time: Timestamp(info.last_attempt_complete_ns).to_proto(),
        last_attempt_failure: info.last_attempt_failure.as_deref().cloned(),
        next_attempt_schedule_time: Timestamp(info.next_attempt_ns).to_proto(),
        cancellation_info: info.cancel.as_deref().map(cancellation),
        scheduled_event_id: info.scheduled_event_id,
        ..PendingNexusOperationInfo::default()
    }
}

fn cancellation(cancel: &NexusCancelInfo) -> NexusOperationCancellationInfo {
    NexusOperationCancellationInfo {
        requested_time: Timestamp(cancel.requested_time_ns).to_proto(),
        state: cancel.state,
        attempt: cancel.attempt,
        last_attempt_complete_time: Timestamp(cancel.last_attempt_complete_ns).to_proto(),
        last_attempt_failure: cancel.last_attempt_failure.clone(),
        next_attempt_schedule_time: Timestamp(cancel.next_attempt_ns).to_proto(),
        ..NexusOperationCancellationInfo::default()
    }
}
