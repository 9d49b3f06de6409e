"""Cancellation that reaches a heartbeating activity, a saga that compensates, termination."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import timedelta

import pytest
from temporalio import activity, workflow
from temporalio.api.workflowservice.v1 import RequestCancelWorkflowExecutionRequest, TerminateWorkflowExecutionRequest
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError, TerminatedError
from temporalio.service import RPCStatusCode

from raw import RawWorker, complete_workflow
from support import (
    SOON,
    WORKFLOW_TASK,
    attributes_of,
    event_types,
    events_of,
    eventually,
    execution,
    new_id,
    only,
    rpc_error,
    run_worker,
    types_of,
)

EFFECTS: dict[str, list[str]] = defaultdict(list)
"""What the saga's activities did, by workflow id."""


@activity.defn
async def work_until_cancelled() -> str:
    try:
        while True:
            activity.heartbeat("working")
            await asyncio.sleep(0.05)
    except asyncio.CancelledError:
        assert activity.cancellation_details() is not None
        return "tidied up"


@workflow.defn
class LongWork:
    @workflow.run
    async def run(self) -> str:
        return await workflow.execute_activity(
            work_until_cancelled,
            start_to_close_timeout=SOON,
            heartbeat_timeout=timedelta(seconds=20),
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )


@activity.defn
async def book(what: str) -> str:
    if what == "car":
        raise ApplicationError("no cars left", non_retryable=True)
    EFFECTS[activity.info().workflow_id or ""].append(f"book {what}")
    return what


@activity.defn
async def unbook(what: str) -> None:
    EFFECTS[activity.info().workflow_id or ""].append(f"unbook {what}")


@workflow.defn
class Trip:
    """A saga: whatever goes wrong, also cancellation, what was booked is given back in reverse order."""

    def __init__(self) -> None:
        self.stage = ""

    @workflow.run
    async def run(self, legs: list[str]) -> str:
        booked: list[str] = []
        try:
            for leg in legs:
                if leg == "pause":
                    self.stage = "paused"
                    await workflow.sleep(timedelta(hours=1))
                    continue
                booked.append(await workflow.execute_activity(book, leg, start_to_close_timeout=SOON))
        except (ActivityError, asyncio.CancelledError):
            for leg in reversed(booked):
                await workflow.execute_activity(unbook, leg, start_to_close_timeout=SOON)
            raise
        return "booked"

    @workflow.query
    def get_stage(self) -> str:
        return self.stage


@workflow.defn
class IgnoresCancel:
    @workflow.run
    async def run(self) -> str:
        try:
            await workflow.sleep(timedelta(hours=1))
        except asyncio.CancelledError:
            pass
        return "done anyway"


async def test_cancellation_reaches_a_heartbeating_activity(client: Client) -> None:
    short = timedelta(milliseconds=100)
    async with run_worker(
        client, [LongWork], [work_until_cancelled], max_heartbeat_throttle_interval=short
    ) as task_queue:
        handle = await client.start_workflow(LongWork.run, id=new_id(), task_queue=task_queue, execution_timeout=SOON)

        async def working() -> bool:
            pending = (await handle.describe()).raw_description.pending_activities
            return bool(pending and pending[0].heartbeat_details.payloads)

        await eventually(working)
        await handle.cancel()
        # The activity may answer a cancellation with a result; then the workflow goes on with it.
        assert await handle.result() == "tidied up"
    types = await event_types(handle)
    assert types == [
        "WorkflowExecutionStarted", *WORKFLOW_TASK,
        "ActivityTaskScheduled",
        "WorkflowExecutionCancelRequested", *WORKFLOW_TASK,
        "ActivityTaskCancelRequested", "ActivityTaskStarted", "ActivityTaskCompleted",
        *WORKFLOW_TASK, "WorkflowExecutionCompleted",
    ]  # fmt: skip


async def test_saga_compensates_when_a_step_fails(client: Client) -> None:
    async with run_worker(client, [Trip], [book, unbook]) as task_queue:
        handle = await client.start_workflow(
            Trip.run, ["flight", "hotel", "car"], id=new_id(), task_queue=task_queue, execution_timeout=SOON
        )
        with pytest.raises(WorkflowFailureError) as failure:
            await handle.result()
    assert isinstance(failure.value.cause, ActivityError)
    assert EFFECTS[handle.id] == ["book flight", "book hotel", "unbook hotel", "unbook flight"]


