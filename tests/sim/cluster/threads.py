"""What `threading` and `time` are inside a simulated world: threads that are scheduled by its seed, and its clocks."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Self

import greenlet

from tests.sim.cluster.kernel import Kernel, Waiter

_names = itertools.count()


class Lock:
    """As threading.Lock; first come, first served."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._held = False
        self._waiting: deque[Waiter] = deque()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if not self._held:
            self._held = True
            return True
        if not blocking:
            return False
        waiter = Waiter(self._kernel)
        self._waiting.append(waiter)
        return waiter.wait(None if timeout < 0 else timeout)  # who wakes hands the lock over

    def release(self) -> None:
        while self._waiting:
            if self._waiting.popleft().wake():
                return
        self._held = False

    def locked(self) -> bool:
        return self._held

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class RLock:
    """As threading.RLock."""

    def __init__(self, kernel: Kernel) -> None:
        self._lock = Lock(kernel)
        self._owner: greenlet.greenlet | None = None
        self._depth = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        me = greenlet.getcurrent()
        if self._owner is not me:
            if not self._lock.acquire(blocking, timeout):
                return False
            self._owner = me
        self._depth += 1
        return True

    def release(self) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._owner = None
            self._lock.release()

    def let_go(self) -> int:
        depth, self._depth, self._owner = self._depth, 0, None
        self._lock.release()
        return depth

    def take_back(self, depth: int) -> None:
        self._lock.acquire()
        self._owner, self._depth = greenlet.getcurrent(), depth

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class Condition:
    """As threading.Condition."""

    def __init__(self, kernel: Kernel, lock: Any = None) -> None:
        self._kernel = kernel
        self._lock = RLock(kernel) if lock is None else lock
        self._waiting: deque[Waiter] = deque()
        self.acquire, self.release = self._lock.acquire, self._lock.release

    def wait(self, timeout: float | None = None) -> bool:
        waiter = Waiter(self._kernel)
        self._waiting.append(waiter)
        depth = self._lock.let_go() if isinstance(self._lock, RLock) else self._lock.release()
        try:
            return waiter.wait(timeout)
        finally:
            if isinstance(self._lock, RLock):
                self._lock.take_back(depth)
            else:
                self._lock.acquire()

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        end_s = None if timeout is None else self._kernel.now_s + timeout
        while not (result := predicate()):
            left_s = None if end_s is None else end_s - self._kernel.now_s
            if left_s is not None and left_s <= 0:
                break
            self.wait(left_s)
        return result

    def notify(self, n: int = 1) -> None:
        while n > 0 and self._waiting:
            n -= self._waiting.popleft().wake()

    def notify_all(self) -> None:
        self.notify(len(self._waiting))

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class Event:
    """As threading.Event."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._set = False
        self._waiting: list[Waiter] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.wake()

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        if not self._set and (timeout is None or timeout > 0):
            waiter = Waiter(self._kernel)
            self._waiting.append(waiter)
            return waiter.wait(timeout) or self._set
        return self._set


class Semaphore:
    """As threading.Semaphore, and BoundedSemaphore."""

    def __init__(self, kernel: Kernel, value: int = 1) -> None:
        self._free = value
        self._changed = Condition(kernel)

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        with self._changed:
            if blocking:
                self._changed.wait_for(lambda: self._free > 0, timeout)
            if self._free == 0:
                return False
            self._free -= 1
            return True

    def release(self, n: int = 1) -> None:
        with self._changed:
            self._free += n
            self._changed.notify(n)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class Thread:
    """As threading.Thread."""

    def __init__(
        self,
        kernel: Kernel,
        target: Callable[..., Any],
        name: str | None = None,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        daemon: bool | None = None,
    ) -> None:
        self._kernel = kernel
        self._run: Callable[[], Any] = lambda: target(*args, **(kwargs or {}))
        self.name = name or f"thread-{next(_names)}"
        self.daemon = daemon
        self._started = False
        self._ended = Event(kernel)
        self.ident: int | None = None

    def start(self) -> None:
        self._started = True
        self._thread = self._kernel.thread(self._body)
        self.ident = id(self._thread)

    def _body(self) -> None:
        self._kernel.thread_objects[greenlet.getcurrent()] = self
        self._run()
        self._ended.set()

    def is_alive(self) -> bool:
        return self._started and not self._ended.is_set()

    def join(self, timeout: float | None = None) -> None:
        self._ended.wait(timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def threading_of(kernel: Kernel) -> Any:
    """The module `threading` of a world."""
    main = SimpleNamespace(name="main", ident=0)

    def bound(kind: Any) -> Any:
        return lambda *args, **kwargs: kind(kernel, *args, **kwargs)

    return SimpleNamespace(
        Lock=bound(Lock),
        RLock=bound(RLock),
        Condition=bound(Condition),
        Event=bound(Event),
        Semaphore=bound(Semaphore),
        BoundedSemaphore=bound(Semaphore),
        Thread=bound(Thread),
        current_thread=lambda: kernel.thread_objects.get(greenlet.getcurrent(), main),
        main_thread=lambda: main,
        get_ident=lambda: id(greenlet.getcurrent()),
    )


EPOCH_S = 1_700_000_000
"""The wall clock of a world begins here."""


def time_of(kernel: Kernel) -> Any:
    """The module `time` of a world: clocks are those of the machine that asks, whose wall clock may jump."""

    def monotonic() -> float:
        machine = kernel.process().machine
        return kernel.now_s + (machine.clock_offset_s if machine is not None else 0.0)

    def wall() -> float:
        machine = kernel.process().machine
        return EPOCH_S + kernel.now_s + (machine.wall_offset_s if machine is not None else 0.0)

    return SimpleNamespace(
        monotonic=monotonic,
        monotonic_ns=lambda: int(monotonic() * 1e9),
        perf_counter=monotonic,
        perf_counter_ns=lambda: int(monotonic() * 1e9),
        time=wall,
        time_ns=lambda: int(wall() * 1e9),
        clock_gettime_ns=lambda _: int(monotonic() * 1e9),
        sleep=kernel.sleep,
    )
