"""Laying out an append: which batch goes into which segment, under which offset, as which pieces of one `writev`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import pyarrow as pa

from raystream import batch as b
from raystream.config import TopicConfig
from raystream.errors import InvalidRecord
from raystream.explicit import explicit_schema
from raystream.schema import RAW_SCHEMA, schema_message
from raystream.storage.segment import Segment, Tail

Batches: TypeAlias = "Sequence[tuple[memoryview, b.BatchHeader]]"


class AppendResult(NamedTuple):
    """Where a batch stands: its offsets are `base_offset` to `next_offset`, half-open; `pieces` are its bytes there, in
    the caller's memory."""

    base_offset: int
    next_offset: int
    append_time_ms: int
    pieces: Sequence[b.Bytes]


class Placement(NamedTuple):
    """A batch at the place it gets in a segment. The header is the producer's: offset and time stand here."""

    position: int
    base_offset: int
    append_time_ms: int
    header: b.BatchHeader


class Stamped(NamedTuple):
    """A batch with its offset and time, as the pieces that make its bytes."""

    base_offset: int
    append_time_ms: int
    header: b.BatchHeader
    pieces: Sequence[b.Bytes]


@dataclass(slots=True)
class Run:
    """Batches that go into one segment by one `writev`. `opens` says that the segment begins with them."""

    schema_id: int
    explicit: bool
    base_offset: int
    opens: bool
    end: int
    first_append_ms: int
    pieces: list[b.Bytes] = field(default_factory=list)
    placed: list[Placement] = field(default_factory=list)


class SchemaHeads:
    """A log's schemas, and the messages that begin their segments."""

    def __init__(self, topic_id: str, schemas: Sequence[pa.Schema]) -> None:
        self._topic_id = topic_id
        self.schemas = list(schemas)
        self._heads: dict[tuple[int, bool], bytes] = {}

    def head(self, schema_id: int, *, explicit: bool = False) -> bytes:
        """The schema message. Raises InvalidRecord for an id that the log does not know."""
        found = self._heads.get((schema_id, explicit))
        if found is None:
            if not 1 <= schema_id <= len(self.schemas):
                raise InvalidRecord(f"the batch states schema {schema_id}; the topic has {len(self.schemas)}")
            schema = self.schemas[schema_id - 1]
            schema = explicit_schema(schema) if explicit else schema
            found = self._heads[schema_id, explicit] = schema_message(schema, self._topic_id, schema_id)
        return found

    def raw_time_column(self) -> str | None:
        """Raw topics keep the timestamp in a column of their own."""
        return "timestamp" if len(self.schemas) == 1 and self.schemas[0].equals(RAW_SCHEMA) else None


def as_leader(batches: Batches, leader: b.LeaderFields) -> Iterator[Stamped]:
    """Batches from producers, at consecutive offsets from the one in `leader` on, with its fields patched in."""
    offset, epoch, high_watermark, now_ms = (
        leader.base_offset,
        leader.leader_epoch,
        leader.high_watermark,
        leader.append_time_ms,
    )
    for message, header in batches:
        pieces = b.with_leader_fields(message, header, b.LeaderFields(offset, epoch, high_watermark, now_ms))
        yield Stamped(offset, now_ms, header, pieces)
        offset += header.last_offset_delta + 1


def as_follower(batches: Batches) -> Iterator[Stamped]:
    """Batches from a leader's log, byte for byte."""
    for message, header in batches:
        yield Stamped(header.base_offset, header.append_time_ms, header, [message])


def lay_out(
    batches: Iterable[Stamped], active: Segment | None, *, heads: SchemaHeads, config: TopicConfig
) -> tuple[list[Run], list[AppendResult]]:
    """The runs that append `batches`. Changes nothing."""
    runs: list[Run] = []
    results: list[AppendResult] = []
    run: Run | None = None
    if active is not None:
        tail: Tail = active.tail
        run = Run(active.schema_id, active.explicit, active.base_offset, False, tail.size, tail.first_append_ms)
    segment_ms = min(config.segment_ms, config.max_compaction_lag_ms or config.segment_ms)
    for offset, append_ms, header, pieces in batches:
        if (
            run is None
            or header.schema_id != run.schema_id
            or header.is_explicit != run.explicit
            or run.end + header.message_bytes > config.segment_bytes
            or append_ms - run.first_append_ms >= segment_ms
        ):
            head = heads.head(header.schema_id, explicit=header.is_explicit)
            run = Run(header.schema_id, header.is_explicit, offset, True, len(head), append_ms, [head])
        if not run.placed:
            runs.append(run)
        run.pieces += pieces
        run.placed.append(Placement(run.end, offset, append_ms, header))
        run.end += header.message_bytes
        results.append(AppendResult(offset, offset + header.last_offset_delta + 1, append_ms, pieces))
    return runs, results
