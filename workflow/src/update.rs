//! Updates: admitted (in memory) → accepted (an event) → completed (an event), or rejected without any trace. They
//! reach the worker as messages on workflow tasks and come back as messages on completions.

use std::collections::BTreeMap;

use perdure_proto::{
    Error,
    perdure::{
        node::v1::workflow_reply,
        state::v1::{UpdateInfo, WorkflowTaskInfo},
    },
    temporal::api::{
        enums::v1::{ResourceExhaustedCause, ResourceExhaustedScope, UpdateWorkflowExecutionLifecycleStage as Stage},
        failure::v1::{ApplicationFailureInfo, Failure, failure::FailureInfo},
        history::v1::workflow_execution_options_updated_event_attributes::WorkflowUpdateOptionsUpdate as Attachment,
        protocol::v1::{Message, message::SequencingId},
        update::v1::{Outcome as UpdateOutcome, Request, UpdateRef, outcome::Value},
        workflowservice::v1::{
            ExecuteMultiOperationResponse, PollWorkflowExecutionUpdateRequest, PollWorkflowExecutionUpdateResponse,
            UpdateWorkflowExecutionRequest, UpdateWorkflowExecutionResponse, execute_multi_operation_response,
        },
    },
};
use prost::Message as _;

use crate::{
    api::{Answer, Env, Outcome, Release, Reply, UpdateAsker, UpdateWatch, Watch},
    chain::{Answered, Chain},
    run::Run,
};

/// Updates that no event speaks of yet.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct AdmittedUpdates {
    updates: BTreeMap<String, Admitted>,
    last_order: u64,
}

#[derive(Debug, Clone, PartialEq)]
struct Admitted {
    request: Request,
    /// What further requests for it want attached.
    attachments: Vec<Attachment>,
    /// Order of admission: workers get updates in it.
    order: u64,
    state: AdmittedState,
}

#[derive(Debug, Clone, PartialEq)]
enum AdmittedState {
    Waiting,
    /// Given to the started workflow task.
    Sent,
    /// By the validator; kept until the input after, for its callers to fetch.
    Rejected(Box<Failure>),
}

impl AdmittedUpdates {
    fn in_flight(&self) -> usize {
        self.updates.values().filter(|u| !matches!(u.state, AdmittedState::Rejected(_))).count()
    }

    /// Rejected updates have been told to their callers: the id may be used again.
    pub fn forget_rejected(&mut self) {
        self.updates.retain(|_, u| !matches!(u.state, AdmittedState::Rejected(_)));
    }

    pub fn take(&mut self, update_id: &str) -> Option<(Request, Vec<Attachment>)> {
        self.updates.remove(update_id).map(|u| (u.request, u.attachments))
    }

    /// A request attaches once, however often it is made.
    pub fn attach(&mut self, attachment: Attachment) {
        let Some(update) = self.updates.get_mut(&attachment.update_id) else { return };
        let request_id = &attachment.attached_request_id;
        let known = update.attachments.iter().any(|a| a.attached_request_id == *request_id);
        if !known && update.request.request_id != *request_id {
            update.attachments.push(attachment);
        }
    }

    pub fn reject(&mut self, update_id: &str, failure: Failure) {
        if let Some(update) = self.updates.get_mut(update_id) {
            update.state = AdmittedState::Rejected(Box::new(failure));
        }
    }

    fn change(&mut self, from: &AdmittedState, to: &AdmittedState) {
        for update in self.updates.values_mut().filter(|u| u.state == *from) {
            update.state = to.clone();
        }
    }
}

