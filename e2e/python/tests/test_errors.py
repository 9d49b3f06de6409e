"""Bad requests: the gRPC status, the message and the detail that clients parse.

The messages are Temporal's, word for word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.message import Message
from temporalio.api.common.v1 import Payload, Payloads, WorkflowExecution, WorkflowType
from temporalio.api.enums.v1 import UpdateWorkflowExecutionLifecycleStage as Stage
from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure, NotFoundFailure
from temporalio.api.query.v1 import WorkflowQuery
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.update.v1 import Input, Meta, Request, WaitPolicy
from temporalio.api.workflowservice import v1 as api
from temporalio.client import Client
from temporalio.service import RPCStatusCode

from raw import duration
from support import event_types, execution, new_id, rpc_error, start_request

LONG = "x" * 1001
BIG = b"x" * 2_200_000


async def call(client: Client, request: Message) -> Any:
    """Call the method whose request this is: DescribeNamespaceRequest goes to describe_namespace."""
    name = type(request).__name__.removesuffix("Request")
    method = "".join(f"_{char.lower()}" if char.isupper() else char for char in name).lstrip("_")
    return await getattr(client.workflow_service, method)(request)


# Starting


def with_retry(**fields: Any) -> Callable[[], Message]:
    def build() -> Message:
        request = start_request(new_id(), "queue")
        for name, value in fields.items():
            target = getattr(request.retry_policy, name)
            if isinstance(target, Message):
                target.CopyFrom(duration(value))
            else:
                setattr(request.retry_policy, name, value)
        return request

    return build


def with_blob(path: str, data: bytes) -> Callable[[], Message]:
    def build() -> Message:
        request = start_request(new_id(), "queue")
        if path == "input":
            request.input.payloads.add(data=data)
        elif path == "memo":
            request.memo.fields["key"].data = data
        else:
            request.search_attributes.indexed_fields[path].data = data
        return request

    return build


def start_with(**fields: Any) -> Callable[[], Message]:
    def build() -> Message:
        request = start_request(new_id(), "queue")
        for name, value in fields.items():
            target = getattr(request, name)
            target.CopyFrom(value) if isinstance(target, Message) else setattr(request, name, value)
        return request

    return build


# Server 1.29 says "Namespace is empty.", later ones "Namespace not set on request."
NO_NAMESPACE = "namespace"

BAD_STARTS: list[tuple[str, Callable[[], Message], str]] = [
    ("no namespace", start_with(namespace=""), NO_NAMESPACE),
    ("no id", start_with(workflow_id=""), "WorkflowId is not set on request."),
    ("no type", start_with(workflow_type=WorkflowType()), "WorkflowType is not set on request."),
    ("no task queue", start_with(task_queue=TaskQueue()), "missing task queue name"),
    ("long namespace", start_with(namespace=LONG), "Namespace length exceeds limit."),
    ("long id", start_with(workflow_id=LONG), "exceeds"),
    ("long type", start_with(workflow_type=WorkflowType(name=LONG)), "WorkflowType length exceeds limit."),
    ("long task queue", start_with(task_queue=TaskQueue(name=LONG)), "taskQueue length exceeds limit"),
    ("long request id", start_with(request_id=LONG), "RequestId length exceeds limit."),
    (
        "reserved task queue",
        start_with(task_queue=TaskQueue(name="/_sys/x")),
        "task queue name cannot start with reserved prefix /_sys/",
    ),
    ("cron", start_with(cron_schedule="nonsense"), "invalid CronSchedule."),
    (
        "execution timeout",
        start_with(workflow_execution_timeout=duration(-1)),
        "An invalid WorkflowExecutionTimeoutSeconds is set on request.",
    ),
    (
        "run timeout",
        start_with(workflow_run_timeout=duration(-1)),
        "An invalid WorkflowRunTimeoutSeconds is set on request.",
    ),
    (
        "task timeout",
        start_with(workflow_task_timeout=duration(-1)),
        "An invalid WorkflowTaskTimeoutSeconds is set on request.",
    ),
    (
        "start delay",
        start_with(workflow_start_delay=duration(-1)),
        "An invalid WorkflowStartDelaySeconds is set on request.",
    ),
    (
        "cron and start delay",
        start_with(cron_schedule="* * * * *", workflow_start_delay=duration(5)),
        "CronSchedule and WorkflowStartDelay may not be used together.",
    ),
    ("retry interval", with_retry(initial_interval=-1), "invalid InitialInterval set on retry policy"),
    (
        "retry coefficient",
        with_retry(backoff_coefficient=0.5),
        "BackoffCoefficient cannot be less than 1 on retry policy.",
    ),
    ("retry attempts", with_retry(maximum_attempts=-1), "MaximumAttempts cannot be negative on retry policy."),
    (
        "retry maximum",
        with_retry(initial_interval=10, maximum_interval=1),
        "MaximumInterval cannot be less than InitialInterval on retry policy.",
    ),
    ("big input", with_blob("input", BIG), "Blob data size exceeds limit."),
    ("big memo", with_blob("memo", BIG), "Memo size exceeds limit."),
]


@pytest.mark.parametrize(("build", "message"), [case[1:] for case in BAD_STARTS], ids=[case[0] for case in BAD_STARTS])
async def test_bad_start(client: Client, build: Callable[[], Message], message: str) -> None:
    with rpc_error(RPCStatusCode.INVALID_ARGUMENT, message) as caught:
        await call(client, build())
    assert not caught.detail_names()


async def test_a_thousand_characters_are_not_too_many(client: Client) -> None:
    workflow_id = new_id() + "x" * (1000 - len(new_id()))
    await client.workflow_service.start_workflow_execution(start_request(workflow_id, "q" * 1000, "W" * 1000))
    await client.get_workflow_handle(workflow_id).terminate()


async def test_a_message_over_four_megabytes(client: Client) -> None:
    with rpc_error(RPCStatusCode.RESOURCE_EXHAUSTED):
        await call(client, with_blob("input", b"x" * 4_500_000)())
    # The connection is still good.
    await client.workflow_service.get_system_info(api.GetSystemInfoRequest())


async def test_missing_request_id_is_made_up(client: Client) -> None:
    workflow_id = new_id()
    await client.workflow_service.start_workflow_execution(start_request(workflow_id, "queue", request_id=""))
    await client.get_workflow_handle(workflow_id).terminate()


# Requests about a run


def about_runs(namespace: str, run: WorkflowExecution | None) -> list[Message]:
    """One request of every kind that names a run."""
    signal = {"signal_name": "knock"}
    update = Request(meta=Meta(update_id="update"), input=Input(name="any"))
    return [
        api.DescribeWorkflowExecutionRequest(namespace=namespace, execution=run),
        api.GetWorkflowExecutionHistoryRequest(namespace=namespace, execution=run),
        api.GetWorkflowExecutionHistoryReverseRequest(namespace=namespace, execution=run),
        api.SignalWorkflowExecutionRequest(namespace=namespace, workflow_execution=run, **signal),
        api.RequestCancelWorkflowExecutionRequest(namespace=namespace, workflow_execution=run),
        api.TerminateWorkflowExecutionRequest(namespace=namespace, workflow_execution=run),
        api.QueryWorkflowRequest(namespace=namespace, execution=run, query=WorkflowQuery(query_type="any")),
        api.UpdateWorkflowExecutionRequest(namespace=namespace, workflow_execution=run, request=update),
        api.ResetStickyTaskQueueRequest(namespace=namespace, execution=run),
    ]


KINDS = [type(request).__name__.removesuffix("Request") for request in about_runs("", None)]


@pytest.mark.parametrize("kind", range(len(KINDS)), ids=KINDS)
async def test_bad_request_about_a_run(client: Client, kind: int) -> None:
    nobody = new_id("nobody")
    some_run = "01234567-89ab-cdef-0123-456789abcdef"
    handle = await client.start_workflow("Any", id=new_id(), task_queue="queue")
    before = await event_types(handle)
    run = WorkflowExecution(workflow_id=handle.id)

    def request(namespace: str, run: WorkflowExecution | None) -> Message:
        return about_runs(namespace, run)[kind]

    for bad, message in [
        (request("", run), NO_NAMESPACE),
        (request("default", None), "Execution is not set on request."),
        (request("default", WorkflowExecution()), "WorkflowId is not set on request."),
        (request("default", WorkflowExecution(workflow_id=handle.id, run_id="not-a-uuid")), "Invalid RunId."),
    ]:
        with rpc_error(RPCStatusCode.INVALID_ARGUMENT, message):
            await call(client, bad)

    with rpc_error(RPCStatusCode.NOT_FOUND, "Namespace no-such-namespace is not found.") as caught:
        await call(client, request("no-such-namespace", run))
    assert caught.detail(NamespaceNotFoundFailure).namespace == "no-such-namespace"
    with rpc_error(RPCStatusCode.NOT_FOUND, f"workflow not found for ID: {nobody}") as caught:
        await call(client, request("default", WorkflowExecution(workflow_id=nobody)))
    caught.detail(NotFoundFailure)
    message = f'workflow execution not found for workflow ID "{handle.id}" and run ID "{some_run}"'
    with rpc_error(RPCStatusCode.NOT_FOUND, message) as caught:
        await call(client, request("default", WorkflowExecution(workflow_id=handle.id, run_id=some_run)))
    caught.detail(NotFoundFailure)

    assert await event_types(handle) == before
    await handle.terminate()


async def test_bad_messages_to_a_run(client: Client) -> None:
    handle = await client.start_workflow("Any", id=new_id(), task_queue="queue")
    before = await event_types(handle)
    run = execution(handle)
    default = {"namespace": "default", "workflow_execution": run}
    big = Payloads(payloads=[Payload(data=BIG)])
    meta, body = Meta(update_id="update"), Input(name="any")
    for bad, message in [
        (api.SignalWorkflowExecutionRequest(**default), "SignalName is not set on request."),
        (api.SignalWorkflowExecutionRequest(**default, signal_name=LONG), "SignalName length exceeds limit."),
        (
            api.SignalWorkflowExecutionRequest(**default, signal_name="s", request_id=LONG),
            "RequestId length exceeds limit.",
        ),
        (api.SignalWorkflowExecutionRequest(**default, signal_name="s", input=big), "Blob data size exceeds limit."),
        (api.QueryWorkflowRequest(namespace="default", execution=run), "WorkflowQuery is not set on request."),
        (
            api.QueryWorkflowRequest(namespace="default", execution=run, query=WorkflowQuery()),
            "QueryType is not set on request.",
        ),
        (api.UpdateWorkflowExecutionRequest(**default), "Update meta is not set on request."),
        (
            api.UpdateWorkflowExecutionRequest(**default, request=Request(input=body)),
            "Update meta is not set on request.",
        ),
        (
            api.UpdateWorkflowExecutionRequest(**default, request=Request(meta=meta)),
            "Update input is not set on request.",
        ),
        (
            api.UpdateWorkflowExecutionRequest(**default, request=Request(meta=meta, input=Input())),
            "Update name is not set on request.",
        ),
        (
            api.UpdateWorkflowExecutionRequest(**default, request=Request(meta=Meta(update_id=LONG), input=body)),
            "UpdateId length exceeds limit.",
        ),
        (api.PollWorkflowExecutionUpdateRequest(namespace="default"), "UpdateRef is not set on request."),
        (
            api.GetWorkflowExecutionHistoryRequest(namespace="default", execution=run, next_page_token=b"garbage"),
            "Invalid NextPageToken.",
        ),
        (
            api.GetWorkflowExecutionHistoryReverseRequest(
                namespace="default", execution=run, next_page_token=b"garbage"
            ),
            "Invalid NextPageToken.",
        ),
    ]:
        with rpc_error(RPCStatusCode.INVALID_ARGUMENT, message):
            await call(client, bad)

    admitted = WaitPolicy(lifecycle_stage=Stage.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_ADMITTED)
    with rpc_error(RPCStatusCode.PERMISSION_DENIED, "waiting on update admitted is not supported"):
        request = Request(meta=meta, input=body)
        await call(client, api.UpdateWorkflowExecutionRequest(**default, wait_policy=admitted, request=request))
    assert await event_types(handle) == before
    await handle.terminate()


async def test_bad_signal_with_start(client: Client) -> None:
    usual: dict[str, Any] = {
        "namespace": "default",
        "workflow_id": new_id(),
        "workflow_type": WorkflowType(name="Any"),
        "task_queue": TaskQueue(name="queue"),
        "request_id": "request",
        "signal_name": "knock",
    }
    for name, message in [
        ("namespace", NO_NAMESPACE),
        ("workflow_id", "WorkflowId is not set on request."),
        ("workflow_type", "type"),
        ("signal_name", "signal"),
        ("task_queue", "taskQueue is not set"),
    ]:
        fields = {key: value for key, value in usual.items() if key != name}
        with rpc_error(RPCStatusCode.INVALID_ARGUMENT, message):
            await call(client, api.SignalWithStartWorkflowExecutionRequest(**fields))
    with rpc_error(RPCStatusCode.NOT_FOUND, "workflow not found for ID"):
        await client.get_workflow_handle(usual["workflow_id"]).describe()


# Workers


@pytest.mark.parametrize("request_type", [api.PollWorkflowTaskQueueRequest, api.PollActivityTaskQueueRequest])
async def test_bad_poll(client: Client, request_type: type[Message]) -> None:
    for fields, message in [
        ({"task_queue": TaskQueue(name="queue")}, NO_NAMESPACE),
        ({"namespace": "default"}, "taskQueue is not set"),
        ({"namespace": "default", "task_queue": TaskQueue()}, "missing task queue name"),
        ({"namespace": "default", "task_queue": TaskQueue(name=LONG)}, "taskQueue length exceeds limit"),
        (
            {"namespace": "default", "task_queue": TaskQueue(name="queue"), "identity": LONG},
            "Identity length exceeds limit.",
        ),
    ]:
        with rpc_error(RPCStatusCode.INVALID_ARGUMENT, message):
            await call(client, request_type(**fields))
    with rpc_error(RPCStatusCode.NOT_FOUND, "Namespace nope is not found.") as caught:
        await call(client, request_type(namespace="nope", task_queue=TaskQueue(name="queue")))
    caught.detail(NamespaceNotFoundFailure)


BY_TOKEN = [
    api.RespondWorkflowTaskCompletedRequest,
    api.RespondWorkflowTaskFailedRequest,
    api.RespondActivityTaskCompletedRequest,
    api.RespondActivityTaskFailedRequest,
    api.RespondActivityTaskCanceledRequest,
    api.RecordActivityTaskHeartbeatRequest,
    api.RespondQueryTaskCompletedRequest,
]


@pytest.mark.parametrize("request_type", BY_TOKEN)
async def test_empty_and_garbage_task_tokens(client: Client, request_type: type[Message]) -> None:
    with rpc_error(RPCStatusCode.INVALID_ARGUMENT, "Task token not set on request."):
        await call(client, request_type(namespace="default"))
    for token in (b"garbage", b"\xff" * 30):
        with rpc_error(RPCStatusCode.INVALID_ARGUMENT, "Error deserializing task token."):
            await call(client, request_type(namespace="default", task_token=token))


BY_ID = [
    api.RespondActivityTaskCompletedByIdRequest,
    api.RespondActivityTaskFailedByIdRequest,
    api.RespondActivityTaskCanceledByIdRequest,
    api.RecordActivityTaskHeartbeatByIdRequest,
]


@pytest.mark.parametrize("request_type", BY_ID)
async def test_activities_by_id(client: Client, request_type: type[Message]) -> None:
    handle = await client.start_workflow("Any", id=new_id(), task_queue="queue")
    for fields, message in [
        ({"workflow_id": handle.id, "activity_id": "a"}, NO_NAMESPACE),
        ({"namespace": "default", "workflow_id": handle.id}, "ActivityId is not set on request."),
        (
            {"namespace": "default", "workflow_id": handle.id, "run_id": "bad", "activity_id": "a"},
            "RunId",
        ),
    ]:
        with rpc_error(RPCStatusCode.INVALID_ARGUMENT, message):
            await call(client, request_type(**fields))
    message = "cannot find pending activity with ActivityID a"
    with rpc_error(RPCStatusCode.NOT_FOUND, message) as caught:
        await call(client, request_type(namespace="default", workflow_id=handle.id, activity_id="a"))
    caught.detail(NotFoundFailure)
    # Without a workflow's id it is an activity of its own.
    with rpc_error(RPCStatusCode.NOT_FOUND, "activity execution not found for ID: a"):
        await call(client, request_type(namespace="default", activity_id="a"))
    await handle.terminate()


async def test_bad_requests_about_task_queues_and_namespaces(client: Client) -> None:
    for request, message in [
        (api.DescribeTaskQueueRequest(namespace="default"), "taskQueue is not set"),
        (
            api.DescribeTaskQueueRequest(namespace="default", task_queue=TaskQueue(name=LONG)),
            "taskQueue length exceeds limit",
        ),
        (api.DescribeNamespaceRequest(), "Namespace not set on request."),
        (api.UpdateNamespaceRequest(), "Namespace not set on request."),
        (api.RegisterNamespaceRequest(), "Namespace not set on request."),
        (api.RegisterNamespaceRequest(namespace=new_id("ns")), "A valid retention period is not set on request."),
        (
            api.RegisterNamespaceRequest(namespace=new_id("ns"), workflow_execution_retention_period=duration(60)),
            "A valid retention period is not set on request.",
        ),
        (
            api.RegisterNamespaceRequest(namespace=LONG, workflow_execution_retention_period=duration(86400)),
            "Namespace length exceeds limit.",
        ),
        (
            api.ExecuteMultiOperationRequest(namespace="default"),
            "Operations have to be exactly [Start, Update].",
        ),
    ]:
        with rpc_error(RPCStatusCode.INVALID_ARGUMENT, message):
            await call(client, request)
