"""How the log of a replayed state is kept short: when a snapshot of the state is due, its pieces, what may go then.

A snapshot is appended piece by piece while the state goes on changing. Each record in it is as the state was when its
piece was cut, and the changes in between stand in the log among the pieces, so that replaying the log from the
snapshot's first row on gives the present state once the last piece is written, and only then. Replayed after all that
came before, any number of its pieces change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

from raystream.core.records import Pair, Record, Removed, to_pair

BOUND_ROWS: Final = 20_000
"""So many rows may be superfluous in any log; half a second of replay, where each is a batch of its own."""
BOUND_SNAPSHOTS: Final = 2
"""A large state may have so many times its own rows more. A row of a snapshot costs a small part of what a commit does,
so that this bounds the time of a start rather than the work of snapshots."""
PIECE_ROWS: Final = 500
PIECE_BYTES: Final = 512 << 10
"""A piece is cut at either, a record larger than this is a piece of its own."""
RETRY_MS: Final = 30_000.0
"""How long to leave it after a failure."""


class Compaction:
    """Counts rows, cuts pieces and knows what may be deleted; whoever holds it appends, and tells what happened.

    `loaded` begins anew. A piece must be appended before the state changes again; if that fails, `failed`.
    """

    def __init__(self, bound_rows: int = BOUND_ROWS, piece_rows: int = PIECE_ROWS) -> None:
        self._bound_rows = bound_rows
        self._piece_rows = piece_rows
        self._log_rows = 0
        self._snapshot_rows = 0
        self._rest_until_ms = float("-inf")
        self._forget_snapshot()
        self._delete_before: int | None = None
        self._delete_again_ms = float("-inf")

    def _forget_snapshot(self) -> None:
        self._records: Iterator[Record | Removed] | None = None
        self._first_offset: int | None = None
        self._rows_of_pieces = 0
        self._rows_since_first = 0

    @property
    def under_way(self) -> bool:
        """Whether a snapshot has pieces to come."""
        return self._records is not None

    @property
    def deleting(self) -> bool:
        """Whether something is to be deleted still."""
        return self._delete_before is not None

    def loaded(self, log_rows: int, state_rows: int) -> None:
        """The log was replayed from its start: so many rows, and so many that a snapshot of the state has."""
        self._log_rows = log_rows
        self._snapshot_rows = state_rows
        self._forget_snapshot()
        self._delete_before = None

    def appended(self, rows: int) -> None:
        """The log grew; pieces count too."""
        self._log_rows += rows
        if self.under_way:
            self._rows_since_first += rows

    def piece(self, snapshot: Callable[[], Iterator[Record | Removed]], now_ms: float) -> list[Pair]:
        """What to append now: the next piece of the snapshot under way, or the first of one that is due; else []."""
        if self._records is None:
            superfluous = self._log_rows - self._snapshot_rows
            bound = max(self._bound_rows, BOUND_SNAPSHOTS * self._snapshot_rows)
            if superfluous <= bound or now_ms < self._rest_until_ms:
                return []
            self._records = snapshot()
        pairs: list[Pair] = []
        size = 0
        for record in self._records:
            key, value = to_pair(record)
            pairs.append((key, value))
            size += len(key or b"") + len(value or b"")
            if len(pairs) >= self._piece_rows or size >= PIECE_BYTES:
                break
        if not pairs:
            self._finish()
        return pairs

    def written(self, base_offset: int, rows: int) -> None:
        """A piece is in the log for good, at that offset."""
        if self._first_offset is None:
            self._first_offset = base_offset
        self._rows_of_pieces += rows

    def _finish(self) -> None:
        self._delete_before = self._first_offset
        self._delete_again_ms = float("-inf")
        self._snapshot_rows = self._rows_of_pieces
        self._log_rows = self._rows_since_first
        self._forget_snapshot()

    def failed(self, now_ms: float) -> None:
        """A piece could not be written, or may not have been: the snapshot begins anew after a rest."""
        self._forget_snapshot()
        self._rest_until_ms = now_ms + RETRY_MS

    def to_delete(self, now_ms: float) -> int | None:
        """Before which offset to delete now. The same answer comes again after a while unless `deleted` is told."""
        if self._delete_before is None or now_ms < self._delete_again_ms:
            return None
        self._delete_again_ms = now_ms + RETRY_MS
        return self._delete_before

    def deleted(self, before_offset: int) -> None:
        """The log begins there now, or later."""
        if self._delete_before is not None and before_offset >= self._delete_before:
            self._delete_before = None
