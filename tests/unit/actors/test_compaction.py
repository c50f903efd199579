"""Compaction of replicas on disks in memory: each its own log, and what goes between them all the while."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from raystream import messages as m
from raystream.actors.compaction import Compactor
from raystream.actors.leading import Append
from raystream.actors.writer import Ticket
from raystream.config import MIB
from raystream.errors import InvalidRecord, OffsetOutOfRange
from tests.fakes.compacting import keyed, rows_in
from tests.fakes.logs import TOPIC_ID
from tests.fakes.replicas import Replicas

VALUE = b"v" * 300_000  # four of them roll a segment


class Compacted(Replicas):
    """Replicas of a compacted topic, whose logs roll at 1 MiB."""

    settings: dict[str, Any]

    def spec(self, broker: int) -> m.ReplicaSpec:
        config = {"segment_bytes": MIB, "cleanup_policy": "compact", **getattr(self, "settings", {})}
        return replace(super().spec(broker), config=config)

    def send(self, rows: list[tuple[bytes | None, bytes | None]]) -> Ticket[Append]:
        leader = self.replicas[self.leader]
        request = m.AppendRequest(topic_id=TOPIC_ID, partition=0, leader_epoch=self.epoch)
        ticket = Ticket(leader.check(request, keyed(rows)[0]))
        leader.offer(ticket)
        leader.commit()
        self.work()
        return ticket

    def fill(self, count: int = 20, keys: int = 3) -> None:
        for i in range(count):
            self.send([(b"k%d" % (i % keys), b"%d" % i + VALUE)])
            self.pass_time(100)

    def compact(self, broker: int) -> int:
        """How many cleanings were done."""

        def on_writer(work: Callable[[], Any]) -> Any:
            return work()

        compactor = Compactor(lambda: [self.replicas[broker]], self.clock, on_writer)
        return len(compactor.round())

    def latest(self, broker: int) -> dict[bytes | None, Any]:
        return {row[1]: row for row in rows_in(self.replicas[broker].log)}


def test_each_replica_compacts_its_own_log() -> None:
    world = Compacted()
    world.fill()
    before = world.latest(0)
    assert world.compact(0) == 1 and world.compact(0) == 0
    assert world.compact(1) == 1
    assert world.latest(0) == world.latest(1) == world.latest(2) == before
    assert len(rows_in(world.replicas[0].log)) < 10 < len(rows_in(world.replicas[2].log)) == 20
    world.send([(b"k0", b"next")])
    world.pass_time(1_000)
    assert all(world.latest(broker)[b"k0"] == (20, b"k0", b"next") for broker in world.brokers)


def test_a_new_leader_goes_on_behind_what_it_compacted() -> None:
    world = Compacted()
    world.fill()
    before = world.latest(0)
    world.compact(1)
    world.elect(1)
    world.pass_time(3_000)
    world.send([(b"k9", b"x")])
    world.pass_time(1_000)
    assert all(world.latest(broker) == {**before, b"k9": (20, b"k9", b"x")} for broker in world.brokers)


def test_a_follower_that_ends_inside_of_what_its_leader_compacted_catches_up() -> None:
    for behind in (1, 5, 8):
        world = Compacted()
        world.fill(behind)
        world.stop(2)
        for i in range(behind, 24):
            world.send([(b"k%d" % (i % 3), b"%d" % i + VALUE)])
        world.pass_time(6_000)
        assert world.compact(0) == 1 and world.replicas[0].log.segments[0].tail.end_offset == 21
        world.incarnations[2] += 1
        world.start(2)
        world.pass_time(6_000)
        assert world.replicas[2].log.end_offset == 24, f"{behind} records were there"
        assert world.latest(2) == world.latest(0)
        assert world.replicas[2].role.trouble is None
        world.crash(2, random.Random(behind))
        world.start(2)
        world.announce()
        world.pass_time(6_000)
        assert world.latest(2) == world.latest(0)


def test_a_new_replica_gets_compacted_batches_as_they_are() -> None:
    world = Compacted(isr=(0, 1))
    world.stop(2)
    world.fill()
    world.compact(0)
    world.incarnations[2] += 1
    world.start(2)
    world.pass_time(6_000)
    assert rows_in(world.replicas[2].log) == rows_in(world.replicas[0].log)
    assert world.replicas[2].log.compacted


def test_nothing_is_compacted_that_is_not_replicated() -> None:
    world = Compacted()
    world.fill(2)
    world.cut_off |= {1, 2}
    for i in range(12):
        world.send([(b"k%d" % (i % 3), VALUE)])
    assert world.compact(0) == 0
    assert world.replicas[0].log.segment_count > 3


def test_a_record_without_a_key_is_refused() -> None:
    world = Compacted()
    with pytest.raises(InvalidRecord, match="1 of 2 records have no key: topic 't' is compacted"):
        world.send([(b"k", b"v"), (None, b"v")])
    world.send([(b"k", None)])
    assert rows_in(world.replicas[0].log) == [(0, b"k", None)]


def test_lags_and_policy_are_heeded() -> None:
    world = Compacted()
    world.settings = {"min_compaction_lag_ms": 3_600_000}
    world.announce()
    world.fill()
    assert world.compact(0) == 0
    world.settings = {"cleanup_policy": "delete"}
    world.announce()
    assert world.compact(0) == 0
    world.settings = {"cleanup_policy": "compact,delete", "retention_ms": 1_000}
    world.announce()
    assert world.compact(0) == 1
    world.pass_time(12_000)
    assert world.replicas[0].log.start_offset == 20


def test_bytes_are_looked_for_again_where_compaction_took_their_file(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Compacted()
    world.fill()
    replica = world.replicas[0]
    real = replica.log.read

    def overtaken(offset: int, **bounds: int) -> Any:
        spans = real(offset, **bounds)
        monkeypatch.setattr(replica.log, "read", real)
        assert world.compact(0) == 1
        return spans

    monkeypatch.setattr(replica.log, "read", overtaken)
    reply = replica.fetch(m.FetchRequest(topic_id=TOPIC_ID, partition=0, offset=0), 0)
    assert reply.chunks and replica.log.compacted
    with pytest.raises(OffsetOutOfRange):
        replica.fetch(m.FetchRequest(topic_id=TOPIC_ID, partition=0, offset=99), 0)


def test_a_replica_that_is_closed_meanwhile_is_left_alone() -> None:
    world = Compacted()
    world.fill()
    served = [[world.replicas[0]], []]
    names = world.files[0].listdir("data/p")
    compactor = Compactor(lambda: served.pop(0) if served else [], world.clock, lambda work: work())
    assert compactor.round() == []
    assert [name for name in world.files[0].listdir("data/p") if name.endswith(".log")] == [
        name for name in names if name.endswith(".log")
    ]
