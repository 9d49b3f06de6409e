"""Signals, signal-with-start and queries."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from temporalio import workflow
from temporalio.api.enums.v1 import QueryResultType, WorkflowTaskFailedCause
from temporalio.api.errordetails.v1 import NotFoundFailure, QueryFailedFailure
from temporalio.api.query.v1 import WorkflowQuery, WorkflowQueryResult
from temporalio.api.workflowservice.v1 import (
    QueryWorkflowRequest,
    SignalWithStartWorkflowExecutionRequest,
    SignalWorkflowExecutionRequest,
)
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowQueryFailedError, WorkflowQueryRejectedError
from temporalio.common import QueryRejectCondition, WorkflowIDConflictPolicy
from temporalio.service import RPCError, RPCStatusCode

from raw import RawWorker, complete_workflow, start_timer
from support import (
    SOON,
    WORKFLOW_TASK,
    attributes_of,
    event_types,
    events_of,
    execution,
    new_id,
    payloads,
    rpc_error,
    run_worker,
    start_request,
    types_of,
)


@workflow.defn
class Notebook:
    def __init__(self) -> None:
        self.notes: list[str] = []

    @workflow.run
    async def run(self) -> list[str]:
        await workflow.wait_condition(lambda: "end" in self.notes)
        return self.notes

    @workflow.signal
    def note(self, text: str) -> None:
        self.notes.append(text)

    @workflow.query
    def read(self) -> list[str]:
        return self.notes

    @workflow.query
    def broken(self) -> None:
        raise ValueError("this query is broken")


async def test_signals_keep_their_order(client: Client) -> None:
    async with run_worker(client, [Notebook]) as task_queue:
        handle = await client.start_workflow(Notebook.run, id=new_id(), task_queue=task_queue, execution_timeout=SOON)
        expected = [f"note {i}" for i in range(50)]
        for text in expected:
            await handle.signal(Notebook.note, text)
        await handle.signal(Notebook.note, "end")
        assert await handle.result() == [*expected, "end"]
    assert (await event_types(handle)).count("WorkflowExecutionSignaled") == 51


async def test_concurrent_signals_all_arrive(client: Client) -> None:
    async with run_worker(client, [Notebook]) as task_queue:
        handle = await client.start_workflow(Notebook.run, id=new_id(), task_queue=task_queue, execution_timeout=SOON)
        await asyncio.gather(*(handle.signal(Notebook.note, f"{i}") for i in range(100)))
        assert set(await handle.query(Notebook.read)) == {f"{i}" for i in range(100)}
        await handle.signal(Notebook.note, "end")
        assert len(await handle.result()) == 101


async def test_event_of_a_signal(client: Client) -> None:
    raw = RawWorker(client)
    handle = await raw.start()
    request = SignalWorkflowExecutionRequest(
        namespace="default",
        workflow_execution=execution(handle),
        signal_name="knock",
        input=payloads("one", "two"),
        identity="raw-client",
        request_id="the-request",
    )
    request.header.fields["trace"].data = b"header"
    await client.workflow_service.signal_workflow_execution(request)
    events = await events_of(handle)
    assert types_of(events) == ["WorkflowExecutionStarted", "WorkflowTaskScheduled", "WorkflowExecutionSignaled"]
    signaled = attributes_of(events[2])
    assert signaled.signal_name == "knock"
    assert signaled.identity == "raw-client"
    assert signaled.input == payloads("one", "two")
    assert signaled.header.fields["trace"].data == b"header"
    await handle.terminate()


async def test_a_repeated_request_id_is_one_signal(client: Client) -> None:
    raw = RawWorker(client)
    handle = await raw.start()
    request = SignalWorkflowExecutionRequest(
        namespace="default", workflow_execution=execution(handle), signal_name="knock", request_id="the-request"
    )
    for _ in range(3):
        await client.workflow_service.signal_workflow_execution(request)
    request.request_id = "another-request"
    await client.workflow_service.signal_workflow_execution(request)
    assert (await event_types(handle)).count("WorkflowExecutionSignaled") == 2
    await handle.terminate()


async def test_a_signal_during_a_task_is_buffered_until_its_completion(client: Client) -> None:
    raw = RawWorker(client)
    handle = await raw.start()
    task = await raw.poll_workflow()
    await handle.signal("knock")
    assert (await event_types(handle))[-1] == "WorkflowTaskStarted", "not in the history yet"
    await raw.complete(task, start_timer())
    assert await event_types(handle) == [
        "WorkflowExecutionStarted",
        *WORKFLOW_TASK,
        "TimerStarted",
        "WorkflowExecutionSignaled",
        "WorkflowTaskScheduled",
    ]
    await handle.terminate()


async def test_a_signal_during_the_last_task_is_not_lost(client: Client) -> None:
    raw = RawWorker(client)
    handle = await raw.start()
    task = await raw.poll_workflow()
    await handle.signal("knock")
    with rpc_error(RPCStatusCode.INVALID_ARGUMENT, "UnhandledCommand"):
        await raw.complete(task, complete_workflow())
    events = await events_of(handle)
    assert types_of(events)[:5] == [
        "WorkflowExecutionStarted",
        *("WorkflowTaskScheduled", "WorkflowTaskStarted", "WorkflowTaskFailed"),
        "WorkflowExecutionSignaled",
    ]
    cause = attributes_of(events[3]).cause
    assert cause == WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND
    await raw.complete(await raw.poll_workflow(), complete_workflow())
    assert (await event_types(handle))[-4:] == [*WORKFLOW_TASK, "WorkflowExecutionCompleted"]


async def test_signal_to_a_closed_or_unknown_run(client: Client) -> None:
    raw = RawWorker(client)
    handle = await raw.start()
    await handle.terminate()
    with rpc_error(RPCStatusCode.NOT_FOUND, "workflow execution already completed") as caught:
        await handle.signal("knock")
    caught.detail(NotFoundFailure)
    nobody = new_id("nobody")
    with rpc_error(RPCStatusCode.NOT_FOUND, "workflow not found for ID", nobody) as caught:
        await client.get_workflow_handle(nobody).signal("knock")
    caught.detail(NotFoundFailure)


async def test_signal_with_start(client: Client) -> None:
    workflow_id = new_id()
    async with run_worker(client, [Notebook]) as task_queue:

        async def signal_with_start(text: str) -> str | None:
            handle = await client.start_workflow(
                Notebook.run,
                id=workflow_id,
                task_queue=task_queue,
                execution_timeout=SOON,
                start_signal="note",
                start_signal_args=[text],
            )
            return handle.result_run_id

        first = await signal_with_start("one")
        assert await signal_with_start("two") == first, "the open run gets the signal"
        handle = client.get_workflow_handle_for(Notebook.run, workflow_id)
        assert (await event_types(handle))[:3] == [
            "WorkflowExecutionStarted", "WorkflowExecutionSignaled", "WorkflowTaskScheduled",
        ]  # fmt: skip
        await signal_with_start("end")
        assert await handle.result() == ["one", "two", "end"]
        assert await signal_with_start("end") != first, "a closed run is followed by a new one"
        assert await handle.result() == ["end"]


async def test_racing_signal_with_starts_make_one_run(client: Client) -> None:
    workflow_id, task_queue = new_id(), new_id("queue")
    handles = await asyncio.gather(
        *(
            client.start_workflow(
                "Notebook", id=workflow_id, task_queue=task_queue, start_signal="note", start_signal_args=[f"{i}"]
            )
            for i in range(30)
        )
    )
    assert len({handle.result_run_id for handle in handles}) == 1
    handle = client.get_workflow_handle(workflow_id)
    assert (await event_types(handle)).count("WorkflowExecutionSignaled") == 30
    await handle.terminate()


async def test_signal_with_start_repeated_request(client: Client) -> None:
    start = start_request(new_id(), new_id("queue"))
    request = SignalWithStartWorkflowExecutionRequest(
        namespace="default",
        workflow_id=start.workflow_id,
        workflow_type=start.workflow_type,
        task_queue=start.task_queue,
        request_id=start.request_id,
        signal_name="note",
    )
    first = await client.workflow_service.signal_with_start_workflow_execution(request)
    second = await client.workflow_service.signal_with_start_workflow_execution(request)
    assert first.run_id == second.run_id
    assert (first.started, second.started) == (True, False)
    handle = client.get_workflow_handle(start.workflow_id)
    assert (await event_types(handle)).count("WorkflowExecutionSignaled") == 1
    await handle.terminate()


async def test_signal_with_start_and_terminate_existing(client: Client) -> None:
    workflow_id, task_queue = new_id(), new_id("queue")
    first = await client.start_workflow("Notebook", id=workflow_id, task_queue=task_queue)
    second = await client.start_workflow(
        "Notebook",
        id=workflow_id,
        task_queue=task_queue,
        start_signal="note",
        id_conflict_policy=WorkflowIDConflictPolicy.TERMINATE_EXISTING,
    )
    assert second.result_run_id != first.result_run_id
    old = client.get_workflow_handle(workflow_id, run_id=first.result_run_id)
    assert (await event_types(old))[-1] == "WorkflowExecutionTerminated"
    await second.terminate()


# Queries


async def test_a_query_sees_every_signal_before_it(client: Client) -> None:
    async with run_worker(client, [Notebook]) as task_queue:
        handle = await client.start_workflow(Notebook.run, id=new_id(), task_queue=task_queue, execution_timeout=SOON)
        for i in range(20):
            await handle.signal(Notebook.note, f"{i}")
            assert (await handle.query(Notebook.read))[-1] == f"{i}"
        before = await event_types(handle)
        for _ in range(5):
            await handle.query(Notebook.read)
        assert await event_types(handle) == before, "queries leave no events"
        await handle.terminate()


async def test_query_right_after_start(client: Client) -> None:
    task_queue = new_id("queue")
    handle = await client.start_workflow(
        Notebook.run, id=new_id(), task_queue=task_queue, start_signal="note", start_signal_args=["first"]
    )
    async with run_worker(client, [Notebook], task_queue=task_queue):
        assert await handle.query(Notebook.read, rpc_timeout=SOON) == ["first"]
        await handle.terminate()


async def test_many_queries_at_once(client: Client) -> None:
    async with run_worker(client, [Notebook]) as task_queue:
        handle = await client.start_workflow(Notebook.run, id=new_id(), task_queue=task_queue, execution_timeout=SOON)
        await handle.signal(Notebook.note, "hello")
        answers = await asyncio.gather(*(handle.query(Notebook.read) for _ in range(30)))
        assert answers == [["hello"]] * 30
        await handle.terminate()


async def test_query_of_a_closed_run_by_a_worker_that_never_saw_it(client: Client) -> None:
    task_queue = new_id("queue")
    async with run_worker(client, [Notebook], task_queue=task_queue):
        handle = await client.start_workflow(
            Notebook.run, id=new_id(), task_queue=task_queue, start_signal="note", start_signal_args=["end"]
        )
        await handle.result()
        assert await handle.query(Notebook.read) == ["end"]
    async with run_worker(client, [Notebook], task_queue=task_queue):
        assert await handle.query(Notebook.read, rpc_timeout=SOON) == ["end"]


async def test_failing_and_unknown_queries(client: Client) -> None:
    async with run_worker(client, [Notebook]) as task_queue:
        handle = await client.start_workflow(Notebook.run, id=new_id(), task_queue=task_queue, execution_timeout=SOON)
        with pytest.raises(WorkflowQueryFailedError, match="this query is broken"):
            await handle.query(Notebook.broken)
        with pytest.raises(WorkflowQueryFailedError, match="not found"):
            await handle.query("no-such-query")
        request = QueryWorkflowRequest(
            namespace="default", execution=execution(handle), query=WorkflowQuery(query_type="broken")
        )
        with rpc_error(RPCStatusCode.INVALID_ARGUMENT, "this query is broken") as caught:
            await client.workflow_service.query_workflow(request)
        caught.detail(QueryFailedFailure)  # its `failure` is what the worker sent: this SDK sends a message only
        await handle.terminate()


async def test_query_of_an_unknown_workflow(client: Client) -> None:
    with rpc_error(RPCStatusCode.NOT_FOUND) as caught:
        await client.get_workflow_handle(new_id("nobody")).query("read")
    caught.detail(NotFoundFailure)


async def test_query_without_a_worker_does_not_hang(client: Client) -> None:
    handle = await client.start_workflow("Notebook", id=new_id(), task_queue=new_id("nobody"))
    request = QueryWorkflowRequest(
        namespace="default", execution=execution(handle), query=WorkflowQuery(query_type="read")
    )
    with pytest.raises(RPCError) as error:
        await client.workflow_service.query_workflow(request, timeout=timedelta(seconds=1.5))
    # The deadline is noticed on both sides; the SDK calls its own CANCELLED.
    assert error.value.status in (RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED)
    await handle.terminate()


async def test_query_reject_conditions(client: Client) -> None:
    async with run_worker(client, [Notebook]) as task_queue:

        async def start() -> str:
            workflow_id = new_id()
            await client.start_workflow(Notebook.run, id=workflow_id, task_queue=task_queue, execution_timeout=SOON)
            return workflow_id

        completed = client.get_workflow_handle_for(Notebook.run, await start())
        terminated = client.get_workflow_handle_for(Notebook.run, await start())
        still_open = client.get_workflow_handle_for(Notebook.run, await start())
        await completed.signal(Notebook.note, "end")
        await completed.result()
        await terminated.query(Notebook.read)
        await terminated.terminate()

        not_open, not_clean = QueryRejectCondition.NOT_OPEN, QueryRejectCondition.NOT_COMPLETED_CLEANLY
        assert await still_open.query(Notebook.read, reject_condition=not_open) == []
        assert await completed.query(Notebook.read, reject_condition=not_clean) == ["end"]
        assert await terminated.query(Notebook.read, reject_condition=QueryRejectCondition.NONE) == []
        for handle, condition, status in [
            (completed, not_open, WorkflowExecutionStatus.COMPLETED),
            (terminated, not_open, WorkflowExecutionStatus.TERMINATED),
            (terminated, not_clean, WorkflowExecutionStatus.TERMINATED),
        ]:
            with pytest.raises(WorkflowQueryRejectedError) as rejected:
                await handle.query(Notebook.read, reject_condition=condition)
            assert rejected.value.status == status
        await still_open.terminate()


async def test_query_attached_to_a_workflow_task(client: Client) -> None:
    """A query that comes while a task waits goes with that task and is answered with its completion."""
    raw = RawWorker(client)
    handle = await raw.start()
    await raw.complete(await raw.poll_workflow(), start_timer())
    await handle.signal("knock")
    query = asyncio.create_task(handle.query("read", rpc_timeout=SOON))
    await asyncio.sleep(0.3)  # let the query arrive first; if it does not, it comes by itself below
    task = await raw.poll_workflow()
    assert types_of(task.history.events)[-2:] == ["WorkflowTaskScheduled", "WorkflowTaskStarted"]
    [query_id] = task.queries
    assert task.queries[query_id].query_type == "read"
    answer = WorkflowQueryResult(result_type=QueryResultType.QUERY_RESULT_TYPE_ANSWERED, answer=payloads("the answer"))
    await raw.complete(task, query_results={query_id: answer})
    assert await query == "the answer"
    await handle.terminate()
