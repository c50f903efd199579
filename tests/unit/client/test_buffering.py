"""The producer's bounded buffer: who waits, who is refused, what is given back."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from raystream.errors import BufferFull, InvalidArgument, Unavailable
from tests.fakes.cluster import FakeCluster

WAIT_S = 10


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


def test_pieces_of_a_stuck_partition_keep_only_themselves_alive(cluster: FakeCluster) -> None:
    topic = cluster.create("t", 8)
    gate = cluster.hold(topic.partitions[3])
    producer = cluster.producer(linger_ms=60_000)
    for number in range(8_000):
        producer.send("t", b"x" * 100, key=str(number))
    producer._accumulator.seal(producer._sinks["t"])
    while not topic.partitions[3].requests:
        time.sleep(0.001)
    pipeline = cluster.on_loop(producer._sender._pipelines_of, producer._sinks["t"])[3]
    stuck = sum(batch.nbytes for batch in pipeline.in_flight)
    held = sum(len(batch.message) for batch in pipeline.in_flight if batch.message is not None)
    assert 0 < held < 1.2 * stuck + 2_000
    assert all(piece.rows is None for batch in pipeline.in_flight for piece in batch.pieces)
    cluster.on_loop(gate.set)
    producer.flush(WAIT_S)
    assert producer.stats.buffered_bytes == 0


def test_waiting_pieces_have_memory_of_their_own(cluster: FakeCluster) -> None:
    topic = cluster.create("t", 8)
    gate = cluster.hold(topic.partitions[3])
    producer = cluster.producer(linger_ms=60_000)
    producer.send("t", b"x", partition=0)  # gets the producer id
    producer.flush(WAIT_S)
    for _ in range(2):
        for number in range(4_000):
            producer.send("t", b"x" * 100, partition=number % 8)
        producer._accumulator.seal(producer._sinks["t"])
    (waiting,) = cluster.on_loop(lambda: list(producer._sender._pipelines_of(producer._sinks["t"])[3].pending))
    assert waiting.rows.get_total_buffer_size() < 1.2 * waiting.nbytes
    cluster.on_loop(gate.set)
    producer.flush(WAIT_S)
    assert topic.partitions[3].end_offset == 1_000
