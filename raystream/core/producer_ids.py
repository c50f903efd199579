"""Producer ids: never the same one twice, also over restarts."""

from __future__ import annotations

from typing import Final

from raystream.core.group_records import ProducerIdsRecord

BLOCK: Final = 1000
"""Ids are reserved so many at a time; a restart skips what is left of a block."""


class ProducerIds:
    """Reserves blocks on the log and gives ids out of memory."""

    def __init__(self) -> None:
        self._reserved = 0
        self._next = 0

    def allocate(self) -> tuple[int, list[ProducerIdsRecord]]:
        """The next id, and the reservation to write down first where the block is used up."""
        records = []
        if self._next >= self._reserved:
            records.append(ProducerIdsRecord(self._next + BLOCK))
        allocated = self._next
        self._next += 1
        return allocated, records

    def replay(self, record: ProducerIdsRecord, *, own: bool) -> None:
        """A reservation; one of an earlier life (not `own`) is wholly used up."""
        self._reserved = record.next_id
        if not own:
            self._next = record.next_id
