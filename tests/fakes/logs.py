"""Batches and logs for tests of the storage wing: every record's value tells which record it is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from raystream import batch as b
from raystream.clock import Clock, ManualClock
from raystream.config import TopicConfig
from raystream.errors import CorruptBatch
from raystream.schema import RAW_SCHEMA
from raystream.storage.appending import AppendResult
from raystream.storage.files import Files
from raystream.storage.log import Log

TOPIC_ID = "00112233445566778899aabbccddeeff"
DIRECTORY = "data/p"
FIRST_MS = 1_000
SCHEMAS = (RAW_SCHEMA, RAW_SCHEMA.append(pa.field("extra", pa.int32())))

Message = tuple[memoryview, b.BatchHeader]


def message(
    values: Sequence[bytes],
    *,
    timestamps: Sequence[int] | None = None,
    producer: tuple[int, int, int] = (-1, -1, -1),
    schema_id: int = 1,
    attributes: int = 0,
    compression: str | None = None,
    topic_id: str = TOPIC_ID,
) -> Message:
    """One encoded batch with its header. `producer` is (id, epoch, base sequence)."""
    times = list(timestamps) if timestamps is not None else [FIRST_MS] * len(values)
    columns = [
        pa.array([None] * len(values), pa.binary()),
        pa.array(list(values), pa.binary()),
        pa.array([None] * len(values), RAW_SCHEMA.field("headers").type),
        pa.array(times, pa.int64()),
    ]
    if schema_id == 2:
        columns.append(pa.array([7] * len(values), pa.int32()))
    fields = b.ProducerFields(
        topic_id=topic_id,
        partition=0,
        schema_id=schema_id,
        producer_id=producer[0],
        producer_epoch=producer[1],
        base_sequence=producer[2],
        last_offset_delta=len(values) - 1,
        first_timestamp_ms=times[0],
        max_timestamp_ms=max(times),
        attributes=attributes,
    )
    rows = pa.record_batch(columns, schema=SCHEMAS[schema_id - 1])
    encoded = b.encode(rows, fields, compression=compression)
    return encoded, b.parse(encoded)


def marker(producer_id: int, epoch: int, *, commits: bool) -> Message:
    """The end of a producer's transaction."""
    encoded = b.encode_marker(
        RAW_SCHEMA,
        topic_id=TOPIC_ID,
        partition=0,
        schema_id=1,
        producer_id=producer_id,
        producer_epoch=epoch,
        commit=commits,
        now_ms=FIRST_MS,
    )
    return encoded, b.parse(encoded)


def open_log(files: Files, directory: str = DIRECTORY, *, clock: Clock | None = None, **config: Any) -> Log:
    """A log of the raw topic (with a second schema known). `config` are settings of the topic, ranges unchecked."""
    return Log.open(
        files,
        directory,
        topic_id=TOPIC_ID,
        partition=0,
        schemas=SCHEMAS,
        config=TopicConfig(**config),
        clock=clock or ManualClock(),
        time_column="timestamp",
        min_free_bytes=0,
    )


def append(log: Log, *messages: Message, epoch: int = 3) -> list[AppendResult]:
    """Appends as a leader does, with the high watermark it stands at."""
    return log.append(messages, leader_epoch=epoch, high_watermark=log.high_watermark)


def copy_batches(log: Log, offset: int, *, max_bytes: int = 1 << 30) -> list[Message]:
    """Whole batches as they stand in a log from `offset` on, as a follower gets them."""
    spans = log.read(offset, max_bytes=max_bytes, end_offset=log.end_offset)
    return [(encoded, header) for span in spans for header, encoded in b.walk(log.read_bytes(span))]


def commit(log: Log) -> int:
    """Flushes and publishes."""
    end = log.flush()
    log.advance_high_watermark(end)
    return end


def values_in(log: Log, data: bytes, schema_id: int = 1) -> list[tuple[int, bytes]]:
    """(offset, value) of every row of a run of batches, with every CRC checked as a reader checks it."""
    rows: list[tuple[int, bytes]] = []
    for header, encoded in b.walk(data):
        b.check_header_crc(encoded, header)
        b.check_producer_crc(encoded, header)
        column = b.decode(encoded, SCHEMAS[schema_id - 1]).column("value").to_pylist()
        rows += [(header.base_offset + place, value) for place, value in enumerate(column)]
    return rows


def read_all(log: Log, *, max_bytes: int = 1 << 30) -> list[tuple[int, bytes]]:
    """Every row from the log's start offset on, read in steps of `max_bytes`. Raises CorruptBatch where a reader of the
    bytes would: on a wrong CRC, or a gap between offsets."""
    rows: list[tuple[int, bytes]] = []
    offset = log.start_offset
    while spans := log.read(offset, max_bytes=max_bytes, end_offset=log.end_offset):
        for span in spans:
            for found, value in values_in(log, log.read_bytes(span), span.schema_id):
                if found >= log.start_offset and found >= offset:
                    if found != offset:
                        raise CorruptBatch(f"offset {found} comes where {offset} is expected")
                    rows.append((found, value))
                    offset += 1
    return rows


def log_files(directory: str) -> list[str]:
    """The segment files in a directory on disk."""
    return sorted(os.path.join(directory, name) for name in os.listdir(directory) if name.endswith(".log"))
