"""Eager workflow start and eager activities: the first task comes back in the response."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest_asyncio
from temporalio import activity, workflow
from temporalio.api.workflowservice.v1 import RespondActivityTaskCompletedRequest
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from raw import RawWorker, complete_workflow, duration, schedule_activity
from server import Servers
from support import ACTIVITY, SOON, WORKFLOW_TASK, event_types, new_id, payloads, run_worker, start_request, types_of


@activity.defn
async def nothing() -> str:
    return "nothing"


@workflow.defn
class OneStep:
    @workflow.run
    async def run(self) -> str:
        return await workflow.execute_activity(nothing, start_to_close_timeout=SOON)


async def test_eager_start_with_the_sdk(client: Client) -> None:
    async with run_worker(client, [OneStep], [nothing]) as task_queue:
        handle = await client.start_workflow(
            OneStep.run, id=new_id(), task_queue=task_queue, request_eager_start=True, execution_timeout=SOON
        )
        assert await handle.result() == "nothing"
        assert getattr(handle, "__temporal_eagerly_started") is True
    assert await event_types(handle) == [
        "WorkflowExecutionStarted", *WORKFLOW_TASK, *ACTIVITY, *WORKFLOW_TASK, "WorkflowExecutionCompleted",
    ]  # fmt: skip


async def test_eager_start_gives_the_first_task(client: Client) -> None:
    raw = RawWorker(client)
    request = start_request(new_id(), raw.task_queue, request_eager_execution=True)
    response = await client.workflow_service.start_workflow_execution(request)
    task = response.eager_workflow_task
    assert task.attempt == 1
    assert task.workflow_execution.run_id == response.run_id
    assert types_of(task.history.events) == ["WorkflowExecutionStarted", *WORKFLOW_TASK[:2]]
    assert task.workflow_type.name == "AnyWorkflow"
    handle = client.get_workflow_handle(request.workflow_id)
    assert await event_types(handle) == ["WorkflowExecutionStarted", *WORKFLOW_TASK[:2]]
    await raw.complete(task, complete_workflow())
    assert (await event_types(handle))[-1] == "WorkflowExecutionCompleted"


async def test_an_eager_task_that_is_not_answered_goes_to_the_queue(client: Client) -> None:
    raw = RawWorker(client)
    request = start_request(new_id(), raw.task_queue, request_eager_execution=True, workflow_task_timeout=duration(1))
    await client.workflow_service.start_workflow_execution(request)
    task = await raw.poll_workflow()
    assert task.attempt == 2
    await raw.complete(task, complete_workflow())


async def test_no_eager_task_for_a_delayed_start(client: Client) -> None:
    request = start_request(new_id(), new_id("queue"), request_eager_execution=True, workflow_start_delay=duration(60))
    response = await client.workflow_service.start_workflow_execution(request)
    assert not response.HasField("eager_workflow_task")
    await client.get_workflow_handle(request.workflow_id).terminate()


async def test_repeated_eager_start_gives_the_task_again_or_not_at_all(client: Client) -> None:
    raw = RawWorker(client)
    request = start_request(new_id(), raw.task_queue, request_eager_execution=True)
    first = await client.workflow_service.start_workflow_execution(request)
    second = await client.workflow_service.start_workflow_execution(request)
    assert second.run_id == first.run_id
    if second.HasField("eager_workflow_task"):
        assert second.eager_workflow_task.started_event_id == first.eager_workflow_task.started_event_id
    await raw.complete(first.eager_workflow_task, complete_workflow())


@pytest_asyncio.fixture(scope="module", name="eager_client")
async def eager_client_fixture(servers: Servers) -> AsyncIterator[Client]:
    """Temporal gives eager activities only where they are switched on."""
    async with servers.run("--dynamic-config-value", "system.enableActivityEagerExecution=true") as server:
        yield await Client.connect(server.address)


async def test_eager_activities_come_in_the_response(eager_client: Client) -> None:
    client = eager_client
    raw = RawWorker(client)
    handle = await raw.start()
    eager = schedule_activity(raw.task_queue, "eager", request_eager_execution=True)
    queued = schedule_activity(raw.task_queue, "queued")
    response = await raw.complete(await raw.poll_workflow(), eager, queued)
    [task] = response.activity_tasks
    assert task.activity_id == "eager"
    assert task.attempt == 1
    assert task.workflow_execution.workflow_id == handle.id
    other = await raw.poll_activity()
    assert other.activity_id == "queued", "the eager one is not in the queue"
    for each in (task, other):
        await client.workflow_service.respond_activity_task_completed(
            RespondActivityTaskCompletedRequest(
                namespace="default", task_token=each.task_token, result=payloads("done")
            )
        )
    types = await event_types(handle)
    assert types.count("ActivityTaskCompleted") == 2
    await handle.terminate()


async def test_no_poll_gets_an_eager_activity(eager_client: Client) -> None:
    raw = RawWorker(eager_client)
    handle = await raw.start()
    await raw.complete(
        await raw.poll_workflow(), schedule_activity(raw.task_queue, "eager", request_eager_execution=True)
    )
    try:
        task = await raw.poll_activity(timeout=timedelta(seconds=3))
        assert task.task_token == b""
    except RPCError as error:
        assert error.status in (RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED)
    await handle.terminate()
