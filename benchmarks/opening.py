"""Opening a large partition after a clean stop and after a SIGKILL, against opening an empty one.

The log is opened in a process of its own, as a partition actor does. Needs as much free disk as the log is large.

    python -m benchmarks.opening --gigabytes 10
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa

from benchmarks.harness import arguments, keep, machine, measure
from raystream import batch as b
from raystream.clock import SystemClock
from raystream.config import TopicConfig
from raystream.schema import RAW_SCHEMA
from raystream.storage.files import DiskFiles
from raystream.storage.log import Log

TOPIC_ID = "ab" * 16
PAST_CHECKPOINT_BYTES = 60 << 20


def open_log(directory: str) -> Log:
    return Log.open(
        DiskFiles(),
        directory,
        topic_id=TOPIC_ID,
        partition=0,
        schemas=[RAW_SCHEMA],
        config=TopicConfig(),
        clock=SystemClock(),
    )


def fill(directory: str, size_bytes: int, *, clean: bool) -> None:
    """Appends 1 MB batches in groups of eight, as a busy partition does; then stops cleanly, or by SIGKILL at the worst
    moment: as much as ever lies past the checkpoint, in batches of one small record."""
    large, small = one_batch(1000, 1000), one_batch(1, 100)
    log = open_log(directory)

    def append(batch: tuple[memoryview, b.BatchHeader], count: int) -> None:
        log.append([batch] * count, leader_epoch=0, high_watermark=log.high_watermark)
        log.advance_high_watermark(log.flush())

    while log.size_bytes < size_bytes:
        append(large, 8)
        log.maybe_checkpoint()
    if clean:
        log.close()
        return
    end = log.size_bytes + PAST_CHECKPOINT_BYTES
    while log.size_bytes < end:
        append(small, 500)
    os.kill(os.getpid(), signal.SIGKILL)


def one_batch(rows: int, record_bytes: int) -> tuple[memoryview, b.BatchHeader]:
    """An encoded batch without a producer, which may be appended again and again."""
    columns = [
        pa.nulls(rows, pa.binary()),
        pa.array([os.urandom(record_bytes)] * rows, pa.binary()),
        pa.nulls(rows, RAW_SCHEMA.field("headers").type),
        pa.array([0] * rows, pa.int64()),
    ]
    message = b.encode(
        pa.record_batch(columns, schema=RAW_SCHEMA),
        b.ProducerFields(
            topic_id=TOPIC_ID, partition=0, last_offset_delta=rows - 1, first_timestamp_ms=0, max_timestamp_ms=0
        ),
    )
    return message, b.parse(message)


def made(directory: Path, size_bytes: int, *, clean: bool) -> None:
    subprocess.run([sys.executable, "-m", "benchmarks.opening", "--fill", directory, str(size_bytes), str(int(clean))])


def opening_ms(directory: Path, size_bytes: int) -> float:
    """Milliseconds to open in a fresh process, which then is killed so that the next run meets the same state."""
    script = f"""
import os, signal, time
from benchmarks.opening import open_log
started = time.perf_counter()
log = open_log({str(directory)!r})
print((time.perf_counter() - started) * 1e3, log.size_bytes, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    elapsed_ms, opened_bytes = done.stdout.split()
    if int(opened_bytes) < size_bytes:
        raise RuntimeError(f"{directory} holds {opened_bytes} bytes instead of {size_bytes}")
    return float(elapsed_ms)


def main() -> None:
    args = arguments(__doc__, gigabytes=10)
    print(machine())
    root = Path(tempfile.mkdtemp(dir=args.data_dir))
    try:
        kept = {"empty": 0, "after a clean stop": args.gigabytes << 30, "after SIGKILL": args.gigabytes << 30}
        started = time.perf_counter()
        for name, size in kept.items():
            made(root / name, size, clean=name != "after SIGKILL")
        print(f"filled in {time.perf_counter() - started:.0f} s")
        for name in kept:  # the state at the stop, for every run to start from
            shutil.copytree(root / name, root / f"{name}.state", ignore=shutil.ignore_patterns("*.log"))

        def case(name: str) -> float:
            for kept_file in (root / f"{name}.state").iterdir():
                shutil.copy2(kept_file, root / name / kept_file.name)
            return opening_ms(root / name, kept[name])

        table = measure(
            f"opening a partition of {args.gigabytes} GB",
            "ms",
            {name: lambda name=name: case(name) for name in kept},  # type: ignore[misc]
            runs=args.runs,
            better="lower",
        )
        table.show()
        keep(args.json, table)
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--fill"]:
        fill(sys.argv[2], int(sys.argv[3]), clean=sys.argv[4] == "1")
    else:
        main()
