"""How a partition actor reaches other actors: one event loop for all its replicas, started with the first call.

What comes of a call is handed to the writer, so that the replicas' state keeps its one owner.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Final

import pyarrow as pa

from raystream import messages as m
from raystream.actors.connections import Shortcut
from raystream.actors.handles import call, shortcut_to
from raystream.actors.launch import CONTROL, REPLICATE, find_actor
from raystream.actors.leading import Then
from raystream.actors.pipes import Pipes
from raystream.client.loop import BackgroundLoop
from raystream.config import INLINE_LIMIT_BYTES
from raystream.errors import ActorLost, RaystreamError, RequestTimeout
from raystream.storage.stored import Stored

logger = logging.getLogger("raystream.partition")

FIND_TIMEOUT_S: Final = 5.0


class RayOutbox:
    """An `Outbox` over Ray. `later` hands work to the writer."""

    def __init__(self, namespace: str, later: Callable[[Callable[[], None]], None]) -> None:
        self._namespace = namespace
        self._later = later
        self._loop: BackgroundLoop | None = None
        self._handles: dict[str, Any] = {}
        self._shortcuts: dict[str, Shortcut] = {}
        self._pipes: dict[str, Pipes] = {}

    def replicate(
        self, actor: str, request: m.ReplicateRequest, batches: bytes | Stored, timeout_ms: float, then: Then
    ) -> None:
        pipes = self._pipes.get(actor)
        if pipes is not None and pipes.lost:
            del self._pipes[actor]
        elif pipes is not None:

            def answered(result: Any, failure: Exception | None) -> None:
                self._hand_over(lambda: then(result, failure))

            if pipes.call("replicate", request, batches, timeout_ms, answered):
                return
        self._begin(self._replicate(actor, request, batches, timeout_ms), then)

    def alter_isr(self, broker: str, request: m.AlterIsrRequest, timeout_ms: float, then: Then) -> None:
        self._begin(self._call(broker, "alter_isr", CONTROL, (request,), timeout_ms), then)

    def beside(self, work: Callable[[], Any], then: Then) -> None:
        self._begin(asyncio.to_thread(work), then)

    def stop(self) -> None:
        """Ends what is under way."""
        for pipes in self._pipes.values():
            pipes.close()
        if self._loop is not None:
            self._loop.stop()

    def _begin(self, work: Coroutine[Any, Any, Any], then: Then) -> None:
        if self._loop is None:
            self._loop = BackgroundLoop("raystream-outbox")

        async def run() -> None:
            result: Any = None
            failure: Exception | None = None
            try:
                result = await work
            except Exception as error:
                failure = error
                if not isinstance(error, RaystreamError):
                    logger.exception("a call to another actor failed")
            self._hand_over(lambda: then(result, failure))

        try:
            self._loop.submit(run())
        except RaystreamError:
            work.close()

    def _hand_over(self, work: Callable[[], None]) -> None:
        try:
            self._later(work)
        except RaystreamError as error:  # the writer is stopping, or its queue is full: as if the answer was lost
            logger.info("an answer is lost: %s", error)

    async def _replicate(
        self, actor: str, request: m.ReplicateRequest, batches: bytes | Stored, timeout_ms: float
    ) -> Any:
        """Through the follower's endpoint where it is on this machine."""
        if isinstance(batches, Stored):
            batches = await asyncio.to_thread(batches.read)
        shortcut = self._shortcuts.get(actor)
        if shortcut is None:
            shortcut = self._shortcuts[actor] = shortcut_to(await self._handle(actor))
        if (direct := shortcut.current()) is not None:
            self._pipes.setdefault(actor, Pipes(direct.address))
            return await direct.call("replicate", request, batches, timeout_ms=timeout_ms)
        payload = batches if len(batches) <= INLINE_LIMIT_BYTES else pa.py_buffer(batches)
        return await self._call(actor, "replicate", REPLICATE, (request, payload), timeout_ms)

    async def _call(self, actor: str, method: str, group: str, arguments: tuple[Any, ...], timeout_ms: float) -> Any:
        handle = await self._handle(actor)
        try:
            return await call(
                getattr(handle, method).options(concurrency_group=group), *arguments, timeout_ms=timeout_ms
            )
        except ActorLost:
            self._handles.pop(actor, None)
            self._shortcuts.pop(actor, None)
            raise

    async def _handle(self, actor: str) -> Any:
        handle = self._handles.get(actor)
        if handle is None:
            handle = self._handles[actor] = await self._find(actor)
        return handle

    async def _find(self, actor: str) -> Any:
        # Ray looks names up without a deadline
        try:
            async with asyncio.timeout(FIND_TIMEOUT_S):
                return await asyncio.to_thread(find_actor, actor, self._namespace)
        except TimeoutError:
            raise RequestTimeout(f"Ray did not look up the actor {actor!r} within {FIND_TIMEOUT_S:.0f} s") from None
