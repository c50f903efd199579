"""Batches of 1 MB and 4 MB into one partition, against a bare actor that writes and syncs the same bytes.

python -m benchmarks.batches
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

import raystream as rs
from benchmarks.harness import arguments, keep, machine, measure
from raystream import batch as b
from raystream import bench
from raystream import messages as m
from raystream.schema import RAW_SCHEMA

IN_FLIGHT = 4
MEGABYTE = 1 << 20
WARM_UP = 12
"""Batches that do not count: a new actor touches its memory for the first time."""


class BareWriter:
    """Writes what it is given to a file and syncs it: no header, no checks, no offsets."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file = -1

    def write(self, data: Any) -> int:
        """Returns once the bytes are on the disk."""
        os.writev(self._file, [memoryview(data)])
        os.fdatasync(self._file)
        return len(memoryview(data))

    def begin(self) -> None:
        """A new file, as a new topic has."""
        self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def end(self) -> None:
        """Deletes it, as the topic is deleted: whoever writes next gets the page cache's memory that it leaves."""
        os.close(self._file)
        os.unlink(self._path)


async def pipelined(calls: int, one: Any) -> None:
    """`calls` times `one(number)`, IN_FLIGHT at a time."""
    room = asyncio.Semaphore(IN_FLIGHT)

    async def turn(number: int) -> None:
        async with room:
            await one(number)

    await asyncio.gather(*(turn(number) for number in range(calls)))


def encoded(size_bytes: int, topic_id: str, producer_id: int, count: int) -> list[memoryview]:
    """`count` raw batches of about `size_bytes`, in sequence."""
    rows = size_bytes // 1000
    values = pa.array([os.urandom(988)] * rows, pa.binary())
    columns = [
        pa.nulls(rows, pa.binary()),
        values,
        pa.nulls(rows, RAW_SCHEMA.field("headers").type),
        pa.array([0] * rows, pa.int64()),
    ]
    batch = pa.record_batch(columns, schema=RAW_SCHEMA)
    return [
        b.encode(
            batch,
            b.ProducerFields(
                topic_id=topic_id,
                partition=0,
                producer_id=producer_id,
                producer_epoch=0,
                base_sequence=number * rows,
                last_offset_delta=rows - 1,
                first_timestamp_ms=0,
                max_timestamp_ms=0,
            ),
        )
        for number in range(count)
    ]


def append(cluster: rs.Cluster, size_bytes: int, count: int) -> float:
    """MB/s of encoded batches through the partition's port, as the producer sends them."""
    with bench.fresh_topic(cluster, partitions=1) as topic:
        routing = cluster._routing
        topic_id = cluster.describe_topic(topic).id
        reply = cluster._run(
            routing.call_coordinator(lambda port, left: port.init_producer(m.InitProducerRequest(), timeout_ms=left))
        )
        batches = encoded(size_bytes, topic_id, reply.producer_id, count + WARM_UP)

        async def work() -> float:
            leader = await routing.leader(topic, 0)

            async def one(number: int) -> None:
                request = m.AppendRequest(topic_id=topic_id, partition=0, leader_epoch=leader.epoch)
                await leader.port.append(request, batches[number], timeout_ms=30_000)

            await pipelined(WARM_UP, one)
            started = time.perf_counter()
            await pipelined(count, lambda number: one(WARM_UP + number))
            return sum(len(batch) for batch in batches[WARM_UP:]) / (time.perf_counter() - started) / 1e6

        figure: float = cluster._run(work())
        return figure


def bare(cluster: rs.Cluster, actor: Any, size_bytes: int, count: int) -> float:
    """MB/s of the same bytes through the bare actor."""
    batches = [pa.py_buffer(message) for message in encoded(size_bytes, "00" * 16, 1, count + WARM_UP)]
    ray.get(actor.begin.remote())

    async def one(number: int) -> None:
        await actor.write.remote(batches[number])

    async def work() -> float:
        await pipelined(WARM_UP, one)
        started = time.perf_counter()
        await pipelined(count, lambda number: one(WARM_UP + number))
        return float(sum(batch.size for batch in batches[WARM_UP:]) / (time.perf_counter() - started) / 1e6)

    figure: float = cluster._run(work())
    ray.get(actor.end.remote())
    return figure


def main() -> None:
    args = arguments(__doc__, megabytes=400)
    print(machine())
    tables = []
    with tempfile.TemporaryDirectory(dir=args.data_dir) as root, rs.connect(data_dir=root) as cluster:
        actor = ray.remote(num_cpus=0)(BareWriter).remote(str(Path(root) / "bare"))
        for size in (1, 4):
            count = args.megabytes // size

            def through_raystream(size: int = size, count: int = count) -> float:
                return append(cluster, size * MEGABYTE, count)

            def through_bare(size: int = size, count: int = count) -> float:
                return bare(cluster, actor, size * MEGABYTE, count)

            table = measure(
                f"batches of {size} MB into one partition, {IN_FLIGHT} in flight",
                "MB/s",
                {"bare actor: write and sync": through_bare, "raystream": through_raystream},
                runs=args.runs,
            )
            table.show({"raystream": "bare actor: write and sync"})
            tables.append(table)
    keep(args.json, *tables)


if __name__ == "__main__":
    main()
