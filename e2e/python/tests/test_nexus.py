"""Nexus operations of workflows: ones that end at once, ones that are workflows, failures, retries, timeouts."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import nexusrpc
import nexusrpc.handler
import pytest
from temporalio import nexus, workflow
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import CallbackState, EventType
from temporalio.api.enums.v1 import PendingNexusOperationState as State
from temporalio.api.nexus.v1 import EndpointSpec, EndpointTarget
from temporalio.api.operatorservice.v1 import CreateNexusEndpointRequest, DeleteNexusEndpointRequest
from temporalio.api.workflowservice.v1 import (
    DescribeNamespaceRequest,
    GetSystemInfoRequest,
    ResetWorkflowExecutionRequest,
)
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.common import RetryPolicy, WorkflowIDConflictPolicy
from temporalio.exceptions import (
    ApplicationError,
    CancelledError,
    NexusOperationError,
    TerminatedError,
    TimeoutError,
)

from conftest import NewServer
from support import SOON, attributes_of, event_types, eventually, events_of, new_id, only, run_worker


@dataclass
class Order:
    name: str
    workflow_id: str = ""


@nexusrpc.service
class Shop:
    greet: nexusrpc.Operation[Order, str]
    refuse: nexusrpc.Operation[Order, str]
    third_time: nexusrpc.Operation[Order, str]
    bad_request: nexusrpc.Operation[Order, str]
    ship: nexusrpc.Operation[Order, str]
    slow: nexusrpc.Operation[Order, str]


@workflow.defn
class Shipping:
    """The workflow behind `ship`: waits for a signal, or does at once what the order's name says."""

    def __init__(self) -> None:
        self.done: str | None = None

    @workflow.run
    async def run(self, order: Order) -> str:
        if order.name == "fails":
            raise ApplicationError("out of stock", type="Stock", non_retryable=True)
        if order.name == "retries" and workflow.info().attempt < 2:
            raise ApplicationError("not yet")
        if order.name == "continues" and not workflow.info().continued_run_id:
            workflow.continue_as_new(order)
        if order.name in ("waits", "never"):
            await workflow.wait_condition(lambda: self.done is not None)
        return f"shipped {order.name}"

    @workflow.signal
    def finish(self) -> None:
        self.done = "done"


@nexusrpc.handler.service_handler(service=Shop)
class ShopHandler:
    def __init__(self) -> None:
        self.attempts = 0
        self.headers: dict[str, str] = {}

    @nexusrpc.handler.sync_operation
    async def greet(self, ctx: nexusrpc.handler.StartOperationContext, order: Order) -> str:
        self.headers = dict(ctx.headers)
        return f"hello {order.name}"

    @nexusrpc.handler.sync_operation
    async def refuse(self, ctx: nexusrpc.handler.StartOperationContext, order: Order) -> str:
        if order.name == "canceled":
            raise nexusrpc.OperationError("not today", state=nexusrpc.OperationErrorState.CANCELED)
        raise nexusrpc.OperationError(f"no {order.name}", state=nexusrpc.OperationErrorState.FAILED)

    @nexusrpc.handler.sync_operation
    async def third_time(self, ctx: nexusrpc.handler.StartOperationContext, order: Order) -> str:
        self.attempts += 1
        if self.attempts < 3:
            raise nexusrpc.HandlerError("busy", type=nexusrpc.HandlerErrorType.UNAVAILABLE)
        return f"attempt {self.attempts}"

    @nexusrpc.handler.sync_operation
    async def bad_request(self, ctx: nexusrpc.handler.StartOperationContext, order: Order) -> str:
        self.attempts += 1
        raise nexusrpc.HandlerError("what?", type=nexusrpc.HandlerErrorType.BAD_REQUEST)

    @nexusrpc.handler.sync_operation
    async def slow(self, ctx: nexusrpc.handler.StartOperationContext, order: Order) -> str:
        await asyncio.sleep(30)
        return "late"

    @nexus.workflow_run_operation
    async def ship(self, ctx: nexus.WorkflowRunOperationContext, order: Order) -> nexus.WorkflowHandle[str]:
        return await ctx.start_workflow(
            Shipping.run,
            order,
            id=order.workflow_id,
            retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=10)),
            id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        )


@dataclass
class Call:
    endpoint: str
    operation: str
    order: Order
    schedule_to_close: float | None = None
    cancel: bool = False


@workflow.defn
class Caller:
    @workflow.run
    async def run(self, call: Call) -> str:
        client = workflow.create_nexus_client(service=Shop, endpoint=call.endpoint)
        timeout = timedelta(seconds=call.schedule_to_close) if call.schedule_to_close else None
        operation = await client.start_operation(
            getattr(Shop, call.operation), call.order, schedule_to_close_timeout=timeout
        )
        if call.cancel:
            operation.cancel()
        return await operation


