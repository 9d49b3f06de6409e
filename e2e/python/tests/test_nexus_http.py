"""Nexus over HTTP, and the polls of workers, by hand: what a handler gets, and what its caller hears."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from temporalio.api.common.v1 import Payload
from temporalio.api.enums.v1 import NexusHandlerErrorRetryBehavior, TaskQueueType
from temporalio.api.failure.v1 import ApplicationFailureInfo, CanceledFailureInfo, Failure, NexusHandlerFailureInfo
from temporalio.api.nexus.v1 import (
    CancelOperationResponse,
    EndpointSpec,
    EndpointTarget,
    HandlerError,
    Link,
    Response,
    StartOperationResponse,
)
from temporalio.api.operatorservice.v1 import CreateNexusEndpointRequest
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    DescribeTaskQueueRequest,
    PollNexusTaskQueueRequest,
    PollNexusTaskQueueResponse,
    RespondNexusTaskCompletedRequest,
    RespondNexusTaskFailedRequest,
    ShutdownWorkerRequest,
)
from temporalio.client import Client
from temporalio.service import RPCStatusCode

from server import Servers, free_port
from support import new_id, rpc_error

POLL = timedelta(seconds=30)
RETRYABLE = NexusHandlerErrorRetryBehavior.NEXUS_HANDLER_ERROR_RETRY_BEHAVIOR_RETRYABLE
FAILURES = {"Temporal-Nexus-Failure-Support": "true"}


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Nexus:
    """A server, and its HTTP port."""

    client: Client
    port: int
    queue: str = field(default_factory=lambda: new_id("nexus"))

    async def post(
        self, path: str, body: bytes = b"", headers: dict[str, str] | None = None, method: str = "POST"
    ) -> Answer:
        return await asyncio.to_thread(self._post, path, body, headers or {}, method)

    def _post(self, path: str, body: bytes, headers: dict[str, str], method: str) -> Answer:
        url = f"http://127.0.0.1:{self.port}{path}"
        # With no data urllib adds no content type.
        request = urllib.request.Request(url, data=body or None, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return Answer(response.status, lower(response.headers), response.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, lower(error.headers), error.read())

    def path(self, operation: str = "greet", service: str = "my service") -> str:
        parts = ["namespaces", "default", "task-queues", self.queue, "nexus-services", service, operation]
        return "/" + "/".join(urllib.parse.quote(part, safe="") for part in parts)

    async def poll(self, **fields: Any) -> PollNexusTaskQueueResponse:
        request = PollNexusTaskQueueRequest(
            namespace="default", task_queue=TaskQueue(name=self.queue), identity="raw-worker", **fields
        )
        return await self.client.workflow_service.poll_nexus_task_queue(request, timeout=POLL)

    async def complete(self, task: PollNexusTaskQueueResponse, response: Response) -> None:
        request = RespondNexusTaskCompletedRequest(
            namespace="default", identity="raw-worker", task_token=task.task_token, response=response
        )
        await self.client.workflow_service.respond_nexus_task_completed(request)

    async def fail(self, task: PollNexusTaskQueueResponse, **fields: Any) -> None:
        request = RespondNexusTaskFailedRequest(
            namespace="default", identity="raw-worker", task_token=task.task_token, **fields
        )
        await self.client.workflow_service.respond_nexus_task_failed(request)


def lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def started(**variant: Any) -> Response:
    return Response(start_operation=StartOperationResponse(**variant))


@pytest_asyncio.fixture(scope="module")
async def server(servers: Servers) -> AsyncIterator[tuple[str, int]]:
    port = free_port()
    async with servers.run("--http-port", str(port)) as server:
        yield server.address, port


@pytest_asyncio.fixture
async def nexus(server: tuple[str, int]) -> Nexus:
    address, port = server
    return Nexus(await Client.connect(address), port)


async def test_a_request_and_its_answer(nexus: Nexus) -> None:
    headers = {
        "Content-Type": "application/json",
        "Nexus-Request-Id": "request-1",
        "Nexus-Callback-Token": "t",
        "Nexus-Link": '<http://example.com/a>; type="a.b.C"',
        "Request-Timeout": "20s",
        "Some-Header": "value",
        "Temporal-Nexus-Failure-Support": "true",
    }
    sent = asyncio.create_task(nexus.post(nexus.path() + "?callback=http%3A%2F%2Fcaller%2F", b'"Ada"', headers))
    task = await nexus.poll()
    start = task.request.start_operation
    assert (start.service, start.operation, start.request_id) == ("my service", "greet", "request-1")
    assert start.payload == Payload(metadata={"encoding": b"json/plain"}, data=b'"Ada"')
    assert start.callback == "http://caller/" and dict(start.callback_header) == {"token": "t"}
    assert list(start.links) == [Link(url="http://example.com/a", type="a.b.C")]
    assert task.request.header["some-header"] == "value"
    assert 0 < int(task.request.header["request-timeout"].removesuffix("ms")) <= 20_000
    assert task.request.HasField("scheduled_time") and task.request.capabilities.temporal_failure_responses

    payload = Payload(metadata={"encoding": b"json/plain"}, data=b'"Hello"')
    sync = StartOperationResponse.Sync(payload=payload, links=[Link(url="temporal:///x", type="d.E")])
    await nexus.complete(task, started(sync_success=sync))
    answer = await sent
    assert (answer.status, answer.body) == (200, b'"Hello"')
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["nexus-link"] == '<temporal:///x>; type="d.E"'
    with rpc_error(RPCStatusCode.NOT_FOUND, "Nexus task not found or already expired"):
        await nexus.complete(task, started(sync_success=sync))


async def test_an_operation_that_goes_on(nexus: Nexus) -> None:
    sent = asyncio.create_task(nexus.post(nexus.path()))
    task = await nexus.poll()
    assert task.request.start_operation.payload.metadata["encoding"] == b"binary/null"
    with rpc_error(RPCStatusCode.INVALID_ARGUMENT, "missing operation token"):
        await nexus.complete(task, started(async_success=StartOperationResponse.Async()))
    with rpc_error(RPCStatusCode.INVALID_ARGUMENT, "operation token length exceeds allowed limit (5000/4096)"):
        await nexus.complete(task, started(async_success=StartOperationResponse.Async(operation_token="x" * 5000)))
    await nexus.complete(task, started(async_success=StartOperationResponse.Async(operation_token="token")))
    answer = await sent
    assert (answer.status, answer.json()) == (201, {"token": "token", "state": "running"})

    path = nexus.path() + "/cancel"
    sent = asyncio.create_task(nexus.post(path, headers={"Nexus-Operation-Token": "token"}))
    task = await nexus.poll()
    cancel = task.request.cancel_operation
    assert (cancel.service, cancel.operation, cancel.operation_token) == ("my service", "greet", "token")
    await nexus.complete(task, Response(cancel_operation=CancelOperationResponse()))
    assert (await sent).status == 202
    assert (await nexus.post(path)).status == 400


@pytest.mark.parametrize("canceled", [False, True])
async def test_an_operation_that_fails(nexus: Nexus, canceled: bool) -> None:
    failure = Failure(message="no", application_failure_info=ApplicationFailureInfo(type="Sold", non_retryable=True))
    if canceled:
        failure = Failure(message="no", canceled_failure_info=CanceledFailureInfo())
    for headers in ({}, FAILURES):
        sent = asyncio.create_task(nexus.post(nexus.path(), headers=headers))
        await nexus.complete(await nexus.poll(), started(failure=failure))
        answer = await sent
        assert answer.status == 424
        assert answer.headers["nexus-operation-state"] == ("canceled" if canceled else "failed")
        assert answer.headers["temporal-nexus-failure-source"] == "worker"
        said = answer.json()
        if headers:
            assert said["metadata"] == {"type": "nexus.OperationError", "unwrap-error": "true"}
            said = said["cause"]
        assert said["message"] == "no"
        assert said["metadata"] == {"type": "temporal.api.failure.v1.Failure"}
        assert ("canceledFailureInfo" if canceled else "applicationFailureInfo") in said["details"]


async def test_errors_of_handlers(nexus: Nexus) -> None:
    async def answer_to(**fields: Any) -> Answer:
        sent = asyncio.create_task(nexus.post(nexus.path(), headers=FAILURES))
        await nexus.fail(await nexus.poll(), **fields)
        return await sent

    info = NexusHandlerFailureInfo(type="NOT_FOUND", retry_behavior=RETRYABLE)
    answer = await answer_to(failure=Failure(message="no such thing", nexus_handler_failure_info=info))
    assert (answer.status, answer.headers["nexus-request-retryable"]) == (404, "true")
    assert answer.json()["message"] == "no such thing"
    assert answer.json()["details"] == {"type": "NOT_FOUND", "retryableOverride": True}
    answer = await answer_to(error=HandlerError(error_type="RESOURCE_EXHAUSTED"))
    assert answer.status == 429 and "nexus-request-retryable" not in answer.headers

    sent = asyncio.create_task(nexus.post(nexus.path()))
    task = await nexus.poll()
    with rpc_error(RPCStatusCode.INVALID_ARGUMENT, "request must contain error or failure"):
        await nexus.fail(task)
    with rpc_error(RPCStatusCode.INVALID_ARGUMENT, "NexusHandlerFailureInfo"):
        await nexus.fail(task, failure=Failure(message="no"))
    await nexus.complete(task, Response())
    assert (await sent).status == 500


async def test_nobody_answers(nexus: Nexus) -> None:
    answer = await nexus.post(nexus.path(), headers={"Request-Timeout": "500ms"})
    assert (answer.status, answer.json()["message"]) == (520, "upstream timeout")
    assert answer.headers["temporal-nexus-failure-source"] == "worker"
    # Nothing is left behind of it for the next poll.
    sent = asyncio.create_task(nexus.post(nexus.path("second")))
    task = await nexus.poll()
    assert task.request.start_operation.operation == "second"
    await nexus.complete(task, started(sync_success=StartOperationResponse.Sync()))
    assert (await sent).status == 200


async def test_requests_that_are_refused(nexus: Nexus) -> None:
    async def refused(status: int, path: str, method: str = "POST", **headers: str) -> None:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = await nexus.post(path, headers=sent, method=method)
        assert answer.status == status, answer
        assert "temporal-nexus-failure-source" not in answer.headers

    await refused(400, nexus.path(), method="PUT")
    await refused(400, nexus.path(), Request_Timeout="soon")
    await refused(400, nexus.path(), Nexus_Link="nonsense")
    await refused(404, nexus.path().replace("/default/", "/nowhere/"))
    await refused(404, "/nexus/endpoints/no-such-endpoint/services/service/greet")


async def test_an_endpoint_leads_to_its_queue(nexus: Nexus) -> None:
    async def create(name: str, target: EndpointTarget) -> str:
        request = CreateNexusEndpointRequest(spec=EndpointSpec(name=name, target=target))
        response = await nexus.client.operator_service.create_nexus_endpoint(request)
        return response.endpoint.url_prefix

    name = new_id("endpoint")
    worker = EndpointTarget.Worker(namespace="default", task_queue=nexus.queue)
    prefix = await create(name, EndpointTarget(worker=worker))
    sent = asyncio.create_task(nexus.post(f"{prefix}/service/greet"))
    task = await nexus.poll()
    assert task.request.endpoint == name and task.request.start_operation.service == "service"
    await nexus.complete(task, started(sync_success=StartOperationResponse.Sync()))
    assert (await sent).status == 200

    external = EndpointTarget.External(url="http://localhost:1")
    prefix = await create(new_id("endpoint"), EndpointTarget(external=external))
    assert (await nexus.post(f"{prefix}/service/greet")).status == 400


async def test_polls_are_seen_and_end_with_their_worker(nexus: Nexus) -> None:
    polling = asyncio.create_task(nexus.poll(worker_instance_key="key"))
    describe = DescribeTaskQueueRequest(
        namespace="default",
        task_queue=TaskQueue(name=nexus.queue),
        task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_NEXUS,
    )
    while True:
        described = await nexus.client.workflow_service.describe_task_queue(describe)
        if described.pollers:
            break
    assert [poller.identity for poller in described.pollers] == ["raw-worker"]
    shutdown = ShutdownWorkerRequest(
        namespace="default", identity="raw-worker", worker_instance_key="key", task_queue=nexus.queue
    )
    await nexus.client.workflow_service.shutdown_worker(shutdown)
    task = await asyncio.wait_for(polling, 10)
    assert not task.task_token and not task.HasField("request")


async def test_completions_that_are_refused(nexus: Nexus) -> None:
    async def refused(message: str, **headers: str) -> None:
        sent = {"nexus-operation-state": "succeeded"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        for path in ("/nexus/callback", "/namespaces/default/nexus/callback"):
            answer = await nexus.post(path, b"", sent)
            assert (answer.status, answer.json()["message"]) == (400, message)

    await refused("invalid callback token")
    await refused("invalid callback token", Temporal_Callback_Token='{"v":1,"d":""}')
    await refused('invalid request operation state: "running"', nexus_operation_state="running")
    await refused("failed to decode links from request headers", nexus_link="nonsense")
    await refused("failed to parse operation start time header", nexus_operation_start_time="now")
