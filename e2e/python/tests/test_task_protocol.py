"""The protocol between server and worker, by hand: tokens, command validation, sticky queues, paging."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest
from temporalio.api.command.v1 import (
    CancelTimerCommandAttributes,
    Command,
    CompleteWorkflowExecutionCommandAttributes,
    ContinueAsNewWorkflowExecutionCommandAttributes,
    FailWorkflowExecutionCommandAttributes,
    RecordMarkerCommandAttributes,
    RequestCancelActivityTaskCommandAttributes,
    SignalExternalWorkflowExecutionCommandAttributes,
    StartChildWorkflowExecutionCommandAttributes,
    StartTimerCommandAttributes,
    UpsertWorkflowSearchAttributesCommandAttributes,
)
from temporalio.api.common.v1 import ActivityType, WorkflowType
from temporalio.api.enums.v1 import CommandType, TaskQueueKind, WorkflowTaskFailedCause
from temporalio.api.taskqueue.v1 import StickyExecutionAttributes, TaskQueue
from temporalio.api.workflowservice import v1 as api
from temporalio.client import Client
from temporalio.service import RPCStatusCode

from raw import RawWorker, complete_workflow, duration, schedule_activity, start_timer
from support import WORKFLOW_TASK, attributes_of, event_types, events_of, new_id, payloads, rpc_error, types_of


async def test_what_a_workflow_task_tells(client: Client) -> None:
    raw = RawWorker(client)
    handle = await raw.start(workflow="AnyType")
    task = await raw.poll_workflow()
    assert task.workflow_execution.workflow_id == handle.id
    assert task.workflow_execution.run_id == handle.run_id
    assert task.workflow_type.name == "AnyType"
    assert task.attempt == 1
    assert task.previous_started_event_id == 0
    assert task.started_event_id == 3
    assert types_of(task.history.events) == ["WorkflowExecutionStarted", *WORKFLOW_TASK[:2]]
    assert task.HasField("scheduled_time") and task.HasField("started_time")
    await raw.complete(task, start_timer())
    await handle.signal("knock")
    task = await raw.poll_workflow()
    assert task.previous_started_event_id == 3
    assert task.started_event_id == 8
    await handle.terminate()


async def test_an_answered_task_token_is_stale(client: Client) -> None:
    raw = RawWorker(client)
    handle = await raw.start()
    task = await raw.poll_workflow()
    await raw.complete(task, start_timer())
    before = await event_types(handle)
    with rpc_error(RPCStatusCode.NOT_FOUND):
        await raw.complete(task, start_timer("another"))
    with rpc_error(RPCStatusCode.NOT_FOUND):
        await raw.fail(task)
    assert await event_types(handle) == before
    await handle.terminate()


async def test_a_token_of_the_attempt_before_is_stale(client: Client) -> None:
    raw = RawWorker(client)
    handle = await raw.start()
    first = await raw.poll_workflow()
    await raw.fail(first)
    second = await raw.poll_workflow()
    assert second.attempt == 2
    with rpc_error(RPCStatusCode.NOT_FOUND):
        await raw.complete(first, start_timer())
    await raw.complete(second, complete_workflow())
    assert await event_types(handle) == [
        "WorkflowExecutionStarted",
        *("WorkflowTaskScheduled", "WorkflowTaskStarted", "WorkflowTaskFailed"),
        *WORKFLOW_TASK,
        "WorkflowExecutionCompleted",
    ]


async def test_transient_attempts_are_shown_to_the_worker_only(client: Client) -> None:
    raw = RawWorker(client)
    handle = await raw.start()
    await raw.fail(await raw.poll_workflow())
    task = await raw.poll_workflow()
    assert types_of(task.history.events)[-2:] == WORKFLOW_TASK[:2]
    assert task.history.events[-1].event_id == task.started_event_id == 6
    assert (await event_types(handle))[-1] == "WorkflowTaskFailed", "not written before it is completed"
    await handle.terminate()


async def test_a_task_that_nobody_answers_times_out(client: Client) -> None:
    raw = RawWorker(client)
    handle = await raw.start(workflow_task_timeout=duration(1))
    first = await raw.poll_workflow()
    second = await raw.poll_workflow()
    assert second.attempt == 2
    with rpc_error(RPCStatusCode.NOT_FOUND):
        await raw.complete(first, start_timer())
    await raw.complete(second, complete_workflow())
    events = await events_of(handle)
    assert types_of(events) == [
        "WorkflowExecutionStarted",
        *("WorkflowTaskScheduled", "WorkflowTaskStarted", "WorkflowTaskTimedOut"),
        *WORKFLOW_TASK,
        "WorkflowExecutionCompleted",
    ]
    assert attributes_of(events[3]).timeout_type == 1, "start-to-close"


async def test_stale_activity_tokens(client: Client) -> None:
    raw = RawWorker(client)
    handle = await raw.start()
    await raw.complete(await raw.poll_workflow(), schedule_activity(raw.task_queue))
    task = await raw.poll_activity()
    assert task.activity_id == "activity"
    assert task.attempt == 1
    complete = api.RespondActivityTaskCompletedRequest(
        namespace="default", task_token=task.task_token, result=payloads("result")
    )
    await client.workflow_service.respond_activity_task_completed(complete)
    before = await event_types(handle)
    assert before[4:] == [
        "ActivityTaskScheduled",
        "ActivityTaskStarted",
        "ActivityTaskCompleted",
        "WorkflowTaskScheduled",
    ]
    service = client.workflow_service
    token = {"namespace": "default", "task_token": task.task_token}
    for late in (
        service.respond_activity_task_completed(complete),
        service.respond_activity_task_failed(api.RespondActivityTaskFailedRequest(**token)),
        service.respond_activity_task_canceled(api.RespondActivityTaskCanceledRequest(**token)),
        service.record_activity_task_heartbeat(api.RecordActivityTaskHeartbeatRequest(**token)),
    ):
        with rpc_error(RPCStatusCode.NOT_FOUND):
            await late
    assert await event_types(handle) == before
    await handle.terminate()


async def test_tokens_with_a_flipped_bit_change_nothing(client: Client) -> None:
    raw = RawWorker(client)
    handle = await raw.start()
    task = await raw.poll_workflow()
    before = await event_types(handle)
    for index in range(len(task.task_token)):
        flipped = bytearray(task.task_token)
        flipped[index] ^= 0x08
        forged = api.RespondWorkflowTaskCompletedRequest(
            namespace="default", task_token=bytes(flipped), commands=[start_timer()]
        )
        with rpc_error(RPCStatusCode.INVALID_ARGUMENT):
            await client.workflow_service.respond_workflow_task_completed(forged)
    assert await event_types(handle) == before
    await handle.terminate()


def command(kind: str, **attributes: Any) -> Command:
    [(name, value)] = attributes.items()
    result = Command(command_type=CommandType.Value(f"COMMAND_TYPE_{kind}"))
    getattr(result, f"{name}_command_attributes").CopyFrom(value)
    return result


BAD_COMMANDS: list[tuple[str, list[Command]]] = [
    (
        "BAD_SCHEDULE_ACTIVITY_ATTRIBUTES",
        [schedule_activity("queue", start_to_close_timeout=None)],
    ),
    ("BAD_SCHEDULE_ACTIVITY_ATTRIBUTES", [schedule_activity("queue", activity_id="")]),
    ("BAD_SCHEDULE_ACTIVITY_ATTRIBUTES", [schedule_activity("queue", activity_type=ActivityType())]),
    ("BAD_SCHEDULE_ACTIVITY_ATTRIBUTES", [schedule_activity("queue", start_to_close_timeout=duration(-1))]),
    ("SCHEDULE_ACTIVITY_DUPLICATE_ID", [schedule_activity("queue"), schedule_activity("queue")]),
    ("BAD_START_TIMER_ATTRIBUTES", [start_timer("")]),
    ("BAD_START_TIMER_ATTRIBUTES", [start_timer("timer", -1)]),
    (
        "BAD_START_TIMER_ATTRIBUTES",
        [
            command(
                "START_TIMER",
                start_timer=StartTimerCommandAttributes(timer_id="x" * 1001, start_to_fire_timeout=duration(1)),
            )
        ],
    ),
    ("START_TIMER_DUPLICATE_ID", [start_timer(), start_timer()]),
    ("BAD_CANCEL_TIMER_ATTRIBUTES", [command("CANCEL_TIMER", cancel_timer=CancelTimerCommandAttributes())]),
    (
        "BAD_CANCEL_TIMER_ATTRIBUTES",
        [command("CANCEL_TIMER", cancel_timer=CancelTimerCommandAttributes(timer_id="unknown"))],
    ),
    ("BAD_RECORD_MARKER_ATTRIBUTES", [command("RECORD_MARKER", record_marker=RecordMarkerCommandAttributes())]),
    (
        "BAD_REQUEST_CANCEL_ACTIVITY_ATTRIBUTES",
        [
            command(
                "REQUEST_CANCEL_ACTIVITY_TASK",
                request_cancel_activity_task=RequestCancelActivityTaskCommandAttributes(scheduled_event_id=99),
            )
        ],
    ),
    (
        "BAD_FAIL_WORKFLOW_EXECUTION_ATTRIBUTES",
        [command("FAIL_WORKFLOW_EXECUTION", fail_workflow_execution=FailWorkflowExecutionCommandAttributes())],
    ),
    (
        "BAD_SIGNAL_WORKFLOW_EXECUTION_ATTRIBUTES",
        [
            command(
                "SIGNAL_EXTERNAL_WORKFLOW_EXECUTION",
                signal_external_workflow_execution=SignalExternalWorkflowExecutionCommandAttributes(signal_name="s"),
            )
        ],
    ),
    (
        "BAD_START_CHILD_EXECUTION_ATTRIBUTES",
        [
            command(
                "START_CHILD_WORKFLOW_EXECUTION",
                start_child_workflow_execution=StartChildWorkflowExecutionCommandAttributes(workflow_id="child"),
            )
        ],
    ),
    (
        "BAD_CONTINUE_AS_NEW_ATTRIBUTES",
        [
            command(
                "CONTINUE_AS_NEW_WORKFLOW_EXECUTION",
                continue_as_new_workflow_execution=ContinueAsNewWorkflowExecutionCommandAttributes(
                    workflow_type=WorkflowType(name="x" * 1001)
                ),
            )
        ],
    ),
    (
        "BAD_SEARCH_ATTRIBUTES",
        [
            command(
                "UPSERT_WORKFLOW_SEARCH_ATTRIBUTES",
                upsert_workflow_search_attributes=UpsertWorkflowSearchAttributesCommandAttributes(),
            )
        ],
    ),
]


@pytest.mark.parametrize(("cause", "commands"), BAD_COMMANDS, ids=[case[0] for case in BAD_COMMANDS])
async def test_a_bad_command_fails_the_task_not_the_workflow(
    client: Client, cause: str, commands: list[Command]
) -> None:
    raw = RawWorker(client)
    handle = await raw.start()
    with rpc_error(RPCStatusCode.INVALID_ARGUMENT):
        await raw.complete(await raw.poll_workflow(), start_timer("good"), *commands)
    events = await events_of(handle)
    assert types_of(events)[:4] == [
        "WorkflowExecutionStarted", "WorkflowTaskScheduled", "WorkflowTaskStarted", "WorkflowTaskFailed",
    ], "none of the task's commands was done"  # fmt: skip
    assert WorkflowTaskFailedCause.Name(attributes_of(events[3]).cause) == f"WORKFLOW_TASK_FAILED_CAUSE_{cause}"
    assert attributes_of(events[3]).failure.message
    retry = await raw.poll_workflow()
    assert retry.attempt == 2
    await raw.complete(retry, complete_workflow())
    assert (await event_types(handle))[-1] == "WorkflowExecutionCompleted"


async def test_commands_after_the_closing_one(client: Client) -> None:
    raw = RawWorker(client)
    handle = await raw.start()
    closing = CompleteWorkflowExecutionCommandAttributes(result=payloads("done"))
    done = command("COMPLETE_WORKFLOW_EXECUTION", complete_workflow_execution=closing)
    await raw.complete(await raw.poll_workflow(), start_timer(), done)
    assert (await event_types(handle))[-2:] == ["TimerStarted", "WorkflowExecutionCompleted"]
    assert await handle.result() == "done"


async def test_forced_new_task_in_the_response(client: Client) -> None:
    """What long local activities need: the task is completed and the next one comes back in the response."""
    raw = RawWorker(client)
    handle = await raw.start()
    task = await raw.poll_workflow()
    for _ in range(3):
        response = await raw.complete(task, force_create_new_workflow_task=True, return_new_workflow_task=True)
        task = response.workflow_task
        assert task.task_token
        assert task.attempt == 1
    await raw.complete(task, complete_workflow())
    assert await event_types(handle) == ["WorkflowExecutionStarted", *WORKFLOW_TASK * 4, "WorkflowExecutionCompleted"]


def sticky(name: str, seconds: float = 5) -> StickyExecutionAttributes:
    return StickyExecutionAttributes(
        worker_task_queue=TaskQueue(name=name, kind=TaskQueueKind.TASK_QUEUE_KIND_STICKY),
        schedule_to_start_timeout=duration(seconds),
    )


def poll_sticky(raw: RawWorker, name: str) -> asyncio.Task[api.PollWorkflowTaskQueueResponse]:
    queue = TaskQueue(name=name, kind=TaskQueueKind.TASK_QUEUE_KIND_STICKY, normal_name=raw.task_queue)
    request = api.PollWorkflowTaskQueueRequest(namespace="default", task_queue=queue, identity="raw-worker")
    return asyncio.create_task(raw.service.poll_workflow_task_queue(request))


async def test_a_sticky_queue_gets_new_events_only(client: Client) -> None:
    raw, name = RawWorker(client), new_id("sticky")
    handle = await raw.start()
    waiting = poll_sticky(raw, name)
    await raw.complete(await raw.poll_workflow(), start_timer(), sticky_attributes=sticky(name))
    await handle.signal("knock")
    task = await waiting
    assert task.history.events[0].event_id == 4, "what came after the last started task"
    assert types_of(task.history.events) == [
        "WorkflowTaskCompleted", "TimerStarted", "WorkflowExecutionSignaled", *WORKFLOW_TASK[:2],
    ]  # fmt: skip
    scheduled = [event for event in await events_of(handle) if types_of([event]) == ["WorkflowTaskScheduled"]]
    assert attributes_of(scheduled[1]).task_queue.name == name
    assert attributes_of(scheduled[1]).task_queue.normal_name == raw.task_queue
    await handle.terminate()


async def test_a_sticky_queue_that_nobody_polls_any_more_falls_back(client: Client) -> None:
    raw, name = RawWorker(client), new_id("sticky")
    handle = await raw.start()
    await raw.complete(await raw.poll_workflow(), start_timer(), sticky_attributes=sticky(name, 1))
    await handle.signal("knock")
    task = await raw.poll_workflow()
    assert task.history.events[0].event_id == 1, "the whole history"
    assert types_of(task.history.events)[-2:] == WORKFLOW_TASK[:2]
    await raw.complete(task, complete_workflow())
    assert (await event_types(handle))[-1] == "WorkflowExecutionCompleted"


async def test_reset_sticky_task_queue(client: Client) -> None:
    raw, name = RawWorker(client), new_id("sticky")
    handle = await raw.start()
    await raw.complete(await raw.poll_workflow(), start_timer(), sticky_attributes=sticky(name, 60))
    request = api.ResetStickyTaskQueueRequest(namespace="default")
    request.execution.workflow_id = handle.id
    await client.workflow_service.reset_sticky_task_queue(request)
    await handle.signal("knock")
    task = await raw.poll_workflow()
    assert task.history.events[0].event_id == 1
    await handle.terminate()


async def test_a_poll_without_tasks_ends_empty(client: Client) -> None:
    """A long poll ends with an empty response before the client's deadline."""
    raw = RawWorker(client)
    request = api.PollWorkflowTaskQueueRequest(namespace="default", task_queue=TaskQueue(name=raw.task_queue))
    response = await client.workflow_service.poll_workflow_task_queue(request, timeout=timedelta(seconds=5))
    assert response.task_token == b""
    activity = api.PollActivityTaskQueueRequest(namespace="default", task_queue=TaskQueue(name=raw.task_queue))
    response = await client.workflow_service.poll_activity_task_queue(activity, timeout=timedelta(seconds=5))
    assert response.task_token == b""
