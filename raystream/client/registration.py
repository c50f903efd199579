"""Which partitions the coordinator has written down as those of a producer's open transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from raystream.client.pipeline import Pipeline
from raystream.errors import RaystreamError


class Registration:
    """On the loop. `tell` has partitions written down, `then` is called for each of them once that is done, `failed`
    where it cannot be; `ended` when nothing is left to tell."""

    def __init__(
        self,
        spawn: Callable[[Coroutine[Any, Any, None]], object],
        tell: Callable[[Iterable[Pipeline]], Coroutine[Any, Any, None]],
        *,
        then: Callable[[Pipeline], None],
        failed: Callable[[RaystreamError], None],
        ended: Callable[[], None],
    ) -> None:
        self._spawn = spawn
        self._tell = tell
        self._then = then
        self._failed = failed
        self._ended = ended
        self._registered: set[tuple[str, int]] = set()
        self._wanted: dict[tuple[str, int], Pipeline] = {}
        self.under_way = False
        """Whether the coordinator is being told."""

    def has(self, pipeline: Pipeline) -> bool:
        """Whether its partition is written down."""
        return pipeline.place in self._registered

    def want(self, pipeline: Pipeline) -> None:
        """Has its partition written down, with all those that come up meanwhile."""
        if not self.has(pipeline):
            self._wanted[pipeline.place] = pipeline
            if not self.under_way:
                self.under_way = True
                self._spawn(self._run())

    def begin(self) -> None:
        """Another transaction, which has none so far."""
        self._registered.clear()
        self._wanted.clear()

    def cancelled(self) -> None:
        """Whoever was telling the coordinator does so no more, and may not have come to its first step."""
        self.under_way = False

    async def _run(self) -> None:
        try:
            while self._wanted:
                await asyncio.sleep(0)
                wanted, self._wanted = self._wanted, {}
                await self._tell(wanted.values())
                self._registered.update(wanted)
                for pipeline in wanted.values():
                    self._then(pipeline)
        except RaystreamError as error:
            self._failed(error)
        finally:
            self.under_way = False
            self._ended()
