"""The seeded scheduler: an event loop whose time only moves when nothing is left to do, and processes on it.

Everything that runs belongs to a `Process`, by a context variable that coroutines, callbacks and threads inherit. What
belongs to a dead process never runs again, with no `finally` and no last message; what belongs to a paused one runs
when it is resumed.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Any, Final

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
        self.backlog: list[Event] = []
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
        self.kernel.ready.extend(backlog)

    def current(self) -> _Current:
        """What is begun inside belongs to this process."""
        return _Current(self)


class _Current:
    __slots__ = ("_process", "_token")

    def __init__(self, process: Process) -> None:
        self._process = process

    def __enter__(self) -> Process:
        self._token = _PROCESS.set(self._process)
        return self._process

    def __exit__(self, *_: object) -> None:
        _PROCESS.reset(self._token)


class Event:
    """A callback that is due, and the handle by which it is cancelled. Without a context it runs in the loop's own."""

    __slots__ = ("arguments", "callback", "context", "process", "when_s")

    def __init__(
        self, process: Process, when_s: float, callback: Any, arguments: tuple[Any, ...], context: Any
    ) -> None:
        self.process = process
        self.when_s = when_s
        self.callback = callback
        self.arguments = arguments
        self.context = context

    def cancel(self) -> None:
        self.callback = self.context = None
        self.arguments = ()

    def cancelled(self) -> bool:
        return self.callback is None

    def when(self) -> float:
        return self.when_s


_PROCESS: contextvars.ContextVar[Process] = contextvars.ContextVar("process")


class Kernel(asyncio.BaseEventLoop):
    """The event loop of a world. Simulated time is in seconds and begins at 0.

    Most of a run's time goes through here, so that asyncio's own queues, handles and selector are left aside.
    """

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
        self.ready: deque[Event] = deque()
        self._timers: list[tuple[float, int, Event]] = []
        self._serial = 0
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

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Event:  # type: ignore[override]
        if context is None:
            context = contextvars.copy_context()
        event = Event(context.get(_PROCESS, self.init), self.now_s, callback, args, context)
        self.ready.append(event)
        return event

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> Event:
        if context is None:
            context = contextvars.copy_context()
        return self._at(Event(context.get(_PROCESS, self.init), when, callback, args, context))

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Any, *args: Any, context: Any = None
    ) -> Event:
        return self.call_at(self.now_s + delay, callback, *args, context=context)

    def _at(self, event: Event) -> Event:
        self._serial += 1  # of two at one time the first comes first
        heapq.heappush(self._timers, (event.when_s, self._serial, event))
        return event

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Any, *, name: str | None = None, context: Any = None
    ) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, name=name, context=context)

    def _run_once(self) -> None:
        """Everything up to the end: what is due, and then time goes on to what is due next."""
        ready, timers = self.ready, self._timers
        while not self._stopping:  # type: ignore[attr-defined]
            if ready:
                self._happen(ready.popleft())
            elif timers:
                when_s, _, event = heapq.heappop(timers)
                if event.callback is not None:
                    self.now_s = max(self.now_s, when_s)
                    self._happen(event)
            else:
                raise Violation("nothing will ever happen again")

    def _happen(self, event: Event) -> None:
        callback, process = event.callback, event.process
        if callback is None:
            return
        if process.paused:
            process.backlog.append(event)
        elif process.alive:
            self.events += 1
            if self.events > MAX_EVENTS:
                raise Violation(f"{MAX_EVENTS:,} events and no end")
            try:
                if event.context is None:
                    callback(*event.arguments)
                else:
                    event.context.run(callback, *event.arguments)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                self.fail(error)

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
        self.wake(process, thread.switch)
        return thread

    def wake(self, process: Process, switch: Callable[[], object]) -> None:
        """A thread of `process` goes on: it brings its own context."""
        self.ready.append(Event(process, self.now_s, switch, (), None))

    def wake_later(self, process: Process, delay_s: float, switch: Callable[[], object]) -> Event:
        """As `wake`, after a while."""
        return self._at(Event(process, self.now_s + delay_s, switch, (), None))

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

    __slots__ = ("_kernel", "_over", "_process", "_thread", "_timer", "woken")

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._thread = greenlet.getcurrent()
        self._process = kernel.process()
        self._over = False
        self._timer: Event | None = None
        self.woken = False
        if self._thread is kernel.hub:
            raise Violation("a coroutine waits as a thread would: it blocks its event loop")

    def wait(self, timeout_s: float | None = None) -> bool:
        """Whether it was woken, and not only the time was over."""
        if timeout_s is not None:
            self._timer = self._kernel.wake_later(self._process, max(timeout_s, SHORTEST_S), self._resume)
        self._kernel.hub.switch()
        return self.woken

    def wake(self) -> bool:
        """False where it is over already."""
        if self.woken or self._over:
            return False
        self.woken = True
        self._kernel.wake(self._process, self._resume)
        return True

    def _resume(self) -> None:
        if not self._over:
            self._over = True
            if self._timer is not None:
                self._timer.cancel()
            self._thread.switch()
