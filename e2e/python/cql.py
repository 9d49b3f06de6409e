"""Runs a statement on Cassandra: just enough of its protocol (version 4) for what a test has to set up or take away."""

from __future__ import annotations

import socket
import struct

STARTUP, QUERY = 1, 7
ERROR = 0
ALL = 5
SCHEMA_SECONDS = 60


def execute(seeds: str, statement: str) -> None:
    """On the first of the nodes, given as `host:port,…`; without TLS or a password."""
    host, _, port = seeds.split(",")[0].partition(":")
    text = statement.encode()
    with socket.create_connection((host, int(port or 9042)), SCHEMA_SECONDS) as connection:
        _ask(connection, STARTUP, struct.pack(">H", 1) + _string("CQL_VERSION") + _string("3.0.0"))
        _ask(connection, QUERY, struct.pack(">I", len(text)) + text + struct.pack(">HB", ALL, 0))


def _string(text: str) -> bytes:
    return struct.pack(">H", len(text)) + text.encode()


def _ask(connection: socket.socket, opcode: int, body: bytes) -> None:
    connection.sendall(struct.pack(">BBhBI", 4, 0, 0, opcode, len(body)) + body)
    _, _, _, answer, length = struct.unpack(">BBhBI", _receive(connection, 9))
    content = _receive(connection, length)
    if answer == ERROR:
        raise RuntimeError(f"Cassandra: {content[6:].decode(errors='replace')}")


def _receive(connection: socket.socket, length: int) -> bytes:
    received = b""
    while len(received) < length:
        part = connection.recv(length - len(received))
        if not part:
            raise RuntimeError("Cassandra closed the connection")
        received += part
    return received
