"""What `send` returns, and what stands behind it until the acknowledgement.

A `Chunk` gathers the records of many `send`s; a `Sent` is only a chunk and a place in it, so that it costs little. The
loop cuts chunks (and frames) into `Piece`s, each for one partition, and settles each piece once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, Protocol, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raystream.client.ledger import Failure, Ledger, delivery_failed
from raystream.errors import InvalidArgument, RequestTimeout
from raystream.types import RecordMetadata, WriteResult

log = logging.getLogger("raystream")

Watcher = Callable[[], None]
Longs = npt.NDArray[np.int64]
Extras = tuple[list[tuple[str, bytes | None]] | None, int | None]
"""A record's headers and its explicit partition."""


class Delivery(Protocol):
    """What pieces are cut from."""

    topic: str

    def settle(
        self, piece: Piece, base_offset: int | None, append_time_ms: int | None, error: BaseException | None
    ) -> None:
        """*loop* One piece is acknowledged, at `base_offset` (-1: nobody knows where), or failed."""


class Piece:
    """Rows of one chunk or frame for one partition, in order. Never cut again; several may share a batch."""

    __slots__ = (
        "append_time_ms",
        "base_offset",
        "charge",
        "count",
        "deadline_ms",
        "delivery",
        "error",
        "failure",
        "first",
        "first_timestamp_ms",
        "max_timestamp_ms",
        "nbytes",
        "partition",
        "rows",
        "transaction",
    )

    def __init__(self, delivery: Delivery, partition: int, first: int, rows: pa.RecordBatch | None) -> None:
        self.delivery = delivery
        self.partition = partition
        self.first = first
        """The place of its first row among the delivery's rows for the same partition."""
        self.rows = rows
        self.count = 0 if rows is None else int(rows.num_rows)
        self.nbytes = 0 if rows is None else int(rows.nbytes)
        self.charge = 0
        """Bytes of the producer's buffer that it holds."""
        self.deadline_ms = 0.0
        self.transaction = 0
        """Which of the producer's transactions its records belong to, from 1 on; 0 without transactions."""
        self.first_timestamp_ms = 0
        self.max_timestamp_ms = 0
        self.base_offset: int | None = None
        self.append_time_ms: int | None = None
        self.error: BaseException | None = None
        self.failure: Failure | None = None

    @property
    def settled(self) -> bool:
        return self.base_offset is not None or self.error is not None


