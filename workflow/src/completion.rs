//! Completion of workflow tasks: the commands of the worker become events and state.
//!
//! A completion happens as a whole. A command that cannot be carried out undoes all of it and fails the task instead.

#![allow(deprecated, reason = "older workers still send what newer ones replaced, and histories show both")]

use std::collections::HashMap;

use perdure_proto::{
    Error,
    perdure::{
        node::v1::{TaskToken, task_token, workflow_reply},
        state::v1::{StickyInfo, WorkflowTaskInfo, workflow_task_info::Kind},
    },
    temporal::api::{
        command::v1::Command,
        enums::v1::{TimeoutType, VersioningBehavior, WorkerVersioningMode, WorkflowTaskFailedCause as Cause},
        history::v1::{WorkflowTaskCompletedEventAttributes, history_event::Attributes},
        query::v1::WorkflowQueryResult,
        taskqueue::v1::StickyExecutionAttributes,
        workflowservice::v1::{
            PollActivityTaskQueueResponse, RespondWorkflowTaskCompletedRequest, RespondWorkflowTaskCompletedResponse,
        },
    },
};
use perdure_types::{Duration, Timestamp};

use crate::{
    activity_retry::server_failure,
    api::{Answer, Env, Release, Reply},
    chain::{Answered, Chain, decode_token},
    command::{BadCommand, CommandContext},
    commands::check_sequence,
    rebuild::time_of,
    run::Run,
    terminate::SERVER_IDENTITY,
    update_messages::Messages,
};

/// How long a worker may keep a workflow task by asking for a new one again and again.
const HEARTBEATS_MAX: Duration = Duration::from_secs(30 * 60);

/// A speculative task that showed its worker more events than this is written even if it changes nothing: they would
/// be shown again and again otherwise.
const DISCARD_MAX_EVENTS: i64 = 10;

impl Chain {
    pub(crate) fn respond_workflow_task_completed(
        &mut self,
        request: RespondWorkflowTaskCompletedRequest,
        env: &mut Env,
    ) -> Answered {
        let token = decode_token(&request.task_token, task_token::Kind::Workflow)?;
        let run = self.run(&token.run_id)?;
        let task = run.task_of_token(&token)?;
        check_versioning(&request)?;
        if run.is_paused() && request.force_create_new_workflow_task {
            let message = "Workflow is paused and force create new workflow task is not allowed.";
            return Err(Error::failed_precondition(message));
        }
        if request.intermediate_page || request.page_number > 0 {
            let message = "workflow task completion pagination is disabled for this namespace";
            return Err(Error::failed_precondition(message));
        }
        check_sequence(&request.commands)?;
        run.complete_workflow_task(env, task, request)
    }
}

impl Run {
    /// The started task that the token is for.
    pub(crate) fn task_of_token(&self, token: &TaskToken) -> Result<WorkflowTaskInfo, Error> {
        self.workflow_task()
            .filter(|task| {
                self.is_open()
                    && task.started_event_id != 0
                    && task.scheduled_event_id == token.scheduled_event_id
                    && task.started_event_id == token.started_event_id
                    && task.started_time_ns == token.started_time_ns
                    && task.attempt == token.attempt
            })
            .cloned()
            .ok_or_else(|| Error::not_found("Workflow task not found."))
    }

    fn complete_workflow_task(
        &mut self,
        env: &mut Env,
        task: WorkflowTaskInfo,
        mut request: RespondWorkflowTaskCompletedRequest,
    ) -> Answered {
        let idle_heartbeat =
            request.force_create_new_workflow_task && request.commands.is_empty() && request.messages.is_empty();
        let first_scheduled = Timestamp(task.original_scheduled_time_ns);
        if idle_heartbeat && env.now > first_scheduled + HEARTBEATS_MAX {
            return Ok(self.heartbeats_timed_out(env));
        }
        let commands = std::mem::take(&mut request.commands);
        let messages = Messages::new(std::mem::take(&mut request.messages));
        let query_results = std::mem::take(&mut request.query_results);

        let written = !self.leaves_no_trace(&task, &request, commands.is_empty(), &messages);
        self.end_completed_task(env, &task, &request, written);
        let activity_tasks = match self.carry_out(env, &request, commands, messages) {
            Ok(activity_tasks) => activity_tasks,
            Err(bad) => return self.fail_completion(env, &task, &bad, &request, query_results),
        };
        if self.is_open() && !request.force_create_new_workflow_task {
            self.reject_unprocessed_updates(env);
        }
        self.answer_queries(query_results);

        let mut response = RespondWorkflowTaskCompletedResponse { activity_tasks, ..Default::default() };
        if !written {
            response.reset_history_event_id = self.info.last_completed_workflow_task_started_id;
        }
        let original_scheduled_time_ns = idle_heartbeat.then_some(task.original_scheduled_time_ns);
        let next = self.schedule_after_completion(env, &request, original_scheduled_time_ns);
        Ok((Answer::Reply(Box::new(completion_reply(response, next))), Release::Durable))
    }

