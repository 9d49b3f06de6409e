"""Kill the worker, kill the server, and watch the order finish with nothing done twice.

    python demo.py --address 127.0.0.1:7233 --workdir DIR --server-cmd "perdure dev --port 7233 --db-filename DIR/data"

The server command must keep its data between runs; this script starts, kills (-9) and restarts it.
Exit code 0 means: every effect happened exactly once and the history has no gap.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client, WorkflowHandle
from temporalio.service import RPCError

from ledger import Ledger
from models import LineItem, Order, Receipt
from worker import TASK_QUEUE
from workflows import OrderWorkflow

HERE = Path(__file__).parent
ITEMS = [LineItem("keyboard", 1), LineItem("mouse", 2), LineItem("screen", 1)]
KILL_WORKER_AT_STEP = 3
STARTED_AT = time.monotonic()


class DemoFailed(Exception):
    pass


def say(text: str) -> None:
    print(f"[{time.monotonic() - STARTED_AT:5.1f}s] {text}", flush=True)


class Process:
    """A child process in its own process group, with its output in a log file."""

    def __init__(self, name: str, command: list[str], log: Path) -> None:
        self.name, self._command, self._log = name, command, log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def stop(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        try:
            os.killpg(self._process.pid, how)
        except ProcessLookupError:
            pass
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    def check(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])
            raise DemoFailed(f"the {self.name} ended with code {self._process.returncode}:\n{tail}")


async def until(what: str, condition: Callable[[], Awaitable[bool]], *alive: Process, seconds: float = 30) -> None:
    """Poll a condition; fail clearly if it does not come true or if a process that it needs has died."""
    deadline = time.monotonic() + seconds
    while not await condition():
        for process in alive:
            process.check()
        if time.monotonic() > deadline:
            raise DemoFailed(f"gave up after {seconds:.0f} s waiting until {what}")
        await asyncio.sleep(0.05)


async def connect(address: str, server: Process) -> Client:
    """Wait until the server serves its default namespace, and return a client."""
    client = await Client.connect(address, lazy=True)

    async def serving() -> bool:
        try:
            await client.workflow_service.describe_namespace(
                DescribeNamespaceRequest(namespace=client.namespace), timeout=timedelta(seconds=1)
            )
            return True
        except (RPCError, RuntimeError):
            return False

    await until("the server answers", serving, server)
    return client


async def provisioning_progress(handle: WorkflowHandle) -> tuple[int, int]:
    """The attempt and the last heartbeat of provision_resource, as the server knows them: (0, 0) if not running."""
    description = await handle.describe()
    for pending in description.raw_description.pending_activities:
        if pending.activity_type.name == "provision_resource":
            details = pending.heartbeat_details.payloads
            return pending.attempt, int(details[0].data) if details else 0
    return 0, 0


async def play(address: str, server: Process, worker: Process) -> WorkflowHandle:
    order = Order(f"order-{uuid.uuid4().hex[:6]}", "Ada Lovelace", 129_900, ITEMS)

    say("starting the server and a worker")
    server.start()
    client = await connect(address, server)
    worker.start()

    handle: WorkflowHandle = await client.start_workflow(
        OrderWorkflow.run, order, id=order.order_id, task_queue=TASK_QUEUE, execution_timeout=timedelta(minutes=5)
    )
    say(f"started workflow {handle.id}: a durable timer is running, the customer is being charged")

    async def half_provisioned() -> bool:
        return (await provisioning_progress(handle))[1] >= KILL_WORKER_AT_STEP

    await until("provision_resource is half-way", half_provisioned, server, worker)
    say("provision_resource is half-way: kill -9 the WORKER")
    worker.stop(signal.SIGKILL)

    say("kill -9 the SERVER")
    server.stop(signal.SIGKILL)
    await asyncio.sleep(1)
    say("nothing is running now; starting the server again on the same data")
    server.start()
    client = await connect(address, server)
    handle = client.get_workflow_handle(order.order_id)
    attempt, step = await provisioning_progress(handle)
    say(f"the server remembers: provision_resource is at attempt {attempt}, last heartbeat at step {step}")

    say("starting a new worker")
    worker.start()

    async def waits_for_approval() -> bool:
        try:
            stage = await handle.query(OrderWorkflow.stage, rpc_timeout=timedelta(seconds=2))
        except RPCError:
            return False
        return stage == "waiting for approval"

    await until("the order waits for approval", waits_for_approval, server, worker)
    say("provisioning went on from its last heartbeat; the order waits for a human: sending the approval")
    await handle.signal(OrderWorkflow.approve, "Grace Hopper")

    say("waiting for the timer, the shipments (child workflows) and the flaky billing system")
    receipt = await client.get_workflow_handle_for(OrderWorkflow.run, order.order_id).result()
    assert isinstance(receipt, Receipt)
    say(f"done: approved by {receipt.approved_by}, shipped {', '.join(receipt.shipments)}")
    return handle


def detail(event: HistoryEvent) -> str:
    """The one thing worth knowing about an event."""
    name = event.WhichOneof("attributes")
    attributes = getattr(event, name) if name else None
    match event.event_type:
        case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED:
            return f"{attributes.workflow_type.name}"
        case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED:
            return f"{attributes.signal_name}"
        case EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
            return f"{attributes.activity_type.name}"
        case EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED:
            retried = f", after: {attributes.last_failure.message}" if attributes.attempt > 1 else ""
            return f"attempt {attributes.attempt}{retried}"
        case EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
            return f"of event {attributes.scheduled_event_id}"
        case EventType.EVENT_TYPE_TIMER_STARTED:
            return f"{attributes.start_to_fire_timeout.ToTimedelta().total_seconds():g} s"
        case EventType.EVENT_TYPE_TIMER_FIRED:
            return f"of event {attributes.started_event_id}"
        case EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED:
            return attributes.workflow_id
        case (
            EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_STARTED
            | EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED
        ):
            return attributes.workflow_execution.workflow_id
        case EventType.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT | EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED:
            return "its worker was gone"
    return ""


def print_timeline(events: list[HistoryEvent]) -> None:
    print("\nEvent history")
    start = events[0].event_time.ToDatetime()
    for event in events:
        seconds = (event.event_time.ToDatetime() - start).total_seconds()
        title = "".join(part.capitalize() for part in EventType.Name(event.event_type).split("_")[2:])
        print(f"  {event.event_id:>3}  {seconds:+8.3f}s  {title:<38} {detail(event)}".rstrip())


def print_ledger(attempts: Counter[str], effects: Counter[str]) -> None:
    print("\nEffects")
    for key, count in effects.items():
        tried = attempts[key]
        print(f"  {key:<44} happened {count}x in {tried} attempt{'s' if tried > 1 else ''}")


def problems(order_id: str, events: list[HistoryEvent], attempts: Counter[str], effects: Counter[str]) -> list[str]:
    found = []
    if [event.event_id for event in events] != list(range(1, len(events) + 1)):
        found.append("the history's event ids are not contiguous")
    if events[-1].event_type != EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED:
        found.append("the history does not end with the workflow's completion")
    expected = {
        f"{order_id}/{step}" for step in ("charge_payment", "provision_resource", "update_billing", "send_email")
    }
    expected |= {f"{order_id}/{item.sku}/ship_item" for item in ITEMS}
    found += [f"effect {key} is missing" for key in sorted(expected - set(effects))]
    found += [f"effect {key} was not expected" for key in sorted(set(effects) - expected)]
    found += [f"effect {key} happened {count} times" for key, count in effects.items() if count > 1]
    if attempts[f"{order_id}/provision_resource"] < 2:
        found.append("provision_resource was not interrupted, so the demo showed nothing")
    return found


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--address", default="127.0.0.1:7233", help="where the server listens")
    parser.add_argument("--workdir", type=Path, required=True, help="for the effects ledger and the log files")
    parser.add_argument("--server-cmd", required=True, help="the command that runs the server")
    options = parser.parse_args()

    workdir: Path = options.workdir.resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    effects_path = workdir / f"effects-{uuid.uuid4().hex[:6]}.db"
    ledger = Ledger(effects_path)
    worker_command = [
        sys.executable,
        str(HERE / "worker.py"),
        "--address",
        options.address,
        "--ledger",
        str(effects_path),
    ]
    server = Process("server", shlex.split(options.server_cmd), workdir / "server.log")
    worker = Process("worker", worker_command, workdir / "worker.log")

    try:
        handle = await play(options.address, server, worker)
        events = [event async for event in handle.fetch_history_events()]
        attempts, effects = ledger.attempts(), ledger.effects()
        print_timeline(events)
        print_ledger(attempts, effects)
        found = problems(handle.id, events, attempts, effects)
    except DemoFailed as failure:
        found = [str(failure)]
    finally:
        worker.stop(signal.SIGTERM)
        server.stop(signal.SIGTERM)

    if found:
        print("\nFAILED: " + "\n        ".join(found) + f"\n        logs are in {workdir}")
        return 1
    print("\nOK: worker and server were killed, every effect happened exactly once, the history has no gap.")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
