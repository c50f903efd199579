"""Which brokers hold a partition's replicas: as many racks as possible, and there those that hold and lead least."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, MutableMapping, Sequence

from raystream.core.metadata import PartitionRecord

NO_RACKS: Mapping[int, str] = {}


def place(
    partitions: int,
    replication_factor: int,
    load: Mapping[int, int],
    leading: Mapping[int, int] | None = None,
    racks: Mapping[int, str] = NO_RACKS,
) -> list[tuple[int, ...]]:
    """Replicas for each of `partitions` new partitions, the leader first.

    `load` is how many replicas each live broker holds already, `leading` how many partitions it is the preferred leader
    of. The leader is the broker that leads least; the others go to different racks as far as there are any, and there
    to the brokers that hold least. So on empty brokers, but for racks of different sizes, both counts stay within one
    of each other. A broker of rack "" is a rack of its own. Deterministic: ties go to the lower broker id. The caller
    has checked that there are `replication_factor` brokers.
    """
    held = dict(load)
    leads = {broker: (leading or {}).get(broker, 0) for broker in load}
    placed = []
    for _ in range(partitions):
        leader = min(held, key=lambda broker: (leads[broker], held[broker], broker))
        chosen = (leader, *choose(replication_factor - 1, held, held, leads, racks, beside=(leader,)))
        for broker in chosen:
            held[broker] += 1
        leads[leader] += 1
        placed.append(chosen)
    return placed


def choose(
    count: int,
    candidates: Iterable[int],
    held: Mapping[int, int],
    leads: Mapping[int, int],
    racks: Mapping[int, str] = NO_RACKS,
    beside: Collection[int] = (),
) -> list[int]:
    """Up to `count` of the candidates that can hold replicas beside those on the brokers `beside`, the best first.

    Of those that hold as much it takes the ones that lead most: the others are the next to lead something new.
    """
    able = (broker for broker in candidates if broker not in beside)
    ranked = sorted(able, key=lambda broker: (held.get(broker, 0), -leads.get(broker, 0), broker))
    crowd: dict[str | int, int] = {}
    for broker in beside:
        _enter(crowd, rack_of(broker, racks))
    chosen: list[int] = []
    while ranked and len(chosen) < count:
        best = min(ranked, key=lambda broker: crowd.get(rack_of(broker, racks), 0))  # the first of equals
        ranked.remove(best)
        _enter(crowd, rack_of(best, racks))
        chosen.append(best)
    return chosen


def rack_of(broker: int, racks: Mapping[int, str]) -> str | int:
    """The broker's rack; one that is in none is a rack of its own."""
    return racks.get(broker) or broker


def loads(partitions: Iterable[PartitionRecord]) -> tuple[dict[int, int], dict[int, int]]:
    """How many replicas each broker holds, or is to hold, and how many partitions it is the preferred leader of.

    Who leads now changes with every failure, and upkeep brings it back; what is placed stays. Brokers with none lack.
    """
    held: dict[int, int] = {}
    leads: dict[int, int] = {}
    for record in partitions:
        replicas = target(record)
        for broker in replicas:
            held[broker] = held.get(broker, 0) + 1
        leads[replicas[0]] = leads.get(replicas[0], 0) + 1
    return held, leads


def target(record: PartitionRecord) -> tuple[int, ...]:
    """The replicas that the partition has once the reassignment under way is done."""
    if not record.removing:
        return record.replicas
    return tuple(broker for broker in record.replicas if broker not in record.removing)


def shrunk(
    replicas: Sequence[int], count: int, rank: Mapping[int, int], held: Mapping[int, int], racks: Mapping[int, str]
) -> tuple[int, ...]:
    """`count` of the replicas, in their order. Those of the highest `rank` go first; of the same rank those whose rack
    holds another, then those that hold most."""
    kept = list(replicas)
    while len(kept) > count:
        crowd: dict[str | int, int] = {}
        for broker in kept:
            _enter(crowd, rack_of(broker, racks))
        worst = max(kept, key=lambda b: (rank.get(b, 0), crowd[rack_of(b, racks)], held.get(b, 0), b))
        kept.remove(worst)
    return tuple(kept)


def _enter(crowd: MutableMapping[str | int, int], rack: str | int) -> None:
    crowd[rack] = crowd.get(rack, 0) + 1
