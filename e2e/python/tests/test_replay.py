"""Replay, non-determinism and patches."""

from __future__ import annotations

from datetime import timedelta

import pytest
from temporalio import activity, workflow
from temporalio.api.enums.v1 import WorkflowTaskFailedCause
from temporalio.client import Client
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner
from temporalio.workflow import NondeterminismError

from support import (
    ACTIVITY,
    SOON,
    WORKFLOW_TASK,
    attributes_of,
    events_of,
    eventually,
    new_id,
    only,
    run_worker,
    types_of,
)


@activity.defn
async def greet(name: str) -> str:
    return f"Hello, {name}!"


class Gate:
    def __init__(self) -> None:
        self.is_open = False

    @workflow.signal
    def open(self) -> None:
        self.is_open = True


@workflow.defn(name="Greeting")
class GreetingV1(Gate):
    @workflow.run
    async def run(self, name: str) -> str:
        greeting = await workflow.execute_activity(greet, name, start_to_close_timeout=SOON)
        await workflow.wait_condition(lambda: self.is_open)
        return greeting


@workflow.defn(name="Greeting")
class GreetingChanged(Gate):
    """Somebody put a pause in front, without a thought for the runs that are under way."""

    @workflow.run
    async def run(self, name: str) -> str:
        await workflow.sleep(timedelta(milliseconds=10))
        greeting = await workflow.execute_activity(greet, name, start_to_close_timeout=SOON)
        await workflow.wait_condition(lambda: self.is_open)
        return greeting


@workflow.defn(name="Greeting")
class GreetingPatched(Gate):
    @workflow.run
    async def run(self, name: str) -> str:
        if workflow.patched("pause-first"):
            await workflow.sleep(timedelta(milliseconds=10))
        greeting = await workflow.execute_activity(greet, name, start_to_close_timeout=SOON)
        await workflow.wait_condition(lambda: self.is_open)
        return greeting


# The SDK reports the first failure of a task only; it lets later attempts time out.
ONE_SECOND = timedelta(seconds=1)
RUNNER = UnsandboxedWorkflowRunner()


async def test_fetched_history_replays_and_changed_code_does_not(client: Client) -> None:
    async with run_worker(client, [GreetingV1], [greet]) as task_queue:
        handle = await client.start_workflow(
            GreetingV1.run, "Ada", id=new_id(), task_queue=task_queue, start_signal="open", execution_timeout=SOON
        )
        assert await handle.result() == "Hello, Ada!"

    history = await handle.fetch_history()
    await Replayer(workflows=[GreetingV1], workflow_runner=RUNNER).replay_workflow(history)
    await Replayer(workflows=[GreetingPatched], workflow_runner=RUNNER).replay_workflow(history)
    with pytest.raises(NondeterminismError):
        await Replayer(workflows=[GreetingChanged], workflow_runner=RUNNER).replay_workflow(history)


async def test_changed_code_is_recorded_and_a_patched_version_recovers(client: Client) -> None:
    workflow_id, task_queue = new_id(), new_id("queue")
    async with run_worker(client, [GreetingV1], [greet], task_queue=task_queue):
        handle = await client.start_workflow(
            GreetingV1.run,
            "Ada",
            id=workflow_id,
            task_queue=task_queue,
            execution_timeout=SOON,
            task_timeout=ONE_SECOND,
        )

        async def greeted() -> bool:
            return types_of(await events_of(handle))[-7:] == [*WORKFLOW_TASK[2:], *ACTIVITY, *WORKFLOW_TASK]

        await eventually(greeted)

    async with run_worker(client, [GreetingChanged], [greet], task_queue=task_queue):
        await handle.signal(GreetingV1.open)

        async def failed_task() -> bool:
            return "WorkflowTaskFailed" in types_of(await events_of(handle))

        await eventually(failed_task)
        failed = attributes_of(only(await events_of(handle), "WorkflowTaskFailed"))
        assert failed.cause == WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_NON_DETERMINISTIC_ERROR
        assert "nondeterminism" in failed.failure.message.lower()

    async with run_worker(client, [GreetingPatched], [greet], task_queue=task_queue):
        assert await handle.result() == "Hello, Ada!"

    events = await events_of(handle)
    assert types_of(events)[-6:] == [
        "WorkflowTaskStarted", "WorkflowTaskFailed", *WORKFLOW_TASK, "WorkflowExecutionCompleted",
    ]  # fmt: skip
    last_task = attributes_of(events[-4])
    assert last_task.attempt > 1, "failed attempts after the first leave no events, but they count"


