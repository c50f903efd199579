"""The producer with a transactional id: what it sends belongs to transactions that count as a whole or not at all."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final

from raystream import messages as m
from raystream.client.accumulator import Sink
from raystream.client.committing import Committing
from raystream.client.consumer import Consumer
from raystream.client.delivered import Batch
from raystream.client.ended import Ended
from raystream.client.loop import LONGEST_WAIT_S
from raystream.client.partitioner import Partitioner
from raystream.client.producer import Producer
from raystream.client.sent import SentMany
from raystream.client.sent_frame import SentFrame
from raystream.client.transactional import FIRST, TransactionalSender
from raystream.errors import (
    Closed,
    FencedProducer,
    InvalidArgument,
    InvalidTransactionState,
    RaystreamError,
    RequestTimeout,
)

MAX_UNDER_WAY: Final = 100
"""So many commits may be on their way that nobody waits for; the next one waits for the first of them."""


class TransactionalProducer(Producer):
    """Made by `cluster.producer(transactional_id=…)`. One transaction at a time, for all threads that send."""

    _sender: TransactionalSender
    _open: bool
    """Whether a transaction is open."""

    def __init__(self, *arguments: Any, transactional_id: Any, **settings: Any) -> None:
        if not isinstance(transactional_id, str) or not transactional_id:
            raise InvalidArgument(
                f"transactional_id={transactional_id!r} is no name: give a string that stays the same"
            )
        self._transactional_id = transactional_id
        self._deciding = threading.Lock()
        self._offsets: list[tuple[Consumer, m.CommitRequest]] = []
        self._under_way: deque[concurrent.futures.Future[None]] = deque()
        super().__init__(*arguments, **settings)
        self._accumulator.transaction = FIRST
        self._shut_sinks()
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

    def send_many(self, topic: str, records: Iterable[Any]) -> SentMany:
        """As `Producer.send_many`, in the open transaction."""
        self._check_transaction()
        return super().send_many(topic, records)

    def send_frame(self, topic: str, frame: Any) -> SentFrame:
        """As `Producer.send_frame`, in the open transaction."""
        self._check_transaction()
        return super().send_frame(topic, frame)

    def _open_sink(self, topic: str) -> Sink:
        self._check_transaction()
        return super()._open_sink(topic)

    def _check_may_wait(self) -> None:
        self._check_process()
        if self._loop.is_current():
            raise InvalidArgument("a transaction waits for what comes on this thread: begin and end it on another")

    def _check_transaction(self) -> None:
        if not self._open:
            if self._sender.state == "fenced" and self._sender.failure is not None:
                raise self._sender.failure
            raise InvalidTransactionState(
                "no transaction is open: a producer with a transactional_id sends inside `with producer.transaction():`"
            )

    # Transactions ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self, *, wait: bool = True) -> Iterator[TransactionalProducer]:
        """Begins a transaction, commits it at the end of the block, and aborts it where the block or the commit raises.

        Raises FencedProducer once another producer has taken over the transactional id; DeliveryFailed where a record
        could not be delivered, TransactionTimedOut, FencedMember: then it is aborted; RequestTimeout where it is not
        known whether it is committed: `commit_transaction()` asks again. `wait`: see `commit_transaction`.
        """
        _check_wait(wait)
        self.begin_transaction()
        try:
            yield self
            self.commit_transaction(wait=wait)
        except BaseException as error:
            if self._open:
                self._abort_after(error)
            raise

    def _abort_after(self, error: BaseException) -> None:
        try:
            self.abort_transaction()
        except FencedProducer as fenced:
            raise fenced from error
        except RaystreamError as second:
            if second is not error:
                error.add_note(f"and while the transaction was aborted: {second}")

    def begin_transaction(self) -> None:
        """Opens a transaction. The first one takes over the transactional id: its earlier producer is fenced, and what
        that left open is aborted. Raises FencedProducer, InvalidTransactionState, RequestTimeout; and why an earlier
        transaction is not committed that nobody waited for: then none is open, and the next call opens one."""
        self._check_may_wait()
        self._ledger.check_open()
        with self._deciding:
            if self._open:
                raise InvalidTransactionState("a transaction is open: commit or abort it before the next one begins")
            if not self._sender.goes_on:
                self._loop.run(self._sender.begin())
                self._raise_unseen()
            self._offsets = []
            self._open = True
            self._sinks = self._sender.sinks

    def commit_transaction(self, *, wait: bool = True) -> Committing:
        """Waits until all that was sent is acknowledged, and commits it with the positions given to `commit_offsets`.
        When it returns, readers of what is committed see all of it. Raises as `transaction`; then it is aborted, but
        after RequestTimeout, which this call, made again, answers.

        `wait=False` returns at once, and the next transaction may begin: `result()` of what is returned waits. They are
        committed in order. Those that have ended while one is being committed are committed together, which costs as
        much as one, so that many small ones come close to no transactions at all. Where one fails, all that have begun
        meanwhile fail with it, and the next call of this producer raises it.
        """
        _check_wait(wait)
        self._check_may_wait()
        with self._deciding:
            if not self._open and self._sender.undecided:
                future = self._loop.submit(self._sender.ask_again())
                self._loop.wait(future)
                return Committing(future)
            self._check_transaction()
            self._raise_unseen()
            if wait:
                self._post(self._sender.hurry)
                super().flush()
            if self._sender.failure is not None:
                self._loop.run(self._sender.idle())
                self._raise_unseen()
                raise InvalidTransactionState(
                    f"the transaction has failed, it can only be aborted: {self._sender.failure}"
                ) from self._sender.failure
            return self._commit(wait=wait)

    def _commit(self, *, wait: bool) -> Committing:
        offsets = self._offsets

        def committed() -> None:
            for consumer, request in offsets:
                consumer.committed_elsewhere(request)

        ended = Ended(self._end_block(), tuple(request for _, request in offsets), committed, waited_for=wait)
        future = self._loop.submit(self._sender.commit(ended))
        self._shut_sinks()  # not before: an interrupt leaves a transaction open, which can be aborted
        self._offsets = []
        if wait:
            self._loop.wait(future)
            return Committing(future)
        self._under_way.append(future)
        while self._under_way and (self._under_way[0].done() or len(self._under_way) > MAX_UNDER_WAY):
            concurrent.futures.wait((self._under_way[0],), LONGEST_WAIT_S)  # how it went, `_raise_unseen` tells
            if self._under_way[0].done():
                self._under_way.popleft()
        return Committing(future)

    def _end_block(self) -> int:
        """What is sent from now on belongs to the next transaction. The number of the one that has ended."""
        return self._accumulator.end_transaction(list(self._sender.sinks.values()))

    def _shut_sinks(self) -> None:
        """Outside of transactions every `send` comes to `_open_sink`, and no other need look."""
        self._open = False
        self._sinks = {}

    def _raise_unseen(self) -> None:
        """Raises why a transaction has failed whose commit nobody waited for; once."""
        failure, self._sender.unseen = self._sender.unseen, None
        if failure is not None:
            if not isinstance(failure, RequestTimeout):  # that nobody knows is more than that records have failed since
                self._ledger.raise_failures()
            raise failure

    def abort_transaction(self) -> None:
        """Takes everything of the transaction back: readers of what is committed never see it, positions stay. Records
        that were not acknowledged yet fail. After a commit that failed, it does nothing more. Raises FencedProducer,
        InvalidTransactionState, RequestTimeout; and, once that is done, why an earlier transaction is not committed
        that nobody waited for."""
        self._check_may_wait()
        with self._deciding:
            if not self._open and self._sender.failure is None:
                self._check_transaction()
            self._abort(None)

    def _abort(self, timeout: float | None) -> None:
        future = self._loop.submit(self._sender.abort(self._end_block() if self._open else None))
        self._shut_sinks()
        self._offsets = []
        try:
            self._loop.wait(future, timeout)
            self._raise_unseen()
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

    # The end --------------------------------------------------------------------------------------------------------

    def flush(self, timeout: float | None = None) -> None:
        """As `Producer.flush`. Outside of a transaction it also waits for the commits that are on their way, and raises
        why one of them failed."""
        self._check_process()
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._open and not self._loop.is_current():
            self._loop.run(self._sender.idle(), timeout)
            self._raise_unseen()
        super().flush(_left(deadline))

    def close(self, timeout: float | None = None) -> None:
        """Aborts the open transaction, if there is one, waits for the commits that are on their way, and closes. Raises
        why one of them failed, and RequestTimeout where one has no answer after `timeout` seconds."""
        if self.closed or self._loop.is_current() or os.getpid() != self._pid:
            super().close(timeout)
            return
        deadline = None if timeout is None else time.monotonic() + timeout
        late: RaystreamError | None = None
        try:
            with contextlib.suppress(Closed):
                self._loop.run(self._sender.idle(), timeout)
        except RequestTimeout as error:
            late = error
        unseen, self._sender.unseen = self._sender.unseen or late, None
        if late is None and (self._open or self._sender.failure is not None):
            with self._deciding, contextlib.suppress(RaystreamError):
                self._abort(_left(deadline))
        super().close(_left(deadline))
        if unseen is not None:
            raise unseen

    def _deliver_at_exit(self, deadline: float) -> str | None:
        if self.closed or os.getpid() != self._pid:
            return None
        why: RaystreamError | None = None
        try:
            self._loop.run(self._sender.idle(), _left(deadline))
            why = self._sender.unseen
        except Closed:  # the connection ended before: there is nobody to ask
            pass
        except RaystreamError as error:
            why = error
        lost = super()._deliver_at_exit(deadline)
        return lost if why is None else f"raystream: a producer was not closed, and its last transaction failed: {why}"


def _check_wait(wait: Any) -> None:
    if not isinstance(wait, bool):
        raise InvalidArgument(f"wait={wait!r} is neither True nor False")


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(deadline - time.monotonic(), 0.0)


def producer_kind(transactional_id: str | None) -> Callable[..., Producer]:
    """What makes a producer, with a transactional id or without."""
    return Producer if transactional_id is None else partial(TransactionalProducer, transactional_id=transactional_id)
