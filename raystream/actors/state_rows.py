"""State-change records as rows of raw-topic batches, and back: how metadata and groups lie in a log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from raystream import batch as b
from raystream.schema import RAW_SCHEMA, RAW_SCHEMA_ID

Pair = tuple[bytes | None, bytes | None]


def encode(
    pairs: Sequence[Pair],
    *,
    topic_id: str,
    partition: int,
    now_ms: int,
    producer_id: int = b.NO_PRODUCER_ID,
    base_sequence: int = b.NO_SEQUENCE,
) -> memoryview:
    """One batch with a row per (key, value)."""
    count = len(pairs)
    rows = pa.record_batch(
        [
            pa.array([key for key, _ in pairs], pa.binary()),
            pa.array([value for _, value in pairs], pa.binary()),
            pa.nulls(count, RAW_SCHEMA.field("headers").type),
            pa.array([now_ms] * count, pa.int64()),
        ],
        schema=RAW_SCHEMA,
    )
    fields = b.ProducerFields(
        topic_id=topic_id,
        partition=partition,
        schema_id=RAW_SCHEMA_ID,
        producer_id=producer_id,
        producer_epoch=0 if producer_id != b.NO_PRODUCER_ID else -1,
        base_sequence=base_sequence,
        last_offset_delta=count - 1,
        first_timestamp_ms=now_ms,
        max_timestamp_ms=now_ms,
    )
    return b.encode(rows, fields)


def decode(messages: b.Bytes) -> Iterator[tuple[int, bytes | None, bytes | None]]:
    """(offset, key, value) of every row in a run of batches. Raises CorruptBatch."""
    for header, message in b.walk(messages):
        b.check_header_crc(message, header)
        b.check_producer_crc(message, header)
        rows = b.decode(message, RAW_SCHEMA)
        keys, values = rows.column("key").to_pylist(), rows.column("value").to_pylist()
        for place, (key, value) in enumerate(zip(keys, values, strict=True)):
            yield header.base_offset + place, key, value
