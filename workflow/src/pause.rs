//! PauseWorkflowExecution and its reverse. A paused run takes in everything, and its deadlines go on; but no workflow task
//! and no activity attempt begins. What workers have in hand they may finish.

use perdure_proto::{
    Error,
    perdure::state::v1::PauseInfo,
    temporal::api::{
        common::v1::Payload,
        enums::v1::{WorkflowExecutionStatus, WorkflowTaskFailedCause},
        history::v1::{
            HistoryEvent, WorkflowExecutionPausedEventAttributes, WorkflowExecutionUnpausedEventAttributes,
            history_event::Attributes,
        },
        workflowservice::v1::{PauseWorkflowExecutionRequest, UnpauseWorkflowExecutionRequest},
    },
};

use crate::{
    api::{Effect, Env},
    chain::{Answered, Chain, empty_reply},
    run::Run,
    terminate::SERVER_IDENTITY,
};

/// The system search attribute that tells what is paused.
const PAUSE_INFO: &str = "TemporalPauseInfo";

impl Chain {
    pub(crate) fn pause(&mut self, request: PauseWorkflowExecutionRequest, env: &mut Env) -> Answered {
        self.check_namespace(&request.namespace, env)?;
        let run = self.open_run(&request.run_id)?;
        if run.is_paused() {
            let before = run.info.pause.as_ref().map_or("", |pause| pause.request_id.as_str());
            if !before.is_empty() && before == request.request_id {
                return empty_reply();
            }
            return Err(Error::failed_precondition("workflow is already paused."));
        }
        run.pause(request, env);
        empty_reply()
    }

    pub(crate) fn unpause(&mut self, request: UnpauseWorkflowExecutionRequest, env: &mut Env) -> Answered {
        self.check_namespace(&request.namespace, env)?;
        let run = self.open_run(&request.run_id)?;
        if !run.is_paused() {
            return Err(Error::failed_precondition("workflow is not paused."));
        }
        run.unpause(request, env);
        empty_reply()
    }
}

impl Run {
    fn pause(&mut self, request: PauseWorkflowExecutionRequest, env: &Env) {
        let attributes = WorkflowExecutionPausedEventAttributes {
            identity: request.identity.clone(),
            reason: request.reason.clone(),
            request_id: request.request_id.clone(),
        };
        self.add_ignorable(env, Attributes::WorkflowExecutionPausedEventAttributes(attributes));
        let info = self.info.edit();
        info.set_status(WorkflowExecutionStatus::Paused);
        info.pause = Some(Box::new(PauseInfo {
            time_ns: env.now.as_nanos(),
            identity: request.identity,
            reason: request.reason,
            request_id: request.request_id,
            ..PauseInfo::default()
        }));
        self.make_activity_offers_stale();
        if self.workflow_task().is_some() && !self.workflow_task_is_started() {
            let cause = WorkflowTaskFailedCause::WorkflowPauseRequestedBeforeTaskStarted;
            self.fail_workflow_task(env, cause, None, SERVER_IDENTITY, "");
            self.info.edit().workflow_task_attempt = 1;
        }
        // Made by this transition, they would start nothing.
        self.effects.retain(|effect| !matches!(effect, Effect::Offer(_)));
        self.show_what_is_paused();
    }

    fn unpause(&mut self, request: UnpauseWorkflowExecutionRequest, env: &Env) {
        let attributes = WorkflowExecutionUnpausedEventAttributes {
            identity: request.identity,
            reason: request.reason,
            request_id: request.request_id,
        };
        self.add_ignorable(env, Attributes::WorkflowExecutionUnpausedEventAttributes(attributes));
        let info = self.info.edit();
        info.set_status(WorkflowExecutionStatus::Running);
        info.pause = None;
        self.make_activity_offers_stale();
        let activities: Vec<i64> = self.activities.keys().copied().collect();
        for id in activities {
            self.offer_activity_when_due(id, env.now);
        }
        self.ensure_workflow_task(env);
        self.show_what_is_paused();
    }

    /// Workflow code sees nothing of a pause, and not every worker knows the event.
    fn add_ignorable(&mut self, env: &Env, attributes: Attributes) {
        let event = HistoryEvent { worker_may_ignore: true, attributes: Some(attributes), ..HistoryEvent::default() };
        self.add_external_prepared(env.now, event);
    }

    fn make_activity_offers_stale(&mut self) {
        let waiting: Vec<i64> =
            self.activities.iter().filter(|(_, activity)| !activity.is_started()).map(|(id, _)| *id).collect();
        for id in waiting {
            if let Some(activity) = self.activities.get_mut(&id) {
                activity.info.stamp += 1;
            }
        }
    }

    /// Keeps the search attribute true to what is paused in this run.
    pub(crate) fn show_what_is_paused(&mut self) {
        let mut entries = Vec::new();
        if let Some(pause) = &self.info.pause {
            entries.push(format!("Workflow:{}", self.key.workflow_id));
            if !pause.reason.is_empty() {
                entries.push(format!("Reason:{}", pause.reason));
            }
        }
        let paused = self.activities.values().filter(|activity| activity.info.paused);
        let mut types: Vec<&str> = paused
            .filter_map(|activity| activity.scheduled().activity_type.as_ref())
            .map(|t| t.name.as_str())
            .collect();
        types.sort_unstable();
        types.dedup();
        entries.extend(types.into_iter().map(|name| format!("property:activityType={name}")));
        if entries.is_empty() {
            if self.search_attributes.indexed_fields.contains_key(PAUSE_INFO) {
                self.search_attributes.edit().indexed_fields.remove(PAUSE_INFO);
            }
            return;
        }
        let payload = keyword_list(&entries);
        if self.search_attributes.indexed_fields.get(PAUSE_INFO) != Some(&payload) {
            self.search_attributes.edit().indexed_fields.insert(PAUSE_INFO.to_owned(), payload);
        }
    }
}

/// As a search attribute of type KeywordList is encoded.
pub(crate) fn keyword_list(entries: &[String]) -> Payload {
    let texts: Vec<String> = entries.iter().map(|entry| crate::start::json_text(entry)).collect();
    let metadata = [
        ("encoding".to_owned(), bytes::Bytes::from_static(b"json/plain")),
        ("type".to_owned(), bytes::Bytes::from_static(b"KeywordList")),
    ];
    Payload { metadata: metadata.into(), data: format!("[{}]", texts.join(",")).into(), ..Payload::default() }
}