    /// A speculative task that changed nothing is dropped.
    fn leaves_no_trace(
        &self,
        task: &WorkflowTaskInfo,
        request: &RespondWorkflowTaskCompletedRequest,
        no_commands: bool,
        messages: &Messages,
    ) -> bool {
        // Between the Started event of the last completed task and the next event stands its Completed event.
        let shown = self.info.next_event_id - self.info.last_completed_workflow_task_started_id - 2;
        let may_be_shown_again =
            request.capabilities.as_ref().is_some_and(|c| c.discard_speculative_workflow_task_with_events);
        task.kind() == Kind::Speculative
            && no_commands
            && !request.force_create_new_workflow_task
            && shown <= if may_be_shown_again { DISCARD_MAX_EVENTS } else { 0 }
            && messages.only_rejections()
    }

    /// The task is no more, and its events are in the history.
    fn end_completed_task(
        &mut self,
        env: &Env,
        task: &WorkflowTaskInfo,
        request: &RespondWorkflowTaskCompletedRequest,
        written: bool,
    ) {
        if written && task.kind() != Kind::Normal {
            self.write_workflow_task_events(task);
        }
        let info = self.info.edit();
        info.workflow_task = None;
        info.workflow_task_attempt = 1;
        if !written {
            return;
        }
        self.no_more_problems();
        let info = self.info.edit();
        info.last_completed_workflow_task_started_id = task.started_event_id;
        info.last_workflow_task_failure = None;
        info.most_recent_worker_version = request.worker_version_stamp.clone();
        info.sticky = request.sticky_attributes.as_ref().and_then(sticky);
        let event_id = self.add_event(env.now, completed_attributes(task, request));
        if let Some(event) = self.last_new_event()
            && let Some(Attributes::WorkflowTaskCompletedEventAttributes(attributes)) = &event.attributes
        {
            self.note_reset_point(event_id, time_of(&event), attributes);
            if self.follow_completion(attributes) {
                self.offer_activities_again(env.now);
            }
        }
        if self.is_in_transition() {
            self.info.edit().sticky = None;
        }
    }

    /// All commands and messages in order. Activities that the worker takes along are in the result.
    fn carry_out(
        &mut self,
        env: &mut Env,
        request: &RespondWorkflowTaskCompletedRequest,
        commands: Vec<Command>,
        mut messages: Messages,
    ) -> Result<Vec<PollActivityTaskQueueResponse>, BadCommand> {
        let mut ctx = CommandContext {
            completed_event_id: self.info.next_event_id - 1,
            identity: request.identity.clone(),
            ..CommandContext::default()
        };
        // What came while the task ran must be looked at before the workflow may close.
        let mut may_close = self.buffered.is_empty();
        let mut eager = Vec::new();
        for mut command in commands {
            ctx.user_metadata = command.user_metadata.take();
            ctx.event_group_markers = std::mem::take(&mut command.event_group_markers);
            let done = self.command(env, &ctx, command, may_close, &mut messages)?;
            eager.extend(done.eager_activity);
            may_close |= self.buffered.is_empty();
        }
        ctx.user_metadata = None;
        ctx.event_group_markers = Vec::new();
        self.remaining_messages(env, &ctx, messages)?;
        if !self.is_open() {
            return Ok(Vec::new());
        }
        let mut tasks = Vec::new();
        if self.is_paused() {
            return Ok(tasks);
        }
        for id in eager {
            let request_id = env.ids.uuid();
            tasks.extend(self.start_activity(id, &ctx.identity, request_id, env));
        }
        Ok(tasks)
    }

    /// Undoes everything and fails the task. The worker is told, too.
    fn fail_completion(
        &mut self,
        env: &mut Env,
        task: &WorkflowTaskInfo,
        bad: &BadCommand,
        request: &RespondWorkflowTaskCompletedRequest,
        query_results: HashMap<String, WorkflowQueryResult>,
    ) -> Answered {
        self.roll_back();
        let error = Error::invalid_argument(bad.text());
        // A task that fails over and over is left to its timeout: else the worker would get it at once again.
        if task.attempt > 1 && bad.cause != Cause::UnhandledCommand {
            return Err(error);
        }
        let failure = Some(server_failure(bad.text()));
        self.fail_workflow_task(env, bad.cause, failure, &request.identity, &request.binary_checksum);
        self.answer_queries(query_results);
        if bad.terminates {
            self.flush_buffered(env.now);
            self.terminate_run(env, &bad.text(), None, SERVER_IDENTITY, Vec::new());
        } else {
            self.reschedule_workflow_task(env, env.now);
        }
        Ok((Answer::Reject(error), Release::Durable))
    }

