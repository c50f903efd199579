"""Copies of records that a share group has given up on, in its dead-letter topic.

A record is archived only after its copy is durable there; where a member dies between the two it is copied once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pyarrow as pa

from raystream import batch as b
from raystream import messages as m
from raystream.client.handlers import as_bytes
from raystream.client.routing import Leader, Routing
from raystream.errors import InvalidArgument
from raystream.schema import RAW_SCHEMA, RAW_SCHEMA_ID
from raystream.types import Record

HEADER: Final = "raystream.dead_letter."
ROWS: Final = 100
"""So many records go into one batch at most."""


async def check_dead_letter_topic(routing: Routing, topic: str, sources: Sequence[str]) -> None:
    """Raises TopicNotFound, or InvalidArgument where the topic cannot take every record of the sources."""
    if topic in sources:
        raise InvalidArgument(f"dead_letter={topic!r} is the topic that is read: its records would come round again")
    if (await routing.topic(topic)).typed:
        raise InvalidArgument(f"dead_letter={topic!r} is a typed topic: a dead-letter topic is a raw one")


async def bury(
    routing: Routing,
    topic: str,
    records: Sequence[Record],
    *,
    group: str,
    deliveries: int,
    reason: str,
    timeout_ms: float,
) -> None:
    """Appends copies of raw records of one partition to the dead-letter topic; they are durable when it returns. The
    headers say where each came from and why it is there. Raises what the topic's leader raises."""
    partition = records[0].partition % len((await routing.topic(topic)).partitions)
    for at in range(0, len(records), ROWS):
        rows = _rows(records[at : at + ROWS], group, deliveries, reason)
        await _append(routing, topic, partition, rows, timeout_ms)


def _rows(records: Sequence[Record], group: str, deliveries: int, reason: str) -> pa.RecordBatch:
    return pa.record_batch(
        [
            pa.array([as_bytes(record.key) for record in records], pa.binary()),
            pa.array([as_bytes(record.value) for record in records], pa.binary()),
            pa.array(
                [[*record.headers, *_origin(record, group, deliveries, reason)] for record in records],
                RAW_SCHEMA.field("headers").type,
            ),
            pa.array([record.timestamp_ms for record in records], pa.int64()),
        ],
        schema=RAW_SCHEMA,
    )


def _origin(record: Record, group: str, deliveries: int, reason: str) -> list[tuple[str, bytes]]:
    said = {
        "topic": record.topic,
        "partition": record.partition,
        "offset": record.offset,
        "group": group,
        "deliveries": deliveries,
        "reason": reason,
    }
    return [(HEADER + name, str(value).encode()) for name, value in said.items()]


async def _append(routing: Routing, topic: str, partition: int, rows: pa.RecordBatch, timeout_ms: float) -> None:
    stamps = rows.column("timestamp").to_pylist()

    async def call(leader: Leader, left_ms: float) -> m.AppendReply:
        fields = b.ProducerFields(
            topic_id=leader.topic_id,
            partition=partition,
            schema_id=RAW_SCHEMA_ID,
            last_offset_delta=rows.num_rows - 1,
            first_timestamp_ms=stamps[0],
            max_timestamp_ms=max(stamps),
        )
        request = m.AppendRequest(topic_id=leader.topic_id, partition=partition, leader_epoch=leader.epoch)
        return await leader.port.append(request, b.encode(rows, fields), timeout_ms=left_ms)

    await routing.call_partition(topic, partition, call, timeout_ms=timeout_ms)
