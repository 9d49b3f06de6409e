"""Nexus handlers and callers that are no Temporal workers: plain HTTP servers, which know the protocol and nothing else."""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import nexusrpc
import pytest
from temporalio import workflow
from temporalio.api.common.v1 import Callback
from temporalio.api.enums.v1 import CallbackState
from temporalio.api.nexus.v1 import EndpointSpec, EndpointTarget
from temporalio.api.operatorservice.v1 import CreateNexusEndpointRequest
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError, CancelledError, NexusOperationError
from temporalio.service import RPCStatusCode

from raw import RawWorker, complete_workflow
from server import Servers
from support import event_types, eventually, new_id, payloads, rpc_error, run_worker, start_request


@nexusrpc.service
class Outside:
    sync: nexusrpc.Operation[str, str]
    later: nexusrpc.Operation[str, str]
    failed: nexusrpc.Operation[str, str]
    flaky: nexusrpc.Operation[str, str]
    wrong: nexusrpc.Operation[str, str]


@workflow.defn
class Caller:
    def __init__(self) -> None:
        self.asked_to_cancel = False

    @workflow.run
    async def run(self, endpoint: str, operation: str) -> str:
        client = workflow.create_nexus_client(service=Outside, endpoint=endpoint)
        handle = await client.start_operation(getattr(Outside, operation), "input")
        if self.asked_to_cancel:
            handle.cancel()
        else:
            self.canceling = asyncio.create_task(self.cancel_when_asked(handle))
        return await handle

    async def cancel_when_asked(self, handle: Any) -> None:
        await workflow.wait_condition(lambda: self.asked_to_cancel)
        handle.cancel()

    @workflow.signal
    def cancel(self) -> None:
        self.asked_to_cancel = True


@dataclass
class Request:
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes


@dataclass
class Handler:
    """What an HTTP server answers, and what it was asked."""

    url: str = ""
    requests: list[Request] = field(default_factory=list)

    def answer(self, request: Request) -> tuple[int, dict[str, str], Any]:
        operation = request.path.split("/")[-1]
        calls = sum(other.path == request.path for other in self.requests)
        match operation:
            case "sync":
                return 200, {}, json.loads(request.body) + " output"
            case "later":
                return 201, {}, {"token": "token-1", "state": "running"}
            case "failed":
                return 424, {"Nexus-Operation-State": "failed"}, {"message": "sold out", "details": {"left": 0}}
            case "flaky" if calls < 2:
                return 503, {}, {"message": "busy"}
            case "flaky":
                return 200, {}, "attempt 2"
            case "cancel":
                return 202, {}, None
            case "callback":
                return 200, {}, None
        return 404, {}, {"message": f"no operation {operation}"}


@contextmanager
def outside() -> Iterator[Handler]:
    handler = Handler()

    class Http(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            path, _, query = self.path.partition("?")
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(path, urllib.parse.parse_qs(query), headers, body)
            handler.requests.append(request)
            status, extra, said = handler.answer(request)
            body = b"" if said is None else json.dumps(said).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **extra}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Http)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield handler
    finally:
        server.shutdown()


async def endpoint_to(client: Client, url: str) -> str:
    name = new_id("outside")
    target = EndpointTarget(external=EndpointTarget.External(url=url))
    request = CreateNexusEndpointRequest(spec=EndpointSpec(name=name, target=target))
    await client.operator_service.create_nexus_endpoint(request)
    return name


async def start(client: Client, handler: Handler, operation: str, queue: str) -> WorkflowHandle[Any, str]:
    endpoint = await endpoint_to(client, handler.url + "/base/")
    return await client.start_workflow(Caller.run, args=[endpoint, operation], id=new_id("caller"), task_queue=queue)


async def failure_of(handle: WorkflowHandle[Any, str]) -> BaseException | None:
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    assert isinstance(caught.value.cause, NexusOperationError), caught.value.cause
    return caught.value.cause.cause


async def test_a_handler_that_answers_at_once(client: Client) -> None:
    with outside() as handler:
        async with run_worker(client, [Caller]) as queue:
            handle = await start(client, handler, "sync", queue)
            assert await handle.result() == "input output"
    [request] = handler.requests
    assert request.path == "/base/Outside/sync" and request.headers["nexus-request-id"]
    assert request.headers["content-type"] == "application/json"
    assert 0 < int(request.headers["request-timeout"].removesuffix("ms")) <= 10_000


async def test_handlers_that_fail(client: Client) -> None:
    with outside() as handler:
        async with run_worker(client, [Caller]) as queue:
            cause = await failure_of(await start(client, handler, "failed", queue))
            assert isinstance(cause, ApplicationError) and cause.message == "sold out"
            cause = await failure_of(await start(client, handler, "wrong", queue))
            assert isinstance(cause, nexusrpc.HandlerError) and cause.type == nexusrpc.HandlerErrorType.NOT_FOUND
            handle = await start(client, handler, "flaky", queue)
            assert await handle.result() == "attempt 2"
    flaky = [request for request in handler.requests if request.path.endswith("/flaky")]
    assert len(flaky) == 2
    assert flaky[0].headers["nexus-request-id"] == flaky[1].headers["nexus-request-id"]


