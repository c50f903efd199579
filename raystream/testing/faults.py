"""Breaking things on a schedule while a workload runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from raystream.testing.history import Recorder

STOP_WAIT_S = 60.0


@dataclass(frozen=True)
class Fault:
    """Something to break: `inject()` is called every `every_s` seconds, at first after `first_s` (default `every_s`).

    It returns once the fault is there (and healed, where it heals by itself); what it raises goes to `failures`.
    """

    name: str
    inject: Callable[[], object]
    every_s: float
    first_s: float | None = None


class FaultSchedule:
    """Injects faults one at a time from a thread of its own, between `start` and `stop`; a context manager.

    A fault that is due while another runs comes after it. With a recorder each becomes two operations of kind
    `fault`, which the checker only counts.
    """

    def __init__(self, faults: Sequence[Fault], recorder: Recorder | None = None, process: str = "faults") -> None:
        self._faults = list(faults)
        self._recorder = recorder
        self._process = process
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="faults", daemon=True)
        self.injected: list[str] = []
        """The names of the faults so far, in order."""
        self.failures: list[Exception] = []

    def start(self) -> None:
        """Begins to count the periods."""
        self._thread.start()

    def stop(self) -> None:
        """Waits for a fault that is under way; none comes after it."""
        self._stop.set()
        self._thread.join(STOP_WAIT_S)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        begun = time.monotonic()
        due = [begun + (fault.every_s if fault.first_s is None else fault.first_s) for fault in self._faults]
        while due:
            place = min(range(len(due)), key=due.__getitem__)
            if self._stop.wait(max(due[place] - time.monotonic(), 0)):
                return
            fault = self._faults[place]
            self._inject(fault)
            due[place] = max(due[place] + fault.every_s, time.monotonic())

    def _inject(self, fault: Fault) -> None:
        if self._recorder is not None:
            self._recorder.invoke(self._process, "fault", value=fault.name)
        error = None
        try:
            fault.inject()
        except Exception as raised:  # noqa: BLE001 - whatever a fault raises, the run goes on
            self.failures.append(raised)
            error = repr(raised)
        self.injected.append(fault.name)
        if self._recorder is not None:
            self._recorder.info(self._process, "fault", value=fault.name, error=error)
