"""Positions of groups that nobody has belonged to for long are forgotten.

The time is the wall clock's, because it outlives coordinators: a look at all groups now and then notes in the log since
when a group has been empty, and a later one, `OFFSETS_RETENTION_MS` after that, drops it. Whatever begins a new epoch
(a member joins or leaves) takes the note back, and a commit of an administrator starts it anew.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Final

from raystream.core.group_state import Group
from raystream.core.records import Record, Removed, removed

OFFSETS_RETENTION_MS: Final = 7 * 86_400_000
EXPIRY_LOOK_EVERY_MS: Final = 60_000


def expired(groups: Iterable[Group], wall_ms: int) -> tuple[Record | Removed, ...]:
    """What to write down at a look at `wall_ms`, milliseconds since the epoch."""
    records: list[Record | Removed] = []
    for group in groups:
        if not group.offsets or group.members:
            continue
        if not group.empty_since_ms or group.empty_since_ms > wall_ms:  # the latter: the clock was set back
            records.append(dataclasses.replace(group.record(), empty_since_ms=wall_ms))
        elif wall_ms - group.empty_since_ms >= OFFSETS_RETENTION_MS:
            records += [removed(position) for position in group.offsets.values()]
            records.append(removed(group.record()))
    return tuple(records)
