"""Reading: pages, long polls, the closing event, reverse order, describe."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.api.enums.v1 import HistoryEventFilterType, PendingWorkflowTaskState
from temporalio.api.enums.v1 import WorkflowExecutionStatus as RawStatus
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import (
    GetWorkflowExecutionHistoryRequest,
    GetWorkflowExecutionHistoryResponse,
    GetWorkflowExecutionHistoryReverseRequest,
    GetWorkflowExecutionHistoryReverseResponse,
)
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle, WorkflowHistoryEventFilterType

from raw import RawWorker, complete_workflow, schedule_activity, start_timer
from support import SOON, WORKFLOW_TASK, event_types, events_of, execution, new_id, run_worker, types_of


@workflow.defn
class Chain:
    """Continues as new after each signal, twice."""

    def __init__(self) -> None:
        self.told = False

    @workflow.run
    async def run(self, left: int) -> str:
        await workflow.wait_condition(lambda: self.told)
        if left:
            workflow.continue_as_new(left - 1)
        return "end of the chain"

    @workflow.signal
    def go_on(self) -> None:
        self.told = True


async def read(
    client: Client, handle: WorkflowHandle[Any, Any], timeout: timedelta = SOON, **fields: Any
) -> GetWorkflowExecutionHistoryResponse:
    request = GetWorkflowExecutionHistoryRequest(namespace="default", execution=execution(handle), **fields)
    return await client.workflow_service.get_workflow_execution_history(request, timeout=timeout)


async def reverse(
    client: Client, handle: WorkflowHandle[Any, Any], **fields: Any
) -> GetWorkflowExecutionHistoryReverseResponse:
    request = GetWorkflowExecutionHistoryReverseRequest(namespace="default", execution=execution(handle), **fields)
    return await client.workflow_service.get_workflow_execution_history_reverse(request)


async def with_signals(raw: RawWorker, count: int) -> WorkflowHandle[Any, Any]:
    handle = await raw.start()
    for i in range(count):
        await handle.signal(f"signal-{i}")
    return handle


async def test_pages(client: Client) -> None:
    handle = await with_signals(RawWorker(client), 20)
    whole = (await read(client, handle)).history.events
    events: list[HistoryEvent] = []
    token = b""
    while True:
        page = await read(client, handle, maximum_page_size=5, next_page_token=token)
        events += page.history.events
        token = page.next_page_token
        if not token:
            break
    assert [event.event_id for event in events] == list(range(1, 23))
    assert events == list(whole)
    assert [event async for event in handle.fetch_history_events(page_size=3)] == events
    await handle.terminate()


async def test_reverse(client: Client) -> None:
    handle = await with_signals(RawWorker(client), 12)
    forward = list((await read(client, handle)).history.events)
    assert list((await reverse(client, handle)).history.events) == forward[::-1]
    events: list[HistoryEvent] = []
    token = b""
    while True:
        page = await reverse(client, handle, maximum_page_size=5, next_page_token=token)
        events += page.history.events
        token = page.next_page_token
        if not token:
            break
    assert events == forward[::-1]
    await handle.terminate()


async def test_long_poll_for_new_events(client: Client) -> None:
    raw = RawWorker(client)
    handle = await raw.start()
    first = await read(client, handle, wait_new_event=True)
    assert types_of(first.history.events) == ["WorkflowExecutionStarted", "WorkflowTaskScheduled"]
    assert first.next_page_token
    waiting = asyncio.create_task(read(client, handle, wait_new_event=True, next_page_token=first.next_page_token))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await handle.signal("knock")
    second = await waiting
    assert types_of(second.history.events) == ["WorkflowExecutionSignaled"]
    waiting = asyncio.create_task(read(client, handle, wait_new_event=True, next_page_token=second.next_page_token))
    await handle.terminate()
    last = await waiting
    assert types_of(last.history.events) == ["WorkflowExecutionTerminated"]
    assert not last.next_page_token


async def test_long_poll_ends_before_the_deadline(client: Client) -> None:
    raw = RawWorker(client)
    handle = await raw.start()
    first = await read(client, handle, wait_new_event=True)
    token = first.next_page_token
    page = await read(client, handle, timedelta(seconds=5), wait_new_event=True, next_page_token=token)
    assert not page.history.events
    assert page.next_page_token, "with which the client goes on"
    waiting = asyncio.create_task(read(client, handle, wait_new_event=True, next_page_token=page.next_page_token))
    await handle.signal("knock")
    assert types_of((await waiting).history.events) == ["WorkflowExecutionSignaled"]
    await handle.terminate()


async def test_many_long_polls_at_once(client: Client) -> None:
    raw = RawWorker(client)
    handle = await raw.start()
    token = (await read(client, handle, wait_new_event=True)).next_page_token
    waiting = [asyncio.create_task(read(client, handle, wait_new_event=True, next_page_token=token)) for _ in range(20)]
    await asyncio.sleep(0.1)
    await handle.signal("knock")
    for page in await asyncio.gather(*waiting):
        assert types_of(page.history.events) == ["WorkflowExecutionSignaled"]
    await handle.terminate()


async def test_closing_event_of_a_closed_run(client: Client) -> None:
    raw = RawWorker(client)
    handle = await raw.start()
    await raw.complete(await raw.poll_workflow(), complete_workflow())
    closing = HistoryEventFilterType.HISTORY_EVENT_FILTER_TYPE_CLOSE_EVENT
    for wait in (False, True):
        page = await read(client, handle, history_event_filter_type=closing, wait_new_event=wait)
        assert types_of(page.history.events) == ["WorkflowExecutionCompleted"]
        assert page.history.events[0].event_id == 5
        assert not page.next_page_token


async def test_closing_event_of_an_open_run(client: Client) -> None:
    raw = RawWorker(client)
    handle = await raw.start()
    closing = HistoryEventFilterType.HISTORY_EVENT_FILTER_TYPE_CLOSE_EVENT
    waiting = asyncio.create_task(read(client, handle, history_event_filter_type=closing, wait_new_event=True))
    await handle.signal("this is not the end")
    await asyncio.sleep(0.2)
    assert not waiting.done()
    await handle.terminate()
    assert types_of((await waiting).history.events) == ["WorkflowExecutionTerminated"]


async def test_follow_the_events_of_a_run_with_the_sdk(client: Client) -> None:
    raw = RawWorker(client)
    handle = await raw.start()

    async def follow() -> list[str]:
        return types_of([event async for event in handle.fetch_history_events(wait_new_event=True)])

    following = asyncio.create_task(follow())
    await handle.signal("one")
    task = await raw.poll_workflow()
    await raw.complete(task, start_timer())
    await handle.signal("two")
    await raw.complete(await raw.poll_workflow(), complete_workflow())
    assert await following == await event_types(handle)


async def test_result_across_continue_as_new(client: Client) -> None:
    async with run_worker(client, [Chain]) as task_queue:
        handle = await client.start_workflow(
            Chain.run, 2, id=new_id(), task_queue=task_queue, execution_timeout=timedelta(minutes=1)
        )
        waiting = [asyncio.create_task(handle.result()) for _ in range(3)]
        current = client.get_workflow_handle_for(Chain.run, handle.id)
        seen: set[str] = set()
        while len(seen) < 3:
            run_id = (await current.describe()).run_id
            if run_id not in seen:
                seen.add(run_id)
                await client.get_workflow_handle_for(Chain.run, handle.id, run_id=run_id).signal(Chain.go_on)
            await asyncio.sleep(0.02)
        assert await asyncio.gather(*waiting) == ["end of the chain"] * 3
        closing = [
            event
            async for event in handle.fetch_history_events(
                event_filter_type=WorkflowHistoryEventFilterType.CLOSE_EVENT, wait_new_event=True
            )
        ]
        assert types_of(closing)[-1] in ("WorkflowExecutionContinuedAsNew", "WorkflowExecutionCompleted")


async def test_describe_an_open_run(client: Client) -> None:
    raw = RawWorker(client)
    handle = await raw.start(workflow="AnyType")
    waiting = (await handle.describe()).raw_description
    assert waiting.pending_workflow_task.state == PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_SCHEDULED
    task = await raw.poll_workflow()
    running = (await handle.describe()).raw_description
    assert running.pending_workflow_task.state == PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_STARTED
    assert running.pending_workflow_task.attempt == 1
    await raw.complete(task, schedule_activity(raw.task_queue, "an-activity"), start_timer())

    described = (await handle.describe()).raw_description
    info = described.workflow_execution_info
    assert info.execution.workflow_id == handle.id
    assert info.execution.run_id == handle.run_id
    assert info.type.name == "AnyType"
    assert info.status == RawStatus.WORKFLOW_EXECUTION_STATUS_RUNNING
    assert info.history_length == 6
    assert info.task_queue == raw.task_queue
    assert info.HasField("start_time") and info.HasField("execution_time")
    assert not info.HasField("close_time")
    assert info.state_transition_count > 0
    assert info.first_run_id == handle.run_id
    assert info.root_execution.workflow_id == handle.id
    assert not described.HasField("pending_workflow_task")
    assert [pending.activity_id for pending in described.pending_activities] == ["an-activity"]
    assert described.execution_config.task_queue.name == raw.task_queue
    assert described.execution_config.default_workflow_task_timeout.seconds == 10
    await handle.terminate()


async def test_describe_a_closed_run(client: Client) -> None:
    raw = RawWorker(client)
    handle = await raw.start()
    await raw.complete(await raw.poll_workflow(), schedule_activity(raw.task_queue), complete_workflow())
    description = await handle.describe()
    assert description.status == WorkflowExecutionStatus.COMPLETED
    assert description.close_time is not None and description.close_time >= description.start_time
    assert description.history_length == 6
    info = description.raw_description.workflow_execution_info
    assert info.history_size_bytes > 0
    # Temporal goes on listing the activities that were pending when the run closed, so nothing is said about them here.


async def test_event_fields(client: Client) -> None:
    handle = await with_signals(RawWorker(client), 3)
    events = await events_of(handle)
    assert all(event.HasField("event_time") for event in events)
    assert all(event.task_id > 0 for event in events)
    assert [event.task_id for event in events] == sorted(event.task_id for event in events)
    await handle.terminate()
    assert (await event_types(handle))[:2] == ["WorkflowExecutionStarted", WORKFLOW_TASK[0]]
