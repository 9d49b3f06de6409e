"""`temporal schedule …`, as people use it."""

from __future__ import annotations

import json

from temporalio.client import Client

from cli import Cli
from support import eventually, new_id, run_worker
from test_schedules import WORKFLOWS


async def test_the_life_of_a_schedule(client: Client, address: str) -> None:
    cli = Cli(address)
    id, workflow_id = new_id("schedule"), new_id("workflow")
    name = ("--schedule-id", id)
    async with run_worker(client, WORKFLOWS) as queue:
        action = ("--workflow-id", workflow_id, "--type", "Count", "--task-queue", queue)
        await cli.text(
            *("schedule", "create", *name, *action, "--cron", "CRON_TZ=Europe/Berlin 30 12 * * Fri # lunch"),
            *("--overlap-policy", "BufferOne", "--catchup-window", "5s", "--schedule-memo", 'owner="me"'),
            *("--input", "1", "--notes", "new"),
        )
        described = await cli.json("schedule", "describe", *name)
        calendar = described["schedule"]["spec"]["structuredCalendar"][0]
        assert calendar["comment"] == "lunch"
        assert calendar["dayOfWeek"] == [{"start": 5, "end": 5, "step": 1}]
        assert calendar["hour"] == [{"start": 12, "end": 12, "step": 1}]
        assert described["schedule"]["spec"]["timezoneName"] == "Europe/Berlin"
        policies = described["schedule"]["policies"]
        assert policies["overlapPolicy"] == "SCHEDULE_OVERLAP_POLICY_BUFFER_ONE"
        assert policies["catchupWindow"] == "10s"
        assert described["schedule"]["state"] == {"notes": "new"}
        assert described["schedule"]["action"]["startWorkflow"]["taskQueue"]["name"] == queue
        assert len(described["info"]["futureActionTimes"]) == 10
        assert "memo" in described and "conflictToken" in described

        code, _, errors = await cli.run("schedule", "create", *name, *action, "--interval", "1h")
        assert code != 0 and "already" in errors

        await cli.text("schedule", "trigger", *name)

        async def has_acted(count: int) -> dict:
            description = await cli.json("schedule", "describe", *name)
            assert description["info"].get("actionCount") == str(count)
            return description

        described = await eventually(lambda: has_acted(1))
        started = described["info"]["recentActions"][0]["startWorkflowResult"]["workflowId"]
        assert started.startswith(f"{workflow_id}-2")
        assert await client.get_workflow_handle(started).result() == 1

        day = ("--start-time", "2024-05-01T00:00:00Z", "--end-time", "2024-05-11T00:00:00Z")
        await cli.text("schedule", "backfill", *name, *day, "--overlap-policy", "AllowAll")
        described = await eventually(lambda: has_acted(3))
        times = [action["scheduleTime"] for action in described["info"]["recentActions"][1:]]
        assert times == ["2024-05-03T10:30:00Z", "2024-05-10T10:30:00Z"]

        await cli.text("schedule", "toggle", *name, "--pause", "--reason", "holidays")

        async def is_paused() -> bool:
            state = (await cli.json("schedule", "describe", *name))["schedule"]["state"]
            return state == {"notes": "holidays", "paused": True}

        assert await eventually(is_paused)
        await cli.text("schedule", "toggle", *name, "--unpause", "--reason", "back")

        async def listed() -> list[dict]:
            entries = await cli.json("schedule", "list")
            return [entry for entry in entries if entry["scheduleId"] == id]

        async def is_listed_as_it_is() -> dict:
            (entry,) = await listed()
            assert entry["info"].get("notes") == "back"
            return entry

        entry = await eventually(is_listed_as_it_is)
        assert entry["info"]["workflowType"] == {"name": "Count"}
        assert len(entry["info"]["recentActions"]) == 3
        assert len(entry["info"]["futureActionTimes"]) == 5
        assert json.dumps(entry["memo"])

        await cli.text("schedule", "update", *name, *action, "--interval", "90m/5m", "--paused")

        async def is_updated() -> dict:
            description = await cli.json("schedule", "describe", *name)
            assert description["schedule"]["spec"]["interval"] == [{"interval": "5400s", "phase": "300s"}]
            return description

        described = await eventually(is_updated)
        assert described["schedule"]["state"] == {"paused": True}
        assert described["info"]["actionCount"] == "3"

        await cli.text("schedule", "delete", *name)

        async def is_gone() -> bool:
            code, _, _ = await cli.run("schedule", "describe", *name)
            return code != 0 and not await listed()

        assert await eventually(is_gone)
