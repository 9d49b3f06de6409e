//! Commands that only write: markers, memo, search attributes.

use std::collections::HashMap;

use perdure_proto::temporal::api::{
    command::v1::{
        ModifyWorkflowPropertiesCommandAttributes, RecordMarkerCommandAttributes,
        UpsertWorkflowSearchAttributesCommandAttributes,
    },
    common::v1::{Payload, SearchAttributes},
    enums::v1::WorkflowTaskFailedCause as Cause,
    history::v1::{
        MarkerRecordedEventAttributes, UpsertWorkflowSearchAttributesEventAttributes,
        WorkflowPropertiesModifiedEventAttributes, history_event::Attributes,
    },
};
use prost::Message;

use crate::{
    api::Env,
    begin::is_null,
    command::{BadCommand, CommandContext, CommandResult},
    run::Run,
};

impl Run {
    pub(crate) fn record_marker_command(
        &mut self,
        env: &mut Env,
        ctx: &CommandContext,
        marker: RecordMarkerCommandAttributes,
    ) -> CommandResult {
        const CAUSE: Cause = Cause::BadRecordMarkerAttributes;
        let name = &marker.marker_name;
        if name.is_empty() {
            return Err(BadCommand::new(CAUSE, "MarkerName is not set on RecordMarkerCommand."));
        }
        let (length, limit) = (name.len(), env.limits.max_id_length);
        if length as i64 > limit {
            let message = format!(
                "MarkerName on RecordMarkerCommand exceeds length limit. MarkerName={name} Length={length} Limit={limit}"
            );
            return Err(BadCommand::new(CAUSE, message));
        }
        let size: usize = marker.details.iter().map(|(name, details)| name.len() + details.encoded_len()).sum();
        if size as i64 > env.limits.blob_size_error_bytes {
            return Err(BadCommand::terminating(CAUSE, "RecordMarkerCommandAttributes.Details exceeds size limit."));
        }
        let event = MarkerRecordedEventAttributes {
            marker_name: marker.marker_name,
            details: marker.details,
            workflow_task_completed_event_id: ctx.completed_event_id,
            header: marker.header,
            failure: marker.failure,
        };
        self.add_prepared(env.now, ctx.event(Attributes::MarkerRecordedEventAttributes(event)));
        Ok(())
    }

    pub(crate) fn upsert_search_attributes_command(
        &mut self,
        env: &mut Env,
        ctx: &CommandContext,
        command: UpsertWorkflowSearchAttributesCommandAttributes,
    ) -> CommandResult {
        const CAUSE: Cause = Cause::BadSearchAttributes;
        let Some(attributes) = command.search_attributes else {
            let message = "SearchAttributes is not set on UpsertWorkflowSearchAttributesCommand.";
            return Err(BadCommand::new(CAUSE, message));
        };
        if attributes.indexed_fields.is_empty() {
            let message = "IndexedFields is not set on UpsertWorkflowSearchAttributesCommand.";
            return Err(BadCommand::new(CAUSE, message));
        }
        if payloads_bytes(&attributes.indexed_fields) > env.limits.blob_size_error_bytes {
            let message = "UpsertWorkflowSearchAttributesCommandAttributes exceeds size limit.";
            return Err(BadCommand::terminating(CAUSE, message));
        }
        check_search_attributes(env, &self.key.namespace_id, Some(&attributes))?;
        merge(&mut self.search_attributes.edit().indexed_fields, &attributes.indexed_fields);
        let event = UpsertWorkflowSearchAttributesEventAttributes {
            workflow_task_completed_event_id: ctx.completed_event_id,
            search_attributes: Some(attributes),
        };
        self.add_prepared(env.now, ctx.event(Attributes::UpsertWorkflowSearchAttributesEventAttributes(event)));
        Ok(())
    }

    pub(crate) fn modify_properties_command(
        &mut self,
        env: &mut Env,
        ctx: &CommandContext,
        command: ModifyWorkflowPropertiesCommandAttributes,
    ) -> CommandResult {
        const CAUSE: Cause = Cause::BadModifyWorkflowPropertiesAttributes;
        let Some(memo) = command.upserted_memo else {
            return Err(BadCommand::new(CAUSE, "UpsertedMemo is not set on ModifyWorkflowPropertiesCommand."));
        };
        if memo.fields.is_empty() {
            return Err(BadCommand::new(CAUSE, "UpsertedMemo.Fields is not set on ModifyWorkflowPropertiesCommand."));
        }
        if payloads_bytes(&memo.fields) > env.limits.blob_size_error_bytes {
            let message = "ModifyWorkflowPropertiesCommandAttributes exceeds size limit.";
            return Err(BadCommand::terminating(CAUSE, message));
        }
        merge(&mut self.memo.edit().fields, &memo.fields);
        if self.memo.encoded_len() as i64 > env.limits.memo_size_error_bytes {
            let message = "ModifyWorkflowPropertiesCommandAttributes. Memo exceeds size limit.";
            return Err(BadCommand::terminating(CAUSE, message));
        }
        let event = WorkflowPropertiesModifiedEventAttributes {
            workflow_task_completed_event_id: ctx.completed_event_id,
            upserted_memo: Some(memo),
        };
        self.add_prepared(env.now, ctx.event(Attributes::WorkflowPropertiesModifiedEventAttributes(event)));
        Ok(())
    }
}

/// Names, values and sizes of search attributes that a command sets in a namespace.
pub(crate) fn check_search_attributes(
    env: &Env,
    namespace_id: &str,
    attributes: Option<&SearchAttributes>,
) -> CommandResult {
    let Some(attributes) = attributes else { return Ok(()) };
    let checked = env.namespaces.check_search_attributes(namespace_id, attributes);
    checked.map_err(|refusal| BadCommand::new(Cause::BadSearchAttributes, refusal))
}

fn payloads_bytes(payloads: &HashMap<String, Payload>) -> i64 {
    payloads.iter().map(|(name, payload)| name.len() + payload.data.len()).sum::<usize>() as i64
}

/// A null takes the entry away, anything else replaces it.
pub(crate) fn merge(into: &mut HashMap<String, Payload>, changes: &HashMap<String, Payload>) {
    for (name, payload) in changes {
        if is_null(payload) {
            into.remove(name);
        } else {
            into.insert(name.clone(), payload.clone());
        }
    }
}
