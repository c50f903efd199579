"""Compaction of a log with a tenth of its keys alive: megabytes read a second, and what appends feel of it meanwhile.

A partition's replica as its actor has it (writer, compaction thread), without Ray: the log, the disk and the processor
are what is shared. Appends of 10 KB come at a steady rate, each with its fdatasync, first alone and then while the log
behind them is compacted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from raystream import batch as b
from raystream import messages as m
from raystream.actors import compaction
from raystream.actors.background import let_others_go_first
from raystream.actors.compaction import Compactor
from raystream.actors.leading import Append
from raystream.actors.partition import SWITCH_INTERVAL_S
from raystream.actors.replica import Replica
from raystream.actors.writer import Ticket, Writer
from raystream.clock import SystemClock
from raystream.config import MIB
from raystream.errors import RaystreamError
from raystream.schema import RAW_SCHEMA
from raystream.storage.files import DiskFiles

TOPIC_ID = "ab" * 16
VALUE_BYTES = 1_000
BATCH_ROWS = 250


class Nobody:
    """An outbox for a replica that has no followers."""

    def replicate(self, *_: Any) -> None: ...

    def alter_isr(self, *_: Any) -> None: ...

    def beside(self, *_: Any) -> None: ...


class Partition:
    """One replica and its writer."""

    def __init__(self, directory: str) -> None:
        spec = m.ReplicaSpec(
            topic="t",
            topic_id=TOPIC_ID,
            partition=0,
            directory=f"{directory}/p",
            leader_epoch=1,
            incarnation=1,
            config={"cleanup_policy": "compact", "segment_bytes": 64 * MIB},
            schemas=(RAW_SCHEMA.serialize().to_pybytes(),),
        )
        self.replica = Replica(spec, DiskFiles(), SystemClock(), Nobody())
        self.replica.open()
        self.writer: Writer[Any] = Writer("writer", self._write, broken=self._broken)
        self.writer.start()

    def _write(self, tickets: list[Ticket[Any]]) -> None:
        for ticket in tickets:
            if isinstance(ticket.work, Append):
                self.replica.offer(ticket)
            else:
                try:
                    ticket.answer(ticket.work())
                except RaystreamError as error:
                    ticket.fail(error)
        self.replica.commit()

    def _broken(self, error: BaseException) -> None:
        sys.exit(f"the writer failed: {error!r}")

    def append(self, message: memoryview) -> None:
        work = self.replica.check(m.AppendRequest(topic_id=TOPIC_ID, partition=0), message)
        self.writer.submit(work, here=True).wait(30_000)

    def on_writer(self, work: Callable[[], Any]) -> Any:
        return self.writer.submit(work).wait(60_000)


def batch(rng: np.random.Generator, keys: int, rows: int, value_bytes: int) -> memoryview:
    """Random keys among so many, values that do not repeat."""
    chosen = [b"key-%012d" % key for key in rng.integers(0, keys, rows)]
    payload = rng.bytes(rows * value_bytes)
    values = [payload[i * value_bytes : (i + 1) * value_bytes] for i in range(rows)]
    columns = [chosen, values, [None] * rows, [1_000] * rows]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, RAW_SCHEMA, strict=True)]
    fields = b.ProducerFields(
        topic_id=TOPIC_ID, partition=0, last_offset_delta=rows - 1, first_timestamp_ms=1_000, max_timestamp_ms=1_000
    )
    return b.encode(pa.RecordBatch.from_arrays(arrays, schema=RAW_SCHEMA), fields)


def append_for(partition: Partition, small: memoryview, rate: float, until: Callable[[], bool]) -> list[float]:
    """The times of appends at a steady rate, in milliseconds, until told to end."""
    took = []
    due = time.perf_counter()
    while not until():
        due += 1 / rate
        time.sleep(max(due - time.perf_counter(), 0))
        began = time.perf_counter()
        partition.append(small)
        took.append((time.perf_counter() - began) * 1_000)
    return took


def shown(took: list[float]) -> str:
    return f"p50 {np.percentile(took, 50):.2f} ms, p99 {np.percentile(took, 99):.2f} ms, of {len(took):,}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=1_000)
    parser.add_argument("--live", type=float, default=0.1, help="distinct keys, as a share of the records")
    parser.add_argument("--rate", type=float, default=200.0, help="appends a second meanwhile; 0: none")
    parser.add_argument("--breath", type=float, default=compaction.BREATH_SHARE)
    parser.add_argument("--data-dir")
    args = parser.parse_args()
    compaction.BREATH_SHARE = args.breath  # type: ignore[misc]
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory(dir=args.data_dir) as directory:
        partition = Partition(directory)
        batches = args.megabytes * 1_000_000 // (BATCH_ROWS * VALUE_BYTES)
        keys = int(batches * BATCH_ROWS * args.live)
        for _ in range(batches):
            partition.append(batch(rng, keys, BATCH_ROWS, VALUE_BYTES))
        log = partition.replica.log
        before = log.size_bytes
        small = batch(rng, keys, 10, VALUE_BYTES)
        ends = time.perf_counter() + 15
        alone = append_for(partition, small, args.rate, lambda: time.perf_counter() > ends) if args.rate else []
        compactor = Compactor(lambda: [partition.replica], SystemClock(), partition.on_writer)
        done: list[Any] = []

        def compact() -> None:
            let_others_go_first()  # as the compactor's own thread does
            done.extend(compactor.round())

        thread = threading.Thread(target=compact)
        began = time.perf_counter()
        thread.start()
        meanwhile = append_for(partition, small, args.rate, lambda: not thread.is_alive()) if args.rate else []
        thread.join()
        seconds = time.perf_counter() - began
        sys.stdout.write(f"{before / 1e6:,.0f} MB to {log.size_bytes / 1e6:,.0f} MB in {seconds:.1f} s: ")
        sys.stdout.write(f"{before / seconds / 1e6:.0f} MB/s of log; {done[0]}\n")
        if args.rate:
            sys.stdout.write(f"appends alone:     {shown(alone)}\nappends meanwhile: {shown(meanwhile)}\n")
            sys.stdout.write(f"p99 x {np.percentile(meanwhile, 99) / np.percentile(alone, 99):.2f}\n")
        partition.writer.stop()
        partition.replica.close()


if __name__ == "__main__":
    main()