@dataclass
class World:
    client: Client
    endpoint: str
    handler: ShopHandler
    queue: str

    async def start(self, operation: str, name: str = "x", **options: object) -> WorkflowHandle[Caller, str]:
        order = Order(name, new_id("shipping"))
        call = Call(self.endpoint, operation, order, **options)  # type: ignore[arg-type]
        return await self.client.start_workflow(Caller.run, call, id=new_id("caller"), task_queue=self.queue)

    async def shipping_of(self, handle: WorkflowHandle[Caller, str]) -> WorkflowHandle[Shipping, str]:
        """The workflow that an operation of this caller has started."""

        async def its_id() -> str | None:
            events = await events_of(handle)
            started = [event for event in events if event.HasField("nexus_operation_started_event_attributes")]
            return started[0].links[0].workflow_event.workflow_id if started else None

        return self.client.get_workflow_handle_for(Shipping.run, await eventually(its_id))


async def create_endpoint(client: Client, queue: str) -> tuple[str, str, int]:
    name = f"shop-{uuid.uuid4().hex[:8]}"
    worker = EndpointTarget.Worker(namespace=client.namespace, task_queue=queue)
    spec = EndpointSpec(name=name, target=EndpointTarget(worker=worker))
    response = await client.operator_service.create_nexus_endpoint(CreateNexusEndpointRequest(spec=spec))
    return name, response.endpoint.id, response.endpoint.version


@asynccontextmanager
async def shop(client: Client) -> AsyncIterator[World]:
    """A worker with handlers and callers, behind an endpoint."""
    handler = ShopHandler()
    queue = new_id("shop")
    name, endpoint_id, version = await create_endpoint(client, queue)
    async with run_worker(client, [Caller, Shipping], task_queue=queue, nexus_service_handlers=[handler]):
        yield World(client, name, handler, queue)
    await client.operator_service.delete_nexus_endpoint(DeleteNexusEndpointRequest(id=endpoint_id, version=version))


async def cause_of(handle: WorkflowHandle[Caller, str]) -> BaseException | None:
    with pytest.raises(WorkflowFailureError) as caught:
        await asyncio.wait_for(handle.result(), SOON.total_seconds())
    error = caught.value.cause
    assert isinstance(error, NexusOperationError), error
    return error.cause


async def test_the_server_says_that_it_has_nexus(client: Client) -> None:
    info = await client.workflow_service.get_system_info(GetSystemInfoRequest())
    assert info.capabilities.nexus
    await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=client.namespace))


async def test_a_synchronous_operation(client: Client) -> None:
    async with shop(client) as world:
        handle = await world.start("greet", "Ada", schedule_to_close=20)
        assert await handle.result() == "hello Ada"
        types = await event_types(handle)
        assert types[4:6] == ["NexusOperationScheduled", "NexusOperationCompleted"]
        headers = {name.lower(): value for name, value in world.handler.headers.items()}
        assert headers["operation-timeout"].endswith("ms")


async def test_an_operation_that_is_a_workflow(client: Client) -> None:
    async with shop(client) as world:
        handle = await world.start("ship", "waits")
        shipping = await world.shipping_of(handle)

        description = await handle.describe()
        [pending] = description.raw_description.pending_nexus_operations
        assert pending.state == State.PENDING_NEXUS_OPERATION_STATE_STARTED
        assert (pending.service, pending.operation, pending.endpoint) == ("Shop", "ship", world.endpoint)
        assert pending.operation_token

        await shipping.signal(Shipping.finish)
        assert await handle.result() == "shipped waits"

        events = await events_of(handle)
        scheduled = only(events, "NexusOperationScheduled")
        completed = attributes_of(only(events, "NexusOperationCompleted"))
        assert completed.scheduled_event_id == scheduled.event_id

        # Each side links to the other.
        first = (await events_of(shipping))[0]
        [callback] = first.workflow_execution_started_event_attributes.completion_callbacks
        [link] = callback.links
        assert link.workflow_event.workflow_id == handle.id
        assert link.workflow_event.event_ref.event_id == scheduled.event_id
        assert link.workflow_event.event_ref.event_type == EventType.EVENT_TYPE_NEXUS_OPERATION_SCHEDULED
        forward = only(events, "NexusOperationStarted").links[0].workflow_event
        assert (forward.workflow_id, forward.event_ref.event_id) == (shipping.id, 1)

        async def delivered() -> bool:
            [info] = (await shipping.describe()).raw_description.callbacks
            return info.state == CallbackState.CALLBACK_STATE_SUCCEEDED

        assert await eventually(delivered)


@pytest.mark.parametrize("name", ["retries", "continues"])
async def test_the_last_run_of_the_operations_workflow_counts(client: Client, name: str) -> None:
    async with shop(client) as world:
        handle = await world.start("ship", name)
        assert await handle.result() == f"shipped {name}"


async def test_two_callers_of_one_workflow(client: Client) -> None:
    async with shop(client) as world:
        order = Order("waits", new_id("shipping"))
        handles = []
        for _ in range(2):
            call = Call(world.endpoint, "ship", order)
            caller = await client.start_workflow(Caller.run, call, id=new_id("caller"), task_queue=world.queue)
            await world.shipping_of(caller)
            handles.append(caller)
        shipping = client.get_workflow_handle_for(Shipping.run, order.workflow_id)
        attached = attributes_of(only(await events_of(shipping), "WorkflowExecutionOptionsUpdated"))
        assert attached.attached_request_id and len(attached.attached_completion_callbacks) == 1
        assert len((await shipping.describe()).raw_description.callbacks) == 2
        await shipping.signal(Shipping.finish)
        assert [await handle.result() for handle in handles] == ["shipped waits"] * 2


