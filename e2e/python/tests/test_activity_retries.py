"""Retry policies, to the attempt."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta

import pytest
from temporalio import activity, workflow
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.api.enums.v1 import RetryState as RawRetryState
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, RetryState

from support import (
    ACTIVITY,
    WORKFLOW_TASK,
    attributes_of,
    events_of,
    eventually,
    new_id,
    only,
    run_worker,
    types_of,
)

ATTEMPTS: dict[str, list[float]] = defaultdict(list)
"""When each attempt of an activity began, by workflow id."""


@dataclass
class Plan:
    fail: int = 1_000_000
    """How many attempts fail."""
    kind: str = "Oops"
    non_retryable: bool = False
    next_delay: float | None = None


@activity.defn
async def flaky(plan: Plan) -> int:
    info = activity.info()
    assert info.workflow_id is not None
    ATTEMPTS[info.workflow_id].append(time.time())
    assert info.attempt == len(ATTEMPTS[info.workflow_id])
    if info.attempt <= plan.fail:
        delay = timedelta(seconds=plan.next_delay) if plan.next_delay is not None else None
        raise ApplicationError(
            f"attempt {info.attempt}",
            info.attempt,
            type=plan.kind,
            non_retryable=plan.non_retryable,
            next_retry_delay=delay,
        )
    return info.attempt


@dataclass
class Policy:
    """A RetryPolicy in seconds, which JSON can carry."""

    initial: float = 0.02
    coefficient: float = 1.0
    maximum: float | None = None
    attempts: int = 0
    never: list[str] | None = None

    def build(self) -> RetryPolicy:
        return RetryPolicy(
            initial_interval=timedelta(seconds=self.initial),
            backoff_coefficient=self.coefficient,
            maximum_interval=timedelta(seconds=self.maximum) if self.maximum else None,
            maximum_attempts=self.attempts,
            non_retryable_error_types=self.never,
        )


@dataclass
class Input:
    plan: Plan
    retry: Policy | None
    schedule_to_close: float = 30


@workflow.defn
class OneActivity:
    @workflow.run
    async def run(self, input: Input) -> int:
        return await workflow.execute_activity(
            flaky,
            input.plan,
            retry_policy=input.retry.build() if input.retry else None,
            schedule_to_close_timeout=timedelta(seconds=input.schedule_to_close),
        )


async def start(client: Client, task_queue: str, input: Input) -> WorkflowHandle[OneActivity, int]:
    return await client.start_workflow(
        OneActivity.run, input, id=new_id(), task_queue=task_queue, execution_timeout=timedelta(minutes=2)
    )


async def failure_of(handle: WorkflowHandle[OneActivity, int]) -> tuple[ActivityError, ApplicationError]:
    with pytest.raises(WorkflowFailureError) as failure:
        await handle.result()
    error = failure.value.cause
    assert isinstance(error, ActivityError)
    assert isinstance(error.cause, ApplicationError)
    return error, error.cause


async def test_succeeds_after_failures_with_one_pair_of_events(client: Client) -> None:
    async with run_worker(client, [OneActivity], [flaky]) as task_queue:
        handle = await start(client, task_queue, Input(Plan(fail=2), Policy()))
        assert await handle.result() == 3
    events = await events_of(handle)
    assert types_of(events) == [
        "WorkflowExecutionStarted", *WORKFLOW_TASK, *ACTIVITY, *WORKFLOW_TASK, "WorkflowExecutionCompleted",
    ]  # fmt: skip
    started = attributes_of(events[5])
    assert started.attempt == 3
    assert started.last_failure.message == "attempt 2"
    assert started.last_failure.application_failure_info.type == "Oops"


async def test_maximum_attempts(client: Client) -> None:
    async with run_worker(client, [OneActivity], [flaky]) as task_queue:
        handle = await start(client, task_queue, Input(Plan(), Policy(attempts=4)))
        error, cause = await failure_of(handle)
    assert error.retry_state == RetryState.MAXIMUM_ATTEMPTS_REACHED
    assert error.activity_type == "flaky"
    assert (cause.message, cause.type, cause.details) == ("attempt 4", "Oops", (4,))
    assert len(ATTEMPTS[handle.id]) == 4
    events = await events_of(handle)
    assert types_of(events)[4:7] == ["ActivityTaskScheduled", "ActivityTaskStarted", "ActivityTaskFailed"]
    assert attributes_of(events[5]).attempt == 4
    assert attributes_of(events[6]).retry_state == RawRetryState.RETRY_STATE_MAXIMUM_ATTEMPTS_REACHED


async def test_backoff_doubles_up_to_the_maximum(client: Client) -> None:
    async with run_worker(client, [OneActivity], [flaky]) as task_queue:
        handle = await start(client, task_queue, Input(Plan(fail=4), Policy(0.2, 2.0, 0.5)))
        assert await handle.result() == 5
    times = ATTEMPTS[handle.id]
    gaps = [after - before for before, after in zip(times, times[1:])]
    for gap, least in zip(gaps, [0.2, 0.4, 0.5, 0.5], strict=True):
        assert least - 0.02 <= gap < least + 5, gaps


async def test_non_retryable_type_of_the_Policy(client: Client) -> None:
    async with run_worker(client, [OneActivity], [flaky]) as task_queue:
        handle = await start(client, task_queue, Input(Plan(kind="Fatal"), Policy(never=["Other", "Fatal"])))
        error, cause = await failure_of(handle)
    assert error.retry_state == RetryState.NON_RETRYABLE_FAILURE
    assert cause.type == "Fatal"
    assert len(ATTEMPTS[handle.id]) == 1


async def test_non_retryable_error(client: Client) -> None:
    async with run_worker(client, [OneActivity], [flaky]) as task_queue:
        handle = await start(client, task_queue, Input(Plan(non_retryable=True), Policy()))
        error, cause = await failure_of(handle)
    assert error.retry_state == RetryState.NON_RETRYABLE_FAILURE
    assert cause.non_retryable
    assert len(ATTEMPTS[handle.id]) == 1


async def test_one_attempt_only(client: Client) -> None:
    async with run_worker(client, [OneActivity], [flaky]) as task_queue:
        handle = await start(client, task_queue, Input(Plan(), Policy(attempts=1)))
        error, _ = await failure_of(handle)
    assert error.retry_state == RetryState.MAXIMUM_ATTEMPTS_REACHED
    assert len(ATTEMPTS[handle.id]) == 1


async def test_next_retry_delay_of_the_failure_wins(client: Client) -> None:
    async with run_worker(client, [OneActivity], [flaky]) as task_queue:
        shorter = await start(client, task_queue, Input(Plan(fail=2, next_delay=0.05), Policy(initial=60)))
        longer = await start(client, task_queue, Input(Plan(fail=1, next_delay=0.7), Policy(initial=0.01)))
        assert await shorter.result() == 3
        assert await longer.result() == 2
    first, second = ATTEMPTS[longer.id]
    assert second - first >= 0.68


async def test_no_retry_that_would_begin_after_schedule_to_close(client: Client) -> None:
    async with run_worker(client, [OneActivity], [flaky]) as task_queue:
        handle = await start(client, task_queue, Input(Plan(), Policy(0.3, 10.0), schedule_to_close=2))
        error, cause = await failure_of(handle)
    assert error.retry_state == RetryState.TIMEOUT
    # 0.3 s after the first; 3 s more would be too late, so the second attempt's failure is final at once.
    assert cause.message == "attempt 2"
    assert len(ATTEMPTS[handle.id]) == 2


async def test_defaults_of_the_policy_are_written_to_the_history(client: Client) -> None:
    async with run_worker(client, [OneActivity], [flaky]) as task_queue:
        handle = await start(client, task_queue, Input(Plan(fail=0), None))
        partly = await start(client, task_queue, Input(Plan(fail=0), Policy(initial=3, coefficient=2.0)))
        await handle.result()
        await partly.result()
    retry = attributes_of(only(await events_of(handle), "ActivityTaskScheduled")).retry_policy
    assert retry.initial_interval.seconds == 1
    assert retry.backoff_coefficient == 2.0
    assert retry.maximum_interval.seconds == 100
    assert retry.maximum_attempts == 0
    retry = attributes_of(only(await events_of(partly), "ActivityTaskScheduled")).retry_policy
    assert retry.maximum_interval.seconds == 300


async def test_describe_shows_an_activity_between_attempts(client: Client) -> None:
    async with run_worker(client, [OneActivity], [flaky], identity="worker-1") as task_queue:
        handle = await start(client, task_queue, Input(Plan(), Policy(initial=20)))

        async def failed_once() -> bool:
            pending = (await handle.describe()).raw_description.pending_activities
            return len(pending) == 1 and pending[0].attempt == 2

        await eventually(failed_once)
        [pending] = (await handle.describe()).raw_description.pending_activities
        assert pending.state == PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED
        assert pending.activity_type.name == "flaky"
        assert pending.last_failure.message == "attempt 1"
        assert pending.last_worker_identity == "worker-1"
        assert pending.maximum_attempts == 0
        wait = pending.next_attempt_schedule_time.seconds - pending.last_attempt_complete_time.seconds
        assert 19 <= wait <= 21
        assert pending.current_retry_interval.seconds == 20
        assert types_of(await events_of(handle))[-1] == "ActivityTaskScheduled", "attempts leave no events"
        await handle.terminate()
