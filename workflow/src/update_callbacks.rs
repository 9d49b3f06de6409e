//! Who is told how an update ends: callbacks that come with its request, or with a later one for the same update. In the
//! history the former stand in the event that accepts the update, the latter in an event of their own.

use perdure_proto::{
    Error,
    temporal::api::{
        common::v1::{Callback, Link, link},
        enums::v1::{EventType, UpdateWorkflowExecutionLifecycleStage as Stage},
        history::v1::{
            HistoryEvent, WorkflowExecutionOptionsUpdatedEventAttributes, history_event::Attributes,
            workflow_execution_options_updated_event_attributes::WorkflowUpdateOptionsUpdate as Attachment,
        },
        update::v1::{Outcome, Request, outcome::Value},
    },
};
use perdure_types::Timestamp;

use crate::{
    api::{Env, UpdateAsker},
    links::request_link,
    run::Run,
};

impl Run {
    /// Why so many more callbacks cannot be attached to an update.
    pub(crate) fn check_update_callbacks(&self, update_id: &str, more: usize, env: &Env) -> Result<(), Error> {
        if more == 0 {
            return Ok(());
        }
        self.check_callbacks(more, env)?;
        let limit = env.limits.callbacks_per_update;
        let attached = self.callbacks.values().filter(|info| info.update_id == update_id).count();
        if (attached + more) as i64 > limit {
            return Err(Error::failed_precondition(format!(
                "cannot attach more than {limit} callbacks to update {update_id:?} ({attached} callbacks already attached)"
            )));
        }
        Ok(())
    }

    /// The update is known: what a further request for it wants attached. Of one that has ended the request hears itself.
    pub(crate) fn attach_to_update(&mut self, update_id: &str, request: &Request, env: &Env) -> Result<(), Error> {
        let (request_id, callbacks) = (&request.request_id, &request.completion_callbacks);
        let ended = self.updates.get(update_id).is_some_and(|update| update.outcome.is_some());
        if callbacks.is_empty() || ended || !self.is_open() || self.request_ids.contains_key(request_id) {
            return Ok(());
        }
        self.check_update_callbacks(update_id, callbacks.len(), env)?;
        let attachment = Attachment {
            update_id: update_id.to_owned(),
            attached_request_id: request_id.clone(),
            attached_completion_callbacks: callbacks.clone(),
        };
        if self.updates.contains_key(update_id) {
            let event_id = self.add_external_prepared(env.now, attachment_event(&attachment));
            self.take_attachment(&attachment, event_id, env.now);
        } else {
            self.admitted.edit().attach(attachment);
        }
        Ok(())
    }

    /// An event has accepted or admitted the update.
    pub(crate) fn take_update_request(
        &mut self,
        update_id: &str,
        request: &Request,
        event: (EventType, i64),
        time: Timestamp,
    ) {
        let (event_type, event_id) = event;
        if !self.request_ids.contains_key(&request.request_id) {
            self.remember_request(request.request_id.clone(), event_type, Some(event_id));
        }
        self.attach_update_callbacks(update_id, &request.request_id, &request.completion_callbacks, time);
    }

    /// What was attached while the update was still to be accepted.
    pub(crate) fn add_attachments(&mut self, attachments: Vec<Attachment>, env: &Env) {
        for attachment in attachments {
            if self.request_ids.contains_key(&attachment.attached_request_id) {
                continue;
            }
            let event_id = self.add_prepared(env.now, attachment_event(&attachment));
            self.take_attachment(&attachment, Some(event_id), env.now);
        }
    }

    pub(crate) fn take_attachments(&mut self, attachments: &[Attachment], event_id: i64, time: Timestamp) {
        attachments.iter().for_each(|attachment| self.take_attachment(attachment, Some(event_id), time));
    }

    fn take_attachment(&mut self, attachment: &Attachment, event_id: Option<i64>, time: Timestamp) {
        let Attachment { update_id, attached_request_id, attached_completion_callbacks } = attachment;
        self.remember_request(attached_request_id.clone(), EventType::WorkflowExecutionOptionsUpdated, event_id);
        self.attach_update_callbacks(update_id, attached_request_id, attached_completion_callbacks, time);
    }

    /// Of those in a run that was reset: what still concerns an update of this one.
    pub(crate) fn attachments_to_reapply(&self, attachments: &[Attachment]) -> Vec<Attachment> {
        let waits = |a: &&Attachment| {
            self.updates.get(&a.update_id).is_some_and(|update| update.outcome.is_none())
                && !self.request_ids.contains_key(&a.attached_request_id)
        };
        attachments.iter().filter(waits).cloned().collect()
    }

    /// For who asked for the update: what has become of it.
    pub(crate) fn update_link(&self, asker: &UpdateAsker, stage: Stage, outcome: Option<&Outcome>) -> Option<Link> {
        let failed = matches!(outcome.and_then(|outcome| outcome.value.as_ref()), Some(Value::Failure(_)));
        match stage {
            Stage::Unspecified | Stage::Admitted => None,
            // It may have been rejected: then no event speaks of it.
            Stage::Completed if failed => Some(Link {
                variant: Some(link::Variant::Workflow(link::Workflow {
                    namespace: asker.namespace.clone(),
                    workflow_id: self.key.workflow_id.to_string(),
                    run_id: self.run_id.clone(),
                    reason: "Update rejected".to_owned(),
                })),
            }),
            Stage::Accepted | Stage::Completed => Some(request_link(
                &asker.namespace,
                &self.key.workflow_id,
                &self.run_id,
                &asker.request_id,
                EventType::WorkflowExecutionUpdateAccepted,
            )),
        }
    }
}

fn attachment_event(attachment: &Attachment) -> HistoryEvent {
    let attributes = WorkflowExecutionOptionsUpdatedEventAttributes {
        workflow_update_options: vec![attachment.clone()],
        ..WorkflowExecutionOptionsUpdatedEventAttributes::default()
    };
    HistoryEvent {
        links: links_of(&attachment.attached_completion_callbacks),
        worker_may_ignore: true,
        attributes: Some(Attributes::WorkflowExecutionOptionsUpdatedEventAttributes(attributes)),
        ..HistoryEvent::default()
    }
}

/// To those who want to be told.
pub(crate) fn links_of(callbacks: &[Callback]) -> Vec<Link> {
    callbacks.iter().flat_map(|callback| callback.links.iter().cloned()).collect()
}
