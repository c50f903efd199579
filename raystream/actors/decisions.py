"""What the controller may be asked to decide, by name: the requests of clients and brokers, turned to the core."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from raystream import messages as m
from raystream.core.controller import Controller
from raystream.schema import RAW_SCHEMA

DECISIONS: Final[dict[str, Callable[[Controller, Any], Any]]] = {
    "create_topic": lambda c, r: create_topic(r[0], r[1], c),
    "alter_topic": lambda c, r: c.alter_topic(r),
    "delete_topic": lambda c, r: c.delete_topic(r),
    "replicas_changed": lambda c, r: c.replicas_changed(r),
    "alter_isr": lambda c, r: c.alter_isr(r),
    "reassign": lambda c, r: c.reassign(r),
    "elect_leaders": lambda c, r: c.elect_leaders(r),
    "drain_broker": lambda c, r: c.drain_broker(r),
    "set_quota": lambda c, r: c.set_quota(r),
}
CHANGES: Final = frozenset({"delete_topic", "elect_leaders", "drain_broker", "set_quota"})
"""Those that clients may ask for and that answer nothing but that they are made."""


def create_topic(
    request: m.CreateTopicRequest, topic_id: str, controller: Controller, *, internal: bool = False
) -> Any:
    """A topic whose id is drawn by whoever asks, so that a decision depends on the image alone."""
    raw_schema = RAW_SCHEMA.serialize().to_pybytes()
    return controller.create_topic(request, topic_id=topic_id, raw_schema=raw_schema, internal=internal)
