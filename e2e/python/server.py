"""Starts, kills and restarts the server under test.

The server is chosen by the environment:

PERDURE_BIN      the binary; run as `PERDURE_BIN dev --ip … --port … --db-filename … [PERDURE_ARGS]`
PERDURE_ARGS     more arguments
PERDURE_TEST_CASSANDRA_SEEDS  the nodes of a Cassandra: run `PERDURE_BIN server` on it, each server in a keyspace of its own
                 while it runs; another gets the keyspace later, and all are dropped at the end
PERDURE_TEST_REPLICATION_FACTOR  of those keyspaces, 1 unless set
PERDURE_COMMAND  the whole command in place of `PERDURE_BIN dev`, e.g. `temporal server start-dev --headless`
PERDURE_ADDRESS  use a server that already runs; tests that need to kill or configure the server are skipped. Several,
                 with commas, are nodes of one cluster: clients use the first, workers each the next in turn
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, GetSystemInfoRequest
from temporalio.client import Client
from temporalio.service import RPCError

import cql

READY_SECONDS = 60


def external_addresses() -> list[str]:
    return [address for address in os.environ.get("PERDURE_ADDRESS", "").split(",") if address]


def external_address() -> str | None:
    return next(iter(external_addresses()), None)


def is_perdure() -> bool:
    return "PERDURE_ADDRESS" not in os.environ and "PERDURE_COMMAND" not in os.environ


def cassandra_seeds() -> str | None:
    """Where the servers under test keep their data, if not in a directory."""
    return os.environ.get("PERDURE_TEST_CASSANDRA_SEEDS") if is_perdure() else None


def _command(data: Path, keyspace: str | None) -> list[str]:
    """Runs the server; the same command runs it again on the same data."""
    directory = ["--db-filename", str(data)]
    if command := os.environ.get("PERDURE_COMMAND"):
        return [*shlex.split(command), *directory]
    if binary := os.environ.get("PERDURE_BIN"):
        if keyspace is None:
            return [binary, "dev", *directory]
        replicas = os.environ.get("PERDURE_TEST_REPLICATION_FACTOR", "1")
        options = ["--cassandra-seeds", str(cassandra_seeds()), "--keyspace", keyspace]
        # It is a cluster by itself. Its name is the same after a restart, so it waits for nobody.
        member = ["--cluster-port", "0", "--cluster-name", "the only one"]
        return [binary, "server", *options, "--replication-factor", replicas, "--namespace", "default", *member]
    raise RuntimeError("set PERDURE_BIN, PERDURE_COMMAND or PERDURE_ADDRESS (see server.py)")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """One server process on its own data and port. A restart keeps both."""

    def __init__(self, directory: Path, keyspace: str | None, *arguments: str) -> None:
        self.keyspace = keyspace
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.log = directory / "server.log"
        self._command = [
            *_command(directory / "data", keyspace),
            *("--ip", "127.0.0.1", "--port", str(self.port)),
            *shlex.split(os.environ.get("PERDURE_ARGS", "")),
            *arguments,
        ]
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        with self.log.open("ab") as log:
            log.write(f"--- {shlex.join(self._command)}\n".encode())
            log.flush()
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        await self.wait_ready()

    async def wait_ready(self) -> None:
        client = await Client.connect(self.address, lazy=True)
        deadline = asyncio.get_running_loop().time() + READY_SECONDS
        while True:
            assert self._process is not None
            if (code := self._process.poll()) is not None:
                raise RuntimeError(f"the server ended with code {code}\n{self.tail()}")
            try:
                second = timedelta(seconds=1)
                await client.workflow_service.get_system_info(GetSystemInfoRequest(), timeout=second)
                request = DescribeNamespaceRequest(namespace=client.namespace)
                await client.workflow_service.describe_namespace(request, timeout=second)
                return
            except (RPCError, RuntimeError) as error:
                if asyncio.get_running_loop().time() > deadline:
                    raise RuntimeError(
                        f"the server was not ready in {READY_SECONDS} s: {error}\n{self.tail()}"
                    ) from error
            await asyncio.sleep(0.02)

    def kill(self) -> None:
        """kill -9, and wait until the process is gone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.kill()

    async def restart(self) -> None:
        self.kill()
        await self.start()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def tail(self, lines: int = 40) -> str:
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def panics(self) -> list[str]:
        if not self.log.exists():
            return []
        return [line for line in self.log.read_text(errors="replace").splitlines() if "panicked" in line]


class Servers:
    """Starts the servers of the suite, and ends them."""

    def __init__(self, new_directory: Callable[[], Path]) -> None:
        self._new_directory = new_directory
        self.all: list[Server] = []
        self.in_use: list[Server] = []
        self._free_keyspaces: list[str] = []

    async def start(self, *arguments: str) -> Server:
        if external_address():
            pytest.skip("the suite cannot start the server itself")
        server = Server(self._new_directory(), self._keyspace(), *arguments)
        self.all.append(server)
        self.in_use.append(server)
        await server.start()
        return server

    def end(self, server: Server) -> None:
        """Tests look at nothing that they did not make themselves, so another server may have the keyspace."""
        server.stop()
        self.in_use.remove(server)
        if server.keyspace is not None:
            self._free_keyspaces.append(server.keyspace)

    @asynccontextmanager
    async def run(self, *arguments: str) -> AsyncIterator[Server]:
        """A server while the block runs."""
        server = await self.start(*arguments)
        try:
            yield server
        finally:
            self.end(server)

    def close(self) -> None:
        for server in list(self.in_use):
            self.end(server)
        if seeds := cassandra_seeds():
            for keyspace in self._free_keyspaces:
                cql.execute(seeds, f"DROP KEYSPACE IF EXISTS {keyspace}")

    def _keyspace(self) -> str | None:
        if not cassandra_seeds():
            return None
        return self._free_keyspaces.pop() if self._free_keyspaces else f"e2e_{uuid.uuid4().hex[:12]}"
