"""The older forms of worker versioning: sets of compatible build ids, and rules about them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from temporalio import activity, workflow
from temporalio.api.enums import v1 as enums
from temporalio.api.taskqueue.v1 import (
    BuildIdAssignmentRule,
    CompatibleBuildIdRedirectRule,
    RampByPercentage,
    TaskQueue,
    TaskQueueVersionSelection,
)
from temporalio.api.workflowservice import v1 as api
from temporalio.client import (
    BuildIdOpAddNewCompatible,
    BuildIdOpAddNewDefault,
    BuildIdOpMergeSets,
    BuildIdOpPromoteBuildIdWithinSet,
    BuildIdOpPromoteSetByBuildId,
    Client,
    TaskReachabilityType,
    WorkflowHandle,
)
from temporalio.service import RPCStatusCode
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from conftest import NewServer
from support import SOON, eventually, events_of, new_id, rpc_error

Update = api.UpdateWorkerVersioningRulesRequest


def outside(run: Any) -> Any:
    """The SDK refuses methods of local classes by their name. Here each build of the code is a class of its own."""
    run.__qualname__ = run.__qualname__.rpartition("<locals>.")[2]
    return run


def waiting(build_id: str) -> type:
    @workflow.defn(name="Waiting")
    class Waiting:
        def __init__(self) -> None:
            self.seen: list[str] = []
            self.steps = 0

        @workflow.run
        @outside
        async def run(self, steps: int) -> list[str]:
            for step in range(steps):
                await workflow.wait_condition(lambda step=step: self.steps > step)
                where = await workflow.execute_activity("where", start_to_close_timeout=SOON)
                self.seen.append(f"{build_id} {where}")
            return self.seen

        @workflow.signal
        async def step(self) -> None:
            self.steps += 1

        @workflow.query
        def build(self) -> str:
            return build_id

    return Waiting


@asynccontextmanager
async def worker(client: Client, queue: str, build_id: str | None = None) -> AsyncIterator[None]:
    """Of a build id, or one without."""

    @activity.defn
    async def where() -> str:
        return build_id or "none"

    options: dict[str, Any] = {}
    if build_id:
        options = {"build_id": build_id, "use_worker_versioning": True}
    # The SDK wants a connection for each of several workers of a task queue.
    own = await Client.connect(client.service_client.config.target_host, namespace=client.namespace)
    async with Worker(
        own,
        task_queue=queue,
        workflows=[waiting(build_id or "none")],
        activities=[where],
        workflow_runner=UnsandboxedWorkflowRunner(),
        **options,
    ):
        yield


async def start(client: Client, queue: str, steps: int = 1) -> WorkflowHandle[Any, Any]:
    return await client.start_workflow("Waiting", steps, id=new_id(), task_queue=queue)


async def finish(handle: WorkflowHandle[Any, Any]) -> list[str]:
    await handle.signal("step")
    return await handle.result()


class Rules:
    """The rules of one task queue."""

    def __init__(self, client: Client, queue: str) -> None:
        self.client, self.queue = client, queue
        self.token = b""

    async def get(self) -> api.GetWorkerVersioningRulesResponse:
        request = api.GetWorkerVersioningRulesRequest(namespace=self.client.namespace, task_queue=self.queue)
        response = await self.client.workflow_service.get_worker_versioning_rules(request)
        self.token = response.conflict_token
        return response

    async def update(self, **operation: Any) -> api.UpdateWorkerVersioningRulesResponse:
        if not self.token:
            await self.get()
        request = Update(
            namespace=self.client.namespace, task_queue=self.queue, conflict_token=self.token, **operation
        )
        response = await self.client.workflow_service.update_worker_versioning_rules(request)
        self.token = response.conflict_token
        return response

    async def insert(self, build_id: str, percent: float | None = None) -> None:
        rule = BuildIdAssignmentRule(target_build_id=build_id)
        if percent is not None:
            rule.percentage_ramp.CopyFrom(RampByPercentage(ramp_percentage=percent))
        await self.update(insert_assignment_rule=Update.InsertBuildIdAssignmentRule(rule=rule))

    async def redirect(self, source: str, target: str) -> None:
        rule = CompatibleBuildIdRedirectRule(source_build_id=source, target_build_id=target)
        await self.update(add_compatible_redirect_rule=Update.AddCompatibleBuildIdRedirectRule(rule=rule))

    async def commit(self, build_id: str, force: bool = False) -> None:
        await self.update(commit_build_id=Update.CommitBuildId(target_build_id=build_id, force=force))

    async def reachability(self, *build_ids: str) -> dict[str, str]:
        request = api.DescribeTaskQueueRequest(
            namespace=self.client.namespace,
            task_queue=TaskQueue(name=self.queue),
            api_mode=enums.DescribeTaskQueueMode.DESCRIBE_TASK_QUEUE_MODE_ENHANCED,
            versions=TaskQueueVersionSelection(build_ids=build_ids),
            report_task_reachability=True,
        )
        response = await self.client.workflow_service.describe_task_queue(request)
        name = enums.BuildIdTaskReachability.Name
        return {
            build_id: name(info.task_reachability).removeprefix("BUILD_ID_TASK_REACHABILITY_").lower()
            for build_id, info in response.versions_info.items()
        }


async def test_sets_say_which_workers_get_what(client: Client) -> None:
    queue = new_id("queue")
    await client.update_worker_build_id_compatibility(queue, BuildIdOpAddNewDefault("1.0"))
    async with worker(client, queue, "1.0"):
        first = await start(client, queue, 2)
        assert await first.query("build") == "1.0"
        await client.update_worker_build_id_compatibility(queue, BuildIdOpAddNewDefault("2.0"))
        async with worker(client, queue, "2.0"):
            second = await start(client, queue)
            assert await finish(second) == ["2.0 2.0"]
            await first.signal("step")

            async def stepped() -> bool:
                types = [event.event_type for event in await events_of(first)]
                return enums.EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED in types

            await eventually(stepped)
    # Workers of a newer build id of the same set take over what is open, and those of the older one get nothing more.
    await client.update_worker_build_id_compatibility(queue, BuildIdOpAddNewCompatible("1.1", "1.0"))
    async with worker(client, queue, "1.1"):
        assert await finish(first) == ["1.1 1.0", "1.1 1.1"]
    described = await first.describe()
    build_ids = described.typed_search_attributes
    assert described.raw_description.workflow_execution_info.most_recent_worker_version_stamp.build_id == "1.1"
    listed = [pair.value for pair in build_ids if pair.key.name == "BuildIds"]
    assert listed == [["versioned:1.0", "versioned:1.1"]]


async def test_sets_are_shown_promoted_and_merged(client: Client) -> None:
    queue = new_id("queue")
    update = client.update_worker_build_id_compatibility
    for build_id in ("1", "2", "3"):
        await update(queue, BuildIdOpAddNewDefault(build_id))
    await update(queue, BuildIdOpAddNewCompatible("1.1", "1"))

    async def sets(most: int | None = None) -> list[list[str]]:
        found = await client.get_worker_build_id_compatibility(queue, max_sets=most)
        return [list(one.build_ids) for one in found.version_sets]

    assert await sets() == [["1", "1.1"], ["2"], ["3"]]
    assert await sets(1) == [["3"]]
    await update(queue, BuildIdOpPromoteSetByBuildId("1"))
    await update(queue, BuildIdOpPromoteBuildIdWithinSet("1"))
    assert await sets() == [["2"], ["3"], ["1.1", "1"]]
    await update(queue, BuildIdOpMergeSets(primary_build_id="2", secondary_build_id="3"))
    assert await sets() == [["3", "2"], ["1.1", "1"]]
    with rpc_error(RPCStatusCode.INVALID_ARGUMENT):
        await update(queue, BuildIdOpAddNewDefault("2"))
    with rpc_error(RPCStatusCode.NOT_FOUND):
        await update(queue, BuildIdOpPromoteSetByBuildId("9"))


async def test_sets_say_what_can_reach_a_worker(client: Client) -> None:
    queue = new_id("queue")
    await client.update_worker_build_id_compatibility(queue, BuildIdOpAddNewDefault("1.0"))
    async with worker(client, queue, "1.0"):
        handle = await start(client, queue)
        assert await handle.query("build") == "1.0"

    async def reached(build_id: str) -> list[TaskReachabilityType]:
        found = await client.get_worker_task_reachability(
            build_ids=[build_id], task_queues=[queue], reachability_type=TaskReachabilityType.OPEN_WORKFLOWS
        )
        by_queue = found.build_id_reachability[build_id].task_queue_reachability
        return list(by_queue[queue])

    async def both() -> bool:
        return await reached("1.0") == [TaskReachabilityType.NEW_WORKFLOWS, TaskReachabilityType.OPEN_WORKFLOWS]

    await eventually(both)
    await client.update_worker_build_id_compatibility(queue, BuildIdOpAddNewCompatible("1.1", "1.0"))
    assert await reached("1.0") == []
    assert await reached("1.1") == [TaskReachabilityType.NEW_WORKFLOWS, TaskReachabilityType.OPEN_WORKFLOWS]
    assert await reached("9") == []


async def test_rules_assign_and_redirect(client: Client) -> None:
    queue = new_id("queue")
    rules = Rules(client, queue)
    await rules.insert("1.0")
    async with worker(client, queue, "1.0"):
        stays = await start(client, queue)
        moves = await start(client, queue, 2)
        for handle in (stays, moves):
            assert await handle.query("build") == "1.0"
        await rules.insert("2.0")
        async with worker(client, queue, "2.0"):
            # New ones go to the first rule's build id, open ones stay where they are.
            assert await finish(await start(client, queue)) == ["2.0 2.0"]
            assert await finish(stays) == ["1.0 1.0"]
            # A redirect takes along what is open.
            await rules.redirect("1.0", "2.0")
            await moves.signal("step")
            assert await finish(moves) == ["2.0 2.0", "2.0 2.0"]
    info = (await moves.describe()).raw_description.workflow_execution_info
    assert info.assigned_build_id == "2.0"
    # Workers whose build id is redirected get nothing.
    poll = api.PollWorkflowTaskQueueRequest(namespace=client.namespace, task_queue=TaskQueue(name=queue))
    poll.worker_version_capabilities.build_id = "1.0"
    poll.worker_version_capabilities.use_versioning = True
    with rpc_error(RPCStatusCode.OUT_OF_RANGE):
        await client.workflow_service.poll_workflow_task_queue(poll, timeout=SOON)


async def test_a_ramp_takes_its_share(client: Client) -> None:
    queue = new_id("queue")
    rules = Rules(client, queue)
    await rules.insert("1")
    await rules.insert("2", 50)
    async with worker(client, queue, "1"), worker(client, queue, "2"):
        results = [(await finish(await start(client, queue)))[0] for _ in range(24)]
    assert set(results) == {"1 1", "2 2"}


async def test_rules_are_changed_only_by_who_has_seen_them(client: Client) -> None:
    rules = Rules(client, new_id("queue"))
    await rules.insert("1")
    old = rules.token
    await rules.insert("2", 40)
    new, rules.token = rules.token, old
    with rpc_error(RPCStatusCode.FAILED_PRECONDITION):
        await rules.insert("3")
    rules.token = new
    with rpc_error(RPCStatusCode.FAILED_PRECONDITION):
        await rules.commit("2")
    await rules.commit("2", force=True)
    shown = await rules.get()
    assert [rule.rule.target_build_id for rule in shown.assignment_rules] == ["2"]
    assert shown.assignment_rules[0].HasField("create_time")


async def test_a_commit_needs_a_worker(client: Client) -> None:
    queue = new_id("queue")
    rules = Rules(client, queue)
    async with worker(client, queue, "1"):

        async def committed() -> bool:
            try:
                await rules.commit("1")
            except Exception:
                return False
            return True

        await eventually(committed)
    assert [rule.rule.target_build_id for rule in (await rules.get()).assignment_rules] == ["1"]


async def test_rules_say_what_can_reach_a_worker(client: Client) -> None:
    queue = new_id("queue")
    rules = Rules(client, queue)
    assert await rules.reachability("", "1") == {"": "reachable", "1": "unreachable"}
    await rules.insert("1")
    async with worker(client, queue, "1"):
        handle = await start(client, queue)
        assert await handle.query("build") == "1"
        await rules.insert("2")
        states = {"1": "reachable", "2": "reachable"}

        async def open_one() -> bool:
            return await rules.reachability("1", "2") == states

        await eventually(open_one)
        await finish(handle)

    async def closed_one() -> bool:
        return await rules.reachability("1") == {"1": "closed_workflows_only"}

    await eventually(closed_one)
    await rules.redirect("1", "2")
    assert await rules.reachability("1", "2") == {"1": "unreachable", "2": "reachable"}


async def test_what_unversioned_workers_began_stays_theirs(client: Client) -> None:
    queue = new_id("queue")
    async with worker(client, queue):
        handle = await start(client, queue)
        assert await handle.query("build") == "none"
        await Rules(client, queue).insert("1")
        async with worker(client, queue, "1"):
            assert await finish(await start(client, queue)) == ["1 1"]
            assert await finish(handle) == ["none none"]


@pytest.mark.kills_server
async def test_rules_outlive_the_server(new_server: NewServer) -> None:
    server = await new_server()
    client = await Client.connect(server.address)
    queue = new_id("queue")
    await Rules(client, queue).insert("1")
    server.kill()
    await server.restart()
    rules = Rules(client, queue)
    assert [rule.rule.target_build_id for rule in (await rules.get()).assignment_rules] == ["1"]
    async with worker(client, queue, "1"):
        assert await finish(await start(client, queue)) == ["1 1"]


@pytest.mark.kills_server
@pytest.mark.parametrize("off", ["Data", "Rule", "Workflow"])
async def test_each_form_can_be_switched_off(new_server: NewServer, off: str) -> None:
    server = await new_server("--dynamic-config-value", f"frontend.workerVersioning{off}APIs=false")
    client = await Client.connect(server.address)
    queue = new_id("queue")
    with rpc_error(RPCStatusCode.PERMISSION_DENIED):
        if off == "Data":
            await client.update_worker_build_id_compatibility(queue, BuildIdOpAddNewDefault("1"))
        elif off == "Rule":
            await Rules(client, queue).insert("1")
        else:
            poll = api.PollWorkflowTaskQueueRequest(namespace=client.namespace, task_queue=TaskQueue(name=queue))
            poll.worker_version_capabilities.build_id = "1"
            poll.worker_version_capabilities.use_versioning = True
            await client.workflow_service.poll_workflow_task_queue(poll, timeout=SOON)
