"""Keyed batches and cleanings of logs, for tests of compaction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from raystream import batch as b
from raystream.client.fetched import batches_from
from raystream.explicit import rows_of
from raystream.schema import RAW_SCHEMA
from raystream.storage.cleaner import Cleaned, Cleaner, CleaningSettings
from raystream.storage.fates import fates_in
from raystream.storage.log import Log
from tests.fakes.logs import SCHEMAS, TOPIC_ID, Message

Row = tuple[int, bytes | None, bytes | None]
"""Offset, key, value."""


def keyed(
    rows: Sequence[tuple[bytes | None, bytes | None]],
    *,
    timestamps: Sequence[int] | None = None,
    producer: tuple[int, int, int] = (-1, -1, -1),
    attributes: int = 0,
    compression: str | None = None,
) -> Message:
    """One encoded batch of a raw topic, from keys and values."""
    times = list(timestamps) if timestamps is not None else [1_000] * len(rows)
    columns = [
        pa.array([key for key, _ in rows], pa.binary()),
        pa.array([value for _, value in rows], pa.binary()),
        pa.array([None] * len(rows), RAW_SCHEMA.field("headers").type),
        pa.array(times, pa.int64()),
    ]
    fields = b.ProducerFields(
        topic_id=TOPIC_ID,
        partition=0,
        producer_id=producer[0],
        producer_epoch=producer[1],
        base_sequence=producer[2],
        last_offset_delta=len(rows) - 1,
        first_timestamp_ms=times[0],
        max_timestamp_ms=max(times),
        attributes=attributes,
    )
    encoded = b.encode(pa.record_batch(columns, schema=RAW_SCHEMA), fields, compression=compression)
    return encoded, b.parse(encoded)


def clean(
    log: Log,
    *,
    up_to: int | None = None,
    now_ms: int = 0,
    on_writer: Callable[[Callable[[], Any]], Any] = lambda work: work(),
    in_sync: bool = True,
    **changes: Any,
) -> Cleaned:
    """Compacts all but the segment that is appended to."""
    chosen: dict[str, Any] = {
        "key_column": "key",
        "time_column": "timestamp",
        "raw": True,
        "segment_bytes": 1 << 20,
        "delete_retention_ms": 1_000,
    }
    settings = CleaningSettings(**{**chosen, **changes})
    fates = fates_in(log, now_ms=now_ms, in_sync=in_sync)
    cleaner = Cleaner(log, settings, on_writer, fates, now_ms=now_ms)
    return cleaner.run(log.end_offset if up_to is None else up_to)


def rows_in(log: Log) -> list[Row]:
    """Every row from the log's start on, with every CRC checked, and that ranges of batches leave no gap."""
    found: list[Row] = []
    offset = log.start_offset
    while spans := log.read(offset, max_bytes=1 << 20, end_offset=log.end_offset):
        for span in spans:
            for header, message in b.walk(log.read_bytes(span)):
                b.check_header_crc(message, header)
                b.check_producer_crc(message, header)
                assert header.base_offset <= offset, f"a gap before offset {header.base_offset}"
                rows = rows_of(message, header, SCHEMAS[span.schema_id - 1])
                offsets = range(header.base_offset, header.next_offset) if rows.offsets is None else rows.offsets
                keys, values = (rows.rows.column(name).to_pylist() for name in ("key", "value"))
                found += [row for row in zip(map(int, offsets), keys, values, strict=True) if row[0] >= offset]
                offset = header.next_offset
    assert offset == log.end_offset
    return found


def committed_in(log: Log) -> list[Row]:
    """Every row that a reader of what is committed gets, as a client reads the batches."""
    found: list[Row] = []
    stable = log.producers.last_stable_offset(log.high_watermark, log.start_offset)
    aborted = log.producers.aborted.entries
    for span in log.read(log.start_offset, max_bytes=1 << 30, end_offset=stable) if stable > log.start_offset else ():
        first = log.bounds_of(span)[0]
        read = batches_from(log.read_bytes(span), SCHEMAS[0], first, end_offset=stable, aborted=aborted)
        for header, message in [] if read is None else read.entries:
            rows = rows_of(message, header, SCHEMAS[0])
            offsets = range(header.base_offset, header.next_offset) if rows.offsets is None else rows.offsets
            keys, values = (rows.rows.column(name).to_pylist() for name in ("key", "value"))
            found += [row for row in zip(map(int, offsets), keys, values, strict=True) if row[0] < stable]
    return found


def headers_in(log: Log) -> list[b.BatchHeader]:
    """The batches' headers, in order."""
    spans = log.read(log.start_offset, max_bytes=1 << 30, end_offset=log.end_offset)
    return [header for span in spans for header, _ in b.walk(log.read_bytes(span))]
