"""Look-ups over the segments of a log: runs of batches by offset, and offsets by timestamp. May run on any thread."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raystream import batch as b
from raystream.errors import CorruptBatch, StorageError
from raystream.explicit import Rows, rows_of
from raystream.messages import Span
from raystream.storage.segment import Placed, Segment, timestamp_of

Segments = tuple[Segment, ...]
Found = TypeVar("Found")
_LOOK_UPS: Final = 3


def while_there(look_up: Callable[[], Found]) -> Found:
    """The look-up, again where a deletion took a file away under it."""
    for _ in range(_LOOK_UPS):
        try:
            return look_up()
        except FileNotFoundError as error:
            missing = str(error.filename)
    raise StorageError(f"{missing} is missing", path=missing)


def segment_of(segments: Segments, offset: int) -> int:
    """The place of the segment that holds `offset`."""
    return max(bisect_right(segments, offset, key=lambda segment: segment.base_offset) - 1, 0)


def spans(segments: Segments, offset: int, *, max_bytes: int, end_offset: int) -> tuple[Span, ...]:
    """One span per segment: whole batches from the one that contains `offset` on, those that begin below `end_offset`,
    `max_bytes` at most but one batch at least. Touches the edges only, however much lies between them.
    """
    found: list[Span] = []
    left = max_bytes
    for segment in segments[segment_of(segments, offset) :]:
        if segment.base_offset >= end_offset:
            break
        start = segment.locate(max(offset, segment.base_offset))[1]
        end = segment.end_of_run(start, max_bytes=left, end_offset=end_offset)
        if end == start:
            if found:
                break
            end = segment.next_border(start)
        found.append(Span(segment.path, start, end - start, segment.schema_id))
        left -= end - start
        if end < segment.tail.size or left <= 0:
            break
    return tuple(found)


def offset_for_timestamp(
    segments: Segments,
    timestamp_ms: int,
    *,
    start_offset: int,
    end_offset: int,
    schemas: Sequence[pa.Schema],
    time_column: str | None,
) -> tuple[int, int] | None:
    """The first offset in the range whose timestamp is `timestamp_ms` or later, with that timestamp."""
    for segment in segments[segment_of(segments, start_offset) :]:
        if segment.base_offset >= end_offset:
            return None
        if segment.loaded_tail().max_timestamp_ms < timestamp_ms or not len(segment.index):
            continue
        base_offset, position = segment.index.before_time(timestamp_ms)
        for placed in segment.walk(position, base_offset):
            header = placed.header
            if header.base_offset >= end_offset:
                return None
            if header.next_offset <= start_offset or timestamp_of(header) < timestamp_ms or header.is_control:
                continue
            schema = schemas[header.schema_id - 1]
            found = _first_row(segment, placed, schema, time_column, timestamp_ms, (start_offset, end_offset))
            if found is not None:
                return found
    return None


def _first_row(
    segment: Segment,
    placed: Placed,
    schema: pa.Schema,
    time_column: str | None,
    timestamp_ms: int,
    offsets: tuple[int, int],
) -> tuple[int, int] | None:
    header = placed.header
    if header.is_explicit:
        return _first_explicit(segment, placed, schema, timestamp_ms, offsets)
    first = max(offsets[0] - header.base_offset, 0)
    if header.attributes & b.ATTR_APPEND_TIME:
        return header.base_offset + first, header.append_time_ms
    if first == 0 and header.first_timestamp_ms >= timestamp_ms:
        return header.base_offset, header.first_timestamp_ms
    if time_column is None or time_column not in schema.names:
        return header.base_offset + first, header.max_timestamp_ms
    rows = _rows(segment, placed, schema).rows
    times = in_milliseconds(rows.column(time_column))[first : offsets[1] - header.base_offset]
    row = pc.index(pc.fill_null(pc.greater_equal(times, timestamp_ms), False), True).as_py()
    if row < 0:
        return None
    return header.base_offset + first + row, times[row].as_py()


def _first_explicit(
    segment: Segment, placed: Placed, schema: pa.Schema, timestamp_ms: int, offsets: tuple[int, int]
) -> tuple[int, int] | None:
    rows = _rows(segment, placed, schema)
    times = rows.timestamps.to_numpy()
    at = np.flatnonzero((rows.offsets >= offsets[0]) & (rows.offsets < offsets[1]) & (times >= timestamp_ms))
    return (int(rows.offsets[at[0]]), int(times[at[0]])) if len(at) else None


def _rows(segment: Segment, placed: Placed, schema: pa.Schema) -> Rows:
    message = segment.files.read(segment.path, placed.position, placed.header.message_bytes)
    try:
        b.check_producer_crc(memoryview(message), placed.header)
        return rows_of(message, placed.header, schema)
    except CorruptBatch as error:
        raise segment.corrupt(placed.position, placed.header.base_offset, str(error)) from None


def in_milliseconds(column: Any) -> Any:
    """A time column as int64 milliseconds; integers are taken as milliseconds."""
    if pa.types.is_temporal(column.type):
        column = column.cast(pa.timestamp("ms"), safe=False)
    return column.cast(pa.int64(), safe=False)
