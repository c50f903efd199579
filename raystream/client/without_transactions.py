"""What a producer without a transactional id says to those who ask it for transactions."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from raystream.errors import InvalidTransactionState

if TYPE_CHECKING:
    from raystream.client.committing import Committing
    from raystream.client.consumer import Consumer
    from raystream.client.delivered import Batch
    from raystream.client.producer import Producer


class WithoutTransactions:
    """`TransactionalProducer` has what these names promise."""

    def transaction(self, *, wait: bool = True) -> AbstractContextManager[Producer]:
        """See `TransactionalProducer.transaction`."""
        raise _without()

    def begin_transaction(self) -> None:
        """See `TransactionalProducer.begin_transaction`."""
        raise _without()

    def commit_transaction(self, *, wait: bool = True) -> Committing:
        """See `TransactionalProducer.commit_transaction`."""
        raise _without()

    def abort_transaction(self) -> None:
        """See `TransactionalProducer.abort_transaction`."""
        raise _without()

    def commit_offsets(self, consumer: Consumer, batch: Batch | None = None) -> None:
        """See `TransactionalProducer.commit_offsets`."""
        raise _without()


def _without() -> InvalidTransactionState:
    return InvalidTransactionState("transactions need cluster.producer(transactional_id='…')")
