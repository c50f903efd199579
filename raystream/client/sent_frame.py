"""What `send_frame` returns: one outcome for all rows of a frame."""

from __future__ import annotations

import concurrent.futures
import logging
from collections.abc import Callable, Generator
from typing import Any

from raystream.client.ledger import Failure, Ledger, delivery_failed
from raystream.client.sent import Piece, woken
from raystream.errors import InvalidArgument, RequestTimeout
from raystream.types import WriteResult

log = logging.getLogger("raystream")


class Frame:
    """A frame on its way: pieces come while it is converted, and it is settled once all of them are."""

    def __init__(self, ledger: Ledger, topic: str) -> None:
        self._ledger = ledger
        self.topic = topic
        self.rows = 0
        self.open_records = 0
        self.future: concurrent.futures.Future[WriteResult] = concurrent.futures.Future()
        self._handed_over = False
        self._offsets: dict[int, tuple[int, int]] = {}
        self._failures: dict[tuple[int, str], Failure] = {}
        self._owed: list[tuple[Failure, int]] = []
        with ledger.lock:
            ledger.owe(self)

    def add(self, piece: Piece) -> None:
        """Takes note of a piece before it goes to the loop."""
        with self._ledger.lock:
            self.open_records += piece.count
            self.rows += piece.count

    def handed_over(self) -> None:
        """No more pieces will come."""
        with self._ledger.lock:
            self._handed_over = True
            complete = self.open_records == 0
        if complete:
            self._complete()

    def settle(
        self, piece: Piece, base_offset: int | None, append_time_ms: int | None, error: BaseException | None
    ) -> None:
        """*loop* One piece is acknowledged or failed."""
        with self._ledger.lock:
            piece.append_time_ms = append_time_ms
            piece.error, piece.base_offset = error, base_offset
            if error is not None:
                self._owed.append((self._ledger.failed(self.topic, piece.partition, piece.count, error), piece.count))
                key = (piece.partition, type(error).__name__)
                self._failures.setdefault(key, Failure(self.topic, piece.partition, 0, error)).count += piece.count
            elif base_offset is not None:
                end = base_offset + piece.count if base_offset >= 0 else -1
                first, last = self._offsets.get(piece.partition, (base_offset, end))
                self._offsets[piece.partition] = (min(first, base_offset), max(last, end))
            piece.rows = None
            self.open_records -= piece.count
            self._ledger.release(piece.charge)
            complete = self._handed_over and self.open_records == 0
        if complete:
            self._complete()

    def _complete(self) -> None:
        failed = sum(failure.count for failure in self._failures.values())
        written = WriteResult(self.topic, self.rows - failed, dict(sorted(self._offsets.items())))
        if self._failures:
            self.future.set_exception(delivery_failed(list(self._failures.values()), delivered=written))
        else:
            self.future.set_result(written)
        with self._ledger.lock:
            self._ledger.settled(self)

    def collect(self) -> None:
        """The outcome was seen: its failures are no longer owed."""
        with self._ledger.lock:
            owed, self._owed = self._owed, []
            for failure, count in owed:
                failure.count -= count


class SentFrame:
    """A frame on its way: one outcome for the whole. Waits, callbacks and `await` may be mixed, from any thread."""

    __slots__ = ("_frame", "_is_loop")

    def __init__(self, frame: Frame, is_loop: Callable[[], bool]) -> None:
        self._frame = frame
        self._is_loop = is_loop

    def done(self) -> bool:
        """Whether every row is acknowledged or failed."""
        return self._frame.future.done()

    def result(self, timeout: float | None = None) -> WriteResult:
        """Rows and offset ranges; waits up to `timeout` seconds. Raises DeliveryFailed (`.failures` says what failed,
        `.delivered` what was written all the same), or RequestTimeout."""
        self._wait(timeout)
        self._frame.collect()
        return self._frame.future.result()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """DeliveryFailed, or None once every row is acknowledged. Raises RequestTimeout when neither is known yet."""
        self._wait(timeout)
        self._frame.collect()
        return self._frame.future.exception()

    def _wait(self, timeout: float | None) -> None:
        if not self.done() and self._is_loop():
            raise InvalidArgument("the frame is not acknowledged yet, and its acknowledgement comes on this thread")
        try:
            self._frame.future.exception(timeout)
        except TimeoutError:
            raise RequestTimeout(
                f"{self._frame.open_records:,} rows for {self._frame.topic} were not acknowledged within {timeout} s"
            ) from None

    def add_done_callback(self, callback: Callable[[SentFrame], Any]) -> None:
        """As `Sent.add_done_callback`."""

        def call(_: object) -> None:
            self._frame.collect()
            try:
                callback(self)
            except Exception:
                log.exception("a callback of a sent frame raised")

        self._frame.future.add_done_callback(call)

    def __await__(self) -> Generator[Any, None, WriteResult]:
        if not self.done():
            yield from woken(lambda wake: self._frame.future.add_done_callback(lambda _: wake())).__await__()
        self._frame.collect()
        return self._frame.future.result()

    def __repr__(self) -> str:
        return f"<frame of {self._frame.rows:,} rows for {self._frame.topic}: {self._frame.future._state.lower()}>"