class Chunk:
    """Records of one topic in the order of their `send`s. Filled under the ledger's lock, then cut on the loop."""

    __slots__ = (
        "_collected",
        "_is_loop",
        "_ledger",
        "_order",
        "_pieces",
        "_rank",
        "_stamps",
        "_targets",
        "_watchers",
        "charge",
        "created_ms",
        "extras",
        "keyed",
        "keys",
        "left",
        "nanoseconds",
        "open_records",
        "rows",
        "topic",
        "transaction",
        "values",
    )

    def __init__(
        self, ledger: Ledger, topic: str, created_ms: float, is_loop: Callable[[], bool], transaction: int = 0
    ) -> None:
        self._ledger = ledger
        self._is_loop = is_loop
        self.topic = topic
        self.created_ms = created_ms
        self.transaction = transaction
        """Which of the producer's transactions its records belong to, as in `Piece`."""
        self.rows = 0
        self.left = 0
        """Bytes that may still be added without asking for more room."""
        self.charge = 0
        """Bytes of the producer's buffer that it holds."""
        self.values: list[Any] = []
        self.keys: list[bytes | None] = []
        self.keyed = False
        """Whether any key is not None."""
        self.extras: list[Extras | None] | None = None
        """Headers and explicit partitions, once a record has either."""
        self.nanoseconds: list[int] = []
        """The records' timestamps until the chunk is cut."""
        self.open_records = 0
        self._pieces: dict[int, list[Piece]] | None = None
        self._targets: npt.NDArray[Any] | None = None
        self._order: Longs | None = None
        self._rank: Longs | None = None
        self._watchers: list[tuple[int, Watcher]] = []
        self._collected: set[int] | None = None
        self._stamps: Longs = np.empty(0, np.int64)

    def milliseconds(self) -> Longs:
        """The timestamps of a chunk that is not cut yet."""
        return np.array(self.nanoseconds, np.int64) // 1_000_000

    def cut_back(self, rows: int) -> None:
        """*lock held* Forgets what was added beyond the first `rows` records."""
        self.rows = rows
        for column in (self.values, self.nanoseconds, self.keys, self.extras):
            if column is not None:
                del column[rows:]

    def cut(
        self,
        pieces: dict[int, list[Piece]],
        stamps: Longs,
        targets: npt.NDArray[Any] | None = None,
        order: Longs | None = None,
    ) -> None:
        """*loop* The records are in these pieces now. `targets` says each record's partition, `order` is their stable
        sorting by it; both None where all go to one."""
        self.values, self.keys, self.extras, self.nanoseconds = [], [], None, []
        self._stamps = stamps
        self._targets, self._order = targets, order
        self._pieces = pieces

    def fail(self, error: BaseException) -> None:
        """*loop* No record of an uncut chunk will be sent."""
        whole = Piece(self, -1, 0, None)
        whole.count, whole.charge = self.rows, self.charge
        self.cut({whole.partition: [whole]}, self.milliseconds())
        self.settle(whole, None, None, error)

    def settle(
        self, piece: Piece, base_offset: int | None, append_time_ms: int | None, error: BaseException | None
    ) -> None:
        """*loop* One piece is acknowledged or failed."""
        with self._ledger.lock:
            piece.append_time_ms = append_time_ms
            if error is not None:
                piece.failure = self._ledger.failed(self.topic, piece.partition, piece.count, error)
                piece.error = error
            piece.base_offset = base_offset
            piece.rows = None
            watchers, self._watchers = self._watchers, []
        waiting = []
        for index, watcher in watchers:
            if self.done(index):
                watcher()
            else:
                waiting.append((index, watcher))
        with self._ledger.lock:  # only now may a flush go on: the callbacks have seen their failures
            self._watchers.extend(waiting)
            self.open_records -= piece.count
            self._ledger.release(piece.charge)
            if self.open_records == 0:
                self._ledger.settled(self)

    def _piece(self, index: int) -> tuple[Piece, int] | None:
        """The piece that holds a record, and the record's place in it."""
        if self._pieces is None:
            return None
        if self._targets is None:
            (pieces,) = self._pieces.values()
            row = index
        else:
            pieces = self._pieces[int(self._targets[index])]
            row = int(self._ranks()[index])
        piece = pieces[0]
        if len(pieces) > 1:
            piece = pieces[bisect_right(pieces, row, key=_first) - 1]
        return piece, row - piece.first

    def _ranks(self) -> Longs:
        """Each record's place among the chunk's records for the same partition; made when first asked for."""
        if self._rank is None:
            assert self._order is not None
            assert self._targets is not None
            targets = self._targets[self._order]
            begins = np.flatnonzero(np.r_[True, targets[1:] != targets[:-1]])
            counts = np.diff(np.r_[begins, len(targets)])
            rank = np.empty(len(targets), np.int64)
            rank[self._order] = np.arange(len(targets)) - np.repeat(begins, counts)
            self._rank = rank
        return self._rank

    def done(self, index: int) -> bool:
        """Whether the record is acknowledged or failed."""
        found = self._piece(index)
        return found is not None and found[0].settled

    def outcome(self, index: int) -> RecordMetadata | BaseException | None:
        """Where the record went, why it failed, or None while neither is known. A failure counts as seen."""
        found = self._piece(index)
        if found is None or not found[0].settled:
            return None
        piece, row = found
        if piece.error is not None:
            self._collect(index, piece)
            return piece.error
        assert piece.base_offset is not None
        offset = piece.base_offset + row if piece.base_offset >= 0 else -1
        stamp = int(self._stamps[index]) if piece.append_time_ms is None else piece.append_time_ms
        return RecordMetadata(self.topic, piece.partition, offset, stamp)

    def _collect(self, index: int, piece: Piece) -> None:
        with self._ledger.lock:
            seen = self._collected
            if seen is None:
                seen = self._collected = set()
            if index not in seen and piece.failure is not None:
                seen.add(index)
                piece.failure.count -= 1

    def watch(self, index: int, watcher: Watcher) -> None:
        """Calls `watcher` once the record is settled: on the loop, or here and now."""
        with self._ledger.lock:
            if not self.done(index):
                self._watchers.append((index, watcher))
                return
        watcher()

    def wait(self, index: int, timeout: float | None) -> RecordMetadata | BaseException:
        """The outcome; waits up to `timeout` seconds. Raises RequestTimeout."""
        outcome = self.outcome(index)
        if outcome is not None:
            return outcome
        if self._is_loop():
            raise InvalidArgument("the record is not acknowledged yet, and its acknowledgement comes on this thread")
        settled = threading.Event()
        entry = (index, settled.set)
        self.watch(*entry)
        if not settled.wait(timeout):
            with self._ledger.lock, contextlib.suppress(ValueError):
                self._watchers.remove(entry)
            raise RequestTimeout(f"the record for {self.topic} was not acknowledged within {timeout} s")
        outcome = self.outcome(index)
        assert outcome is not None
        return outcome


