from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from temporalio.client import Client
from temporalio.runtime import Runtime, TelemetryConfig

from server import Server, external_address, is_perdure

NewServer = Callable[..., Awaitable[Server]]
STARTED_SERVERS: list[Server] = []

# Many tests fail activities and tasks on purpose.
logging.getLogger("temporalio").setLevel(logging.CRITICAL)
Runtime.set_default(Runtime(telemetry=TelemetryConfig(logging=None)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("perdure_only") and not is_perdure():
            item.add_marker(pytest.mark.skip(reason="only Perdure does this"))
        if item.get_closest_marker("kills_server") and external_address():
            item.add_marker(pytest.mark.skip(reason="the server was not started by this suite"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Show what the servers logged last beside a failing test."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for server in STARTED_SERVERS:
            report.sections.append((f"server {server.address}, log {server.log}", server.tail()))


def pytest_sessionfinish(session: pytest.Session) -> None:
    panics = [f"{server.log}: {line}" for server in STARTED_SERVERS for line in server.panics()]
    if panics:
        print("\nthe server panicked:\n" + "\n".join(panics))
        session.exitstatus = 1


@pytest_asyncio.fixture(scope="session")
async def new_server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[NewServer]:
    """Starts another server with extra arguments: `server = await new_server("--flag", "value")`."""

    async def start(*arguments: str) -> Server:
        if external_address():
            pytest.skip("the suite cannot start the server itself")
        server = Server(Path(tmp_path_factory.mktemp("server")), *arguments)
        STARTED_SERVERS.append(server)
        await server.start()
        return server

    yield start
    for server in STARTED_SERVERS:
        server.stop()


@pytest_asyncio.fixture(scope="session")
async def address(new_server: NewServer) -> str:
    """The address of the server that most tests share. Nobody kills it."""
    return external_address() or (await new_server()).address


@pytest_asyncio.fixture(scope="session")
async def client(address: str) -> Client:
    return await Client.connect(address)
