"""One owner at a time for some state: calls enqueue and wait, the owner takes all that has queued and answers each.

What queues while the owner works is handled together in the next round; that is what makes a group commit. The owner
is the writer's thread, or, where nobody is at work, the caller itself: that saves two changes of thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from raystream.errors import ActorLost, Overloaded, RequestTimeout

LONGEST_IDLE_MS: Final = 1_000.0
"""What was decided on a caller's thread may have brought a deadline nearer, and nobody woke the writer for it."""

Work = TypeVar("Work")


class Ticket(Generic[Work]):
    """One call's place in the queue. Exactly one of `answer` and `fail` counts; later ones are ignored."""

    __slots__ = ("_done", "_error", "_result", "work")

    def __init__(self, work: Work) -> None:
        self.work = work
        self._done = threading.Event()
        self._result: Any = None
        self._error: BaseException | None = None

    def answer(self, result: Any) -> None:
        if not self._done.is_set():
            self._result = result
            self._done.set()

    def fail(self, error: BaseException) -> None:
        if not self._done.is_set():
            self._error = error
            self._done.set()

    @property
    def settled(self) -> bool:
        return self._done.is_set()

    def wait(self, timeout_ms: float) -> Any:
        """The answer. Raises the failure, or RequestTimeout: the outcome is unknown."""
        if not self._done.wait(timeout_ms / 1000):
            raise RequestTimeout(f"the actor did not get to the call within {timeout_ms:.0f} ms")
        if self._error is not None:
            raise self._error
        return self._result


class Writer(Generic[Work]):
    """The thread and its bounded queue. `handle(tickets)` runs alone, with [] when only `idle_ms` passed."""

    def __init__(
        self,
        name: str,
        handle: Callable[[list[Ticket[Work]]], None],
        *,
        idle_ms: Callable[[], float | None] = lambda: None,
        max_queued: int = 4096,
        broken: Callable[[BaseException], None],
    ) -> None:
        self._handle = handle
        self._idle_ms = idle_ms
        self._broken = broken
        self._max_queued = max_queued
        self._queue: list[Ticket[Work]] = []
        self._wake = threading.Condition()
        self._stopped = False
        self._turn = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, work: Work, *, here: bool = False) -> Ticket[Work]:
        """Queues `work`; with `here`, handles it on the calling thread if nobody is at work.

        Raises Overloaded at the bound, ActorLost after `stop`.
        """
        ticket = Ticket(work)
        mine = here and self._thread.is_alive() and self._turn.acquire(blocking=False)
        try:
            self._enqueue(ticket, wake=not mine)
            if mine:
                self._round()
        finally:
            if mine:
                self._turn.release()
        if mine and self._queue:  # it came while we worked: the thread's turn, so that our caller need not wait
            with self._wake:
                self._wake.notify()
        return ticket

    def _enqueue(self, ticket: Ticket[Work], *, wake: bool) -> None:
        with self._wake:
            if self._stopped:
                raise ActorLost("the actor is stopping")
            if len(self._queue) >= self._max_queued:
                raise Overloaded(f"{self._max_queued} calls are waiting in the actor")
            self._queue.append(ticket)
            if wake:
                self._wake.notify()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Handles what has queued, then ends the thread."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            with self._turn:  # what it asks for belongs to the owner of the turn
                idle_ms = self._ask_idle_ms()
            with self._wake:
                if not self._queue and not self._stopped:
                    self._wake.wait(idle_ms / 1000)
                if not self._queue and self._stopped:
                    return
            with self._turn:
                self._round()

    def _ask_idle_ms(self) -> float:
        try:
            idle_ms = self._idle_ms()
        except BaseException as error:
            self._break(error, [])
            return 0.0
        return LONGEST_IDLE_MS if idle_ms is None else min(max(idle_ms, 0.0), LONGEST_IDLE_MS)

    def _round(self) -> None:
        """Handles everything that has queued. A handler that raises ends the writer."""
        with self._wake:
            tickets, self._queue = self._queue, []
        try:
            self._handle(tickets)
        except BaseException as error:
            self._break(error, tickets)

    def _break(self, error: BaseException, tickets: list[Ticket[Work]]) -> None:
        with self._wake:
            self._stopped = True
            left, self._queue = self._queue, []
        for ticket in [*tickets, *left]:
            ticket.fail(ActorLost("the actor stopped"))
        self._broken(error)
