"""From a chunk or a frame's slice to pieces, each for one partition: columns, key hashes, one stable sort, one take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa

from raystream.client.accumulator import Sink
from raystream.client.partitioner import (
    NO_KEY,
    Partitioner,
    Partitions,
    column_partitions,
    key_column,
    key_value_bytes,
    partitions_of,
)
from raystream.client.rows import event_times
from raystream.client.sent import Chunk, Delivery, Longs, Piece
from raystream.client.serde import shown
from raystream.errors import InvalidRecord, PartitionNotFound
from raystream.schema import HEADERS_TYPE, RAW_SCHEMA

_BINARY: Final = pa.binary()


def chunk_columns(chunk: Chunk, sink: Sink, now_ms: int) -> tuple[pa.RecordBatch, Longs]:
    """The chunk's records under the stored schema, and their timestamps."""
    if sink.rows is not None:
        rows = sink.rows.to_batch(chunk.values)
        return rows, event_times(rows, sink.time, now_ms)
    stamps = chunk.milliseconds()
    count = chunk.rows
    keys = pa.array(chunk.keys, _BINARY) if chunk.keyed else pa.nulls(count, _BINARY)
    extras = chunk.extras
    if extras is None:
        headers = pa.nulls(count, HEADERS_TYPE)
    else:
        headers = pa.array([None if extra is None else extra[0] for extra in extras], HEADERS_TYPE)
    columns = [keys, pa.array(chunk.values, _BINARY), headers, pa.array(stamps)]
    return pa.record_batch(columns, schema=RAW_SCHEMA), stamps


def chunk_partitions(
    chunk: Chunk, sink: Sink, rows: pa.RecordBatch, partitioner: Partitioner | None, idlest: Callable[[], int]
) -> Partitions | int:
    """The partition of every record, or one number where it is the same for all."""
    targets: Partitions | int = NO_KEY
    if partitioner is not None:
        targets = _custom(chunk, sink, partitioner)
    elif sink.typed:
        if sink.key is not None:
            targets = column_partitions(rows.column(sink.key), sink.partitions)
    elif chunk.keyed:
        targets = partitions_of(rows.column("key"), sink.partitions)
    if chunk.extras is not None:
        explicit = _explicit(chunk)
        targets = np.where(explicit == NO_KEY, np.int32(targets) if isinstance(targets, int) else targets, explicit)
    return _spread(targets, idlest)


def _explicit(chunk: Chunk) -> Partitions:
    """The partitions that the records name, NO_KEY where they name none."""
    extras = chunk.extras or [None] * chunk.rows
    named = (None if extra is None else extra[1] for extra in extras)
    return np.array([NO_KEY if partition is None else partition for partition in named], np.int32)


def _custom(chunk: Chunk, sink: Sink, partitioner: Partitioner) -> Partitions:
    """The user's own partitioner, record by record; explicit partitions are not asked about."""
    targets = np.full(chunk.rows, NO_KEY, np.int32)
    names = sink.schema.names
    key_at = names.index(sink.key) if sink.typed and sink.key is not None else None
    for index, (key, value, given) in enumerate(zip(chunk.keys, chunk.values, _explicit(chunk), strict=True)):
        if given != NO_KEY:
            continue
        if sink.typed:
            key = key_value_bytes(value[key_at]) if key_at is not None else None
            value = dict(zip(names, value, strict=True))
        targets[index] = _chosen(partitioner, sink, key, value)
    return targets


def _chosen(partitioner: Partitioner, sink: Sink, key: Any, value: Any) -> int:
    """The user's own choice. Raises InvalidRecord, from what the partitioner raised."""
    try:
        partition = partitioner(sink.name, key, value, sink.partitions)
    except Exception as error:
        raise InvalidRecord(
            f"the partitioner raised {type(error).__name__} for a record of topic {sink.name!r} with key {shown(key)}: "
            f"{error}"
        ) from error
    return check_partition(partition, sink, "the partitioner returned")


def check_partition(partition: Any, sink: Sink, who: str = "") -> int:
    """The partition as an int. Raises InvalidRecord for what is no int, PartitionNotFound outside the topic's range."""
    if isinstance(partition, (bool, np.bool_)) or not hasattr(partition, "__index__"):
        raise InvalidRecord(f"{who or 'partition must be an int, not'} {partition!r}: give 0 to {sink.partitions - 1}")
    number = int(partition.__index__())
    if not 0 <= number < sink.partitions:
        said = f"{who} {number}: " if who else ""
        raise PartitionNotFound(f"{said}topic {sink.name!r} has partitions 0 to {sink.partitions - 1}, not {number}")
    return number


def _spread(targets: Partitions | int, idlest: Callable[[], int]) -> Partitions | int:
    """Rows without a key stay together and go where least is waiting."""
    if isinstance(targets, int):
        return idlest() if targets == NO_KEY else targets
    unkeyed = targets == NO_KEY
    if unkeyed.any():
        targets = np.where(unkeyed, np.int32(idlest()), targets).astype(np.int32)
    first = int(targets[0])
    return first if (targets == first).all() else targets


