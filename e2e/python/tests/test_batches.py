"""Batch operations: many workflows at once, by a query or by name."""

from __future__ import annotations

from typing import Any

import pytest
from temporalio import workflow
from temporalio.api.batch.v1 import (
    BatchOperationCancelActivities,
    BatchOperationCancellation,
    BatchOperationDeleteActivities,
    BatchOperationDeletion,
    BatchOperationReset,
    BatchOperationSignal,
    BatchOperationTerminateActivities,
    BatchOperationTermination,
)
from temporalio.api.common.v1 import Execution, ResetOptions, WorkflowExecution
from temporalio.api.enums.v1 import BatchOperationState, BatchOperationType, ExecutionType
from temporalio.api.workflowservice.v1 import (
    DescribeBatchOperationRequest,
    DescribeBatchOperationResponse,
    ListBatchOperationsRequest,
    StartBatchOperationRequest,
    StopBatchOperationRequest,
)
from temporalio.client import ActivityExecutionStatus, Client, WorkflowExecutionStatus, WorkflowHandle
from temporalio.service import RPCStatusCode

from support import SOON, eventually, new_id, rpc_error, run_worker

COMPLETED = BatchOperationState.BATCH_OPERATION_STATE_COMPLETED
FAILED = BatchOperationState.BATCH_OPERATION_STATE_FAILED


@workflow.defn
class Item:
    def __init__(self) -> None:
        self.signals = 0

    @workflow.run
    async def run(self) -> int:
        await workflow.wait_condition(lambda: self.signals > 0)
        return self.signals

    @workflow.signal
    def go(self) -> None:
        self.signals += 1


async def start_items(client: Client, queue: str, count: int) -> list[WorkflowHandle[Any, Any]]:
    return [await client.start_workflow(Item.run, id=new_id("item"), task_queue=queue) for _ in range(count)]


async def batch(client: Client, **fields: Any) -> str:
    job_id = new_id("job")
    request = StartBatchOperationRequest(namespace="default", job_id=job_id, reason="why not", **fields)
    await client.workflow_service.start_batch_operation(request)
    return job_id


async def describe(client: Client, job_id: str) -> DescribeBatchOperationResponse:
    request = DescribeBatchOperationRequest(namespace="default", job_id=job_id)
    return await client.workflow_service.describe_batch_operation(request)


async def finished(client: Client, job_id: str) -> DescribeBatchOperationResponse:
    async def check() -> DescribeBatchOperationResponse | None:
        described = await describe(client, job_id)
        return described if described.state in (COMPLETED, FAILED) else None

    described = await eventually(check)
    assert described is not None
    return described


async def listed(client: Client, query: str, count: int) -> None:
    async def check() -> bool:
        return len([w async for w in client.list_workflows(query)]) == count

    await eventually(check)


async def test_a_query_names_the_workflows(client: Client) -> None:
    async with run_worker(client, [Item]) as queue:
        items = await start_items(client, queue, 7)
        query = f"TaskQueue = '{queue}'"
        await listed(client, query, 7)
        job_id = await batch(
            client, visibility_query=query, signal_operation=BatchOperationSignal(signal="go", identity="operator")
        )
        described = await finished(client, job_id)
        assert described.state == COMPLETED
        counts = (
            described.total_operation_count,
            described.complete_operation_count,
            described.failure_operation_count,
        )
        assert counts == (7, 7, 0)
        assert (described.identity, described.reason, described.query) == ("operator", "why not", query)
        for item in items:
            assert await item.result() == 1

        async def in_list() -> bool:
            request = ListBatchOperationsRequest(namespace="default", page_size=100)
            response = await client.workflow_service.list_batch_operations(request)
            return any(info.job_id == job_id and info.state == COMPLETED for info in response.operation_info)

        await eventually(in_list)


async def test_named_workflows_are_terminated_canceled_and_deleted(client: Client) -> None:
    queue = new_id("queue")
    items = await start_items(client, queue, 3)
    named = [WorkflowExecution(workflow_id=item.id) for item in items]
    job_id = await batch(client, executions=named, cancellation_operation=BatchOperationCancellation())
    assert (await finished(client, job_id)).complete_operation_count == 3
    job_id = await batch(client, executions=named, termination_operation=BatchOperationTermination())
    assert (await finished(client, job_id)).complete_operation_count == 3
    for item in items:
        assert (await item.describe()).status == WorkflowExecutionStatus.TERMINATED
    job_id = await batch(client, executions=named, deletion_operation=BatchOperationDeletion())
    assert (await finished(client, job_id)).state == COMPLETED

    async def gone() -> bool:
        for item in items:
            with rpc_error(RPCStatusCode.NOT_FOUND):
                await item.describe()
        return True

    await eventually(gone)


async def test_a_batch_of_resets(client: Client) -> None:
    async with run_worker(client, [Item]) as queue:
        items = await start_items(client, queue, 3)
        for item in items:
            await item.signal(Item.go)
            assert await item.result() == 1
        operation = BatchOperationReset(options=ResetOptions(first_workflow_task={}))
        named = [WorkflowExecution(workflow_id=item.id) for item in items]
        job_id = await batch(client, executions=named, reset_operation=operation)
        described = await finished(client, job_id)
        assert (described.complete_operation_count, described.failure_operation_count) == (3, 0)
        for item in items:
            again = client.get_workflow_handle(item.id)
            assert (await again.describe()).run_id != item.first_execution_run_id
            assert await again.result() == 1


