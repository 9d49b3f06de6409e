"""Which tasks of a task queue go first, and how fast: priority, fairness, rate limits, hints to pollers."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration
from temporalio import activity, workflow
from temporalio.api.enums import v1 as enums
from temporalio.api.taskqueue.v1 import RateLimit
from temporalio.api.workflowservice import v1 as api
from temporalio.client import Client
from temporalio.common import Priority
from temporalio.service import RPCStatusCode
from temporalio.worker import Worker

from support import SOON, eventually, new_id, rpc_error, run_worker

ORDER: list[str] = []


@activity.defn
async def note(what: str) -> None:
    ORDER.append(what)


@workflow.defn
class Many:
    """Schedules activities, each with a priority, all at once."""

    @workflow.run
    async def run(self, queue: str, items: list[tuple[str, int, str, float]]) -> None:
        async def one(what: str, key: int, fairness: str, weight: float) -> None:
            priority = Priority(
                priority_key=key or None, fairness_key=fairness or None, fairness_weight=weight or None
            )
            await workflow.execute_activity(
                note, what, task_queue=queue, start_to_close_timeout=SOON, priority=priority
            )

        await asyncio.gather(*(one(*item) for item in items))


async def order_of(client: Client, queue: str, items: list[tuple[str, int, str, float]]) -> list[str]:
    """The order in which one slow worker gets the activities that all wait when it comes."""
    ORDER.clear()
    async with AsyncExitStack() as stack:
        workflows = await stack.enter_async_context(run_worker(client, [Many]))
        handle = await client.start_workflow(Many.run, args=[queue, items], id=new_id(), task_queue=workflows)

        async def all_wait() -> bool:
            request = api.DescribeTaskQueueRequest(
                namespace=client.namespace,
                task_queue_type=enums.TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
                report_stats=True,
            )
            request.task_queue.name = queue
            stats = (await client.workflow_service.describe_task_queue(request)).stats
            return stats.approximate_backlog_count == len(items)

        await eventually(all_wait)
        await stack.enter_async_context(
            Worker(
                client,
                task_queue=queue,
                activities=[note],
                max_concurrent_activities=1,
                max_concurrent_activity_task_polls=1,
            )
        )
        await handle.result()
    return list(ORDER)


async def test_urgent_tasks_go_first(client: Client) -> None:
    items = [("low", 5, "", 0.0), ("usual", 0, "", 0.0), ("high", 1, "", 0.0), ("third", 3, "", 0.0)]
    order = await order_of(client, new_id("queue"), items)
    # Without a priority is the third level.
    assert (order[0], order[3], set(order[1:3])) == ("high", "low", {"usual", "third"})


async def test_a_tenant_with_many_tasks_does_not_hold_up_the_others(client: Client) -> None:
    items = [(f"a{i}", 0, "a", 0.0) for i in range(20)] + [(f"b{i}", 0, "b", 0.0) for i in range(4)]
    order = await order_of(client, new_id("queue"), items)
    assert max(order.index(f"b{i}") for i in range(4)) <= 9, order


async def test_weights(client: Client) -> None:
    items = [(f"a{i}", 0, "a", 3.0) for i in range(12)] + [(f"b{i}", 0, "b", 1.0) for i in range(12)]
    first = (await order_of(client, new_id("queue"), items))[:12]
    assert 8 <= sum(what.startswith("a") for what in first) <= 10, first


async def update_config(client: Client, queue: str, **fields: Any) -> Any:
    request = api.UpdateTaskQueueConfigRequest(
        namespace=client.namespace,
        identity="me",
        task_queue=queue,
        task_queue_type=enums.TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
        **fields,
    )
    return (await client.workflow_service.update_task_queue_config(request)).config


def limit(per_second: float | None, reason: str = "why") -> Any:
    rate = None if per_second is None else RateLimit(requests_per_second=per_second)
    return api.UpdateTaskQueueConfigRequest.RateLimitUpdate(rate_limit=rate, reason=reason)


async def describe_activities(client: Client, queue: str) -> Any:
    request = api.DescribeTaskQueueRequest(
        namespace=client.namespace,
        task_queue_type=enums.TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY,
        report_config=True,
        report_stats=True,
    )
    request.task_queue.name = queue
    return await client.workflow_service.describe_task_queue(request)


async def test_weights_set_by_an_operator(client: Client) -> None:
    queue = new_id("queue")
    config = await update_config(client, queue, set_fairness_weight_overrides={"b": 3.0})
    assert dict(config.fairness_weight_overrides) == {"b": 3.0}
    items = [(f"a{i}", 0, "a", 1.0) for i in range(12)] + [(f"b{i}", 0, "b", 1.0) for i in range(12)]
    first = (await order_of(client, queue, items))[:12]
    assert 8 <= sum(what.startswith("b") for what in first) <= 10, first


async def test_a_rate_limit_of_the_queue(client: Client) -> None:
    queue = new_id("queue")
    config = await update_config(client, queue, update_queue_rate_limit=limit(5))
    assert config.queue_rate_limit.rate_limit.requests_per_second == 5
    assert config.queue_rate_limit.metadata.reason == "why"
    assert config.queue_rate_limit.metadata.update_identity == "me"
    described = await describe_activities(client, queue)
    assert described.config.queue_rate_limit.rate_limit.requests_per_second == 5
    assert described.effective_rate_limit.requests_per_second == 5
    assert described.effective_rate_limit.rate_limit_source == enums.RateLimitSource.RATE_LIMIT_SOURCE_API
    begun = time.monotonic()
    await order_of(client, queue, [(str(i), 0, "", 0.0) for i in range(15)])
    # Five at once, then five a second.
    assert time.monotonic() - begun > 1.9
    config = await update_config(client, queue, update_queue_rate_limit=limit(None))
    assert not config.queue_rate_limit.HasField("rate_limit")

    async def unlimited() -> bool:
        source = (await describe_activities(client, queue)).effective_rate_limit.rate_limit_source
        return source != enums.RateLimitSource.RATE_LIMIT_SOURCE_API

    await eventually(unlimited)


async def test_a_rate_limit_of_each_key(client: Client) -> None:
    queue = new_id("queue")
    await update_config(client, queue, update_fairness_key_rate_limit_default=limit(2))
    items = [(f"a{i}", 0, "a", 0.0) for i in range(6)] + [(f"b{i}", 0, f"b{i}", 0.0) for i in range(6)]
    order = await order_of(client, queue, items)
    # Each of the others has a share of its own: only "a" has to wait.
    assert all(what.startswith("a") for what in order[-4:]), order


async def test_what_is_refused(client: Client) -> None:
    with rpc_error(RPCStatusCode.INVALID_ARGUMENT):
        await update_config(client, new_id("queue"), update_queue_rate_limit=limit(-1))
    with rpc_error(RPCStatusCode.INVALID_ARGUMENT):
        await update_config(client, new_id("queue"), set_fairness_weight_overrides={"": 1.0})


async def start_any(client: Client, queue: str) -> None:
    start = api.StartWorkflowExecutionRequest(
        namespace=client.namespace, workflow_id=new_id(), request_id=new_id(), identity="me"
    )
    start.workflow_type.name = "W"
    start.task_queue.name = queue
    start.workflow_execution_timeout.CopyFrom(Duration(seconds=30))
    await client.workflow_service.start_workflow_execution(start)


async def test_pollers_are_told_when_they_are_too_many(client: Client) -> None:
    service, queue = client.workflow_service, new_id("queue")
    poll = api.PollWorkflowTaskQueueRequest(namespace=client.namespace, identity="me")
    poll.task_queue.name = queue
    begun = time.monotonic()
    polling = asyncio.create_task(service.poll_workflow_task_queue(poll))

    async def has_waited() -> bool:
        return time.monotonic() > begun + 2

    await eventually(has_waited)
    await start_any(client, queue)
    assert (await polling).poller_scaling_decision.poll_request_delta_suggestion == -1


async def test_pollers_are_told_when_they_are_too_few(client: Client) -> None:
    service, queue = client.workflow_service, new_id("queue")
    for _ in range(3):
        await start_any(client, queue)

    async def waits() -> bool:
        request = api.DescribeTaskQueueRequest(namespace=client.namespace, report_stats=True)
        request.task_queue.name = queue
        stats = (await service.describe_task_queue(request)).stats
        return stats.approximate_backlog_age.ToTimedelta() > timedelta(seconds=0.3)

    await eventually(waits)
    poll = api.PollWorkflowTaskQueueRequest(namespace=client.namespace, identity="me")
    poll.task_queue.name = queue
    response = await service.poll_workflow_task_queue(poll)
    assert response.poller_scaling_decision.poll_request_delta_suggestion == 1
