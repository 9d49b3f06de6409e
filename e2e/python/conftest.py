from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from temporalio.client import Client
from temporalio.runtime import Runtime, TelemetryConfig
from temporalio.worker import Worker

from server import Server, Servers, cassandra_seeds, external_address, external_addresses, is_perdure

NewServer = Callable[..., Awaitable[Server]]
SERVERS = pytest.StashKey[Servers]()

# Many tests fail activities and tasks on purpose.
logging.getLogger("temporalio").setLevel(logging.CRITICAL)
Runtime.set_default(Runtime(telemetry=TelemetryConfig(logging=None)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("perdure_only") and not is_perdure():
            item.add_marker(pytest.mark.skip(reason="only Perdure does this"))
        if item.get_closest_marker("dev_only") and cassandra_seeds():
            item.add_marker(pytest.mark.skip(reason="only `perdure dev` has this"))
        if item.get_closest_marker("kills_server") and external_address():
            item.add_marker(pytest.mark.skip(reason="the server was not started by this suite"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Show what the servers logged last beside a failing test."""
    outcome = yield
    report = outcome.get_result()
    servers = item.session.stash.get(SERVERS, None)
    if report.failed and servers:
        for server in servers.in_use:
            report.sections.append((f"server {server.address}, log {server.log}", server.tail()))


def pytest_sessionfinish(session: pytest.Session) -> None:
    servers = session.stash.get(SERVERS, None)
    if not servers:
        return
    panics = [f"{server.log}: {line}" for server in servers.all for line in server.panics()]
    if panics:
        print("\nthe server panicked:\n" + "\n".join(panics))
        session.exitstatus = 1


@pytest_asyncio.fixture(scope="session")
async def servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Servers]:
    """Starts servers: `async with servers.run("--flag", "value") as server`."""
    servers = Servers(lambda: Path(tmp_path_factory.mktemp("server")))
    request.session.stash[SERVERS] = servers
    yield servers
    servers.close()


@pytest_asyncio.fixture
async def new_server(servers: Servers) -> AsyncIterator[NewServer]:
    """Starts another server for this test, with extra arguments: `server = await new_server("--flag", "value")`."""
    async with AsyncExitStack() as started:

        async def start(*arguments: str) -> Server:
            return await started.enter_async_context(servers.run(*arguments))

        yield start


@pytest_asyncio.fixture(scope="session")
async def address(servers: Servers) -> str:
    """The address of the server that most tests share. Nobody kills it."""
    return external_address() or (await servers.start()).address


@pytest_asyncio.fixture(scope="session")
async def client(address: str) -> Client:
    if len(external_addresses()) > 1:
        await spread_workers(external_addresses())
    return await Client.connect(address)


async def spread_workers(addresses: list[str]) -> None:
    """From now on each worker goes through the next of these nodes, whatever node its client is connected to."""
    nodes = [await Client.connect(address) for address in addresses]
    turn = itertools.cycle(nodes[1:] + nodes[:1])
    make = Worker.__init__

    def make_elsewhere(self: Worker, client: Client, *arguments: object, **options: object) -> None:
        config = client.config()
        config["service_client"] = next(turn).service_client
        make(self, Client(**config), *arguments, **options)

    Worker.__init__ = make_elsewhere
