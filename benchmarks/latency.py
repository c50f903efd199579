"""Produce to consume at 1,000 records a second, `linger_ms=0`, synced, against the round trip of an empty actor call.

python -m benchmarks.latency
"""

from __future__ import annotations

import tempfile

import raystream as rs
from benchmarks.harness import arguments, keep, machine, measure
from raystream import bench


def main() -> None:
    args = arguments(__doc__)
    print(machine())
    p99s: list[float] = []
    with tempfile.TemporaryDirectory(dir=args.data_dir) as root, rs.connect(data_dir=root) as cluster:

        def produce_to_consume() -> float:
            with bench.fresh_topic(cluster, partitions=1) as topic:
                p50, p99 = bench.latency(cluster, topic)
            p99s.append(p99)
            return p50

        table = measure(
            "produce to consume, p50",
            "ms",
            {"empty actor call, round trip": bench.empty_call, "raystream": produce_to_consume},
            runs=args.runs,
            better="lower",
        )
        table.show({"raystream": "empty actor call, round trip"})
    print(f"\np99 of each run: {', '.join(f'{p99:.2f}' for p99 in p99s[1:])} ms")
    keep(args.json, table)


if __name__ == "__main__":
    main()
