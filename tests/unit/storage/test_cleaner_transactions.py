"""Compaction of logs with transactions, and of what producers' last batches say."""

from __future__ import annotations

import random

import pytest

from raystream import batch as b
from raystream.clock import ManualClock
from raystream.config import DAY_MS
from raystream.errors import FencedProducer, OutOfOrderSequence
from raystream.explicit import rows_of
from raystream.storage.aborted import Aborted
from raystream.storage.fates import MARKER_GRACE_MS
from raystream.storage.log import Log
from raystream.storage.memory_files import MemoryFiles
from raystream.storage.producer_state import Duplicate, Fresh
from tests.fakes.compacting import clean, headers_in, keyed, rows_in
from tests.fakes.logs import DIRECTORY, SCHEMAS, Message, append, commit, copy_batches, marker, open_log
from tests.fakes.verify import verify

GRACE = MARKER_GRACE_MS


def opened(files: MemoryFiles | None = None, clock: ManualClock | None = None) -> Log:
    return open_log(MemoryFiles() if files is None else files, clock=clock, segment_bytes=2_000)


def transactional(rows: list[tuple[bytes, bytes | None]], producer: tuple[int, int, int]) -> Message:
    return keyed(rows, producer=producer, attributes=b.ATTR_TRANSACTIONAL)


def roll(log: Log, key: bytes = b"zz") -> None:
    """Whatever was appended before stands in segments that are not appended to any more."""
    for i in range(4):
        append(log, keyed([(key, b"%d" % i)]))
    commit(log)
    log.checkpoint()


def markers(log: Log) -> list[tuple[int, int, bool]]:
    """Offset, producer and whether it commits."""
    return [(h.base_offset, h.producer_id, bool(h.attributes & b.ATTR_COMMIT)) for h in headers_in(log) if h.is_control]


def stable(log: Log) -> int:
    return log.producers.last_stable_offset(log.high_watermark, log.start_offset)


def test_committed_rows_are_rows_like_any_other_and_aborted_ones_go() -> None:
    log = opened()
    append(log, keyed([(b"a", b"old"), (b"b", b"old")]))
    append(log, transactional([(b"a", b"new"), (b"c", b"new")], (1, 0, 0)), marker(1, 1, commits=True))
    append(log, transactional([(b"a", b"never"), (b"b", b"never")], (1, 1, 0)), marker(1, 2, commits=False))
    append(log, keyed([(b"d", b"last")]))
    roll(log)
    assert log.producers.aborted.entries[0] == Aborted(1, 5, 7)
    clean(log)
    assert log.cleaned_to > 8
    kept = [row for row in rows_in(log) if row[1] != b"zz"]
    assert kept == [(1, b"b", b"old"), (2, b"a", b"new"), (3, b"c", b"new"), (8, b"d", b"last")]
    assert markers(log) == [(4, 1, True), (7, 1, False)]
    assert not any(h.is_transactional and not h.is_control for h in headers_in(log))
    assert log.producers.aborted.entries == (), "nothing of it is left that a reader would have to leave out"
    assert verify(log) == []


def test_nothing_is_touched_from_the_first_open_transaction_on() -> None:
    log = opened()
    append(log, keyed([(b"a", b"1")]), keyed([(b"a", b"2")]))
    roll(log)
    first = append(log, transactional([(b"a", b"3")], (1, 0, 0)))[0].base_offset
    roll(log)
    roll(log)
    clean(log)
    assert log.cleaned_to <= first
    assert (first, b"a", b"3") in rows_in(log)
    append(log, marker(1, 1, commits=True))
    roll(log)
    clean(log)
    assert log.cleaned_to > first and (1, b"a", b"2") not in rows_in(log)


def test_a_marker_goes_once_its_grace_is_over_and_every_replica_is_in_sync() -> None:
    log = opened()
    append(log, transactional([(b"a", b"1")], (1, 0, 0)), marker(1, 1, commits=True))
    append(log, transactional([(b"b", b"1")], (1, 1, 0)), marker(1, 2, commits=False))
    roll(log)
    done = clean(log, now_ms=1)
    assert markers(log) == [(1, 1, True), (3, 1, False)]
    assert done.next_horizon_ms == 1 + GRACE
    assert clean(log, now_ms=GRACE).swaps == 0
    assert clean(log, now_ms=1 + GRACE, in_sync=False).swaps == 0, "somebody may hold its records and not have it yet"
    done = clean(log, now_ms=1 + GRACE)
    assert markers(log) == [(3, 1, False)], "the last of its producer says which epoch comes next"
    assert done.next_horizon_ms is None
    assert rows_in(log)[0] == (0, b"a", b"1")
    assert verify(log) == []


