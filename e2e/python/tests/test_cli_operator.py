"""`temporal operator …` and `temporal env …`, as people use them."""

from __future__ import annotations

from pathlib import Path

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


async def test_the_life_of_a_namespace(cli: Cli, address: str) -> None:
    name = new_id("cli")
    which = ("--namespace", name)
    await cli.text("operator", "namespace", "create", *which, "--description", "mine", "--retention", "24h")
    code, _, errors = await cli.run("operator", "namespace", "create", *which)
    assert code != 0 and "already exists" in errors
    described = await cli.json("operator", "namespace", "describe", *which)
    assert described["namespaceInfo"]["description"] == "mine"
    assert described["config"]["workflowExecutionRetentionTtl"] == "86400s"
    id = described["namespaceInfo"]["id"]
    await cli.text("operator", "namespace", "update", *which, "--description", "ours", "--retention", "48h")
    described = await cli.json("operator", "namespace", "describe", *which)
    assert described["namespaceInfo"]["description"] == "ours"
    listed = await cli.json("operator", "namespace", "list")
    assert name in [entry["namespaceInfo"]["name"] for entry in listed]

    client = await Client.connect(address, namespace=name)
    async with run_worker(client, [Quick]) as queue:
        for _ in range(3):
            await client.execute_workflow(Quick.run, id=new_id("quick"), task_queue=queue)
    await cli.text("operator", "namespace", "delete", *which, "--yes")
    code, _, errors = await cli.run("operator", "namespace", "describe", *which)
    assert code != 0 and "not found" in errors

    # The name is free at once, while what was in the old namespace is being deleted.
    await cli.text("operator", "namespace", "create", *which)
    described = await cli.json("operator", "namespace", "describe", *which)
    assert described["namespaceInfo"]["id"] != id
    assert (await cli.json("workflow", "count", "--namespace", name)).get("count", "0") == "0"

    async def is_gone() -> bool:
        code, _, errors = await cli.run("operator", "namespace", "describe", "--namespace-id", id)
        return code != 0 and "not found" in errors

    await eventually(is_gone, 60)


async def test_clusters(cli: Cli) -> None:
    assert "SERVING" in await cli.text("operator", "cluster", "health")
    described = await cli.json("operator", "cluster", "describe")
    assert described["clusterName"] and described["serverVersion"]
    (cluster,) = await cli.json("operator", "cluster", "list")
    assert cluster["clusterName"] == described["clusterName"]
    assert "supportsSchedules" in await cli.text("operator", "cluster", "system", "--output", "json")
    code, _, _ = await cli.run("operator", "cluster", "remove", "--name", "elsewhere")
    assert code != 0
    code, _, _ = await cli.run("operator", "cluster", "upsert", "--frontend-address", "127.0.0.1:1")
    assert code != 0


async def test_search_attributes(cli: Cli) -> None:
    name = new_id("Cli").replace("-", "")
    create = ("operator", "search-attribute", "create", "--name", name)
    await cli.text(*create, "--type", "Int")
    code, _, _ = await cli.run(*create, "--type", "Keyword")
    assert code != 0
    assert name in await cli.text("operator", "search-attribute", "list")
    await cli.text("operator", "search-attribute", "remove", "--name", name, "--yes")

    async def is_gone() -> bool:
        return name not in await cli.text("operator", "search-attribute", "list")

    await eventually(is_gone)


async def test_environments(cli: Cli, tmp_path: Path) -> None:
    file = ("--env-file", str(tmp_path / "environments.yaml"))
    await cli.text("env", "set", *file, "--env", "here", "--key", "address", "--value", cli.address)
    assert "here" in await cli.text("env", "list", *file)
    assert cli.address in await cli.text("env", "get", *file, "--env", "here")
    assert "SERVING" in await cli.text("operator", "cluster", "health", *file, "--env", "here")
    await cli.text("env", "delete", *file, "--env", "here")
