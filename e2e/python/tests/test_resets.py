"""Resets: a run that began wrong begins again, with a worker that knows better."""

from __future__ import annotations

import uuid
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity, workflow
from temporalio.api.enums.v1 import ResetReapplyExcludeType
from temporalio.api.workflowservice.v1 import (
    DescribeWorkflowExecutionRequest,
    ResetWorkflowExecutionRequest,
)
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle
from temporalio.service import RPCStatusCode

from support import (
    attributes_of,
    event_types,
    events_of,
    eventually,
    execution,
    new_id,
    only,
    rpc_error,
    run_worker,
    type_of,
)

TIMEOUT = timedelta(seconds=30)


@activity.defn
async def add(number: int) -> int:
    return number + 1


@workflow.defn
class Counter:
    def __init__(self) -> None:
        self.total = 0
        self.ended = False

    @workflow.run
    async def run(self) -> int:
        added = await workflow.execute_activity(add, 0, start_to_close_timeout=TIMEOUT)
        self.total += added
        await workflow.wait_condition(lambda: self.ended)
        return self.total

    @workflow.signal
    def count(self, number: int) -> None:
        self.total += number

    @workflow.signal
    def end(self) -> None:
        self.ended = True

    @workflow.update
    def raise_by(self, number: int) -> int:
        self.total += number
        return self.total


async def reset(handle: WorkflowHandle[Any, Any], finish: int, **fields: Any) -> WorkflowHandle[Any, Any]:
    client = handle._client
    response = await client.workflow_service.reset_workflow_execution(
        ResetWorkflowExecutionRequest(
            namespace="default",
            workflow_execution=execution(handle),
            reason="wrong turn",
            workflow_task_finish_event_id=finish,
            request_id=fields.pop("request_id", str(uuid.uuid4())),
            **fields,
        )
    )
    return client.get_workflow_handle(handle.id, run_id=response.run_id)


async def first_task(handle: WorkflowHandle[Any, Any]) -> int:
    async def completed() -> list[int]:
        return [e.event_id for e in await events_of(handle) if type_of(e) == "WorkflowTaskCompleted"]

    return (await eventually(completed))[0]


async def test_signals_and_updates_come_along(client: Client) -> None:
    async with run_worker(client, [Counter], [add]) as queue:
        handle = await client.start_workflow(Counter.run, id=new_id(), task_queue=queue)
        await handle.signal(Counter.count, 10)
        assert await handle.execute_update(Counter.raise_by, 100) >= 101
        await handle.signal(Counter.end)
        assert await handle.result() == 111

        again = await reset(handle, await first_task(handle))
        assert await again.result() == 111
        types = await event_types(again)
        assert types.count("WorkflowExecutionSignaled") == 2
        assert "WorkflowTaskFailed" in types and "WorkflowExecutionUpdateAdmitted" in types
        failed = attributes_of(only(await events_of(again), "WorkflowTaskFailed"))
        assert (failed.base_run_id, failed.new_run_id) == (handle.result_run_id, again.run_id)


async def test_a_running_workflow_is_terminated(client: Client) -> None:
    async with run_worker(client, [Counter], [add]) as queue:
        handle = await client.start_workflow(Counter.run, id=new_id(), task_queue=queue)
        old = client.get_workflow_handle(handle.id, run_id=handle.first_execution_run_id)
        finish = await first_task(old)
        await handle.signal(Counter.count, 5)
        again = await reset(
            old, finish, reset_reapply_exclude_types=[ResetReapplyExcludeType.RESET_REAPPLY_EXCLUDE_TYPE_SIGNAL]
        )
        assert (await old.describe()).status == WorkflowExecutionStatus.TERMINATED
        assert (await again.describe()).status == WorkflowExecutionStatus.RUNNING
        assert "WorkflowExecutionSignaled" not in await event_types(again)
        described = await client.workflow_service.describe_workflow_execution(
            DescribeWorkflowExecutionRequest(namespace="default", execution=execution(old))
        )
        assert described.workflow_extended_info.reset_run_id == again.run_id
        points = described.workflow_execution_info.auto_reset_points.points
        assert [p.first_workflow_task_completed_id for p in points] == [finish]
        await again.signal(Counter.end)
        assert await again.result() == 1


async def test_the_same_request_resets_once(client: Client) -> None:
    async with run_worker(client, [Counter], [add]) as queue:
        handle = await client.start_workflow(Counter.run, id=new_id(), task_queue=queue)
        run = client.get_workflow_handle(handle.id, run_id=handle.first_execution_run_id)
        await handle.signal(Counter.end)
        await handle.result()
        finish = await first_task(run)
        request_id = str(uuid.uuid4())
        first = await reset(run, finish, request_id=request_id)
        second = await reset(run, finish, request_id=request_id)
        assert first.run_id == second.run_id
        await first.result()


async def test_points_that_will_not_do(client: Client) -> None:
    async with run_worker(client, [Counter], [add]) as queue:
        handle = await client.start_workflow(Counter.run, id=new_id(), task_queue=queue)
        await handle.signal(Counter.end)
        await handle.result()
        for finish in (0, 1, 1000):
            with rpc_error(RPCStatusCode.INVALID_ARGUMENT, "Workflow task finish ID must be"):
                await reset(handle, finish)
        with rpc_error(RPCStatusCode.INVALID_ARGUMENT):
            await reset(handle, 2)
        with rpc_error(RPCStatusCode.NOT_FOUND):
            await reset(client.get_workflow_handle(new_id()), 4)


@workflow.defn
class QuickChild:
    def __init__(self) -> None:
        self.ended = False

    @workflow.run
    async def run(self) -> str:
        await workflow.wait_condition(lambda: self.ended)
        return "child"

    @workflow.signal
    def end(self) -> None:
        self.ended = True


@workflow.defn
class Parent:
    @workflow.run
    async def run(self, child_id: str) -> str:
        handle = await workflow.start_child_workflow(QuickChild.run, id=child_id)
        return await handle


async def test_children_belong_to_the_new_run(client: Client) -> None:
    async with run_worker(client, [Parent, QuickChild]) as queue:
        child_id = new_id("child")
        handle = await client.start_workflow(Parent.run, child_id, id=new_id(), task_queue=queue)
        old = client.get_workflow_handle(handle.id, run_id=handle.first_execution_run_id)

        async def second_task() -> int:
            types = [(type_of(e), e.event_id) for e in await events_of(old)]
            completed = [i for t, i in types if t == "WorkflowTaskCompleted"]
            assert len(completed) == 2
            return completed[1]

        finish = await eventually(second_task)
        again = await reset(old, finish)
        child = client.get_workflow_handle(child_id)
        assert (await child.describe()).status == WorkflowExecutionStatus.RUNNING
        await child.signal(QuickChild.end)
        assert await again.result() == "child"


@pytest.mark.kills_server
async def test_a_reset_run_outlives_the_server(new_server: Any) -> None:
    server = await new_server()
    client = await Client.connect(server.address)
    queue = new_id("queue")
    async with run_worker(client, [Counter], [add], task_queue=queue):
        handle = await client.start_workflow(Counter.run, id=new_id(), task_queue=queue)
        run = client.get_workflow_handle(handle.id, run_id=handle.first_execution_run_id)
        await handle.execute_update(Counter.raise_by, 1)
        again = await reset(run, await first_task(run))
        server.kill()
        await server.start()
        await again.signal(Counter.end)
        assert await again.result() == 2
        types = await event_types(again)
        assert types[3] == "WorkflowTaskFailed"