impl Chain {
    pub(crate) fn update(&mut self, request: UpdateWorkflowExecutionRequest, env: &mut Env) -> Answered {
        let run_id = request.workflow_execution.as_ref().map(|e| e.run_id.clone()).unwrap_or_default();
        let update = request.request.ok_or_else(|| Error::invalid_argument("Request is not set on request."))?;
        let run = self.run(&run_id)?;
        let first = &run.start().first_execution_run_id;
        if !request.first_execution_run_id.is_empty() && *first != request.first_execution_run_id {
            return Err(Error::not_found(format!(
                "workflow execution is part of a chain that began with run {first}, not {}",
                request.first_execution_run_id
            )));
        }
        let asker = UpdateAsker { namespace: request.namespace, request_id: update.request_id.clone() };
        let update_id = run.admit_update(update, env)?;
        let stage = request.wait_policy.map_or(Stage::Unspecified as i32, |p| p.lifecycle_stage);
        let watch = Watch::Update { run_id: run.run_id.clone(), update_id, stage, kind: UpdateWatch::Update(asker) };
        Ok((Answer::Watch(watch), Release::Durable))
    }

    pub(crate) fn poll_update(&mut self, request: PollWorkflowExecutionUpdateRequest, _env: &mut Env) -> Answered {
        let update = request.update_ref.ok_or_else(|| Error::invalid_argument("UpdateRef is not set on request."))?;
        let run_id = update.workflow_execution.map(|e| e.run_id).unwrap_or_default();
        let run = self.run(&run_id)?;
        if !run.knows_update(&update.update_id) {
            return Err(update_not_found(&update.update_id));
        }
        let stage = request.wait_policy.map_or(Stage::Unspecified as i32, |p| p.lifecycle_stage);
        let run_id = run.run_id.clone();
        let watch = Watch::Update { run_id, update_id: update.update_id, stage, kind: UpdateWatch::Poll };
        Ok((Answer::Watch(watch), Release::Prior))
    }

    pub(crate) fn check_update(
        &mut self,
        run_id: &str,
        update_id: &str,
        wanted: i32,
        kind: &UpdateWatch,
    ) -> Option<Outcome> {
        let run = self.runs.get(run_id)?;
        let (stage, outcome) = match run.update_progress(update_id) {
            Ok(progress) => progress,
            Err(error) => return Some(Err(error)),
        };
        if (stage as i32) < wanted {
            return None;
        }
        let update_ref = Some(UpdateRef { workflow_execution: Some(run.execution()), update_id: update_id.to_owned() });
        let response = UpdateWorkflowExecutionResponse {
            update_ref: update_ref.clone(),
            outcome: outcome.clone(),
            stage: stage as i32,
            link: match kind {
                UpdateWatch::Update(asker) | UpdateWatch::MultiOperation(_, asker) => {
                    run.update_link(asker, stage, outcome.as_ref())
                }
                UpdateWatch::Poll => None,
            },
        };
        let reply = match kind {
            UpdateWatch::Update(_) => workflow_reply::Reply::Update(response),
            UpdateWatch::Poll => workflow_reply::Reply::PollUpdate(PollWorkflowExecutionUpdateResponse {
                outcome,
                stage: stage as i32,
                update_ref,
            }),
            UpdateWatch::MultiOperation(start, _) => {
                use execute_multi_operation_response::{Response, response::Response as R};
                let responses = [R::StartWorkflow((**start).clone()), R::UpdateWorkflow(response)];
                workflow_reply::Reply::MultiOperation(ExecuteMultiOperationResponse {
                    responses: responses.into_iter().map(|r| Response { response: Some(r) }).collect(),
                })
            }
        };
        Some(Ok(Reply::new(reply)))
    }
}

impl Run {
    pub(crate) fn knows_update(&self, update_id: &str) -> bool {
        self.updates.contains_key(update_id) || self.admitted.updates.contains_key(update_id)
    }

