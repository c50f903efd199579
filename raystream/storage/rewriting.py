"""Writes what is left of batches as explicit batches: offsets leave no gap, however many rows are gone.

Batches are merged up to about a megabyte, never over a border between leader epochs, nor where the timestamp's type,
the compression, or the time until which tombstones stay changes. A merged batch belongs to no producer any more, and
states the greatest append time and published high watermark of those it was made of. What has an *owner* stands alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raystream import batch as b
from raystream.explicit import OFFSET_COLUMN, TIMESTAMP_COLUMN, Rows, explicit_schema, rows_of
from raystream.storage.appending import Placement
from raystream.storage.files import AppendHandle
from raystream.storage.index import NO_TIMESTAMP
from raystream.storage.reading import in_milliseconds
from raystream.storage.segment import Identity

TARGET_BYTES: Final = 1 << 20
SYNC_BYTES: Final = 1 << 20
"""So much is written between two syncs: one large sync at the end would hold up those of appends."""
_MAX_SPAN: Final = 1 << 31


class Kind(NamedTuple):
    """What batches that are merged have in common."""

    leader_epoch: int
    append_time: bool
    compression: str | None


class Owner(NamedTuple):
    """What a batch that stands alone goes on saying: whose it is, and whether it is a marker."""

    producer_id: int
    producer_epoch: int
    base_sequence: int
    attributes: int


class Stretch(NamedTuple):
    """What is left of consecutive batches of one kind: rows in the explicit schema, over a half-open offset range."""

    kind: Kind
    rows: pa.Table
    base_offset: int
    end_offset: int
    append_time_ms: int
    high_watermark: int
    delete_horizon_ms: int
    """Until when its tombstones, or the marker that it is, stay; 0: there are none."""
    owner: Owner | None = None


def owner_of(header: b.BatchHeader, offset: int) -> Owner | None:
    """The owner of what of a batch lies from `offset` on; None: it is nobody's."""
    if header.producer_id == b.NO_PRODUCER_ID:
        return None
    sequence = header.base_sequence
    if sequence != b.NO_SEQUENCE:
        sequence = b.advance_sequence(sequence, offset - header.base_offset)
    attributes = header.attributes & (b.ATTR_CONTROL | b.ATTR_TRANSACTIONAL | b.ATTR_COMMIT)
    return Owner(header.producer_id, header.producer_epoch, sequence, attributes)


def kind_of(header: b.BatchHeader, message: b.Bytes) -> Kind:
    append_time = bool(header.attributes & b.ATTR_APPEND_TIME)
    return Kind(header.leader_epoch, append_time, b.compression_of(message))


def explicit_rows(
    parts: Sequence[tuple[b.BatchHeader, Rows]], keep: Any, schema: pa.Schema, time_column: str | None
) -> pa.Table:
    """The rows that `keep`, a numpy mask over all of them, says, with offsets and timestamps beside them."""
    table = pa.Table.from_batches([rows.rows for _, rows in parts], schema=schema)
    mask = pa.array(keep)
    offsets = np.concatenate([offsets_of(header, rows) for header, rows in parts])[keep]
    kept = table.filter(mask)
    times = _timestamps(parts, table, time_column).filter(mask)
    columns = [*kept.columns, pa.chunked_array([pa.array(offsets)]), times]
    return pa.Table.from_arrays(columns, schema=explicit_schema(schema))


def offsets_of(header: b.BatchHeader, rows: Rows) -> Any:
    """The rows' offsets, int64."""
    if rows.offsets is not None:
        return rows.offsets
    return np.arange(header.base_offset, header.base_offset + rows.rows.num_rows, dtype=np.int64)


def _timestamps(parts: Sequence[tuple[b.BatchHeader, Rows]], table: pa.Table, time_column: str | None) -> Any:
    if parts[0][1].timestamps is not None:
        return pa.chunked_array([rows.timestamps for _, rows in parts], type=pa.int64())
    append_time = bool(parts[0][0].attributes & b.ATTR_APPEND_TIME)
    stated = [header.append_time_ms if append_time else header.max_timestamp_ms for header, _ in parts]
    whole = pa.chunked_array([np.repeat(np.array(stated, np.int64), [rows.rows.num_rows for _, rows in parts])])
    if append_time or time_column is None or time_column not in table.column_names:
        return whole
    own = in_milliseconds(table.column(time_column))
    return pc.coalesce(own, whole) if own.null_count else own


_NOBODY: Final = Owner(b.NO_PRODUCER_ID, -1, b.NO_SEQUENCE, 0)


