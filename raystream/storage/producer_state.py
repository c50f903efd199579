"""Idempotence: what a partition remembers of each producer, so that a retry neither doubles nor reorders.

Per producer id: the epoch, the last five batches by sequence (as many as a producer may have in flight), and where its
open transaction begins. A marker ends that and raises the epoch, so that nothing of it is taken any more. The rules are
Kafka's (KIP-98, KIP-360, KIP-890), but for one: sequence 0 of an unknown producer is fresh only with proof that the
batch is younger than the memory, since an older one may be a retry of a batch whose producer was forgotten.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Final, NamedTuple

from raystream.batch import ATTR_COMMIT, NO_PRODUCER_ID, NO_SEQUENCE, BatchHeader, advance_sequence
from raystream.checksum import crc32c
from raystream.clock import Clock
from raystream.config import DAY_MS
from raystream.errors import (
    CorruptBatch,
    FencedProducer,
    InvalidTransactionState,
    NewerFormat,
    OutOfOrderSequence,
    UnknownProducer,
)
from raystream.storage.aborted import Aborted, AbortedTransactions

EXPIRY_MS: Final = DAY_MS
"""A producer that appended nothing for so long is no longer known."""
_FORGOTTEN_AFTER_MS: Final = 7 * DAY_MS
"""Until then an expired producer is told apart from one whose first batch has not arrived yet."""
REMEMBERED_BATCHES: Final = 5

_MAGIC: Final = b"RSPRODUC"
_VERSION: Final = 2
_HEAD: Final = struct.Struct(">8sIqI")  # magic, version, offset, number of producers
_PRODUCER: Final = struct.Struct(">qhHqq")  # producer id, epoch, number of batches, open from, last append time
_PRODUCER_1: Final = struct.Struct(">qhH")  # version 1
_BATCH: Final = struct.Struct(">iiqq")  # base sequence, last sequence, base offset, append time
_CRC: Final = struct.Struct(">I")
_NOT_OPEN: Final = -1


class Fresh(NamedTuple):
    """The batch is the producer's next."""


class Duplicate(NamedTuple):
    """The batch is in the log already, there."""

    base_offset: int
    append_time_ms: int


class _Batch(NamedTuple):
    base_sequence: int
    last_sequence: int
    base_offset: int
    append_time_ms: int


@dataclass(slots=True)
class _Producer:
    epoch: int
    batches: tuple[_Batch, ...]
    last_append_ms: int


def _last(known: _Producer) -> tuple[int, int]:
    return known.epoch, known.batches[-1].base_offset if known.batches else NO_SEQUENCE