    /// Takes in an update, unless its id is known already. Makes sure that a workflow task will deliver it.
    pub(crate) fn admit_update(&mut self, request: Request, env: &Env) -> Result<String, Error> {
        let update_id = request.meta.as_ref().map(|m| m.update_id.clone()).unwrap_or_default();
        self.admitted.edit().forget_rejected();
        if self.knows_update(&update_id) {
            self.attach_to_update(&update_id, &request, env)?;
            return Ok(update_id);
        }
        if !self.is_open() {
            return Err(Error::not_found("workflow execution already completed"));
        }
        if self.is_paused() {
            return Err(Error::failed_precondition("Workflow is paused. Cannot update the workflow."));
        }
        self.fail_if_not_replayable("update")?;
        self.check_not_closing()?;
        self.check_update_limits(env)?;
        self.check_update_callbacks(&update_id, request.completion_callbacks.len(), env)?;
        self.admitted.edit().last_order += 1;
        let (order, state) = (self.admitted.last_order, AdmittedState::Waiting);
        let admitted = Admitted { request, attachments: Vec::new(), order, state };
        self.admitted.edit().updates.insert(update_id.clone(), admitted);
        // Even if the first workflow task is still to come: an update does not wait for a start delay.
        if self.workflow_task().is_none() {
            self.schedule_speculative_workflow_task(env);
        }
        Ok(update_id)
    }

    fn check_update_limits(&self, env: &Env) -> Result<(), Error> {
        let accepted = self.updates.values().filter(|u| u.completed_event_id == 0).count();
        let in_flight = (accepted + self.admitted.in_flight()) as i64;
        if in_flight >= env.limits.updates_in_flight {
            return Err(Error::resource_exhausted(
                format!(
                    "limit on number of concurrent in-flight updates has been reached ({})",
                    env.limits.updates_in_flight
                ),
                ResourceExhaustedCause::ConcurrentLimit,
                ResourceExhaustedScope::Namespace,
            ));
        }
        if (self.updates.len() + self.admitted.in_flight()) as i64 >= env.limits.updates_total {
            return Err(Error::failed_precondition(format!(
                "The limit on the total number of distinct updates in this workflow has been reached ({}). Make sure any duplicate updates share an Update ID so the server can deduplicate them, and consider rejecting updates that you aren't going to process",
                env.limits.updates_total
            )));
        }
        Ok(())
    }

    /// How far an update has come, and its outcome if it has one.
    fn update_progress(&self, update_id: &str) -> Result<(Stage, Option<UpdateOutcome>), Error> {
        if let Some(update) = self.updates.get(update_id) {
            return Ok(match &update.outcome {
                Some(outcome) => (Stage::Completed, Some(outcome.clone())),
                None if self.is_open() && update.accepted_event_id == 0 => (Stage::Admitted, None),
                None if self.is_open() => (Stage::Accepted, None),
                None => (Stage::Completed, Some(failed(closed_before_completed()))),
            });
        }
        let Some(admitted) = self.admitted.updates.get(update_id) else {
            return Err(update_not_found(update_id));
        };
        if let AdmittedState::Rejected(failure) = &admitted.state {
            return Ok((Stage::Completed, Some(failed((**failure).clone()))));
        }
        if self.is_open() {
            return Ok((Stage::Admitted, None));
        }
        if self.info.new_execution_run_id.is_empty() {
            Err(Error::not_found("workflow update was aborted by closing workflow"))
        } else {
            // The next run may take it: SDKs try again.
            Err(Error::unavailable("workflow operation can not be applied because workflow is closing"))
        }
    }

    /// Messages to deliver with the started workflow task.
    pub(crate) fn update_messages(&mut self, _env: &Env, task: &WorkflowTaskInfo) -> Vec<Message> {
        self.admitted.edit().change(&AdmittedState::Waiting, &AdmittedState::Sent);
        let mut sent: Vec<_> = self.admitted.updates.iter().filter(|(_, u)| u.state == AdmittedState::Sent).collect();
        sent.sort_by_key(|(_, update)| update.order);
        sent.into_iter()
            .map(|(id, update)| Message {
                id: format!("{id}/request"),
                protocol_instance_id: id.clone(),
                // The worker applies the message when it has seen the event before the task's Started event.
                sequencing_id: Some(SequencingId::EventId(task.started_event_id - 1)),
                body: Some(prost_types::Any {
                    type_url: "type.googleapis.com/temporal.api.update.v1.Request".to_owned(),
                    value: update.request.encode_to_vec(),
                }),
            })
            .collect()
    }

