"""The topics that raystream keeps for itself."""

from __future__ import annotations

from typing import Final

from raystream import messages as m
from raystream.config import MIB
from raystream.core.metadata import OFFSETS_TOPIC

OFFSETS_SEGMENT_BYTES: Final = 4 * MIB
"""A small one: what a snapshot of the groups replaces is given back by whole segments."""


def internal_topics() -> dict[str, m.CreateTopicRequest]:
    """By name; each with a fixed number of partitions, since a group's partition is a hash of its name."""
    config = {"segment_bytes": OFFSETS_SEGMENT_BYTES}
    return {OFFSETS_TOPIC: m.CreateTopicRequest(name=OFFSETS_TOPIC, partitions=1, config=config, exist_ok=True)}
