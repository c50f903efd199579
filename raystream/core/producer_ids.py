"""Producer ids: never the same one twice, also over restarts and from several coordinators."""

from __future__ import annotations

from typing import Final

from raystream.core.group_records import ProducerIdsRecord

BLOCK: Final = 1000
"""Ids are reserved so many at a time; a restart skips what is left of a block."""
IDS_PER_COORDINATOR: Final = 2**40
MAX_COORDINATORS: Final = 2**22


class ProducerIds:
    """Reserves blocks on the log and gives ids out of memory.

    `coordinator` numbers those that work side by side, each with a log of its own: their ids never meet.
    """

    def __init__(self, coordinator: int = 0) -> None:
        if not 0 <= coordinator < MAX_COORDINATORS:
            raise ValueError(f"coordinator {coordinator} is not in 0 to {MAX_COORDINATORS - 1}")
        self._first = coordinator * IDS_PER_COORDINATOR
        self._reserved = 0
        self._next: int | None = None

    def allocate(self) -> tuple[int, tuple[ProducerIdsRecord, ...]]:
        """The next id, and the reservation that must be on the log before the id is given out."""
        allocated = self._reserved if self._next is None else self._next
        assert allocated < IDS_PER_COORDINATOR
        self._next = allocated + 1
        records = (ProducerIdsRecord(allocated + BLOCK),) if allocated >= self._reserved else ()
        return self._first + allocated, records

    def replay(self, record: ProducerIdsRecord) -> None:
        """A reservation. What earlier lives reserved is wholly used up: the first id of this life lies past it."""
        self._reserved = max(self._reserved, record.next_id)

    def snapshot(self) -> tuple[ProducerIdsRecord, ...]:
        """Records whose replay on an empty state gives no id again."""
        return (ProducerIdsRecord(self._reserved),) if self._reserved else ()
