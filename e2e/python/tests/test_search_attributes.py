"""Custom search attributes: registering, setting, upserting, finding by them; memo upserts."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from temporalio import workflow
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import (
    AddSearchAttributesRequest,
    ListSearchAttributesRequest,
    RemoveSearchAttributesRequest,
)
from temporalio.client import Client, WorkflowFailureError
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes
from temporalio.service import RPCError, RPCStatusCode

from support import eventually, events_of, new_id, rpc_error, run_worker, types_of
from test_visibility import listed, refused

KINDS = {
    "VisBool": IndexedValueType.INDEXED_VALUE_TYPE_BOOL,
    "VisDatetime": IndexedValueType.INDEXED_VALUE_TYPE_DATETIME,
    "VisDouble": IndexedValueType.INDEXED_VALUE_TYPE_DOUBLE,
    "VisInt": IndexedValueType.INDEXED_VALUE_TYPE_INT,
    "VisKeyword": IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD,
    "VisList": IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD_LIST,
    "VisText": IndexedValueType.INDEXED_VALUE_TYPE_TEXT,
}
BOOL = SearchAttributeKey.for_bool("VisBool")
DATETIME = SearchAttributeKey.for_datetime("VisDatetime")
DOUBLE = SearchAttributeKey.for_float("VisDouble")
INT = SearchAttributeKey.for_int("VisInt")
KEYWORD = SearchAttributeKey.for_keyword("VisKeyword")
LIST = SearchAttributeKey.for_keyword_list("VisList")
TEXT = SearchAttributeKey.for_text("VisText")
UNKNOWN = SearchAttributeKey.for_keyword("VisNobodyKnows")


async def register(client: Client) -> None:
    request = AddSearchAttributesRequest(namespace="default", search_attributes=KINDS)
    await client.operator_service.add_search_attributes(request)

    async def known() -> bool:
        await client.count_workflows("VisKeyword = 'x' AND VisText = 'x'")
        return True

    async def there() -> bool:
        try:
            return await known()
        except RPCError:
            return False

    await eventually(there)


@workflow.defn
class Attributed:
    @workflow.run
    async def run(self, what: str) -> str:
        if what == "upsert":
            workflow.upsert_search_attributes([KEYWORD.value_set("after"), INT.value_unset()])
            workflow.upsert_memo({"note": "after", "more": 1})
        if what == "upsert-unknown":
            workflow.upsert_search_attributes([UNKNOWN.value_set("x")])
        if what == "again":
            workflow.continue_as_new("upsert")
        if what == "child":
            attributes = TypedSearchAttributes([SearchAttributePair(KEYWORD, f"{workflow.info().workflow_id}-child")])
            await workflow.execute_child_workflow(
                Attributed.run, "done", id=f"{workflow.info().workflow_id}-child", search_attributes=attributes
            )
        return what


async def test_every_type_is_found(client: Client) -> None:
    await register(client)
    day = datetime(2026, 5, 4, 3, 2, 1, tzinfo=timezone.utc)
    key = new_id("key")
    workflow_id = new_id("attributed")
    pairs = [
        SearchAttributePair(BOOL, True),
        SearchAttributePair(DATETIME, day),
        SearchAttributePair(DOUBLE, 1.5),
        SearchAttributePair(INT, 42),
        SearchAttributePair(KEYWORD, key),
        SearchAttributePair(LIST, ["red", "green blue"]),
        SearchAttributePair(TEXT, "The quick Brown fox"),
    ]
    queue = new_id("nobody")
    attributes = TypedSearchAttributes(pairs)
    await client.start_workflow("T", id=workflow_id, task_queue=queue, search_attributes=attributes)
    await client.start_workflow("T", id=f"{workflow_id}-bare", task_queue=queue)
    mine = f"TaskQueue = '{queue}'"
    await listed(client, mine, {workflow_id, f"{workflow_id}-bare"})
    [row] = [found async for found in client.list_workflows(f"VisKeyword = '{key}'")]
    assert row.id == workflow_id
    assert dict(row.typed_search_attributes) == dict(attributes)
    for condition in [
        "VisBool = true",
        "VisBool != false",
        "VisDatetime BETWEEN '2026-05-04T03:02:00Z' AND '2026-05-04T03:02:02Z'",
        "VisDatetime > '2026-05-04T05:02:00+02:00' AND VisDatetime < '2027-01-01T00:00:00Z'",
        "VisDouble > 1 AND VisDouble <= 1.5",
        "VisInt BETWEEN 40 AND 42",
        "VisInt IN (1, 42)",
        "VisInt != 41",
        f"VisKeyword IN ('{key}', 'other')",
        f"VisKeyword STARTS_WITH '{key[:6]}'",
        "VisList = 'red'",
        "VisList IN ('green blue', 'x')",
        "VisText = 'brown'",
        "VisText = 'zebra fox'",
        "VisInt IS NOT NULL",
        "NOT VisInt = 41",
        "(VisInt = 1 OR VisText = 'quick') AND VisList != 'blue'",
    ]:
        await listed(client, f"{mine} AND {condition}", {workflow_id})
    for condition in ["VisBool = false", "VisList = 'green'", "VisText = 'zebra'", "VisInt > 42", "VisDouble < 1.5"]:
        await listed(client, f"{mine} AND {condition}", set())
    await listed(client, f"{mine} AND VisKeyword IS NULL", {f"{workflow_id}-bare"})
    # A set without the entry, which is what an empty one is too.
    await listed(client, f"{mine} AND VisList != 'red'", {f"{workflow_id}-bare"})
    for nonsense in ["VisList > 'a'", "VisText BETWEEN 'a' AND 'b'", "VisText STARTS_WITH 'T'", "VisText = ''"]:
        assert (await refused(client, nonsense)).startswith("invalid query: ")


async def test_upserts_are_listed(client: Client) -> None:
    await register(client)
    before = TypedSearchAttributes([SearchAttributePair(KEYWORD, "before"), SearchAttributePair(INT, 7)])
    async with run_worker(client, [Attributed]) as queue:
        for what in ["upsert", "again"]:
            workflow_id = new_id(what)
            handle = await client.start_workflow(
                Attributed.run, what, id=workflow_id, task_queue=queue, search_attributes=before, memo={"note": "old"}
            )
            await handle.result()
            done = f"WorkflowId = '{workflow_id}' AND ExecutionStatus = 'Completed'"
            await listed(client, f"{done} AND VisKeyword = 'after' AND VisInt IS NULL", {workflow_id})
            await listed(client, f"{done} AND VisKeyword = 'before'", set())
            [row] = [found async for found in client.list_workflows(done)]
            assert await row.memo() == {"note": "after", "more": 1}
            attributes = dict(row.typed_search_attributes)
            assert attributes[KEYWORD] == "after"
            assert INT not in attributes


async def test_children_are_found_by_their_parent(client: Client) -> None:
    await register(client)
    async with run_worker(client, [Attributed]) as queue:
        parent = await client.start_workflow(Attributed.run, "child", id=new_id("parent"), task_queue=queue)
        await parent.result()
    child = f"{parent.id}-child"
    await listed(client, f"ParentWorkflowId = '{parent.id}' AND ParentRunId = '{parent.first_execution_run_id}'", {child})
    await listed(client, f"RootWorkflowId = '{parent.id}'", {parent.id, child})
    await listed(client, f"VisKeyword = '{child}'", {child})


async def test_a_start_with_wrong_attributes_is_refused(client: Client) -> None:
    await register(client)
    wrong_int = SearchAttributeKey.for_keyword("VisInt")
    for pair, message in [
        (SearchAttributePair(UNKNOWN, "x"), "Namespace default has no mapping defined for search attribute VisNobodyKnows"),
        (SearchAttributePair(wrong_int, "x"), "invalid value for search attribute VisInt of type Int: x"),
        (
            SearchAttributePair(SearchAttributeKey.for_keyword("WorkflowId"), "x"),
            "WorkflowId attribute can't be set in SearchAttributes",
        ),
    ]:
        with pytest.raises(RPCError) as error:
            await client.start_workflow(
                "T", id=new_id(), task_queue="q", search_attributes=TypedSearchAttributes([pair])
            )
        assert (error.value.status, error.value.message) == (RPCStatusCode.INVALID_ARGUMENT, message)


async def test_an_upsert_of_an_unknown_attribute_fails_the_task(client: Client) -> None:
    async with run_worker(client, [Attributed]) as queue:
        handle = await client.start_workflow(Attributed.run, "upsert-unknown", id=new_id(), task_queue=queue)

        async def failed() -> bool:
            events = await events_of(handle)
            assert "WorkflowTaskFailed" in types_of(events)
            failure = next(e for e in events if e.HasField("workflow_task_failed_event_attributes"))
            attributes = failure.workflow_task_failed_event_attributes
            assert "BadSearchAttributes" in attributes.failure.message
            return True

        await eventually(failed)
        await handle.terminate()
        with pytest.raises(WorkflowFailureError):
            await handle.result()


async def test_the_registry(client: Client) -> None:
    operator = client.operator_service
    name = new_id("Attribute").replace("-", "")

    async def custom() -> dict[str, int]:
        listed = await operator.list_search_attributes(ListSearchAttributesRequest(namespace="default"))
        assert len(listed.system_attributes) >= 29
        return dict(listed.custom_attributes)

    add = AddSearchAttributesRequest(namespace="default", search_attributes={name: KINDS["VisInt"]})
    await operator.add_search_attributes(add)

    async def is_there() -> bool:
        return (await custom()).get(name) == KINDS["VisInt"]

    await eventually(is_there)
    # Once more is harmless.
    await operator.add_search_attributes(add)
    await operator.remove_search_attributes(RemoveSearchAttributesRequest(namespace="default", search_attributes=[name]))

    async def is_gone() -> bool:
        return name not in await custom()

    await eventually(is_gone)
    # So is removing what is not there.
    await operator.remove_search_attributes(RemoveSearchAttributesRequest(namespace="default", search_attributes=[name]))
    for bad in [
        AddSearchAttributesRequest(namespace="default", search_attributes={"WorkflowId": 2}),
        AddSearchAttributesRequest(namespace="default", search_attributes={"TemporalMine": 2}),
        AddSearchAttributesRequest(namespace="default", search_attributes={"Odd": 77}),
        AddSearchAttributesRequest(namespace="default"),
    ]:
        with rpc_error(RPCStatusCode.INVALID_ARGUMENT):
            await operator.add_search_attributes(bad)
    for bad in [
        RemoveSearchAttributesRequest(namespace="default", search_attributes=["WorkflowId"]),
        RemoveSearchAttributesRequest(namespace="default"),
    ]:
        with rpc_error(RPCStatusCode.INVALID_ARGUMENT):
            await operator.remove_search_attributes(bad)
