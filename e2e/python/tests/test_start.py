"""Starting: one run per id, reuse and conflict policies, request ids, delays, inherited fields."""

from __future__ import annotations

import asyncio
import time
import uuid
from datetime import timedelta

import pytest
from temporalio import workflow
from temporalio.api.enums.v1 import WorkflowExecutionStatus as RawStatus
from temporalio.api.enums.v1 import WorkflowIdConflictPolicy as Conflict
from temporalio.api.enums.v1 import WorkflowIdReusePolicy as Reuse
from temporalio.api.errordetails.v1 import WorkflowExecutionAlreadyStartedFailure
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from raw import RawWorker, complete_workflow, duration
from support import (
    SOON,
    attributes_of,
    event_types,
    events_of,
    new_id,
    payloads,
    rpc_error,
    run_worker,
    start_request,
)


@workflow.defn
class Says:
    @workflow.run
    async def run(self, text: str) -> str:
        return text


@workflow.defn
class Fails:
    @workflow.run
    async def run(self) -> None:
        from temporalio.exceptions import ApplicationError

        raise ApplicationError("failed")


async def close(client: Client, workflow_id: str, how: str) -> None:
    """Leave a closed run of this id behind."""
    async with run_worker(client, [Says, Fails]) as task_queue:
        if how == "completed":
            await client.execute_workflow(Says.run, "hi", id=workflow_id, task_queue=task_queue)
            return
        handle = await client.start_workflow(Fails.run, id=workflow_id, task_queue=task_queue)
        if how == "terminated":
            await handle.terminate()
        else:
            with pytest.raises(Exception):
                await handle.result()


async def test_racing_starts_make_one_run(client: Client) -> None:
    workflow_id, task_queue = new_id(), new_id("queue")

    async def start() -> str:
        try:
            await client.workflow_service.start_workflow_execution(start_request(workflow_id, task_queue))
            return "started"
        except RPCError as error:
            assert error.status == RPCStatusCode.ALREADY_EXISTS, error
            return "refused"

    outcomes = await asyncio.gather(*(start() for _ in range(100)))
    assert outcomes.count("started") == 1
    handle = client.get_workflow_handle(workflow_id)
    assert await event_types(handle) == ["WorkflowExecutionStarted", "WorkflowTaskScheduled"]
    await handle.terminate()


async def test_racing_starts_that_use_the_existing_run(client: Client) -> None:
    workflow_id, task_queue = new_id(), new_id("queue")
    policy = Conflict.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING
    responses = await asyncio.gather(
        *(
            client.workflow_service.start_workflow_execution(
                start_request(workflow_id, task_queue, workflow_id_conflict_policy=policy)
            )
            for _ in range(50)
        )
    )
    assert len({response.run_id for response in responses}) == 1
    assert [response.started for response in responses].count(True) == 1
    await client.get_workflow_handle(workflow_id).terminate()


async def test_already_started_tells_the_run_and_the_request(client: Client) -> None:
    workflow_id, task_queue = new_id(), new_id("queue")
    first = await client.workflow_service.start_workflow_execution(
        start_request(workflow_id, task_queue, request_id="the-first-request")
    )
    assert first.started
    with rpc_error(RPCStatusCode.ALREADY_EXISTS, "already running", workflow_id, first.run_id) as caught:
        await client.workflow_service.start_workflow_execution(start_request(workflow_id, task_queue))
    detail = caught.detail(WorkflowExecutionAlreadyStartedFailure)
    assert (detail.run_id, detail.start_request_id) == (first.run_id, "the-first-request")
    with pytest.raises(WorkflowAlreadyStartedError) as error:
        await client.start_workflow("Says", id=workflow_id, task_queue=task_queue)
    assert error.value.run_id == first.run_id
    await client.get_workflow_handle(workflow_id).terminate()


async def test_a_repeated_request_gets_the_same_run(client: Client) -> None:
    request = start_request(new_id(), new_id("queue"))
    responses = await asyncio.gather(*(client.workflow_service.start_workflow_execution(request) for _ in range(10)))
    assert len({response.run_id for response in responses}) == 1
    assert await event_types(client.get_workflow_handle(request.workflow_id)) == [
        "WorkflowExecutionStarted", "WorkflowTaskScheduled",
    ]  # fmt: skip
    await client.get_workflow_handle(request.workflow_id).terminate()


async def test_a_repeated_request_gets_the_same_run_after_it_closed(client: Client) -> None:
    raw = RawWorker(client)
    request = start_request(new_id(), raw.task_queue)
    first = await client.workflow_service.start_workflow_execution(request)
    await raw.complete(await raw.poll_workflow(), complete_workflow())
    second = await client.workflow_service.start_workflow_execution(request)
    assert second.run_id == first.run_id


