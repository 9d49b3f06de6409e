"""kill -9 of the server under load, again and again.

PERDURE_KILL_WORKFLOWS (40) workflows run at once while the server is killed PERDURE_KILL_ROUNDS (3) times. At the end
everything that was acknowledged is in the histories, the histories have no gap, and every workflow has completed.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from datetime import timedelta

import pytest
from temporalio.client import Client, WorkflowUpdateRPCTimeoutOrCancelledError
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError

from busy import Busy, BusyActivities
from conftest import NewServer
from server import Server
from support import attributes_of, events_of, new_id, run_worker, type_of

WORKFLOWS = int(os.environ.get("PERDURE_KILL_WORKFLOWS", "40"))
ROUNDS = int(os.environ.get("PERDURE_KILL_ROUNDS", "3"))
TRY = timedelta(seconds=5)


class Customer:
    """Drives one workflow, and remembers what the server acknowledged."""

    def __init__(self, client: Client, task_queue: str) -> None:
        self.client = client
        self.task_queue = task_queue
        self.id = new_id("busy")
        self.run_id: str | None = None
        self.handle = client.get_workflow_handle_for(Busy.run, self.id)
        self.notes: list[str] = []
        self.additions: dict[str, int] = {}

    async def start(self) -> None:
        while True:
            try:
                handle = await self.client.start_workflow(
                    Busy.run, 10, id=self.id, task_queue=self.task_queue, rpc_timeout=TRY
                )
                self.run_id = handle.result_run_id
                return
            except WorkflowAlreadyStartedError as error:  # an earlier try arrived, but its answer did not
                self.run_id = error.run_id
                return
            except RPCError:
                await asyncio.sleep(0.1)

    async def talk(self, until: asyncio.Event) -> None:
        number = 0
        while not until.is_set() or number == 0:
            number += 1
            try:
                await self.handle.signal(Busy.note, f"note {number}", rpc_timeout=TRY)
                self.notes.append(f"note {number}")
            except RPCError:
                pass  # it may have arrived or not
            update_id = f"update-{number}"
            try:
                self.additions[update_id] = await self.handle.execute_update(
                    Busy.add, f"{number}", id=update_id, rpc_timeout=TRY
                )
            except (RPCError, WorkflowUpdateRPCTimeoutOrCancelledError):
                pass
            await asyncio.sleep(random.uniform(0.1, 0.5))

    async def finish(self) -> list[str]:
        while True:
            try:
                await self.handle.signal(Busy.end, rpc_timeout=TRY)
                break
            except RPCError:
                await asyncio.sleep(0.1)
        return await self.handle.result(rpc_timeout=timedelta(seconds=60))

    async def check(self, result: list[str]) -> None:
        assert [step.split(":")[0] for step in result] == [str(number) for number in range(10)]
        run = self.client.get_workflow_handle(self.id, run_id=self.run_id)
        events = await events_of(run)  # checks that ids are contiguous
        assert type_of(events[-1]) == "WorkflowExecutionCompleted"

        signals = Counter(
            attributes_of(event).input.payloads[0].data.decode().strip('"')
            for event in events
            if type_of(event) == "WorkflowExecutionSignaled" and attributes_of(event).signal_name == "note"
        )
        assert set(self.notes) <= set(signals), "an acknowledged signal is missing"
        assert all(count == 1 for count in signals.values()), "a signal was taken twice"

        outcomes = {
            attributes_of(event).meta.update_id: int(attributes_of(event).outcome.success.payloads[0].data)
            for event in events
            if type_of(event) == "WorkflowExecutionUpdateCompleted"
        }
        accepted = [
            attributes_of(event).protocol_instance_id
            for event in events
            if type_of(event) == "WorkflowExecutionUpdateAccepted"
        ]
        assert len(accepted) == len(set(accepted)), "an update was accepted twice"
        for update_id, value in self.additions.items():
            assert outcomes.get(update_id) == value, "an acknowledged update is missing or has another outcome"

        completed = [attributes_of(event) for event in events if type_of(event) == "ActivityTaskCompleted"]
        assert max(Counter(attributes.scheduled_event_id for attributes in completed).values()) == 1
        assert [attributes.result.payloads[0].data.decode().strip('"') for attributes in completed] == result
        closed = Counter(
            attributes_of(event).scheduled_event_id
            for event in events
            if type_of(event) in ("WorkflowTaskCompleted", "WorkflowTaskFailed", "WorkflowTaskTimedOut")
        )
        assert all(count == 1 for count in closed.values()), "a workflow task was closed twice"
        fired = Counter(attributes_of(event).timer_id for event in events if type_of(event) == "TimerFired")
        assert all(count == 1 for count in fired.values())


async def kill_again_and_again(server: Server) -> None:
    for _ in range(ROUNDS):
        await asyncio.sleep(random.uniform(0.3, 2.0))
        await server.restart()


@pytest.mark.kills_server
@pytest.mark.timeout(120 + 30 * ROUNDS)
async def test_nothing_acknowledged_is_lost(new_server: NewServer) -> None:
    server = await new_server()
    client = await Client.connect(server.address)
    task_queue = new_id("queue")
    customers = [Customer(client, task_queue) for _ in range(WORKFLOWS)]
    async with run_worker(
        client,
        [Busy],
        [BusyActivities().step],
        task_queue=task_queue,
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
    ):
        over = asyncio.Event()

        async def live(customer: Customer) -> list[str]:
            await asyncio.sleep(random.uniform(0, ROUNDS))  # some start between the kills
            await customer.start()
            await customer.talk(over)
            return await customer.finish()

        lives = [asyncio.create_task(live(customer)) for customer in customers]
        await kill_again_and_again(server)
        over.set()
        results = await asyncio.gather(*lives)
    for customer, result in zip(customers, results, strict=True):
        await customer.check(result)
    server.stop()


@pytest.mark.kills_server
async def test_everything_is_still_there_after_a_restart(new_server: NewServer) -> None:
    """No worker, no load: what was answered before the kill is answered the same way after it."""
    server = await new_server()
    client = await Client.connect(server.address)
    task_queue = new_id("queue")
    handles = [
        await client.start_workflow("Any", id=new_id(), task_queue=task_queue, memo={"number": number})
        for number in range(10)
    ]
    for handle in handles[:5]:
        await handle.signal("knock", "hello")
    await handles[0].terminate("the end")
    before = [await events_of(handle) for handle in handles]
    server.kill()
    await server.start()
    client = await Client.connect(server.address)
    after = [await events_of(client.get_workflow_handle(handle.id, run_id=handle.result_run_id)) for handle in handles]
    assert after == before
    with pytest.raises(WorkflowAlreadyStartedError):
        await client.start_workflow("Any", id=handles[1].id, task_queue=task_queue)
    server.stop()