class ProducerState:
    """The producers of one partition. Owned by the partition's writer thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._producers: dict[int, _Producer] = {}
        self._open: dict[int, int] = {}
        """The first offset of each producer's open transaction, in order."""
        self.aborted = AbortedTransactions()
        self.settled_from = 0
        """Below this it is not known of every transaction that has ended whether its marker is published."""
        self._ended: deque[tuple[int, int]] = deque()
        """First offset, and the marker's, of transactions whose marker was not published when last asked."""

    def __len__(self) -> int:
        return len(self._producers)

    def __iter__(self) -> Iterator[int]:
        return iter(self._producers)

    def check(self, header: BatchHeader, *, age_ms: int = 0) -> Fresh | Duplicate:
        """Whether the batch may be appended now. Changes nothing.

        `age_ms` is the time since the producer first sent the batch. Raises FencedProducer for an older epoch,
        OutOfOrderSequence while a batch before this one is missing, UnknownProducer where the state that would tell is
        gone.
        """
        if header.producer_id == NO_PRODUCER_ID:
            return Fresh()
        known = self._producers.get(header.producer_id)
        young = age_ms < EXPIRY_MS // 2
        if known is None or (header.producer_id not in self._open and self._expired(known)):
            return self._check_unknown(header, young=young, expired=known is not None)
        if header.producer_epoch < known.epoch:
            raise FencedProducer(
                f"producer {header.producer_id} speaks with epoch {header.producer_epoch}; a newer one, with epoch "
                f"{known.epoch}, took over its id"
            )
        if header.producer_epoch > known.epoch:
            if header.producer_id in self._open:
                raise InvalidTransactionState(
                    f"producer {header.producer_id} goes on with epoch {header.producer_epoch}; its transaction of "
                    f"epoch {known.epoch} has not ended here"
                )
            if header.base_sequence == 0 and young:
                return Fresh()
            raise self._out_of_order(header, 0)
        if header.producer_id in self._open and not header.is_transactional:
            raise InvalidTransactionState(f"producer {header.producer_id} writes beside its open transaction")
        for batch in known.batches:
            if batch.base_sequence == header.base_sequence and batch.last_sequence == header.last_sequence:
                return Duplicate(batch.base_offset, batch.append_time_ms)
        expected = advance_sequence(known.batches[-1].last_sequence, 1) if known.batches else 0
        if header.base_sequence != expected:
            raise self._out_of_order(header, expected)
        return Fresh()

    def marked(self, producer_id: int, epoch: int) -> bool:
        """Whether a marker of that epoch stands in the log, or stood there before anything of a later epoch came."""
        known = self._producers.get(producer_id)
        only_told = known is not None and not known.batches and producer_id in self._open  # by a leader that is lost
        return known is not None and known.epoch >= epoch and not only_told

    def _expired(self, known: _Producer) -> bool:
        return self._clock.now_ms() - known.last_append_ms > EXPIRY_MS

    def _check_unknown(self, header: BatchHeader, *, young: bool, expired: bool) -> Fresh:
        if header.base_sequence == 0 and young:
            return Fresh()
        if young and not expired:
            raise self._out_of_order(header, 0)  # its first batch is still on the way
        raise UnknownProducer(
            f"producer {header.producer_id} is not known here (any more), and its batch with sequence "
            f"{header.base_sequence} is not provably its first: ask for a new producer id"
        )

    def _out_of_order(self, header: BatchHeader, expected: int) -> OutOfOrderSequence:
        return OutOfOrderSequence(
            f"producer {header.producer_id} (epoch {header.producer_epoch}) sent sequence {header.base_sequence} where "
            f"{expected} comes next",
            expected=expected,
        )

    def first_open(self, end_offset: int) -> int:
        """Where the first open transaction begins, of a log that ends at `end_offset`; there, if none is open."""
        return min(self._open.values(), default=end_offset)

    def last_of_each(self) -> dict[int, tuple[int, int]]:
        """Each producer's epoch, and where its last batch begins; -1: the last was a marker."""
        return {producer_id: _last(known) for producer_id, known in self._producers.items()}

    def settle(self, offset: int) -> None:
        """Compaction has been at all below the offset, where only what was decided lies: no transaction that begins
        there is open, whatever an old snapshot says."""
        self._open = {producer_id: first for producer_id, first in self._open.items() if first >= offset}

    def record(self, header: BatchHeader, base_offset: int, append_time_ms: int) -> None:
        """Takes note of a batch that is in the log. What is known of its producer already from later on stays."""
        if header.producer_id == NO_PRODUCER_ID:
            return
        if header.is_control:
            self._record_marker(header, base_offset, append_time_ms)
            return
        batch = _Batch(header.base_sequence, header.last_sequence, base_offset, append_time_ms)
        if header.is_transactional:
            self._open.setdefault(header.producer_id, base_offset)
        known = self._producers.get(header.producer_id)
        if known is None or known.epoch < header.producer_epoch:
            self._producers[header.producer_id] = _Producer(header.producer_epoch, (batch,), append_time_ms)
        elif known.epoch == header.producer_epoch and not (
            known.batches and known.batches[-1].base_offset >= base_offset
        ):
            known.batches = (*known.batches[1 - REMEMBERED_BATCHES :], batch)
            known.last_append_ms = append_time_ms

    def _record_marker(self, header: BatchHeader, base_offset: int, append_time_ms: int) -> None:
        known = self._producers.get(header.producer_id)
        if known is None or known.epoch < header.producer_epoch:
            self._producers[header.producer_id] = _Producer(header.producer_epoch, (), append_time_ms)
        first_offset = self._open.pop(header.producer_id, None)
        if first_offset is None:
            return
        self._ended.append((first_offset, base_offset))
        if not header.attributes & ATTR_COMMIT:
            self.aborted.add(Aborted(header.producer_id, first_offset, base_offset))

    def last_stable_offset(self, high_watermark: int, start_offset: int) -> int:
        """Below it every transaction has ended, and its marker is published. To be asked with growing watermarks."""
        if high_watermark < self.settled_from:
            return min(start_offset, high_watermark)
        while self._ended and self._ended[0][1] < high_watermark:
            self._ended.popleft()
        first_open = next(iter(self._open.values()), high_watermark)
        return min(high_watermark, first_open, *(first for first, _ in self._ended))

    def up_to(self, end_offset: int) -> ProducerState:
        """What of it the batches below `end_offset` have left, as far as it is remembered."""
        state = ProducerState(self._clock)
        for producer_id, known in self._producers.items():
            batches = tuple(batch for batch in known.batches if batch.base_offset < end_offset)
            if batches:
                state._producers[producer_id] = _Producer(known.epoch, batches, known.last_append_ms)
        return state

    def cut(self, end_offset: int) -> None:
        """Forgets batches that the log, which ends there, does not hold: it was told of them and never got them."""
        for producer_id, known in list(self._producers.items()):
            batches = tuple(batch for batch in known.batches if batch.base_offset < end_offset)
            if known.batches and not batches:
                del self._producers[producer_id]
            known.batches = batches

    def update(self, other: ProducerState) -> None:
        """Takes over what `other` knows of producers from later on."""
        for producer_id, theirs in other._producers.items():
            known = self._producers.get(producer_id)
            if known is None or _last(known) < _last(theirs):
                self._producers[producer_id] = theirs

    def forget_expired(self) -> None:
        """Frees the memory of producers that expired long ago."""
        oldest = self._clock.now_ms() - _FORGOTTEN_AFTER_MS
        gone = [
            producer_id
            for producer_id, state in self._producers.items()
            if state.last_append_ms < oldest and producer_id not in self._open
        ]
        for producer_id in gone:
            del self._producers[producer_id]

    def below(self, offset: int) -> ProducerState:
        """What remains of the state where nobody has the batches below `offset`: whoever takes over the log from there
        on needs it. What the batches after that say of a producer takes its place."""
        rest = ProducerState(self._clock)
        for producer_id, state in self._producers.items():
            batches = tuple(batch for batch in state.batches if batch.base_offset < offset)
            if batches or not state.batches:
                rest._producers[producer_id] = _Producer(state.epoch, batches, state.last_append_ms)
        rest._open = {
            producer_id: first
            for producer_id, first in self._open.items()
            if first < offset and producer_id in rest._producers
        }
        return rest

    def to_bytes(self, offset: int) -> bytes:
        """The snapshot of the state that all batches below `offset` leave."""
        parts = [_HEAD.pack(_MAGIC, _VERSION, offset, len(self._producers))]
        for producer_id, state in self._producers.items():
            parts.append(
                _PRODUCER.pack(
                    producer_id,
                    state.epoch,
                    len(state.batches),
                    self._open.get(producer_id, _NOT_OPEN),
                    state.last_append_ms,
                )
            )
            parts.extend(_BATCH.pack(*batch) for batch in state.batches)
        data = b"".join(parts)
        return data + _CRC.pack(crc32c(data))

    @classmethod
    def from_bytes(cls, data: bytes, clock: Clock) -> tuple[ProducerState, int]:
        """A snapshot's state and the offset it was taken at. Raises CorruptBatch or NewerFormat."""
        if len(data) < _HEAD.size + _CRC.size or data[:8] != _MAGIC:
            raise CorruptBatch("the producer snapshot does not begin as one")
        if _CRC.unpack_from(data, len(data) - _CRC.size)[0] != crc32c(memoryview(data)[: -_CRC.size]):
            raise CorruptBatch("the producer snapshot fails its CRC")
        _, version, offset, count = _HEAD.unpack_from(data)
        if version > _VERSION:
            raise NewerFormat(f"the producer snapshot has format version {version}; this raystream reads {_VERSION}")
        state = cls(clock)
        at = _HEAD.size
        layout = _PRODUCER if version > 1 else _PRODUCER_1
        try:
            for _ in range(count):
                producer_id, epoch, batches, *later = layout.unpack_from(data, at)
                at += layout.size
                read = tuple(_Batch(*_BATCH.unpack_from(data, at + i * _BATCH.size)) for i in range(batches))
                at += batches * _BATCH.size
                open_from, last_append_ms = later or (_NOT_OPEN, read[-1].append_time_ms)
                state._producers[producer_id] = _Producer(epoch, read, last_append_ms)
                if open_from != _NOT_OPEN:
                    state._open[producer_id] = open_from
        except struct.error:
            raise CorruptBatch("the producer snapshot is cut off") from None
        state._open = dict(sorted(state._open.items(), key=itemgetter(1)))
        return state, offset
