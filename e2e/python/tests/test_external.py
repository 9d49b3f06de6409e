"""Signals and cancellations that one workflow sends to another that is not its child."""

from __future__ import annotations

from temporalio import workflow
from temporalio.api.enums.v1 import (
    CancelExternalWorkflowExecutionFailedCause,
    SignalExternalWorkflowExecutionFailedCause,
)
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.exceptions import ApplicationError

from support import SOON, WORKFLOW_TASK, attributes_of, event_types, events_of, eventually, new_id, only, run_worker


@workflow.defn
class Target:
    def __init__(self) -> None:
        self.heard: list[str] = []

    @workflow.run
    async def run(self) -> list[str]:
        await workflow.wait_condition(lambda: "end" in self.heard)
        return self.heard

    @workflow.signal
    def hear(self, text: str) -> None:
        self.heard.append(text)


@workflow.defn
class Signaler:
    @workflow.run
    async def run(self, target: str) -> str:
        handle = workflow.get_external_workflow_handle_for(Target.run, target)
        try:
            await handle.signal(Target.hear, "end")
        except ApplicationError as error:
            return f"failed: {error.type}"
        return "signalled"


@workflow.defn
class Canceller:
    @workflow.run
    async def run(self, target: str) -> str:
        try:
            await workflow.get_external_workflow_handle(target).cancel()
        except ApplicationError as error:
            return f"failed: {error.type}"
        return "cancelled"


WORKFLOWS = [Target, Signaler, Canceller]


async def test_external_signal(client: Client) -> None:
    async with run_worker(client, WORKFLOWS) as task_queue:
        target = await client.start_workflow(Target.run, id=new_id(), task_queue=task_queue, execution_timeout=SOON)
        sender = await client.start_workflow(
            Signaler.run, target.id, id=new_id(), task_queue=task_queue, execution_timeout=SOON
        )
        assert await sender.result() == "signalled"
        assert await target.result() == ["end"]
    assert await event_types(sender) == [
        "WorkflowExecutionStarted", *WORKFLOW_TASK,
        "SignalExternalWorkflowExecutionInitiated", "ExternalWorkflowExecutionSignaled",
        *WORKFLOW_TASK, "WorkflowExecutionCompleted",
    ]  # fmt: skip
    signaled = attributes_of(only(await events_of(target), "WorkflowExecutionSignaled"))
    assert signaled.signal_name == "hear"
    assert signaled.external_workflow_execution.workflow_id == sender.id
    assert signaled.external_workflow_execution.run_id == sender.result_run_id


async def test_external_cancel(client: Client) -> None:
    async with run_worker(client, WORKFLOWS) as task_queue:
        target = await client.start_workflow(Target.run, id=new_id(), task_queue=task_queue, execution_timeout=SOON)
        sender = await client.start_workflow(
            Canceller.run, target.id, id=new_id(), task_queue=task_queue, execution_timeout=SOON
        )
        assert await sender.result() == "cancelled"

        async def is_cancelled() -> bool:
            return (await target.describe()).status == WorkflowExecutionStatus.CANCELED

        await eventually(is_cancelled)
    assert await event_types(sender) == [
        "WorkflowExecutionStarted", *WORKFLOW_TASK,
        "RequestCancelExternalWorkflowExecutionInitiated", "ExternalWorkflowExecutionCancelRequested",
        *WORKFLOW_TASK, "WorkflowExecutionCompleted",
    ]  # fmt: skip
    requested = attributes_of(only(await events_of(target), "WorkflowExecutionCancelRequested"))
    assert requested.external_workflow_execution.workflow_id == sender.id


async def test_targets_that_do_not_exist_or_are_closed(client: Client) -> None:
    async with run_worker(client, WORKFLOWS) as task_queue:
        closed = await client.start_workflow(Target.run, id=new_id(), task_queue=task_queue)
        await closed.terminate()
        for target in (new_id("nobody"), closed.id):
            sender = await client.start_workflow(
                Signaler.run, target, id=new_id(), task_queue=task_queue, execution_timeout=SOON
            )
            assert (await sender.result()).startswith("failed")
            failed = attributes_of(only(await events_of(sender), "SignalExternalWorkflowExecutionFailed"))
            assert failed.cause == (
                SignalExternalWorkflowExecutionFailedCause
                .SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED_CAUSE_EXTERNAL_WORKFLOW_EXECUTION_NOT_FOUND
            )  # fmt: skip
            assert failed.initiated_event_id == 5
            assert failed.workflow_execution.workflow_id == target

        sender = await client.start_workflow(
            Canceller.run, new_id("nobody"), id=new_id(), task_queue=task_queue, execution_timeout=SOON
        )
        assert (await sender.result()).startswith("failed")
        failed = attributes_of(only(await events_of(sender), "RequestCancelExternalWorkflowExecutionFailed"))
        assert failed.cause == (
            CancelExternalWorkflowExecutionFailedCause
            .CANCEL_EXTERNAL_WORKFLOW_EXECUTION_FAILED_CAUSE_EXTERNAL_WORKFLOW_EXECUTION_NOT_FOUND
        )  # fmt: skip

        # Cancelling what is closed already is no error.
        sender = await client.start_workflow(
            Canceller.run, closed.id, id=new_id(), task_queue=task_queue, execution_timeout=SOON
        )
        assert await sender.result() == "cancelled"