async def test_operations_that_fail(client: Client) -> None:
    async with shop(client) as world:
        cause = await cause_of(await world.start("refuse", "luck"))
        assert isinstance(cause, ApplicationError) and "no luck" in str(cause)

        cause = await cause_of(await world.start("refuse", "canceled"))
        assert isinstance(cause, CancelledError), cause

        cause = await cause_of(await world.start("ship", "fails"))
        assert isinstance(cause, ApplicationError), cause
        assert (cause.message, cause.type) == ("out of stock", "Stock")

        handle = await world.start("ship", "never")
        await (await world.shipping_of(handle)).terminate("reason")
        cause = await cause_of(handle)
        assert isinstance(cause, TerminatedError) and "reason" not in str(cause)


async def test_handler_errors_are_tried_again_unless_the_request_is_wrong(client: Client) -> None:
    async with shop(client) as world:
        handle = await world.start("third_time")

        async def backs_off() -> bool:
            pending = (await handle.describe()).raw_description.pending_nexus_operations
            return [operation.state for operation in pending] == [State.PENDING_NEXUS_OPERATION_STATE_BACKING_OFF]

        assert await eventually(backs_off)
        assert await handle.result() == "attempt 3"

        world.handler.attempts = 0
        cause = await cause_of(await world.start("bad_request"))
        assert isinstance(cause, nexusrpc.HandlerError), cause
        assert cause.type == nexusrpc.HandlerErrorType.BAD_REQUEST
        assert world.handler.attempts == 1


async def test_timeouts(client: Client) -> None:
    async with shop(client) as world:
        cause = await cause_of(await world.start("slow", schedule_to_close=3))
        assert isinstance(cause, TimeoutError), cause
        cause = await cause_of(await world.start("ship", "never", schedule_to_close=3))
        assert isinstance(cause, TimeoutError), cause


async def test_nobody_handles_it(client: Client) -> None:
    name, _, _ = await create_endpoint(client, new_id("nobody"))
    async with run_worker(client, [Caller]) as queue:
        call = Call(name, "greet", Order("x"), schedule_to_close=3)
        handle = await client.start_workflow(Caller.run, call, id=new_id("caller"), task_queue=queue)
        assert isinstance(await cause_of(handle), TimeoutError)


async def test_a_caller_that_cancels(client: Client) -> None:
    async with shop(client) as world:
        handle = await world.start("ship", "never", cancel=True)
        cause = await cause_of(handle)
        assert isinstance(cause, CancelledError), cause
        types = await event_types(handle)
        assert "NexusOperationCancelRequested" in types
        assert "NexusOperationCancelRequestCompleted" in types
        assert "NexusOperationCanceled" in types
        shipping = await world.shipping_of(handle)
        with pytest.raises(WorkflowFailureError) as caught:
            await shipping.result()
        assert isinstance(caught.value.cause, CancelledError)


async def test_an_unknown_endpoint_fails_the_task(client: Client) -> None:
    async with run_worker(client, [Caller]) as queue:
        call = Call("no-such-endpoint", "greet", Order("x"))
        handle = await client.start_workflow(Caller.run, call, id=new_id("caller"), task_queue=queue)

        async def failed() -> bool:
            events = await events_of(handle)
            messages = [event.workflow_task_failed_event_attributes.failure.message for event in events]
            return any('endpoint "no-such-endpoint" not found' in message for message in messages)

        assert await eventually(failed)
        await handle.terminate()


async def test_a_reset_caller_gets_the_operation_that_is_under_way(client: Client) -> None:
    async with shop(client) as world:
        handle = await world.start("ship", "waits")
        shipping = await world.shipping_of(handle)

        async def second_task() -> int:
            events = await events_of(handle)
            ids = [event.event_id for event in events if event.HasField("workflow_task_completed_event_attributes")]
            return ids[1] if len(ids) > 1 else 0

        request = ResetWorkflowExecutionRequest(
            namespace=client.namespace,
            workflow_execution=WorkflowExecution(workflow_id=handle.id),
            workflow_task_finish_event_id=await eventually(second_task),
            request_id=new_id(),
            reason="test",
        )
        run_id = (await client.workflow_service.reset_workflow_execution(request)).run_id
        await shipping.signal(Shipping.finish)
        again = client.get_workflow_handle_for(Caller.run, handle.id, run_id=run_id)
        assert await again.result() == "shipped waits"


@pytest.mark.kills_server
async def test_operations_survive_the_servers_death(new_server: NewServer) -> None:
    server = await new_server()
    client = await Client.connect(server.address)
    async with shop(client) as world:
        handle = await world.start("ship", "waits")
        shipping = await world.shipping_of(handle)
        await server.restart()
        await shipping.signal(Shipping.finish)
        assert await handle.result() == "shipped waits"
