"""The steps that touch the outside world. Each one leaves exactly one row in the ledger when it succeeds.

An activity may be tried many times (its worker may die, the network may fail), so each effect has an idempotency key
that is the same on every attempt. A real payment provider would take that key and ignore repeats; our ledger keeps
repeats on purpose, so that the demo can look for them.
"""

from __future__ import annotations

import asyncio

from temporalio import activity
from temporalio.exceptions import ApplicationError

from ledger import Ledger
from models import LineItem, Order

PROVISIONING_STEPS = 6
FAILED_ATTEMPTS = 2


class OrderActivities:
    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def _begin(self) -> tuple[str, int]:
        """Note this attempt and return the idempotency key of the step."""
        info = activity.info()
        key = f"{info.workflow_id}/{info.activity_type}"
        self._ledger.attempt(key, info.attempt)
        return key, info.attempt

    @activity.defn
    async def charge_payment(self, order: Order) -> str:
        key, attempt = self._begin()
        self._ledger.effect(key, f"charged {order.customer} {order.cents / 100:.2f}", attempt)
        return f"payment-{order.order_id}"

    @activity.defn
    async def provision_resource(self, order: Order) -> str:
        """The slow one. It heartbeats how far it got, and the next attempt goes on from there."""
        key, attempt = self._begin()
        details = activity.info().heartbeat_details
        done = int(details[0]) if details else 0
        for step in range(done + 1, PROVISIONING_STEPS + 1):
            await asyncio.sleep(0.5)
            activity.heartbeat(step)
        self._ledger.effect(key, f"provisioned for {order.customer}", attempt)
        return f"resource-{order.order_id}"

    @activity.defn
    async def ship_item(self, item: LineItem) -> str:
        key, attempt = self._begin()
        self._ledger.effect(key, f"shipped {item.quantity} x {item.sku}", attempt)
        return f"shipment-{item.sku}"

    @activity.defn
    async def update_billing(self, order: Order) -> None:
        """The flaky one: the billing system is down for the first attempts."""
        key, attempt = self._begin()
        if attempt <= FAILED_ATTEMPTS:
            raise ApplicationError(f"billing system is down (attempt {attempt})", type="BillingUnavailable")
        self._ledger.effect(key, f"billed {order.customer}", attempt)

    @activity.defn
    async def send_email(self, order: Order) -> None:
        key, attempt = self._begin()
        self._ledger.effect(key, f"mailed {order.customer}", attempt)
