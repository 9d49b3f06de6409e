"""Execution and run timeouts, workflow retries, cron."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta

import pytest
from temporalio import workflow
from temporalio.api.enums.v1 import ContinueAsNewInitiator
from temporalio.api.enums.v1 import RetryState as RawRetryState
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError, TimeoutError, TimeoutType

from support import SOON, attributes_of, event_types, events_of, eventually, new_id, run_worker

STARTS: dict[str, list[float]] = defaultdict(list)
"""When each run of a workflow id began."""


@workflow.defn
class Forever:
    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: False)


@dataclass
class Plan:
    fail: int
    kind: str = "Oops"
    non_retryable: bool = False


@workflow.defn
class FailsAtFirst:
    @workflow.run
    async def run(self, plan: Plan) -> int:
        attempt = workflow.info().attempt
        STARTS[workflow.info().workflow_id].append(time.time())
        if attempt <= plan.fail:
            raise ApplicationError(f"attempt {attempt}", type=plan.kind, non_retryable=plan.non_retryable)
        return attempt


@workflow.defn
class Tick:
    @workflow.run
    async def run(self) -> int:
        last = workflow.get_last_completion_result(int) if workflow.has_last_completion_result() else 0
        STARTS[workflow.info().workflow_id].append(time.time())
        if last == 1 and workflow.get_last_failure() is None:
            raise ApplicationError("the second tick fails")
        return (last or 0) + 1


WORKFLOWS = [Forever, FailsAtFirst, Tick]


async def runs_of(client: Client, handle: WorkflowHandle) -> list[WorkflowHandle]:
    """The closed runs of the chain that the handle started, and the last one."""
    runs, run_id = [], handle.result_run_id
    while run_id:
        run = client.get_workflow_handle(handle.id, run_id=run_id)
        runs.append(run)
        closing = attributes_of((await events_of(run))[-1])
        run_id = getattr(closing, "new_execution_run_id", "")
    return runs


async def test_run_timeout(client: Client) -> None:
    async with run_worker(client, WORKFLOWS) as task_queue:
        handle = await client.start_workflow(
            Forever.run, id=new_id(), task_queue=task_queue, run_timeout=timedelta(seconds=1)
        )
        with pytest.raises(WorkflowFailureError) as failure:
            await handle.result()
    assert isinstance(failure.value.cause, TimeoutError)
    assert failure.value.cause.type == TimeoutType.START_TO_CLOSE
    assert (await handle.describe()).status == WorkflowExecutionStatus.TIMED_OUT
    timed_out = attributes_of((await events_of(handle))[-1])
    assert timed_out.retry_state == RawRetryState.RETRY_STATE_RETRY_POLICY_NOT_SET


async def test_run_timeout_without_a_worker(client: Client) -> None:
    handle = await client.start_workflow(
        "Forever", id=new_id(), task_queue=new_id("nobody"), run_timeout=timedelta(seconds=1)
    )
    with pytest.raises(WorkflowFailureError):
        await handle.result()
    assert await event_types(handle) == [
        "WorkflowExecutionStarted", "WorkflowTaskScheduled", "WorkflowExecutionTimedOut",
    ]  # fmt: skip


async def test_execution_timeout_ends_the_retries(client: Client) -> None:
    async with run_worker(client, WORKFLOWS) as task_queue:
        handle = await client.start_workflow(
            Forever.run,
            id=new_id(),
            task_queue=task_queue,
            execution_timeout=timedelta(seconds=3),
            run_timeout=timedelta(seconds=1),
            retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=100), backoff_coefficient=1),
        )
        before = time.time()
        with pytest.raises(WorkflowFailureError) as failure:
            await handle.result()
        assert isinstance(failure.value.cause, TimeoutError)
        assert time.time() - before < 15
        runs = await runs_of(client, handle)
    assert len(runs) == 3
    last = attributes_of((await events_of(runs[-1]))[-1])
    assert last.retry_state == RawRetryState.RETRY_STATE_TIMEOUT
    assert attributes_of((await events_of(runs[0]))[-1]).retry_state == RawRetryState.RETRY_STATE_IN_PROGRESS


async def test_retries_succeed(client: Client) -> None:
    async with run_worker(client, WORKFLOWS) as task_queue:
        handle = await client.start_workflow(
            FailsAtFirst.run,
            Plan(fail=2),
            id=new_id(),
            task_queue=task_queue,
            execution_timeout=SOON,
            retry_policy=RetryPolicy(initial_interval=timedelta(seconds=1), backoff_coefficient=2),
        )
        assert await handle.result() == 3
        runs = await runs_of(client, handle)
    assert len(runs) == 3
    for number, run in enumerate(runs, start=1):
        events = await events_of(run)
        started = attributes_of(events[0])
        assert started.attempt == number
        assert started.first_execution_run_id == handle.result_run_id
        if number > 1:
            assert started.initiator == ContinueAsNewInitiator.CONTINUE_AS_NEW_INITIATOR_RETRY
            assert started.continued_failure.message == f"attempt {number - 1}"
            assert started.first_workflow_task_backoff.seconds == number - 1
            assert started.continued_execution_run_id == runs[number - 2].run_id
    types = await event_types(runs[0])
    assert types[-1] == "WorkflowExecutionFailed"
    gaps = [after - before for before, after in zip(STARTS[handle.id], STARTS[handle.id][1:])]
    assert gaps[0] >= 0.9 and gaps[1] >= 1.9, gaps


async def test_retries_run_out(client: Client) -> None:
    async with run_worker(client, WORKFLOWS) as task_queue:
        handle = await client.start_workflow(
            FailsAtFirst.run,
            Plan(fail=9),
            id=new_id(),
            task_queue=task_queue,
            retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=50), maximum_attempts=3),
        )
        with pytest.raises(WorkflowFailureError) as failure:
            await handle.result()
        runs = await runs_of(client, handle)
    assert isinstance(failure.value.cause, ApplicationError)
    assert failure.value.cause.message == "attempt 3"
    assert len(runs) == 3
    last = attributes_of((await events_of(runs[-1]))[-1])
    assert last.retry_state == RawRetryState.RETRY_STATE_MAXIMUM_ATTEMPTS_REACHED


@pytest.mark.parametrize("plan", [Plan(9, kind="Fatal"), Plan(9, non_retryable=True)], ids=["type", "flag"])
async def test_failures_that_are_not_retried(client: Client, plan: Plan) -> None:
    async with run_worker(client, WORKFLOWS) as task_queue:
        handle = await client.start_workflow(
            FailsAtFirst.run,
            plan,
            id=new_id(),
            task_queue=task_queue,
            retry_policy=RetryPolicy(non_retryable_error_types=["Fatal"]),
        )
        with pytest.raises(WorkflowFailureError):
            await handle.result()
        runs = await runs_of(client, handle)
    assert len(runs) == 1
    last = attributes_of((await events_of(runs[-1]))[-1])
    assert last.retry_state == RawRetryState.RETRY_STATE_NON_RETRYABLE_FAILURE


async def test_cron_carries_results_and_failures(client: Client) -> None:
    async with run_worker(client, WORKFLOWS) as task_queue:
        handle = await client.start_workflow(Tick.run, id=new_id(), task_queue=task_queue, cron_schedule="@every 1s")

        async def four_ticks() -> bool:
            return len(STARTS[handle.id]) >= 4

        await eventually(four_ticks)
        await client.get_workflow_handle(handle.id).terminate()
        runs = await runs_of(client, handle)

    ends = [await events_of(run) for run in runs]
    first_started = attributes_of(ends[0][0])
    assert first_started.cron_schedule == "@every 1s"
    second = attributes_of(ends[1][0])
    assert second.initiator == ContinueAsNewInitiator.CONTINUE_AS_NEW_INITIATOR_CRON_SCHEDULE
    assert second.last_completion_result.payloads[0].data == b"1"
    assert 0 < second.first_workflow_task_backoff.ToMilliseconds() <= 2000
    assert second.attempt == 1
    third = attributes_of(ends[2][0])
    assert third.continued_failure.message == "the second tick fails"
    assert third.last_completion_result.payloads[0].data == b"1", "the last good result stays"
    fourth = attributes_of(ends[3][0])
    assert fourth.last_completion_result.payloads[0].data == b"2"
    types = [await event_types(run) for run in runs[:3]]
    assert [run[-1] for run in types] == [
        "WorkflowExecutionCompleted", "WorkflowExecutionFailed", "WorkflowExecutionCompleted",
    ]  # fmt: skip


async def test_cron_with_a_calendar_waits_for_its_minute(client: Client) -> None:
    handle = await client.start_workflow(
        "Tick", id=new_id(), task_queue=new_id("nobody"), cron_schedule="CRON_TZ=Europe/Berlin 30 4 * * *"
    )
    started = attributes_of((await events_of(handle))[0])
    assert 0 < started.first_workflow_task_backoff.seconds <= 86400
    first = (await handle.describe()).execution_time
    assert first is not None
    assert first.minute == 30 and first.hour in (2, 3)
    await handle.terminate()
