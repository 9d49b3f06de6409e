"""What operators do: pause, unpause, reset and change activities, pause workflows, change their options, delete them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from temporalio import activity, workflow
from temporalio.api.activity.v1 import ActivityOptions
from temporalio.api.common.v1 import Priority
from temporalio.api.enums.v1 import PendingActivityState, WorkflowExecutionStatus
from temporalio.api.query.v1 import WorkflowQuery
from temporalio.api.workflow.v1 import PendingActivityInfo, WorkflowExecutionOptions
from temporalio.api.workflowservice.v1 import (
    DeleteWorkflowExecutionRequest,
    DescribeWorkflowExecutionRequest,
    PauseActivityExecutionRequest,
    PauseActivityRequest,
    PauseWorkflowExecutionRequest,
    QueryWorkflowRequest,
    ResetActivityExecutionRequest,
    ResetActivityRequest,
    UnpauseActivityExecutionRequest,
    UnpauseActivityRequest,
    UnpauseWorkflowExecutionRequest,
    UpdateActivityExecutionOptionsRequest,
    UpdateActivityOptionsRequest,
    UpdateWorkflowExecutionOptionsRequest,
)
from temporalio.client import Client, WorkflowHandle
from temporalio.common import RetryPolicy
from temporalio.service import RPCStatusCode

from support import event_types, eventually, execution, new_id, rpc_error, run_worker

ALLOWED: set[str] = set()


@activity.defn
async def stubborn(key: str) -> int:
    if key not in ALLOWED:
        raise RuntimeError("not yet")
    return activity.info().attempt


@workflow.defn
class Stubborn:
    @workflow.run
    async def run(self, key: str) -> int:
        return await workflow.execute_activity(
            stubborn,
            key,
            start_to_close_timeout=timedelta(seconds=30),
            retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=50), backoff_coefficient=1.0),
        )


async def pending(handle: WorkflowHandle[Any, Any]) -> PendingActivityInfo:
    response = await handle._client.workflow_service.describe_workflow_execution(
        DescribeWorkflowExecutionRequest(namespace="default", execution=execution(handle))
    )
    assert len(response.pending_activities) == 1
    return response.pending_activities[0]


async def start(client: Client, queue: str) -> tuple[WorkflowHandle[Any, Any], str]:
    key = new_id("key")
    return await client.start_workflow(Stubborn.run, key, id=new_id(), task_queue=queue), key


async def test_a_paused_activity_waits(client: Client) -> None:
    service = client.workflow_service
    async with run_worker(client, [Stubborn], [stubborn]) as queue:
        handle, key = await start(client, queue)

        async def tried() -> bool:
            return (await pending(handle)).attempt > 1

        await eventually(tried)
        target = {"namespace": "default", "execution": execution(handle), "identity": "operator"}
        await service.pause_activity(PauseActivityRequest(**target, type="stubborn", reason="look first"))

        async def paused() -> bool:
            return (await pending(handle)).state == PendingActivityState.PENDING_ACTIVITY_STATE_PAUSED

        await eventually(paused)
        info = await pending(handle)
        assert info.paused and info.pause_info.manual.reason == "look first"
        ALLOWED.add(key)
        await service.unpause_activity(UnpauseActivityRequest(**target, unpause_all=True, reset_attempts=True))
        assert await handle.result() == 1
        with rpc_error(RPCStatusCode.NOT_FOUND):
            await service.pause_activity(PauseActivityRequest(**target, type="stubborn"))


async def test_a_reset_activity_begins_anew(client: Client) -> None:
    service = client.workflow_service
    async with run_worker(client, [Stubborn], [stubborn]) as queue:
        handle, key = await start(client, queue)

        async def tried() -> bool:
            return (await pending(handle)).attempt > 3

        await eventually(tried)
        info = await pending(handle)
        target = {"namespace": "default", "execution": execution(handle), "id": info.activity_id}
        await service.pause_activity(PauseActivityRequest(**target))
        await service.reset_activity(ResetActivityRequest(**target, keep_paused=True))
        assert (await pending(handle)).paused
        ALLOWED.add(key)
        await service.reset_activity(ResetActivityRequest(**target))
        assert await handle.result() <= 2


async def test_options_of_an_activity(client: Client) -> None:
    service = client.workflow_service
    async with run_worker(client, [Stubborn], [stubborn]) as queue:
        handle, key = await start(client, queue)

        async def scheduled() -> PendingActivityInfo:
            return await pending(handle)

        info = await eventually(scheduled)
        target = {"namespace": "default", "execution": execution(handle), "id": info.activity_id}
        response = await service.update_activity_options(
            UpdateActivityOptionsRequest(
                **target,
                activity_options=ActivityOptions(
                    start_to_close_timeout=Duration(seconds=77), priority=Priority(priority_key=1)
                ),
                update_mask=FieldMask(paths=["start_to_close_timeout", "priority.priority_key"]),
            )
        )
        assert response.activity_options.start_to_close_timeout.seconds == 77
        assert response.activity_options.priority.priority_key == 1
        assert (await pending(handle)).activity_options.start_to_close_timeout.seconds == 77
        restored = await service.update_activity_options(UpdateActivityOptionsRequest(**target, restore_original=True))
        assert restored.activity_options.start_to_close_timeout.seconds == 30
        with rpc_error(RPCStatusCode.INVALID_ARGUMENT, "ActivityOptions are not provided"):
            await service.update_activity_options(UpdateActivityOptionsRequest(**target))
        ALLOWED.add(key)
        await handle.result()


async def test_the_newer_forms(client: Client) -> None:
    service = client.workflow_service
    async with run_worker(client, [Stubborn], [stubborn]) as queue:
        handle, key = await start(client, queue)

        async def scheduled() -> PendingActivityInfo:
            return await pending(handle)

        info = await eventually(scheduled)
        target = {"namespace": "default", "workflow_id": handle.id, "activity_id": info.activity_id}
        await service.pause_activity_execution(PauseActivityExecutionRequest(**target, reason="look first"))
        assert (await pending(handle)).paused
        response = await service.update_activity_execution_options(
            UpdateActivityExecutionOptionsRequest(
                **target,
                activity_options=ActivityOptions(heartbeat_timeout=Duration(seconds=9)),
                update_mask=FieldMask(paths=["heartbeat_timeout"]),
            )
        )
        assert response.activity_options.heartbeat_timeout.seconds == 9
        await service.reset_activity_execution(ResetActivityExecutionRequest(**target, keep_paused=True))
        ALLOWED.add(key)
        await service.unpause_activity_execution(UnpauseActivityExecutionRequest(**target))
        assert await handle.result() >= 1


@workflow.defn
class Waits:
    def __init__(self) -> None:
        self.ended = False

    @workflow.run
    async def run(self) -> str:
        await workflow.wait_condition(lambda: self.ended)
        return "done"

    @workflow.signal
    def end(self) -> None:
        self.ended = True

    @workflow.query
    def state(self) -> bool:
        return self.ended


async def test_a_paused_workflow_waits(client: Client) -> None:
    service = client.workflow_service
    async with run_worker(client, [Waits]) as queue:
        handle = await client.start_workflow(Waits.run, id=new_id(), task_queue=queue)
        assert await handle.query(Waits.state) is False
        target = {"namespace": "default", "workflow_id": handle.id, "identity": "operator", "reason": "look first"}
        await service.pause_workflow_execution(PauseWorkflowExecutionRequest(**target, request_id="once"))
        await service.pause_workflow_execution(PauseWorkflowExecutionRequest(**target, request_id="once"))
        with rpc_error(RPCStatusCode.FAILED_PRECONDITION, "already paused"):
            await service.pause_workflow_execution(PauseWorkflowExecutionRequest(**target, request_id="twice"))
        described = await service.describe_workflow_execution(
            DescribeWorkflowExecutionRequest(namespace="default", execution=execution(handle))
        )
        status = described.workflow_execution_info.status
        assert status == WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_PAUSED
        assert described.workflow_extended_info.pause_info.reason == "look first"
        # Not every SDK knows this status.
        query = QueryWorkflowRequest(
            namespace="default", execution=execution(handle), query=WorkflowQuery(query_type="state")
        )
        rejected = (await service.query_workflow(query)).query_rejected
        assert rejected.status == WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_PAUSED
        await handle.signal(Waits.end)
        assert not described.HasField("pending_workflow_task")
        await service.unpause_workflow_execution(UnpauseWorkflowExecutionRequest(**target))
        assert await handle.result() == "done"
        types = await event_types(handle)
        assert types.index("WorkflowExecutionPaused") < types.index("WorkflowExecutionUnpaused")


async def test_options_of_a_workflow(client: Client) -> None:
    async with run_worker(client, [Waits]) as queue:
        handle = await client.start_workflow(Waits.run, id=new_id(), task_queue=queue)
        request = UpdateWorkflowExecutionOptionsRequest(
            namespace="default",
            workflow_execution=execution(handle),
            workflow_execution_options=WorkflowExecutionOptions(priority=Priority(priority_key=2)),
            update_mask=FieldMask(paths=["priority"]),
        )
        response = await client.workflow_service.update_workflow_execution_options(request)
        assert response.workflow_execution_options.priority.priority_key == 2
        await handle.signal(Waits.end)
        assert await handle.result() == "done"
        assert "WorkflowExecutionOptionsUpdated" in await event_types(handle)


async def test_a_deleted_workflow_is_gone(client: Client) -> None:
    async with run_worker(client, [Waits]) as queue:
        handle = await client.start_workflow(Waits.run, id=new_id(), task_queue=queue)
        await client.workflow_service.delete_workflow_execution(
            DeleteWorkflowExecutionRequest(namespace="default", workflow_execution=execution(handle))
        )

        async def gone() -> bool:
            with rpc_error(RPCStatusCode.NOT_FOUND):
                await handle.describe()
            return True

        await eventually(gone)
        # The id is free.
        again = await client.start_workflow(Waits.run, id=handle.id, task_queue=queue)
        await again.signal(Waits.end)
        assert await again.result() == "done"
        run = client.get_workflow_handle(again.id, run_id=again.first_execution_run_id)
        await client.workflow_service.delete_workflow_execution(
            DeleteWorkflowExecutionRequest(namespace="default", workflow_execution=execution(run))
        )

        async def run_gone() -> bool:
            with rpc_error(RPCStatusCode.NOT_FOUND):
                await run.describe()
            return True

        await eventually(run_gone)

        async def unlisted() -> bool:
            return not [run async for run in client.list_workflows(f"WorkflowId = '{handle.id}'")]

        await eventually(unlisted)
