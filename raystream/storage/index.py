"""The sparse index of one segment: where to begin looking for an offset, a position or a timestamp.

An entry stands for a batch: its base offset, its position in the segment, and the greatest timestamp of the batches
*before* it. All three never decrease from entry to entry, so each can be bisected. The first batch of a segment always
has one; after it a batch gets one when INTERVAL_BYTES of log have passed since the last. The file states how far it
covers its segment and carries a CRC: what is damaged or missing is rebuilt from the log.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Final

from raystream.checksum import crc32c
from raystream.errors import CorruptBatch, NewerFormat

INTERVAL_BYTES: Final = 64 << 10
NO_TIMESTAMP: Final = -(2**63)

_MAGIC: Final = b"RSINDEX"
_VERSION: Final = 1
# magic, version, schema id, entry count, base offset, end offset, log bytes, max timestamp, first and last append time,
# whether the batches' offsets are explicit, reserved
_HEAD: Final = struct.Struct(">7sBIIqqqqqqI12x")
_ENTRY: Final = struct.Struct(">qqq")
_CRC: Final = struct.Struct(">I")
HEADER_BYTES: Final = _HEAD.size + _CRC.size
ENTRY_BYTES: Final = _ENTRY.size


@dataclass(frozen=True, slots=True)
class Coverage:
    """What an index file states about its segment, up to `log_bytes`."""

    schema_id: int
    base_offset: int
    end_offset: int
    log_bytes: int
    max_timestamp_ms: int
    first_append_ms: int
    last_append_ms: int
    explicit: bool = False
    """Whether its batches carry their offsets in a column."""


class Index:
    """Entries in one buffer of packed bytes. One thread adds; others may look up meanwhile."""

    __slots__ = ("_count", "_due_at", "_entries")

    def __init__(self, entries: bytes | bytearray = b"") -> None:
        self._entries = bytearray(entries)
        self._count = len(entries) // ENTRY_BYTES
        self._due_at = self._next_due()

    def _next_due(self) -> int:
        return self[self._count - 1][1] + INTERVAL_BYTES if self._count else 0

    def __len__(self) -> int:
        return self._count

    @property
    def entries(self) -> bytes:
        """All entries, packed."""
        return bytes(self._entries[: self._count * ENTRY_BYTES])

    def __getitem__(self, place: int) -> tuple[int, int, int]:
        """(base offset, position, greatest timestamp before it)."""
        if not 0 <= place < self._count:
            raise IndexError(place)
        base_offset, position, timestamp = _ENTRY.unpack_from(self._entries, place * ENTRY_BYTES)
        return base_offset, position, timestamp

    def offer(self, base_offset: int, position: int, max_timestamp_before_ms: int) -> None:
        """Adds an entry for a batch where one is due."""
        if position < self._due_at:
            return
        self._entries += _ENTRY.pack(base_offset, position, max_timestamp_before_ms)
        self._count += 1  # published last
        self._due_at = position + INTERVAL_BYTES

    def cut(self, position: int) -> None:
        """Drops the entries of batches at or past `position`."""
        keep = bisect_left(range(self._count), position, key=lambda place: self[place][1])
        self._entries = self._entries[: keep * ENTRY_BYTES]
        self._count = keep
        self._due_at = self._next_due()

    def at_offset(self, offset: int) -> tuple[int, int]:
        """(base offset, position) of the last entry at or below `offset`; the first entry below all."""
        return self._pick(bisect_right(range(self._count), offset, key=lambda place: self[place][0]) - 1)

    def at_position(self, position: int) -> tuple[int, int]:
        """The same for a position."""
        return self._pick(bisect_right(range(self._count), position, key=lambda place: self[place][1]) - 1)

    def before_time(self, timestamp_ms: int) -> tuple[int, int]:
        """The last entry before which every timestamp is below `timestamp_ms`."""
        return self._pick(bisect_left(range(self._count), timestamp_ms, key=lambda place: self[place][2]) - 1)

    def _pick(self, place: int) -> tuple[int, int]:
        base_offset, position, _ = self[max(place, 0)]
        return base_offset, position

    def to_bytes(self, coverage: Coverage) -> bytes:
        """The index file."""
        head = _HEAD.pack(
            _MAGIC,
            _VERSION,
            coverage.schema_id,
            self._count,
            coverage.base_offset,
            coverage.end_offset,
            coverage.log_bytes,
            coverage.max_timestamp_ms,
            coverage.first_append_ms,
            coverage.last_append_ms,
            coverage.explicit,
        )
        entries = self.entries
        return head + _CRC.pack(crc32c(entries, crc32c(head))) + entries


def read_index(data: bytes) -> tuple[Index, Coverage]:
    """An index file's content. Raises CorruptBatch where it is damaged, NewerFormat where it is of a later version."""
    if len(data) < HEADER_BYTES:
        raise CorruptBatch("the index file is cut off")
    magic, version, schema_id, count, base, end, size, newest, first, last, explicit = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise CorruptBatch("the index file does not begin as one")
    entries = data[HEADER_BYTES:]
    if _CRC.unpack_from(data, _HEAD.size)[0] != crc32c(entries, crc32c(data[: _HEAD.size])):
        raise CorruptBatch("the index file fails its CRC")
    if version > _VERSION:
        raise NewerFormat(f"the index has format version {version}; this raystream reads up to {_VERSION}")
    if len(entries) != count * ENTRY_BYTES:
        raise CorruptBatch("the index file has another size than it states")
    return Index(entries), Coverage(schema_id, base, end, size, newest, first, last, bool(explicit))
