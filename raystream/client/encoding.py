"""Batches are encoded on the loop, or, where that takes long, by threads."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from raystream.client.pipeline import Batch, encodes_long

ENCODERS: Final = 2


class Encoders:
    """One producer's threads, which begin with the first large batch."""

    def __init__(self) -> None:
        self._threads: ThreadPoolExecutor | None = None

    async def encode(self, batch: Batch, *arguments: Any) -> None:
        """As `batch.encode(*arguments)`."""
        if not encodes_long(batch.nbytes):
            batch.encode(*arguments)
            return
        if self._threads is None:
            self._threads = ThreadPoolExecutor(ENCODERS, thread_name_prefix="raystream-encode")
        try:
            work = asyncio.get_running_loop().run_in_executor(self._threads, batch.encode, *arguments)
        except RuntimeError:  # the interpreter is shutting down: no thread will run it
            batch.encode(*arguments)
        else:
            await work

    def stop(self) -> None:
        """Ends the threads, after what they have in hand."""
        if self._threads is not None:
            self._threads.shutdown(wait=False)
