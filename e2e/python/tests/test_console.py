"""The console in a browser: what it shows of a server at work, in light and dark, on a desk and on a phone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import quote

import pytest
import pytest_asyncio
from temporalio import activity, workflow
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.common import RetryPolicy
from temporalio.exceptions import ApplicationError

from console import Console
from server import Servers, cassandra_seeds, free_port
from support import new_id, run_worker

pytestmark = [pytest.mark.timeout(180), pytest.mark.perdure_only]

EVIL = "<img src=x onerror=\"window.hacked = true\">"


@activity.defn
async def reserve(item: str) -> str:
    return f"{item} is reserved"


@activity.defn
async def charge(item: str) -> str:
    raise RuntimeError(f"the bank is closed {EVIL}")


@workflow.defn
class Parcel:
    @workflow.run
    async def run(self, item: str) -> str:
        await workflow.sleep(timedelta(milliseconds=200))
        return f"{item} is packed"


@workflow.defn
class Order:
    def __init__(self) -> None:
        self.notes: list[str] = []

    @workflow.signal
    def note(self, text: str) -> None:
        self.notes.append(text)

    @workflow.run
    async def run(self, item: str) -> None:
        soon = timedelta(minutes=1)
        await workflow.execute_activity(reserve, item, start_to_close_timeout=soon)
        await workflow.execute_child_workflow(Parcel.run, item, id=f"{workflow.info().workflow_id}/parcel")
        reminder = workflow.start_activity(
            charge,
            item,
            start_to_close_timeout=soon,
            retry_policy=RetryPolicy(initial_interval=timedelta(hours=1)),
        )
        await workflow.sleep(timedelta(days=2))
        await reminder


@workflow.defn
class Greeting:
    @workflow.run
    async def run(self, name: str) -> str:
        if name == "nobody":
            raise ApplicationError("there is nobody to greet", non_retryable=True)
        return f"hello {name}"


@dataclass
class Site:
    """What there is to see, and the browser to see it with."""

    console: Console
    client: Client
    queue: str
    order: WorkflowHandle
    greeting: WorkflowHandle

    def of(self, handle: WorkflowHandle) -> str:
        run = handle.result_run_id or handle.first_execution_run_id
        return f"/namespaces/default/workflows/{quote(handle.id, safe='')}/{run}"


@pytest_asyncio.fixture(scope="module")
async def site(servers: Servers) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        port = free_port()
        flag = "--console-port" if cassandra_seeds() else "--ui-port"
        server = await stack.enter_async_context(servers.run(flag, str(port)))
        console = stack.enter_context(Console.run(f"http://127.0.0.1:{port}"))
        client = await Client.connect(server.address, identity="clerk@counter")
        queue = await stack.enter_async_context(run_worker(client, [Order, Greeting, Parcel], [reserve, charge], "orders"))
        order = await client.start_workflow(Order.run, "umbrella", id="order-1042", task_queue=queue)
        await order.signal(Order.note, "ring twice")
        greeting = await client.start_workflow(Greeting.run, "Ada", id="greeting-of-ada", task_queue=queue)
        assert await greeting.result() == "hello Ada"
        failed = await client.start_workflow(Greeting.run, "nobody", id="greeting-of-nobody", task_queue=queue)
        with pytest.raises(WorkflowFailureError):
            await failed.result()
        await client.start_workflow(Greeting.run, EVIL, id=f"evil {EVIL}", task_queue="nobody-polls")
        yield Site(console=console, client=client, queue=queue, order=order, greeting=greeting)
        assert console.complaints() == []


async def test_workflows(site: Site) -> None:
    # Other tests may have left workflows in the store: how many there are is not said here.
    expected = ["order-1042", "greeting-of-ada", "orders", f"evil {EVIL}", "Running ", "Completed ", "Failed "]
    await site.console.shows("workflows", "/workflows", *expected)
    query = quote("WorkflowType = 'Greeting' AND ExecutionStatus = 'Completed'")
    await site.console.shows("filter", f"/workflows?query={query}", "greeting-of-ada", without="order-1042")


async def test_a_filter_that_cannot_be_read(site: Site) -> None:
    await site.console.shows("bad-filter", f"/workflows?query={quote('Color = blue')}", "Color")
    # The browser notes the answer's code.
    assert all("400" in complaint for complaint in site.console.complaints())


async def test_a_run_says_which_step_it_is_on(site: Site) -> None:
    path = site.of(site.order)
    expected = ["Running", "charge", "is tried again in", "the bank is closed", "Timer", "fires in", "order-1042/parcel"]
    await site.console.shows("run", path, *expected, "ring twice")
    assert await site.console.script("return window.hacked") is None


async def test_a_closed_run(site: Site) -> None:
    await site.console.shows("closed", site.of(site.greeting), "Completed", "hello Ada", without="Now")


async def test_task_queues(site: Site) -> None:
    await site.console.shows("queues", "/task-queues", "orders", "nobody-polls", "none")


async def test_the_cluster(site: Site) -> None:
    await site.console.shows("cluster", "/cluster", "alive", "serving", "Shards")


async def test_what_changes_comes_by_itself(site: Site) -> None:
    await site.console.open("/workflows", "order-1042")
    await site.console.script("window.stays = true")
    id = new_id("late")
    handle = await site.client.start_workflow(Greeting.run, "Bob", id=id, task_queue=site.queue)
    await site.console.comes(id)
    await handle.result()
    assert await site.console.script("return window.stays") is True, "the page was not loaded again"


async def test_a_run_that_closes_is_shown_as_closed(site: Site) -> None:
    handle = await site.client.start_workflow(Order.run, "hat", id=new_id("order"), task_queue=site.queue)
    await site.console.open(site.of(handle), "Running", "Open for")
    await handle.terminate("changed their mind")
    await site.console.comes("Terminated", "changed their mind", without="Open for")


async def test_pages_work_without_a_script(site: Site) -> None:
    await site.console.without_scripts(True)
    try:
        await site.console.open("/workflows", "order-1042")
        await site.console.open(site.of(site.order), "charge")
    finally:
        await site.console.without_scripts(False)
