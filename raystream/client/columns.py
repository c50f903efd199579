"""From encoded batches to Arrow tables with the columns that a reader of the topic sees.

Rows are decoded without a copy: the table's buffers point into the mapped file or the fetched bytes. Columns that
raystream adds (offset, topic, …) are made once for the whole run, not per batch. Knows no consumer and no view.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa

from raystream import messages as m
from raystream.batch import ATTR_APPEND_TIME, BatchHeader, check_header_crc, check_producer_crc
from raystream.errors import InvalidArgument
from raystream.explicit import rows_of
from raystream.schema import RAW_READ_SCHEMA, RESERVED_COLUMNS, restore

METADATA_FIELDS: Final = (
    pa.field("_partition", pa.int32()),
    pa.field("_offset", pa.int64()),
    pa.field("_timestamp", pa.int64()),
)
_CREATE_TIME: Final = 0
_APPEND_TIME: Final = 1


class Piece(NamedTuple):
    """Decoded rows of one batch; the first has `base_offset`, the others follow without gaps.

    But where compaction has taken rows out: then `offsets` (int64 numpy) and `timestamps` (int64 Arrow, milliseconds)
    are those of the rows.
    """

    base_offset: int
    rows: pa.RecordBatch
    header: BatchHeader
    offsets: Any = None
    timestamps: Any = None

    @property
    def next_offset(self) -> int:
        if self.offsets is not None:
            return int(self.offsets[-1]) + 1 if len(self.offsets) else self.base_offset
        return self.base_offset + int(self.rows.num_rows)

    def part(self, at: int, rows: int | None = None) -> Piece:
        """Some of the rows, by their places."""
        part = self.rows.slice(at, rows)
        if self.offsets is None:
            return self._replace(base_offset=self.base_offset + at, rows=part)
        offsets = self.offsets[at : at + part.num_rows]
        base_offset = int(offsets[0]) if len(offsets) else self.base_offset
        return Piece(base_offset, part, self.header, offsets, self.timestamps.slice(at, rows))

    def between(self, first: int, end: int | None) -> Piece:
        """The rows from offset `first` on, up to below `end`."""
        if self.offsets is not None:
            skip = int(np.searchsorted(self.offsets, first))
            stop = len(self.offsets) if end is None else int(np.searchsorted(self.offsets, end))
        else:
            skip = max(first - self.base_offset, 0)
            stop = self.rows.num_rows if end is None else min(end - self.base_offset, self.rows.num_rows)
        if self.offsets is None and skip == 0 and stop == self.rows.num_rows:
            return self
        return self.part(skip, max(stop - skip, 0))

    def row_offsets(self) -> Any:
        """The offsets of the rows, int64 numpy."""
        return np.arange(self.base_offset, self.next_offset) if self.offsets is None else self.offsets


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a topic's definition decides how its records look."""

    topic: str
    typed: bool
    key: str | None
    time: str | None

    @classmethod
    def of(cls, metadata: m.TopicMetadata) -> Shape:
        return cls(metadata.name, metadata.typed, metadata.key, metadata.time)


def decoded(
    header: BatchHeader, message: memoryview, schema: pa.Schema, first: int, end: int | None, check_crcs: bool
) -> Piece:
    """The rows of one batch from offset `first` to below `end`. Raises CorruptBatch."""
    if check_crcs:
        check_header_crc(message, header)
        check_producer_crc(message, header)
    rows, offsets, stamps = rows_of(message, header, schema)
    return Piece(header.base_offset, rows, header, offsets, stamps).between(first, end)


def read_schema(shape: Shape, schema: pa.Schema, *, metadata: bool = False) -> pa.Schema:
    """The Arrow schema that a reader of the topic sees; `schema` is the stored one."""
    if not shape.typed:
        return RAW_READ_SCHEMA
    seen = restore(schema.empty_table()).schema
    return pa.schema([*seen, *METADATA_FIELDS]) if metadata else seen


def table(
    pieces: Sequence[Piece], shape: Shape, schema: pa.Schema, partition: int, *, metadata: bool = False
) -> pa.Table:
    """One table of the pieces of one partition, in order, as a reader of the topic sees them."""
    return restore(stored_table(pieces, shape, schema, partition, metadata=metadata))


def stored_table(
    pieces: Sequence[Piece],
    shape: Shape,
    schema: pa.Schema,
    partition: int,
    *,
    metadata: bool = False,
    columns: Sequence[str] | None = None,
) -> pa.Table:
    """As `table`, with dictionary columns still as plain values. `columns` keeps those named, in that order, beside
    the metadata."""
    stored = pa.Table.from_batches([piece.rows for piece in pieces], schema=schema)
    if not shape.typed:
        return _raw_table(stored, pieces, shape, partition, columns)
    seen = stored if columns is None else stored.select([name for name in columns if name not in RESERVED_COLUMNS])
    if metadata:
        seen = seen.append_column(METADATA_FIELDS[0], _constant(partition, pa.int32(), stored.num_rows))
        seen = seen.append_column(METADATA_FIELDS[1], pa.array(_offsets(pieces)))
        seen = seen.append_column(METADATA_FIELDS[2], timestamps(pieces, shape, schema))
    return seen


