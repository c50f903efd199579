"""A share group's member with coroutines, thin over the synchronous one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Self

from raystream.types import Record

if TYPE_CHECKING:
    from raystream.client.delivered import Batch
    from raystream.client.share_consumer import ShareConsumer as SyncShareConsumer
    from raystream.client.share_consumer import Word


class ShareConsumer:
    """`raystream`'s share consumer with coroutines: `async for record in consumer`. `.sync` is the consumer itself."""

    def __init__(self, consumer: SyncShareConsumer) -> None:
        self.sync = consumer

    def __aiter__(self) -> AsyncIterator[Record]:
        return self.sync.__aiter__()

    async def poll(self, timeout: float | None = 1.0) -> Batch | None:
        """As `poll` of the consumer."""
        return await self.sync.poll_async(timeout)

    async def batches(self) -> AsyncIterator[Batch]:
        """As `batches` of the consumer."""
        while (batch := await self.sync.poll_async(None)) is not None:
            yield batch

    def acknowledge(self, what: Record | Batch, word: Word = "accept") -> None:
        """As `acknowledge` of the consumer: it never waits."""
        self.sync.acknowledge(what, word)

    def renew(self, what: Record | Batch) -> None:
        """As `renew` of the consumer: it never waits."""
        self.sync.renew(what)

    def deliveries(self, record: Record) -> int:
        """As `deliveries` of the consumer."""
        return self.sync.deliveries(record)

    async def commit(self) -> None:
        """As `commit` of the consumer."""
        await asyncio.to_thread(self.sync.commit)

    def stop(self) -> None:
        """As `stop` of the consumer."""
        self.sync.stop()

    async def close(self, *, processed: bool | None = None) -> None:
        """As `close` of the consumer."""
        await asyncio.to_thread(self.sync.close, processed=processed)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.sync.__exit__, kind, error, trace)
