"""SIGKILL of every kind of actor, and of clients, under load: nothing acknowledged is lost, nothing is doubled."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

import raystream as rs
from tests.ray.actors import pids

NAMESPACE = "raystream"


class Load:
    """A producer and a group's consumer in threads, and what they saw."""

    def __init__(self, cluster: rs.Cluster, topic: str, partitions: int) -> None:
        self.acknowledged: dict[int, rs.RecordMetadata] = {}
        self.failures: list[Exception] = []
        self.consumed: list[int] = []
        self._cluster = cluster
        self._topic = topic
        self._partitions = partitions
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._guard, args=(work,)) for work in (self._produce, self._consume)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()

    def _guard(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            self.failures.append(error)

    def _produce(self) -> None:
        with self._cluster.producer(linger_ms=1) as producer:
            sent = []
            number = 0
            while not self._stop.is_set():
                for _ in range(20):
                    sent.append((number, producer.send(self._topic, str(number), partition=number % self._partitions)))
                    number += 1
                time.sleep(0.005)
            producer.flush(timeout=60)
            self.acknowledged = {number: one.result(timeout=0) for number, one in sent}

    def _consume(self) -> None:
        with self._cluster.consumer(self._topic, group=f"g-{self._topic}", start="earliest") as consumer:
            while not self._stop.is_set():
                batch = consumer.poll(0.2)
                if batch is not None:
                    self.consumed.extend(int(record.value) for record in batch.records())

    def wait_for_progress(self, records: int = 500, timeout_s: float = 30) -> None:
        """Until that many more records have been consumed."""
        target = len(self.consumed) + records
        deadline = time.monotonic() + timeout_s
        while len(self.consumed) < target:
            assert not self.failures, self.failures
            assert time.monotonic() < deadline, f"stalled at {len(self.consumed)} records"
            time.sleep(0.02)


def _victims(kind: str, cluster: rs.Cluster) -> list[int]:
    if kind == "broker":
        return [cluster.brokers()[0].pid]
    if kind == "coordinator":
        return pids("raystream-coordinator-")
    return pids("raystream-partitions-")


@pytest.mark.parametrize("kind", ["partitions", "coordinator", "broker"])
def test_a_killed_actor_comes_back_and_nobody_notices(
    cluster: rs.Cluster, topic_name: Callable[[], str], kind: str
) -> None:
    topic = cluster.create_topic(topic_name(), partitions=2).name
    with Load(cluster, topic, 2) as load:
        load.wait_for_progress()
        for _ in range(2):
            for pid in _victims(kind, cluster):
                os.kill(pid, signal.SIGKILL)
            load.wait_for_progress()
    assert not load.failures, load.failures
    _check_history(cluster, topic, load)


def _check_history(cluster: rs.Cluster, topic: str, load: Load) -> None:
    """Every acknowledged record is in the log once, at its offset; the consumer saw no gap."""
    table = cluster.read(topic).to_arrow()
    places = zip(table["partition"].to_pylist(), table["offset"].to_pylist(), strict=True)
    stored = dict(zip(places, (int(v) for v in table["value"].to_pylist()), strict=True))
    assert len(set(stored.values())) == len(stored), "a record stands at two offsets"
    for number, where in load.acknowledged.items():
        assert stored[where.partition, where.offset] == number
    assert set(load.consumed) <= set(stored.values())
    for partition in {place[0] for place in stored}:
        own = [number for number in sorted(set(load.consumed)) if number % 2 == partition]
        log = [stored[place] for place in sorted(stored) if place[0] == partition]
        assert own == sorted(log)[: len(own)], "the consumer skipped a record"


def test_a_killed_producer_leaves_whole_acknowledged_records(
    cluster: rs.Cluster, topic_name: Callable[[], str], tmp_path: Path
) -> None:
    topic = cluster.create_topic(topic_name()).name
    acknowledged = tmp_path / "acknowledged"
    script = f"""
        import raystream as rs
        cluster = rs.connect(data_dir={cluster.data_dir!r})
        with open({str(acknowledged)!r}, "w", buffering=1) as out, cluster.producer(linger_ms=1) as producer:
            number = 0
            while True:
                sent = [producer.send({topic!r}, str(number + i)) for i in range(50)]
                for one in sent:
                    print(one.result(30).offset, file=out)
                number += 50
    """
    with _script(script) as process:
        _until(lambda: acknowledged.exists() and acknowledged.read_text().count("\n") > 500)
        process.kill()
        process.wait(30)
    offsets = [int(line) for line in acknowledged.read_text().split("\n")[:-1]]
    values = [int(value) for value in cluster.read(topic).to_arrow()["value"].to_pylist()]
    assert values == list(range(len(values)))
    assert offsets == list(range(len(offsets)))
    assert len(values) >= len(offsets)


def test_a_killed_consumer_is_replaced_and_repeats_one_batch_at_most(
    cluster: rs.Cluster, topic_name: Callable[[], str], tmp_path: Path
) -> None:
    topic = cluster.create_topic(topic_name(), partitions=2).name
    seen = tmp_path / "seen"
    script = f"""
        import raystream as rs
        cluster = rs.connect(data_dir={cluster.data_dir!r})
        with open({str(seen)!r}, "w", buffering=1) as out:
            for batch in cluster.consumer({topic!r}, group="killed", start="earliest").batches():
                print(batch.partition, batch.offsets.start, batch.offsets.stop, file=out)
    """
    sent = 0
    with cluster.producer(linger_ms=1) as producer:
        with _script(script) as process:
            deadline = time.monotonic() + 60
            while not (seen.exists() and seen.read_text().count("\n") >= 200):
                assert time.monotonic() < deadline
                for _ in range(20):
                    producer.send(topic, str(sent), partition=sent % 2)
                    sent += 1
                time.sleep(0.005)
            process.kill()
            process.wait(30)
        producer.flush()
    batches = [tuple(map(int, line.split())) for line in seen.read_text().split("\n")[:-1]]
    committed = {row.partition: row.committed for row in cluster.lag("killed")}
    ends = {row.partition: row.end_offset for row in cluster.lag("killed")}
    later: dict[int, list[int]] = {0: [], 1: []}
    with cluster.consumer(topic, group="killed", start="latest") as consumer:
        while sum(map(len, later.values())) < sent - sum(offset or 0 for offset in committed.values()):
            batch = consumer.poll(30)
            assert batch is not None
            later[batch.partition].extend(record.offset for record in batch)
    for partition in (0, 1):
        own = [(start, stop) for number, start, stop in batches if number == partition]
        assert all(before[1] == after[0] for before, after in itertools.pairwise(own))
        last_start, last_stop = own[-1]
        position = committed[partition]
        assert position is not None
        assert last_start <= position <= last_stop, "only the batch in hand is repeated, and all of it was seen"
        assert later[partition] == list(range(position, ends[partition])), "a record was skipped or doubled"


@contextlib.contextmanager
def _script(text: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(text)], stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def _until(condition: Callable[[], object], timeout_s: float = 60.0) -> object:
    deadline = time.monotonic() + timeout_s
    while not (result := condition()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)
    return result
