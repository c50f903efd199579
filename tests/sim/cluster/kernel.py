"""The seeded scheduler: an event loop whose time only moves when nothing is left to do, and processes on it.

Everything that runs belongs to a `Process`, by a context variable that coroutines, callbacks and threads inherit. What
belongs to a dead process never runs again, with no `finally` and no last message; what belongs to a paused one runs
when it is resumed.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
from collections.abc import Callable, Iterator
from typing import Any, Final, Self

import greenlet

from tests.sim.world import Violation

SHORTEST_S: Final = 1e-6
"""A wait takes at least so long: time always goes on."""
MAX_EVENTS: Final = 3_000_000
"""A run that takes more is going round in circles."""


class Process:
    """A simulated process. `clock_offset_s` is what its machine's clock shows more than the simulation's."""

    def __init__(self, kernel: Kernel, name: str, pid: int, machine: Any = None) -> None:
        self.kernel = kernel
        self.name = name
        self.pid = pid
        self.machine = machine
        self.alive = True
        self.paused = False
        self.backlog: list[_Event] = []
        self._when_gone: list[tuple[Process, Callable[[], None]]] = []

    def __repr__(self) -> str:
        return f"{self.name} (pid {self.pid})"

    def kill(self) -> None:
        """SIGKILL."""
        if not self.alive:
            return
        self.alive, self.paused, self.backlog = False, False, []
        watchers, self._when_gone = self._when_gone, []
        for watcher, then in watchers:
            with watcher.current():
                self.kernel.call_later(self.kernel.rng.uniform(0.001, 0.02), then)

    def when_gone(self, then: Callable[[], None]) -> None:
        """`then` is called in the asking process soon after this one's death."""
        watcher = self.kernel.process()
        if self.alive:
            self._when_gone.append((watcher, then))
        else:
            self.kernel.call_later(0.001, then)

    def pause(self) -> None:
        """SIGSTOP."""
        self.paused = self.alive

    def resume(self) -> None:
        """SIGCONT: what should have run meanwhile runs now."""
        self.paused = False
        backlog, self.backlog = self.backlog, []
        for event in backlog:
            if not event.cancelled():
                with self.current():
                    self.kernel.call_soon(event.callback, *event.arguments, context=event.context)

    @contextlib.contextmanager
    def current(self) -> Iterator[Self]:
        """What is begun inside belongs to this process."""
        token = _PROCESS.set(self)
        try:
            yield self
        finally:
            _PROCESS.reset(token)


class _Event:
    """A callback as the loop has it; it outlives its handle where its process is paused."""

    __slots__ = ("arguments", "callback", "context", "handle", "process")

    def __init__(self, process: Process, callback: Any, arguments: tuple[Any, ...], context: Any) -> None:
        self.process = process
        self.callback = callback
        self.arguments = arguments
        self.context = context
        self.handle: asyncio.Handle | None = None

    def cancelled(self) -> bool:
        return self.handle is not None and self.handle.cancelled()

    def __call__(self) -> None:
        process = self.process
        if process.paused:
            process.backlog.append(self)
        elif process.alive:
            process.kernel.count()
            self.callback(*self.arguments)


_PROCESS: contextvars.ContextVar[Process] = contextvars.ContextVar("process")


