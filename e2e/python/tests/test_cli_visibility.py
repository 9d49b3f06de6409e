"""The real `temporal` CLI: lists and counts of workflows, search attributes."""

from __future__ import annotations

import pytest
from temporalio import workflow
from temporalio.client import Client

from cli import Cli
from support import eventually, new_id, run_worker


@workflow.defn
class Quick:
    @workflow.run
    async def run(self) -> str:
        return "done"


@pytest.fixture
def cli(address: str) -> Cli:
    return Cli(address)


async def test_list_and_count(client: Client, cli: Cli) -> None:
    async with run_worker(client, [Quick]) as queue:
        ids = [new_id("cli-list") for _ in range(3)]
        for workflow_id in ids:
            await client.execute_workflow(Quick.run, id=workflow_id, task_queue=queue)
    query = f"TaskQueue = '{queue}' AND ExecutionStatus = 'Completed'"

    async def all_listed() -> bool:
        found = await cli.json("workflow", "list", "--query", query)
        assert [row["execution"]["workflowId"] for row in found] == ids[::-1]
        assert {row["status"] for row in found} == {"WORKFLOW_EXECUTION_STATUS_COMPLETED"}
        assert {row["type"]["name"] for row in found} == {"Quick"}
        return True

    await eventually(all_listed, 10)
    assert len(await cli.json("workflow", "list", "--query", query, "--limit", "2")) == 2
    assert (await cli.json("workflow", "count", "--query", query))["count"] == "3"
    groups = await cli.json("workflow", "count", "--query", f"TaskQueue = '{queue}' GROUP BY ExecutionStatus")
    assert [(group["groupValues"], group["count"]) for group in groups["groups"]] == [(["Completed"], "3")]
    text = await cli.text("workflow", "list", "--query", query)
    assert "Completed" in text and ids[0] in text


async def test_a_wrong_query_is_told(cli: Cli) -> None:
    code, _, errors = await cli.run("workflow", "list", "--query", "NoSuch = 'x'")
    assert code == 1
    assert "column name 'NoSuch' is not a valid search attribute" in errors


async def test_search_attributes(client: Client, cli: Cli) -> None:
    name = new_id("CliAttribute").replace("-", "")
    await cli.text("operator", "search-attribute", "create", "--name", name, "--type", "Keyword")

    async def is_listed() -> bool:
        return name in await cli.text("operator", "search-attribute", "list")

    await eventually(is_listed)
    workflow_id = new_id("cli-attribute")
    start = ["workflow", "start", "--type", "Quick", "--task-queue", new_id("nobody"), "--workflow-id", workflow_id]
    await cli.text(*start, "--search-attribute", f'{name}="blue"')

    async def is_found() -> bool:
        found = await cli.json("workflow", "list", "--query", f"{name} = 'blue'")
        return [row["execution"]["workflowId"] for row in found] == [workflow_id]

    await eventually(is_found, 10)
    await cli.text("operator", "search-attribute", "remove", "--name", name, "--yes")

    async def is_gone() -> bool:
        return name not in await cli.text("operator", "search-attribute", "list")

    await eventually(is_gone)
    code, _, errors = await cli.run("workflow", "list", "--query", f"{name} = 'blue'")
    assert code == 1 and name in errors


@pytest.mark.perdure_only
@pytest.mark.dev_only
async def test_search_attributes_of_the_command_line(new_server) -> None:
    server = await new_server("--search-attribute", "Region=Keyword", "--search-attribute", "Size=Int")
    cli = Cli(server.address)
    listed = await cli.json("operator", "search-attribute", "list")
    assert listed["customAttributes"] == {"Region": "INDEXED_VALUE_TYPE_KEYWORD", "Size": "INDEXED_VALUE_TYPE_INT"}
