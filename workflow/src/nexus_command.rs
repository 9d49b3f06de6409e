//! The commands about Nexus operations: schedule one, and request that one is canceled.

use std::collections::HashMap;

use perdure_proto::{
    perdure::state::v1::{NexusCancelInfo, NexusOperationInfo},
    temporal::api::{
        command::v1::{RequestCancelNexusOperationCommandAttributes, ScheduleNexusOperationCommandAttributes},
        enums::v1::WorkflowTaskFailedCause as Cause,
        history::v1::{
            NexusOperationCancelRequestedEventAttributes, NexusOperationScheduledEventAttributes,
            history_event::Attributes,
        },
    },
};
use perdure_types::{Duration, nexus::RESERVED_HEADERS};
use prost::Message;

use crate::{
    activity_retry::check_duration,
    api::Env,
    command::{BadCommand, CommandContext, CommandResult},
    limits::check_payload_bytes,
    nexus::ended_operation,
    run::{Pending, Run},
};

const CAUSE: Cause = Cause::BadScheduleNexusOperationAttributes;
const COMMAND: &str = "ScheduleNexusOperationCommandAttributes";

impl Run {
    pub(crate) fn schedule_nexus_operation_command(
        &mut self,
        env: &mut Env,
        ctx: &CommandContext,
        mut command: ScheduleNexusOperationCommandAttributes,
    ) -> CommandResult {
        let Some(endpoint_id) = env.namespaces.nexus_endpoint(&command.endpoint) else {
            return Err(BadCommand::new(CAUSE, format!("endpoint {:?} not found", command.endpoint)));
        };
        check(env, &mut command)?;
        let nexus_header = checked_header(env, &command.nexus_header)?;
        let limit = env.limits.pending_nexus_operations;
        if self.nexus_operations.len() as i64 >= limit {
            let message =
                format!("workflow has reached the pending nexus operation limit of {limit} for this namespace");
            return Err(BadCommand::new(Cause::PendingNexusOperationsLimitExceeded, message));
        }
        self.cap_timeouts(env, &mut command);
        let scheduled = NexusOperationScheduledEventAttributes {
            endpoint: command.endpoint,
            endpoint_id,
            service: command.service,
            operation: command.operation,
            input: command.input,
            schedule_to_close_timeout: command.schedule_to_close_timeout,
            schedule_to_start_timeout: command.schedule_to_start_timeout,
            start_to_close_timeout: command.start_to_close_timeout,
            nexus_header,
            request_id: env.ids.uuid(),
            workflow_task_completed_event_id: ctx.completed_event_id,
        };
        let id = self.add_prepared(env.now, ctx.event(Attributes::NexusOperationScheduledEventAttributes(scheduled)));
        let Some(event) = self.last_new_event() else {
            return Ok(());
        };
        let namespace = self.target(env, "").namespace;
        let info = NexusOperationInfo { scheduled_event_id: id, namespace, ..NexusOperationInfo::default() };
        let operation = Pending { info, event };
        self.effects.push(self.start_nexus_call(&operation));
        self.nexus_operations.insert(id, operation);
        Ok(())
    }

    /// No operation lives longer than the run, nor is it allowed more than for the whole for a part.
    fn cap_timeouts(&self, env: &Env, command: &mut ScheduleNexusOperationCommandAttributes) {
        let run = Duration::from_proto(self.start().workflow_run_timeout.as_ref()).or_none();
        let most = env.limits.nexus_schedule_to_close_max.or_none();
        for cap in [run, most].into_iter().flatten() {
            let whole = Duration::from_proto(command.schedule_to_close_timeout.as_ref()).or_none();
            if whole.is_none_or(|whole| whole > cap) {
                command.schedule_to_close_timeout = Some(cap.to_proto());
            }
        }
        let Some(whole) = Duration::from_proto(command.schedule_to_close_timeout.as_ref()).or_none() else {
            return;
        };
        for part in [&mut command.schedule_to_start_timeout, &mut command.start_to_close_timeout] {
            if Duration::from_proto(part.as_ref()) > whole {
                *part = Some(whole.to_proto());
            }
        }
    }

