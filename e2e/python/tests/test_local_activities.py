"""Local activities: markers only, retries by the worker, heartbeats of the workflow task when they are long."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner

from support import SOON, WORKFLOW_TASK, attributes_of, events_of, new_id, only, run_worker, types_of


@activity.defn
async def double(number: int) -> int:
    return 2 * number


@activity.defn
async def third_time_lucky() -> int:
    if activity.info().attempt < 3:
        raise ApplicationError("not yet")
    return activity.info().attempt


@activity.defn
async def slow() -> str:
    await asyncio.sleep(2.5)
    return "slow"


@activity.defn
async def always_fails() -> None:
    raise ApplicationError("never", type="Never")


@workflow.defn
class TwoLocals:
    @workflow.run
    async def run(self) -> list[int]:
        one = await workflow.execute_local_activity(double, 21, start_to_close_timeout=SOON)
        two = await workflow.execute_local_activity(
            third_time_lucky,
            start_to_close_timeout=SOON,
            retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=10)),
        )
        return [one, two]


@workflow.defn
class SlowLocal:
    def __init__(self) -> None:
        self.signals: list[str] = []

    @workflow.run
    async def run(self) -> list[str]:
        result = await workflow.execute_local_activity(slow, start_to_close_timeout=SOON)
        await workflow.wait_condition(lambda: len(self.signals) == 1)
        return [result, *self.signals]

    @workflow.signal
    def note(self, text: str) -> None:
        self.signals.append(text)


@workflow.defn
class FailingLocal:
    @workflow.run
    async def run(self) -> str:
        try:
            await workflow.execute_local_activity(
                always_fails, start_to_close_timeout=SOON, retry_policy=RetryPolicy(maximum_attempts=1)
            )
        except ApplicationError as error:  # the Python SDK does not wrap these in an ActivityError
            return error.type or ""
        return "no failure"


async def test_local_activities_are_markers(client: Client) -> None:
    async with run_worker(client, [TwoLocals], [double, third_time_lucky]) as task_queue:
        handle = await client.start_workflow(TwoLocals.run, id=new_id(), task_queue=task_queue, execution_timeout=SOON)
        assert await handle.result() == [42, 3]
    events = await events_of(handle)
    assert types_of(events) == [
        "WorkflowExecutionStarted", *WORKFLOW_TASK, "MarkerRecorded", "MarkerRecorded", "WorkflowExecutionCompleted",
    ]  # fmt: skip
    assert attributes_of(events[4]).marker_name == "core_local_activity"
    await Replayer(workflows=[TwoLocals], workflow_runner=UnsandboxedWorkflowRunner()).replay_workflow(
        await handle.fetch_history()
    )


async def test_a_long_local_activity_keeps_its_workflow_task_alive(client: Client) -> None:
    async with run_worker(client, [SlowLocal], [slow]) as task_queue:
        handle = await client.start_workflow(
            SlowLocal.run, id=new_id(), task_queue=task_queue, task_timeout=timedelta(seconds=1), execution_timeout=SOON
        )
        await handle.signal(SlowLocal.note, "while it runs")
        assert await handle.result() == ["slow", "while it runs"]
    types = types_of(await events_of(handle))
    assert types.count("WorkflowTaskCompleted") >= 3, "the task was completed and renewed while the activity ran"
    assert "WorkflowTaskTimedOut" not in types
    only(await events_of(handle), "MarkerRecorded")


async def test_a_local_activity_that_fails(client: Client) -> None:
    async with run_worker(client, [FailingLocal], [always_fails]) as task_queue:
        handle = await client.start_workflow(
            FailingLocal.run, id=new_id(), task_queue=task_queue, execution_timeout=SOON
        )
        assert await handle.result() == "Never"
    assert attributes_of(only(await events_of(handle), "MarkerRecorded")).HasField("failure")
