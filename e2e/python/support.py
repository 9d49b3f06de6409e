"""Small helpers that most tests use."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from google.protobuf.message import Message
from temporalio.api.common.v1 import Payload, Payloads, WorkflowExecution, WorkflowType
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import StartWorkflowExecutionRequest
from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

T = TypeVar("T")
M = TypeVar("M", bound=Message)

SOON = timedelta(seconds=30)
"""A timeout that should never be reached."""


def new_id(name: str = "test") -> str:
    return f"{name}-{uuid.uuid4().hex[:10]}"


@asynccontextmanager
async def run_worker(
    client: Client,
    workflows: Sequence[type] = (),
    activities: Sequence[Callable[..., Any]] = (),
    task_queue: str | None = None,
    **options: Any,
) -> AsyncIterator[str]:
    """Run a worker while the block runs; gives the name of its task queue, a new one unless told."""
    queue = task_queue or new_id("queue")
    options.setdefault("workflow_runner", UnsandboxedWorkflowRunner())
    async with Worker(client, task_queue=queue, workflows=workflows, activities=activities, **options):
        yield queue


async def eventually(check: Callable[[], Awaitable[T]], seconds: float = 30) -> T:
    """Repeat the check until it gives something true, and return that. Assertion errors count as "not yet"."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        late = asyncio.get_running_loop().time() > deadline
        try:
            if result := await check():
                return result
        except AssertionError:
            if late:
                raise
        assert not late, f"{check.__qualname__} did not come true in {seconds} s"
        await asyncio.sleep(0.03)


# Histories


def type_of(event: HistoryEvent) -> str:
    """EVENT_TYPE_TIMER_STARTED is TimerStarted here."""
    return "".join(part.capitalize() for part in EventType.Name(event.event_type).split("_")[2:])


def types_of(events: Sequence[HistoryEvent]) -> list[str]:
    return [type_of(event) for event in events]


async def events_of(handle: WorkflowHandle[Any, Any]) -> list[HistoryEvent]:
    """The whole history of the run; its ids are checked to be contiguous from 1."""
    events = [event async for event in handle.fetch_history_events()]
    assert [event.event_id for event in events] == list(range(1, len(events) + 1))
    return events


async def event_types(handle: WorkflowHandle[Any, Any]) -> list[str]:
    return types_of(await events_of(handle))


def only(events: Sequence[HistoryEvent], name: str) -> HistoryEvent:
    """The one event of this type."""
    found = [event for event in events if type_of(event) == name]
    assert len(found) == 1, f"{len(found)} events {name} in {types_of(events)}"
    return found[0]


def attributes_of(event: HistoryEvent) -> Any:
    name = event.WhichOneof("attributes")
    assert name is not None
    return getattr(event, name)


WORKFLOW_TASK = ["WorkflowTaskScheduled", "WorkflowTaskStarted", "WorkflowTaskCompleted"]
ACTIVITY = ["ActivityTaskScheduled", "ActivityTaskStarted", "ActivityTaskCompleted"]


# Errors


class Caught:
    error: RPCError

    def detail(self, kind: type[M]) -> M:
        """The detail message of this type in grpc-status-details-bin."""
        for detail in self.error.grpc_status.details:
            message = kind()
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
                return message
        present = [detail.type_url for detail in self.error.grpc_status.details]
        raise AssertionError(f"no detail {kind.DESCRIPTOR.full_name} in {present}")

    def detail_names(self) -> list[str]:
        return [detail.type_url.rpartition(".")[2] for detail in self.error.grpc_status.details]


@contextmanager
def rpc_error(status: RPCStatusCode, *parts: str) -> Iterator[Caught]:
    """The block must end with this gRPC status; each of the parts must be in the message, whatever its case."""
    caught = Caught()
    try:
        yield caught
    except RPCError as error:
        caught.error = error
        assert error.status == status, f"{error.status!r}: {error.message}"
        for part in parts:
            assert part.lower() in error.message.lower(), error.message
    else:
        raise AssertionError(f"expected {status.name}, but the call succeeded")


# Raw requests


def start_request(workflow_id: str, task_queue: str, workflow: str = "AnyWorkflow", **fields: Any) -> Any:
    """A complete StartWorkflowExecutionRequest; fields replace or add to the usual ones."""
    usual: dict[str, Any] = {
        "namespace": "default",
        "workflow_id": workflow_id,
        "workflow_type": WorkflowType(name=workflow),
        "task_queue": TaskQueue(name=task_queue),
        "identity": "raw-client",
        "request_id": str(uuid.uuid4()),
    }
    return StartWorkflowExecutionRequest(**(usual | fields))


def execution(handle: WorkflowHandle[Any, Any]) -> WorkflowExecution:
    return WorkflowExecution(workflow_id=handle.id, run_id=handle.run_id or "")


def payloads(*texts: str) -> Payloads:
    return Payloads(
        payloads=[Payload(metadata={"encoding": b"json/plain"}, data=f'"{text}"'.encode()) for text in texts]
    )
