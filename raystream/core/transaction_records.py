"""What the coordinator writes down of a transactional id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from raystream.core.records import Record, kind

EMPTY: Final = "empty"
ONGOING: Final = "ongoing"
PREPARE_COMMIT: Final = "prepare_commit"
PREPARE_ABORT: Final = "prepare_abort"
COMPLETE_COMMIT: Final = "complete_commit"
COMPLETE_ABORT: Final = "complete_abort"

PREPARED: Final = (PREPARE_COMMIT, PREPARE_ABORT)
"""Decided; not every partition has its marker yet."""
COMPLETE: Final = (COMPLETE_COMMIT, COMPLETE_ABORT)

BY_TIMEOUT: Final = "timeout"
NOBODY: Final = -1


@kind
@dataclass(frozen=True, slots=True)
class TransactionRecord(Record):
    """A transactional id. `epoch` is that of its producer; with a decision it grows, markers carry the grown one, and
    the producer goes on with it. `instance` names the producer object that has the id now."""

    KIND: ClassVar[str] = "transaction"
    IDENTITY: ClassVar[tuple[str, ...]] = ("transactional_id",)
    transactional_id: str
    producer_id: int
    epoch: int
    timeout_ms: int
    instance: str
    state: str = EMPTY
    partitions: tuple[tuple[str, str, int], ...] = ()
    """(topic, topic id, partition) of all that the transaction may have written to."""
    ended_by: str = ""
    """"timeout" where nobody asked for the end."""
    fenced_below: int = 0
    """Epochs below are a predecessor's."""
    previous_producer_id: int = NOBODY
    """Whose epochs were used up with the last decision."""

    @property
    def commits(self) -> bool:
        """Whether the decision is to commit."""
        return self.state in (PREPARE_COMMIT, COMPLETE_COMMIT)

    @property
    def awaits_successor(self) -> bool:
        """Another producer has the id and does not know its epoch yet."""
        return self.epoch < self.fenced_below
