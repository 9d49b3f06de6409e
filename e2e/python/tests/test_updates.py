"""Updates: validators, wait stages, deduplication, update-with-start."""

from __future__ import annotations

import asyncio

import pytest
from temporalio import workflow
from temporalio.api.enums.v1 import UpdateWorkflowExecutionLifecycleStage as Stage
from temporalio.api.errordetails.v1 import MultiOperationExecutionFailure, WorkflowExecutionAlreadyStartedFailure
from temporalio.api.update.v1 import Input, Meta, Request, UpdateRef, WaitPolicy
from temporalio.api.workflowservice.v1 import (
    ExecuteMultiOperationRequest,
    PollWorkflowExecutionUpdateRequest,
    UpdateWorkflowExecutionRequest,
)
from temporalio.client import (
    Client,
    WithStartWorkflowOperation,
    WorkflowHandle,
    WorkflowUpdateFailedError,
    WorkflowUpdateStage,
)
from temporalio.common import WorkflowIDConflictPolicy
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from raw import RawWorker, start_timer
from support import (
    SOON,
    WORKFLOW_TASK,
    attributes_of,
    event_types,
    events_of,
    eventually,
    execution,
    new_id,
    only,
    rpc_error,
    run_worker,
    start_request,
    types_of,
)

UPDATE = ["WorkflowExecutionUpdateAccepted", "WorkflowExecutionUpdateCompleted"]


@workflow.defn
class Counter:
    def __init__(self) -> None:
        self.value = 0
        self.is_open = False
        self.ended = False

    @workflow.run
    async def run(self) -> int:
        await workflow.wait_condition(lambda: self.ended)
        return self.value

    @workflow.update
    def add(self, amount: int) -> int:
        self.value += amount
        return self.value

    @add.validator
    def check_add(self, amount: int) -> None:
        if amount < 0:
            raise ApplicationError("cannot add a negative amount", type="Negative")

    @workflow.update(unfinished_policy=workflow.HandlerUnfinishedPolicy.ABANDON)
    async def add_when_open(self, amount: int) -> int:
        await workflow.wait_condition(lambda: self.is_open)
        self.value += amount
        return self.value

    @workflow.update
    def fail(self) -> None:
        raise ApplicationError("the update failed", type="Failed")

    @workflow.update
    def end_by_update(self) -> int:
        self.ended = True
        return self.value

    @workflow.signal
    def open(self) -> None:
        self.is_open = True

    @workflow.signal
    def end(self) -> None:
        self.ended = True

    @workflow.query
    def read(self) -> int:
        return self.value


async def start(client: Client, task_queue: str) -> WorkflowHandle[Counter, int]:
    """A run that has finished its first task."""
    handle = await client.start_workflow(Counter.run, id=new_id(), task_queue=task_queue, execution_timeout=SOON)
    await handle.query(Counter.read)
    return handle


def update_request(
    handle: WorkflowHandle[Counter, int], update_id: str, name: str = "add"
) -> UpdateWorkflowExecutionRequest:
    return UpdateWorkflowExecutionRequest(
        namespace="default",
        workflow_execution=execution(handle),
        wait_policy=WaitPolicy(lifecycle_stage=Stage.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_COMPLETED),
        request=Request(meta=Meta(update_id=update_id, identity="raw"), input=Input(name=name)),
    )


async def test_update_returns_its_result_and_leaves_two_events(client: Client) -> None:
    async with run_worker(client, [Counter]) as task_queue:
        handle = await start(client, task_queue)
        assert await handle.execute_update(Counter.add, 5, id="first") == 5
        assert await handle.execute_update(Counter.add, 2) == 7
        await handle.signal(Counter.end)
        assert await handle.result() == 7
    events = await events_of(handle)
    assert types_of(events) == [
        "WorkflowExecutionStarted",
        *WORKFLOW_TASK,
        *WORKFLOW_TASK, *UPDATE,
        *WORKFLOW_TASK, *UPDATE,
        "WorkflowExecutionSignaled", *WORKFLOW_TASK, "WorkflowExecutionCompleted",
    ]  # fmt: skip
    accepted, completed = attributes_of(events[7]), attributes_of(events[8])
    assert accepted.protocol_instance_id == "first"
    assert accepted.accepted_request.meta.update_id == "first"
    assert accepted.accepted_request.input.name == "add"
    assert accepted.accepted_request.input.args.payloads[0].data == b"5"
    assert accepted.accepted_request_sequencing_event_id == 5, "the event before the task that brought it"
    assert completed.meta.update_id == "first"
    assert completed.accepted_event_id == 8
    assert completed.outcome.success.payloads[0].data == b"5"


