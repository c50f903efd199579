"""The controller's broker is killed with many partitions in the metadata: until when is the next one at work?

python -m benchmarks.chaos.controller_change [--partitions 1000] [--runs 5]

Measured from the kill to the answer of the next change of the metadata, with a producer at work all the time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.chaos.failover import TOPIC, Writer
from benchmarks.chaos.nodes import Nodes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--partitions", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--data-dir", default=None)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.data_dir) as root, Nodes(Path(root) / "data") as nodes:
        nodes.wait_for_brokers(3)
        nodes.cluster.create_topic(TOPIC, replication_factor=3)
        started = time.monotonic()
        nodes.cluster.create_topic("many", partitions=args.partitions, replication_factor=1)
        print(f"{args.partitions:,} partitions made in {time.monotonic() - started:.1f} s", flush=True)
        writer = Writer(nodes.cluster)
        changes, gaps = [], []
        for run in range(args.runs):
            nodes.wait_for_brokers(3)
            nodes.wait_for_isr(TOPIC, 3)
            time.sleep(3.0)
            moment = time.monotonic()
            nodes.kill(nodes.broker(nodes.controller()).pid)
            nodes.cluster.create_topic(f"next-{run}", replication_factor=1)
            changes.append(time.monotonic() - moment)
            gaps.append(writer.gap_after(moment))
        writer.stop()
    print(
        f"next change of the metadata after p50 {statistics.median(changes):.2f} s, worst {max(changes):.2f} s; "
        f"the writer's longest wait p50 {statistics.median(gaps):.2f} s, worst {max(gaps):.2f} s; "
        f"{len(writer.errors)} errors"
    )


if __name__ == "__main__":
    main()