async def test_saga_compensates_when_it_is_cancelled(client: Client) -> None:
    async with run_worker(client, [Trip], [book, unbook]) as task_queue:
        handle = await client.start_workflow(
            Trip.run, ["flight", "hotel", "pause"], id=new_id(), task_queue=task_queue, execution_timeout=SOON
        )

        async def paused() -> bool:
            return await handle.query(Trip.get_stage) == "paused"

        await eventually(paused)
        await handle.cancel()
        with pytest.raises(WorkflowFailureError) as failure:
            await handle.result()
    assert isinstance(failure.value.cause, CancelledError)
    assert EFFECTS[handle.id] == ["book flight", "book hotel", "unbook hotel", "unbook flight"]
    assert (await handle.describe()).status == WorkflowExecutionStatus.CANCELED
    types = await event_types(handle)
    assert types[-1] == "WorkflowExecutionCanceled"
    assert types.count("WorkflowExecutionCancelRequested") == 1
    assert "TimerCanceled" in types


async def test_a_workflow_may_ignore_cancellation(client: Client) -> None:
    async with run_worker(client, [IgnoresCancel]) as task_queue:
        handle = await client.start_workflow(
            IgnoresCancel.run, id=new_id(), task_queue=task_queue, execution_timeout=SOON
        )
        await eventually(lambda: _has(handle, "TimerStarted"))
        await handle.cancel()
        assert await handle.result() == "done anyway"
    assert (await handle.describe()).status == WorkflowExecutionStatus.COMPLETED


async def _has(handle, name: str) -> bool:
    return name in await event_types(handle)


async def test_cancellation_is_requested_once(client: Client) -> None:
    raw = RawWorker(client)
    handle = await raw.start()
    request = RequestCancelWorkflowExecutionRequest(
        namespace="default",
        workflow_execution=execution(handle),
        request_id="the-request",
        identity="somebody",
        reason="changed my mind",
    )
    await client.workflow_service.request_cancel_workflow_execution(request)
    await client.workflow_service.request_cancel_workflow_execution(request)
    request.request_id = "another"
    await client.workflow_service.request_cancel_workflow_execution(request)
    requested = attributes_of(only(await events_of(handle), "WorkflowExecutionCancelRequested"))
    assert requested.identity == "somebody"
    assert requested.cause == "changed my mind"
    await handle.terminate()


async def test_cancel_of_a_closed_or_unknown_run(client: Client) -> None:
    raw = RawWorker(client)
    handle = await raw.start()
    await raw.complete(await raw.poll_workflow(), complete_workflow())
    before = await event_types(handle)
    await handle.cancel()  # no error
    assert await event_types(handle) == before
    with rpc_error(RPCStatusCode.NOT_FOUND):
        await client.get_workflow_handle(new_id("nobody")).cancel()


async def test_cancel_with_the_wrong_first_run(client: Client) -> None:
    raw = RawWorker(client)
    handle = await raw.start()
    wrong = client.get_workflow_handle(handle.id, first_execution_run_id="01234567-89ab-cdef-0123-456789abcdef")
    with rpc_error(RPCStatusCode.NOT_FOUND):
        await wrong.cancel()
    with rpc_error(RPCStatusCode.NOT_FOUND):
        await wrong.terminate()
    await handle.terminate()


async def test_terminate(client: Client) -> None:
    raw = RawWorker(client)
    handle = await raw.start()
    task = await raw.poll_workflow()
    await handle.terminate("a", "b", reason="because")
    events = await events_of(handle)
    terminated = attributes_of(events[-1])
    assert terminated.reason == "because"
    assert [payload.data for payload in terminated.details.payloads] == [b'"a"', b'"b"']
    assert terminated.identity
    with pytest.raises(WorkflowFailureError) as failure:
        await handle.result()
    assert isinstance(failure.value.cause, TerminatedError)
    with rpc_error(RPCStatusCode.NOT_FOUND):
        await raw.complete(task, complete_workflow())
    with rpc_error(RPCStatusCode.NOT_FOUND, "workflow execution already completed"):
        await handle.terminate()
    assert await event_types(handle) == types_of(events)


async def test_terminate_of_an_unknown_run(client: Client) -> None:
    request = TerminateWorkflowExecutionRequest(namespace="default")
    request.workflow_execution.workflow_id = new_id("nobody")
    with rpc_error(RPCStatusCode.NOT_FOUND):
        await client.workflow_service.terminate_workflow_execution(request)


async def test_terminate_while_a_task_runs_ends_the_task_too(client: Client) -> None:
    raw = RawWorker(client)
    handle = await raw.start()
    await raw.poll_workflow()
    await handle.signal("buffered")
    await handle.terminate()
    types = await event_types(handle)
    assert types[:3] == ["WorkflowExecutionStarted", "WorkflowTaskScheduled", "WorkflowTaskStarted"]
    assert types[-1] == "WorkflowExecutionTerminated"
    assert "WorkflowExecutionSignaled" in types, "an acknowledged signal is in the history, even so"
