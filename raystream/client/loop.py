"""The event loop that a process's clients share: coroutines run on it, user threads wait for them.

The simulator needs none of this: it awaits the same coroutines on a loop with its own clock.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from raystream.errors import Closed, RequestTimeout

T = TypeVar("T")

LONGEST_WAIT_S: Final = 0.25
"""A signal that comes just before a thread begins to wait does not wake it: so no wait of a user's thread is longer."""


class BackgroundLoop:
    """An asyncio loop on a daemon thread. Thread-safe."""

    def __init__(self, name: str = "raystream-client") -> None:
        self._loop = asyncio.new_event_loop()
        self._stopping = False
        self._failure: Exception | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._cancel_others())  # what the cancelled have started
            self._loop.close()

    @property
    def stopped(self) -> bool:
        return self._stopping

    @property
    def asyncio_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def is_current(self) -> bool:
        """Whether the caller is on the loop's own thread, where waiting would wait for ever."""
        return threading.current_thread() is self._thread

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Starts `work` on the loop. Raises Closed after `stop`."""
        with self._lock:
            if not self._stopping:
                return asyncio.run_coroutine_threadsafe(work, self._loop)
        work.close()
        raise Closed("the connection to the cluster is closed")

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Runs `work` on the loop and waits for it. An interrupt or a timeout cancels it."""
        return self.wait(self.submit(work), timeout_s)

    def wait(self, future: concurrent.futures.Future[T], timeout_s: float | None = None) -> T:
        """The result of what was submitted. An interrupt or a timeout cancels it."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            while not future.done():
                if self._failure is not None:
                    raise self._failure
                left_s = LONGEST_WAIT_S if deadline is None else deadline - time.monotonic()
                if left_s <= 0:
                    future.cancel()
                    raise RequestTimeout(f"no answer within {timeout_s} s")
                concurrent.futures.wait((future,), min(left_s, LONGEST_WAIT_S))
            return future.result()
        except concurrent.futures.CancelledError:
            raise Closed("the connection to the cluster was closed meanwhile") from None
        except BaseException:
            future.cancel()
            raise

    def abort(self, failure: Exception) -> None:
        """Whoever waits for the loop, now or later, gets `failure`: the cluster behind it is gone."""
        self._failure = failure

    def stop(self, timeout_s: float = 2.0) -> None:
        """Cancels what still runs and ends the thread."""
        with self._lock:
            if not self._stopping:
                self._stopping = True
                asyncio.run_coroutine_threadsafe(self._end(), self._loop)
        if not self.is_current():
            self._thread.join(timeout_s)

    async def _end(self) -> None:
        await self._cancel_others()
        self._loop.call_soon(self._loop.stop)

    async def _cancel_others(self) -> None:
        await asyncio.sleep(0)  # what other threads have submitted becomes a task first
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
