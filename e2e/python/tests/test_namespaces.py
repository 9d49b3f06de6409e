"""Namespaces: register, describe, list, update, deprecate; runs in one are not seen from another."""

from __future__ import annotations

from temporalio import workflow
from temporalio.api.enums.v1 import NamespaceState
from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure
from temporalio.api.namespace.v1 import NamespaceConfig, UpdateNamespaceInfo
from temporalio.api.workflowservice.v1 import (
    DeprecateNamespaceRequest,
    DescribeNamespaceRequest,
    DescribeNamespaceResponse,
    GetClusterInfoRequest,
    GetSystemInfoRequest,
    ListNamespacesRequest,
    RegisterNamespaceRequest,
    UpdateNamespaceRequest,
)
from temporalio.client import Client
from temporalio.service import RPCError, RPCStatusCode

from raw import duration
from support import SOON, eventually, new_id, rpc_error, run_worker

DAY = 86400


@workflow.defn
class Hello:
    @workflow.run
    async def run(self) -> str:
        return f"hello from {workflow.info().namespace}"


async def register(client: Client) -> str:
    name = new_id("namespace")
    await client.workflow_service.register_namespace(
        RegisterNamespaceRequest(
            namespace=name,
            description="a test",
            owner_email="owner@example.com",
            workflow_execution_retention_period=duration(3 * DAY),
            data={"colour": "red"},
        )
    )
    return name


async def describe(client: Client, **by: str) -> DescribeNamespaceResponse:
    return await client.workflow_service.describe_namespace(DescribeNamespaceRequest(**by))


async def test_register_and_describe(client: Client) -> None:
    name = await register(client)
    described = await describe(client, namespace=name)
    assert described.namespace_info.name == name
    assert described.namespace_info.description == "a test"
    assert described.namespace_info.owner_email == "owner@example.com"
    assert described.namespace_info.state == NamespaceState.NAMESPACE_STATE_REGISTERED
    assert dict(described.namespace_info.data) == {"colour": "red"}
    assert described.config.workflow_execution_retention_ttl.seconds == 3 * DAY
    by_id = await describe(client, id=described.namespace_info.id)
    assert by_id.namespace_info.name == name

    with rpc_error(RPCStatusCode.ALREADY_EXISTS, f'Namespace "{name}" already exists') as caught:
        await client.workflow_service.register_namespace(
            RegisterNamespaceRequest(namespace=name, workflow_execution_retention_period=duration(DAY))
        )
    assert caught.detail_names() == ["NamespaceAlreadyExistsFailure"]


async def test_list(client: Client) -> None:
    names = {await register(client) for _ in range(3)}
    listed: list[str] = []
    token = b""
    while True:
        page = await client.workflow_service.list_namespaces(ListNamespacesRequest(page_size=2, next_page_token=token))
        listed += [namespace.namespace_info.name for namespace in page.namespaces]
        token = page.next_page_token
        if not token:
            break
    assert names | {"default"} <= set(listed)
    assert len(listed) == len(set(listed))


async def test_update(client: Client) -> None:
    name = await register(client)
    await client.workflow_service.update_namespace(
        UpdateNamespaceRequest(
            namespace=name,
            update_info=UpdateNamespaceInfo(description="changed", data={"size": "big"}),
            config=NamespaceConfig(workflow_execution_retention_ttl=duration(7 * DAY)),
        )
    )
    described = await describe(client, namespace=name)
    assert described.namespace_info.description == "changed"
    assert described.config.workflow_execution_retention_ttl.seconds == 7 * DAY
    assert dict(described.namespace_info.data) == {"colour": "red", "size": "big"}, "data is merged"


async def test_deprecate(client: Client) -> None:
    name = await register(client)
    await client.workflow_service.deprecate_namespace(DeprecateNamespaceRequest(namespace=name))
    described = await describe(client, namespace=name)
    assert described.namespace_info.state == NamespaceState.NAMESPACE_STATE_DEPRECATED


async def test_unknown_namespace(client: Client) -> None:
    with rpc_error(RPCStatusCode.NOT_FOUND, "Namespace nope is not found.") as caught:
        await describe(client, namespace="nope")
    assert caught.detail(NamespaceNotFoundFailure).namespace == "nope"
    with rpc_error(RPCStatusCode.NOT_FOUND):
        await describe(client, id="01234567-89ab-cdef-0123-456789abcdef")
    for request in (
        client.workflow_service.update_namespace(UpdateNamespaceRequest(namespace="nope")),
        client.workflow_service.deprecate_namespace(DeprecateNamespaceRequest(namespace="nope")),
    ):
        with rpc_error(RPCStatusCode.NOT_FOUND) as caught:
            await request
        caught.detail(NamespaceNotFoundFailure)


async def test_workflows_in_another_namespace(client: Client, address: str) -> None:
    name = await register(client)
    other = await Client.connect(address, namespace=name)

    async def usable() -> bool:  # a server may need a moment until all of it knows a new namespace
        try:
            await other.start_workflow("Hello", id=new_id(), task_queue=new_id("nobody"))
            return True
        except RPCError as error:
            assert error.status == RPCStatusCode.NOT_FOUND
            return False

    await eventually(usable)
    workflow_id, task_queue = new_id(), new_id("queue")
    async with (
        run_worker(client, [Hello], task_queue=task_queue),
        run_worker(other, [Hello], task_queue=task_queue),
    ):
        results = [
            await each.execute_workflow(Hello.run, id=workflow_id, task_queue=task_queue, execution_timeout=SOON)
            for each in (client, other)
        ]
    assert results == ["hello from default", f"hello from {name}"]
    runs = {(await each.get_workflow_handle(workflow_id).describe()).run_id for each in (client, other)}
    assert len(runs) == 2


async def test_system_and_cluster_info(client: Client) -> None:
    info = await client.workflow_service.get_system_info(GetSystemInfoRequest())
    assert info.server_version
    assert info.capabilities.signal_and_query_header
    assert info.capabilities.activity_failure_include_heartbeat
    assert info.capabilities.encoded_failure_attributes
    assert info.capabilities.upsert_memo
    assert info.capabilities.eager_workflow_start
    assert info.capabilities.sdk_metadata
    namespace = await describe(client, namespace="default")
    capabilities = namespace.namespace_info.capabilities
    assert capabilities.eager_workflow_start and capabilities.sync_update and capabilities.async_update
    cluster = await client.workflow_service.get_cluster_info(GetClusterInfoRequest())
    assert cluster.cluster_id
    assert await client.service_client.check_health()
