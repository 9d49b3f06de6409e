"""Continue-as-new: chains, what is inherited, and when the server suggests it."""

from __future__ import annotations

from datetime import timedelta

import pytest
from temporalio import workflow
from temporalio.api.enums.v1 import ContinueAsNewInitiator
from temporalio.client import Client, WorkflowContinuedAsNewError, WorkflowExecutionStatus
from temporalio.service import RPCError, RPCStatusCode

from conftest import NewServer
from support import SOON, WORKFLOW_TASK, attributes_of, event_types, events_of, eventually, new_id, run_worker


@workflow.defn
class Countdown:
    @workflow.run
    async def run(self, left: int) -> str:
        if left > 0:
            workflow.continue_as_new(left - 1)
        return f"run {workflow.info().run_id}"


@workflow.defn
class Accumulates:
    """Hands over what it heard to the next run after every three signals."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    @workflow.run
    async def run(self, before: list[str]) -> list[str]:
        await workflow.wait_condition(lambda: len(self.heard) >= 3 or "end" in self.heard)
        await workflow.wait_condition(workflow.all_handlers_finished)
        if "end" in self.heard:
            return before + self.heard
        workflow.continue_as_new(before + self.heard)

    @workflow.signal
    def hear(self, text: str) -> None:
        self.heard.append(text)


@workflow.defn
class UntilSuggested:
    def __init__(self) -> None:
        self.knocks = 0

    @workflow.run
    async def run(self, run: int) -> list[int]:
        await workflow.wait_condition(lambda: workflow.info().is_continue_as_new_suggested())
        length = workflow.info().get_current_history_length()
        if run < 2:
            workflow.continue_as_new(run + 1)
        return [run, length]

    @workflow.signal
    def knock(self) -> None:
        self.knocks += 1


async def test_chain(client: Client) -> None:
    async with run_worker(client, [Countdown]) as task_queue:
        handle = await client.start_workflow(
            Countdown.run, 5, id=new_id(), task_queue=task_queue, memo={"colour": "red"}, execution_timeout=SOON
        )
        first_run = handle.result_run_id
        assert first_run is not None
        result = await handle.result()

        last = await client.get_workflow_handle(handle.id).describe()
        assert result == f"run {last.run_id}"
        assert last.run_id != first_run
        assert await last.memo() == {"colour": "red"}

        run_id, runs = first_run, []
        while run_id:
            runs.append(run_id)
            run = client.get_workflow_handle(handle.id, run_id=run_id)
            events = await events_of(run)
            started = attributes_of(events[0])
            assert started.first_execution_run_id == first_run
            assert started.original_execution_run_id == runs[-1]
            assert started.continued_execution_run_id == (runs[-2] if len(runs) > 1 else "")
            if len(runs) > 1:
                assert started.initiator == ContinueAsNewInitiator.CONTINUE_AS_NEW_INITIATOR_WORKFLOW
            closing = attributes_of(events[-1])
            run_id = closing.new_execution_run_id
        assert len(runs) == 6
        assert runs[-1] == last.run_id
        assert await event_types(client.get_workflow_handle(handle.id, run_id=first_run)) == [
            "WorkflowExecutionStarted", *WORKFLOW_TASK, "WorkflowExecutionContinuedAsNew",
        ]  # fmt: skip


async def test_result_with_and_without_following_the_chain(client: Client) -> None:
    async with run_worker(client, [Countdown]) as task_queue:
        handle = await client.start_workflow(
            Countdown.run, 2, id=new_id(), task_queue=task_queue, execution_timeout=SOON
        )
        assert (await handle.result()).startswith("run ")
        first = client.get_workflow_handle(handle.id, run_id=handle.result_run_id)
        with pytest.raises(WorkflowContinuedAsNewError) as error:
            await first.result(follow_runs=False)
        assert error.value.new_execution_run_id
        assert (await first.describe()).status == WorkflowExecutionStatus.CONTINUED_AS_NEW


async def test_no_signal_is_lost_between_runs(client: Client) -> None:
    async with run_worker(client, [Accumulates]) as task_queue:
        handle = await client.start_workflow(
            Accumulates.run, [], id=new_id(), task_queue=task_queue, execution_timeout=SOON
        )
        current = client.get_workflow_handle_for(Accumulates.run, handle.id)
        texts = [f"{i}" for i in range(40)]
        for text in texts:
            await current.signal(Accumulates.hear, text)
        await current.signal(Accumulates.hear, "end")
        assert await handle.result() == [*texts, "end"]


async def test_timeouts_are_inherited(client: Client) -> None:
    async with run_worker(client, [Countdown]) as task_queue:
        handle = await client.start_workflow(
            Countdown.run,
            1,
            id=new_id(),
            task_queue=task_queue,
            execution_timeout=timedelta(seconds=60),
            run_timeout=timedelta(seconds=40),
            task_timeout=timedelta(seconds=7),
        )
        await handle.result()
    first = attributes_of((await events_of(client.get_workflow_handle(handle.id, run_id=handle.result_run_id)))[0])
    second = attributes_of((await events_of(client.get_workflow_handle(handle.id)))[0])
    for started in (first, second):
        assert started.workflow_execution_timeout.seconds == 60
        assert started.workflow_run_timeout.seconds == 40
        assert started.workflow_task_timeout.seconds == 7
    assert first.workflow_execution_expiration_time == second.workflow_execution_expiration_time


async def test_suggested_by_history_length(new_server: NewServer) -> None:
    server = await new_server("--dynamic-config-value", "limit.historyCount.suggestContinueAsNew=50")
    client = await Client.connect(server.address)
    async with run_worker(client, [UntilSuggested]) as task_queue:
        handle = await client.start_workflow(UntilSuggested.run, 0, id=new_id(), task_queue=task_queue)
        current = client.get_workflow_handle_for(UntilSuggested.run, handle.id)

        async def knock_until_done() -> bool:
            description = await current.describe()
            if description.status == WorkflowExecutionStatus.COMPLETED:
                return True
            try:
                await current.signal(UntilSuggested.knock)
            except RPCError as error:  # it has completed since
                assert error.status == RPCStatusCode.NOT_FOUND
            return False

        await eventually(knock_until_done)
        run, length = await handle.result()
        assert run == 2
        assert 49 <= length <= 60
        for event in await events_of(client.get_workflow_handle(handle.id, run_id=handle.result_run_id)):
            if event.HasField("workflow_task_started_event_attributes"):
                started = event.workflow_task_started_event_attributes
                assert started.history_size_bytes > 0
                assert started.suggest_continue_as_new == (event.event_id >= 50), event
    server.stop()
