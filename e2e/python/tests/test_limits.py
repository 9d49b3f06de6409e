"""What happens to a run whose history grows too long or too big."""

from __future__ import annotations

from typing import Any

from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from conftest import NewServer
from support import attributes_of, events_of, eventually, new_id, types_of


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
