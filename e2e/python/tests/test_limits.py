"""What happens to a run whose history grows too long or too big."""

from __future__ import annotations

from typing import Any

from temporalio.api.command.v1 import Command, RecordMarkerCommandAttributes
from temporalio.api.enums.v1 import CommandType
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from conftest import NewServer
from raw import RawWorker
from support import attributes_of, events_of, eventually, new_id, payloads, types_of


async def signal_until_terminated(handle: WorkflowHandle[Any, Any], *arguments: str) -> str:
    """Signal a run until the server ends it; gives the reason."""

    async def terminated() -> bool:
        try:
            await handle.signal("knock", *arguments)
        except RPCError as error:
            assert error.status in (
                RPCStatusCode.NOT_FOUND,
                RPCStatusCode.INVALID_ARGUMENT,
                RPCStatusCode.RESOURCE_EXHAUSTED,
            )
        return (await handle.describe()).status == WorkflowExecutionStatus.TERMINATED

    await eventually(terminated)
    events = await events_of(handle)
    assert types_of(events)[-1] == "WorkflowExecutionTerminated"
    return attributes_of(events[-1]).reason


async def test_too_many_events(new_server: NewServer) -> None:
    server = await new_server("--dynamic-config-value", "limit.historyCount.error=60")
    client = await Client.connect(server.address)
    handle = await client.start_workflow("Any", id=new_id(), task_queue=new_id("queue"))
    reason = await signal_until_terminated(handle)
    assert reason == "Workflow history count exceeds limit."
    assert 60 <= len(await events_of(handle)) <= 65
    server.stop()


async def test_too_many_bytes(new_server: NewServer) -> None:
    server = await new_server("--dynamic-config-value", "limit.historySize.error=200000")
    client = await Client.connect(server.address)
    handle = await client.start_workflow("Any", id=new_id(), task_queue=new_id("queue"))
    reason = await signal_until_terminated(handle, "x" * 20_000)
    assert reason == "Workflow history size exceeds limit."
    server.stop()


def marker(data: str = "") -> Command:
    return Command(
        command_type=CommandType.COMMAND_TYPE_RECORD_MARKER,
        record_marker_command_attributes=RecordMarkerCommandAttributes(
            marker_name="marker", details={"data": payloads(data)} if data else {}
        ),
    )


async def record_until_terminated(client: Client, commands: list[Command]) -> list[Any]:
    """Answer workflow tasks with these commands until the server ends the run; gives its events."""
    raw = RawWorker(client)
    handle = await raw.start()
    while (await handle.describe()).status == WorkflowExecutionStatus.RUNNING:
        task = await raw.poll_workflow()
        await raw.complete(task, *commands, force_create_new_workflow_task=True)
    assert (await handle.describe()).status == WorkflowExecutionStatus.TERMINATED
    return await events_of(handle)


async def test_the_default_limit_of_events(client: Client) -> None:
    events = await record_until_terminated(client, [marker()] * 5_000)
    assert attributes_of(events[-1]).reason == "Workflow history count exceeds limit."
    # The task that passes the limit ends the run: ten times 5,000 markers do not, eleven times do.
    assert 51_200 < len(events) < 56_000
    assert [event.event_id for event in events] == list(range(1, len(events) + 1))


async def test_the_default_limit_of_bytes(client: Client) -> None:
    events = await record_until_terminated(client, [marker("x" * 1_000_000)] * 3)
    assert attributes_of(events[-1]).reason == "Workflow history size exceeds limit."
    size = sum(event.ByteSize() for event in events)
    assert 50 * 1024 * 1024 < size < 54 * 1024 * 1024
