"""`run`: handlers, their retries, and what happens to what they cannot handle."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from raystream.client import handlers
from raystream.client.consumer import Consumer
from raystream.client.delivered import Batch
from raystream.errors import HandlerFailed, InvalidArgument
from raystream.types import Record
from tests.fakes.log import FakeCluster, raw_rows

Sent = list[tuple[str, bytes | None, bytes | None, list[tuple[str, bytes]]]]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCluster]:
    monkeypatch.setattr(handlers, "FIRST_PAUSE_S", 0.001)
    with FakeCluster() as cluster:
        cluster.create("t")
        rows = raw_rows([b"%d" % n for n in range(6)], keys=[b"k"] * 6, headers=[[("h", b"1")]] * 6)
        cluster.append("t", rows)
        yield cluster


def member(cluster: FakeCluster, **how: Any) -> Consumer:
    return cluster.consumer(group="g", auto_commit_interval_ms=60_000, commit_each_batch=False, **how)


class Handler:
    """Collects values, raises on those in `bad` (`times` of them), stops at `last`."""

    def __init__(self, consumer: Consumer, bad: set[Any], *, times: int = 1000, last: Any = b"5") -> None:
        self.consumer, self.bad, self.times, self.last = consumer, bad, times, last
        self.seen: list[Any] = []

    def __call__(self, record: Record) -> None:
        self.seen.append(record.value)
        if record.value in self.bad and self.times:
            self.times -= 1
            raise ValueError(f"cannot take {record.value!r}")
        if record.value == self.last:
            self.consumer.stop()


def test_every_record_once_then_a_commit(cluster: FakeCluster) -> None:
    with member(cluster) as consumer:
        handler = Handler(consumer, set())
        consumer.run(each_record=handler)
        assert handler.seen == [b"%d" % n for n in range(6)]
        assert cluster.committed() == 6, "stop() commits"


def test_a_handler_is_tried_again(cluster: FakeCluster) -> None:
    with member(cluster) as consumer:
        handler = Handler(consumer, {b"2"}, times=3)
        consumer.run(each_record=handler)
        assert handler.seen.count(b"2") == 4 and handler.seen[-1] == b"5"


def test_stopping_on_an_error_keeps_the_records_place(cluster: FakeCluster) -> None:
    with member(cluster) as consumer:
        handler = Handler(consumer, {b"2"})
        with pytest.raises(HandlerFailed, match="record t-0 at offset 2, 3 times in a row") as caught:
            consumer.run(each_record=handler, retries=2)
        assert caught.value.record.offset == 2 and isinstance(caught.value.__cause__, ValueError)
        assert cluster.committed() == 2
        again = Handler(consumer, set())
        consumer.run(each_record=again)
        assert again.seen[0] == b"2"


def test_skip(cluster: FakeCluster, caplog: pytest.LogCaptureFixture) -> None:
    with member(cluster) as consumer:
        handler = Handler(consumer, {b"2"})
        consumer.run(each_record=handler, on_error="skip", retries=0)
    assert handler.seen == [b"%d" % n for n in range(6)]
    assert "record t-0 at offset 2; it is skipped" in caplog.text
    assert cluster.committed() == 6


def test_dead_letter(cluster: FakeCluster) -> None:
    sent: Sent = []
    with member(cluster, produce=lambda *record: sent.append(record)) as consumer:
        consumer.run(each_record=Handler(consumer, {b"2"}), dead_letter="failed", retries=1)
    ((topic, value, key, headers),) = sent
    assert (topic, value, key) == ("failed", b"2", b"k")
    found = dict(headers)
    assert found.pop("raystream.error") == b"ValueError(\"cannot take b'2'\")"
    assert found == {
        "h": b"1",
        "raystream.topic": b"t",
        "raystream.partition": b"0",
        "raystream.offset": b"2",
        "raystream.timestamp": b"1002",
    }


def test_a_dead_letter_that_cannot_be_sent_stops(cluster: FakeCluster) -> None:
    def produce(*_: object) -> None:
        raise ConnectionError("no topic")

    with member(cluster, produce=produce) as consumer, pytest.raises(ConnectionError):
        consumer.run(each_record=Handler(consumer, {b"2"}), dead_letter="failed", retries=0)
    assert cluster.committed() == 2


def test_a_record_that_cannot_be_deserialized_is_handled_alike(cluster: FakeCluster) -> None:
    def parse(value: bytes) -> int:
        if value == b"3":
            raise ValueError("three")
        return int(value)

    sent: Sent = []
    with member(cluster, value_deserializer=parse, produce=lambda *record: sent.append(record)) as consumer:
        handler = Handler(consumer, set(), last=5)
        consumer.run(each_record=handler, dead_letter="failed", retries=0)
    assert handler.seen == [0, 1, 2, 4, 5]
    assert sent[0][1] == b"3", "the bytes as they were"


def test_batches(cluster: FakeCluster) -> None:
    failures = [ValueError("once")]

    with member(cluster) as consumer:
        lengths = []

        def handle(batch: Batch) -> None:
            if failures:
                raise failures.pop()
            lengths.append(len(batch))
            consumer.stop()

        consumer.run(each_batch=handle)
        assert lengths == [6] and cluster.committed() == 6


def test_a_batch_that_fails_comes_again(cluster: FakeCluster) -> None:
    def handle(batch: Batch) -> None:
        raise ValueError("never")

    with member(cluster) as consumer:
        with pytest.raises(HandlerFailed, match="batch t-0, offsets 0 to 6"):
            consumer.run(each_batch=handle, retries=0)
        assert cluster.committed() in (None, 0)
        batch = consumer.poll(5)
        assert batch is not None and batch.offsets == range(6)


def test_a_batchs_records_become_dead_letters_one_by_one(cluster: FakeCluster) -> None:
    sent: Sent = []
    with member(cluster, produce=lambda *record: sent.append(record)) as consumer:

        def handle(batch: Batch) -> None:
            consumer.stop()
            raise ValueError("never")

        consumer.run(each_batch=handle, retries=0, dead_letter="failed")
    assert [value for _, value, _, _ in sent] == [b"%d" % n for n in range(6)]


def test_a_typed_row_becomes_json(cluster: FakeCluster) -> None:
    cluster.create("typed", schema=pa.schema([("n", pa.int32()), ("at", pa.date32())]), key="n")
    rows = pa.record_batch(
        [pa.array([7], pa.int32()), pa.array([0], pa.date32())], schema=cluster.topics["typed"].partitions[0].schema
    )
    cluster.append("typed", rows)
    sent: Sent = []
    with cluster.consumer("typed", produce=lambda *record: sent.append(record)) as consumer:

        def handle(record: Record) -> None:
            consumer.stop()
            raise ValueError

        consumer.run(each_record=handle, retries=0, dead_letter="failed")
    assert sent[0][1:3] == (b'{"n": 7, "at": "1970-01-01"}', b"7")


def test_stop_between_two_tries_leaves_the_record_unprocessed(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "FIRST_PAUSE_S", 60.0)
    with member(cluster) as consumer:

        def handle(record: Record) -> None:
            if record.offset == 1:
                threading.Timer(0.05, consumer.stop).start()
                raise ValueError

        consumer.run(each_record=handle)
        assert cluster.committed() == 1
        assert next(iter(consumer)).offset == 1


def test_sigterm_lets_the_handler_finish_commits_and_leaves(cluster: FakeCluster) -> None:
    before = signal.getsignal(signal.SIGTERM)
    consumer = member(cluster)
    seen = []

    def handle(record: Record) -> None:
        if record.offset == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        seen.append(record.offset)

    consumer.run(each_record=handle)
    assert seen == [0, 1, 2] and consumer.closed
    assert cluster.committed() == 3 and cluster.coordinator_port.left
    assert signal.getsignal(signal.SIGTERM) is before


def test_ctrl_c_interrupts_and_keeps_the_records_place(cluster: FakeCluster) -> None:
    def handle(record: Record) -> None:
        if record.offset == 2:
            raise KeyboardInterrupt

    with member(cluster) as consumer:
        with pytest.raises(KeyboardInterrupt):
            consumer.run(each_record=handle)
        assert cluster.committed() == 2


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({}, "either each_record= or each_batch="),
        ({"each_record": print, "each_batch": print}, "either"),
        ({"each_record": print, "on_error": "retry"}, "neither 'stop' nor 'skip'"),
        ({"each_record": print, "retries": -1}, "retries=-1"),
        ({"each_record": print, "dead_letter": "x"}, "dead_letter= needs"),
    ],
)
def test_wrong_use(cluster: FakeCluster, how: dict[str, Any], says: str) -> None:
    with member(cluster) as consumer, pytest.raises(InvalidArgument, match=says):
        consumer.run(**how)