def test_the_last_marker_of_a_producer_that_is_forgotten_goes() -> None:
    clock = ManualClock()
    log = opened(clock=clock)
    append(log, transactional([(b"a", b"1")], (1, 0, 0)), marker(1, 1, commits=True))
    roll(log)
    clean(log, now_ms=clock.now_ms())
    clock.advance(9 * DAY_MS)
    roll(log)
    clean(log, now_ms=clock.now_ms())
    assert markers(log) == []


def test_the_last_batch_of_each_producer_says_which_sequence_comes_next() -> None:
    files = MemoryFiles()
    log = opened(files)
    append(log, keyed([(b"a", b"1"), (b"b", b"1")], producer=(7, 0, 0)))
    placed = append(log, keyed([(b"a", b"2"), (b"b", b"2")], producer=(7, 0, 2)))[0]
    append(log, transactional([(b"t", b"1")], (8, 3, 0)), marker(8, 4, commits=False))
    append(log, keyed([(b"a", b"3"), (b"b", b"3")]))
    roll(log)
    clean(log)
    roll(log)
    clean(log)
    own = [h for h in headers_in(log) if h.producer_id == 7]
    assert [(h.base_offset, h.next_offset, h.base_sequence, h.last_sequence) for h in own] == [(2, 4, 2, 3)]
    assert [row[2] for row in rows_in(log) if row[1] in (b"a", b"b")] == [b"3", b"3"], "of it no row is left"
    files.kill()
    for name in files.listdir(DIRECTORY):
        if name.endswith((".producers", "checkpoint")):
            files.unlink(f"{DIRECTORY}/{name}")
    log = opened(files)
    again = keyed([(b"a", b"2"), (b"b", b"2")], producer=(7, 0, 2))[1]
    assert log.producers.check(again) == Duplicate(placed.base_offset, placed.append_time_ms)
    assert log.producers.check(keyed([(b"a", b"4")], producer=(7, 0, 4))[1]) == Fresh()
    with pytest.raises(OutOfOrderSequence):
        log.producers.check(keyed([(b"a", b"4")], producer=(7, 0, 6))[1])
    with pytest.raises(FencedProducer):
        log.producers.check(transactional([(b"t", b"2")], (8, 3, 1))[1])
    append(log, keyed([(b"a", b"4")], producer=(7, 0, 4)))
    roll(log)
    append(log, keyed([(b"b", b"4")]))
    roll(log)
    clean(log)
    assert [h.base_sequence for h in headers_in(log) if h.producer_id == 7] == [4]


def test_a_follower_of_a_compacted_log_knows_what_was_decided() -> None:
    log = opened()
    append(log, transactional([(b"a", b"1"), (b"b", b"1")], (1, 0, 0)), keyed([(b"c", b"1")], producer=(2, 0, 0)))
    append(log, marker(1, 1, commits=False), transactional([(b"d", b"1")], (1, 1, 0)), marker(1, 2, commits=True))
    roll(log)
    clean(log)
    behind = opened()
    behind.append_as_follower(copy_batches(log, 0))
    commit(behind)
    assert behind.producers.aborted.entries == ()
    assert stable(behind) == behind.high_watermark
    assert rows_in(behind) == rows_in(log)
    assert behind.producers.last_of_each() == log.producers.last_of_each()


