"""What a producer owes: bytes it holds, deliveries that are not settled, failures that nobody has seen.

One lock guards it all; `send` takes it once per record. Nothing is called back while the lock is held.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import Any, Final, Protocol

from raystream.client.stats import ProducerStats
from raystream.errors import BufferFull, Closed, DeliveryFailed, RaystreamError

_LOOK_S: Final = 0.5
"""A waiting thread looks up this often, so that an interrupt is seen on every platform."""


class Unsettled(Protocol):
    """Something handed over: settled when each of its records is acknowledged or failed."""

    @property
    def open_records(self) -> int: ...


@dataclass(slots=True, eq=False)
class Failure:
    """Records of one partition that failed for one reason. Those that somebody saw are no longer counted."""

    topic: str
    partition: int
    count: int
    error: BaseException


class Ledger:
    """Bounded memory for everything between `send` and the acknowledgement. Thread-safe."""

    def __init__(self, max_bytes: int, max_block_ms: int, stats: ProducerStats) -> None:
        self.lock = threading.Lock()
        self._changed = threading.Condition(self.lock)
        self._waiters = 0
        self._max_bytes = max_bytes
        self._max_block_ms = max_block_ms
        self._stats = stats
        self._unsettled: dict[Unsettled, None] = {}
        self._failures: dict[tuple[str, int, str], Failure] = {}
        self.closed: str | None = None
        """Why nothing more is taken; None while the producer is open."""

    # Bytes ----------------------------------------------------------------------------------------------------------

    def try_reserve(self, nbytes: int) -> bool:
        """*lock held* Takes room for `nbytes`. What is larger than the whole buffer fits when it is empty."""
        used = self._stats.buffered_bytes
        if used and used + nbytes > self._max_bytes:
            return False
        self._stats.buffered_bytes = used + nbytes
        return True

    def wait_for_room(self, nbytes: int, deadline: float) -> None:
        """*lock held, released meanwhile* Waits until something was settled. Raises BufferFull, Closed."""
        left = deadline - time.monotonic()
        if left <= 0:
            raise self.full(nbytes)
        began = time.monotonic()
        self._wait(min(left, _LOOK_S))
        self._stats.blocked_ms += (time.monotonic() - began) * 1000
        self.check_open()

    def block_deadline(self, *, may_block: bool) -> float:
        """Until when a `send` that begins now may wait, on the monotonic clock in seconds."""
        return time.monotonic() + self._max_block_ms / 1000 if may_block else float("-inf")

    def full(self, nbytes: int) -> BufferFull:
        return BufferFull(
            f"the producer's buffer has no room for {nbytes:,} more bytes: {self._stats.buffered_bytes:,} of "
            f"{self._max_bytes:,} (max_buffered_bytes) wait for their acknowledgement; waited up to "
            f"{self._max_block_ms:,} ms (max_block_ms)"
        )

    def release(self, nbytes: int) -> None:
        """*lock held* Gives room back."""
        self._stats.buffered_bytes -= nbytes
        if self._waiters:
            self._changed.notify_all()

    def reserve(self, nbytes: int, *, may_block: bool) -> None:
        """Takes room for `nbytes`, waiting for it. Raises BufferFull, Closed."""
        with self.lock:
            self.check_open()
            deadline: float | None = None
            while not self.try_reserve(nbytes):
                if deadline is None:
                    deadline = self.block_deadline(may_block=may_block)
                self.wait_for_room(nbytes, deadline)

    def close(self, why: str) -> None:
        """Nothing more is taken; why, is what was said first."""
        with self.lock:
            self.closed = self.closed or why
            self._changed.notify_all()

    def _wait(self, timeout_s: float) -> None:
        self._waiters += 1
        try:
            self._changed.wait(timeout_s)
        finally:
            self._waiters -= 1

    def check_open(self) -> None:
        if self.closed is not None:
            raise Closed(self.closed)

    # Deliveries -----------------------------------------------------------------------------------------------------

    def owe(self, delivery: Unsettled) -> None:
        """*lock held* Takes note of something that was handed over."""
        self._unsettled[delivery] = None

    def settled(self, delivery: Unsettled) -> None:
        """*lock held* Every record of it is acknowledged or failed."""
        self._unsettled.pop(delivery, None)
        if self._waiters:
            self._changed.notify_all()

    def unsettled(self) -> list[Unsettled]:
        """What is on its way now."""
        with self.lock:
            return list(self._unsettled)

    def wait_settled(self, deliveries: list[Unsettled], deadline: float | None) -> int:
        """Waits until all of them are settled. Returns how many of their records are not, when time runs out."""
        with self.lock:
            while any(delivery in self._unsettled for delivery in deliveries):
                left = _LOOK_S if deadline is None else min(deadline - time.monotonic(), _LOOK_S)
                if left <= 0:
                    return sum(delivery.open_records for delivery in deliveries if delivery in self._unsettled)
                self._wait(left)
        return 0

    # Failures -------------------------------------------------------------------------------------------------------

    def failed(self, topic: str, partition: int, count: int, error: BaseException) -> Failure:
        """*lock held* Takes note of records that failed, until somebody sees them."""
        key = (topic, partition, type(error).__name__)
        failure = self._failures.get(key)
        if failure is None:
            failure = self._failures[key] = Failure(topic, partition, 0, error)
        failure.count += count
        self._stats.errors += count
        return failure

    def take_failures(self) -> list[Failure]:
        """The failures that nobody has seen; from now on they are seen."""
        with self.lock:
            failures = [Failure(f.topic, f.partition, f.count, f.error) for f in self._failures.values() if f.count > 0]
            self._failures.clear()
        return failures

    def raise_failures(self) -> None:
        """Raises DeliveryFailed for failures that nobody has seen."""
        failures = self.take_failures()
        if failures:
            raise delivery_failed(failures)


def delivery_failed(failures: list[Failure], **details: Any) -> DeliveryFailed:
    """One error for many records. `.failures` lists (topic, partition, count, error)."""
    count = sum(failure.count for failure in failures)
    topics = ", ".join(sorted({failure.topic for failure in failures}))
    first = failures[0].error
    records = "1 record" if count == 1 else f"{count:,} records"
    error = DeliveryFailed(
        f"{records} for {topics} could not be delivered: {type(first).__name__}: {first}",
        failures=tuple((f.topic, f.partition, f.count, f.error) for f in failures),
        **details,
    )
    error.__cause__ = first if isinstance(first, RaystreamError) else None
    return error
