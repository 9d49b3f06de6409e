//! How a run shows itself: to those who describe it or wait for it, and in lists.

use perdure_proto::{
    Error,
    perdure::{
        nexus::v1::{OperationReply, operation_reply},
        node::v1::{HistoryToken, workflow_reply},
        state::v1::NexusCancelInfo,
    },
    temporal::api::{
        common::v1::{WorkflowExecution, WorkflowType},
        enums::v1::{
            NexusOperationExecutionStatus as Status, NexusOperationWaitStage as Stage,
            WorkflowExecutionStatus as ListStatus,
        },
        nexus::v1::{NexusOperationExecutionCancellationInfo, NexusOperationExecutionInfo},
        workflow::v1::WorkflowExecutionInfo,
        workflowservice::v1::{
            DescribeNexusOperationExecutionRequest, DescribeNexusOperationExecutionResponse,
            PollNexusOperationExecutionResponse, describe_nexus_operation_execution_response as describe,
            poll_nexus_operation_execution_response as poll,
        },
    },
};
use perdure_types::{Duration, Timestamp, nexus};
use perdure_workflow::{Answer, DescribeExecution, ExecutionWait, Reply, Step, keyword_value};
use prost::Message;

use crate::run::Run;

fn reply(reply: operation_reply::Reply) -> Reply {
    Reply::new(workflow_reply::Reply::NexusOperation(Box::new(OperationReply { reply: Some(reply) })))
}

/// Tells a caller who has waited long enough that nothing has happened.
pub(crate) fn nothing_yet(wait: &ExecutionWait) -> Reply {
    reply(match wait {
        ExecutionWait::Started | ExecutionWait::Closed => {
            operation_reply::Reply::Poll(PollNexusOperationExecutionResponse::default())
        }
        ExecutionWait::Changed { .. } => {
            operation_reply::Reply::Describe(DescribeNexusOperationExecutionResponse::default())
        }
    })
}

impl Run {
    pub(crate) fn describe(
        self,
        request: DescribeNexusOperationExecutionRequest,
        now: Timestamp,
    ) -> Result<Step<Self>, Error> {
        if request.long_poll_token.is_empty() {
            let described = operation_reply::Reply::Describe(self.description(&request, now));
            return Ok(Step::answered(self, Answer::Reply(Box::new(reply(described)))));
        }
        let refused = |message: &str| Error::invalid_argument(message);
        let token =
            HistoryToken::decode(request.long_poll_token.as_ref()).map_err(|_| refused("invalid long poll token"))?;
        if token.run_id != self.run_id {
            return Err(refused("long poll token does not match execution"));
        }
        let request = DescribeExecution::NexusOperation(Box::new(request));
        Ok(Step::awaited(self, ExecutionWait::Changed { seen: token.next_event_id, request }))
    }

    /// What a caller waits for, if it is there.
    pub(crate) fn check(&self, wait: &ExecutionWait) -> Option<Reply> {
        match wait {
            ExecutionWait::Started if self.operation.has_started() || !self.is_open() => Some(self.poll_reply()),
            ExecutionWait::Closed if !self.is_open() => Some(self.poll_reply()),
            ExecutionWait::Started | ExecutionWait::Closed => None,
            ExecutionWait::Changed { seen, request: DescribeExecution::NexusOperation(request) } => {
                // How long it has taken so far is as of the change.
                let now = Timestamp(self.operation.info.last_attempt_complete_ns.max(self.state.start_time_ns));
                (self.state.transition_count > *seen)
                    .then(|| reply(operation_reply::Reply::Describe(self.description(request, now))))
            }
            ExecutionWait::Changed { request: DescribeExecution::Activity(_), .. } => None,
        }
    }

    fn poll_reply(&self) -> Reply {
        let result = self.state.result.clone().map(poll::Outcome::Result);
        let stage = if self.is_open() { Stage::Started } else { Stage::Closed };
        reply(operation_reply::Reply::Poll(PollNexusOperationExecutionResponse {
            run_id: self.run_id.clone(),
            wait_stage: stage as i32,
            operation_token: self.operation.info.operation_token.clone(),
            outcome: self.state.failure.clone().map(poll::Outcome::Failure).or(result),
        }))
    }

    fn description(
        &self,
        request: &DescribeNexusOperationExecutionRequest,
        now: Timestamp,
    ) -> DescribeNexusOperationExecutionResponse {
        let token = HistoryToken {
            run_id: self.run_id.clone(),
            next_event_id: self.state.transition_count,
            ..HistoryToken::default()
        };
        let result = self.state.result.clone().map(describe::Outcome::Result);
        let outcome = self.state.failure.clone().map(describe::Outcome::Failure).or(result);
        DescribeNexusOperationExecutionResponse {
            run_id: self.run_id.clone(),
            info: Some(self.execution_info(now)),
            input: self.request().input.clone().filter(|_| request.include_input),
            long_poll_token: if self.is_open() { token.encode_to_vec().into() } else { bytes::Bytes::new() },
            completion_callbacks: self.described_callbacks(),
            outcome: outcome.filter(|_| request.include_outcome),
        }
    }