def _first(piece: Piece) -> int:
    return piece.first


class Sent:
    """One record on its way. Waits, callbacks and `await` may be mixed, from any thread."""

    __slots__ = ("_chunk", "_index")

    def __init__(self, chunk: Chunk, index: int) -> None:
        self._chunk = chunk
        self._index = index

    def done(self) -> bool:
        """Whether the record is acknowledged or failed."""
        return self._chunk.done(self._index)

    def result(self, timeout: float | None = None) -> RecordMetadata:
        """Where the record went; waits up to `timeout` seconds. Raises why it failed, or RequestTimeout."""
        outcome = self._chunk.wait(self._index, timeout)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Why the record failed, or None once it is acknowledged. Raises RequestTimeout when neither is known yet."""
        outcome = self._chunk.wait(self._index, timeout)
        return outcome if isinstance(outcome, BaseException) else None

    def add_done_callback(self, callback: Callable[[Sent], Any]) -> None:
        """Calls `callback(self)` once the record is acknowledged or failed: on the client's own thread, so it must not
        wait, or at once if that has happened. A failure then counts as seen; what the callback raises is logged."""

        def call() -> None:
            self._chunk.outcome(self._index)
            try:
                callback(self)
            except Exception:
                log.exception("a callback of a sent record raised")

        self._chunk.watch(self._index, call)

    def __await__(self) -> Generator[Any, None, RecordMetadata]:
        if self._chunk.outcome(self._index) is None:
            yield from woken(lambda wake: self._chunk.watch(self._index, wake)).__await__()
        outcome = self._chunk.outcome(self._index)
        if isinstance(outcome, BaseException):
            raise outcome
        assert outcome is not None
        return outcome

    def __repr__(self) -> str:
        outcome = self._chunk.outcome(self._index) if self.done() else "on its way"
        return f"<record for {self._chunk.topic}: {outcome}>"


async def woken(watch: Callable[[Watcher], None]) -> None:
    """Waits on the running event loop until `watch` calls what it was given, from any thread."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def settle() -> None:
        if not future.done():
            future.set_result(None)

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # whoever awaited is gone, with its loop
            loop.call_soon_threadsafe(settle)

    watch(wake)
    await future


class SentMany(Sequence[Sent]):
    """The records of one `send_many`, each as its `Sent`; one awaitable for the whole."""

    __slots__ = ("_sent", "_topic")

    def __init__(self, topic: str, sent: Iterable[Sent]) -> None:
        self._topic = topic
        self._sent = list(sent)

    def __len__(self) -> int:
        return len(self._sent)

    @overload
    def __getitem__(self, index: int) -> Sent: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sent]: ...

    def __getitem__(self, index: int | slice) -> Sent | list[Sent]:
        return self._sent[index]

    def __iter__(self) -> Iterator[Sent]:
        return iter(self._sent)

    def done(self) -> bool:
        """Whether every record is acknowledged or failed."""
        return all(sent.done() for sent in self._sent)

    def result(self, timeout: float | None = None) -> WriteResult:
        """Rows and offset ranges; waits up to `timeout` seconds in all. Raises DeliveryFailed (`.failures` says what
        failed, `.delivered` what was written all the same), or RequestTimeout."""
        deadline = None if timeout is None else time.monotonic() + timeout
        for sent in self._sent:
            if not sent.done():
                sent._chunk.wait(sent._index, None if deadline is None else max(deadline - time.monotonic(), 0))
        return self._result()

    def _result(self) -> WriteResult:
        offsets: dict[int, tuple[int, int]] = {}
        failures: dict[tuple[int, str], Failure] = {}
        for sent in self._sent:
            outcome = sent._chunk.outcome(sent._index)
            if isinstance(outcome, RecordMetadata):
                first, end = offsets.get(outcome.partition, (outcome.offset, outcome.offset + 1))
                offsets[outcome.partition] = (min(first, outcome.offset), max(end, outcome.offset + 1))
            elif outcome is not None:
                key = (-1, type(outcome).__name__)
                failures.setdefault(key, Failure(self._topic, -1, 0, outcome)).count += 1
        failed = sum(failure.count for failure in failures.values())
        written = WriteResult(self._topic, len(self._sent) - failed, dict(sorted(offsets.items())))
        if failures:
            raise delivery_failed(list(failures.values()), delivered=written)
        return written

    def __await__(self) -> Generator[Any, None, WriteResult]:
        for sent in self._sent:
            if not sent.done():
                yield from woken(lambda wake, sent=sent: sent._chunk.watch(sent._index, wake)).__await__()  # type: ignore[misc]
        return self._result()