async def test_rejected_update_leaves_no_trace(client: Client) -> None:
    async with run_worker(client, [Counter]) as task_queue:
        handle = await start(client, task_queue)
        before = await event_types(handle)
        for _ in range(3):
            with pytest.raises(WorkflowUpdateFailedError) as failure:
                await handle.execute_update(Counter.add, -1)
            assert isinstance(failure.value.cause, ApplicationError)
            assert failure.value.cause.message == "cannot add a negative amount"
            assert failure.value.cause.type == "Negative"
        assert await event_types(handle) == before, "not even the workflow task is written"
        assert await handle.execute_update(Counter.add, 1) == 1
        assert await event_types(handle) == [*before, *WORKFLOW_TASK, *UPDATE]
        await handle.terminate()


async def test_unknown_update_is_rejected(client: Client) -> None:
    async with run_worker(client, [Counter]) as task_queue:
        handle = await start(client, task_queue)
        with pytest.raises(WorkflowUpdateFailedError):
            await handle.execute_update("no-such-update")
        assert "WorkflowExecutionUpdateAccepted" not in await event_types(handle)
        await handle.terminate()


async def test_failing_update_fails_the_update_only(client: Client) -> None:
    async with run_worker(client, [Counter]) as task_queue:
        handle = await start(client, task_queue)
        with pytest.raises(WorkflowUpdateFailedError) as failure:
            await handle.execute_update(Counter.fail)
        assert isinstance(failure.value.cause, ApplicationError)
        assert failure.value.cause.type == "Failed"
        completed = attributes_of(only(await events_of(handle), "WorkflowExecutionUpdateCompleted"))
        assert completed.outcome.failure.message == "the update failed"
        assert await handle.query(Counter.read) == 0
        await handle.terminate()


async def test_update_id_makes_it_once(client: Client) -> None:
    async with run_worker(client, [Counter]) as task_queue:
        handle = await start(client, task_queue)
        results = await asyncio.gather(*(handle.execute_update(Counter.add, 5, id="same") for _ in range(8)))
        assert results == [5] * 8
        assert await handle.execute_update(Counter.add, 5, id="same") == 5
        assert await handle.query(Counter.read) == 5
        assert (await event_types(handle)).count("WorkflowExecutionUpdateAccepted") == 1
        await handle.terminate()


async def test_wait_for_accepted_then_poll_for_completed(client: Client) -> None:
    async with run_worker(client, [Counter]) as task_queue:
        handle = await start(client, task_queue)
        update = await handle.start_update(
            Counter.add_when_open, 3, id="waits", wait_for_stage=WorkflowUpdateStage.ACCEPTED
        )
        assert (await event_types(handle))[-1] == "WorkflowExecutionUpdateAccepted"
        other = handle.get_update_handle_for(Counter.add_when_open, "waits")
        waiters = [asyncio.create_task(update.result()), asyncio.create_task(other.result())]
        await handle.signal(Counter.open)
        assert await asyncio.gather(*waiters) == [3, 3]
        assert await handle.get_update_handle("waits").result() == 3
        await handle.signal(Counter.end)
        await handle.result()
        assert await handle.get_update_handle("waits").result() == 3, "a closed run still tells the outcome"


async def test_a_new_worker_completes_an_accepted_update(client: Client) -> None:
    task_queue = new_id("queue")
    async with run_worker(client, [Counter], task_queue=task_queue):
        handle = await start(client, task_queue)
        update = await handle.start_update(
            Counter.add_when_open, 3, id="waits", wait_for_stage=WorkflowUpdateStage.ACCEPTED
        )
    async with run_worker(client, [Counter], task_queue=task_queue):
        await handle.signal(Counter.open)
        assert await update.result() == 3
        await handle.terminate()


