"""What the workflow, the activities and the client say to one another."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class LineItem:
    sku: str
    quantity: int


@dataclass
class Order:
    order_id: str
    customer: str
    cents: int
    items: list[LineItem] = field(default_factory=list)
    fraud_window_seconds: float = 10.0


@dataclass
class Receipt:
    order_id: str
    payment: str
    resource: str
    approved_by: str
    shipments: list[str]
