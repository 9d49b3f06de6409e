"""Lists and counts of workflows: filters, order, pages, statuses, freshness."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import datetime, timedelta, timezone

import pytest
from temporalio import workflow
from temporalio.api.enums.v1 import WorkflowExecutionStatus as Status
from temporalio.api.filter.v1 import StartTimeFilter, StatusFilter, WorkflowExecutionFilter, WorkflowTypeFilter
from temporalio.api.workflowservice.v1 import (
    CountWorkflowExecutionsRequest,
    ListArchivedWorkflowExecutionsRequest,
    ListClosedWorkflowExecutionsRequest,
    ListOpenWorkflowExecutionsRequest,
    ListWorkflowExecutionsRequest,
    ScanWorkflowExecutionsRequest,
)
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from server import is_perdure
from support import eventually, new_id, rpc_error, run_worker


@workflow.defn
class Listed:
    def __init__(self) -> None:
        self.told: str | None = None

    @workflow.run
    async def run(self, outcome: str) -> str:
        if outcome == "wait":
            await workflow.wait_condition(lambda: self.told is not None)
        if outcome == "fail":
            raise ApplicationError("as asked", non_retryable=True)
        if outcome == "again":
            workflow.continue_as_new("done")
        return outcome

    @workflow.signal
    def tell(self, what: str) -> None:
        self.told = what


@workflow.defn
class OtherListed:
    @workflow.run
    async def run(self, outcome: str) -> str:
        await workflow.wait_condition(lambda: outcome != "wait")
        return outcome


@workflow.defn
class Generation:
    """Has a child, that has another, and so on; the last one waits."""

    @workflow.run
    async def run(self, left: int) -> None:
        if left == 0:
            await workflow.wait_condition(lambda: False)
        id = f"{workflow.info().workflow_id}-child"
        await workflow.execute_child_workflow(Generation.run, left - 1, id=id)


async def ids(client: Client, query: str) -> list[str]:
    return [found.id async for found in client.list_workflows(query)]


async def listed(client: Client, query: str, expected: set[str]) -> None:
    async def check() -> bool:
        assert set(await ids(client, query)) == expected, query
        return True

    await eventually(check, 10)


async def refused(client: Client, query: str) -> str:
    request = ListWorkflowExecutionsRequest(namespace="default", query=query)
    with pytest.raises(RPCError) as error:
        await client.workflow_service.list_workflow_executions(request)
    assert error.value.status == RPCStatusCode.INVALID_ARGUMENT
    return error.value.message


async def test_every_status_is_listed_and_counted(client: Client) -> None:
    prefix = new_id("vis")
    async with run_worker(client, [Listed, OtherListed]) as queue:

        async def start(name: str, outcome: str, kind: type = Listed) -> object:
            return await client.start_workflow(kind.run, outcome, id=f"{prefix}-{name}", task_queue=queue)

        for name, outcome in [("done", "done"), ("failed", "fail"), ("again", "again"), ("open", "wait")]:
            await start(name, outcome)
        await start("other", "wait", OtherListed)
        terminated = await start("terminated", "wait")
        canceled = await start("canceled", "wait")
        await terminated.terminate()
        await canceled.cancel()
        await client.start_workflow(
            Listed.run, "wait", id=f"{prefix}-late", task_queue=queue, execution_timeout=timedelta(seconds=1)
        )
        mine = f"WorkflowId STARTS_WITH '{prefix}'"

        async def found(condition: str, *names: str) -> None:
            await listed(client, f"{mine} AND {condition}", {f"{prefix}-{name}" for name in names})

        await found("ExecutionStatus = 'TimedOut'", "late")
        await found("ExecutionStatus = 'Running'", "open", "other")
        await found("ExecutionStatus = 'Completed'", "done", "again")
        await found("ExecutionStatus = 'ContinuedAsNew'", "again")
        await found("ExecutionStatus = 'Failed'", "failed")
        await found("ExecutionStatus IN ('Terminated', 4)", "terminated", "canceled")
        await found("CloseTime IS NULL AND WorkflowType = 'OtherListed'", "other")
        await found("NOT ExecutionStatus = 'Running' AND NOT (ExecutionStatus = 2 OR ExecutionStatus = 6)",
                    "late", "failed", "terminated", "canceled")
        everything = {"done", "failed", "again", "open", "other", "terminated", "canceled", "late"}
        await found(f"TaskQueue = '{queue}'", *everything)
        await found(f"`TaskQueue` = \"{queue}\" AND WorkflowId != '{prefix}-done'", *(everything - {"done"}))

        count = await client.count_workflows(f"{mine} GROUP BY ExecutionStatus")
        groups = {group.group_values[0]: group.count for group in count.groups}
        assert groups == {
            "Running": 2, "Completed": 2, "Failed": 1, "Canceled": 1,
            "Terminated": 1, "ContinuedAsNew": 1, "TimedOut": 1,
        }
        assert count.count == 9
        assert (await client.count_workflows(f"{mine} AND WorkflowType = 'OtherListed'")).count == 1


async def test_a_row_shows_the_run(client: Client) -> None:
    workflow_id = new_id("vis-row")
    async with run_worker(client, [Listed]) as queue:
        before = datetime.now(timezone.utc)
        handle = await client.start_workflow(
            Listed.run, "done", id=workflow_id, task_queue=queue, memo={"note": "hello"}
        )
        await handle.result()
    await listed(client, f"WorkflowId = '{workflow_id}' AND ExecutionStatus = 'Completed'", {workflow_id})
    [row] = [found async for found in client.list_workflows(f"WorkflowId = '{workflow_id}'")]
    description = await handle.describe()
    assert (row.id, row.run_id) == (workflow_id, handle.first_execution_run_id)
    assert (row.workflow_type, row.task_queue) == ("Listed", queue)
    assert row.status == WorkflowExecutionStatus.COMPLETED
    assert (row.start_time, row.close_time) == (description.start_time, description.close_time)
    assert row.execution_time == description.execution_time
    assert before - timedelta(seconds=5) < row.start_time <= row.close_time
    assert row.history_length == description.history_length > 0
    assert await row.memo() == {"note": "hello"}
    raw = row.raw_info
    assert raw.root_execution.workflow_id == workflow_id
    assert not raw.HasField("parent_execution")
    assert abs(raw.execution_duration.ToTimedelta() - (row.close_time - row.execution_time)) < timedelta(milliseconds=1)

    run = f"RunId = '{row.run_id}'"
    for condition in [
        run,
        f"{run} AND HistoryLength = {row.history_length}",
        f"{run} AND ExecutionDuration < '1h' AND ExecutionDuration >= 0",
        f"{run} AND StartTime BETWEEN '{before.isoformat()}' AND '2100-01-01T00:00:00Z'",
        f"{run} AND StartTime = '{row.start_time.isoformat()}'",
        f"{run} AND CloseTime <= '{row.close_time.isoformat()}'",
        f"{run} AND RootWorkflowId = '{workflow_id}' AND ParentWorkflowId IS NULL",
    ]:
        assert await ids(client, condition) == [workflow_id], condition
    for condition in [
        f"{run} AND StartTime < '{row.start_time.isoformat()}'",
        f"{run} AND CloseTime > '{row.close_time.isoformat()}'",
        f"{run} AND ExecutionDuration > '00:59:00'",
        f"{run} AND ParentWorkflowId = 'x'",
        f"{run} AND NOT ParentWorkflowId = 'x'",
        f"{run} AND WorkflowId NOT STARTS_WITH 'vis'",
    ]:
        assert await ids(client, condition) == [], condition


async def test_a_start_and_a_close_are_listed_within_a_second(client: Client) -> None:
    async with run_worker(client, [Listed]) as queue:
        for _ in range(3):
            workflow_id = new_id("vis-soon")
            handle = await client.start_workflow(Listed.run, "wait", id=workflow_id, task_queue=queue)
            for status, change in [("Running", None), ("Completed", handle)]:
                if change:
                    await change.signal(Listed.tell, "go")
                    await change.result()
                begun = time.monotonic()
                query = f"WorkflowId = '{workflow_id}' AND ExecutionStatus = '{status}'"
                while not await ids(client, query):
                    await asyncio.sleep(0.02)
                assert time.monotonic() - begun < 1.0, status


async def test_open_ones_come_first_and_newest_first(client: Client) -> None:
    prefix = new_id("vis-order")
    async with run_worker(client, [Listed]) as queue:
        for i in range(6):
            handle = await client.start_workflow(
                Listed.run, "wait" if i % 2 else "done", id=f"{prefix}-{i}", task_queue=queue
            )
            if i % 2 == 0:
                await handle.result()
        query = f"WorkflowId STARTS_WITH '{prefix}'"
        await listed(client, f"{query} AND ExecutionStatus = 'Completed'", {f"{prefix}-{i}" for i in (0, 2, 4)})
        await listed(client, query, {f"{prefix}-{i}" for i in range(6)})
        expected = [f"{prefix}-{i}" for i in (5, 3, 1, 4, 2, 0)]
        assert await ids(client, query) == expected
        assert await ids(client, f"WorkflowType = 'Listed' AND TaskQueue = '{queue}'") == expected


@pytest.mark.perdure_only
async def test_lists_can_be_sorted(client: Client) -> None:
    prefix = new_id("vis-sorted")
    for i in [2, 0, 3, 1]:
        await client.start_workflow("Nothing", id=f"{prefix}-{i}", task_queue=new_id("nobody"))
    query = f"WorkflowId STARTS_WITH '{prefix}'"
    await listed(client, query, {f"{prefix}-{i}" for i in range(4)})
    for order, expected in [("WorkflowId", [0, 1, 2, 3]), ("WorkflowId DESC", [3, 2, 1, 0]), ("StartTime", [2, 0, 3, 1])]:
        found = [
            found.id
            async for found in client.list_workflows(f"{query} ORDER BY {order}", page_size=3)
        ]
        assert found == [f"{prefix}-{i}" for i in expected], order


async def test_pages_are_stable_while_workflows_start_and_close(client: Client) -> None:
    kind = new_id("Paged")
    queue = new_id("nobody")
    handles = [await client.start_workflow(kind, id=f"{kind}-{i:02}", task_queue=queue) for i in range(40)]
    for handle in handles[:20]:
        await handle.terminate()
    query = f"WorkflowType = '{kind}'"
    await listed(client, query, {handle.id for handle in handles})
    await listed(client, f"{query} AND ExecutionStatus = 'Terminated'", {handle.id for handle in handles[:20]})

    seen: list[str] = []
    token, page = b"", 0
    while True:
        request = ListWorkflowExecutionsRequest(namespace="default", query=query, page_size=4, next_page_token=token)
        response = await client.workflow_service.list_workflow_executions(request)
        assert len(response.executions) <= 4
        seen += [found.execution.workflow_id for found in response.executions]
        token, page = response.next_page_token, page + 1
        if not token:
            break
        if page <= 5:
            # One that was shown closes, one that was not, and a new one starts.
            await handles[40 - page].terminate()
            await handles[19 + page].terminate()
            await client.start_workflow(kind, id=f"{kind}-new-{page}", task_queue=queue)
            await asyncio.sleep(0.8)
    old = [workflow_id for workflow_id in seen if "-new-" not in workflow_id]
    missing = {handle.id for handle in handles} - set(old)
    assert not missing
    if is_perdure():
        # Each once. (Others order by close time without looking at when the list began.)
        assert len(seen) == len(set(seen)) == 40


async def test_runs_are_found_by_their_ids_parents_and_roots(client: Client) -> None:
    async with run_worker(client, [Generation]) as queue:
        root = new_id("root")
        handle = await client.start_workflow(Generation.run, 3, id=root, task_queue=queue)
        names = [root, f"{root}-child", f"{root}-child-child", f"{root}-child-child-child"]
        await listed(client, f"WorkflowId STARTS_WITH '{root}'", set(names))
        runs = {found.id: found.run_id async for found in client.list_workflows(f"WorkflowId STARTS_WITH '{root}'")}
        for closed in [False, True]:
            for name in names:
                await listed(client, f"RunId = '{runs[name]}'", {name})
            await listed(client, f"RunId IN ('{runs[names[0]]}', '{runs[names[2]]}')", {names[0], names[2]})
            await listed(client, f"ParentWorkflowId = '{names[1]}'", {names[2]})
            await listed(client, f"ParentRunId = '{runs[names[1]]}'", {names[2]})
            await listed(client, f"RootWorkflowId = '{root}'", set(names))
            await listed(client, f"RootRunId = '{runs[root]}'", set(names))
            await listed(client, f"RootRunId = '{runs[names[1]]}'", set())
            if not closed:
                await handle.terminate()
                await listed(client, f"RootWorkflowId = '{root}' AND ExecutionStatus = 'Terminated'", set(names))


async def test_old_forms_of_lists(client: Client) -> None:
    kind, queue = new_id("OldForm"), new_id("nobody")
    service = client.workflow_service
    open_one = await client.start_workflow(kind, id=f"{kind}-open", task_queue=queue)
    closed = await client.start_workflow(kind, id=f"{kind}-closed", task_queue=queue)
    await closed.terminate()
    await listed(client, f"WorkflowType = '{kind}' AND ExecutionStatus = 'Terminated'", {closed.id})
    await listed(client, f"WorkflowType = '{kind}'", {open_one.id, closed.id})

    def names(response: object) -> list[str]:
        return [found.execution.workflow_id for found in response.executions]

    of_type = WorkflowTypeFilter(name=kind)
    request = ListOpenWorkflowExecutionsRequest(namespace="default", type_filter=of_type)
    assert names(await service.list_open_workflow_executions(request)) == [open_one.id]
    by_id = WorkflowExecutionFilter(workflow_id=closed.id)
    request = ListOpenWorkflowExecutionsRequest(namespace="default", execution_filter=by_id)
    assert names(await service.list_open_workflow_executions(request)) == []
    request = ListClosedWorkflowExecutionsRequest(namespace="default", type_filter=of_type)
    assert names(await service.list_closed_workflow_executions(request)) == [closed.id]
    request = ListClosedWorkflowExecutionsRequest(namespace="default", execution_filter=by_id)
    assert names(await service.list_closed_workflow_executions(request)) == [closed.id]

    times = StartTimeFilter()
    times.latest_time.FromDatetime(datetime.now(timezone.utc) - timedelta(hours=1))
    request = ListClosedWorkflowExecutionsRequest(namespace="default", type_filter=of_type, start_time_filter=times)
    assert names(await service.list_closed_workflow_executions(request)) == []
    times.earliest_time.FromDatetime(datetime.now(timezone.utc))
    request = ListOpenWorkflowExecutionsRequest(namespace="default", start_time_filter=times)
    with rpc_error(RPCStatusCode.INVALID_ARGUMENT):
        await service.list_open_workflow_executions(request)
    status = StatusFilter(status=Status.WORKFLOW_EXECUTION_STATUS_RUNNING)
    request = ListClosedWorkflowExecutionsRequest(namespace="default", status_filter=status)
    with rpc_error(RPCStatusCode.INVALID_ARGUMENT):
        await service.list_closed_workflow_executions(request)

    request = ScanWorkflowExecutionsRequest(namespace="default", query=f"WorkflowType = '{kind}'")
    assert names(await service.scan_workflow_executions(request)) == [open_one.id, closed.id]
    archived = ListArchivedWorkflowExecutionsRequest(namespace="default")
    with rpc_error(RPCStatusCode.INVALID_ARGUMENT):
        await service.list_archived_workflow_executions(archived)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("foo bar", "invalid query: malformed SQL query: syntax error at position 35 near 'bar'"),
        ("foo =", "invalid query: malformed SQL query: syntax error at position 33"),
        ("(WorkflowType = 'x'", "invalid query: malformed SQL query: syntax error at position 47"),
        ("WorkflowType = 'x", "invalid query: malformed SQL query: syntax error at position 45 near 'x'"),
        ("WorkflowType", "invalid query: invalid expression: incomplete expression"),
        ("nosuch = 'x'", "invalid query: invalid expression: column name 'nosuch' is not a valid search attribute"),
        ("StartTime > '2020-01-01'", "invalid query: invalid expression: unable to parse datetime '2020-01-01'"),
        ("ExecutionStatus = 'Runing'", "invalid query: invalid expression: invalid ExecutionStatus value 'Runing'"),
        (
            "ExecutionStatus = 1.5",
            "invalid query: invalid expression: unexpected value type float64 for search attribute ExecutionStatus",
        ),
        ("GROUP BY ExecutionStatus, WorkflowType",
         "invalid query: operation is not supported: 'group by' clause supports only a single field"),
        ("WorkflowType='a' LIMIT 5", "invalid query: operation is not supported: 'limit' clause"),
    ],
)
async def test_nonsense_is_refused_with_its_place(client: Client, query: str, expected: str) -> None:
    # Some versions write the names of clauses in capitals.
    assert (await refused(client, query)).lower() == expected.lower()


@pytest.mark.parametrize(
    "query", ["WorkflowType LIKE 'x%'", "GROUP BY ExecutionStatus", "WorkflowType = foo", "BuildIds > 'a'"]
)
async def test_what_lists_do_not_take(client: Client, query: str) -> None:
    assert (await refused(client, query)).startswith("invalid query: ")


async def test_a_count_by_status_is_exact(client: Client) -> None:
    kind, queue = new_id("Counted"), new_id("nobody")
    handles = [await client.start_workflow(kind, id=new_id(kind), task_queue=queue) for _ in range(12)]
    for handle in handles[:5]:
        await handle.terminate()

    async def counts() -> dict[str, int]:
        query = f"WorkflowType = '{kind}' GROUP BY ExecutionStatus"
        request = CountWorkflowExecutionsRequest(namespace="default", query=query)
        response = await client.workflow_service.count_workflow_executions(request)
        assert response.count == sum(group.count for group in response.groups)
        return {json.loads(group.group_values[0].data): group.count for group in response.groups}

    async def settled() -> bool:
        assert await counts() == {"Running": 7, "Terminated": 5}
        return True

    await eventually(settled, 10)


async def test_what_is_unknown(client: Client) -> None:
    request = ListWorkflowExecutionsRequest(namespace="no-such-namespace")
    with rpc_error(RPCStatusCode.NOT_FOUND):
        await client.workflow_service.list_workflow_executions(request)
    assert await ids(client, f"WorkflowId = '{new_id('nobody')}'") == []


@pytest.mark.perdure_only
async def test_a_page_token_that_is_none(client: Client) -> None:
    request = ListWorkflowExecutionsRequest(namespace="default", next_page_token=b"nonsense")
    with rpc_error(RPCStatusCode.INVALID_ARGUMENT):
        await client.workflow_service.list_workflow_executions(request)