async def test_poll_of_an_unknown_update(client: Client) -> None:
    async with run_worker(client, [Counter]) as task_queue:
        handle = await start(client, task_queue)
        request = PollWorkflowExecutionUpdateRequest(
            namespace="default",
            update_ref=UpdateRef(workflow_execution=execution(handle), update_id="nobody"),
            wait_policy=WaitPolicy(lifecycle_stage=Stage.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_COMPLETED),
        )
        with rpc_error(RPCStatusCode.NOT_FOUND, "nobody"):
            await client.workflow_service.poll_workflow_execution_update(request)
        await handle.terminate()


async def test_update_of_a_closed_or_unknown_run(client: Client) -> None:
    async with run_worker(client, [Counter]) as task_queue:
        handle = await start(client, task_queue)
        await handle.execute_update(Counter.add, 1, id="before")
        await handle.signal(Counter.end)
        await handle.result()
        with rpc_error(RPCStatusCode.NOT_FOUND, "workflow execution already completed"):
            await handle.execute_update(Counter.add, 1)
        assert await handle.execute_update(Counter.add, 1, id="before") == 1, "the outcome is still known"
    with rpc_error(RPCStatusCode.NOT_FOUND):
        await client.get_workflow_handle(new_id("nobody")).execute_update("add", 1)


async def test_update_that_ends_the_workflow(client: Client) -> None:
    async with run_worker(client, [Counter]) as task_queue:
        handle = await start(client, task_queue)
        assert await handle.execute_update(Counter.end_by_update) == 0
        assert await handle.result() == 0
    assert (await event_types(handle))[-3:] == [*UPDATE, "WorkflowExecutionCompleted"]


async def test_workflow_ends_before_its_update(client: Client) -> None:
    async with run_worker(client, [Counter]) as task_queue:
        handle = await start(client, task_queue)
        update = await handle.start_update(Counter.add_when_open, 3, wait_for_stage=WorkflowUpdateStage.ACCEPTED)
        result = asyncio.create_task(update.result())
        await handle.signal(Counter.end)
        await handle.result()
        with pytest.raises(WorkflowUpdateFailedError) as failure:
            await result
        assert isinstance(failure.value.cause, ApplicationError)
        assert failure.value.cause.type == "AcceptedUpdateCompletedWorkflow"


async def test_no_more_than_ten_updates_in_flight(client: Client) -> None:
    async with run_worker(client, [Counter]) as task_queue:
        handle = await start(client, task_queue)
        updates = [
            await handle.start_update(Counter.add_when_open, 1, wait_for_stage=WorkflowUpdateStage.ACCEPTED)
            for _ in range(10)
        ]
        with rpc_error(RPCStatusCode.RESOURCE_EXHAUSTED):
            await client.workflow_service.update_workflow_execution(update_request(handle, "one-too-many"))
        await handle.signal(Counter.open)
        assert sorted([await update.result() for update in updates]) == list(range(1, 11))
        assert await handle.execute_update(Counter.add, 1) == 11
        await handle.terminate()


async def test_update_waits_for_a_worker(client: Client) -> None:
    task_queue = new_id("queue")
    handle = await client.start_workflow(Counter.run, id=new_id(), task_queue=task_queue, execution_timeout=SOON)
    update = asyncio.create_task(handle.execute_update(Counter.add, 4, id="early"))
    request = PollWorkflowExecutionUpdateRequest(
        namespace=client.namespace, update_ref=UpdateRef(workflow_execution=execution(handle), update_id="early")
    )

    async def is_known() -> bool:
        try:
            await client.workflow_service.poll_workflow_execution_update(request)
        except RPCError as error:
            assert error.status == RPCStatusCode.NOT_FOUND
            return False
        return True

    assert await eventually(is_known)
    async with run_worker(client, [Counter], task_queue=task_queue):
        assert await update == 4
        await handle.terminate()
    assert (await event_types(handle))[:6] == ["WorkflowExecutionStarted", *WORKFLOW_TASK, *UPDATE]