def _raw_table(
    stored: pa.Table, pieces: Sequence[Piece], shape: Shape, partition: int, columns: Sequence[str] | None
) -> pa.Table:
    rows = stored.num_rows
    arrays: list[Any] = []
    fields = [field for field in RAW_READ_SCHEMA if columns is None or field.name in columns]
    for field in fields:
        if field.name == "offset":
            arrays.append(pa.array(_offsets(pieces)))
        elif field.name == "topic":
            arrays.append(_constant(shape.topic, pa.string(), rows))
        elif field.name == "partition":
            arrays.append(_constant(partition, pa.int32(), rows))
        elif field.name == "timestamp_type":
            arrays.append(_timestamp_types(pieces, rows))
        elif field.name == "timestamp":
            arrays.append(timestamps(pieces, shape, stored.schema))
        else:
            arrays.append(stored.column(field.name))
    seen = pa.Table.from_arrays(arrays, schema=pa.schema(fields))
    return seen if columns is None else seen.select(list(columns))


def append_times(pieces: Sequence[Piece]) -> Any:
    """When each row was appended by its partition's leader, int64 milliseconds since the epoch; after compaction, the
    latest of the rows that were put together."""
    counts = [piece.rows.num_rows for piece in pieces]
    return pa.array(np.repeat(np.array([piece.header.append_time_ms for piece in pieces], np.int64), counts))


def timestamps(pieces: Sequence[Piece], shape: Shape, schema: pa.Schema) -> Any:
    """The records' timestamps, int64 milliseconds since the epoch.

    Append time where the batch says so; else the raw record's own or the time column's; a typed record without a time
    column has its batch's, the one that a search by time finds it under.
    """
    name = shape.time if shape.typed else "timestamp"
    parts: list[Any] = []
    for kind, group in _grouped(pieces):
        if kind.explicit:
            parts.extend(piece.timestamps for piece in group)
            continue
        appended = kind.append_time
        if name is not None and not appended:
            parts.extend(to_milliseconds(piece.rows.column(name)) for piece in group)
            continue
        stated = [p.header.append_time_ms if appended else p.header.max_timestamp_ms for p in group]
        parts.append(pa.array(np.repeat(np.array(stated, np.int64), [p.rows.num_rows for p in group])))
    return pa.chunked_array(parts, type=pa.int64())


def to_milliseconds(column: Any) -> Any:
    """A time column as int64 milliseconds since the epoch; integers are taken as milliseconds."""
    kind = column.type
    if pa.types.is_integer(kind):
        return column if kind == pa.int64() else column.cast(pa.int64())
    return column.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())


class _Times(NamedTuple):
    """Where the timestamps of a batch stand."""

    append_time: bool
    explicit: bool


def _grouped(pieces: Iterable[Piece]) -> list[tuple[_Times, list[Piece]]]:
    groups: list[tuple[_Times, list[Piece]]] = []
    for piece in pieces:
        times = _Times(bool(piece.header.attributes & ATTR_APPEND_TIME), piece.timestamps is not None)
        if not groups or groups[-1][0] != times:
            groups.append((times, []))
        groups[-1][1].append(piece)
    return groups


def _timestamp_types(pieces: Sequence[Piece], rows: int) -> Any:
    groups = _grouped(pieces)
    if len(groups) == 1:
        return _constant(_APPEND_TIME if groups[0][0].append_time else _CREATE_TIME, pa.int32(), rows)
    counts = [sum(piece.rows.num_rows for piece in group) for _, group in groups]
    kinds = [_APPEND_TIME if times.append_time else _CREATE_TIME for times, _ in groups]
    return pa.array(np.repeat(np.array(kinds, np.int32), counts), type=pa.int32())


def _offsets(pieces: Sequence[Piece]) -> Any:
    if not pieces:
        return np.empty(0, np.int64)
    first, end = pieces[0].base_offset, pieces[-1].next_offset
    if end - first == sum(piece.rows.num_rows for piece in pieces):
        return np.arange(first, end, dtype=np.int64)
    return np.concatenate([piece.row_offsets() for piece in pieces])


def _constant(value: Any, kind: pa.DataType, rows: int) -> Any:
    return pa.repeat(pa.scalar(value, kind), rows)


def check_columns(columns: Sequence[str], schema: pa.Schema, topic: str) -> list[str]:
    """The columns as a list. Raises InvalidArgument with the nearest name for one that is not there."""
    if isinstance(columns, str):
        raise InvalidArgument(f"columns={columns!r} is one string: give a list, [{columns!r}]")
    known = list(schema.names)
    for name in columns:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
            raise InvalidArgument(f"topic {topic!r} has no column {name!r}; {hint}")
    return list(columns)