def test_a_follower_that_holds_what_was_aborted_learns_so_from_the_marker() -> None:
    log = opened()
    append(log, transactional([(b"a", b"1")], (1, 0, 0)))
    behind = opened()
    behind.append_as_follower(copy_batches(log, 0))
    append(log, transactional([(b"b", b"1")], (1, 0, 1)), marker(1, 1, commits=False))
    roll(log)
    clean(log)
    shorter, end = log.from_inside(1, log.read(1, max_bytes=1, end_offset=log.end_offset))
    behind.append_as_follower([(memoryview(shorter), b.parse(shorter)), *copy_batches(log, end)])
    commit(behind)
    assert behind.producers.aborted.entries == (Aborted(1, 0, 2),)
    assert stable(behind) == behind.high_watermark
    clean(behind)
    assert not [row for row in rows_in(behind) if row[1] in (b"a", b"b")]


def test_an_old_snapshot_does_not_bring_back_a_transaction_whose_marker_is_gone() -> None:
    files = MemoryFiles()
    log = opened(files)
    append(log, transactional([(b"a", b"1")], (1, 0, 0)))
    commit(log)
    log.checkpoint()
    old = {n: files.read(f"{DIRECTORY}/{n}") for n in files.listdir(DIRECTORY) if n.endswith(".producers")}
    append(log, marker(1, 1, commits=False), transactional([(b"a", b"2")], (1, 1, 0)), marker(1, 2, commits=True))
    roll(log)
    clean(log, now_ms=1)
    clean(log, now_ms=1 + GRACE)
    assert markers(log) == [(3, 1, True)]
    log.checkpoint()
    files.kill()
    for name in files.listdir(DIRECTORY):
        if name.endswith(".producers"):
            files.unlink(f"{DIRECTORY}/{name}")
    for name, data in old.items():
        files.write_atomically(f"{DIRECTORY}/{name}", data)
    log = opened(files)
    commit(log)
    assert stable(log) == log.high_watermark
    assert log.producers.aborted.entries == ()


def test_what_begins_inside_a_batch_keeps_whose_it_is() -> None:
    log = opened()
    rows = [(b"k%d" % i, b"%d" % i) for i in range(6)]
    append(log, transactional(list(rows), (5, 2, 10)), keyed(list(rows), timestamps=range(100, 106)))
    for offset, owner in ((2, (5, 2, 12, b.ATTR_TRANSACTIONAL)), (8, (-1, -1, -1, 0))):
        spans = log.read(offset, max_bytes=1, end_offset=12)
        data, end = log.from_inside(offset, spans)
        header = b.parse(data)
        b.check_header_crc(memoryview(data), header)
        b.check_producer_crc(memoryview(data), header)
        assert (header.base_offset, header.next_offset) == (offset, end) == (offset, (offset // 6 + 1) * 6)
        stated = (header.producer_id, header.producer_epoch, header.base_sequence, header.attributes)
        assert stated == (*owner[:3], owner[3] | b.ATTR_EXPLICIT_OFFSETS)
        found = rows_of(data, header, SCHEMAS[0])
        assert found.offsets.tolist() == list(range(offset, end))
        assert found.timestamps.to_pylist() == ([1_000] * 4 if offset == 2 else [102, 103, 104, 105])


def test_a_deletion_in_the_middle_of_a_group_leaves_what_was_aborted_known() -> None:
    log = opened()
    for epoch in range(6):
        append(log, transactional([(b"a", b"x" * 300)], (1, epoch, 0)), marker(1, epoch + 1, commits=False))
    roll(log)

    def on_writer(work: object) -> object:
        log.delete_before(log.segments[0].tail.end_offset)
        return work()  # type: ignore[operator]

    clean(log, on_writer=on_writer)
    assert log.cleaned_to == 0
    raw = [h for h in headers_in(log) if h.is_transactional and not h.is_control]
    known = log.producers.aborted.entries
    assert raw and all(any(e.first_offset <= h.base_offset <= e.last_offset for e in known) for h in raw)


@pytest.mark.parametrize("seed", range(4))
def test_a_crash_forgets_nothing_of_it(seed: int) -> None:
    files = MemoryFiles()
    log = opened(files)
    append(log, transactional([(b"a", b"1")], (1, 0, 0)), marker(1, 1, commits=False))
    append(log, transactional([(b"b", b"1")], (1, 1, 0)), marker(1, 2, commits=True))
    roll(log)
    clean(log)
    wanted = rows_in(log)
    files.crash(random.Random(seed))
    log = opened(files)
    commit(log)
    assert rows_in(log) == wanted and stable(log) == log.end_offset
