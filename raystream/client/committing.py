"""A commit that is on its way."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Generator
from typing import Any

from raystream.errors import RequestTimeout


class Committing:
    """What `consumer.commit_async()` and `producer.commit_transaction(wait=False)` return: wait for it with `result()`,
    or `await` it. Thread-safe."""

    def __init__(self, future: concurrent.futures.Future[None]) -> None:
        self._future = future

    def done(self) -> bool:
        """Whether the coordinator has answered, one way or the other."""
        return self._future.done()

    def result(self, timeout: float | None = None) -> None:
        """Returns when what is committed is durable. Raises what waiting for the commit at once would have raised, and
        RequestTimeout after `timeout` seconds; the commit goes on then."""
        try:
            self._future.result(timeout)
        except concurrent.futures.TimeoutError:
            if self._future.done():
                raise
            raise RequestTimeout(f"the commit is not answered after {timeout} s") from None

    def __await__(self) -> Generator[Any, None, None]:
        return asyncio.wrap_future(self._future).__await__()
