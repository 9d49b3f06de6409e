"""Task queues: routing, replacing workers one by one, what DescribeTaskQueue tells."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio import activity, workflow
from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    DescribeTaskQueueRequest,
    DescribeTaskQueueResponse,
    ListTaskQueuePartitionsRequest,
)
from temporalio.client import Client, WorkflowHandle

from raw import RawWorker, schedule_activity
from support import SOON, eventually, new_id, run_worker


@activity.defn(name="where")
async def where_a() -> str:
    return "a"


@activity.defn(name="where")
async def where_b() -> str:
    return "b"


@workflow.defn
class Routes:
    @workflow.run
    async def run(self, queues: list[str]) -> list[str]:
        return [
            await workflow.execute_activity("where", task_queue=queue, start_to_close_timeout=SOON, result_type=str)
            for queue in queues
        ]


@workflow.defn
class Steps:
    @workflow.run
    async def run(self, count: int) -> int:
        for _ in range(count):
            await workflow.execute_activity("where", start_to_close_timeout=timedelta(seconds=5), result_type=str)
            await workflow.sleep(timedelta(milliseconds=100))
        return count


async def test_activities_go_to_the_queue_they_name(client: Client) -> None:
    async with (
        run_worker(client, [Routes]) as main,
        run_worker(client, [], [where_a]) as a,
        run_worker(client, [], [where_b]) as b,
    ):
        result = await client.execute_workflow(
            Routes.run, [a, b, b, a], id=new_id(), task_queue=main, execution_timeout=SOON
        )
    assert result == ["a", "b", "b", "a"]


async def test_tasks_wait_for_a_worker(client: Client) -> None:
    task_queue = new_id("queue")
    handles = [
        await client.start_workflow(
            Routes.run, [task_queue], id=new_id(), task_queue=task_queue, execution_timeout=timedelta(minutes=1)
        )
        for _ in range(20)
    ]
    async with run_worker(client, [Routes], [where_a], task_queue=task_queue):
        assert [await handle.result() for handle in handles] == [["a"]] * 20


async def test_two_workers_share_a_queue(client: Client, address: str) -> None:
    task_queue = new_id("queue")
    other = await Client.connect(address)  # one client cannot have two workers on a queue
    async with (
        run_worker(client, [Routes], [where_a], task_queue=task_queue, max_concurrent_activities=2),
        run_worker(other, [Routes], [where_b], task_queue=task_queue, max_concurrent_activities=2),
    ):
        results = await asyncio.gather(
            *(
                client.execute_workflow(Routes.run, [task_queue] * 3, id=new_id(), task_queue=task_queue)
                for _ in range(20)
            )
        )
    said = {place for result in results for place in result}
    assert said <= {"a", "b"}


async def test_rolling_replacement_of_workers(client: Client, address: str) -> None:
    """Two workers at any time, each replaced again and again: every workflow goes on without a failure."""
    task_queue = new_id("queue")
    handles: list[WorkflowHandle[Steps, int]] = []
    stop = asyncio.Event()

    async def roll(delay: float) -> None:
        await asyncio.sleep(delay)
        while not stop.is_set():
            async with run_worker(
                await Client.connect(address),
                [Steps],
                [where_a],
                task_queue=task_queue,
                graceful_shutdown_timeout=timedelta(seconds=5),
                sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
            ):
                try:
                    await asyncio.wait_for(stop.wait(), timeout=1.5)
                except asyncio.TimeoutError:
                    pass

    rollers = [asyncio.create_task(roll(0)), asyncio.create_task(roll(0.5))]
    try:
        for _ in range(10):
            handles.append(
                await client.start_workflow(
                    Steps.run, 8, id=new_id(), task_queue=task_queue, execution_timeout=timedelta(seconds=80)
                )
            )
        assert [await handle.result() for handle in handles] == [8] * 10
    finally:
        stop.set()
        await asyncio.gather(*rollers)


async def describe(client: Client, name: str, kind: int, **fields: bool) -> DescribeTaskQueueResponse:
    request = DescribeTaskQueueRequest(
        namespace="default", task_queue=TaskQueue(name=name), task_queue_type=kind, **fields
    )
    return await client.workflow_service.describe_task_queue(request)


WORKFLOW = TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW
ACTIVITY = TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY


async def test_pollers(client: Client) -> None:
    async with run_worker(client, [Routes], [where_a], identity="the-poller") as task_queue:

        async def both_seen() -> bool:
            for kind in (WORKFLOW, ACTIVITY):
                response = await describe(client, task_queue, kind)
                [poller] = response.pollers
                assert poller.identity == "the-poller"
                assert poller.HasField("last_access_time")
            return True

        async def seen() -> bool:
            try:
                return await both_seen()
            except ValueError:
                return False

        await eventually(seen)
    assert not (await describe(client, new_id("nobody"), WORKFLOW)).pollers


async def test_backlog(client: Client) -> None:
    raw = RawWorker(client)
    handles = [await raw.start() for _ in range(5)]

    async def five_workflow_tasks() -> bool:
        response = await describe(client, raw.task_queue, WORKFLOW, report_stats=True)
        return response.stats.approximate_backlog_count == 5

    await eventually(five_workflow_tasks)
    task = await raw.poll_workflow()
    await raw.complete(task, *(schedule_activity(raw.task_queue, f"{i}") for i in range(3)))

    async def three_activity_tasks() -> bool:
        response = await describe(client, raw.task_queue, ACTIVITY, report_stats=True)
        return response.stats.approximate_backlog_count == 3

    await eventually(three_activity_tasks)
    for handle in handles:
        await handle.terminate()


async def test_partitions(client: Client) -> None:
    task_queue = new_id("queue")
    request = ListTaskQueuePartitionsRequest(namespace="default", task_queue=TaskQueue(name=task_queue))
    response = await client.workflow_service.list_task_queue_partitions(request)
    assert task_queue in response.workflow_task_queue_partitions[0].key
    assert task_queue in response.activity_task_queue_partitions[0].key
