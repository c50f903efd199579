"""How long clients waited after each fault, from a run's history."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, Final

from benchmarks.chaos.faults import TOPIC

ANYTHING: Final = "anything"
WELL_BEFORE_S: Final = 0.5
"""A wait that begins later than this before a fault is that fault's."""
Waits = dict[str, list[float]]


def times_to_recover(history: Path) -> tuple[Waits, Waits]:
    """Seconds by the fault's name, one for each time that it was injected: of sends, and of groups.

    It is the longest time in which sends to a partition were not acknowledged, or a group got no records, of all
    partitions or groups: counted from the fault, or from what still came after it, and begun well before the next one.
    Of the plain producers' topic and its groups: a pipeline, and who writes in transactions, pause now and then anyway.
    """
    faults: list[tuple[float, str]] = []
    sends: dict[object, list[float]] = {}
    groups: dict[object, list[float]] = {}
    with open(history) as lines:
        for line in lines:
            operation = json.loads(line)
            at, kind, type_ = operation["time"] / 1e9, operation["kind"], operation["type"]
            if kind == "fault" and type_ == "invoke":
                faults.append((at, operation.get("value", ANYTHING)))
            elif kind == "send" and type_ == "ok" and operation["topic"] == TOPIC:
                sends.setdefault(operation["partition"], []).append(at)
            elif kind == "poll" and type_ == "ok" and _of_a_group(operation):
                groups.setdefault(operation["group"], []).append(at)
    end_s = max((times[-1] for times in sends.values()), default=0.0)
    return _waits(faults, sends, end_s), _waits(faults, groups, end_s)


def _of_a_group(poll: dict[str, Any]) -> bool:
    return bool(poll.get("records") and poll.get("group") and not poll.get("txn"))


def _waits(faults: list[tuple[float, str]], seen: dict[object, list[float]], end_s: float) -> Waits:
    waits: Waits = {}
    for (begun, fault), (over, _) in itertools.pairwise([*faults, (end_s, "")]):
        longest = max((_longest(times, begun, over, end_s) for times in seen.values()), default=end_s - begun)
        waits.setdefault(fault, []).append(round(longest, 3))
    return waits


def _longest(times: list[float], begun: float, over: float, end_s: float) -> float:
    moments = [begun, *(moment for moment in times if moment > begun)]
    if moments[-1] < end_s:
        moments.append(end_s)
    latest = max(over - WELL_BEFORE_S, begun)
    return max((after - before for before, after in itertools.pairwise(moments) if before <= latest), default=0.0)
