"""Activities that are completed by somebody else: by task token and by id."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from datetime import timedelta

import pytest
from temporalio import activity, workflow
from temporalio.client import (
    AsyncActivityCancelledError,
    AsyncActivityHandle,
    Client,
    WorkflowFailureError,
    WorkflowHandle,
)
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError, RetryState
from temporalio.service import RPCStatusCode

from support import SOON, attributes_of, events_of, eventually, new_id, only, rpc_error, run_worker, types_of

TOKENS: dict[str, list[bytes]] = defaultdict(list)
"""The task token of each attempt, by workflow id."""


@activity.defn
async def ask_a_human() -> str:
    info = activity.info()
    assert info.workflow_id is not None
    TOKENS[info.workflow_id].append(info.task_token)
    activity.raise_complete_async()


@workflow.defn
class AskAHuman:
    @workflow.run
    async def run(self) -> str:
        return await workflow.execute_activity(
            ask_a_human,
            activity_id="the-question",
            start_to_close_timeout=SOON,
            heartbeat_timeout=timedelta(seconds=20),
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            retry_policy=RetryPolicy(maximum_attempts=2, initial_interval=timedelta(milliseconds=10)),
        )


async def start_asking(client: Client, task_queue: str) -> WorkflowHandle[AskAHuman, str]:
    handle = await client.start_workflow(
        AskAHuman.run, id=new_id(), task_queue=task_queue, execution_timeout=timedelta(minutes=1)
    )
    await asked(handle, 1)
    return handle


async def asked(handle: WorkflowHandle[AskAHuman, str], times: int) -> None:
    async def check() -> bool:
        return len(TOKENS[handle.id]) == times

    await eventually(check)


def by_token(client: Client, handle: WorkflowHandle[AskAHuman, str]) -> AsyncActivityHandle:
    return client.get_async_activity_handle(task_token=TOKENS[handle.id][-1])


def by_id(client: Client, handle: WorkflowHandle[AskAHuman, str]) -> AsyncActivityHandle:
    return client.get_async_activity_handle(
        workflow_id=handle.id, run_id=handle.result_run_id, activity_id="the-question"
    )


async def test_complete_by_token(client: Client) -> None:
    async with run_worker(client, [AskAHuman], [ask_a_human]) as task_queue:
        handle = await start_asking(client, task_queue)
        await by_token(client, handle).heartbeat("thinking")
        await by_token(client, handle).complete("yes")
        assert await handle.result() == "yes"
        with rpc_error(RPCStatusCode.NOT_FOUND):
            await by_token(client, handle).complete("no")
    assert types_of(await events_of(handle)).count("ActivityTaskCompleted") == 1


async def test_complete_by_id(client: Client) -> None:
    async with run_worker(client, [AskAHuman], [ask_a_human]) as task_queue:
        handle = await start_asking(client, task_queue)
        await by_id(client, handle).heartbeat("thinking")
        await by_id(client, handle).complete("yes")
        assert await handle.result() == "yes"
        with rpc_error(RPCStatusCode.NOT_FOUND):
            await by_id(client, handle).complete("no")


async def test_complete_by_id_of_the_current_run(client: Client) -> None:
    async with run_worker(client, [AskAHuman], [ask_a_human]) as task_queue:
        handle = await start_asking(client, task_queue)
        any_run = client.get_async_activity_handle(workflow_id=handle.id, run_id=None, activity_id="the-question")
        await any_run.complete("yes")
        assert await handle.result() == "yes"


@pytest.mark.parametrize("by", [by_token, by_id])
async def test_fail_and_retry(client: Client, by: type[by_token]) -> None:
    async with run_worker(client, [AskAHuman], [ask_a_human]) as task_queue:
        handle = await start_asking(client, task_queue)
        first_token = TOKENS[handle.id][0]
        await by(client, handle).fail(ApplicationError("don't know", type="Unsure"))
        await asked(handle, 2)
        with rpc_error(RPCStatusCode.NOT_FOUND):
            await client.get_async_activity_handle(task_token=first_token).complete("from the attempt before")
        await by(client, handle).fail(ApplicationError("still don't know", type="Unsure"))
        with pytest.raises(WorkflowFailureError) as failure:
            await handle.result()
    error = failure.value.cause
    assert isinstance(error, ActivityError)
    assert error.retry_state == RetryState.MAXIMUM_ATTEMPTS_REACHED
    assert isinstance(error.cause, ApplicationError)
    assert error.cause.message == "still don't know"


@pytest.mark.parametrize("by", [by_token, by_id])
async def test_heartbeat_tells_of_cancellation_which_is_then_reported(client: Client, by: type[by_token]) -> None:
    async with run_worker(client, [AskAHuman], [ask_a_human]) as task_queue:
        handle = await start_asking(client, task_queue)
        await by(client, handle).heartbeat("fine so far")
        await handle.cancel()

        async def requested() -> bool:
            return "ActivityTaskCancelRequested" in types_of(await events_of(handle))

        await eventually(requested)
        with pytest.raises(AsyncActivityCancelledError):
            await by(client, handle).heartbeat("anything")
        await by(client, handle).report_cancellation("gave up")
        with pytest.raises(WorkflowFailureError) as failure:
            await handle.result()
    assert isinstance(failure.value.cause, CancelledError)
    events = await events_of(handle)
    assert types_of(events)[-10:] == [
        "WorkflowExecutionCancelRequested",
        "WorkflowTaskScheduled", "WorkflowTaskStarted", "WorkflowTaskCompleted",
        "ActivityTaskCancelRequested", "ActivityTaskStarted", "ActivityTaskCanceled",
        "WorkflowTaskScheduled", "WorkflowTaskStarted", "WorkflowTaskCompleted",
        "WorkflowExecutionCanceled",
    ][-10:]  # fmt: skip
    canceled = attributes_of(only(events, "ActivityTaskCanceled"))
    assert canceled.details.payloads[0].data == b'"gave up"'
    requested_event = only(events, "ActivityTaskCancelRequested")
    assert canceled.latest_cancel_requested_event_id == requested_event.event_id


async def test_cancellation_is_refused_when_nobody_asked_for_it(client: Client) -> None:
    async with run_worker(client, [AskAHuman], [ask_a_human]) as task_queue:
        handle = await start_asking(client, task_queue)
        with rpc_error(RPCStatusCode.INVALID_ARGUMENT):
            await by_token(client, handle).report_cancellation()
        await by_token(client, handle).complete("yes")
        assert await handle.result() == "yes"


async def test_unknown_activity_id(client: Client) -> None:
    async with run_worker(client, [AskAHuman], [ask_a_human]) as task_queue:
        handle = await start_asking(client, task_queue)
        wrong = client.get_async_activity_handle(workflow_id=handle.id, run_id=None, activity_id="another")
        with rpc_error(RPCStatusCode.NOT_FOUND):
            await wrong.complete("yes")
        with rpc_error(RPCStatusCode.NOT_FOUND):
            await wrong.heartbeat()
        await handle.terminate()
        with rpc_error(RPCStatusCode.NOT_FOUND):
            await by_id(client, handle).complete("yes")
        with rpc_error(RPCStatusCode.NOT_FOUND):
            await by_token(client, handle).complete("yes")


async def test_a_hundred_are_completed_at_once(client: Client) -> None:
    async with run_worker(client, [AskAHuman], [ask_a_human]) as task_queue:
        handles = await asyncio.gather(*(start_asking(client, task_queue) for _ in range(20)))
        # Five people answer each question at the same moment; one of them is heard.
        answers = await asyncio.gather(
            *(by_token(client, handle).complete(f"answer {i}") for handle in handles for i in range(5)),
            return_exceptions=True,
        )
        assert sum(1 for answer in answers if answer is None) == len(handles)
        for handle in handles:
            await handle.result()
            assert types_of(await events_of(handle)).count("ActivityTaskCompleted") == 1