    /// The next task, if there is something to look at. It goes with the reply if the worker wants it.
    fn schedule_after_completion(
        &mut self,
        env: &Env,
        request: &RespondWorkflowTaskCompletedRequest,
        original_scheduled_time_ns: Option<i64>,
    ) -> Option<Reply> {
        if !self.is_open() {
            self.drop_buffered();
            return None;
        }
        let more = self.flush_buffered(env.now);
        if self.is_paused() {
            return None;
        }
        // The worker is not of the version that the run moves to: the next task goes there.
        let moving = self.is_in_transition();
        let needed = more || moving || request.force_create_new_workflow_task;
        if !needed && !self.has_undelivered_updates() {
            return None;
        }
        let inline = request.return_new_workflow_task && !moving;
        if inline {
            self.schedule_started_workflow_task(env, !needed, &request.identity);
        } else {
            self.schedule_workflow_task(env, env.now);
        }
        if let (Some(time), Some(task)) = (original_scheduled_time_ns, self.info.edit().workflow_task.as_mut()) {
            task.original_scheduled_time_ns = time;
        }
        if !inline {
            return None;
        }
        let mut reply = self.workflow_task_reply(env);
        if let Some(history) = &mut reply.history {
            // This worker has everything else, sticky or not.
            history.from_event_id = self.info.last_completed_workflow_task_started_id + 1;
        }
        Some(reply)
    }

    fn heartbeats_timed_out(&mut self, env: &Env) -> (Answer, Release) {
        self.time_out_workflow_task(env, TimeoutType::StartToClose);
        (Answer::Reject(Error::not_found("workflow task heartbeat timeout")), Release::Durable)
    }

    /// What came too late for a closed run has not happened.
    fn drop_buffered(&mut self) {
        if !self.buffered.is_empty() {
            self.buffered.edit().clear();
        }
    }
}

fn check_versioning(request: &RespondWorkflowTaskCompletedRequest) -> Result<(), Error> {
    let unversioned = request.deployment.is_none()
        && request
            .deployment_options
            .as_ref()
            .is_none_or(|options| options.worker_versioning_mode() != WorkerVersioningMode::Versioned);
    if request.versioning_behavior() != VersioningBehavior::Unspecified && unversioned {
        return Err(Error::invalid_argument(
            "versioning behavior cannot be specified without deployment options being set with versioned mode",
        ));
    }
    Ok(())
}

fn sticky(attributes: &StickyExecutionAttributes) -> Option<StickyInfo> {
    let queue = attributes.worker_task_queue.as_ref()?;
    let schedule_to_start = Duration::from_proto(attributes.schedule_to_start_timeout.as_ref());
    Some(StickyInfo { task_queue: queue.name.clone(), schedule_to_start_ns: schedule_to_start.0 })
}

fn completed_attributes(task: &WorkflowTaskInfo, request: &RespondWorkflowTaskCompletedRequest) -> Attributes {
    let options = request.deployment_options.as_ref();
    let versioned = options.filter(|options| options.worker_versioning_mode() == WorkerVersioningMode::Versioned);
    let mut worker_deployment_name = options.map(|options| options.deployment_name.clone()).unwrap_or_default();
    if worker_deployment_name.is_empty() {
        worker_deployment_name = request.deployment.as_ref().map(|d| d.series_name.clone()).unwrap_or_default();
    }
    let deployment_version =
        versioned.map(|options| perdure_proto::temporal::api::deployment::v1::WorkerDeploymentVersion {
            deployment_name: options.deployment_name.clone(),
            build_id: options.build_id.clone(),
        });
    Attributes::WorkflowTaskCompletedEventAttributes(WorkflowTaskCompletedEventAttributes {
        scheduled_event_id: task.scheduled_event_id,
        started_event_id: task.started_event_id,
        identity: request.identity.clone(),
        binary_checksum: request.binary_checksum.clone(),
        worker_version: request.worker_version_stamp.clone(),
        sdk_metadata: request.sdk_metadata.clone(),
        metering_metadata: request.metering_metadata,
        deployment: request.deployment.clone(),
        // Some SDKs give a behavior although their worker is not versioned.
        versioning_behavior: if options.is_some() && versioned.is_none() { 0 } else { request.versioning_behavior },
        worker_deployment_version: deployment_version
            .as_ref()
            .map(|v| format!("{}.{}", v.deployment_name, v.build_id))
            .unwrap_or_default(),
        worker_deployment_name,
        deployment_version,
    })
}

fn completion_reply(mut response: RespondWorkflowTaskCompletedResponse, next: Option<Reply>) -> Reply {
    let mut history = None;
    if let Some(next) = next {
        history = next.history;
        if let Some(workflow_reply::Reply::WorkflowTask(task)) = next.message.reply {
            response.workflow_task = Some(task);
        }
    }
    let mut reply = Reply::new(workflow_reply::Reply::RespondWorkflowTaskCompleted(response));
    reply.history = history;
    reply
}
