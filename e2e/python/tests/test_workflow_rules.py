"""Rules of a namespace: activities that one means are paused before a worker has them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from temporalio import activity, workflow
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.rules.v1 import WorkflowRuleAction, WorkflowRuleSpec
from temporalio.api.workflowservice.v1 import (
    CreateWorkflowRuleRequest,
    DeleteWorkflowRuleRequest,
    DescribeWorkflowRuleRequest,
    ListWorkflowRulesRequest,
    TriggerWorkflowRuleRequest,
    UnpauseActivityRequest,
)
from temporalio.client import Client
from temporalio.service import RPCStatusCode

from support import SOON, eventually, new_id, rpc_error, run_worker

pytestmark = pytest.mark.perdure_only


@activity.defn
async def charge() -> str:
    return "charged"


@workflow.defn
class Order:
    @workflow.run
    async def run(self) -> str:
        return await workflow.execute_activity(charge, start_to_close_timeout=timedelta(minutes=1))


def spec(id: str, queue: str) -> WorkflowRuleSpec:
    return WorkflowRuleSpec(
        id=id,
        activity_start=WorkflowRuleSpec.ActivityStartingTrigger(
            predicate=f"ActivityType = 'charge' AND TaskQueue = '{queue}'"
        ),
        visibility_query="WorkflowType = 'Order'",
        actions=[WorkflowRuleAction(activity_pause=WorkflowRuleAction.ActionActivityPause())],
    )


async def test_a_rule_pauses_before_the_start(client: Client) -> None:
    service, namespace, id, queue = client.workflow_service, client.namespace, new_id("rule"), new_id("queue")
    created = await service.create_workflow_rule(
        CreateWorkflowRuleRequest(namespace=namespace, spec=spec(id, queue), identity="me", description="a test")
    )
    assert created.rule.created_by_identity == "me"
    with rpc_error(RPCStatusCode.INVALID_ARGUMENT, "already exists"):
        await service.create_workflow_rule(CreateWorkflowRuleRequest(namespace=namespace, spec=spec(id, queue)))
    try:
        described = await service.describe_workflow_rule(DescribeWorkflowRuleRequest(namespace=namespace, rule_id=id))
        assert described.rule.spec == spec(id, queue)
        listed = await service.list_workflow_rules(ListWorkflowRulesRequest(namespace=namespace))
        assert id in [rule.spec.id for rule in listed.rules]
        async with run_worker(client, [Order], [charge], task_queue=queue):
            handle = await client.start_workflow(Order.run, id=new_id("order"), task_queue=queue)

            async def is_paused() -> bool:
                pending = (await handle.describe()).raw_description.pending_activities
                if not pending:
                    return False
                assert len(pending) == 1 and pending[0].paused
                assert pending[0].pause_info.rule.rule_id == id
                return True

            await eventually(is_paused)
            await service.delete_workflow_rule(DeleteWorkflowRuleRequest(namespace=namespace, rule_id=id))
            await service.unpause_activity(
                UnpauseActivityRequest(
                    namespace=namespace, execution=WorkflowExecution(workflow_id=handle.id), type="charge"
                ),
                timeout=SOON,
            )
            assert await handle.result() == "charged"
    finally:
        rules = await service.list_workflow_rules(ListWorkflowRulesRequest(namespace=namespace))
        if id in [rule.spec.id for rule in rules.rules]:
            await service.delete_workflow_rule(DeleteWorkflowRuleRequest(namespace=namespace, rule_id=id))
    with rpc_error(RPCStatusCode.INVALID_ARGUMENT, "not Found"):
        await service.delete_workflow_rule(DeleteWorkflowRuleRequest(namespace=namespace, rule_id=id))


async def test_a_rule_is_triggered_by_hand(client: Client) -> None:
    async with run_worker(client, [Order]) as queue:
        # There is no worker for activities.
        handle = await client.start_workflow(Order.run, id=new_id("order"), task_queue=queue)

        async def trigger(rule: WorkflowRuleSpec) -> bool:
            response = await client.workflow_service.trigger_workflow_rule(
                TriggerWorkflowRuleRequest(
                    namespace=client.namespace, execution=WorkflowExecution(workflow_id=handle.id), spec=rule
                )
            )
            return response.applied

        async def is_pending() -> bool:
            return len((await handle.describe()).raw_description.pending_activities) == 1

        await eventually(is_pending)
        assert not await trigger(spec("by hand", "another queue"))
        assert await trigger(spec("by hand", queue))
        (pending,) = (await handle.describe()).raw_description.pending_activities
        assert pending.paused
        await handle.terminate()


async def test_a_rule_that_cannot_be_read_is_refused(client: Client) -> None:
    rule = spec(new_id("rule"), "queue")
    rule.activity_start.predicate = "Colour = 'red'"
    with rpc_error(RPCStatusCode.INVALID_ARGUMENT):
        await client.workflow_service.create_workflow_rule(
            CreateWorkflowRuleRequest(namespace=client.namespace, spec=rule)
        )
