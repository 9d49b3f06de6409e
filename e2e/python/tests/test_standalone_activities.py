"""Activities that no workflow has scheduled: start, result, retries, cancel, terminate, lists, what operators do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest
from temporalio import activity
from temporalio.api.activity.v1 import ActivityOptions
from temporalio.api.common.v1 import ActivityType, Payloads
from temporalio.api.enums.v1 import ActivityExecutionStatus, PendingActivityState
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    DeleteActivityExecutionRequest,
    DescribeActivityExecutionRequest,
    DescribeActivityExecutionResponse,
    PollActivityExecutionRequest,
    StartActivityExecutionRequest,
    StartActivityExecutionResponse,
)
from temporalio.client import ActivityExecutionStatus as Status
from temporalio.client import ActivityFailureError, Client
from temporalio.common import ActivityIDConflictPolicy, ActivityIDReusePolicy, RetryPolicy
from temporalio.exceptions import ApplicationError, CancelledError, TerminatedError, TimeoutError
from temporalio.service import RPCError, RPCStatusCode

from raw import duration
from support import SOON, eventually, new_id, rpc_error, run_worker


@activity.defn
async def double(n: int) -> int:
    return 2 * n


@activity.defn
async def third_time(name: str) -> str:
    if activity.info().attempt < 3:
        raise ApplicationError(f"not yet, {name}")
    return f"done, {name}"


@activity.defn
async def refuse() -> None:
    raise ApplicationError("never", non_retryable=True)


@activity.defn
async def until_canceled() -> str:
    try:
        while True:
            activity.heartbeat("still here")
            await asyncio.sleep(0.1)
    except asyncio.CancelledError:
        raise


ACTIVITIES: list[Callable] = [double, third_time, refuse, until_canceled]


async def describe(client: Client, id: str, run_id: str = "", **fields: object) -> DescribeActivityExecutionResponse:
    request = DescribeActivityExecutionRequest(
        namespace=client.namespace, activity_id=id, run_id=run_id, **fields  # type: ignore[arg-type]
    )
    return await client.workflow_service.describe_activity_execution(request, timeout=SOON)


async def start_raw(client: Client, id: str, queue: str, **fields: object) -> StartActivityExecutionResponse:
    request = StartActivityExecutionRequest(
        namespace=client.namespace,
        input=Payloads(payloads=await client.data_converter.encode([2])),
        activity_id=id,
        activity_type=ActivityType(name="double"),
        task_queue=TaskQueue(name=queue),
        start_to_close_timeout=duration(60),
        **fields,  # type: ignore[arg-type]
    )
    return await client.workflow_service.start_activity_execution(request, timeout=SOON)


async def test_it_runs_and_gives_its_result(client: Client) -> None:
    async with run_worker(client, activities=ACTIVITIES) as queue:
        id = new_id("activity")
        options = {"id": id, "task_queue": queue, "start_to_close_timeout": SOON}
        assert await client.execute_activity(double, 21, **options) == 42
        described = await describe(client, id, include_input=True, include_outcome=True)
        info = described.info
        assert info.status == ActivityExecutionStatus.ACTIVITY_EXECUTION_STATUS_COMPLETED
        assert (info.activity_id, info.activity_type.name, info.task_queue, info.attempt) == (id, "double", queue, 1)
        assert described.input.payloads[0].data == b"21"
        assert described.outcome.result.payloads[0].data == b"42"
        assert info.close_time.ToNanoseconds() >= info.schedule_time.ToNanoseconds()
        assert not described.long_poll_token


async def test_it_is_retried(client: Client) -> None:
    async with run_worker(client, activities=ACTIVITIES) as queue:
        handle = await client.start_activity(
            third_time,
            "you",
            id=new_id("activity"),
            task_queue=queue,
            start_to_close_timeout=SOON,
            retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=10)),
        )
        assert await handle.result() == "done, you"
        described = await describe(client, handle.id, include_last_failure=True)
        assert described.info.attempt == 3
        assert described.info.last_failure.message == "not yet, you"


async def test_how_it_fails(client: Client) -> None:
    async with run_worker(client, activities=ACTIVITIES) as queue:
        handle = await client.start_activity(
            refuse, id=new_id("activity"), task_queue=queue, start_to_close_timeout=SOON
        )
        with pytest.raises(ActivityFailureError) as failed:
            await handle.result()
        assert isinstance(failed.value.cause, ApplicationError) and failed.value.cause.message == "never"
        assert (await handle.describe()).status == Status.FAILED
    # Nobody polls any more.
    handle = await client.start_activity(
        double,
        1,
        id=new_id("activity"),
        task_queue=queue,
        start_to_close_timeout=SOON,
        schedule_to_start_timeout=timedelta(milliseconds=200),
    )
    with pytest.raises(ActivityFailureError) as failed:
        await handle.result()
    assert isinstance(failed.value.cause, TimeoutError)
    assert (await handle.describe()).status == Status.TIMED_OUT


async def test_cancel_and_terminate(client: Client) -> None:
    async with run_worker(client, activities=ACTIVITIES) as queue:
        options = {"task_queue": queue, "start_to_close_timeout": SOON, "heartbeat_timeout": timedelta(seconds=5)}
        canceled = await client.start_activity(until_canceled, id=new_id("activity"), **options)
        terminated = await client.start_activity(until_canceled, id=new_id("activity"), **options)

        async def both_run() -> bool:
            described = [await describe(client, handle.id) for handle in (canceled, terminated)]
            started = PendingActivityState.PENDING_ACTIVITY_STATE_STARTED
            return all(d.info.run_state == started and d.info.total_heartbeat_count > 0 for d in described)

        await eventually(both_run)
        await canceled.cancel(reason="changed my mind")
        with pytest.raises(ActivityFailureError) as failed:
            await canceled.result()
        assert isinstance(failed.value.cause, CancelledError)
        assert (await describe(client, canceled.id)).info.canceled_reason == "changed my mind"
        await terminated.terminate(reason="at once")
        with pytest.raises(ActivityFailureError) as failed:
            await terminated.result()
        assert isinstance(failed.value.cause, TerminatedError)
        # One that no worker has ends at once.
        waiting = await client.start_activity(
            double, 1, id=new_id("activity"), task_queue=new_id("nobody"), start_to_close_timeout=SOON
        )
        await waiting.cancel()
        with pytest.raises(ActivityFailureError):
            await waiting.result()
        with pytest.raises(RPCError) as refused:
            await waiting.terminate()
        assert refused.value.status == RPCStatusCode.FAILED_PRECONDITION


async def test_ids_in_use(client: Client) -> None:
    id, queue = new_id("activity"), new_id("queue")
    first = await start_raw(client, id, queue, request_id="one")
    assert first.started and first.run_id
    again = await start_raw(client, id, queue, request_id="one")
    assert again.run_id == first.run_id
    with rpc_error(RPCStatusCode.ALREADY_EXISTS):
        await start_raw(client, id, queue, request_id="two")
    used = await start_raw(
        client, id, queue, request_id="three", id_conflict_policy=ActivityIDConflictPolicy.USE_EXISTING
    )
    assert used.run_id == first.run_id and not used.started
    async with run_worker(client, activities=ACTIVITIES, task_queue=queue):
        await client.workflow_service.poll_activity_execution(
            PollActivityExecutionRequest(namespace=client.namespace, activity_id=id), timeout=SOON
        )
        with rpc_error(RPCStatusCode.ALREADY_EXISTS):
            await start_raw(client, id, queue, id_reuse_policy=ActivityIDReusePolicy.REJECT_DUPLICATE)
        second = await start_raw(client, id, queue)
        assert second.started and second.run_id != first.run_id
    # The run before is still there.
    assert (await describe(client, id, first.run_id)).info.run_id == first.run_id
    assert (await describe(client, id)).info.run_id == second.run_id


async def test_waiting_for_changes(client: Client) -> None:
    id, queue = new_id("activity"), new_id("queue")
    started = await start_raw(client, id, queue)
    first = await describe(client, id, started.run_id)
    assert first.long_poll_token
    waiting = asyncio.create_task(describe(client, id, started.run_id, long_poll_token=first.long_poll_token))
    handle = client.get_activity_handle(id, run_id=started.run_id)
    await handle.pause(reason="hold on")
    changed = await waiting
    assert changed.info.status == ActivityExecutionStatus.ACTIVITY_EXECUTION_STATUS_PAUSED
    assert changed.info.state_transition_count > first.info.state_transition_count


async def test_what_operators_do(client: Client) -> None:
    queue = new_id("queue")
    handle = await client.start_activity(
        double, 4, id=new_id("activity"), task_queue=new_id("nobody"), start_to_close_timeout=SOON
    )
    await handle.pause()
    await client.workflow_service.update_activity_execution_options(
        update_request(client, handle.id, ActivityOptions(task_queue=TaskQueue(name=queue)), ["task_queue.name"]),
        timeout=SOON,
    )
    async with run_worker(client, activities=ACTIVITIES, task_queue=queue):
        assert (await handle.describe()).status == Status.PAUSED
        await handle.unpause()
        assert await handle.result() == 8


def update_request(client: Client, id: str, options: ActivityOptions, paths: list[str]):
    from google.protobuf.field_mask_pb2 import FieldMask
    from temporalio.api.workflowservice.v1 import UpdateActivityExecutionOptionsRequest

    return UpdateActivityExecutionOptionsRequest(
        namespace=client.namespace, activity_id=id, activity_options=options, update_mask=FieldMask(paths=paths)
    )


async def test_lists_and_deletion(client: Client) -> None:
    async with run_worker(client, activities=ACTIVITIES) as queue:
        ids = [new_id("activity") for _ in range(3)]
        for id in ids:
            await client.execute_activity(double, 1, id=id, task_queue=queue, start_to_close_timeout=SOON)
    query = f"TaskQueue = '{queue}' AND ActivityType = 'double'"

    async def listed() -> list[str]:
        return [found.activity_id async for found in client.list_activities(query)]

    async def are_listed(expected: list[str]) -> bool:
        return sorted(await listed()) == sorted(expected)

    await eventually(lambda: are_listed(ids))
    assert (await client.count_activities(f"{query} AND ExecutionStatus = 'Completed'")).count == 3
    assert [found.activity_id async for found in client.list_activities(f"ActivityId = '{ids[0]}'")] == [ids[0]]
    # They are no workflows.
    assert (await client.count_workflows(f"TaskQueue = '{queue}'")).count == 0
    await client.workflow_service.delete_activity_execution(
        DeleteActivityExecutionRequest(namespace=client.namespace, activity_id=ids[0]), timeout=SOON
    )
    await eventually(lambda: are_listed(ids[1:]))

    async def is_gone() -> bool:
        with rpc_error(RPCStatusCode.NOT_FOUND):
            await describe(client, ids[0])
        return True

    await eventually(is_gone)
