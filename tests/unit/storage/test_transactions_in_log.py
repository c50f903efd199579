"""Transactions in a partition's log: what is stable, what was aborted, and that a crash forgets nothing of it."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import struct

import pytest

from raystream import batch as b
from raystream.checksum import crc32c
from raystream.clock import ManualClock
from raystream.config import DAY_MS
from raystream.errors import DiskFull, FencedProducer, InvalidTransactionState, OutOfOrderSequence
from raystream.storage.aborted import ENTRY_BYTES, Aborted, overlapping
from raystream.storage.log import Log
from raystream.storage.memory_files import MemoryFiles
from raystream.storage.producer_state import Fresh, ProducerState
from tests.fakes.logs import DIRECTORY, Message, append, commit, copy_batches, marker, message, open_log


def written(producer: int, epoch: int, sequence: int, rows: int = 2) -> Message:
    return message([b"x"] * rows, producer=(producer, epoch, sequence), attributes=b.ATTR_TRANSACTIONAL)


def stable(log: Log) -> int:
    return log.producers.last_stable_offset(log.high_watermark, log.start_offset)


@pytest.fixture
def log() -> Log:
    return open_log(MemoryFiles())


# What is stable -------------------------------------------------------------------------------------------------------


def test_an_open_transaction_holds_the_stable_offset_back_until_its_marker_is_published(log: Log) -> None:
    append(log, message([b"a", b"b"]))
    append(log, written(1, 0, 0), message([b"c"]))
    commit(log)
    assert (stable(log), log.high_watermark) == (2, 5)
    append(log, marker(1, 1, commits=True))
    assert stable(log) == 2
    log.advance_high_watermark(5)
    assert stable(log) == 2, "the marker may still be lost with its leader"
    commit(log)
    assert stable(log) == 6


def test_the_first_of_several_open_ones_counts(log: Log) -> None:
    append(log, written(1, 0, 0), written(2, 0, 0), written(1, 0, 2))
    append(log, marker(1, 1, commits=True))
    commit(log)
    assert stable(log) == 2
    append(log, marker(2, 1, commits=False))
    commit(log)
    assert stable(log) == 8
    assert log.producers.aborted.entries == (Aborted(2, 2, 7),)


def test_ordinary_batches_of_idempotent_producers_are_stable_at_once(log: Log) -> None:
    append(log, message([b"a"], producer=(1, 0, 0)))
    commit(log)
    assert stable(log) == 1


# What is taken --------------------------------------------------------------------------------------------------------


def test_a_marker_ends_the_epoch(log: Log) -> None:
    append(log, written(1, 0, 0), marker(1, 1, commits=False))
    with pytest.raises(FencedProducer):
        log.producers.check(written(1, 0, 2)[1])
    assert log.producers.check(written(1, 1, 0)[1]) == Fresh()
    with pytest.raises(OutOfOrderSequence):
        log.producers.check(written(1, 1, 2)[1])
    assert log.producers.marked(1, 1) and not log.producers.marked(1, 2) and not log.producers.marked(2, 0)


def test_a_marker_fences_a_producer_that_never_wrote_here(log: Log) -> None:
    append(log, marker(1, 1, commits=False))
    with pytest.raises(FencedProducer):
        log.producers.check(written(1, 0, 0)[1])
    assert log.producers.aborted.entries == ()


def test_nothing_is_written_beside_an_open_transaction(log: Log) -> None:
    append(log, written(1, 0, 0))
    with pytest.raises(InvalidTransactionState, match="beside its open"):
        log.producers.check(message([b"x"], producer=(1, 0, 2))[1])
    with pytest.raises(InvalidTransactionState, match="has not ended here"):
        log.producers.check(written(1, 1, 0)[1])


def test_who_has_a_transaction_open_is_not_forgotten() -> None:
    clock = ManualClock()
    state = ProducerState(clock)
    state.record(written(1, 0, 0)[1], 0, clock.now_ms())
    clock.advance(20 * DAY_MS)
    state.forget_expired()
    assert state.check(written(1, 0, 2)[1]) == Fresh()
    assert state.last_stable_offset(2, 0) == 0


# What is remembered ---------------------------------------------------------------------------------------------------


class Life:
    """A log in which transactions begin and end at random, and what it must know of them by what was written."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.files = MemoryFiles()
        self.clock = ManualClock()
        self.log = self.open()
        self.epochs: dict[int, int] = {}
        self.sequences: dict[int, int] = {}
        self.history: list[b.BatchHeader] = []
        """Everything that the log ever held and has not lost."""

    def open(self) -> Log:
        return open_log(self.files, clock=self.clock, segment_bytes=4_000)

    def step(self) -> None:
        producer = self.rng.randrange(4)
        epoch = self.epochs.setdefault(producer, 0)
        if self.rng.random() < 0.3:
            self.epochs[producer] += 1
            self.sequences[producer] = 0
            self.append(marker(producer, epoch + 1, commits=self.rng.random() < 0.4))
        else:
            sequence = self.sequences.get(producer, 0)
            self.append(written(producer, epoch, sequence))
            self.sequences[producer] = sequence + 2
        if self.rng.random() < 0.3:
            commit(self.log)
        self.clock.advance(self.rng.choice([0, 3_000]))
        self.log.maybe_checkpoint()

    def append(self, batch: Message) -> None:
        (result,) = append(self.log, batch)
        placed = dataclasses.replace(batch[1], base_offset=result.base_offset, append_time_ms=result.append_time_ms)
        self.history.append(placed)

    def crash(self) -> None:
        self.files.crash(self.rng)
        self.log = self.open()
        self.learn()

    def learn(self) -> None:
        """Goes on from what the log holds."""
        self.history = [header for header in self.history if header.base_offset < self.log.end_offset]
        self.epochs, self.sequences = {}, {}
        for header in self.history:
            self.epochs[header.producer_id] = header.producer_epoch
            self.sequences[header.producer_id] = 0 if header.is_control else header.base_sequence + 2

    def check(self) -> None:
        commit(self.log)
        known = ProducerState(self.clock)
        for header in self.history:
            known.record(header, header.base_offset, header.append_time_ms)
        known.aborted.drop_before(self.log.start_offset)
        assert self.log.producers.aborted.entries == known.aborted.entries
        assert stable(self.log) == known.last_stable_offset(self.log.high_watermark, 0)


