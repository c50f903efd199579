"""Idempotence: what a partition remembers of each producer, so that a retry neither doubles nor reorders.

Per producer id: the epoch, and the last five batches by sequence (as many as a producer may have in flight). The rules
are Kafka's (KIP-98, KIP-360), but for one: sequence 0 of an unknown producer is fresh only with proof that the batch is
younger than the memory, since an older one may be a retry of a batch whose producer was forgotten.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from raystream.batch import NO_PRODUCER_ID, BatchHeader, advance_sequence
from raystream.checksum import crc32c
from raystream.clock import Clock
from raystream.config import DAY_MS
from raystream.errors import CorruptBatch, FencedProducer, NewerFormat, OutOfOrderSequence, UnknownProducer

EXPIRY_MS: Final = DAY_MS
"""A producer that appended nothing for so long is no longer known."""
_FORGOTTEN_AFTER_MS: Final = 7 * DAY_MS
"""Until then an expired producer is told apart from one whose first batch has not arrived yet."""
REMEMBERED_BATCHES: Final = 5

_MAGIC: Final = b"RSPRODUC"
_VERSION: Final = 1
_HEAD: Final = struct.Struct(">8sIqI")  # magic, version, offset, number of producers
_PRODUCER: Final = struct.Struct(">qhH")  # producer id, epoch, number of batches
_BATCH: Final = struct.Struct(">iiqq")  # base sequence, last sequence, base offset, append time
_CRC: Final = struct.Struct(">I")


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

    @property
    def last_append_ms(self) -> int:
        return self.batches[-1].append_time_ms


class ProducerState:
    """The producers of one partition. Owned by the partition's writer thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._producers: dict[int, _Producer] = {}

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
        if known is None or self._clock.now_ms() - known.last_append_ms > EXPIRY_MS:
            return self._check_unknown(header, young=young, expired=known is not None)
        if header.producer_epoch < known.epoch:
            raise FencedProducer(
                f"producer {header.producer_id} speaks with epoch {header.producer_epoch}; a newer one, with epoch "
                f"{known.epoch}, took over its id"
            )
        if header.producer_epoch > known.epoch:
            if header.base_sequence == 0 and young:
                return Fresh()
            raise self._out_of_order(header, 0)
        for batch in known.batches:
            if batch.base_sequence == header.base_sequence and batch.last_sequence == header.last_sequence:
                return Duplicate(batch.base_offset, batch.append_time_ms)
        expected = advance_sequence(known.batches[-1].last_sequence, 1)
        if header.base_sequence != expected:
            raise self._out_of_order(header, expected)
        return Fresh()

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

    def record(self, header: BatchHeader, base_offset: int, append_time_ms: int) -> None:
        """Takes note of a batch that is in the log."""
        if header.producer_id == NO_PRODUCER_ID:
            return
        batch = _Batch(header.base_sequence, header.last_sequence, base_offset, append_time_ms)
        known = self._producers.get(header.producer_id)
        if known is None or known.epoch != header.producer_epoch:
            self._producers[header.producer_id] = _Producer(header.producer_epoch, (batch,))
        else:
            known.batches = (*known.batches[1 - REMEMBERED_BATCHES :], batch)

    def up_to(self, end_offset: int) -> ProducerState:
        """What of it the batches below `end_offset` have left, as far as it is remembered."""
        state = ProducerState(self._clock)
        for producer_id, known in self._producers.items():
            batches = tuple(batch for batch in known.batches if batch.base_offset < end_offset)
            if batches:
                state._producers[producer_id] = _Producer(known.epoch, batches)
        return state

    def update(self, other: ProducerState) -> None:
        """Takes over what `other` knows of its producers."""
        self._producers |= other._producers

    def forget_expired(self) -> None:
        """Frees the memory of producers that expired long ago."""
        oldest = self._clock.now_ms() - _FORGOTTEN_AFTER_MS
        for producer_id in [key for key, state in self._producers.items() if state.last_append_ms < oldest]:
            del self._producers[producer_id]

    def to_bytes(self, offset: int) -> bytes:
        """The snapshot of the state that all batches below `offset` leave."""
        parts = [_HEAD.pack(_MAGIC, _VERSION, offset, len(self._producers))]
        for producer_id, state in self._producers.items():
            parts.append(_PRODUCER.pack(producer_id, state.epoch, len(state.batches)))
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
        try:
            for _ in range(count):
                producer_id, epoch, batches = _PRODUCER.unpack_from(data, at)
                at += _PRODUCER.size
                read = tuple(_Batch(*_BATCH.unpack_from(data, at + i * _BATCH.size)) for i in range(batches))
                at += batches * _BATCH.size
                state._producers[producer_id] = _Producer(epoch, read)
        except struct.error:
            raise CorruptBatch("the producer snapshot is cut off") from None
        return state, offset
