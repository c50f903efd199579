"""Members of a group against the coordinator's real rules: every record is read, by one member at a time."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from raystream import messages as m
from raystream.client.consumer import Consumer
from raystream.types import Record, TopicPartition
from tests.fakes.log import FakeCluster, eventually

PARTITIONS = 4


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster(core=True) as cluster:
        cluster.create("t", PARTITIONS)
        yield cluster


def fill(cluster: FakeCluster, batches: int, rows: int = 50) -> set[tuple[int, int]]:
    for partition in range(PARTITIONS):
        for _ in range(batches):
            cluster.append("t", [b"v"] * rows, partition)
    return {(p, offset) for p in range(PARTITIONS) for offset in range(batches * rows)}


def group(cluster: FakeCluster) -> m.GroupInfo:
    return cluster.loop.run(cluster.coordinator_port.describe_group(m.GroupRequest(group="g"), timeout_ms=1000))


def stable(cluster: FakeCluster, members: int) -> bool:
    info = group(cluster)
    return info.state == "stable" and len(info.members) == members


def test_joining_and_leaving_move_partitions_without_loss(cluster: FakeCluster) -> None:
    wanted = fill(cluster, 20)
    seen: Counter[tuple[int, int]] = Counter()
    lock = threading.Lock()

    def note(record: Record) -> None:
        with lock:
            seen[record.partition, record.offset] += 1

    consumers = [cluster.consumer(group="g", max_fetch_bytes=1024) for _ in range(3)]
    threads = [threading.Thread(target=c.run, kwargs={"each_record": note}) for c in consumers]
    threads[0].start()
    eventually(lambda: len(seen) > 100)
    threads[1].start()
    threads[2].start()
    eventually(lambda: len(seen) > 1000)
    consumers[0].stop()
    threads[0].join()
    consumers[0].close()
    eventually(lambda: set(seen) == wanted, timeout_s=20)
    for consumer, thread in zip(consumers[1:], threads[1:], strict=True):
        consumer.stop()
        thread.join()
        consumer.close()
    assert max(seen.values()) == 1, "an orderly rebalance reads nothing twice"
    assert all(cluster.committed("t", p) == 1000 for p in range(PARTITIONS))


def test_a_silent_members_partitions_go_to_the_others(cluster: FakeCluster) -> None:
    wanted = fill(cluster, 4)
    lost = cluster.consumer(group="g", session_timeout_ms=1000)
    before = set()
    for record in lost:
        before.add((record.partition, record.offset))
        if len(before) == 30:
            break
    for task in lost._session._tasks:  # as after SIGKILL
        cluster.loop.asyncio_loop.call_soon_threadsafe(task.cancel)
    with cluster.consumer(group="g") as survivor:
        seen: set[tuple[int, int]] = set()
        while wanted - seen - before:
            batch = survivor.poll(10)
            assert batch is not None, "records are missing"
            seen |= {(batch.partition, offset) for offset in batch.offsets}
        committed = cluster.coordinator_port.offsets
    assert {committed["t", p] for p in range(PARTITIONS)} == {200}


def test_a_commit_while_one_partition_goes_and_another_comes(cluster: FakeCluster) -> None:
    fill(cluster, 1)
    with cluster.consumer(group="g", auto_commit=False) as a:
        records = iter(a)
        held = next(records)
        with cluster.consumer(group="g") as b:
            eventually(lambda: a.assignment() and len(a.assignment()) < PARTITIONS)
            a.commit()  # must not wait for the record in hand to be let go
            eventually(lambda: len(b.assignment()) >= 1)
            a.commit()
        eventually(lambda: len(a.assignment()) == PARTITIONS or _in_hand_was_taken(a, held))


def _in_hand_was_taken(consumer: Consumer, record: Record) -> bool:
    return TopicPartition(record.topic, record.partition) not in consumer.assignment()


def test_more_members_than_partitions(cluster: FakeCluster) -> None:
    fill(cluster, 1)
    consumers = [cluster.consumer(group="g") for _ in range(PARTITIONS + 2)]
    eventually(lambda: stable(cluster, PARTITIONS + 2))
    eventually(lambda: sorted(len(c.assignment()) for c in consumers) == [0, 0, 1, 1, 1, 1])
    idle = next(c for c in consumers if not c.assignment())
    busy = next(c for c in consumers if c.assignment())
    busy.close()
    eventually(lambda: any(c.assignment() for c in consumers if c is idle or not c.closed))
    for consumer in consumers:
        consumer.close()