class _NoInput:
    """A selector for a loop without files: to wait is to let time pass."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Violation("nothing will ever happen again")
        self._kernel.now_s += max(timeout, 0.0)
        return []


class Kernel(asyncio.BaseEventLoop):
    """The event loop of a world. Simulated time is in seconds and begins at 0."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.rng = random.Random(seed)
        self.now_s = 0.0
        self.events = 0
        self.hub = greenlet.getcurrent()
        self.failure: BaseException | None = None
        self.threads: list[greenlet.greenlet] = []
        """Kept to the end: a thread that is collected would run its `finally` blocks."""
        self.thread_objects: dict[greenlet.greenlet, Any] = {}
        self._selector = _NoInput(self)
        self._clock_resolution = 1e-9
        self._pids = 100
        self.processes: dict[int, Process] = {}
        self.init = self.spawn_process("init")
        self.set_exception_handler(self._failed)

    def spawn_process(self, name: str, machine: Any = None) -> Process:
        """A new process, with nothing in it yet."""
        self._pids += 1
        process = self.processes[self._pids] = Process(self, name, self._pids, machine)
        return process

    def process(self) -> Process:
        """The one that is running."""
        return _PROCESS.get(self.init)

    def count(self) -> None:
        """One more event has happened."""
        self.events += 1
        if self.events > MAX_EVENTS:
            raise Violation(f"{MAX_EVENTS:,} events and no end")

    def run(self, main: Callable[[], None]) -> None:
        """Runs the world until `main`, a thread of the first process, has returned. Raises what went wrong."""

        def body() -> None:
            main()
            self.stop()

        with self.init.current():
            self.thread(body)
        self.run_forever()
        if self.failure is not None:
            raise self.failure

    def fail(self, error: BaseException) -> None:
        """Ends the run with an error: the first one counts."""
        if self.failure is None:
            self.failure = error
        self.stop()

    def _failed(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if error is not None and "never retrieved" not in context["message"]:
            self.fail(error)

    # The event loop -------------------------------------------------------------------------------------------------

    def time(self) -> float:
        return self.now_s

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:  # type: ignore[override]
        event = self._event(callback, args, context)
        event.handle = super().call_soon(event, context=context)
        return event.handle

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        event = self._event(callback, args, context)
        handle = super().call_at(when, event, context=context)
        event.handle = handle
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def _event(self, callback: Any, args: tuple[Any, ...], context: Any) -> _Event:
        process = _PROCESS.get(self.init) if context is None else context.get(_PROCESS, self.init)
        return _Event(process, callback, args, context)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:  # type: ignore[override]
        """On a thread of its own."""
        future = self.create_future()

        def work() -> None:
            try:
                result = func(*args)
            except Exception as error:
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(result)

        self.call_later(self.rng.uniform(0, 0.002), self.thread, work)
        return future

    def _process_events(self, event_list: list[Any]) -> None:
        pass

    def _write_to_self(self) -> None:
        pass

    # Threads --------------------------------------------------------------------------------------------------------

    def thread(self, body: Callable[[], None]) -> greenlet.greenlet:
        """Starts a thread of the current process."""
        process = self.process()

        def run() -> None:
            try:
                body()
            except greenlet.GreenletExit:
                raise
            except BaseException as error:
                if process.alive:
                    self.fail(error)

        thread = greenlet.greenlet(run, parent=self.hub)
        thread.gr_context = contextvars.copy_context()
        self.threads.append(thread)
        self.call_soon(thread.switch)
        return thread

    def in_thread(self) -> bool:
        """Whether the caller may wait: it is no coroutine and no callback."""
        return greenlet.getcurrent() is not self.hub

    def sleep(self, duration_s: float) -> None:
        """Waits on the calling thread."""
        Waiter(self).wait(duration_s)

    def stop_here(self) -> None:
        """The calling thread never goes on: its process has died under it."""
        if self.in_thread():
            self.hub.switch()
        raise asyncio.CancelledError


class Waiter:
    """One thread's one wait."""

    __slots__ = ("_context", "_kernel", "_over", "_thread", "_timer", "woken")

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._thread = greenlet.getcurrent()
        self._over = False
        self._timer: asyncio.TimerHandle | None = None
        self.woken = False
        if self._thread is kernel.hub:
            raise Violation("a coroutine waits as a thread would: it blocks its event loop")

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether it was woken, and not only the time was over."""
        self._context = contextvars.copy_context()
        if timeout_s is not None:
            self._timer = self._kernel.call_later(max(timeout_s, SHORTEST_S), self._resume)
        self._kernel.hub.switch()
        return self.woken

    def wake(self) -> bool:
        """False where it is over already."""
        if self.woken or self._over:
            return False
        self.woken = True
        self._kernel.call_soon(self._resume, context=self._context)
        return True

    def _resume(self) -> None:
        if not self._over:
            self._over = True
            if self._timer is not None:
                self._timer.cancel()
            self._thread.switch()
