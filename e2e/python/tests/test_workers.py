"""What workers tell of themselves: heartbeats, lists, counts."""

from __future__ import annotations

from datetime import timedelta

from google.protobuf.timestamp_pb2 import Timestamp
from temporalio import activity
from temporalio.api.enums.v1 import WorkerStatus
from temporalio.api.worker.v1 import WorkerHeartbeat, WorkerHostInfo
from temporalio.api.workflowservice import v1 as api
from temporalio.client import Client
from temporalio.runtime import Runtime, TelemetryConfig
from temporalio.service import RPCStatusCode
from temporalio.worker import Worker

from support import eventually, new_id, rpc_error


@activity.defn
async def noop() -> None: ...


async def test_an_sdk_worker_is_listed(address: str) -> None:
    runtime = Runtime(telemetry=TelemetryConfig(), worker_heartbeat_interval=timedelta(seconds=1))
    client = await Client.connect(address, runtime=runtime, identity=new_id("identity"))
    queue = new_id("queue")
    query = f"TaskQueue = '{queue}' AND WorkerIdentity = '{client.identity}'"

    async def listed() -> list[str]:
        request = api.ListWorkersRequest(namespace=client.namespace, query=query)
        response = await client.workflow_service.list_workers(request)
        return [worker.worker_instance_key for worker in response.workers]

    async with Worker(client, task_queue=queue, activities=[noop]):

        async def one_is() -> bool:
            return len(await listed()) == 1

        await eventually(one_is)
        key = (await listed())[0]
        request = api.DescribeWorkerRequest(namespace=client.namespace, worker_instance_key=key)
        worker = (await client.workflow_service.describe_worker(request)).worker_info.worker_heartbeat
        assert worker.sdk_name == "temporal-python"
        assert worker.status == WorkerStatus.WORKER_STATUS_RUNNING


async def test_queries_and_pages(client: Client) -> None:
    service = client.workflow_service
    queue = new_id("queue")
    started = Timestamp()
    started.FromJsonString("2026-01-02T03:04:05Z")
    keys = sorted(new_id("worker") for _ in range(5))
    heartbeats = [
        WorkerHeartbeat(
            worker_instance_key=key,
            worker_identity=f"identity-{number % 2}",
            task_queue=queue,
            host_info=WorkerHostInfo(host_name=f"host-{number}"),
            sdk_name="sdk",
            start_time=started,
            status=WorkerStatus.WORKER_STATUS_SHUTDOWN if number == 4 else WorkerStatus.WORKER_STATUS_RUNNING,
        )
        for number, key in enumerate(keys)
    ]
    await service.record_worker_heartbeat(
        api.RecordWorkerHeartbeatRequest(namespace=client.namespace, worker_heartbeat=heartbeats)
    )

    async def found(condition: str) -> list[int]:
        query = f"TaskQueue = '{queue}' AND ({condition})"
        response = await service.list_workers(api.ListWorkersRequest(namespace=client.namespace, query=query))
        count = await service.count_workers(api.CountWorkersRequest(namespace=client.namespace, query=query))
        assert count.count == len(response.workers)
        return [keys.index(worker.worker_instance_key) for worker in response.workers]

    assert await found("WorkerIdentity = 'identity-1'") == [1, 3]
    assert await found("HostName IN ('host-0', 'host-4')") == [0, 4]
    assert await found("HostName STARTS_WITH 'host-' AND Status = 'Running'") == [0, 1, 2, 3]
    assert await found("Status != 'Running'") == [4]
    assert await found("StartTime > '2026-01-02T03:04:04Z' AND StartTime < '2026-01-02T03:04:06Z'") == [0, 1, 2, 3, 4]
    assert await found("BuildId IS NOT NULL OR SdkVersion = 'x'") == []
    with rpc_error(RPCStatusCode.INVALID_ARGUMENT):
        await found("WorkflowId = 'a'")

    pages: list[list[str]] = []
    token = b""
    while not pages or token:
        request = api.ListWorkersRequest(
            namespace=client.namespace, query=f"TaskQueue = '{queue}'", page_size=2, next_page_token=token
        )
        response = await service.list_workers(request)
        pages.append([worker.worker_instance_key for worker in response.workers])
        token = response.next_page_token
    assert pages == [keys[0:2], keys[2:4], keys[4:5]]


async def test_a_worker_nobody_knows(client: Client) -> None:
    request = api.DescribeWorkerRequest(namespace=client.namespace, worker_instance_key=new_id())
    with rpc_error(RPCStatusCode.NOT_FOUND):
        await client.workflow_service.describe_worker(request)
