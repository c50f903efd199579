"""The producer with a transactional id: what it sends belongs to transactions that count as a whole or not at all."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from raystream import messages as m
from raystream.client.consumer import Consumer
from raystream.client.delivered import Batch
from raystream.client.partitioner import Partitioner
from raystream.client.producer import Producer
from raystream.client.sent import Sent, SentMany
from raystream.client.sent_frame import SentFrame
from raystream.client.transactional import TransactionalSender
from raystream.errors import FencedProducer, InvalidArgument, InvalidTransactionState, RaystreamError, RequestTimeout
from raystream.types import Headers


class TransactionalProducer(Producer):
    """Made by `cluster.producer(transactional_id=…)`. One transaction at a time, for all threads that send."""

    _sender: TransactionalSender

    def __init__(self, *arguments: Any, transactional_id: Any, **settings: Any) -> None:
        if not isinstance(transactional_id, str) or not transactional_id:
            raise InvalidArgument(
                f"transactional_id={transactional_id!r} is no name: give a string that stays the same"
            )
        self._transactional_id = transactional_id
        self._open = False
        self._deciding = threading.Lock()
        self._offsets: list[tuple[Consumer, m.CommitRequest]] = []
        super().__init__(*arguments, **settings)
        if self._config.acks != "all":
            raise InvalidArgument(f"acks={self._config.acks!r}: transactions need acks='all'")

    def _new_sender(self, partitioner: Partitioner | None) -> TransactionalSender:
        return TransactionalSender(
            self._routing,
            self._config,
            self._ledger,
            self.stats,
            partitioner,
            self._transactional_id,
            self.client_id,
        )

    # Sending --------------------------------------------------------------------------------------------------------

    def send(
        self,
        topic: str,
        value: Any = None,
        key: Any = None,
        headers: Headers | None = None,
        timestamp_ms: int | None = None,
        partition: int | None = None,
    ) -> Sent:
        """As `Producer.send`, in the open transaction. Raises InvalidTransactionState where none is open."""
        self._check_transaction()
        return super().send(topic, value, key, headers, timestamp_ms, partition)

    def send_many(self, topic: str, records: Iterable[Any]) -> SentMany:
        """As `Producer.send_many`, in the open transaction."""
        self._check_transaction()
        return super().send_many(topic, records)

    def send_frame(self, topic: str, frame: Any) -> SentFrame:
        """As `Producer.send_frame`, in the open transaction."""
        self._check_transaction()
        return super().send_frame(topic, frame)

    def _check_transaction(self) -> None:
        if not self._open:
            if self._sender.state == "fenced" and self._sender.failure is not None:
                raise self._sender.failure
            raise InvalidTransactionState(
                "no transaction is open: a producer with a transactional_id sends inside `with producer.transaction():`"
            )

    # Transactions ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self) -> Iterator[TransactionalProducer]:
        """Begins a transaction, commits it at the end of the block, and aborts it where the block or the commit raises.

        Raises FencedProducer once another producer has taken over the transactional id; DeliveryFailed where a record
        could not be delivered, TransactionTimedOut, FencedMember: then it is aborted; RequestTimeout where it is not
        known whether it is committed: `commit_transaction()` asks again.
        """
        self.begin_transaction()
        try:
            yield self
            self.commit_transaction()
        except RequestTimeout as error:
            if self._sender.state != "ending":
                self._abort_after(error)
            raise
        except BaseException as error:
            self._abort_after(error)
            raise

    def _abort_after(self, error: BaseException) -> None:
        try:
            self.abort_transaction()
        except FencedProducer as fenced:
            raise fenced from error
        except RaystreamError as second:
            error.add_note(f"and while the transaction was aborted: {second}")

    def begin_transaction(self) -> None:
        """Opens a transaction. The first one takes over the transactional id: its earlier producer is fenced, and what
        that left open is aborted. Raises FencedProducer, InvalidTransactionState, RequestTimeout."""
        self._check_process()
        self._ledger.check_open()
        with self._deciding:
            self._loop.run(self._sender.begin())
            self._offsets = []
            self._open = True

    def commit_transaction(self) -> None:
        """Waits until all that was sent is acknowledged, and commits it with the positions given to `commit_offsets`.
        When it returns, readers of what is committed see all of it. Raises as `transaction`; then abort, but for
        RequestTimeout."""
        self._check_process()
        with self._deciding:
            if self._sender.state != "ending":
                self._check_transaction()
                self.flush()
            self._open = False
            try:
                self._loop.run(self._sender.commit(tuple(request for _, request in self._offsets)))
            except RaystreamError:
                self._open = self._sender.state == "open"
                raise
            for consumer, request in self._offsets:
                consumer.committed_elsewhere(request)
            self._offsets = []

    def abort_transaction(self) -> None:
        """Takes everything of the transaction back: readers of what is committed never see it, positions stay. Records
        that were not acknowledged yet fail. Raises FencedProducer, InvalidTransactionState, RequestTimeout."""
        self._check_process()
        with self._deciding:
            if self._sender.state not in ("open", "ending"):
                self._check_transaction()
            self._open = False
            self._offsets = []
            try:
                self._loop.run(self._sender.abort())
            finally:
                self._ledger.take_failures()

    def commit_offsets(self, consumer: Consumer, batch: Batch | None = None) -> None:
        """The consumer's positions, up to everything handed out so far or to the end of `batch`, move with this
        transaction's commit, and only then. The consumer has a group and `auto_commit=False`.

        Raises InvalidArgument, FencedMember where partitions have gone to another member.
        """
        self._check_transaction()
        request = consumer.offsets_for_transaction(batch)
        if request.offsets:
            self._offsets.append((consumer, request))

    def close(self, timeout: float | None = None) -> None:
        """Aborts the open transaction, if there is one, and closes."""
        if not self.closed and self._sender.state in ("open", "ending"):
            with contextlib.suppress(RaystreamError):
                self.abort_transaction()
        super().close(timeout)


def producer_kind(transactional_id: str | None) -> Callable[..., Producer]:
    """What makes a producer, with a transactional id or without."""
    return Producer if transactional_id is None else partial(TransactionalProducer, transactional_id=transactional_id)
