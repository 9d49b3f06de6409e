"""The Temporal Web UI, unmodified, in a browser: what it shows of the server, without a request that fails."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from temporalio import activity, workflow
from temporalio.api.batch.v1 import BatchOperationTermination
from temporalio.api.enums.v1 import BatchOperationState
from temporalio.api.workflowservice import v1 as api
from temporalio.client import (
    Client,
    Schedule,
    ScheduleActionStartWorkflow,
    ScheduleIntervalSpec,
    ScheduleSpec,
    ScheduleState,
    WorkflowHandle,
)
from temporalio.common import RetryPolicy, VersioningBehavior, WorkerDeploymentVersion
from temporalio.runtime import Runtime, TelemetryConfig
from temporalio.worker import WorkerDeploymentConfig

from support import eventually, new_id, run_worker
from web_ui import WebUi

pytestmark = pytest.mark.timeout(120)


@activity.defn
async def charge() -> str:
    raise RuntimeError("the bank is closed")


@workflow.defn
class Order:
    @workflow.run
    async def run(self, item: str) -> None:
        await workflow.execute_activity(
            charge,
            schedule_to_close_timeout=timedelta(days=1),
            retry_policy=RetryPolicy(initial_interval=timedelta(hours=1)),
        )


@workflow.defn
class Greeting:
    @workflow.run
    async def run(self, name: str) -> str:
        return f"hello {name}"


@workflow.defn(versioning_behavior=VersioningBehavior.PINNED)
class Shipment:
    @workflow.run
    async def run(self) -> str:
        return "shipped"


@dataclass
class Site:
    """What there is to see, and the browser to see it with."""

    ui: WebUi
    namespace: str
    queue: str
    order: WorkflowHandle
    greeting: WorkflowHandle
    schedule: str
    deployment: str
    batch: str

    @property
    def path(self) -> str:
        return f"/namespaces/{self.namespace}"

    def of(self, handle: WorkflowHandle) -> str:
        return f"{self.path}/workflows/{handle.id}/{handle.first_execution_run_id}"


@pytest_asyncio.fixture(scope="module")
async def site(address: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Site]:
    async with AsyncExitStack() as stack:
        directory = Path(tmp_path_factory.mktemp("web-ui"))
        ui = stack.enter_context(WebUi.run(address, directory))
        runtime = Runtime(telemetry=TelemetryConfig(), worker_heartbeat_interval=timedelta(seconds=1))
        namespace = new_id("web-ui")
        client = await Client.connect(address, namespace=namespace, runtime=runtime, identity="clerk@counter")
        retention = Duration(seconds=3 * 24 * 3600)
        request = api.RegisterNamespaceRequest(namespace=namespace, workflow_execution_retention_period=retention)
        await client.workflow_service.register_namespace(request)

        queue = await stack.enter_async_context(run_worker(client, [Order, Greeting], [charge], new_id("orders")))
        order = await client.start_workflow(Order.run, "umbrella", id=new_id("order"), task_queue=queue)
        greeting = await client.start_workflow(Greeting.run, "Ada", id=new_id("greeting"), task_queue=queue)
        assert await greeting.result() == "hello Ada"
        yield Site(
            ui=ui,
            namespace=namespace,
            queue=queue,
            order=order,
            greeting=greeting,
            schedule=await make_schedule(client, queue),
            deployment=await make_deployment(client, stack),
            batch=await terminate_some(client),
        )


async def make_schedule(client: Client, queue: str) -> str:
    id = new_id("nightly")
    action = ScheduleActionStartWorkflow(Greeting.run, "Bob", id=f"{id}-run", task_queue=queue)
    spec = ScheduleSpec(intervals=[ScheduleIntervalSpec(every=timedelta(hours=7))])
    state = ScheduleState(note="greets Bob")
    handle = await client.create_schedule(id, Schedule(action=action, spec=spec, state=state))
    await handle.trigger()

    async def has_acted() -> bool:
        return (await handle.describe()).info.num_actions == 1

    await eventually(has_acted)
    return id


async def make_deployment(client: Client, stack: AsyncExitStack) -> str:
    deployment, queue = new_id("shipping"), new_id("shipments")
    version = WorkerDeploymentVersion(deployment_name=deployment, build_id="v1")
    config = WorkerDeploymentConfig(version=version, use_worker_versioning=True)
    await stack.enter_async_context(run_worker(client, [Shipment], task_queue=queue, deployment_config=config))

    async def is_current() -> bool:
        request = api.SetWorkerDeploymentCurrentVersionRequest(
            namespace=client.namespace, deployment_name=deployment, build_id="v1", identity="test"
        )
        await client.workflow_service.set_worker_deployment_current_version(request)
        return True

    async def is_registered() -> bool:
        request = api.ListWorkerDeploymentsRequest(namespace=client.namespace)
        listed = (await client.workflow_service.list_worker_deployments(request)).worker_deployments
        return deployment in [found.name for found in listed]

    await eventually(is_registered)
    await eventually(is_current)
    assert await client.execute_workflow(Shipment.run, id=new_id("shipment"), task_queue=queue) == "shipped"
    return deployment


async def terminate_some(client: Client) -> str:
    queue = new_id("nobody")
    for _ in range(3):
        await client.start_workflow("Abandoned", id=new_id("abandoned"), task_queue=queue)

    async def are_listed() -> bool:
        return (await client.count_workflows("WorkflowType = 'Abandoned'")).count == 3

    await eventually(are_listed)
    job = new_id("cleaning")
    service = client.workflow_service
    await service.start_batch_operation(
        api.StartBatchOperationRequest(
            namespace=client.namespace,
            job_id=job,
            reason="spring cleaning",
            visibility_query="WorkflowType = 'Abandoned'",
            termination_operation=BatchOperationTermination(identity="cleaner"),
        )
    )

    async def is_done() -> bool:
        request = api.DescribeBatchOperationRequest(namespace=client.namespace, job_id=job)
        described = await service.describe_batch_operation(request)
        return described.state == BatchOperationState.BATCH_OPERATION_STATE_COMPLETED

    await eventually(is_done)
    return job


async def test_namespaces(site: Site) -> None:
    await site.ui.shows("namespaces", "/namespaces", "Namespaces", "default", site.namespace)
    await site.ui.shows("namespace", site.path, site.namespace, "Retention Period", "3 days", "History Archival")


async def test_workflow_list_with_a_filter(site: Site) -> None:
    path = f"{site.path}/workflows"
    await site.ui.shows(
        *("workflows", path, site.order.id, site.greeting.id, "abandoned-"),
        *("1 Running", "3 Completed", "3 Terminated"),
    )
    for name, query, found, not_found in [
        ("type", '`WorkflowType`="Order"', site.order.id, site.greeting.id),
        ("status", '`ExecutionStatus`="Completed"', site.greeting.id, site.order.id),
        ("id", f'`WorkflowId`="{site.order.id}" AND `ExecutionStatus`!="Failed"', site.order.id, site.greeting.id),
    ]:
        await site.ui.shows(f"workflows-by-{name}", f"{path}?query={quote(query)}", found, without=not_found)


async def test_history_and_pending_activities(site: Site) -> None:
    await site.ui.shows(
        *("history", f"{site.of(site.greeting)}/history", site.greeting.id, "hello Ada"),
        *("Workflow Execution Started", "Workflow Task Started", "Workflow Execution Completed"),
    )

    async def has_failed() -> bool:
        pending = (await site.order.describe()).raw_description.pending_activities
        return len(pending) == 1 and pending[0].attempt == 2

    await eventually(has_failed)
    await site.ui.shows(
        *("history-running", f"{site.of(site.order)}/history", site.order.id, "Running", "umbrella"),
        *("Activity Task Scheduled", "charge"),
    )
    await site.ui.shows(
        *("pending-activities", f"{site.of(site.order)}/pending-activities", "charge", "the bank is closed"),
        *("Attempt 2", "Last Worker Identity clerk@counter"),
    )


async def test_schedules(site: Site) -> None:
    path = f"{site.path}/schedules"
    await site.ui.shows("schedules", path, site.schedule, "Greeting", "Running", "Every 7 hour(s)")
    await site.ui.shows(
        *("schedule", f"{path}/{site.schedule}", site.schedule, "greets Bob", "1 Recent Run", "5 Upcoming Runs"),
        *("1 Completed", f"{site.schedule}-run-20"),
    )


async def test_workers_and_deployments(site: Site) -> None:
    await site.ui.shows("task-queue", f"{site.path}/task-queues/{site.queue}", site.queue, "clerk@counter")
    await site.ui.shows("workers", f"{site.path}/workers", "clerk@counter", site.queue, site.deployment)
    path = f"{site.path}/worker-deployments"
    await site.ui.shows("deployments", path, site.deployment, "v1", "Current")
    await site.ui.shows("deployment", f"{path}/{site.deployment}", site.deployment, "v1", "Current")


async def test_batch_operations(site: Site) -> None:
    path = f"{site.path}/batch-operations"
    await site.ui.shows("batch-operations", path, site.batch, "Completed")
    await site.ui.shows(
        *("batch-operation", f"{path}/{site.batch}", site.batch, "Terminate", "spring cleaning", "100% complete"),
        *("3 succeeded", "0 failed"),
    )