    /// Does a workflow task have to be scheduled for updates that wait?
    pub(crate) fn has_undelivered_updates(&self) -> bool {
        self.admitted.updates.values().any(|u| u.state == AdmittedState::Waiting)
    }

    /// The started workflow task ended without answering (failed, timed out): its updates and queries go with the next.
    pub(crate) fn updates_not_answered(&mut self) {
        self.admitted.edit().change(&AdmittedState::Sent, &AdmittedState::Waiting);
        self.queries.not_answered();
    }

    /// A completed workflow task did not answer updates that it was given: its worker knows no updates.
    pub(crate) fn reject_unprocessed_updates(&mut self, env: &Env) {
        let failure = Failure {
            message: "Workflow Update is rejected because it wasn't processed by worker. Probably, Workflow Update \
                      is not supported by the worker."
                .to_owned(),
            source: "Server".to_owned(),
            failure_info: Some(FailureInfo::ApplicationFailureInfo(ApplicationFailureInfo {
                r#type: "UnprocessedUpdate".to_owned(),
                non_retryable: true,
                ..ApplicationFailureInfo::default()
            })),
            ..Failure::default()
        };
        // Those that an event has admitted came with the history.
        for update_id in self.updates_admitted_by_event() {
            self.reject_update(&update_id, failure.clone(), env);
        }
        self.admitted.edit().change(&AdmittedState::Sent, &AdmittedState::Rejected(Box::new(failure)));
    }

    fn updates_admitted_by_event(&self) -> Vec<String> {
        let waits = |update: &UpdateInfo| update.accepted_event_id == 0 && update.completed_event_id == 0;
        self.updates.values().filter(|update| waits(update)).map(|update| update.update_id.clone()).collect()
    }

    /// By the worker. What an event has admitted stays known, the rest is forgotten once its callers know.
    pub(crate) fn reject_update(&mut self, update_id: &str, failure: Failure, env: &Env) {
        match self.updates.get_mut(&update_id.to_owned()).filter(|update| update.accepted_event_id == 0) {
            Some(update) => {
                update.completed_event_id = update.admitted_event_id;
                update.outcome = Some(failed(failure));
                self.call_back_about_update(update_id, env);
            }
            None => self.admitted.edit().reject(update_id, failure),
        }
    }

    pub(crate) fn record_accepted_update(&mut self, update_id: &str, name: String, accepted_event_id: i64) {
        self.info.edit().update_count += 1;
        let admitted_event_id = self.updates.get(update_id).map_or(0, |update| update.admitted_event_id);
        let info = UpdateInfo {
            update_id: update_id.to_owned(),
            accepted_event_id,
            name,
            admitted_event_id,
            ..UpdateInfo::default()
        };
        self.updates.insert(update_id.to_owned(), info);
    }
}

fn update_not_found(update_id: &str) -> Error {
    Error::not_found(format!("update {update_id:?} not found"))
}

fn failed(failure: Failure) -> UpdateOutcome {
    UpdateOutcome { value: Some(Value::Failure(failure)) }
}

pub(crate) fn closed_before_completed() -> Failure {
    Failure {
        message: "Workflow Update failed because the Workflow completed before the Update completed.".to_owned(),
        source: "Server".to_owned(),
        failure_info: Some(FailureInfo::ApplicationFailureInfo(ApplicationFailureInfo {
            r#type: "AcceptedUpdateCompletedWorkflow".to_owned(),
            non_retryable: true,
            ..ApplicationFailureInfo::default()
        })),
        ..Failure::default()
    }
}
