"""Markers are written to every partition, however often that takes, and then the transaction is complete."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from raystream import messages as m
from raystream.actors import markers as module
from raystream.actors.markers import Markers
from raystream.core.transaction_records import PREPARE_COMMIT, TransactionRecord
from raystream.errors import ActorLost
from tests.fakes.cluster import FakeCluster, FakeTopic


class Marked:
    """A partition's port that notes what it is told, after as many failures as it is given."""

    def __init__(self) -> None:
        self.told: list[m.WriteMarkerRequest] = []
        self.failures = 0

    async def write_marker(self, request: m.WriteMarkerRequest, *, timeout_ms: float) -> m.AppendReply:
        self.told.append(request)
        if self.failures:
            self.failures -= 1
            raise ActorLost("gone")
        return m.AppendReply(base_offset=0, append_time_ms=0, leader_epoch=1, high_watermark=1)


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as made:
        yield made


@pytest.fixture
def ports(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> list[Marked]:
    topic = cluster.create("t", 2)
    made = [Marked(), Marked()]
    for partition, port in zip(topic.partitions, made, strict=True):
        monkeypatch.setattr(partition, "write_marker", port.write_marker)
    return made


def decided(topic: FakeTopic, *partitions: int, topic_id: str = "") -> TransactionRecord:
    named = tuple(("t", topic_id or topic.topic_id, number) for number in partitions)
    return TransactionRecord("tx", 7, 3, 60_000, "i", state=PREPARE_COMMIT, partitions=named)


def until(holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_every_partition_is_told_until_it_answers(cluster: FakeCluster, ports: list[Marked]) -> None:
    done: list[TransactionRecord] = []
    markers = Markers(cluster.routing, cluster.loop, done.append)
    ports[1].failures = 3
    record = decided(cluster.topics["t"], 0, 1)
    for _ in range(3):
        markers.carry_out([record])
    until(lambda: done)
    assert done == [record] and len(ports[0].told) == 1 and len(ports[1].told) == 4
    told = ports[1].told[-1]
    assert (told.producer_id, told.producer_epoch, told.commit) == (7, 3, True)
    rounds = markers.rounds
    markers.carry_out([])
    assert markers.rounds == rounds + 1
    assert not markers.wait(rounds, (7, 3), 0.0), "it is complete, and nobody need ask for it"


def test_who_waits_hears_of_the_markers_before_it_is_written_down_that_they_are_there(
    cluster: FakeCluster, ports: list[Marked]
) -> None:
    markers = Markers(cluster.routing, cluster.loop, lambda _record: None)
    record = decided(cluster.topics["t"], 0, 1)
    rounds = markers.rounds
    assert not markers.wait(rounds, (7, 3), 0.0)
    markers.carry_out([record])
    assert markers.wait(rounds, (7, 3), 10.0) and markers.rounds == rounds
    assert len(ports[0].told) == len(ports[1].told) == 1
    assert not markers.wait(rounds, (7, 4), 0.0), "another decision of the same producer"
    markers.carry_out([])
    assert not markers.wait(markers.rounds, (7, 3), 0.0), "nothing is kept of what is complete"


def test_what_is_read_anew_is_carried_out_again(cluster: FakeCluster, ports: list[Marked]) -> None:
    done: list[TransactionRecord] = []
    markers = Markers(cluster.routing, cluster.loop, done.append)
    record = decided(cluster.topics["t"], 0)
    markers.carry_out([record])
    until(lambda: done)
    markers.forget()
    markers.carry_out([record])
    until(lambda: len(done) == 2)
    assert len(ports[0].told) == 2


def test_a_topic_that_is_gone_is_waited_for_and_then_left_out(
    cluster: FakeCluster, ports: list[Marked], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GONE_AFTER_MS", 400.0)
    done: list[TransactionRecord] = []
    markers = Markers(cluster.routing, cluster.loop, done.append)
    began = time.monotonic()
    markers.carry_out([decided(cluster.topics["t"], 0, topic_id="another"), decided(cluster.topics["t"], 9)])
    until(lambda: len(done) == 2)
    assert time.monotonic() - began >= 0.4 and ports[0].told == []


def test_a_full_queue_is_tried_again(cluster: FakeCluster, ports: list[Marked]) -> None:
    answers: list[Any] = [ActorLost("full"), None]
    calls: list[TransactionRecord] = []

    def done(record: TransactionRecord) -> None:
        calls.append(record)
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    Markers(cluster.routing, cluster.loop, done).carry_out([decided(cluster.topics["t"], 0)])
    until(lambda: not answers)
    cluster.loop.run(asyncio.sleep(0.0))
    assert len(calls) == 2 and len(ports[0].told) == 1
