"""Records that a share group's member has acquired: fetched from their partition, mapped where that is on this node."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

import pyarrow as pa

from raystream import messages as m
from raystream.client.columns import Piece, Shape, decoded
from raystream.client.delivered import Batch
from raystream.client.fetched import SpanGone, SpanUnreadable, batches_from, pieces
from raystream.client.fetcher import schema_of
from raystream.client.records import Deserializer
from raystream.client.routing import Leader, Routing
from raystream.config import ShareConfig
from raystream.errors import CorruptBatch, RequestTimeout
from raystream.types import TopicPartition

PAUSE_S: Final = 0.02
WAIT_MS: Final = 200
"""A follower that is asked may not have heard yet that the records are committed."""

Deserializers = tuple[Deserializer | None, Deserializer | None]


@dataclass
class _Reading:
    """One range on its way: what was read of it, by schema."""

    place: TopicPartition
    offset: int
    stop: int
    mapped: bool
    runs: list[tuple[pa.Schema, list[Piece]]] = field(default_factory=list)
    high_watermark: int = -1


class ShareFetcher:
    """Fetches ranges of offsets. Used on one loop only."""

    def __init__(self, routing: Routing, config: ShareConfig, deserializers: Deserializers) -> None:
        self._routing = routing
        self._config = config
        self._deserializers = deserializers

    async def fetch(
        self, place: TopicPartition, first: int, stop: int, *, timeout_ms: float, raw: bool = False
    ) -> list[Batch]:
        """What there is of a range, a batch for each schema; `raw` leaves the deserializers out.

        Offsets of markers and of what compaction took have no record. Raises OffsetOutOfRange where retention has
        taken the beginning, CorruptBatch, RequestTimeout and what the partition's leader raises.
        """
        clock = self._routing.clock
        deadline = clock.monotonic_ms() + timeout_ms
        reading = _Reading(place, first, stop, self._config.mmap)
        while reading.offset < stop:
            left_ms = deadline - clock.monotonic_ms()
            if left_ms <= 0:
                raise RequestTimeout(f"{place} did not show offset {reading.offset} within {timeout_ms:.0f} ms")
            before = reading.offset
            try:
                await self._read(reading, left_ms)
            except (SpanGone, SpanUnreadable):
                reading.mapped = False
            except CorruptBatch:  # the file may have been replaced under the span: the leader's own bytes decide
                if not reading.mapped:
                    raise
                reading.mapped = False
            if reading.offset == before:
                await asyncio.sleep(PAUSE_S)
        shape = Shape.of(await self._routing.topic(place.topic))
        return [
            Batch(
                shape,
                place.partition,
                found,
                schema,
                next_offset=found[-1].next_offset,
                high_watermark=reading.high_watermark,
                deserializers=(None, None) if raw else self._deserializers,
            )
            for schema, found in reading.runs
        ]

    async def _read(self, reading: _Reading, left_ms: float) -> None:
        mapped = False
        topic, partition = reading.place

        async def call(leader: Leader, left_ms: float) -> m.FetchReply:
            nonlocal mapped
            mapped = reading.mapped and leader.node_id == self._routing.node_id
            request = m.FetchRequest(
                topic_id=leader.topic_id,
                partition=partition,
                offset=reading.offset,
                leader_epoch=leader.epoch,
                max_bytes=self._config.max_fetch_bytes,
                max_wait_ms=WAIT_MS,
                end_offset=reading.stop,
                mapped=mapped,
                follower=leader.follower,
                committed=True,
            )
            return await leader.port.fetch(request, timeout_ms=left_ms)

        reply = await self._routing.call_partition(
            topic, partition, call, timeout_ms=left_ms, near=True, waits_ms=WAIT_MS
        )
        reading.mapped = mapped
        reading.high_watermark = reply.high_watermark
        offset, runs = reading.offset, list(reading.runs)
        for schema_id, data in pieces(reply):
            schema = await schema_of(self._routing, topic, schema_id)
            found = batches_from(data, schema, offset, end_offset=reading.stop, aborted=reply.aborted)
            if found is None:
                continue
            rows = [
                decoded(header, message, schema, offset, reading.stop, self._config.check_crcs)
                for header, message in found.entries
            ]
            kept = [piece for piece in rows if piece.rows.num_rows]
            if kept and runs and runs[-1][0] is schema:
                runs[-1] = (schema, [*runs[-1][1], *kept])
            elif kept:
                runs.append((schema, kept))
            offset = found.next_offset
        reading.offset, reading.runs = offset, runs