@pytest.mark.parametrize("seed", range(12))
def test_crashes_truncations_and_deletions_forget_nothing(seed: int) -> None:
    life = Life(seed)
    for _ in range(8):
        for _ in range(life.rng.randrange(1, 30)):
            life.step()
        match life.rng.randrange(5):
            case 0:
                life.crash()
            case 1:
                starts = [h.base_offset for _, h in copy_batches(life.log, life.log.start_offset)]
                later = [offset for offset in starts if offset >= life.log.high_watermark]
                if later:
                    life.log.truncate(life.rng.choice(later))
                    life.learn()
            case 2:
                commit(life.log)
                life.log.delete_before(life.rng.randint(life.log.start_offset, life.log.end_offset))
                life.learn()
            case 3:
                life.log.close()
                life.log = life.open()
            case _:
                life.log.checkpoint()
        life.check()


@pytest.mark.parametrize("nth", range(1, 60))
def test_the_disk_fails_at_any_operation_and_the_machine_crashes(nth: int) -> None:
    life = Life(nth)
    life.files.fail_at(nth, 5)
    with contextlib.suppress(Exception):
        for _ in range(60):
            life.step()
            if life.log.end_offset > 40:
                commit(life.log)
                life.log.delete_before(life.log.end_offset - 10)
    life.crash()
    life.check()


