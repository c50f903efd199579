"""Which brokers hold a new partition's replicas."""

from __future__ import annotations

from collections.abc import Mapping


def place(partitions: int, replication_factor: int, load: Mapping[int, int]) -> list[tuple[int, ...]]:
    """Replicas for each of `partitions` new partitions: the leader first, each on the brokers that hold least.

    `load` is how many replicas each live broker holds already. Deterministic: ties go to the lower broker id. The
    caller has checked that there are `replication_factor` brokers.
    """
    held = dict(load)
    placed = []
    for _ in range(partitions):
        chosen = sorted(held, key=lambda broker: (held[broker], broker))[:replication_factor]
        for broker in chosen:
            held[broker] += 1
        placed.append(tuple(chosen))
    return placed
