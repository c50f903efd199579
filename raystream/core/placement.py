"""Which brokers hold a new partition's replicas."""

from __future__ import annotations

from collections.abc import Mapping


def place(
    partitions: int, replication_factor: int, load: Mapping[int, int], leading: Mapping[int, int] | None = None
) -> list[tuple[int, ...]]:
    """Replicas for each of `partitions` new partitions, the leader first.

    `load` is how many replicas each live broker holds already, `leading` how many partitions it leads. Replicas go to
    the brokers that hold least, and of those the one that leads least becomes the leader, so that both counts stay
    within one of each other where they were. Deterministic: ties go to the lower broker id. The caller has checked
    that there are `replication_factor` brokers.
    """
    held = dict(load)
    leads = {broker: (leading or {}).get(broker, 0) for broker in load}
    placed = []
    for _ in range(partitions):
        chosen = sorted(held, key=lambda broker: (held[broker], leads[broker], broker))[:replication_factor]
        chosen.sort(key=lambda broker: (leads[broker], held[broker], broker))
        for broker in chosen:
            held[broker] += 1
        leads[chosen[0]] += 1
        placed.append(tuple(chosen))
    return placed
