"""Runs the order workflow and its activities: python worker.py --address 127.0.0.1:7233 --ledger effects.db"""

from __future__ import annotations

import argparse
import asyncio
import logging
from datetime import timedelta
from pathlib import Path

from temporalio.client import Client
from temporalio.worker import Worker

from activities import OrderActivities
from ledger import Ledger
from workflows import OrderWorkflow, ShipItem

TASK_QUEUE = "orders"


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", default="127.0.0.1:7233")
    parser.add_argument("--ledger", type=Path, default=Path("effects.db"))
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)

    activities = OrderActivities(Ledger(options.ledger))
    worker = Worker(
        await Client.connect(options.address),
        task_queue=TASK_QUEUE,
        workflows=[OrderWorkflow, ShipItem],
        activities=[
            activities.charge_payment,
            activities.provision_resource,
            activities.ship_item,
            activities.update_billing,
            activities.send_email,
        ],
        max_heartbeat_throttle_interval=timedelta(milliseconds=500),  # the demo wants to see progress early
    )
    await worker.run()


if __name__ == "__main__":
    asyncio.run(main())
