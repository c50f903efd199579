"""Compaction of replicas on disks in memory: each its own log, and what goes between them all the while."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from raystream import batch as b
from raystream import messages as m
from raystream.actors import compaction
from raystream.actors.compaction import Compactor
from raystream.actors.leading import Append
from raystream.actors.writer import Ticket
from raystream.config import DAY_MS, MIB
from raystream.errors import FencedProducer, InvalidRecord, OffsetOutOfRange
from raystream.storage.memory_files import MemoryFiles
from raystream.storage.producer_state import Duplicate
from tests.fakes.compacting import headers_in, keyed, rows_in
from tests.fakes.logs import TOPIC_ID
from tests.fakes.replicas import Replicas

VALUE = b"v" * 300_000  # four of them roll a segment


class Compacted(Replicas):
    """Replicas of a compacted topic, whose logs roll at 1 MiB."""

    settings: dict[str, Any]

    def spec(self, broker: int) -> m.ReplicaSpec:
        config = {"segment_bytes": MIB, "cleanup_policy": "compact", **getattr(self, "settings", {})}
        return replace(super().spec(broker), config=config)

    def send(
        self,
        rows: list[tuple[bytes | None, bytes | None]],
        producer: tuple[int, int, int] = (-1, -1, -1),
        attributes: int = 0,
    ) -> Ticket[Append]:
        leader = self.replicas[self.leader]
        request = m.AppendRequest(topic_id=TOPIC_ID, partition=0, leader_epoch=self.epoch)
        return self.take(leader.check(request, keyed(rows, producer=producer, attributes=attributes)[0]))

    def end(self, producer: int, epoch: int, *, commit: bool) -> Ticket[Append]:
        """A marker."""
        request = m.WriteMarkerRequest(
            topic_id=TOPIC_ID, partition=0, producer_id=producer, producer_epoch=epoch, commit=commit
        )
        return self.take(self.replicas[self.leader].marker(request))

    def take(self, work: Append) -> Ticket[Append]:
        leader = self.replicas[self.leader]
        ticket = Ticket(work)
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


def filled_late(world: Compacted) -> None:
    """Broker 2's replica is gone, and begins with an empty disk."""
    del world.replicas[2]
    world.files[2] = MemoryFiles()
    world.incarnations[2] += 1
    world.start(2)
    world.announce()
    world.pass_time(6_000)
    assert world.replicas[2].log.end_offset == world.replicas[0].log.end_offset


def test_a_replica_that_is_filled_from_a_compacted_log_knows_the_producers_of_what_is_gone() -> None:
    world = Compacted()
    for sequence in range(4):
        world.send([(b"k", b"%d" % sequence)], producer=(7, 0, sequence))
    world.send([(b"t", b"1")], producer=(8, 0, 0), attributes=b.ATTR_TRANSACTIONAL)
    world.end(8, 1, commit=False)
    world.fill()
    assert world.compact(0) == 1
    filled_late(world)
    world.crash(2, random.Random(1))  # what it was told is on its disk
    world.start(2)
    world.announce()
    world.pass_time(6_000)
    world.set_isr(0, 1, 2)
    world.stop(0)
    world.elect(2)
    world.pass_time(3_000)
    for sequence in range(4):
        again = world.send([(b"k", b"%d" % sequence)], producer=(7, 0, sequence))
        world.pass_time(1_000)
        assert again.wait(0).base_offset == sequence and again.wait(0).duplicate, "it is written twice"
    with pytest.raises(FencedProducer):
        world.send([(b"t", b"2")], producer=(8, 0, 1), attributes=b.ATTR_TRANSACTIONAL).wait(0)
    fresh = world.send([(b"k", b"next")], producer=(7, 0, 4))
    world.pass_time(1_000)
    assert not fresh.wait(0).duplicate


def test_what_is_compacted_while_a_replica_is_filled_is_told_as_well() -> None:
    world = Compacted(isr=(0, 1))
    world.send([(b"k", b"0")], producer=(7, 0, 0))
    world.fill(8)
    world.compact(0)
    world.fill(8)
    world.send([(b"k", b"1")], producer=(7, 0, 1))
    world.send([(b"k", b"2")], producer=(7, 0, 2))
    world.fill(4)
    del world.replicas[2]
    world.files[2] = MemoryFiles()
    world.incarnations[2] += 1
    world.start(2)
    world.announce()
    while world.replicas[2].log.end_offset == 0:
        world.clock.advance(100)
        world.replicas[0].commit()
        for _ in range(len(world.queue)):
            world.queue.pop(0)()
    assert world.replicas[2].log.end_offset < 17 and world.compact(0) == 1
    assert world.replicas[0].log.cleaned_to > 19
    world.pass_time(9_000)
    known = world.replicas[2].log.producers
    for sequence in range(3):
        again = keyed([(b"k", b"x")], producer=(7, 0, sequence))[1]
        assert isinstance(known.check(again), Duplicate), f"sequence {sequence} is not known"


