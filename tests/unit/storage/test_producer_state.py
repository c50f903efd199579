"""Idempotence: fresh, duplicate, early, fenced, unknown; snapshots."""

from __future__ import annotations

import dataclasses
import struct

import pytest
from crc32c import crc32c

from raystream import batch as b
from raystream.clock import ManualClock
from raystream.config import DAY_MS
from raystream.errors import CorruptBatch, FencedProducer, NewerFormat, OutOfOrderSequence, UnknownProducer
from raystream.storage.producer_state import Duplicate, Fresh, ProducerState
from tests.fakes.logs import message

TEMPLATE = message([b"x"])[1]


def batch(sequence: int, rows: int = 10, *, producer: int = 1, epoch: int = 0) -> b.BatchHeader:
    return dataclasses.replace(
        TEMPLATE, producer_id=producer, producer_epoch=epoch, base_sequence=sequence, last_offset_delta=rows - 1
    )


def state_after(*sequences: int, clock: ManualClock | None = None, epoch: int = 0) -> ProducerState:
    clock = clock or ManualClock()
    state = ProducerState(clock)
    for place, sequence in enumerate(sequences):
        state.record(batch(sequence, epoch=epoch), 1000 + 10 * place, clock.now_ms())
    return state


def test_the_next_batch_is_fresh_and_the_last_five_are_duplicates() -> None:
    state = state_after(*range(0, 70, 10))
    assert state.check(batch(70)) == Fresh()
    for sequence in (20, 30, 40, 50, 60):
        assert state.check(batch(sequence)) == Duplicate(1000 + sequence, ManualClock().now_ms())


@pytest.mark.parametrize("sequence", [80, 0, 10, 65, 71])
def test_anything_else_is_out_of_order(sequence: int) -> None:
    with pytest.raises(OutOfOrderSequence, match=f"{sequence} where 70 comes next") as error:
        state_after(*range(0, 70, 10)).check(batch(sequence))
    assert error.value.expected == 70 and error.value.retriable


def test_a_batch_of_another_length_at_a_known_sequence_is_no_duplicate() -> None:
    with pytest.raises(OutOfOrderSequence):
        state_after(0, 10).check(batch(10, rows=9))


def test_checking_changes_nothing() -> None:
    state = state_after(0)
    before = state.to_bytes(5)
    state.check(batch(10))
    state.check(batch(0))
    assert state.to_bytes(5) == before


def test_sequences_wrap() -> None:
    state = state_after(2**31 - 5)
    assert state.check(batch(5)) == Fresh()
    state.record(batch(5), 2000, ManualClock().now_ms())
    assert state.check(batch(15)) == Fresh()
    assert isinstance(state.check(batch(2**31 - 5)), Duplicate)
    with pytest.raises(OutOfOrderSequence):
        state.check(batch(2**31 - 1))


def test_epochs_fence() -> None:
    state = state_after(0, 10, epoch=3)
    with pytest.raises(FencedProducer, match="epoch 2"):
        state.check(batch(20, epoch=2))
    assert state.check(batch(0, epoch=4)) == Fresh()
    with pytest.raises(OutOfOrderSequence):
        state.check(batch(20, epoch=4))
    state.record(batch(0, epoch=4), 3000, ManualClock().now_ms())
    with pytest.raises(FencedProducer):
        state.check(batch(20, epoch=3))


def test_an_unknown_producer_begins_with_sequence_0_and_proof_of_its_age() -> None:
    state = ProducerState(ManualClock())
    assert state.check(batch(0), age_ms=DAY_MS // 2 - 1) == Fresh()
    with pytest.raises(UnknownProducer, match="ask for a new producer id"):
        state.check(batch(0), age_ms=DAY_MS // 2)
    with pytest.raises(UnknownProducer):
        state.check(batch(10), age_ms=DAY_MS)
    with pytest.raises(OutOfOrderSequence):
        state.check(batch(10))  # its first batch is still on the way


def test_a_producer_expires_a_day_after_its_last_append() -> None:
    clock = ManualClock()
    state = state_after(0, clock=clock)
    clock.advance(DAY_MS)
    assert isinstance(state.check(batch(0)), Duplicate)
    clock.advance(1)
    with pytest.raises(UnknownProducer):
        state.check(batch(10))
    assert state.check(batch(0)) == Fresh()
    state.forget_expired()
    assert list(state) == [1]
    clock.advance(6 * DAY_MS)
    state.forget_expired()
    assert len(state) == 0


def test_batches_without_a_producer_id_leave_no_trace() -> None:
    state = ProducerState(ManualClock())
    assert state.check(TEMPLATE) == Fresh()
    state.record(TEMPLATE, 0, 0)
    assert len(state) == 0


def test_a_snapshot_gives_back_the_state() -> None:
    state = state_after(*range(0, 70, 10), epoch=2)
    state.record(batch(0, producer=7), 5000, 123)
    clock = ManualClock()
    read, offset = ProducerState.from_bytes(state.to_bytes(5010), clock)
    assert offset == 5010
    assert read.to_bytes(5010) == state.to_bytes(5010)
    assert read.check(batch(70, epoch=2)) == Fresh()


def test_every_flipped_bit_and_every_cut_of_a_snapshot_is_noticed() -> None:
    data = state_after(0, 10).to_bytes(20)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptBatch):
            ProducerState.from_bytes(bytes(damaged), ManualClock())
    for size in range(len(data)):
        with pytest.raises(CorruptBatch):
            ProducerState.from_bytes(data[:size], ManualClock())


def test_a_snapshot_of_a_later_version_is_refused() -> None:
    data = bytearray(state_after(0).to_bytes(10)[:-4])
    data[11] = 3
    with pytest.raises(NewerFormat):
        ProducerState.from_bytes(bytes(data) + struct.pack(">I", crc32c(bytes(data))), ManualClock())
