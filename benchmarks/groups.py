"""Groups at scale: members by the hundred as threads of a few processes, storms of leaving and joining, one member
more, and the lag of many partitions.

python -m benchmarks.groups --members 200 --partitions 400 --processes 8
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import ray

import raystream as rs
from benchmarks.harness import arguments, machine

TOPIC: Final = "storm"
GROUP: Final = "storm"
SETTLE_WITHIN_S: Final = 60.0
Owners = dict[tuple[str, int], str]


class Herd:
    """Some members of the group in one process, each polled by a thread of its own."""

    def __init__(self, cluster: rs.Cluster) -> None:
        self._cluster = cluster
        self._members: list[tuple[rs.Consumer, threading.Thread]] = []

    def join(self, count: int) -> None:
        opening = [threading.Thread(target=self._join) for _ in range(count)]
        for thread in opening:
            thread.start()
        for thread in opening:
            thread.join()

    def _join(self) -> None:
        consumer = self._cluster.consumer(TOPIC, group=GROUP, start="earliest")
        thread = threading.Thread(target=consumer.run, kwargs={"each_batch": len})
        thread.start()
        self._members.append((consumer, thread))

    def leave(self, count: int) -> None:
        """The members that joined first leave."""
        leaving, self._members = self._members[:count], self._members[count:]
        for consumer, thread in leaving:
            consumer.stop()
            thread.join()
        closing = [threading.Thread(target=consumer.close) for consumer, _ in leaving]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join()

    def slots(self) -> dict[tuple[str, int], int]:
        """What each partition is read by: another number means that its reading was interrupted."""
        assigned = (consumer._session.assigned() for consumer, _ in self._members)
        return {(p.topic, p.partition): id(slot) for slots in assigned for p, slot in slots.items()}


def on_all(herds: list[Any], call: Callable[[Any], Any]) -> list[Any]:
    answers: list[Any] = ray.get([call(herd) for herd in herds], timeout=120)
    return answers


def settled(cluster: rs.Cluster, members: int) -> Owners:
    """Waits until so many members have what they should; who has what."""
    deadline = time.monotonic() + SETTLE_WITHIN_S
    while time.monotonic() < deadline:
        group = cluster.describe_group(GROUP)
        if group.state == "stable" and group.members == members:
            return {(p.topic, p.partition): member.member_id for member in group.member_list for p in member.partitions}
        time.sleep(0.1)
    raise TimeoutError(f"{group.members} of {members} members, {group.state}, after {SETTLE_WITHIN_S:.0f} s")


def phase(
    what: str, cluster: rs.Cluster, herds: list[Any], members: tuple[int, int], change: Callable[[Any], Any]
) -> None:
    """Members come or go: how long until all is settled, and what moved. The least is what balance takes."""
    before, slots = settled(cluster, members[0]), on_all(herds, lambda herd: herd.slots.remote())
    started = time.monotonic()
    changing = [change(herd) for herd in herds]
    ray.get(changing, timeout=120)
    after = settled(cluster, members[1])
    took_s = time.monotonic() - started
    moved = sum(after[p] != owner for p, owner in before.items())
    least = least_moved(counts(before), counts(after))
    now: dict[tuple[str, int], int] = {}
    for found in on_all(herds, lambda herd: herd.slots.remote()):
        now |= found
    stayed = {p: slot for found in slots for p, slot in found.items() if after[p] == before[p]}
    interrupted = sum(now.get(p) != slot for p, slot in stayed.items())
    print(f"| a tenth {what} | {took_s:.1f} s | {moved} moved, {least} at least | {interrupted} of {len(stayed)} |")


def least_moved(had: dict[str, int], has: dict[str, int]) -> int:
    """How many partitions must have moved, given how many each member had and has."""
    return sum(max(count - had.get(member, 0), 0) for member, count in has.items())


def counts(owners: Owners) -> dict[str, int]:
    found: dict[str, int] = {}
    for member in owners.values():
        found[member] = found.get(member, 0) + 1
    return found


def storm(cluster: rs.Cluster, members: int, partitions: int, processes: int, storms: int) -> None:
    cluster.create_topic(TOPIC, partitions=partitions, config={"flush": "os"})
    herd = ray.remote(num_cpus=0, max_concurrency=4)(Herd)
    herds = [herd.remote(cluster) for _ in range(processes)]
    on_all(herds, lambda one: one.slots.remote())
    started = time.monotonic()
    joining = [one.join.remote(members // processes) for one in herds]
    ray.get(joining, timeout=180)
    joined_s = time.monotonic() - started
    settled(cluster, members)
    print(f"\n### {members} members in {processes} processes, {partitions} partitions\n")
    print("| what | settled after | partitions | interrupted of those that stay |\n|---|---|---|---|")
    print(f"| all join | {time.monotonic() - started:.1f} s (the last call returned after {joined_s:.1f} s) | | |")
    each = max(members // 10 // processes, 1)
    fewer = members - each * processes
    for _ in range(storms):
        phase("left", cluster, herds, (members, fewer), lambda one: one.leave.remote(each))
        phase("joined", cluster, herds, (fewer, members), lambda one: one.join.remote(each))
    lag(cluster, partitions)
    on_all(herds, lambda one: one.leave.remote(members))
    for one in herds:
        ray.kill(one)


def lag(cluster: rs.Cluster, partitions: int) -> None:
    cluster.lag(GROUP)
    times = []
    for _ in range(20):
        started = time.monotonic()
        rows = cluster.lag(GROUP)
        times.append((time.monotonic() - started) * 1000)
        assert len(rows) == partitions
    print(f"| lag of {partitions} partitions | {statistics.median(times):.1f} ms (longest {max(times):.1f} ms) | | |")


def one_more(cluster: rs.Cluster, rounds: int) -> None:
    """Two members read; a third joins: from its first call to its first batch."""
    cluster.create_topic("more", partitions=6, config={"flush": "os"})
    ended = threading.Event()

    def write() -> None:
        with cluster.producer(linger_ms=0) as producer:
            while not ended.wait(0.02):
                for partition in range(6):
                    producer.send("more", b"v" * 100, partition=partition)

    threads = [threading.Thread(target=write)]
    first = [cluster.consumer("more", group="more") for _ in range(2)]
    threads += [threading.Thread(target=c.run, kwargs={"each_batch": len}) for c in first]
    for thread in threads:
        thread.start()
    times = []
    for _ in range(rounds):
        while cluster.describe_group("more").state != "stable":
            time.sleep(0.05)
        started = time.monotonic()
        with cluster.consumer("more", group="more") as third:
            assert third.poll(30) is not None
            times.append(time.monotonic() - started)
    ended.set()
    for consumer in first:
        consumer.stop()
    for thread in threads:
        thread.join()
    for consumer in first:
        consumer.close()
    times.sort()
    print(f"\n3 members, one joins, until it reads: median {statistics.median(times):.2f} s, longest {times[-1]:.2f} s")


def main() -> None:
    args = arguments(__doc__, members=200, partitions=400, processes=8, storms=2, rounds=15)
    print(machine())
    with tempfile.TemporaryDirectory(dir=args.data_dir) as root, rs.connect(data_dir=root) as cluster:
        storm(cluster, args.members, args.partitions, args.processes, args.storms)
        one_more(cluster, args.rounds)


if __name__ == "__main__":
    main()
