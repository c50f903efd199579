"""Memory of producer, consumer and partition actor under sustained overload: is it flat, and within the bounds?

A producer sends as fast as `send` lets it while a consumer that is slower than the producer reads.

    python -m benchmarks.memory --seconds 60
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import ray

import raystream as rs
from benchmarks.harness import arguments, machine
from raystream.actors.handles import wait_for

PRODUCE = """
import sys, time, os
import raystream as rs
cluster = rs.connect(data_dir=sys.argv[1])
value = os.urandom(100)
deadline = time.monotonic() + float(sys.argv[2])
with cluster.producer(max_buffered_bytes=32 << 20) as producer:
    while time.monotonic() < deadline:
        for _ in range(1000):
            producer.send("overload", value)
"""

CONSUME = """
import sys, time
import raystream as rs
cluster = rs.connect(data_dir=sys.argv[1])
deadline = time.monotonic() + float(sys.argv[2])
seen = 0
with cluster.consumer("overload", group="slow", start="earliest", max_buffered_bytes=32 << 20) as consumer:
    while time.monotonic() < deadline:
        batch = consumer.poll(0.1)
        if batch is not None:
            seen += len(batch)
            time.sleep(0.05)
"""


def private_mb(pid: int) -> float:
    """Memory that belongs to the process alone: mapped log pages are the page cache's."""
    return float(psutil.Process(pid).memory_full_info().uss) / 1e6


def main() -> None:
    args = arguments(__doc__, seconds=60)
    print(machine())
    with tempfile.TemporaryDirectory(dir=args.data_dir) as root, rs.connect(data_dir=root) as cluster:
        cluster.create_topic("overload", config={"segment_bytes": 64 << 20})
        (name,) = {p.actor for p in cluster._run(cluster._routing.topic("overload")).partitions}
        actor = ray.get_actor(name, namespace="raystream")
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        clients = {
            what: subprocess.Popen([sys.executable, "-c", script, root, str(args.seconds)], env=environment)
            for what, script in (("producer", PRODUCE), ("consumer", CONSUME))
        }
        pids = {what: process.pid for what, process in clients.items()}
        pids["partition actor"] = wait_for(actor.pid.remote(), 10_000)
        samples: dict[str, list[float]] = {what: [] for what in pids}
        end = time.monotonic() + args.seconds
        while time.monotonic() < end - 1:
            time.sleep(1)
            for what, pid in pids.items():
                samples[what].append(private_mb(pid))
        for process in clients.values():
            process.wait(60)
        records = cluster.describe_topic("overload").records
    print(f"\n{records:,} records in {args.seconds} s\n")
    print("private MB, medians of each sixth of the time after the first\n")
    print("| process | second | third | fourth | fifth | last | most |\n|---|---|---|---|---|---|---|")
    for what, values in samples.items():
        sixth = len(values) // 6
        medians = [statistics.median(values[sixth * part : sixth * (part + 1)]) for part in range(1, 6)]
        print(f"| {what} | {' | '.join(f'{median:.0f}' for median in medians)} | {max(values):.0f} |")


if __name__ == "__main__":
    main()
