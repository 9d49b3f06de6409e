"""Schedules: what they start and when, what they count, and that a dead server loses none of it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from temporalio import workflow
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleAlreadyRunningError,
    ScheduleBackfill,
    ScheduleCalendarSpec,
    ScheduleDescription,
    ScheduleHandle,
    ScheduleIntervalSpec,
    ScheduleOverlapPolicy,
    SchedulePolicy,
    ScheduleRange,
    ScheduleSpec,
    ScheduleState,
    ScheduleUpdate,
    ScheduleUpdateInput,
    WorkflowExecutionStatus,
)
from temporalio.common import SearchAttributeKey
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from conftest import NewServer
from support import eventually, new_id, run_worker

SECOND = timedelta(seconds=1)


@workflow.defn
class Count:
    """Gives one more than the run before."""

    @workflow.run
    async def run(self) -> int:
        return (workflow.get_last_completion_result(int) or 0) + 1


RUNS: dict[str, int] = {}
"""How often workflows of a task queue ran, as the worker of this process knows it."""


@workflow.defn
class Note:
    @workflow.run
    async def run(self) -> None:
        queue = workflow.info().task_queue
        RUNS[queue] = RUNS.get(queue, 0) + 1


@workflow.defn
class Wait:
    def __init__(self) -> None:
        self.done = False

    @workflow.run
    async def run(self) -> str:
        await workflow.wait_condition(lambda: self.done)
        return "done"

    @workflow.signal
    def finish(self) -> None:
        self.done = True


@workflow.defn
class Fail:
    @workflow.run
    async def run(self) -> None:
        raise ApplicationError("broken", non_retryable=True)


WORKFLOWS = [Count, Wait, Fail, Note]


def starts(run: type, task_queue: str, id: str | None = None) -> ScheduleActionStartWorkflow:
    return ScheduleActionStartWorkflow(run.run, id=id or new_id("scheduled"), task_queue=task_queue)  # type: ignore


def every(interval: timedelta) -> ScheduleSpec:
    return ScheduleSpec(intervals=[ScheduleIntervalSpec(every=interval)])


async def create(client: Client, schedule: Schedule, **options: object) -> ScheduleHandle:
    return await client.create_schedule(new_id("schedule"), schedule, **options)  # type: ignore


async def when(handle: ScheduleHandle, check) -> ScheduleDescription:  # type: ignore
    """The description, as soon as it is as wanted."""

    async def look() -> ScheduleDescription:
        description = await handle.describe()
        assert check(description), description.info
        return description

    return await eventually(look)


async def test_a_workflow_every_second(client: Client) -> None:
    async with run_worker(client, WORKFLOWS) as queue:
        action = starts(Count, queue)
        handle = await create(client, Schedule(action=action, spec=every(SECOND)))
        described = await when(handle, lambda d: d.info.num_actions >= 3)
        await handle.pause()
        recent = [a.action.workflow_id for a in described.info.recent_actions]  # type: ignore
        times = [a.scheduled_at for a in described.info.recent_actions]
        assert recent == [f"{action.id}-{time:%Y-%m-%dT%H:%M:%SZ}" for time in times]
        assert all(later - earlier >= SECOND for earlier, later in zip(times, times[1:]))
        # Each run is handed the result of the one before.
        first, second = (client.get_workflow_handle(id) for id in recent[:2])
        assert await second.result() == await first.result() + 1
        found = await first.describe()
        attributes = found.typed_search_attributes
        assert attributes[SearchAttributeKey.for_keyword("TemporalScheduledById")] == handle.id
        started = attributes[SearchAttributeKey.for_datetime("TemporalScheduledStartTime")]
        assert started == times[0].replace(microsecond=0)


async def test_description(client: Client) -> None:
    calendar = ScheduleCalendarSpec(hour=[ScheduleRange(2)], minute=[ScheduleRange(30)], comment="at night")
    spec = ScheduleSpec(
        calendars=[calendar],
        cron_expressions=["0 12 * * MON-FRI # noon"],
        intervals=[ScheduleIntervalSpec(every=timedelta(days=1), offset=timedelta(hours=3))],
        time_zone_name="Europe/Berlin",
    )
    schedule = Schedule(
        action=starts(Count, "nowhere"),
        spec=spec,
        state=ScheduleState(note="a note", paused=True, limited_actions=True, remaining_actions=7),
    )
    before = datetime.now(UTC) - SECOND
    handle = await create(client, schedule, memo={"key": "value"})
    described = await handle.describe()
    assert await described.memo() == {"key": "value"}
    assert [c.comment for c in described.schedule.spec.calendars] == ["at night", "noon"]
    assert described.schedule.spec.calendars[1].day_of_week == (ScheduleRange(1, 5, 1),)
    assert described.schedule.spec.cron_expressions == []
    assert described.schedule.spec.time_zone_name == "Europe/Berlin"
    assert described.schedule.policy.overlap == ScheduleOverlapPolicy.SKIP
    assert described.schedule.policy.catchup_window == timedelta(days=365)
    state = described.schedule.state
    assert (state.note, state.paused, state.limited_actions, state.remaining_actions) == ("a note", True, True, 7)
    info = described.info
    assert (info.num_actions, len(info.next_action_times), info.running_actions) == (0, 7, [])
    assert before < info.created_at <= datetime.now(UTC) + SECOND
    assert info.next_action_times == sorted(info.next_action_times)
    await handle.delete()


async def test_ids(client: Client) -> None:
    handle = await create(client, Schedule(action=starts(Count, "nowhere"), spec=ScheduleSpec()))
    with pytest.raises(ScheduleAlreadyRunningError):
        await client.create_schedule(handle.id, Schedule(action=starts(Count, "nowhere"), spec=ScheduleSpec()))
    await handle.delete()
    for call in (handle.describe, handle.pause, handle.trigger, handle.delete):
        with pytest.raises(RPCError) as failure:
            await call()
        assert failure.value.status == RPCStatusCode.NOT_FOUND
    again = await client.create_schedule(handle.id, Schedule(action=starts(Count, "nowhere"), spec=ScheduleSpec()))
    assert (await again.describe()).info.num_actions == 0
    await again.delete()


@pytest.mark.parametrize("cron", ["bogus", "61 * * * *", "CRON_TZ=Nowhere/X * * * * *"])
async def test_bad_specifications_are_refused(client: Client, cron: str) -> None:
    schedule = Schedule(action=starts(Count, "nowhere"), spec=ScheduleSpec(cron_expressions=[cron]))
    with pytest.raises(RPCError, match="Invalid schedule spec") as failure:
        await create(client, schedule)
    assert failure.value.status == RPCStatusCode.INVALID_ARGUMENT


async def test_trigger_and_pause(client: Client) -> None:
    async with run_worker(client, WORKFLOWS) as queue:
        paused = ScheduleState(paused=True)
        handle = await create(client, Schedule(action=starts(Count, queue), spec=every(SECOND), state=paused))
        await handle.trigger()
        described = await when(handle, lambda d: d.info.num_actions == 1)
        result = described.info.recent_actions[0].action
        assert await client.get_workflow_handle(result.workflow_id).result() == 1  # type: ignore
        await handle.unpause(note="go on")
        described = await when(handle, lambda d: d.info.num_actions >= 3)
        assert described.schedule.state.note == "go on"
        await handle.pause(note="enough")
        count = (await handle.describe()).info.num_actions
        await asyncio.sleep(2.5)
        described = await handle.describe()
        assert described.info.num_actions - count <= 1
        assert (described.schedule.state.paused, described.schedule.state.note) == (True, "enough")
        await handle.delete()


async def test_backfill(client: Client) -> None:
    async with run_worker(client, WORKFLOWS) as queue:
        state = ScheduleState(paused=True)
        handle = await create(
            client, Schedule(action=starts(Count, queue), spec=every(timedelta(minutes=10)), state=state)
        )
        start = datetime(2024, 5, 1, 12, tzinfo=UTC)
        hours = timedelta(hours=2)
        await handle.backfill(
            ScheduleBackfill(start_at=start, end_at=start + hours, overlap=ScheduleOverlapPolicy.ALLOW_ALL)
        )
        described = await when(handle, lambda d: d.info.num_actions == 13)
        assert [a.scheduled_at for a in described.info.recent_actions] == [
            start + timedelta(minutes=10 * n) for n in range(3, 13)
        ]
        await handle.delete()


async def finish(client: Client, workflow_id: str) -> None:
    await client.get_workflow_handle(workflow_id).signal(Wait.finish)


async def test_overlap_skip_and_buffer(client: Client) -> None:
    async with run_worker(client, WORKFLOWS) as queue:
        handle = await create(client, Schedule(action=starts(Wait, queue), spec=ScheduleSpec()))
        await handle.trigger(overlap=ScheduleOverlapPolicy.SKIP)
        described = await when(handle, lambda d: d.info.num_actions == 1)
        running = described.info.running_actions[0].workflow_id
        await handle.trigger(overlap=ScheduleOverlapPolicy.SKIP)
        await when(handle, lambda d: d.info.num_actions_skipped_overlap == 1)
        await asyncio.sleep(1.1)  # the next workflow id is another one
        await handle.trigger(overlap=ScheduleOverlapPolicy.BUFFER_ALL)
        await when(handle, lambda d: d.raw_description.info.buffer_size == 1)
        await finish(client, running)
        described = await when(handle, lambda d: d.info.num_actions == 2)
        following = described.info.running_actions[0].workflow_id
        assert following != running
        statuses = [a.start_workflow_status for a in described.raw_description.info.recent_actions]
        assert statuses == [WorkflowExecutionStatus.COMPLETED, WorkflowExecutionStatus.RUNNING]
        await finish(client, following)
        await when(handle, lambda d: not d.info.running_actions)
        await handle.delete()


@pytest.mark.parametrize(
    ("policy", "status"),
    [
        (ScheduleOverlapPolicy.CANCEL_OTHER, WorkflowExecutionStatus.CANCELED),
        (ScheduleOverlapPolicy.TERMINATE_OTHER, WorkflowExecutionStatus.TERMINATED),
    ],
)
async def test_overlap_stops_other(
    client: Client, policy: ScheduleOverlapPolicy, status: WorkflowExecutionStatus
) -> None:
    async with run_worker(client, WORKFLOWS) as queue:
        handle = await create(client, Schedule(action=starts(Wait, queue), spec=ScheduleSpec()))
        await handle.trigger()
        described = await when(handle, lambda d: d.info.num_actions == 1)
        first = described.info.running_actions[0].workflow_id
        await asyncio.sleep(1.1)  # the next workflow id is another one
        await handle.trigger(overlap=policy)
        described = await when(handle, lambda d: d.info.num_actions == 2)
        assert (await client.get_workflow_handle(first).describe()).status == status
        await finish(client, described.info.running_actions[0].workflow_id)
        await handle.delete()


async def test_allow_all(client: Client) -> None:
    async with run_worker(client, WORKFLOWS) as queue:
        policy = SchedulePolicy(overlap=ScheduleOverlapPolicy.ALLOW_ALL)
        handle = await create(client, Schedule(action=starts(Wait, queue), spec=every(SECOND), policy=policy))
        described = await when(handle, lambda d: d.info.num_actions >= 3)
        await handle.delete()
        for action in described.info.recent_actions:
            await finish(client, action.action.workflow_id)  # type: ignore


async def test_pause_on_failure(client: Client) -> None:
    async with run_worker(client, WORKFLOWS) as queue:
        policy = SchedulePolicy(pause_on_failure=True)
        handle = await create(client, Schedule(action=starts(Fail, queue), spec=every(SECOND), policy=policy))
        described = await when(handle, lambda d: d.schedule.state.paused)
        assert (described.schedule.state.note or "").startswith("paused due to workflow failure:")
        assert described.info.num_actions == 1
        await handle.delete()


async def test_update(client: Client) -> None:
    async with run_worker(client, WORKFLOWS) as queue:
        handle = await create(client, Schedule(action=starts(Count, queue), spec=ScheduleSpec()))
        assert (await handle.describe()).info.next_action_times == []
        token = (await handle.describe()).raw_description.conflict_token

        def hasten(update: ScheduleUpdateInput) -> ScheduleUpdate:
            schedule = update.description.schedule
            schedule.spec = every(SECOND)
            schedule.state.limited_actions = True
            schedule.state.remaining_actions = 2
            return ScheduleUpdate(schedule=schedule)

        await handle.update(hasten)
        described = await when(handle, lambda d: d.info.num_actions == 2)
        assert described.info.last_updated_at is not None
        assert described.raw_description.conflict_token != token
        described = await when(handle, lambda d: d.schedule.state.remaining_actions == 0)
        assert described.info.next_action_times == []
        await handle.delete()


async def test_listed(client: Client) -> None:
    handles = [
        await create(
            client,
            Schedule(
                action=starts(Count, "nowhere"), spec=every(timedelta(days=1)), state=ScheduleState(paused=n == 0)
            ),
            memo={"number": n},
        )
        for n in range(3)
    ]
    ids = {handle.id for handle in handles}

    async def listed(query: str | None = None) -> dict[str, object]:
        return {entry.id: entry async for entry in await client.list_schedules(query) if entry.id in ids}

    async def all_are_listed() -> dict[str, object]:
        found = await listed()
        assert found.keys() == ids
        return found

    found = await eventually(all_are_listed)
    entry = found[handles[0].id]
    assert await entry.memo() == {"number": 0}  # type: ignore
    assert entry.schedule.state.paused and entry.schedule.action.workflow == "Count"  # type: ignore
    assert len(entry.info.next_action_times) == 5  # type: ignore

    async def paused_is_found() -> bool:
        return (await listed("TemporalSchedulePaused = true")).keys() == {handles[0].id}

    assert await eventually(paused_is_found)
    await handles[0].unpause()
    await handles[1].pause()

    async def another_is_paused() -> bool:
        return (await listed("TemporalSchedulePaused = true")).keys() == {handles[1].id}

    assert await eventually(another_is_paused)
    for handle in handles:
        await handle.delete()

    async def none_is_listed() -> bool:
        return not await listed()

    assert await eventually(none_is_listed)


@pytest.mark.kills_server
async def test_no_action_is_lost_when_the_server_dies(new_server: NewServer) -> None:
    server = await new_server()
    client = await Client.connect(server.address)
    async with run_worker(client, WORKFLOWS) as queue:
        policy = SchedulePolicy(overlap=ScheduleOverlapPolicy.BUFFER_ALL)
        handle = await create(client, Schedule(action=starts(Count, queue), spec=every(SECOND), policy=policy))
        started = datetime.now(UTC)
        for _ in range(3):
            count = (await handle.describe()).info.num_actions
            await when(handle, lambda d: d.info.num_actions >= count + 2)
            server.kill()
            await asyncio.sleep(1.5)
            await server.start()

        def has_caught_up(description: ScheduleDescription) -> bool:
            """What waits when the schedule is paused is never done."""
            return description.info.num_actions >= (datetime.now(UTC) - started).total_seconds() - 2

        await when(handle, has_caught_up)
        await handle.pause()
        ended = datetime.now(UTC)
        described = await when(handle, lambda d: not d.info.running_actions and d.raw_description.info.buffer_size == 0)
        # One each second, also of those in which no server was there.
        lasted = (ended - started).total_seconds()
        assert lasted - 2 <= described.info.num_actions <= lasted + 2
        assert described.info.num_actions_missed_catchup_window == 0
        # Each took over from the one before, and none was done twice.
        last = described.info.recent_actions[-1].action.workflow_id  # type: ignore
        assert await client.get_workflow_handle(last).result() == described.info.num_actions


@pytest.mark.kills_server
async def test_a_schedule_that_nobody_asks_for_acts_after_a_restart(new_server: NewServer) -> None:
    server = await new_server()
    client = await Client.connect(server.address)
    async with run_worker(client, WORKFLOWS) as queue:
        await create(client, Schedule(action=starts(Note, queue), spec=every(2 * SECOND)))

        async def has_run() -> bool:
            return RUNS.get(queue, 0) > 0

        assert await eventually(has_run)
        server.stop()
        RUNS.clear()
        await server.start()
        assert await eventually(has_run)
