"""Retention of a partition whose replicas stand on disks in memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from raystream import messages as m
from raystream.config import MIB
from tests.fakes.replicas import Replicas

VALUE = b"v" * 400_000  # three of them roll a segment


class Retaining(Replicas):
    """Replicas whose logs roll at 1 MiB, of a topic with settings."""

    config: dict[str, Any]
    topic = "t"

    def spec(self, broker: int) -> m.ReplicaSpec:
        config = {"segment_bytes": MIB, **getattr(self, "config", {})}
        return replace(super().spec(broker), config=config, topic=self.topic)

    def alter(self, **config: Any) -> None:
        self.config = config
        self.announce()

    def fill(self, count: int = 10) -> None:
        for _ in range(count):
            self.append(VALUE)
            self.work()
            self.pass_time(100)

    def starts(self) -> list[int]:
        return [replica.log.start_offset for replica in self.replicas.values()]


def test_every_replica_drops_what_is_too_old_and_appends_go_on() -> None:
    world = Retaining()
    world.fill()
    world.pass_time(60_000)
    assert set(world.starts()) == {0}
    world.alter(retention_ms=61_000)
    world.pass_time(7_000)
    assert set(world.starts()) == {10}
    assert all(replica.log.segment_count == 0 for replica in world.replicas.values())
    world.append(b"next")
    world.work()
    world.pass_time(1_000)
    assert all(world.stored(broker) == [(10, b"next")] for broker in world.brokers)


def test_by_size_each_partition_keeps_what_is_asked_and_a_segment_more() -> None:
    world = Retaining()
    world.alter(retention_bytes=2 * MIB)
    world.fill(20)
    world.pass_time(12_000)
    for replica in world.replicas.values():
        assert replica.log.start_offset > 0
        assert 2 * MIB <= replica.log.size_bytes < 3 * MIB + 2 * len(VALUE)
    assert len(set(world.starts())) == 1


def test_settings_are_changed_while_the_topic_is_in_use() -> None:
    world = Retaining()
    world.fill()
    world.alter(retention_ms=1)
    world.alter()
    world.pass_time(60_000)
    assert set(world.starts()) == {0}


def test_what_is_not_replicated_stays() -> None:
    world = Retaining()
    world.fill(3)
    world.cut_off |= {broker for broker in world.brokers if broker != world.leader}
    ticket = world.append(VALUE)
    world.alter(retention_ms=1)
    world.leading().commit()
    leader = world.replicas[world.leader]
    world.clock.advance(10_000)
    leader.commit()
    assert not ticket.settled
    assert leader.log.start_offset <= leader.high_watermark == 3
    assert leader.log.end_offset == 4


def test_internal_topics_are_exempt() -> None:
    world = Retaining()
    world.topic = "__consumer_offsets"
    world.alter(retention_ms=1, retention_bytes=1)
    world.fill(5)
    world.pass_time(20_000)
    assert set(world.starts()) == {0}