async def test_update_in_the_middle_of_a_task(client: Client) -> None:
    """An update that arrives while a task runs comes with the next one."""
    raw = RawWorker(client)
    handle = await raw.start()
    task = await raw.poll_workflow()
    assert not task.messages
    update = asyncio.create_task(client.workflow_service.update_workflow_execution(update_request(handle, "middle")))
    await asyncio.sleep(0.3)
    await raw.complete(task, start_timer())
    task = await raw.poll_workflow()
    [message] = task.messages
    assert message.protocol_instance_id == "middle"
    await handle.terminate()
    with rpc_error(RPCStatusCode.NOT_FOUND, "workflow update was aborted by closing workflow"):
        await update


# Update with start


def with_start(
    task_queue: str,
    workflow_id: str,
    policy: WorkflowIDConflictPolicy = WorkflowIDConflictPolicy.USE_EXISTING,
) -> WithStartWorkflowOperation[Counter, int]:
    return WithStartWorkflowOperation(
        Counter.run, id=workflow_id, task_queue=task_queue, id_conflict_policy=policy, execution_timeout=SOON
    )


async def test_update_with_start(client: Client) -> None:
    workflow_id = new_id()
    async with run_worker(client, [Counter]) as task_queue:
        first = with_start(task_queue, workflow_id)
        assert await client.execute_update_with_start_workflow(Counter.add, 5, start_workflow_operation=first) == 5
        second = with_start(task_queue, workflow_id)
        assert await client.execute_update_with_start_workflow(Counter.add, 2, start_workflow_operation=second) == 7
        handles = [await first.workflow_handle(), await second.workflow_handle()]
        assert handles[0].first_execution_run_id == handles[1].first_execution_run_id is not None
        assert (await event_types(handles[0]))[:6] == ["WorkflowExecutionStarted", *WORKFLOW_TASK, *UPDATE]
        await handles[0].terminate()


async def test_update_with_start_when_it_may_not_use_the_existing_run(client: Client) -> None:
    workflow_id = new_id()
    async with run_worker(client, [Counter]) as task_queue:
        handle = await client.start_workflow(Counter.run, id=workflow_id, task_queue=task_queue, execution_timeout=SOON)
        operation = with_start(task_queue, workflow_id, WorkflowIDConflictPolicy.FAIL)
        with pytest.raises(WorkflowAlreadyStartedError):
            await client.execute_update_with_start_workflow(Counter.add, 5, start_workflow_operation=operation)
        with pytest.raises(WorkflowAlreadyStartedError):
            await operation.workflow_handle()
        assert await handle.query(Counter.read) == 0, "neither half was done"
        await handle.terminate()


async def test_update_with_start_rejected_by_the_validator(client: Client) -> None:
    workflow_id = new_id()
    async with run_worker(client, [Counter]) as task_queue:
        operation = with_start(task_queue, workflow_id)
        with pytest.raises(WorkflowUpdateFailedError):
            await client.execute_update_with_start_workflow(Counter.add, -5, start_workflow_operation=operation)
        handle = await operation.workflow_handle()
        assert "WorkflowExecutionUpdateAccepted" not in await event_types(handle)
        await handle.terminate()


async def test_multi_operation_error_details(client: Client) -> None:
    workflow_id, task_queue = new_id(), new_id("queue")
    existing = await client.start_workflow("Counter", id=workflow_id, task_queue=task_queue)
    operation = ExecuteMultiOperationRequest.Operation
    update = update_request(existing, "update")
    update.workflow_execution.run_id = ""
    request = ExecuteMultiOperationRequest(
        namespace="default",
        operations=[
            operation(start_workflow=start_request(workflow_id, task_queue)),
            operation(update_workflow=update),
        ],
    )
    with rpc_error(RPCStatusCode.ALREADY_EXISTS) as caught:
        await client.workflow_service.execute_multi_operation(request)
    start_status, update_status = caught.detail(MultiOperationExecutionFailure).statuses
    assert start_status.code == RPCStatusCode.ALREADY_EXISTS.value
    already = WorkflowExecutionAlreadyStartedFailure()
    assert start_status.details[0].Unpack(already)
    assert already.run_id == existing.result_run_id
    assert update_status.code == RPCStatusCode.ABORTED.value
    await existing.terminate()

    del request.operations[1]
    with rpc_error(RPCStatusCode.INVALID_ARGUMENT):
        await client.workflow_service.execute_multi_operation(request)
