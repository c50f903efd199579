"""Time as a dependency: whoever needs it is handed a Clock, so that tests and the simulator can turn it by hand."""

from __future__ import annotations

import time
from typing import Protocol

_RUNS_WHILE_ASLEEP = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


class Clock(Protocol):
    """Wall time for records, monotonic time for waits and leases."""

    def now_ms(self) -> int:
        """Milliseconds since the epoch, UTC."""

    def monotonic_ms(self) -> float:
        """Milliseconds that never go back and run on while the machine sleeps."""

    def sleep_ms(self, duration_ms: float) -> None:
        """Waits on the calling thread."""


class SystemClock:
    """The machine's clocks."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic_ms(self) -> float:
        return time.clock_gettime_ns(_RUNS_WHILE_ASLEEP) / 1e6

    def sleep_ms(self, duration_ms: float) -> None:
        time.sleep(duration_ms / 1000)


class ManualClock:
    """A clock that moves when it is told to."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = now_ms
        self._monotonic_ms = 0.0

    def now_ms(self) -> int:
        return self._now_ms

    def monotonic_ms(self) -> float:
        return self._monotonic_ms

    def sleep_ms(self, duration_ms: float) -> None:
        self.advance(int(duration_ms))

    def advance(self, ms: int) -> None:
        """Moves both clocks forward by `ms` milliseconds."""
        self._now_ms += ms
        self._monotonic_ms += ms
