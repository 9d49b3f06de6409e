"""Updates that take long, cross a continue-as-new or a start delay, or meet a server that dies."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from time import monotonic
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message as ProtoMessage
from temporalio import workflow
from temporalio.api.command.v1 import (
    Command,
    ContinueAsNewWorkflowExecutionCommandAttributes,
    ProtocolMessageCommandAttributes,
)
from temporalio.api.common.v1 import WorkflowType
from temporalio.api.enums.v1 import CommandType
from temporalio.api.enums.v1 import UpdateWorkflowExecutionLifecycleStage as Stage
from temporalio.api.protocol.v1 import Message
from temporalio.api.update.v1 import Acceptance, Input, Meta, Outcome, Request, Response, UpdateRef, WaitPolicy
from temporalio.api.workflowservice.v1 import (
    PollWorkflowExecutionUpdateRequest,
    PollWorkflowTaskQueueResponse,
    UpdateWorkflowExecutionRequest,
)
from temporalio.client import Client, WorkflowUpdateStage

from conftest import NewServer
from raw import RawWorker, complete_workflow, duration
from support import SOON, event_types, eventually, execution, new_id, payloads, run_worker

COMPLETED = Stage.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_COMPLETED
ACCEPTED = Stage.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_ACCEPTED
WAIT = WaitPolicy(lifecycle_stage=COMPLETED)


@workflow.defn
class Patient:
    def __init__(self) -> None:
        self.is_open = False

    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: self.is_open and workflow.all_handlers_finished())

    @workflow.update
    async def wait(self, text: str) -> str:
        await workflow.wait_condition(lambda: self.is_open)
        return text

    @workflow.update
    def at_once(self) -> str:
        return "done"

    @workflow.signal
    def open(self) -> None:
        self.is_open = True


def answers(
    task: PollWorkflowTaskQueueResponse, *, accept: bool, complete: bool
) -> tuple[list[Command], list[Message]]:
    """What a worker says about the updates that came with the task."""
    commands: list[Command] = []
    messages: list[Message] = []

    def say(update_id: str, what: str, content: ProtoMessage) -> None:
        body = AnyMessage()
        body.Pack(content)
        messages.append(Message(id=f"{update_id}/{what}", protocol_instance_id=update_id, body=body))
        attributes = ProtocolMessageCommandAttributes(message_id=f"{update_id}/{what}")
        kind = CommandType.COMMAND_TYPE_PROTOCOL_MESSAGE
        commands.append(Command(command_type=kind, protocol_message_command_attributes=attributes))

    for message in task.messages:
        request = Request()
        message.body.Unpack(request)
        update_id = message.protocol_instance_id
        if accept:
            acceptance = Acceptance(
                accepted_request_message_id=message.id,
                accepted_request_sequencing_event_id=message.event_id,
                accepted_request=request,
            )
            say(update_id, "accept", acceptance)
        if complete:
            outcome = Outcome(success=payloads("done"))
            say(update_id, "complete", Response(meta=Meta(update_id=update_id), outcome=outcome))
    return commands, messages


async def respond(
    raw: RawWorker, task: PollWorkflowTaskQueueResponse, more: Sequence[Command] = (), complete: bool = True
) -> None:
    commands, messages = answers(task, accept=True, complete=complete)
    await raw.complete(task, *commands, *more, messages=messages)


async def waiting(raw: RawWorker, **fields: Any):
    """A run whose first task is done."""
    handle = await raw.start(**fields)
    await raw.complete(await raw.poll_workflow())
    return handle


async def test_the_server_ends_a_long_wait_with_the_stage_reached(new_server: NewServer) -> None:
    server = await new_server("--dynamic-config-value", 'history.longPollExpirationInterval="1s"')
    client = await Client.connect(server.address)
    async with run_worker(client, [Patient]) as task_queue:
        handle = await client.start_workflow(Patient.run, id=new_id(), task_queue=task_queue, execution_timeout=SOON)
        result = asyncio.create_task(handle.execute_update(Patient.wait, "patience", id="long"))
        await handle.start_update(Patient.wait, "patience", id="long", wait_for_stage=WorkflowUpdateStage.ACCEPTED)
        began = monotonic()
        response = await client.workflow_service.update_workflow_execution(
            UpdateWorkflowExecutionRequest(
                namespace="default",
                workflow_execution=execution(handle),
                wait_policy=WAIT,
                request=Request(meta=Meta(update_id="long"), input=Input(name="wait")),
            ),
            timeout=SOON,
        )
        assert response.stage == ACCEPTED
        assert not response.HasField("outcome")
        response = await client.workflow_service.poll_workflow_execution_update(
            PollWorkflowExecutionUpdateRequest(
                namespace="default",
                update_ref=UpdateRef(workflow_execution=execution(handle), update_id="long"),
                wait_policy=WAIT,
            ),
            timeout=SOON,
        )
        assert response.stage == ACCEPTED
        assert not response.HasField("outcome")
        assert 1.5 < monotonic() - began < 10
        assert not result.done()
        await handle.signal(Patient.open)
        assert await result == "patience"
        await handle.result()
    server.stop()


async def test_an_update_does_not_wait_for_a_start_delay(client: Client) -> None:
    async with run_worker(client, [Patient]) as task_queue:
        handle = await client.start_workflow(
            Patient.run, id=new_id(), task_queue=task_queue, start_delay=timedelta(hours=1)
        )
        assert await asyncio.wait_for(handle.execute_update(Patient.at_once), 20) == "done"
        await handle.terminate()


async def test_an_update_goes_on_to_the_next_run(client: Client) -> None:
    """The worker continues as new with an update in its hands: SDKs ask again, and the next run takes it."""
    raw = RawWorker(client)
    handle = await waiting(raw)
    any_run = client.get_workflow_handle(handle.id)
    update = asyncio.create_task(any_run.execute_update("any", id="moving", result_type=str))
    task = await raw.poll_workflow()
    assert len(task.messages) == 1
    attributes = ContinueAsNewWorkflowExecutionCommandAttributes(workflow_type=WorkflowType(name="AnyWorkflow"))
    kind = CommandType.COMMAND_TYPE_CONTINUE_AS_NEW_WORKFLOW_EXECUTION
    await raw.complete(
        task, Command(command_type=kind, continue_as_new_workflow_execution_command_attributes=attributes)
    )

    async def delivered() -> bool:
        task = await raw.poll_workflow()
        await respond(raw, task)
        return len(task.messages) == 1

    await eventually(delivered)
    assert await update == "done"
    assert "WorkflowExecutionUpdateAccepted" not in await event_types(handle)
    assert (await any_run.describe()).run_id != handle.run_id
    await any_run.terminate()


async def test_an_accepted_update_outlives_its_worker(client: Client) -> None:
    raw = RawWorker(client)
    handle = await waiting(raw, workflow_task_timeout=duration(1))
    update = await asyncio.gather(
        handle.start_update("any", id="kept", result_type=str, wait_for_stage=WorkflowUpdateStage.ACCEPTED),
        accept_next(raw),
    )
    await handle.signal("wake")
    lost = await raw.poll_workflow()
    # Whoever holds that task never answers: it times out, and another worker completes the update.
    task = await raw.poll_workflow()
    assert task.task_token != lost.task_token
    body = AnyMessage()
    body.Pack(Response(meta=Meta(update_id="kept"), outcome=Outcome(success=payloads("late"))))
    message = Message(id="kept/complete", protocol_instance_id="kept", body=body)
    attributes = ProtocolMessageCommandAttributes(message_id=message.id)
    kind = CommandType.COMMAND_TYPE_PROTOCOL_MESSAGE
    command = Command(command_type=kind, protocol_message_command_attributes=attributes)
    await raw.complete(task, command, complete_workflow(), messages=[message])
    assert await update[0].result() == "late"


async def accept_next(raw: RawWorker) -> None:
    await respond(raw, await raw.poll_workflow(), complete=False)


@pytest.mark.kills_server
async def test_a_task_with_an_update_survives_the_server(new_server: NewServer) -> None:
    """A signal makes the task that brought the update durable. The server dies; the worker's answer counts."""
    server = await new_server()
    client = await Client.connect(server.address)
    raw = RawWorker(client)
    handle = await waiting(raw, workflow_task_timeout=duration(60))
    update = asyncio.create_task(handle.start_update("any", id="kept", wait_for_stage=WorkflowUpdateStage.ACCEPTED))
    task = await raw.poll_workflow()
    await handle.signal("wake")
    await server.restart()
    client = await Client.connect(server.address)
    raw = RawWorker(client, raw.task_queue)
    await respond(raw, task)
    # The SDK has sent the update again: it is the same one.
    assert (await update).id == "kept"
    handle = client.get_workflow_handle(handle.id, run_id=handle.run_id)
    assert await handle.get_update_handle("kept", result_type=str).result() == "done"
    assert (await event_types(handle))[4:] == [
        "WorkflowTaskScheduled", "WorkflowTaskStarted", "WorkflowTaskCompleted",
        "WorkflowExecutionUpdateAccepted", "WorkflowExecutionUpdateCompleted",
        "WorkflowExecutionSignaled", "WorkflowTaskScheduled",
    ]  # fmt: skip
    server.stop()
