"""What a fake coordinator is not asked."""

from __future__ import annotations

from raystream import messages as m


class WithoutTransactions:
    """Nobody begins a transaction."""

    async def add_partitions(self, request: m.AddPartitionsRequest, *, timeout_ms: float) -> m.Done:
        raise NotImplementedError

    async def end_transaction(self, request: m.EndTransactionRequest, *, timeout_ms: float) -> m.EndTransactionReply:
        raise NotImplementedError
