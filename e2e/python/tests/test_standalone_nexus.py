"""Nexus operations that no workflow has scheduled: start, result, retries, cancel, terminate, lists; and who is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import pytest_asyncio
from temporalio import activity, workflow
from temporalio.api.common.v1 import ActivityType, Callback, WorkflowExecution
from temporalio.api.enums.v1 import CallbackState, UpdateWorkflowExecutionLifecycleStage
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.update.v1 import Input, Meta, Request, WaitPolicy
from temporalio.api.workflowservice.v1 import (
    DeleteNexusOperationExecutionRequest,
    DescribeActivityExecutionRequest,
    DescribeNexusOperationExecutionRequest,
    StartActivityExecutionRequest,
    UpdateWorkflowExecutionRequest,
)
from temporalio.client import Client, NexusOperationFailureError
from temporalio.common import NexusOperationExecutionStatus as Status
from temporalio.common import NexusOperationIDConflictPolicy, NexusOperationIDReusePolicy
from temporalio.exceptions import ApplicationError, CancelledError, TerminatedError, TimeoutError
from temporalio.service import RPCStatusCode

from conftest import NewServer
from raw import duration
from server import Servers
from support import SOON, eventually, new_id, rpc_error, run_worker
from test_nexus import Order, Shipping, Shop, World, shop
from test_nexus_external import Handler, outside


def shop_client(world: World):  # type: ignore[no-untyped-def]
    return world.client.create_nexus_client(Shop, world.endpoint)


async def cause_of(handle) -> BaseException:  # type: ignore[no-untyped-def]
    with pytest.raises(NexusOperationFailureError) as caught:
        await asyncio.wait_for(handle.result(), SOON.total_seconds())
    return caught.value.cause


async def has_started(handle) -> None:  # type: ignore[no-untyped-def]
    async def has_token() -> bool:
        return bool((await handle.describe()).operation_token)

    await eventually(has_token)


async def test_one_that_ends_at_once(client: Client) -> None:
    async with shop(client) as world:
        id = new_id("operation")
        handle = await shop_client(world).start_operation(Shop.greet, Order("you"), id=id)
        assert await handle.result() == "hello you"
        described = await handle.describe()
        assert described.status == Status.COMPLETED
        assert (described.operation_id, described.endpoint) == (id, world.endpoint)
        assert (described.service, described.operation) == ("Shop", "greet")
        request = DescribeNexusOperationExecutionRequest(
            namespace=client.namespace, operation_id=id, include_input=True, include_outcome=True
        )
        raw = await client.workflow_service.describe_nexus_operation_execution(request)
        assert raw.run_id == handle.run_id
        assert b'"you"' in raw.input.data and raw.result.data == b'"hello you"'


async def test_one_that_is_a_workflow(client: Client) -> None:
    async with shop(client) as world:
        order = Order("waits", new_id("shipping"))
        handle = await shop_client(world).start_operation(Shop.ship, order, id=new_id("operation"))

        await has_started(handle)
        await client.get_workflow_handle_for(Shipping.run, order.workflow_id).signal(Shipping.finish)
        assert await handle.result() == "shipped waits"


async def test_it_is_retried(client: Client) -> None:
    async with shop(client) as world:
        handle = await shop_client(world).start_operation(Shop.third_time, Order("x"), id=new_id("operation"))
        assert await handle.result() == "attempt 3"
        assert (await handle.describe()).attempt == 3


async def test_how_it_fails(client: Client) -> None:
    async with shop(client) as world:
        shop_of = shop_client(world)
        handle = await shop_of.start_operation(Shop.refuse, Order("luck"), id=new_id("operation"))
        error = await cause_of(handle)
        assert isinstance(error, ApplicationError) and error.message == "no luck", error
        assert (await handle.describe()).status == Status.FAILED
        handle = await shop_of.start_operation(Shop.refuse, Order("canceled"), id=new_id("operation"))
        assert isinstance(await cause_of(handle), CancelledError)
        assert (await handle.describe()).status == Status.CANCELED
        handle = await shop_of.start_operation(
            Shop.slow, Order("x"), id=new_id("operation"), schedule_to_close_timeout=timedelta(seconds=1)
        )
        error = await cause_of(handle)
        assert isinstance(error, TimeoutError), error
        assert (await handle.describe()).status == Status.TIMED_OUT


async def test_cancel_and_terminate(client: Client) -> None:
    async with shop(client) as world:
        shop_of = shop_client(world)
        order = Order("waits", new_id("shipping"))
        handle = await shop_of.start_operation(Shop.ship, order, id=new_id("operation"))

        await has_started(handle)
        await handle.cancel(reason="enough")
        cause = await cause_of(handle)
        assert isinstance(cause, CancelledError), cause
        info = (await handle.describe()).cancellation_info
        assert info is not None and info.reason == "enough"

        handle = await shop_of.start_operation(Shop.ship, Order("waits", new_id("shipping")), id=new_id("operation"))
        await handle.terminate(reason="now")
        assert isinstance(await cause_of(handle), TerminatedError)
        assert (await handle.describe()).status == Status.TERMINATED
        with rpc_error(RPCStatusCode.NOT_FOUND):
            await client.get_nexus_operation_handle(new_id("nobody")).describe()


async def test_ids(client: Client) -> None:
    async with shop(client) as world:
        shop_of = shop_client(world)
        id = new_id("operation")
        first = await shop_of.start_operation(Shop.ship, Order("waits", new_id("shipping")), id=id)
        with pytest.raises(Exception, match="already"):
            await shop_of.start_operation(Shop.ship, Order("waits", new_id("shipping")), id=id)
        same = await shop_of.start_operation(
            Shop.greet, Order("x"), id=id, id_conflict_policy=NexusOperationIDConflictPolicy.USE_EXISTING
        )
        assert same.run_id == first.run_id
        await first.terminate()
        await cause_of(first)
        with pytest.raises(Exception, match="already"):
            reject = NexusOperationIDReusePolicy.REJECT_DUPLICATE
            await shop_of.start_operation(Shop.greet, Order("x"), id=id, id_reuse_policy=reject)
        second = await shop_of.start_operation(Shop.greet, Order("again"), id=id)
        assert await second.result() == "hello again" and second.run_id != first.run_id
        assert (await client.get_nexus_operation_handle(id, run_id=first.run_id).describe()).status == Status.TERMINATED
        delete = DeleteNexusOperationExecutionRequest(namespace=client.namespace, operation_id=id, run_id=second.run_id)
        await client.workflow_service.delete_nexus_operation_execution(delete)

        async def gone() -> bool:
            with rpc_error(RPCStatusCode.NOT_FOUND):
                await second.describe()
            return True

        await eventually(gone)


async def test_lists_and_counts(client: Client) -> None:
    async with shop(client) as world:
        shop_of = shop_client(world)
        done = await shop_of.start_operation(Shop.greet, Order("x"), id=new_id("operation"))
        await done.result()
        running = await shop_of.start_operation(Shop.ship, Order("waits", new_id("shipping")), id=new_id("operation"))
        query = f"Endpoint = '{world.endpoint}'"

        async def listed() -> bool:
            found = {op.operation_id: op.status async for op in client.list_nexus_operations(query)}
            assert found == {done.operation_id: Status.COMPLETED, running.operation_id: Status.RUNNING}, found
            assert (await client.count_nexus_operations(query)).count == 2
            assert (await client.count_nexus_operations(f"{query} AND ExecutionStatus = 'Running'")).count == 1
            return True

        await eventually(listed)
        # Workflow lists do not show them.
        ids = [found.id async for found in client.list_workflows(f"WorkflowId = '{running.operation_id}'")]
        assert not ids
        await running.terminate()


async def test_it_survives_the_servers_death(new_server: NewServer) -> None:
    server = await new_server()
    client = await Client.connect(server.address)
    async with shop(client) as world:
        order = Order("waits", new_id("shipping"))
        handle = await shop_client(world).start_operation(Shop.ship, order, id=new_id("operation"))

        await has_started(handle)
        await server.restart()
        await client.get_workflow_handle_for(Shipping.run, order.workflow_id).signal(Shipping.finish)
        assert await handle.result() == "shipped waits"


# Callbacks of what is no workflow


@activity.defn
async def double(n: int) -> int:
    return 2 * n


@workflow.defn
class Approval:
    def __init__(self) -> None:
        self.approved = 0

    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: self.approved > 1)

    @workflow.update
    async def approve(self, name: str) -> str:
        self.approved += 1
        return f"approved by {name}"


async def told(handler: Handler) -> bytes:
    async def body() -> bytes:
        return handler.requests[0].body if handler.requests else b""

    return await eventually(body)


# Only `perdure dev` lets callbacks go anywhere by itself.
RULES = '[{"Pattern":"127.0.0.1:*","AllowInsecure":true}]'


@pytest_asyncio.fixture
async def calling(servers: Servers) -> AsyncIterator[Client]:
    async with servers.run("--dynamic-config-value", f"component.callbacks.allowedAddresses={RULES}") as server:
        yield await Client.connect(server.address)


@pytest.mark.perdure_only
async def test_an_activitys_caller_is_told(calling: Client) -> None:
    client = calling
    with outside() as handler:
        async with run_worker(client, activities=[double]) as queue:
            id = new_id("activity")
            request = StartActivityExecutionRequest(
                namespace=client.namespace,
                request_id=new_id(),
                activity_id=id,
                activity_type=ActivityType(name="double"),
                task_queue=TaskQueue(name=queue),
                start_to_close_timeout=duration(60),
                completion_callbacks=[Callback(nexus=Callback.Nexus(url=f"{handler.url}/callback"))],
            )
            request.input.payloads.extend(await client.data_converter.encode([21]))
            await client.workflow_service.start_activity_execution(request)
            assert await told(handler) == b"42"
            describe = DescribeActivityExecutionRequest(namespace=client.namespace, activity_id=id)

            async def succeeded() -> bool:
                described = await client.workflow_service.describe_activity_execution(describe)
                return [callback.info.state for callback in described.callbacks] == [
                    CallbackState.CALLBACK_STATE_SUCCEEDED
                ]

            await eventually(succeeded)


@pytest.mark.perdure_only
async def test_an_updates_caller_is_told(calling: Client) -> None:
    client = calling
    with outside() as handler:
        async with run_worker(client, [Approval]) as queue:
            approval = await client.start_workflow(Approval.run, id=new_id("approval"), task_queue=queue)
            asked = Request(
                meta=Meta(update_id="u", identity="e2e"),
                input=Input(name="approve"),
                request_id=new_id(),
                completion_callbacks=[Callback(nexus=Callback.Nexus(url=f"{handler.url}/callback"))],
            )
            asked.input.args.payloads.extend(await client.data_converter.encode(["Ada"]))
            stage = UpdateWorkflowExecutionLifecycleStage.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_COMPLETED
            request = UpdateWorkflowExecutionRequest(
                namespace=client.namespace,
                workflow_execution=WorkflowExecution(workflow_id=approval.id),
                request=asked,
                wait_policy=WaitPolicy(lifecycle_stage=stage),
            )
            await client.workflow_service.update_workflow_execution(request)
            assert await told(handler) == b'"approved by Ada"'
            assert len(handler.requests) == 1
            await approval.execute_update(Approval.approve, "Bob")
            await approval.result()