def complete(request: Request, state: str, body: Any, token: str = "token-1") -> int:
    """What a handler does when its operation has ended."""
    [url] = request.query["callback"]
    headers = {
        name.removeprefix("nexus-callback-"): value
        for name, value in request.headers.items()
        if name.startswith("nexus-callback-")
    }
    headers |= {"Nexus-Operation-State": state, "Nexus-Operation-Token": token, "Content-Type": "application/json"}
    data = json.dumps(body).encode()
    post = urllib.request.Request(url, data=data, method="POST", headers=headers)
    try:
        with urllib.request.urlopen(post, timeout=20) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("started_first", [True, False])
async def test_a_handler_that_completes_later(client: Client, started_first: bool) -> None:
    with outside() as handler:
        async with run_worker(client, [Caller]) as queue:
            if not started_first:
                # The completion overtakes the answer to the start.
                answer = handler.answer

                def complete_first(request: Request) -> tuple[int, dict[str, str], Any]:
                    assert complete(request, "succeeded", "result") == 200
                    return answer(request)

                handler.answer = complete_first  # type: ignore[method-assign]
            handle = await start(client, handler, "later", queue)
            if started_first:

                async def started() -> bool:
                    return "NexusOperationStarted" in await event_types(handle)

                assert await eventually(started)
                assert await asyncio.to_thread(complete, handler.requests[0], "succeeded", "result") == 200
            assert await handle.result() == "result"
            # Nobody waits for it any more.
            assert await asyncio.to_thread(complete, handler.requests[0], "succeeded", "again") == 404
    types = await event_types(handle)
    assert types.index("NexusOperationStarted") < types.index("NexusOperationCompleted")


async def test_a_handler_that_fails_later_and_one_that_is_canceled(client: Client) -> None:
    with outside() as handler:
        async with run_worker(client, [Caller]) as queue:
            handle = await start(client, handler, "later", queue)

            async def started() -> bool:
                return "NexusOperationStarted" in await event_types(handle)

            assert await eventually(started)
            failed = {"message": "lost"}
            assert await asyncio.to_thread(complete, handler.requests[0], "failed", failed) == 200
            cause = await failure_of(handle)
            assert isinstance(cause, ApplicationError) and cause.message == "lost"

            handler.requests.clear()
            handle = await start(client, handler, "later", queue)
            assert await eventually(started)
            await handle.signal(Caller.cancel)

            async def told() -> Request | None:
                return next((request for request in handler.requests if request.path.endswith("/cancel")), None)

            cancel = await eventually(told)
            assert cancel.path == "/base/Outside/later/cancel"
            assert cancel.headers["nexus-operation-token"] == "token-1"
            done = {"message": "canceled"}
            assert await asyncio.to_thread(complete, handler.requests[0], "canceled", done) == 200
            assert isinstance(await failure_of(handle), CancelledError)


@pytest.mark.perdure_only
async def test_a_workflow_tells_a_caller_outside_how_it_ended(servers: Servers) -> None:
    # Only `perdure dev` lets callbacks go anywhere by itself.
    rules = '[{"Pattern":"127.0.0.1:*","AllowInsecure":true}]'
    async with servers.run("--dynamic-config-value", f"component.callbacks.allowedAddresses={rules}") as server:
        raw = RawWorker(await Client.connect(server.address))
        with outside() as caller:
            headers = {"Some-Header": "value", "Temporal-Callback-Token": "their own"}
            callback = Callback(nexus=Callback.Nexus(url=caller.url + "/callback", header=headers))
            handle = await raw.start(completion_callbacks=[callback])
            task = await raw.poll_workflow()
            command = complete_workflow()
            command.complete_workflow_execution_command_attributes.result.CopyFrom(payloads("done"))
            await raw.complete(task, command)

            async def delivered() -> bool:
                [info] = (await handle.describe()).raw_description.callbacks
                return info.state == CallbackState.CALLBACK_STATE_SUCCEEDED

            assert await eventually(delivered)
    [request] = caller.requests
    assert request.headers["nexus-operation-state"] == "succeeded"
    assert request.headers["some-header"] == "value"
    assert request.headers["temporal-callback-token"] == "their own"
    assert request.headers["nexus-operation-close-time"]
    assert (request.headers["content-type"], request.body) == ("application/json", b'"done"')


@pytest.mark.perdure_only
async def test_callbacks_go_only_where_they_may(servers: Servers) -> None:
    rules = '[{"Pattern":"*.example.com"}]'
    async with servers.run("--dynamic-config-value", f"component.callbacks.allowedAddresses={rules}") as server:
        client = await Client.connect(server.address)

        async def start_with(url: str) -> None:
            callback = Callback(nexus=Callback.Nexus(url=url))
            request = start_request(new_id(), new_id("queue"), completion_callbacks=[callback])
            await client.workflow_service.start_workflow_execution(request)

        await start_with("https://a.example.com/callback")
        for url in ("http://a.example.com/callback", "https://example.org", "ftp://a.example.com"):
            with rpc_error(RPCStatusCode.INVALID_ARGUMENT, "invalid url"):
                await start_with(url)
