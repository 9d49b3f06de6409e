//! A workflow that must stay as it is: a timer far off, an activity and a workflow task in a worker's hands.

use bytes::Bytes;
use perdure_proto::temporal::api::{
    command::v1::{Command, ScheduleActivityTaskCommandAttributes, StartTimerCommandAttributes, command::Attributes},
    common::v1::{ActivityType, WorkflowExecution},
    enums::v1::CommandType,
    history::v1::HistoryEvent,
    workflowservice::v1::*,
};
use tonic::{Code, transport::Channel};
use workflow_service_client::WorkflowServiceClient;

use crate::common::{execution, queue, start_request};

pub const NAMESPACE: &str = "control";
const WORKFLOW: &str = "control-workflow";
const QUEUE: &str = "control-queue";
const DAY: i64 = 24 * 3600;

pub struct Control {
    client: WorkflowServiceClient<Channel>,
    tokens: Vec<Bytes>,
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

impl Control {
    pub async fn set_up(mut client: WorkflowServiceClient<Channel>) -> Self {
        let start = StartWorkflowExecutionRequest {
            namespace: NAMESPACE.into(),
            task_queue: Some(queue(QUEUE)),
            // As long as there may be: its task is to stay with its worker.
            workflow_task_timeout: seconds(120),
            ..start_request(WORKFLOW)
        };
        client.start_workflow_execution(start).await.unwrap();
        let first = Self::workflow_task(&mut client).await;
        let completion = RespondWorkflowTaskCompletedRequest {
            namespace: NAMESPACE.into(),
            task_token: first.clone(),
            commands: vec![activity(), timer()],
            ..Default::default()
        };
        client.respond_workflow_task_completed(completion).await.unwrap();
        let poll = PollActivityTaskQueueRequest {
            namespace: NAMESPACE.into(),
            task_queue: Some(queue(QUEUE)),
            ..Default::default()
        };
        let activity = client.poll_activity_task_queue(poll).await.unwrap().into_inner().task_token;
        let signal = SignalWorkflowExecutionRequest {
            namespace: NAMESPACE.into(),
            workflow_execution: Some(execution(WORKFLOW)),
            signal_name: "knock".into(),
            ..Default::default()
        };
        client.signal_workflow_execution(signal).await.unwrap();
        let second = Self::workflow_task(&mut client).await;
        Self { client, tokens: vec![activity, second, first] }
    }

    async fn workflow_task(client: &mut WorkflowServiceClient<Channel>) -> Bytes {
        let poll = PollWorkflowTaskQueueRequest {
            namespace: NAMESPACE.into(),
            task_queue: Some(queue(QUEUE)),
            ..Default::default()
        };
        let token = client.poll_workflow_task_queue(poll).await.unwrap().into_inner().task_token;
        assert!(!token.is_empty());
        token
    }

    pub fn tokens(&self) -> Vec<Bytes> {
        self.tokens.clone()
    }

    pub fn reconnect(self, client: WorkflowServiceClient<Channel>) -> Self {
        Self { client, ..self }
    }

    /// All that the API shows of it.
    pub async fn look(&self) -> (DescribeWorkflowExecutionResponse, Vec<HistoryEvent>) {
        let mut client = self.client.clone();
        let request =
            DescribeWorkflowExecutionRequest { namespace: NAMESPACE.into(), execution: Some(execution(WORKFLOW)) };
        let described = client.describe_workflow_execution(request).await.unwrap().into_inner();
        let history = history(&mut client, NAMESPACE, execution(WORKFLOW)).await.unwrap();
        (described, history)
    }
}

fn activity() -> Command {
    let attributes = ScheduleActivityTaskCommandAttributes {
        activity_id: "activity".into(),
        activity_type: Some(ActivityType { name: "Any".into() }),
        task_queue: Some(queue(QUEUE)),
        start_to_close_timeout: seconds(DAY),
        ..Default::default()
    };
    Command {
        command_type: CommandType::ScheduleActivityTask as i32,
        attributes: Some(Attributes::ScheduleActivityTaskCommandAttributes(attributes)),
        ..Default::default()
    }
}

fn timer() -> Command {
    let attributes = StartTimerCommandAttributes { timer_id: "timer".into(), start_to_fire_timeout: seconds(30 * DAY) };
    Command {
        command_type: CommandType::StartTimer as i32,
        attributes: Some(Attributes::StartTimerCommandAttributes(attributes)),
        ..Default::default()
    }
}

/// All events of a run, whose ids have no gap; `None` if there is no such workflow.
pub async fn history(
    client: &mut WorkflowServiceClient<Channel>,
    namespace: &str,
    execution: WorkflowExecution,
) -> Option<Vec<HistoryEvent>> {
    let mut request = GetWorkflowExecutionHistoryRequest {
        namespace: namespace.into(),
        execution: Some(execution),
        ..Default::default()
    };
    let mut events = Vec::new();
    loop {
        let page = match client.get_workflow_execution_history(request.clone()).await {
            Ok(page) => page.into_inner(),
            Err(status) if status.code() == Code::NotFound => return None,
            Err(status) => panic!("{status:?}"),
        };
        events.extend(page.history.unwrap_or_default().events);
        if page.next_page_token.is_empty() {
            break;
        }
        request.next_page_token = page.next_page_token;
    }
    for (index, event) in events.iter().enumerate() {
        assert_eq!(event.event_id, index as i64 + 1);
    }
    Some(events)
}

/// The current runs of some workflows, if there are such workflows.
pub async fn current_runs(
    client: &mut WorkflowServiceClient<Channel>,
    namespace: &str,
    workflow_ids: &[String],
) -> Vec<WorkflowExecution> {
    let mut runs = Vec::new();
    for workflow_id in workflow_ids {
        let request =
            DescribeWorkflowExecutionRequest { namespace: namespace.into(), execution: Some(execution(workflow_id)) };
        match client.describe_workflow_execution(request).await {
            Ok(described) => {
                runs.extend(described.into_inner().workflow_execution_info.and_then(|info| info.execution))
            }
            Err(status) => assert_eq!(status.code(), Code::NotFound, "{status:?}"),
        }
    }
    runs
}
