"""What replication costs: three Ray nodes on this machine, one disk, acks="all".

python -m benchmarks.replicated [--runs 5]

Large batches stand against three processes that write and sync the same bytes to the same disk at the same time, small
records and single sends against the same with one replica.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

import pyarrow as pa

import raystream as rs
from benchmarks.chaos.nodes import Nodes
from benchmarks.harness import arguments, keep, machine, measure
from raystream import bench

MEGABYTE = 1 << 20
LARGE = 300
"""Batches of a megabyte in one run."""
SMALL = 200_000
"""Records of 100 bytes in one run."""
SINGLE = 1_000
"""Sends that are waited for, one after the other, in one run."""
QUIET_S = 5.0
"""A topic takes its nodes' spare actors, and each node starts another one: that is not what is measured."""


def main() -> None:
    args = arguments(__doc__)
    print(machine())
    with tempfile.TemporaryDirectory(dir=args.data_dir) as root, Nodes(Path(root) / "data") as nodes:
        nodes.wait_for_brokers(3)
        cluster = nodes.cluster
        large = measure(
            "1 MB batches",
            "MB/s",
            {
                "three processes that write and sync": lambda: _bare(root),
                "raystream, 3 replicas": lambda: _large(cluster, 3),
                "raystream, 1 replica": lambda: _large(cluster, 1),
            },
            runs=args.runs,
        )
        large.show({"raystream, 3 replicas": "three processes that write and sync"})
        small = measure(
            "100-byte sends",
            "records/s",
            {"1 replica": lambda: _small(cluster, 1), "3 replicas": lambda: _small(cluster, 3)},
            runs=args.runs,
        )
        small.show({"3 replicas": "1 replica"})
        single = measure(
            "one send at a time, p50",
            "ms",
            {
                "empty actor call, round trip": bench.empty_call,
                "1 replica": lambda: _single(cluster, 1),
                "3 replicas": lambda: _single(cluster, 3),
            },
            runs=args.runs,
            better="lower",
        )
        single.show({"3 replicas": "empty actor call, round trip"})
    keep(args.json, large, small, single)


def _bare(root: str) -> float:
    """Megabytes a second that three processes write and sync at the same time, each all of the bytes."""
    barrier = multiprocessing.Barrier(4)
    writers = [multiprocessing.Process(target=_write, args=(f"{root}/bare-{n}", barrier)) for n in range(3)]
    for writer in writers:
        writer.start()
    barrier.wait()
    started = time.perf_counter()
    for writer in writers:
        writer.join()
    took = time.perf_counter() - started
    for number in range(3):
        os.unlink(f"{root}/bare-{number}")
    return LARGE / took


def _write(path: str, barrier: object) -> None:
    data = os.urandom(MEGABYTE)
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    barrier.wait()  # type: ignore[attr-defined]
    for _ in range(LARGE):
        os.write(file, data)
        os.fdatasync(file)


def _large(cluster: rs.Cluster, replicas: int) -> float:
    rows = MEGABYTE // 1000
    frame = pa.table({"value": pa.array([os.urandom(988)] * rows, pa.binary())})
    with (
        bench.fresh_topic(cluster, partitions=1, replication_factor=replicas) as topic,
        cluster.producer(max_batch_bytes=2 * MEGABYTE) as producer,
    ):
        time.sleep(QUIET_S)
        for _ in range(30):
            producer.send_frame(topic, frame)
        producer.flush()
        started = time.perf_counter()
        for _ in range(LARGE):
            producer.send_frame(topic, frame)
        producer.flush()
        return LARGE / (time.perf_counter() - started)


def _small(cluster: rs.Cluster, replicas: int) -> float:
    with bench.fresh_topic(cluster, partitions=1, replication_factor=replicas) as topic:
        time.sleep(QUIET_S)
        return bench.send(cluster, topic, SMALL, keyed=False)


def _single(cluster: rs.Cluster, replicas: int) -> float:
    taken = []
    with (
        bench.fresh_topic(cluster, partitions=1, replication_factor=replicas) as topic,
        cluster.producer(linger_ms=0) as producer,
    ):
        time.sleep(QUIET_S)
        for _ in range(20):
            producer.send(topic, b"x" * 100).result(30)
        for _ in range(SINGLE):
            started = time.perf_counter()
            producer.send(topic, b"x" * 100).result(30)
            taken.append((time.perf_counter() - started) * 1000)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
