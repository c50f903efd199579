"""Transactions as coroutines: what `raystream.aio.Producer` has of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from raystream.aio import Consumer
    from raystream.client.committing import Committing
    from raystream.client.consumer import Consumer as SyncConsumer
    from raystream.client.delivered import Batch
    from raystream.client.producer import Producer as SyncProducer


class Transactions:
    """Calls of the producer's own thread, one after the other with what it sends."""

    sync: SyncProducer

    async def _send(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    @contextlib.asynccontextmanager
    async def transaction(self, *, wait: bool = True) -> AsyncIterator[Self]:
        """As `transaction` of the producer: `async with producer.transaction():`."""
        transaction = self.sync.transaction(wait=wait)
        await self._send(transaction.__enter__)
        try:
            yield self
        except BaseException as error:
            await self._send(transaction.__exit__, type(error), error, error.__traceback__)
            raise
        await self._send(transaction.__exit__, None, None, None)

    async def begin_transaction(self) -> None:
        """As `begin_transaction` of the producer."""
        await self._send(self.sync.begin_transaction)

    async def commit_transaction(self, *, wait: bool = True) -> Committing:
        """As `commit_transaction` of the producer; what it returns with `wait=False` can be awaited."""
        committing: Committing = await self._send(self.sync.commit_transaction, wait=wait)
        return committing

    async def abort_transaction(self) -> None:
        """As `abort_transaction` of the producer."""
        await self._send(self.sync.abort_transaction)

    async def commit_offsets(self, consumer: Consumer, batch: Batch | None = None) -> None:
        """As `commit_offsets` of the producer."""
        await self._send(self.sync.commit_offsets, consumer.sync, batch)


class Rewinding:
    """Going back after an abort."""

    sync: SyncConsumer

    async def rewind(self) -> None:
        """As `rewind` of the consumer."""
        await asyncio.to_thread(self.sync.rewind)
