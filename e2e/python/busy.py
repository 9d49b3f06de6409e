"""A workflow with a bit of everything, for the tests that kill things. Also runs as a worker process:

python busy.py ADDRESS TASK_QUEUE LEDGER
"""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import timedelta
from pathlib import Path

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.common import RetryPolicy
from temporalio.worker import UnsandboxedWorkflowRunner, Worker


class BusyActivities:
    def __init__(self, ledger: Path | None = None) -> None:
        self._ledger = ledger

    @activity.defn
    async def step(self, number: int) -> str:
        """Each execution gives a result of its own, so that results can be told apart."""
        info = activity.info()
        if self._ledger is not None:
            with self._ledger.open("a") as ledger:
                ledger.write(f"{info.workflow_id} {number} {info.attempt} {os.getpid()}\n")
        await asyncio.sleep(0.02)
        return f"{number}:{info.attempt}:{os.urandom(4).hex()}"


@workflow.defn
class Busy:
    """Does some steps, with a timer after each, and ends when it is told how many signals and updates to have seen."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.additions: list[str] = []
        self.ended = False
        self.steps_done = 0

    @workflow.run
    async def run(self, steps: int) -> list[str]:
        results = []
        for number in range(steps):
            results.append(
                await workflow.execute_activity_method(
                    BusyActivities.step,
                    number,
                    start_to_close_timeout=timedelta(seconds=3),
                    retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=100), backoff_coefficient=1),
                )
            )
            self.steps_done += 1
            await workflow.sleep(timedelta(milliseconds=50))
        await workflow.wait_condition(lambda: self.ended)
        return results

    @workflow.signal
    def note(self, text: str) -> None:
        self.notes.append(text)

    @workflow.signal
    def end(self) -> None:
        self.ended = True

    @workflow.update
    def add(self, text: str) -> int:
        self.additions.append(text)
        return len(self.additions)

    @workflow.query
    def progress(self) -> int:
        return self.steps_done


async def main(address: str, task_queue: str, ledger: str) -> None:
    activities = BusyActivities(Path(ledger))
    worker = Worker(
        await Client.connect(address),
        task_queue=task_queue,
        workflows=[Busy],
        activities=[activities.step],
        workflow_runner=UnsandboxedWorkflowRunner(),
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=1),
    )
    await worker.run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
