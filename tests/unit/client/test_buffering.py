"""The producer's bounded buffer: who waits, who is refused, what is given back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from raystream.errors import BufferFull, InvalidArgument, Unavailable
from tests.fakes.cluster import FakeCluster

WAIT_S = 10


@pytest.fixture
def cluster() -> Iterator[FakeCluster]:
    with FakeCluster() as fake:
        yield fake


def test_a_full_buffer_holds_send_up_and_then_refuses(cluster: FakeCluster) -> None:
    topic = cluster.create("t")
    gate = cluster.hold(topic.partitions[0])
    producer = cluster.producer(max_buffered_bytes=65_536, max_block_ms=100)
    taken = 0

    def fill() -> None:
        nonlocal taken
        while True:
            producer.send("t", b"x" * 1_000)
            taken += 1

    with pytest.raises(BufferFull, match="max_buffered_bytes"):
        fill()
    assert 50 <= taken <= 65
    assert producer.stats.buffered_bytes <= 65_536
    cluster.on_loop(gate.set)
    producer.flush(WAIT_S)
    assert topic.partitions[0].end_offset == taken
    assert producer.stats.buffered_bytes == 0


def test_a_held_up_send_goes_on_when_there_is_room(cluster: FakeCluster) -> None:
    topic = cluster.create("t")
    gate = cluster.hold(topic.partitions[0])
    producer = cluster.producer(max_buffered_bytes=65_536, linger_ms=1000)
    threading.Timer(0.1, lambda: cluster.on_loop(gate.set)).start()
    for _ in range(500):
        producer.send("t", b"x" * 1_000)
    producer.flush(WAIT_S)
    assert topic.partitions[0].end_offset == 500
    assert producer.stats.blocked_ms > 0
    assert producer.stats.buffered_bytes == 0


def test_a_record_larger_than_the_buffer_goes_alone(cluster: FakeCluster) -> None:
    cluster.create("t")
    producer = cluster.producer(max_buffered_bytes=65_536)
    producer.send("t", b"small")
    assert producer.send("t", b"x" * 200_000).result(WAIT_S).offset == 1


def test_on_the_loops_own_thread_send_never_waits(cluster: FakeCluster) -> None:
    topic = cluster.create("t")
    cluster.create("unseen")
    gate = cluster.hold(topic.partitions[0])
    producer = cluster.producer(max_buffered_bytes=65_536)
    answers: list[Any] = []

    def on_loop() -> None:
        for act in (lambda: producer.send("unseen", b"x"), fill, producer.flush, pending.result):
            try:
                act()
            except Exception as error:
                answers.append(type(error))

    def fill() -> None:
        while True:
            producer.send("t", b"x" * 1_000)

    pending = producer.send("t", b"x")
    cluster.on_loop(on_loop)
    assert answers == [Unavailable, BufferFull, InvalidArgument, InvalidArgument]
    cluster.on_loop(gate.set)
    producer.flush(WAIT_S)
