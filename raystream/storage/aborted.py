"""The aborted transactions that a log holds records of, and the file beside it that spares reading the log for them.

The file is appended to with each checkpoint that has something new, and written anew where entries went, with records
that were deleted or cut off. The checkpoint says which entry was the last: a file that lacks it is built from the log.
"""

from __future__ import annotations

import struct
from bisect import bisect_left
from operator import attrgetter
from typing import Final, NamedTuple

from raystream.checksum import crc32c
from raystream.storage.files import Files

ABORTED_NAME: Final = "aborted"
NONE: Final = -1
_ENTRY: Final = struct.Struct(">qqq")
_CRC: Final = struct.Struct(">I")
ENTRY_BYTES: Final = _ENTRY.size + _CRC.size
_BY_LAST: Final = attrgetter("last_offset")


class Aborted(NamedTuple):
    """Batches of that producer from `first_offset` on do not count; `last_offset` is the marker's."""

    producer_id: int
    first_offset: int
    last_offset: int


class AbortedTransactions:
    """In the order of their markers. One thread changes them; any may look into `entries`, which is replaced whole."""

    def __init__(self, entries: tuple[Aborted, ...] = ()) -> None:
        self.entries = entries
        self._saved: tuple[Aborted, ...] | None = None
        """What the file holds; None: nobody knows."""

    @property
    def last_offset(self) -> int:
        """Where the last one's marker stands, or -1."""
        return self.entries[-1].last_offset if self.entries else NONE

    def add(self, entry: Aborted) -> None:
        """Takes note of one; one that is known already, or lies before, changes nothing."""
        if entry.last_offset > self.last_offset:
            self.entries = (*self.entries, entry)

    def cut(self, end_offset: int) -> None:
        """Forgets those whose marker stands at or past the log's new end."""
        self.entries = self.entries[: bisect_left(self.entries, end_offset, key=_BY_LAST)]

    def drop_before(self, start_offset: int) -> None:
        """Forgets those that lie below the log's new start."""
        self.entries = self.entries[bisect_left(self.entries, start_offset, key=_BY_LAST) :]

    def save(self, files: Files, directory: str) -> None:
        """Brings the file up to date, durably."""
        path = f"{directory}/{ABORTED_NAME}"
        saved, entries = self._saved, self.entries
        if saved == entries or (saved is None and not entries):
            return
        self._saved = None
        if saved and entries[: len(saved)] == saved:
            handle = files.open_append(path)
            try:
                if handle.size > len(saved) * ENTRY_BYTES:
                    handle.truncate(len(saved) * ENTRY_BYTES)
                handle.writev([_packed(entry) for entry in entries[len(saved) :]])
                handle.sync()
            finally:
                handle.close()
        else:
            files.write_atomically(path, b"".join(map(_packed, entries)))
        self._saved = entries


def load(files: Files, directory: str, last_offset: int) -> AbortedTransactions | None:
    """What the file holds up to the entry whose marker stands at `last_offset`; None where that cannot be had."""
    found = AbortedTransactions()
    if last_offset == NONE:
        return found
    try:
        data = files.read(f"{directory}/{ABORTED_NAME}")
    except FileNotFoundError:
        return None
    for at in range(0, len(data) - ENTRY_BYTES + 1, ENTRY_BYTES):
        packed = data[at : at + _ENTRY.size]
        if _CRC.unpack_from(data, at + _ENTRY.size)[0] != crc32c(packed):
            return None
        found.add(Aborted(*_ENTRY.unpack(packed)))
        if found.last_offset == last_offset:
            found._saved = found.entries
            return found
    return None


def overlapping(entries: tuple[Aborted, ...], start_offset: int, end_offset: int) -> tuple[Aborted, ...]:
    """Those that have records in the range."""
    first = bisect_left(entries, start_offset, key=_BY_LAST)
    return tuple(entry for entry in entries[first:] if entry.first_offset < end_offset)


def _packed(entry: Aborted) -> bytes:
    data = _ENTRY.pack(*entry)
    return data + _CRC.pack(crc32c(data))
