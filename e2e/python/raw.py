"""A worker that speaks the protocol by hand, for what no SDK would do."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration
from temporalio.api.command.v1 import (
    Command,
    CompleteWorkflowExecutionCommandAttributes,
    ScheduleActivityTaskCommandAttributes,
    StartTimerCommandAttributes,
)
from temporalio.api.common.v1 import ActivityType
from temporalio.api.enums.v1 import CommandType, WorkflowTaskFailedCause
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    PollActivityTaskQueueRequest,
    PollActivityTaskQueueResponse,
    PollWorkflowTaskQueueRequest,
    PollWorkflowTaskQueueResponse,
    RespondWorkflowTaskCompletedRequest,
    RespondWorkflowTaskCompletedResponse,
    RespondWorkflowTaskFailedRequest,
)
from temporalio.client import Client, WorkflowHandle

from support import new_id, start_request

POLL = timedelta(seconds=30)


class RawWorker:
    def __init__(self, client: Client, task_queue: str | None = None) -> None:
        self.client = client
        self.service = client.workflow_service
        self.task_queue = task_queue or new_id("queue")

    async def start(self, **fields: Any) -> WorkflowHandle[Any, Any]:
        """Start a workflow whose tasks this worker polls."""
        workflow_id = fields.pop("workflow_id", new_id())
        response = await self.service.start_workflow_execution(start_request(workflow_id, self.task_queue, **fields))
        return self.client.get_workflow_handle(workflow_id, run_id=response.run_id)

    async def poll_workflow(
        self, task_queue: str | None = None, timeout: timedelta = POLL
    ) -> PollWorkflowTaskQueueResponse:
        request = PollWorkflowTaskQueueRequest(
            namespace=self.client.namespace,
            task_queue=TaskQueue(name=task_queue or self.task_queue),
            identity="raw-worker",
        )
        return await self.service.poll_workflow_task_queue(request, timeout=timeout)

    async def poll_activity(self, timeout: timedelta = POLL) -> PollActivityTaskQueueResponse:
        request = PollActivityTaskQueueRequest(
            namespace=self.client.namespace, task_queue=TaskQueue(name=self.task_queue), identity="raw-worker"
        )
        return await self.service.poll_activity_task_queue(request, timeout=timeout)

    async def complete(
        self, task: PollWorkflowTaskQueueResponse, *commands: Command, **fields: Any
    ) -> RespondWorkflowTaskCompletedResponse:
        request = RespondWorkflowTaskCompletedRequest(
            namespace=self.client.namespace,
            task_token=task.task_token,
            identity="raw-worker",
            commands=commands,
            **fields,
        )
        return await self.service.respond_workflow_task_completed(request)

    async def fail(self, task: PollWorkflowTaskQueueResponse) -> None:
        request = RespondWorkflowTaskFailedRequest(
            namespace=self.client.namespace,
            task_token=task.task_token,
            identity="raw-worker",
            cause=WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_WORKFLOW_WORKER_UNHANDLED_FAILURE,
        )
        await self.service.respond_workflow_task_failed(request)


def duration(seconds: float) -> Duration:
    result = Duration()
    result.FromTimedelta(timedelta(seconds=seconds))
    return result


def complete_workflow() -> Command:
    return Command(
        command_type=CommandType.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION,
        complete_workflow_execution_command_attributes=CompleteWorkflowExecutionCommandAttributes(),
    )


def start_timer(timer_id: str = "timer", seconds: float = 60) -> Command:
    return Command(
        command_type=CommandType.COMMAND_TYPE_START_TIMER,
        start_timer_command_attributes=StartTimerCommandAttributes(
            timer_id=timer_id, start_to_fire_timeout=duration(seconds)
        ),
    )


def schedule_activity(task_queue: str, activity_id: str = "activity", **fields: Any) -> Command:
    usual: dict[str, Any] = {
        "activity_id": activity_id,
        "activity_type": ActivityType(name="AnyActivity"),
        "task_queue": TaskQueue(name=task_queue),
        "start_to_close_timeout": duration(30),
    }
    usual.update(fields)
    return Command(
        command_type=CommandType.COMMAND_TYPE_SCHEDULE_ACTIVITY_TASK,
        schedule_activity_task_command_attributes=ScheduleActivityTaskCommandAttributes(
            **{name: value for name, value in usual.items() if value is not None}
        ),
    )


def request_id() -> str:
    return str(uuid.uuid4())
