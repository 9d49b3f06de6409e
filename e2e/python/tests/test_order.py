"""The order example: its result, its effects and its history, event by event."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from temporalio.client import Client, WorkflowHandle
from temporalio.worker import Replayer
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from activities import OrderActivities
from ledger import Ledger
from models import LineItem, Order, Receipt
from support import ACTIVITY, SOON, WORKFLOW_TASK, attributes_of, events_of, eventually, new_id, run_worker, types_of
from workflows import OrderWorkflow, ShipItem


@asynccontextmanager
async def order_worker(client: Client, ledger: Ledger) -> AsyncIterator[str]:
    acts = OrderActivities(ledger)
    steps = [acts.charge_payment, acts.provision_resource, acts.ship_item, acts.update_billing, acts.send_email]
    async with run_worker(
        client, [OrderWorkflow, ShipItem], steps, workflow_runner=SandboxedWorkflowRunner()
    ) as task_queue:
        yield task_queue


async def approve_when_asked(handle: WorkflowHandle[OrderWorkflow, Receipt]) -> None:
    async def waits() -> bool:
        return await handle.query(OrderWorkflow.stage) == "waiting for approval"

    await eventually(waits)
    await handle.signal(OrderWorkflow.approve, "Grace")


async def test_history_of_an_order_event_by_event(client: Client, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "effects.db")
    order = Order(new_id("order"), "Ada", 500, items=[], fraud_window_seconds=1.5)
    async with order_worker(client, ledger) as task_queue:
        handle = await client.start_workflow(
            OrderWorkflow.run, order, id=order.order_id, task_queue=task_queue, execution_timeout=timedelta(minutes=1)
        )
        await approve_when_asked(handle)
        receipt = await handle.result()

    assert receipt == Receipt(order.order_id, f"payment-{order.order_id}", f"resource-{order.order_id}", "Grace", [])
    events = await events_of(handle)
    assert types_of(events) == [
        "WorkflowExecutionStarted",
        *WORKFLOW_TASK,
        "ActivityTaskScheduled",  # charge_payment
        "TimerStarted",
        "ActivityTaskStarted",
        "ActivityTaskCompleted",
        *WORKFLOW_TASK,
        "ActivityTaskScheduled",  # provision_resource
        "TimerFired",
        *WORKFLOW_TASK,
        "ActivityTaskStarted",
        "ActivityTaskCompleted",
        *WORKFLOW_TASK,
        "WorkflowExecutionSignaled",
        *WORKFLOW_TASK,
        *ACTIVITY,  # update_billing
        *WORKFLOW_TASK,
        *ACTIVITY,  # send_email
        *WORKFLOW_TASK,
        "WorkflowExecutionCompleted",
    ]

    started = attributes_of(events[0])
    assert started.workflow_type.name == "OrderWorkflow"
    assert started.task_queue.name == task_queue
    assert started.workflow_id == order.order_id
    assert started.original_execution_run_id == started.first_execution_run_id == handle.result_run_id
    assert started.attempt == 1
    assert started.workflow_execution_timeout.seconds == started.workflow_run_timeout.seconds == 60
    assert started.workflow_task_timeout.seconds == 10
    assert started.identity

    first_task = attributes_of(events[1])
    assert (first_task.task_queue.name, first_task.attempt) == (task_queue, 1)
    assert first_task.start_to_close_timeout.seconds == 10
    assert attributes_of(events[2]).scheduled_event_id == 2
    assert (attributes_of(events[3]).scheduled_event_id, attributes_of(events[3]).started_event_id) == (2, 3)

    charge = attributes_of(events[4])
    assert charge.activity_type.name == "charge_payment"
    assert charge.workflow_task_completed_event_id == 4
    assert charge.retry_policy.initial_interval.ToMilliseconds() == 500
    assert list(charge.retry_policy.non_retryable_error_types) == ["CardDeclined"]
    assert charge.start_to_close_timeout.seconds == 10
    assert charge.schedule_to_close_timeout.seconds == charge.schedule_to_start_timeout.seconds == 60
    assert attributes_of(events[5]).start_to_fire_timeout.ToMilliseconds() == 1500
    assert attributes_of(events[6]).scheduled_event_id == 5
    assert (attributes_of(events[7]).scheduled_event_id, attributes_of(events[7]).started_event_id) == (5, 7)
    assert attributes_of(events[12]).started_event_id == 6

    billing_started = attributes_of(events[-12])
    assert billing_started.attempt == 3
    assert billing_started.last_failure.message == "billing system is down (attempt 2)"
    assert attributes_of(events[-1]).workflow_task_completed_event_id == len(events) - 1

    keys = [
        f"{order.order_id}/{step}" for step in ("charge_payment", "provision_resource", "update_billing", "send_email")
    ]
    assert ledger.effects() == Counter(keys)


async def test_order_with_items_ships_each_in_a_child(client: Client, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "effects.db")
    items = [LineItem(sku, 1) for sku in ("a", "b", "c")]
    order = Order(new_id("order"), "Ada", 500, items, fraud_window_seconds=0.1)
    async with order_worker(client, ledger) as task_queue:
        handle = await client.start_workflow(
            OrderWorkflow.run, order, id=order.order_id, task_queue=task_queue, execution_timeout=SOON
        )
        await approve_when_asked(handle)
        receipt = await handle.result()
        assert receipt.shipments == ["shipment-a", "shipment-b", "shipment-c"]

        counts = Counter(types_of(await events_of(handle)))
        assert counts["StartChildWorkflowExecutionInitiated"] == 3
        assert counts["ChildWorkflowExecutionStarted"] == 3
        assert counts["ChildWorkflowExecutionCompleted"] == 3
        for item in items:
            child = await events_of(client.get_workflow_handle(f"{order.order_id}/{item.sku}"))
            assert types_of(child) == [
                "WorkflowExecutionStarted", *WORKFLOW_TASK, *ACTIVITY, *WORKFLOW_TASK, "WorkflowExecutionCompleted",
            ]  # fmt: skip
            assert attributes_of(child[0]).parent_workflow_execution.workflow_id == handle.id
            assert attributes_of(child[0]).parent_workflow_execution.run_id == handle.result_run_id
            assert attributes_of(child[0]).root_workflow_execution.workflow_id == handle.id
        assert all(count == 1 for count in ledger.effects().values())
        await Replayer(workflows=[OrderWorkflow, ShipItem]).replay_workflow(await handle.fetch_history())
