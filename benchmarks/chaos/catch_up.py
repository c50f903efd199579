"""How fast an empty follower catches up, and what the leader's writers notice of it.

python -m benchmarks.chaos.catch_up [--gigabytes 2]

A partition with one replica gets a second one on another node, while a producer goes on at about half of what the
leader can take. The bare operation is a copy of the same bytes on the same disk, synced every megabyte: with nothing
else to do, and beside the same load.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import ray

import raystream as rs
from benchmarks.chaos.nodes import NAMESPACE, Nodes
from raystream import messages as m
from raystream.actors.finding import find_broker

TOPIC = "catch-up"
MEGABYTE = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--data-dir", default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.data_dir) as root, Nodes(Path(root) / "data") as nodes:
        nodes.wait_for_brokers(3)
        nodes.cluster.create_topic(TOPIC, replication_factor=1)
        megabytes = int(args.gigabytes * 1024)
        full = _fill(nodes.cluster, megabytes)
        bare = _copy(Path(root), megabytes)
        alone, _ = _load(nodes.cluster, full / 2, 5.0, None)
        loaded, copying = _beside_load(nodes.cluster, full / 2, lambda: _copy(Path(root), megabytes))
        done = threading.Event()
        begun = time.monotonic()
        _add_a_replica(nodes)
        watch = threading.Thread(target=_watch, args=(nodes, done))
        watch.start()
        beside, sent = _load(nodes.cluster, full / 2, 600.0, done)
        took = time.monotonic() - begun
    speed = (megabytes + sent) / took
    print(f"leader alone takes {full:.0f} MB/s; a copy of the files {bare:.0f} MB/s, beside half the load {loaded:.0f}")
    print(
        f"caught up {megabytes + sent:.0f} MB in {took:.1f} s: {speed:.0f} MB/s, {speed / bare:.2f} of the copy, "
        f"{speed / loaded:.2f} of the one beside the load"
    )
    print(
        f"p99 of an append at half load: {alone:.1f} ms before, {beside:.1f} ms meanwhile ({beside / alone:.1f} x), "
        f"{copying:.1f} ms beside the copy ({copying / alone:.1f} x)"
    )


def _frame() -> pa.Table:
    return pa.table({"value": pa.array([os.urandom(988)] * (MEGABYTE // 1000), pa.binary())})


def _fill(cluster: rs.Cluster, megabytes: int) -> float:
    frame = _frame()
    with cluster.producer(max_batch_bytes=2 * MEGABYTE) as producer:
        started = time.perf_counter()
        for _ in range(megabytes):
            producer.send_frame(TOPIC, frame)
        producer.flush()
        return megabytes / (time.perf_counter() - started)


def _copy(root: Path, megabytes: int) -> float:
    segments = sorted(root.glob("data/broker-*/*/*.log"), key=lambda path: path.stat().st_size)[-(megabytes // 128) :]
    copied = 0
    started = time.perf_counter()
    with open(root / "copy", "wb", buffering=0) as target:
        for segment in segments:
            with open(segment, "rb") as source:
                while data := source.read(MEGABYTE):
                    target.write(data)
                    os.fdatasync(target.fileno())
                    copied += len(data)
    took = time.perf_counter() - started
    (root / "copy").unlink()
    return copied / MEGABYTE / took


def _beside_load(cluster: rs.Cluster, mb_per_s: float, work: Callable[[], float]) -> tuple[float, float]:
    """What `work` gives while the load goes on, and the load's p99 milliseconds."""
    done = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(_load, cluster, mb_per_s, 600.0, done)
        try:
            figure = work()
        finally:
            done.set()
        return figure, load.result()[0]


def _load(cluster: rs.Cluster, mb_per_s: float, seconds: float, done: threading.Event | None) -> tuple[float, float]:
    """p99 milliseconds of appends of a megabyte at that rate, and how many megabytes they were."""
    frame = _frame()
    taken: list[float] = []
    with cluster.producer(max_batch_bytes=2 * MEGABYTE, linger_ms=0) as producer:
        due = time.perf_counter()
        end = due + seconds
        while time.perf_counter() < end and not (done is not None and done.is_set()):
            due = max(due + 1 / mb_per_s, time.perf_counter() - 1)
            time.sleep(max(due - time.perf_counter(), 0))
            started = time.perf_counter()
            producer.send_frame(TOPIC, frame).result(60)
            taken.append((time.perf_counter() - started) * 1000)
    return statistics.quantiles(taken, n=100)[98], len(taken)


def _add_a_replica(nodes: Nodes) -> None:
    handle = find_broker(NAMESPACE, ray.get_runtime_context().get_node_id())
    ray.get(handle.alter_topic.remote(m.AlterTopicRequest(name=TOPIC, replication_factor=2)), timeout=60)


def _watch(nodes: Nodes, done: threading.Event) -> None:
    nodes.wait_for_isr(TOPIC, 2, 600.0)
    done.set()


if __name__ == "__main__":
    main()
