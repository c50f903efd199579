"""`send` of 100-byte records, with and without keys, and one consumer that iterates them.

python -m benchmarks.records --records 2000000
"""

from __future__ import annotations

import tempfile

import raystream as rs
from benchmarks.harness import arguments, keep, machine, measure
from raystream import bench


def main() -> None:
    args = arguments(__doc__, records=2_000_000)
    print(machine())
    with tempfile.TemporaryDirectory(dir=args.data_dir) as root, rs.connect(data_dir=root) as cluster:

        def send(*, keyed: bool) -> float:
            with bench.fresh_topic(cluster) as topic:
                return bench.send(cluster, topic, args.records, keyed=keyed)

        sends = measure(
            "send of 100-byte records, 4 partitions, acks=all, synced",
            "records/s",
            {
                "encode, write and sync in one process": lambda: bench.encode_and_sync(args.records),
                "send without keys": lambda: send(keyed=False),
                "send with keys": lambda: send(keyed=True),
            },
            runs=args.runs,
        )
        bare = "encode, write and sync in one process"
        sends.show({"send without keys": bare, "send with keys": bare})
        with bench.fresh_topic(cluster) as topic:
            bench.send(cluster, topic, args.records, keyed=False)
            reads = measure(
                "one consumer iterating those records",
                "records/s",
                {
                    "CRCs checked": lambda: bench.iterate(cluster, topic, args.records),
                    "CRCs not checked": lambda: bench.iterate(cluster, topic, args.records, check_crcs=False),
                },
                runs=args.runs,
            )
        reads.show()
    keep(args.json, sends, reads)


if __name__ == "__main__":
    main()