async def test_new_runs_of_the_patched_version_carry_the_marker(client: Client) -> None:
    async with run_worker(client, [GreetingPatched], [greet]) as task_queue:
        handle = await client.start_workflow(
            GreetingPatched.run, "Ada", id=new_id(), task_queue=task_queue, start_signal="open", execution_timeout=SOON
        )
        assert await handle.result() == "Hello, Ada!"
    types = types_of(await events_of(handle))
    assert types[:8] == [
        "WorkflowExecutionStarted", "WorkflowExecutionSignaled", *WORKFLOW_TASK,
        "MarkerRecorded", "UpsertWorkflowSearchAttributes", "TimerStarted",
    ]  # fmt: skip
    description = await handle.describe()
    assert "pause-first" in str(description.raw_description.workflow_execution_info.search_attributes)


@workflow.defn(name="Failing")
class RaisesABug:
    @workflow.run
    async def run(self) -> str:
        raise RuntimeError("a bug, not a failure of the workflow")


@workflow.defn(name="Failing")
class BugFixed:
    @workflow.run
    async def run(self) -> str:
        return "fixed"


async def test_an_exception_fails_the_task_and_a_fixed_worker_completes_the_run(client: Client) -> None:
    task_queue = new_id("queue")
    async with run_worker(client, [RaisesABug], task_queue=task_queue):
        handle = await client.start_workflow(
            "Failing", id=new_id(), task_queue=task_queue, execution_timeout=SOON, task_timeout=ONE_SECOND
        )

        async def retried() -> bool:
            description = await handle.describe()
            return description.raw_description.pending_workflow_task.attempt >= 3

        await eventually(retried)
        # Only the first attempt is written.
        assert types_of(await events_of(handle))[:4] == [
            "WorkflowExecutionStarted", "WorkflowTaskScheduled", "WorkflowTaskStarted", "WorkflowTaskFailed",
        ]  # fmt: skip
        failed = attributes_of(only(await events_of(handle), "WorkflowTaskFailed"))
        assert failed.cause == WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_WORKFLOW_WORKER_UNHANDLED_FAILURE
        assert failed.failure.message == "a bug, not a failure of the workflow"
        assert failed.failure.application_failure_info.type == "RuntimeError"

    async with run_worker(client, [BugFixed], task_queue=task_queue):
        assert await handle.result() == "fixed"
    assert types_of(await events_of(handle)) == [
        "WorkflowExecutionStarted",
        *("WorkflowTaskScheduled", "WorkflowTaskStarted", "WorkflowTaskFailed"),
        *WORKFLOW_TASK,
        "WorkflowExecutionCompleted",
    ]


async def test_a_worker_without_a_cache_replays_on_every_task(client: Client) -> None:
    async with run_worker(client, [GreetingV1], [greet], max_cached_workflows=0) as task_queue:
        handle = await client.start_workflow(
            GreetingV1.run, "Ada", id=new_id(), task_queue=task_queue, execution_timeout=SOON
        )
        await handle.signal(GreetingV1.open)
        assert await handle.result() == "Hello, Ada!"
    for event in await events_of(handle):
        if types_of([event]) == ["WorkflowTaskScheduled"]:
            assert attributes_of(event).task_queue.name == task_queue, "nothing goes to a sticky queue"
