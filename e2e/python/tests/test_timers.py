"""Timers: short ones, cancelled ones, and ones that outlive the server."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from temporalio import workflow
from temporalio.client import Client, WorkflowExecutionStatus

from conftest import NewServer
from raw import RawWorker, start_timer
from support import (
    SOON,
    WORKFLOW_TASK,
    attributes_of,
    event_types,
    events_of,
    eventually,
    new_id,
    only,
    run_worker,
    types_of,
)


@workflow.defn
class Sleeper:
    def __init__(self) -> None:
        self.woken = False

    @workflow.run
    async def run(self, seconds: float) -> float:
        """Sleep, unless somebody wakes us. Gives how long it slept by the workflow's clock."""
        before = workflow.now()
        try:
            await workflow.wait_condition(lambda: self.woken, timeout=timedelta(seconds=seconds))
        except asyncio.TimeoutError:
            pass
        return (workflow.now() - before).total_seconds()

    @workflow.signal
    def wake(self) -> None:
        self.woken = True


@workflow.defn
class ManyTimers:
    @workflow.run
    async def run(self) -> list[int]:
        """Timers that are started in one order and fire in another."""
        fired: list[int] = []

        async def sleep(index: int) -> None:
            await workflow.sleep(timedelta(milliseconds=1000 - 100 * index))
            fired.append(index)

        await asyncio.gather(*(sleep(index) for index in range(8)))
        return fired


@workflow.defn
class HundredTimers:
    @workflow.run
    async def run(self) -> int:
        await asyncio.gather(*(workflow.sleep(timedelta(milliseconds=500)) for _ in range(100)))
        return 100


async def test_two_seconds(client: Client) -> None:
    async with run_worker(client, [Sleeper]) as task_queue:
        handle = await client.start_workflow(
            Sleeper.run, 2.0, id=new_id(), task_queue=task_queue, execution_timeout=SOON
        )
        assert 2.0 <= await handle.result() < 12
    events = await events_of(handle)
    assert types_of(events) == [
        "WorkflowExecutionStarted", *WORKFLOW_TASK,
        "TimerStarted", "TimerFired", *WORKFLOW_TASK, "WorkflowExecutionCompleted",
    ]  # fmt: skip
    started, fired = events[4], events[5]
    assert fired.event_time.ToMilliseconds() - started.event_time.ToMilliseconds() >= 2000
    assert attributes_of(fired).started_event_id == started.event_id
    assert attributes_of(fired).timer_id == attributes_of(started).timer_id


async def test_cancelled_timer(client: Client) -> None:
    async with run_worker(client, [Sleeper]) as task_queue:
        handle = await client.start_workflow(
            Sleeper.run, 86400.0, id=new_id(), task_queue=task_queue, execution_timeout=SOON
        )
        await eventually(lambda: _has(handle, "TimerStarted"))
        await handle.signal(Sleeper.wake)
        assert await handle.result() < 20
    types = await event_types(handle)
    # Which of the two comes first is the SDK's choice; both are commands of the last task.
    assert types[:9] == [
        "WorkflowExecutionStarted", *WORKFLOW_TASK, "TimerStarted", "WorkflowExecutionSignaled", *WORKFLOW_TASK,
    ]  # fmt: skip
    assert types[9:] == ["TimerCanceled", "WorkflowExecutionCompleted"]
    canceled = attributes_of(only(await events_of(handle), "TimerCanceled"))
    assert canceled.started_event_id == 5
    assert canceled.workflow_task_completed_event_id == 9


async def _has(handle: object, name: str) -> bool:
    return name in await event_types(handle)  # type: ignore[arg-type]


async def test_timers_fire_in_the_order_of_their_times(client: Client) -> None:
    async with run_worker(client, [ManyTimers]) as task_queue:
        result = await client.execute_workflow(
            ManyTimers.run, id=new_id(), task_queue=task_queue, execution_timeout=SOON
        )
    assert result == list(reversed(range(8)))


async def test_a_hundred_timers_at_once(client: Client) -> None:
    async with run_worker(client, [HundredTimers]) as task_queue:
        handle = await client.start_workflow(
            HundredTimers.run, id=new_id(), task_queue=task_queue, execution_timeout=SOON
        )
        assert await handle.result() == 100
    assert (await event_types(handle)).count("TimerFired") == 100


async def test_a_timer_that_fires_during_a_task_is_buffered(client: Client) -> None:
    raw = RawWorker(client)
    handle = await raw.start()
    await raw.complete(await raw.poll_workflow(), start_timer("short", 1.5))
    await handle.signal("knock")
    task = await raw.poll_workflow()
    await asyncio.sleep(2.5)  # the timer is due while the task runs
    assert (await event_types(handle))[-1] == "WorkflowTaskStarted"
    await raw.complete(task, start_timer("long", 60))
    assert (await event_types(handle))[5:] == [
        "WorkflowExecutionSignaled", *WORKFLOW_TASK, "TimerStarted", "TimerFired", "WorkflowTaskScheduled",
    ]  # fmt: skip
    await handle.terminate()


@pytest.mark.kills_server
async def test_timers_survive_a_server_that_is_killed(new_server: NewServer) -> None:
    server = await new_server()
    client = await Client.connect(server.address)
    task_queue = new_id("queue")
    async with run_worker(client, [Sleeper], task_queue=task_queue):
        short = await client.start_workflow(Sleeper.run, 2.0, id=new_id("short"), task_queue=task_queue)
        long = await client.start_workflow(Sleeper.run, 30 * 86400.0, id=new_id("long"), task_queue=task_queue)
        await eventually(lambda: _has(short, "TimerStarted"))
        await eventually(lambda: _has(long, "TimerStarted"))

    before = await event_types(long)
    await server.restart()
    client = await Client.connect(server.address)
    short, long = (client.get_workflow_handle_for(Sleeper.run, handle.id) for handle in (short, long))
    assert await event_types(long) == before
    async with run_worker(client, [Sleeper], task_queue=task_queue):
        assert await short.result(rpc_timeout=SOON) >= 2.0
        assert (await long.describe()).status == WorkflowExecutionStatus.RUNNING
        started = only(await events_of(long), "TimerStarted")
        assert attributes_of(started).start_to_fire_timeout.seconds == 30 * 86400
        await long.signal(Sleeper.wake)
        assert await long.result(rpc_timeout=SOON) < 60
    server.stop()
