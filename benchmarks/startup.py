"""`connect()` to the first acknowledged record, embedded, beyond what `ray.init()` alone takes.

Each run is a process of its own.

    python -m benchmarks.startup
"""

from __future__ import annotations

import subprocess
import sys
import tempfile

from benchmarks.harness import arguments, keep, machine, measure

RAY_ALONE = """
import time, logging
import ray, pyarrow
started = time.perf_counter()
ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
print(time.perf_counter() - started)
"""

FIRST_RECORD = """
import time, sys
import ray, pyarrow
import raystream as rs
started = time.perf_counter()
with rs.connect(data_dir=sys.argv[1]) as cluster:
    cluster.create_topic("first")
    with cluster.producer() as producer:
        producer.send("first", b"record").result(60)
        print(time.perf_counter() - started)
"""


def seconds(script: str) -> float:
    with tempfile.TemporaryDirectory() as root:
        done = subprocess.run([sys.executable, "-c", script, root], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main() -> None:
    args = arguments(__doc__)
    print(machine())
    table = measure(
        "start of an embedded cluster",
        "s",
        {
            "ray.init() alone": lambda: seconds(RAY_ALONE),
            "connect() to first acknowledged record": lambda: seconds(FIRST_RECORD),
        },
        runs=args.runs,
        better="lower",
    )
    table.show()
    beyond = table.median("connect() to first acknowledged record") - table.median("ray.init() alone")
    print(f"\nbeyond ray.init(): {beyond:.2f} s")
    keep(args.json, table)


if __name__ == "__main__":
    main()
