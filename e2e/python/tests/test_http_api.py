"""The HTTP API: the same calls as JSON."""

from __future__ import annotations

import asyncio
import base64
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio
from temporalio.client import Client, WorkflowExecutionStatus

from raw import RawWorker, complete_workflow
from server import Server, Servers, free_port
from support import new_id


class Http:
    def __init__(self, server: Server, port: int) -> None:
        self.server = server
        self.base = f"http://127.0.0.1:{port}"

    async def call(self, method: str, path: str, body: Any = None, accept: str | None = None) -> tuple[int, Any]:
        return await asyncio.to_thread(self._call, method, path, body, accept)

    def _call(self, method: str, path: str, body: Any, accept: str | None) -> tuple[int, Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.base + path, data=data, method=method)
        request.add_header("Content-Type", "application/json")
        if accept:
            request.add_header("Accept", accept)
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())


@pytest_asyncio.fixture(scope="module")
async def http(servers: Servers) -> AsyncIterator[Http]:
    port = free_port()
    async with servers.run("--http-port", str(port)) as server:
        yield Http(server, port)


async def test_a_workflow_by_http(http: Http) -> None:
    client = await Client.connect(http.server.address)
    raw = RawWorker(client)
    workflow_id = new_id() + " with a space"
    path = "/api/v1/namespaces/default/workflows/" + urllib.parse.quote(workflow_id)
    start = {
        "workflowType": {"name": "Order"},
        "taskQueue": {"name": raw.task_queue},
        "input": [{"amount": 12.5}, "text", None],
        "memo": {"fields": {"note": [1, 2]}},
    }
    status, started = await http.call("POST", path, start)
    assert status == 200, started
    assert started["started"] is True
    status, answer = await http.call("POST", path + "/signal/knock", {"input": ["who"]})
    assert status == 200, answer
    task = await raw.poll_workflow()
    assert task.workflow_execution.run_id == started["runId"]
    given = task.history.events[0].workflow_execution_started_event_attributes
    assert [payload.metadata["encoding"] for payload in given.input.payloads] == [
        b"json/plain",
        b"json/plain",
        b"binary/null",
    ]
    assert json.loads(given.input.payloads[0].data) == {"amount": 12.5}

    status, described = await http.call("GET", path)
    assert status == 200
    assert described["workflowExecutionInfo"]["status"] == "WORKFLOW_EXECUTION_STATUS_RUNNING"
    assert described["workflowExecutionInfo"]["memo"]["fields"]["note"] == [1, 2]

    # How many events a page of one holds is the server's matter.
    events: list[Any] = []
    token = ""
    while not events or token:
        query = f"/history?maximumPageSize=1&nextPageToken={urllib.parse.quote(token, safe='')}"
        status, history = await http.call("GET", path + query)
        assert status == 200, history
        events += history["history"].get("events", [])
        token = history.get("nextPageToken", "")
    assert [event["eventId"] for event in events] == ["1", "2", "3", "4"]
    null = {"metadata": {"encoding": base64.b64encode(b"binary/null").decode()}}
    assert events[0]["workflowExecutionStartedEventAttributes"]["input"] == [{"amount": 12.5}, "text", null]
    assert events[2]["workflowExecutionSignaledEventAttributes"]["input"] == ["who"]

    await raw.complete(task, complete_workflow())
    handle = client.get_workflow_handle(workflow_id)
    assert (await handle.describe()).status == WorkflowExecutionStatus.COMPLETED


async def test_payloads_in_full(http: Http) -> None:
    path = "/namespaces/default/workflows/" + new_id()
    data = base64.b64encode(b"\x00\x01").decode()
    payload = {"metadata": {"encoding": base64.b64encode(b"binary/plain").decode()}, "data": data}
    start = {
        "workflowType": {"name": "Any"},
        "taskQueue": {"name": new_id("queue")},
        "memo": {"fields": {"raw": payload, "json": 7}},
    }
    status, _ = await http.call("POST", path, start)
    assert status == 200
    _, short = await http.call("GET", path)
    assert short["workflowExecutionInfo"]["memo"]["fields"] == {"raw": payload, "json": 7}
    full = {"metadata": {"encoding": base64.b64encode(b"json/plain").decode()}, "data": base64.b64encode(b"7").decode()}
    _, by_query = await http.call("GET", path + "?noPayloadShorthand")
    assert by_query["workflowExecutionInfo"]["memo"]["fields"]["json"] == full
    _, by_type = await http.call("GET", path, accept="application/json+no-payload-shorthand")
    assert by_type["workflowExecutionInfo"]["memo"]["fields"]["json"] == full


async def test_errors_are_statuses(http: Http) -> None:
    status, error = await http.call("GET", "/namespaces/default/workflows/absent")
    assert (status, error["code"]) == (404, 5)
    assert error["details"][0]["@type"] == "type.googleapis.com/temporal.api.errordetails.v1.NotFoundFailure"
    status, error = await http.call("GET", "/nowhere")
    assert (status, error["code"]) == (404, 5)
    status, error = await http.call("DELETE", "/namespaces/default/workflows/absent")
    assert (status, error["code"]) == (501, 12)
    status, error = await http.call("POST", "/namespaces/default/workflows/a", {"workflowType": {"name": 5}})
    assert (status, error["code"]) == (400, 3)
    status, error = await http.call("POST", "/namespaces/default/workflows/a", {})
    assert (status, error["code"]) == (400, 3)
    assert "WorkflowType" in error["message"]


async def test_system_and_cluster(http: Http) -> None:
    status, info = await http.call("GET", "/system-info")
    assert status == 200 and info["serverVersion"]
    status, cluster = await http.call("GET", "/cluster")
    assert status == 200 and cluster["clusterId"]
    status, namespaces = await http.call("GET", "/cluster/namespaces")
    assert "default" in [found["namespaceInfo"]["name"] for found in namespaces["namespaces"]]