    fn execution_info(&self, now: Timestamp) -> NexusOperationExecutionInfo {
        let (info, started) = (&self.operation.info, self.request());
        let open = self.is_open();
        let cancel = info.cancel.as_deref().map(|cancel| self.cancellation(cancel));
        NexusOperationExecutionInfo {
            operation_id: self.key.workflow_id.to_string(),
            run_id: self.run_id.clone(),
            endpoint: started.endpoint.clone(),
            service: started.service.clone(),
            operation: started.operation.clone(),
            status: self.state.status,
            state: if open { self.operation.state() as i32 } else { 0 },
            schedule_to_close_timeout: started.schedule_to_close_timeout,
            schedule_to_start_timeout: started.schedule_to_start_timeout,
            start_to_close_timeout: started.start_to_close_timeout,
            // With the one that is under way.
            attempt: info.attempt + i32::from(open && self.operation.is_being_started()),
            schedule_time: self.start_time().to_proto(),
            expiration_time: self.operation.close_deadline().and_then(Timestamp::to_proto),
            close_time: Timestamp(self.state.close_time_ns).to_proto(),
            last_attempt_complete_time: Timestamp(info.last_attempt_complete_ns).to_proto(),
            last_attempt_failure: info.last_attempt_failure.as_deref().cloned(),
            next_attempt_schedule_time: Timestamp(info.next_attempt_ns).to_proto(),
            execution_duration: Some(self.duration(now).to_proto()),
            cancellation_info: cancel,
            request_id: self.state.handler_request_id.clone(),
            operation_token: info.operation_token.clone(),
            state_transition_count: self.state.transition_count,
            search_attributes: started.search_attributes.clone(),
            nexus_header: started.nexus_header.clone(),
            user_metadata: started.user_metadata.clone(),
            links: started.links.iter().chain(&self.state.links).cloned().collect(),
            identity: started.identity.clone(),
            state_size_bytes: self.size_bytes(),
            ..NexusOperationExecutionInfo::default()
        }
    }

    fn cancellation(&self, cancel: &NexusCancelInfo) -> NexusOperationExecutionCancellationInfo {
        NexusOperationExecutionCancellationInfo {
            requested_time: Timestamp(self.state.cancel_time_ns).to_proto(),
            state: cancel.state,
            attempt: cancel.attempt,
            last_attempt_complete_time: Timestamp(cancel.last_attempt_complete_ns).to_proto(),
            last_attempt_failure: cancel.last_attempt_failure.clone(),
            next_attempt_schedule_time: Timestamp(cancel.next_attempt_ns).to_proto(),
            reason: self.state.cancel_reason.clone(),
            ..NexusOperationExecutionCancellationInfo::default()
        }
    }

    fn start_time(&self) -> Timestamp {
        Timestamp(self.state.start_time_ns)
    }

    fn duration(&self, now: Timestamp) -> Duration {
        let until = if self.is_open() { now } else { Timestamp(self.state.close_time_ns) };
        Duration(until.as_nanos().saturating_sub(self.state.start_time_ns).max(0))
    }

    fn size_bytes(&self) -> i64 {
        i64::try_from(self.state.encoded_len() + self.operation.info.encoded_len()).unwrap_or(i64::MAX)
    }

    /// As a workflow would be listed; operations have a list of their own.
    pub(crate) fn list_row(&self) -> WorkflowExecutionInfo {
        let status = match self.status() {
            Status::Unspecified => ListStatus::Unspecified,
            Status::Running => ListStatus::Running,
            Status::Completed => ListStatus::Completed,
            Status::Failed => ListStatus::Failed,
            Status::Canceled => ListStatus::Canceled,
            Status::Terminated => ListStatus::Terminated,
            Status::TimedOut => ListStatus::TimedOut,
        };
        let request = self.request();
        let mut attributes = request.search_attributes.clone().unwrap_or_default();
        let shown = [
            (nexus::ENDPOINT_ATTRIBUTE, &request.endpoint),
            (nexus::SERVICE_ATTRIBUTE, &request.service),
            (nexus::REQUEST_ID_ATTRIBUTE, &self.state.handler_request_id),
        ];
        for (name, value) in shown {
            attributes.indexed_fields.insert(name.to_owned(), keyword_value(value));
        }
        WorkflowExecutionInfo {
            execution: Some(WorkflowExecution {
                workflow_id: self.key.workflow_id.to_string(),
                run_id: self.run_id.clone(),
            }),
            r#type: Some(WorkflowType { name: request.operation.clone() }),
            start_time: self.start_time().to_proto(),
            execution_time: self.start_time().to_proto(),
            close_time: Timestamp(self.state.close_time_ns).to_proto(),
            status: status as i32,
            search_attributes: Some(attributes),
            history_size_bytes: self.size_bytes(),
            state_transition_count: self.state.transition_count,
            execution_duration: (!self.is_open()).then(|| self.duration(Timestamp::ZERO).to_proto()),
            ..WorkflowExecutionInfo::default()
        }
    }
}
