"""An order, from payment to e-mail. The code reads as if nothing could ever crash."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy

with workflow.unsafe.imports_passed_through():
    from activities import OrderActivities
    from models import LineItem, Order, Receipt

RETRY = RetryPolicy(
    initial_interval=timedelta(milliseconds=500),
    backoff_coefficient=2.0,
    maximum_interval=timedelta(seconds=5),
    non_retryable_error_types=["CardDeclined"],
)
TEN_SECONDS = timedelta(seconds=10)


@workflow.defn
class OrderWorkflow:
    def __init__(self) -> None:
        self._stage = "new"
        self._approved_by: str | None = None

    @workflow.run
    async def run(self, order: Order) -> Receipt:
        # A durable timer: it runs on the server, whatever happens to this worker.
        fraud_window = asyncio.create_task(workflow.sleep(timedelta(seconds=order.fraud_window_seconds)))

        self._stage = "charging"
        payment = await workflow.execute_activity_method(
            OrderActivities.charge_payment, order, start_to_close_timeout=TEN_SECONDS, retry_policy=RETRY
        )

        self._stage = "provisioning"
        resource = await workflow.execute_activity_method(
            OrderActivities.provision_resource,
            order,
            start_to_close_timeout=timedelta(minutes=1),
            heartbeat_timeout=timedelta(seconds=3),
            retry_policy=RETRY,
        )

        self._stage = "waiting for approval"
        await workflow.wait_condition(lambda: self._approved_by is not None)
        await fraud_window

        self._stage = "shipping"
        order_id = workflow.info().workflow_id
        shipments = await asyncio.gather(
            *(workflow.execute_child_workflow(ShipItem.run, item, id=f"{order_id}/{item.sku}") for item in order.items)
        )

        self._stage = "billing"
        await workflow.execute_activity_method(
            OrderActivities.update_billing, order, start_to_close_timeout=TEN_SECONDS, retry_policy=RETRY
        )
        await workflow.execute_activity_method(
            OrderActivities.send_email, order, start_to_close_timeout=TEN_SECONDS, retry_policy=RETRY
        )

        self._stage = "done"
        assert self._approved_by is not None
        return Receipt(order.order_id, payment, resource, self._approved_by, list(shipments))

    @workflow.signal
    def approve(self, who: str) -> None:
        self._approved_by = who

    @workflow.query
    def stage(self) -> str:
        return self._stage


@workflow.defn
class ShipItem:
    @workflow.run
    async def run(self, item: LineItem) -> str:
        return await workflow.execute_activity_method(
            OrderActivities.ship_item, item, start_to_close_timeout=TEN_SECONDS, retry_policy=RETRY
        )