def test_a_damaged_or_lost_file_is_built_from_the_log() -> None:
    files = MemoryFiles()
    log = open_log(files)
    for epoch in range(4):
        append(log, written(1, epoch, 0), marker(1, epoch + 1, commits=False))
    commit(log)
    wanted = log.producers.aborted.entries
    log.close()
    path = f"{DIRECTORY}/aborted"
    whole = files.read(path)
    assert len(whole) == 4 * ENTRY_BYTES and len(wanted) == 4
    for content in (b"", whole[:-1], whole[:-ENTRY_BYTES], b"\xff" + whole[1:], whole[:40] + b"\xff" + whole[41:]):
        files.corrupt(path, content)
        log = open_log(files)
        assert log.producers.aborted.entries == wanted
        log.close()
        assert files.read(path) == whole


def test_each_checkpoint_adds_what_is_new_and_no_more() -> None:
    files = MemoryFiles()
    log = open_log(files)
    sizes = []
    for epoch in range(5):
        append(log, written(1, epoch, 0), marker(1, epoch + 1, commits=epoch % 2 == 0))
        log.checkpoint()
        sizes.append(len(files.read(f"{DIRECTORY}/aborted")) if epoch else 0)
    assert sizes == [0, ENTRY_BYTES, ENTRY_BYTES, 2 * ENTRY_BYTES, 2 * ENTRY_BYTES]


def test_a_follower_knows_what_its_leader_knows(log: Log) -> None:
    append(log, written(1, 0, 0), written(2, 0, 0), marker(1, 1, commits=False), written(3, 0, 0))
    follower = open_log(MemoryFiles())
    follower.append_as_follower(copy_batches(log, 0))
    assert follower.producers.aborted.entries == log.producers.aborted.entries == (Aborted(1, 0, 4),)
    assert follower.producers.to_bytes(0) == log.producers.to_bytes(0)


def test_what_was_opened_is_stable_only_once_all_that_it_holds_is_published() -> None:
    files = MemoryFiles()
    log = open_log(files)
    append(log, written(1, 0, 0), marker(1, 1, commits=True), message([b"a"]))
    log.flush()
    log.close()
    log = open_log(files)
    assert log.high_watermark == 0
    log.advance_high_watermark(2)
    assert stable(log) == 0
    log.advance_high_watermark(4)
    assert stable(log) == 4


def test_which_aborted_ones_a_range_meets() -> None:
    entries = (Aborted(1, 0, 10), Aborted(2, 5, 20), Aborted(3, 21, 30))
    assert overlapping(entries, 11, 21) == (entries[1],)
    assert overlapping(entries, 10, 22) == entries
    assert overlapping(entries, 31, 99) == ()


def test_snapshots_of_the_first_version_are_read() -> None:
    data = struct.pack(">8sIqI", b"RSPRODUC", 1, 30, 1) + struct.pack(">qhH", 7, 2, 1)
    data += struct.pack(">iiqq", 0, 1, 28, ManualClock().now_ms())
    state, offset = ProducerState.from_bytes(data + struct.pack(">I", crc32c(data)), ManualClock())
    assert offset == 30
    assert state.check(message([b"x"], producer=(7, 2, 2))[1]) == Fresh()
    assert state.last_stable_offset(30, 0) == 30


def open_log_again(log: Log, files: MemoryFiles) -> Log:
    log.close()
    return open_log(files, segment_bytes=4_000)


def test_a_full_disk_keeps_deletion_going() -> None:
    files = MemoryFiles(60_000)
    log = open_log(files, segment_bytes=4_000)
    for epoch in range(100):
        with contextlib.suppress(DiskFull):
            append(log, written(1, epoch, 0), marker(1, epoch + 1, commits=False))
            commit(log)
            log.checkpoint()
    with contextlib.suppress(DiskFull):
        log.checkpoint()
    log.delete_before(log.end_offset)
    assert log.producers.aborted.entries == () == open_log_again(log, files).producers.aborted.entries
