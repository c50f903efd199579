"""The event loop that a process's clients share: coroutines run on it, user threads wait for them.

The simulator needs none of this: it awaits the same coroutines on a loop with its own clock.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from raystream.errors import Closed, RequestTimeout

T = TypeVar("T")


class BackgroundLoop:
    """An asyncio loop on a daemon thread. Thread-safe."""

    def __init__(self, name: str = "raystream-client") -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    @property
    def asyncio_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def is_current(self) -> bool:
        """Whether the caller is on the loop's own thread, where waiting would wait for ever."""
        return threading.current_thread() is self._thread

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Starts `work` on the loop. Raises Closed after `stop`."""
        if not self._thread.is_alive():
            work.close()
            raise Closed("the connection to the cluster is closed")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Runs `work` on the loop and waits for it. An interrupt or a timeout cancels it."""
        future = self.submit(work)
        try:
            return future.result(timeout_s)
        except concurrent.futures.TimeoutError as error:
            if future.done():
                raise
            future.cancel()
            raise RequestTimeout(f"no answer within {timeout_s} s") from error
        except BaseException:
            future.cancel()
            raise

    def stop(self, timeout_s: float = 2.0) -> None:
        """Cancels what still runs and ends the thread."""
        if not self._thread.is_alive():
            return
        asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop)
        if not self.is_current():
            self._thread.join(timeout_s)

    async def _cancel_all(self) -> None:
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        self._loop.call_soon(self._loop.stop)