def test_transactions_are_compacted_up_to_the_last_stable_offset() -> None:
    world = Compacted()
    world.send([(b"k0", b"never")], producer=(8, 0, 0), attributes=b.ATTR_TRANSACTIONAL)
    world.end(8, 1, commit=False)
    world.fill(8)
    first = world.send([(b"k0", b"perhaps")], producer=(9, 0, 0), attributes=b.ATTR_TRANSACTIONAL).wait(0).base_offset
    world.fill(8)
    world.pass_time(1_000)
    assert world.compact(0) == 1
    log = world.replicas[0].log
    assert log.cleaned_to <= first and (0, b"k0", b"never") not in rows_in(log)
    assert world.compact(0) == 0
    world.end(9, 1, commit=True)
    world.pass_time(1_000)
    assert world.compact(0) == 1 and log.cleaned_to > first


def test_markers_stay_while_a_replica_is_not_in_sync() -> None:
    world = Compacted()
    for epoch in range(2):
        world.send([(b"t", b"%d" % epoch)], producer=(8, epoch, 0), attributes=b.ATTR_TRANSACTIONAL)
        world.end(8, epoch + 1, commit=True)
    world.fill(8)
    assert world.compact(0) == 1
    world.set_isr(0, 1)
    world.clock.advance(2 * DAY_MS)
    world.cut_off.add(2)
    world.fill(8)
    assert world.compact(0) == 1

    def markers() -> list[int]:
        return [header.base_offset for header in headers_in(world.replicas[0].log) if header.is_control]

    assert markers() == [1, 3]
    world.cut_off.clear()
    world.pass_time(6_000)
    assert set(world.isr) == {0, 1, 2}
    world.fill(8)
    assert world.compact(0) == 1
    assert markers() == [3], "the last one of its producer says which epoch comes next"


def test_a_replica_that_ends_inside_of_a_batch_of_the_next_leader_catches_up() -> None:
    world = Compacted(isr=(0, 1))
    for i in range(3):
        world.send([(b"k%d" % j, b"%d" % i + VALUE) for j in range(3)], producer=(7, 0, 3 * i))
    world.fill(8)
    world.compact(0)
    del world.replicas[2]
    world.files[2] = MemoryFiles()
    world.incarnations[2] += 1
    world.start(2)
    world.announce()
    ends = {batch.base_offset for batch in headers_in(world.replicas[1].log)}
    while world.replicas[2].log.end_offset in (0, *ends):
        world.clock.advance(100)
        world.replicas[0].commit()
        for _ in range(len(world.queue)):
            world.queue.pop(0)()
    world.elect(1)
    world.pass_time(9_000)
    assert world.replicas[2].log.end_offset == world.replicas[1].log.end_offset
    assert world.latest(2) == world.latest(1)


def test_nothing_is_compacted_that_is_not_replicated() -> None:
    world = Compacted()
    world.fill(2)
    world.cut_off |= {1, 2}
    for i in range(12):
        world.send([(b"k%d" % (i % 3), VALUE)])
    assert world.compact(0) == 0
    assert world.replicas[0].log.segment_count > 3


class Waits:
    """Stands for the event that ends a compaction, and never does; adds up for how long it was waited for."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def is_set(self) -> bool:
        return False

    def wait(self, seconds: float) -> bool:
        self.seconds.append(seconds)
        return False


def test_a_compaction_keeps_to_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Compacted()
    world.fill()
    compactor = Compactor(lambda: [world.replicas[0]], world.clock, lambda work: work())
    waits = Waits()
    monkeypatch.setattr(compactor, "_stopping", waits)
    log = world.replicas[0].log
    files = {segment.path for segment in log.segments[:-1]}
    before = log.size_bytes
    (cleaned,) = compactor.round()
    gone = len(files - {segment.path for segment in log.segments})
    worked = sum(waits.seconds) * compaction.MAX_BYTES_PER_S  # the clock stands still: nothing else is waited for
    assert worked >= cleaned.read_bytes + (before - log.size_bytes)
    assert gone > 1 and len(waits.seconds) > gone, "one file is removed at a time"


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


@pytest.mark.parametrize("restarted", [False, True])
def test_a_tombstone_goes_in_time_though_nobody_writes_any_more(restarted: bool) -> None:
    world = Compacted()
    world.settings = {"delete_retention_ms": 60_000}
    world.announce()
    world.send([(b"gone", b"1")])
    world.send([(b"gone", None)])
    world.fill(6)
    compactor = Compactor(lambda: [world.replicas[0]], world.clock, lambda work: work())
    assert len(compactor.round()) == 1
    assert (1, b"gone", None) in rows_in(world.replicas[0].log)
    world.clock.advance(59_000)
    assert compactor.round() == []
    world.clock.advance(1_000)
    if restarted:
        compactor = Compactor(lambda: [world.replicas[0]], world.clock, lambda work: work())
    assert len(compactor.round()) == 1
    assert b"gone" not in world.latest(0)
    world.clock.advance(DAY_MS)
    assert compactor.round() == []