def grouped(targets: Partitions) -> tuple[Longs, list[tuple[int, int, int]]]:
    """The stable order by partition, and per partition where its rows begin and end in that order."""
    # few bits make numpy's stable sort a radix sort
    small = targets.astype(np.uint8 if int(targets.max()) < 256 else np.uint16)
    order = np.argsort(small, kind="stable")
    ordered = small[order]
    begins = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    ends = np.r_[begins[1:], len(ordered)]
    return order, [(int(ordered[first]), int(first), int(end)) for first, end in zip(begins, ends, strict=True)]


def _taken(
    rows: pa.RecordBatch, stamps: Longs, order: Longs, groups: list[tuple[int, int, int]]
) -> Iterator[tuple[int, pa.RecordBatch, Longs]]:
    """The rows of each partition. Each has memory of its own: slices of one `take` would all keep the whole alive while
    one partition is stuck."""
    for partition, first, end in groups:
        places = order[first:end]
        yield partition, rows.take(pa.array(places)), stamps[places]


def cut_chunk(
    chunk: Chunk,
    sink: Sink,
    partitioner: Partitioner | None,
    idlest: Callable[[], int],
    now_ms: int,
    delivery_timeout_ms: float,
) -> list[Piece]:
    """The chunk's pieces, ready for their partitions. Raises what is wrong with its records; then nothing is cut."""
    rows, stamps = chunk_columns(chunk, sink, now_ms)
    targets = chunk_partitions(chunk, sink, rows, partitioner, idlest)
    pieces: list[Piece] = []
    order = None
    if isinstance(targets, int):
        pieces += _pieces(chunk, targets, rows, stamps, sink.chunk_bytes, sink)
    else:
        order, groups = grouped(targets)
        for partition, part, part_stamps in _taken(rows, stamps, order, groups):
            pieces += _pieces(chunk, partition, part, part_stamps, sink.chunk_bytes, sink)
    left = chunk.charge
    for piece in pieces:
        piece.charge = chunk.charge * piece.count // chunk.rows
        left -= piece.charge
        piece.deadline_ms = chunk.created_ms + delivery_timeout_ms
        piece.transaction = chunk.transaction
    pieces[-1].charge += left
    by_partition: dict[int, list[Piece]] = {}
    for piece in pieces:
        by_partition.setdefault(piece.partition, []).append(piece)
    chunk.cut(by_partition, stamps, None if order is None else np.asarray(targets), order)
    return pieces


def _pieces(
    delivery: Delivery, partition: int, rows: pa.RecordBatch, stamps: Any, max_bytes: int, sink: Sink
) -> Iterator[Piece]:
    """Rows of one partition as pieces of at most `max_bytes`. Raises RecordTooLarge for a single row beyond that."""
    first = 0
    for part in _halves(rows, max_bytes, sink):
        piece = Piece(delivery, partition, first, part)
        own = stamps[first : first + piece.count]
        piece.first_timestamp_ms = int(own[0])
        piece.max_timestamp_ms = int(own.max())
        first += piece.count
        yield piece


def _halves(rows: pa.RecordBatch, max_bytes: int, sink: Sink) -> Iterator[pa.RecordBatch]:
    if rows.nbytes <= max_bytes or (rows.num_rows == 1 and rows.nbytes <= sink.max_record_bytes):
        yield rows
        return
    if rows.num_rows == 1:
        raise sink.too_large(rows.nbytes)
    half = rows.num_rows // 2
    yield from _halves(rows.slice(0, half), max_bytes, sink)
    yield from _halves(rows.slice(half), max_bytes, sink)


def cut_slice(
    frame: Delivery,
    sink: Sink,
    rows: pa.RecordBatch,
    stamps: Longs,
    targets: Partitions | int,
    copy: bool,
) -> list[Piece]:
    """A frame's slice as pieces; `first` counts on from what the frame handed over before. `copy`: the rows' memory is
    the user's to change."""
    pieces: list[Piece] = []
    if isinstance(targets, int):
        if copy:
            rows = rows.take(pa.array(np.arange(rows.num_rows)))
        pieces += _pieces(frame, targets, rows, stamps, sink.frame_bytes, sink)
    else:
        for partition, part, part_stamps in _taken(rows, stamps, *grouped(targets)):
            pieces += _pieces(frame, partition, part, part_stamps, sink.frame_bytes, sink)
    return pieces


def frame_partitions(
    sink: Sink, rows: pa.RecordBatch, partitioner: Partitioner | None, idlest: Callable[[], int]
) -> Partitions | int:
    """The partition of every row of a slice by its key column, or one number where it is the same for all."""
    targets: Partitions | int = NO_KEY
    column = sink.key if sink.typed else "key"
    if partitioner is not None:
        keys = [None] * rows.num_rows if column is None else key_column(rows.column(column)).to_pylist()
        values = rows.to_pylist() if sink.typed else rows.column("value").to_pylist()
        chosen = [_chosen(partitioner, sink, key, value) for key, value in zip(keys, values, strict=True)]
        targets = np.array(chosen, np.int32)
    elif sink.partitions == 1:
        return 0
    elif column is not None and rows.column(column).null_count < rows.num_rows:
        targets = column_partitions(rows.column(column), sink.partitions)
    return _spread(targets, idlest)
