"""Transactions: who may write in one, how it ends, and what has to be told to which partition (KIP-98, KIP-890).

A transactional id belongs to one producer at a time; who comes later aborts what its predecessor left open and fences
it. A decision is one record, durable before anybody hears of it, and never taken back: it raises the producer's epoch,
and the markers in the partitions carry the raised one. So a late write, a late `add_partitions` and a late end all
state an epoch that is over, and a marker that is written twice says twice the same.

Decisions give records and a reply (which may be an error to raise, once the records are durable); `replay` changes the
state. Since when a transaction is open is soft: a new coordinator counts from when it read of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final

from raystream import messages as m
from raystream.config import DAY_MS
from raystream.core import arguments
from raystream.core.deadlines import Deadlines
from raystream.core.group_records import ProducerIdsRecord
from raystream.core.records import Decision, Record, Removed, removed
from raystream.core.transaction_records import (
    BY_TIMEOUT,
    COMPLETE,
    COMPLETE_ABORT,
    COMPLETE_COMMIT,
    EMPTY,
    NOBODY,
    ONGOING,
    PREPARE_ABORT,
    PREPARE_COMMIT,
    PREPARED,
    TransactionRecord,
)
from raystream.errors import (
    ConcurrentTransactions,
    FencedProducer,
    InvalidArgument,
    InvalidTransactionState,
    TransactionTimedOut,
)

MAX_EPOCH: Final = 2**15 - 1
"""No producer writes with it: a marker may carry it, and after that comes a new producer id."""
MAX_ID_CHARACTERS: Final = 249
MAX_TIMEOUT_MS: Final = 900_000
FORGOTTEN_AFTER_MS: Final = 7 * DAY_MS
"""A transactional id that nobody used for so long is forgotten."""

Allocate = Callable[[], tuple[int, tuple[ProducerIdsRecord, ...]]]


class Transactions:
    """Every transactional id of one coordinator. `allocate` gives new producer ids, and what must be written for it."""

    def __init__(self, allocate: Allocate) -> None:
        self._allocate = allocate
        self._records: dict[str, TransactionRecord] = {}
        self._prepared: dict[str, None] = {}
        self._since: dict[str, float] = {}
        self._deadlines: Deadlines[str] = Deadlines(self._due_ms)

    # What producers ask ---------------------------------------------------------------------------------------------

    def init(self, request: m.InitProducerRequest) -> Decision:
        """A producer takes a transactional id: the next epoch, once nothing of its predecessor is open any more.

        Repeated by the same `instance`, it gives the same answer. Replies ConcurrentTransactions while the
        predecessor's transaction is being ended. Raises InvalidArgument.
        """
        name = arguments.text("transactional_id", request.transactional_id, at_least=1, at_most=MAX_ID_CHARACTERS)
        timeout_ms = arguments.whole("transaction_timeout_ms", request.transaction_timeout_ms)
        if not 1 <= timeout_ms <= MAX_TIMEOUT_MS:
            raise InvalidArgument(f"transaction_timeout_ms={timeout_ms} lies outside 1 to {MAX_TIMEOUT_MS:,}")
        known = self._records.get(name)
        if known is None:
            producer_id, reserved = self._allocate()
            record = TransactionRecord(name, producer_id, 0, timeout_ms, request.instance)
            return Decision((*reserved, record), _identity(record))
        same = bool(request.instance) and request.instance == known.instance
        if same and not known.awaits_successor:
            return Decision((), _identity(known))
        if known.state in (ONGOING, *PREPARED):
            ended = known if known.state in PREPARED else _ended(known, commit=False)
            taken = replace(ended, instance=request.instance, timeout_ms=timeout_ms, fenced_below=ended.epoch + 1)
            wait = ConcurrentTransactions(f"the transaction that {name!r} left open is being ended: try again")
            return Decision((taken,) if taken != known else (), wait)
        record, reserved = self._raised(replace(known, instance=request.instance, timeout_ms=timeout_ms))
        record = replace(record, state=EMPTY, fenced_below=record.epoch, ended_by="", previous_producer_id=NOBODY)
        return Decision((*reserved, record), _identity(record))

    def add_partitions(self, request: m.AddPartitionsRequest) -> Decision:
        """The transaction may write to these from now on. Raises FencedProducer, TransactionTimedOut,
        InvalidTransactionState, InvalidArgument, and ConcurrentTransactions while the one before is being completed."""
        known = self._speaks(request)
        if known.state in PREPARED:
            raise ConcurrentTransactions(f"the transaction before of {known.transactional_id!r} is being completed")
        if not request.partitions:
            raise InvalidArgument("a transaction is told of partitions, one at least")
        before = known.partitions if known.state == ONGOING else ()
        wanted = tuple(dict.fromkeys((*before, *map(_checked, request.partitions))))
        if known.state == ONGOING and wanted == before:
            return Decision((), m.Done())
        record = replace(known, state=ONGOING, partitions=wanted, ended_by="", previous_producer_id=NOBODY)
        return Decision((record,), m.Done())

    def end(self, request: m.EndTransactionRequest) -> Decision:
        """Decides, once. Asked again, it gives the same answer; `complete` once every partition has its marker.

        Raises FencedProducer, InvalidTransactionState where the other thing was decided, TransactionTimedOut where it
        was aborted meanwhile and should have been committed.
        """
        known = self._records.get(request.transactional_id)
        if known is not None and _is_last(known, request) and not known.awaits_successor:
            if request.commit == known.commits:
                complete = known.state in COMPLETE
                return Decision(
                    (),
                    m.EndTransactionReply(producer_id=known.producer_id, producer_epoch=known.epoch, complete=complete),
                )
            if known.ended_by != BY_TIMEOUT:
                raise InvalidTransactionState(
                    f"the transaction of {known.transactional_id!r} was {'committed' if known.commits else 'aborted'}"
                )
        known = self._speaks(request)
        if known.state in PREPARED:
            raise ConcurrentTransactions(f"the transaction before of {known.transactional_id!r} is being completed")
        ended = _ended(known, commit=request.commit)
        reserved: tuple[Record, ...] = ()
        if known.state != ONGOING:
            ended, reserved = self._completed(ended)
        reply = m.EndTransactionReply(
            producer_id=ended.producer_id, producer_epoch=ended.epoch, complete=ended.state in COMPLETE
        )
        return Decision((*reserved, ended), reply)

    def _speaks(self, request: m.AddPartitionsRequest | m.EndTransactionRequest) -> TransactionRecord:
        """The id's record, where the request is of the producer that has it now, in its epoch."""
        known = self._records.get(request.transactional_id)
        if known is None:
            raise InvalidTransactionState(f"the transactional id {request.transactional_id!r} is not known (any more)")
        if request.producer_id == known.producer_id and not known.awaits_successor:
            if request.producer_epoch == known.epoch:
                return known
            if request.producer_epoch > known.epoch:
                raise InvalidTransactionState(
                    f"producer {known.producer_id} is at epoch {known.epoch}, not {request.producer_epoch}"
                )
        if _is_last(known, request) and not known.awaits_successor and known.ended_by == BY_TIMEOUT:
            raise TransactionTimedOut(
                f"the transaction of {known.transactional_id!r} was open for longer than "
                f"transaction_timeout_ms={known.timeout_ms:,} and was aborted"
            )
        raise FencedProducer(
            f"another producer has taken over the transactional id {known.transactional_id!r}, or epoch "
            f"{request.producer_epoch} is over"
        )

    # What the coordinator does of itself ----------------------------------------------------------------------------

    def prepared(self) -> tuple[TransactionRecord, ...]:
        """The transactions of which partitions have to get their markers."""
        return tuple(self._records[name] for name in self._prepared)

    def complete(self, done: TransactionRecord) -> Decision:
        """Every partition of that decision has its marker."""
        known = self._records.get(done.transactional_id)
        if known is None or known.state not in PREPARED:
            return Decision(())
        if (known.producer_id, known.epoch) != (done.producer_id, done.epoch):
            return Decision(())
        record, reserved = self._completed(known)
        return Decision((*reserved, record))

    def expire(self, now_ms: float) -> Decision:
        """Aborts what was open for too long, and forgets ids that nobody uses."""
        records: list[Record | Removed] = []
        for name in self._deadlines.due(now_ms):
            known = self._records[name]
            if known.state == ONGOING:
                records.append(replace(_ended(known, commit=False), ended_by=BY_TIMEOUT))
            else:
                records.append(removed(known))
        return Decision(tuple(records))

    def next_expiry_ms(self) -> float | None:
        """When `expire` has something to do at the latest."""
        return self._deadlines.next_ms()

    def _due_ms(self, name: str) -> float | None:
        known = self._records.get(name)
        if known is None or known.state in PREPARED:
            return None
        return self._since[name] + (known.timeout_ms if known.state == ONGOING else FORGOTTEN_AFTER_MS)

    def _completed(self, ended: TransactionRecord) -> tuple[TransactionRecord, tuple[ProducerIdsRecord, ...]]:
        """The decision is carried out. Where the epochs are used up, the producer goes on with another id."""
        state = COMPLETE_COMMIT if ended.commits else COMPLETE_ABORT
        record = replace(ended, state=state, partitions=())
        if record.epoch < MAX_EPOCH:
            return record, ()
        producer_id, reserved = self._allocate()
        return replace(record, producer_id=producer_id, epoch=0, previous_producer_id=ended.producer_id), reserved

    def _raised(self, known: TransactionRecord) -> tuple[TransactionRecord, tuple[ProducerIdsRecord, ...]]:
        """The next epoch, in which nobody has spoken yet."""
        if known.epoch + 1 < MAX_EPOCH:
            return replace(known, epoch=known.epoch + 1), ()
        producer_id, reserved = self._allocate()
        return replace(known, producer_id=producer_id, epoch=0), reserved

    # Replay ---------------------------------------------------------------------------------------------------------

    def replay(self, record: TransactionRecord | Removed, now_ms: float) -> None:
        """Applies one record; the only thing that changes decisions and epochs."""
        if isinstance(record, Removed):
            (name,) = record.identity
            self._records.pop(name, None)
            self._prepared.pop(name, None)
            self._since.pop(name, None)
            return
        name = record.transactional_id
        before = self._records.get(name)
        self._records[name] = record
        if before is None or before.state != ONGOING or record.state != ONGOING:
            self._since[name] = now_ms
        if record.state in PREPARED:
            self._prepared[name] = None
        else:
            self._prepared.pop(name, None)
        self._deadlines.watch(name)

    def snapshot(self) -> Iterator[TransactionRecord]:
        """Records whose replay on an empty state gives this one; see `Groups.snapshot` on changes meanwhile."""
        for name in list(self._records):
            if (record := self._records.get(name)) is not None:
                yield record


def _ended(known: TransactionRecord, *, commit: bool) -> TransactionRecord:
    state = PREPARE_COMMIT if commit else PREPARE_ABORT
    return replace(known, state=state, epoch=known.epoch + 1, ended_by="")


def _is_last(known: TransactionRecord, request: m.AddPartitionsRequest | m.EndTransactionRequest) -> bool:
    """Whether the request is of the epoch that the last decision has ended."""
    if known.state not in (*PREPARED, *COMPLETE):
        return False
    if known.previous_producer_id != NOBODY and known.epoch == 0:
        last = (known.previous_producer_id, MAX_EPOCH - 1)
    else:
        last = (known.producer_id, known.epoch - 1)
    return last == (request.producer_id, request.producer_epoch)


def _identity(record: TransactionRecord) -> m.InitProducerReply:
    return m.InitProducerReply(producer_id=record.producer_id, producer_epoch=record.epoch)


def _checked(partition: tuple[str, str, int]) -> tuple[str, str, int]:
    topic, topic_id, number = partition
    return (
        arguments.text("topic name", topic, at_least=1, at_most=MAX_ID_CHARACTERS),
        arguments.text("topic id", topic_id, at_least=1, at_most=64),
        arguments.whole("partition", number),
    )
