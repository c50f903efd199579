"""What an administrator sees of groups and does to their positions."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from raystream.client.admin import Admin
from raystream.errors import GroupNotEmpty, InvalidArgument, OffsetOutOfRange
from raystream.types import GroupDescription, OffsetMove, Rows
from tests.fakes.log import FakeCluster, eventually


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster(core=True) as cluster:
        cluster.create("t", 2)
        for partition in (0, 1):
            cluster.append("t", [b"v"] * 10, partition)
        yield cluster


def reset(cluster: FakeCluster, to: Any = None, shift: Any = None, dry_run: bool = False) -> Rows[OffsetMove]:
    admin = Admin(cluster.routing)
    return cluster.loop.run(admin.reset_offsets("g", "t", to, shift=shift, dry_run=dry_run))


def described(cluster: FakeCluster) -> GroupDescription:
    return cluster.loop.run(Admin(cluster.routing).describe_group("g"))


def test_a_shift_moves_every_position_within_what_there_is(cluster: FakeCluster) -> None:
    cluster.partitions_by_topic()["t"][1].start_offset = 5
    assert reset(cluster, {0: 4, 1: 6}) == [OffsetMove("t", 0, None, 4), OffsetMove("t", 1, None, 6)]
    assert reset(cluster, shift=-3, dry_run=True) == [OffsetMove("t", 0, 4, 1), OffsetMove("t", 1, 6, 5)]
    assert cluster.committed("t", 0) == 4, "a dry run moves nothing"
    assert [row.after for row in reset(cluster, shift=-3)] == [1, 5]
    assert (cluster.committed("t", 0), cluster.committed("t", 1)) == (1, 5)
    assert [row.after for row in reset(cluster, shift=100)] == [10, 10]
    assert [row.after for row in reset(cluster, "earliest")] == [0, 5]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({}, "either to="),
        ({"to": "latest", "shift": 1}, "either to="),
        ({"shift": 1.5}, "shift is a number of records"),
        ({"shift": True}, "shift is a number of records"),
        ({"to": {0: 11}}, "ends at offset 10"),
    ],
)
def test_what_cannot_be_is_refused(cluster: FakeCluster, wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises((InvalidArgument, OffsetOutOfRange), match=sentence):
        reset(cluster, **wrong)


def test_positions_of_running_members_are_theirs(cluster: FakeCluster) -> None:
    with cluster.consumer(group="g") as consumer:
        eventually(lambda: len(consumer.assignment()) == 2)
        assert reset(cluster, "latest", dry_run=True)[0].after == 10
        with pytest.raises(GroupNotEmpty):
            reset(cluster, "latest")


def test_a_stuck_member_shows_with_its_lag_and_where_it_runs(cluster: FakeCluster) -> None:
    handling, go_on = threading.Event(), threading.Event()
    with cluster.consumer(group="g", group_instance_id="one", client_id="stuck") as consumer:

        def handle(_: object) -> None:
            handling.set()
            assert go_on.wait(10)
            consumer.stop()

        thread = threading.Thread(target=consumer.run, kwargs={"each_batch": handle})
        thread.start()
        assert handling.wait(5)
        time.sleep(0.3)
        (member,) = described(cluster).member_list
        assert member.last_poll_ms_ago is not None and member.last_poll_ms_ago >= 200
        assert member.last_heartbeat_ms_ago < 200, "heartbeats go on"
        assert (member.client, member.host, member.pid) == ("stuck", socket.gethostname(), os.getpid())
        assert (member.node, member.instance_id) == (cluster.routing.node_id, "one")
        go_on.set()
        thread.join()
        consumer.commit()
        eventually(lambda: sum(m.lag or 0 for m in described(cluster).member_list) < 20)
    with cluster.consumer(group="h") as waiting:
        eventually(lambda: waiting.poll(0.1) is None)
        asked = threading.Thread(target=waiting.poll, args=(1.0,))
        asked.start()
        time.sleep(0.4)
        (member,) = cluster.loop.run(Admin(cluster.routing).describe_group("h")).member_list
        assert member.last_poll_ms_ago is not None and member.last_poll_ms_ago < 300, "who waits is not stuck"
        asked.join()


def test_a_commit_that_is_not_waited_for(cluster: FakeCluster) -> None:
    with cluster.consumer(group="g", auto_commit=False) as consumer:
        batch = consumer.poll(5)
        assert batch is not None
        committing = consumer.commit_async()
        committing.result(5)
        assert committing.done() and cluster.committed("t", batch.partition) == 10

        async def awaited() -> None:
            await consumer.commit_async(batch)

        asyncio.run(awaited())


def test_positions_that_the_user_names(cluster: FakeCluster) -> None:
    with cluster.consumer(group="g", auto_commit=False) as consumer:
        eventually(lambda: len(consumer.assignment()) == 2)
        consumer.commit(offsets={"t": {0: 3, 1: 10}})
        assert (cluster.committed("t", 0), cluster.committed("t", 1)) == (3, 10)
        with pytest.raises(OffsetOutOfRange, match="ends at offset 10: 11 cannot be committed"):
            consumer.commit(offsets={"t": {0: 4, 1: 11}})
        assert cluster.committed("t", 0) == 3, "all or nothing"
        with pytest.raises(InvalidArgument, match="t-7 is not assigned to this consumer"):
            consumer.commit(offsets={"t": {7: 0}})
        for wrong in ("latest", {"t": {0: -1}}, {"t": 3}):
            with pytest.raises(InvalidArgument):
                consumer.commit(offsets=wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="either a batch or offsets"):
            consumer.commit(consumer.poll(5), offsets={"t": {0: 1}})


def test_a_topic_that_is_deleted_takes_its_positions_and_leaves_the_group(cluster: FakeCluster) -> None:
    """The rule: its partitions are nobody's from then on, and the members go on with the others."""
    cluster.create("u", 1)
    cluster.append("u", [b"v"])
    with cluster.consumer(["t", "u"], group="g") as consumer:
        eventually(lambda: len(consumer.assignment()) == 3)
        del cluster.topics["u"]
        eventually(lambda: [p.topic for p in consumer.assignment()] == ["t", "t"])
        assert described(cluster).topics == ("t",)


def test_lag_is_right_where_partitions_have_moved_or_come_since_they_were_last_looked_up(cluster: FakeCluster) -> None:
    reset(cluster, {0: 4, 1: 6})
    assert [(row.partition, row.lag) for row in described(cluster).partition_list] == [(0, 6), (1, 4)]
    known = cluster.routing.known("t")
    assert known is not None
    partitions = tuple(dataclasses.replace(p, actor="gone") for p in known.partitions[:1])
    cluster.routing._topics["t"] = (dataclasses.replace(known, partitions=partitions), time.monotonic() * 1000)
    assert [(row.partition, row.lag) for row in described(cluster).partition_list] == [(0, 6), (1, 4)]