class Rewriter:
    """Writes one segment, behind its schema message, into a file. `breathe` is called after each batch, with
    its bytes."""

    def __init__(
        self, handle: AppendHandle, head: bytes, identity: Identity, schema_id: int, breathe: Callable[[int], None]
    ) -> None:
        self._handle = handle
        self._identity = identity
        self._schema_id = schema_id
        self._breathe = breathe
        self._pending: list[Stretch] = []
        self._pending_bytes = 0
        self._unsynced = 0
        self.size = len(head)
        self.placed: list[Placement] = []
        handle.writev([head])

    def add(self, stretch: Stretch) -> None:
        """The next stretch; it begins where the last ended."""
        if stretch.owner is not None:
            self._flush()
            self._pending.append(stretch)
            self._flush()
            return
        pending = self._pending
        nbytes = stretch.rows.nbytes
        if pending and (
            pending[0].kind != stretch.kind
            or len({each.delete_horizon_ms for each in (*pending, stretch)} - {0}) > 1
            or self._pending_bytes + nbytes > TARGET_BYTES
            or stretch.end_offset - pending[0].base_offset > _MAX_SPAN
        ):
            self._flush()
        step = max(stretch.rows.num_rows * TARGET_BYTES // max(nbytes, 1), 1)
        while stretch.rows.num_rows > step:
            border = stretch.rows.column(OFFSET_COLUMN)[step].as_py()
            self._pending.append(stretch._replace(rows=stretch.rows.slice(0, step), end_offset=border))
            self._flush()
            stretch = stretch._replace(rows=stretch.rows.slice(step), base_offset=border)
        self._pending.append(stretch)
        self._pending_bytes += stretch.rows.nbytes

    def finish(self) -> None:
        """All is in the file, and on the disk."""
        self._flush()
        self._handle.sync()

    def _flush(self) -> None:
        pending, self._pending, self._pending_bytes = self._pending, [], 0
        if not pending:
            return
        message, header = merged(pending, self._identity, self._schema_id)
        leader = leader_fields(pending)
        self._handle.writev(b.with_leader_fields(message, header, leader))
        self.placed.append(Placement(self.size, leader.base_offset, leader.append_time_ms, header))
        self.size += header.message_bytes
        self._unsynced += header.message_bytes
        if self._unsynced >= SYNC_BYTES:
            self._unsynced = 0
            self._handle.sync()
        self._breathe(header.message_bytes)


def leader_fields(stretches: Sequence[Stretch]) -> b.LeaderFields:
    """What the leaders stated of all that the stretches hold."""
    return b.LeaderFields(
        stretches[0].base_offset,
        stretches[0].kind.leader_epoch,
        max(stretch.high_watermark for stretch in stretches),
        max(stretch.append_time_ms for stretch in stretches),
    )


def merged(stretches: Sequence[Stretch], identity: Identity, schema_id: int) -> tuple[memoryview, b.BatchHeader]:
    """One encoded batch, without the leader's fields."""
    first, last = stretches[0], stretches[-1]
    table = pa.concat_tables([stretch.rows for stretch in stretches]).combine_chunks()
    batches = table.to_batches()
    rows = batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)
    times = rows.column(TIMESTAMP_COLUMN).to_numpy()
    owner = first.owner or _NOBODY
    attributes = b.ATTR_EXPLICIT_OFFSETS | (b.ATTR_APPEND_TIME if first.kind.append_time else 0) | owner.attributes
    fields = b.ProducerFields(
        topic_id=identity.topic_id,
        partition=identity.partition,
        schema_id=schema_id,
        producer_id=owner.producer_id,
        producer_epoch=owner.producer_epoch,
        base_sequence=owner.base_sequence,
        last_offset_delta=last.end_offset - first.base_offset - 1,
        first_timestamp_ms=int(times[0]) if len(times) else NO_TIMESTAMP,
        max_timestamp_ms=int(times.max()) if len(times) else NO_TIMESTAMP,
        attributes=attributes,
        delete_horizon_ms=max(stretch.delete_horizon_ms for stretch in stretches),
    )
    message = b.encode(rows, fields, compression=first.kind.compression)
    return message, b.parse(message)


def from_offset(
    message: memoryview, header: b.BatchHeader, schema: pa.Schema, time_column: str | None, offset: int
) -> bytes:
    """A batch as an explicit one whose range begins at `offset`, inside it: for a follower whose log ends there, since
    it was filled by a leader that had compacted other batches into one. Raises CorruptBatch."""
    b.check_header_crc(message, header)
    b.check_producer_crc(message, header)
    rows = rows_of(message, header, schema)
    keep = offsets_of(header, rows) >= offset
    stretch = Stretch(
        kind_of(header, message),
        explicit_rows([(header, rows)], keep, schema, time_column),
        offset,
        header.next_offset,
        header.append_time_ms,
        header.high_watermark,
        header.delete_horizon_ms,
        owner_of(header, offset),
    )
    whose = Identity(header.topic_id, header.partition)
    shorter, stated = merged([stretch], whose, header.schema_id)
    return b"".join(b.with_leader_fields(shorter, stated, leader_fields([stretch])))