async def test_what_fails_is_counted(client: Client) -> None:
    # Nobody has polled its first workflow task: there is no point to reset it to. What is gone needs nothing done.
    (item,) = await start_items(client, new_id("queue"), 1)
    named = [WorkflowExecution(workflow_id=item.id), WorkflowExecution(workflow_id=new_id("nothing"))]
    operation = BatchOperationReset(options=ResetOptions(last_workflow_task={}))
    job_id = await batch(client, executions=named, reset_operation=operation)
    described = await finished(client, job_id)
    counts = (described.complete_operation_count, described.failure_operation_count)
    assert (described.state, counts) == (COMPLETED, (1, 1))
    await item.terminate()


async def test_bad_requests(client: Client) -> None:
    operation = {"signal_operation": BatchOperationSignal(signal="go")}
    with rpc_error(RPCStatusCode.INVALID_ARGUMENT):
        await batch(client, **operation)
    with rpc_error(RPCStatusCode.INVALID_ARGUMENT):
        await batch(client, visibility_query="Nonsense ===", **operation)
    with rpc_error(RPCStatusCode.INVALID_ARGUMENT):
        await batch(client, visibility_query="WorkflowType = 'x'")
    with rpc_error(RPCStatusCode.NOT_FOUND):
        await describe(client, new_id())
    job_id = await batch(client, visibility_query="WorkflowType = 'NothingIsOfThisType'", **operation)
    await finished(client, job_id)
    with rpc_error(RPCStatusCode.ALREADY_EXISTS):
        request = StartBatchOperationRequest(
            namespace="default", job_id=job_id, reason="again", visibility_query="WorkflowType = 'x'", **operation
        )
        await client.workflow_service.start_batch_operation(request)


async def test_a_batch_is_stopped(client: Client) -> None:
    queue = new_id("queue")
    items = await start_items(client, queue, 5)
    job_id = await batch(
        client,
        executions=[WorkflowExecution(workflow_id=item.id) for item in items],
        max_operations_per_second=0.1,
        signal_operation=BatchOperationSignal(signal="go"),
    )
    stop = StopBatchOperationRequest(namespace="default", job_id=job_id, reason="enough", identity="operator")
    await client.workflow_service.stop_batch_operation(stop)
    described = await finished(client, job_id)
    assert described.state == FAILED
    assert described.complete_operation_count < 5
    for item in items:
        await item.terminate()


@pytest.mark.kills_server
async def test_a_batch_goes_on_after_the_server_died(new_server: Any) -> None:
    server = await new_server()
    client = await Client.connect(server.address)
    queue = new_id("queue")
    items = await start_items(client, queue, 30)
    job_id = await batch(
        client,
        executions=[WorkflowExecution(workflow_id=item.id) for item in items],
        max_operations_per_second=15,
        signal_operation=BatchOperationSignal(signal="go"),
    )
    server.kill()
    await server.start()
    described = await finished(client, job_id)
    assert (described.complete_operation_count, described.failure_operation_count) == (30, 0)
    async with run_worker(client, [Item], task_queue=queue):
        for item in items:
            assert await item.result() == 1, "each is signaled once"


async def test_standalone_activities(client: Client) -> None:
    """Cancel, terminate and delete them, by a query and by name."""
    kind = new_id("OfNobody")
    ids = [new_id("activity") for _ in range(5)]

    async def statuses() -> list[ActivityExecutionStatus]:
        return [(await client.get_activity_handle(id).describe()).status for id in ids]

    for id in ids:
        await client.start_activity(
            kind, id=id, task_queue=kind, schedule_to_close_timeout=SOON, start_to_close_timeout=SOON
        )
    named = [Execution(type=ExecutionType.EXECUTION_TYPE_ACTIVITY, business_id=id) for id in ids[:2]]
    job_id = await batch(
        client,
        target_executions=named,
        cancel_activities_operation=BatchOperationCancelActivities(identity="operator", reason="because"),
    )
    described = await finished(client, job_id)
    assert described.operation_type == BatchOperationType.BATCH_OPERATION_TYPE_CANCEL_ACTIVITY
    assert (described.complete_operation_count, list(described.executions)) == (2, named)
    assert await statuses() == [ActivityExecutionStatus.CANCELED] * 2 + [ActivityExecutionStatus.RUNNING] * 3

    query = f"ActivityType = '{kind}'"

    async def are_counted(condition: str, count: int) -> None:
        async def check() -> bool:
            return (await client.count_activities(f"{query} AND {condition}")).count == count

        await eventually(check)

    await are_counted("ExecutionStatus = 'Running'", 3)
    terminate = BatchOperationTerminateActivities(reason="enough")
    job_id = await batch(client, visibility_query=query, terminate_activities_operation=terminate)
    described = await finished(client, job_id)
    # Those that are closed are left alone.
    assert (described.total_operation_count, described.failure_operation_count) == (3, 0)
    assert (await statuses())[2:] == [ActivityExecutionStatus.TERMINATED] * 3

    await are_counted("ExecutionStatus != 'Running'", 5)
    delete = BatchOperationDeleteActivities()
    job_id = await batch(client, visibility_query=query, delete_activities_operation=delete)
    assert (await finished(client, job_id)).complete_operation_count == 5
    await are_counted("StartTime IS NOT NULL", 0)

    with rpc_error(RPCStatusCode.INVALID_ARGUMENT, "target_executions[0]"):
        workflow_id = Execution(type=ExecutionType.EXECUTION_TYPE_WORKFLOW, business_id="w")
        await batch(client, target_executions=[workflow_id], delete_activities_operation=delete)
