"""Quotas: what clients may move, and how long one that has moved more than that is held back.

A client's account on a node is one number: until when what it has moved is paid for, at its rate (a token bucket in its
virtual scheduling form). Ahead of the clock it is debt, which is waited for; behind it is credit, up to BURST_MS.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from raystream.core import arguments
from raystream.core.metadata import QuotaRecord
from raystream.core.records import Record, Removed, removed
from raystream.errors import InvalidArgument
from raystream.messages import ClientQuota

BURST_MS: Final = 1_000.0
"""A second's worth may be moved at once."""
MAX_THROTTLE_MS: Final = 30_000.0
"""One wait is no longer; whoever owes more is told so again."""
MAX_QUOTAS: Final = 1_000
MAX_CLIENT_ID_CHARACTERS: Final = 249
MAX_BYTES_PER_S: Final = 2**50
DEFAULT: Final = ""
"""The client id that stands for all that have no quota of their own."""


def decide(known: Mapping[str, QuotaRecord], wanted: ClientQuota) -> list[Record | Removed]:
    """Sets a client id's quota, or removes it where nothing is limited. Raises InvalidArgument."""
    client_id = arguments.text("client_id", wanted.client_id, at_least=0, at_most=MAX_CLIENT_ID_CHARACTERS)
    produce = _rate("produce_bytes_per_s", wanted.produce_bytes_per_s)
    fetch = _rate("fetch_bytes_per_s", wanted.fetch_bytes_per_s)
    before = known.get(client_id)
    if produce is None and fetch is None:
        return [] if before is None else [removed(before)]
    if before is None and len(known) >= MAX_QUOTAS:
        raise InvalidArgument(f"there are {MAX_QUOTAS:,} quotas already; remove one first")
    record = QuotaRecord(client_id, produce, fetch)
    return [] if record == before else [record]


def _rate(name: str, value: object) -> int | None:
    if value is None:
        return None
    rate = arguments.whole(name, value)
    if not 1 <= rate <= MAX_BYTES_PER_S:
        raise InvalidArgument(f"{name}={rate}: give 1 or more bytes per second, or None for no limit")
    return rate


def applying(quotas: Iterable[ClientQuota], client_id: str) -> ClientQuota | None:
    """The quota that counts for a client: its own, else the default, else none."""
    found = None
    for quota in quotas:
        if quota.client_id == client_id:
            return quota
        if quota.client_id == DEFAULT:
            found = quota
    return found


def charged(paid_until_ms: float, now_ms: float, size_bytes: int, bytes_per_s: int) -> float:
    """Until when the client has paid, after it has moved `size_bytes` more. Credit older than the burst is gone."""
    return max(paid_until_ms, now_ms - BURST_MS) + size_bytes * 1000.0 / bytes_per_s


def throttle_ms(paid_until_ms: float, now_ms: float) -> float:
    """How long the client is to wait: 0 while it keeps to its rate."""
    return min(max(paid_until_ms - now_ms, 0.0), MAX_THROTTLE_MS)
