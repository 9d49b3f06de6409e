//! UpdateWorkflowExecutionOptions: what a start has set and an operator may change.

use perdure_proto::{
    Error,
    perdure::node::v1::workflow_reply,
    temporal::api::{
        common::v1::Priority,
        history::v1::{HistoryEvent, WorkflowExecutionOptionsUpdatedEventAttributes, history_event::Attributes},
        workflow::v1::{VersioningOverride, WorkflowExecutionOptions},
        workflowservice::v1::{UpdateWorkflowExecutionOptionsRequest, UpdateWorkflowExecutionOptionsResponse},
    },
    versions,
};

use crate::{
    api::Env,
    chain::{Answered, Chain, reply},
    priority,
    run::Run,
};

impl Chain {
    pub(crate) fn update_options(&mut self, request: UpdateWorkflowExecutionOptionsRequest, env: &mut Env) -> Answered {
        self.check_namespace(&request.namespace, env)?;
        let run = self.open_run(&request.workflow_execution.map(|e| e.run_id).unwrap_or_default())?;
        let wanted = request.workflow_execution_options.unwrap_or_default();
        let paths = request.update_mask.map(|mask| mask.paths).unwrap_or_default();
        let (options, changed) = run.change_options(env, &wanted, &paths, &request.identity)?;
        let response = UpdateWorkflowExecutionOptionsResponse {
            workflow_execution_options: Some(options),
            update_time: changed.then(|| env.now.to_proto()).flatten(),
        };
        reply(workflow_reply::Reply::UpdateOptions(Box::new(response)))
    }
}

impl Run {
    /// The override that holds now: of the start, or what took its place.
    pub(crate) fn versioning_override(&self) -> Option<&VersioningOverride> {
        match &self.info.options {
            Some(options) => options.versioning_override.as_ref(),
            None => self.start().versioning_override.as_ref(),
        }
    }

    /// Changes what the mask names. Gives the options as they are now, and whether that is a change.
    pub(crate) fn change_options(
        &mut self,
        env: &Env,
        wanted: &WorkflowExecutionOptions,
        paths: &[String],
        identity: &str,
    ) -> Result<(WorkflowExecutionOptions, bool), Error> {
        let before = WorkflowExecutionOptions {
            versioning_override: self.versioning_override().cloned(),
            priority: self.info.priority.clone(),
            ..WorkflowExecutionOptions::default()
        };
        let merged = merged(&before, wanted, paths, env.limits.max_id_length)?;
        if merged == before {
            return Ok((merged, false));
        }
        let attributes = WorkflowExecutionOptionsUpdatedEventAttributes {
            versioning_override: merged.versioning_override.clone(),
            unset_versioning_override: merged.versioning_override.is_none(),
            identity: identity.to_owned(),
            priority: merged.priority.clone(),
            ..WorkflowExecutionOptionsUpdatedEventAttributes::default()
        };
        let routed = self.effective();
        self.follow_options(0, &attributes);
        self.override_changed(routed, env.now);
        let event = HistoryEvent {
            worker_may_ignore: true,
            attributes: Some(Attributes::WorkflowExecutionOptionsUpdatedEventAttributes(attributes)),
            ..HistoryEvent::default()
        };
        self.add_external_prepared(env.now, event);
        Ok((merged, true))
    }
}

fn merged(
    before: &WorkflowExecutionOptions,
    wanted: &WorkflowExecutionOptions,
    paths: &[String],
    max_id_length: i64,
) -> Result<WorkflowExecutionOptions, Error> {
    let mut merged = before.clone();
    let named = |path: &str| paths.iter().any(|p| p == path);
    let new = wanted.priority.clone().unwrap_or_default();
    for path in paths {
        match path.as_str() {
            "versioning_override" => merged.versioning_override = wanted.versioning_override.clone(),
            "versioning_override.deployment" | "versioning_override.behavior" => {
                if !(named("versioning_override.deployment") && named("versioning_override.behavior")) {
                    return Err(Error::invalid_argument(
                        "error applying update_options: versioning_override fields must be updated together",
                    ));
                }
                merged.versioning_override = wanted.versioning_override.clone();
            }
            "priority" => merged.priority = wanted.priority.clone(),
            "priority.priority_key" => priority_of(&mut merged).priority_key = new.priority_key,
            "priority.fairness_key" => priority_of(&mut merged).fairness_key = new.fairness_key.clone(),
            "priority.fairness_weight" => priority_of(&mut merged).fairness_weight = new.fairness_weight,
            path if path == "time_skipping_config" || path.starts_with("time_skipping_config.") => {
                return Err(Error::unimplemented("time skipping"));
            }
            path if path.starts_with("versioning_override.") => {
                return Err(Error::invalid_argument(
                    "error applying update_options: versioning_override doesn't support partial updates",
                ));
            }
            path => {
                return Err(Error::invalid_argument(format!(
                    "error parsing UpdateMask: invalid path \"{path}\" for message temporal.api.workflow.v1.WorkflowExecutionOptions"
                )));
            }
        }
    }
    priority::check(merged.priority.as_ref()).map_err(Error::invalid_argument)?;
    if let Some(over) =
        merged.versioning_override.as_ref().filter(|_| merged.versioning_override != before.versioning_override)
    {
        versions::check_override(over, max_id_length).map_err(Error::invalid_argument)?;
    }
    Ok(merged)
}

fn priority_of(options: &mut WorkflowExecutionOptions) -> &mut Priority {
    options.priority.get_or_insert_default()
}
