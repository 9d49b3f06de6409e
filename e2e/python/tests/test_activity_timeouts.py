"""The four activity timeouts, and heartbeats that let the next attempt go on."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta

import pytest
from temporalio import activity, workflow
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.api.enums.v1 import TimeoutType as RawTimeoutType
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, RetryState, TimeoutError, TimeoutType

from support import attributes_of, events_of, eventually, new_id, only, run_worker, types_of

CHUNKS: dict[str, list[tuple[int, int]]] = defaultdict(list)
"""(attempt, chunk) in the order of work, by workflow id."""


@activity.defn
async def hang() -> None:
    await asyncio.sleep(60)


@activity.defn
async def heartbeat_once_and_hang() -> None:
    activity.heartbeat("half", 50)
    await asyncio.sleep(60)


@activity.defn
async def ten_chunks() -> list[int]:
    """Works chunk by chunk. The first attempt hangs after the sixth, the second fails after the eighth."""
    info = activity.info()
    assert info.workflow_id is not None
    done: int = info.heartbeat_details[0] if info.heartbeat_details else 0
    for chunk in range(done + 1, 11):
        CHUNKS[info.workflow_id].append((info.attempt, chunk))
        activity.heartbeat(chunk)
        await asyncio.sleep(0.05)
        if (info.attempt, chunk) == (1, 6):
            await asyncio.sleep(60)
        if (info.attempt, chunk) == (2, 8):
            raise ApplicationError("disk full")
    return [chunk for _, chunk in CHUNKS[info.workflow_id]]


@dataclass
class Timeouts:
    activity: str
    start_to_close: float | None = None
    schedule_to_start: float | None = None
    schedule_to_close: float | None = None
    heartbeat: float | None = None
    attempts: int = 1
    task_queue: str | None = None


def seconds(value: float | None) -> timedelta | None:
    return None if value is None else timedelta(seconds=value)


@workflow.defn
class WithTimeouts:
    @workflow.run
    async def run(self, t: Timeouts) -> list[int] | None:
        return await workflow.execute_activity(
            t.activity,
            task_queue=t.task_queue,
            start_to_close_timeout=seconds(t.start_to_close),
            schedule_to_start_timeout=seconds(t.schedule_to_start),
            schedule_to_close_timeout=seconds(t.schedule_to_close),
            heartbeat_timeout=seconds(t.heartbeat),
            retry_policy=RetryPolicy(maximum_attempts=t.attempts, initial_interval=timedelta(milliseconds=20)),
            result_type=list[int] | None,
        )


ACTIVITIES = [hang, heartbeat_once_and_hang, ten_chunks]


async def start(client: Client, task_queue: str, timeouts: Timeouts) -> WorkflowHandle[WithTimeouts, list[int] | None]:
    return await client.start_workflow(
        WithTimeouts.run, timeouts, id=new_id(), task_queue=task_queue, execution_timeout=timedelta(minutes=1)
    )


async def timeout_of(handle: WorkflowHandle[WithTimeouts, list[int] | None]) -> tuple[ActivityError, TimeoutError]:
    with pytest.raises(WorkflowFailureError) as failure:
        await handle.result()
    error = failure.value.cause
    assert isinstance(error, ActivityError)
    assert isinstance(error.cause, TimeoutError)
    return error, error.cause


async def test_start_to_close(client: Client) -> None:
    async with run_worker(client, [WithTimeouts], ACTIVITIES) as task_queue:
        handle = await start(client, task_queue, Timeouts("hang", start_to_close=0.5))
        error, timeout = await timeout_of(handle)
    assert timeout.type == TimeoutType.START_TO_CLOSE
    assert error.retry_state == RetryState.MAXIMUM_ATTEMPTS_REACHED
    events = await events_of(handle)
    assert types_of(events)[4:7] == ["ActivityTaskScheduled", "ActivityTaskStarted", "ActivityTaskTimedOut"]
    timed_out = attributes_of(events[6])
    assert (timed_out.scheduled_event_id, timed_out.started_event_id) == (5, 6)
    info = timed_out.failure.timeout_failure_info
    assert info.timeout_type == RawTimeoutType.TIMEOUT_TYPE_START_TO_CLOSE
    assert timed_out.failure.message == "activity StartToClose timeout"


async def test_start_to_close_is_retried(client: Client) -> None:
    async with run_worker(client, [WithTimeouts], ACTIVITIES) as task_queue:
        handle = await start(client, task_queue, Timeouts("hang", start_to_close=0.3, attempts=3))
        _, timeout = await timeout_of(handle)
    assert timeout.type == TimeoutType.START_TO_CLOSE
    started = attributes_of(only(await events_of(handle), "ActivityTaskStarted"))
    assert started.attempt == 3
    assert started.last_failure.timeout_failure_info.timeout_type == RawTimeoutType.TIMEOUT_TYPE_START_TO_CLOSE


async def test_schedule_to_start_is_not_retried(client: Client) -> None:
    async with run_worker(client, [WithTimeouts]) as task_queue:
        timeouts = Timeouts("hang", start_to_close=30, schedule_to_start=0.5, attempts=5, task_queue=new_id("nobody"))
        handle = await start(client, task_queue, timeouts)
        error, timeout = await timeout_of(handle)
    assert timeout.type == TimeoutType.SCHEDULE_TO_START
    # Server 1.29 says NON_RETRYABLE_FAILURE, later ones TIMEOUT.
    assert error.retry_state in (RetryState.NON_RETRYABLE_FAILURE, RetryState.TIMEOUT)
    events = await events_of(handle)
    assert types_of(events)[4:6] == ["ActivityTaskScheduled", "ActivityTaskTimedOut"], "it never started"
    assert attributes_of(events[5]).started_event_id == 0
    assert attributes_of(events[5]).failure.message == "activity ScheduleToStart timeout"


async def test_schedule_to_close_while_running(client: Client) -> None:
    async with run_worker(client, [WithTimeouts], ACTIVITIES) as task_queue:
        handle = await start(client, task_queue, Timeouts("hang", schedule_to_close=0.5, attempts=5))
        error, timeout = await timeout_of(handle)
    # An attempt may last as long as schedule-to-close, so both timeouts are due at once.
    assert timeout.type == TimeoutType.SCHEDULE_TO_CLOSE
    assert error.retry_state in (RetryState.TIMEOUT, RetryState.NON_RETRYABLE_FAILURE)
    events = await events_of(handle)
    assert types_of(events)[4:7] == ["ActivityTaskScheduled", "ActivityTaskStarted", "ActivityTaskTimedOut"]
    scheduled = attributes_of(events[4])
    assert scheduled.start_to_close_timeout.ToMilliseconds() == 500


async def test_schedule_to_close_while_nobody_polls(client: Client) -> None:
    async with run_worker(client, [WithTimeouts]) as task_queue:
        timeouts = Timeouts("hang", schedule_to_close=0.5, attempts=5, task_queue=new_id("nobody"))
        handle = await start(client, task_queue, timeouts)
        _, timeout = await timeout_of(handle)
    assert timeout.type in (TimeoutType.SCHEDULE_TO_CLOSE, TimeoutType.SCHEDULE_TO_START)
    assert "ActivityTaskStarted" not in types_of(await events_of(handle))


async def test_heartbeat(client: Client) -> None:
    async with run_worker(client, [WithTimeouts], ACTIVITIES) as task_queue:
        timeouts = Timeouts("heartbeat_once_and_hang", start_to_close=30, heartbeat=0.5)
        handle = await start(client, task_queue, timeouts)

        async def heartbeat_seen() -> bool:
            pending = (await handle.describe()).raw_description.pending_activities
            return bool(pending and pending[0].heartbeat_details.payloads)

        await eventually(heartbeat_seen)
        error, timeout = await timeout_of(handle)
    assert timeout.type == TimeoutType.HEARTBEAT
    assert list(timeout.last_heartbeat_details) == ["half", 50]
    assert error.retry_state == RetryState.MAXIMUM_ATTEMPTS_REACHED
    timed_out = attributes_of(only(await events_of(handle), "ActivityTaskTimedOut"))
    assert timed_out.failure.message == "activity Heartbeat timeout"
    assert timed_out.failure.timeout_failure_info.timeout_type == RawTimeoutType.TIMEOUT_TYPE_HEARTBEAT


async def test_pending_activity_with_heartbeat_is_described(client: Client) -> None:
    async with run_worker(client, [WithTimeouts], ACTIVITIES, identity="the-worker") as task_queue:
        timeouts = Timeouts("heartbeat_once_and_hang", start_to_close=30, heartbeat=20)
        handle = await start(client, task_queue, timeouts)

        async def heartbeat_seen() -> bool:
            pending = (await handle.describe()).raw_description.pending_activities
            return bool(pending and pending[0].heartbeat_details.payloads)

        await eventually(heartbeat_seen)
        [pending] = (await handle.describe()).raw_description.pending_activities
        assert pending.state == PendingActivityState.PENDING_ACTIVITY_STATE_STARTED
        assert [payload.data for payload in pending.heartbeat_details.payloads] == [b'"half"', b"50"]
        assert pending.attempt == 1
        assert pending.last_worker_identity == "the-worker"
        assert pending.HasField("last_heartbeat_time")
        assert pending.HasField("last_started_time")
        assert pending.HasField("scheduled_time")
        await handle.terminate()


async def test_heartbeat_details_resume_a_chunked_activity(client: Client) -> None:
    no_throttle = timedelta(milliseconds=1)
    async with run_worker(
        client, [WithTimeouts], ACTIVITIES, max_heartbeat_throttle_interval=no_throttle
    ) as task_queue:
        handle = await start(client, task_queue, Timeouts("ten_chunks", start_to_close=30, heartbeat=1, attempts=3))
        chunks = await handle.result()
    assert chunks == list(range(1, 11)), "every chunk was done once"
    assert [attempt for attempt, _ in CHUNKS[handle.id]] == [1] * 6 + [2] * 2 + [3] * 2
    assert attributes_of(only(await events_of(handle), "ActivityTaskStarted")).attempt == 3


async def test_timeouts_are_capped_and_filled_in(client: Client) -> None:
    """What is missing is derived, and nothing is longer than the run timeout."""
    async with run_worker(client, [WithTimeouts], ACTIVITIES) as task_queue:
        handle = await client.start_workflow(
            WithTimeouts.run,
            Timeouts("hang", start_to_close=7200, heartbeat=7200),
            id=new_id(),
            task_queue=task_queue,
            run_timeout=timedelta(seconds=100),
        )

        async def scheduled() -> bool:
            return "ActivityTaskScheduled" in types_of(await events_of(handle))

        await eventually(scheduled)
        await handle.terminate()
    scheduled_event = attributes_of(only(await events_of(handle), "ActivityTaskScheduled"))
    assert scheduled_event.start_to_close_timeout.seconds == 100
    assert scheduled_event.schedule_to_close_timeout.seconds == 100
    assert scheduled_event.schedule_to_start_timeout.seconds == 100
    assert scheduled_event.heartbeat_timeout.seconds == 100
