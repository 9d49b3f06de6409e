"""Worker deployments: versions of workers, which of them gets what, and what executions say of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from temporalio import activity, workflow
from temporalio.api.common.v1 import Payload, WorkflowExecution
from temporalio.api.deployment.v1 import WorkerDeploymentVersion as Version
from temporalio.api.enums import v1 as enums
from temporalio.api.workflow.v1 import VersioningOverride, WorkflowExecutionOptions
from temporalio.api.workflowservice import v1 as api
from temporalio.client import Client, WorkflowHandle
from temporalio.common import (
    PinnedVersioningOverride,
    VersioningBehavior,
    WorkerDeploymentVersion,
)
from temporalio.service import RPCStatusCode
from temporalio.worker import UnsandboxedWorkflowRunner, Worker, WorkerDeploymentConfig

from conftest import NewServer
from support import SOON, eventually, events_of, new_id, rpc_error


@activity.defn
async def where() -> str:
    return activity.info().task_queue


def outside(run: Any) -> Any:
    """The SDK refuses methods of local classes by their name. Here each version of the code is a class of its own."""
    run.__qualname__ = run.__qualname__.rpartition("<locals>.")[2]
    return run


def waiting(behavior: VersioningBehavior, answer: str) -> type:
    """A workflow that says which version it ran on, each time it is asked to go on."""

    @workflow.defn(name="Waiting", versioning_behavior=behavior)
    class Waiting:
        def __init__(self) -> None:
            self.steps: list[str] = []
            self.done = False

        @workflow.run
        @outside
        async def run(self) -> list[str]:
            await workflow.wait_condition(lambda: self.done)
            return [*self.steps, f"end {answer}"]

        @workflow.signal
        async def step(self, last: bool) -> None:
            self.steps.append("step")
            self.done = last

        @workflow.query
        def version(self) -> str:
            return answer

    return Waiting


def family(behavior: VersioningBehavior, answer: str) -> list[type]:
    @workflow.defn(name="Child", versioning_behavior=behavior)
    class Child:
        @workflow.run
        @outside
        async def run(self) -> str:
            return answer

    @workflow.defn(name="Parent", versioning_behavior=behavior)
    class Parent:
        def __init__(self) -> None:
            self.go = False

        @workflow.run
        @outside
        async def run(self, again: bool) -> list[str]:
            await workflow.wait_condition(lambda: self.go or not again)
            if again:
                workflow.continue_as_new(False)
            return [answer, await workflow.execute_child_workflow("Child", id=new_id("child"))]

        @workflow.signal
        async def proceed(self) -> None:
            self.go = True

    return [Child, Parent]


@asynccontextmanager
async def versioned_worker(
    client: Client, queue: str, deployment: str, build: str, workflows: list[type], **options: Any
) -> AsyncIterator[None]:
    config = WorkerDeploymentConfig(
        version=WorkerDeploymentVersion(deployment_name=deployment, build_id=build), use_worker_versioning=True
    )
    async with Worker(
        client,
        task_queue=queue,
        workflows=workflows,
        activities=[where],
        deployment_config=config,
        workflow_runner=UnsandboxedWorkflowRunner(),
        **options,
    ):
        yield


async def describe(client: Client, deployment: str) -> api.DescribeWorkerDeploymentResponse:
    request = api.DescribeWorkerDeploymentRequest(namespace=client.namespace, deployment_name=deployment)
    return await client.workflow_service.describe_worker_deployment(request)


async def describe_version(client: Client, deployment: str, build: str) -> Any:
    version = Version(deployment_name=deployment, build_id=build)
    request = api.DescribeWorkerDeploymentVersionRequest(namespace=client.namespace, deployment_version=version)
    response = await client.workflow_service.describe_worker_deployment_version(request)
    return response.worker_deployment_version_info


async def version_is_there(client: Client, deployment: str, build: str) -> None:
    async def there() -> bool:
        try:
            info = await describe_version(client, deployment, build)
        except Exception as error:
            assert "not found" in str(error).lower() or "no Worker Deployment" in str(error)
            return False
        return len(info.task_queue_infos) >= 2

    await eventually(there)


async def set_current(client: Client, deployment: str, build: str, **options: Any) -> Any:
    await version_is_there(client, deployment, build) if build else None
    request = api.SetWorkerDeploymentCurrentVersionRequest(
        namespace=client.namespace, deployment_name=deployment, build_id=build, **options
    )
    return await client.workflow_service.set_worker_deployment_current_version(request)


async def set_ramping(client: Client, deployment: str, build: str, percentage: float, **options: Any) -> Any:
    request = api.SetWorkerDeploymentRampingVersionRequest(
        namespace=client.namespace, deployment_name=deployment, build_id=build, percentage=percentage, **options
    )
    return await client.workflow_service.set_worker_deployment_ramping_version(request)


async def versioning_info(handle: WorkflowHandle[Any, Any]) -> Any:
    return (await handle.describe()).raw_description.workflow_execution_info.versioning_info


async def on_version(handle: WorkflowHandle[Any, Any], build: str) -> None:
    async def there() -> bool:
        return (await versioning_info(handle)).deployment_version.build_id == build

    await eventually(there)


async def start(client: Client, queue: str, name: str = "Waiting", *args: Any, **options: Any) -> WorkflowHandle[Any, Any]:
    return await client.start_workflow(
        name, args=args, id=new_id("workflow"), task_queue=queue, execution_timeout=SOON, **options
    )


PINNED, UPGRADING = VersioningBehavior.PINNED, VersioningBehavior.AUTO_UPGRADE


async def test_pinned_workflows_stay_and_upgrading_ones_go(client: Client) -> None:
    queue, other, deployment = new_id("queue"), new_id("queue"), new_id("deployment")
    async with (
        versioned_worker(client, queue, deployment, "1", [waiting(PINNED, "1")]),
        versioned_worker(client, queue, deployment, "2", [waiting(PINNED, "2")]),
        versioned_worker(client, other, deployment + "-u", "1", [waiting(UPGRADING, "1")]),
        versioned_worker(client, other, deployment + "-u", "2", [waiting(UPGRADING, "2")]),
    ):
        for name in (deployment, deployment + "-u"):
            await set_current(client, name, "1")
        pinned, upgrading = await start(client, queue), await start(client, other)
        for handle in (pinned, upgrading):
            await on_version(handle, "1")
            assert await handle.query("version") == "1"
        for name in (deployment, deployment + "-u"):
            await set_current(client, name, "2")
        new = await start(client, queue)
        await on_version(new, "2")
        for handle in (pinned, upgrading):
            await handle.signal("step", True)
        assert await pinned.result() == ["step", "end 1"]
        assert await upgrading.result() == ["step", "end 2"]

        info = await versioning_info(pinned)
        assert info.behavior == enums.VersioningBehavior.VERSIONING_BEHAVIOR_PINNED
        assert info.deployment_version.deployment_name == deployment
        info = await versioning_info(upgrading)
        assert info.behavior == enums.VersioningBehavior.VERSIONING_BEHAVIOR_AUTO_UPGRADE
        assert not info.HasField("version_transition")
        completed = [e.workflow_task_completed_event_attributes for e in await events_of(upgrading)]
        builds = [c.deployment_version.build_id for c in completed if c.HasField("deployment_version")]
        assert builds == ["1", "2"]

        query = f"TemporalWorkerDeploymentVersion = '{deployment}:1' AND TemporalWorkflowVersioningBehavior = 'Pinned'"

        async def listed() -> bool:
            return [w.id async for w in client.list_workflows(query)] == [pinned.id]

        await eventually(listed)
        await new.terminate()


async def test_a_ramp_takes_its_share(client: Client) -> None:
    queue, deployment = new_id("queue"), new_id("deployment")

    def quick(answer: str) -> type:
        @workflow.defn(name="Quick", versioning_behavior=PINNED)
        class Quick:
            @workflow.run
            @outside
            async def run(self) -> str:
                return answer

        return Quick

    async def results(count: int) -> list[str]:
        handles = [await start(client, queue, "Quick") for _ in range(count)]
        return [await handle.result() for handle in handles]

    async with (
        versioned_worker(client, queue, deployment, "1", [quick("1")]),
        versioned_worker(client, queue, deployment, "2", [quick("2")]),
    ):
        await set_current(client, deployment, "1")
        await version_is_there(client, deployment, "2")
        assert set(await results(5)) == {"1"}
        await set_ramping(client, deployment, "2", 50)
        assert set(await results(40)) == {"1", "2"}
        await set_ramping(client, deployment, "2", 100)
        assert set(await results(5)) == {"2"}
        info = (await describe(client, deployment)).worker_deployment_info
        assert info.routing_config.ramping_deployment_version.build_id == "2"
        statuses = {s.deployment_version.build_id: s.status for s in info.version_summaries}
        assert statuses == {
            "1": enums.WorkerDeploymentVersionStatus.WORKER_DEPLOYMENT_VERSION_STATUS_CURRENT,
            "2": enums.WorkerDeploymentVersionStatus.WORKER_DEPLOYMENT_VERSION_STATUS_RAMPING,
        }
        await set_ramping(client, deployment, "", 0)
        assert set(await results(5)) == {"1"}


async def test_unversioned_workers_get_what_no_version_gets(client: Client) -> None:
    queue, deployment = new_id("queue"), new_id("deployment")
    plain = Worker(
        client, task_queue=queue, workflows=[waiting(VersioningBehavior.UNSPECIFIED, "0")],
        workflow_runner=UnsandboxedWorkflowRunner(), max_cached_workflows=0,
    )
    async with plain, versioned_worker(client, queue, deployment, "1", [waiting(UPGRADING, "1")]):
        await version_is_there(client, deployment, "1")
        handle = await start(client, queue)
        assert await handle.query("version") == "0"
        assert (await versioning_info(handle)).behavior == 0
        await set_current(client, deployment, "1")
        await handle.signal("step", False)
        await on_version(handle, "1")
        await set_current(client, deployment, "")
        await handle.signal("step", True)
        assert await handle.result() == ["step", "step", "end 0"]


async def test_overrides(client: Client) -> None:
    queue, deployment = new_id("queue"), new_id("deployment")
    async with (
        versioned_worker(client, queue, deployment, "1", [waiting(UPGRADING, "1")]),
        versioned_worker(client, queue, deployment, "2", [waiting(UPGRADING, "2")]),
    ):
        await set_current(client, deployment, "1")
        await version_is_there(client, deployment, "2")
        pin = PinnedVersioningOverride(WorkerDeploymentVersion(deployment_name=deployment, build_id="2"))
        pinned = await start(client, queue, versioning_override=pin)
        await on_version(pinned, "2")
        info = await versioning_info(pinned)
        assert info.versioning_override.pinned.version.build_id == "2"

        moved = await start(client, queue)
        await on_version(moved, "1")
        override = VersioningOverride(
            pinned=VersioningOverride.PinnedOverride(
                behavior=VersioningOverride.PinnedOverrideBehavior.PINNED_OVERRIDE_BEHAVIOR_PINNED,
                version=Version(deployment_name=deployment, build_id="2"),
            )
        )
        request = api.UpdateWorkflowExecutionOptionsRequest(
            namespace=client.namespace,
            workflow_execution=WorkflowExecution(workflow_id=moved.id),
            workflow_execution_options=WorkflowExecutionOptions(versioning_override=override),
            update_mask=FieldMask(paths=["versioning_override"]),
        )
        await client.workflow_service.update_workflow_execution_options(request)
        await moved.signal("step", True)
        assert await moved.result() == ["step", "end 2"]
        # Without the override it goes where the routing leads again.
        request.workflow_execution.workflow_id = pinned.id
        request.workflow_execution_options.ClearField("versioning_override")
        await client.workflow_service.update_workflow_execution_options(request)
        await pinned.signal("step", True)
        assert await pinned.result() == ["step", "end 1"]

        nowhere = PinnedVersioningOverride(WorkerDeploymentVersion(deployment_name=deployment, build_id="9"))
        with rpc_error(RPCStatusCode.FAILED_PRECONDITION):
            await start(client, queue, versioning_override=nowhere)


async def test_children_and_continued_runs_inherit(client: Client) -> None:
    queue, deployment = new_id("queue"), new_id("deployment")
    async with (
        versioned_worker(client, queue, deployment, "1", family(PINNED, "1")),
        versioned_worker(client, queue, deployment, "2", family(PINNED, "2")),
    ):
        await set_current(client, deployment, "1")
        handle = await start(client, queue, "Parent", True)
        await on_version(handle, "1")
        await set_current(client, deployment, "2")
        await handle.signal("proceed")
        assert await handle.result() == ["1", "1"]
        assert await (await start(client, queue, "Parent", False)).result() == ["2", "2"]


async def test_activities_go_with_their_workflow(client: Client) -> None:
    queue, deployment = new_id("queue"), new_id("deployment")

    def calling(answer: str) -> tuple[type, Any]:
        @activity.defn(name="answer")
        async def answering() -> str:
            return answer

        @workflow.defn(name="Calling", versioning_behavior=PINNED)
        class Calling:
            def __init__(self) -> None:
                self.go = False

            @workflow.run
            @outside
            async def run(self) -> str:
                await workflow.wait_condition(lambda: self.go)
                return await workflow.execute_activity("answer", start_to_close_timeout=SOON)

            @workflow.signal
            async def proceed(self) -> None:
                self.go = True

        return Calling, answering

    @asynccontextmanager
    async def worker(build: str) -> AsyncIterator[None]:
        flow, act = calling(build)
        version = WorkerDeploymentVersion(deployment_name=deployment, build_id=build)
        async with Worker(
            client, task_queue=queue, workflows=[flow], activities=[act], disable_eager_activity_execution=True,
            deployment_config=WorkerDeploymentConfig(version=version, use_worker_versioning=True),
            workflow_runner=UnsandboxedWorkflowRunner(),
        ):
            yield

    async with worker("1"), worker("2"):
        await set_current(client, deployment, "1")
        old = await start(client, queue, "Calling")
        await on_version(old, "1")
        await set_current(client, deployment, "2")
        new = await start(client, queue, "Calling")
        for handle in (old, new):
            await handle.signal("proceed")
        assert (await old.result(), await new.result()) == ("1", "2")


async def test_the_calls(client: Client) -> None:
    service, queue, deployment = client.workflow_service, new_id("queue"), new_id("deployment")
    with rpc_error(RPCStatusCode.NOT_FOUND):
        await describe(client, deployment)
    with rpc_error(RPCStatusCode.NOT_FOUND):
        await set_current(client, deployment, "", identity="me")
    async with versioned_worker(client, queue, deployment, "1", [waiting(PINNED, "1")]):
        await version_is_there(client, deployment, "1")
        before = await describe(client, deployment)
        info = before.worker_deployment_info
        assert info.routing_config.current_version == "__unversioned__"
        assert [s.status for s in info.version_summaries] == [
            enums.WorkerDeploymentVersionStatus.WORKER_DEPLOYMENT_VERSION_STATUS_INACTIVE
        ]
        with rpc_error(RPCStatusCode.NOT_FOUND):
            await set_ramping(client, deployment, "9", 5)
        reply = await set_current(client, deployment, "1", identity="me", conflict_token=before.conflict_token)
        assert reply.previous_version == "__unversioned__"
        with rpc_error(RPCStatusCode.FAILED_PRECONDITION):
            await set_current(client, deployment, "", identity="you", conflict_token=before.conflict_token)
        with rpc_error(RPCStatusCode.FAILED_PRECONDITION):
            await set_ramping(client, deployment, "1", 5, identity="me")
        after = (await describe(client, deployment)).worker_deployment_info
        assert after.routing_config.revision_number == 1
        assert (
            after.routing_config_update_state
            == enums.RoutingConfigUpdateState.ROUTING_CONFIG_UPDATE_STATE_COMPLETED
        )
        # The manager has it for itself.
        manager = api.SetWorkerDeploymentManagerRequest(
            namespace=client.namespace, deployment_name=deployment, self=True, identity="me"
        )
        await service.set_worker_deployment_manager(manager)
        with rpc_error(RPCStatusCode.FAILED_PRECONDITION):
            await set_current(client, deployment, "", identity="you")
        metadata = api.UpdateWorkerDeploymentVersionMetadataRequest(
            namespace=client.namespace,
            deployment_version=Version(deployment_name=deployment, build_id="1"),
            upsert_entries={"k": Payload(data=b"v")},
        )
        assert (await service.update_worker_deployment_version_metadata(metadata)).metadata.entries["k"].data == b"v"

        async def listed() -> bool:
            request = api.ListWorkerDeploymentsRequest(namespace=client.namespace)
            found = (await service.list_worker_deployments(request)).worker_deployments
            mine = [d for d in found if d.name == deployment]
            return len(mine) == 1 and mine[0].current_version_summary.deployment_version.build_id == "1"

        await eventually(listed)

        request = api.DescribeTaskQueueRequest(namespace=client.namespace)
        request.task_queue.name = queue
        described = await service.describe_task_queue(request)
        assert described.versioning_info.current_deployment_version.build_id == "1"
        delete = api.DeleteWorkerDeploymentVersionRequest(
            namespace=client.namespace,
            deployment_version=Version(deployment_name=deployment, build_id="1"),
            identity="me",
        )
        with rpc_error(RPCStatusCode.FAILED_PRECONDITION):
            await service.delete_worker_deployment_version(delete)


async def test_creation_by_request(client: Client) -> None:
    service, deployment = client.workflow_service, new_id("deployment")
    create = api.CreateWorkerDeploymentRequest(
        namespace=client.namespace, deployment_name=deployment, request_id="r", identity="me"
    )
    assert (await service.create_worker_deployment(create)).conflict_token
    await service.create_worker_deployment(create)
    create.request_id = "other"
    with rpc_error(RPCStatusCode.ALREADY_EXISTS):
        await service.create_worker_deployment(create)
    version = api.CreateWorkerDeploymentVersionRequest(
        namespace=client.namespace,
        deployment_version=Version(deployment_name=deployment, build_id="1"),
        request_id="v",
    )
    await service.create_worker_deployment_version(version)
    info = await describe_version(client, deployment, "1")
    assert info.status == enums.WorkerDeploymentVersionStatus.WORKER_DEPLOYMENT_VERSION_STATUS_CREATED
    remove = api.DeleteWorkerDeploymentRequest(namespace=client.namespace, deployment_name=deployment)
    with rpc_error(RPCStatusCode.FAILED_PRECONDITION):
        await service.delete_worker_deployment(remove)
    await service.delete_worker_deployment_version(
        api.DeleteWorkerDeploymentVersionRequest(
            namespace=client.namespace, deployment_version=version.deployment_version
        )
    )
    await service.delete_worker_deployment(remove)
    with rpc_error(RPCStatusCode.NOT_FOUND):
        await describe(client, deployment)


async def test_drainage(client: Client) -> None:
    queue, deployment = new_id("queue"), new_id("deployment")
    draining = enums.VersionDrainageStatus.VERSION_DRAINAGE_STATUS_DRAINING
    drained = enums.VersionDrainageStatus.VERSION_DRAINAGE_STATUS_DRAINED
    async with (
        versioned_worker(client, queue, deployment, "1", [waiting(PINNED, "1")]),
        versioned_worker(client, queue, deployment, "2", [waiting(PINNED, "2")]),
    ):
        await set_current(client, deployment, "1")
        await set_current(client, deployment, "2")
        assert (await describe_version(client, deployment, "1")).drainage_info.status == draining

        async def is_drained() -> bool:
            return (await describe_version(client, deployment, "1")).drainage_info.status == drained

        await eventually(is_drained, seconds=60)
        status = (await describe_version(client, deployment, "1")).status
        assert status == enums.WorkerDeploymentVersionStatus.WORKER_DEPLOYMENT_VERSION_STATUS_DRAINED


async def test_the_first_form_of_deployments_is_gone(client: Client) -> None:
    request = api.ListDeploymentsRequest(namespace=client.namespace)
    with rpc_error(RPCStatusCode.UNIMPLEMENTED):
        await client.workflow_service.list_deployments(request)


@pytest.mark.kills_server
async def test_what_was_decided_survives_the_server(new_server: NewServer) -> None:
    server = await new_server()
    client = await Client.connect(server.address)
    queue, deployment = new_id("queue"), new_id("deployment")
    workers = [waiting(PINNED, "1")], [waiting(PINNED, "2")]
    async with (
        versioned_worker(client, queue, deployment, "1", workers[0]),
        versioned_worker(client, queue, deployment, "2", workers[1]),
    ):
        await set_current(client, deployment, "1")
        old = await start(client, queue)
        await on_version(old, "1")
        await set_current(client, deployment, "2")
        await server.restart()
        new = await start(client, queue)
        await on_version(new, "2")
        await old.signal("step", True)
        assert await old.result() == ["step", "end 1"]
        await new.terminate()
