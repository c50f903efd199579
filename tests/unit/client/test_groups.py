"""Members of a group against the coordinator's real rules: every record is read, by one member at a time."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from raystream import messages as m
from raystream.client.consumer import Consumer
from raystream.errors import FencedMember, InvalidArgument, InvalidConfig
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


def test_a_static_members_restart_moves_nothing(cluster: FakeCluster) -> None:
    fill(cluster, 2)
    first = cluster.consumer(group="g", group_instance_id="one")
    with cluster.consumer(group="g") as other:
        eventually(lambda: stable(cluster, 2) and len(first.assignment()) == len(other.assignment()) == 2)
        before, others = first.assignment(), other.assignment()
        batch = first.poll(5)
        assert batch is not None
        first.close()
        with cluster.consumer(group="g", group_instance_id="one") as again:
            eventually(lambda: again.assignment() == before)
            assert again.committed(batch.topic, batch.partition) == batch.offsets.stop
            assert other.assignment() == others
            eventually(lambda: stable(cluster, 2))
        again.close()
        assert len(group(cluster).members) == 2, "closing does not leave"


def test_a_static_member_leaves_where_it_is_told_to(cluster: FakeCluster) -> None:
    fill(cluster, 1)
    with cluster.consumer(group="g") as other:
        leaving = cluster.consumer(group="g", group_instance_id="one")
        eventually(lambda: len(other.assignment()) == PARTITIONS - 2)
        leaving.close(leave=True)
        eventually(lambda: len(other.assignment()) == PARTITIONS)


def test_of_two_live_members_with_one_instance_the_newer_wins(cluster: FakeCluster) -> None:
    fill(cluster, 1)
    with cluster.consumer(group="g", group_instance_id="one", client_id="older", auto_commit=False) as older:
        assert older.poll(5) is not None
        with cluster.consumer(group="g", group_instance_id="one", client_id="newer") as newer:
            eventually(lambda: len(newer.assignment()) == PARTITIONS)
            with pytest.raises(FencedMember, match=r"group_instance_id='one' \(newer\)"):
                older.commit()
            with pytest.raises(FencedMember, match="has taken over the partitions of this one"):
                list(older.batches())
            assert len(newer.assignment()) == PARTITIONS and stable(cluster, 1)


def test_an_instance_is_a_name_in_a_group(cluster: FakeCluster) -> None:
    with pytest.raises(InvalidArgument, match="give group="):
        cluster.consumer(group_instance_id="one")
    with pytest.raises(InvalidArgument, match="a name that this member keeps"):
        cluster.consumer(group="g", group_instance_id="")
    with pytest.raises(InvalidConfig, match="'fair' is none of"):
        cluster.consumer(group="g", assignor="fair")


def test_a_pattern_picks_up_new_topics_and_partitions_within_a_heartbeat_or_two(cluster: FakeCluster) -> None:
    with cluster.consumer(re.compile("t|u.*"), group="g") as a, cluster.consumer(re.compile("t|u.*"), group="g") as b:
        eventually(lambda: stable(cluster, 2))
        before = {*a.assignment()}, {*b.assignment()}
        cluster.create("u1", 3)
        cluster.append("u1", [b"new"], 2)
        eventually(lambda: len(a.assignment()) + len(b.assignment()) == PARTITIONS + 3)
        assert before[0] <= {*a.assignment()} and before[1] <= {*b.assignment()}, "nothing moves for what is new"
        reader = a if TopicPartition("u1", 2) in a.assignment() else b
        batch = reader.poll(5)
        assert batch is not None and batch.topic_partition == TopicPartition("u1", 2), "read from its beginning"
