//! How a run shows itself: to those who describe it or wait for its outcome, and in lists.

use perdure_proto::{
    Error,
    perdure::node::v1::{ActivityReply, HistoryToken, activity_reply, workflow_reply},
    temporal::api::{
        activity::v1::ActivityExecutionInfo,
        common::v1::{WorkflowExecution, WorkflowType},
        enums::v1::{
            ActivityExecutionStatus as Status, PendingActivityState as State, WorkflowExecutionStatus as ListStatus,
        },
        workflow::v1::WorkflowExecutionInfo,
        workflowservice::v1::{
            DescribeActivityExecutionRequest, DescribeActivityExecutionResponse, PollActivityExecutionResponse,
        },
    },
};
use perdure_types::{Duration, Timestamp};
use perdure_workflow::{Answer, DescribeExecution, ExecutionWait, Reply, Step};
use prost::Message;

use crate::run::Run;

fn reply(reply: activity_reply::Reply) -> Reply {
    Reply::new(workflow_reply::Reply::Activity(Box::new(ActivityReply { reply: Some(reply) })))
}

/// Tells a caller who has waited long enough that nothing has happened.
pub(crate) fn nothing_yet(wait: &ExecutionWait) -> Reply {
    reply(match wait {
        ExecutionWait::Started | ExecutionWait::Closed => {
            activity_reply::Reply::Poll(PollActivityExecutionResponse::default())
        }
        ExecutionWait::Changed { .. } => activity_reply::Reply::Describe(DescribeActivityExecutionResponse::default()),
    })
}

impl Run {
    pub(crate) fn describe(
        self,
        request: DescribeActivityExecutionRequest,
        now: Timestamp,
    ) -> Result<Step<Self>, Error> {
        if request.long_poll_token.is_empty() {
            let described = activity_reply::Reply::Describe(self.description(&request, now));
            return Ok(Step::answered(self, Answer::Reply(Box::new(reply(described)))));
        }
        let refused = |message: &str| Error::invalid_argument(message);
        let token =
            HistoryToken::decode(request.long_poll_token.as_ref()).map_err(|_| refused("invalid long poll token"))?;
        if token.run_id != self.run_id {
            return Err(refused("long poll token does not match execution"));
        }
        let request = DescribeExecution::Activity(Box::new(request));
        Ok(Step::awaited(self, ExecutionWait::Changed { seen: token.next_event_id, request }))
    }

    /// What a caller waits for, if it is there.
    pub(crate) fn check(&self, wait: &ExecutionWait) -> Option<Reply> {
        match wait {
            ExecutionWait::Started | ExecutionWait::Closed => (!self.is_open()).then(|| {
                reply(activity_reply::Reply::Poll(PollActivityExecutionResponse {
                    run_id: self.run_id.clone(),
                    outcome: self.state.outcome.clone(),
                }))
            }),
            // The time stands in the description only while an attempt waits for it, and then it is not over.
            ExecutionWait::Changed { seen, request: DescribeExecution::Activity(request) } => {
                (self.state.transition_count > *seen)
                    .then(|| reply(activity_reply::Reply::Describe(self.description(request, Timestamp::ZERO))))
            }
            ExecutionWait::Changed { request: DescribeExecution::NexusOperation(_), .. } => None,
        }
    }

    fn description(
        &self,
        request: &DescribeActivityExecutionRequest,
        now: Timestamp,
    ) -> DescribeActivityExecutionResponse {
        let token = HistoryToken {
            run_id: self.run_id.clone(),
            next_event_id: self.state.transition_count,
            ..HistoryToken::default()
        };
        DescribeActivityExecutionResponse {
            run_id: self.run_id.clone(),
            info: Some(self.execution_info(request, now)),
            input: self.request().input.clone().filter(|_| request.include_input),
            outcome: self.state.outcome.clone().filter(|_| request.include_outcome),
            long_poll_token: if self.is_open() { token.encode_to_vec().into() } else { bytes::Bytes::new() },
            callbacks: self.described_callbacks(),
        }
    }

