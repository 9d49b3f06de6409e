"""Child workflows."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from temporalio import workflow
from temporalio.api.enums.v1 import StartChildWorkflowExecutionFailedCause
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError
from temporalio.common import RetryPolicy
from temporalio.exceptions import (
    ApplicationError,
    CancelledError,
    ChildWorkflowError,
    RetryState,
    TerminatedError,
    TimeoutError,
    TimeoutType,
    WorkflowAlreadyStartedError,
)
from temporalio.service import RPCError, RPCStatusCode
from temporalio.workflow import ParentClosePolicy

from support import (
    SOON,
    WORKFLOW_TASK,
    attributes_of,
    event_types,
    events_of,
    eventually,
    new_id,
    only,
    run_worker,
    types_of,
)


@workflow.defn
class Square:
    @workflow.run
    async def run(self, number: int) -> int:
        return number * number


@workflow.defn
class Fails:
    @workflow.run
    async def run(self) -> None:
        raise ApplicationError("child failed", "detail", type="ChildFailure")


@workflow.defn
class FailsTwice:
    @workflow.run
    async def run(self) -> int:
        if workflow.info().attempt < 3:
            raise ApplicationError("not yet")
        return workflow.info().attempt


@workflow.defn
class CountsDown:
    @workflow.run
    async def run(self, left: int) -> str:
        if left > 0:
            workflow.continue_as_new(left - 1)
        return "landed"


@workflow.defn
class Waits:
    def __init__(self) -> None:
        self.heard: list[str] = []

    @workflow.run
    async def run(self) -> list[str]:
        await workflow.wait_condition(lambda: "end" in self.heard)
        return self.heard

    @workflow.signal
    def hear(self, text: str) -> None:
        self.heard.append(text)


CHILDREN = [Square, Fails, FailsTwice, CountsDown, Waits]


@workflow.defn
class FanOut:
    @workflow.run
    async def run(self, count: int) -> list[int]:
        return await asyncio.gather(
            *(
                workflow.execute_child_workflow(Square.run, number, id=f"{workflow.info().workflow_id}/{number}")
                for number in range(count)
            )
        )


@dataclass
class ChildSpec:
    workflow: str
    id: str
    arg: int | None = None
    run_timeout: float | None = None
    attempts: int | None = None


@workflow.defn
class OneChild:
    @workflow.run
    async def run(self, spec: ChildSpec) -> Any:
        return await workflow.execute_child_workflow(
            spec.workflow,
            args=[] if spec.arg is None else [spec.arg],
            id=spec.id,
            run_timeout=None if spec.run_timeout is None else timedelta(seconds=spec.run_timeout),
            retry_policy=None
            if spec.attempts is None
            else RetryPolicy(maximum_attempts=spec.attempts, initial_interval=timedelta(milliseconds=50)),
            result_type=Any,
        )


@workflow.defn
class DuplicateChild:
    @workflow.run
    async def run(self, child_id: str) -> str:
        try:
            await workflow.start_child_workflow(Waits.run, id=child_id)
        except WorkflowAlreadyStartedError as error:
            return f"{error.workflow_id} is there already"
        return "started"


@workflow.defn
class SignalsChild:
    @workflow.run
    async def run(self, child_id: str) -> list[str]:
        child = await workflow.start_child_workflow(Waits.run, id=child_id)
        await child.signal(Waits.hear, "hello")
        await child.signal(Waits.hear, "end")
        return await child


@workflow.defn
class CancelsChild:
    @workflow.run
    async def run(self, child_id: str) -> str:
        child = await workflow.start_child_workflow(Waits.run, id=child_id)
        child.cancel()
        try:
            await child
        except ChildWorkflowError as error:
            return type(error.cause).__name__
        return "not cancelled"


@workflow.defn
class LeavesChildren:
    """Starts one child with each parent close policy, and ends when told."""

    def __init__(self) -> None:
        self.ended = False

    @workflow.run
    async def run(self) -> None:
        me = workflow.info().workflow_id
        for policy in (ParentClosePolicy.TERMINATE, ParentClosePolicy.ABANDON, ParentClosePolicy.REQUEST_CANCEL):
            await workflow.start_child_workflow(Waits.run, id=f"{me}/{policy.name}", parent_close_policy=policy)
        await workflow.wait_condition(lambda: self.ended)

    @workflow.signal
    def end(self) -> None:
        self.ended = True


async def run_one_child(client: Client, task_queue: str, spec: ChildSpec):
    return await client.start_workflow(
        OneChild.run, spec, id=f"parent-of-{spec.id}", task_queue=task_queue, execution_timeout=timedelta(minutes=1)
    )


async def child_error(handle) -> ChildWorkflowError:
    with pytest.raises(WorkflowFailureError) as failure:
        await handle.result()
    assert isinstance(failure.value.cause, ChildWorkflowError)
    return failure.value.cause


async def started(handle) -> bool:
    return "ChildWorkflowExecutionStarted" in await event_types(handle)


async def test_one_child_event_by_event(client: Client) -> None:
    child_id = new_id("child")
    async with run_worker(client, [OneChild, *CHILDREN]) as task_queue:
        handle = await run_one_child(client, task_queue, ChildSpec("Square", child_id, 7))
        assert await handle.result() == 49
    events = await events_of(handle)
    types = types_of(events)
    assert types[:7] == [
        "WorkflowExecutionStarted", *WORKFLOW_TASK,
        "StartChildWorkflowExecutionInitiated", "ChildWorkflowExecutionStarted", "WorkflowTaskScheduled",
    ]  # fmt: skip
    assert types[-5:] == ["ChildWorkflowExecutionCompleted", *WORKFLOW_TASK, "WorkflowExecutionCompleted"]
    initiated, begun = attributes_of(events[4]), attributes_of(events[5])
    assert initiated.workflow_id == child_id
    assert initiated.workflow_task_completed_event_id == 4
    assert initiated.input.payloads[0].data == b"7"
    assert begun.initiated_event_id == 5
    assert begun.workflow_execution.workflow_id == child_id
    completed = attributes_of(only(events, "ChildWorkflowExecutionCompleted"))
    assert (completed.initiated_event_id, completed.started_event_id) == (5, 6)
    assert completed.workflow_execution.run_id == begun.workflow_execution.run_id
    assert completed.result.payloads[0].data == b"49"


async def test_fan_out_of_a_hundred(client: Client) -> None:
    async with run_worker(client, [FanOut, Square]) as task_queue:
        handle = await client.start_workflow(
            FanOut.run, 100, id=new_id(), task_queue=task_queue, execution_timeout=timedelta(minutes=2)
        )
        assert await handle.result() == [number * number for number in range(100)]
    types = await event_types(handle)
    for name in (
        "StartChildWorkflowExecutionInitiated",
        "ChildWorkflowExecutionStarted",
        "ChildWorkflowExecutionCompleted",
    ):
        assert types.count(name) == 100


async def test_failing_child(client: Client) -> None:
    child_id = new_id("child")
    async with run_worker(client, [OneChild, *CHILDREN]) as task_queue:
        handle = await run_one_child(client, task_queue, ChildSpec("Fails", child_id))
        error = await child_error(handle)
    assert isinstance(error.cause, ApplicationError)
    assert (error.cause.message, error.cause.type, error.cause.details) == ("child failed", "ChildFailure", ("detail",))
    assert (error.workflow_id, error.workflow_type) == (child_id, "Fails")
    assert error.retry_state == RetryState.RETRY_POLICY_NOT_SET
    assert "ChildWorkflowExecutionFailed" in await event_types(handle)


async def test_child_with_a_retry_policy_closes_once(client: Client) -> None:
    child_id = new_id("child")
    async with run_worker(client, [OneChild, *CHILDREN]) as task_queue:
        handle = await run_one_child(client, task_queue, ChildSpec("FailsTwice", child_id, attempts=5))
        assert await handle.result() == 3
    only(await events_of(handle), "ChildWorkflowExecutionStarted")
    only(await events_of(handle), "ChildWorkflowExecutionCompleted")
    last_run = attributes_of((await events_of(client.get_workflow_handle(child_id)))[0])
    assert last_run.attempt == 3
    assert last_run.parent_workflow_execution.workflow_id == handle.id


async def test_child_that_continues_as_new_closes_once(client: Client) -> None:
    async with run_worker(client, [OneChild, *CHILDREN]) as task_queue:
        handle = await run_one_child(client, task_queue, ChildSpec("CountsDown", new_id("child"), 3))
        assert await handle.result() == "landed"
    completed = attributes_of(only(await events_of(handle), "ChildWorkflowExecutionCompleted"))
    begun = attributes_of(only(await events_of(handle), "ChildWorkflowExecutionStarted"))
    assert completed.workflow_execution.workflow_id == begun.workflow_execution.workflow_id


async def test_terminated_child(client: Client) -> None:
    child_id = new_id("child")
    async with run_worker(client, [OneChild, *CHILDREN]) as task_queue:
        handle = await run_one_child(client, task_queue, ChildSpec("Waits", child_id))
        await eventually(lambda: started(handle))
        await client.get_workflow_handle(child_id).terminate("enough")
        error = await child_error(handle)
    assert isinstance(error.cause, TerminatedError)
    assert "ChildWorkflowExecutionTerminated" in await event_types(handle)


async def test_cancelled_child(client: Client) -> None:
    child_id = new_id("child")
    async with run_worker(client, [OneChild, *CHILDREN]) as task_queue:
        handle = await run_one_child(client, task_queue, ChildSpec("Waits", child_id))
        await eventually(lambda: started(handle))
        await client.get_workflow_handle(child_id).cancel()
        error = await child_error(handle)
    assert isinstance(error.cause, CancelledError)
    assert "ChildWorkflowExecutionCanceled" in await event_types(handle)


async def test_child_that_times_out(client: Client) -> None:
    async with run_worker(client, [OneChild, *CHILDREN]) as task_queue:
        handle = await run_one_child(client, task_queue, ChildSpec("Waits", new_id("child"), run_timeout=1))
        error = await child_error(handle)
    assert isinstance(error.cause, TimeoutError)
    assert error.cause.type == TimeoutType.START_TO_CLOSE
    assert "ChildWorkflowExecutionTimedOut" in await event_types(handle)


async def test_duplicate_child_id(client: Client) -> None:
    child_id = new_id("child")
    async with run_worker(client, [DuplicateChild, *CHILDREN]) as task_queue:
        existing = await client.start_workflow(Waits.run, id=child_id, task_queue=task_queue, execution_timeout=SOON)
        handle = await client.start_workflow(
            DuplicateChild.run, child_id, id=new_id(), task_queue=task_queue, execution_timeout=SOON
        )
        assert await handle.result() == f"{child_id} is there already"
        await existing.terminate()
    failed = attributes_of(only(await events_of(handle), "StartChildWorkflowExecutionFailed"))
    cause = StartChildWorkflowExecutionFailedCause.START_CHILD_WORKFLOW_EXECUTION_FAILED_CAUSE_WORKFLOW_ALREADY_EXISTS
    assert failed.cause == cause
    assert failed.workflow_id == child_id
    assert failed.initiated_event_id == 5


async def test_signal_to_a_child(client: Client) -> None:
    child_id = new_id("child")
    async with run_worker(client, [SignalsChild, *CHILDREN]) as task_queue:
        handle = await client.start_workflow(
            SignalsChild.run, child_id, id=new_id(), task_queue=task_queue, execution_timeout=SOON
        )
        assert await handle.result() == ["hello", "end"]
    types = await event_types(handle)
    assert types.count("SignalExternalWorkflowExecutionInitiated") == 2
    assert types.count("ExternalWorkflowExecutionSignaled") == 2
    child = await events_of(client.get_workflow_handle(child_id))
    signaled = [attributes_of(event) for event in child if types_of([event]) == ["WorkflowExecutionSignaled"]]
    assert signaled[0].external_workflow_execution.workflow_id == handle.id


async def test_cancel_of_a_child_by_its_parent(client: Client) -> None:
    child_id = new_id("child")
    async with run_worker(client, [CancelsChild, *CHILDREN]) as task_queue:
        handle = await client.start_workflow(
            CancelsChild.run, child_id, id=new_id(), task_queue=task_queue, execution_timeout=SOON
        )
        assert await handle.result() == "CancelledError"
    types = await event_types(handle)
    assert "RequestCancelExternalWorkflowExecutionInitiated" in types
    assert "ExternalWorkflowExecutionCancelRequested" in types
    assert "ChildWorkflowExecutionCanceled" in types
    child = client.get_workflow_handle(child_id)
    assert (await child.describe()).status == WorkflowExecutionStatus.CANCELED
    requested = attributes_of(only(await events_of(child), "WorkflowExecutionCancelRequested"))
    assert requested.external_workflow_execution.workflow_id == handle.id


@pytest.mark.parametrize("how", ["complete", "terminate"])
async def test_parent_close_policies(client: Client, how: str) -> None:
    async with run_worker(client, [LeavesChildren, *CHILDREN]) as task_queue:
        handle = await client.start_workflow(LeavesChildren.run, id=new_id(), task_queue=task_queue)

        async def three_started() -> bool:
            return (await event_types(handle)).count("ChildWorkflowExecutionStarted") == 3

        await eventually(three_started)
        pending = (await handle.describe()).raw_description.pending_children
        assert {child.workflow_id for child in pending} == {
            f"{handle.id}/{name}" for name in ("TERMINATE", "ABANDON", "REQUEST_CANCEL")
        }
        assert {child.workflow_type_name for child in pending} == {"Waits"}
        if how == "complete":
            await handle.signal(LeavesChildren.end)
            await handle.result()
        else:
            await handle.terminate()

        terminated, abandoned, cancelled = (
            client.get_workflow_handle_for(Waits.run, f"{handle.id}/{name}")
            for name in ("TERMINATE", "ABANDON", "REQUEST_CANCEL")
        )

        async def statuses() -> bool:
            described = [await child.describe() for child in (terminated, abandoned, cancelled)]
            return [description.status for description in described] == [
                WorkflowExecutionStatus.TERMINATED,
                WorkflowExecutionStatus.RUNNING,
                WorkflowExecutionStatus.CANCELED,
            ]

        await eventually(statuses)
        reason = attributes_of((await events_of(terminated))[-1]).reason
        assert reason == "by parent close policy"
        await abandoned.signal(Waits.hear, "end")
        assert await abandoned.result() == ["end"]


async def test_a_child_may_be_started_again_after_it_closed(client: Client) -> None:
    child_id = new_id("child")
    async with run_worker(client, [OneChild, *CHILDREN]) as task_queue:
        for number in (2, 3):
            handle = await run_one_child(client, task_queue, ChildSpec("Square", child_id, number))
            assert await handle.result() == number * number
    with pytest.raises(RPCError) as error:
        await client.get_workflow_handle(new_id("nobody")).describe()
    assert error.value.status == RPCStatusCode.NOT_FOUND
