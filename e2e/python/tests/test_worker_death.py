"""Workers that die: between tasks, in a task, in a long poll."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio.client import Client
from temporalio.service import RPCError

import busy
from busy import Busy
from proxy import proxy_to
from raw import RawWorker, complete_workflow, duration, schedule_activity
from support import attributes_of, event_types, events_of, eventually, new_id, type_of

Process = subprocess.Popen[bytes]


@contextmanager
def worker_process(address: str, task_queue: str, ledger: Path) -> Iterator[Process]:
    """A worker in a process of its own, which is killed at the end of the block at the latest."""
    process = subprocess.Popen([sys.executable, busy.__file__, address, task_queue, str(ledger)])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def test_a_new_worker_goes_on_where_the_killed_one_was(client: Client, address: str, tmp_path: Path) -> None:
    ledger, task_queue = tmp_path / "ledger", new_id("queue")
    handle = await client.start_workflow(
        Busy.run, 5, id=new_id(), task_queue=task_queue, execution_timeout=timedelta(minutes=1)
    )
    with worker_process(address, task_queue, ledger):

        async def all_steps() -> bool:
            return (await event_types(handle)).count("TimerFired") == 5

        await eventually(all_steps)
    await handle.signal(Busy.note, "nobody is there")
    await handle.signal(Busy.end)
    with worker_process(address, task_queue, ledger):
        result = await handle.result()
    steps = [line.split()[1] for line in ledger.read_text().splitlines()]
    assert steps == ["0", "1", "2", "3", "4"], "the second worker replayed, it repeated nothing"
    assert [step.split(":")[0] for step in result] == steps


async def test_workers_killed_at_random_moments(client: Client, address: str, tmp_path: Path) -> None:
    """What a killed worker held costs no more than the timeouts the user set: 3 s per step, 1 s per task."""
    ledger, task_queue = tmp_path / "ledger", new_id("queue")
    handles = [
        await client.start_workflow(
            Busy.run,
            6,
            id=new_id(),
            task_queue=task_queue,
            task_timeout=timedelta(seconds=1),
            execution_timeout=timedelta(seconds=80),
            start_signal="end",
        )
        for _ in range(15)
    ]
    for _ in range(3):
        with worker_process(address, task_queue, ledger):
            await asyncio.sleep(random.uniform(0.6, 1.6))  # from before it polls to the middle of the work
    with worker_process(address, task_queue, ledger):
        results = [await handle.result() for handle in handles]
    for handle, result in zip(handles, results, strict=True):
        assert [step.split(":")[0] for step in result] == [str(number) for number in range(6)]
        completed = [
            attributes_of(event) for event in await events_of(handle) if type_of(event) == "ActivityTaskCompleted"
        ]
        assert max(Counter(attributes.scheduled_event_id for attributes in completed).values()) == 1
        accepted = [attributes.result.payloads[0].data.decode().strip('"') for attributes in completed]
        assert accepted == result


async def test_a_poll_whose_connection_is_gone_gets_no_workflow_task(client: Client, address: str) -> None:
    async with proxy_to(address) as proxy:
        dead = RawWorker(await Client.connect(proxy.address))
        live = RawWorker(client, dead.task_queue)
        polls = [asyncio.create_task(dead.poll_workflow()) for _ in range(3)]
        await asyncio.sleep(0.3)
        proxy.cut()
        await asyncio.sleep(0.3)
        handle = await live.start(workflow_task_timeout=duration(60))
        before = time.time()
        task = await live.poll_workflow()
        assert task.attempt == 1
        assert time.time() - before < 5
        await live.complete(task, complete_workflow())
        assert (await event_types(handle))[-1] == "WorkflowExecutionCompleted"
        await cancel_all(polls)


@pytest.mark.perdure_only
async def test_tasks_on_connections_that_break_at_that_moment(client: Client, address: str) -> None:
    """The connection breaks just when the task is handed out. Temporal waits for the task's timeout then."""
    rounds = 20
    async with proxy_to(address) as proxy:
        for number in range(rounds):
            dead = RawWorker(await Client.connect(proxy.address))
            live = RawWorker(client, dead.task_queue)
            polls = [asyncio.create_task(dead.poll_workflow()), asyncio.create_task(dead.poll_activity())]
            await asyncio.sleep(0.1)
            start = asyncio.create_task(live.start(workflow_task_timeout=duration(60)))
            await asyncio.sleep(0.0005 * (number % 5))
            proxy.cut()
            handle = await start
            outcome, _ = await asyncio.gather(*polls, return_exceptions=True)
            if not isinstance(outcome, BaseException) and outcome.task_token:
                await handle.terminate()  # the poller got it in time after all
                continue
            before = time.time()
            task = await live.poll_workflow()
            assert task.task_token, "the task was lost"
            await live.complete(task, schedule_activity(live.task_queue, start_to_close_timeout=duration(60)))
            activity = await live.poll_activity()
            assert activity.task_token
            assert time.time() - before < 8, "it was offered again only at a timeout"
            await handle.terminate()


async def cancel_all(tasks: list[asyncio.Task]) -> None:
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        assert (
            outcome is None
            or isinstance(outcome, (RPCError, asyncio.CancelledError))
            or not isinstance(outcome, BaseException)
        )


async def test_a_cancelled_poll_does_not_take_a_task(client: Client) -> None:
    raw = RawWorker(client)
    for _ in range(5):
        polls = [asyncio.create_task(raw.poll_workflow()) for _ in range(3)]
        await asyncio.sleep(0.1)
        await cancel_all(polls)
        await asyncio.sleep(0.1)
        handle = await raw.start(workflow_task_timeout=duration(60))
        task = await raw.poll_workflow(timeout=timedelta(seconds=10))
        assert task.workflow_execution.workflow_id == handle.id
        assert task.attempt == 1
        await raw.complete(task, complete_workflow())