    fn execution_info(&self, request: &DescribeActivityExecutionRequest, now: Timestamp) -> ActivityExecutionInfo {
        let (info, started, options) = (self.info(), self.request(), self.options());
        let backs_off = self.waits() && info.scheduled_time_ns > now.as_nanos();
        let closed = !self.is_open();
        ActivityExecutionInfo {
            activity_id: self.key.workflow_id.to_string(),
            run_id: self.run_id.clone(),
            activity_type: started.activity_type.clone(),
            status: self.state.status,
            run_state: self.run_state() as i32,
            task_queue: options.task_queue.as_ref().map(|queue| queue.name.clone()).unwrap_or_default(),
            schedule_to_close_timeout: options.schedule_to_close_timeout,
            schedule_to_start_timeout: options.schedule_to_start_timeout,
            start_to_close_timeout: options.start_to_close_timeout,
            heartbeat_timeout: options.heartbeat_timeout,
            retry_policy: options.retry_policy.clone(),
            heartbeat_details: info.heartbeat_details.clone().filter(|_| request.include_heartbeat_details),
            last_heartbeat_time: Timestamp(info.last_heartbeat_time_ns).to_proto(),
            last_started_time: Timestamp(info.last_started_time_ns).to_proto(),
            attempt: info.attempt,
            execution_duration: closed.then(|| self.duration().to_proto()),
            schedule_time: self.start_time().to_proto(),
            expiration_time: Timestamp(info.expiration_time_ns).to_proto(),
            close_time: Timestamp(self.state.close_time_ns).to_proto(),
            last_failure: info.last_failure.clone().filter(|_| request.include_last_failure),
            last_worker_identity: info.last_identity.clone(),
            current_retry_interval: (backs_off && info.attempt > 1)
                .then(|| Duration(info.current_retry_interval_ns).to_proto()),
            last_attempt_complete_time: Timestamp(info.last_attempt_complete_time_ns).to_proto(),
            next_attempt_schedule_time: Timestamp(info.scheduled_time_ns).to_proto().filter(|_| backs_off),
            priority: options.priority.clone(),
            state_transition_count: self.state.transition_count,
            state_size_bytes: self.size_bytes(),
            search_attributes: started.search_attributes.clone(),
            header: started.header.clone(),
            user_metadata: started.user_metadata.clone(),
            canceled_reason: self.state.cancel_reason.clone(),
            links: started.links.iter().chain(&self.state.attached_links).cloned().collect(),
            total_heartbeat_count: self.state.heartbeat_count,
            start_delay: options.start_delay,
            execution_time: self.execution_time().to_proto(),
            ..ActivityExecutionInfo::default()
        }
    }

    fn run_state(&self) -> State {
        let info = self.info();
        if !self.is_open() {
            return State::Unspecified;
        }
        match (self.is_started(), info.cancel_requested, info.paused) {
            (_, true, _) => State::CancelRequested,
            (true, false, true) => State::PauseRequested,
            (true, false, false) => State::Started,
            (false, false, true) => State::Paused,
            (false, false, false) => State::Scheduled,
        }
    }

    fn duration(&self) -> Duration {
        Duration(self.state.close_time_ns.saturating_sub(self.state.start_time_ns))
    }

    fn size_bytes(&self) -> i64 {
        i64::try_from(self.state.encoded_len()).unwrap_or(i64::MAX)
    }

    /// As a workflow would be listed; activities have a list of their own.
    pub(crate) fn list_row(&self) -> WorkflowExecutionInfo {
        let status = match self.status() {
            Status::Unspecified => ListStatus::Unspecified,
            Status::Running => ListStatus::Running,
            Status::Completed => ListStatus::Completed,
            Status::Failed => ListStatus::Failed,
            Status::Canceled => ListStatus::Canceled,
            Status::Terminated => ListStatus::Terminated,
            Status::TimedOut => ListStatus::TimedOut,
            Status::Paused => ListStatus::Paused,
        };
        let request = self.request();
        WorkflowExecutionInfo {
            execution: Some(WorkflowExecution {
                workflow_id: self.key.workflow_id.to_string(),
                run_id: self.run_id.clone(),
            }),
            r#type: request.activity_type.clone().map(|kind| WorkflowType { name: kind.name }),
            start_time: self.start_time().to_proto(),
            execution_time: self.execution_time().to_proto(),
            close_time: Timestamp(self.state.close_time_ns).to_proto(),
            status: status as i32,
            search_attributes: request.search_attributes.clone(),
            task_queue: self.options().task_queue.as_ref().map(|queue| queue.name.clone()).unwrap_or_default(),
            history_size_bytes: self.size_bytes(),
            state_transition_count: self.state.transition_count,
            execution_duration: (!self.is_open()).then(|| self.duration().to_proto()),
            ..WorkflowExecutionInfo::default()
        }
    }
}