    pub(crate) fn cancel_nexus_operation_command(
        &mut self,
        env: &mut Env,
        ctx: &CommandContext,
        command: &RequestCancelNexusOperationCommandAttributes,
    ) -> CommandResult {
        const CAUSE: Cause = Cause::BadRequestCancelNexusOperationAttributes;
        let scheduled_event_id = command.scheduled_event_id;
        match self.nexus_operations.get(&scheduled_event_id) {
            Some(operation) if operation.info.cancel.is_some() => {
                let message = format!(
                    "cancelation was already requested for an operation with scheduled event ID {scheduled_event_id}"
                );
                return Err(BadCommand::new(CAUSE, message));
            }
            Some(_) => {}
            // Its end waits for the end of this workflow task: the worker could not know.
            None if self.end_is_buffered(scheduled_event_id) => {}
            None => {
                let message = format!(
                    "requested cancelation for a non-existing or already completed operation with scheduled event ID of \
                     {scheduled_event_id}"
                );
                return Err(BadCommand::new(CAUSE, message));
            }
        }
        let attributes = NexusOperationCancelRequestedEventAttributes {
            scheduled_event_id,
            workflow_task_completed_event_id: ctx.completed_event_id,
        };
        let attributes = Attributes::NexusOperationCancelRequestedEventAttributes(attributes);
        let requested_event_id = self.add_prepared(env.now, ctx.event(attributes));
        if let Some(operation) = self.nexus_operations.get_mut(&scheduled_event_id) {
            let cancel = NexusCancelInfo { requested_event_id, ..NexusCancelInfo::default() };
            operation.info.cancel = Some(Box::new(cancel));
            self.send_nexus_cancel(scheduled_event_id, env.now);
        }
        Ok(())
    }

    fn end_is_buffered(&self, scheduled_event_id: i64) -> bool {
        let mut ended = self.buffered.iter().filter_map(|event| event.attributes.as_ref().and_then(ended_operation));
        ended.any(|(id, _)| id == scheduled_event_id)
    }
}

fn check(env: &Env, command: &mut ScheduleNexusOperationCommandAttributes) -> CommandResult {
    for (field, value, limit) in [
        ("Service", &command.service, env.limits.nexus_service_name_length),
        ("Operation", &command.operation, env.limits.nexus_operation_name_length),
    ] {
        if value.len() as i64 > limit {
            return Err(BadCommand::new(CAUSE, format!("{COMMAND}.{field} exceeds length limit of {limit}")));
        }
    }
    for (field, timeout) in [
        ("ScheduleToCloseTimeout", &mut command.schedule_to_close_timeout),
        ("ScheduleToStartTimeout", &mut command.schedule_to_start_timeout),
        ("StartToCloseTimeout", &mut command.start_to_close_timeout),
    ] {
        check_duration(timeout).map_err(|e| BadCommand::new(CAUSE, format!("{COMMAND}.{field} is invalid: {e}")))?;
    }
    let size = command.input.as_ref().map_or(0, Message::encoded_len);
    check_payload_bytes(env, size, CAUSE, &format!("{COMMAND}.Input exceeds size limit"))
}

/// Names of headers are the same in any case: they are kept in small letters.
fn checked_header(env: &Env, header: &HashMap<String, String>) -> Result<HashMap<String, String>, BadCommand> {
    let mut size = 0;
    let mut checked = HashMap::with_capacity(header.len());
    for (name, value) in header {
        let lower = name.to_lowercase();
        if RESERVED_HEADERS.contains(&lower.as_str()) {
            let message = format!("{COMMAND}.NexusHeader contains a disallowed header key: {name:?}");
            return Err(BadCommand::new(CAUSE, message));
        }
        size += lower.len() + value.len();
        checked.insert(lower, value.clone());
    }
    if size as i64 > env.limits.nexus_header_size_bytes {
        return Err(BadCommand::new(CAUSE, format!("{COMMAND}.NexusHeader exceeds size limit")));
    }
    Ok(checked)
}
