"""`raystream bench`: throughput and latency on this machine, each beside the bare operation it stands on.

Every figure is a median over `runs`; a fresh topic each time. What the rows mean is said in `docs/benchmarks.md`.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from raystream.types import Rows

if TYPE_CHECKING:
    from raystream.cluster import Cluster

RECORD_BYTES: Final = 100
PARTITIONS: Final = 4
LATENCY_RECORDS: Final = 2_000
LATENCY_PER_SECOND: Final = 1_000


@dataclass(frozen=True)
class BenchResult:
    """One figure. `bare` is the same work without raystream, in the same unit; `ratio` is value / bare."""

    what: str
    value: float
    unit: str
    bare: float | None = None
    ratio: float | None = None


_names = count()


@contextmanager
def fresh_topic(cluster: Cluster, partitions: int = PARTITIONS, **options: Any) -> Iterator[str]:
    """A topic of its own, deleted afterwards."""
    name = f"bench-{os.getpid()}-{next(_names)}"
    cluster.create_topic(name, partitions=partitions, **options)
    try:
        yield name
    finally:
        cluster.delete_topic(name)


def send(cluster: Cluster, topic: str, records: int, *, keyed: bool, **settings: Any) -> float:
    """Records a second of 100-byte `send`s, to the acknowledgement of the last."""
    value = os.urandom(RECORD_BYTES)
    keys = [f"key-{number}".encode() for number in range(1000)]
    with cluster.producer(**settings) as producer:
        producer.send(topic, value).result(30)
        one = producer.send
        started = time.perf_counter()
        if keyed:
            for number in range(records):
                one(topic, value, keys[number % 1000])
        else:
            for _ in range(records):
                one(topic, value)
        producer.flush()
        return records / (time.perf_counter() - started)


def iterate(cluster: Cluster, topic: str, records: int, **settings: Any) -> float:
    """Records a second of one consumer that loops over them."""
    with cluster.consumer(topic, start="earliest", **settings) as consumer:
        started = time.perf_counter()
        for seen, _record in enumerate(consumer, 1):
            if seen == records:
                break
        return records / (time.perf_counter() - started)


def encode_and_sync(records: int) -> float:
    """The bare operation of `send`: one process that encodes the same records to Arrow, writes and syncs 1 MB at a
    time. Records a second."""
    value = os.urandom(RECORD_BYTES)
    per_batch = (1 << 20) // RECORD_BYTES
    schema = pa.schema([("value", pa.binary())])
    with tempfile.TemporaryFile(dir=".") as file:
        started = time.perf_counter()
        done = 0
        with pa.ipc.new_stream(file, schema) as writer:
            while done < records:
                size = min(per_batch, records - done)
                writer.write_batch(pa.record_batch([pa.array([value] * size, pa.binary())], schema=schema))
                file.flush()
                os.fdatasync(file.fileno())
                done += size
        return records / (time.perf_counter() - started)


def latency(cluster: Cluster, topic: str) -> tuple[float, float]:
    """p50 and p99 milliseconds from `send` to the consumer's hands, at 1,000 records a second, `linger_ms=0`."""
    import threading

    taken: list[float] = []
    ready, done = threading.Event(), threading.Event()

    def consume() -> None:
        with cluster.consumer(topic, start="earliest") as consumer:
            for record in consumer:
                taken.append((time.perf_counter_ns() - int(record.value)) / 1e6)
                ready.set()
                if len(taken) > LATENCY_RECORDS:
                    break
        done.set()

    thread = threading.Thread(target=consume, daemon=True)
    thread.start()
    with cluster.producer(linger_ms=0) as producer:
        producer.send(topic, str(time.perf_counter_ns())).result(30)
        ready.wait(30)
        due = time.perf_counter()
        for _ in range(LATENCY_RECORDS):
            due += 1 / LATENCY_PER_SECOND
            if (pause := due - time.perf_counter()) > 0:
                time.sleep(pause)
            producer.send(topic, str(time.perf_counter_ns()))
        done.wait(60)
    ordered = sorted(taken[1:])
    return statistics.median(ordered), ordered[int(len(ordered) * 0.99)]


class Echo:
    """The bare peer of a call: an actor that does nothing."""

    def echo(self) -> None:
        """Answers."""


def empty_call(calls: int = 1000) -> float:
    """p50 milliseconds of the round trip of an empty actor call."""
    import ray

    from raystream.actors.launch import end_actor, start_local_actor

    actor = start_local_actor(Echo)
    for _ in range(100):
        ray.get(actor.echo.remote())
    times = []
    for _ in range(calls):
        started = time.perf_counter()
        ray.get(actor.echo.remote())
        times.append((time.perf_counter() - started) * 1e3)
    end_actor(actor)
    return statistics.median(times)


def run(records: int = 1_000_000, runs: int = 5, cluster: Cluster | None = None) -> Rows[BenchResult]:
    """Measures on the cluster given, or on an embedded one whose data is thrown away."""
    if cluster is not None:
        return _run(cluster, records, runs)
    from raystream.cluster import connect

    with tempfile.TemporaryDirectory(dir=".", prefix=".raystream-bench-") as root, connect(data_dir=root) as own:
        return _run(own, records, runs)


def _run(cluster: Cluster, records: int, runs: int) -> Rows[BenchResult]:
    figures: dict[str, list[float]] = {}

    def note(what: str, value: float) -> None:
        figures.setdefault(what, []).append(value)

    for turn in range(runs + 1):
        if turn == 1:
            figures.clear()  # the first run only warms up
        note("bare", encode_and_sync(records))
        for keyed, what in ((False, "send"), (True, "send keyed")):
            with fresh_topic(cluster) as topic:
                note(what, send(cluster, topic, records, keyed=keyed))
                if not keyed:
                    note("iterate", iterate(cluster, topic, records))
        with fresh_topic(cluster, partitions=1) as topic:
            p50, p99 = latency(cluster, topic)
        note("p50", p50)
        note("p99", p99)
        note("call", empty_call())
    middle = {what: statistics.median(values) for what, values in figures.items()}
    per_second = f"records/s of {RECORD_BYTES} B"
    return Rows(
        [
            _against("send without keys", middle["send"], per_second, middle["bare"]),
            _against("send with keys", middle["send keyed"], per_second, middle["bare"]),
            BenchResult("iterate in one consumer", round(middle["iterate"]), per_second),
            _against("produce to consume, p50", middle["p50"], "ms", middle["call"]),
            _against("produce to consume, p99", middle["p99"], "ms", middle["call"]),
        ]
    )


def _against(what: str, value: float, unit: str, bare: float) -> BenchResult:
    digits: Callable[[float], float] = (lambda v: round(v, 2)) if unit == "ms" else (lambda v: round(v))
    return BenchResult(what, digits(value), unit, digits(bare), round(value / bare, 2))
