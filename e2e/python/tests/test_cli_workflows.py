"""`temporal workflow …`, `activity …`, `batch …`, `task-queue …` and `worker …`, as people use them."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.common import RetryPolicy
from temporalio.runtime import Runtime, TelemetryConfig

from cli import Cli
from support import eventually, new_id, run_worker


@workflow.defn
class Counter:
    """Counts what it is told, until it is told to stop."""

    def __init__(self) -> None:
        self.total = 0
        self.stopped = False

    @workflow.run
    async def run(self, start: int = 0) -> int:
        self.total += start
        await workflow.wait_condition(lambda: self.stopped)
        return self.total

    @workflow.signal
    def add(self, n: int) -> None:
        self.total += n

    @workflow.signal
    def stop(self) -> None:
        self.stopped = True

    @workflow.query
    def current(self) -> int:
        return self.total

    @workflow.update
    def add_now(self, n: int) -> int:
        self.total += n
        return self.total

    @add_now.validator
    def refuse_nothing(self, n: int) -> None:
        if n == 0:
            raise ValueError("nothing to add")


@activity.defn
async def fail() -> str:
    raise RuntimeError("not yet")


@workflow.defn
class Stubborn:
    """Waits for an activity that fails until somebody does something about it."""

    @workflow.run
    async def run(self) -> str:
        return await workflow.execute_activity(
            fail,
            activity_id="stubborn",
            schedule_to_close_timeout=timedelta(hours=1),
            retry_policy=RetryPolicy(initial_interval=timedelta(seconds=600)),
        )


@pytest.fixture
def cli(address: str) -> Cli:
    return Cli(address)


async def test_start_to_result(client: Client, cli: Cli) -> None:
    async with run_worker(client, [Counter]) as queue:
        id = new_id("cli")
        which = ("--workflow-id", id)
        started = await cli.json("workflow", "start", *which, "--type", "Counter", "--task-queue", queue, "--input", "1")
        assert started["workflowId"] == id and started["runId"]

        code, _, errors = await cli.run(
            *("workflow", "start", *which, "--type", "Counter", "--task-queue", queue, "--fail-existing")
        )
        assert code != 0 and "already" in errors

        await cli.text("workflow", "signal", *which, "--name", "add", "--input", "2")
        queried = await cli.json("workflow", "query", *which, "--name", "current")
        assert queried["queryResult"] == [3]
        updated = await cli.json("workflow", "update", "execute", *which, "--name", "add_now", "--input", "4")
        assert updated["result"] == 7
        code, _, errors = await cli.run("workflow", "update", "execute", *which, "--name", "add_now", "--input", "0")
        assert code != 0 and "nothing to add" in errors
        accepted = await cli.json(
            *("workflow", "update", "start", *which, "--name", "add_now", "--input", "1"),
            *("--wait-for-stage", "accepted", "--update-id", "one-more"),
        )
        assert accepted["updateId"] == "one-more"
        told = await cli.json("workflow", "update", "result", *which, "--update-id", "one-more")
        assert told["result"] == 8
        told = await cli.json("workflow", "update", "describe", *which, "--update-id", "one-more")
        assert told["updateId"] == "one-more" and told["stage"] == "Completed"

        described = await cli.json("workflow", "describe", *which)
        info = described["workflowExecutionInfo"]
        assert info["status"] == "WORKFLOW_EXECUTION_STATUS_RUNNING"
        assert info["type"] == {"name": "Counter"} and info["taskQueue"] == queue
        assert "Stack for" in await cli.text("workflow", "stack", *which)
        metadata = await cli.json("workflow", "metadata", *which)
        assert "current" in json.dumps(metadata)

        await cli.text("workflow", "signal", *which, "--name", "stop")
        result = await cli.json("workflow", "result", *which)
        assert result["status"] == "COMPLETED" and result["result"] == 8
        shown = await cli.json("workflow", "show", *which)
        assert [event["eventType"] for event in shown["events"]][-1] == "EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED"
        described = await cli.json("workflow", "describe", *which)
        assert described["workflowExecutionInfo"]["status"] == "WORKFLOW_EXECUTION_STATUS_COMPLETED"
        assert described["result"] == 8
        assert "✓ Counter" in await cli.text("workflow", "trace", *which, "--fold", "completed")


async def test_execute_and_start_with(client: Client, cli: Cli) -> None:
    async with run_worker(client, [Counter]) as queue:
        id = new_id("cli")
        start = ("--workflow-id", id, "--type", "Counter", "--task-queue", queue)
        await cli.text(
            "workflow", "signal-with-start", *start, "--input", "1", "--signal-name", "add", "--signal-input", "4"
        )
        updated = await cli.json(
            *("workflow", "execute-update-with-start", *start, "--id-conflict-policy", "UseExisting"),
            *("--update-name", "add_now", "--update-input", "5"),
        )
        assert updated["updateResult"] == 10
        accepted = await cli.json(
            *("workflow", "start-update-with-start", *start, "--id-conflict-policy", "UseExisting"),
            *("--update-name", "add_now", "--update-input", "1", "--update-wait-for-stage", "accepted"),
        )
        assert accepted["updateId"]
        executing = asyncio.create_task(
            cli.json(
                *("workflow", "execute", "--workflow-id", id + "-2", "--type", "Counter"),
                *("--task-queue", queue, "--input", "7"),
            )
        )

        async def stopped() -> bool:
            code, _, _ = await cli.run("workflow", "signal", "--workflow-id", id + "-2", "--name", "stop")
            return code == 0

        await eventually(stopped)
        executed = await executing
        assert executed["status"] == "COMPLETED" and executed["result"] == 7


async def test_ends_and_reset(client: Client, cli: Cli) -> None:
    async with run_worker(client, [Counter]) as queue:
        handles = [
            await client.start_workflow(Counter.run, 1, id=new_id("cli"), task_queue=queue) for _ in range(3)
        ]
        canceled, terminated, reset = [("--workflow-id", handle.id) for handle in handles]

        async def has_status(which: tuple[str, str], status: str) -> bool:
            described = await cli.json("workflow", "describe", *which)
            return described["workflowExecutionInfo"]["status"] == f"WORKFLOW_EXECUTION_STATUS_{status}"

        await cli.text("workflow", "cancel", *canceled)
        await eventually(lambda: has_status(canceled, "CANCELED"))
        await cli.text("workflow", "terminate", *terminated, "--reason", "at once")
        await eventually(lambda: has_status(terminated, "TERMINATED"))

        await handles[2].signal(Counter.add, 5)
        await handles[2].signal(Counter.stop)
        assert await handles[2].result() == 6
        again = await cli.json(
            *("workflow", "reset", *reset, "--type", "FirstWorkflowTask", "--reason", "once more"),
            *("--reapply-exclude", "All"),
        )
        assert again["runId"] not in ("", handles[2].first_execution_run_id)
        await eventually(lambda: has_status(reset, "RUNNING"))
        assert (await cli.json("workflow", "query", *reset, "--name", "current"))["queryResult"] == [1]

        await cli.text("workflow", "delete", *terminated)

        async def is_gone() -> bool:
            code, _, errors = await cli.run("workflow", "describe", *terminated)
            return code != 0 and "not found" in errors

        await eventually(is_gone)


async def test_history_survives_the_cli(client: Client, cli: Cli, tmp_path: Path) -> None:
    async with run_worker(client, [Counter]) as queue:
        handle = await client.start_workflow(Counter.run, id=new_id("cli"), task_queue=queue)
        await handle.signal(Counter.stop)
        await handle.result()
    source, target = tmp_path / "history.json", tmp_path / "fixed.json"
    source.write_text(await cli.text("workflow", "show", "--workflow-id", handle.id, "--output", "json"))
    await cli.text("workflow", "fix-history-json", "--source", str(source), "--target", str(target))
    assert len(json.loads(target.read_text())["events"]) == len(json.loads(source.read_text())["events"])


async def test_activities(client: Client, cli: Cli) -> None:
    async with run_worker(client, [Stubborn], [fail]) as queue:
        handles = [await client.start_workflow(Stubborn.run, id=new_id("cli"), task_queue=queue) for _ in range(2)]
        first, second = [("--workflow-id", handle.id, "--activity-id", "stubborn") for handle in handles]

        async def pending(which: tuple[str, ...]) -> dict:
            described = await cli.json("workflow", "describe", *which[:2])
            (activity,) = described["pendingActivities"]
            return activity

        async def has_failed(which: tuple[str, ...]) -> bool:
            return (await pending(which)).get("lastFailure", {}).get("message") == "not yet"

        await eventually(lambda: has_failed(first))
        await cli.text("activity", "pause", *first)
        assert (await pending(first))["paused"] is True
        await cli.text("activity", "unpause", *first)
        assert "paused" not in await pending(first)
        await cli.text("activity", "update-options", *first, "--heartbeat-timeout", "7s")
        assert (await pending(first))["activityOptions"]["heartbeatTimeout"] == "7s"
        await cli.text("activity", "reset", *first, "--keep-paused")
        await cli.text("activity", "complete", *first, "--result", '"done by hand"')
        assert await handles[0].result() == "done by hand"

        await eventually(lambda: has_failed(second))
        await cli.text("activity", "pause", *second)
        code, _, _ = await cli.run("activity", "fail", *second, "--reason", "never")
        # Nobody has it at the moment: there is no attempt to fail.
        assert code != 0
        await handles[1].terminate()


async def test_batches(client: Client, cli: Cli) -> None:
    async with run_worker(client, [Counter]) as queue:
        handles = [
            await client.start_workflow(Counter.run, 1, id=new_id("cli"), task_queue=queue) for _ in range(3)
        ]
        query = f"TaskQueue = '{queue}' AND ExecutionStatus = 'Running'"

        async def all_run() -> bool:
            return (await cli.json("workflow", "count", "--query", query)).get("count") == "3"

        await eventually(all_run)
        await cli.text(
            *("workflow", "signal", "--query", query, "--name", "add", "--input", "4", "--reason", "all of them"),
            *("--yes", "--rps", "50"),
        )
        for handle in handles:

            async def is_told(handle=handle) -> bool:
                return await handle.query(Counter.current) == 5

            await eventually(is_told)
        code, output, errors = await cli.run("workflow", "terminate", "--query", query, "--reason", "over", "--yes")
        assert code == 0, errors

        async def none_runs() -> bool:
            return (await cli.json("workflow", "count", "--query", query)).get("count", "0") == "0"

        await eventually(none_runs)

        async def jobs() -> list[dict]:
            listed = await cli.json("batch", "list")
            return [job for job in listed if job["state"] == "BATCH_OPERATION_STATE_COMPLETED"]

        found = await eventually(jobs)
        job = found[0]["jobId"]
        described = await cli.json("batch", "describe", "--job-id", job)
        assert described["state"] == "BATCH_OPERATION_STATE_COMPLETED"
        code, _, errors = await cli.run("batch", "terminate", "--job-id", job, "--reason", "late")
        assert code != 0, "a job that is over cannot be stopped"


async def test_task_queues_and_workers(address: str, cli: Cli) -> None:
    runtime = Runtime(telemetry=TelemetryConfig(), worker_heartbeat_interval=timedelta(seconds=1))
    client = await Client.connect(address, runtime=runtime)
    async with run_worker(client, [Counter], identity="cli-worker") as queue:

        async def has_pollers() -> str:
            text = await cli.text("task-queue", "describe", "--task-queue", queue)
            assert "cli-worker" in text
            return text

        await eventually(has_pollers)
        described = await cli.json("task-queue", "describe", "--task-queue", queue)
        assert described
        partitions = await cli.json("task-queue", "list-partition", "--task-queue", queue)
        assert partitions["workflowTaskQueuePartitions"] and partitions["activityTaskQueuePartitions"]

        async def is_listed() -> dict:
            listed = await cli.json("worker", "list", "--query", f"TaskQueue = '{queue}'")
            assert len(listed) == 1
            return listed[0]

        worker = await eventually(is_listed)
        # Newer CLIs leave the inner message out.
        key = worker.get("workerHeartbeat", worker)["workerInstanceKey"]
        described = await cli.json("worker", "describe", "--worker-instance-key", key)
        assert key in json.dumps(described)