REUSE = [
    # policy, how the last run ended, may a new one start?
    (WorkflowIDReusePolicy.ALLOW_DUPLICATE, "completed", True),
    (WorkflowIDReusePolicy.ALLOW_DUPLICATE, "failed", True),
    (WorkflowIDReusePolicy.ALLOW_DUPLICATE, "terminated", True),
    (WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY, "completed", False),
    (WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY, "failed", True),
    (WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY, "terminated", True),
    (WorkflowIDReusePolicy.REJECT_DUPLICATE, "completed", False),
    (WorkflowIDReusePolicy.REJECT_DUPLICATE, "failed", False),
    (WorkflowIDReusePolicy.REJECT_DUPLICATE, "terminated", False),
    (WorkflowIDReusePolicy.TERMINATE_IF_RUNNING, "completed", True),
    (WorkflowIDReusePolicy.TERMINATE_IF_RUNNING, "failed", True),
]


@pytest.mark.parametrize(("policy", "how", "allowed"), REUSE, ids=lambda value: getattr(value, "name", str(value)))
async def test_reuse_of_a_closed_id(client: Client, policy: WorkflowIDReusePolicy, how: str, allowed: bool) -> None:
    workflow_id = new_id()
    await close(client, workflow_id, how)
    closed_run = (await client.get_workflow_handle(workflow_id).describe()).run_id
    start = client.start_workflow("Says", "hi", id=workflow_id, task_queue=new_id("queue"), id_reuse_policy=policy)
    if allowed:
        handle = await start
        assert handle.result_run_id != closed_run
        await handle.terminate()
    else:
        with pytest.raises(WorkflowAlreadyStartedError) as error:
            await start
        assert error.value.run_id == closed_run


async def test_conflict_policies(client: Client) -> None:
    workflow_id, task_queue = new_id(), new_id("queue")

    async def start(policy: WorkflowIDConflictPolicy) -> str | None:
        handle = await client.start_workflow(
            "Says", "hi", id=workflow_id, task_queue=task_queue, id_conflict_policy=policy
        )
        return handle.result_run_id

    first = await start(WorkflowIDConflictPolicy.FAIL)
    with pytest.raises(WorkflowAlreadyStartedError):
        await start(WorkflowIDConflictPolicy.FAIL)
    with pytest.raises(WorkflowAlreadyStartedError):
        await start(WorkflowIDConflictPolicy.UNSPECIFIED)
    assert await start(WorkflowIDConflictPolicy.USE_EXISTING) == first
    second = await start(WorkflowIDConflictPolicy.TERMINATE_EXISTING)
    assert second != first
    old = client.get_workflow_handle(workflow_id, run_id=first)
    assert (await old.describe()).status == WorkflowExecutionStatus.TERMINATED
    terminated = attributes_of((await events_of(old))[-1])
    assert "TerminateIfRunning WorkflowIdReusePolicy" in terminated.reason or "TerminateExisting" in terminated.reason
    await client.get_workflow_handle(workflow_id).terminate()


async def test_reject_duplicate_with_an_open_run_that_may_be_used(client: Client) -> None:
    workflow_id, task_queue = new_id(), new_id("queue")
    first = await client.start_workflow("Says", "hi", id=workflow_id, task_queue=task_queue)
    again = await client.start_workflow(
        "Says",
        "hi",
        id=workflow_id,
        task_queue=task_queue,
        id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
    )
    assert again.result_run_id == first.result_run_id
    await first.terminate()


async def test_terminate_if_running(client: Client) -> None:
    workflow_id, task_queue = new_id(), new_id("queue")
    first = await client.start_workflow("Says", "hi", id=workflow_id, task_queue=task_queue)
    second = await client.start_workflow(
        "Says",
        "hi",
        id=workflow_id,
        task_queue=task_queue,
        id_reuse_policy=WorkflowIDReusePolicy.TERMINATE_IF_RUNNING,
    )
    assert second.result_run_id != first.result_run_id
    assert (await event_types(client.get_workflow_handle(workflow_id, run_id=first.result_run_id)))[-1] == (
        "WorkflowExecutionTerminated"
    )
    await second.terminate()


async def test_the_started_flag_and_the_status(client: Client) -> None:
    workflow_id, task_queue = new_id(), new_id("queue")
    policy = Conflict.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING
    first = await client.workflow_service.start_workflow_execution(start_request(workflow_id, task_queue))
    second = await client.workflow_service.start_workflow_execution(
        start_request(workflow_id, task_queue, workflow_id_conflict_policy=policy)
    )
    assert (first.started, second.started) == (True, False)
    assert first.status == second.status == RawStatus.WORKFLOW_EXECUTION_STATUS_RUNNING
    await client.get_workflow_handle(workflow_id).terminate()


async def test_policies_that_contradict_each_other(client: Client) -> None:
    with rpc_error(RPCStatusCode.INVALID_ARGUMENT):
        await client.workflow_service.start_workflow_execution(
            start_request(
                new_id(),
                new_id("queue"),
                workflow_id_reuse_policy=Reuse.WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING,
                workflow_id_conflict_policy=Conflict.WORKFLOW_ID_CONFLICT_POLICY_FAIL,
            )
        )
    with rpc_error(RPCStatusCode.INVALID_ARGUMENT):
        await client.workflow_service.start_workflow_execution(
            start_request(
                new_id(),
                new_id("queue"),
                workflow_id_reuse_policy=Reuse.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE,
                workflow_id_conflict_policy=Conflict.WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING,
            )
        )


async def test_start_delay(client: Client) -> None:
    async with run_worker(client, [Says]) as task_queue:
        before = time.time()
        handle = await client.start_workflow(
            Says.run, "hi", id=new_id(), task_queue=task_queue, start_delay=timedelta(seconds=1.5)
        )
        assert await event_types(handle) == ["WorkflowExecutionStarted"], "its first task waits"
        description = await handle.describe()
        assert description.execution_time is not None
        assert 1 <= (description.execution_time - description.start_time).total_seconds() <= 2
        assert await handle.result() == "hi"
        assert time.time() - before >= 1.4
    started = attributes_of((await events_of(handle))[0])
    assert 1.4 <= started.first_workflow_task_backoff.ToMilliseconds() / 1000 <= 1.6


async def test_a_signal_does_not_cut_the_start_delay_but_signal_with_start_does_not_wait(client: Client) -> None:
    handle = await client.start_workflow(
        "Says", "hi", id=new_id(), task_queue=new_id("queue"), start_delay=timedelta(seconds=60)
    )
    await handle.signal("knock")
    assert await event_types(handle) == ["WorkflowExecutionStarted", "WorkflowExecutionSignaled"]
    await handle.cancel()
    assert (await event_types(handle))[:3] == [
        "WorkflowExecutionStarted", "WorkflowExecutionSignaled", "WorkflowExecutionCancelRequested",
    ]  # fmt: skip
    await handle.terminate()


async def test_what_the_caller_gave_is_in_the_started_event(client: Client) -> None:
    workflow_id, task_queue = new_id(), new_id("queue")
    request = start_request(
        workflow_id,
        task_queue,
        input=payloads("one", "two"),
        workflow_execution_timeout=duration(100),
        workflow_run_timeout=duration(50),
        workflow_task_timeout=duration(5),
    )
    request.memo.fields["colour"].data = b'"red"'
    request.header.fields["trace"].data = b"42"
    request.retry_policy.maximum_attempts = 3
    response = await client.workflow_service.start_workflow_execution(request)
    handle = client.get_workflow_handle(workflow_id)
    started = attributes_of((await events_of(handle))[0])
    assert started.input == payloads("one", "two")
    assert started.memo.fields["colour"].data == b'"red"'
    assert started.header.fields["trace"].data == b"42"
    assert started.workflow_execution_timeout.seconds == 100
    assert started.workflow_run_timeout.seconds == 50
    assert started.workflow_task_timeout.seconds == 5
    assert started.retry_policy.maximum_attempts == 3
    assert started.retry_policy.initial_interval.seconds == 1
    assert started.retry_policy.backoff_coefficient == 2.0
    assert started.retry_policy.maximum_interval.seconds == 100
    assert started.identity == "raw-client"
    assert started.workflow_id == workflow_id
    assert started.first_execution_run_id == started.original_execution_run_id == response.run_id
    assert started.HasField("workflow_execution_expiration_time")
    assert (await handle.describe()).raw_description.workflow_execution_info.memo.fields["colour"].data == b'"red"'
    await handle.terminate()


async def test_uuids_are_given_as_run_ids(client: Client) -> None:
    response = await client.workflow_service.start_workflow_execution(start_request(new_id(), new_id("queue")))
    assert str(uuid.UUID(response.run_id)) == response.run_id


async def test_many_workflows_at_once(client: Client) -> None:
    async with run_worker(client, [Says]) as task_queue:
        results = await asyncio.gather(
            *(
                client.execute_workflow(Says.run, f"{i}", id=new_id(), task_queue=task_queue, execution_timeout=SOON)
                for i in range(100)
            )
        )
    assert results == [f"{i}" for i in range(100)]
